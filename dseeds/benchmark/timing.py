"""Times of the fastest of several calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

REPEATS = 3


def best_time(run: Callable[[], Any], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)
