"""What a source is: one 3D volume with a name, whichever format it comes from."""

from __future__ import annotations

import hashlib
import math
import operator
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

Spacing: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[slice, slice, slice]
Kind: TypeAlias = Literal["nifti", "zarr", "array"]


class Source(Protocol):
    """One 3D volume that can be read, axes (z, y, x). Every source pickles."""

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

    def read(self, box: Box) -> np.ndarray:
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
    name, kind, spacing
        See `Source`.
    """

    array: np.ndarray
    name: str = "array"
    kind: Kind = "array"
    spacing: Spacing | None = None
    path: None = None
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
        return {**known, "digest": digest(self.slabs(16))}

    def reopened(self) -> ArraySource:
        """See `Source.reopened`."""
        return self

    def read(self, box: Box) -> np.ndarray:
        """See `Source.read`."""
        return self.array[box]

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`."""
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.array[z0:z1]


def open_source(source: object, *, volume: int | None = None) -> Source:
    """Open an image as one 3D volume. Its voxels stay where they are.

    Parameters
    ----------
    source : str, path, ndarray, zarr.Array, zarr.Group or nibabel image
        A path to a NIfTI file (``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``); a path or URL of a Zarr array
        (v2 or v3) or of an OME-Zarr image, whose first, full resolution is taken; or such an image, open.
        URLs are ``s3://``, ``gs://`` and ``az://``, see `dseeds.io.place`, and those that fsspec knows.
        Other formats that nibabel knows are loaded whole.
        Axes are (x, y, z, ...) in NIfTI, those of its metadata in OME-Zarr, and (..., z, y, x) elsewhere.
        Further axes of size 1, leading or trailing, are dropped.
    volume : int, optional
        Which volume to take, from 0, where one further axis is longer than 1: the fourth of a NIfTI file,
        ``t`` or ``c`` of an OME-Zarr image, the first of any other array.

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError
        If the path leads nowhere.
    PermissionError, ConnectionError
        If it may not be read, or its store cannot be reached.
    ValueError
        If the image cannot be read, is not a 3D volume of real numbers, or holds several volumes and `volume`
        does not say which.
    TypeError
        If `source` is none of the above.

    Examples
    --------
    >>> series = np.zeros((2, 30, 40, 50), "uint8")
    >>> open_source(series, volume=1).shape
    (30, 40, 50)
    >>> open_source(series)
    Traceback (most recent call last):
    ValueError: the array holds 2 volumes: pass volume= (--volume on the command line), 0 to 1, to say which
    """
    # Here, not above: the formats build on this module.
    import zarr
    from nibabel.spatialimages import SpatialImage

    from dseeds.io.nifti import open_nifti_file, open_nifti_image
    from dseeds.io.zarr_image import open_zarr, open_zarr_node

    if isinstance(source, np.ndarray):
        require_volume(source.shape, source.dtype, "the array")
        return ArraySource(source[plain_index(source.shape, volume, "the array")])
    if isinstance(source, zarr.Array | zarr.Group):
        return open_zarr_node(source, volume)
    if isinstance(source, SpatialImage):
        return open_nifti_image(source, volume)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"a source is a path or URL, a numpy array, a zarr array or group, or a nibabel image, "
            f"not {type(source).__module__}.{type(source).__qualname__}"
        )
    address = _local_path(str(os.fspath(source)))
    if isinstance(address, str):
        return open_zarr(address, volume)
    if not address.exists():
        raise FileNotFoundError(f"{address} does not exist")
    return open_zarr(address, volume) if address.is_dir() else open_nifti_file(address, volume)


def _local_path(address: str) -> Path | str:
    """Tell a path on this machine (made absolute: workers may stand in another folder) from a URL."""
    if "://" not in address and "::" not in address:
        return Path(address).absolute()
    url = urlsplit(address)
    if url.scheme == "file":
        return Path(url2pathname(url.path))
    if url.path.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{address} is not on this machine: NIfTI is read from local files, so download it")
    return address


def require_volume(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
    """Refuse, with a ValueError that calls the image `where`, what cannot be cut into supervoxels."""
    shape = tuple(shape)
    if len(shape) < 3:
        raise ValueError(f"{where} has shape {shape}: supervoxels need three axes, z, y and x")
    if min(shape) < 1:
        raise ValueError(f"{where} has shape {shape}: an axis is empty, there is nothing to cut into supervoxels")
    if dtype.kind in "iuf":
        return
    held, advice = {
        "b": ("is boolean", "pass the image that it belongs to"),
        "c": ("is complex", "pass its magnitude"),
        "V": (f"holds records of {len(dtype.names or ())} values", "pass one number per voxel"),
    }.get(dtype.kind, (f"holds values of type {dtype}", "pass integers or floating-point numbers"))
    raise ValueError(f"{where} {held}; supervoxels need intensities: {advice}")


def plain_index(shape: Sequence[int], volume: int | None, where: str) -> tuple[int | slice, ...]:
    """Find the volume in an array whose axes have no names: whole axes for z, y, x, a number for all others.

    >>> plain_index((1, 5, 30, 40, 50), 4, "the array")
    (0, 4, slice(None, None, None), slice(None, None, None), slice(None, None, None))
    """
    last = len(shape)
    while last > 3 and shape[last - 1] == 1:
        last -= 1
    extra = {f"axis {axis}": shape[axis] for axis in range(last - 3)}
    return (*volume_index(extra, volume, where), *(slice(None),) * 3, *(0,) * (len(shape) - last))


def volume_index(extra: Mapping[str, int], volume: int | None, where: str) -> tuple[int, ...]:
    """Choose a position on each axis, by name and size, that is not z, y or x. At most one is not 0."""
    longer = {name: size for name, size in extra.items() if size > 1}
    if len(longer) > 1:
        sizes = " and ".join(f"{size} along {name}" for name, size in longer.items())
        raise ValueError(
            f"{where} holds volumes in more than one way ({sizes}): store the one that you want on its own"
        )
    count = math.prod(longer.values())
    if volume is None:
        if count > 1:
            raise ValueError(
                f"{where} holds {count} volumes: pass volume= (--volume on the command line), "
                f"0 to {count - 1}, to say which"
            )
        volume = 0
    volume = operator.index(volume)
    if not 0 <= volume < count:
        raise ValueError(f"{where} has no volume {volume}: it holds {count}, numbered from 0")
    return tuple(volume if name in longer else 0 for name in extra)


def spacing_in_mm(sizes: Sequence[float], per_mm: Sequence[float | None]) -> Spacing | None:
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


def reason(error: Exception) -> str:
    """Word another library's error as part of a sentence: what it says if that helps who has the file, and no more.

    >>> reason(ValueError("Invalid zarr_format. Expected one of 2 or 3."))
    'Invalid zarr_format; Expected one of 2 or 3'
    >>> reason(KeyError("datasets")), reason(TypeError("'int' object is not iterable"))
    ("'datasets' is missing", 'a value in it is of the wrong kind')
    """
    text = str(error)
    if isinstance(error, KeyError):
        text += " is missing"
    elif isinstance(error, TypeError | AttributeError | ArithmeticError | IndexError) or "convert" in text:
        text = "a value in it is of the wrong kind"
    return shortened(text).replace(". ", "; ").rstrip(".") or type(error).__name__


def shortened(text: str, width: int = 150) -> str:
    """Put what a file holds into one line of an error: it may be anything, of any length."""
    return textwrap.shorten(text, width, placeholder=" ...")


def digest(slabs: Iterable[tuple[int, np.ndarray]]) -> str:
    """Hash the voxels of a volume that has neither file nor date to be known by."""
    state = hashlib.blake2b(digest_size=16)
    for _, slab in slabs:
        state.update(np.ascontiguousarray(slab).data)
    return state.hexdigest()
