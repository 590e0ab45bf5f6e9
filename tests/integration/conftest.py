"""Fixtures of the tests of whole runs."""

import pytest

from dseeds import segment
from tests.support.runs import noise


@pytest.fixture(scope="session")
def ours(tmp_path_factory, clients):
    """An output of an earlier run."""
    path = tmp_path_factory.mktemp("ours") / "labels.zarr"
    segment(noise((16, 16, 16), seed=9), path, step=8, client=clients[1])
    return path
