"""What a source is: one 3D volume with a name, whichever format it comes from."""

from __future__ import annotations

import errno
import hashlib
import math
import operator
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

Spacing: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
IndexBox: TypeAlias = tuple[slice, slice, slice]
Kind: TypeAlias = Literal["nifti", "zarr", "dicom", "tiff", "nrrd", "metaimage", "numpy", "hdf5", "array"]

MOST_CHANNELS = 16
# What makes a folder Zarr's.
_ZARR = ("zarr.json", ".zarray", ".zgroup")
# What can only be read from a file of this machine.
_FILES = re.compile(r"\.(nii|nii\.gz|tiff?|nrrd|nhdr|mha|mhd|npy|h5|hdf5)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceQuery:
    """What to take of a file or array that may hold several things, and what for.

    Parameters
    ----------
    volume, channel_axis, level
        See `dseeds.io.open_image`.
    purpose : {"volume", "image", "mask", "copy"}
        A volume may be anything but truth values, an image is neither these nor labels, a mask may be both. What is to
        be copied may be all of that.
    """

    volume: int | None = None
    channel_axis: int | str | None = None
    purpose: Literal["volume", "image", "mask", "copy"] = "volume"
    level: int = 0

    @property
    def channelled(self) -> bool:
        """Whether there may be several channels."""
        return self.purpose in ("image", "copy")


class Source(Protocol):
    """One 3D volume that can be read, axes (z, y, x). Every source pickles.

    Within an image, a source may also be several channels that are stored together: arrays are (c, z, y, x) then.
    """

    @property
    def name(self) -> str:
        """What people call it: the file's name, without its folder."""

    @property
    def kind(self) -> Kind:
        """The format it comes from."""

    @property
    def path(self) -> str | None:
        """Where it lies: a path or URL, None where it is in memory."""

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the voxels as they are delivered: integer or floating, of either byte order."""

    @property
    def spacing(self) -> Spacing | None:
        """Size of a voxel along z, y, x in millimetres, None where the source does not say."""

    @property
    def channels(self) -> int | None:
        """How many channels are read at once, along a first axis; None where there is no such axis."""

    @property
    def affine(self) -> np.ndarray | None:
        """From a voxel (x, y, z) to its place in millimetres, (4, 4), as in NIfTI; None where the source is nowhere."""

    @property
    def labelled(self) -> bool:
        """Whether the source says that its voxels are labels."""

    @property
    def chunks(self) -> Shape | None:
        """Voxels along z, y, x that are stored together, None where plane follows plane."""

    @property
    def shards(self) -> Shape | None:
        """Voxels along z, y, x of the shards that chunks lie in, None where they lie in none."""

    @property
    def readable_by_workers(self) -> bool:
        """Whether another process can `read` any box at a fair price. If not, take the `slabs`, once."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source from another, or from a later state of itself. Goes into JSON."""

    def reopened(self) -> Source:
        """Open the same source anew, as it is now."""

    def read(self, box: IndexBox) -> np.ndarray:
        """Read the voxels in a box.

        Parameters
        ----------
        box : tuple of slice
            Along z, y, x, with a step of 1.

        Returns
        -------
        ndarray, (z, y, x)
            Of the source's `dtype`; may be a read-only view.

        Raises
        ------
        ValueError
            If the stored data are damaged.
        """

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read the volume once from top to bottom, never holding more than a slab.

        Parameters
        ----------
        thickness : int
            Planes in a slab; the last one may hold fewer.

        Yields
        ------
        z0 : int
            The slab's first plane.
        slab : ndarray, (dz, y, x)
            Of the source's `dtype`; may be a read-only view.

        Raises
        ------
        ValueError
            If the stored data are damaged, or `thickness` is less than 1.
        """


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A volume in this process's memory; see `Source`.

    Parameters
    ----------
    array : ndarray, (z, y, x)
        The voxels, not copied.
    name, kind, spacing, affine, labelled
        See `Source`.
    """

    array: np.ndarray
    name: str = "array"
    kind: Kind = "array"
    spacing: Spacing | None = None
    affine: np.ndarray | None = None
    labelled: bool = False
    path: None = None
    channels: None = None
    chunks: None = None
    shards: None = None
    readable_by_workers: bool = False

    @property
    def shape(self) -> Shape:
        """See `Source.shape`."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype:
        """See `Source.dtype`."""
        return self.array.dtype

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `Source.identity`. The voxels themselves are hashed when this is first asked for."""
        known = {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype.str}
        return {**known, "digest": hash_voxels(self.slabs(16))}

    def reopened(self) -> ArraySource:
        """See `Source.reopened`."""
        return self

    def read(self, box: IndexBox) -> np.ndarray:
        """See `Source.read`."""
        return self.array[box]

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`."""
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.array[z0:z1]


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr array or group."""
    return any((path / name).exists() for name in _ZARR)


def resolve_address(address: str) -> Path | str:
    """Tell a path on this machine (made absolute: workers may stand in another folder) from a URL."""
    if "://" not in address and "::" not in address:
        return Path(address).absolute()
    url = urlsplit(address)
    if url.scheme == "file":
        return Path(url2pathname(url.path))
    if _FILES.fullmatch("".join(Path(url.path).suffixes[-2:])) or _FILES.fullmatch(Path(url.path).suffix):
        raise ValueError(f"{address} is not on this machine: only Zarr is read from afar, so download it")
    return address


def require_volume(shape: Sequence[int], dtype: np.dtype, where: str, wanted: SourceQuery) -> None:
    """Refuse, with a ValueError that calls the image `where`, what cannot be cut into supervoxels or mask some."""
    shape = tuple(shape)
    if len(shape) < 3:
        raise ValueError(f"{where} has shape {shape}: supervoxels need three axes, z, y and x")
    if min(shape) < 1:
        raise ValueError(f"{where} has shape {shape}: an axis is empty, there is nothing to cut into supervoxels")
    if dtype.kind in ("iufb" if wanted.purpose in ("mask", "copy") else "iuf"):
        return
    held, advice = {
        "b": ("is boolean", "pass the image that it belongs to"),
        "c": ("is complex", "pass its magnitude"),
        "V": (f"holds records of {len(dtype.names or ())} values", "pass one number per voxel"),
    }.get(dtype.kind, (f"holds values of type {dtype}", "pass integers or floating-point numbers"))
    raise ValueError(f"{where} {held}; supervoxels need intensities: {advice}")


def require_intensities(where: str, wanted: SourceQuery) -> None:
    """Refuse labels, with a ValueError, where intensities are wanted."""
    if wanted.purpose == "image":
        raise ValueError(f"{where} holds labels, not intensities: pass the image that they belong to")


def require_channels(count: int, where: str) -> None:
    """Refuse, with a ValueError, more channels than there can be."""
    if count > MOST_CHANNELS:
        raise ValueError(
            f"{where} has {count} channels, and no more than {MOST_CHANNELS} can be taken together: "
            f"store those that you want on their own"
        )


def select_volume(shape: Sequence[int], wanted: SourceQuery, where: str) -> tuple[tuple[int | slice, ...], int | None]:
    """Find the volume in an array whose axes have no names: whole axes for z, y, x and channels, numbers for others.

    >>> select_volume((1, 5, 30, 40, 50), SourceQuery(volume=4), "the array")
    ((0, 4, slice(None, None, None), slice(None, None, None), slice(None, None, None)), None)
    >>> select_volume((30, 40, 50, 3), SourceQuery(channel_axis=-1), "the array")[1]
    3
    """
    channels = resolve_channel_axis(shape, wanted, where)
    axes = [axis for axis in range(len(shape)) if axis != channels]
    if len(axes) < 3:
        raise ValueError(
            f"{where} has shape {tuple(shape)}: beside channels, supervoxels need three axes, z, y and x, "
            f"so leave out channel_axis (--channel-axis)"
        )
    if channels is not None:
        require_channels(shape[channels], where)
    while len(axes) > 3 and shape[axes[-1]] == 1:
        axes.pop()
    chosen = choose_volume({f"axis {axis}": shape[axis] for axis in axes[:-3]}, wanted, where)
    index: list[int | slice] = [0] * len(shape)
    for axis, number in zip(axes[:-3], chosen, strict=True):
        index[axis] = number
    for axis in (*axes[-3:], *(() if channels is None else (channels,))):
        index[axis] = slice(None)
    return tuple(index), channels


def resolve_channel_axis(shape: Sequence[int], wanted: SourceQuery, where: str) -> int | None:
    """Give the axis that channels lie along as a number from 0, None where there is none."""
    axis = wanted.channel_axis
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
    """Move channels to the front of what an index has found: `channels` is their axis in what it was taken from."""
    return np.moveaxis(values, sum(isinstance(axis, slice) for axis in index[:channels]), 0)


def choose_volume(extra: Mapping[str, int], wanted: SourceQuery, where: str) -> tuple[int, ...]:
    """Choose a position on each axis, by name and size, that is not z, y, x or channels. At most one is not 0."""
    longer = {name: size for name, size in extra.items() if size > 1}
    as_channels = wanted.channelled and wanted.channel_axis is None
    axis = "channel_axis='c' (--channel-axis c)" if "c" in longer else "channel_axis= (--channel-axis)"
    if len(longer) > 1:
        sizes = " and ".join(f"{size} along {shorten(name, 20)}" for name, size in longer.items())
        advice = f"name the axis of channels with {axis}, or " if as_channels else ""
        raise ValueError(
            f"{where} holds volumes in more than one way ({sizes}): {advice}store the one that you want on its own"
        )
    count = math.prod(longer.values())
    volume = wanted.volume
    if volume is None:
        if count > 1 and wanted.purpose == "mask":
            raise ValueError(f"{where} holds {count} volumes: a mask is one, so store the one that you want on its own")
        if count > 1:
            advice = f", or {axis} to take all of them together" if as_channels else ""
            raise ValueError(
                f"{where} holds {count} volumes: pass volume= (--volume on the command line), "
                f"0 to {count - 1}, to say which{advice}"
            )
        volume = 0
    volume = operator.index(volume)
    if not 0 <= volume < count:
        raise ValueError(f"{where} has no volume {volume}: it holds {count}, numbered from 0")
    return tuple(volume if name in longer else 0 for name in extra)


def with_all_channels(
    wanted: SourceQuery, axes: Sequence[str], shape: Sequence[int], space: Collection[int]
) -> SourceQuery:
    """Take all channels of a copy that has an axis ``c`` besides those of space, unless a volume is to be one of them.

    >>> with_all_channels(SourceQuery(purpose="copy"), "czyx", (2, 30, 40, 50), {1, 2, 3}).channel_axis
    'c'
    """
    longer = [axis for n, axis in enumerate(axes) if n not in space and shape[n] > 1]
    chosen = wanted.channel_axis is not None or (wanted.volume is not None and len(longer) == 1)
    if wanted.purpose != "copy" or chosen or "c" not in longer:
        return wanted
    return replace(wanted, channel_axis="c")


def convert_to_mm(sizes: Sequence[float], per_mm: Sequence[float | None]) -> Spacing | None:
    """Divide by how many units make a millimetre; None unless all are known, finite and above 0.

    >>> spacing_in_mm([2.0, 0.5, 0.5], [1000.0, 1000.0, 1000.0])
    (0.002, 0.0005, 0.0005)
    """
    known = [float(size) / unit for size, unit in zip(sizes, per_mm, strict=True) if unit is not None]
    if len(known) != 3 or not all(math.isfinite(size) and size > 0 for size in known):
        return None
    return known[0], known[1], known[2]


def slab_ranges(depth: int, thickness: int) -> Iterator[tuple[int, int]]:
    """Cut `depth` planes into slabs of `thickness`, the last one perhaps thinner.

    >>> list(slab_ranges(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    if thickness < 1:
        raise ValueError(f"a slab holds at least 1 plane, not {thickness}")
    for z0 in range(0, depth, thickness):
        yield z0, min(z0 + thickness, depth)


def summarise_error(error: Exception) -> str:
    """Word another library's error as part of a sentence: what it says if that helps who has the file, and no more.

    >>> summarise_error(ValueError("Invalid zarr_format. Expected one of 2 or 3."))
    'Invalid zarr_format; Expected one of 2 or 3'
    >>> summarise_error(KeyError("datasets")), summarise_error(TypeError("'int' object is not iterable"))
    ("'datasets' is missing", 'a value in it is of the wrong kind')
    """
    text = str(error)
    if isinstance(error, KeyError):
        text += " is missing"
    elif isinstance(error, TypeError | AttributeError | ArithmeticError | IndexError) or "convert" in text:
        text = "a value in it is of the wrong kind"
    return shorten(text).replace(". ", "; ").rstrip(".") or type(error).__name__


def shorten(text: str, width: int = 150) -> str:
    """Put what a file holds into one line of an error: it may be anything, of any length."""
    return textwrap.shorten(text, width, placeholder=" ...")


def hash_voxels(slabs: Iterable[tuple[int, np.ndarray]]) -> str:
    """Hash the voxels of a volume that has neither file nor date to be known by."""
    state = hashlib.blake2b(digest_size=16)
    for _, slab in slabs:
        state.update(np.ascontiguousarray(slab).data)
    return state.hexdigest()


@contextmanager
def describe_damage(where: str) -> Iterator[None]:
    """Word what goes wrong while voxels are read: each library, zlib and the system raise errors of their own."""
    try:
        # Scaling may overflow: it is infinite then, as it is to nibabel.
        with np.errstate(all="ignore"):
            yield
    except MemoryError:
        raise
    except Exception as error:
        # The disk's fault, or the network's, not the file's.
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            raise
        raise ValueError(
            f"{where} cannot be read ({summarise_error(error)}): the file is damaged or incomplete, so copy or export "
            f"it again"
        ) from error


def hash_files(files: Iterable[str]) -> str:
    """Hash the names, sizes and dates of files."""
    found = [(Path(file).name, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def open_array(array: np.ndarray, wanted: SourceQuery) -> tuple[Source, ...]:
    """Open an array in memory: one source, or one for each channel."""
    where = "the mask" if wanted.purpose == "mask" else "the array"
    require_volume(array.shape, array.dtype, where, wanted)
    index, channels = select_volume(array.shape, wanted, where)
    found = array[index]
    if channels is None:
        return (ArraySource(found),)
    return tuple(ArraySource(channel) for channel in move_channels_first(found, index, channels))
