"""Fixtures of the fault matrix."""

import dask
import pytest

from dseeds.core import kernel_cache
from tests.support import faulty_tasks
from tests.support.faulty_tasks import Fault


@pytest.fixture
def started(compiled, monkeypatch):
    """The environment of processes that a test starts."""
    monkeypatch.setenv(kernel_cache.CACHE_FOLDER, compiled)
    for name, value in faulty_tasks.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def faulty_workers(started, tmp_path, monkeypatch):
    """Return a function that makes tasks fail on workers started afterwards."""
    (tmp_path / "faults").mkdir()

    def make(*requested):
        faults = [Fault(str(tmp_path / "faults"), *fault) for fault in requested]
        for name, value in faulty_tasks.environment(*faults).items():
            monkeypatch.setenv(name, value)
        return faults

    with dask.config.set({"distributed.worker.preload": ["tests.support.faulty_tasks"]}):
        yield make


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"
