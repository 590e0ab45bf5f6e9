"""Executors: they run a bounded number of tasks at a time, on threads of this process or on a Dask cluster."""

from __future__ import annotations

import itertools
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from dseeds.core.progress import STALL_SECONDS, Progress
from dseeds.parallel.capacity import Capacity

if TYPE_CHECKING:
    from distributed import Client

# How often a task that failed is tried again.
RETRIES = 2
# Tasks in flight for each thread: their results wait to be fetched.
TASKS_PER_THREAD = 4
# How often it is looked whether a task has ended.
LONGEST_WAIT = 0.1
# How often it is looked which workers there are.
LOOK_SECONDS = 0.5


class TaskPool(ABC):
    """A place where tasks run, with at most `limit` in flight at a time."""

    limit: int

    @abstractmethod
    def submit(self, tasks: list[Any]) -> list[Any]:
        """Submit tasks, and return a future for each."""

    @abstractmethod
    def wait(self, futures: Iterable[Any]) -> list[Any]:
        """Wait until some of the futures are done, and return these."""

    @abstractmethod
    def cancel(self, futures: list[Any]) -> None:
        """Cancel tasks by their futures."""


def run_bounded(
    pool: TaskPool, take: Callable[[int], list[Any]], settle: Callable[[list[Any], list[Any]], list[Any]]
) -> Iterator[Any]:
    """Run tasks in a pool, a bounded number at a time, and yield their results in any order.

    `take` returns at most a given number of tasks to submit next. `settle` returns the results of tasks, given their
    futures, which are done; it may make `take` return tasks again that failed. Tasks still in flight when this ends are
    cancelled.
    """
    running: dict[Any, Any] = {}
    results: list[Any] = []
    try:
        while True:
            # The limit may have shrunk.
            tasks = take(max(0, pool.limit - len(running)))
            running.update(zip(pool.submit(tasks), tasks, strict=True))
            yield from results
            if not running:
                return
            futures = pool.wait(running)
            results = settle([running.pop(future) for future in futures], futures)
            # Dropping the futures frees the results on the cluster.
            futures.clear()
    finally:
        pool.cancel(list(running))


@dataclass
class ThreadTasks(TaskPool):
    """Threads of this process as a `TaskPool`. A task is the arguments of a function."""

    threads: ThreadPoolExecutor
    function: Callable[..., Any]
    limit: int

    @override
    def submit(self, tasks: list[Any]) -> list[Any]:
        return [self.threads.submit(self.function, *arguments) for arguments in tasks]

    @override
    def wait(self, futures: Iterable[Any]) -> list[Any]:
        return list(wait(futures, return_when=FIRST_COMPLETED).done)

    @override
    def cancel(self, futures: list[Any]) -> None:
        for future in futures:
            future.cancel()


@dataclass
class ClusterTasks(TaskPool):
    """A Dask cluster as a `TaskPool`."""

    client: Client
    # It pickles, and may be called again.
    function: Callable[..., Any]
    # Return the key of a task on the cluster, and the function's arguments.
    key: Callable[[Any], str]
    arguments: Callable[[Any], tuple[Any, ...]]
    # Return the address of the worker that is to perform a task if it can; an empty one if it does not matter.
    worker: Callable[[Any], str] = lambda _: ""
    # Tasks in flight for each thread of the cluster, and how often Dask tries a task again.
    per_thread: int = TASKS_PER_THREAD
    retries: int = RETRIES
    after_cancel: Callable[[], None] = lambda: None
    # Called with the seconds since a task ended, every `STALL_SECONDS` in which none does.
    on_stall: Callable[[float], None] = lambda _: None
    limit: int = field(init=False)
    _seen: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        from distributed import as_completed

        self.look()
        self._completed = as_completed(loop=self.client.loop)

    def look(self) -> None:
        """Adapt the limit to the workers that the cluster has now; an adaptive one gets more for what it is sent."""
        if time.monotonic() > self._seen + LOOK_SECONDS:
            self.limit = self.per_thread * max(1, sum(self.client.nthreads().values()))
            self._seen = time.monotonic()

    @override
    def submit(self, tasks: list[Any]) -> list[Any]:
        groups: dict[str, list[int]] = {}
        for place, task in enumerate(tasks):
            groups.setdefault(self.worker(task), []).append(place)
        futures: list[Any] = [None] * len(tasks)
        for worker, places in groups.items():
            group = [tasks[place] for place in places]
            columns = list(zip(*map(self.arguments, group), strict=True))
            # One message to the scheduler: one for each task costs as much as the task itself.
            submitted = self.client.map(
                self.function,
                *columns,
                key=list(map(self.key, group)),
                pure=False,
                retries=self.retries,
                workers=[worker] if worker else None,
                allow_other_workers=bool(worker),
            )
            for place, future in zip(places, submitted, strict=True):
                futures[place] = future
        self._completed.update(futures)
        return futures

    @override
    def wait(self, futures: Iterable[Any]) -> list[Any]:
        begin, last_notice = time.monotonic(), 0.0
        while not self._completed.has_ready():
            with self._completed.thread_condition:
                if not self._completed.has_ready():
                    self._completed.thread_condition.wait(LONGEST_WAIT)
            waited = time.monotonic() - begin
            if waited > last_notice + STALL_SECONDS:
                last_notice = waited
                self.on_stall(waited)
        return list(self._completed.next_batch())

    @override
    def cancel(self, futures: list[Any]) -> None:
        if futures:
            self.client.cancel(futures, force=True)
            self.after_cancel()


@dataclass(frozen=True)
class Executor:
    """Runs the tasks of a stage, on threads of this process or on a cluster."""

    threads: int
    client: Client | None = None
    progress: Progress | None = None

    def map_unordered(
        self, stage: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], total: int
    ) -> Iterator[Any]:
        """Call a function with each of `total` tuples of arguments, and yield the results in any order.

        The function pickles, and may be called again.
        """
        if self.progress:
            self.progress.begin(stage, total)
        for result in self._results(stage, function, iter(calls)):
            if self.progress:
                self.progress.advance(stage)
            yield result
        if self.progress:
            self.progress.end(stage)

    def _results(self, stage: str, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        def take(count: int) -> list[Any]:
            return list(itertools.islice(calls, count))

        client = self.client
        if client is None:
            with ThreadPoolExecutor(self.threads) as threads:
                pool = ThreadTasks(threads, function, 2 * self.threads)
                yield from run_bounded(pool, take, lambda _, futures: [future.result() for future in futures])
            return
        from dseeds.parallel.cluster import print_stall

        # Keys derived from the arguments could be another client's too, with other results.
        numbers, token = itertools.count(), uuid.uuid4().hex
        tasks = ClusterTasks(
            client,
            function,
            key=lambda _: f"{stage}-{token}-{next(numbers)}",
            arguments=lambda arguments: arguments,
            on_stall=partial(print_stall, client),
        )

        def settle(_: list[Any], futures: list[Any]) -> list[Any]:
            tasks.look()
            return list(client.gather(futures))

        yield from run_bounded(tasks, take, settle)


@contextmanager
def open_executor(
    threads: int, client: Client | None = None, local: Capacity | None = None, progress: Progress | None = None
) -> Iterator[Executor]:
    """Open an executor on the client's cluster, on a local one that is closed at the end, or on threads."""
    if client is None and local is None:
        yield Executor(threads, None, progress)
        return
    # Here, not above: Dask takes its time to import.
    from dseeds.parallel.cluster import connect

    with ExitStack() as stack:
        yield Executor(0, stack.enter_context(connect(client, local or Capacity(1, 1, 0, 1), progress)), progress)
