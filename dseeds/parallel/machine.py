"""The processors and the memory of this machine, or of the container that this process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

import psutil

from dseeds.core.checks import check_threads

# Where Linux lists the control groups of this process, and where it mounts the groups of both versions.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# The files with the limit of a group's memory and what it uses, in either version.
_MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def cpu_count() -> int:
    """Return the number of processors that this process can keep busy."""
    return min([check_threads(None), *(max(1, ceil(share)) for share in _processor_shares())])


def memory_limit() -> int:
    """Return the bytes of memory that there are."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _container_memory())])


def free_memory() -> int:
    """Return the bytes that this process can allocate without swapping or exceeding the limit of its container."""
    free = [max(0, limit - usage) for limit, usage in _container_memory()]
    return min([int(psutil.virtual_memory().available), *free])


def _processor_shares() -> Iterator[float]:
    """Yield how many processors each control group of this process may keep busy, if that is limited."""
    for folder in _control_groups("cpu"):
        # The files say "max" or -1 where there is no limit.
        with suppress(OSError, ValueError):
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            yield quota / period
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:
                yield quota / period


def _container_memory() -> Iterator[tuple[int, int]]:
    """Yield the limit of the memory of each control group of this process, if there is one, and what it uses."""
    for folder in _control_groups("memory"):
        for files in _MEMORY_FILES:
            with suppress(OSError, ValueError):
                limit, usage = (int((folder / file).read_text()) for file in files)
                yield limit, usage - _file_cache(folder)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process: its own, and all that contain it.

    A container may see the paths of groups outside of it, whose folders it does not have. Its own group is then mounted
    as the root.
    """
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # Version 2 has one hierarchy for all controllers, without a name; both versions may be in use at once.
            roots = [_GROUPS, _GROUPS / "unified"] if not controllers else [_GROUPS / controller]
            if not controllers or controller in controllers.split(","):
                for root in roots:
                    group = root / path.lstrip("/")
                    yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _file_cache(folder: Path) -> int:
    """Return the bytes of a group's usage that the kernel gives up when they are needed."""
    with suppress(OSError, ValueError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # Version 1 counts the groups within only in the latter.
        return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
    return 0
