"""Checks of parameters given by the user."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from dseeds.core.geometry import Triple, triple


def read_extents(name: str, numbers: Any) -> Triple | None:
    """Read a number of voxels along all axes, or three along (z, y, x); None stays None.

    Raise a ValueError if it is neither, or not positive.
    """
    if numbers is None:
        return None
    extents = list(numbers) if isinstance(numbers, Iterable) else [numbers] * 3
    if len(extents) != 3 or not all(is_whole_number(n) and n >= 1 for n in extents):
        raise ValueError(f"{name} must be a number of voxels, or three of them for (z, y, x), got {numbers!r}.")
    return triple(extents)


def check_threads(threads: Any) -> int:
    """Return a number of threads, one per core for None; raise a ValueError unless it is whole and at least 1."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}.")
    return int(threads)


def is_whole_number(number: Any) -> bool:
    """Return whether a value is a number without a fractional part."""
    return isinstance(number, Real) and float(number).is_integer()
