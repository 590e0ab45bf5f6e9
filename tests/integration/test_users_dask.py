"""The user's Dask is left alone, and used where it is meant: current clients, clusters of every kind, messages."""

import asyncio
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_client
from distributed.client import _get_global_client

import dseeds
from dseeds.parallel import clients
from dseeds.parallel import cluster as parallel
from tests.support.clusters import FREE_PORT, in_process, replace_local_clusters
from tests.support.leaks import reset_scheduler
from tests.support.runs import assert_sentence, labels_in, noise

IMAGE = noise((24, 20, 22), dtype="uint8")
LABELS = dseeds.supervoxels(IMAGE, step=8)


@pytest.fixture
def current():
    """The current client of a cluster with a single thread, which deadlocks if a task waits for another."""
    with in_process(set_as_default=True) as client:
        yield client


def state_of_the_process():
    """Return what the parts of the process share that do not know of each other."""
    levels = {
        name: [(handler.level, list(handler.filters)) for handler in logging.getLogger(name).handlers]
        for name in ("", "distributed", "bokeh", "tornado")
    }
    return repr(dask.config.config), dict(os.environ), levels, _get_global_client()


def cut(target, **options):
    """Segment the image, check the labels and return the number of workers."""
    report = dseeds.segment(IMAGE, target, step=8, **options)
    np.testing.assert_array_equal(labels_in(target), LABELS)
    return report.workers


@contextmanager
def samples_of_the_process():
    """Collect in another thread what the process shares, and compute there as its other parts do."""
    seen, is_over = [state_of_the_process()], threading.Event()

    def look():
        while not is_over.wait(0.01):
            configuration, _, levels, client = state_of_the_process()
            seen.append((configuration, {}, [level for level, _ in levels["distributed"]], client))
            assert da.ones(3, chunks=1).sum().compute() == 3
            assert dask.delayed(threading.current_thread)().compute(scheduler="synchronous") is thread

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def lazy_labels(number):
    return dseeds.supervoxels(da.from_array(IMAGE + np.uint8(number), chunks=12), step=8)


def test_nothing_that_the_process_shares_changes(tmp_path, capfd):
    """Neither after runs on workers and lazy arrays, also at once in threads, nor meanwhile."""
    before = state_of_the_process()
    with samples_of_the_process() as seen:
        threads = [threading.Thread(target=lazy_labels(number).compute) for number in range(3)]
        threads.append(threading.Thread(target=cut, args=(tmp_path / "a.zarr",), kwargs={"workers": 1}))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(250)
        np.testing.assert_array_equal(dask.compute(lazy_labels(0), lazy_labels(0))[1], LABELS)
    assert state_of_the_process() == before
    assert {repr(sample) for sample in seen[1:]} == {repr(seen[1])}
    assert (seen[1][0], seen[1][3]) == (before[0], before[3])
    # The records of a handler of the user's keep their level, but those of private clusters are dropped.
    err = capfd.readouterr().err
    assert "distributed" not in err
    assert err.count("\n") == err.count("Dask dashboard") == 1


def test_the_current_client_is_used_and_named(tmp_path, current, capsys):
    assert cut(tmp_path / "a.zarr") == 1
    line = f"Using the current Dask client: {current.scheduler.address}\n"
    assert capsys.readouterr().err == line
    features = dseeds.features(tmp_path / "a.zarr", IMAGE, tmp_path / "features")
    assert dseeds.evaluate(tmp_path / "a.zarr", scratch=tmp_path) == dseeds.evaluate(LABELS, step=8)
    dseeds.paint(tmp_path / "a.zarr", features, tmp_path / "means.zarr", column="intensity_mean")
    assert dseeds.plan(IMAGE, tmp_path / "b.zarr", step=8, calibrate=False).workers == 1
    assert capsys.readouterr().err == 4 * line
    tasks = current.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert {"measure", "count", "paint"} <= tasks


def test_where_the_current_client_is_not_meant(tmp_path, current, capsys, monkeypatch):
    # What Dask itself would not use, what the user excludes, and what its workers could not reach.
    with monkeypatch.context() as patch:
        # Dask's own context would keep the name of its scheduler in the configuration for good.
        patch.setitem(dask.config.config, "scheduler", "threads")
        assert cut(tmp_path / "a.zarr") == 0
    dseeds.features(LABELS, IMAGE)
    dseeds.features(LABELS, IMAGE, tmp_path / "features", threads=1)
    dseeds.evaluate(LABELS)
    np.testing.assert_array_equal(dseeds.supervoxels(IMAGE, step=8), LABELS)
    # A task is on the cluster already.
    assert current.submit(cut, tmp_path / "b.zarr").result(timeout=120) == 0
    current.close()
    assert cut(tmp_path / "c.zarr") == 0
    assert capsys.readouterr().err == ""
    # A client that is closed within its context leaves this in Dask's configuration, whatever happens meanwhile.
    reset_scheduler()


def test_a_task_that_waits_for_others_gives_its_thread_back(tmp_path, current):
    def on_own_cluster():
        return cut(tmp_path / "a.zarr", client=get_client())

    assert current.submit(on_own_cluster).result(timeout=120) == 1


def test_lazy_labels_on_a_cluster_leave_no_current_client(tmp_path):
    with in_process() as client:
        labels = client.compute(lazy_labels(0)).result(timeout=120)
        assert _get_global_client() is None
    np.testing.assert_array_equal(labels, LABELS)


def test_clusters_and_addresses_are_clients(tmp_path):
    with LocalCluster(n_workers=1, processes=False, dashboard_address=FREE_PORT) as cluster:
        with Client(cluster, set_as_default=False) as client:
            file = tmp_path / "scheduler.json"
            file.write_text(f'{{"address": "{client.scheduler.address}"}}')
            for number, given in enumerate((cluster, cluster.scheduler_address, file, str(file))):
                assert cut(tmp_path / f"{number}.zarr", client=given) == 1
        features = dseeds.features(tmp_path / "0.zarr", IMAGE, tmp_path / "features", client=cluster)
        assert features.table.equals(dseeds.features(LABELS, IMAGE).table)
        assert _get_global_client() is None


def closed_client():
    with in_process() as client:
        pass
    return client


def closed_cluster():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=FREE_PORT) as cluster:
        pass
    return cluster


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (closed_client, ValueError, "the client is closed: pass an open one"),
        (closed_cluster, ValueError, "the LocalCluster is closed: pass one"),
        (lambda: 3, TypeError, "must be a distributed.Client, a cluster or the address of a scheduler, not int"),
        (lambda: "tcp://127.0.0.1:9", ConnectionError, "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (lambda: "no/scheduler.json", FileNotFoundError, "no/scheduler.json does not exist"),
    ],
)
def test_what_is_not_a_client(tmp_path, monkeypatch, make, error, message):
    monkeypatch.setattr(clients, "CONNECT_SECONDS", 1)
    with pytest.raises(error, match=message) as caught:
        cut(tmp_path / "a.zarr", client=make())
    assert_sentence(caught.value)
    assert not list(tmp_path.iterdir())


def test_asynchronous_clients(tmp_path, capsys):
    async def run():
        async with Client(asynchronous=True, processes=False, n_workers=1, dashboard_address=FREE_PORT) as client:
            for given in (client, client.cluster):
                with pytest.raises(ValueError, match=r"asynchronous, .* asyncio.to_thread") as caught:
                    cut(tmp_path / "a.zarr", client=given)
                assert_sentence(caught.value)
            # As the current client it is left alone, and this is said.
            assert cut(tmp_path / "a.zarr") == 0
            assert "is not used, because the client is asynchronous" in capsys.readouterr().err
            for number, options in enumerate(({"client": client}, {}, {"client": client.cluster})):
                assert await asyncio.to_thread(cut, tmp_path / f"{number}.zarr", **options) == 1

    asyncio.run(run())


def test_adaptive_clusters_from_zero(tmp_path):
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=FREE_PORT) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="100 ms", wait_count=2)

        def without_workers():
            while client.nthreads():
                time.sleep(0.05)
            return {"client": client}

        assert cut(tmp_path / "a.zarr", **without_workers()) == 1
        dseeds.features(tmp_path / "a.zarr", IMAGE, tmp_path / "features", **without_workers())
        dseeds.evaluate(tmp_path / "a.zarr", scratch=tmp_path, **without_workers())
        dseeds.paint(
            tmp_path / "a.zarr", tmp_path / "features", tmp_path / "b.zarr", column="num_pixels", **without_workers()
        )
        labels = lazy_labels(0)
        without_workers()
        np.testing.assert_array_equal(client.compute(labels).result(timeout=120), LABELS)


def test_workers_of_an_adaptive_cluster_may_come_late(tmp_path, monkeypatch):
    """A job may wait in a queue for longer than a cluster may be without workers that nobody starts."""
    monkeypatch.setattr(parallel, "WORKERS_TIMEOUT", 0.2)
    monkeypatch.setattr(parallel, "STALL_SECONDS", 0.3)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=FREE_PORT) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=1, interval="1500 ms")
        assert cut(tmp_path / "a.zarr", client=client) == 1


def test_paused_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "WORKERS_TIMEOUT", 0.2)
    memory = {"pause": 0.01, "terminate": False, "target": False, "spill": False}
    with (
        dask.config.set({f"distributed.worker.memory.{name}": value for name, value in memory.items()}),
        in_process(2, 1, memory_limit="2GiB", silence_logs=50) as client,
    ):

        def running(dask_scheduler):
            return len(dask_scheduler.running)

        while client.run_on_scheduler(running):
            time.sleep(0.05)
        advice = r"all 2 workers are paused, because they use .* of their 2.0 GiB, more than 1%: .*pause, which is 0.01"
        with pytest.raises(TimeoutError, match=advice) as caught:
            cut(tmp_path / "a.zarr", client=client)
        assert_sentence(caught.value)


def test_daemonic_processes(tmp_path, monkeypatch):
    # As multiprocessing sets it in the processes of a pool.
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(ValueError, match=r"daemonic, .* and cannot start workers: leave out workers=") as caught:
        cut(tmp_path / "a.zarr", workers=1)
    assert_sentence(caught.value)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import numpy, dseeds
dseeds.segment(numpy.zeros((16, 16, 16), "uint8"), {target!r}, step=8, workers=2)
"""


@pytest.mark.slow
def test_a_script_without_a_guard(tmp_path, environment):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(target=str(tmp_path / "a.zarr")))
    command = [sys.executable, script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    *_, last = result.stderr.rstrip().splitlines()
    assert last.startswith("RuntimeError: this script starts workers while it is imported")
    assert 'if __name__ == "__main__"' in last
    # Nothing from the workers.
    assert result.stderr.count("Traceback") == 1
    assert "During handling" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_the_workers_of_a_script_do_not_inherit_from_runs_that_are_over(tmp_path, monkeypatch):
    replace_local_clusters(monkeypatch)
    before = dict(os.environ)
    assert cut(tmp_path / "a.zarr", workers=1) == 1
    assert dict(os.environ) == before
