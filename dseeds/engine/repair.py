"""Failures of tasks: they are retried, and damaged scratch is repaired by performing again the tasks that wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dseeds.engine.label_tables import write_offsets, write_tables
from dseeds.engine.label_tasks import read_graph
from dseeds.engine.messages import MessageDamaged
from dseeds.engine.phases import GRAPH, Phase, RegionTask
from dseeds.engine.run import Run
from dseeds.engine.run_state import RunState
from dseeds.engine.scratch import BIN_COUNTS, parse_name
from dseeds.engine.source_import import import_source
from dseeds.parallel.executor import RETRIES
from dseeds.storage.zarr_arrays import ScratchCorrupted

# Damage that is found while damage is repaired, and so on: of older rounds, messages are gone.
DEEPEST = 3
# What has one piece per region.
PIECES = ("digits", "intensities", BIN_COUNTS, "graph")
# Damages that are repaired, one after the other, before a task is given up.
MOST_DAMAGES = 100


class RegionFailed(RuntimeError):
    """A region's task failed too often; `reason` is the last error."""

    def __init__(self, phase: str, region: int, attempts: int, reason: str) -> None:
        super().__init__(phase, region, attempts, reason)
        self.phase, self.region, self.attempts, self.reason = phase, region, attempts, reason

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return {name: getattr(self, name) for name in ("phase", "region", "attempts", "reason")}

    def __str__(self) -> str:
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return f"{self.phase} of region {self.region} failed {times} ({self.reason})"


class BeyondRepair(RuntimeError):
    """Scratch is damaged, and so is what it was made from."""


@dataclass
class RetryPolicy:
    """Decides what follows when a task fails."""

    repair: Callable[[ScratchCorrupted], None]
    # Raises an error if another process has taken over the run.
    confirm: Callable[[], None] = lambda: None
    # How often each task was tried, and how often it failed because scratch was damaged.
    attempts: Counter[RegionTask] = field(default_factory=Counter)
    damages: Counter[RegionTask] = field(default_factory=Counter)

    def prepare_retry(self, phase: Phase, number: int, error: BaseException) -> None:
        """Repair scratch if it is damaged, so that a region's task can be tried again.

        Raises `RegionFailed` if it has failed too often.
        """
        task, attempts = (phase, number), self.attempts[phase, number]
        if isinstance(error, ScratchCorrupted):
            self.damages[task] += 1
        # A task that meets one damage after another is not at fault.
        if attempts - min(self.damages[task], MOST_DAMAGES) > RETRIES:
            self.confirm()
            raise RegionFailed(str(phase), number, attempts, _reason(error)) from error
        if isinstance(error, ScratchCorrupted):
            self.repair(error)


@dataclass(frozen=True)
class Repairer:
    """Repairs damaged scratch of a run."""

    run: Run
    state: RunState
    # Performs a task with a job, a phase, a region and the task's input.
    perform: Callable[..., object]
    # Raises an error if another process has taken over the run; then it does the repairs.
    confirm: Callable[[], None] = lambda: None

    def repair(self, damage: ScratchCorrupted) -> None:
        """Find the regions whose part of an array is damaged, and perform their tasks again.

        Raises `BeyondRepair` if one damage leads to the next.
        """
        self.confirm()
        self._repair(damage, 0)

    def protect(self, action: Callable[[], None]) -> None:
        """Perform an action that reads scratch in this process, and repeat it after repairing what is damaged."""
        for _ in range(MOST_DAMAGES):
            try:
                return action()
            except ScratchCorrupted as damage:
                self.repair(damage)
        return action()

    def _repair(self, damage: ScratchCorrupted, depth: int) -> None:
        if depth >= DEEPEST:
            raise _beyond_repair(damage) from damage
        state, (kind, _) = self.state, parse_name(damage.name)
        if isinstance(damage, MessageDamaged):
            for phase, number in damage.tasks:
                # Several readers may have noticed the same damage.
                if not state.job.messages.is_intact(phase, number, state.trail(phase.turn, number)):
                    self._redo(partial(self._perform_again, phase, number), damage, depth)
        elif kind in ("source", "mask"):
            with suppress(ScratchCorrupted):
                state.job.store.read(damage.name, damage.box)
                # Repaired in the meantime, for another task.
                return
            import_source(self.run, state.job, lambda: None, again=True)
        elif kind == "offsets":
            self._redo(partial(write_offsets, state.job), damage, depth)
        elif kind == "table":
            self._redo(partial(write_tables, state.job, state.part_count, state.regions(GRAPH)), damage, depth)
        else:
            phase = state.writer(damage.name)
            for number in self._touched_regions(damage):
                if not self._is_intact(damage.name, number):
                    self._redo(partial(self._perform_again, phase, number), damage, depth)

    def _perform_again(self, phase: Phase, number: int) -> None:
        self.perform(self.state.job, phase, number, self.state.task_input(phase, number))

    def _redo(self, action: Callable[[], object], damage: ScratchCorrupted, depth: int) -> None:
        """Repeat what wrote a damaged array, after repairing what that reads."""
        for _ in range(MOST_DAMAGES):
            try:
                action()
                return
            except ScratchCorrupted as deeper:
                self._repair(deeper, depth + 1)
        raise _beyond_repair(damage) from damage

    def _touched_regions(self, damage: ScratchCorrupted) -> list[int]:
        """Return the regions that a damaged box touches."""
        job, (kind, _) = self.state.job, parse_name(damage.name)
        if kind in PIECES:
            numbers = job.regions.numbers(damage.box)
        elif kind == "parts":
            numbers = job.regions.touching(damage.box)
        else:
            numbers = job.regions.touching(job.lattice.grids[-1].cells_of(damage.box))
        return [number for number in numbers if not job.is_outside(number)]

    def _is_intact(self, name: str, number: int) -> bool:
        """Return whether a region's own part of an array can be read."""
        job, (kind, _) = self.state.job, parse_name(name)
        box = job.voxel_box(number)
        if kind in PIECES:
            box = job.regions.around(number, 0)
        elif kind == "parts":
            box = job.regions.box(number)
        try:
            if kind == "graph":
                read_graph(job, number)
            else:
                job.store.read(name, box)
        except ScratchCorrupted:
            return False
        return True


def _beyond_repair(damage: ScratchCorrupted) -> BeyondRepair:
    return BeyondRepair(f"{damage}, and so is what it was made from: start again with overwrite=True (--overwrite).")


def _reason(error: BaseException) -> str:
    """Return in a line why a task failed."""
    # Here, not above: Dask takes its time to import.
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return "its worker died, most likely because it ran out of memory"
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
