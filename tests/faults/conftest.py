"""Fixtures of the fault matrix."""

import dask
import pytest

from dseeds.core import jit
from tests.support import faulty_tasks
from tests.support.faulty_tasks import Fault


@pytest.fixture
def started(compiled, monkeypatch):
    """What processes that are started here find in their environment."""
    monkeypatch.setenv(jit.CACHE_FOLDER, compiled)
    for name, value in faulty_tasks.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def faulty_workers(started, tmp_path, monkeypatch):
    """Let tasks go wrong on workers that are started from now on."""
    (tmp_path / "faults").mkdir()

    def make(*wanted):
        faults = [Fault(str(tmp_path / "faults"), *fault) for fault in wanted]
        for name, value in faulty_tasks.environment(*faults).items():
            monkeypatch.setenv(name, value)
        return faults

    with dask.config.set({"distributed.worker.preload": ["tests.support.faulty_tasks"]}):
        yield make


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"
