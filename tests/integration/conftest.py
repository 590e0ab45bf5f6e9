"""Fixtures of the tests of whole runs."""

import pytest

from dseeds import segment, supervoxels
from tests.support.batches import IMAGE, init
from tests.support.runs import as_zarr, noise


@pytest.fixture(scope="session")
def ours(tmp_path_factory, clients):
    """An output of an earlier run."""
    path = tmp_path_factory.mktemp("ours") / "labels.zarr"
    segment(noise((16, 16, 16), seed=9), path, step=8, client=clients[1])
    return path


@pytest.fixture(scope="session")
def expected():
    """The labels of the batch tests' image."""
    return supervoxels(IMAGE, step=3)


@pytest.fixture
def source(tmp_path):
    """The batch tests' image as Zarr."""
    return as_zarr(tmp_path / "image.zarr", IMAGE, 16)


@pytest.fixture
def plan(tmp_path, source):
    """A batch run after init."""
    return init(source, tmp_path / "labels.zarr")
