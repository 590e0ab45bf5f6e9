"""How large a region may be: the memory of a task, before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client

from dseeds.core.checks import read_extents
from dseeds.core.geometry import Box, Lattice, Regions, Triple, Window, triple
from dseeds.engine.phases import sweep_phase
from dseeds.engine.scratch import Scratch, codes_name, core_name, histograms_name, shells_name, statistics_name
from dseeds.parallel.cluster import READ_AT_ONCE, Capacity, cluster_capacity, local_capacity, parse_memory
from dseeds.seeds.histograms import GREY_LEVELS
from dseeds.seeds.order_statistics import COPY_BYTES, DIGIT_BITS
from dseeds.seeds.schedule import schedule
from dseeds.storage.zarr_arrays import UNIT_CHUNK, WIDE, Layout, chunk_length, region_units

# What a worker holds before its first task: the interpreter, the libraries, the compiled kernels.
WORKER_BYTES = 350 << 20
# The share of a worker's memory that tasks are planned for; Dask pauses a worker at 80 %.
TASK_SHARE = 0.75
# Longer regions waste less on halos, shorter ones spread better; in voxels along an axis.
REGION_EXTENTS = (512, 448, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2)
SPREAD_EXTENT = 128
REGIONS_PER_WORKER = 4
# What a pass of the search for the intensity window counts for one value.
DIGIT_BYTES = 8 << DIGIT_BITS


@dataclass(frozen=True)
class TaskShape:
    """What the memory of tasks follows from, besides the lattice.

    Attributes
    ----------
    itemsize : int
        Bytes per voxel of the source, all channels together.
    channels : int
        Channels of the source.
    masked : bool
        Whether there may be a mask.
    counted : bool
        Whether levels of intensity are counted.
    has_joins : bool
        Whether supervoxels are joined to others.
    """

    itemsize: int
    channels: int = 1
    masked: bool = False
    counted: bool = False
    has_joins: bool = False


def task_bytes(
    lattice: Lattice,
    cells: Triple,
    load: TaskShape,
    chunks: Triple | None = None,
    shards: Triple | None = None,
    label_chunks: Triple | None = None,
) -> int:
    """Project the peak memory of the largest task.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    cells : tuple of int
        Cells per region along (z, y, x).
    load : Load
        What else there is to it.
    chunks, shards : tuple of int, optional
        The source's chunks along (z, y, x), which are decoded whole, and its shards.
    label_chunks : tuple of int, optional
        The labels' chunks along (z, y, x), which are encoded whole; by default those that are chosen for them.

    Returns
    -------
    int
        Bytes, without those of the worker itself.
    """
    return max(stage_bytes(lattice, cells, load, chunks, shards, label_chunks).values())


def stage_bytes(
    lattice: Lattice,
    cells: Triple,
    load: TaskShape,
    chunks: Triple | None = None,
    shards: Triple | None = None,
    label_chunks: Triple | None = None,
) -> dict[str, int]:
    """Project the peak memory of the largest task of every stage; see `task_bytes`."""
    regions = Regions(lattice, cells)
    extent = region_units(regions, lattice.grids[-1])
    chunks = chunks or triple([chunk_length(n, UNIT_CHUNK) for n in extent])
    source = Layout(lattice.shape, np.dtype((np.void, load.itemsize)), shards or chunks, chunks, WIDE)
    chunks = label_chunks or triple([chunk_length(n, UNIT_CHUNK) for n in extent])
    labels = Layout(lattice.shape, lattice.label_dtype, extent, triple(map(min, chunks, extent)), WIDE)
    task = _Task(regions, load, source, labels)
    # The regions of an axis differ in their halos at its ends, and the last ones in their length.
    telling = [sorted({0, min(1, n - 1), max(0, n - 2), n - 1}) for n in regions.counts]
    found: dict[str, int] = {}
    for index in itertools.product(*telling):
        for stage, size in task.moments(regions.box_at(triple(index))):
            found[stage] = max(int(size), found.get(stage, 0))
    return found


class _Task:
    """What tasks hold at those of their moments that may be the worst, in bytes."""

    def __init__(self, regions: Regions, load: TaskShape, source: Layout, labels: Layout) -> None:
        self.regions, self.lattice, self.load = regions, regions.lattice, load
        self.rounds = schedule(self.lattice, load.channels)
        self.extent = region_units(regions, self.lattice.grids[-1])
        stored = {name: layout for name, (_, layout) in Scratch("", regions, load.channels).layouts.items()}
        self.layouts = {**stored, "source": source, "labels": labels}

    def moments(self, region: Box) -> Iterator[tuple[str, float]]:
        """Tell for a region's tasks what each moment takes, and of which stage it is."""
        voxels, channels = self.lattice.grids[-1].units_of(region), self.load.channels
        # With which of them lie inside the mask.
        inside = 2 * voxels.size if self.load.masked else 0
        read = self._reading("source", voxels) + inside
        values = voxels.size * self.layouts["source"].dtype.itemsize + inside
        rows = channels * (1 if self.load.itemsize <= 2 * channels else 4)
        if self.load.masked:
            yield "mask", read
        yield "window", read
        yield "window", values + 4 * rows * DIGIT_BYTES
        window, bins = channels * _padded(voxels.shape), channels * voxels.size
        counts = math.prod(k + 2 for k in region.shape) * self.rounds[0].bins * 4
        finest = histograms_name(len(self.lattice.grids) - 3)
        stored = channels * voxels.size // 8 * 4 if finest in self.layouts else 0
        if self.load.counted:
            # For a slab, 16 bits a channel.
            slab = min(voxels.size, COPY_BYTES)
            yield "histogram", max(read, values + 3 * channels * slab + 2 * channels * GREY_LEVELS * 8)
        yield "quantise", bins + read
        yield "quantise", bins + self._writing("bins-0", voxels.size)
        yield "quantise", bins + 2 * window + stored + 2 * counts + self._writing(statistics_name(0), region.size)
        yield from self._naming(region)
        seen: set[tuple[Any, ...]] = set()
        for turn, round_ in enumerate(self.rounds):
            changes = turn + 1 < len(self.rounds) and self.rounds[turn + 1].bins != round_.bins
            if (round_.level, round_.bins, changes) not in seen:
                yield from self._sweeping(turn, region, changes)
            if turn and ("merge", round_.bins) not in seen:
                yield from self._merging(turn, region)
                seen.add(("merge", round_.bins))
            seen.add((round_.level, round_.bins, changes))

    def _naming(self, region: Box) -> Iterator[tuple[str, float]]:
        """Tell what making labels of codes takes."""
        grid, last = self.lattice.grids[-1], codes_name(len(self.rounds) - 1)
        voxels = grid.units_of(region)
        size, label = voxels.size, self.lattice.label_dtype.itemsize
        yield "label", self._reading(last, voxels)
        yield "label", _padded(voxels.shape) + size * label + self._writing("labels", size)
        near, far = (grid.units_of(region.grow(reach, within=self.lattice.cells)) for reach in (1, 2))
        number = "number" if self.load.has_joins else "label"
        if self.load.masked:
            # Windows of codes, and a number for each of their voxels.
            yield "parts", self._reading(last, near)
            yield "parts", 5 * near.size + self._writing("parts", region.size)
            yield number, self._reading(last, far)
            yield number, 5 * far.size + size * label
        if self.load.has_joins:
            yield number, _padded(voxels.shape) + size * label + self._writing("numbers", size)
            # What touches what takes some bytes for every voxel, where supervoxels are small.
            yield "graph", self._reading("numbers", voxels) + (2 * self.load.channels + 10) * size
            yield "label", 3 * size * label + self._reading("numbers", voxels)

    def _sweeping(self, turn: int, region: Box, changes: bool) -> Iterator[tuple[str, float]]:
        round_, grids = self.rounds[turn], self.lattice.grids
        stage = sweep_phase(self.rounds, turn).stage
        grid = grids[round_.level]
        window = Window.around(self.lattice, grid, region, round_.halo)
        units, size, left = _padded(window.box.shape), window.box.size, window.core.size
        yield stage, units + self._reading(codes_name(turn), window.box)
        yield stage, 2 * units + 2 * size
        if round_.level < len(grids) - 2:
            values = size * _itemsize(self.layouts[histograms_name(round_.level)])
            yield stage, 2 * units + self._reading(histograms_name(round_.level), window.box)
        else:
            box = grid.voxels_of(window.box)
            values = self.load.channels * _padded(box.shape)
            yield stage, 2 * units + values + self._reading("bins-0", box)
        held = 2 * units + values
        counts = window.cells.size * round_.bins * 4
        yield stage, held + self._reading(statistics_name(turn), window.cells)
        # The counts, a table of 16 bits, or 32 with channels, and the changes.
        yield stage, held + (2.5 if self.load.channels == 1 else 3) * counts
        held += counts + left
        yield stage, held + counts + left + self._writing(codes_name(turn), left)
        if changes:
            voxels = grids[-1].units_of(region)
            entered = (1 + self.load.channels) * _padded(voxels.shape)
            yield stage, held + counts + entered + self._reading("bins-0", voxels)
            window = Window.around(self.lattice, grids[-1], region, 0)
            counts = window.cells.size * self.rounds[turn + 1].bins * 4
            held += entered
        shell = math.prod(k + 2 for k in self.regions.cells) * self.rounds[min(turn + 1, len(self.rounds) - 1)].bins * 4
        shell -= region.size * 4 * round_.bins
        if turn + 1 < len(self.rounds):
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
        """Tell what reading a box takes, with what is read."""
        layout = self.layouts[name]
        sharded = layout.shard != layout.chunk
        # What is read of a shard is put together, from what it is encoded as, before it gets to where it is wanted.
        parts = (
            min(box.size, READ_AT_ONCE * math.prod(layout.shard[:3]))
            * (1 + encoded_share(name, self.lattice))
            * sharded
        )
        chunks = min(READ_AT_ONCE ** (1 + sharded), self._touched(name, box))
        return float(_itemsize(layout) * (box.size + parts + 2 * chunks * math.prod(layout.chunk[:3])))

    def _touched(self, name: str, box: Box) -> int:
        """Count the chunks that a box touches; of a source that is cut otherwise than regions are, at the most."""
        found = 1
        for lo, hi, chunk, n in zip(box.lo, box.hi, self.layouts[name].chunk, self.extent, strict=False):
            unknown = name == "source" and n % chunk
            found *= -(-(hi - lo - 1) // chunk) + 1 if unknown else -(-hi // chunk) - lo // chunk
        return int(found)

    def _writing(self, name: str, size: int) -> float:
        """Tell what writing so many units takes, without what is written."""
        layout = self.layouts[name]
        chunks = min(READ_AT_ONCE * math.prod(layout.chunk[:3]), math.prod(layout.shard[:3]))
        # All chunks of a shard are encoded before they are put together; and where a task is done again, there is an
        # older one.
        return _itemsize(layout) * (2 * chunks + 3 * encoded_share(name, self.lattice) * size)


def _itemsize(layout: Layout) -> int:
    """Count the bytes of a unit."""
    return int(math.prod(layout.shape[3:]) * layout.dtype.itemsize)


def _padded(shape: Triple) -> int:
    """Count the bytes of a window of `kernel.layout`."""
    return (shape[0] + 2) * (shape[1] + 2) * (shape[2] + 3)


def encoded_share(name: str, lattice: Lattice) -> float:
    """Tell which share of its bytes in memory an array takes at the most when it is encoded.

    Noise is what can be compressed least.
    """
    kind, _, turn = name.partition("-")
    if kind in ("statistics", "core"):
        # A count is as many bits as voxels of a cell there are in a bin, and some.
        bins = schedule(lattice)[int(turn)].bins
        return min(1.0, (5 + math.log2(1 + math.prod(lattice.step) / bins)) / 32)
    if kind in ("labels", "numbers"):
        return min(1.0, 3 / min(lattice.step) / lattice.label_dtype.itemsize)
    known = {"bins": 0.8, "histograms": 0.8, "codes": 0.8, "shells": 0.1, "digits": 0.15, "intensities": 0.5}
    return known.get(kind, 1.0)


def choose_region_shape(
    lattice: Lattice,
    load: TaskShape,
    has: Capacity,
    *,
    region: int | Sequence[int] | None = None,
    cut: Sequence[Triple | None] = (),
    whole: Triple = (1, 1, 1),
) -> Triple:
    """Choose the cells per region: as many as the workers' memory allows, but enough regions for all workers.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    load : Load
        What else tasks' memory follows from.
    has : Capacity
        What the workers can take.
    region : int or sequence of int, optional
        The user's choice in voxels, along all axes or along (z, y, x); rounded up to whole cells.
    cut : sequence of tuple of int, optional
        The source's chunks and shards and the labels' chunks; see `task_bytes`.
    whole : tuple of int
        Cells along (z, y, x) that a region is to be a multiple of, unless it is as long as the volume.

    Returns
    -------
    tuple of int
        Cells per region along (z, y, x).

    Raises
    ------
    ValueError
        If `region` is not positive, or it, or even the smallest region, does not fit the memory.
    """
    if region is None:
        candidates = [_multiple(_cells(lattice, extent), whole, lattice) for extent in REGION_EXTENTS]
    else:
        pairs = zip(lattice.cells, read_extents("region", region) or (), lattice.step, strict=True)
        candidates = [triple([min(n, -(-e // s)) for n, e, s in pairs])]
    needed, fitting = 0, None
    for cells in candidates:
        needed = worker_bytes(task_bytes(lattice, cells, load, *cut), has.threads_per_worker)
        spread = len(Regions(lattice, cells)) >= REGIONS_PER_WORKER * has.threads
        small = max(k * s for k, s in zip(cells, lattice.step, strict=True)) <= SPREAD_EXTENT
        fitting = cells if needed <= has.memory else None
        if fitting and (spread or small):
            break
    if fitting:
        return fitting
    shape = _by([k * s for k, s in zip(candidates[-1], lattice.step, strict=True)])
    raise ValueError(
        f"regions of {shape} voxels (z, y, x) need workers of {_mib(needed)}, but these have {_mib(has.memory)}: "
        f"give each more memory (--memory), if need be with fewer of them (--workers), or take "
        f"{'a smaller step (--step)' if region is None else 'smaller regions (--region)'}; chunks of the source count "
        f"too."
    )


def resolve_capacity(client: Client | None, workers: int | None, memory: int | str | None) -> Capacity:
    """Find out what there is to work with, before anything starts; see `segment` for the parameters."""
    limit = None if memory is None else parse_memory(memory)
    if client is None:
        return local_capacity(workers, limit)
    if workers is not None:
        raise ValueError("workers= makes a local cluster of its own; it cannot be given together with client=.")
    found = cluster_capacity(client)
    return replace(found, memory=min(limit or found.memory, found.memory))


def shard_alignment(lattice: Lattice, shards: Triple | None) -> Triple:
    """Give the cells along (z, y, x) that regions must be multiples of to be made up of whole shards.

    Examples
    --------
    >>> whole_cells(Lattice((999, 999, 999), (16, 16, 10)), (256, 100, 64))
    (16, 25, 32)
    """
    if shards is None:
        return 1, 1, 1
    return triple([n // math.gcd(n, s) for n, s in zip(shards, lattice.step, strict=True)])


def choose_label_layout(
    lattice: Lattice, cells: Triple, shards: Triple | None, chunks: Triple | None
) -> dict[str, Triple]:
    """Choose the shards and the chunks of the labels: by default a shard is a region, a chunk about 64 voxels long.

    Raises
    ------
    ValueError
        If regions are not whole shards, or shards not whole chunks.
    """
    region = triple([k * s for k, s in zip(cells, lattice.step, strict=True)])
    if shards is not None:
        for length, part, k, n in zip(region, shards, cells, lattice.cells, strict=True):
            if length % part and k < n:
                raise ValueError(
                    f"shards of {_by(shards)} voxels (z, y, x) do not make up regions of {_by(region)}: take shards "
                    f"that are multiples of the step, or leave the region to dseeds."
                )
    shard = shards or region
    if chunks is None:
        chunks = triple([chunk_length(n, UNIT_CHUNK) for n in shard])
    if any(n % c for n, c in zip(shard, chunks, strict=True)):
        raise ValueError(
            f"chunks of {_by(chunks)} voxels (z, y, x) do not make up shards of {_by(shard)}: take chunks that divide "
            f"them."
        )
    return {"shard": shard, "chunk": chunks}


def worker_bytes(task: int, threads: int) -> int:
    """Project the memory that a worker needs for a task of so many bytes in each of its threads."""
    return int((WORKER_BYTES + task * threads) / TASK_SHARE)


def thread_budget(has: Capacity) -> int:
    """Tell what each thread's task may hold in a worker."""
    return max(1, (int(has.memory * TASK_SHARE) - WORKER_BYTES) // has.threads_per_worker)


def _cells(lattice: Lattice, extent: int) -> Triple:
    """Give cells per region for an extent in voxels: whole chunks of about 64 voxels, and not more than there are."""
    counts = []
    for n, s in zip(lattice.cells, lattice.step, strict=True):
        chunk = min(n, max(1, round(min(UNIT_CHUNK, extent) / s)))
        counts.append(min(chunk * max(1, extent // (chunk * s)), n))
    return triple(counts)


def _multiple(cells: Triple, whole: Triple, lattice: Lattice) -> Triple:
    """Round cells per region to a multiple, up where there would be none."""
    rounded = [max(k // w, 1) * w for k, w in zip(cells, whole, strict=True)]
    return triple([n if k >= n else r if r < n else n for k, r, n in zip(cells, rounded, lattice.cells, strict=True)])


def _by(values: Iterable[int]) -> str:
    return " x ".join(map(str, values))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
