"""Locations: folders and buckets behave alike, even in a store that fails, delays and interrupts responses."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dseeds.storage.location import LocalLocation, is_remote, open_location


@pytest.fixture(params=["folder", "bucket", "prefix"])
def location(request, tmp_path):
    """An empty location, whose folder does not exist yet."""
    if request.param == "folder":
        return open_location(tmp_path / "location")
    bucket = request.getfixturevalue("faulty_store").make_bucket()
    return open_location(bucket if request.param == "bucket" else f"{bucket}/some/prefix")


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
    names = {f"parts/{number % 7}/{number}" for number in range(1100)}
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

    for _ in range(4):
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
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("A FULL DISK IS NOT TESTED, for lack of the right to mount one")
    yield path
    subprocess.run(["umount", str(path)], timeout=60, check=True)


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
