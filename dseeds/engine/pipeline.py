"""The tasks of quantising, of the rounds and of plain labels as one pipeline: without barriers between the phases.

A region is ready for a round when the regions around it have done the round before. Those with the lowest z come first,
so that a volume much larger than the memory of the cluster runs as a wavefront along z: some layers of regions are in
work, and those behind them are finished.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dseeds.engine.exchange import BINS
from dseeds.engine.history import NOT_DONE, RESTED
from dseeds.engine.job import Job
from dseeds.engine.phases import HELD, LABEL, Phase, RegionTask, turn_phase
from dseeds.engine.report import TaskResult
from dseeds.engine.run_state import RunState
from dseeds.engine.stage_timer import StageTimer
from dseeds.engine.wavefront import is_tall, layers_ahead, needed_turns, needed_within

# Tasks in flight for each thread: one that is done and one that waits.
PER_THREAD = 2
# Messages that are removed at once.
DISCARDED = 64


def has_plain_labels(job: Job) -> bool:
    """Return whether labels need no other phase: a mask makes parts, and joining tables, of the whole volume."""
    return not job.has_joins and not job.may_be_masked


def balance_holders(holders: dict[int, str], threads: Mapping[str, int]) -> None:
    """Forget the last regions of each worker that holds more than its threads' share of all regions.

    What it holds before the first round is no more than their images, and it would be the slowest in all rounds.
    """
    total = max(1, sum(threads.values()))
    shares = {worker: -(-len(holders) * count // total) for worker, count in threads.items()}
    for number in sorted(holders):
        worker = holders[number]
        shares[worker] = shares.get(worker, 0) - 1
        if shares[worker] < 0:
            del holders[number]


class Pipeline:
    """The phases from quantising to the last round and, where they need no other phase, the labels.

    One process may have all regions, and hand them to workers; or only a share, while it is told what becomes of the
    others.
    """

    per_thread = PER_THREAD

    def __init__(
        self,
        state: RunState,
        stages: StageTimer,
        holders: dict[int, str],
        confirm: Callable[[], None] = lambda: None,
        begin_labels: Callable[[], None] = lambda: None,
        *,
        share: Collection[int] | None = None,
        publish_rest: Callable[[Phase, int], None] = lambda *_: None,
    ) -> None:
        self.state, self.stages = state, stages
        # The workers that hold the states of regions.
        self.holders = holders
        # Raises an error if another process has taken over the run.
        self.confirm = confirm
        # Called before the first labels are written.
        self._begin_labels = begin_labels
        self._has_begun = False
        # Called with each round in which a region of a share rests, which other processes may not be able to tell.
        self._publish_rest = publish_rest
        self._rounds = state.job.schedule
        job = state.job
        self.has_labels = has_plain_labels(job)
        self._last = len(self._rounds) - (not self.has_labels)
        self._labelled: set[int] = set()
        count = len(state.job.regions)
        self._is_shared = share is not None
        self._is_own = np.ones(count, np.bool_)
        if share is not None:
            self._is_own[:] = False
            self._is_own[list(share)] = True
        # For each region the turn of its next task, whether that is waiting to be done or being done, and whether it is
        # still waiting.
        self._turns = np.full(count, -1, np.int16)
        self._is_taken = np.zeros(count, np.bool_)
        self._is_waiting = np.zeros(count, np.bool_)
        self._done = Counter[int]()
        # The tasks that may be in flight, as far as is known, and how far ahead they let regions be begun; and how many
        # regions of each layer are not finished.
        self._places = 0
        self._ahead = layers_ahead(job.exchange, 0)
        self._unfinished = self._is_own.reshape(job.regions.counts[0], -1).sum(axis=1).tolist()
        self._lowest = 0
        # For each region how many of those that may need its messages are not labelled; and messages to be removed.
        self._is_tall = is_tall(job.exchange)
        self._readers = self._count_readers()
        self._obsolete: list[tuple[Phase, int, str]] = []
        # Regions that are ready, by the worker that holds their state.
        self._ready: dict[str, list[int]] = {}
        self._resume()

    def phase(self, turn: int) -> Phase:
        """Return the phase of a turn; the labels come after the last round."""
        return LABEL if turn == len(self._rounds) else turn_phase(self._rounds, turn)

    def _resume(self) -> None:
        """Take over what is done, and find what is ready."""
        state, regions = self.state, range(len(self._turns))
        state.take_messages()
        self._take_labels()
        for number in regions:
            self._pass_done(number)
        self._skip_finished_layers()
        self._consider(regions)
        self._close()

    def _take_labels(self) -> None:
        if self.has_labels:
            self._labelled = set(self.state.marks(LABEL))

    def _pass_done(self, number: int) -> list[int]:
        """Advance a region to its first task that is not done, and return the turns of those that are."""
        turns = []
        while (turn := int(self._turns[number])) <= self._last and self._is_done(turn, number):
            if (phase := self.phase(turn)) not in self.state.done:
                self.stages.skip(phase.stage, 1)
            self._count(number)
            turns.append(turn)
        return turns

    def _is_done(self, turn: int, number: int) -> bool:
        if turn == len(self._rounds):
            # A process that has all regions checks labels even if they are marked: no later phase would notice that
            # they are damaged. Those of shares are checked in the end.
            return bool(self.state.job.is_outside(number)) or (self._is_shared and number in self._labelled)
        return self.state.are_done(turn, [number])

    def _count(self, number: int) -> None:
        """Count a region's task as done."""
        turn = int(self._turns[number])
        self._done[turn] += 1
        self._turns[number] += 1
        if turn == len(self._rounds) and self._is_tall:
            self._discard_around(number)
        self._is_taken[number] = self._is_waiting[number] = False
        if self._turns[number] > self._last and self._is_own[number]:
            self._unfinished[self._layer(number)] -= 1
            self._skip_finished_layers()

    def _count_readers(self) -> NDArray[np.int32]:
        """Return the number of regions, itself included, that may need each region's messages."""
        regions, reach = self.state.job.regions, needed_within(self.state.job.exchange)
        sides = []
        for count in regions.counts:
            index = np.arange(count)
            sides.append(np.minimum(index + reach, count - 1) - np.maximum(index - reach, 0) + 1)
        readers: NDArray[np.int32] = np.einsum("z,y,x->zyx", *sides).reshape(-1).astype(np.int32)
        return readers

    def _discard_around(self, number: int) -> None:
        """Remove what is no longer needed now that a region is labelled: of regions around which all are labelled.

        From its last message, a region's labels can be made again. Where it rested in the end, that takes those of its
        neighbours too, so these stay.
        """
        state, last = self.state, len(self._rounds) - 1
        if state.outcome(last, number) == RESTED:
            return
        near = state.job.regions.within(number, needed_within(state.job.exchange))
        self._readers[near] -= 1
        for other in near:
            if not self._readers[other] and self._is_own[other]:
                trail = state.trail(last, other)
                turns = needed_turns(state.job.exchange, trail)[:-1]
                self._obsolete += [(self.phase(turn), other, trail[: turn + 2]) for turn in turns]
                # Only if its state found no room.
                self._obsolete.append((HELD, other, BINS))
        if len(self._obsolete) >= DISCARDED:
            state.job.messages.discard(self._obsolete)
            self._obsolete.clear()

    def _skip_finished_layers(self) -> None:
        while self._lowest < len(self._unfinished) and not self._unfinished[self._lowest]:
            self._lowest += 1

    def _consider(self, numbers: Iterable[int]) -> None:
        """Make the next tasks of regions ready if what they need is done, or count them as done if nothing moves."""
        waiting = list(numbers)[::-1]
        while waiting:
            here = waiting.pop()
            for passed in self._pass_done(here):
                waiting += self._affected(passed, here)
            turn = int(self._turns[here])
            if turn > self._last or self._is_taken[here] or not self._has_inputs(turn, here):
                continue
            if 0 <= turn < len(self._rounds) and self.state.rests(turn, here):
                if self._is_own[here]:
                    self._publish_rest(self.phase(turn), here)
                self.state.note(self.phase(turn), {here: RESTED})
                waiting.append(here)
                continue
            if not self._is_own[here]:
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
        self._is_waiting[number] = True
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
            for number in filter(self._is_waiting.__getitem__, self._ready.pop(gone)):
                self.holders.pop(number, None)
                self._put(number)
        tasks: list[tuple[RegionTask, str]] = []
        # While there are no workers, tasks wait for any.
        places = [(-places, worker) for worker, places in free.items() if places > 0] if free else [(-count, "")]
        heapq.heapify(places)
        if sum(free.values()) > self._places:
            self._places = sum(free.values())
            self._ahead = layers_ahead(self.state.job.exchange, self._places)
        while places and len(tasks) < count:
            taken, worker = places[0]
            popped = self._pop(worker)
            if popped is None or taken == -1:
                heapq.heappop(places)
            else:
                heapq.heapreplace(places, (taken + 1, worker))
            if popped is not None:
                self._is_waiting[popped] = False
                self.holders[popped] = worker
                tasks.append(((self.phase(int(self._turns[popped])), popped), worker))
        return tasks

    @property
    def is_done(self) -> bool:
        """Whether no task is left."""
        return bool((self._turns > self._last).all())

    def _pop(self, worker: str) -> int | None:
        """Return the next region for a worker: one that it holds, else one that no worker holds."""
        if held := self._waiting_at(worker):
            return heapq.heappop(held)
        unheld = self._waiting_at("")
        if unheld and self._layer(unheld[0]) <= self._last_begun_layer:
            return heapq.heappop(unheld)
        return None

    def _waiting_at(self, worker: str) -> list[int]:
        """Return the heap of regions that wait for a worker, without those at its top that no longer wait."""
        ready = self._ready.get(worker, [])
        while ready and not self._is_waiting[ready[0]]:
            heapq.heappop(ready)
        return ready

    @property
    def _last_begun_layer(self) -> int:
        """The last layer in which a region may be begun: what is begun takes memory until it is finished.

        A worker that has nothing to do must not begin more and more of them, while it waits for others.
        """
        return self._lowest + self._ahead

    def is_marked(self, task: RegionTask) -> bool:
        """Return whether a task was done before the run was resumed."""
        phase, number = task
        return phase == LABEL and number in self._labelled

    def finish(self, task: RegionTask, result: TaskResult, worker: str) -> None:
        """Record a task that is done, and where."""
        phase, number = task
        turn = int(self._turns[number])
        self.holders[number] = worker
        if phase != LABEL:
            self.state.note(phase, {number: result.outcome})
        self._count(number)
        self._consider(self._affected(turn, number))
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

    def put_back(self, number: int) -> None:
        """Put back a region's task that was taken."""
        self._put(number)

    # The regions of other processes

    @property
    def has_own(self) -> bool:
        """Whether tasks of the share are left."""
        return bool((self._turns[self._is_own] <= self._last).any())

    def is_own(self, number: int) -> bool:
        """Return whether a region belongs to the share."""
        return bool(self._is_own[number])

    def next_turn(self, number: int) -> int:
        """Return the turn of a region's next task, as far as known."""
        return int(self._turns[number])

    def missed(self) -> Iterator[list[int]]:
        """Yield for each region of the share that waits for regions of others, the lowest first, which these are."""
        job = self.state.job
        for number in np.flatnonzero(self._is_own & ~self._is_taken & (self._turns <= self._last)):
            turn = int(self._turns[number])
            if 0 <= turn < len(self._rounds):
                near = job.regions.within(int(number), job.exchange.reach(turn))
                missed = [n for n in near if not self._is_own[n] and not self.state.are_done(turn - 1, [n])]
                if missed:
                    yield missed

    def observe(self, numbers: Iterable[int]) -> None:
        """Apply what has become known of regions."""
        self._consider(numbers)
        self._close()

    def stalled(self) -> Iterator[int]:
        """Yield the regions of others whose next task is ready, as far as known, and not done."""
        for number in np.flatnonzero(~self._is_own & (self._turns <= self._last)):
            if self._has_inputs(int(self._turns[number]), int(number)):
                yield int(number)

    def observe_all(self) -> list[int]:
        """Read from listings how far all regions are, and return those that have gone on."""
        before = self._turns.copy()
        self.state.take_messages()
        self.observe_labels()
        return [int(number) for number in np.flatnonzero(self._turns != before)]

    def observe_labels(self) -> None:
        """Read from a listing which regions are labelled."""
        self._take_labels()
        self.observe(range(len(self._turns)))

    def adopt(self, numbers: Iterable[int]) -> None:
        """Add regions of others to the share."""
        adopted = [number for number in numbers if not self._is_own[number]]
        self._is_own[adopted] = True
        for number in adopted:
            # Their process may have ended before it published this.
            for turn in range(int(self._turns[number])):
                if turn < len(self._rounds) and self.state.outcome(turn, number) == RESTED:
                    self._publish_rest(self.phase(turn), number)
            if self._turns[number] <= self._last:
                self._unfinished[self._layer(number)] += 1
                self._lowest = min(self._lowest, self._layer(number))
        self.observe(adopted)
