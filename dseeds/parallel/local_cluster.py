"""Local clusters: worker processes, or threads of this process.

They leave no trace in this process. The configuration of Dask, its current client, the levels of its logs and the
environment are the user's, and other threads may be using them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any, ClassVar, Self

import dask
from distributed import Client, LocalCluster, Nanny
from distributed.utils import LoopRunner
from typing_extensions import override

from dseeds.core.forks import ForkSafeLock
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.unguarded_script import SCRIPT_STATUS, WORKER_VARIABLE

# How many more workers Dask itself gives a task that took one down: none, as we retry such a task by itself.
ALLOWED_FAILURES = 0
# Dask's settings for a worker process, whose memory is planned and nobody else's. A worker that exceeds its limit is
# killed, and its task is retried.
_NEVER_PAUSED = {"distributed.worker.memory.pause": False}
# Any free port: a private cluster stays invisible to others.
FREE_PORT = "127.0.0.1:0"
# Variables that Dask sets by itself.
_DASK_VARIABLES = ("PYTHONHASHSEED", "__DASK_PARENT_PID")
# The loggers that report on clusters, and one of them that does so from any thread.
_LOGGERS, _ANY_THREAD = ("distributed", "bokeh", "tornado", ""), "distributed.utils_perf"


@contextmanager
def worker_processes(capacity: Capacity) -> Iterator[Client]:
    """Start a cluster of processes with a thread each, and yield a client of it, which is not Dask's current one.

    Raises a ValueError if this process must not start others, and a RuntimeError if a script has no guard against being
    imported by the workers.
    """
    if multiprocessing.current_process().daemon:
        raise ValueError(
            "this process is daemonic, like those of multiprocessing.Pool and of Dask workers, and cannot start "
            "workers: leave out workers= and allow more memory=, pass client=, or use "
            "concurrent.futures.ProcessPoolExecutor, whose processes can."
        )
    with _EnvironmentKept() as environment, ExitStack() as stack:
        with _without_interrupts():
            loop = stack.enter_context(_quiet_loop())
            _OwnNanny.script_was_imported = False
            try:
                cluster = LocalCluster(
                    loop=loop,
                    worker_class=_OwnNanny,
                    n_workers=capacity.workers,
                    threads_per_worker=1,
                    memory_limit=capacity.memory,
                    config=_NEVER_PAUSED,
                    host="127.0.0.1",
                    dashboard_address=FREE_PORT,
                    silence_logs=False,
                    scheduler_kwargs={"allowed_failures": ALLOWED_FAILURES},
                )
            except Exception:
                if not _OwnNanny.script_was_imported:
                    raise
                raise RuntimeError(
                    "this script starts workers while it is imported, and every worker imports it: put its calls "
                    'below the line `if __name__ == "__main__":`.'
                ) from None
            stack.enter_context(cluster)
            # Dask sets them again for a worker that it replaces.
            environment.restore_if_alone()
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextmanager
def worker_threads(threads: int) -> Iterator[Client]:
    """Start a cluster of one worker in this process, and yield a client of it, which is not Dask's current one."""
    with (
        _quiet_loop() as loop,
        LocalCluster(
            loop=loop,
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            # A limit would also count the user's own data.
            memory_limit=0,
            dashboard_address=FREE_PORT,
            worker_dashboard_address=FREE_PORT,
            silence_logs=False,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


class _OwnNanny(Nanny):
    """Starts a worker process, whose logs are silent."""

    script_was_imported: ClassVar[bool] = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.silence_logs = logging.CRITICAL
        self.pre_spawn_env[WORKER_VARIABLE] = "yes"

    @override
    def _on_worker_exit_sync(self, exitcode: int) -> None:
        if exitcode == SCRIPT_STATUS:
            _OwnNanny.script_was_imported = True
        super()._on_worker_exit_sync(exitcode)


class _EnvironmentKept:
    """Restores the variables that Dask sets in this process when it starts worker processes."""

    # Several threads may have clusters at once: the first remembers, the last restores.
    _lock = ForkSafeLock()
    _users = 0
    _before: ClassVar[dict[str, str | None]] = {}

    def __enter__(self) -> Self:
        names = {*dask.config.get("distributed.nanny.pre-spawn-environ"), WORKER_VARIABLE, *_DASK_VARIABLES}
        with _EnvironmentKept._lock:
            if _EnvironmentKept._users == 0:
                _EnvironmentKept._before = {name: os.environ.get(name) for name in names}
            _EnvironmentKept._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        with _EnvironmentKept._lock:
            _EnvironmentKept._users -= 1
            if _EnvironmentKept._users == 0:
                self._restore()

    def restore_if_alone(self) -> None:
        """Restore the variables, unless another thread may be starting worker processes."""
        with _EnvironmentKept._lock:
            if _EnvironmentKept._users == 1:
                self._restore()

    def _restore(self) -> None:
        for name, value in _EnvironmentKept._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _ThreadFilter(logging.Filter):
    """Drops what a thread logs."""

    def __init__(self, thread: int) -> None:
        super().__init__()
        self.thread = thread

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self.thread and record.name != _ANY_THREAD


@contextmanager
def _quiet_loop() -> Iterator[Any]:
    """Run an event loop for a cluster in a thread of its own, whose logs go nowhere.

    Dask would change the level of its handlers instead, for the user's clusters too.
    """
    runner = LoopRunner()
    runner.start()
    try:

        async def identify() -> int:
            return threading.get_ident()

        dropped = _ThreadFilter(runner.run_sync(identify))
        handlers = [handler for name in _LOGGERS for handler in logging.getLogger(name).handlers]
        for handler in handlers:
            handler.addFilter(dropped)
        try:
            yield runner.loop
        finally:
            # While the last callbacks of the loop are filtered still.
            runner.stop()
            for handler in handlers:
                handler.removeFilter(dropped)
    finally:
        runner.stop()


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
