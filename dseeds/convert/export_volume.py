"""`export_volume`: labels and images go out to formats of others, slab by slab, and stay where they are in space."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from dseeds.convert.slab_reader import SlabReader, has_whole_numbers, lengths_in_mm
from dseeds.core.dtypes import INTEGER_DTYPES
from dseeds.core.progress import Progress
from dseeds.io import Image, Spacing, ZarrSource
from dseeds.io.affine import with_spacing
from dseeds.io.formats.file_writer import Content, check_file_target, partial_file, remove_partial
from dseeds.io.formats.hdf5 import hdf5_dataset, is_our_hdf5, write_hdf5
from dseeds.io.formats.nifti import check_nifti_target, write_nifti_content
from dseeds.io.formats.npy import write_npy
from dseeds.io.formats.nrrd_writer import is_our_nrrd, write_meta, write_nrrd
from dseeds.io.formats.precomputed import add_scale, check_precomputed_target, import_tensorstore, partial_folder
from dseeds.io.formats.tiff import is_our_tiff, write_tiff
from dseeds.io.image import common_dtype, open_channels
from dseeds.io.labels import TASK_BYTES
from dseeds.io.source import SourceQuery
from dseeds.parallel.cluster import parse_memory
from dseeds.storage.location import is_remote
from dseeds.storage.ownership import check_apart

EXPORT_STAGE = "export"
ENDINGS = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".nrrd": "nrrd",
    ".mha": "metaimage",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npy": "numpy",
    ".precomputed": "precomputed",
}
# Planes in a shard of the precomputed format, if the memory allows.
SHARD_PLANES = 256


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes
    ----------
    target, format : str
        Where it is, and what.
    shape : tuple of int
        Voxels along (z, y, x).
    channels : int or None
        How many channels lie along a further axis.
    dtype : str
        What voxels are stored as.
    spacing : tuple of float or None
        Size of a voxel along (z, y, x) in millimetres.
    labels : bool
        Whether the voxels are labels.
    """

    target: str
    format: str
    shape: tuple[int, int, int]
    channels: int | None
    dtype: str
    spacing: Spacing | None
    labels: bool

    def __str__(self) -> str:
        what = "labels" if self.labels else "an image"
        return f"{what} of {' x '.join(map(str, self.shape))} voxels, {self.dtype}, as {self.format}: {self.target}"

    def to_json(self) -> str:
        """Give all of it as JSON."""
        return json.dumps(asdict(self), indent=2)


class _Format(NamedTuple):
    """What a format holds, and how it is written; without `write`, by the code for the precomputed format."""

    check: Callable[[Path, bool], None]
    write: Callable[..., None] | None
    channels: bool = True
    # What labels and images may be stored as.
    whole: tuple[str, ...] = INTEGER_DTYPES
    dtypes: tuple[str, ...] = (*INTEGER_DTYPES, "int8", "float32", "float64")


def _unless(is_ours: Callable[[Path], bool]) -> Callable[[Path, bool], None]:
    return lambda path, overwrite: check_file_target(path, overwrite, is_ours)


# What OME-TIFF knows.
_SMALL = ("int8", *(name for name in INTEGER_DTYPES if "64" not in name))
_HALF = (*INTEGER_DTYPES, "int8", "float16", "float32", "float64")
FORMATS = {
    "nifti": _Format(check_nifti_target, write_nifti_content, channels=False),
    "tiff": _Format(
        _unless(is_our_tiff), write_tiff, whole=("uint8", "uint16", "uint32"), dtypes=(*_SMALL, "float32", "float64")
    ),
    "nrrd": _Format(_unless(is_our_nrrd), write_nrrd),
    "metaimage": _Format(_unless(is_our_nrrd), write_meta),
    "hdf5": _Format(_unless(is_our_hdf5), write_hdf5, dtypes=_HALF),
    # Nothing tells whose such a file is.
    "numpy": _Format(_unless(lambda _: False), write_npy, dtypes=_HALF),
    # Of these alone neuroglancer makes segments that can be compressed as such.
    "precomputed": _Format(
        check_precomputed_target,
        None,
        whole=("uint32", "uint64"),
        dtypes=("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"),
    ),
}


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
    """Write labels or an image in a format of others, out of core.

    Parameters
    ----------
    source : source
        What `dseeds.io.open_source` takes, such as labels in OME-Zarr, an image, a list of several channels.
    target : path
        A new file, whose ending says what it is: ``.nii`` or ``.nii.gz`` (NIfTI), ``.tif``, ``.tiff`` or ``.ome.tif``
        (TIFF), ``.nrrd``, ``.mha`` (MetaImage), ``.h5`` or ``.hdf5``, also as ``FILE.h5:/path/to/dataset``, ``.npy``;
        or a new folder with the ending ``.precomputed``, which neuroglancer reads.
    format : {"nifti", "tiff", "nrrd", "metaimage", "hdf5", "numpy", "precomputed"}, optional
        Default: what the ending says.
    labels : bool, optional
        Whether the voxels are labels. Default: as the source says.
    dtype : dtype, optional
        What voxels are stored as. Default: labels as the smallest integers that hold them all, for which they are read
        once more; images as they are, but where the format does not know their type: then as float32, which rounds
        float64 in the precomputed format.
    volume : int, optional
        Which volume of a 4D image, from 0.
    channel_axis : int or str, optional
        The axis that channels lie along; see `dseeds.io.open_image`. Default: the axis ``c`` of OME-Zarr and TIFF.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: what the source says.
    memory : int or str, optional
        What may be held at once, such as ``"512MiB"``, the default.
    overwrite : bool, default False
        Replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Is told about slabs.

    Returns
    -------
    Exported

    Raises
    ------
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten.
    FileNotFoundError
        If the source or the target's folder does not exist.
    ValueError
        If the source cannot be read, a format or type is unknown, voxels do not fit the type, or a package is missing.

    Notes
    -----
    NIfTI, NRRD and MetaImage get the affine of the source, if it has one: the one that `import_volume` and `segment`
    keep. TIFF, HDF5 and the precomputed format know the size of a voxel alone. Of the precomputed format, coarser
    resolutions are those of an OME-Zarr source; where the size of a voxel is unknown, it is called 1 nm.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(export_volume(np.array([[[1, 1, 2, 300]]]), f"{folder}/a.npy", labels=True).dtype)
    int16
    """
    path, dataset, kind = _target(str(target), format)
    wanted = SourceQuery(volume, channel_axis, "copy")
    image = open_channels(source, wanted)
    check_apart(str(path), *image.paths)
    given, chosen = lengths_in_mm(spacing), FORMATS[kind]
    if image.channels > 1 and not chosen.channels:
        raise ValueError(f"{path.name} holds one channel, and the source {image.channels}: say which with volume=.")
    chosen.check(path, overwrite)
    labelled = image.labelled if labels is None else labels
    reading = SlabReader(image, parse_memory(memory) if memory is not None else TASK_BYTES, progress)
    content = Content(
        path.name,
        image.shape,
        image.channels if image.channels > 1 else None,
        _stored(reading, chosen, labelled, dtype),
        given or image.spacing,
        with_spacing(image.affine, given),
        labelled,
    )
    remove_partial(path)
    if chosen.write is None:
        levels = _levels(image)
        images = [image, *(open_channels(source, replace(wanted, level=level)) for level in levels)]
        _export_precomputed(reading, images, path, content, overwrite)
    else:
        write = chosen.write if dataset is None else partial(chosen.write, dataset=dataset)
        with partial_file(path, lambda: chosen.check(path, overwrite)) as beside:
            write(beside, reading.slabs(EXPORT_STAGE, content.dtype), content)
    return ExportReport(
        str(target), kind, content.shape, content.channels, content.dtype.name, content.spacing, content.labelled
    )


def _target(target: str, format: str | None) -> tuple[Path, str | None, str]:
    """Tell the file, the dataset in it and the format of a target."""
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: files are written here, so copy them there afterwards.")
    path, dataset = hdf5_dataset(Path(target).expanduser().absolute())
    found = next((kind for ending, kind in ENDINGS.items() if path.name.lower().endswith(ending)), None)
    if found is None and path.name.lower().endswith(".zarr") and format is None:
        raise ValueError(f"{target} would be OME-Zarr, which dseeds import writes (import_volume).")
    if format is None and found is None:
        raise ValueError(f"{target} has none of the endings {', '.join(ENDINGS)}: say what it is to be with format=.")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if format is not None and found not in (None, format):
        raise ValueError(f"{path.name} is the name of {found}, not of {format}: leave out one, or change it.")
    kind = str(format or found)
    return path, dataset or None, kind


def _stored(reading: SlabReader, chosen: _Format, labelled: bool, dtype: DTypeLike | None) -> np.dtype:
    """Choose what voxels are stored as."""
    known = chosen.whole if labelled else chosen.dtypes
    if dtype is not None:
        with suppress(TypeError):
            if np.dtype(dtype).name in known:
                return np.dtype(np.dtype(dtype).name)
        raise ValueError(f"dtype must be one of {', '.join(known)} here, got {dtype!r}.")
    if labelled:
        low, high = _extremes(reading)
        for name in known:
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
        raise ValueError(f"the labels are from {low} to {high}, which none of {', '.join(known)} holds.")
    found = common_dtype(reading.image.dtypes)
    if found.name in known:
        return found
    if found.kind == "f":
        return np.dtype(np.float32)
    raise ValueError(
        f"the format knows no {found}: name another type with dtype= (--dtype), one of {', '.join(known)}."
    )


def _extremes(reading: SlabReader) -> tuple[int, int]:
    """Find the lowest and the highest label."""
    if all(dtype == np.uint8 for dtype in reading.image.dtypes):
        return 0, 255
    low, high = 0, 0
    for _, slab in reading.slabs("range"):
        if slab.dtype.kind == "f" and not has_whole_numbers(slab):
            raise ValueError("the labels are not whole numbers, so they are none: leave out labels= (--labels).")
        low, high = min(low, int(slab.min())), max(high, int(slab.max()))
    return low, high


def _levels(image: Image) -> range:
    """Tell which coarser levels of an OME-Zarr image there are."""
    [first, *more] = image.parts
    whole = isinstance(first, ZarrSource) and first.level == 0 and not more
    return range(1, 1 + len(first.coarser)) if whole and isinstance(first, ZarrSource) else range(0)


def _export_precomputed(
    reading: SlabReader, images: Sequence[Image], path: Path, content: Content, overwrite: bool
) -> None:
    """Write all resolutions."""
    import_tensorstore()
    with partial_folder(path, overwrite) as folder:
        for number, image in enumerate(images):
            there = replace(reading, image=image)
            spacing = _coarser(content.spacing, reading.image.spacing, image.spacing)
            scale = replace(content, shape=image.shape, spacing=spacing)
            add_scale(
                folder, number, scale, _shard_depth(there), partial(there.boxes, EXPORT_STAGE, dtype=content.dtype)
            )


def _coarser(asked: Spacing | None, full: Spacing | None, level: Spacing | None) -> Spacing | None:
    """Give the spacing of a level whose full resolution is said to have another one than it says itself."""
    if asked is None or full is None or level is None:
        return asked
    z, y, x = (a * n / f for a, f, n in zip(asked, full, level, strict=True))
    return z, y, x


def _shard_depth(reading: SlabReader) -> int:
    """Choose how many planes a shard has: what the memory allows of slabs, or of boxes where these can be read."""
    y, x = (min(SHARD_PLANES, n) if reading.image.readable_by_workers else n for n in reading.image.shape[1:])
    most = max(1, reading.memory // (y * x * reading.voxel_bytes))
    return min(SHARD_PLANES, 1 << (most.bit_length() - 1))
