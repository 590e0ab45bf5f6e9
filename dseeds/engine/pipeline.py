"""The tasks of quantising, of the rounds and of plain labels as one pipeline: without barriers between the phases.

A region is ready for a round when the regions around it have done the round before. Those with the lowest z come first,
so that a volume much larger than the memory of the cluster runs as a wavefront along z: some layers of regions are in
work, and those behind them are finished.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from dseeds.engine.history import NOT_DONE, RESTED
from dseeds.engine.phases import LABEL, Phase, RegionTask, turn_phase
from dseeds.engine.report import TaskResult
from dseeds.engine.run_state import RunState
from dseeds.engine.stage_timer import StageTimer

# Tasks in flight for each thread: one that is done and one that waits.
PER_THREAD = 2
# Regions that are begun ahead of those that the slowest region needs, so that no thread waits, for each task in flight.
BEGUN_PER_PLACE = 4


class Pipeline:
    """The phases from quantising to the last round and, where they need no other phase, the labels."""

    per_thread = PER_THREAD

    def __init__(
        self,
        state: RunState,
        stages: StageTimer,
        holders: dict[int, str],
        confirm: Callable[[], None] = lambda: None,
        begin_labels: Callable[[], None] = lambda: None,
    ) -> None:
        self.state, self.stages = state, stages
        # The workers that hold the states of regions.
        self.holders = holders
        # Raises an error if another process has taken over the run.
        self.confirm = confirm
        # Called before the first labels are written.
        self._begin_labels = begin_labels
        self._has_begun = False
        self._rounds = state.job.schedule
        job = state.job
        # A mask makes parts, and joining tables, which need what was found in the whole volume.
        self.has_labels = not job.has_joins and not job.may_be_masked
        self._last = len(self._rounds) - (not self.has_labels)
        self._labelled: dict[int, str] = {}
        count = len(state.job.regions)
        # For each region the turn of its next task, and whether that is waiting to be done or being done.
        self._turns = np.full(count, -1, np.int16)
        self._is_taken = np.zeros(count, np.bool_)
        self._done = Counter[int]()
        # How far regions may be ahead of the slowest along z, in layers, so that it can still be finished; and the
        # regions of each layer that are not finished.
        self._depth = sum(job.exchange.reach(turn) for turn in range(len(self._rounds)))
        self._places = 0
        self._unfinished = [count // job.regions.counts[0]] * job.regions.counts[0]
        self._lowest = 0
        # Regions that are ready, by the worker that holds their state.
        self._ready: dict[str, list[int]] = {}
        self._resume()

    def phase(self, turn: int) -> Phase:
        """Return the phase of a turn; the labels come after the last round."""
        return LABEL if turn == len(self._rounds) else turn_phase(self._rounds, turn)

    def _resume(self) -> None:
        """Take over what is done, and find what is ready."""
        state, regions = self.state, range(len(self._turns))
        for turn in range(-1, len(self._rounds)):
            if (phase := self.phase(turn)) not in state.done:
                state.note(phase, state.marks(phase))
        if self.has_labels:
            # Labels are checked even if they are marked: no later phase would notice that they are damaged.
            self._labelled = state.marks(LABEL)
        for number in regions:
            self._pass_done(number)
        for number in regions:
            self._consider(number)
        self._close()

    def _pass_done(self, number: int) -> None:
        """Go on with a region to its first task that is not done."""
        while (turn := int(self._turns[number])) <= self._last and self._is_done(turn, number):
            if (phase := self.phase(turn)) not in self.state.done:
                self.stages.skip(phase.stage, 1)
            self._count(number)

    def _is_done(self, turn: int, number: int) -> bool:
        if turn == len(self._rounds):
            return bool(self.state.job.is_outside(number))
        return self.state.are_done(turn, [number])

    def _count(self, number: int) -> None:
        """Count a region's task as done."""
        turn = int(self._turns[number])
        self._done[turn] += 1
        self._turns[number] += 1
        self._is_taken[number] = False
        if self._turns[number] > self._last:
            self._unfinished[self._layer(number)] -= 1
            while self._lowest < len(self._unfinished) and not self._unfinished[self._lowest]:
                self._lowest += 1

    def _consider(self, number: int) -> None:
        """Make a region's next task ready if all that it needs is done; or count it as done if nothing can move."""
        waiting = [number]
        while waiting:
            here = waiting.pop()
            self._pass_done(here)
            turn = int(self._turns[here])
            if turn > self._last or self._is_taken[here] or not self._has_inputs(turn, here):
                continue
            if 0 <= turn < len(self._rounds) and self.state.rests(turn, here):
                self.state.note(self.phase(turn), {here: RESTED})
                waiting += [here, *self._affected(turn, here)]
                continue
            if turn == len(self._rounds) and not self._has_begun:
                self._begin_labels()
                self._has_begun = True
            self._is_taken[here] = True
            self._put(here)

    def _has_inputs(self, turn: int, number: int) -> bool:
        if turn < 0:
            return True
        if turn == len(self._rounds):
            return self.state.are_done(turn - 1, [number])
        return self.state.are_done(turn - 1, self.state.job.regions.within(number, self.state.job.exchange.reach(turn)))

    def _affected(self, turn: int, number: int) -> list[int]:
        """Return the regions whose next task may have become ready with a region's turn."""
        if turn + 1 >= len(self._rounds):
            return [number]
        near = self.state.job.regions.within(number, self.state.job.exchange.reach(turn + 1))
        return [other for other in near if self._turns[other] == turn + 1]

    def _put(self, number: int) -> None:
        heapq.heappush(self._ready.setdefault(self.holders.get(number, ""), []), number)

    def _layer(self, number: int) -> int:
        """Return the index of a region along z."""
        _, ny, nx = self.state.job.regions.counts
        return number // (ny * nx)

    # The interface of the runner

    def take(self, count: int, free: Mapping[str, int]) -> list[tuple[RegionTask, str]]:
        """Return tasks for workers with so many free places each, with the worker to do each of them."""
        # Regions whose worker is gone can go to any.
        for gone in [worker for worker in self._ready if worker and worker not in free]:
            for number in self._ready.pop(gone):
                self.holders.pop(number, None)
                self._put(number)
        tasks: list[tuple[RegionTask, str]] = []
        # While there are no workers, tasks wait for any.
        places = [(-places, worker) for worker, places in free.items() if places > 0] if free else [(-count, "")]
        heapq.heapify(places)
        self._places = max(self._places, sum(free.values()))
        while places and len(tasks) < count:
            taken, worker = places[0]
            popped = self._pop(worker)
            if popped is None or taken == -1:
                heapq.heappop(places)
            else:
                heapq.heapreplace(places, (taken + 1, worker))
            if popped is not None:
                self.holders[popped] = worker
                tasks.append(((self.phase(int(self._turns[popped])), popped), worker))
        return tasks

    @property
    def is_done(self) -> bool:
        """Whether no task is left."""
        return bool((self._turns > self._last).all())

    def _pop(self, worker: str) -> int | None:
        """Return the next region for a worker: one that it holds, else one that no worker holds."""
        if self._ready.get(worker):
            return heapq.heappop(self._ready[worker])
        unheld = self._ready.get("")
        if unheld and self._layer(unheld[0]) <= self._last_begun_layer:
            return heapq.heappop(unheld)
        return None

    @property
    def _last_begun_layer(self) -> int:
        """The last layer in which a region may be begun: what is begun takes memory until it is finished.

        A worker that has nothing to do must not begin more and more of them, while it waits for others.
        """
        per_layer = len(self._turns) // len(self._unfinished)
        return self._lowest + self._depth + -(-BEGUN_PER_PLACE * self._places // per_layer)

    def is_marked(self, task: RegionTask) -> bool:
        """Return whether a task was done before the run was resumed."""
        phase, number = task
        return phase == LABEL and number in self._labelled

    def finish(self, task: RegionTask, result: TaskResult, worker: str) -> None:
        """Take note of a task that is done, and where."""
        phase, number = task
        turn = int(self._turns[number])
        self.holders[number] = worker
        if phase != LABEL:
            self.state.note(phase, {number: result.outcome})
        if result.counts is not None:
            self.state.add_counts(number, result.counts)
        self._count(number)
        for other in self._affected(turn, number):
            self._consider(other)
        self._close()

    def _close(self) -> None:
        """Close the phases that are done in all regions."""
        regions = range(len(self._turns))
        while (phase := self.state.current) is not None and phase.publishes_messages:
            turn = phase.turn
            if self._done[turn] < len(self._turns):
                return
            self.confirm()
            outcomes = {number: self.state.outcome(turn, number) for number in regions}
            self.state.close(phase, {number: outcome for number, outcome in outcomes.items() if outcome != NOT_DONE})
