"""Runs without a scheduler: arrays of batch jobs that share nothing but the folder of their run.

`begin_batch` checks and stores a run, `run_step` does one job's share of a phase, and `finalize_run` publishes. Every
job reads the state of the run from the journal, so jobs may run in any order, run twice, or die, and a Dask cluster can
resume what jobs have started, and vice versa.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dseeds.engine import run_directory
from dseeds.engine.io_model import check_disk
from dseeds.engine.phases import GRAPH, LABEL, PARTS, Phase
from dseeds.engine.publishing import StoredLabels, begin_labels, build_pyramids, finish_labels, measure_labels
from dseeds.engine.repair import RegionFailed, Repairer, RetryPolicy
from dseeds.engine.report import TaskResult
from dseeds.engine.residents import residents
from dseeds.engine.run import SUFFIX, Run, RunOptions
from dseeds.engine.run_state import Marks, RunState
from dseeds.engine.source_import import import_count, import_source, is_imported
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run, resident_room
from dseeds.io.labels import TASK_BYTES
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import written_by
from dseeds.storage.lease import RunInUse, hold_lease
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import ScratchCorrupted

# Seconds without progress after which a waiting job takes over the regions of others.
PATIENCE_SECONDS = 300.0
# A waiting job polls after a tenth of the time that it has waited, within these bounds.
POLL_SECONDS = 0.1, 10.0
# The environment variables of batch systems: the index of this job, the number of jobs, the first and the last index,
# and the step between indices. A number stands for the value of a variable that does not exist.
ARRAYS = (
    (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
    ),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", "", "", ""),
    # PBS Pro and OpenPBS, and Torque.
    ("PBS_ARRAY_INDEX", "", "", "", ""),
    ("PBS_ARRAYID", "", "", "", ""),
    ("SGE_TASK_ID", "", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    # LSF, where 0 is no array.
    ("LSB_JOBINDEX", "", "1", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
    # Google Batch, Cloud Run and Kubernetes.
    ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT", "", "", ""),
    ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT", "", "", ""),
    ("JOB_COMPLETION_INDEX", "", "", "", ""),
)


class NotYet(RuntimeError):
    """Other jobs have to do their share first."""


@dataclass(frozen=True)
class Share:
    """The share of one job of an array: every `count`-th region, from the `index`-th on, which counts from 0.

    A region has the same job in every phase, so that the job finds the region's state in its memory.

    >>> Share(1, 3).of([10, 12, 13, 14])
    [10, 13]
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"index {self.index} is not in an array of {self.count} jobs, which are counted from 0: see --index "
                f"and --count."
            )

    def of(self, regions: list[int]) -> list[int]:
        """Return the share of a phase's regions."""
        return [number for number in regions if number % self.count == self.index]


def share_of(environment: Mapping[str, str], index: int | None = None, count: int | None = None) -> Share:
    """Return the share of this job, from `index` and `count` or else from the environment.

    Array indices may start anywhere, as they are taken modulo the number of jobs. With `count`, a job has the same
    share in whatever part of the array it is submitted again. Raises a ValueError if indices are left out in between.

    >>> slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "16"}
    >>> share_of(slurm), share_of(slurm, count=5)
    (Share(index=7, count=16), Share(index=2, count=5))
    """
    if index is None:
        array = _read_array(environment)
        index, step = array.index, 1
        if count is None:
            count, step = array.job_count(), max(1, array.step)
        index = index // step % max(1, count)
    elif count is None:
        raise ValueError(f"the number of jobs in the array of job {index} is not known: give it with --count.")
    return Share(index, count)


@dataclass(frozen=True)
class _JobArray:
    """The variables of a batch system, in the order of `ARRAYS`; -1 for those that are not set."""

    index: int
    count: int
    first: int
    last: int
    step: int

    def job_count(self) -> int:
        """Return the number of jobs; raise a ValueError if the variables are incomplete or contradict each other."""
        count = self.count
        if min(self.first, self.last) >= 0:
            count = (self.last - self.first) // max(1, self.step) + 1
        if count < 0 or self.count not in (-1, count):
            raise ValueError("the number of jobs in the whole array is not known: give it with --count.")
        return count


def _read_array(environment: Mapping[str, str]) -> _JobArray:
    for names in ARRAYS:
        texts = [name if name.isdecimal() else environment.get(name, "") for name in names]
        array = _JobArray(*(int(text) if text.isdecimal() else -1 for text in texts))
        if array.index >= 0 and not (names[2].isdecimal() and array.index < array.first):
            return array
    variables = ", ".join(names[0] for names in ARRAYS)
    raise ValueError(f"the index of this job is given neither by --index nor any of {variables}.")


def begin_batch(
    source: str | Path | list[str],
    target: str | Path,
    options: RunOptions,
    memory: int,
    *,
    overwrite: bool = False,
) -> Run:
    """Check and store a run for jobs with `memory` bytes, and import its source if they cannot read it in parts.

    With `overwrite`, an older output of this program is removed at once, and so is an unfinished run.
    """
    run, _ = prepare_run(source, target, options, partial(Capacity, 1, 1, memory, 1), overwrite=overwrite)
    if run.spec.sources is None or (run.mask is not None and run.spec.mask_address is None):
        raise ValueError("jobs open the source and the mask themselves: give each as a path or URL.")
    check_disk(run)
    run_directory.begin_run(run, resume=False)
    try:
        state = run.state()
        run.create_scratch(state)
        _begin_target(run, state)
        if import_count(run):
            import_source(run, state.job, lambda: None)
    except BaseException:
        run_directory.abandon_run(run)
        raise
    return run


def open_batch_run(plan: str | Path, *, with_source: bool = True) -> Run:
    """Open an unfinished run by its folder or target; `run_status` does not need its source.

    Raises a FileNotFoundError if there is no such run, and a ValueError if it is damaged, or its source cannot be
    opened.
    """
    address = open_location(plan).address
    folder = address if address.endswith(SUFFIX) else address + SUFFIX
    return run_directory.load_run(folder, with_source=with_source)


def run_step(
    run: Run, share: Share, *, phase: str | None = None, wait: bool = False, patience: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """Do a job's share of a phase, by default the current one.

    With `wait`, the job waits for the others and continues up to the last phase. After `patience` seconds without
    progress, it takes over their regions. Raises `NotYet` if an earlier phase is not finished, `RegionFailed` if a
    region's task fails too often, and a ValueError if there is no such phase, or `phase` and `wait` are both given.

    Returns a dict of ``"phase"``, the last one, or None if the run has been published in the meantime, and ``"done"``,
    the number of regions.
    """
    if wait and phase is not None:
        raise ValueError("waiting goes through all phases: give --wait or --phase, not both.")
    done = 0
    # A job that ends after its phase keeps nothing, so that the next one finds everything in scratch.
    room = resident_room(run, Capacity(1, 1, run.spec.memory, 1)) if wait else 0
    # Jobs that were waited for in vain, which is enough once.
    absent: set[int] = set()
    try:
        while run_directory.is_current(run):
            state, _ = _advance(run)
            state.room = room
            job_phase = _choose_phase(state, phase)
            if job_phase is None:
                return {"phase": phase, "done": done}
            done += _run_regions(run, state, job_phase, share.of(state.regions(job_phase)))
            if not wait:
                return {"phase": str(job_phase), "done": done}
            done += _wait_for_others(run, state, job_phase, share, patience, absent)
            if job_phase == LABEL:
                return {"phase": str(job_phase), "done": done}
        return {"phase": None, "done": done}
    finally:
        residents.release(run.job().key)


def _load_progress(run: Run) -> tuple[RunState, Phase, Marks]:
    """Return the state of a run, its current phase, and the marks of that phase."""
    while True:
        state = run.state()
        phase = state.current or LABEL
        marks = state.marks(phase)
        # Otherwise another job has just closed the phase, and is removing its marks.
        if state.job.journal.record(phase) is None:
            return state, phase, marks


def _advance(run: Run) -> tuple[RunState, Marks]:
    """Close the current phase of a run if all its regions are done, and return the state and the marks."""
    while True:
        state, phase, marks = _load_progress(run)
        if phase == LABEL or len(marks) < len(state.regions(phase)):
            return state, marks
        try:
            _close(run, state, phase, marks)
        except ScratchCorrupted as damage:
            if state.job.journal.record(phase) is None:
                _repairer(run, state).repair(damage)


def _close(run: Run, state: RunState, phase: Phase, marks: Marks) -> None:
    """Close a phase. Where that takes much reading and memory, a single job does it and others wait."""
    if phase not in (PARTS, GRAPH):
        state.close(phase, marks)
        return
    try:
        with hold_lease(run.folder):
            if state.job.journal.record(phase) is None:
                state.close(phase, marks)
    except RunInUse:
        time.sleep(POLL_SECONDS[0])


def _choose_phase(state: RunState, name: str | None) -> Phase | None:
    """Return the phase that a job works on; None if it is done already, or not needed."""
    current = state.current or LABEL
    if name is None:
        return current
    by_name = {str(phase): phase for phase in state.planned}
    if name not in by_name:
        raise ValueError(f"there is no phase {name}: the phases are {', '.join(by_name)}.")
    phase = by_name[name]
    if phase in state.done or phase not in state.possible:
        return None
    if phase != current:
        count = len(state.regions(current)) - len(state.marks(current))
        raise NotYet(f"{name} begins when all phases before it are done: {count} regions of {current} remain.")
    return phase


def _prepare_phase(run: Run, state: RunState, phase: Phase) -> None:
    """Make sure that what a phase needs exists, even if the process that started the run was killed."""
    if not is_imported(run, state.job):
        raise NotYet(
            "the source has not been copied completely: if dseeds init has ended, start again with --overwrite."
        )
    if not state.done:
        run.create_scratch(state)
    if phase == LABEL:
        _begin_target(run, state)


def _begin_target(run: Run, state: RunState) -> None:
    """Create the arrays of the labels in the target. A single job does it, and others wait."""
    if run.target.is_nifti:
        return
    while written_by(run.target.location) != run.identity:
        with suppress(RunInUse), hold_lease(run.folder):
            begin_labels(run, state.job)
    for labels in state.job.labels:
        labels.create(run.labels_layout)


def _run_regions(run: Run, state: RunState, phase: Phase, numbers: list[int]) -> int:
    """Run the tasks of those regions that are not done, and return their number."""
    marks = state.marks(phase)
    remaining = [number for number in numbers if number not in marks]
    if remaining and state.job.journal.record(phase) is None and run_directory.is_current(run):
        _prepare_phase(run, state, phase)
        for number in remaining:
            _run_region(run, state, phase, number)
        if not run_directory.is_current(run):
            run_directory.remove_leftovers(run)
    return len(remaining)


def _run_region(run: Run, state: RunState, phase: Phase, number: int, marked: bool = False) -> None:
    """Run a region's task, with retries."""
    policy = RetryPolicy(_repairer(run, state).repair)
    while True:
        policy.attempts[phase, number] += 1
        try:
            perform_task(state.job, phase, number, state.task_input(phase, number), marked)
            return
        except Exception as error:
            if state.job.journal.record(phase) is not None or not run_directory.is_current(run):
                # Another job did it long ago, and what the task reads has been removed.
                return
            try:
                policy.prepare_retry(phase, number, error)
            except RegionFailed as failed:
                run_directory.record_failure(run, failed)
                raise


def _repairer(run: Run, state: RunState) -> Repairer:
    return Repairer(run, state, perform_task)


def _wait_for_others(run: Run, state: RunState, phase: Phase, share: Share, patience: float, absent: set[int]) -> int:
    """Wait until all regions of a phase are done, take over those of absent jobs, and return their number."""
    regions, journal = state.regions(phase), state.job.journal
    owners = {number: number % share.count for number in regions}
    done, count, since = 0, -1, time.monotonic()
    while journal.record(phase) is None and run_directory.is_current(run):
        marks = state.marks(phase)
        remaining = [number for number in regions if number not in marks]
        if not remaining:
            break
        if len(remaining) != count:
            count, since = len(remaining), time.monotonic()
        waited = time.monotonic() - since
        if waited > patience:
            absent.update(owners[number] for number in remaining)
        orphans = [number for number in remaining if owners[number] in absent]
        # Each waiting job begins with other regions.
        begin = len(orphans) * share.index // share.count
        done += sum(_run_regions(run, state, phase, [number]) for number in orphans[begin:] + orphans[:begin])
        if not orphans:
            shortest, longest = POLL_SECONDS
            time.sleep(min(max(shortest, waited / 10), longest))
    return done


def run_status(run: Run) -> dict[str, Any]:
    """Return how far a run is, as plain values. Nothing is written, and the source is not needed.

    Returns a dict of ``target`` and ``source``, a list if there are several; ``phases``, a list of ``name``, ``done``
    and ``tasks``; ``current``, the current phase; ``complete``, whether `finalize_run` can publish; ``failure``, of a
    region that is still to be done, or None.
    """
    state, current, marks = _load_progress(run)
    # Regions at rest have no task, but count as done.
    remaining = set(state.regions(current)) - marks.keys()
    tasks = len(state.job.regions)
    phases: list[dict[str, Any]] = []
    for phase in state.possible:
        done = tasks if phase in state.done else tasks - len(remaining) if phase == current else 0
        if phase not in state.done and phase != current and phase.is_round:
            # Regions on Dask need not wait for all others.
            done = len(state.marks(phase))
        phases.append({"name": str(phase), "done": done, "tasks": tasks})
    unfinished = [phase["name"] for phase in phases if phase["done"] < tasks]
    failure, sources = run_directory.read_failure(run.folder), run.spec.sources
    is_pending = failure and failure["phase"] == str(current) and failure["region"] in remaining
    return {
        "target": run.target.address,
        "source": sources[0] if sources is not None and len(sources) == 1 else sources,
        "phases": phases,
        "current": unfinished[0] if unfinished else None,
        "complete": not unfinished,
        "failure": failure if is_pending else None,
    }


def finalize_run(run: Run, *, keep_scratch: bool = False) -> RunState:
    """Publish the labels and remove the folder of the run.

    Raises `NotYet` if regions remain, and `SourceChanged` if the source has changed since the run started.
    """
    state, marks = _advance(run)
    with hold_lease(run.folder):
        if not run_directory.is_published(run):
            current = state.current or LABEL
            count = len(state.regions(current)) - len(marks)
            if current != LABEL or count:
                raise NotYet(f"the run is not complete: {count} regions of {current} remain; see dseeds status.")
            for number in marks:
                _run_region(run, state, LABEL, number, marked=True)
            build_pyramids(run, state.job, Executor(1))
            labels = StoredLabels(run, state)
            measure_labels(run, labels, state.job.windows, Executor(1), TASK_BYTES)
            _repairer(run, state).protect(partial(finish_labels, run, labels, state, lambda: None))
    if not keep_scratch:
        run_directory.forget_run(run)
    return state


def debug_region_task(run: Run, phase: str, region: int) -> TaskResult:
    """Run a region's task of the current phase in this process, without retries."""
    state = run.state()
    by_name = {str(phase): phase for phase in state.phases}
    if phase not in by_name or not 0 <= region < len(state.job.regions):
        raise ValueError(
            f"there is no {phase} of region {region}: regions go from 0 to {len(state.job.regions) - 1}, the phases "
            f"are {', '.join(by_name)}."
        )
    task_phase = by_name[phase]
    if state.current is None:
        raise ValueError(f"all phases of the run are done, so {phase} cannot run: publish it with dseeds finalize.")
    if task_phase != state.current:
        raise ValueError(f"the run is at {state.current}, so {phase} cannot run: pass --phase {state.current}.")
    return perform_task(state.job, task_phase, region, state.task_input(task_phase, region))
