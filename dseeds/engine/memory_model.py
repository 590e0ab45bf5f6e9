"""The memory that tasks need, projected before a run starts, and the region shape that fits the workers.

The projection repeats by hand what the tasks in `dseeds.engine.tasks` and `dseeds.engine.label_tasks` hold in memory:
a change to their arrays needs the same change here. A test compares it with measured peaks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dseeds.core.checks import read_extents
from dseeds.core.formatting import format_mebibytes, format_shape
from dseeds.core.geometry import Box, Lattice, Regions, Triple, Window, triple
from dseeds.engine.phases import sweep_phase
from dseeds.engine.scratch import (
    Scratch,
    bins_name,
    codes_name,
    core_name,
    histograms_name,
    parse_name,
    shells_name,
    statistics_name,
)
from dseeds.parallel.capacity import READ_AT_ONCE, Capacity
from dseeds.seeds.histograms import GREY_LEVELS
from dseeds.seeds.order_statistics import COPY_BYTES, DIGIT_BITS
from dseeds.seeds.schedule import schedule
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, Layout, chunk_length, region_units

# The memory of a worker before its first task: the interpreter, the libraries, the compiled kernels.
WORKER_BYTES = 350 << 20
# The share of a worker's memory that tasks are planned for; Dask pauses a worker at 80 %.
TASK_SHARE = 0.75
# Candidates for the length of a region in voxels. Longer regions waste less on halos, shorter ones spread better.
REGION_EXTENTS = (512, 448, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2)
SPREAD_EXTENT = 128
REGIONS_PER_WORKER = 4
# The counts of one row in a pass of the search for the intensity windows.
DIGIT_BYTES = 8 << DIGIT_BITS


@dataclass(frozen=True)
class TaskShape:
    """What the memory of tasks depends on besides the lattice."""

    # Bytes per voxel of the source, all channels together.
    itemsize: int
    channels: int = 1
    # Whether there may be a mask.
    masked: bool = False
    # Whether intensities are counted, for the mask or for equalised bins.
    counted: bool = False
    # Whether supervoxels are joined to others.
    has_joins: bool = False


class ChunkShapes(NamedTuple):
    """How arrays outside scratch are cut, in voxels along (z, y, x); None where a run would choose."""

    # The source's chunks are decoded whole, those of the labels encoded whole.
    source: Triple | None = None
    source_shard: Triple | None = None
    labels: Triple | None = None


DEFAULT_CHUNKS = ChunkShapes()


def task_bytes(lattice: Lattice, cells: Triple, task: TaskShape, chunks: ChunkShapes = DEFAULT_CHUNKS) -> int:
    """Project the peak memory of the largest task in bytes, without those of the worker itself."""
    return max(stage_bytes(lattice, cells, task, chunks).values())


def stage_bytes(
    lattice: Lattice, cells: Triple, task: TaskShape, chunks: ChunkShapes = DEFAULT_CHUNKS
) -> dict[str, int]:
    """Project the peak memory of the largest task of each stage; see `task_bytes`."""
    regions = Regions(lattice, cells)
    extent = region_units(regions, lattice.grids[-1])
    default = triple([chunk_length(n, UNIT_CHUNK) for n in extent])
    chunk, label_chunk = chunks.source or default, chunks.labels or default
    source = Layout(lattice.shape, np.dtype((np.void, task.itemsize)), chunks.source_shard or chunk, chunk, ZSTD_CODEC)
    labels = Layout(lattice.shape, lattice.label_dtype, extent, triple(map(min, label_chunk, extent)), ZSTD_CODEC)
    model = _MemoryModel(regions, task, source, labels)
    # Regions at the ends of an axis differ in their halos, and the last ones in their length.
    samples = [sorted({0, min(1, n - 1), max(0, n - 2), n - 1}) for n in regions.counts]
    peaks: dict[str, int] = {}
    for index in itertools.product(*samples):
        for stage, size in model.moments(regions.box_at(triple(index))):
            peaks[stage] = max(int(size), peaks.get(stage, 0))
    return peaks


class _MemoryModel:
    """The bytes that tasks hold at those moments that may be their peaks.

    Each method yields the stage of a moment and its bytes, in the order of the statements of the task that it mirrors.
    """

    def __init__(self, regions: Regions, task: TaskShape, source: Layout, labels: Layout) -> None:
        self.regions, self.lattice, self.task = regions, regions.lattice, task
        self.rounds = schedule(self.lattice, task.channels)
        self.extent = region_units(regions, self.lattice.grids[-1])
        stored = {name: array.layout for name, array in Scratch("", regions, task.channels).layouts.items()}
        self.layouts = {**stored, "source": source, "labels": labels}

    def moments(self, region: Box) -> Iterator[tuple[str, float]]:
        """Yield the moments of all tasks of a region."""
        yield from self._quantising(region)
        yield from self._labelling(region)
        visited: set[tuple[Any, ...]] = set()
        for turn, round_ in enumerate(self.rounds):
            changes_bins = turn + 1 < len(self.rounds) and self.rounds[turn + 1].bins != round_.bins
            if (round_.level, round_.bins, changes_bins) not in visited:
                yield from self._sweeping(turn, region, changes_bins)
            if turn and ("merge", round_.bins) not in visited:
                yield from self._merging(turn, region)
                visited.add(("merge", round_.bins))
            visited.add((round_.level, round_.bins, changes_bins))

    def _quantising(self, region: Box) -> Iterator[tuple[str, float]]:
        voxels, channels = self.lattice.grids[-1].units_of(region), self.task.channels
        # The mask, and the selection of the voxels inside.
        inside = 2 * voxels.size if self.task.masked else 0
        read = self._reading("source", voxels) + inside
        values = voxels.size * self.layouts["source"].dtype.itemsize + inside
        rows = channels * (1 if self.task.itemsize <= 2 * channels else 4)
        if self.task.masked:
            yield "mask", read
        yield "window", read
        yield "window", values + 4 * rows * DIGIT_BYTES
        window, bins = channels * padded_bytes(voxels.shape), channels * voxels.size
        counts = math.prod(k + 2 for k in region.shape) * self.rounds[0].bins * 4
        finest = histograms_name(len(self.lattice.grids) - 3)
        stored = channels * voxels.size // 8 * 4 if finest in self.layouts else 0
        if self.task.counted:
            # A slab takes 16 bits a channel.
            slab = min(voxels.size, COPY_BYTES)
            yield "histogram", max(read, values + 3 * channels * slab + 2 * channels * GREY_LEVELS * 8)
        yield "quantise", bins + read
        yield "quantise", bins + self._writing(bins_name(0), voxels.size)
        yield "quantise", bins + 2 * window + stored + 2 * counts + self._writing(statistics_name(0), region.size)

    def _labelling(self, region: Box) -> Iterator[tuple[str, float]]:
        grid, last = self.lattice.grids[-1], codes_name(len(self.rounds) - 1)
        voxels = grid.units_of(region)
        size, label = voxels.size, self.lattice.label_dtype.itemsize
        yield "label", self._reading(last, voxels)
        yield "label", padded_bytes(voxels.shape) + size * label + self._writing("labels", size)
        near, far = (grid.units_of(region.grow(reach, within=self.lattice.cells)) for reach in (1, 2))
        number = "number" if self.task.has_joins else "label"
        if self.task.masked:
            # Windows of codes, and a number for each of their voxels.
            yield "parts", self._reading(last, near)
            yield "parts", 5 * near.size + self._writing("parts", region.size)
            yield number, self._reading(last, far)
            yield number, 5 * far.size + size * label
        if self.task.has_joins:
            yield number, padded_bytes(voxels.shape) + size * label + self._writing("numbers", size)
            # The graph takes some bytes for each voxel if supervoxels are small.
            yield "graph", self._reading("numbers", voxels) + (2 * self.task.channels + 10) * size
            yield "label", 3 * size * label + self._reading("numbers", voxels)

    def _sweeping(self, turn: int, region: Box, changes_bins: bool) -> Iterator[tuple[str, float]]:
        round_, grids = self.rounds[turn], self.lattice.grids
        stage = sweep_phase(self.rounds, turn).stage
        grid = grids[round_.level]
        window = Window.around(self.lattice, grid, region, round_.halo)
        units, size, core = padded_bytes(window.box.shape), window.box.size, window.core.size
        yield stage, units + self._reading(codes_name(turn), window.box)
        yield stage, 2 * units + 2 * size
        if round_.level < len(grids) - 2:
            values = size * _itemsize(self.layouts[histograms_name(round_.level)])
            yield stage, 2 * units + self._reading(histograms_name(round_.level), window.box)
        else:
            box = grid.voxels_of(window.box)
            values = self.task.channels * padded_bytes(box.shape)
            yield stage, 2 * units + values + self._reading(bins_name(0), box)
        held = 2 * units + values
        counts = window.cells.size * round_.bins * 4
        yield stage, held + self._reading(statistics_name(turn), window.cells)
        # The counts, their changes, and a table of 16 bits, or of 32 bits for several channels.
        yield stage, held + (2.5 if self.task.channels == 1 else 3) * counts
        held += counts + core
        yield stage, held + counts + core + self._writing(codes_name(turn), core)
        if changes_bins:
            voxels = grids[-1].units_of(region)
            packed = (1 + self.task.channels) * padded_bytes(voxels.shape)
            yield stage, held + counts + packed + self._reading(bins_name(0), voxels)
            window = Window.around(self.lattice, grids[-1], region, 0)
            counts = window.cells.size * self.rounds[turn + 1].bins * 4
            held += packed
        if turn + 1 < len(self.rounds):
            shell = math.prod(k + 2 for k in self.regions.cells) * self.rounds[turn + 1].bins * 4
            shell -= region.size * 4 * round_.bins
            yield stage, held + counts + shell + self._writing(core_name(turn + 1), region.size)
            yield stage, held + counts + shell + self._writing(shells_name(turn + 1), 1)

    def _merging(self, turn: int, region: Box) -> Iterator[tuple[str, float]]:
        own = region.size * self.rounds[turn].bins * 4
        around = Box((0, 0, 0), triple([min(n, 3) for n in self.regions.counts]))
        yield "merge", own + self._reading(shells_name(turn), around)
        held = own + around.size * math.prod(self.layouts[shells_name(turn)].shard) * 4
        yield "merge", held + self._reading(statistics_name(turn), region)
        yield "merge", held + self._writing(statistics_name(turn), region.size)

    def _reading(self, name: str, box: Box) -> float:
        """Return the bytes that reading a box takes, with its values."""
        layout = self.layouts[name]
        is_sharded = layout.shard != layout.chunk
        # The part of a shard that is read is gathered decoded and encoded before it is copied to its place.
        gathered = min(box.size, READ_AT_ONCE * math.prod(layout.shard[:3])) * (1 + encoded_share(name, self.lattice))
        chunks = min(READ_AT_ONCE ** (1 + is_sharded), self._touched_chunks(name, box))
        return float(_itemsize(layout) * (box.size + gathered * is_sharded + 2 * chunks * math.prod(layout.chunk[:3])))

    def _touched_chunks(self, name: str, box: Box) -> int:
        """Return how many chunks a box touches: at most, for a source whose chunks do not divide regions."""
        count = 1
        for lo, hi, chunk, n in zip(box.lo, box.hi, self.layouts[name].chunk, self.extent, strict=False):
            is_offset = name == "source" and n % chunk
            count *= -(-(hi - lo - 1) // chunk) + 1 if is_offset else -(-hi // chunk) - lo // chunk
        return int(count)

    def _writing(self, name: str, size: int) -> float:
        """Return the bytes that writing `size` units takes, without their values."""
        layout = self.layouts[name]
        chunks = min(READ_AT_ONCE * math.prod(layout.chunk[:3]), math.prod(layout.shard[:3]))
        # All chunks of a shard are encoded before they are joined; a repeated task also reads the shard that exists.
        return _itemsize(layout) * (2 * chunks + 3 * encoded_share(name, self.lattice) * size)


def _itemsize(layout: Layout) -> int:
    """Return the bytes of a unit."""
    return int(math.prod(layout.shape[3:]) * layout.dtype.itemsize)


def padded_bytes(shape: Triple) -> int:
    """Return the bytes of a window of `dseeds.seeds.kernels.layout`."""
    return (shape[0] + 2) * (shape[1] + 2) * (shape[2] + 3)


def encoded_share(name: str, lattice: Lattice) -> float:
    """Return the largest share of its bytes in memory that an array takes when it is encoded: that of noise."""
    kind, turn = parse_name(name)
    if kind in ("statistics", "core"):
        # A count has about as many bits as a cell has voxels in a bin.
        bins = schedule(lattice)[turn].bins
        return min(1.0, (5 + math.log2(1 + math.prod(lattice.step) / bins)) / 32)
    if kind in ("labels", "numbers"):
        return min(1.0, 3 / min(lattice.step) / lattice.label_dtype.itemsize)
    shares = {"bins": 0.8, "histograms": 0.8, "codes": 0.8, "shells": 0.1, "digits": 0.15, "intensities": 0.5}
    return shares.get(kind, 1.0)


def choose_region_shape(
    lattice: Lattice,
    task: TaskShape,
    capacity: Capacity,
    *,
    region: int | Sequence[int] | None = None,
    chunks: ChunkShapes = DEFAULT_CHUNKS,
    multiple: Triple = (1, 1, 1),
) -> Triple:
    """Choose the cells per region: as many as the workers' memory allows, but enough regions for all workers.

    `region` is the user's choice in voxels, rounded up to whole cells. Unless a region is as long as the volume, it is
    a `multiple` of cells. Raises a ValueError if `region`, or even the smallest region, does not fit the memory.
    """
    if region is None:
        candidates = [_round_cells(_chunked_cells(lattice, extent), multiple, lattice) for extent in REGION_EXTENTS]
    else:
        pairs = zip(lattice.cells, read_extents("region", region) or (), lattice.step, strict=True)
        candidates = [triple([min(n, -(-e // s)) for n, e, s in pairs])]
    needed, fitting = 0, None
    for cells in candidates:
        needed = worker_bytes(task_bytes(lattice, cells, task, chunks), capacity.threads_per_worker)
        is_spread = len(Regions(lattice, cells)) >= REGIONS_PER_WORKER * capacity.threads
        is_small = max(k * s for k, s in zip(cells, lattice.step, strict=True)) <= SPREAD_EXTENT
        fitting = cells if needed <= capacity.memory else None
        if fitting and (is_spread or is_small):
            break
    if fitting:
        return fitting
    shape = format_shape(k * s for k, s in zip(candidates[-1], lattice.step, strict=True))
    raise ValueError(
        f"regions of {shape} voxels (z, y, x) need workers of {format_mebibytes(needed)} MiB, but these have "
        f"{format_mebibytes(capacity.memory)} MiB: give each more memory (--memory), if need be with fewer of them "
        f"(--workers), or use {'a smaller step (--step)' if region is None else 'smaller regions (--region)'}; large "
        f"chunks of the source also need memory."
    )


def shard_alignment(lattice: Lattice, shards: Triple | None) -> Triple:
    """Return the cells along (z, y, x) that regions must be multiples of to consist of whole shards.

    >>> shard_alignment(Lattice((999, 999, 999), (16, 16, 10)), (256, 100, 64))
    (16, 25, 32)
    """
    if shards is None:
        return 1, 1, 1
    return triple([n // math.gcd(n, s) for n, s in zip(shards, lattice.step, strict=True)])


def choose_label_layout(
    lattice: Lattice, cells: Triple, shards: Triple | None, chunks: Triple | None
) -> tuple[Triple, Triple]:
    """Choose the shards and chunks of the labels: by default a shard is a region, and a chunk about 64 voxels long.

    Raises a ValueError if regions are not whole shards, or shards not whole chunks.
    """
    region = triple([k * s for k, s in zip(cells, lattice.step, strict=True)])
    if shards is not None:
        for length, part, k, n in zip(region, shards, cells, lattice.cells, strict=True):
            if length % part and k < n:
                raise ValueError(
                    f"regions of {format_shape(region)} voxels (z, y, x) are not made up of whole shards of "
                    f"{format_shape(shards)}: use shards that are multiples of the step, or leave out --region."
                )
    shard = shards or region
    if chunks is None:
        chunks = triple([chunk_length(n, UNIT_CHUNK) for n in shard])
    if any(n % c for n, c in zip(shard, chunks, strict=True)):
        raise ValueError(
            f"shards of {format_shape(shard)} voxels (z, y, x) are not made up of whole chunks of "
            f"{format_shape(chunks)}: use chunks that divide them."
        )
    return shard, chunks


def worker_bytes(task: int, threads: int) -> int:
    """Project the memory that a worker needs for a task of `task` bytes in each of its threads."""
    return int((WORKER_BYTES + task * threads) / TASK_SHARE)


def thread_budget(capacity: Capacity) -> int:
    """Return the bytes that the task of each of a worker's threads may hold."""
    return max(1, (int(capacity.memory * TASK_SHARE) - WORKER_BYTES) // capacity.threads_per_worker)


def _chunked_cells(lattice: Lattice, extent: int) -> Triple:
    """Return the cells per region of an extent in voxels: whole chunks of about 64 voxels, within the lattice."""
    counts = []
    for n, s in zip(lattice.cells, lattice.step, strict=True):
        chunk = min(n, max(1, round(min(UNIT_CHUNK, extent) / s)))
        counts.append(min(chunk * max(1, extent // (chunk * s)), n))
    return triple(counts)


def _round_cells(cells: Triple, multiple: Triple, lattice: Lattice) -> Triple:
    """Round cells per region down to a multiple, but at least to one; the whole axis needs no rounding."""
    rounded = [max(k // m, 1) * m for k, m in zip(cells, multiple, strict=True)]
    return triple([n if k >= n or r >= n else r for k, r, n in zip(cells, rounded, lattice.cells, strict=True)])
