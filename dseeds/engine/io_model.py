"""What a run needs: the tasks, the bytes that they read and write, and room on the disk, all before anything runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dseeds.core.formatting import format_bytes
from dseeds.core.geometry import Box, Grid, Triple, Window, per_axis, triple
from dseeds.engine.job import parent_box
from dseeds.engine.memory_model import encoded_share
from dseeds.engine.phases import GRAPH, LABEL, MASK, NUMBER, PARTS, QUANTISE, Phase
from dseeds.engine.publishing import pyramid_count
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
from dseeds.io.pyramid import cut_regions
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.schedule import schedule
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.zarr_arrays import Layout

# What is kept of a run with its labels, but for the workers of a large cluster.
RECORD_BYTES = 8192
# What a file takes at least on most disks, and a chunk in its shard's index, with the headers of its codecs.
DISK_BLOCK, CHUNK_BYTES = 4096, 40


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run to come; see `StageReport`.

    Attributes
    ----------
    name : str
        The stage.
    tasks : int
        Its tasks. Where nothing moves any more, fewer are done.
    read, written : int
        Bytes that they will read and write, as they are in memory.
    """

    name: str
    tasks: int
    read: int
    written: int

    def line(self, width: int) -> str:
        """Say it in a line, the name as wide as is given."""
        return (
            f"  {self.name:<{width}}  {self.tasks:>6} tasks  {self.read / 2**20:8.0f} MiB read  "
            f"{self.written / 2**20:8.0f} MiB written"
        )


class IoModel:
    """What tasks read and write, and what that takes on the disk."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.course = run.course(followed=False)
        self.job = self.course.job
        self.lattice, self.regions = self.job.lattice, self.job.regions
        self.rounds = schedule(self.lattice, self.job.channels)
        self.image = math.prod(run.image.shape) * run.image.itemsize
        self.labels = run.labels_layout.nbytes * len(self.job.labels)

    # Tasks, and bytes as they are in memory.

    @cached_property
    def stages(self) -> tuple[StagePlan, ...]:
        """All stages in order of their beginning."""
        found: dict[str, StagePlan] = {}

        def add(stage: str, tasks: int, read: int, written: int) -> None:
            before = found.get(stage, StagePlan(stage, 0, 0, 0))
            found[stage] = StagePlan(stage, before.tasks + tasks, before.read + read, before.written + written)

        if imported := import_count(self.run):
            size = 0 if self.run.image.readable_by_workers else self.image
            if self.run.mask is not None and not self.run.mask.readable_by_workers:
                size += math.prod(self.run.mask.own)
            add("import", imported, size, size)
        for phase in self.course.phases:
            add(phase.stage, len(self.regions), *self._traffic(phase))
        if self.run.pyramid:
            sizes = [layout.nbytes * len(self.job.labels) for layout in (self.run.labels_layout, *self._coarser)]
            add("pyramid", pyramid_count(self.run), sum(sizes[:-1]), sum(sizes[1:]))
        if self.run.nifti:
            add("export", slab_count(self.job.shape, self.lattice.label_dtype.itemsize), self.labels, self.labels)
        return tuple(found.values())

    def _traffic(self, phase: Phase) -> tuple[int, int]:
        """Tell what all regions' tasks of a phase read and write."""
        voxels, layouts = math.prod(self.job.shape), self.job.store.layouts
        mask = 0 if self.run.mask is None else voxels
        if phase == MASK:
            return mask, 0
        if phase.stage in ("window", "histogram"):
            name = digits_name(phase.turn) if phase.stage == "window" else "intensities"
            return self.image + mask, self.course.counted[name].nbytes
        if phase == QUANTISE:
            first = [name for name, (writer, _) in layouts.items() if writer == phase]
            return self.image + mask, sum(layouts[name][1].nbytes for name in first)
        if phase in (PARTS, NUMBER, GRAPH, LABEL):
            return self._naming(phase)
        written = sum(layout.nbytes for writer, layout in layouts.values() if writer == phase)
        return (self._merged if phase.stage == "merge" else self._swept)(phase.turn), written

    def _naming(self, phase: Phase) -> tuple[int, int]:
        """Tell what making labels of codes reads and writes; nothing of tables and graphs, which the image makes."""
        voxels, layouts = math.prod(self.job.shape), self.job.store.layouts
        grid, cells = self.lattice.grids[-1], self.lattice.cells

        def around(reach: int) -> int:
            return self._sum(lambda region: grid.units_of(region.grow(reach, within=cells)))

        if phase == PARTS:
            return around(1), layouts["parts"][1].nbytes
        numbers = layouts["numbers"][1].nbytes
        if phase == GRAPH:
            item = self.lattice.label_dtype.itemsize
            window = self._sum(lambda region: _upper(grid.units_of(region), self.job.shape))
            return window * item + voxels * self.job.channels, 0
        if phase == LABEL and self.job.has_joins:
            return numbers, self.labels
        read = voxels
        if PARTS in self.course.phases:
            read = around(2) + self._sum(lambda region: region.grow(1, within=cells)) * 8
        return read, numbers if phase == NUMBER else self.labels

    def _swept(self, turn: int) -> int:
        """Tell what a round reads."""
        round_, grids = self.rounds[turn], self.lattice.grids
        grid, last = grids[round_.level], self.rounds[turn - 1]

        def window(region: Box) -> Window:
            return Window.around(self.lattice, grid, region, round_.halo)

        read = self._sum(lambda region: window(region).cells) * round_.bins * 4
        if turn > 0 and last.level == round_.level:
            read += self._sum(lambda region: window(region).box)
        elif turn > 0:
            read += self._sum(lambda region: _parents(grid, grids[last.level], window(region).box))
        if round_.level < len(grids) - 2:
            wide = 32 * self.job.channels * histogram_dtype(grid).itemsize
            read += self._sum(lambda region: window(region).box) * wide
        else:
            read += self._sum(lambda region: grid.voxels_of(window(region).box)) * self.job.channels
        if turn + 1 < len(self.rounds) and self.rounds[turn + 1].bins != round_.bins:
            read += math.prod(self.job.shape) * self.job.channels
        return read

    def _merged(self, turn: int) -> int:
        """Tell what merging before a round reads."""
        layouts = self.job.store.layouts
        around = self._sum(lambda region: self.regions.around(self._number(region), 1))
        read = around * layouts[shells_name(turn)][1].nbytes // len(self.regions) + layouts[core_name(turn)][1].nbytes
        same = self.rounds[turn - 1].bins == self.rounds[turn].bins
        return read + same * layouts[statistics_name(turn - 1)][1].nbytes

    def _number(self, region: Box) -> int:
        return self.regions.touching(region)[0]

    def _sum(self, box: Callable[[Box], Box]) -> int:
        """Add up the sizes of a box that belongs to each region.

        Its extent along an axis follows from the region's place along that axis, so that the sum is a product of sums.
        """
        sums = []
        for axis, count in enumerate(self.regions.counts):
            places = [triple([i if a == axis else 0 for a in range(3)]) for i in range(count)]
            sums.append(sum(box(self.regions.box_at(place)).shape[axis] for place in places))
        return math.prod(sums)

    # Room on the disk.

    @cached_property
    def scratch(self) -> int:
        """What scratch takes at the most; what is there when is `Course`'s to say."""
        last = len(self.rounds) - 1
        every = range(self.job.channels)
        always = [
            *map(bins_name, every),
            *map(source_name, every),
            "mask",
            "parts",
            "offsets",
            *(histograms_name(level) for level in range(len(self.lattice.grids))),
        ]
        moments = [
            [*self.course.counted, statistics_name(0)],
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
        return max(self._encoded(*always, *moment) for moment in moments) + DISK_BLOCK * len(self._layouts)

    @cached_property
    def output(self) -> int:
        """What the labels take at the most."""
        if not self.run.nifti:
            # With the metadata of the array and of its group.
            layouts = self.run.labels_layout, *self._coarser
            level = sum(self._size_of("labels", layout) for layout in layouts) + 2 * DISK_BLOCK
            return len(self.job.labels) * level + RECORD_BYTES
        # Gzip knows nothing of the neighbours above.
        return int(
            self.labels * (min(1.0, 2 * encoded_share("labels", self.lattice)) if self.run.target.endswith("gz") else 1)
        )

    @property
    def _coarser(self) -> list[Layout]:
        """How the levels of the labels' pyramid are cut."""
        full, found = self.run.labels_layout, []
        for level in self.run.pyramid:
            chunk, shard = cut_regions(level.shape, full.chunk, full.shard)
            found.append(replace(full, shape=level.shape, shard=shard, chunk=chunk))
        return found

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {**self.course.layouts, **self.run.layouts}

    def _encoded(self, *names: str) -> int:
        return sum(self._size_of(name, self._layouts[name]) for name in names if name in self._layouts)

    def _size_of(self, name: str, layout: Layout) -> int:
        pairs = list(zip(layout.shape, layout.shard, layout.chunk, strict=True))
        shards = math.prod(-(-n // s) for n, s, _ in pairs)
        chunks = shards * math.prod(s // c for _, s, c in pairs)
        size = float(layout.nbytes * encoded_share(name, self.lattice))
        if name.startswith(("digits", "intensities")):
            # There are no more counts than voxels.
            size = min(size, 3 * math.prod(self.job.shape))
        return int(size) + DISK_BLOCK * shards + CHUNK_BYTES * chunks


def _upper(box: Box, shape: Triple) -> Box:
    """Give a box with one voxel more at the upper ends, where there is one."""
    return Box(box.lo, box.grow(1, within=shape).hi)


def _parents(grid: Grid, coarser: Grid, box: Box) -> Box:
    """Find the box of coarser units that units lie in."""
    return parent_box(per_axis(p[a:h] for p, a, h in zip(grid.parents(coarser), box.lo, box.hi, strict=True)))


def check_disk(run: Run) -> None:
    """Refuse a run whose scratch and labels the disk has no room for.

    Raises
    ------
    ValueError
        That says what is needed and what is free.
    """
    # A run that is gone on with, or that makes way for this one, has what it takes already.
    if run.folder.read(DOCUMENT) is not None:
        return
    needs = IoModel(run)
    # An older output in Zarr goes before the new one comes.
    replaced = not run.nifti and open_location(run.target).read("zarr.json") is not None
    wanted: dict[int, list[tuple[Path, int]]] = {}
    for address, size in ((run.scratch, needs.scratch), (run.target, 0 if replaced else needs.output)):
        if not is_remote(address):
            folder = next(path for path in Path(address).parents if path.is_dir())
            wanted.setdefault(folder.stat().st_dev, []).append((folder, size))
    for places in wanted.values():
        needed, free = sum(size for _, size in places), shutil.disk_usage(places[0][0]).free
        if needed > free:
            raise ValueError(
                f"the run may need {format_bytes(needed)} on the disk of {places[0][0]} (scratch takes up to "
                f"{format_bytes(needs.scratch)}, the labels {format_bytes(needs.output)}), but "
                f"{format_bytes(free)} are free: free some, or put scratch (--scratch) or the target elsewhere."
            )
