"""Fixtures of the tests of the command line."""

import pytest

import dseeds.api.segment as api_segment
from dseeds.parallel import local_cluster
from tests.support.clusters import worker_processes
from tests.support.commands import REPORT


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one worker process."""
    with worker_processes(1) as cluster:
        yield cluster


@pytest.fixture
def no_cluster(monkeypatch):
    """Make the start of a cluster an error."""

    def refuse(**_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(local_cluster, "LocalCluster", refuse)


@pytest.fixture
def arguments_of_segment(monkeypatch):
    """Record the arguments that the command line passes to `dseeds.segment`, which does nothing."""
    passed = {}

    def segment(source, target, **options):
        passed.update(options, source=source, target=target)
        return REPORT

    monkeypatch.setattr(api_segment, "segment", segment)
    return passed
