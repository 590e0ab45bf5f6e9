"""The state of a run: which phase comes next, which regions have work in it, and what their tasks take as input.

All of it follows from the records of the phases that are done, so any process that can read these can continue the
run: the next job of a batch, or the next Dask cluster.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.engine.history import (
    ALL,
    MOVED,
    NOT_DONE,
    NOTHING_INSIDE,
    OUTCOME_CODES,
    OUTCOMES,
    PART,
    RESTED,
    STILL,
    History,
    read_trail,
    spell_trail,
)
from dseeds.engine.job import AnalysisInput, Job, RegionInput, pack_flags, unpack_flags
from dseeds.engine.label_tables import write_offsets, write_tables
from dseeds.engine.phases import GRAPH, HISTOGRAM, LABEL, MASK, PARTS, QUANTISE, Phase, turn_phase
from dseeds.engine.scratch import BIN_COUNTS, digits_name, parse_name
from dseeds.seeds.contrast import describe_contrast
from dseeds.seeds.flood import check_map_window
from dseeds.seeds.histograms import GREY_LEVELS, equalised_tables, foreground_thresholds
from dseeds.seeds.kernels.voxels import BINS
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.seeds.schedule import OWN_MAP, Round, first_replayed, may_rest
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
    # The bytes that images and states of regions may take in the memory of each process that does tasks.
    room: int = 0
    # The voxels in each bin, once they have been added up; see `dseeds.seeds.contrast`.
    bin_counts: NDArray[np.int64] | None = None
    # The code of the outcome of quantising, and of each round, in each region.
    _outcomes: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.job = replace(self.job, may_be_masked=self.query.may_be_masked)
        self._outcomes = np.full(
            (1 + len(self.job.planned_schedule), len(self.job.regions)), OUTCOME_CODES[NOT_DONE], np.uint8
        )
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
        return self._phases(self.job.planned_schedule, self.search.most_further_passes, masked=self.query.may_be_masked)

    @property
    def phases(self) -> list[Phase]:
        """All phases, as far as is known: a constant image has no rounds, and only a mask makes parts."""
        masked = self._is_masked(self.query.mask or self.query.foreground)
        return self._phases(self._rounds, self.search.further_passes, masked=masked)

    @property
    def possible(self) -> list[Phase]:
        """All phases that may still be needed, as far as is known: NaN acts as a mask too, percentiles may be equal."""
        has_passed = Phase("window", self.search.passes - 1) in self.done
        further = self.search.further_passes if has_passed else self.search.most_further_passes
        return self._phases(self._rounds, further, masked=self._is_masked(self.query.may_be_masked))

    @property
    def current(self) -> Phase | None:
        """The first phase that is not done; None if all are done."""
        return next((phase for phase in self.phases if phase not in self.done), None)

    @property
    def _rounds(self) -> Sequence[Round]:
        return self.job.schedule if self.search.done else self.job.planned_schedule

    def _is_masked(self, expected: bool) -> bool:
        return self.job.masked if self._is_quantised else expected

    def _phases(self, rounds: Sequence[Round], further_passes: int, masked: bool) -> list[Phase]:
        passes = self.search.passes
        return [
            *[MASK] * self.query.mask,
            *(Phase("window", turn) for turn in range(passes)),
            *(Phase("contrast", turn) for turn in range(passes, passes + further_passes)),
            *[HISTOGRAM] * self.query.needs_histogram,
            QUANTISE,
            *(turn_phase(rounds, turn) for turn in range(len(rounds))),
            *[PARTS] * masked,
            *[GRAPH] * self.job.has_joins,
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

    # Contrast

    def read_bin_counts(self) -> None:
        """Add up the voxels in each bin of all regions, once these are quantised."""
        self.bin_counts = self._total(BIN_COUNTS)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the contrast; nothing before the voxels in each bin have been added up."""
        if self.bin_counts is None:
            return ()
        job = self.job
        return describe_contrast(
            job.windows,
            self.bin_counts,
            math.prod(job.shape),
            has_threshold=self.query.foreground,
            has_map=job.boundaries == OWN_MAP,
        )

    # Arrays in scratch

    @property
    def layouts(self) -> dict[str, Layout]:
        """The arrays in scratch, except those for the source and the target; see `Run.layouts`."""
        parts = self.job.store.layouts if self.query.may_be_masked else {}
        counts = self.job.regions.counts
        shape = self.job.channels, BINS
        bins = Layout.cut((*counts, *shape), np.int64, (1, 1, 1, *shape), 1)
        return {**parts, **self.count_layouts, BIN_COUNTS: bins}

    @property
    def count_layouts(self) -> dict[str, Layout]:
        """The arrays of counts that are made before there are bins."""
        passes = self.search.passes + self.search.most_further_passes
        shapes = {digits_name(turn): (self.search.rows(turn), 1 << 16) for turn in range(passes)}
        if self.query.needs_histogram:
            shapes["intensities"] = self.job.channels, GREY_LEVELS
        counts = self.job.regions.counts
        return {name: Layout.cut((*counts, *shape), np.int64, (1, 1, 1, *shape), 1) for name, shape in shapes.items()}

    def writer(self, name: str) -> Phase:
        """Return the phase that writes an array."""
        kind, turn = parse_name(name)
        phases = {"intensities": HISTOGRAM, BIN_COUNTS: QUANTISE, "labels": LABEL}
        phases |= {"graph": GRAPH, "table": GRAPH, "parts": PARTS}
        if kind == "digits":
            return Phase("window" if turn < self.search.passes else "contrast", turn)
        return phases[kind]

    # Tasks

    def regions(self, phase: Phase) -> list[int]:
        """Return the regions that have work in a phase."""
        work = np.ones(len(self.job.regions), np.bool_)
        if phase.is_round:
            work = self._active_regions(phase.turn)
        if self.job.outside is not None and phase != MASK:
            work = work & ~self.job.outside_regions
        return [int(number) for number in np.flatnonzero(work)]

    def task_input(self, phase: Phase, number: int) -> AnalysisInput | RegionInput | None:
        """Return the input of a region's task of a phase, besides the job."""
        if phase == MASK:
            return None
        if phase.is_search or phase == HISTOGRAM:
            return AnalysisInput(self.search, self.room)
        turn = phase.turn if phase.publishes_messages else len(self.job.schedule)
        numbers = self.job.regions.within(number, self.job.exchange.farthest)
        history = History(tuple(numbers), self._outcomes[: turn + 1, numbers].tobytes())
        return RegionInput(history, self.room, phase.is_round and self.may_rest(turn + 1))

    def marks(self, phase: Phase) -> dict[int, str]:
        """Return the outcomes of a phase's finished tasks by region, from listings."""
        if not phase.publishes_messages:
            return self.job.journal.marks(phase)
        self.take_messages()
        return self.noted(phase)

    def noted(self, phase: Phase) -> dict[int, str]:
        """Return the outcomes of quantising, or of a round, by region, as far as they have been noted."""
        row = self._outcomes[phase.turn + 1]
        return {int(number): OUTCOMES[row[number]] for number in np.flatnonzero(row)}

    def take_messages(self) -> None:
        """Record all messages of phases that are not closed, from listings.

        The last message of a region says what came of all rounds before it, whose messages may have been removed.
        """
        for phase in self.phases:
            if phase.publishes_messages and phase not in self.done:
                for number, trail in self.job.messages.trails(phase).items():
                    self._outcomes[: len(trail), number] = np.frombuffer(read_trail(trail), np.uint8)

    def note(self, phase: Phase, marks: Marks) -> None:
        """Record what came of quantising, or of a round, in some regions, before it is closed."""
        row = self._outcomes[phase.turn + 1]
        row[list(marks)] = [OUTCOME_CODES[outcome] for outcome in marks.values()]

    def close(self, phase: Phase, marks: Marks) -> None:
        """Record that a phase is done in all its regions, and remove what is obsolete from scratch."""
        record = self._record(phase, marks)
        # Messages are marks that are still needed.
        self.job.journal.close(phase, record, {} if phase.publishes_messages else dict(marks))
        self._apply(phase, record)
        self._remove_obsolete(phase)

    # Records

    def _record(self, phase: Phase, marks: Marks) -> dict[str, Any]:
        """Summarise what the tasks of a phase found."""
        if phase.is_search:
            search = copy(self.search)
            search.narrow(self._total(digits_name(phase.turn)))
            return search.state()
        if phase in (MASK, QUANTISE):
            record = self._mask_record(marks)
            if self.bin_counts is not None:
                record["bin_counts"] = self.bin_counts.tolist()
            return record
        if phase == HISTOGRAM:
            return self._histogram_record()
        if phase.is_round:
            moved = [number for number, outcome in marks.items() if outcome == MOVED]
            swept = [number for number, outcome in marks.items() if outcome != RESTED]
            return {"swept": self._pack(swept), "moved": self._pack(moved)}
        if phase == PARTS:
            return {"counts": [write_offsets(self.job)]}
        if phase == GRAPH:
            return {"counts": write_tables(self.job, self.part_count, self.regions(GRAPH))}
        return {}

    def _mask_record(self, marks: Marks) -> dict[str, Any]:
        outside = [number for number, outcome in marks.items() if outcome in ("outside", NOTHING_INSIDE)]
        if len(outside) == len(marks):
            raise NoFiniteValues
        part = [number for number, outcome in marks.items() if outcome == PART]
        masked = any(outcome != ALL for outcome in marks.values())
        return {
            "outside": self._pack(outside),
            "part": self._pack(part),
            "masked": masked or self.job.outside is not None,
        }

    def _histogram_record(self) -> dict[str, Any]:
        """Derive the bins and the thresholds from the histograms of the channels."""
        counts, query, channels = self._total("intensities"), self.query, len(self.job.weights)
        return {
            "tables": [table.tolist() for table in equalised_tables(counts, channels)] if query.equalised else None,
            "thresholds": list(foreground_thresholds(counts, channels)) if query.foreground else None,
        }

    def _total(self, name: str) -> NDArray[np.int64]:
        """Sum the counts of all regions, a row of regions at a time."""
        regions = self.job.regions
        total = np.zeros(self.layouts[name].shape[3:], np.int64)
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
        if phase.is_search:
            self.search.restore(record)
            self._take_windows()
        elif phase in (MASK, QUANTISE):
            outside = self._unpack(record["outside"]) | self.job.outside_regions
            packed = pack_flags(outside) if outside.any() else None
            self._is_quantised = phase == QUANTISE
            self.job = replace(self.job, outside=packed, masked=record["masked"])
            self._outcomes[0, self._unpack(record["part"])] = OUTCOME_CODES[PART]
            if phase == QUANTISE:
                self._outcomes[0, self._outcomes[0] == OUTCOME_CODES[NOT_DONE]] = OUTCOME_CODES[ALL]
                if "bin_counts" in record:
                    self.bin_counts = np.array(record["bin_counts"], np.int64)
            self._outcomes[0, outside] = OUTCOME_CODES[NOTHING_INSIDE]
        elif phase == HISTOGRAM:
            tables, thresholds = record["tables"], record["thresholds"]
            self.job = replace(
                self.job,
                tables=None if tables is None else tuple(np.array(table, np.uint8) for table in tables),
                thresholds=None if thresholds is None else tuple(thresholds),
            )
        elif phase.is_round:
            swept, moved = self._unpack(record["swept"]), self._unpack(record["moved"])
            outcomes = np.where(
                moved, OUTCOME_CODES[MOVED], np.where(swept, OUTCOME_CODES[STILL], OUTCOME_CODES[RESTED])
            )
            self._outcomes[phase.turn + 1] = outcomes
        elif phase in (PARTS, GRAPH):
            self.counts = list(record["counts"])
            if phase == PARTS:
                self._part_count = self.counts[0]

    def _take_windows(self) -> None:
        if self.search.done:
            self.job = replace(self.job, windows=self.search.windows(), knees=self.search.knees())
            if self.job.boundaries == OWN_MAP:
                check_map_window(self.job.windows[-1])

    # Regions at rest

    def may_rest(self, turn: int) -> bool:
        """Return whether there are regions that a round may leave out."""
        # After the last round, labels need the codes of cells further away than any round.
        needs_all = self.job.exchange.label_reach > 0 and turn + 1 == len(self.job.schedule)
        return turn < len(self.job.schedule) and may_rest(self.job.schedule, turn) and not needs_all

    def possible_outcomes(self, turn: int) -> tuple[str, ...]:
        """Return what may come of a region in a round, or in quantising as turn -1."""
        if turn < 0:
            return (ALL, PART, NOTHING_INSIDE) if self.query.may_be_masked else (ALL,)
        return (MOVED, STILL, RESTED) if self.may_rest(turn) else (MOVED, STILL)

    def rests(self, turn: int, number: int) -> bool:
        """Return whether nothing can move in a region in a round, given the two rounds before it."""
        near = self.job.regions.within(number, self.job.exchange.reach(turn))
        return self.may_rest(turn) and not (self._outcomes[turn - 1 : turn + 1, near] == OUTCOME_CODES[MOVED]).any()

    def outcome(self, turn: int, number: int) -> str:
        """Return what came of a round, or of quantising as turn -1, in a region."""
        return OUTCOMES[self._outcomes[turn + 1, number]]

    def trail(self, turn: int, number: int) -> str:
        """Return what came of a region in quantising and in all rounds up to one; see `History.trail`."""
        return spell_trail(self._outcomes[: turn + 2, number].tobytes())

    def are_done(self, turn: int, numbers: Sequence[int]) -> bool:
        """Return whether a round, or quantising as turn -1, is done in regions; what lies outside the mask is."""
        outcomes = self._outcomes[:, numbers]
        is_outside = outcomes[0] == OUTCOME_CODES[NOTHING_INSIDE]
        return bool(((outcomes[turn + 1] != OUTCOME_CODES[NOT_DONE]) | is_outside).all())

    def _active_regions(self, turn: int) -> Flags:
        """Flag the regions in which something may move in a round."""
        if not self.may_rest(turn):
            return np.ones(len(self.job.regions), np.bool_)
        moved = (self._outcomes[turn - 1 : turn + 1] == OUTCOME_CODES[MOVED]).any(axis=0)
        active = moved.reshape(self.job.regions.counts)
        for axis in range(3):
            dilated = active.copy()
            for shift in range(1, self.job.exchange.reach(turn) + 1):
                before, after = (slice(None),) * axis + (slice(shift, None),), (slice(None),) * axis + (slice(-shift),)
                dilated[before] |= active[after]
                dilated[after] |= active[before]
            active = dilated
        flags: Flags = active.reshape(-1)
        return flags

    def _remove_obsolete(self, phase: Phase) -> None:
        """Remove from scratch what no task or repair reads once a phase is done.

        Of the rounds before those that may be replayed, only the last messages of regions that rest are still read.
        """
        # What cannot be removed now is removed with the run.
        with suppress(OSError):
            for name in self.count_layouts if phase == QUANTISE else ():
                self.job.store.remove(name)
            if phase.is_round:
                first = first_replayed(self.job.schedule, phase.turn)
                needed = self._last_turns(first)
                for turn in range(first):
                    kept = {int(number) for number in np.flatnonzero(needed == turn)}
                    self.job.messages.remove(turn_phase(self.job.schedule, turn), kept)

    def _last_turns(self, turn: int) -> NDArray[np.int64]:
        """Return for each region the last round up to a given one in which it did not rest; -1 outside the mask."""
        last = np.full(len(self.job.regions), -1)
        for now in range(turn + 1):
            last[self._outcomes[now + 1] != OUTCOME_CODES[RESTED]] = now
        last[self.job.outside_regions] = -1
        return last

    def _pack(self, numbers: list[int]) -> str:
        flags = np.zeros(len(self.job.regions), np.bool_)
        flags[numbers] = True
        return base64.b64encode(pack_flags(flags)).decode()

    def _unpack(self, text: str) -> Flags:
        return unpack_flags(base64.b64decode(text), len(self.job.regions))
