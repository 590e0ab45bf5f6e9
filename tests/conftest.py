"""Settings and real volumes for all tests."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import Phase, settings

from tests.support.leaks import LeakGuard
from tests.support.paths import DATA, ROOT
from tests.support.volumes import read_volume

# Scripts, which import each other by their own names, and those that open a window in a process of its own.
collect_ignore = ["benchmarks", "napari_plugin/gui.py", "napari_plugin/window.py"]

# No deadline: the first example of a test waits for Numba to compile. To explain a failure takes longer than tests may.
settings.register_profile("dseeds", deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("dseeds")


# In Python 3.11, Dask's profiler may block a process for ever; see `dseeds.parallel.worker_settings.StoppedProfiler`.
os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
dask.config.refresh()

# Temporary files are many and small, and flushed: in memory, tests take two thirds of the time.
SHARED_MEMORY, NEEDED = Path("/dev/shm"), 8 << 30
if "TMPDIR" not in os.environ and SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > NEEDED:
    os.environ["TMPDIR"] = str(SHARED_MEMORY)
    tempfile.tempdir = None


def pytest_configure(config):
    config.pluginmanager.register(LeakGuard())


def pytest_collection_modifyitems(items):
    for item in items:
        # The first of them may compile all kernels.
        if "compiled" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))
    # First, so that no process is left with one of them in the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_report_header():
    note = "" if DATA.is_dir() else " IS MISSING, so tests on them are skipped; set DSEEDS_DATA to their folder"
    return f"real volumes: {DATA}{note}"


@pytest.fixture(scope="session")
def ct_3mm():
    """An abdominal CT in HU and its 61 organs, whole cells of 8 voxels: shape (112, 96, 120)."""
    crop = np.s_[:112, :96, :120]
    return read_volume("ct_3mm", "ct.nii.gz")[crop], read_volume("ct_3mm", "organs.nii.gz")[crop]


@pytest.fixture(scope="session")
def mr_sarcoma():
    """An MR of a thigh, float32 and anisotropic, and a tumour's contour."""
    return read_volume("mr_sarcoma", "mr_t1.nii.gz"), read_volume("mr_sarcoma", "tumour.nii.gz")


@pytest.fixture(scope="session")
def hippocampus():
    """A brain crop at 1 mm and its hippocampus, anterior and posterior."""
    return read_volume("hippocampus", "image_001.nii.gz"), read_volume("hippocampus", "label_001.nii.gz")


@pytest.fixture(scope="session")
def clients():
    """Clients of clusters within this process, of 1 and of 2 x 2 threads; none is Dask's default."""
    from tests.support.clusters import in_process

    with in_process(1, 1) as single, in_process(2, 2) as four:
        yield {1: single, 4: four}


@pytest.fixture
def client(clients):
    """A client of two workers of two threads within this process."""
    return clients[4]


@pytest.fixture
def call(capsys):
    """Run the command line in this process; return exit code, standard output and standard error."""

    from dseeds import cli

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def object_store():
    """URL of an S3 in this process; `faulty_store` stands in front of it."""
    from tests.support.faulty_store import moto

    with moto() as url:
        yield url


@pytest.fixture
def faulty_store(object_store, monkeypatch):
    """The S3 of this process and its children; it works until a test sets `faults`."""
    from tests.support.faulty_store import FaultyStore

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with FaultyStore(object_store) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A folder with compiled kernels for processes: the user's own, or a new one."""
    folder = os.environ.get("DSEEDS_CACHE_DIR") or str(tmp_path_factory.mktemp("compiled"))
    command = [sys.executable, "-m", "dseeds", "compile"]
    subprocess.run(
        command, env={**os.environ, "DSEEDS_CACHE_DIR": folder}, check=True, capture_output=True, timeout=600
    )
    return folder


@pytest.fixture
def environment(compiled):
    """The environment of a batch job, without the variables that number it."""
    from dseeds.engine.job_array import ARRAYS

    array = {name for names in ARRAYS for name in names}
    kept = {name: value for name, value in os.environ.items() if name not in array}
    return {**kept, "DSEEDS_CACHE_DIR": compiled, "PYTHONPATH": str(ROOT)}
