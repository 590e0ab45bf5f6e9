"""The state of a run: which phase comes next, which regions have work in it, and what their tasks take as input.

All of it follows from the records of the phases that are done, so any process that can read these can continue the
run: the next job of a batch, or the next Dask cluster.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.engine.job import Job, Rested, pack_flags, unpack_flags
from dseeds.engine.label_tables import write_offsets, write_tables
from dseeds.engine.phases import GRAPH, HISTOGRAM, LABEL, MASK, NUMBER, PARTS, QUANTISE, Phase, round_phases
from dseeds.engine.scratch import codes_name, core_name, digits_name, parse_name, shells_name, statistics_name
from dseeds.seeds.histograms import GREY_LEVELS, equalised_bins, otsu_threshold
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.seeds.schedule import Round, may_rest, schedule
from dseeds.storage.zarr_arrays import Layout

# The outcomes of a phase's finished tasks, by region.
Marks = Mapping[int, str]
Flags = NDArray[np.bool_]
# Regions whose counts are read at once.
ROW = 16


@dataclass(frozen=True)
class ImageQuery:
    """What has to be determined from the image, besides the intensity windows."""

    # Whether the user gives a mask.
    mask: bool = False
    # Whether the mask is determined from the image: the voxels brighter than the background.
    foreground: bool = False
    # Whether the bins hold equally many voxels each.
    equalised: bool = False
    # Whether voxels may turn out to be masked: there is a mask, or values may be NaN.
    may_be_masked: bool = False

    @property
    def needs_histogram(self) -> bool:
        """Whether intensities are counted after the windows are known."""
        return self.foreground or self.equalised


@dataclass
class RunState:
    """The progress of a run, derived from the records of its finished phases."""

    # Complete as far as the image has been analysed.
    job: Job
    search: WindowSearch
    query: ImageQuery = field(default_factory=ImageQuery)
    done: list[Phase] = field(default_factory=list)
    # The number of supervoxels, and of those on each coarser level, once they are known.
    counts: list[int] = field(default_factory=list)
    _part_count: int = 0
    _is_quantised: bool = False
    # By round: the regions that were swept, and those of them in which something moved.
    _swept: list[Flags] = field(default_factory=list)
    _moved: list[Flags] = field(default_factory=list)
    _last_sweeps: dict[int, NDArray[np.int8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._take_windows()

    def replay(self) -> None:
        """Apply the records of the phases that the journal has as done."""
        while (phase := self.current) is not None:
            record = self.job.journal.record(phase)
            if record is None:
                return
            self._apply(phase, record)

    # Phases

    @property
    def planned(self) -> list[Phase]:
        """All phases that could be needed, before anything is known of the image."""
        return self._phases(schedule(self.job.lattice, self.job.channels), masked=self.query.may_be_masked)

    @property
    def phases(self) -> list[Phase]:
        """All phases, as far as is known: a constant image has no rounds, and only a mask makes parts."""
        return self._phases(self._rounds, masked=self._is_masked(self.query.mask or self.query.foreground))

    @property
    def possible(self) -> list[Phase]:
        """All phases that may still be needed, as far as is known: NaN acts as a mask too."""
        return self._phases(self._rounds, masked=self._is_masked(self.query.may_be_masked))

    @property
    def current(self) -> Phase | None:
        """The first phase that is not done; None if all are done."""
        return next((phase for phase in self.phases if phase not in self.done), None)

    @property
    def _rounds(self) -> Sequence[Round]:
        return self.job.schedule if self.search.done else schedule(self.job.lattice, self.job.channels)

    def _is_masked(self, expected: bool) -> bool:
        return self.job.masked if self._is_quantised else expected

    def _phases(self, rounds: Sequence[Round], masked: bool) -> list[Phase]:
        return [
            *[MASK] * self.query.mask,
            *(Phase("window", turn) for turn in range(self.search.passes)),
            *[HISTOGRAM] * self.query.needs_histogram,
            QUANTISE,
            *round_phases(rounds),
            *[PARTS] * masked,
            *[NUMBER, GRAPH] * self.job.has_joins,
            LABEL,
        ]

    @property
    def supervoxels(self) -> int:
        """The number of supervoxels; that of cells until it is known."""
        return self.counts[0] if self.counts else self.job.lattice.size

    @property
    def part_count(self) -> int:
        """The number of supervoxels before any was joined to another."""
        return self._part_count or self.job.lattice.size

    # Arrays in scratch

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch, except those for the source and the target; see `Run.layouts`."""
        unused = [] if self.query.may_be_masked else ["parts", "offsets"]
        unused += [] if self.job.has_joins else ["numbers"]
        layouts = {name: array.layout for name, array in self.job.store.layouts.items() if name not in unused}
        return {**layouts, **self.count_layouts}

    @property
    def count_layouts(self) -> dict[str, Layout]:
        """The arrays of counts that are made before there are bins."""
        shapes = {digits_name(turn): (self.search.rows(turn), 1 << 16) for turn in range(self.search.passes)}
        if self.query.needs_histogram:
            shapes["intensities"] = self.job.channels, GREY_LEVELS
        counts = self.job.regions.counts
        return {name: Layout.cut((*counts, *shape), np.int64, (1, 1, 1, *shape), 1) for name, shape in shapes.items()}

    def writer(self, name: str) -> Phase:
        """Return the phase that writes an array."""
        kind, turn = parse_name(name)
        phases = {"intensities": HISTOGRAM, "labels": LABEL, "graph": GRAPH, "table": GRAPH}
        if kind == "digits":
            return Phase("window", turn)
        return phases[kind] if kind in phases else self.job.store.layouts[name].writer

    # Tasks

    def regions(self, phase: Phase) -> list[int]:
        """Return the regions that have work in a phase."""
        work = np.ones(len(self.job.regions), np.bool_)
        if phase.stage.startswith("sweep"):
            work = self._active_regions(phase.turn)
        if self.job.outside is not None and phase != MASK:
            work = work & ~self.job.outside_regions
        return [int(number) for number in np.flatnonzero(work)]

    def task_input(self, phase: Phase, number: int) -> WindowSearch | Rested | None:
        """Return the input of a region's task of a phase, besides the job."""
        if phase.stage == "window":
            return self.search
        if phase in (MASK, HISTOGRAM, QUANTISE, GRAPH):
            return None
        is_round = phase.stage == "merge" or phase.stage.startswith("sweep")
        return self._rested(phase.turn if is_round else len(self.job.schedule), number)

    def close(self, phase: Phase, marks: Marks) -> None:
        """Record that a phase is done in all its regions, and remove what is obsolete from scratch."""
        record = self._record(phase, marks)
        self.job.journal.close(phase, record, dict(marks))
        self._apply(phase, record)
        self._remove_obsolete(phase)

    # Records

    def _record(self, phase: Phase, marks: Marks) -> dict[str, Any]:
        """Summarise what the tasks of a phase found."""
        if phase.stage == "window":
            search = copy(self.search)
            search.narrow(self._total(digits_name(phase.turn)))
            return search.state()
        if phase in (MASK, QUANTISE):
            return self._mask_record(marks)
        if phase == HISTOGRAM:
            return self._histogram_record()
        if phase.stage.startswith("sweep"):
            moved = [number for number, outcome in marks.items() if outcome == "moved"]
            return {"swept": self._pack(list(marks)), "moved": self._pack(moved)}
        if phase == PARTS:
            return {"counts": [write_offsets(self.job)]}
        if phase == GRAPH:
            return {"counts": write_tables(self.job, self.part_count, self.regions(GRAPH))}
        return {}

    def _mask_record(self, marks: Marks) -> dict[str, Any]:
        outside = [number for number, outcome in marks.items() if outcome in ("outside", "nothing")]
        if len(outside) == len(marks):
            raise NoFiniteValues
        masked = any(outcome != "all" for outcome in marks.values())
        return {"outside": self._pack(outside), "masked": masked or self.job.outside is not None}

    def _histogram_record(self) -> dict[str, Any]:
        """Derive the bins and the thresholds from the histograms of the channels."""
        counts, query = self._total("intensities"), self.query
        return {
            "tables": [equalised_bins(channel).tolist() for channel in counts] if query.equalised else None,
            "thresholds": [int(otsu_threshold(channel)) for channel in counts] if query.foreground else None,
        }

    def _total(self, name: str) -> NDArray[np.int64]:
        """Sum the counts of all regions, a row of regions at a time."""
        regions = self.job.regions
        total = np.zeros(self.count_layouts[name].shape[3:], np.int64)
        for z, y in itertools.product(range(regions.counts[0]), range(regions.counts[1])):
            for x in range(0, regions.counts[2], ROW):
                row = Box((z, y, x), (z + 1, y + 1, min(x + ROW, regions.counts[2])))
                numbers = [number for number in regions.numbers(row) if not self.job.is_outside(number)]
                # Nothing is stored of regions outside the mask.
                boxes = [row] if len(numbers) == row.size else [regions.around(number, 0) for number in numbers]
                for box in boxes:
                    total += self.job.store.read(name, box).sum(axis=(0, 1, 2))
        return total

    def _apply(self, phase: Phase, record: Mapping[str, Any]) -> None:
        """Take over the record of a phase that is done."""
        self.done.append(phase)
        if phase.stage == "window":
            self.search.restore(record)
            self._take_windows()
        elif phase in (MASK, QUANTISE):
            outside = self._unpack(record["outside"]) | self.job.outside_regions
            packed = pack_flags(outside) if outside.any() else None
            self._is_quantised = phase == QUANTISE
            self.job = replace(self.job, outside=packed, masked=record["masked"])
        elif phase == HISTOGRAM:
            tables, thresholds = record["tables"], record["thresholds"]
            self.job = replace(
                self.job,
                tables=None if tables is None else tuple(np.array(table, np.uint8) for table in tables),
                thresholds=None if thresholds is None else tuple(thresholds),
            )
        elif phase.stage.startswith("sweep"):
            self._swept.append(self._unpack(record["swept"]))
            self._moved.append(self._unpack(record["moved"]))
        elif phase in (PARTS, GRAPH):
            self.counts = list(record["counts"])
            if phase == PARTS:
                self._part_count = self.counts[0]

    def _take_windows(self) -> None:
        if self.search.done:
            self.job = replace(self.job, windows=self.search.windows())

    # Regions at rest

    def _active_regions(self, turn: int) -> Flags:
        """Flag the regions in which something may move in a round.

        What moves in a region depends on the units of its window, and on the statistics of their cells and of the cells
        around these, which change with units up to two cells further away.
        """
        if not may_rest(self.job.schedule, turn):
            return np.ones(len(self.job.regions), np.bool_)
        active = (self._moved[turn - 1] | self._moved[turn - 2]).reshape(self.job.regions.counts)
        for axis in range(3):
            dilated = active.copy()
            for shift in range(1, self._reach(turn) + 1):
                before, after = (slice(None),) * axis + (slice(shift, None),), (slice(None),) * axis + (slice(-shift),)
                dilated[before] |= active[after]
                dilated[after] |= active[before]
            active = dilated
        return active.reshape(-1)

    def _reach(self, turn: int) -> int:
        """Return the distance in regions within which other regions affect a region in a round."""
        round_ = self.job.schedule[min(turn, len(self.job.schedule) - 1)]
        parts = self.job.lattice.grids[round_.level].parts
        return max(-(-(-(-round_.halo // p) + 2) // k) for p, k in zip(parts, self.job.region, strict=True))

    def _last_sweep(self, turn: int) -> NDArray[np.int8]:
        """Return for each region the last round before a round in which it wrote its codes."""
        if turn in self._last_sweeps:
            return self._last_sweeps[turn]
        last = np.full(len(self.job.regions), -1, np.int8)
        for earlier in range(turn):
            last[self._swept[earlier]] = earlier
        if self.job.outside is not None:
            # These regions are never read.
            last[self.job.outside_regions] = turn - 1
        self._last_sweeps[turn] = last
        return last

    def _rested(self, turn: int, number: int) -> Rested:
        last = self._last_sweep(turn)
        if turn == 0 or last.min() == turn - 1:
            return {}
        near = self.job.regions.within(number, self._reach(turn))
        return {region: int(last[region]) for region in near if last[region] < turn - 1}

    def _remove_obsolete(self, phase: Phase) -> None:
        """Remove the arrays from scratch that not even a repair of the phase before this one would read again."""
        names: list[str] = []
        if phase == QUANTISE:
            names = list(self.count_layouts)
        elif phase.stage.startswith("sweep") and phase.turn > 0:
            turn = phase.turn
            before, now, after = (set(self._last_sweep(t).tolist()) for t in (turn - 1, turn, turn + 1))
            obsolete = (before | now) - (now | after) - {-1}
            names = [statistics_name(turn - 1), core_name(turn), shells_name(turn), *map(codes_name, sorted(obsolete))]
        for name in names:
            # What cannot be removed now is removed with the run.
            with suppress(OSError):
                self.job.store.remove(name)

    def _pack(self, numbers: list[int]) -> str:
        flags = np.zeros(len(self.job.regions), np.bool_)
        flags[numbers] = True
        return base64.b64encode(pack_flags(flags)).decode()

    def _unpack(self, text: str) -> Flags:
        return unpack_flags(base64.b64decode(text), len(self.job.regions))
