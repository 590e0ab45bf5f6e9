"""`segment`: the out-of-core run on Dask.

The client walks through the phases of a run. Within a phase every region is one task; tasks hand data to each other
through scratch alone. What is done is noted in a journal, so that another process can go on.
"""

from __future__ import annotations

import pickle
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from dseeds import runs
from dseeds.budget import available, spare_bytes
from dseeds.cluster import Capacity, connect
from dseeds.course import Course
from dseeds.ends import (
    SourceChanged,
    SourceDamaged,
    begin_labels,
    build_pyramids,
    finish,
    import_count,
    import_source,
    measure_labels,
    pyramid_count,
    slab_count,
)
from dseeds.inside import choose_target
from dseeds.io.own_file import check_own_file
from dseeds.lease import LeaseLost, RunInUse, lease
from dseeds.needs import check_disk
from dseeds.notebook import followed
from dseeds.phases import LABEL, Phase
from dseeds.planning import plan_of
from dseeds.prepare import prepare
from dseeds.pyramid import STAGE
from dseeds.regionwise import Crew
from dseeds.repair import BeyondRepair, mend, mending
from dseeds.report import Progress, Report, peak_memory
from dseeds.run import Asked, Run
from dseeds.stages import Result, perform, perform_packed
from dseeds.steps import Step
from dseeds.store import Damage, region_units
from dseeds.streams import RegionFailed, Stages
from dseeds.windows import NothingFinite


def segment(
    source: Any,
    target: str | Path | None = None,
    *,
    into_image: bool | str = False,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    mask: Any = None,
    window: Any = None,
    percentiles: Sequence[float] | None = None,
    bins: str | None = None,
    compactness: float | None = None,
    min_size: int | None = None,
    levels: int | None = None,
    pyramid: str | None = None,
    features: bool | None = None,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    weights: Sequence[float] | None = None,
    region: int | Sequence[int] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    resume: bool = False,
    scratch: str | Path | None = None,
    keep_scratch: bool = False,
    progress: Progress | None = None,
    html: str | Path | None = None,
) -> Report:
    """Cut a volume of any size into 3D SEEDS supervoxels, out of core, on Dask.

    The labels are those of `supervoxels`, bit for bit, however the volume is cut and on however many workers.

    Parameters
    ----------
    source : path, URL, zarr.Array, zarr.Group, nibabel image, ndarray, Dask array or DataArray, or a list of these
        The volume, axes (z, y, x): a Zarr array (v2 or v3), an OME-Zarr image, whose axes may come in any order, a
        folder with a DICOM series, or a NIfTI file, whose (x, y, z) is turned round, and what else `dseeds info` can
        read. Of a list, each is a channel. A Dask array is computed once, block by block, into Dask's
        ``temporary-directory``, by the client or Dask scheduler that there is.
    target : path or URL
        Where the labels go: a new Zarr v3 group with the labels at ``0``; or, for a NIfTI source, a local file whose
        name ends in ``.nii`` or ``.nii.gz``.
    into_image : bool or str, default False
        Instead of a target: write the labels into the source, an OME-Zarr image of version 0.5, as one of the images in
        its group ``labels``, which lists it when it is whole. They are called ``supervoxels``, or what is said here.
    step, n_segments, spacing, mask, window, percentiles, bins, compactness, min_size, channel_axis, weights
        As for `supervoxels`; the mask may be whatever a source may be, and the channel axis of an OME-Zarr image may be
        called by its name. A spacing that the source states serves `n_segments` and a step such as ``"12mm"``; a step
        in voxels is taken as it is. Regions with nothing inside the mask have no tasks. Joining small supervoxels takes
        some bytes for each supervoxel in this process.
    levels : int, default 0
        How many coarser levels of supervoxels to write as well, for targets in Zarr: groups ``2x``, ``4x`` and so on,
        each with the labels at ``0`` and a table ``parents``, see `supervoxels`. This process holds the graph of what
        touches what: some 500 bytes for each supervoxel.
    pyramid : {"mode", "nearest", "none"}, default "mode"
        How coarser levels of the label images are made, for targets in Zarr: of each block of voxels the most frequent
        label, of several that are equally frequent the smallest, where 0 counts as any other; or its first voxel; or
        not at all. There are as many as the OME-Zarr image has from the level on that is read, with the same factors;
        else voxels are halved until no axis has more than 256 of them, see `dseeds.multiscale.halvings`.
    volume : int, optional
        Which volume of a 4D source, from 0.
    level : int, default 0
        Which level of an OME-Zarr image to cut, 0 being the full resolution.
    features : bool, default False
        Write the table of supervoxels and their region adjacency graph as well, see `features`: in a folder beside the
        target that is called as it is, with ``.features`` for its ending.
    region : int or sequence of int, optional
        Voxels along (z, y, x) that one task works on, rounded up to whole cells. Default: what the memory allows.
    chunks, shards : int or sequence of int, optional
        How the labels are cut, in voxels along (z, y, x). A region is made up of whole shards, a shard of whole chunks.
        Default: a shard is a region, and chunks are about 64 voxels long.
    memory : int or str, optional
        What one worker may use, such as ``"2GiB"``. Default: the workers' limit.
    workers : int, optional
        Workers of the local cluster. Default: one per core.
    client : distributed.Client, optional
        The cluster to use. Default: a local one, closed at the end, whose dashboard's address is printed.
    overwrite : bool, default False
        Replace an older output of this program, when the new labels begin to be written, and an unfinished run. Nothing
        else is ever replaced.
    resume : bool, default False
        Go on with the unfinished run of this target, if there is one. What is not said is taken from it; what is said
        has to be the same. The labels are those of a run that was never interrupted.
    scratch : path or URL, optional
        Where intermediate data go, which all workers see; 1 to 6 bytes per voxel. Default: beside the target.
    keep_scratch : bool, default False
        Leave the intermediate data, and all that is known of the run, where they are.
    progress : Progress, optional
        Is told about stages and tasks. Default: in a notebook, bars below the cell while the run lasts.
    html : path or URL, optional
        Where to write a page about the run as well, see `html_report`; one that this program wrote is replaced if
        `overwrite` is set.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    FileNotFoundError
        If the source or the target's folder does not exist.
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten; if there is an unfinished run of it; or if
        another process is at work on it.
    TypeError
        If the source's values have more than 64 bits.
    ValueError
        If the source is no volume, has no intensities or is damaged, a parameter is out of range, the memory or the
        disk is too small, or the unfinished run to be gone on with is another one.
    RegionFailed
        If a region's task fails again and again. The run can be gone on with.

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
    target = choose_target(source, target, into_image)
    asked = Asked.of(locals())
    if html is not None:
        check_own_file(html, overwrite)
    run, has = prepare(
        source, target, asked, partial(available, client, workers, memory), overwrite=overwrite, resume=resume
    )
    check_disk(run)
    resumed = runs.begin(run, resume)
    with _resumable(run):
        with (
            lease(run.folder) as held,
            followed(progress) as follower,
            connect(client, has, follower) as connected,
        ):
            course = run.course()
            stages = Stages(connected, _totals(run, course), follower, client is not None, held.check, held.confirm)
            if not runs.is_published(run):
                walk(run, course, stages)
                if run.pyramid:
                    with stages.timed(STAGE) as advance:
                        build_pyramids(run, course.job, Crew(0, connected), advance)
                measure_labels(run, course, Crew(0, connected, follower), spare_bytes(has))
            peaks = dict(connected.run(peak_memory, on_error="ignore"))
            held.confirm()
            tell = partial(_report, run, course, stages, has, peaks, resumed, started)
            expected = plan_of(run, has, None)
            publish(run, course, stages, {"plan": expected.to_dict(), "report": tell().to_dict()})
        # Not before the lease is given back, which lies there too.
        if not keep_scratch:
            runs.forget(run)
    report = tell()
    if html is not None:
        # What draws is imported by those who want pictures.
        from dseeds.page import html_report

        try:
            html_report(run.target, html, plan=expected, report=report, image=run.image, overwrite=overwrite)
        except Exception as error:
            error.add_note(f"the labels in {run.target} are whole and published: it is the page alone that is missing")
            raise
    return report


def _report(
    run: Run,
    course: Course,
    stages: Stages,
    has: Capacity,
    peaks: dict[str, int],
    resumed: bool,
    started: float,
) -> Report:
    """Tell what a run has done so far."""
    seconds = time.perf_counter() - started
    job = course.job
    reports = stages.reports()
    return Report(
        target=run.target,
        features=run.features,
        shape=job.shape,
        step=job.step,
        cells=job.lattice.cells,
        windows=job.windows,
        supervoxels=course.supervoxels,
        coarser=tuple(course.counts[1:]),
        regions=len(job.regions),
        skipped=sum(report.skipped for report in reports),
        retried=sum(report.retried for report in reports),
        resumed=resumed,
        region_shape=region_units(job.regions, job.lattice.grids[-1]),
        rounds=len(job.schedule),
        workers=has.workers,
        seconds=round(seconds, 4),
        voxels_per_second=round(float(np.prod(job.shape)) / seconds, 1),
        peak_memory=peaks,
        stages=reports,
    )


def create_arrays(run: Run, course: Course) -> None:
    """Create all arrays in scratch, empty."""
    course.job.store.create({**course.layouts, **run.layouts})


def walk(run: Run, course: Course, stages: Stages) -> None:
    """Do all phases of a run that are not done."""
    if not course.done:
        create_arrays(run, course)
    if import_count(run) and not course.done:
        with stages.timed("import") as advance:
            import_source(run, course.job, advance)
    mend_it = partial(_mend, run, course, stages)
    while (phase := course.current) is not None and phase != LABEL:
        marks = do_phase(course, phase, stages, mend_it)
        stages.confirm()
        mending(partial(course.close, phase, marks), mend_it)
    if not run.nifti:
        stages.confirm()
        begin_labels(run, course.job)
    do_phase(course, LABEL, stages, mend_it)


def publish(run: Run, course: Course, stages: Stages, record: Mapping[str, Any]) -> None:
    """Publish the labels, which say what is recorded of their run."""
    with stages.timed("export") if run.nifti else nullcontext(lambda: None) as advance:
        mending(partial(finish, run, course, advance, record), partial(_mend, run, course, stages))


def do_phase(course: Course, phase: Phase, stages: Stages, mending: Callable[[Damage], None]) -> dict[int, str]:
    """Do a phase where it is not done, and give its marks."""
    job = course.job
    marks = job.journal.marks(phase)
    # Labels that are marked are looked at once more: nothing that comes after would notice what is wrong with them.
    left = [number for number in course.regions(phase) if phase == LABEL or number not in marks]
    if len(left) < len(job.regions):
        stages.skip(phase.stage, len(job.regions) - len(left))
    before, packed = set(marks), pickle.dumps(job)

    def call(number: int) -> tuple[Any, ...]:
        return packed, phase, number, course.known(phase, number), number in before

    def note(result: Result) -> None:
        marks[result.number] = result.found

    stages.run(phase, left, perform_packed, call, each=note, mend=mending)
    return marks


def _mend(run: Run, course: Course, stages: Stages, damage: Damage) -> None:
    # Whoever has taken the run over tidies up.
    stages.confirm()

    def again(phase: Phase, number: int) -> None:
        stages.once(phase, perform, course.job, phase, number, course.known(phase, number))

    mend(course, damage, again, partial(import_source, run, course.job, lambda: None, again=True))


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """Leave a run that fails so that it can be gone on with, and say how; or leave nothing, where that is no use."""
    try:
        yield
    except (RunInUse, LeaseLost):
        raise
    except (NothingFinite, SourceDamaged):
        runs.abandon(run)
        raise
    except BaseException as error:
        if not runs.may_be_begun(run):
            runs.abandon(run)
            raise
        if isinstance(error, RegionFailed):
            runs.note_failure(run, error.to_dict())
            error.add_note(f"try that region alone with: {debug_command(run, error)}")
        if not isinstance(error, SourceChanged | BeyondRepair):
            error.add_note(f"go on with: {resume_command(run)}")
        raise


def resume_command(run: Run) -> str:
    """Give the command that goes on with a run."""
    sources = run.document["given"] or ["SOURCE"]
    return shlex.join(["dseeds", "segment", *sources, run.target, "--resume"])


def debug_command(run: Run, failed: RegionFailed) -> str:
    """Give the command that does a region's task alone."""
    return shlex.join(
        ["dseeds", "debug-region", run.folder.address, "--phase", failed.phase, "--region", str(failed.region)]
    )


def _totals(run: Run, course: Course) -> dict[str, int]:
    """Count the tasks of every stage to come."""
    totals = Counter({"import": import_count(run)})
    for phase in course.phases:
        totals[phase.stage] += len(course.job.regions)
    for phase in course.planned:
        # Values that are no numbers make parts.
        totals.setdefault(phase.stage, len(course.job.regions))
    totals[STAGE] = pyramid_count(run)
    totals["export"] = slab_count(course.job.shape, course.job.lattice.label_dtype.itemsize) if run.nifti else 0
    return dict(totals)
