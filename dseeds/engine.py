"""`segment`: the out-of-core run on Dask.

The client walks through the stages: import, window, quantise, then for each round sweep and merge, then label and
export. Within a stage every region is one task; tasks hand data to each other through scratch alone.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client

from dseeds import __version__, stages
from dseeds.cluster import Capacity, Stages, capacity, connect, local_capacity, peak_memory
from dseeds.io import Source, check_nifti_target, ome_label_attributes, open_source, write_nifti_labels
from dseeds.lattice import AXES, Lattice, Triple, check_shape
from dseeds.plan import choose_region, memory_bytes
from dseeds.quantise import NOTHING_FINITE, OrderStatistics, check_dtype, check_window
from dseeds.report import Progress, Report
from dseeds.rounds import may_rest, schedule
from dseeds.scores import check_compactness
from dseeds.stages import Job
from dseeds.steps import Step, choose_step
from dseeds.store import (
    ATTRIBUTE,
    UNIT_CHUNK,
    begin_target,
    check_target,
    create_array,
    publish,
    region_units,
    remove_target,
)

NIFTI_ENDINGS = (".nii", ".nii.gz")
# A slab of a source that workers cannot read themselves.
SLAB_BYTES = 64 << 20


def segment(
    source: Any,
    target: str | Path,
    *,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    compactness: float = 0.0,
    volume: int | None = None,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Cut a volume of any size into 3D SEEDS supervoxels, out of core, on Dask.

    The labels are those of `supervoxels`, bit for bit, however the volume is cut and on however many workers.

    Parameters
    ----------
    source : path, URL, zarr.Array, zarr.Group, nibabel image or ndarray
        The volume, axes (z, y, x): a Zarr array (v2 or v3), an OME-Zarr image, or a NIfTI file, whose (x, y, z) is
        turned round.
    target : path
        Where the labels go: a new Zarr v3 group with the labels at ``0``; or, for a NIfTI source, a name that ends in
        ``.nii`` or ``.nii.gz``.
    step, n_segments, spacing, window, compactness
        As for `supervoxels`. A spacing that the source states serves `n_segments` and a step such as ``"12mm"``; a
        step in voxels is taken as it is.
    volume : int, optional
        Which volume of a 4D source, from 0.
    region : int or sequence of int, optional
        Voxels along (z, y, x) that one task works on, rounded up to whole cells. Default: what the memory allows.
    memory : int or str, optional
        What one worker may use, such as ``"2GiB"``. Default: the workers' limit.
    workers : int, optional
        Workers of the local cluster. Default: one per core.
    client : distributed.Client, optional
        The cluster to use. Default: a local one, closed at the end, whose dashboard's address is printed.
    overwrite : bool, default False
        Replace an older output of this program, when the new labels begin to be written. Nothing else is ever
        replaced.
    scratch : path, optional
        A folder for intermediate data that all workers see; 1 to 6 bytes per voxel. Default: the target's.
    progress : Progress, optional
        Is told about stages and tasks.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    FileNotFoundError
        If the source or the target's folder does not exist.
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten.
    TypeError
        If the source's values have more than 64 bits.
    ValueError
        If the source is no volume, has no intensities or is damaged, or a parameter is out of range.

    Examples
    --------
    >>> import tempfile, zarr
    >>> import dseeds
    >>> from distributed import Client
    >>> folder = tempfile.TemporaryDirectory()
    >>> image = zarr.create_array(f"{folder.name}/image.zarr", shape=(32, 32, 32), dtype="uint16")
    >>> image[:, 10:20] = 1000
    >>> with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as client:
    ...     report = dseeds.segment(image, f"{folder.name}/labels.zarr", step=8, client=client)
    >>> report.supervoxels
    64
    >>> labels = zarr.open_array(f"{folder.name}/labels.zarr/0")
    >>> bool((labels[:] == dseeds.supervoxels(image[:], step=8)).all())
    True
    >>> folder.cleanup()
    """
    started = time.perf_counter()
    image = open_source(source, volume=volume)
    check_dtype(image.dtype)
    shape = check_shape(image.shape)
    size = choose_step(shape, step=step, n_segments=n_segments, spacing=spacing, known_spacing=image.spacing)
    limits = None if window is None else check_window(window)
    compactness = check_compactness(compactness)
    destination = _check_destination(target, image, overwrite)
    nifti = destination.name.lower().endswith(NIFTI_ENDINGS)
    has = _capacity(client, workers, memory)
    cells = choose_region(Lattice(shape, size), image.dtype.itemsize, has, region=region, chunks=image.chunks)
    # What is unfinished when something fails is undone, the labels before the scratch folder.
    with _scratch_folder(scratch, destination) as folder, ExitStack() as undo:
        labels = folder / "labels" if nifti else destination / "0"
        job = Job(image, shape, size, cells, folder, labels, compactness=compactness)
        with connect(client, has, progress) as connected:
            run = Stages(connected, _totals(job, limits is None, nifti), progress, client is not None)
            job.store.create()
            job = _with_readable_source(job, run)
            job = replace(job, window=limits or _find_window(job, run))
            _climb(job, run)
            if not nifti:
                begin_target(destination, overwrite)
                undo.callback(remove_target, destination)
            _write_labels(job, run)
            peaks = dict(connected.run(peak_memory, on_error="ignore"))
        if nifti:
            _export(job, run, image.path or source, destination, overwrite)
        else:
            asked = {
                "step": step,
                "n_segments": n_segments,
                "spacing": spacing,
                "window": window,
                "compactness": compactness or None,
                "volume": volume,
            }
            publish(destination, _attributes(job, image, asked))
            undo.pop_all()
    seconds = time.perf_counter() - started
    return Report(
        target=str(destination),
        shape=shape,
        step=size,
        cells=job.lattice.cells,
        window=job.window,
        supervoxels=job.lattice.size,
        regions=len(job.regions),
        region_shape=region_units(job.regions, job.lattice.grids[-1]),
        rounds=len(job.schedule),
        workers=has.workers,
        seconds=round(seconds, 4),
        voxels_per_second=round(float(np.prod(shape)) / seconds, 1),
        peak_memory=peaks,
        stages=run.reports(),
    )


def _capacity(client: Client | None, workers: int | None, memory: int | str | None) -> Capacity:
    """Find out what there is to work with, before anything starts."""
    limit = None if memory is None else memory_bytes(memory)
    if client is None:
        return local_capacity(workers, limit)
    if workers is not None:
        raise ValueError("workers= makes a local cluster of its own; it cannot be given together with client=.")
    found = capacity(client)
    return replace(found, memory=min(limit or found.memory, found.memory))


def _check_destination(target: str | Path, image: Source, overwrite: bool) -> Path:
    """Refuse a target that cannot or must not be written, before anything is computed."""
    if "://" in str(target):
        raise ValueError(f"{target} is not a local path; labels can be written to a folder that all workers see.")
    path = Path(target).expanduser().absolute()
    if image.path is not None and path.resolve() in {Path(image.path).resolve(), *Path(image.path).resolve().parents}:
        raise FileExistsError(f"{path} is the source, or holds it: name another target.")
    if not path.name.lower().endswith(NIFTI_ENDINGS):
        check_target(path, overwrite)
    elif image.kind != "nifti":
        raise ValueError(f"{path.name} would be NIfTI, but the source is not: name a target such as labels.zarr.")
    else:
        check_nifti_target(path, overwrite)
    return path


@contextmanager
def _scratch_folder(scratch: str | Path | None, destination: Path) -> Iterator[Path]:
    """Lend a new folder, readable by its owner alone, that is gone at the end."""
    parent = destination.parent if scratch is None else Path(scratch).expanduser().absolute()
    if not parent.is_dir():
        raise FileNotFoundError(f"the scratch folder {parent} does not exist.")
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name[:100]}-scratch-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _totals(job: Job, find_window: bool, nifti: bool) -> dict[str, int]:
    """Count the tasks of every stage to come."""
    regions, rounds = len(job.regions), schedule(job.lattice)
    return {
        "import": 0
        if job.source.readable_by_workers
        else len(range(0, job.shape[0], _thickness(job.shape, job.source.dtype))),
        "window": regions * OrderStatistics(job.source.dtype).passes if find_window else 0,
        "quantise": regions,
        "sweep-blocks": regions * sum(round_.weight is None for round_ in rounds),
        "sweep-voxels": regions * sum(round_.weight is not None for round_ in rounds),
        "merge": regions * (len(rounds) - 1),
        "label": regions,
        "export": len(range(0, job.shape[0], _thickness(job.shape, job.lattice.label_dtype))) if nifti else 0,
    }


def _thickness(shape: Triple, dtype: np.dtype[Any]) -> int:
    """Choose how many planes this process holds at once."""
    plane = shape[1] * shape[2] * dtype.itemsize
    return min(UNIT_CHUNK, max(1, SLAB_BYTES // plane))


def _with_readable_source(job: Job, run: Stages) -> Job:
    """Copy a source that only this process can read into scratch."""
    if job.source.readable_by_workers:
        return job
    thickness = _thickness(job.shape, job.source.dtype)
    shard = (thickness, *(min(n, 4 * UNIT_CHUNK) for n in job.shape[1:]))
    copy = create_array(job.scratch / "source", job.shape, job.source.dtype.newbyteorder("="), shard, UNIT_CHUNK)
    with run.timed("import") as advance:
        for begin, slab in job.source.slabs(thickness):
            copy[begin : begin + len(slab)] = slab
            advance()
    return replace(job, source=open_source(copy))


def _find_window(job: Job, run: Stages) -> tuple[float, float]:
    search = OrderStatistics(job.source.dtype)
    while not search.done:
        counts = np.zeros((len(search.prefixes), 1 << 16), np.int64)
        add = partial(np.add, counts, out=counts)
        run.run("window", stages.count_digits, range(len(job.regions)), search, job=job, each=add)
        search.narrow(counts)
    return search.window()


def _climb(job: Job, run: Stages) -> None:
    """Quantise, then do all rounds; each begins when the one before it is merged."""
    regions = range(len(job.regions))
    finite: list[bool] = []
    run.run("quantise", stages.quantise_region, regions, job=job, each=finite.append)
    if not any(finite):
        raise ValueError(NOTHING_FINITE)
    moved = dict.fromkeys(regions, -1)
    for turn, round_ in enumerate(job.schedule):
        if turn > 0:
            run.run("merge", stages.merge_region, regions, turn, job=job)
        restless = [number for number in regions if not _rests(job, number, turn, moved)]

        def note(result: tuple[int, int], turn: int = turn) -> None:
            number, moves = result
            moved[number] = turn if moves else moved[number]

        stage = "sweep-blocks" if round_.weight is None else "sweep-voxels"
        run.run(stage, stages.sweep_region, restless, turn, job=job, each=note, skipped=len(regions) - len(restless))


def _rests(job: Job, number: int, turn: int, moved: dict[int, int]) -> bool:
    """Tell whether nothing can move in a region in a round, by the last rounds in which regions moved something.

    What moves there depends on the units of its window, and on the statistics of their cells and the cells around;
    these change with units that lie up to two cells further off.
    """
    if not may_rest(job.schedule, turn):
        return False
    round_ = job.schedule[turn]
    parts = job.lattice.grids[round_.level].parts
    reach = max(-(-(-(-round_.halo // p) + 2) // k) for p, k in zip(parts, job.region, strict=True))
    return all(moved[near] < turn - 2 for near in job.regions.within(number, reach))


def _write_labels(job: Job, run: Stages) -> None:
    shard = region_units(job.regions, job.lattice.grids[-1])
    create_array(job.labels, job.shape, job.lattice.label_dtype, shard, UNIT_CHUNK, dimension_names=AXES)
    run.run("label", stages.label_region, range(len(job.regions)), job=job)


def _export(job: Job, run: Stages, source: Any, destination: Path, overwrite: bool) -> None:
    """Write the labels as NIfTI, with the affine and the header of the source."""
    labels = zarr.open_array(job.labels, mode="r")

    thickness = _thickness(job.shape, labels.dtype)

    def slabs() -> Iterator[tuple[int, Any]]:
        for begin in range(0, job.shape[0], thickness):
            yield begin, labels[begin : begin + thickness]
            advance()

    with run.timed("export") as advance:
        write_nifti_labels(destination, slabs(), source, job.shape, max_label=job.lattice.size, overwrite=overwrite)


def _attributes(job: Job, image: Source, asked: dict[str, Any]) -> dict[str, Any]:
    """Describe the labels: how they came about, for us, and where they lie in space, for every reader of OME-Zarr."""
    spacing = image.spacing if asked["spacing"] is None else tuple(asked["spacing"])
    return {
        ATTRIBUTE: {
            "supervoxels": job.lattice.size,
            "parameters": {
                "asked": {key: _plain(value) for key, value in asked.items() if value is not None},
                "step": job.step,
                "cells": job.lattice.cells,
                "window": job.window,
                "compactness": job.compactness,
                "rounds": len(job.schedule),
            },
            "source": image.identity,
            "versions": {
                "dseeds": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "numba", "zarr", "dask", "distributed")},
            },
        },
        "ome": ome_label_attributes(spacing=spacing, source=image.name),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else np.asarray(value).tolist()
