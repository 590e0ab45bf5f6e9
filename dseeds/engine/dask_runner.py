"""Stages as bounded streams of tasks on a Dask cluster: what fails is tried again, and times are kept."""

from __future__ import annotations

import errno
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from distributed import Client, KilledWorker, as_completed

from dseeds.core.progress import Progress
from dseeds.engine.phases import Phase
from dseeds.engine.report import StageReport, TaskResult
from dseeds.storage.zarr_arrays import ByteCounter, ScratchCorrupted, byte_counter

# Tasks at the scheduler per thread of the cluster: enough that no thread waits, whatever the number of regions.
IN_FLIGHT = 8
SETTLE_SECONDS = 10
# How often a task is tried again.
RETRIES = 2
# Errors of the system that trying again does not help.
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class RegionFailed(RuntimeError):
    """A region's task fails again and again.

    Attributes
    ----------
    phase, region, attempts : str, int, int
        Which, and how often it was tried.
    reason : str
        The last error.
    """

    def __init__(self, phase: str, region: int, attempts: int, reason: str) -> None:
        super().__init__(phase, region, attempts, reason)
        self.phase, self.region, self.attempts, self.reason = phase, region, attempts, reason

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {name: getattr(self, name) for name in ("phase", "region", "attempts", "reason")}

    def __str__(self) -> str:
        often = "once" if self.attempts == 1 else f"{self.attempts} times"
        return f"{self.phase} of region {self.region} failed {often} ({self.reason})"


@dataclass
class StageRunner:
    """Runs stages on a cluster, tells the progress and keeps the times.

    Attributes
    ----------
    client : Client
        The cluster.
    totals : dict of str to int
        The stages to come, in order, and how many tasks each has.
    progress : Progress or None
        Who follows.
    wait_for_cancelled : bool
        Whether the cluster lives on when a stage fails.
    check, confirm : callable
        `check` is called after every task, `confirm`, which may take its time, where something is wrong and before
        what cannot be taken back; what they raise ends the run.
    """

    client: Client
    totals: dict[str, int]
    progress: Progress | None = None
    wait_for_cancelled: bool = True
    check: Callable[[], None] = lambda: None
    confirm: Callable[[], None] = lambda: None
    _reports: dict[str, StageReport] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @contextmanager
    def timed(self, stage: str) -> Iterator[Callable[..., None]]:
        """Time a piece of a stage, and lend what tells that one of its tasks is done."""
        if stage not in self._reports:
            self._reports[stage] = StageReport(stage)
            if self.progress:
                self.progress.begin(stage, self.totals[stage])

        def advance(result: TaskResult | None = None) -> None:
            self._reports[stage] = self._reports[stage].with_task(result)
            if self.progress:
                self.progress.advance(stage)

        # What this process reads and writes itself: tasks count for themselves.
        counter, start = ByteCounter(), time.perf_counter()
        token = byte_counter.set(counter)
        try:
            yield advance
        finally:
            byte_counter.reset(token)
            self._note(stage, seconds=time.perf_counter() - start, read=counter.read, written=counter.written)
        report = self._reports[stage]
        # A last piece may have nothing to do.
        if self.progress and report.tasks + report.skipped >= self.totals[stage] and stage not in self._ended:
            self._ended.add(stage)
            self.progress.end(stage)

    def skip(self, stage: str, tasks: int) -> None:
        """Count tasks of a stage as done that need not be done."""
        with self.timed(stage):
            self._note(stage, skipped=tasks)
            for _ in range(tasks if self.progress else 0):
                self.progress.advance(stage)  # type: ignore[union-attr]

    def _note(self, stage: str, **more: float) -> None:
        """Add to what is reported of a stage."""
        before = self._reports[stage]
        self._reports[stage] = replace(before, **{key: getattr(before, key) + value for key, value in more.items()})

    def run(
        self,
        phase: Phase,
        numbers: Iterable[int],
        function: Callable[..., TaskResult],
        call: Callable[[int], tuple[Any, ...]],
        *,
        each: Callable[[TaskResult], None],
        mend: Callable[[ScratchCorrupted], None],
    ) -> None:
        """Run a phase's tasks in regions; hand the results to `each` as they come.

        Only a bounded number of tasks is known to the scheduler at any time. A task that fails is tried again, after
        `mend` where scratch was damaged; where one took its worker down, alone, so that it takes no others' work along.

        Parameters
        ----------
        phase : Phase
            The phase.
        numbers : iterable of int
            The regions.
        function, call : callable
            A task, and what gives its arguments for a region.
        each, mend : callable
            See above.

        Raises
        ------
        RegionFailed
            If a task fails too often. The others are cancelled.
        """
        waiting, alone = iter(numbers), deque[int]()
        running: dict[Any, int] = {}
        attempts: Counter[int] = Counter()

        def submit(numbers: list[int]) -> list[Any]:
            attempts.update(numbers)
            keys = [f"{phase.stage}-{self._token}-{phase.turn}-{number}-{attempts[number]}" for number in numbers]
            calls = list(zip(*map(call, numbers), strict=True))
            # One message to the scheduler, for one for each task costs as much as the task itself.
            futures = self.client.map(function, *calls, key=keys, pure=False, retries=0) if numbers else []
            running.update(zip(futures, numbers, strict=True))
            return list(futures)

        def collect(first: Iterable[int], following: Iterator[int], by_itself: bool = False) -> None:
            finished = as_completed(submit(list(first)))
            for batch in finished.batches():
                done = list(zip(map(running.pop, batch), self._results(batch), strict=True))
                # What nobody holds any more the scheduler forgets.
                batch.clear()
                again: list[int] = []
                for number, result in done:
                    if isinstance(result, TaskResult):
                        each(result)
                        advance(result)
                        self.check()
                        again += islice(following, 1)
                    else:
                        if by_itself and isinstance(result, KilledWorker):
                            # Dask has given it to so many workers as the cluster says.
                            attempts[number] += result.allowed_failures
                        again += self._again(phase, number, attempts[number], result, mend, alone)
                finished.update(submit(again))

        with self.timed(phase.stage) as advance:
            try:
                collect(list(islice(waiting, self._bound())), waiting)
                while alone:
                    collect([alone.popleft()], iter(()), by_itself=True)
            finally:
                if running:
                    self.client.cancel(list(running), force=True)
                    if self.wait_for_cancelled:
                        self._settle()

    def once(self, phase: Phase, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do a single task, beside those of the phase at work."""
        for attempt in range(RETRIES + 1):
            key = f"{phase.stage}-{self._token}-again-{uuid.uuid4().hex[:8]}"
            try:
                return self.client.submit(function, *arguments, key=key, pure=False, retries=RETRIES).result()
            except KilledWorker:
                if attempt == RETRIES:
                    raise
        return None

    def _bound(self) -> int:
        return max(1, IN_FLIGHT * int(sum(self.client.nthreads().values())))

    def _results(self, futures: list[Any]) -> list[TaskResult | BaseException]:
        """Fetch what tasks that are done have to tell, or why they failed."""
        # A question for all of them costs as much as one for each: it is only where one failed that each is asked.
        if all(future.status == "finished" for future in futures):
            with suppress(Exception):
                return list(self.client.gather(futures))
        return [self._result(future) for future in futures]

    def _result(self, future: Any) -> TaskResult | BaseException:
        # Where the worker that holds the result has died meanwhile, this waits until another has done the task.
        error = future.exception()
        # A cancelled task is one whose scheduler is gone: that is not the task's fault.
        if future.status == "cancelled":
            raise ConnectionError(
                "the Dask cluster is gone or has dropped the run's tasks: see its scheduler's and workers' logs."
            )
        return error if error is not None else future.result()  # type: ignore[no-any-return]

    def _again(
        self,
        phase: Phase,
        number: int,
        attempts: int,
        error: BaseException,
        mend: Callable[[ScratchCorrupted], None],
        alone: deque[int],
    ) -> list[int]:
        """Decide what becomes of a task that failed: give it back if it is to be tried again."""
        if _is_hopeless(error):
            raise error
        if attempts > RETRIES:
            self.confirm()
            raise RegionFailed(str(phase), number, attempts, failure_reason(error)) from error
        self._note(phase.stage, retried=1)
        if isinstance(error, ScratchCorrupted):
            mend(error)
        if isinstance(error, KilledWorker):
            alone.append(number)
            return []
        return [number]

    def _settle(self) -> None:
        """Wait a little for cancelled tasks that were already running, so that they write nothing behind our back."""
        token = self._token

        def ours(dask_worker: Any) -> bool:
            return any(token in str(key) for key in dask_worker.active_keys)

        end, idle = time.monotonic() + SETTLE_SECONDS, 0
        # Seen idle more than once, for a task may be on its way to a worker that has not heard of the cancelling yet.
        while self.client.status == "running" and time.monotonic() < end and idle < 3:
            busy = any(self.client.run(ours, on_error="ignore").values())
            idle = 0 if busy else idle + 1
            time.sleep(0.05)

    def reports(self) -> tuple[StageReport, ...]:
        """Give the stages so far."""
        return tuple(replace(report, seconds=round(report.seconds, 4)) for report in self._reports.values())


def _is_hopeless(error: BaseException) -> bool:
    """Tell whether trying again does not help: not with a full disk, nor where an object store has refused for good."""
    if isinstance(error, PermissionError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in HOPELESS


def failure_reason(error: BaseException) -> str:
    """Say in a line why a task failed."""
    if isinstance(error, KilledWorker):
        return "its worker died, most likely for want of memory"
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
