"""Dask clusters: the user's or a local one."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import parent_process
from typing import Any

from distributed import Client, SchedulerPlugin, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dseeds._version import __version__
from dseeds.core.formatting import format_bytes, format_duration
from dseeds.core.kernel_cache import compile_timer
from dseeds.core.progress import STALL_SECONDS, Progress
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.local_cluster import worker_processes
from dseeds.parallel.worker_settings import KeptMemory, StoppedProfiler, ZarrSettings

# How long a cluster may be without a worker that takes tasks, and how often it is looked for one.
WORKERS_TIMEOUT, WAIT_SECONDS = 120, 0.1
# The events of workers that begin to compile kernels.
COMPILING = "dseeds-compiling"


def cluster_capacity(client: Client) -> Capacity:
    """Return the capacity of a cluster; raise the errors of `check_workers`."""

    def threads_and_limits(dask_scheduler: Any) -> list[tuple[int, int]]:
        return [(w.nthreads, w.memory_limit or 0) for w in dask_scheduler.workers.values()]

    workers: list[tuple[int, int]] = []
    while not workers:
        check_workers(client)
        # An adaptive cluster may have removed them again.
        workers = client.run_on_scheduler(threads_and_limits)
    limits = [limit for _, limit in workers if limit] or [MEMORY_LIMIT]
    threads = [n for n, _ in workers]
    return Capacity(len(workers), sum(threads), min(limits), max(threads))


def check_workers(client: Client) -> None:
    """Wait for the first worker of a cluster, and check that all processes have the same version as this one.

    Raises
    ------
    TimeoutError
        If no worker takes tasks for two minutes, unless the cluster's object in this process is about to start some.
    ValueError
        If a process of the cluster has another version of this package, or none.
    """
    _wait_for_worker(client)

    # Nested functions are pickled by value, so these run where the package is missing too.
    def installed() -> str | None:
        from importlib import import_module

        try:
            return str(import_module("dseeds").__version__)
        except ImportError:
            return None

    versions = {"the scheduler": client.run_on_scheduler(installed), **client.run(installed, on_error="ignore")}
    for process, version in versions.items():
        if version != __version__:
            package = f"dseeds {version}" if version else "no dseeds"
            raise ValueError(
                f"{process} of the cluster has {package}, but this process has {__version__}: install the same "
                f"version in all processes."
            )


def _wait_for_worker(client: Client) -> None:
    """Wait until a worker takes tasks, and say from time to time why none does."""

    def count_running(dask_scheduler: Any) -> int:
        return len(dask_scheduler.running)

    begin, last_notice = time.monotonic(), 0.0
    # An adaptive cluster starts its first worker when there is a task.
    task = client.submit(int, key=f"dseeds-start-{uuid.uuid4().hex}", pure=False)
    try:
        while not client.run_on_scheduler(count_running):
            waited = time.monotonic() - begin
            if waited > WORKERS_TIMEOUT and not _expects_workers(client):
                # The first worker may have come since.
                if client.run_on_scheduler(count_running):
                    break
                raise TimeoutError(_refusal(client))
            if waited > last_notice + STALL_SECONDS:
                last_notice = waited
                print_stall(client, waited)
            time.sleep(WAIT_SECONDS)
    finally:
        client.cancel([task], force=True)


def _refusal(client: Client) -> str:
    """Return in a sentence why a cluster cannot be used, none of whose workers takes tasks."""
    if not client.scheduler_info(n_workers=-1)["workers"]:
        return f"the cluster has had no worker for {WORKERS_TIMEOUT} s: start some, or see why its jobs do not start."
    return f"the cluster has begun no task for {WORKERS_TIMEOUT} s: {explain_stall(client)}."


def _expects_workers(client: Client) -> bool:
    """Return whether a cluster without workers is about to start some, as with an adaptive one or jobs in a queue."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return not workers and (
        getattr(client.cluster, "_adaptive", None) is not None or bool(getattr(client.cluster, "plan", ()))
    )


def print_stall(client: Client, seconds: float) -> None:
    """Say on standard error why no task of a cluster has ended for some time."""
    with suppress(Exception):
        reason = explain_stall(client)
        print(f"No task has ended for {format_duration(seconds)}: {reason}.", file=sys.stderr, flush=True)


def explain_stall(client: Client) -> str:
    """Return in a sentence why no task of a cluster ends, as far as its scheduler and its workers can tell."""

    def workers_seen(dask_scheduler: Any) -> dict[str, tuple[str, int, int, int]]:
        return {
            address: (
                state.status.name,
                int(state.metrics.get("memory", 0)),
                state.memory_limit or 0,
                len(state.processing),
            )
            for address, state in dask_scheduler.workers.items()
        }

    def pause_fraction(dask_worker: Any) -> float:
        return float(dask_worker.memory_manager.memory_pause_fraction or 0)

    workers = client.run_on_scheduler(workers_seen)
    if not workers:
        return "the cluster has no workers: start some (a run that has begun goes on with them, or with --resume)"
    paused = {address: worker for address, worker in workers.items() if worker[0] == "paused"}
    busy = sum(processing > 0 for address, (*_, processing) in workers.items() if address not in paused)
    if not paused:
        return f"{busy} of {len(workers)} workers are busy, none is paused"
    fullest = max(paused, key=lambda address: paused[address][1])
    _, used, limit, _ = paused[fullest]
    fraction = client.run(pause_fraction, workers=[fullest], on_error="ignore").get(fullest, 0.0)
    number = f"{len(paused)} of {len(workers)} workers" if len(paused) < len(workers) else f"all {len(workers)} workers"
    if not fraction or used < fraction * limit:
        return f"{number} are paused, though not for want of memory: resume them, or start others"
    return (
        f"{number} are paused, because they use {format_bytes(used)} of their {format_bytes(limit)}, more than "
        f"{fraction:.0%}: give them more memory, or set distributed.worker.memory.pause, which is {fraction:g} there, "
        f"to a higher number or to false"
    )


class LooseRestrictions(SchedulerPlugin):
    """Lets tasks go to any worker if the one that they ask for is gone, as they allow.

    Dask itself leaves a task waiting for ever that loses its worker while there is no other.
    """

    def __init__(self) -> None:
        # A name per run: another run on the same cluster may end before this one.
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
        check_workers(client)
        with _plugins(client):
            yield client
        return
    with worker_processes(capacity) as own, _plugins(own):
        # The user is told as if this process compiled.
        own.subscribe_topic(COMPILING, lambda event: compile_timer.on_start())
        own.register_plugin(CompileNotice())
        if progress:
            progress.dashboard(own.dashboard_link)
        else:
            print(f"Dask dashboard: {own.dashboard_link}", file=sys.stderr, flush=True)
        yield own


@contextmanager
def _plugins(client: Client) -> Iterator[None]:
    settings, restrictions = (ZarrSettings(), KeptMemory(), StoppedProfiler()), LooseRestrictions()
    for plugin in (*settings, restrictions):
        client.register_plugin(plugin)
    try:
        yield
    finally:
        if client.status == "running":
            for plugin in settings:
                client.unregister_worker_plugin(plugin.name)
            client.unregister_scheduler_plugin(restrictions.name)
