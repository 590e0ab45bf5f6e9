"""The driver: one process takes a run through its phases on Dask.

Every region is a task of each phase, and tasks exchange data through scratch alone. A journal and the messages of the
regions hold what is done, so that another process can resume the run.
"""

from __future__ import annotations

import pickle
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from distributed import Client

from dseeds.core.kernel_cache import compile_seconds
from dseeds.core.process import peak_memory
from dseeds.core.progress import Progress
from dseeds.engine import run_directory
from dseeds.engine.dask_runner import PhaseTasks, StageRunner
from dseeds.engine.io_model import check_disk
from dseeds.engine.job import Job
from dseeds.engine.memory_model import thread_budget
from dseeds.engine.outcome import Outcome, report_run
from dseeds.engine.phases import LABEL, Phase, RegionTask
from dseeds.engine.pipeline import Pipeline, balance_holders
from dseeds.engine.planning import build_plan
from dseeds.engine.publishing import (
    SourceChanged,
    StoredLabels,
    begin_labels,
    build_pyramids,
    finish_labels,
    gather_bin_counts,
    measure_labels,
    pyramid_count,
)
from dseeds.engine.repair import BeyondRepair, RegionFailed, Repairer
from dseeds.engine.run import Run
from dseeds.engine.run_state import RunState
from dseeds.engine.source_import import SourceDamaged, import_count, import_source, slab_count
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import resident_room
from dseeds.io.pyramid import PYRAMID_STAGE
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.cluster import connect
from dseeds.parallel.executor import Executor
from dseeds.parallel.notebook_progress import default_progress
from dseeds.seeds.flood import ConstantMap
from dseeds.seeds.order_statistics import NoFiniteValues
from dseeds.storage.lease import LeaseLost, RunInUse, hold_lease
from dseeds.storage.zarr_arrays import ScratchCorrupted


def run_on_dask(
    run: Run,
    capacity: Capacity,
    client: Client | None,
    *,
    resume: bool = False,
    keep_scratch: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Run a segmentation on the user's cluster, or on a local one, and publish the labels; see `dseeds.segment`."""
    started = time.perf_counter()
    check_disk(run, threads=capacity.threads)
    is_resumed = run_directory.begin_run(run, resume)
    with _resumable(run):
        with (
            hold_lease(run.folder) as held,
            default_progress(progress) as follower,
            connect(client, capacity, follower) as connected,
        ):
            state = run.state()
            state.room = resident_room(run, capacity)
            stages = StageRunner(
                _task_totals(run, state),
                follower,
                client=connected,
                wait_for_cancelled=client is not None,
                check=held.check,
                confirm=held.confirm,
            )
            if not run_directory.is_published(run):
                with stages.states_of(state.job.key):
                    run_phases(run, state, stages)
                if run.spec.pyramid:
                    with stages.timed(PYRAMID_STAGE) as advance:
                        build_pyramids(run, state.job, Executor(0, connected), advance)
                gather_bin_counts(run, state, _repairer(run, state, stages).protect)
                labels, executor = StoredLabels(run, state), Executor(0, connected, follower)
                measure_labels(run, labels, state.job.windows, executor, thread_budget(capacity))
            peaks = dict(connected.run(peak_memory, on_error="ignore"))
            # The workers of a cluster of the user's may have compiled in earlier runs.
            compiled = (
                max(connected.run(compile_seconds, on_error="ignore").values(), default=0.0) if client is None else 0.0
            )
            held.confirm()
            report = partial(
                report_run,
                run,
                state,
                stages,
                started,
                workers=capacity.workers,
                peaks=peaks,
                compiled=compiled,
                is_resumed=is_resumed,
            )
            plan = build_plan(run, capacity, None)
            publish_run(run, state, stages, {"plan": plan.to_dict(), "report": report().to_dict()})
        # Only after the lease is released, which is in the same folder.
        if not keep_scratch:
            run_directory.forget_run(run)
    return Outcome(run, plan, report())


def run_phases(run: Run, state: RunState, stages: StageRunner) -> None:
    """Run the phases of a run that are not done."""
    if not state.done:
        run.create_scratch(state)
        if import_count(run):
            with stages.timed("import") as advance:
                import_source(run, state.job, advance)
    repairer = _repairer(run, state, stages)
    # The workers that hold the images or states of regions.
    holders: dict[int, str] = {}
    while (phase := state.current) is not None and phase != LABEL:
        if phase.publishes_messages:
            if run_pipeline(run, state, stages, repairer, holders):
                return
            continue
        marks = run_phase(state, phase, stages, repairer.repair, holders)
        stages.confirm()
        repairer.protect(partial(state.close, phase, marks))
    _begin_target(run, state, stages)
    run_phase(state, LABEL, stages, repairer.repair, holders)


def _begin_target(run: Run, state: RunState, stages: StageRunner) -> None:
    """Create the arrays of the labels."""
    if not run.target.is_nifti:
        stages.confirm()
        begin_labels(run, state.job)


def run_pipeline(run: Run, state: RunState, stages: StageRunner, repairer: Repairer, holders: dict[int, str]) -> bool:
    """Run quantising and all rounds, and the labels where they need nothing else; return whether these are done."""
    balance_holders(holders, stages.client.nthreads())
    pipeline = Pipeline(state, stages, holders, stages.confirm, partial(_begin_target, run, state, stages))
    stages.run(pipeline, _arguments(state, pipeline.is_marked), repairer.repair)
    assert pipeline.is_done
    return pipeline.has_labels


def run_phase(
    state: RunState,
    phase: Phase,
    stages: StageRunner,
    repair: Callable[[ScratchCorrupted], None],
    holders: dict[int, str],
) -> dict[int, str]:
    """Run a phase in the regions where it is not done, and return the marks of all."""
    marks = state.marks(phase)
    # Labels are checked even if they are marked: no later phase would notice that they are damaged.
    numbers = [number for number in state.regions(phase) if phase == LABEL or number not in marks]
    if len(numbers) < len(state.job.regions):
        stages.skip(phase.stage, len(state.job.regions) - len(numbers))
    marked, tasks = set(marks), PhaseTasks(phase, iter(numbers), marks, holders)
    stages.run(tasks, _arguments(state, lambda task: task[1] in marked), repair)
    return marks


def _arguments(state: RunState, is_marked: Callable[[RegionTask], bool]) -> Callable[[RegionTask], tuple[Any, ...]]:
    """Return a function that returns the arguments of `perform_pickled_task` for a task."""
    job, pickled = state.job, pickle.dumps(state.job)

    def arguments(task: RegionTask) -> tuple[Any, ...]:
        nonlocal job, pickled
        if job is not state.job:
            # It changes when a phase is closed.
            job, pickled = state.job, pickle.dumps(state.job)
        phase, number = task
        return pickled, phase, number, state.task_input(phase, number), is_marked(task)

    return arguments


def publish_run(run: Run, state: RunState, stages: StageRunner, record: Mapping[str, Any]) -> None:
    """Publish the labels, with a record of their run among their attributes."""
    with stages.timed("export") if run.target.is_nifti else nullcontext(lambda: None) as advance:
        labels = StoredLabels(run, state)
        _repairer(run, state, stages).protect(partial(finish_labels, run, labels, state, advance, record))


def _repairer(run: Run, state: RunState, stages: StageRunner) -> Repairer:
    def perform_once(job: Job, phase: Phase, number: int, task_input: Any) -> None:
        stages.run_once(phase, perform_task, job, phase, number, task_input)

    return Repairer(run, state, perform_once, stages.confirm)


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """If a run fails, add the command that resumes it to the error; or remove it, if nothing can be resumed."""
    try:
        yield
    except (RunInUse, LeaseLost):
        raise
    except (NoFiniteValues, ConstantMap, SourceDamaged):
        run_directory.abandon_run(run)
        raise
    except BaseException as error:
        if not run_directory.may_have_progress(run):
            run_directory.abandon_run(run)
            raise
        if isinstance(error, RegionFailed):
            run_directory.record_failure(run, error)
        if not isinstance(error, SourceChanged | BeyondRepair):
            command = ["dseeds", "segment", *(run.spec.sources or ["SOURCE"]), run.target.address, "--resume"]
            error.add_note(f"resume with: {shlex.join(command)}")
        raise


def _task_totals(run: Run, state: RunState) -> dict[str, int]:
    """Count the tasks of every stage to come."""
    job = state.job
    totals = Counter({"import": import_count(run)})
    for phase in state.phases:
        if phase not in state.done:
            totals[phase.stage] += len(job.regions)
    # NaN may act as a mask, and percentiles may be equal, which makes further stages necessary.
    possible = Counter(phase.stage for phase in state.planned)
    for stage, count in possible.items():
        totals.setdefault(stage, count * len(job.regions))
    totals[PYRAMID_STAGE] = pyramid_count(run, run.region_levels)
    totals["export"] = slab_count(job.shape, job.lattice.label_dtype.itemsize) if run.target.is_nifti else 0
    return dict(totals)
