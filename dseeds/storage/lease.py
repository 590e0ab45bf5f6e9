"""Who is at work on a run: only one at a time may be.

Neither locks nor clocks of several machines can be relied on. So whoever is at work creates a file of the next number,
which only one can, and changes it again and again; one that does not change while another watches is abandoned. Who
finds a higher number than his own, or his own file gone or written by another, has lost the run, as after a long
sleep, and stops.
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

FOLDER = "lease"
BEAT_SECONDS = 2.0
# Several beats: a process can be held up, by compiling or by a slow store.
WATCH_SECONDS = 15.0
# The names of the leases that this process holds: of one that it could not remove, as from a full disk, it knows.
_held: set[str] = set()


class RunInUse(FileExistsError):
    """Another process is at work on the run."""


class LeaseLost(RuntimeError):
    """Another process has taken the run over."""


@contextmanager
def lease(place: Location) -> Iterator[Lease]:
    """Hold a run.

    Parameters
    ----------
    place : Place
        The run's folder.

    Yields
    ------
    Lease
        Call its `check` now and then, and its `confirm` before what cannot be taken back.

    Raises
    ------
    RunInUse
        If another process holds it. Finding out takes some seconds, where that one does not run on this machine.
    """
    held = _take(place)
    try:
        yield held
    finally:
        held.release()


def check_free(place: Location) -> None:
    """Refuse a run that another process holds; see `lease`."""
    _judged(place)


def _judged(place: Location) -> int:
    """Give the number of the newest lease, which is abandoned; 0 where there is none."""
    number = _newest(place)
    if number and not _is_abandoned(place, number):
        raise _in_use(place, number)
    return number


def _take(place: Location) -> Lease:
    before = _judged(place)
    number = before + 1
    held = Lease(place, number)
    if not place.create(_key(number), held.content()) or _newest(place) > number:
        raise _in_use(place, number)
    # Whoever held it and wakes up is not to find his own lease once this one is given back.
    place.delete(_key(older) for older in range(1, number))
    held.start()
    return held


def _in_use(place: Location, number: int) -> RunInUse:
    holder = _holder(place.read(_key(number)))
    who = f"process {holder['process']} on {holder['host']}" if holder else "another process"
    return RunInUse(
        f"{who} is at work on {place.address.removesuffix('.dseeds')}: wait for it, stop it, or name another target."
    )


class Lease:
    """A run that this process holds."""

    def __init__(self, place: Location, number: int) -> None:
        self._place, self._number, self._name = place, number, uuid.uuid4().hex
        self._beats = 0
        self._away = False
        self._over, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="dseeds-lease", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        _held.add(self._name)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the run has not been taken over.

        Raises
        ------
        LeaseLost
            If it has.
        """
        if self._lost.is_set():
            raise LeaseLost(
                f"another process has taken over {self._place.address.removesuffix('.dseeds')}, for this one gave no "
                f"sign of life for {WATCH_SECONDS:.0f} s."
            )

    def confirm(self) -> None:
        """Look whether the run has been taken over; see `check`."""
        self._look()
        self.check()

    def release(self) -> None:
        """Let it go."""
        self._over.set()
        self._thread.join()
        _held.discard(self._name)
        # A store that is gone would keep us waiting once more.
        if self._away:
            return
        with suppress(OSError):
            self._look()
            if not self._lost.is_set():
                self._place.delete([_key(self._number)])

    def content(self) -> bytes:
        """Say who holds the run."""
        return json.dumps({**_me(), "name": self._name, "beats": self._beats}).encode()

    def _look(self) -> None:
        holder = _holder(self._place.read(_key(self._number)))
        if _newest(self._place) != self._number or (holder and holder["name"] != self._name):
            self._lost.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS) and not self._lost.is_set():
            try:
                self._look()
                if not self._lost.is_set():
                    self._beats += 1
                    self._place.write(_key(self._number), self.content())
                self._away = False
            except OSError as error:
                # A store that fails now and then is no reason to stop.
                self._away = isinstance(error, ConnectionError)


def _key(number: int) -> str:
    return f"{FOLDER}/{number:06}.json"


def _newest(place: Location) -> int:
    stems = (Path(name).stem for name in place.names(FOLDER))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _holder(content: bytes | None) -> dict[str, Any] | None:
    """Read who holds a run; None where that cannot be read."""
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(content or b"")
        return {key: found[key] for key in ("host", "machine", "process", "name")}
    return None


def _is_abandoned(place: Location, number: int) -> bool:
    before = place.read(_key(number))
    holder = _holder(before)
    if before is None or (holder and _is_dead(holder)):
        return True
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 2)
        now = place.read(_key(number))
        if now != before:
            # Changed, or given back.
            return now is None
    return True


def _me() -> dict[str, Any]:
    return {"host": platform.node(), "machine": _machine(), "process": os.getpid()}


def _machine() -> str | None:
    """Name what a process number means something in: this boot of this machine, and in it this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _is_dead(holder: dict[str, Any]) -> bool:
    """Tell whether a process of this machine is no more, where that can be told at once.

    That another may have been given its number since is seen by watching: when a process was started is told
    differently before and after the clock is set.
    """
    if holder["machine"] is None or holder["machine"] != _machine():
        return False
    if holder["process"] == os.getpid():
        return holder["name"] not in _held
    try:
        return bool(psutil.Process(holder["process"]).status() == psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError, TypeError):
        return True
