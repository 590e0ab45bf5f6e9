"""Dask: a local cluster where no client is given, and what workers can take."""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, ClassVar

import dask
import zarr
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dseeds._version import __version__
from dseeds.core.checks import is_whole_number
from dseeds.core.progress import Progress


def parse_memory(memory: int | str) -> int:
    """Read an amount of memory.

    Raises
    ------
    ValueError
        If it is no positive number of bytes.

    Examples
    --------
    >>> parse_memory("2GiB")
    2147483648
    """
    try:
        number = int(memory) if is_whole_number(memory) else int(parse_bytes(memory)) * bool(memory)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        number = 0
    if number <= 0:
        raise ValueError(f"memory must be a number of bytes such as 2GiB, got {memory!r}.")
    return number


WORKERS_TIMEOUT = 120
# How many workers more Dask itself gives a task to that took one down: it is to be tried alone.
WORKERS_LOST = 0
# Chunks that a worker reads and decodes at once.
READ_AT_ONCE = 4
# Freed memory that a local worker's allocator keeps for the next window.
KEPT_BYTES = 256 << 20
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


def cluster_capacity(client: Client) -> Capacity:
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
        settings = {
            "distributed.scheduler.allowed-failures": WORKERS_LOST,
            "distributed.nanny.pre-spawn-environ": worker_environment(),
            # Our tasks leave next to nothing in a worker, so that waiting would not empty it: a worker that was paused
            # with nothing to do would stay so. One that holds too much is killed at its limit, and its task goes on.
            "distributed.worker.memory.pause": False,
        }
        with _uninterrupted(), dask.config.set(settings):
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


def worker_environment() -> dict[str, Any]:
    """Give what Dask sets before a worker's process begins, but for its memory.

    Dask lets workers give back every freed page at once, so that all of a task's windows, megabytes each, would be
    new pages that the kernel clears first: half of the time of reading and writing. What a worker holds on to is what
    its tasks need at most, which is planned for.
    """
    keep = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), KEPT_BYTES)
    return {**dask.config.get("distributed.nanny.pre-spawn-environ"), **keep}


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
