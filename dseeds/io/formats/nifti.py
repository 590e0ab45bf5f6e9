"""NIfTI in and out, one slab of planes at a time.

NIfTI stores x fastest and z slowest, so the bytes of its (x, y, z) volume are those of a (z, y, x) array in C
order, and a slab of planes is one run of bytes.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import nibabel
import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialHeader, SpatialImage
from typing_extensions import override

from dseeds.io.affine import describe_forms, describe_sizes, has_shear, has_sizes, is_affine, voxel_sizes
from dseeds.io.axes import axis_meaning
from dseeds.io.formats.file_writer import (
    OURS,
    Content,
    NumberedSlabs,
    check_file_target,
    compress,
    iterate_in_order,
    partial_file,
)
from dseeds.io.source import (
    ArraySource,
    IndexBox,
    NiftiForms,
    Shape,
    Source,
    SourceQuery,
    Spacing,
    UnchunkedSource,
    choose_volume,
    convert_to_mm,
    describe_damage,
    missing_file,
    require_channels,
    require_file_length,
    require_intensities,
    require_volume,
    resolve_channel_axis,
    slab_ranges,
    summarise_error,
)

# nibabel's description of a volume in a file: shape (x, y, z), dtype, offset in bytes, slope, intercept.
Stored: TypeAlias = tuple[tuple[int, ...], np.dtype, int, float, float]

NIFTI_ENDINGS = (".nii", ".nii.gz")
# By the lowest three bits of `xyzt_units`; 0, for unknown, counts as millimetres.
_PER_MM = {0: 1.0, 1: 1e-3, 2: 1.0, 3: 1e3}
_GZIP = (".gz", ".mgz")
_COMPRESSED = (*_GZIP, ".bz2", ".zst")
# Measured on labels of 12 voxels a side: a third of level 4's size for a quarter more time; 9 takes six times as long.
_GZIP_LEVEL = 6
# Deflate expands a byte to no more than this.
_GZIP_RATIO = 1032
# NIfTI's intent code for labels, and nibabel's names for the channels of colours.
_LABEL_INTENT = 1002
_COLOURS = (("R", "G", "B"), ("R", "G", "B", "A"))
# What nibabel reads that is not a volume.
_OTHER_IMAGES = {"GiftiImage": "a surface (GIFTI)", "Cifti2Image": "a matrix (CIFTI)"}
# NIfTI-1 keeps lengths in 16 bits.
_LONGEST_NIFTI1 = 32767


@dataclass(frozen=True, eq=False)
class NiftiSource(UnchunkedSource):
    """A volume in a NIfTI file, or in another file that nibabel can slice; `open_source` opens it.

    Attributes
    ----------
    path : str
        The file that holds the voxels.
    stored : tuple
        Where the voxels are in the file: shape (x, y, z), dtype, offset in bytes, slope and intercept.
    name, shape, dtype, spacing, identity, kind, affine, channels, labelled, notes, forms
        See `Source`. Voxels are scaled by slope and intercept.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dseeds.io import open_source
    >>> image = nibabel.Nifti1Image(np.zeros((5, 4, 3), "int16"), np.diag([0.5, 0.5, 2.0, 1.0]))
    >>> with TemporaryDirectory() as folder:
    ...     nibabel.save(image, f"{folder}/ct.nii.gz")
    ...     source = open_source(f"{folder}/ct.nii.gz")
    >>> source.name, source.shape, source.spacing
    ('ct.nii.gz', (3, 4, 5), (2.0, 0.5, 0.5))
    """

    path: str
    stored: Stored
    name: str
    shape: Shape
    dtype: np.dtype
    spacing: Spacing | None
    identity: dict[str, Any]
    kind: Literal["nifti"] = "nifti"
    affine: np.ndarray | None = None
    channels: int | None = None
    labelled: bool = False
    notes: tuple[str, ...] = ()
    forms: NiftiForms | None = None

    @override
    def reopened(self) -> NiftiSource:
        status = Path(self.path).stat()
        return replace(self, identity={**self.identity, "size": status.st_size, "mtime_ns": status.st_mtime_ns})

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        # In a compressed file, all planes before the box are decompressed too.
        with describe_damage(self.path), ImageOpener(self.path) as stream:
            return _to_zyx(ArrayProxy(stream, self.stored, mmap=False)[box[::-1]])

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        # The file is opened once, read forwards, and decompressed once, to its end.
        with describe_damage(self.path):
            stream = ImageOpener(self.path)
        with stream:
            voxels = ArrayProxy(stream, self.stored, mmap=False)
            for z0, z1 in slab_ranges(self.shape[0], thickness):
                with describe_damage(self.path):
                    slab = _to_zyx(voxels[:, :, z0:z1])
                yield z0, slab
            if self.path.lower().endswith(_COMPRESSED):
                # The checksum, last in the file, is compared only when it is reached.
                with describe_damage(self.path):
                    while stream.read(1 << 20):
                        pass


def open_nifti_file(path: Path, query: SourceQuery) -> tuple[Source, ...]:
    """Open a file that nibabel can read; raises as `dseeds.io.open_source`."""
    image = _load(path)
    return _open(image, _read_raw_header(image), query)


def open_nifti_image(image: SpatialImage, query: SourceQuery) -> tuple[Source, ...]:
    """Open a nibabel image, from its file if it has one; raises as `dseeds.io.open_source`."""
    return _open(image, image.header, query)


def _open(image: SpatialImage, header: SpatialHeader, query: SourceQuery) -> tuple[Source, ...]:
    filename = image.get_filename()
    where, name = (str(filename), Path(filename).name) if filename else ("the nibabel image", "nibabel image")
    voxels = image.dataobj
    shape = tuple(int(size) for size in voxels.shape)
    with describe_damage(where):
        # One voxel has the type after scaling, and shows whether anything can be read.
        first = (slice(0, 1),) * len(shape)
        dtype = np.asarray(voxels[first]).dtype if min(shape, default=0) > 0 else np.dtype("u1")
    labelled = isinstance(header, nibabel.Nifti1Header) and bool(header["intent_code"] == _LABEL_INTENT)
    if labelled:
        require_intensities(where, query)
    colours = dtype.names if dtype.names in _COLOURS and query.allows_channels else None
    order = _spatial_first(voxels)
    shape = tuple(shape[axis] for axis in order)
    require_volume(shape, np.dtype("u1") if colours else dtype, where, query, planes=True)
    if colours and query.channel_axis is not None:
        raise ValueError(f"{where} has {len(colours)} channels in every voxel: leave out channel_axis (--channel-axis)")
    xyz = (*shape[:3], 1)[:3]
    extra = _select_extra((*xyz, *shape[3:]), _name_extra(header, voxels, order), query, where)
    # A senseless header is no reason to warn: no voxel depends on it.
    with np.errstate(all="ignore"):
        spacing, affine, forms, notes = _read_space(image, header)
    if type(voxels) is ArrayProxy and voxels.order == "F" and isinstance(voxels.file_like, str):
        volumes = _volume_numbers(shape[3:], extra)
        sources = (_open_volume(voxels, xyz, volume, name, dtype, spacing, affine) for volume in volumes)
        return tuple(replace(source, labelled=labelled, notes=notes, forms=forms) for source in sources)
    with describe_damage(where):
        array: np.ndarray = np.asanyarray(voxels).transpose(order).reshape(*xyz, *shape[3:])
    volume = _to_zyx(array[(*(slice(None),) * 3, *extra)])
    channels = volume if volume.ndim > 3 else (volume,)
    return tuple(ArraySource(channel, name, "nifti", spacing, affine, labelled, notes, forms) for channel in channels)


def _spatial_first(voxels: Any) -> list[int]:
    """Return the axes of an image with those of space first: MINC names them, and has time before and vectors after."""
    names = _minc_names(voxels)
    axes = range(len(voxels.shape))
    if names is None:
        return list(axes)
    return sorted(axes, key=lambda axis: (not names[axis].endswith("space"), axis))


def _minc_names(voxels: Any) -> Sequence[str] | None:
    """Return the names of the axes of an image of MINC; None for any other."""
    return getattr(getattr(voxels, "minc_file", None), "_dim_names", None)


def _name_extra(header: SpatialHeader, voxels: Any, order: Sequence[int]) -> list[str]:
    """Name the axes from the fourth on: MINC has names, NIfTI's fourth is time, and its fifth a voxel's values."""
    names = _minc_names(voxels)
    if names is not None:
        return [axis_meaning(names[axis]) or names[axis] for axis in order[3:]]
    known = {3: "t", 4: "c"} if isinstance(header, nibabel.Nifti1Header) else {}
    return [known.get(n, f"axis {n}") for n in range(3, len(order))]


def _select_extra(
    shape: Sequence[int], names: Sequence[str], query: SourceQuery, where: str
) -> tuple[int | slice, ...]:
    """Select along the axes from the fourth on: one position, or all along the axis of channels, by number or name."""
    channels: int | None
    if isinstance(query.channel_axis, str) and query.channel_axis in names:
        channels = 3 + names.index(query.channel_axis)
    else:
        # Users number the axes of (..., z, y, x), NIfTI's are (x, y, z, ...).
        reversed_axis = resolve_channel_axis(shape[::-1], query.channel_axis, where)
        channels = None if reversed_axis is None else len(shape) - 1 - reversed_axis
    if channels is not None and channels < 3:
        raise ValueError(
            f"{where} has shape {tuple(shape[::-1])}, the last three of which are z, y and x: "
            f"pass channel_axis= (--channel-axis) as one of those before, if there are any"
        )
    if channels is not None:
        require_channels(shape[channels], where, query.most_channels)
    others = [axis for axis in range(3, len(shape)) if axis != channels]
    sizes = {names[axis - 3]: shape[axis] for axis in others}
    positions = dict(zip(others, choose_volume(sizes, query, where), strict=True))
    return tuple(positions.get(axis, slice(None)) for axis in range(3, len(shape)))


def _volume_numbers(sizes: Sequence[int], extra: Sequence[int | slice]) -> list[int]:
    """Return the numbers of the selected volumes in the order of the file.

    >>> _volume_numbers((4, 3), (2, slice(None)))
    [2, 6, 10]
    """
    along = [[taken] if isinstance(taken, int) else range(size) for size, taken in zip(sizes, extra, strict=True)]
    strides = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    return [sum(map(operator.mul, position, strides)) for position in itertools.product(*along)]


def _to_zyx(voxels: Any) -> np.ndarray:
    """Reverse the axes to (z, y, x), after those of channels; colours become channels."""
    values = np.asarray(voxels).T
    return np.stack([values[colour] for colour in values.dtype.names]) if values.dtype.names else values


def _open_volume(
    voxels: ArrayProxy,
    xyz: tuple[int, ...],
    volume: int,
    name: str,
    dtype: np.dtype,
    spacing: Spacing | None,
    affine: np.ndarray | None,
) -> NiftiSource:
    path = Path(voxels.file_like).absolute()
    x, y, z = xyz
    length = math.prod(xyz) * voxels.dtype.itemsize
    offset = voxels.offset + volume * length
    ending = path.suffix.lower()
    expansion = _GZIP_RATIO if ending in _GZIP else math.inf if ending in _COMPRESSED else 1
    require_file_length(path, offset + length, expansion)
    return NiftiSource(
        path=str(path),
        stored=(xyz, voxels.dtype, offset, voxels.slope, voxels.inter),
        name=name,
        shape=(z, y, x),
        dtype=np.dtype("u1") if dtype.names else dtype,
        spacing=spacing,
        identity={
            "kind": "nifti",
            "path": str(path),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "volume": volume,
            "shape": [z, y, x],
            "dtype": dtype.str,
            "scaling": [float(voxels.slope), float(voxels.inter)],
        },
        affine=affine,
        channels=len(dtype.names) if dtype.names else None,
    )


def is_nifti(target: str) -> bool:
    """Return whether the name of a target asks for NIfTI."""
    return target.lower().endswith(NIFTI_ENDINGS)


def is_written_by_us(path: Path, *, labels: bool = False) -> bool:
    """Return whether this program wrote the voxels, or only the `labels`, in an image that nibabel can read."""
    header = _load(path).header
    if not isinstance(header, nibabel.Nifti1Header) or header.get_intent()[2] != OURS:
        return False
    return not labels or int(header["intent_code"]) == _LABEL_INTENT


def nifti_run(path: Path) -> str | None:
    """Return the `run` that `write_nifti` or `write_nifti_labels` stored in a file.

    Parameters
    ----------
    path : path
        The file, which need not exist.

    Returns
    -------
    str or None
        None if the file does not exist, or is not this program's.

    Examples
    --------
    >>> nifti_run(Path("no-such-file.nii.gz")) is None
    True
    """
    if not (path.is_file() and is_written_by_us(path)):
        return None
    header: Any = _load(path).header
    return bytes(header["aux_file"].item()).decode(errors="replace")


def check_nifti_target(path: Path, overwrite: bool) -> None:
    """Raise an error unless a NIfTI file may be written.

    Parameters
    ----------
    path : path
        The file.
    overwrite : bool
        Whether it may replace an older output of this program.

    Raises
    ------
    FileExistsError
        If the file exists, and was not written by this program or `overwrite` is not set.
    FileNotFoundError
        If the parent folder does not exist.

    Examples
    --------
    >>> check_nifti_target(Path("no-such-folder/labels.nii.gz"), overwrite=False)
    Traceback (most recent call last):
    FileNotFoundError: ...
    """
    check_file_target(path, overwrite, is_written_by_us)


def write_nifti_labels(
    path: str | os.PathLike[str],
    slabs: NumberedSlabs,
    image: str | os.PathLike[str] | SpatialImage,
    shape: Shape,
    *,
    max_label: int | None = None,
    overwrite: bool = False,
    run: str = "",
) -> None:
    """Write labels as NIfTI, with the position in space of the image that they segment.

    Affine, orientation codes, voxel sizes, units and description are the image's. Header extensions are left out,
    since they describe the image's values. The file appears under its name only once it is complete.

    Parameters
    ----------
    path : str or path
        The file to write or replace, ``.nii`` or ``.nii.gz``.
    slabs : iterable of (int, ndarray)
        Labels (dz, y, x), each slab with the number of its first plane, in order and without gaps. One slab is held at
        a time.
    image : str, path or nibabel image
        The image that was segmented. The result is NIfTI-2 if the image is, or if it is longer than 32767 voxels along
        an axis, else NIfTI-1.
    shape : tuple of int
        The shape of the labels along z, y, x.
    max_label : int, optional
        The upper bound of the labels. Default: the number of voxels. Labels are stored as int32 if it fits, since many
        viewers read nothing larger, else as uint32 or uint64.
    overwrite : bool
        Whether to replace an older output of this program.
    run : str
        An identifier of up to 24 characters that is stored in the file; see `nifti_run`.

    Raises
    ------
    ValueError
        If the name has another ending or is that of the image itself, the image is unreadable or of another shape,
        the slabs do not make up the volume, or a label is negative or above `max_label`.
    FileNotFoundError
        If the image or the folder to write to does not exist.
    FileExistsError
        If the file exists, and was not written by this program or `overwrite` is not set.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> image = nibabel.Nifti1Image(np.zeros((4, 3, 2), "int16"), np.diag([0.5, 0.5, 2.0, 1.0]))
    >>> with TemporaryDirectory() as folder:
    ...     write_nifti_labels(f"{folder}/labels.nii.gz", [(0, np.ones((2, 3, 4), int))], image, (2, 3, 4))
    ...     print(nibabel.load(f"{folder}/labels.nii.gz").get_data_dtype())
    int32
    """
    top = math.prod(shape) if max_label is None else max_label
    dtype = np.dtype("<i4" if top < 2**31 else "<u4" if top < 2**32 else "<u8")
    checked = _check_labels(slabs, top)
    write_nifti(path, checked, image, shape, dtype=dtype, labels=True, overwrite=overwrite, run=run)


def write_nifti(
    path: str | os.PathLike[str],
    slabs: NumberedSlabs,
    image: str | os.PathLike[str] | SpatialImage,
    shape: Shape,
    *,
    dtype: np.dtype,
    labels: bool = False,
    overwrite: bool = False,
    run: str = "",
) -> None:
    """Write a volume as NIfTI, with the position in space of the image that it was computed from.

    Parameters
    ----------
    path, image, shape, overwrite, run
        See `write_nifti_labels`.
    slabs : iterable of (int, ndarray)
        Voxels (dz, y, x), each slab with the number of its first plane, in order and without gaps.
    dtype : dtype
        The dtype of the voxels in the file.
    labels : bool
        Whether the header says that the voxels are labels.

    Raises
    ------
    ValueError, FileNotFoundError, FileExistsError
        As `write_nifti_labels`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> image = nibabel.Nifti1Image(np.zeros((4, 3, 2), "int16"), np.diag([0.5, 0.5, 2.0, 1.0]))
    >>> slabs = [(0, np.ones((1, 3, 4))), (1, np.zeros((1, 3, 4)))]
    >>> with TemporaryDirectory() as folder:
    ...     write_nifti(f"{folder}/means.nii", slabs, image, (2, 3, 4), dtype=np.dtype("float32"))
    ...     print(nibabel.load(f"{folder}/means.nii").get_fdata()[0, 0])
    [1. 0.]
    """
    target = Path(path)
    if not is_nifti(target.name):
        raise ValueError(f"{target} does not end in .nii or .nii.gz: NIfTI needs such a name")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist: create the folder to write {target.name} to")
    if not isinstance(image, SpatialImage):
        image = _load(Path(image))
    if target.resolve() in {Path(held.filename).resolve() for held in image.file_map.values() if held.filename}:
        raise ValueError(f"{target} is the image itself: give it another name")

    header = _new_header(image, shape, dtype, labels=labels)
    header["aux_file"] = run.encode()
    with partial_file(target, lambda: check_nifti_target(target, overwrite)) as partial:
        _write(partial, header, iterate_in_order(slabs, shape), gzipped=target.name.lower().endswith(".gz"))


def write_nifti_content(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume of any origin as NIfTI; see `dseeds.io.formats.file_writer`."""
    shape, spacing, affine, forms = content.shape, content.spacing, content.affine, content.forms
    nifti = nibabel.Nifti1Image if max(shape) <= _LONGEST_NIFTI1 else nibabel.Nifti2Image
    # Takes no memory, but has the position in space.
    image = nifti(np.broadcast_to(np.uint8(0), shape[::-1]), affine)
    if affine is not None:
        # Only the sform can hold a shear: code 0 is for no qform.
        forms = forms or NiftiForms(int(not has_shear(affine)), 1, affine)
        image.set_qform(affine if forms.qform is None else forms.qform, code=forms.qform_code)
        image.set_sform(affine, code=forms.sform_code)
    elif spacing is not None:
        image.header.set_zooms(spacing[::-1])
    if spacing is not None:
        image.header.set_xyzt_units("mm")
    header = _new_header(image, shape, content.dtype, labels=content.labelled)
    _write(path, header, iterate_in_order(slabs, shape), gzipped=content.name.lower().endswith(".gz"))


def _write(path: Path, header: nibabel.Nifti1Header, slabs: Iterable[np.ndarray], *, gzipped: bool) -> None:
    with path.open("xb") as file, compress(file, _GZIP_LEVEL) if gzipped else nullcontext(file) as stream:
        header.write_to(stream)
        for slab in slabs:
            stream.write(np.ascontiguousarray(slab, header.get_data_dtype()).data)


def _new_header(image: SpatialImage, shape: Shape, dtype: np.dtype, *, labels: bool) -> nibabel.Nifti1Header:
    """Return a header for voxels of a type that has the position in space of an image of any format."""
    z, y, x = shape
    if tuple(image.shape[:3]) != (x, y, z):
        raise ValueError(f"voxels of shape (z, y, x) = {shape} do not fit an image of shape {tuple(image.shape)}")
    large = isinstance(image.header, nibabel.Nifti2Header) or max(shape) > _LONGEST_NIFTI1
    nifti = nibabel.Nifti2Image if large else nibabel.Nifti1Image
    # nibabel settles affine and orientation codes when it creates an image; this one takes no memory.
    placeholder = nifti(np.broadcast_to(np.uint8(0), (x, y, z)), image.affine, image.header)
    header: nibabel.Nifti1Header = placeholder.header.as_byteswapped("<")
    header.extensions.clear()
    header.set_data_offset(0)
    header.set_data_dtype(dtype.newbyteorder("<"))
    header.set_slope_inter(1, 0)
    header.set_intent("label" if labels else "none", name=OURS)
    header["cal_min"] = header["cal_max"] = 0
    return header


def _check_labels(slabs: NumberedSlabs, top: int) -> Iterator[tuple[int, np.ndarray]]:
    for z0, slab in slabs:
        if slab.size and not 0 <= int(slab.min()) <= int(slab.max()) <= top:
            raise ValueError(f"a label in planes {z0} to {z0 + len(slab) - 1} is not between 0 and {top}")
        yield z0, slab


def _load(path: Path) -> SpatialImage:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        # A senseless affine is no reason to warn: no voxel depends on it.
        with np.errstate(all="ignore"):
            image = nibabel.load(path.absolute())
        if not isinstance(image, SpatialImage):
            raise ValueError(f"it holds {_OTHER_IMAGES.get(type(image).__name__, 'something else')}, not a volume")
    except FileNotFoundError as error:
        raise missing_file(str(path), error) from error
    except ImageFileError as error:
        raise ValueError(
            f"{path} cannot be opened as an image: it is of no format that is read, or its header is damaged, "
            f"so pass a file of NIfTI, TIFF, NRRD, MetaImage, HDF5 or NumPy, or a folder of OME-Zarr, DICOM or TIFF"
        ) from error
    except Exception as error:  # a damaged header can raise anything
        raise ValueError(
            f"{path} cannot be opened as an image ({summarise_error(error)}): "
            f"pass an undamaged file of a format that is read, such as NIfTI (.nii, .nii.gz), TIFF, NRRD or OME-Zarr"
        ) from error
    return image


def _read_raw_header(image: SpatialImage) -> SpatialHeader:
    """Read the header as it is in the file: nibabel corrects a voxel size of 0, which stands for unknown, to 1."""
    if not isinstance(image.header, AnalyzeHeader):
        return image.header
    path = str(image.file_map.get("header", image.file_map["image"]).filename)
    with describe_damage(path), ImageOpener(path) as stream:
        header: SpatialHeader = type(image.header).from_fileobj(stream, check=False)
    return header


def _read_space(
    image: SpatialImage, header: SpatialHeader
) -> tuple[Spacing | None, np.ndarray | None, NiftiForms | None, tuple[str, ...]]:
    """Return the size of a voxel, the affine, its forms, and notes on contradictions: the affine counts, for both."""
    affine, spacing = _read_affine(image, header), _read_spacing(header)
    if affine is None:
        return spacing, None, None, ()
    x, y, z = (*image.shape[:3], 1)[:3]
    forms = _read_forms(header, affine)
    notes = describe_forms(affine, forms, (z, y, x))
    if spacing is None or has_sizes(affine, spacing):
        return spacing, affine, forms, notes
    # The sizes are a part of the qform.
    notes = notes or describe_sizes(spacing, affine, "pixdim, " if isinstance(header, AnalyzeHeader) else "")
    return convert_to_mm(voxel_sizes(affine), [1.0] * 3), affine, forms, notes


def _read_forms(header: SpatialHeader, affine: np.ndarray) -> NiftiForms | None:
    """Return the codes of a header, and its qform in millimetres if there is one that makes sense.

    One of code 0 counts only where its sizes of voxels contradict the affine: some programs take these all the same.
    """
    if not isinstance(header, nibabel.Nifti1Header):
        return None
    qform = None
    # A damaged header can raise anything, and the sform counts.
    with suppress(Exception), np.errstate(all="ignore"):
        qform = _to_mm(header.get_qform(), _per_mm(header))
    code = 0 if qform is None else int(header["qform_code"])
    if qform is not None and code == 0 and has_sizes(affine, voxel_sizes(qform)):
        qform = None
    return NiftiForms(code, int(header["sform_code"]), qform)


def _read_spacing(header: SpatialHeader) -> Spacing | None:
    zooms = list(np.abs(header.get_zooms()[:3]))
    if isinstance(header, AnalyzeHeader) and len(zooms) == 2:
        # A single plane has the thickness of the header, if there is one, or else that of its pixels.
        zooms.append(np.abs(header["pixdim"][3]) or min(zooms))
    if len(zooms) != 3:
        return None
    # Through text, so that the header's float32 3.27 becomes 3.27, not 3.2699999809.
    return convert_to_mm([float(str(zoom)) for zoom in zooms[::-1]], [_per_mm(header)] * 3)


def _read_affine(image: SpatialImage, header: SpatialHeader) -> np.ndarray | None:
    """Return the affine in millimetres; None if the header has none, or one that makes no sense."""
    if isinstance(header, AnalyzeHeader):
        nifti = isinstance(header, nibabel.Nifti1Header)
        if not nifti or (header["qform_code"] == 0 and header["sform_code"] == 0):
            return None
    return _to_mm(image.affine, _per_mm(header))


def _to_mm(affine: np.ndarray | None, per_mm: float | None) -> np.ndarray | None:
    if per_mm is None or affine is None:
        return None
    with np.errstate(all="ignore"):
        in_mm = np.asarray(np.diag([1 / per_mm] * 3 + [1.0]) @ affine)
        return in_mm if is_affine(in_mm) else None


def _per_mm(header: SpatialHeader) -> float | None:
    return _PER_MM.get(int(header["xyzt_units"]) % 8 if isinstance(header, nibabel.Nifti1Header) else 2)
