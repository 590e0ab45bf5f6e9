"""The interface of every volume that can be read, and what the formats share.

To add a format, write a module in `dseeds.io.formats` with two functions: one that recognises a path, by its ending or
its first bytes, and one that opens it for a `SourceQuery` and returns a `Source`. The latter

- checks the array with `require_volume`, before anything large is allocated;
- chooses the volume and the channels in it with `select_volume`, or with `select_named_volume` if its axes have names;
- reads within `describe_damage`, so that any error of a library becomes a ValueError that names the file;
- imports an optional package with `dseeds.core.optional.import_optional`.

A format whose files hold an array each only implements `dseeds.io.formats.file_source.Voxels`; `FileSource` does the
rest. Other sources derive from `SourceBase`, or from `IndexedSource` if they select their volume from an array of more
axes, and pickle. Add the format's name to `Kind`, its endings to `_LOCAL_ONLY`, its two functions to the table in
`dseeds.io.open`, and its tests to ``tests/io/test_formats.py``.
"""

from __future__ import annotations

import errno
import hashlib
import math
import operator
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from typing_extensions import override

from dseeds.core.forks import cached_property

Spacing: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
# A box of voxels as an index of an array, along z, y, x, with a step of 1.
IndexBox: TypeAlias = tuple[slice, slice, slice]
Kind: TypeAlias = Literal["nifti", "zarr", "dicom", "tiff", "nrrd", "metaimage", "numpy", "hdf5", "array"]

MAX_CHANNELS = 16
_ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
# Endings of formats that can be read from local files only.
_LOCAL_ONLY = re.compile(r"\.(nii|nii\.gz|tiff?|nrrd|nhdr|mha|mhd|npy|npz|h5|hdf5?|ims|nc|mat|dcm)", re.IGNORECASE)

# What only the authors of a library understand: its names, source files, objects and temporary files.
_INTERNALS = re.compile(
    r"\b(?:numcodecs|imagecodecs|blosc|tifffile|h5py|h5py_|pydicom|nibabel|SimpleITK|itk|gdcm|fsspec|obstore|numpy|np|ndarray"
    r"|dtype|memoryview|bytearray|NoneType|self|synchronously|struct|unpack|zarr\.\w+)\b"
    r"|broadcast|reshape|0x[0-9a-f]{4}|::|[<>]|\bb['\"]|\w\(\)|\bobject at\b"
    r"|Traceback|\.(?:py|cxx|hxx|cpp|hpp|cc|c|h|rs)\b|/tmp[a-z0-9_]{8}\b",
    re.IGNORECASE,
)
# What libraries say of damaged files, in plain words; the first that fits is taken.
_CAUSES = (
    (re.compile(r"\bCRC|checksum|data check", re.IGNORECASE), "a checksum does not match"),
    (re.compile(r"end-of-stream|\bEOF\b|requires a buffer|truncated|ends? early", re.IGNORECASE), "it ends too early"),
    (re.compile(r"not a gzipped|magic string|not a TIFF|signature", re.IGNORECASE), "it does not begin as such a file"),
    (re.compile(r"decompress|inflat|stored block", re.IGNORECASE), "its compressed data are damaged"),
    (_INTERNALS, "its contents make no sense"),
)
# What HDF5 says of a file that is being written.
_LOCKED = re.compile(r"unable to lock file|already open for write|Resource temporarily unavailable")


@dataclass(frozen=True)
class SourceQuery:
    """Which volume of a file or array to read, as in `dseeds.io.open_image`, and for which purpose.

    A volume holds anything but booleans, an image neither booleans nor labels, a mask, labels and a copy anything. Only
    an image and a copy may have several channels. With `planes`, an array of two axes is a volume of one plane.
    """

    volume: int | None = None
    channel_axis: int | str | None = None
    purpose: Literal["volume", "image", "mask", "labels", "copy"] = "volume"
    level: int = 0
    planes: bool = False
    most_channels: int = MAX_CHANNELS

    @property
    def is_image(self) -> bool:
        """Whether voxels are intensities, not those of a mask or labels."""
        return self.purpose not in ("mask", "labels")

    @property
    def allows_channels(self) -> bool:
        """Whether there may be several channels."""
        return self.purpose in ("image", "copy")


class SeveralVolumes(ValueError):
    """An array holds several volumes or channels, and the query chooses none; `sizes` are those of its further axes."""

    def __init__(self, message: str, sizes: Mapping[str, int]) -> None:
        super().__init__(message, dict(sizes))

    @property
    def sizes(self) -> dict[str, int]:
        """The axes that are longer than 1, beside those of space, by name."""
        sizes: dict[str, int] = self.args[1]
        return sizes

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, eq=False)
class NiftiForms:
    """How a file of NIfTI states the position of its voxels: the affine is that of its sform, or else of its qform.

    Attributes
    ----------
    qform_code, sform_code : int
        The spaces that qform and sform lead to, as NIfTI numbers them; 0 for one that is missing.
    qform : ndarray or None
        The affine of the qform, from voxels (x, y, z) to millimetres, (4, 4); None if the header has none. With code 0
        it is there where the sizes of voxels (``pixdim``), a part of it, contradict the affine.
    """

    qform_code: int
    sform_code: int
    qform: np.ndarray | None = None

    def mapped(self, change: Callable[[np.ndarray], np.ndarray | None]) -> NiftiForms:
        """Return the forms of a volume that is placed differently: `change` does to an affine what became of it."""
        return self if self.qform is None else replace(self, qform=change(self.qform))


class Source(Protocol):
    """One 3D volume that can be read, axes (z, y, x). Every source pickles.

    A source that belongs to an image may also be several channels that are stored together; its arrays are then
    (c, z, y, x).

    Examples
    --------
    >>> source = ArraySource(np.zeros((4, 30, 30)))
    >>> [(z0, slab.shape) for z0, slab in source.slabs(3)]
    [(0, (3, 30, 30)), (3, (1, 30, 30))]
    """

    @property
    def name(self) -> str:
        """The file's name without its folder, for people."""

    @property
    def kind(self) -> Kind:
        """The format."""

    @property
    def path(self) -> str | None:
        """The path or URL; None in memory."""

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the voxels as `read` returns them: integer or floating, of either byte order."""

    @property
    def spacing(self) -> Spacing | None:
        """Size of a voxel along z, y, x in millimetres; None if unknown."""

    @property
    def channels(self) -> int | None:
        """Number of channels along the first axis of all arrays; None if there is no such axis."""

    @property
    def affine(self) -> np.ndarray | None:
        """From a voxel (x, y, z) to its position in millimetres, (4, 4), as in NIfTI; None if unknown."""

    @property
    def forms(self) -> NiftiForms | None:
        """The codes of the affine in NIfTI, and a second one that the file holds; None if it has none of these."""

    @property
    def labelled(self) -> bool:
        """Whether the metadata say that the voxels are labels."""

    @property
    def chunks(self) -> Shape | None:
        """Voxels along z, y, x of a chunk; None if planes are stored one after the other."""

    @property
    def shards(self) -> Shape | None:
        """Voxels along z, y, x of a shard that holds chunks; None without shards."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What its owner should know of how the file is read, such as which of two contradictory statements counts."""

    @property
    def readable_by_workers(self) -> bool:
        """Whether other processes can `read` any box at a reasonable cost. If not, read the `slabs` once."""

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this source from others and from later states of itself; can be written as JSON."""

    def reopened(self) -> Source:
        """Return the same source as it is now."""

    def read(self, box: IndexBox) -> np.ndarray:
        """Read the voxels in a box.

        Parameters
        ----------
        box : tuple of slice
            Along z, y, x, with a step of 1.

        Returns
        -------
        ndarray, shape (z, y, x), or (c, z, y, x) with channels
            Of the source's `dtype`; may be a read-only view.

        Raises
        ------
        ValueError
            If the stored data are damaged.
        """

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read the volume once from top to bottom, one slab at a time.

        Parameters
        ----------
        thickness : int
            Planes in a slab; the last one may have fewer.

        Yields
        ------
        z0 : int
            The number of the slab's first plane.
        slab : ndarray, shape (dz, y, x), or (c, dz, y, x) with channels
            Of the source's `dtype`; may be a read-only view.

        Raises
        ------
        ValueError
            If the stored data are damaged, or `thickness` is less than 1.
        """


if TYPE_CHECKING:
    _Interface = Source
else:
    # No field of a dataclass can replace a property of a base class, so that there are none at run time.
    _Interface = object


class SourceBase(_Interface):
    """The base of all sources: one that never changes, and is read box by box."""

    notes: tuple[str, ...] = ()
    forms: NiftiForms | None = None

    @override
    def reopened(self) -> Source:
        return self

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.read((slice(z0, z1), slice(None), slice(None)))


class UnchunkedSource(SourceBase):
    """The base of sources without chunks, which other processes cannot read, or only at a high cost."""

    chunks = shards = None
    readable_by_workers = False


class IndexedSource(SourceBase):
    """The base of sources whose volume an index selects from an array: whole axes for z, y, x and channels.

    Subclasses may have the field `space`, the axes of z, y and x if they are in another order, or missing.
    """

    index: tuple[int | slice, ...]
    channel_axis: int | None
    space: tuple[int | None, int | None, int | None] | None = None

    def _to_czyx(self, values: np.ndarray) -> np.ndarray:
        """Bring the axes that an index keeps into the order (c, z, y, x), and add those that are missing."""
        kept = [axis for axis, taken in enumerate(self.index) if isinstance(taken, slice)]
        first = [] if self.channel_axis is None else [self.channel_axis]
        ordered = values.transpose([kept.index(axis) for axis in (*first, *self._zyx) if axis is not None])
        return np.expand_dims(ordered, [len(first) + n for n, axis in enumerate(self._zyx) if axis is None])

    @property
    def stored(self) -> Any:
        """The array, or a description of it: its shape, dtype and chunks."""
        raise NotImplementedError

    @property
    @override
    def shape(self) -> Shape:
        return self._along_zyx(self.stored.shape)

    @property
    @override
    def dtype(self) -> np.dtype:
        dtype: np.dtype = np.dtype(self.stored.dtype)
        return dtype

    @property
    @override
    def channels(self) -> int | None:
        return None if self.channel_axis is None else int(self.stored.shape[self.channel_axis])

    @property
    @override
    def chunks(self) -> Shape | None:
        return None if self.stored.chunks is None else self._along_zyx(self.stored.chunks)

    def _along_zyx(self, sizes: Sequence[int]) -> Shape:
        z, y, x = (1 if axis is None else int(sizes[axis]) for axis in self._zyx)
        return z, y, x

    @property
    def _zyx(self) -> tuple[int | None, int | None, int | None]:
        """The axes of the array that are z, y and x."""
        if self.space is not None:
            return self.space
        z, y, x = (n for n, taken in enumerate(self.index) if isinstance(taken, slice) and n != self.channel_axis)
        return z, y, x


@dataclass(frozen=True, eq=False)
class ArraySource(UnchunkedSource):
    """A volume in the memory of this process.

    Attributes
    ----------
    array : ndarray, shape (z, y, x)
        The voxels, not copied.
    name, kind, spacing, affine, labelled, notes, forms
        See `Source`; the spacing is in millimetres.

    Examples
    --------
    >>> source = ArraySource(np.zeros((3, 4, 5), "int16"), "ct", spacing=(2.0, 0.5, 0.5))
    >>> source.shape, source.dtype, source.spacing
    ((3, 4, 5), dtype('int16'), (2.0, 0.5, 0.5))
    """

    array: np.ndarray
    name: str = "array"
    kind: Kind = "array"
    spacing: Spacing | None = None
    affine: np.ndarray | None = None
    labelled: bool = False
    notes: tuple[str, ...] = ()
    forms: NiftiForms | None = None
    path = channels = None

    @property
    @override
    def shape(self) -> Shape:
        z, y, x = self.array.shape
        return z, y, x

    @property
    @override
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @cached_property
    @override
    def identity(self) -> dict[str, Any]:
        description = {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype.str}
        return {**description, "digest": hash_voxels(self.slabs(16))}

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        return self.array[box]


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr array or group."""
    return any((path / name).exists() for name in _ZARR_METADATA)


def resolve_address(address: str) -> Path | str:
    """Return the absolute path of a local address, since workers may run in another folder; return a URL unchanged."""
    if "://" not in address and "::" not in address:
        return Path(address).absolute()
    url = urlsplit(address)
    if url.scheme == "file":
        return Path(url2pathname(url.path))
    suffixes = Path(url.path).suffixes
    if any(_LOCAL_ONLY.fullmatch("".join(suffixes[-count:])) for count in (1, 2)):
        raise ValueError(f"{address} is not on this machine: only Zarr can be read from a URL, so download it")
    return address


def require_volume(
    shape: Sequence[int], dtype: np.dtype, where: str, query: SourceQuery, *, planes: bool = False
) -> None:
    """Raise a ValueError, which calls the array `where`, if it is not a volume that serves the query's purpose.

    With `planes`, an array of two axes is a volume of one plane.
    """
    shape = tuple(shape)
    if len(shape) < (2 if planes else 3):
        raise ValueError(f"{where} has shape {shape}: supervoxels need three axes, z, y and x")
    if min(shape) < 1:
        raise ValueError(f"{where} has shape {shape}: an axis is empty, there is nothing to cut into supervoxels")
    if query.purpose == "image" and dtype.kind == "f" and dtype.itemsize > 8:
        raise TypeError(f"{where} holds values of type {dtype}; intensities have at most 64 bits: pass float64")
    if dtype.kind in ("iufb" if query.purpose in ("mask", "labels", "copy") else "iuf"):
        return
    problem, advice = {
        "b": ("is boolean", "pass the image that it belongs to"),
        "c": ("is complex", "pass its magnitude"),
        "V": (f"holds records of {len(dtype.names or ())} values", "pass one number per voxel"),
    }.get(dtype.kind, (f"holds values of type {dtype}", "pass integers or floating-point numbers"))
    needed = "; supervoxels need intensities" if query.is_image else ""
    raise ValueError(f"{where} {problem}{needed}: {advice}")


def require_intensities(where: str, query: SourceQuery) -> None:
    """Raise a ValueError for labels, which `where` names, if the query is for an image."""
    if query.purpose == "image":
        raise ValueError(f"{where} holds labels, not intensities: pass the image that they belong to")


def require_channels(count: int, where: str, most: int) -> None:
    """Raise a ValueError if there are more channels than can be taken together."""
    if count > most:
        raise ValueError(
            f"{where} has {count} channels, and no more than {most} can be taken together: "
            f"store those that you want on their own"
        )


def require_file_length(path: Path, needed: int, expansion: float = 1) -> None:
    """Raise a ValueError, before anything is allocated, if a header promises more bytes than its file can hold.

    The voxels end after `needed` bytes, of which decompression makes up to `expansion` from a byte of the file.
    """
    size = path.stat().st_size
    if needed > size * expansion:
        raise ValueError(
            f"{path} is incomplete: its header promises {needed} bytes, more than the {size} bytes of the file can "
            f"hold, so copy or export it again"
        )


def select_volume(shape: Sequence[int], query: SourceQuery, where: str) -> tuple[tuple[int | slice, ...], int | None]:
    """Return the index that selects the volume in an array whose axes have no names, and the axis of channels.

    The index has whole axes for z, y, x and channels, and a position on every other axis.

    >>> select_volume((1, 5, 30, 40, 50), SourceQuery(volume=4), "the array")
    ((0, 4, slice(None, None, None), slice(None, None, None), slice(None, None, None)), None)
    >>> select_volume((30, 40, 50, 3), SourceQuery(channel_axis=-1), "the array")[1]
    3
    """
    channels = resolve_channel_axis(shape, query.channel_axis, where)
    axes = [axis for axis in range(len(shape)) if axis != channels]
    if len(axes) < 3:
        raise ValueError(
            f"{where} has shape {tuple(shape)}: beside channels, supervoxels need three axes, z, y and x, "
            f"so leave out channel_axis (--channel-axis)"
        )
    if channels is not None:
        require_channels(shape[channels], where, query.most_channels)
    while len(axes) > 3 and shape[axes[-1]] == 1:
        axes.pop()
    positions = choose_volume({f"axis {axis}": shape[axis] for axis in axes[:-3]}, query, where)
    index: list[int | slice] = [0] * len(shape)
    for axis, position in zip(axes[:-3], positions, strict=True):
        index[axis] = position
    for axis in (*axes[-3:], *(() if channels is None else (channels,))):
        index[axis] = slice(None)
    return tuple(index), channels


def select_named_volume(
    axes: Sequence[str], shape: Sequence[int], space: Collection[int], query: SourceQuery, where: str
) -> tuple[tuple[int | slice, ...], int | None]:
    """Select the volume in an array whose axes have names; `space` numbers those of z, y and x. See `select_volume`.

    >>> select_named_volume("tzyx", (2, 30, 40, 50), {1, 2, 3}, SourceQuery(volume=1), "the array")[0]
    (1, slice(None, None, None), slice(None, None, None), slice(None, None, None))
    """
    axis = _default_channel_axis(query, axes, shape, space) if query.channel_axis is None else query.channel_axis
    if isinstance(axis, str):
        if axis not in axes:
            listed = shorten(", ".join(axes))
            raise ValueError(f"{where} has no axis {shorten(axis, 40)!r} for channels: its axes are {listed}")
        axis = axes.index(axis)
    channels = resolve_channel_axis(shape, axis, where)
    if channels is not None and channels in space:
        raise ValueError(
            f"{where} has {axes[channels]} as its axis {channels}, which cannot be that of channels: "
            f"pass channel_axis= (--channel-axis) as another, or leave it out"
        )
    if channels is not None:
        require_channels(shape[channels], where, query.most_channels)
    extra = {name: shape[n] for n, name in enumerate(axes) if n not in space and n != channels}
    positions = dict(zip(extra, choose_volume(extra, query, where), strict=True))
    return tuple(positions.get(name, slice(None)) for name in axes), channels


def _default_channel_axis(
    query: SourceQuery, axes: Sequence[str], shape: Sequence[int], space: Collection[int]
) -> str | None:
    """Return ``c`` for a copy of an array with such an axis, unless the query chooses a volume along it."""
    longer = [axis for n, axis in enumerate(axes) if n not in space and shape[n] > 1]
    is_volume_axis = query.volume is not None and len(longer) == 1
    return "c" if query.purpose == "copy" and "c" in longer and not is_volume_axis else None


def resolve_channel_axis(shape: Sequence[int], axis: int | str | None, where: str) -> int | None:
    """Return the axis of channels, counted from 0; None without one."""
    if axis is None:
        return None
    if isinstance(axis, str):
        raise ValueError(
            f"{where} has no names for its axes, so none of them is {shorten(axis, 40)!r}: "
            f"pass channel_axis (--channel-axis) as a number"
        )
    number = operator.index(axis)
    if not -len(shape) <= number < len(shape):
        raise ValueError(f"{where} has no axis {number} for channels: it has {len(shape)}, numbered from 0")
    return number % len(shape)


def move_channels_first(values: np.ndarray, index: Sequence[int | slice], channels: int) -> np.ndarray:
    """Move channels to the first axis of ``array[index]``; `channels` is their axis in ``array``."""
    return np.moveaxis(values, sum(isinstance(axis, slice) for axis in index[:channels]), 0)


def choose_volume(extra: Mapping[str, int], query: SourceQuery, where: str) -> tuple[int, ...]:
    """Choose a position on each of the `extra` axes, given as sizes by name. At most one is not 0."""
    longer = {name: size for name, size in extra.items() if size > 1}
    may_be_channels = query.allows_channels and query.channel_axis is None
    axis = "channel_axis='c' (--channel-axis c)" if "c" in longer else "channel_axis= (--channel-axis)"
    if len(longer) > 1:
        sizes = " and ".join(f"{size} along {shorten(name, 20)}" for name, size in longer.items())
        advice = f"name the axis of channels with {axis}, or " if may_be_channels else ""
        raise SeveralVolumes(
            f"{where} holds volumes in more than one way ({sizes}): {advice}store the one that you want on its own",
            longer,
        )
    count = math.prod(longer.values())
    volume = query.volume
    if volume is None and count > 1:
        raise SeveralVolumes(f"{where} holds {_advise_choice(count, 'c' in longer, axis, query)}", longer)
    volume = operator.index(volume or 0)
    if not 0 <= volume < count:
        raise ValueError(f"{where} has no volume {volume}: it holds {count}, numbered from 0")
    return tuple(volume if name in longer else 0 for name in extra)


def _advise_choice(count: int, are_channels: bool, axis: str, query: SourceQuery) -> str:
    """Return what several volumes or channels are, and how to choose among them."""
    if query.purpose in ("mask", "labels"):
        one = "a mask is one" if query.purpose == "mask" else "labels are of one"
        return f"{count} volumes: {one}, so store the one that you want on its own"
    may_be_channels = query.allows_channels and query.channel_axis is None
    if are_channels and may_be_channels:
        return (
            f"{count} channels: pass {axis} to take all of them together, or volume= (--volume), 0 to {count - 1}, "
            f"for one of them"
        )
    together = f", or {axis} to take all of them together" if may_be_channels else ""
    return f"{count} volumes: pass volume= (--volume on the command line), 0 to {count - 1}, to say which{together}"


def convert_to_mm(sizes: Sequence[float], per_mm: Sequence[float | None]) -> Spacing | None:
    """Divide sizes by the number of units per millimetre; return None unless all are known, finite and positive."""
    spacing = [float(size) / unit for size, unit in zip(sizes, per_mm, strict=True) if unit is not None]
    if len(spacing) != 3 or not all(math.isfinite(size) and size > 0 for size in spacing):
        return None
    return spacing[0], spacing[1], spacing[2]


def slab_ranges(depth: int, thickness: int) -> Iterator[tuple[int, int]]:
    """Cut `depth` planes into slabs of `thickness`; the last one may be thinner."""
    if thickness < 1:
        raise ValueError(f"a slab holds at least 1 plane, not {thickness}")
    for z0 in range(0, depth, thickness):
        yield z0, min(z0 + thickness, depth)


def summarise_error(error: Exception) -> str:
    """Return what another library's error tells the owner of a file, as part of a sentence.

    >>> summarise_error(ValueError("Invalid zarr_format. Expected one of 2 or 3."))
    'Invalid zarr_format; Expected one of 2 or 3'
    >>> summarise_error(KeyError("datasets")), summarise_error(TypeError("'int' object is not iterable"))
    ("'datasets' is missing", 'a value in it is of the wrong kind')
    >>> summarise_error(RuntimeError("numcodecs.blosc.Blosc: error -1 at 0x7f3a2c"))
    'its contents make no sense'
    """
    text = str(error)
    if isinstance(error, KeyError):
        text += " is missing"
    elif isinstance(error, TypeError | AttributeError | ArithmeticError | IndexError) or "convert" in text:
        text = "a value in it is of the wrong kind"
    else:
        text = next((cause for pattern, cause in _CAUSES if pattern.search(text)), text)
    return shorten(text).replace(". ", "; ").rstrip(".") or type(error).__name__


def shorten(text: str, width: int = 150) -> str:
    """Return text from a file, which may be anything of any length, as one line of an error message."""
    return textwrap.shorten(text, width, placeholder=" ...")


def hash_voxels(slabs: Iterable[tuple[int, np.ndarray]]) -> str:
    """Return a digest of the voxels, for volumes that have neither a file nor a date."""
    state = hashlib.blake2b(digest_size=16)
    for _, slab in slabs:
        state.update(np.ascontiguousarray(slab).data)
    return state.hexdigest()


def hash_files(files: Iterable[str]) -> str:
    """Return a digest of the names, sizes and dates of files."""
    states = [(Path(file).name, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr(states).encode(), digest_size=16).hexdigest()


@contextmanager
def describe_damage(where: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a ValueError that names it.

    Each library, zlib and the operating system raise errors of their own on damaged data.
    """
    try:
        # Scaling may overflow: the result is infinite then, as in nibabel.
        with np.errstate(all="ignore"):
            yield
    except MemoryError:
        raise
    except Exception as error:
        # The disk or the network is at fault, not the file.
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            raise
        if isinstance(error, FileNotFoundError) and error.filename:
            raise missing_file(where, error) from error
        if _LOCKED.search(str(error)):
            raise ValueError(
                f"{where} is open in another program, which has locked it: close it there, or read a copy"
            ) from error
        raise ValueError(
            f"{where} cannot be read ({summarise_error(error)}): the file is damaged or incomplete, so copy or export "
            f"it again"
        ) from error


def missing_file(where: str, error: FileNotFoundError) -> ValueError:
    """Return the error for a file that lacks another one, such as that of its voxels."""
    name = Path(str(error.filename)).name
    if Path(where).name == name:
        return ValueError(f"{where} is missing: put it back, or copy it to the folder of its header")
    return ValueError(f"{where} cannot be read: the file {shorten(name)} is missing, so copy it to the same folder")


def name_array(query: SourceQuery) -> str:
    """Return what messages call an array in memory."""
    return {"mask": "the mask", "labels": "the array of labels"}.get(query.purpose, "the array")


def split_channels(array: Any, query: SourceQuery) -> tuple[Any, ...]:
    """Select the volume in an array of NumPy or Dask; return an array (z, y, x) for each channel, without copies."""
    where = name_array(query)
    channel_axes = int(query.channel_axis is not None)
    require_volume(array.shape, array.dtype, where, query, planes=query.planes)
    if query.planes and array.ndim == 2 + channel_axes:
        array = array[np.newaxis]
        if isinstance(query.channel_axis, int) and query.channel_axis >= 0:
            query = replace(query, channel_axis=query.channel_axis + 1)
    index, channels = select_volume(array.shape, query, where)
    return (array[index],) if channels is None else tuple(move_channels_first(array[index], index, channels))
