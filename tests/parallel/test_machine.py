"""Processors and memory, as far as the control groups of a process let it use them."""

import os

import psutil
import pytest

from dseeds.core.checks import check_threads
from dseeds.parallel import machine

GIB = 1 << 30
# Version 2 as systemd mounts it, or beside version 1; and in a container that sees its group as the root.
MODERN = "0::/user.slice/job.scope/step"
OLD = "4:memory:/user.slice/job.scope/step\n2:cpu,cpuacct:/user.slice/job.scope/step\n1:name=systemd:/\n0::/"
FOREIGN = "4:memory:/docker/8f96\n2:cpu,cpuacct:/docker/8f96\n0::/../docker/8f96"


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """A function that describes the control groups: their lines in /proc, and files by name."""

    def describe(lines, files):
        (tmp_path / "cgroup").write_text(f"{lines}\n" if lines else "")
        for name, content in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(f"{content}\n")
        monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")

    # Larger than any limit below.
    monkeypatch.setattr(machine, "check_threads", lambda threads: 64)
    large = psutil.virtual_memory()._replace(total=512 * GIB, available=400 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: large)
    return describe


def test_without_limits(limit):
    limit("", {})
    assert (machine.cpu_count(), machine.memory_limit(), machine.free_memory()) == (64, 512 * GIB, 400 * GIB)


@pytest.mark.parametrize("folder", ["", "unified/"])
@pytest.mark.parametrize("group", ["user.slice", "user.slice/job.scope", "user.slice/job.scope/step"])
def test_a_limit_of_any_group_around_a_process_holds(limit, folder, group):
    none = {"cpu.max": "max 100000", "memory.max": "max", "memory.current": 9 * GIB}
    files = {f"user.slice/job.scope/step/{name}": content for name, content in none.items()}
    files |= {
        f"{group}/{name}": content for name, content in {"cpu.max": "250000 100000", "memory.max": 8 * GIB}.items()
    }
    files |= {f"{group}/memory.current": 3 * GIB, f"{group}/memory.stat": f"anon 5\ninactive_file {GIB}"}
    # Another job's.
    files |= {"user.slice/other.scope/memory.max": GIB, "user.slice/other.scope/memory.current": 0}
    limit(MODERN, {f"{folder}{name}": content for name, content in files.items()})
    assert (machine.cpu_count(), machine.memory_limit(), machine.free_memory()) == (3, 8 * GIB, 6 * GIB)


def test_the_smallest_limit_holds(limit):
    files = {
        "user.slice/memory.max": 16 * GIB,
        "user.slice/memory.current": 15 * GIB,
        "user.slice/cpu.max": "200000 1000",
    }
    step = "user.slice/job.scope/step"
    files |= {f"{step}/memory.max": 8 * GIB, f"{step}/memory.current": 2 * GIB, f"{step}/cpu.max": "10 100"}
    limit(MODERN, files)
    # Of the memory that the step may take, its neighbours have taken most.
    assert (machine.cpu_count(), machine.memory_limit(), machine.free_memory()) == (1, 8 * GIB, GIB)


@pytest.mark.parametrize(("lines", "group"), [(OLD, "user.slice/job.scope"), (FOREIGN, "")])
def test_version_1_and_containers(limit, lines, group):
    files = {
        f"memory/{group}/memory.limit_in_bytes": 8 * GIB,
        f"memory/{group}/memory.usage_in_bytes": 3 * GIB,
        f"memory/{group}/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}",
        f"cpu/{group}/cpu.cfs_quota_us": 150000,
        f"cpu/{group}/cpu.cfs_period_us": 100000,
    }
    if group:
        files |= {"memory/memory.limit_in_bytes": (1 << 63) - 4096, "memory/memory.usage_in_bytes": 9 * GIB}
        files |= {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}
    limit(lines, files)
    assert (machine.cpu_count(), machine.memory_limit(), machine.free_memory()) == (2, 8 * GIB, 6 * GIB)


def test_this_process():
    assert 1 <= machine.cpu_count() <= check_threads(None) <= (os.cpu_count() or 1)
    assert 0 < machine.free_memory() <= machine.memory_limit() <= psutil.virtual_memory().total
