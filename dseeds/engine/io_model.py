"""The tasks of a run, the bytes that they read and write, and the disk space that they take, before the run starts.

The model repeats by hand what the tasks in `dseeds.engine.tasks` and `dseeds.engine.label_tasks` read and write: a
change to their arrays or halos needs the same change here. Tests compare it with the bytes that runs counted.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dseeds.core.formatting import format_bytes
from dseeds.core.geometry import Box, Triple, Window, triple
from dseeds.engine.job import box_of_parents, parents_in
from dseeds.engine.memory_model import encoded_share
from dseeds.engine.phases import GRAPH, LABEL, MASK, NUMBER, PARTS, QUANTISE, Phase
from dseeds.engine.publishing import pyramid_count
from dseeds.engine.report import format_traffic
from dseeds.engine.run import Run
from dseeds.engine.run_directory import DOCUMENT
from dseeds.engine.scratch import (
    bins_name,
    codes_name,
    core_name,
    digits_name,
    histograms_name,
    shells_name,
    source_name,
    statistics_name,
)
from dseeds.engine.source_import import import_count, slab_count
from dseeds.io.pyramid import PYRAMID_STAGE, cut_regions
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.schedule import schedule
from dseeds.storage.location import is_remote
from dseeds.storage.zarr_arrays import Layout

EXPORT_STAGE = "export"
# The record of a run in the metadata of its labels, unless its cluster is large.
RECORD_BYTES = 8192
# The smallest size of a file on most disks, and what a chunk adds to its shard: an index entry and codec headers.
DISK_BLOCK, CHUNK_BYTES = 4096, 40


@dataclass(frozen=True)
class StagePlan:
    """A stage of a future run, with the bytes that it will read and write, uncompressed; see `StageReport`."""

    name: str
    # Regions in which nothing moves any more are skipped, so fewer may be done.
    tasks: int
    read: int
    written: int

    def line(self, width: int) -> str:
        """Return a line of text, with the name padded to `width`."""
        return f"  {self.name:<{width}}  {self.tasks:>6} tasks  {format_traffic(self.read, self.written)}"


class IoModel:
    """The bytes that the tasks of a run read and write, and the disk space that its arrays take."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state = run.initial_state()
        self.job = self.state.job
        self.lattice, self.regions = self.job.lattice, self.job.regions
        self.rounds = schedule(self.lattice, self.job.channels)
        self.image_bytes = math.prod(run.image.shape) * run.image.itemsize
        self.label_bytes = run.labels_layout.nbytes * len(self.job.labels)

    # Tasks and their uncompressed bytes

    @cached_property
    def stages(self) -> tuple[StagePlan, ...]:
        """All stages in the order in which they begin."""
        plans: dict[str, StagePlan] = {}

        def add(stage: str, tasks: int, read: int, written: int) -> None:
            before = plans.get(stage, StagePlan(stage, 0, 0, 0))
            plans[stage] = StagePlan(stage, before.tasks + tasks, before.read + read, before.written + written)

        if imported := import_count(self.run):
            size = 0 if self.run.image.readable_by_workers else self.image_bytes
            if self.run.mask is not None and not self.run.mask.readable_by_workers:
                size += math.prod(self.run.mask.own)
            add("import", imported, size, size)
        for phase in self.state.phases:
            add(phase.stage, len(self.regions), *self._phase_bytes(phase))
        return (*plans.values(), *self.final_stages)

    @property
    def final_stages(self) -> tuple[StagePlan, ...]:
        """The stages after the labels are all written, or in memory: their pyramids, and the export."""
        stages = []
        if self.run.spec.pyramid:
            sizes = [layout.nbytes * len(self.job.labels) for layout in (self.run.labels_layout, *self._coarser)]
            stages.append(StagePlan(PYRAMID_STAGE, pyramid_count(self.run), sum(sizes[:-1]), sum(sizes[1:])))
        if self.run.target.is_nifti:
            slabs = slab_count(self.job.shape, self.lattice.label_dtype.itemsize)
            stages.append(StagePlan(EXPORT_STAGE, slabs, self.label_bytes, self.label_bytes))
        return tuple(stages)

    def _phase_bytes(self, phase: Phase) -> tuple[int, int]:
        """Return the bytes that the tasks of a phase read and write."""
        written = sum(array.layout.nbytes for array in self.job.store.layouts.values() if array.writer == phase)
        mask = 0 if self.run.mask is None else math.prod(self.job.shape)
        if phase == MASK:
            return mask, 0
        if phase.stage in ("window", "histogram"):
            name = digits_name(phase.turn) if phase.stage == "window" else "intensities"
            return self.image_bytes + mask, self.state.count_layouts[name].nbytes
        if phase == QUANTISE:
            return self.image_bytes + mask, written
        if phase in (PARTS, NUMBER, GRAPH, LABEL):
            return self._labelling_bytes(phase)
        return (self._merged_bytes if phase.stage == "merge" else self._swept_bytes)(phase.turn), written

    def _labelling_bytes(self, phase: Phase) -> tuple[int, int]:
        """Return the bytes read and written to make labels of codes, without tables and graphs, which vary by image."""
        voxels, layouts = math.prod(self.job.shape), self.job.store.layouts
        grid, cells = self.lattice.grids[-1], self.lattice.cells

        def around(reach: int) -> int:
            return self._sum(lambda region: grid.units_of(region.grow(reach, within=cells)))

        if phase == PARTS:
            return around(1), layouts["parts"].layout.nbytes
        numbers = layouts["numbers"].layout.nbytes
        if phase == GRAPH:
            item = self.lattice.label_dtype.itemsize
            window = self._sum(lambda region: _with_next(grid.units_of(region), self.job.shape))
            return window * item + voxels * self.job.channels, 0
        if phase == LABEL and self.job.has_joins:
            return numbers, self.label_bytes
        read = voxels
        if PARTS in self.state.phases:
            read = around(2) + self._sum(lambda region: region.grow(1, within=cells)) * 8
        return read, numbers if phase == NUMBER else self.label_bytes

    def _swept_bytes(self, turn: int) -> int:
        """Return the bytes that a round reads."""
        round_, grids = self.rounds[turn], self.lattice.grids
        grid, last = grids[round_.level], self.rounds[turn - 1]

        def window(region: Box) -> Window:
            return Window.around(self.lattice, grid, region, round_.halo)

        read = self._sum(lambda region: window(region).cells) * round_.bins * 4
        if turn > 0 and last.level == round_.level:
            read += self._sum(lambda region: window(region).box)
        elif turn > 0:
            coarser = grids[last.level]
            read += self._sum(lambda region: box_of_parents(parents_in(grid, coarser, window(region).box)))
        if round_.level < len(grids) - 2:
            wide = 32 * self.job.channels * histogram_dtype(grid).itemsize
            read += self._sum(lambda region: window(region).box) * wide
        else:
            read += self._sum(lambda region: grid.voxels_of(window(region).box)) * self.job.channels
        if turn + 1 < len(self.rounds) and self.rounds[turn + 1].bins != round_.bins:
            read += math.prod(self.job.shape) * self.job.channels
        return read

    def _merged_bytes(self, turn: int) -> int:
        """Return the bytes that the merging before a round reads."""
        layouts = self.job.store.layouts
        around = self._sum(lambda region: self.regions.around(self.regions.touching(region)[0], 1))
        read = around * layouts[shells_name(turn)].layout.nbytes // len(self.regions)
        read += layouts[core_name(turn)].layout.nbytes
        has_same_bins = self.rounds[turn - 1].bins == self.rounds[turn].bins
        return read + has_same_bins * layouts[statistics_name(turn - 1)].layout.nbytes

    def _sum(self, box: Callable[[Box], Box]) -> int:
        """Return the sum over all regions of the size of a box that depends on the region.

        Its extent along an axis depends on the region's index along that axis alone, so the sum is a product of sums.
        """
        sums = []
        for axis, count in enumerate(self.regions.counts):
            indices = [triple([i if a == axis else 0 for a in range(3)]) for i in range(count)]
            sums.append(sum(box(self.regions.box_at(index)).shape[axis] for index in indices))
        return math.prod(sums)

    # Disk space

    @cached_property
    def scratch(self) -> int:
        """The largest size of scratch in bytes; `RunState` decides what it holds at a time."""
        last = len(self.rounds) - 1
        channels = range(self.job.channels)
        permanent = [
            *map(bins_name, channels),
            *map(source_name, channels),
            "mask",
            "parts",
            "offsets",
            *(histograms_name(level) for level in range(len(self.lattice.grids))),
        ]
        moments = [
            [*self.state.count_layouts, statistics_name(0)],
            [codes_name(last - 1), codes_name(last), statistics_name(last), "numbers", "labels"],
        ]
        for turn in range(last + 1):
            both = [name for t in (turn, turn + 1) for name in (core_name(t), shells_name(t))]
            moments.append(
                [
                    statistics_name(turn - 1),
                    statistics_name(turn),
                    *both,
                    *(codes_name(t) for t in (turn - 2, turn - 1, turn)),
                ]
            )
        return max(self._encoded_bytes(*permanent, *moment) for moment in moments) + DISK_BLOCK * len(self._layouts)

    @cached_property
    def output(self) -> int:
        """The largest size of the labels in bytes."""
        if not self.run.target.is_nifti:
            # With the metadata of the array and its group.
            layouts = self.run.labels_layout, *self._coarser
            level = sum(self._size_of("labels", layout) for layout in layouts) + 2 * DISK_BLOCK
            return len(self.job.labels) * level + RECORD_BYTES
        # Gzip cannot make use of the slices above.
        share = min(1.0, 2 * encoded_share("labels", self.lattice)) if self.run.target.address.endswith("gz") else 1
        return int(self.label_bytes * share)

    @property
    def _coarser(self) -> list[Layout]:
        """The layouts of the coarser levels of the labels' pyramid."""
        full, layouts = self.run.labels_layout, []
        for level in self.run.spec.pyramid:
            chunk, shard = cut_regions(level.shape, full.chunk, full.shard)
            layouts.append(replace(full, shape=level.shape, shard=shard, chunk=chunk))
        return layouts

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {**self.state.layouts, **self.run.layouts}

    def _encoded_bytes(self, *names: str) -> int:
        return sum(self._size_of(name, self._layouts[name]) for name in names if name in self._layouts)

    def _size_of(self, name: str, layout: Layout) -> int:
        pairs = list(zip(layout.shape, layout.shard, layout.chunk, strict=True))
        shards = math.prod(-(-n // s) for n, s, _ in pairs)
        chunks = shards * math.prod(s // c for _, s, c in pairs)
        size = float(layout.nbytes * encoded_share(name, self.lattice))
        if name.startswith(("digits", "intensities")):
            # At most as many counts as voxels are not zero.
            size = min(size, 3 * math.prod(self.job.shape))
        return int(size) + DISK_BLOCK * shards + CHUNK_BYTES * chunks


def _with_next(box: Box, shape: Triple) -> Box:
    """Return a box with the next voxels towards higher z, y and x, within the volume."""
    return Box(box.lo, box.grow(1, within=shape).hi)


def check_disk(run: Run, in_memory: IoModel | None = None) -> None:
    """Raise a ValueError with the sizes if the disk has no room for the labels and scratch.

    A run in memory, whose model the caller has, has no scratch.
    """
    # A run that is resumed, or that this one replaces, has its space already.
    if run.folder.read(DOCUMENT) is not None:
        return
    model = in_memory or IoModel(run)
    scratch = 0 if in_memory else model.scratch
    # An older output in Zarr is removed before the new one is written.
    is_replaced = not run.target.is_nifti and run.target.location.read("zarr.json") is not None
    sizes: dict[int, list[tuple[Path, int]]] = {}
    for address, size in ((run.scratch, scratch), (run.target.address, 0 if is_replaced else model.output)):
        if not is_remote(address):
            folder = next(path for path in Path(address).parents if path.is_dir())
            sizes.setdefault(folder.stat().st_dev, []).append((folder, size))
    for folders in sizes.values():
        needed, free = sum(size for _, size in folders), shutil.disk_usage(folders[0][0]).free
        if needed > free:
            raise ValueError(
                f"the run may need {format_bytes(needed)} on the disk of {folders[0][0]} (scratch takes up to "
                f"{format_bytes(scratch)}, the labels {format_bytes(model.output)}), but "
                f"{format_bytes(free)} are free: free some, or put scratch (--scratch) or the target elsewhere."
            )
