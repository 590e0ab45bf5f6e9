"""The course of a run: what phase comes next, which regions have work in it, and what is known when it begins.

All of it follows from the records of the phases that are done. So a run can be taken up by anyone who reads them: the
next process of a batch, or the next Dask cluster.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.lattice import Box
from dseeds.phases import LABEL, QUANTISE, Phase, climbing_phases, window_phases
from dseeds.rounds import Round, may_rest, schedule
from dseeds.stages import Job, Rested
from dseeds.store import Layout, codes, core, digit_rows, digits, shells, statistics
from dseeds.windows import NothingFinite, OrderStatistics

Marks = Mapping[int, str]
Flags = NDArray[np.bool_]
# Regions whose counts are read at once.
ROW = 16


@dataclass
class Course:
    """How far a run is.

    Attributes
    ----------
    job : Job
        What tasks are told; its window is right as soon as it is known.
    find_window : bool
        Whether the intensity window is to be found.
    """

    job: Job
    find_window: bool
    done: list[Phase] = field(default_factory=list)
    _search: OrderStatistics = field(init=False)
    _swept: list[Flags] = field(default_factory=list)
    _moved: list[Flags] = field(default_factory=list)
    _lasts: dict[int, NDArray[np.int8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._search = OrderStatistics(self.job.source.dtype)

    @classmethod
    def of(cls, job: Job, find_window: bool) -> Course:
        """Follow a run as far as it has come."""
        course = cls(job, find_window)
        while (phase := course.current) is not None:
            record = job.journal.record(phase)
            if record is None:
                break
            course._follow(phase, record)
        return course

    @property
    def planned(self) -> list[Phase]:
        """All phases that may come."""
        return self._phases(schedule(self.job.lattice))

    @property
    def phases(self) -> list[Phase]:
        """All phases, as far as is known: where the image turns out to be constant there are no rounds."""
        return self._phases(self.job.schedule) if self._window_known else self.planned

    def _phases(self, rounds: Sequence[Round]) -> list[Phase]:
        searching = window_phases(self._search) if self.find_window else []
        return [*searching, QUANTISE, *climbing_phases(rounds), LABEL]

    @property
    def current(self) -> Phase | None:
        """The phase that is at work, or is next; None if all are done."""
        return next((phase for phase in self.phases if phase not in self.done), None)

    @property
    def _window_known(self) -> bool:
        return self._search.done or not self.find_window

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays of the search for the intensity window."""
        if not self.find_window:
            return {}
        counts, bins = self.job.regions.counts, 1 << 16
        shapes = [(digit_rows(turn), bins) for turn in range(self._search.passes)]
        return {
            digits(turn): Layout.cut((*counts, *shape), np.int64, (1, 1, 1, *shape), 1)
            for turn, shape in enumerate(shapes)
        }

    def regions(self, phase: Phase) -> list[int]:
        """List the regions that have work in a phase."""
        if not phase.stage.startswith("sweep"):
            return list(range(len(self.job.regions)))
        return [int(number) for number in np.flatnonzero(self._restless(phase.turn))]

    def known(self, phase: Phase, number: int) -> OrderStatistics | Rested | None:
        """Give what `perform` wants to know for a region's task of a phase."""
        if phase.stage == "window":
            return self._search
        if phase.stage == "quantise":
            return None
        return self._rested(len(self.job.schedule) if phase == LABEL else phase.turn, number)

    def close(self, phase: Phase, marks: Marks) -> None:
        """Note that a phase is done in all its regions."""
        record = self._record(phase, marks)
        self.job.journal.close(phase, record, dict(marks))
        self._follow(phase, record)
        self._tidy(phase)

    def _record(self, phase: Phase, marks: Marks) -> dict[str, Any]:
        if phase.stage == "window":
            search = copy(self._search)
            search.narrow(self._digits(phase.turn))
            return search.state()
        if phase.stage == "quantise" and "finite" not in marks.values():
            raise NothingFinite
        if phase.stage.startswith("sweep"):
            moved = [number for number, found in marks.items() if found == "moved"]
            return {"swept": self._pack(list(marks)), "moved": self._pack(moved)}
        return {}

    def _follow(self, phase: Phase, record: Mapping[str, Any]) -> None:
        """Take in what a phase found."""
        self.done.append(phase)
        if phase.stage == "window":
            self._search.restore(record)
            if self._search.done:
                self.job = replace(self.job, window=self._search.window())
        elif phase.stage.startswith("sweep"):
            self._swept.append(self._unpack(record["swept"]))
            self._moved.append(self._unpack(record["moved"]))

    def _digits(self, turn: int) -> NDArray[np.int64]:
        """Add up what all regions counted, a row of regions at a time."""
        counts = self.job.regions.counts
        total = np.zeros((len(self._search.prefixes), 1 << 16), np.int64)
        for z, y in itertools.product(range(counts[0]), range(counts[1])):
            for x in range(0, counts[2], ROW):
                row = Box((z, y, x), (z + 1, y + 1, min(x + ROW, counts[2])))
                found = self.job.store.read(digits(turn), row)
                total += found.sum(axis=(0, 1, 2))[: len(total)]
        return total

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
            names = [digits(turn) for turn in range(self._search.passes) if self.find_window]
        elif phase.stage.startswith("sweep") and phase.turn > 0:
            turn = phase.turn
            wanted = [set(self._last(t).tolist()) for t in (turn - 1, turn, turn + 1)]
            gone = (wanted[0] | wanted[1]) - (wanted[1] | wanted[2]) - {-1}
            names = [statistics(turn - 1), core(turn), shells(turn), *(codes(u) for u in sorted(gone))]
        for name in names:
            # What cannot be removed now is removed with the run.
            with suppress(OSError):
                self.job.store.remove(name)

    def _pack(self, numbers: list[int]) -> str:
        flags = np.zeros(len(self.job.regions), np.bool_)
        flags[numbers] = True
        return base64.b64encode(zlib.compress(np.packbits(flags).tobytes())).decode()

    def _unpack(self, text: str) -> Flags:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
        return np.unpackbits(packed, count=len(self.job.regions)).astype(np.bool_)
