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
from numpy.typing import NDArray

from dseeds.core.checks import read_extents
from dseeds.core.forks import cached_property
from dseeds.core.formatting import format_mebibytes, format_shape
from dseeds.core.geometry import Box, Lattice, Regions, Triple, triple
from dseeds.engine.exchange import BINS, COUNTS, Exchange, label_reach
from dseeds.engine.phases import turn_phase
from dseeds.engine.scratch import Scratch, parse_name
from dseeds.engine.wavefront import wave_depth
from dseeds.parallel.capacity import READ_AT_ONCE, Capacity
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.histograms import GREY_LEVELS
from dseeds.seeds.order_statistics import COPY_BYTES, DIGIT_BITS, MOST_STATISTICS
from dseeds.seeds.schedule import Round, schedule
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, Layout, chunk_length, region_units

# The memory of a worker before its first task: the interpreter, the libraries, the compiled kernels.
WORKER_BYTES = 350 << 20
# The share of a worker's memory that tasks are planned for; Dask pauses a worker at 80 %.
TASK_SHARE = 0.75
# Candidates for the length of a region in voxels, and the shortest that spread the work better. Longer regions waste
# less on halos.
REGION_EXTENTS = (512, 448, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2)
SPREAD_EXTENT = 128
# The thinnest layers along z, of which fewer voxels are in work at a time, and how many shapes are tried.
LAYER_EXTENT, TRIED_SHAPES = 32, 8
# What it costs to store a state after a round and to load it again, in rounds.
RELOADING = 1.5
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
    # The kind of a boundary map; see `dseeds.engine.job.Job`.
    boundaries: str | None = None

    def schedule(self, lattice: Lattice) -> tuple[Round, ...]:
        """Return the rounds."""
        return schedule(lattice, self.channels, self.boundaries)


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
    peaks: dict[str, int] = {}
    for number in _samples(model.exchange):
        for stage, size in model.moments(number):
            peaks[stage] = max(int(size), peaks.get(stage, 0))
    return peaks


def state_bytes(lattice: Lattice, cells: Triple, task: TaskShape) -> int:
    """Project the bytes of the largest state of a region between its rounds."""
    regions = Regions(lattice, cells)
    layout = Layout(lattice.shape, np.dtype(np.uint8), (1, 1, 1), (1, 1, 1), ZSTD_CODEC)
    model = _MemoryModel(regions, task, layout, layout)
    turns = range(-1, len(model.rounds))
    return int(max(model.state_bytes(number, turn) for number in _samples(model.exchange) for turn in turns))


def room_beside_tasks(lattice: Lattice, cells: Triple, task: TaskShape, capacity: Capacity, chunks: ChunkShapes) -> int:
    """Return the bytes that states of regions may take in a worker between tasks: what these do not need themselves."""
    needed = task_bytes(lattice, cells, task, chunks) * capacity.threads_per_worker
    return max(0, int(capacity.memory * TASK_SHARE) - WORKER_BYTES - needed)


def _samples(exchange: Exchange) -> list[int]:
    """Return the regions whose tasks may take the most memory: those that no other exceeds along an axis.

    At the ends of an axis halos differ, and the last regions may be shorter or longer.
    """
    kept = []
    for axis in range(3):
        line = exchange.line(axis)
        # Of equal regions, the one in the middle has the most neighbours.
        indices = dict.fromkeys([len(line) // 2, 0, min(1, len(line) - 1), max(0, len(line) - 2), len(line) - 1])
        extents = {i: _extents(exchange, line[i], axis) for i in indices}
        maximal: list[int] = []
        for i in indices:
            if not any((extents[j] >= extents[i]).all() for j in maximal):
                maximal = [j for j in maximal if not (extents[i] >= extents[j]).all()] + [i]
        kept.append(maximal)
    return [exchange.regions.number(triple(index)) for index in itertools.product(*kept)]


def _extents(exchange: Exchange, number: int, axis: int) -> NDArray[np.int64]:
    """Return all extents along an axis that the memory of a region's tasks depends on."""
    boxes = [exchange.voxels(number), exchange.binned_voxels(number), exchange.labelled_voxels(number)]
    for turn in range(len(exchange.schedule)):
        window = exchange.window(number, turn)
        boxes += [window.core, window.box, window.cells]
    return np.array([box.shape[axis] for box in boxes])


class _MemoryModel:
    """The bytes that tasks hold at those moments that may be their peaks.

    Each method yields the stage of a moment and its bytes, in the order of the statements of the task that it mirrors.
    No state is taken to be in memory before its task, so that it has to be loaded first.
    """

    def __init__(self, regions: Regions, task: TaskShape, source: Layout, labels: Layout) -> None:
        self.regions, self.lattice, self.task = regions, regions.lattice, task
        self.rounds = task.schedule(self.lattice)
        reach = label_reach(masked=task.masked, has_joins=task.has_joins)
        self.exchange = Exchange(regions, self.rounds, task.channels, reach)
        self.extent = region_units(regions, self.lattice.grids[-1])
        parts = Scratch("", regions).layouts["parts"]
        self.layouts = {"source": source, "labels": labels, "parts": parts}

    def moments(self, number: int) -> Iterator[tuple[str, float]]:
        """Yield the moments of all tasks of a region."""
        yield from self._analysing(number)
        for size in self._beginning(number, 0):
            yield "quantise", size
        yield "quantise", self.state_bytes(number, -1) + self._publishing(number, -1)
        yield from self._labelling(number)
        visited: set[tuple[Any, ...]] = set()
        for turn, round_ in enumerate(self.rounds):
            changes_bins = turn + 1 < len(self.rounds) and self.rounds[turn + 1].bins != round_.bins
            if (round_.level, changes_bins) not in visited:
                stage = turn_phase(self.rounds, turn).stage
                for size in self._sweeping(number, turn, changes_bins):
                    yield stage, size
            visited.add((round_.level, changes_bins))

    def state_bytes(self, number: int, turn: int) -> float:
        """Return the bytes of a region's state after a round; see `dseeds.engine.region_state.RegionState`."""
        following = min(turn + 1, len(self.rounds) - 1)
        held = self._bins(number) + self._histograms(number, self.rounds[following].level)
        if turn + 1 < len(self.rounds):
            held += self._counts(number, following)
        if turn < 0:
            return held
        # The labels and, of blocks, the marks.
        windows = 1 + (self.rounds[turn].weight is None)
        return held + windows * padded_bytes(self.exchange.window(number, turn).box.shape)

    def _bins(self, number: int) -> int:
        return self.task.channels * padded_bytes(self.exchange.binned_voxels(number).shape)

    def _histograms(self, number: int, level: int, *, core: bool = False) -> int:
        """Return the bytes of the histograms from a level on, in a region's windows or in the region alone."""
        size = 0
        for own, turn in self.exchange.histogram_turns().items():
            window = self.exchange.window(number, turn)
            wide = 32 * self.task.channels * histogram_dtype(window.grid).itemsize
            size += (window.core if core else window.box).size * wide * (own >= level)
        return size

    def _counts(self, number: int, turn: int) -> int:
        return self.exchange.window(number, turn).cells.size * self.rounds[turn].bins * 4

    def _reading_image(self, number: int) -> float:
        # The mask, and the selection of the voxels inside.
        voxels = self.exchange.voxels(number)
        return self._reading("source", voxels) + 2 * voxels.size * self.task.masked

    def _analysing(self, number: int) -> Iterator[tuple[str, float]]:
        voxels, channels = self.exchange.voxels(number), self.task.channels
        read = self._reading_image(number)
        values = voxels.size * (self.layouts["source"].dtype.itemsize + 2 * self.task.masked)
        rows = channels * (1 if self.task.itemsize <= 2 * channels else MOST_STATISTICS)
        if self.task.masked:
            yield "mask", read
        yield "window", read
        yield "window", values + 4 * rows * DIGIT_BYTES
        if self.task.counted:
            # A slab takes 16 bits a channel.
            slab = min(voxels.size, COPY_BYTES)
            yield "histogram", max(read, values + 3 * channels * slab + 2 * channels * GREY_LEVELS * 8)

    def _beginning(self, number: int, turn: int) -> Iterator[float]:
        """Yield the moments of making a region's bins, histograms and counts for a round, or of loading them."""
        voxels, channels = self.exchange.voxels(number), self.task.channels
        own = channels * voxels.size
        if turn > 0:
            own += sum(part.nbytes for part in self.exchange.checkpoint(number, turn - 1))
            # The bins and histograms that were stored, encoded and decoded, and copied to a window.
            yield own + 3 * self._bins(number) + 2 * self._histograms(number, self.rounds[turn].level)
        yield own + self._reading_image(number)
        # Grey levels of 16 bits and what lies inside are determined in slabs.
        slab = min(voxels.size, COPY_BYTES // self.task.itemsize)
        values = voxels.size * (self.task.itemsize + 2 * self.task.masked)
        yield own + values + slab * (3 * self.task.masked + 3 * self.task.counted)
        level = self.rounds[turn].level
        blocks = self.rounds[turn].weight is None or turn == 0
        packed = channels * padded_bytes(voxels.shape) * blocks
        histograms = self._histograms(number, level) + self._histograms(number, level, core=True) * blocks
        counts = 3 * self._counts(number, 0) if turn == 0 else 0
        yield own + self._bins(number) + packed + histograms + counts

    def _publishing(self, number: int, turn: int) -> float:
        """Return the bytes that a message takes while it is encoded, besides the state and the result of a round."""
        exchange = self.exchange
        sizes = exchange.published_bytes(turn, number)
        own = list(exchange.checkpoint(number, turn)) if turn >= 0 else []
        # Bins are unpacked for each reader. Other parts are cut out when they are encoded, into an array as large; what
        # is published for a region that shares a face is the largest.
        parts = [part.nbytes for reader in self._faces(number) for part in exchange.published(number, reader, turn)]
        largest = max([2 * size for size in parts] + [part.nbytes for part in own], default=0)
        unpacked = sizes[BINS]
        sizes.update({part.name: part.nbytes for part in own})
        encoded = sum(size * encoded_share(name, self.lattice) for name, size in sizes.items())
        # In the end, all pieces are joined.
        return unpacked + encoded + max(encoded, largest)

    def _faces(self, number: int) -> list[int]:
        """Return the regions that share a face with a region."""
        index = self.regions.index(number)
        near = [self.regions.index(other) for other in self.regions.within(number, 1)]
        pairs = [(other, sum(abs(i - k) for i, k in zip(index, other, strict=True))) for other in near]
        return [self.regions.number(other) for other, distance in pairs if distance == 1]

    def _sweeping(self, number: int, turn: int, changes_bins: bool) -> Iterator[float]:
        round_, window = self.rounds[turn], self.exchange.window(number, turn)
        yield from self._beginning(number, turn)
        core, units = window.core.size, padded_bytes(window.box.shape)
        held = self._bins(number) + self._histograms(number, round_.level)
        counts = self._counts(number, turn)
        # The checkpoint, of which the labels and marks are made.
        yield held + counts + 2 * units + 3 * core
        box = window.grid.voxels_of(window.box)
        is_copied = round_.level == len(self.lattice.grids) - 2 and box != self.exchange.binned_voxels(number)
        values = 2 * self.task.channels * padded_bytes(box.shape) * is_copied
        # The counts, their changes, and a table of 16 bits, or of 32 bits for several channels.
        yield held + 2 * units + values + (2.5 if self.task.channels == 1 else 3) * counts
        held += 2 * units + 2 * counts + core
        if changes_bins:
            following = self.exchange.window(number, turn + 1)
            held += self._counts(number, turn + 1)
            yield held + units + padded_bytes(following.box.shape)
            held += self._counts(number, turn + 1)
        yield held + self._publishing(number, turn)
        # The bins and histograms, encoded and joined, where the state finds no room.
        yield held + 2 * (self._bins(number) + self._histograms(number, round_.level))

    def _labelling(self, number: int) -> Iterator[tuple[str, float]]:
        grid, voxels = self.lattice.grids[-1], self.exchange.voxels(number)
        size, label, channels = voxels.size, self.lattice.label_dtype.itemsize, self.task.channels
        around = self.exchange.labelled_voxels(number)
        # The bins, and the codes of the last checkpoint.
        loaded = (channels + 1) * size + self._reading_image(number)
        state = self._bins(number) + 2 * padded_bytes(self.exchange.binned_voxels(number).shape)
        for stage in ["parts"] * self.task.masked + ["graph"] * self.task.has_joins + ["label"]:
            yield stage, loaded
            yield stage, state + 2 * around.size
        cells = self.regions.box(number)
        window = grid.units_of(cells.grow(2, within=self.lattice.cells))
        if self.task.masked:
            near = grid.units_of(cells.grow(1, within=self.lattice.cells))
            yield "parts", around.size + 5 * near.size + self._writing("parts", cells.size)
            for stage in ["graph"] * self.task.has_joins + ["label"]:
                yield stage, around.size + 5 * window.size + size * label + (stage == "graph") * channels * size
        numbers = around.size + padded_bytes(voxels.shape) + voxels.size + size * label
        for stage in ["graph"] * self.task.has_joins + ["label"]:
            yield stage, numbers
        if self.task.has_joins:
            # The graph takes some bytes for each voxel if supervoxels are small.
            yield "graph", numbers + (3 * channels + 10) * size
            yield "label", around.size + 2 * size * label
        yield "label", around.size + size * label + self._writing("labels", size)
        # The first coarser level, at most half as large, which is made of them.
        yield "label", around.size + 1.5 * size * label + self._writing("labels", size // 2)

    def _reading(self, name: str, box: Box) -> float:
        """Return the bytes that reading a box takes, with its values."""
        layout = self.layouts[name]
        is_sharded = layout.shard != layout.chunk
        # The part of a shard that is read is gathered decoded and encoded before it is copied to its place.
        gathered = min(box.size, READ_AT_ONCE * math.prod(layout.shard[:3])) * (1 + encoded_share(name, self.lattice))
        chunks = min(READ_AT_ONCE ** (1 + is_sharded), self._touched_chunks(name, box))
        # Chunks are held encoded and decoded, and one is on its way.
        held = (2 * chunks + 1) * math.prod(layout.chunk[:3])
        return float(_itemsize(layout) * (box.size + gathered * is_sharded + held))

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
    kind, _ = parse_name(name)
    if kind == "labels":
        return min(1.0, 3 / min(lattice.step) / lattice.label_dtype.itemsize)
    if kind == COUNTS:
        # Larger cells have larger counts, of more bytes that are not zero.
        return min(0.5, 0.2 + min(lattice.step) / 100)
    return {"digits": 0.15, "intensities": 0.5, BINS: 0.8}.get(kind, 1.0)


def choose_region_shape(
    lattice: Lattice,
    task: TaskShape,
    capacity: Capacity,
    *,
    region: int | Sequence[int] | None = None,
    chunks: ChunkShapes = DEFAULT_CHUNKS,
    multiple: Triple = (1, 1, 1),
) -> Triple:
    """Choose the cells per region: as many as the workers' memory allows, unless smaller regions spread better.

    `region` is the user's choice in voxels, rounded up to whole cells. Unless a region is as long as the volume, it is
    a `multiple` of cells. Raises a ValueError if `region`, or even the smallest region, does not fit the memory.
    """
    if region is None:
        candidates = [_balanced_cells(lattice, extent, multiple) for extent in REGION_EXTENTS]
    else:
        pairs = zip(lattice.cells, read_extents("region", region) or (), lattice.step, strict=True)
        candidates = [triple([min(n, -(-e // s)) for n, e, s in pairs])]
    needed = 0
    for cells in candidates:
        size = task_bytes(lattice, cells, task, chunks)
        needed = worker_bytes(size, capacity.threads_per_worker)
        if needed <= capacity.memory:
            return (
                cells if region is not None else _Spread(lattice, task, capacity, cells, size).choose(chunks, multiple)
            )
    shape = format_shape(k * s for k, s in zip(candidates[-1], lattice.step, strict=True))
    raise ValueError(
        f"regions of {shape} voxels (z, y, x) need workers of {format_mebibytes(needed)} MiB, but these have "
        f"{format_mebibytes(capacity.memory)} MiB: give each more memory (--memory), if need be with fewer of them "
        f"(--workers), or use {'a smaller step (--step)' if region is None else 'smaller regions (--region)'}; large "
        f"chunks of the source also need memory."
    )


@dataclass(frozen=True)
class _Spread:
    """The choice of a region shape that spreads the work well, given a shape whose tasks fit the memory."""

    lattice: Lattice
    task: TaskShape
    capacity: Capacity
    fitting: Triple
    # The bytes of a task of that shape.
    needed: int

    def choose(self, chunks: ChunkShapes, multiple: Triple) -> Triple:
        """Return the shape with the least work for the busiest thread of those whose tasks fit the memory as well."""
        threads = self.capacity.threads_per_worker
        for cells in itertools.islice(self._candidates(multiple), TRIED_SHAPES):
            if worker_bytes(task_bytes(self.lattice, cells, self.task, chunks), threads) <= self.capacity.memory:
                return cells
        return self.fitting

    def _candidates(self, multiple: Triple) -> list[Triple]:
        """Return shapes whose tasks are hardly larger, the one with the least work for the busiest thread first.

        Layers may be thinner than regions are wide, so that fewer regions are in work at a time.
        """
        wide = [_balanced_cells(self.lattice, e, multiple) for e in REGION_EXTENTS if e >= SPREAD_EXTENT]
        thin = [_balanced_cells(self.lattice, e, multiple) for e in REGION_EXTENTS if e >= LAYER_EXTENT]
        choices = [{self.fitting[0], *(cells[0] for cells in thin)}]
        choices += [{self.fitting[axis], *(cells[axis] for cells in wide)} for axis in (1, 2)]
        largest = self._window(self.fitting)
        shapes = [cells for cells in map(triple, itertools.product(*choices)) if self._window(cells) <= largest]
        # Of several, those that are cut along z, because they are read and written in the fewest pieces.
        return sorted(shapes, key=lambda cells: (self._work(cells), self._regions(cells), *cells))

    @cached_property
    def _rounds(self) -> tuple[Round, ...]:
        return self.task.schedule(self.lattice)

    def _regions(self, cells: Triple) -> int:
        return len(Regions(self.lattice, cells))

    def _window(self, cells: Triple) -> int:
        """Return the voxels of a region with its halo in the last rounds, which take the most time."""
        halo = self._rounds[-1].window_halo
        axes = zip(self.lattice.cells, cells, self.lattice.step, self.lattice.shape, strict=True)
        return math.prod(min(k * s, n) + min(-(-c // k) - 1, 2) * halo for c, k, s, n in axes)

    def _work(self, cells: Triple) -> float:
        """Return the work of the busiest thread, in voxels; states that find no room take more of it."""
        work = -(-self._regions(cells) // self.capacity.threads) * self._window(cells)
        return work * (1 + RELOADING * self._homeless(cells))

    def _homeless(self, cells: Triple) -> float:
        """Return the share of the states in work at a time for which there is no room in memory."""
        # Bins and labels, and somewhat more in rounds of blocks.
        state = self._window(cells) * (self.task.channels + 1.5)
        task = self.needed * self._window(cells) / self._window(self.fitting)
        room = int(self.capacity.memory * TASK_SHARE) - WORKER_BYTES - self.capacity.threads_per_worker * task
        room *= self.capacity.workers
        if state * self._regions(cells) <= room:
            return 0.0
        exchange = Exchange(Regions(self.lattice, cells), self._rounds)
        layers, per_layer = exchange.regions.counts[0], math.prod(exchange.regions.counts[1:])
        in_work = min(layers, wave_depth(exchange) + 1) * per_layer
        return max(0.0, 1 - room / (in_work * state))


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


def worker_bytes(task: int, threads: int, states: int = 0) -> int:
    """Project the memory that a worker needs for a task of `task` bytes in each of its threads, besides states."""
    return int((WORKER_BYTES + task * threads + states) / TASK_SHARE)


def resident_bytes(lattice: Lattice, cells: Triple, task: TaskShape, capacity: Capacity, chunks: ChunkShapes) -> int:
    """Project the memory of a worker that keeps the states of all its regions between rounds."""
    states = state_bytes(lattice, cells, task) * -(-len(Regions(lattice, cells)) // capacity.workers)
    return worker_bytes(task_bytes(lattice, cells, task, chunks), capacity.threads_per_worker, states)


def thread_budget(capacity: Capacity) -> int:
    """Return the bytes that the task of each of a worker's threads may hold."""
    return max(1, (int(capacity.memory * TASK_SHARE) - WORKER_BYTES) // capacity.threads_per_worker)


def _balanced_cells(lattice: Lattice, extent: int, multiple: Triple) -> Triple:
    """Return the cells per region of at most about an extent in voxels: nearly equal regions of whole chunks.

    Chunks are about 64 voxels long. Unless a region is as long as the volume, it is a `multiple` of cells.
    """
    counts = []
    for n, s, m in zip(lattice.cells, lattice.step, multiple, strict=True):
        chunk = min(n, max(1, round(min(UNIT_CHUNK, extent) / s)))
        unit = m if m > 1 else chunk
        longest = max(1, extent // (unit * s)) * unit
        balanced = -(-n // -(-n // longest))
        counts.append(min(-(-balanced // unit) * unit, n))
    return triple(counts)
