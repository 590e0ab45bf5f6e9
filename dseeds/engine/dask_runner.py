"""The phases of a run on a Dask cluster: their tasks are submitted, retried where they fail, and timed by stage."""

from __future__ import annotations

import errno
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

from distributed import Client, KilledWorker, WorkerPlugin, get_worker
from distributed.core import Status
from tornado.ioloop import PeriodicCallback

from dseeds.engine.phases import Phase, RegionTask
from dseeds.engine.repair import RetryPolicy
from dseeds.engine.report import TaskResult
from dseeds.engine.residents import residents
from dseeds.engine.stage_timer import StageTimer
from dseeds.engine.tasks import perform_pickled_task
from dseeds.parallel.cluster import print_stall
from dseeds.parallel.executor import LOOK_SECONDS, RETRIES, ClusterTasks, run_bounded
from dseeds.parallel.worker_settings import return_freed_memory
from dseeds.storage.zarr_arrays import ScratchCorrupted

# Tasks in flight for each thread of the cluster: enough that no thread waits, whatever the number of regions.
REGIONS_PER_THREAD = 8
SETTLE_SECONDS = 10
# The events of workers that give up the states of their regions, and how often they look whether they must.
GIVEN_UP, GIVE_UP_SECONDS = "dseeds-given-up", 0.2
# Errors of the operating system that a retry does not help.
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class TaskSource(Protocol):
    """Tasks to perform, some of which may become ready only when others are done."""

    # Tasks in flight for each thread.
    per_thread: int

    def take(self, count: int, free: Mapping[str, int]) -> list[tuple[RegionTask, str]]:
        """Return at most a number of tasks that are ready, each with its worker, or an empty name for any worker.

        `free` are the workers that can take tasks, and how many.
        """

    def finish(self, task: RegionTask, result: TaskResult, worker: str) -> None:
        """Record a task that is done, and the worker that did it."""


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
        tasks: TaskSource,
        arguments: Callable[[RegionTask], tuple[Any, ...]],
        repair: Callable[[ScratchCorrupted], None],
    ) -> None:
        """Perform tasks until their source has no more.

        A task that fails is tried again, after a repair if scratch is damaged. One that took down its worker is tried
        again when no other task runs, so that it cannot take down others. If a task fails too often, the others are
        cancelled and `RegionFailed` is raised.
        """
        places = _WorkerPlaces(self.client, tasks.per_thread)
        queue = _TaskQueue(tasks, places, RetryPolicy(repair, self.confirm), self._begin)
        pool = ClusterTasks(
            self.client,
            perform_on_worker,
            key=lambda task: self._key(task, queue.policy.attempts[task]),
            arguments=arguments,
            worker=places.worker,
            retries=0,
            after_cancel=self._wait_for_cancelled,
            on_stall=partial(print_stall, self.client),
        )
        clock = [time.perf_counter()]

        def settle(settled: list[RegionTask], futures: list[Any]) -> list[Any]:
            results = list(zip(settled, self._results(futures), strict=True))
            # Workers may have come or gone.
            pool.limit = 1 if queue.is_isolating else places.limit
            for task, _ in results:
                places.leave(task)
            elapsed = time.perf_counter() - clock[0]
            clock[0] += elapsed
            busy = sum(result[0].seconds for _, result in results if isinstance(result, tuple)) or 1.0
            for task, result in results:
                if isinstance(result, tuple):
                    done, worker = result
                    # Before the source reacts: what it finds to be unnecessary is counted as well.
                    self.count(task[0].stage, done, elapsed * done.seconds / busy)
                    tasks.finish(task, done, worker)
                    self.check()
                else:
                    queue.put_back(task, result)
                    self._add(task[0].stage, retried=1)
            return []

        while True:
            queue.is_isolating, pool.limit = False, places.limit
            for _ in run_bounded(pool, queue.take, settle):
                pass
            if not queue.has_isolated:
                return
            queue.is_isolating, pool.limit = True, 1
            for _ in run_bounded(pool, queue.take_isolated, settle):
                pass

    def _key(self, task: RegionTask, attempt: int) -> str:
        phase, number = task
        return f"{phase.stage}-{self._token}-{phase.turn}-{number}-{attempt}"

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

    @contextmanager
    def states_of(self, key: str) -> Iterator[None]:
        """Let the states of a run's regions stay in the workers' memory while there is enough; free it at the end."""
        plugin = GiveUpStates(key)
        self.client.register_plugin(plugin)
        try:
            yield
        finally:
            if self.client.status == "running":
                with suppress(Exception):
                    self.client.unregister_worker_plugin(plugin.name)

    def _results(self, futures: list[Any]) -> list[Any]:
        """Fetch the results, or the errors, of tasks that are done."""
        # One request for all of them, unless one failed.
        if all(future.status == "finished" for future in futures):
            with suppress(Exception):
                return list(self.client.gather(futures))
        return [self._result(future) for future in futures]

    def _result(self, future: Any) -> Any:
        # If the worker that held the result has died since, this waits until another has performed the task.
        error = future.exception()
        # A cancelled task has lost its scheduler, which is not the task's fault.
        if future.status == "cancelled":
            raise ConnectionError(
                "the Dask cluster is gone or has dropped the run's tasks: see its scheduler's and workers' logs."
            )
        return error if error is not None else future.result()

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
class _WorkerPlaces:
    """Where tasks are in flight: each thread of a worker has places for some."""

    client: Client
    per_thread: int
    # By task the worker that was asked for; an empty name is any.
    _chosen: dict[RegionTask, str] = field(default_factory=dict)
    _threads: dict[str, int] = field(default_factory=dict)
    _seen: float = float("-inf")

    @property
    def threads(self) -> dict[str, int]:
        """The number of threads by worker, as of a moment ago."""
        if time.monotonic() > self._seen + LOOK_SECONDS:
            self._threads, self._seen = dict(self.client.nthreads()), time.monotonic()
        return self._threads

    @property
    def limit(self) -> int:
        """The number of places."""
        return self.per_thread * max(1, sum(self.threads.values()))

    def free(self) -> dict[str, int]:
        """Return the number of free places of each worker."""
        free = {worker: self.per_thread * threads for worker, threads in self.threads.items()}
        for worker in self._chosen.values():
            if worker in free:
                free[worker] -= 1
        return free

    def enter(self, task: RegionTask, worker: str) -> None:
        """Assign a place of a worker to a task."""
        self._chosen[task] = worker

    def leave(self, task: RegionTask) -> None:
        """Free the place of a task."""
        del self._chosen[task]

    def worker(self, task: RegionTask) -> str:
        """Return the worker that is to perform a task; an empty name if it does not matter."""
        return self._chosen[task]


@dataclass
class _TaskQueue:
    """The tasks that are still to be submitted: those of a source, and those that failed."""

    tasks: TaskSource
    places: _WorkerPlaces
    policy: RetryPolicy
    # Called with the stage of each task that is submitted.
    begin: Callable[[str], None]
    # Whether tasks that took down a worker are submitted.
    is_isolating: bool = False
    _failed: deque[RegionTask] = field(default_factory=deque)
    # Tasks that took down a worker. Each is submitted by itself.
    _isolated: deque[RegionTask] = field(default_factory=deque)

    def take(self, count: int) -> list[RegionTask]:
        """Return the tasks to submit next, at most a given number."""
        chosen: list[RegionTask] = []
        while self._failed and len(chosen) < count:
            chosen.append(self._failed.popleft())
            self.places.enter(chosen[-1], "")
        for task, worker in self.tasks.take(count - len(chosen), self.places.free()):
            self.begin(task[0].stage)
            chosen.append(task)
            self.places.enter(task, worker)
        self.policy.attempts.update(chosen)
        return chosen

    @property
    def has_isolated(self) -> bool:
        """Whether there are tasks that took down a worker."""
        return bool(self._isolated)

    def take_isolated(self, count: int) -> list[RegionTask]:
        """Return a task that took down a worker, if there is one and a place for it."""
        if not count or not self._isolated:
            return []
        task = self._isolated.popleft()
        self.places.enter(task, "")
        self.policy.attempts[task] += 1
        return [task]

    def put_back(self, task: RegionTask, error: BaseException) -> None:
        """Return a task that failed to the queue, or raise the error if a retry does not help."""
        if _is_hopeless(error):
            raise error
        if isinstance(error, KilledWorker):
            # Dask has tried it on as many workers as its configuration allows.
            self.policy.attempts[task] += error.allowed_failures * (self.policy.attempts[task] > 1)
        self.policy.prepare_retry(*task, error)
        (self._isolated if isinstance(error, KilledWorker) else self._failed).append(task)


@dataclass
class PhaseTasks:
    """The tasks of a single phase as a `TaskSource`: any worker may do those of regions that none holds."""

    phase: Phase
    numbers: Iterator[int]
    marks: dict[int, str]
    # The workers that hold the images or states of regions.
    holders: dict[int, str] = field(default_factory=dict)
    per_thread: int = REGIONS_PER_THREAD

    def take(self, count: int, _free: Mapping[str, int]) -> list[tuple[RegionTask, str]]:
        """Return the next tasks."""
        return [((self.phase, number), self.holders.get(number, "")) for number in islice(self.numbers, count)]

    def finish(self, task: RegionTask, result: TaskResult, worker: str) -> None:
        """Record a task that is done, and where."""
        self.marks[task[1]], self.holders[task[1]] = result.outcome, worker


class GiveUpStates(WorkerPlugin):
    """Has a worker that Dask pauses, since its memory is nearly full, give up the states of a run's regions.

    They can be made again from the log. A worker whose memory others use as well would else stay paused for ever.
    """

    def __init__(self, key: str) -> None:
        self.key, self.name = key, f"dseeds-states-{key}"

    def setup(self, worker: Any) -> None:
        """Look from time to time whether the worker is paused."""

        def look() -> None:
            if worker.status != Status.paused:
                return
            if dropped := residents.give_up(self.key):
                worker.log_event(GIVEN_UP, {"worker": worker.address, "bytes": dropped})
            # Also what the tasks that were at work have freed since.
            return_freed_memory()

        self._timer = PeriodicCallback(look, GIVE_UP_SECONDS * 1000)
        self._timer.start()

    def teardown(self, worker: Any) -> None:
        """Free the memory of all states, at the end of the run."""
        self._timer.stop()
        residents.release(self.key)


def perform_on_worker(*arguments: Any) -> tuple[TaskResult, str]:
    """Perform a task on a worker of Dask, and return its result with the worker's address."""
    return perform_pickled_task(*arguments), str(get_worker().address)


def _is_hopeless(error: BaseException) -> bool:
    """Return whether a retry does not help, as with a full disk or an object store that refuses for good."""
    if isinstance(error, PermissionError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in HOPELESS
