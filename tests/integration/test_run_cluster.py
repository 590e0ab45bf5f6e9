"""Out-of-core runs and their cluster: killed workers, bounded task graphs, memory limits."""

import os
import pickle
import re
import signal
import time
from math import prod

import dask
import numpy as np
import psutil
import pytest
import zarr
from dask.utils import key_split

import dseeds
from dseeds import segment, supervoxels
from dseeds.core.geometry import Lattice
from dseeds.engine.dask_runner import GIVEN_UP, REGIONS_PER_THREAD
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.memory_model import TaskShape, state_bytes, task_bytes, worker_bytes
from dseeds.parallel import cluster
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location
from tests.support.clusters import in_process, replace_local_clusters, worker_process_client
from tests.support.runs import (
    GOOD,
    STAGES,
    Recorder,
    as_zarr,
    assert_sentence,
    labels_in,
    names_in,
    noise,
    snapshot,
    tasks_known,
)


@pytest.fixture
def processes():
    with worker_process_client(memory="auto") as client:
        yield client


@pytest.mark.slow
def test_killed_workers_do_not_change_the_answer(tmp_path, processes):
    image = noise((60, 50, 55))
    source = as_zarr(tmp_path / "image.zarr", image, 32)
    killed = []

    def pids():
        return processes.run(os.getpid, on_error="ignore").values()

    def kill(event, stage, number):
        # Both workers in the middle of the block rounds, then one, then one at the very end.
        victims = {("advance", "sweep-blocks", 13): 2, ("advance", "sweep-voxels", 5): 1, ("advance", "label", 8): 1}
        count = victims.get((event, stage, number), 0)
        if count:
            # Dask never replaces a worker that is killed before its nanny knows that it is running.
            processes.wait_for_workers(2, timeout=60)
            time.sleep(1)
            for pid in list(pids())[:count]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    report = segment(
        source, tmp_path / "a.zarr", step=8, region=(16, 24, 55), client=processes, progress=Recorder(kill)
    )
    assert report.regions == 8
    assert len(set(killed)) == 4
    assert not set(killed) & set(pids())
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=8))
    assert names_in(tmp_path) == ["a.zarr", "image.zarr"]


def test_a_cluster_that_shrinks_during_a_phase(tmp_path):
    """Fewer tasks may be in flight then than there are."""
    image = noise((4, 4, 160), dtype="uint8")
    with in_process(2, 1) as client:

        def shrink(event, stage, number):
            if (event, stage, number) == ("advance", "window", 1):
                client.retire_workers([next(iter(client.nthreads()))])
                time.sleep(1)

        report = segment(image, tmp_path / "a.zarr", step=4, region=4, client=client, progress=Recorder(shrink))
        assert len(client.nthreads()) == 1
    assert report.regions == 40
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=4))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_scheduler_knows_a_bounded_number_of_tasks(tmp_path, clients, threads):
    client = clients[threads]
    known = {stage: [] for stage in STAGES}
    names = {stage: set() for stage in STAGES}
    others = len(client.futures)

    def count(event, stage, _number):
        if event == "advance" and stage != "import":
            keys = tasks_known(client)
            known[stage].append(len(keys))
            names[stage] |= {key_split(key) for key in keys}
            assert len(client.futures) <= others + REGIONS_PER_THREAD * threads + 1

    report = segment(
        noise((7, 14, 84)), tmp_path / "a.zarr", step=7, region=(7, 7, 7), client=client, progress=Recorder(count)
    )
    assert report.regions == 24
    for stage in ("window", "quantise", "sweep-blocks", "sweep-voxels", "label"):
        # One more may just be leaving.
        assert max(known[stage]) <= REGIONS_PER_THREAD * threads + 1
        assert max(known[stage]) >= threads, "no thread waits for the client"
        # The dashboard groups tasks by these names.
        assert stage in names[stage]
    assert set().union(*names.values()) <= set(STAGES)


def test_the_arguments_of_a_task_do_not_grow_with_the_volume(tmp_path):
    folder = str(tmp_path)
    shape, cells = (1 << 14,) * 3, (16, 16, 16)
    job = Job(
        None, shape, cells, cells, folder, Journal(folder, "run"), (LabelGroup(open_location(folder)),), ((0.0, 1.0),)
    )
    # The client computes these, and they must not be pickled.
    assert job.lattice.grids
    assert len(job.regions) == 64**3
    assert job.schedule
    pickled = pickle.dumps(job)
    assert len(pickled) < 5000
    assert pickle.loads(pickled) == job


@pytest.mark.slow
def test_it_is_said_that_workers_compile(tmp_path, call, monkeypatch):
    image = as_zarr(tmp_path / "image.zarr", noise((12, 12, 24)), 12)
    monkeypatch.setenv("DSEEDS_CACHE_DIR", str(tmp_path / "empty"))
    cut = ("segment", image, "--step", 4, "--region", 12, "--workers", 1)
    for name, compiles, options in (("a", True, ()), ("b", False, ()), ("c", False, ("--quiet",))):
        code, out, err = call(*cut[:2], tmp_path / f"{name}.zarr", *cut[2:], *options)
        assert code == 0
        assert err.count("compiling kernels ...") == compiles
    assert (out, err) == ("", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_callers_zarr_settings_stay(tmp_path, clients, workers):
    mine = {"async.concurrency": 7, "threading.max_workers": 3}
    with zarr.config.set(mine):
        segment(GOOD, tmp_path / "a.zarr", step=4, client=clients[workers**2])
        assert {key: zarr.config.get(key) for key in mine} == mine


@pytest.fixture
def workers_with():
    """In-process clusters whose workers have a memory limit that they do not enforce."""
    settings = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")}

    def make(limit, threads=1):
        return in_process(1, threads, memory_limit=limit)

    with dask.config.set(settings):
        yield make


def test_a_worker_that_is_nearly_full_from_the_start_is_not_paused(tmp_path, monkeypatch):
    replace_local_clusters(monkeypatch)
    held = np.ones(64 << 20)
    full = int(psutil.Process().memory_info().rss / 0.88)
    report = segment(GOOD, tmp_path / "a.zarr", step=4, workers=1, memory=full)
    assert report.supervoxels == supervoxels(GOOD, step=4).max()
    assert held.all()


def test_workers_with_less_memory_get_smaller_regions(tmp_path, workers_with):
    # A constant image has no rounds, so a large one is fast.
    image = zarr.create_array(tmp_path / "image.zarr", shape=(128, 128, 512), dtype="uint8", chunks=(64, 64, 128))
    enough = worker_bytes(task_bytes(Lattice(image.shape, (16, 16, 16)), (8, 8, 8), TaskShape(1)), 1)
    shapes = []
    for limit, threads, memory in (
        (enough, 1, None),
        (enough - 1, 1, None),
        (4 * enough, 1, enough - 1),
        # Threads share their worker's memory.
        (enough, 2, None),
    ):
        with workers_with(limit, threads) as client:
            target = tmp_path / f"{len(shapes)}.zarr"
            report = segment(image, target, step=16, client=client, memory=memory)
        shapes.append(report.region_shape)
        assert zarr.open_array(target / "0", mode="r")[-1, -1, -1] == report.supervoxels == 8 * 8 * 32
    # Thin layers, where tasks fit but not all states.
    assert shapes[0][1:] == (128, 128)
    assert all(prod(shape) < 128**3 for shape in shapes[1:])
    assert shapes[1] == shapes[2]


def test_states_that_find_no_room_are_stored_and_loaded_again(tmp_path):
    """Each worker has room for one of its eight regions, and may not use more memory than it has."""
    image = noise((64, 64, 128), dtype="int16")
    lattice, cells, task = Lattice(image.shape, (8, 8, 8)), (4, 4, 4), TaskShape(2)
    limit = worker_bytes(task_bytes(lattice, cells, task), 1, int(1.5 * state_bytes(lattice, cells, task)))
    source, target = as_zarr(tmp_path / "image.zarr", image, 32), tmp_path / "labels.zarr"
    parameters = {"step": 8, "region": 32, "workers": 2, "memory": limit}
    plan = dseeds.plan(source, target, calibrate=False, **parameters)
    assert plan.resident_memory > limit
    report = segment(source, target, progress=Recorder(), **parameters)
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, step=8))
    assert report.regions == 16
    # A worker that had exceeded its limit would have been killed.
    assert report.retried == 0
    assert max(report.peak_memory.values()) <= limit
    planned, written = ({s.name: s.written for s in stages} for stages in (plan.stages, report.stages))
    assert written["sweep-voxels"] > 1.2 * planned["sweep-voxels"]


@pytest.mark.slow
def test_a_paused_worker_gives_up_states(tmp_path):
    """Others have taken memory that the plan counts on: the worker goes on with what is left."""
    image = noise((96, 384, 384))
    source, target = as_zarr(tmp_path / "image.zarr", image, 64), tmp_path / "labels.zarr"
    cut = {"step": 12, "region": 96, "overwrite": True}

    def leave(megabytes):
        def set_limit(dask_worker):
            used = psutil.Process().memory_info().rss
            manager = dask_worker.memory_manager
            manager.memory_pause_fraction = (used + (megabytes << 20)) / manager.memory_limit

        return set_limit

    with worker_process_client(workers=1, memory="2GiB") as client:
        # Its kernels are loaded.
        segment(image[:64, :64, :64], target, client=client, **cut)
        client.run(leave(60))
        segment(source, target, client=client, **cut)
        events = [event for _, event in client.get_events(GIVEN_UP)]
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, step=12))
    assert events
    assert all(event["bytes"] > 0 for event in events)


def test_memory_that_is_more_than_the_workers_have_helps_nothing(tmp_path, workers_with):
    with workers_with("300MiB") as client, pytest.raises(ValueError, match="more memory") as caught:
        segment(GOOD, tmp_path / "a.zarr", step=4, client=client, memory="64GiB")
    assert_sentence(caught.value)
    needed, given = (int(n) for n in re.findall(r"(\d+) MiB", str(caught.value))[:2])
    assert needed > given, "the sentence makes sense"
    assert snapshot(tmp_path) == {}


def test_a_cluster_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "WORKERS_TIMEOUT", 0.2)
    with in_process(0, 1) as client, pytest.raises(TimeoutError, match="has had no worker for"):
        segment(GOOD, tmp_path / "a.zarr", step=4, client=client)
    assert snapshot(tmp_path) == {}


def test_regions_are_as_requested(tmp_path, client):
    report = segment(GOOD, tmp_path / "a.zarr", step=(5, 6, 7), region=(6, 7, 20), client=client)
    assert report.region_shape == (10, 12, 21)
    # Cells: 2, 2 and 6.
    assert report.regions == 1 * 1 * 2


@pytest.mark.parametrize("region", [np.int64(16), np.array([16, 16, 16]), [16, 16, 16]])
def test_numbers_of_numpy_are_numbers(tmp_path, client, region):
    report = segment(GOOD, tmp_path / "a.zarr", step=np.int32(8), region=region, client=client)
    assert report.region_shape == (16, 16, 16)
