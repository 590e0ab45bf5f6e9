"""The driver: one process that walks a run through its phases on Dask.

The client walks through the phases of a run. Within a phase every region is one task; tasks hand data to each other
through scratch alone. What is done is noted in a journal, so that another process can go on.
"""

from __future__ import annotations

import pickle
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from dseeds.core.process import peak_memory
from dseeds.core.progress import Progress
from dseeds.engine import run_directory
from dseeds.engine.dask_runner import RegionFailed, StageRunner
from dseeds.engine.io_model import check_disk
from dseeds.engine.memory_model import resolve_capacity, thread_budget
from dseeds.engine.phases import LABEL, Phase
from dseeds.engine.planning import Plan, build_plan
from dseeds.engine.publishing import (
    SourceChanged,
    begin_labels,
    build_pyramids,
    finish_labels,
    measure_labels,
    pyramid_count,
)
from dseeds.engine.repair import BeyondRepair, repair_damage, repairing
from dseeds.engine.report import Report, TaskResult
from dseeds.engine.run import Run, RunOptions
from dseeds.engine.run_state import RunState
from dseeds.engine.source_import import SourceDamaged, import_count, import_source, slab_count
from dseeds.engine.tasks import perform_pickled_task, perform_task
from dseeds.engine.validation import prepare_run
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.parallel.cluster import Capacity, connect
from dseeds.parallel.executor import Executor
from dseeds.parallel.notebook_progress import default_progress
from dseeds.seeds.order_statistics import NoFiniteValues
from dseeds.storage.lease import LeaseLost, RunInUse, hold_lease
from dseeds.storage.zarr_arrays import ScratchCorrupted, region_units


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes
    ----------
    run : Run
        What was run.
    plan : Plan
        What it was expected to take.
    report : Report
        What it took.
    """

    run: Run
    plan: Plan
    report: Report


def run_segmentation(
    source: Any,
    target: str | Path,
    options: RunOptions,
    *,
    memory: int | str | None = None,
    workers: int | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    resume: bool = False,
    keep_scratch: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Check what is asked for, run it on Dask and publish the labels; the parameters are those of `dseeds.segment`."""
    started = time.perf_counter()
    run, has = prepare_run(
        source,
        target,
        options,
        partial(resolve_capacity, client, workers, memory),
        overwrite=overwrite,
        resume=resume,
    )
    check_disk(run)
    resumed = run_directory.begin_run(run, resume)
    with _resumable(run):
        with (
            hold_lease(run.folder) as held,
            default_progress(progress) as follower,
            connect(client, has, follower) as connected,
        ):
            course = run.course()
            stages = StageRunner(
                connected, _totals(run, course), follower, client is not None, held.check, held.confirm
            )
            if not run_directory.is_published(run):
                run_phases(run, course, stages)
                if run.pyramid:
                    with stages.timed(PYRAMID_STAGE) as advance:
                        build_pyramids(run, course.job, Executor(0, connected), advance)
                measure_labels(run, course, Executor(0, connected, follower), thread_budget(has))
            peaks = dict(connected.run(peak_memory, on_error="ignore"))
            held.confirm()
            tell = partial(_report, run, course, stages, has, peaks, resumed, started)
            expected = build_plan(run, has, None)
            publish_run(run, course, stages, {"plan": expected.to_dict(), "report": tell().to_dict()})
        # Not before the lease is given back, which lies there too.
        if not keep_scratch:
            run_directory.forget_run(run)
    return Outcome(run, expected, tell())


def _report(
    run: Run,
    course: RunState,
    stages: StageRunner,
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


def create_scratch(run: Run, course: RunState) -> None:
    """Create all arrays in scratch, empty."""
    course.job.store.create({**course.layouts, **run.layouts})


def run_phases(run: Run, course: RunState, stages: StageRunner) -> None:
    """Do all phases of a run that are not done."""
    if not course.done:
        create_scratch(run, course)
    if import_count(run) and not course.done:
        with stages.timed("import") as advance:
            import_source(run, course.job, advance)
    mend_it = partial(_mend, run, course, stages)
    while (phase := course.current) is not None and phase != LABEL:
        marks = run_phase(course, phase, stages, mend_it)
        stages.confirm()
        repairing(partial(course.close, phase, marks), mend_it)
    if not run.nifti:
        stages.confirm()
        begin_labels(run, course.job)
    run_phase(course, LABEL, stages, mend_it)


def publish_run(run: Run, course: RunState, stages: StageRunner, record: Mapping[str, Any]) -> None:
    """Publish the labels, which say what is recorded of their run."""
    with stages.timed("export") if run.nifti else nullcontext(lambda: None) as advance:
        repairing(partial(finish_labels, run, course, advance, record), partial(_mend, run, course, stages))


def run_phase(
    course: RunState, phase: Phase, stages: StageRunner, mending: Callable[[ScratchCorrupted], None]
) -> dict[int, str]:
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

    def note(result: TaskResult) -> None:
        marks[result.number] = result.outcome

    stages.run(phase, left, perform_pickled_task, call, each=note, mend=mending)
    return marks


def _mend(run: Run, course: RunState, stages: StageRunner, damage: ScratchCorrupted) -> None:
    # Whoever has taken the run over tidies up.
    stages.confirm()

    def again(phase: Phase, number: int) -> None:
        stages.once(phase, perform_task, course.job, phase, number, course.known(phase, number))

    repair_damage(course, damage, again, partial(import_source, run, course.job, lambda: None, again=True))


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """Leave a run that fails so that it can be gone on with, and say how; or leave nothing, where that is no use."""
    try:
        yield
    except (RunInUse, LeaseLost):
        raise
    except (NoFiniteValues, SourceDamaged):
        run_directory.abandon_run(run)
        raise
    except BaseException as error:
        if not run_directory.may_have_progress(run):
            run_directory.abandon_run(run)
            raise
        if isinstance(error, RegionFailed):
            run_directory.write_failure(run, error.to_dict())
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


def _totals(run: Run, course: RunState) -> dict[str, int]:
    """Count the tasks of every stage to come."""
    totals = Counter({"import": import_count(run)})
    for phase in course.phases:
        totals[phase.stage] += len(course.job.regions)
    for phase in course.planned:
        # Values that are no numbers make parts.
        totals.setdefault(phase.stage, len(course.job.regions))
    totals[PYRAMID_STAGE] = pyramid_count(run)
    totals["export"] = slab_count(course.job.shape, course.job.lattice.label_dtype.itemsize) if run.nifti else 0
    return dict(totals)
