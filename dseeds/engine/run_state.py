"""The course of a run: what phase comes next, which regions have work in it, and what is known when it begins.

All of it follows from the records of the phases that are done. So a run can be taken up by anyone who reads them: the
next process of a batch, or the next Dask cluster.
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
from dseeds.engine.phases import (
    GRAPH,
    HISTOGRAM,
    LABEL,
    MASK,
    NUMBER,
    PARTS,
    QUANTISE,
    Phase,
    round_phases,
    window_phases,
)
from dseeds.engine.scratch import codes_name, core_name, digits_name, parse_name, shells_name, statistics_name
from dseeds.seeds.histograms import GREY_LEVELS, equalised_bins, otsu_threshold
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.seeds.schedule import Round, may_rest, schedule
from dseeds.storage.zarr_arrays import Layout

Marks = Mapping[int, str]
Flags = NDArray[np.bool_]
# Regions whose counts are read at once.
ROW = 16


@dataclass(frozen=True)
class ImageQuery:
    """What the image itself has to tell, besides windows.

    Attributes
    ----------
    mask : bool
        Whether there is a mask.
    foreground : bool
        Whether the mask is to be found: what is brighter than the background.
    equalised : bool
        Whether bins are to hold equally many voxels each.
    may_be_masked : bool
        Whether voxels may turn out to lie outside a mask: there is one, or values may be no numbers.
    """

    mask: bool = False
    foreground: bool = False
    equalised: bool = False
    may_be_masked: bool = False


@dataclass
class RunState:
    """How far a run is.

    Attributes
    ----------
    job : Job
        What tasks are told; right as far as the image has been looked at.
    search : WindowSearch
        The search for the intensity windows.
    wanted : Wanted
        What else the image has to tell.
    """

    job: Job
    search: WindowSearch
    wanted: ImageQuery = field(default_factory=ImageQuery)
    done: list[Phase] = field(default_factory=list)
    # How many supervoxels there are, and how many on each coarser level.
    counts: list[int] = field(default_factory=list)
    _parts: int = 0
    _quantised: bool = False
    _swept: list[Flags] = field(default_factory=list)
    _moved: list[Flags] = field(default_factory=list)
    _lasts: dict[int, NDArray[np.int8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.search.done:
            self.job = replace(self.job, windows=self.search.windows())

    @classmethod
    def of(cls, job: Job, search: WindowSearch, wanted: ImageQuery) -> RunState:
        """Follow a run as far as it has come."""
        course = cls(job, search, wanted)
        while (phase := course.current) is not None:
            record = job.journal.record(phase)
            if record is None:
                break
            course._follow(phase, record)
        return course

    @property
    def planned(self) -> list[Phase]:
        """All phases that may come."""
        rounds = schedule(self.job.lattice, self.job.channels)
        return self._phases(rounds, masked=self.wanted.may_be_masked)

    @property
    def phases(self) -> list[Phase]:
        """All phases, as far as is known: a constant image has no rounds, and only a mask makes parts."""
        certain = self.wanted.mask or self.wanted.foreground
        return self._phases(self._rounds, masked=self.job.masked if self._quantised else certain)

    @property
    def possible(self) -> list[Phase]:
        """All phases that may still come, as far as is known: values that are no numbers are a mask too."""
        return self._phases(self._rounds, masked=self.job.masked if self._quantised else self.wanted.may_be_masked)

    @property
    def _rounds(self) -> Sequence[Round]:
        return self.job.schedule if self.search.done else schedule(self.job.lattice, self.job.channels)

    def _phases(self, rounds: Sequence[Round], masked: bool) -> list[Phase]:
        return [
            *[MASK] * self.wanted.mask,
            *window_phases(self.search.passes),
            *[HISTOGRAM] * (self.wanted.foreground or self.wanted.equalised),
            QUANTISE,
            *round_phases(rounds),
            *[PARTS] * masked,
            *[NUMBER, GRAPH] * self.job.has_joins,
            LABEL,
        ]

    @property
    def current(self) -> Phase | None:
        """The phase that is at work, or is next; None if all are done."""
        return next((phase for phase in self.phases if phase not in self.done), None)

    @property
    def supervoxels(self) -> int:
        """How many supervoxels there are, as far as is known."""
        return self.counts[0] if self.counts else self.job.lattice.size

    @property
    def counted_parts(self) -> int:
        """How many supervoxels there were before any was joined to another."""
        return self._parts or self.job.lattice.size

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch, but for those of the source's sake."""
        stored = {name: layout for name, (_, layout) in self.job.store.layouts.items()}
        unused = [] if self.wanted.may_be_masked else ["parts", "offsets"]
        unused += [] if self.job.has_joins else ["numbers"]
        return {**{name: layout for name, layout in stored.items() if name not in unused}, **self.counted}

    @property
    def counted(self) -> dict[str, Layout]:
        """The arrays of what is counted before there are bins."""
        shapes = {digits_name(turn): (self.search.rows(turn), 1 << 16) for turn in range(self.search.passes)}
        if self.wanted.foreground or self.wanted.equalised:
            shapes["intensities"] = self.job.channels, GREY_LEVELS
        counts = self.job.regions.counts
        return {name: Layout.cut((*counts, *shape), np.int64, (1, 1, 1, *shape), 1) for name, shape in shapes.items()}

    def writer(self, name: str) -> Phase:
        """Tell which phase writes an array."""
        kind, turn = parse_name(name)
        known = {"intensities": HISTOGRAM, "labels": LABEL, "graph": GRAPH, "table": GRAPH}
        if kind == "digits":
            return Phase("window", turn)
        return known[kind] if kind in known else self.job.store.layouts[name].writer

    def regions(self, phase: Phase) -> list[int]:
        """List the regions that have work in a phase."""
        work = np.ones(len(self.job.regions), np.bool_)
        if phase.stage.startswith("sweep"):
            work = self._restless(phase.turn)
        if self.job.outside is not None and phase != MASK:
            work = work & ~self.job.outside_regions
        return [int(number) for number in np.flatnonzero(work)]

    def known(self, phase: Phase, number: int) -> WindowSearch | Rested | None:
        """Give what `perform` wants to know for a region's task of a phase."""
        if phase.stage == "window":
            return self.search
        if phase in (MASK, HISTOGRAM, QUANTISE, GRAPH):
            return None
        climbing = phase.stage == "merge" or phase.stage.startswith("sweep")
        return self._rested(phase.turn if climbing else len(self.job.schedule), number)

    def close(self, phase: Phase, marks: Marks) -> None:
        """Note that a phase is done in all its regions."""
        record = self._record(phase, marks)
        self.job.journal.close(phase, record, dict(marks))
        self._follow(phase, record)
        self._tidy(phase)

    def _record(self, phase: Phase, marks: Marks) -> dict[str, Any]:
        if phase.stage == "window":
            search = copy(self.search)
            search.narrow(self._total(digits_name(phase.turn)))
            return search.state()
        if phase in (MASK, QUANTISE):
            outside = [number for number, found in marks.items() if found in ("outside", "nothing")]
            if len(outside) == len(marks):
                raise NoFiniteValues
            masked = any(found != "all" for found in marks.values())
            return {"outside": self._pack(outside), "masked": masked or self.job.outside is not None}
        if phase == HISTOGRAM:
            return self._looked_at(self._total("intensities"))
        if phase.stage.startswith("sweep"):
            moved = [number for number, found in marks.items() if found == "moved"]
            return {"swept": self._pack(list(marks)), "moved": self._pack(moved)}
        if phase == PARTS:
            return {"counts": [write_offsets(self.job)]}
        if phase == GRAPH:
            return {"counts": write_tables(self.job, self.counted_parts, self.regions(GRAPH))}
        return {}

    def _follow(self, phase: Phase, record: Mapping[str, Any]) -> None:
        """Take in what a phase found."""
        self.done.append(phase)
        if phase.stage == "window":
            self.search.restore(record)
            if self.search.done:
                self.job = replace(self.job, windows=self.search.windows())
        elif phase in (MASK, QUANTISE):
            outside = self._unpack(record["outside"]) | self.job.outside_regions
            self._quantised = phase == QUANTISE
            self.job = replace(
                self.job, outside=pack_flags(outside) if outside.any() else None, masked=record["masked"]
            )
        elif phase == HISTOGRAM:
            self._take_tables(record)
        elif phase.stage.startswith("sweep"):
            self._swept.append(self._unpack(record["swept"]))
            self._moved.append(self._unpack(record["moved"]))
        elif phase in (PARTS, GRAPH):
            self.counts = list(record["counts"])
            if phase == PARTS:
                self._parts = self.counts[0]

    def _total(self, name: str) -> NDArray[np.int64]:
        """Add up what all regions counted, a row of regions at a time."""
        counts = self.job.regions.counts
        layout = self.counted[name]
        total = np.zeros(layout.shape[3:], np.int64)
        for z, y in itertools.product(range(counts[0]), range(counts[1])):
            for x in range(0, counts[2], ROW):
                row = Box((z, y, x), (z + 1, y + 1, min(x + ROW, counts[2])))
                numbers = [number for number in self.job.regions.numbers(row) if not self.job.is_outside(number)]
                alone = [self.job.regions.around(number, 0) for number in numbers]
                for box in [row] if len(numbers) == row.size else alone:
                    total += self.job.store.read(name, box).sum(axis=(0, 1, 2))
        return total

    def _looked_at(self, counts: NDArray[np.int64]) -> dict[str, Any]:
        """Draw from the histograms of the channels what bins and foreground are."""
        found: dict[str, Any] = {"tables": None, "thresholds": None}
        if self.wanted.equalised:
            found["tables"] = [equalised_bins(one).tolist() for one in counts]
        if self.wanted.foreground:
            found["thresholds"] = [int(otsu_threshold(one)) for one in counts]
        return found

    def _take_tables(self, record: Mapping[str, Any]) -> None:
        tables, thresholds = record["tables"], record["thresholds"]
        self.job = replace(
            self.job,
            tables=None if tables is None else tuple(np.array(one, np.uint8) for one in tables),
            thresholds=None if thresholds is None else tuple(thresholds),
        )

    # Rest

    def _restless(self, turn: int) -> Flags:
        """Tell in which regions something may move in a round.

        What moves there depends on the units of its window, and on the statistics of their cells and the cells around;
        these change with units that lie up to two cells further off.
        """
        if not may_rest(self.job.schedule, turn):
            return np.ones(len(self.job.regions), np.bool_)
        grown = (self._moved[turn - 1] | self._moved[turn - 2]).reshape(self.job.regions.counts)
        for axis in range(3):
            near = grown.copy()
            for shift in range(1, self._reach(turn) + 1):
                before, after = (slice(None),) * axis + (slice(shift, None),), (slice(None),) * axis + (slice(-shift),)
                near[before] |= grown[after]
                near[after] |= grown[before]
            grown = near
        return grown.reshape(-1)

    def _reach(self, turn: int) -> int:
        """Tell how many regions away something can matter to a region in a round."""
        round_ = self.job.schedule[min(turn, len(self.job.schedule) - 1)]
        parts = self.job.lattice.grids[round_.level].parts
        return max(-(-(-(-round_.halo // p) + 2) // k) for p, k in zip(parts, self.job.region, strict=True))

    def _last(self, turn: int) -> NDArray[np.int8]:
        """Give the last round before a round in which each region wrote its codes."""
        if turn in self._lasts:
            return self._lasts[turn]
        last = np.full(len(self.job.regions), -1, np.int8)
        for earlier in range(turn):
            last[self._swept[earlier]] = earlier
        if self.job.outside is not None:
            # Of them nothing is read.
            last[self.job.outside_regions] = turn - 1
        self._lasts[turn] = last
        return last

    def _rested(self, turn: int, number: int) -> Rested:
        last = self._last(turn)
        if turn == 0 or last.min() == turn - 1:
            return {}
        near = self.job.regions.within(number, self._reach(turn))
        return {region: int(last[region]) for region in near if last[region] < turn - 1}

    def _tidy(self, phase: Phase) -> None:
        """Remove from scratch what is wanted no more, not even to do again what the round before this one did."""
        names: list[str] = []
        if phase == QUANTISE:
            names = list(self.counted)
        elif phase.stage.startswith("sweep") and phase.turn > 0:
            turn = phase.turn
            wanted = [set(self._last(t).tolist()) for t in (turn - 1, turn, turn + 1)]
            gone = (wanted[0] | wanted[1]) - (wanted[1] | wanted[2]) - {-1}
            names = [
                statistics_name(turn - 1),
                core_name(turn),
                shells_name(turn),
                *(codes_name(u) for u in sorted(gone)),
            ]
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
