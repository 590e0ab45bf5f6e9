"""Locations: folders and buckets behave alike, even in a store that fails, delays and interrupts responses."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dseeds.io import open_source
from dseeds.storage.location import LocalLocation, RemoteLocation, is_remote, open_location
from dseeds.storage.object_store import describe_store_error
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


@pytest.fixture(params=["folder", "bucket", "prefix"])
def location(request, tmp_path):
    """An empty location, whose folder does not exist yet."""
    if request.param == "folder":
        return open_location(tmp_path / "location")
    bucket = request.getfixturevalue("faulty_store").make_bucket()
    return open_location(bucket if request.param == "bucket" else f"{bucket}/some/prefix")


# Addresses.


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3A://bucket//a/b//", "s3://bucket/a/b"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("azure://container/a", "az://container/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
    ],
)
def test_addresses_in_object_stores(given, address):
    assert is_remote(given)
    location = open_location(given)
    assert location.address == address
    assert open_location(address) == location
    assert location.at("x/y").address == f"{address}/x/y"


def test_addresses_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_location("a").address == str(tmp_path / "a")
    assert open_location(Path("a")).at("b").address == str(tmp_path / "a" / "b")
    assert open_location("~/a").address == str(tmp_path / "home" / "a")
    assert open_location(f"file://{tmp_path}/a%20b").address == str(tmp_path / "a b")
    assert not is_remote(tmp_path)
    assert not is_remote("file:///a")


@pytest.mark.parametrize("address", ["https://example.org/a", "memory://a", "simplecache::s3://bucket/a"])
def test_addresses_without_a_location(address):
    assert not is_remote(address)
    with pytest.raises(ValueError, match="neither a path nor an address in an object store"):
        open_location(address)


def test_an_address_without_a_bucket():
    with pytest.raises(ValueError, match="names no bucket"):
        open_location("s3://")


# The behaviour of every location.

# No key is also the folder of another.
KEYS = ["a", "b c.json", "d/e", "d/f", "d/g/h", "\N{LATIN SMALL LETTER U WITH DIAERESIS}/100%#?+&", "a-", "d.x"]
FOLDERS = ["", "d", "d/g", "no", "\N{LATIN SMALL LETTER U WITH DIAERESIS}", "a"]
keys = st.sampled_from(KEYS)
data = st.binary(max_size=20)


class Behaviour(RuleBasedStateMachine):
    """A location compared with a dictionary."""

    def __init__(self, location):
        super().__init__()
        self.location = location.at(uuid.uuid4().hex)
        self.held = {}

    @rule(key=keys)
    def read(self, key):
        assert self.location.read(key) == self.held.get(key)

    @rule(key=keys, data=data)
    def write(self, key, data):
        self.location.write(key, data)
        self.held[key] = data

    @rule(key=keys, data=data)
    def create(self, key, data):
        assert self.location.create(key, data) == (key not in self.held)
        self.held.setdefault(key, data)

    @rule(gone=st.lists(keys, max_size=4))
    def delete(self, gone):
        self.location.delete(iter(gone))
        for key in gone:
            self.held.pop(key, None)

    @rule(folder=st.sampled_from(FOLDERS))
    def names(self, folder):
        assert sorted(self.location.names(folder)) == sorted(self.below(folder))

    @precondition(lambda self: self.held)
    @rule(folder=st.sampled_from(FOLDERS))
    def clear(self, folder):
        self.location.clear(folder)
        for key in self.below(folder):
            del self.held[key]

    @rule(key=keys)
    def within(self, key):
        folder, _, name = key.rpartition("/")
        assert self.location.at(folder).read(name) == self.held.get(key)

    def below(self, folder):
        return [key for key in self.held if not folder or key.startswith(f"{folder}/")]

    def teardown(self):
        assert sorted(self.location.names()) == sorted(self.held)
        self.location.clear()
        assert not list(self.location.names())


def test_a_location_behaves_like_a_dictionary(location):
    run_state_machine_as_test(
        lambda: Behaviour(location), settings=settings(max_examples=40, stateful_step_count=20, deadline=None)
    )
    if isinstance(location, LocalLocation):
        assert not list(location.path.iterdir()), "clear removes the folder too"


def test_many_keys(location):
    names = {f"parts/{number % 7}/{number}" for number in range(2300)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: location.write(key, b""), names))
    location.write("beside", b"x")
    assert set(location.names("parts")) == names
    location.clear("parts")
    assert list(location.names()) == ["beside"]


def test_a_large_file(location):
    large = os.urandom(9 << 20)
    location.write("large", large)
    assert location.read("large") == large


def test_locations_pickle(location):
    location.write("a", b"x")
    pickled = pickle.dumps(location)
    assert pickle.loads(pickled).read("a") == b"x"
    assert b"testing" not in pickled, "credentials stay where they are"


# Concurrent creation.

CREATE = """
import sys
from dseeds.storage.location import open_location
location = open_location(sys.argv[1])
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    print(int(location.create(f"locks/{number}", sys.argv[2].encode())))
"""


def test_one_thread_creates_a_file(location):
    everyone = threading.Barrier(16)

    def create(name):
        everyone.wait()
        return name, location.create("lock", name)

    for _ in range(10):
        with ThreadPoolExecutor(16) as threads:
            tried = list(threads.map(create, [b"%d" % name * 1000 for name in range(16)]))
        [winner] = [name for name, won in tried if won]
        assert location.read("lock") == winner
        assert list(location.names()) == ["lock"]
        location.delete(["lock"])


def test_one_process_creates_a_file(location):
    count, names = 40, "abc"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, location.address, name, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    won = [process.communicate(timeout=120)[0].split() for process in processes]
    for number in range(count):
        [winner] = [name for name, by_name in zip(names, won, strict=True) if by_name[number] == "1"]
        assert location.read(f"locks/{number}") == winner.encode()


# Folders.


def test_a_reader_sees_a_whole_file_or_none(tmp_path):
    location = open_location(tmp_path)
    whole = [bytes([number]) * 2_000_000 for number in range(8)]
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            for key in ("written", "created"):
                seen.add(location.read(key))
            assert set(location.names()) <= {"written", "created"}

    with ThreadPoolExecutor(2) as threads:
        watching = [threads.submit(watch) for _ in range(2)]
        try:
            for content in whole * 4:
                location.write("written", content)
                location.delete(["created"])
                assert location.create("created", content)
        finally:
            done.set()
        for watcher in watching:
            watcher.result()
    assert seen - {None} <= set(whole)


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    location = open_location(tmp_path)
    assert location.create("a", b"x")
    assert not location.create("a", b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert location.read("a") == b"x"


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        open_location(tmp_path).write("a", b"")
        open_location(tmp_path).create("b", b"")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_links_are_not_followed(tmp_path):
    elsewhere = open_location(tmp_path / "elsewhere")
    elsewhere.write("precious", b"x")
    location = open_location(tmp_path / "location")
    location.write("a", b"")
    (location.path / "link").symlink_to(elsewhere.path)
    (location.path / "file").symlink_to(elsewhere.path / "precious")
    assert sorted(location.names()) == ["a", "file", "link"]
    location.clear("link")
    assert sorted(location.names()) == ["a", "file"]
    (location.path / "link").symlink_to(elsewhere.path)
    location.clear()
    assert not location.path.exists()
    assert elsewhere.read("precious") == b"x"


def test_an_unreadable_folder_does_not_pass_for_empty(tmp_path):
    (tmp_path / "a").mkdir(mode=0)
    if os.access(tmp_path / "a", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError):
        list(open_location(tmp_path).names())


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("A FULL DISK IS NOT TESTED, for lack of the right to mount one")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_keeps_its_files(small_disk):
    location = open_location(small_disk)
    location.write("a", b"old")
    for attempt in (location.write, location.create):
        with pytest.raises(OSError, match="No space left on device"):
            attempt("b", bytes(2 << 20))
    with pytest.raises(OSError, match="No space left on device"):
        location.write("a", bytes(2 << 20))
    assert [path.name for path in small_disk.iterdir()] == ["a"]
    assert location.read("a") == b"old"
    assert not location.create("a", bytes(2 << 20))


# Object stores.


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
    monkeypatch.setattr("dseeds.storage.object_store._PART", 5 << 20)
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
    there = subprocess.run([sys.executable, "-c", READ], input=pickled, capture_output=True, check=True)
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


# Messages of permanent failures.


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
        monkeypatch.setattr("dseeds.storage.object_store.find_spec", lambda _: None)
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
            assert max(threads.map(ask, locations)) < 70


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
