"""What is set in worker processes during a run, and restored after it."""

import resource
import sys

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from dseeds.parallel.worker_settings import KeptMemory, StoppedProfiler
from tests.support.clusters import worker_process_client


def pages_cleared():
    """Allocate and free what a task may, again and again; return the pages that the system had to clear."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(4 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_workers_keep_freed_memory_until_the_end_of_the_last_run():
    with worker_process_client(workers=1) as client:

        def cleared():
            return client.submit(pages_cleared, pure=False).result()

        before, plugins = cleared(), [KeptMemory(), KeptMemory()]
        for plugin in plugins:
            client.register_plugin(plugin)
        cleared()
        assert cleared() < before / 10
        client.unregister_worker_plugin(plugins[0].name)
        assert cleared() < before / 10
        client.unregister_worker_plugin(plugins[1].name)
        assert cleared() > before / 2


def test_dasks_profiler_is_stopped_until_the_end_of_the_last_run():
    """In Python 3.11, where it may block a process for ever."""
    with (
        dask.config.set({"distributed.worker.profile.enabled": True}),
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):

        def running():
            return [is_profiled(worker) for worker in cluster.workers.values()]

        plugins, is_safe = [StoppedProfiler(), StoppedProfiler()], sys.version_info >= (3, 12)
        assert running() == [True]
        for plugin in plugins:
            client.register_plugin(plugin)
        cluster.scale(2)
        client.wait_for_workers(2)
        assert running() == [is_safe] * 2
        client.unregister_worker_plugin(plugins[0].name)
        assert running() == [is_safe] * 2
        client.unregister_worker_plugin(plugins[1].name)
        assert running() == [True] * 2


def is_profiled(worker):
    return "profile" in worker.periodic_callbacks and worker.periodic_callbacks["profile"].is_running()
