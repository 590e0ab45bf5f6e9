"""What a run needs of this machine, of stores and of a cluster: looked at, tried, and put into words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
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
from dseeds.core import jit
from dseeds.core.formatting import format_bytes
from dseeds.core.progress import Progress
from dseeds.io import open_source
from dseeds.parallel import cluster
from dseeds.storage.location import LocalLocation, Location, open_location

State = Literal["ok", "warning", "failed"]
# The packages whose versions a report of a problem should name; on a cluster these have to be the same everywhere.
PACKAGES = ("numpy", "numba", "zarr", "dask", "distributed", "nibabel")
# Below these a run is slow or does not start.
LEAST_MEMORY, LEAST_ROOM = 2 << 30, 10 << 30
# What is written to measure a folder's speed: enough to be past its first moment.
TRIAL_BYTES = 32 << 20
# Width in bits of the registers that a processor's features stand for, the widest first.
VECTORS = (("+avx512bw", 512), ("+avx2", 256))
SMALL = b"dseeds was here"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What it is.
    state : ``"ok"``, ``"warning"`` or ``"failed"``
        Whether a run can do with it: well, not well, or not at all.
    found : str
        What was found.
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
    """Look at all that a run needs, one thing after the other.

    Whatever goes wrong is a finding, not an error.

    Parameters
    ----------
    stores : iterable of path or URL, optional
        Folders, buckets or prefixes of them, in which a small object is written, read, listed and removed again.
    client : distributed.Client or context manager of one, optional
        The cluster to look at. It is entered, so that a connection that fails is a finding, and left.
    self_test : bool, default True
        Whether to cut a small phantom in memory and on a local cluster, and to compare.
    progress : Progress, optional
        Is told about the stages of the self test.

    Yields
    ------
    Finding
        As soon as it is known.

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
        ("versions", _versions),
        ("extras", _extras),
        ("platform", _platform),
        ("processors", _processors),
        ("vectors", _vectors),
        ("memory", _memory),
        ("compiled code", _compiled),
        ("this folder", partial(_folder, "this folder", Path.cwd())),
        *((store, partial(_store, store)) for store in addresses),
    ]
    for name, check in checks:
        yield _found(name, check)
    if client:
        yield from _cluster(client, addresses)
    if self_test:
        yield _found("self test", partial(_self_test, progress))


def _found(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(name, "failed", _line(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _versions() -> Finding:
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    found = ", ".join(
        f"{name} {version}"
        for name, version in {"dseeds": dseeds.__version__, "Python": platform.python_version(), **installed}.items()
    )
    wrong = [f"{need.name}{need.specifier}" for need in _needs("") if not _is_met(need)]
    if wrong:
        return Finding("versions", "failed", found, f"pip install {' '.join(map(repr, wrong))}")
    return Finding("versions", "ok", found)


def _extras() -> Finding:
    missing = [extra for extra in _extra_names() if not all(map(_is_met, _needs(extra)))]
    present = [extra for extra in _extra_names() if extra not in missing]
    found = f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(missing) or 'none'}"
    advice = f"for what is missing: pip install 'dseeds[{','.join(missing)}]'" if missing else ""
    return Finding("extras", "ok", found, advice)


def _extra_names() -> list[str]:
    return importlib.metadata.metadata("dseeds").get_all("Provides-Extra") or []


def _needs(extra: str) -> list[Requirement]:
    """List what is needed for an extra, or for none of them."""
    needs = map(Requirement, importlib.metadata.requires("dseeds") or ())
    if not extra:
        return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [
        need
        for need in needs
        if need.marker and need.marker.evaluate({"extra": extra}) and not need.marker.evaluate({"extra": ""})
    ]


def _is_met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(importlib.metadata.version(need.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _platform() -> Finding:
    return Finding("platform", "ok", f"{platform.platform()}, {platform.machine()}")


def _processors() -> Finding:
    there = os.cpu_count() or CPU_COUNT
    return Finding("processors", "ok", f"{CPU_COUNT} of {there} may be used")


def _vectors() -> Finding:
    _, processor, features = cpu_target.target_context.codegen().magic_tuple()
    bits = next((bits for name, bits in VECTORS if name in features.split(",")), 128)
    found = f"compiled for {processor}, with registers of {bits} bits"
    if bits == 128 and platform.machine().lower() in ("x86_64", "amd64"):
        return Finding("vectors", "warning", found, "expect less than half of the speed of a processor with AVX2")
    return Finding("vectors", "ok", found)


def _memory() -> Finding:
    found = f"{format_bytes(MEMORY_LIMIT)} for all processes of a run"
    if MEMORY_LIMIT < LEAST_MEMORY:
        return Finding("memory", "warning", found, "take few workers (--workers 1); regions will be small and many")
    return Finding("memory", "ok", found)


def _compiled() -> Finding:
    folder = os.environ.get(jit.CACHE_FOLDER)
    if not folder:
        return Finding(
            "compiled code",
            "ok",
            "is not kept: every process compiles what it uses, which takes some ten seconds",
            f"to keep it, let {jit.CACHE_FOLDER} name a folder of your own and call: dseeds compile",
        )
    if jit.is_compiled():
        return Finding("compiled code", "ok", f"is at hand in {folder}")
    return Finding("compiled code", "warning", f"is not in {folder}, or of other versions", "call: dseeds compile")


def _folder(name: str, path: Path) -> Finding:
    _try_out(LocalLocation(path))
    room = shutil.disk_usage(path).free
    found = f"{format_bytes(room)} free, writes {format_bytes(int(_speed(path)))}/s"
    found = found if name == str(path) else f"{path}: {found}"
    if room < LEAST_ROOM:
        return Finding(name, "warning", found, "scratch takes 1 to 6 bytes per voxel: see --scratch of dseeds segment")
    return Finding(name, "ok", found)


def _store(address: str) -> Finding:
    place = open_location(address)
    if isinstance(place, LocalLocation):
        if not place.path.is_dir():
            return Finding(address, "failed", "there is no such folder", "make it, or give another --store")
        return _folder(address, place.path)
    before = time.perf_counter()
    _try_out(place)
    return Finding(
        address, "ok", f"writes, reads, lists and removes: {time.perf_counter() - before:.2f} s for six requests"
    )


def _try_out(place: Location) -> None:
    """Write, read, list and remove a small file under a name that nobody else has."""
    own = _own(place)
    try:
        own.write("a", SMALL)
        if own.read("a") != SMALL:
            raise OSError(f"{place.address} gives back something else than what was written")
        if list(own.names()) != ["a"]:
            raise OSError(f"{place.address} does not list what was written")
        own.delete(["a"])
        if own.read("a") is not None:
            raise OSError(f"{place.address} still has what was removed")
    finally:
        _clear(own)


def _own(place: Location) -> Location:
    return place.at(f"dseeds-doctor-{uuid.uuid4().hex}")


def _clear(place: Location) -> None:
    # What comes of an error before this one says more.
    with suppress(Exception):
        place.clear()


def _speed(path: Path) -> float:
    """Measure how many bytes of a file reach a folder's disk in a second."""
    # No two bytes in a row alike: some file systems compress.
    data = np.random.default_rng(0).bytes(TRIAL_BYTES)
    own = _own(LocalLocation(path))
    try:
        before = time.perf_counter()
        own.write("a", data)
        return TRIAL_BYTES / (time.perf_counter() - before)
    finally:
        _clear(own)


def _cluster(connection: AbstractContextManager[Client | None], stores: list[str]) -> Iterator[Finding]:
    with ExitStack() as stack:
        try:
            client = stack.enter_context(connection)
        except (OSError, ValueError) as error:
            yield Finding("cluster", "failed", _line(error), "check the address and whether a firewall is in between")
            return
        if client is None:
            return
        if not client.scheduler_info(n_workers=-1)["workers"]:
            yield Finding("cluster", "failed", "its scheduler answers, but has no worker", "start workers for it")
            return
        yield _found("cluster", partial(_capacity, client))
        yield _found("cluster's versions", partial(_versions_of, client))
        for store in stores:
            yield _found(f"{store} from workers", partial(_seen, client, store))


def _capacity(client: Client) -> Finding:
    has = cluster.cluster_capacity(client)
    found = f"{has.workers} workers, {has.threads} threads, at least {format_bytes(has.memory)} each"
    if has.memory < has.threads_per_worker * LEAST_MEMORY // 2:
        return Finding("cluster", "warning", found, "give workers 1 GiB for each thread or more: regions will be small")
    return Finding("cluster", "ok", found)


def _versions_of(client: Client) -> Finding:
    versions: Any = client.get_versions(check=False, packages=list(PACKAGES))
    own = versions["client"]["packages"]
    differ = {
        f"{name} {theirs['packages'].get(name)} at {where}, not {own.get(name)}"
        for where, theirs in {"the scheduler": versions["scheduler"], **versions["workers"]}.items()
        for name in ("python", *PACKAGES)
        # A scheduler does none of the work.
        if theirs["packages"].get(name) != own.get(name) and (where != "the scheduler" or name == "distributed")
    }
    if differ:
        return Finding("cluster's versions", "warning", "; ".join(sorted(differ)), "install the same versions")
    return Finding("cluster's versions", "ok", "the same as here")


def _seen(client: Client, address: str) -> Finding:
    """Let all workers read what is written here: a folder of the same name may be another one there."""
    place = open_location(address)
    own = _own(place)
    try:
        own.write("a", SMALL)
        seen = client.run(_reads, own.address)
    finally:
        _clear(own)
    name, blind = f"{address} from workers", [worker for worker, reads in seen.items() if not reads]
    if blind:
        return Finding(
            name,
            "failed",
            f"{len(blind)} of {len(seen)} workers do not see what is written here, such as {min(blind)}",
            "take a folder that all of them share, or an object store",
        )
    return Finding(name, "ok", f"all {len(seen)} see what is written here")


def _reads(address: str) -> bool:
    return open_location(address).read("a") == SMALL


def _self_test(progress: Progress | None) -> Finding:
    from dseeds.phantom import phantom

    before = time.perf_counter()
    image, _ = phantom((24, 48, 48))
    expected = dseeds.supervoxels(image, step=8)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "labels.zarr")
        asked: dict[str, Any] = {"step": 8, "region": 24, "workers": 1}
        report = dseeds.segment(image, target, progress=progress, **asked)
        z, y, x = (slice(0, n) for n in image.shape)
        found = open_source(str(target)).read((z, y, x))
    pieces = dseeds.evaluate(expected, threads=1)["components_per_label"]
    if not np.array_equal(found, expected) or pieces != 1:
        what = "are not in one piece" if pieces != 1 else "differ between memory and a local cluster"
        return Finding("self test", "failed", f"labels of a phantom {what}", "please report it, with all of this")
    tasks, seconds = sum(stage.tasks for stage in report.stages), time.perf_counter() - before
    return Finding(
        "self test",
        "ok",
        f"{report.supervoxels} supervoxels, the same in memory and in {tasks} tasks of a worker process, each in one "
        f"piece, in {seconds:.0f} s",
    )
