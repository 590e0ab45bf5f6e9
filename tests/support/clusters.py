"""Dask clusters for tests: threads of this process, or worker processes, on any free ports."""

from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from dseeds.parallel import local_cluster

# Without an address, or with None, Dask would serve the dashboard at port 8787, where another cluster may be.
FREE_PORT = "127.0.0.1:0"


def in_process(workers=1, threads=1, set_as_default=False, **options):
    """Start a cluster of threads and return its client, which closes the cluster; it is not Dask's current one."""
    return Client(
        processes=False,
        n_workers=workers,
        threads_per_worker=threads,
        dashboard_address=FREE_PORT,
        set_as_default=set_as_default,
        **options,
    )


@contextmanager
def worker_processes(workers=2, memory="2GiB"):
    """Start a cluster of processes with a thread each."""
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=memory,
        host="127.0.0.1",
        dashboard_address=FREE_PORT,
        silence_logs=50,
    ) as local:
        yield local


@contextmanager
def worker_process_client(workers=2, memory="2GiB"):
    """Start a cluster of processes with a thread each, and a client of it."""
    with worker_processes(workers, memory) as local, Client(local, set_as_default=False) as client:
        yield client


def replace_local_clusters(monkeypatch, **fixed):
    """Let the package start threads of this process, which has its kernels compiled, where it would start workers."""

    def threads(config, **options):
        with dask.config.set(config):
            return LocalCluster(**options | {"processes": False, "worker_class": None, "host": None} | fixed)

    monkeypatch.setattr(local_cluster, "LocalCluster", threads)
