"""An object store that goes wrong as requested, a bucket with an image, and clusters that use the store."""

import pytest

from dseeds.storage import lease
from dseeds.storage.location import open_location
from dseeds.storage.object_store import PATIENCE
from tests.support.clusters import in_process, worker_process_client
from tests.support.faulty_store import Faults, FaultyStore
from tests.support.stores import IMAGE, save


@pytest.fixture(scope="package")
def world(object_store):
    """A store for all tests of this folder, set in the environment of the processes that they share."""
    with pytest.MonkeyPatch.context() as patch, FaultyStore(object_store) as store:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.setenv(PATIENCE, "60")
        yield store


@pytest.fixture
def store(world):
    world.faults, world.watch = Faults(), None
    yield world
    world.faults, world.watch = Faults(), None


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch):
    """Shorten the time after which the lease of a run that could not release it is taken over."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)


@pytest.fixture
def bucket(store):
    """A bucket with an image, and notes beside the target that must be kept."""
    place = open_location(store.make_bucket())
    save(place.at("image.zarr"), IMAGE)
    place.write("labels.zarr-notes/a", b"precious")
    return place


@pytest.fixture(scope="package")
def threads(world):
    with in_process(2, 2, silence_logs=50) as client:
        yield client


@pytest.fixture(scope="package")
def processes(world):
    with worker_process_client() as client:
        yield client


@pytest.fixture
def client(request):
    return request.getfixturevalue(request.param)
