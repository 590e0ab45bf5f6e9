"""A pytest plug-in that fails every test which leaves a Dask client, a cluster, a process or a thread behind.

A setting of Dask that names a scheduler counts as well: without its client, the next `compute` would fail.

A leak would otherwise show as a failure or a hang of some later test. Fixtures of a wider scope than one test may hold
what they set up.
"""

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

# Seconds in which what a test has closed may come to its end.
GRACE = 15
# Pools that libraries start once per process and keep.
POOLS = ("Dask-", "TCP-Executor", "IO loop", "zarr_", "asyncio_", "ThreadPoolExecutor-", "pytest_timeout", "execnet")


class LeakGuard:
    """Compare what lives before and after each test, and close what should not."""

    def __init__(self):
        self.before = {}
        self.held = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Remember what fixtures of a wider scope set up."""
        if fixturedef.scope == "function":
            return (yield)
        before = living()
        try:
            return (yield)
        finally:
            self.held |= without(living(), before)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self):
        """Remember what lives before the first fixture of a test is set up."""
        self.before = living()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        """Fail a test that leaves something behind when its last fixture is torn down."""
        result = yield
        leaks = self.leaks()
        deadline = time.monotonic() + GRACE
        while leaks and time.monotonic() < deadline:
            time.sleep(0.05)
            leaks = self.leaks()
        if leaks:
            names = [name for name, _ in leaks.values()]
            for _, close in leaks.values():
                with suppress(Exception):
                    close()
            pytest.fail(f"{item.nodeid} leaves behind: {'; '.join(names)}", pytrace=False)
        return result

    def leaks(self):
        """Return what lives now, did not before the test, and is not held by a fixture of a wider scope."""
        return without(living(), self.before | self.held)


def without(resources, others):
    return {key: value for key, value in resources.items() if key not in others}


def living():
    """Return clients, clusters, processes and threads as {key: (name, function that closes it)}."""
    return {**dask_objects(), **dask_scheduler(), **processes(), **threads()}


def dask_scheduler():
    """Return the scheduler that Dask is set to use, if any."""
    if "dask" not in sys.modules:
        return {}
    import dask

    chosen = dask.config.get("scheduler", None)
    return (
        {} if chosen is None else {("scheduler", str(chosen)): (f"Dask's scheduler set to {chosen}", reset_scheduler)}
    )


def reset_scheduler():
    import dask

    dask.config.config.pop("scheduler", None)


def dask_objects():
    """Return open clients and clusters, clients first."""
    if "distributed" not in sys.modules:
        return {}
    from distributed import Client
    from distributed.core import Status
    from distributed.deploy.spec import SpecCluster

    clients = [client for client in list(Client._instances) if client.status not in ("closed", "newly-created")]
    clusters = [cluster for cluster in list(SpecCluster._instances) if cluster.status != Status.closed]
    return {id(one): (repr(one), lambda one=one: one.close(timeout=10)) for one in (*clients, *clusters)}


def processes():
    """Return this process's children, but for those that Dask or multiprocessing start and end by themselves."""
    found = {}
    for pid in child_pids() - nanny_pids():
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in command:
                key = (pid, process.create_time())
                found[key] = (f"process {pid} ({command[:200]})", lambda process=process: end(process))
    return found


def child_pids():
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:
        return {child.pid for child in psutil.Process().children()}
    pids = set()
    for path in lists:
        # A thread may have ended meanwhile.
        with suppress(OSError):
            pids.update(map(int, path.read_text().split()))
    return pids


def nanny_pids():
    """Return the worker processes of clusters, which are reported instead of them."""
    if "distributed" not in sys.modules:
        return set()
    from distributed import Nanny

    return {nanny.pid for nanny in list(Nanny._instances)}


def end(process):
    for one in (*process.children(recursive=True), process):
        with suppress(psutil.Error):
            one.kill()
    process.wait(10)


def threads():
    return {
        thread.ident: (f"thread {thread.name}", lambda thread=thread: thread.join(1))
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread() and not thread.name.startswith(POOLS)
    }
