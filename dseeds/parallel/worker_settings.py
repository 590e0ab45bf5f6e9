"""Settings of workers during a run: Zarr's concurrency, the memory that the allocator keeps, Dask's profiler."""

from __future__ import annotations

import ctypes
import os
import sys
import uuid
from multiprocessing import parent_process
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import zarr
from distributed import Status, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dseeds.core.forks import ForkSafeLock
from dseeds.parallel.capacity import READ_AT_ONCE

# Freed memory that the allocator of a worker keeps for the next task: a part of its limit, at most so many bytes. More
# would save hardly more time, and what lies scattered between states cannot be returned.
_KEPT_PART, _MOST_KEPT_BYTES = 64, 64 << 20
# The thresholds of glibc's allocator: for `mallopt`, as variables of the environment, and by default.
_THRESHOLDS = {-1: "MALLOC_TRIM_THRESHOLD_", -3: "MALLOC_MMAP_THRESHOLD_"}
_DEFAULT_BYTES = 128 << 10


class _Settings(WorkerPlugin):
    """Settings of a process. Several workers, of several runs, may live in it: the first sets, the last restores."""

    _lock: ClassVar[ForkSafeLock]
    _users: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        cls._lock = ForkSafeLock()

    def __init__(self) -> None:
        # A name per run: another run on the same cluster may end before this one.
        self.name = f"dseeds-{type(self).__name__}-{uuid.uuid4().hex}"

    def setup(self, worker: Any) -> None:
        """Change the settings."""
        with self._lock:
            if self._users == 0:
                self._change(worker)
            type(self)._users += 1

    def teardown(self, worker: Any) -> None:
        """Restore the settings."""
        with self._lock:
            type(self)._users -= 1
            if self._users == 0:
                self._restore()

    def _change(self, worker: Any) -> None:
        raise NotImplementedError

    def _restore(self) -> None:
        raise NotImplementedError


class ZarrSettings(_Settings):
    """Keeps Zarr's own concurrency low on workers, where Dask's threads already share the cores."""

    _before: ClassVar[dict[str, Any]] = {}

    def _change(self, worker: Any) -> None:
        low = {"async.concurrency": READ_AT_ONCE, "threading.max_workers": 2}
        ZarrSettings._before = {key: zarr.config.get(key) for key in low}
        zarr.config.set(low)

    def _restore(self) -> None:
        zarr.config.set(self._before)


class KeptMemory(_Settings):
    """Has the allocator of a worker process keep what is freed, for the next task.

    By default Dask makes workers return every freed page at once. All of a task's windows, megabytes each, would then
    be new pages that the kernel clears first: half of the time for reading and writing.
    """

    def _change(self, worker: Any) -> None:
        # The user's own process stays as it is.
        if parent_process() is not None:
            kept = min((worker.memory_manager.memory_limit or MEMORY_LIMIT) // _KEPT_PART, _MOST_KEPT_BYTES)
            _set_thresholds(dict.fromkeys(_THRESHOLDS.values(), kept))

    def _restore(self) -> None:
        if parent_process() is not None:
            _restore_thresholds()


class StoppedProfiler(WorkerPlugin):
    """Stops the profiler of workers in Python 3.11, where it may block their processes for ever.

    That happens when the garbage collector runs while the profiler asks for the frames of all threads:
    https://github.com/python/cpython/issues/116969.
    """

    # The profiler of each worker, and the number of runs for which it is stopped.
    _stopped: ClassVar[WeakKeyDictionary[Any, tuple[Any, int]]] = WeakKeyDictionary()

    def __init__(self) -> None:
        # A name per run, as for other settings.
        self.name = f"dseeds-profiler-{uuid.uuid4().hex}"

    def setup(self, worker: Any) -> None:
        """Take the profiler away, unless another run has done so: a worker that joins is about to start it."""
        profiler = worker.periodic_callbacks.pop("profile", None) if sys.version_info < (3, 12) else None
        if profiler is not None:
            profiler.stop()
            self._stopped[worker] = profiler, 0
        if worker in self._stopped:
            profiler, runs = self._stopped[worker]
            self._stopped[worker] = profiler, runs + 1

    def teardown(self, worker: Any) -> None:
        """Start the profiler again after the last run."""
        if worker not in self._stopped:
            return
        profiler, runs = self._stopped[worker]
        if runs > 1:
            self._stopped[worker] = profiler, runs - 1
            return
        del self._stopped[worker]
        worker.periodic_callbacks["profile"] = profiler
        if worker.status == Status.running:
            profiler.start()


def return_freed_memory() -> None:
    """Have the C library's allocator return to the system what it keeps, and keep no more, if it is glibc's."""
    if parent_process() is not None:
        _restore_thresholds()
    trim = _allocator("malloc_trim")
    if trim is not None:
        trim(0)


def _allocator(name: str) -> Any:
    """Return a function of glibc's allocator; None if the C library has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def _restore_thresholds() -> None:
    """Set the thresholds that the process began with."""
    before = {name: os.environ.get(name, "") for name in _THRESHOLDS.values()}
    _set_thresholds({name: int(n) if n.isdecimal() else _DEFAULT_BYTES for name, n in before.items()})


def _set_thresholds(thresholds: dict[str, int]) -> None:
    """Set thresholds of the C library's allocator, if it is glibc's."""
    mallopt = _allocator("mallopt")
    if mallopt is not None:
        for parameter, name in _THRESHOLDS.items():
            mallopt(parameter, thresholds[name])
