"""Forks while other threads of this process are inside the package.

The child has none of these threads, but all locks as they were: one that was held is never released. So forks wait for
imports and for the compilation of kernels, and other locks are replaced in the child.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from importlib import _bootstrap
from types import FrameType
from typing import Any, Generic, Self, TypeVar, overload

# How long a fork waits for other threads, and how often it looks whether they import modules.
FORK_SECONDS, IMPORT_LOOK_SECONDS = 60.0, 0.005
# Packages with threads of their own, without which a child would wait for ever.
LOST_IN_FORKS = ("obstore",)
Value = TypeVar("Value", covariant=True)


class cached_property(Generic[Value]):
    """A property that is computed once and kept in the instance's dictionary, as by `functools.cached_property`.

    That of Python 3.11 holds a lock meanwhile, one for all instances of the class. Here, two threads may compute the
    same value.

    >>> class Square:
    ...     side = 3
    ...
    ...     @cached_property
    ...     def area(self):
    ...         print("computed")
    ...         return self.side**2
    >>> square = Square()
    >>> square.area, square.area
    computed
    (9, 9)
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        """Return the value. It is not called again for this instance, whose dictionary comes first."""
        if instance is None:
            return self
        value = vars(instance)[self.name] = self.function(instance)
        return value


class ForkSafeLock:
    """A lock that is free in a child process, whichever thread of the parent held it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def renew(self) -> None:
        """Replace the lock by a free one."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def hold_at_fork(lock: Any) -> None:
    """Have forks wait until no other thread holds a reentrant lock of a library."""
    _held.append(lock)


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_held: list[Any] = []
_inherited: set[str] = set()


def _prepare_fork() -> None:
    """Take the locks, at a moment when no other thread imports a module, unless this takes too long."""
    end = time.monotonic() + FORK_SECONDS
    while True:
        for lock in _held:
            lock.acquire(timeout=max(0.0, end - time.monotonic()))
        if not _are_others_importing() or time.monotonic() > end:
            return
        # The import may need them.
        _release()
        time.sleep(IMPORT_LOOK_SECONDS)


def _are_others_importing() -> bool:
    """Return whether other threads import modules for this package: a child process would wait for them for ever.

    The modules that libraries import only when they are called are included, those that the user imports are not.
    """
    owners: dict[int, list[str]] = {}
    for name, reference in list(getattr(_bootstrap, "_module_locks", {}).items()):
        owner = getattr(reference(), "owner", None)
        if owner is not None:
            owners.setdefault(owner, []).append(str(name))
    # They may wait for this thread, if that imports as well.
    if not owners or threading.get_ident() in owners:
        return False
    frames = sys._current_frames()
    return any(any(map(_is_ours, names)) or _is_called(frames.get(owner)) for owner, names in owners.items())


def _is_called(frame: FrameType | None) -> bool:
    """Return whether a thread is inside a function of this package."""
    while frame is not None and not _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return frame is not None


def _is_ours(module: Any) -> bool:
    return str(module).partition(".")[0] == "dseeds"


def _release() -> None:
    for lock in reversed(_held):
        if lock._is_owned():
            lock.release()


def inherits(module: str) -> bool:
    """Return whether this process was forked from one that had loaded a module of `LOST_IN_FORKS`.

    >>> inherits("obstore")
    False
    """
    return module in _inherited


def _clean_child() -> None:
    _inherited.update(name for name in LOST_IN_FORKS if name in sys.modules)
    _release()
    for lock in list(_locks):
        lock.renew()


# Windows cannot fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_prepare_fork, after_in_parent=_release, after_in_child=_clean_child)
