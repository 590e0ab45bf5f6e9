"""The processors and the memory of this machine, or of the container that this process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

import psutil

from dseeds.core.checks import check_threads

# The limit of a container's memory and what it uses, in both versions of Linux control groups.
_MEMORY_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def cpu_count() -> int:
    """Return the number of processors that this process can keep busy."""
    count = check_threads(None)
    # The file says "max" where there is no limit.
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, ceil(int(quota) / int(period))))
    return count


def memory_limit() -> int:
    """Return the bytes of memory that there are."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _container_memory())])


def free_memory() -> int:
    """Return the bytes that this process can allocate without swapping or exceeding the limit of its container."""
    free = [max(0, limit - usage) for limit, usage in _container_memory()]
    return min([int(psutil.virtual_memory().available), *free])


def _container_memory() -> Iterator[tuple[int, int]]:
    """Yield the limit of the container's memory, if there is one, and what it uses."""
    for files in _MEMORY_FILES:
        with suppress(OSError, ValueError):
            limit, usage = (int(Path(file).read_text()) for file in files)
            yield limit, usage - _file_cache(Path(files[0]).parent)


def _file_cache(folder: Path) -> int:
    """Return the bytes of a container's usage that the kernel gives up when they are needed."""
    with suppress(OSError, ValueError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(lines.get("inactive_file", lines.get("total_inactive_file", 0)))
    return 0
