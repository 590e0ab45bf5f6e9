"""Locations in object stores: faults, concurrent writers, requests, messages of permanent failures."""

import errno
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from dseeds.io import open_source
from dseeds.storage import object_store
from dseeds.storage.location import RemoteLocation, open_location
from dseeds.storage.object_store import PATIENCE, describe_store_error
from tests.support.faulty_store import Faults, FaultyStore, environment, s3

FAULTS = {
    "none": Faults(),
    "errors": Faults(error_every=3),
    "slow down": Faults(error_every=2, status=503),
    "slow": Faults(slow_every=3, delay=0.3),
    "dropped": Faults(drop_every=3),
    "answers lost": Faults(lose_every=3),
    "answers cut": Faults(cut_every=3),
    "all": Faults(error_every=7, drop_every=8, lose_every=9, cut_every=5, slow_every=11, delay=0.2),
}


def image(shape=(40, 30, 20)):
    return np.random.default_rng(0).integers(0, 1000, shape, dtype="uint16")


def save(location, voxels, **more):
    array = zarr.create_array(
        location.zarr("image.zarr"),
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=(10, 10, 10),
        shards=(20, 30, 20),
        zarr_format=3,
        **more,
    )
    array[:] = voxels
    return array


@pytest.fixture(params=FAULTS)
def faults(request):
    return FAULTS[request.param]


def test_a_location_in_a_faulty_store(faulty_store, faults):
    location = open_location(f"{faulty_store.make_bucket()}/location")
    faulty_store.faults = faults
    large = os.urandom(200_000)
    for number in range(6):
        assert location.read(f"{number}") is None
        assert location.create(f"{number}", large)
        assert not location.create(f"{number}", large), "also if it was as long and as equal"
        assert location.read(f"{number}") == large
        location.write(f"{number}", b"new")
        assert location.read(f"{number}") == b"new"
        assert sorted(location.names()) == [f"{n}" for n in range(number + 1)]
    location.delete(["0", "1", "2", "none"])
    assert sorted(location.names()) == ["3", "4", "5"]
    location.clear()
    assert not list(location.names())
    if faults != Faults():
        assert len(faulty_store.requests) > 40
        assert faults.slow_every or {request.status for request in faulty_store.requests} & {0, 500, 503}


def test_an_array_and_a_source_in_a_faulty_store(faulty_store, faults):
    location = open_location(f"{faulty_store.make_bucket()}/location")
    faulty_store.faults = faults
    voxels = image()
    array = save(location, voxels)
    array[:20] = 0
    source = open_source(f"{location.address}/image.zarr")
    for z in range(0, 40, 10):
        expected = voxels[z : z + 10] if z >= 20 else np.zeros_like(voxels[:10])
        np.testing.assert_array_equal(source.read(np.s_[z : z + 10, :, :]), expected)


def test_only_the_array_is_written(faulty_store):
    location = open_location(f"{faulty_store.make_bucket()}/a b%20c/#d")
    save(location, image())
    held = {"zarr.json", "c/0/0/0", "c/1/0/0"}
    assert set(location.at("image.zarr").names()) == held
    assert set(open_location(location.bucket).names()) == {f"{location.prefix}/image.zarr/{name}" for name in held}


def test_a_file_larger_than_one_request(faulty_store, monkeypatch):
    monkeypatch.setattr(object_store, "_PART", 5 << 20)
    location = open_location(faulty_store.make_bucket())
    large = os.urandom(11 << 20)
    for faults in (Faults(), Faults(cut_every=4), Faults(lose_every=3)):
        faulty_store.faults = faults
        location.write("large", large)
        assert location.read("large") == large
    assert any("uploadId" in request.path for request in faulty_store.requests)


def test_lost_responses_leave_one_winner(faulty_store):
    location = open_location(faulty_store.make_bucket())
    faulty_store.faults = Faults(lose_every=2)
    for number in range(5):
        with ThreadPoolExecutor(6) as threads:
            won = list(threads.map(lambda _, key=f"{number}": location.create(key, b"same"), range(6)))
        assert sum(won) == 1


def test_one_request_for_one_file(faulty_store):
    location = open_location(faulty_store.make_bucket())
    location.write("a", bytes(6 << 20))
    location.read("a")
    location.create("b", b"")
    location.delete(f"{number}" for number in range(900))
    assert [request.method for request in faulty_store.requests] == ["PUT", "GET", "PUT", "POST"]


def test_chunks_of_a_shard_are_read_alone(faulty_store):
    location = open_location(faulty_store.make_bucket())
    voxels = image()
    save(location, voxels, compressors=None)
    source = open_source(f"{location.address}/image.zarr")
    assert source.chunks == (10, 10, 10)
    faulty_store.requests.clear()
    np.testing.assert_array_equal(source.read(np.s_[20:30, 10:20, 10:20]), voxels[20:30, 10:20, 10:20])
    index, chunk = faulty_store.requests
    assert index.range.startswith("bytes=-")
    begin, end = map(int, chunk.range.removeprefix("bytes=").split("-"))
    assert end - begin + 1 == 2 * 10**3
    assert {index.status, chunk.status} == {206}


READ = """
import pickle, sys
source = pickle.load(sys.stdin.buffer)
print(source.path, int(source.read((slice(0, 40), slice(0, 30), slice(0, 20))).sum()))
"""


def test_a_source_is_read_by_other_processes(faulty_store):
    location = open_location(f"{faulty_store.make_bucket()}/a b")
    voxels = image()
    save(location, voxels)
    address = f"{location.address}/image.zarr"
    source = open_source(f"{address.replace('s3:', 's3a:')}/")
    assert source.readable_by_workers
    assert (source.path, source.name) == (address, "image.zarr")
    pickled = pickle.dumps(source)
    assert b"testing" not in pickled
    there = subprocess.run([sys.executable, "-c", READ], input=pickled, capture_output=True, timeout=120, check=True)
    assert there.stdout.decode().rsplit(maxsplit=1) == [address, str(int(voxels.sum()))]


def test_a_source_has_one_identity_however_it_is_opened(faulty_store):
    from obstore.store import S3Store

    bucket = faulty_store.make_bucket()
    location = open_location(f"{bucket}/some")
    save(location, image())
    source = open_source(f"{location.address}/image.zarr")
    name = bucket.removeprefix("s3://")
    for prefix, path in ((None, "some/image.zarr"), ("some", "image.zarr"), ("some/image.zarr", "")):
        store = zarr.storage.ObjectStore(S3Store(name, prefix=prefix, client_options={"allow_http": True}))
        other = open_source(zarr.open_array(store, path=path, mode="r"))
        assert other.path == source.path
        assert other.identity == source.identity
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)).read(np.s_[:3, :3, :3]), image()[:3, :3, :3])
    other = open_source(zarr.open_array(location.zarr("image.zarr"), mode="r"))
    assert other.identity == source.identity


def test_a_source_is_not_written(faulty_store):
    location = open_location(faulty_store.make_bucket())
    save(location, image())
    with pytest.raises(ValueError, match="read-only"):
        open_source(f"{location.address}/image.zarr").array[:] = 0


def check_error(error, *parts):
    text = str(error)
    assert all(part in text for part in parts), text
    assert "\n" not in text
    assert "testing" not in text
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), text)


def actions(location):
    """Return all actions on a location."""
    array = zarr.create_array({}, shape=(4,), dtype="u1")
    return {
        "read": lambda: location.read("a"),
        "write": lambda: location.write("a", b"x"),
        "create": lambda: location.create("new", b"x"),
        "delete": lambda: location.delete(["a"]),
        "names": lambda: list(location.names()),
        "clear": location.clear,
        "create an array": lambda: zarr.create_array(location.zarr("other"), shape=array.shape, dtype="u1"),
        "open an array": lambda: zarr.open_array(location.zarr("image.zarr"), mode="r"),
        "open a source": lambda: open_source(f"{location.address}/image.zarr"),
    }


@pytest.mark.parametrize("status", [400, 403])
def test_credentials_that_expire(faulty_store, status):
    location = open_location(faulty_store.make_bucket())
    array = save(location, image())
    source = open_source(f"{location.address}/image.zarr")
    location.write("a", b"x")
    faulty_store.expire_now(status)
    some = np.s_[:20, :, :]
    doing = {
        **actions(location),
        "read the source": lambda: source.read(some),
        "write the array": lambda: array.__setitem__(some, 1),
        "empty the array": lambda: array.__setitem__(some, 0),
    }
    for what, action in doing.items():
        begin = time.monotonic()
        with pytest.raises(PermissionError) as caught:
            action()
        assert time.monotonic() - begin < 5, what
        check_error(caught.value, location.address, "ExpiredToken", "renew the credentials", "resumed")
    faulty_store.faults = Faults()
    np.testing.assert_array_equal(source.read(some), image()[some])
    assert location.read("a") == b"x"


def test_a_bucket_that_does_not_exist(faulty_store):
    location = open_location("s3://no-such-bucket/location")
    for what, action in actions(location).items():
        if what == "open an array":
            # Zarr has a message of its own for a missing array.
            continue
        with pytest.raises(FileNotFoundError) as caught:
            action()
        check_error(caught.value, "s3://no-such-bucket", "does not exist", "" if "source" in what else "bucket")


def test_a_source_that_does_not_exist(faulty_store):
    address = f"{faulty_store.make_bucket()}/none.zarr"
    with pytest.raises(FileNotFoundError, match="does not exist, or holds neither Zarr array nor group") as caught:
        open_source(address)
    check_error(caught.value, address)


def test_nifti_in_a_bucket_has_to_be_downloaded(faulty_store):
    with pytest.raises(ValueError, match="download it"):
        open_source("s3://bucket/a.nii.gz")


@pytest.mark.parametrize("boto3", [True, False])
def test_no_credentials(faulty_store, monkeypatch, tmp_path, boto3):
    location = open_location(faulty_store.make_bucket())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    if boto3:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
    else:
        # The role of a container, whose credentials are unavailable.
        monkeypatch.setattr(object_store, "find_spec", lambda _: None)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{faulty_store.url}/credentials")
        faulty_store.expire_now()
    with pytest.raises(PermissionError) as caught:
        location.read("a")
    check_error(caught.value, "credentials")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    faulty_store.faults = Faults()
    assert location.read("a") is None, "a bucket may be open to all"


def test_a_profile(faulty_store, monkeypatch, tmp_path):
    bucket = faulty_store.make_bucket()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text("[me]\naws_access_key_id = me\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "me")
    location = open_location(bucket)
    location.write("a", b"x")
    assert location.read("a") == b"x"


def test_without_obstore(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    for action in actions(open_location("s3://bucket/a")).values():
        with pytest.raises(ValueError, match=r"pip install 'dseeds\[remote\]'"):
            action()


def test_other_errors_pass_unchanged():
    for error in (KeyError("a"), FileNotFoundError(errno.ENOENT, "No such file", "a")):
        with pytest.raises(type(error)) as caught, describe_store_error("s3://bucket"):
            raise error
        assert caught.value is error


@pytest.mark.slow
def test_a_dead_store_is_given_up(object_store, monkeypatch):
    with (
        FaultyStore(object_store) as refusing,
        FaultyStore(object_store) as silent,
        FaultyStore(object_store) as broken,
    ):
        bucket = silent.make_bucket()
        monkeypatch.setenv(PATIENCE, "8")
        silent.faults = Faults(slow_every=1, delay=300)
        broken.faults = Faults(error_every=1)
        urls = [refusing.url, silent.url, broken.url]
        refusing.__exit__()
        locations = []
        for url in urls:
            for name, value in environment(url).items():
                monkeypatch.setenv(name, value)
            location = open_location(bucket)
            store = location._store
            locations.append((location, store))

        def ask(held):
            location, store = held
            begin = time.monotonic()
            with pytest.raises(ConnectionError) as caught, describe_store_error(location.address):
                store_get(store)
            check_error(caught.value, bucket, "resumed")
            return time.monotonic() - begin

        def store_get(store):
            import obstore

            obstore.get(store, "a")

        with ThreadPoolExecutor(3) as threads:
            assert max(threads.map(ask, locations)) < 40


def test_locations_follow_the_environment(faulty_store, object_store, monkeypatch):
    location = open_location(faulty_store.make_bucket())
    location.write("a", b"x")
    faulty_store.expire_now()
    with pytest.raises(PermissionError):
        location.read("a")
    for name, value in environment(object_store).items():
        monkeypatch.setenv(name, value)
    assert location.read("a") == b"x"
    assert isinstance(location, RemoteLocation)
    assert s3(object_store).list_objects_v2(Bucket=location.bucket.removeprefix("s3://"))["KeyCount"] == 1


def test_open_arrays_follow_the_environment(faulty_store, object_store, monkeypatch):
    location = open_location(faulty_store.make_bucket())
    array = save(location, image())
    source = open_source(f"{location.address}/image.zarr")
    faulty_store.expire_now()
    for name, value in environment(object_store).items():
        monkeypatch.setenv(name, value)
    array[:20] = 0
    assert not source.read(np.s_[:20, :, :]).any()
