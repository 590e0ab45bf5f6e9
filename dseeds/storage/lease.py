"""Leases: only one process at a time works on a run.

Neither locks nor clocks can be trusted across machines. A process that takes a lease therefore creates the file of the
next number, which only one process can, and rewrites it regularly (its heartbeat). A file that does not change while
another process watches it is abandoned. A process that finds a higher number than its own, or its own file missing or
written by another, as after suspension, has lost the run and stops.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from dseeds.storage.location import Location

LEASE_FOLDER = "lease"
BEAT_SECONDS = 2.0
# Several heartbeats: compilation or a slow store can delay a process.
WATCH_SECONDS = 15.0
# The leases that this process holds. A lease of ours that is not among them is a file that could not be removed, for
# instance from a full disk.
_held: set[str] = set()


class RunInUse(FileExistsError):
    """Another process is working on the run."""


class LeaseLost(RuntimeError):
    """Another process has taken over the run."""


@contextmanager
def hold_lease(folder: Location) -> Iterator[Lease]:
    """Hold the lease of a run; raise RunInUse if another process holds it, after some seconds if on another machine.

    Call the `check` of the lease regularly, and its `confirm` before an irreversible step.
    """
    lease = _take(folder)
    try:
        yield lease
    finally:
        lease.release()


def check_free(folder: Location) -> int:
    """Return the number of a run's newest lease, which is abandoned, or 0; raise RunInUse if it is held."""
    number = _newest(folder)
    if number and not _is_abandoned(folder, number):
        raise _in_use(folder, number)
    return number


def _take(folder: Location) -> Lease:
    number = check_free(folder) + 1
    lease = Lease(folder, number)
    if not folder.create(_key(number), lease.content()) or _newest(folder) > number:
        raise _in_use(folder, number)
    # Otherwise, a previous holder that wakes up would find its own lease once this one is released.
    folder.delete(_key(older) for older in range(1, number))
    lease.start()
    return lease


def _in_use(folder: Location, number: int) -> RunInUse:
    holder = _read_holder(folder.read(_key(number)))
    process = f"process {holder['process']} on {holder['host']}" if holder else "another process"
    return RunInUse(
        f"{process} is at work on {folder.address.removesuffix('.dseeds')}: wait for it, stop it, or name another "
        f"target."
    )


class Lease:
    """A lease that this process holds."""

    def __init__(self, folder: Location, number: int) -> None:
        self._folder, self._number, self._name = folder, number, uuid.uuid4().hex
        self._beats = 0
        self._unreachable = False
        self._over, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="dseeds-lease", daemon=True)

    def start(self) -> None:
        """Start the heartbeat."""
        _held.add(self._name)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLost if another process has been seen to take over the run."""
        if self._lost.is_set():
            raise LeaseLost(
                f"another process has taken over {self._folder.address.removesuffix('.dseeds')}, because this one "
                f"showed no sign of life for {WATCH_SECONDS:.0f} s."
            )

    def confirm(self) -> None:
        """Look whether another process has taken over the run, and raise LeaseLost if so."""
        self._look()
        self.check()

    def release(self) -> None:
        """Stop the heartbeat and remove the lease."""
        self._over.set()
        self._thread.join()
        _held.discard(self._name)
        # A store that is unreachable would only make the process wait once more.
        if self._unreachable:
            return
        with suppress(OSError):
            self._look()
            if not self._lost.is_set():
                self._folder.delete([_key(self._number)])

    def content(self) -> bytes:
        """Return the content of the lease's file, which changes with every heartbeat."""
        process = {"host": platform.node(), "machine": _machine(), "process": os.getpid()}
        return json.dumps({**process, "name": self._name, "beats": self._beats}).encode()

    def _look(self) -> None:
        holder = _read_holder(self._folder.read(_key(self._number)))
        if _newest(self._folder) != self._number or (holder and holder["name"] != self._name):
            self._lost.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS) and not self._lost.is_set():
            try:
                self._look()
                if not self._lost.is_set():
                    self._beats += 1
                    self._folder.write(_key(self._number), self.content())
                self._unreachable = False
            except OSError as error:
                # An occasional failure of the store is no reason to stop.
                self._unreachable = isinstance(error, ConnectionError)


def _key(number: int) -> str:
    return f"{LEASE_FOLDER}/{number:06}.json"


def _newest(folder: Location) -> int:
    stems = (Path(name).stem for name in folder.names(LEASE_FOLDER))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _read_holder(content: bytes | None) -> dict[str, Any] | None:
    """Return the process that a lease names, or None if it cannot be read."""
    with suppress(ValueError, KeyError, TypeError):
        holder = json.loads(content or b"")
        return {key: holder[key] for key in ("host", "machine", "process", "name")}
    return None


def _is_abandoned(folder: Location, number: int) -> bool:
    before = folder.read(_key(number))
    holder = _read_holder(before)
    if before is None or (holder and _is_dead(holder)):
        return True
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 2)
        now = folder.read(_key(number))
        if now != before:
            # Either rewritten or released.
            return now is None
    return True


def _machine() -> str | None:
    """Return the scope of process numbers: this boot of this machine, and this container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether a process is known to have ended, which can only be told on its own machine.

    A new process may have received the same number. That shows when the lease is watched: the start times of processes
    shift when the clock is set, so they cannot be compared.
    """
    if holder["machine"] is None or holder["machine"] != _machine():
        return False
    if holder["process"] == os.getpid():
        return holder["name"] not in _held
    try:
        return bool(psutil.Process(holder["process"]).status() == psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError, TypeError):
        return True
