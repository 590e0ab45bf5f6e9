"""`segment_many`, the public function: many volumes in one process, several at a time."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from dseeds.core.checks import check_threads, is_whole_number
from dseeds.engine.in_process import run_in_process
from dseeds.engine.in_process_model import allowed_bytes, is_small, needed_bytes
from dseeds.engine.report import Report
from dseeds.engine.run import AUTO_MASK, Run, RunOptions
from dseeds.engine.run_directory import has_features, is_made, is_unfinished
from dseeds.engine.segmentation import run_segmentation
from dseeds.engine.validation import prepare_run
from dseeds.io.formats.nifti import NIFTI_ENDINGS
from dseeds.parallel.clients import open_client
from dseeds.parallel.machine import cpu_count
from dseeds.parallel.resources import Resources
from dseeds.parallel.unguarded_script import end_importing_worker
from dseeds.seeds.flood import DERIVED_KINDS
from dseeds.storage.label_group import FILE_ENDINGS
from dseeds.storage.location import is_remote

# What stands for the name of a volume in the address of its mask.
NAME_FIELD = "{name}"
# Endings that are not part of a volume's name, the longer ones first.
ENDINGS = (*NIFTI_ENDINGS[::-1], ".ome.zarr", ".ome.tiff", ".ome.tif", ".zarr", *FILE_ENDINGS)
# What follows them is one of several images in a file.
_NAME = re.compile(rf"(.*?)(?:{'|'.join(map(re.escape, ENDINGS))})(?::(.+))?", re.IGNORECASE)
# A thread is worth so many voxels: smaller volumes are cut by one thread each, several at a time.
VOXELS_PER_THREAD = 1 << 21


@dataclass(frozen=True)
class VolumeResult:
    """What became of one of many volumes.

    Attributes
    ----------
    source, target : str
        The addresses of the volume and of its labels.
    report : Report or None
        The report of its run; None if it failed, or was skipped because its labels were there already.
    error : str or None
        Why it failed.
    """

    source: str
    target: str
    report: Report | None = None
    error: str | None = None

    @property
    def skipped(self) -> bool:
        """Whether its labels were there already."""
        return self.report is None and self.error is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "skipped": self.skipped}


def segment_many(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    name_folders: int = 0,
    mask: str | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_result: Callable[[VolumeResult], object] = lambda result: None,
    **options: Any,
) -> list[VolumeResult]:
    """Cut many volumes into supervoxels, each on its own, and write their labels into a folder.

    Small volumes are cut in this process, several at a time; one that does not fit in memory is cut by
    Dask's current client, or on a local cluster, when the others are done. A volume that fails does not stop the
    others.

    Parameters
    ----------
    sources : sequence of path or URL
        The volumes, of any format that `segment` takes.
    folder : path or URL
        Where to write the labels; it is created if necessary. Labels of NIfTI are NIfTI, ``NAME.nii.gz`` for
        ``NAME.nii.gz``, others are OME-Zarr, ``NAME.zarr``.
    name_folders : int, default 0
        How many of the folders that a volume lies in are in the name of its labels, for volumes whose own names are the
        same: 1 for ``p1_ct.nii.gz`` from ``p1/ct.nii.gz``.
    mask : str, optional
        ``"auto"``, or the address of the masks, in which ``{name}`` stands for the name of a volume: that of its labels
        without the ending. It does so in `boundaries` as well.
    memory : int or str, optional
        The memory that volumes may take together, such as ``"8GiB"``. Default: most of what the machine has free.
    threads : int, optional
        The number of threads. Default: one per core.
    overwrite : bool, default False
        Replace older labels that this program wrote.
    resume : bool, default False
        Skip volumes whose labels have been written from the same data with the same options, on any machine, and
        resume runs of large ones. If only the features are missing, the same labels are written again with them.
    on_result : callable, optional
        Called with the `VolumeResult` of every volume as soon as it is known.
    **options
        Other options of `segment`, for all volumes: `step`, `n_segments`, `spacing`, `window`, `percentiles`, `bins`,
        `compactness`, `min_size`, `levels`, `boundaries`, `pyramid`, `features`, `volume`, `level`, `channel_axis`,
        `weights`, `chunks`, `shards`.

    Returns
    -------
    list of VolumeResult
        In the order of the sources.

    Raises
    ------
    TypeError
        If there is no such option.
    ValueError
        If there are no sources, one is given twice, or the labels of several would have the same name.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import dseeds
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         np.save(f"{folder}/{name}.npy", np.zeros((16, 16, 16), np.uint8))
    ...     results = dseeds.segment_many([f"{folder}/a.npy", f"{folder}/b.npy"], f"{folder}/labels", step=8)
    >>> [result.report.supervoxels for result in results]
    [8, 8]
    """
    end_importing_worker()
    targets = name_targets([os.fspath(source) for source in sources], os.fspath(folder), name_folders)
    run_options = RunOptions(**options, mask=mask)
    for what, address, words in (("mask", mask, (AUTO_MASK,)), ("boundary map", run_options.boundaries, DERIVED_KINDS)):
        if address is not None and address not in words and NAME_FIELD not in address and len(targets) > 1:
            raise ValueError(
                f"{address} cannot be the {what} of several volumes: write {NAME_FIELD} where their names differ"
            )
    threads = cpu_count() if threads is None else check_threads(threads)
    volumes = _Volumes(run_options, _Budget(allowed_bytes(memory), threads), overwrite, resume)
    if not is_remote(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    results: dict[str, VolumeResult] = {}
    large: list[str] = []

    def settle(source: str, result: VolumeResult | None) -> None:
        if result is None:
            large.append(source)
        else:
            results[source] = result
            on_result(result)

    with ThreadPoolExecutor(min(threads, len(targets)), thread_name_prefix="dseeds-volume") as pool:
        running = {pool.submit(volumes.cut, source, target): source for source, target in targets.items()}
        try:
            for future in as_completed(running):
                settle(running[future], future.result())
        except BaseException:
            # What has begun ends; nothing else begins.
            volumes.budget.stop()
            pool.shutdown(cancel_futures=True)
            raise
    for source in large:
        settle(source, volumes.cut_on_dask(source, targets[source], memory))
    return [results[source] for source in targets]


def name_targets(sources: list[str], folder: str, name_folders: int = 0) -> dict[str, str]:
    """Return the address of the labels of each source in a folder.

    A name depends on nothing but the address of its source and `name_folders`, the number of the folders in it: other
    volumes do not change it. Raises a ValueError if two are the same, also without their endings.

    >>> name_targets(["1/ct.nii.gz", "2/ct.nii.gz", "2/mr.tif"], "out", 1)
    {'1/ct.nii.gz': 'out/1_ct.nii.gz', '2/ct.nii.gz': 'out/2_ct.nii.gz', '2/mr.tif': 'out/2_mr.zarr'}
    """
    if not sources:
        raise ValueError("there are no volumes: name at least one")
    if not is_whole_number(name_folders) or name_folders < 0:
        raise ValueError(f"name_folders must be 0 or a larger whole number, got {name_folders!r}")
    names = {source: "_".join(_parts(source)[-1 - int(name_folders) :]) for source in sources}
    if len(names) < len(sources):
        twice = next(source for source in sources if sources.count(source) > 1)
        raise ValueError(f"{twice} is named twice: name every volume once")
    first: dict[str, str] = {}
    for source, name in names.items():
        # Their features, and masks, would have the same name too, whatever the endings.
        other = first.setdefault(volume_name(name), source)
        if other != source:
            raise ValueError(
                f"the labels of {other} and {source} would both be named {volume_name(name)}: rename one, or have more "
                f"of their folders in the names (name_folders={name_folders + 1}, --name-folders {name_folders + 1})"
            )
    return {source: f"{folder.rstrip('/')}/{volume_name(name)}{_target_ending(name)}" for source, name in names.items()}


def _parts(source: str) -> list[str]:
    """Return the names that an address consists of."""
    parts = source.split("/") if "://" in source else Path(source).parts
    return [part for part in parts if part.strip("/\\:")]


def volume_name(name: str) -> str:
    """Return the name of a volume without the ending of its format.

    >>> volume_name("ct.nii.gz"), volume_name("1.2.840.1"), volume_name("a.OME.TIF:1")
    ('ct', '1.2.840.1', 'a_1')
    """
    match = _NAME.fullmatch(name)
    return name if match is None else "_".join(filter(None, match.groups()))


def _target_ending(name: str) -> str:
    ending = next((ending for ending in NIFTI_ENDINGS if name.lower().endswith(ending)), None)
    return ending or ".zarr"


class _Budget:
    """Memory and threads that several volumes share."""

    def __init__(self, memory: int, threads: int) -> None:
        self.memory, self.threads = memory, threads
        self._free_memory, self._free_threads, self._stopped = memory, threads, False
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, memory: int, threads: int) -> Iterator[None]:
        """Take some memory and threads as soon as they are free, of which there are as many at least."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or (self._free_memory >= memory and self._free_threads >= threads)
            )
            if self._stopped:
                raise InterruptedError("interrupted before it began")
            self._free_memory -= memory
            self._free_threads -= threads
        try:
            yield
        finally:
            with self._changed:
                self._free_memory += memory
                self._free_threads += threads
                self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody begin any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@dataclass(frozen=True)
class _Volumes:
    """What is common to all volumes."""

    options: RunOptions
    budget: _Budget
    overwrite: bool
    resume: bool

    def cut(self, source: str, target: str) -> VolumeResult | None:
        """Cut a volume in this process and return what became of it; None if it does not fit in memory."""
        result = VolumeResult(source, target)
        try:
            run = self._prepare(source, target)
            if self.resume and is_made(run) and has_features(run):
                return result
            threads = max(1, min(self.budget.threads, prod(run.spec.shape) // VOXELS_PER_THREAD))
            needed = needed_bytes(run, threads)
            if needed > self.budget.memory or not is_small(run) or (self.resume and is_unfinished(run)):
                return None
            with self.budget.hold(needed, threads):
                return replace(result, report=run_in_process(run, threads=threads).report)
        except Exception as error:
            return replace(result, error=_describe(error))

    def cut_on_dask(self, source: str, target: str, memory: int | str | None) -> VolumeResult:
        """Cut a large volume on a local cluster and return what became of it."""
        result = VolumeResult(source, target)
        try:
            with open_client(None) as client:
                outcome = run_segmentation(
                    source,
                    target,
                    self._own_options(source, target),
                    Resources(memory, client=client),
                    overwrite=self._prepare(source, target).spec.overwrite,
                    resume=self.resume,
                )
            return replace(result, report=outcome.report)
        except Exception as error:
            return replace(result, error=_describe(error))

    def _prepare(self, source: str, target: str) -> Run:
        """Check a volume and its target, which may be there already if it holds what would be written."""
        options = self._own_options(source, target)
        for overwrite in (True, self.overwrite) if self.resume else (self.overwrite,):
            run, _ = prepare_run(source, target, options, Resources().capacity, overwrite=overwrite, resume=self.resume)
            if self.resume and is_made(run):
                break
        return run

    def _own_options(self, source: str, target: str) -> RunOptions:
        name = volume_name(target.rpartition("/")[2])
        mask, boundaries = (
            address.replace(NAME_FIELD, name) if isinstance(address, str) else address
            for address in (self.options.mask, self.options.boundaries)
        )
        return replace(self.options, mask=mask, boundaries=boundaries)


def _describe(error: Exception) -> str:
    """Return a sentence about an error, with its type if it is not one that users are expected to meet."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError | ValueError | TypeError) else f"{type(error).__name__}: {text}"
