"""Export of labels and images to other formats, out of core, with their position in space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dseeds.convert.slab_reader import ConversionReport, SlabReader, has_whole_numbers
from dseeds.core.dtypes import INTEGER_DTYPES
from dseeds.core.formatting import format_shape
from dseeds.core.geometry import check_spacing
from dseeds.core.progress import Progress
from dseeds.io import Image, Spacing, ZarrSource
from dseeds.io.affine import has_shear, translation, with_spacing
from dseeds.io.formats.file_writer import Content, check_file_target, partial_file, remove_partial
from dseeds.io.formats.hdf5 import is_our_hdf5, split_dataset, write_hdf5
from dseeds.io.formats.nifti import is_written_by_us, write_nifti_content
from dseeds.io.formats.npy import write_npy
from dseeds.io.formats.nrrd_writer import is_our_nrrd, write_meta, write_nrrd
from dseeds.io.formats.precomputed import add_scale, check_precomputed_target, import_tensorstore, partial_folder
from dseeds.io.formats.tiff import is_our_tiff, write_tiff
from dseeds.io.image import common_dtype, open_channels
from dseeds.io.labels import check_no_edit, check_still_unedited
from dseeds.io.source import SourceQuery
from dseeds.storage.location import is_remote
from dseeds.storage.ownership import check_apart

EXPORT_STAGE = "export"
# Planes in a shard of the precomputed format, if the memory allows.
SHARD_PLANES = 256


@dataclass(frozen=True, kw_only=True)
class ExportReport(ConversionReport):
    """A report of an export."""

    format: str

    def __str__(self) -> str:
        content = "labels" if self.labels else "an image"
        line = f"{content} of {format_shape(self.shape)} voxels, {self.dtype}, as {self.format}: {self.target}"
        return self.with_notes(line)


@dataclass(frozen=True)
class _ExportFormat:
    """A format: how to recognise and write a file, and the types that it supports.

    The precomputed format has neither function: it is a folder, and its resolutions are written separately.
    """

    endings: tuple[str, ...]
    is_ours: Callable[[Path], bool] | None
    write: Callable[..., None] | None
    channels: bool = True
    label_dtypes: tuple[str, ...] = INTEGER_DTYPES
    image_dtypes: tuple[str, ...] = (*INTEGER_DTYPES, "int8", "float32", "float64")

    def check(self, path: Path, overwrite: bool) -> None:
        if self.is_ours is None:
            check_precomputed_target(path, overwrite)
        else:
            check_file_target(path, overwrite, self.is_ours)


# The integer types of OME-TIFF.
_OME_INTEGERS = ("int8", *(name for name in INTEGER_DTYPES if "64" not in name))
_WITH_HALF_FLOATS = (*INTEGER_DTYPES, "int8", "float16", "float32", "float64")
FORMATS = {
    "nifti": _ExportFormat((".nii", ".nii.gz"), is_written_by_us, write_nifti_content, channels=False),
    "tiff": _ExportFormat(
        (".tif", ".tiff"),
        is_our_tiff,
        write_tiff,
        label_dtypes=("uint8", "uint16", "uint32"),
        image_dtypes=(*_OME_INTEGERS, "float32", "float64"),
    ),
    "nrrd": _ExportFormat((".nrrd",), is_our_nrrd, write_nrrd),
    "metaimage": _ExportFormat((".mha",), is_our_nrrd, write_meta),
    "hdf5": _ExportFormat((".h5", ".hdf5"), is_our_hdf5, write_hdf5, image_dtypes=_WITH_HALF_FLOATS),
    # Nothing in the file shows what wrote it.
    "numpy": _ExportFormat((".npy",), lambda _: False, write_npy, image_dtypes=_WITH_HALF_FLOATS),
    # neuroglancer can compress segments of these label types only.
    "precomputed": _ExportFormat(
        (".precomputed",),
        None,
        None,
        label_dtypes=("uint32", "uint64"),
        image_dtypes=("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"),
    ),
}
ENDINGS = {ending: name for name, form in FORMATS.items() for ending in form.endings}


def export_volume(
    source: Any,
    target: str | Path,
    *,
    format: str | None = None,
    labels: bool | None = None,
    dtype: DTypeLike | None = None,
    volume: int | None = None,
    channel_axis: int | str | None = None,
    spacing: Sequence[float] | None = None,
    memory: int | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write labels or an image in another format, out of core.

    Parameters
    ----------
    source : source
        Anything that `dseeds.io.open_source` takes, such as labels in OME-Zarr or an image, or a list of channels.
    target : path
        A new file, whose ending determines the format: ``.nii`` or ``.nii.gz`` (NIfTI), ``.tif``, ``.tiff`` or
        ``.ome.tif`` (TIFF), ``.nrrd``, ``.mha`` (MetaImage), ``.h5`` or ``.hdf5`` (also as
        ``FILE.h5:/path/to/dataset``), ``.npy``; or a new folder ``.precomputed``, for neuroglancer.
    format : {"nifti", "tiff", "nrrd", "metaimage", "hdf5", "numpy", "precomputed"}, optional
        Default: the format of the ending.
    labels : bool, optional
        Whether the voxels are labels. Default: as the source states.
    dtype : dtype, optional
        The type of the stored voxels. Default: for labels, the smallest integer type that holds them all, which takes
        another pass over the source; for images, their own type, or float32 if the format does not support it, which
        rounds float64 in the precomputed format.
    volume : int, optional
        Which volume of a 4D image, from 0.
    channel_axis : int or str, optional
        The axis of the channels, see `dseeds.io.open_image`. Default: the axis ``c`` of OME-Zarr and TIFF.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: the source's.
    memory : int or str, optional
        Memory for voxels, in bytes or as a text such as ``"512MiB"``, the default.
    overwrite : bool, default False
        Whether to replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Receives the progress.

    Returns
    -------
    ExportReport

    Raises
    ------
    FileExistsError
        If the target exists, and was not written by this program or `overwrite` is not set.
    FileNotFoundError
        If the source or the target's parent folder does not exist.
    ValueError
        If the source cannot be read, a format or type is unknown, voxels do not fit the type, or a package is missing.

    Notes
    -----
    NIfTI, NRRD and MetaImage receive the affine of the source, if it has one, which `import_volume` and `segment` keep.
    TIFF, HDF5 and the precomputed format store only the size of a voxel. The precomputed format also receives the
    coarser resolutions of an OME-Zarr source; an unknown size of a voxel becomes 1 nm there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(export_volume(np.array([[[1, 1, 2, 300]]]), f"{folder}/a.npy", labels=True).dtype)
    int16
    """
    path, dataset, kind = _resolve_target(str(target), format)
    chosen, query = FORMATS[kind], SourceQuery(volume, channel_axis, "copy")
    reader = SlabReader.open(source, query, memory, progress)
    image = reader.image
    for part in image.parts:
        check_no_edit(part)
    check_apart(str(path), *image.paths)
    given_spacing = None if spacing is None else check_spacing(spacing)
    if image.channels > 1 and not chosen.channels:
        raise ValueError(
            f"{path.name} holds one channel, but the source has {image.channels}: choose one with volume=."
        )
    chosen.check(path, overwrite)
    labelled = image.labelled if labels is None else labels
    content = Content(
        path.name,
        image.shape,
        image.channels if image.channels > 1 else None,
        _choose_dtype(reader, chosen.label_dtypes if labelled else chosen.image_dtypes, kind, labelled, dtype),
        given_spacing or image.spacing,
        with_spacing(image.position, given_spacing),
        labelled,
        image.forms and image.forms.mapped(lambda form: with_spacing(form, given_spacing)),
    )
    remove_partial(path)
    if chosen.write is None:
        coarser = (open_channels(source, replace(query, level=level)) for level in _coarser_levels(image))
        _export_precomputed(reader, [image, *coarser], path, content, overwrite)
    else:
        write = chosen.write if dataset is None else partial(chosen.write, dataset=dataset)
        with partial_file(path, lambda: chosen.check(path, overwrite)) as partial_path:
            write(partial_path, reader.slabs(EXPORT_STAGE, content.dtype), content)
            for part in image.parts:
                check_still_unedited(part)
    return ExportReport(
        target=str(target),
        shape=content.shape,
        channels=content.channels,
        dtype=content.dtype.name,
        spacing=content.spacing,
        labels=content.labelled,
        notes=(*image.notes, *_unwritable(content, kind)),
        format=kind,
    )


def _unwritable(content: Content, kind: str) -> list[str]:
    """Return notes on what a format cannot hold of the position in space."""
    has_qform = content.forms is not None and content.forms.qform_code > 0
    if content.affine is None or kind in ("nrrd", "metaimage") or (kind == "nifti" and has_qform):
        return []
    if kind != "nifti" and translation(content.affine) == (0, 0, 0):
        return []
    if kind != "nifti":
        held = "neither the size of a voxel nor" if kind == "numpy" else "the size of a voxel, but not"
        return [f"{kind} holds {held} the position in space, which is lost: NIfTI, NRRD and MetaImage keep it"]
    if has_shear(content.affine):
        return ["the axes are not at right angles (a shear), which only the sform holds: there is no qform (code 0)"]
    return []


def _resolve_target(target: str, format: str | None) -> tuple[Path, str | None, str]:
    """Return the path of a target, the dataset in the file, and the format."""
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: export to a local file, and copy it there afterwards.")
    path, dataset = split_dataset(Path(target).expanduser().absolute())
    implied = next((kind for ending, kind in ENDINGS.items() if path.name.lower().endswith(ending)), None)
    if format is None:
        if implied is None and path.name.lower().endswith(".zarr"):
            raise ValueError(f"{target} would be OME-Zarr, which dseeds import writes (import_volume).")
        if implied is None:
            raise ValueError(f"{target} has none of the endings {', '.join(ENDINGS)}: name the format with format=.")
        return path, dataset or None, implied
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if implied not in (None, format):
        raise ValueError(f"{path.name} is the name of {implied}, not of {format}: leave out one, or change it.")
    return path, dataset or None, format


def _choose_dtype(
    reader: SlabReader, supported: tuple[str, ...], kind: str, labelled: bool, dtype: DTypeLike | None
) -> np.dtype:
    names = ", ".join(supported)
    if dtype is not None:
        with suppress(TypeError):
            if np.dtype(dtype).name in supported:
                return np.dtype(np.dtype(dtype).name)
        raise ValueError(f"dtype must be one of {names} here, got {dtype!r}.")
    if labelled:
        low, high = _label_range(reader)
        for name in supported:
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
        raise ValueError(f"the labels are from {low} to {high}, which none of {names} holds.")
    common = common_dtype(reader.image.dtypes)
    if common.name in supported:
        return common
    if common.kind == "f":
        return np.dtype(np.float32)
    raise ValueError(f"{kind} cannot store {common}: name another type with dtype= (--dtype), one of {names}.")


def _label_range(reader: SlabReader) -> tuple[int, int]:
    """Return bounds of all labels, including 0."""
    if all(dtype == np.uint8 for dtype in reader.image.dtypes):
        return 0, 255
    low, high = 0, 0
    for _, slab in reader.slabs("range"):
        if slab.dtype.kind == "f" and not has_whole_numbers(slab):
            raise ValueError("the voxels are not whole numbers, so they are not labels: leave out labels= (--labels).")
        low, high = min(low, int(slab.min())), max(high, int(slab.max()))
    return low, high


def _coarser_levels(image: Image) -> range:
    """Return the coarser levels of an OME-Zarr image that was opened at full resolution."""
    [first, *more] = image.parts
    if isinstance(first, ZarrSource) and first.level == 0 and not more:
        return range(1, 1 + len(first.coarser))
    return range(0)


def _export_precomputed(
    reader: SlabReader, images: Sequence[Image], path: Path, content: Content, overwrite: bool
) -> None:
    import_tensorstore()
    with partial_folder(path, overwrite) as folder:
        for number, image in enumerate(images):
            level = replace(reader, image=image)
            spacing = _scaled_spacing(content.spacing, reader.image.spacing, image.spacing)
            scale = replace(content, shape=image.shape, spacing=spacing)
            boxes = partial(level.boxes, EXPORT_STAGE, dtype=content.dtype)
            add_scale(folder, number, scale, _shard_depth(level), boxes)


def _scaled_spacing(given: Spacing | None, full: Spacing | None, level: Spacing | None) -> Spacing | None:
    """Return the spacing of a level, when the full resolution is given another spacing than its metadata has."""
    if given is None or full is None or level is None:
        return given
    z, y, x = (g * n / f for g, f, n in zip(given, full, level, strict=True))
    return z, y, x


def _shard_depth(reader: SlabReader) -> int:
    """Return the planes in a shard: as many as the memory holds in boxes, or in slabs if boxes cannot be read."""
    y, x = (min(SHARD_PLANES, n) if reader.image.readable_by_workers else n for n in reader.image.shape[1:])
    planes = max(1, reader.memory // (y * x * reader.voxel_bytes))
    return min(SHARD_PLANES, 1 << (planes.bit_length() - 1))
