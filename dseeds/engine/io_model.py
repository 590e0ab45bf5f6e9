"""The tasks of a run, the bytes that they read and write, and the disk space that they take, before the run starts.

What regions publish for each other is described in `dseeds.engine.exchange`. For the rest, the model repeats by hand
what the tasks in `dseeds.engine.tasks` and `dseeds.engine.label_tasks` read and write: a change to their arrays needs
the same change here. Tests compare it with the bytes that runs counted.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dseeds.core.forks import cached_property
from dseeds.core.formatting import format_bytes
from dseeds.core.geometry import Box
from dseeds.engine.exchange import Exchange, Extract, label_reach
from dseeds.engine.memory_model import encoded_share
from dseeds.engine.phases import GRAPH, HISTOGRAM, MASK, PARTS, QUANTISE, Phase
from dseeds.engine.pipeline import DISCARDED, PER_THREAD
from dseeds.engine.publishing import pyramid_count
from dseeds.engine.report import format_traffic
from dseeds.engine.run import Run
from dseeds.engine.run_directory import DOCUMENT
from dseeds.engine.scratch import BIN_COUNTS, digits_name, source_name
from dseeds.engine.source_import import import_count, slab_count
from dseeds.engine.wavefront import first_needed, has_checkpoint, is_tall, layers_ahead, needed_within
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.storage.label_group import has_metadata
from dseeds.storage.location import is_remote
from dseeds.storage.zarr_arrays import Layout

EXPORT_STAGE = "export"
# The record of a run in the metadata of its labels, unless its cluster is large.
RECORD_BYTES = 8192
# What a part adds to a message: its description, a share of the index and codec headers.
PART_BYTES = 160
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
    """The bytes that the tasks of a run read and write, and the disk space that its arrays take.

    `threads` are those of the Dask cluster; 0 where it is not known how far regions will be apart, as of batch jobs.
    """

    def __init__(self, run: Run, threads: int = 0) -> None:
        self.run, self.threads = run, threads
        self.state = run.initial_state()
        self.job = self.state.job
        self.lattice, self.regions = self.job.lattice, self.job.regions
        self.rounds = self.job.planned_schedule
        # The windows are not known yet, so that there seem to be no rounds.
        reach = label_reach(masked=self.job.may_be_masked, has_joins=self.job.has_joins)
        self.exchange = Exchange(self.regions, self.rounds, self.job.channels, reach)
        self.image_bytes = math.prod(run.volume.shape) * run.volume.itemsize
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
            size = 0 if self.run.volume.readable_by_workers else self.image_bytes
            if self.run.mask is not None and not self.run.mask.readable_by_workers:
                size += math.prod(self.run.mask.own)
            add("import", imported, size, size)
        for phase in self.state.phases:
            add(phase.stage, len(self.regions), *self._phase_bytes(phase))
        return (*plans.values(), *self.final_stages(self.run.region_levels))

    def final_stages(self, region_levels: int = 0) -> tuple[StagePlan, ...]:
        """Return the stages after the labels are all written, or in memory: the rest of the pyramids, and the export.

        Regions have written so many levels of the pyramids.
        """
        stages = []
        if self.run.spec.pyramid:
            sizes = self._pyramid_bytes[region_levels:]
            tasks = pyramid_count(self.run, region_levels)
            stages.append(StagePlan(PYRAMID_STAGE, tasks, sum(sizes[:-1]), sum(sizes[1:])))
        if self.run.target.is_nifti:
            slabs = slab_count(self.job.shape, self.lattice.label_dtype.itemsize)
            stages.append(StagePlan(EXPORT_STAGE, slabs, self.label_bytes, self.label_bytes))
        return tuple(stages)

    def _phase_bytes(self, phase: Phase) -> tuple[int, int]:
        """Return the bytes that the tasks of a phase read and write, if images and states stay in memory."""
        mask = 0 if self.run.mask is None else math.prod(self.job.shape)
        if phase == MASK:
            return mask, 0
        # The first phase that needs the image reads it.
        image = self.image_bytes + mask if phase == next(p for p in self.state.phases if p != MASK) else 0
        if phase.is_search or phase == HISTOGRAM:
            name = digits_name(phase.turn) if phase.is_search else "intensities"
            return image, self.state.count_layouts[name].nbytes
        if phase == QUANTISE:
            return image, self.exchange.published_bytes(-1).total() + self.state.layouts[BIN_COUNTS].nbytes
        if phase.is_round:
            written = self.exchange.published_bytes(phase.turn) + self._checkpoints(phase.turn)
            return self.exchange.published_bytes(phase.turn - 1).total(), written.total()
        return self._labelling_bytes(phase)

    def _labelling_bytes(self, phase: Phase) -> tuple[int, int]:
        """Return the bytes read and written to make labels of codes, without tables and graphs, which vary by image."""
        read = self.exchange.published_bytes(len(self.rounds) - 1).total()
        if phase == PARTS:
            return read, self.job.store.layouts["parts"].nbytes
        if PARTS in self.state.phases:
            read += self.exchange.total_bytes(lambda number, _: [Extract("offsets", self._owners(number), 8)]).total()
        return read, 0 if phase == GRAPH else sum(self._pyramid_bytes[: self.run.region_levels + 1])

    @property
    def _pyramid_bytes(self) -> list[int]:
        """The bytes of the labels, and of each coarser level of their pyramids."""
        layouts = self.run.labels_layout, *self.run.pyramid_layouts
        return [layout.nbytes * len(self.job.labels) for layout in layouts]

    def _owners(self, number: int) -> Box:
        """Return the cells that may own voxels of a region."""
        return self.regions.box(number).grow(1, within=self.lattice.cells)

    def _checkpoints(self, turn: int) -> Counter[str]:
        """Return the bytes of all checkpoints after a round, by array, if states stay in memory."""
        return self._all_checkpoints(turn) if turn >= 0 and has_checkpoint(self.exchange, turn) else Counter()

    def _all_checkpoints(self, turn: int) -> Counter[str]:
        """Return the bytes of all checkpoints after a round, by array, if there is one."""
        if turn < 0:
            return Counter()
        return self.exchange.total_bytes(lambda number, _: self.exchange.checkpoint(number, turn))

    # Disk space

    @cached_property
    def scratch(self) -> int:
        """The largest size of scratch in bytes."""
        counts = self._encoded_bytes(*self.state.count_layouts)
        permanent = self._encoded_bytes(
            *map(source_name, range(self.job.channels)), "mask", "parts", "offsets", BIN_COUNTS
        )
        messages = [self._message_bytes(turn) for turn in range(-1, len(self.rounds))]
        kept = (sum(messages[first + 1 : last + 2]) for first, last in self._kept_rounds())
        # Those that are finished keep the last one. In work, the bins of states find no room in memory at the worst.
        work = self._share_in_work
        held = int(work * (messages[0] + self._held_bytes() + max(kept, default=0)) + (1 - work) * messages[-1])
        labels = self._encoded_bytes("labels")
        return permanent + counts + held + labels + DISK_BLOCK * len(self._layouts)

    def _held_bytes(self) -> int:
        """Return the largest size of the bins and histograms of all regions, as they are stored."""
        sizes = self.exchange.total_bytes(lambda number, _: self.exchange.held(number))
        encoded = sum(size * encoded_share(name, self.lattice) for name, size in sizes.items())
        return int(encoded) + (PART_BYTES + DISK_BLOCK) * len(self.regions)

    def _message_bytes(self, turn: int) -> int:
        """Return the largest size of all messages after a round, or after quantising as turn -1."""
        # States that find no room in memory are stored after each round.
        sizes = self.exchange.published_bytes(turn) + self._all_checkpoints(turn)
        encoded = sum(size * encoded_share(name, self.lattice) for name, size in sizes.items())

        def described(number: int, reader: int) -> Iterator[Extract]:
            for name, _, _ in self.exchange.published(number, reader, turn):
                yield Extract(name, Box((0, 0, 0), (1, 1, 1)), PART_BYTES)

        descriptions = self.exchange.total_bytes(described, self.exchange.reach(turn + 1)).total()
        return int(encoded) + descriptions + DISK_BLOCK * len(self.regions)

    def _kept_rounds(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last round of which a region may have messages, for each round that it publishes.

        Of regions that rest, older messages are kept instead of those that they do not publish.
        """
        for turn in range(len(self.rounds)):
            yield first_needed(self.exchange, turn - 1), turn

    @property
    def _share_in_work(self) -> float:
        """The largest share of the regions that are begun, and whose messages may be needed, at the same time."""
        layers = self.regions.counts[0]
        if not self.threads or not is_tall(self.exchange):
            return 1.0
        ahead = layers_ahead(self.exchange, PER_THREAD * self.threads)
        # Behind those in work lie their neighbours, and some whose messages are about to be removed.
        behind = needed_within(self.exchange) + -(-DISCARDED // (self.regions.counts[1] * self.regions.counts[2]))
        return min(1.0, (ahead + 1 + behind) / layers)

    @cached_property
    def output(self) -> int:
        """The largest size of the labels in bytes."""
        if not self.run.target.is_nifti:
            # With the metadata of the array and its group.
            layouts = self.run.labels_layout, *self.run.pyramid_layouts
            level = sum(self._size_of("labels", layout) for layout in layouts) + 2 * DISK_BLOCK
            return len(self.job.labels) * level + RECORD_BYTES
        # Gzip cannot make use of the slices above.
        share = min(1.0, 2 * encoded_share("labels", self.lattice)) if self.run.target.address.endswith("gz") else 1
        return int(self.label_bytes * share)

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


def check_disk(run: Run, in_memory: IoModel | None = None, *, threads: int = 0) -> None:
    """Raise a ValueError with the sizes if the disk has no room for the labels and scratch; see `IoModel`.

    A run in memory, whose model the caller has, has no scratch.
    """
    # A run that is resumed, or that this one replaces, has its space already.
    if run.folder.read(DOCUMENT) is not None:
        return
    model = in_memory or IoModel(run, threads)
    scratch = 0 if in_memory else model.scratch
    # An older output in Zarr is removed before the new one is written.
    is_replaced = not run.target.is_nifti and has_metadata(run.target.location)
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
