"""Checks of what a run needs: this machine, stores and a cluster."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dask.system import CPU_COUNT
from distributed import Client
from distributed.system import MEMORY_LIMIT
from numba.core.registry import cpu_target
from packaging.requirements import Requirement

import dseeds
from dseeds.core import kernel_cache
from dseeds.core.formatting import format_bytes, format_duration
from dseeds.core.progress import Progress
from dseeds.io import open_source
from dseeds.parallel import cluster
from dseeds.storage.location import LocalLocation, Location, open_location

State = Literal["ok", "warning", "failed"]
# The packages whose versions a bug report should name; on a cluster they must be the same everywhere.
PACKAGES = ("numpy", "numba", "zarr", "dask", "distributed", "nibabel")
# With less memory or disk space a run is slow or does not start.
LEAST_MEMORY, LEAST_ROOM = 2 << 30, 10 << 30
# The size of the file that measures a folder's speed: large enough that opening it does not count.
TRIAL_BYTES = 32 << 20
# The register widths in bits that processor features stand for, the widest first.
VECTORS = (("+avx512bw", 512), ("+avx2", 256))
TEST_CONTENT = b"dseeds was here"


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes
    ----------
    name : str
        The check.
    state : ``"ok"``, ``"warning"`` or ``"failed"``
        Whether a run will work well, badly, or not at all.
    found : str
        What the check found.
    advice : str
        What to do about it; may be empty.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(
    stores: Iterable[str | os.PathLike[str]] = (),
    *,
    client: AbstractContextManager[Client | None] | None = None,
    self_test: bool = True,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Check everything that a run needs, one thing after the other.

    Errors become findings.

    Parameters
    ----------
    stores : iterable of path or URL, optional
        Folders, buckets or prefixes, in which a small object is written, read, listed and removed.
    client : distributed.Client or context manager of one, optional
        The cluster to check. It is entered here, so that a failed connection is a finding.
    self_test : bool, default True
        Whether to segment a small phantom in memory and on a local cluster, and compare the labels.
    progress : Progress, optional
        The observer of the self test.

    Yields
    ------
    Finding
        The result of each check as soon as it is done.

    Examples
    --------
    >>> findings = {finding.name: finding for finding in examine(self_test=False)}
    >>> findings["versions"].state
    'ok'
    >>> list(findings)
    ['versions', 'extras', 'platform', 'processors', 'vectors', 'memory', 'compiled code', 'this folder']
    """
    addresses = [str(os.fspath(store)) for store in stores]
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("versions", _check_versions),
        ("extras", _check_extras),
        ("platform", _check_platform),
        ("processors", _check_processors),
        ("vectors", _check_vectors),
        ("memory", _check_memory),
        ("compiled code", _check_compiled_code),
        ("this folder", partial(_check_folder, "this folder", Path.cwd())),
        *((store, partial(_check_store, store)) for store in addresses),
    ]
    for name, check in checks:
        yield _run_check(name, check)
    if client:
        yield from _check_cluster(client, addresses)
    if self_test:
        yield _run_check("self test", partial(_run_self_test, progress))


def _run_check(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(name, "failed", _as_line(error))


def _as_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_versions() -> Finding:
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    all_versions = {"dseeds": dseeds.__version__, "Python": platform.python_version(), **installed}
    versions = ", ".join(f"{name} {version}" for name, version in all_versions.items())
    unmet = [f"{need.name}{need.specifier}" for need in _requirements() if not _is_met(need)]
    if unmet:
        return Finding("versions", "failed", versions, f"pip install {' '.join(map(repr, unmet))}")
    return Finding("versions", "ok", versions)


def _check_extras() -> Finding:
    extras = importlib.metadata.metadata("dseeds").get_all("Provides-Extra") or []
    missing = [extra for extra in extras if not all(map(_is_met, _requirements(extra)))]
    present = [extra for extra in extras if extra not in missing]
    found = f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(missing) or 'none'}"
    advice = f"to install the rest: pip install 'dseeds[{','.join(missing)}]'" if missing else ""
    return Finding("extras", "ok", found, advice)


def _requirements(extra: str = "") -> list[Requirement]:
    """Return the requirements of an extra alone or, without one, of the package."""

    def is_required(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    requirements = map(Requirement, importlib.metadata.requires("dseeds") or ())
    return [each for each in requirements if is_required(each, extra) and not (extra and is_required(each, ""))]


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _check_platform() -> Finding:
    return Finding("platform", "ok", f"{platform.platform()}, {platform.machine()}")


def _check_processors() -> Finding:
    return Finding("processors", "ok", f"{CPU_COUNT} of {os.cpu_count() or CPU_COUNT} can be used")


def _check_vectors() -> Finding:
    _, processor, features = cpu_target.target_context.codegen().magic_tuple()
    bits = next((bits for name, bits in VECTORS if name in features.split(",")), 128)
    found = f"kernels are compiled for {processor}, with registers of {bits} bits"
    if bits == 128 and platform.machine().lower() in ("x86_64", "amd64"):
        return Finding("vectors", "warning", found, "expect less than half the speed of a processor with AVX2")
    return Finding("vectors", "ok", found)


def _check_memory() -> Finding:
    found = f"{format_bytes(MEMORY_LIMIT)} for all processes of a run"
    if MEMORY_LIMIT < LEAST_MEMORY:
        return Finding("memory", "warning", found, "use few workers (--workers 1); regions will be many and small")
    return Finding("memory", "ok", found)


def _check_compiled_code() -> Finding:
    parent = kernel_cache.cache_folder()
    if parent is None:
        return Finding(
            "compiled code",
            "ok",
            "not kept: each process compiles the kernels that it uses, which takes about ten seconds",
            f"to keep it, unset {kernel_cache.CACHE_FOLDER}",
        )
    try:
        folder = kernel_cache.open_code_folder(parent)
    except OSError as error:
        return Finding(
            "compiled code",
            "warning",
            f"cannot be kept in {parent} ({error.strerror or error})",
            f"set {kernel_cache.CACHE_FOLDER} to a folder of your own",
        )
    return Finding("compiled code", "ok", f"kept in {folder}")


def _check_folder(name: str, path: Path) -> Finding:
    _test_operations(LocalLocation(path))
    room = shutil.disk_usage(path).free
    found = f"{format_bytes(room)} free, writes {format_bytes(int(_write_rate(path)))}/s"
    found = found if name == str(path) else f"{path}: {found}"
    if room < LEAST_ROOM:
        return Finding(
            name,
            "warning",
            found,
            "scratch takes 1 to 8 bytes per voxel: see --scratch of dseeds segment",
        )
    return Finding(name, "ok", found)


def _check_store(address: str) -> Finding:
    place = open_location(address)
    if isinstance(place, LocalLocation):
        if not place.path.is_dir():
            return Finding(address, "failed", "the folder does not exist", "create it, or choose another --store")
        return _check_folder(address, place.path)
    before = time.perf_counter()
    _test_operations(place)
    seconds = time.perf_counter() - before
    return Finding(address, "ok", f"can be written, read, listed and cleared: {seconds:.2f} s for six requests")


def _test_operations(place: Location) -> None:
    """Write, read, list and remove a small file under a unique name; raise an OSError if one does not work."""
    with _unique_folder(place) as own:
        own.write("a", TEST_CONTENT)
        if own.read("a") != TEST_CONTENT:
            raise OSError(f"{place.address} returns other content than was written")
        if list(own.names()) != ["a"]:
            raise OSError(f"{place.address} does not list a file that was written")
        own.delete(["a"])
        if own.read("a") is not None:
            raise OSError(f"{place.address} still has a file that was removed")


@contextmanager
def _unique_folder(place: Location) -> Iterator[Location]:
    folder = place.at(f"dseeds-doctor-{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        # An earlier error says more than one of clearing.
        with suppress(Exception):
            folder.clear()


def _write_rate(path: Path) -> float:
    """Return the bytes per second that are written to a folder's disk."""
    # Random, because some file systems compress.
    data = np.random.default_rng(0).bytes(TRIAL_BYTES)
    with _unique_folder(LocalLocation(path)) as own:
        before = time.perf_counter()
        own.write("a", data)
        return TRIAL_BYTES / (time.perf_counter() - before)


def _check_cluster(connection: AbstractContextManager[Client | None], stores: list[str]) -> Iterator[Finding]:
    with ExitStack() as stack:
        try:
            client = stack.enter_context(connection)
        except (OSError, ValueError) as error:
            yield Finding("cluster", "failed", _as_line(error), "check the address, and whether a firewall blocks it")
            return
        if client is None:
            return
        if not client.scheduler_info(n_workers=-1)["workers"]:
            yield Finding("cluster", "failed", "the scheduler answers, but has no worker", "start workers")
            return
        yield _run_check("cluster", partial(_check_cluster_capacity, client))
        yield _run_check("cluster's versions", partial(_check_cluster_versions, client))
        for store in stores:
            yield _run_check(f"{store} from workers", partial(_check_worker_access, client, store))


def _check_cluster_capacity(client: Client) -> Finding:
    capacity = cluster.cluster_capacity(client)
    found = f"{capacity.workers} workers, {capacity.threads} threads, at least {format_bytes(capacity.memory)} each"
    if capacity.memory < capacity.threads_per_worker * LEAST_MEMORY // 2:
        return Finding("cluster", "warning", found, "give workers 1 GiB or more per thread, or regions are small")
    return Finding("cluster", "ok", found)


def _check_cluster_versions(client: Client) -> Finding:
    versions: Any = client.get_versions(check=False, packages=list(PACKAGES))
    own = versions["client"]["packages"]
    differences = {
        f"{name} {theirs['packages'].get(name)} at {where}, not {own.get(name)}"
        for where, theirs in {"the scheduler": versions["scheduler"], **versions["workers"]}.items()
        for name in ("python", *PACKAGES)
        # The scheduler does no tasks.
        if theirs["packages"].get(name) != own.get(name) and (where != "the scheduler" or name == "distributed")
    }
    if differences:
        return Finding("cluster's versions", "warning", "; ".join(sorted(differences)), "install the same versions")
    return Finding("cluster's versions", "ok", "the same as here")


def _check_worker_access(client: Client, address: str) -> Finding:
    """Check that all workers read what is written here: on their machines the same path may be another folder."""
    with _unique_folder(open_location(address)) as own:
        own.write("a", TEST_CONTENT)
        reads = client.run(_reads, own.address)
    name, blind = f"{address} from workers", [worker for worker, can_read in reads.items() if not can_read]
    if blind:
        found = f"{len(blind)} of {len(reads)} workers, such as {min(blind)}, cannot read files written here"
        return Finding(name, "failed", found, "choose a folder that all of them share, or an object store")
    return Finding(name, "ok", f"all {len(reads)} workers can read files written here")


def _reads(address: str) -> bool:
    return open_location(address).read("a") == TEST_CONTENT


def _run_self_test(progress: Progress | None) -> Finding:
    from dseeds.phantom import phantom

    before = time.perf_counter()
    image, _ = phantom((24, 48, 48))
    expected = dseeds.supervoxels(image, step=8)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "labels.zarr")
        report = dseeds.segment(image, target, step=8, region=24, workers=1, progress=progress)
        z, y, x = (slice(0, n) for n in image.shape)
        labels = open_source(str(target)).read((z, y, x))
    components = dseeds.evaluate(expected, threads=1)["components_per_label"]
    if not np.array_equal(labels, expected) or components != 1:
        fault = "are not connected" if components != 1 else "differ between memory and a local cluster"
        return Finding("self test", "failed", f"labels of a phantom {fault}", "please report this, with all findings")
    tasks, duration = sum(stage.tasks for stage in report.stages), format_duration(time.perf_counter() - before)
    found = f"{report.supervoxels} connected supervoxels, the same in memory and in {tasks} tasks of a worker process"
    return Finding("self test", "ok", f"{found}, in {duration}")
