"""Pyramids: coarser levels of an image or of labels, written region by region, out of core.

A voxel of a level depends on one block of voxels of the level before it, and on nothing else, so the result does not
depend on how a level is cut, nor on where the tasks run.
"""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import native_dtype, native_values
from dseeds.core.geometry import Box, Triple, triple
from dseeds.core.lazy_module import LazyModule
from dseeds.io.ome_metadata import Resolution
from dseeds.io.pyramid_kernels import take_means, take_modes
from dseeds.io.pyramid_levels import PyramidLevel, compute_resolutions
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import check_written_by
from dseeds.storage.location import Location, open_location
from dseeds.storage.zarr_arrays import (
    DECODING_ERRORS,
    ScratchCorrupted,
    bound_by_shard,
    count_bytes,
    open_arrays,
    sync_shards,
)

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

PYRAMID_STAGE = "pyramid"
METHODS = ("mode", "nearest", "mean")
# A task writes at least so many voxels along an axis: several shards where these are small.
_MIN_EXTENT = 128

_Slices = tuple[slice, ...]


def build_pyramid(
    address: str,
    method: str,
    levels: Sequence[PyramidLevel],
    *,
    within: str = "",
    executor: Executor | None = None,
    run: str = "",
    first: int = 1,
    read_before: Callable[[Box], NDArray[Any]] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> tuple[Resolution, ...]:
    """Write the coarser levels of the array ``0`` of a group: ``1``, ``2`` and so on, but not the group's attributes.

    Levels have the chunks and the compression of the array ``0``, and shards that cover the same part of space as long
    as these are whole chunks. Existing arrays are replaced. A task writes whole shards, and holds besides them the
    voxels that a chunk of them is made of.

    Parameters
    ----------
    address : str
        The path or URL of the group.
    method : {"mode", "nearest", "mean"}
        The value of a block: the most frequent label (`take_modes`), where 0 is a label like any other; its first
        voxel, the one of the lowest z, y and x, as in ``array[::2]``; or the mean intensity (`take_means`).
    levels : sequence of PyramidLevel
        The coarser levels, the finest first.
    within : str
        The inner group that holds the array, such as ``"2x"``.
    executor : Executor, optional
        Runs the tasks. Default: one thread of this process.
    run : str, optional
        The run whose unfinished output the group has to be, or a RuntimeError is raised; a chunk that is missing is
        damage then.
    first : int, default 1
        The first level to write; those before it are there.
    read_before : callable, optional
        Returns the voxels of the level before that in a box, where not all of its chunks are stored.
    advance : callable
        Called after every task.
    """
    # Each process caches the arrays of a run.
    group = _LevelGroup(
        open_location(address), f"{within}/" if within else "", run or uuid.uuid4().hex, bool(run), first, read_before
    )
    full, finer = group.array(0), group.array(first - 1)
    _check_method(full, method)
    executor = executor or Executor(1)
    progress, silent = executor.progress, replace(executor, progress=None)
    if progress:
        cut = finer.shape, finer.chunks, finer.shards or finer.chunks
        progress.begin(PYRAMID_STAGE, pyramid_task_count(*cut, levels[first - 1 :]))
    for number, level in enumerate(levels[first - 1 :], first):
        finer = array = group.create(finer, number, level)
        total = math.prod(_region_counts(array.shape, array.shards or array.chunks))
        calls = ((group, number, method, level.factors, task) for task in range(total))
        for read, written in silent.map_unordered(PYRAMID_STAGE, build_pyramid_region, calls, total):
            count_bytes(read=read, written=written)
            advance()
            if progress:
                progress.advance(PYRAMID_STAGE)
    if progress:
        progress.end(PYRAMID_STAGE)
    return compute_resolutions(levels, method)


def update_pyramid(address: str, method: str, levels: Sequence[PyramidLevel], boxes: Sequence[Box]) -> None:
    """Compute the voxels of the coarser levels of the array ``0`` of a group again that boxes of it belong to.

    The levels are then those that `build_pyramid` would write. Only the voxels that these are made of are read, and
    only the shards that they are in are written.
    """
    group = _LevelGroup(open_location(address), "", uuid.uuid4().hex, checked=False)
    for number, level in enumerate(levels, 1):
        array = group.array(number)
        # One box for each shard, since each write encodes the whole shard.
        boxes = list(bound_by_shard(array, [level.coarsen(box) for box in boxes]))
        for box in boxes:
            values = np.empty(box.shape, native_dtype(array.dtype))
            for piece in _pieces(box.slices, array.chunks, level.factors):
                within = (slice(side.start - a, side.stop - a) for side, a in zip(piece, box.lo, strict=True))
                _reduce(group, number - 1, piece, method, level.factors, values[tuple(within)])
            group.write(number, box.slices, values)


@dataclass(frozen=True)
class _LevelGroup:
    """The group that holds the levels; each process opens its arrays for itself."""

    location: Location
    prefix: str
    run: str
    checked: bool
    first: int = 1
    read_before: Callable[[Box], NDArray[Any]] | None = None

    def array(self, level: int, *, complete: bool = False) -> zarr.Array:
        """Open a level for writing or, if it is `complete`, for reading, where a missing chunk is an error."""
        readable, writable = open_arrays(self.location, f"{self.prefix}{level}", self.run)
        return readable if complete else writable

    def read(self, level: int, piece: _Slices) -> NDArray[Any]:
        """Return a part of a level; raise an error if it is damaged."""
        if level == self.first - 1 and self.read_before is not None:
            z, y, x = piece
            return self.read_before(Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop)))
        # Arrays of other programs may lack chunks that hold only the fill value.
        return np.asarray(self.array(level, complete=self.checked)[piece])

    def create(self, finer: zarr.Array, number: int, level: PyramidLevel) -> zarr.Array:
        """Create an empty level with the codecs of the level before it."""
        name = f"{self.prefix}{number}"
        self.location.clear(name)
        shape = (*finer.shape[:-3], *level.shape)
        chunks, shards = cut_regions(shape, finer.chunks, finer.shards or finer.chunks, level.factors)
        return zarr.create_array(
            self.location.zarr(name),
            shape=shape,
            dtype=finer.dtype,
            chunks=chunks,
            shards=shards if finer.shards else None,
            filters=finer.filters,
            compressors=finer.compressors,
            fill_value=finer.fill_value,
            dimension_names=getattr(finer.metadata, "dimension_names", None),
            chunk_key_encoding=getattr(finer.metadata, "chunk_key_encoding", None),
            zarr_format=3,
        )

    def write(self, level: int, region: _Slices, values: NDArray[Any]) -> None:
        """Write whole shards of a level, and flush them to disk."""
        if self.checked:
            check_written_by(self.location, self.run)
        self.array(level)[region] = values
        sync_shards(self.location, f"{self.prefix}{level}", region, self.run)


def build_pyramid_region(group: _LevelGroup, level: int, method: str, factors: Triple, number: int) -> tuple[int, int]:
    """Write a region of a level; return the numbers of bytes read and written."""
    array = group.array(level)
    region = _region(array, number)
    values = np.empty([side.stop - side.start for side in region], native_dtype(array.dtype))
    read = 0
    for piece in _pieces(region, array.chunks, factors):
        within = (slice(side.start - r.start, side.stop - r.start) for side, r in zip(piece, region, strict=True))
        read += _reduce(group, level - 1, piece, method, factors, values[tuple(within)])
    group.write(level, region, values)
    return read, values.nbytes


def pyramid_task_count(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], levels: Sequence[PyramidLevel]
) -> int:
    """Return the number of tasks that write the levels of an array with these chunks and shards."""
    count = 0
    for level in levels:
        coarse = (*shape[:-3], *level.shape)
        chunks, shards = cut_regions(coarse, chunks, shards, level.factors)
        count += math.prod(_region_counts(coarse, shards))
    return count


def pyramid_task_bytes(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], levels: Sequence[PyramidLevel], itemsize: int
) -> int:
    """Project the memory of the largest task that writes the levels of an array with these chunks and shards."""
    peak, finer = 0, math.prod(shape)
    for level in levels:
        coarse = (*shape[:-3], *level.shape)
        # The voxels that a chunk is made of, as they are stored and decoded, from as many chunks and shards.
        read = min(finer, 8 * math.prod(chunks[-3:]))
        chunks, shards = cut_regions(coarse, chunks, shards, level.factors)
        region = math.prod(map(min, _region_shape(shards), coarse))
        # Besides its voxels, a region holds them encoded, and again as shards.
        peak = max(peak, region + max(3 * read + min(finer, math.prod(chunks)), 2 * region))
        finer = math.prod(coarse)
    return peak * itemsize


def _check_method(full: zarr.Array, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"the method of a pyramid must be one of {', '.join(METHODS)}, not {method!r}.")
    if full.ndim < 3:
        raise ValueError(f"an array of shape {full.shape} has no coarser levels: it needs three axes, z, y and x.")
    if full.dtype.kind not in ("iu" if method == "mode" else "iuf"):
        raise ValueError(f"values of type {full.dtype} have no {method}: choose another method for the pyramid.")


def cut_regions(
    shape: Sequence[int], chunks: Sequence[int], shards: Sequence[int], factors: Triple
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the chunks and shards of a level of a shape, from those of the level before it.

    Shards cover the same part of space, so that as many tasks write them, as long as these are whole chunks.

    >>> cut_regions((256, 256, 256), (64, 64, 64), (256, 512, 512), (2, 2, 2))
    ((64, 64, 64), (128, 256, 256))
    """
    smaller = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    ratios = (*(1,) * (len(shape) - 3), *factors)
    counts = (s // c // f if s % (c * f) == 0 else s // c for s, c, f in zip(shards, chunks, ratios, strict=True))
    within = (min(count * c, -(-n // c) * c) for count, c, n in zip(counts, smaller, shape, strict=True))
    return smaller, tuple(within)


def count_region_levels(
    shape: Triple, levels: Sequence[PyramidLevel], shards: Sequence[Sequence[int]], region: Triple
) -> int:
    """Return how many of the levels of an array, with these shards, are whole blocks and shards in each region of it.

    >>> halves = [PyramidLevel((n, n, n), (2, 2, 2)) for n in (256, 128, 64)]
    >>> count_region_levels((512,) * 3, halves, [(128,) * 3, (64,) * 3, (64,) * 3], (256, 256, 512))
    2
    """
    for count, (level, shard) in enumerate(zip(levels, shards, strict=True)):
        for extent, n, f, s in zip(region, shape, level.factors, shard, strict=True):
            if extent < n and (extent % f or extent // f % s):
                return count
        axes = zip(region, shape, level.factors, level.shape, strict=True)
        region, shape = triple([m if e >= n else e // f for e, n, f, m in axes]), level.shape
    return len(levels)


def _region_shape(shards: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a region, which is whole shards, or chunks without shards."""
    return tuple(s * max(1, _MIN_EXTENT // s) if axis >= len(shards) - 3 else s for axis, s in enumerate(shards))


def _region_counts(shape: Sequence[int], shards: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // side) for n, side in zip(shape, _region_shape(shards), strict=True))


def _region(array: zarr.Array, number: int) -> _Slices:
    shards = array.shards or array.chunks
    sides, corner = _region_shape(shards), np.unravel_index(number, _region_counts(array.shape, shards))
    return tuple(
        slice(int(i) * side, min(int(i) * side + side, n))
        for i, side, n in zip(corner, sides, array.shape, strict=True)
    )


def _pieces(region: _Slices, chunks: Sequence[int], factors: Triple) -> Iterator[_Slices]:
    """Cut a region into chunks, one volume after the other; into smaller pieces if many voxels become one."""
    lengths = [1] * (len(chunks) - 3) + [max(1, min(c, 2 * c // f)) for c, f in zip(chunks[-3:], factors, strict=True)]
    along = [
        [slice(a, min(a + n, side.stop)) for a in range(side.start, side.stop, n)]
        for side, n in zip(region, lengths, strict=True)
    ]
    return itertools.product(*along)


def _reduce(group: _LevelGroup, finer: int, piece: _Slices, method: str, factors: Triple, out: NDArray[Any]) -> int:
    """Compute a piece of a level from the level before it; return the number of bytes read."""
    blocks = tuple(
        slice(side.start * f, min(side.stop * f, n))
        for side, f, n in zip(piece[-3:], factors, group.array(finer).shape[-3:], strict=True)
    )
    try:
        values = group.read(finer, (*piece[:-3], *blocks))
    except (*DECODING_ERRORS, ScratchCorrupted) as error:
        name = f"{group.location.address}/{group.prefix}{finer}"
        raise ValueError(
            f"{name} cannot be read back ({' '.join(str(error).split())}): it has been damaged since it "
            f"was written, so resume with resume=True (--resume), or write it again."
        ) from error
    volume, coarse = native_values(values.reshape(values.shape[-3:])), out.reshape(out.shape[-3:])
    reduce_voxels(volume, factors, method, coarse)
    return values.nbytes


def reduce_voxels(values: NDArray[Any], factors: Triple, method: str, out: NDArray[Any]) -> None:
    """Write the value of each block of `factors` voxels, of native byte order, into `out`; see `build_pyramid`."""
    if method == "nearest":
        dz, dy, dx = factors
        out[:] = values[::dz, ::dy, ::dx][: out.shape[0], : out.shape[1], : out.shape[2]]
    else:
        (take_modes if method == "mode" else take_means)(values, factors, out)
