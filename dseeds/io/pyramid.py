"""Multiscale images: coarser levels of an image or of labels, region by region, out of core.

A voxel of a level is made of a block of voxels of the level before, and of nothing else: no result depends on how a
level is cut, or on who works on it.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds.core.dtypes import native_dtype, native_values
from dseeds.core.geometry import Triple, triple
from dseeds.io.ome_metadata import Resolution
from dseeds.io.pyramid_kernels import take_means, take_modes
from dseeds.io.pyramid_levels import PyramidLevel, choose_levels, compute_resolutions
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import check_written_by
from dseeds.storage.location import Location, open_location
from dseeds.storage.zarr_arrays import DECODING_ERRORS, count_bytes, open_arrays, sync_shards

PYRAMID_STAGE = "pyramid"
METHODS = ("mode", "nearest", "mean")
# Where shards are small, a task writes several: voxels along an axis that it writes at least.
EXTENT = 128

Index = tuple[slice, ...]


def build_pyramid(
    address: str,
    method: str = "mode",
    levels: Sequence[PyramidLevel] | None = None,
    *,
    spacing: Sequence[float] | None = None,
    within: str = "",
    crew: Executor | None = None,
    run: str = "",
    advance: Callable[[], object] = lambda: None,
) -> tuple[Resolution, ...]:
    """Write the coarser levels of the array ``0`` of a group: ``1``, ``2`` and so on; the group's attributes are not.

    Parameters
    ----------
    address : str
        The path or URL of the group.
    method : {"mode", "nearest", "mean"}
        What becomes of a block: for labels its most frequent one, of several that are equally frequent the smallest,
        where 0 is a label as any other; its first voxel, the one of the lowest z, y and x, as ``array[::2]`` does; or
        for intensities the mean, of integers rounded to the nearest, halves to the even one, and of floats without NaN.
    levels : sequence of Level, optional
        The levels. Default: `choose_levels`.
    spacing : sequence of float, optional
        For these: the size of a voxel along (z, y, x).
    within : str
        The group in the group whose array it is, such as ``"2x"``.
    crew : Crew, optional
        Who does the work. Default: one thread of this process.
    run : str, optional
        The run whose unfinished output the group has to be, so that every chunk that is missing is damage.
    advance : callable
        Is called after each task, of which there are `pyramid_task_count`.

    Returns
    -------
    tuple of Resolution
        Of the coarser levels, for `dseeds.io.ome_image_attributes`.

    Raises
    ------
    ValueError
        If there is no such method, or the array has fewer than three axes, of which the last are (z, y, x), or holds
        values that the method is not for.
    RuntimeError
        If the group is not the run's, or is no longer unfinished.

    Notes
    -----
    Levels are cut into chunks and shards and compressed as the array ``0`` is. A task writes whole shards, and holds
    besides these what a chunk of them is made of. Arrays that are there already are replaced.

    Examples
    --------
    >>> import tempfile, zarr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     labels = zarr.create_array(f"{folder}/0", data=np.array([[[1, 1, 2, 2, 2]]], np.uint32))
    ...     found = build_pyramid(folder, levels=[PyramidLevel((1, 1, 3), (1, 1, 2))])
    ...     zarr.open_array(f"{folder}/1")[:]
    array([[[1, 2, 2]]], dtype=uint32)
    >>> found
    (Resolution(scale=(1.0, 1.0, 2.0), offset=(0.0, 0.0, 0.5)),)
    """
    # Arrays are opened once in a process for each run.
    group = _Group(open_location(address), f"{within}/" if within else "", run or uuid.uuid4().hex, checked=bool(run))
    full = group.array(0)
    _check(full, method)
    if levels is None:
        levels = choose_levels(triple(full.shape[-3:]), spacing)
    crew = crew or Executor(1)
    if crew.progress:
        crew.progress.begin(
            PYRAMID_STAGE, pyramid_task_count(full.shape, full.chunks, full.shards or full.chunks, levels)
        )
    for number, level in enumerate(levels, 1):
        total = math.prod(_counts(group.create(full, number, level)))
        calls = ((group, number, method, level.factors, task) for task in range(total))
        for read, written in replace(crew, progress=None).map_unordered(
            PYRAMID_STAGE, build_pyramid_region, calls, total
        ):
            count_bytes(read=read, written=written)
            advance()
            if crew.progress:
                crew.progress.advance(PYRAMID_STAGE)
    if crew.progress:
        crew.progress.end(PYRAMID_STAGE)
    return compute_resolutions(levels, method)


@dataclass(frozen=True)
class _Group:
    """A group whose levels are being written; arrays are opened by it in every process."""

    location: Location
    prefix: str
    run: str
    checked: bool

    def array(self, level: int, *, complete: bool = False) -> zarr.Array:
        """Open a level, to be written or, if all of it has to be there, to be read."""
        readable, writable = open_arrays(self.location, f"{self.prefix}{level}", self.run)
        return readable if complete else writable

    def create(self, full: zarr.Array, number: int, level: PyramidLevel) -> zarr.Array:
        """Create a level, empty, cut and coded as the full resolution."""
        name = f"{self.prefix}{number}"
        self.location.clear(name)
        shape = (*full.shape[:-3], *level.shape)
        chunks, shards = cut_regions(shape, full.chunks, full.shards or full.chunks)
        return zarr.create_array(
            self.location.zarr(name),
            shape=shape,
            dtype=full.dtype,
            chunks=chunks,
            shards=shards if full.shards else None,
            filters=full.filters,
            compressors=full.compressors,
            fill_value=full.fill_value,
            dimension_names=getattr(full.metadata, "dimension_names", None),
            zarr_format=3,
        )

    def write(self, level: int, region: Index, values: NDArray[Any]) -> None:
        """Write whole shards of a level, and have the disk keep them."""
        if self.checked:
            check_written_by(self.location, self.run)
        self.array(level)[region] = values
        sync_shards(self.location, f"{self.prefix}{level}", region, self.run)


def build_pyramid_region(group: _Group, level: int, method: str, factors: Triple, number: int) -> tuple[int, int]:
    """Write a region of a level, and tell how many bytes were read and written."""
    # What others have written need not have chunks where nothing is.
    source, array = group.array(level - 1, complete=group.checked), group.array(level)
    region = _region(array, number)
    made = np.empty([side.stop - side.start for side in region], native_dtype(array.dtype))
    read = 0
    for piece in _pieces(region, array.chunks, factors):
        within = (slice(side.start - r.start, side.stop - r.start) for side, r in zip(piece, region, strict=True))
        read += _reduce(source, piece, method, factors, made[tuple(within)])
    group.write(level, region, made)
    return read, made.nbytes


def pyramid_task_count(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], levels: Sequence[PyramidLevel]
) -> int:
    """Count the tasks that the levels of an array, which is cut in this way, are made in."""
    count = 0
    for level in levels:
        coarse = (*shape[:-3], *level.shape)
        sides = _sides(cut_regions(coarse, chunks, shards)[1])
        count += math.prod(-(-n // side) for n, side in zip(coarse, sides, strict=True))
    return count


def _check(full: zarr.Array, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"a pyramid is made by {', '.join(METHODS)}, not {method!r}.")
    if full.ndim < 3:
        raise ValueError(f"an array of shape {full.shape} has no coarser levels: three axes are needed, z, y and x.")
    if full.dtype.kind not in ("iu" if method == "mode" else "iuf"):
        raise ValueError(f"values of type {full.dtype} have no {method}: name another method for the pyramid.")


def cut_regions(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the chunks and shards of a level: those of the full resolution, as far as it fills them."""
    smaller = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    within = (
        min(s // before * c, -(-n // c) * c) for s, before, c, n in zip(shards, chunks, smaller, shape, strict=True)
    )
    return smaller, tuple(within)


def _sides(shards: Sequence[int]) -> tuple[int, ...]:
    """Give the extent of a region: of whole shards, which are chunks where there are none."""
    return tuple(s * max(1, EXTENT // s) if axis >= len(shards) - 3 else s for axis, s in enumerate(shards))


def _counts(array: zarr.Array) -> tuple[int, ...]:
    sides = _sides(array.shards or array.chunks)
    return tuple(-(-n // side) for n, side in zip(array.shape, sides, strict=True))


def _region(array: zarr.Array, number: int) -> Index:
    sides = _sides(array.shards or array.chunks)
    corner = np.unravel_index(number, _counts(array))
    return tuple(
        slice(int(i) * side, min(int(i) * side + side, n))
        for i, side, n in zip(corner, sides, array.shape, strict=True)
    )


def _pieces(region: Index, chunks: Sequence[int], factors: Triple) -> Iterator[Index]:
    """Cut a region into chunks, volume by volume; into less where many voxels become one."""
    lengths = [1] * (len(chunks) - 3) + [max(1, min(c, 2 * c // f)) for c, f in zip(chunks[-3:], factors, strict=True)]
    along = [
        [slice(a, min(a + n, side.stop)) for a in range(side.start, side.stop, n)]
        for side, n in zip(region, lengths, strict=True)
    ]
    return itertools.product(*along)


def _reduce(source: zarr.Array, piece: Index, method: str, factors: Triple, out: NDArray[Any]) -> int:
    """Make a piece of a level out of the level before; tell how many bytes were read."""
    blocks = tuple(
        slice(side.start * f, min(side.stop * f, n))
        for side, f, n in zip(piece[-3:], factors, source.shape[-3:], strict=True)
    )
    try:
        values = np.asarray(source[(*piece[:-3], *blocks)])
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{source.store_path} cannot be read back ({' '.join(str(error).split())}): it has been damaged since it "
            f"was written, so go on with resume=True (--resume), or write it again."
        ) from error
    volume, made = native_values(values.reshape(values.shape[-3:])), out.reshape(out.shape[-3:])
    if method == "nearest":
        dz, dy, dx = factors
        made[:] = volume[::dz, ::dy, ::dx]
    else:
        (take_modes if method == "mode" else take_means)(volume, factors, made)
    return values.nbytes
