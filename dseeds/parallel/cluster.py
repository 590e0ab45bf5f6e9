"""Dask clusters: the user's or a local one."""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import parent_process, resource_tracker
from typing import Any, ClassVar

import dask
import zarr
from distributed import Client, LocalCluster, SchedulerPlugin, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dseeds._version import __version__
from dseeds.core.formatting import format_bytes
from dseeds.core.kernel_cache import compile_timer
from dseeds.core.progress import Progress
from dseeds.parallel.capacity import READ_AT_ONCE, Capacity

WORKERS_TIMEOUT = 120
# How many more workers Dask itself gives a task that took one down: none, as we retry such a task by itself.
ALLOWED_FAILURES = 0
# The events of workers that begin to compile kernels.
COMPILING = "dseeds-compiling"
# Freed memory that the allocator of a local worker keeps for the next task.
KEPT_BYTES = 256 << 20


def cluster_capacity(client: Client) -> Capacity:
    """Return the capacity of a cluster, whose processes must have the same version of this package as this one.

    Raises a TimeoutError if it has no worker for two minutes.
    """
    # An adaptive cluster starts its first worker when there is a task.
    task = client.submit(int, key=f"dseeds-start-{uuid.uuid4().hex}", pure=False)
    try:
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT)
    except TimeoutError:
        raise TimeoutError(f"the cluster has had no worker for {WORKERS_TIMEOUT} s.") from None
    finally:
        client.cancel([task], force=True)

    # Nested functions are pickled by value, so these run where the package is missing too.
    def installed() -> str | None:
        from importlib import import_module

        try:
            return str(import_module("dseeds").__version__)
        except ImportError:
            return None

    versions = {"the scheduler": client.run_on_scheduler(installed), **client.run(installed)}
    for process, version in versions.items():
        if version != __version__:
            package = f"dseeds {version}" if version else "no dseeds"
            raise ValueError(
                f"{process} of the cluster has {package}, but this process has {__version__}: install the same "
                f"version in all processes."
            )

    def threads_and_limits(dask_scheduler: Any) -> list[tuple[int, int]]:
        return [(w.nthreads, w.memory_limit or 0) for w in dask_scheduler.workers.values()]

    workers = client.run_on_scheduler(threads_and_limits)
    limits = [limit for _, limit in workers if limit] or [MEMORY_LIMIT]
    threads = [n for n, _ in workers]
    return Capacity(len(workers), sum(threads), min(limits), max(threads))


def explain_stall(client: Client) -> str:
    """Return in a sentence why no task of a cluster ends, as far as its scheduler can tell."""

    def workers_seen(dask_scheduler: Any) -> list[tuple[str, int, int, int]]:
        return [
            (state.status.name, int(state.metrics.get("memory", 0)), state.memory_limit or 0, len(state.processing))
            for state in dask_scheduler.workers.values()
        ]

    workers = client.run_on_scheduler(workers_seen)
    if not workers:
        return "the cluster has no workers: start some, or stop and resume with others (--resume)"
    paused = [worker for worker in workers if worker[0] == "paused"]
    if len(paused) == len(workers):
        _, used, limit, _ = max(paused, key=lambda worker: worker[1])
        return (
            f"all {len(workers)} workers are paused, because they use {format_bytes(used)} of {format_bytes(limit)}: "
            f"give them more memory, or set distributed.worker.memory.pause to false for them"
        )
    busy = sum(processing > 0 for *_, processing in workers)
    return f"{busy} of {len(workers)} workers are at work, {len(paused)} are paused"


class ZarrSettings(WorkerPlugin):
    """Keeps zarr's own concurrency low on workers, where Dask's threads already share the cores."""

    # Several workers, of several runs, may live in one process: the first sets, the last restores.
    _lock = threading.Lock()
    _users = 0
    _before: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        # A name per run: another run on the same cluster may end before this one.
        self.name = f"dseeds-zarr-settings-{uuid.uuid4().hex}"

    def setup(self, worker: Any) -> None:
        """Lower the concurrency."""
        low = {"async.concurrency": READ_AT_ONCE, "threading.max_workers": 2}
        with ZarrSettings._lock:
            if ZarrSettings._users == 0:
                ZarrSettings._before = {key: zarr.config.get(key) for key in low}
                zarr.config.set(low)
            ZarrSettings._users += 1

    def teardown(self, worker: Any) -> None:
        """Restore the settings: a worker may live in the user's own process."""
        with ZarrSettings._lock:
            ZarrSettings._users -= 1
            if ZarrSettings._users == 0:
                zarr.config.set(ZarrSettings._before)


class LooseRestrictions(SchedulerPlugin):
    """Lets tasks go to any worker if the one that they ask for is gone, as they allow.

    Dask itself leaves a task waiting for ever that loses its worker while there is no other.
    """

    def __init__(self) -> None:
        # A name per run, as above.
        self.name = f"dseeds-restrictions-{uuid.uuid4().hex}"

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Free the tasks that could not run before this worker came."""
        for task in scheduler.unrunnable:
            if task.loose_restrictions and not any(
                name in scheduler.workers for name in task.worker_restrictions or ()
            ):
                task.worker_restrictions = set()


class CompileNotice(WorkerPlugin):
    """Has workers in processes of their own send an event when they begin to compile kernels."""

    name = COMPILING

    def setup(self, worker: Any) -> None:
        """Follow the timer of the worker's process, if that is not the user's own."""
        if parent_process() is not None:
            compile_timer.on_start = partial(worker.log_event, COMPILING, {})


@contextmanager
def connect(client: Client | None, capacity: Capacity, progress: Progress | None) -> Iterator[Client]:
    """Yield the user's client, or one of a local cluster that is closed at the end."""
    if client is not None:
        with _plugins(client):
            yield client
        return
    with ExitStack() as stack:
        settings = {
            "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
            "distributed.nanny.pre-spawn-environ": worker_environment(),
            # Our tasks leave almost nothing in a worker, so a pause would not empty it, and a worker paused without a
            # task would stay paused. A worker that exceeds its limit is killed, and its task is retried.
            "distributed.worker.memory.pause": False,
        }
        with _without_interrupts(), dask.config.set(settings):
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=capacity.workers,
                    threads_per_worker=1,
                    memory_limit=capacity.memory,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    # Compiling blocks a worker's event loop for a moment, which is not worth a warning.
                    silence_logs=50,
                )
            )
        own = stack.enter_context(Client(cluster, set_as_default=False))
        stack.enter_context(_plugins(own))
        # The user is told as if this process compiled.
        own.subscribe_topic(COMPILING, lambda event: compile_timer.on_start())
        own.register_plugin(CompileNotice())
        if progress:
            progress.dashboard(own.dashboard_link)
        else:
            print(f"Dask dashboard: {own.dashboard_link}", file=sys.stderr, flush=True)
        yield own


def worker_environment() -> dict[str, Any]:
    """Return the environment variables, besides those for its memory limit, of a local worker's process.

    By default Dask makes workers return every freed page at once. All of a task's windows, megabytes each, would then
    be new pages that the kernel clears first: half of the time for reading and writing. What a worker keeps instead is
    at most what its tasks need, which is planned for.
    """
    keep = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), KEPT_BYTES)
    return {**dask.config.get("distributed.nanny.pre-spawn-environ"), **keep}


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C, for good in threads and processes that start in the meantime.

    It reaches every process of a terminal, but workers have to be closed in good order.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting it later would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _plugins(client: Client) -> Iterator[None]:
    settings, restrictions = ZarrSettings(), LooseRestrictions()
    client.register_plugin(settings)
    client.register_plugin(restrictions)
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(settings.name)
            client.unregister_scheduler_plugin(restrictions.name)
