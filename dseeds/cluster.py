"""Dask: a local cluster where no client is given, what workers can take, and stages as bounded streams of tasks."""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, ClassVar

import zarr
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, WorkerPlugin, as_completed
from distributed.system import MEMORY_LIMIT

from dseeds import __version__
from dseeds.report import Progress, StageReport

# Tasks at the scheduler per thread of the cluster: enough that no thread waits, whatever the number of regions.
IN_FLIGHT = 4
WORKERS_TIMEOUT = 120
SETTLE_SECONDS = 10
# Chunks that a worker reads and decodes at once.
READ_AT_ONCE = 4
# Workers of a local cluster get at least so much, if nothing else is asked for.
WORKER_LEAST = 1 << 30


class ZarrSettings(WorkerPlugin):
    """Keep zarr's own concurrency low on workers, where Dask's threads already share the cores."""

    # Several workers, of several runs, may live in one process: the first sets, the last sets back.
    _lock = threading.Lock()
    _users = 0
    _before: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        # A name per run: another run on the same cluster may end before this one.
        self.name = f"dseeds-zarr-settings-{uuid.uuid4().hex}"

    def setup(self, worker: Any) -> None:
        """Set them."""
        low = {"async.concurrency": READ_AT_ONCE, "threading.max_workers": 2}
        with ZarrSettings._lock:
            if ZarrSettings._users == 0:
                ZarrSettings._before = {key: zarr.config.get(key) for key in low}
                zarr.config.set(low)
            ZarrSettings._users += 1

    def teardown(self, worker: Any) -> None:
        """Set back what was there: a worker may live in the user's own process."""
        with ZarrSettings._lock:
            ZarrSettings._users -= 1
            if ZarrSettings._users == 0:
                zarr.config.set(ZarrSettings._before)


@dataclass(frozen=True)
class Capacity:
    """What a cluster's workers can take.

    Attributes
    ----------
    workers, threads : int
        Over all workers.
    memory : int
        Bytes of the smallest worker.
    threads_per_worker : int
        Of the worker with the most.
    """

    workers: int
    threads: int
    memory: int
    threads_per_worker: int


def local_capacity(workers: int | None, memory: int | None) -> Capacity:
    """Choose what a local cluster is to have.

    By default it is a worker per core, but no more than can have 1 GiB each.

    Raises
    ------
    ValueError
        If `workers` is not positive.
    """
    if workers is not None and (workers < 1 or int(workers) != workers):
        raise ValueError(f"workers must be at least 1 and whole, got {workers!r}.")
    number = int(workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // (memory or WORKER_LEAST))))
    return Capacity(number, number, memory or int(0.9 * MEMORY_LIMIT / number), 1)


def capacity(client: Client) -> Capacity:
    """Ask a cluster for its workers, and whether they run the same version as this process.

    Raises
    ------
    TimeoutError
        If it has no worker for two minutes.
    ValueError
        If a process of it has another version of this package, or none.
    """
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
    except TimeoutError:
        raise TimeoutError(f"the cluster has had no worker for {WORKERS_TIMEOUT} s.") from None

    # Nested functions travel by value, so these run where the package is missing too.
    def installed() -> str | None:
        from importlib import import_module

        try:
            return str(import_module("dseeds").__version__)
        except ImportError:
            return None

    found = {"the scheduler": client.run_on_scheduler(installed), **client.run(installed)}
    for place, version in found.items():
        if version != __version__:
            there = f"dseeds {version}" if version else "no dseeds"
            raise ValueError(
                f"{place} of the cluster has {there}, but this process has {__version__}: install the same."
            )

    def ask(dask_scheduler: Any) -> list[tuple[int, int]]:
        return [(w.nthreads, w.memory_limit or 0) for w in dask_scheduler.workers.values()]

    workers = client.run_on_scheduler(ask)
    limits = [limit for _, limit in workers if limit] or [MEMORY_LIMIT]
    threads = [n for n, _ in workers]
    return Capacity(len(workers), sum(threads), min(limits), max(threads))


@contextmanager
def connect(client: Client | None, has: Capacity, progress: Progress | None) -> Iterator[Client]:
    """Lend the client that is given, or one of a local cluster that is closed at the end."""
    if client is not None:
        with _settings(client):
            yield client
        return
    with ExitStack() as stack:
        with _uninterrupted():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=has.workers,
                    threads_per_worker=1,
                    memory_limit=has.memory,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    # Compiling holds a worker's event loop for a moment; that is no news.
                    silence_logs=50,
                )
            )
        own = stack.enter_context(Client(cluster))
        stack.enter_context(_settings(own))
        if progress:
            progress.dashboard(own.dashboard_link)
        else:
            print(f"Dask dashboard: {own.dashboard_link}", file=sys.stderr, flush=True)
        yield own


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back, and keep it for good from threads and processes that begin meanwhile.

    It reaches every process of a terminal; but workers are to be closed in good order, not to die of it at length.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Its own start would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _settings(client: Client) -> Iterator[None]:
    settings = ZarrSettings()
    client.register_plugin(settings)
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(settings.name)


def peak_memory() -> int:
    """Give the highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: after an exec it still knows the parent's peak.
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Stages:
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
    """

    client: Client
    totals: dict[str, int]
    progress: Progress | None = None
    wait_for_cancelled: bool = True
    _done: dict[str, int] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    @contextmanager
    def timed(self, stage: str) -> Iterator[Callable[[], None]]:
        """Time a piece of a stage, and lend what tells that one of its tasks is done."""
        if stage not in self._done:
            self._done[stage], self._seconds[stage] = 0, 0.0
            if self.progress:
                self.progress.begin(stage, self.totals[stage])

        def advance() -> None:
            self._done[stage] += 1
            if self.progress:
                self.progress.advance(stage)

        start = time.perf_counter()
        try:
            yield advance
        finally:
            self._seconds[stage] += time.perf_counter() - start
        if self.progress and self._done[stage] >= self.totals[stage]:
            self.progress.end(stage)

    def run(
        self,
        stage: str,
        function: Callable[..., Any],
        numbers: Sequence[int],
        *args: Any,
        job: Any,
        each: Callable[[Any], None] | None = None,
        skipped: int = 0,
    ) -> None:
        """Run ``function(job, number, *args)`` for every number as tasks; hand the results to `each` as they come.

        As many tasks as are `skipped` count as done. Only a bounded number of tasks is known to the scheduler at any
        time. Where one fails, the others are cancelled.
        """
        bound = IN_FLIGHT * sum(self.client.nthreads().values())
        waiting = iter(numbers)
        running = set()
        piece = sum(self._done.values())

        def submit(number: int) -> Any:
            key = f"{stage}-{self._token}-{piece}-{number}"
            future = self.client.submit(function, job, number, *args, key=key, pure=False, retries=2)
            running.add(future)
            return future

        with self.timed(stage) as advance:
            for _ in range(skipped):
                advance()
            try:
                finished = as_completed([submit(number) for number in islice(waiting, max(1, bound))])
                for future in finished:
                    running.discard(future)
                    result = future.result()
                    for number in islice(waiting, 1):
                        finished.add(submit(number))
                    if each:
                        each(result)
                    advance()
            finally:
                if running:
                    self.client.cancel(list(running), force=True)
                    if self.wait_for_cancelled:
                        self._settle()

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
        return tuple(StageReport(name, self._done[name], round(self._seconds[name], 4)) for name in self._done)
