"""Runs on an object store that errs, is slow, refuses or dies meanwhile give the same labels."""

import threading
import time

import pytest

from dseeds.engine.repair import RegionFailed
from dseeds.storage.object_store import PATIENCE
from tests.support.faulty_store import Faults
from tests.support.stores import FAULTS, When, check_left, run


@pytest.mark.parametrize("faults", FAULTS)
def test_a_store_that_errs(bucket, store, processes, faults):
    store.requests.clear()
    store.faults = FAULTS[faults]
    report = run(bucket, processes)
    store.faults = Faults()
    wrong = sum(request.status in (0, 500, 503) for request in store.requests)
    assert faults == "slow" or wrong > 10
    assert report.retried == 0
    check_left(bucket)


def test_a_store_that_errs_on_threads(bucket, store, threads):
    store.faults = FAULTS["all"]
    run(bucket, threads)
    store.faults = Faults()
    check_left(bucket)


def check_sentence(error, address):
    text = str(error)
    assert address in text
    assert "\n" not in text
    assert "testing" not in text
    assert any(note.startswith("resume with: dseeds segment") for note in error.__notes__)


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-voxels", "label"])
def test_credentials_that_expire(bucket, store, processes, stage):
    began = None

    def expire():
        nonlocal began
        began = time.monotonic()
        store.expire_now(400 if stage == "quantise" else 403)

    with pytest.raises(PermissionError, match="renew the credentials") as caught:
        run(bucket, processes, progress=When(stage, expire))
    assert time.monotonic() - began < 30, "it waited for the store"
    check_sentence(caught.value, bucket.address)
    if stage == "quantise":
        with pytest.raises(PermissionError, match="renew the credentials"):
            run(bucket, processes, resume=True)
    store.faults = Faults()
    report = run(bucket, processes, resume=True)
    assert report.resumed
    check_left(bucket)


@pytest.mark.parametrize("later", [1, 2, 3, 4, 5, 6])
def test_credentials_that_expire_at_the_very_end(bucket, store, threads, later):
    """After publishing, while the run's folder is being removed."""

    def watch(method, path):
        if (method, path.partition("/labels.zarr/")[2]) == ("PUT", "zarr.json"):
            store.faults.expire_from = store.count + later

    store.watch = watch
    with pytest.raises(PermissionError):
        run(bucket, threads)
    store.watch = None
    store.faults = Faults()
    run(bucket, threads, resume=True)
    check_left(bucket)


def test_an_array_that_is_removed(bucket, processes):
    def take():
        [gone] = [name for name in bucket.names() if name.endswith("scratch/parts/zarr.json")]
        bucket.delete([gone])

    with pytest.raises(RegionFailed, match="the array parts of a run is gone"):
        run(bucket, processes, progress=When("quantise", take), mask="auto")


def test_a_store_that_dies(bucket, store, threads, monkeypatch):
    monkeypatch.setenv(PATIENCE, "3")
    began = None

    def end():
        nonlocal began
        began = time.monotonic()
        store.die()

    try:
        with pytest.raises(ConnectionError, match="wait until the store works again") as caught:
            run(bucket, threads, progress=When("sweep-voxels", end))
        assert time.monotonic() - began < 60
    finally:
        store.revive()
    check_sentence(caught.value, bucket.address)
    assert run(bucket, threads, resume=True).resumed
    check_left(bucket)


def test_a_store_that_is_back_soon(bucket, store, threads):
    def fail():
        store.die()
        threading.Timer(4, store.revive).start()

    progress = When("sweep-voxels", fail)
    assert run(bucket, threads, progress=progress).retried == 0
    assert progress.happened
    check_left(bucket)


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "inf", "nan"])
def test_patience_that_is_none(bucket, monkeypatch, seconds):
    monkeypatch.setenv(PATIENCE, seconds)
    with pytest.raises(ValueError, match=f"{PATIENCE} is '{seconds}': it must be a number of seconds"):
        bucket.read("a")
