"""The phases of a run on a Dask cluster: their tasks are submitted, retried where they fail, and timed by stage."""

from __future__ import annotations

import errno
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from distributed import Client, KilledWorker

from dseeds.engine.phases import Phase
from dseeds.engine.repair import RetryPolicy
from dseeds.engine.report import TaskResult
from dseeds.engine.stage_timer import StageTimer
from dseeds.parallel.executor import RETRIES, ClusterTasks, run_bounded
from dseeds.storage.zarr_arrays import ScratchCorrupted

# Tasks in flight for each thread of the cluster: enough that no thread waits, whatever the number of regions.
REGIONS_PER_THREAD = 8
SETTLE_SECONDS = 10
# Errors of the operating system that a retry does not help.
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass
class StageRunner(StageTimer):
    """Runs stages on a cluster, reports the progress and measures the time."""

    client: Client = field(kw_only=True)
    # Whether to wait for cancelled tasks, because the cluster lives on when a stage fails.
    wait_for_cancelled: bool = field(default=True, kw_only=True)
    # Raise an error if the run has been taken over by another process. `check` is cheap and called after every task,
    # `confirm` when something is wrong and before what cannot be undone.
    check: Callable[[], None] = field(default=lambda: None, kw_only=True)
    confirm: Callable[[], None] = field(default=lambda: None, kw_only=True)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex[:8], init=False)

    def run(
        self,
        phase: Phase,
        numbers: Sequence[int],
        function: Callable[..., TaskResult],
        arguments: Callable[[int], tuple[Any, ...]],
        *,
        collect: Callable[[TaskResult], None],
        repair: Callable[[ScratchCorrupted], None],
    ) -> None:
        """Run a phase's tasks in regions, and collect every result as it comes.

        A task that fails is tried again, after a repair if scratch is damaged. One that took down its worker is tried
        again when no other task runs, so that it cannot take down others. If a task fails too often, the others are
        cancelled and `RegionFailed` is raised.
        """
        queue = _RegionQueue(iter(numbers), RetryPolicy(phase, repair, self.confirm))
        pool = ClusterTasks(
            self.client,
            function,
            key=lambda number: f"{phase.stage}-{self._token}-{phase.turn}-{number}-{queue.policy.attempts[number]}",
            arguments=arguments,
            per_thread=REGIONS_PER_THREAD,
            retries=0,
            after_cancel=self._wait_for_cancelled,
        )

        def settle(settled: list[int], futures: list[Any]) -> list[Any]:
            for number, result in zip(settled, self._results(futures), strict=True):
                if isinstance(result, TaskResult):
                    collect(result)
                    advance(result)
                    self.check()
                else:
                    queue.put_back(number, result)
                    self._add(phase.stage, retried=1)
            return []

        with self.timed(phase.stage) as advance:
            for _ in run_bounded(pool, queue.take, settle):
                pass
            queue.is_isolating, pool.limit = True, 1
            for _ in run_bounded(pool, queue.take, settle):
                pass

    def run_once(self, phase: Phase, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a single task, beside those of the current phase, and return its result."""
        for attempt in range(RETRIES + 1):
            key = f"{phase.stage}-{self._token}-again-{uuid.uuid4().hex[:8]}"
            try:
                return self.client.submit(function, *arguments, key=key, pure=False, retries=RETRIES).result()
            except KilledWorker:
                if attempt == RETRIES:
                    raise
        return None

    def _results(self, futures: list[Any]) -> list[TaskResult | BaseException]:
        """Fetch the results, or the errors, of tasks that are done."""
        # One request for all of them, unless one failed.
        if all(future.status == "finished" for future in futures):
            with suppress(Exception):
                return list(self.client.gather(futures))
        return [self._result(future) for future in futures]

    def _result(self, future: Any) -> TaskResult | BaseException:
        # If the worker that held the result has died since, this waits until another has performed the task.
        error = future.exception()
        # A cancelled task has lost its scheduler, which is not the task's fault.
        if future.status == "cancelled":
            raise ConnectionError(
                "the Dask cluster is gone or has dropped the run's tasks: see its scheduler's and workers' logs."
            )
        return error if error is not None else future.result()  # type: ignore[no-any-return]

    def _wait_for_cancelled(self) -> None:
        """Wait a little for cancelled tasks that were already running, so that they write nothing later."""
        if not self.wait_for_cancelled:
            return
        token = self._token

        def is_ours(dask_worker: Any) -> bool:
            return any(token in str(key) for key in dask_worker.active_keys)

        end, idle = time.monotonic() + SETTLE_SECONDS, 0
        # Idle more than once, since a task may be on its way to a worker that does not know of the cancellation yet.
        while self.client.status == "running" and time.monotonic() < end and idle < 3:
            is_busy = any(self.client.run(is_ours, on_error="ignore").values())
            idle = 0 if is_busy else idle + 1
            time.sleep(0.05)


@dataclass
class _RegionQueue:
    """The regions of a phase whose tasks are still to be submitted."""

    waiting: Iterator[int]
    policy: RetryPolicy
    # Whether tasks that took down a worker are submitted. They are the last ones, each by itself.
    is_isolating: bool = False
    _failed: deque[int] = field(default_factory=deque)
    _isolated: deque[int] = field(default_factory=deque)

    def take(self, count: int) -> list[int]:
        """Return the regions to submit next, at most a given number."""
        numbers: list[int] = []
        while self._failed and len(numbers) < count:
            numbers.append(self._failed.popleft())
        numbers += islice(self.waiting, count - len(numbers))
        while self.is_isolating and self._isolated and len(numbers) < count:
            numbers.append(self._isolated.popleft())
        self.policy.attempts.update(numbers)
        return numbers

    def put_back(self, number: int, error: BaseException) -> None:
        """Return a region whose task failed to the queue, or raise the error if a retry does not help."""
        if _is_hopeless(error):
            raise error
        if self.is_isolating and isinstance(error, KilledWorker):
            # Dask has tried it on as many workers as its configuration allows.
            self.policy.attempts[number] += error.allowed_failures
        self.policy.prepare_retry(number, error)
        (self._isolated if isinstance(error, KilledWorker) else self._failed).append(number)


def _is_hopeless(error: BaseException) -> bool:
    """Return whether a retry does not help, as with a full disk or an object store that refuses for good."""
    if isinstance(error, PermissionError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in HOPELESS
