"""Runs without a scheduler: arrays of batch jobs that share nothing but the folder of their run.

`begin_batch` checks and stores a run, `run_step` does one job's share of a phase or, with `wait`, of all phases, and
`finalize_run` publishes. Every job reads the state of the run from the journal and the messages, so jobs may run in any
order, run twice, or die, and a Dask cluster can resume what jobs have started, and vice versa.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dseeds.core.formatting import format_duration
from dseeds.engine import run_directory
from dseeds.engine.history import RESTED
from dseeds.engine.io_model import check_disk
from dseeds.engine.job_array import Share
from dseeds.engine.phases import GRAPH, LABEL, PARTS, QUANTISE, Phase, RegionTask
from dseeds.engine.pipeline import Pipeline
from dseeds.engine.publishing import (
    StoredLabels,
    begin_labels,
    build_pyramids,
    create_labels,
    finish_labels,
    gather_bin_counts,
    measure_labels,
)
from dseeds.engine.repair import RegionFailed, Repairer, RetryPolicy
from dseeds.engine.report import TaskResult
from dseeds.engine.residents import residents
from dseeds.engine.run import SUFFIX, Run, RunOptions
from dseeds.engine.run_state import Marks, RunState
from dseeds.engine.source_import import import_count, import_source, is_imported
from dseeds.engine.stage_timer import StageTimer
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
# The regions of a job that wait whose neighbours are looked for at a time.
LOOKED_FOR = 8
# Jobs that take over the regions of the same other one choose differently among so many of them.
CHOICE = 8
# A job looks which regions others have labelled about so many times, but not more often than after so many of its own.
LABELS_SEEN = 16
# This job, as the one worker of its pipeline.
SELF = "self"


class NotYet(RuntimeError):
    """Other jobs have to do their share first."""


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
    if not run.is_reopenable:
        raise ValueError("jobs open the source, the mask and the boundary map themselves: give each as a path or URL.")
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

    With `wait`, the job continues up to the last phase; from quantising to the last round, a region waits for those
    around it only. After `patience` seconds without news of a job that is waited for, it takes over its regions. Raises
    `NotYet` if an earlier phase is not finished, `RegionFailed` if a region's task fails too often, and a ValueError if
    there is no such phase, or `phase` and `wait` are both given.

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
            if wait and job_phase.publishes_messages:
                done += _run_pipeline(run, state, _Waiting(share, patience, absent))
                continue
            done += _run_regions(run, state, job_phase, share.of(state.regions(job_phase)))
            if not wait:
                return {"phase": str(job_phase), "done": done}
            done += _wait_for_others(run, state, job_phase, _Waiting(share, patience, absent))
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
        if phase == LABEL or not marks.keys() >= set(state.regions(phase)):
            return state, marks
        try:
            _close(run, state, phase, marks)
        except ScratchCorrupted as damage:
            if state.job.journal.record(phase) is None:
                _repairer(run, state).repair(damage)


def _close(run: Run, state: RunState, phase: Phase, marks: Marks) -> None:
    """Close a phase. Where that takes much reading and memory, a single job does it and others wait."""
    if phase not in (PARTS, GRAPH):
        if phase == QUANTISE:
            # Recorded, so that not every call of `run_status` reads them of all regions.
            state.read_bin_counts()
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
        count = len(set(state.regions(current)) - state.marks(current).keys())
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
    while run_directory.is_current(run) and written_by(run.target.location) != run.identity:
        try:
            with hold_lease(run.folder):
                # Others may have done all labels and published them, while this job was late.
                if run_directory.is_current(run):
                    begin_labels(run, state.job)
        except RunInUse:
            time.sleep(POLL_SECONDS[0])
    if run_directory.is_current(run):
        create_labels(run, state.job)


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


def _run_region(run: Run, state: RunState, phase: Phase, number: int, marked: bool = False) -> TaskResult | None:
    """Run a region's task, with retries, and return its result; None if another job did it long ago."""
    policy = RetryPolicy(_repairer(run, state).repair)
    while True:
        policy.attempts[phase, number] += 1
        try:
            return perform_task(state.job, phase, number, state.task_input(phase, number), marked)
        except Exception as error:
            if _is_done_elsewhere(run, state, phase, number):
                # What the task reads may have been removed.
                return None
            try:
                policy.prepare_retry(phase, number, error)
            except RegionFailed as failed:
                run_directory.record_failure(run, failed)
                raise


def _is_done_elsewhere(run: Run, state: RunState, phase: Phase, number: int) -> bool:
    """Return whether another job has done a region's task, which it may do if this one was suspended for long."""
    if state.job.journal.record(phase) is not None or not run_directory.is_current(run):
        return True
    return phase.publishes_messages and number in state.marks(phase)


def _repairer(run: Run, state: RunState) -> Repairer:
    return Repairer(run, state, perform_task)


@dataclass
class _Waiting:
    """How a job waits for others: until it can go on, or is out of patience and takes over the regions of some."""

    share: Share
    patience: float
    # Jobs that were waited for in vain, which is enough once.
    absent: set[int]
    _since: float = field(default_factory=time.monotonic)
    # When something was last heard of each job.
    _heard: dict[int, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin to wait anew."""
        self._since = time.monotonic()

    def hear(self, numbers: Iterable[int]) -> None:
        """Record that regions have gone on."""
        self._heard.update(dict.fromkeys(map(self.share.owner, numbers), time.monotonic()))

    @property
    def seconds(self) -> float:
        """How long the job has waited."""
        return time.monotonic() - self._since

    def pause(self) -> None:
        """Wait before looking again."""
        shortest, longest = POLL_SECONDS
        time.sleep(min(max(shortest, self.seconds / 10), longest))

    def give_up(self, phases: Mapping[int, Phase]) -> set[int]:
        """Return the jobs that have become absent, given what each region that is waited for has still to do."""
        now, jobs = time.monotonic(), dict[int, str]()
        for number, phase in phases.items():
            job = self.share.owner(number)
            heard = self._heard.setdefault(job, self._since)
            if job not in self.absent | {self.share.index} and now - heard > self.patience:
                jobs.setdefault(job, f"{phase} of region {number}")
        for job, what in jobs.items():
            print(
                f"Job {job} of {self.share.count} has not done {what} for {format_duration(self.patience)}: this job "
                f"takes over its regions.",
                file=sys.stderr,
                flush=True,
            )
        self.absent.update(jobs)
        return set(jobs)


def _run_pipeline(run: Run, state: RunState, waiting: _Waiting) -> int:
    """Do a job's share of quantising, of all rounds and, where they need nothing else, of the labels.

    Returns the number of tasks when all regions of all jobs are done, or when another job has gone on without this one.
    """
    _prepare_phase(run, state, QUANTISE)
    share, regions, done = waiting.share, range(len(state.job.regions)), 0
    pipeline = Pipeline(
        state,
        StageTimer({}),
        holders={},
        begin_labels=partial(_begin_target, run, state),
        share=share.of(regions),
        publish_rest=partial(_publish_rest, state),
    )
    pipeline.adopt(number for number in regions if share.owner(number) in waiting.absent)
    labelled, often = 0, max(LABELS_SEEN, len(share.of(regions)) // LABELS_SEEN)
    while run_directory.is_current(run) and not pipeline.is_done:
        task = _take_task(pipeline, waiting)
        if task is None and _look_around(state, pipeline, waiting):
            task = _take_task(pipeline, waiting)
        if task is not None:
            waiting.begin()
            if share.owner(task[1]) != share.index and _find(state, pipeline, task[1]):
                # Of several jobs that have taken it over, another was faster.
                continue
            result = _run_region(run, state, *task)
            if result is None:
                return done
            pipeline.finish(task, result, SELF)
            waiting.begin()
            done += 1
            labelled += task[0] == LABEL
            if task[0] == LABEL and labelled % often == 0:
                # Messages can go whose readers are all labelled.
                pipeline.observe_labels()
        else:
            if waiting.seconds > waiting.patience:
                absent = waiting.give_up({n: pipeline.phase(pipeline.next_turn(n)) for n in pipeline.stalled()})
                pipeline.adopt(number for number in regions if share.owner(number) in absent)
            waiting.pause()
    if not run_directory.is_current(run):
        run_directory.remove_leftovers(run)
    return done


def _publish_rest(state: RunState, phase: Phase, number: int) -> None:
    """Publish that a region rests in a round: jobs that wait for it may not know the regions around it."""
    state.job.messages.publish(phase, number, state.trail(phase.turn - 1, number) + RESTED[0], {})


def _take_task(pipeline: Pipeline, waiting: _Waiting) -> RegionTask | None:
    """Return the next task of a job."""
    count = CHOICE if waiting.absent else 1
    tasks = [task for task, _ in pipeline.take(count, {SELF: count})]
    if not tasks:
        return None
    chosen = tasks.pop(waiting.share.index % len(tasks))
    for _, number in tasks:
        pipeline.put_back(number)
    return chosen


def _look_around(state: RunState, pipeline: Pipeline, waiting: _Waiting) -> bool:
    """Return whether other regions have gone on."""
    if not pipeline.has_own or waiting.seconds > waiting.patience / 2:
        found = pipeline.observe_all()
    else:
        # Without a listing, which grows with the volume.
        found, missing = [], set[int]()
        for numbers in islice(pipeline.missed(), LOOKED_FOR):
            for number in numbers:
                if number in missing or not _find(state, pipeline, number):
                    missing.add(number)
                    break
                found.append(number)
    if found:
        waiting.hear(found)
    return bool(found)


def _find(state: RunState, pipeline: Pipeline, number: int) -> bool:
    """Return whether a region has done what it had to do last, as far as was known."""
    turn = pipeline.next_turn(number)
    if turn >= len(state.job.schedule):
        return False
    phase, trail = pipeline.phase(turn), state.trail(turn - 1, number)
    for outcome in state.possible_outcomes(turn):
        if state.job.messages.exists(phase, number, trail + outcome[0]):
            state.note(phase, {number: outcome})
            pipeline.observe([number])
            return True
    return False


def _wait_for_others(run: Run, state: RunState, phase: Phase, waiting: _Waiting) -> int:
    """Wait until all regions of a phase are done, take over those of absent jobs, and return their number."""
    share, regions, journal = waiting.share, state.regions(phase), state.job.journal
    done, before = 0, set(regions)
    while journal.record(phase) is None and run_directory.is_current(run):
        remaining = set(regions) - state.marks(phase).keys()
        if not remaining:
            break
        if len(remaining) < len(before):
            waiting.hear(before - remaining)
        before = remaining
        if waiting.seconds > waiting.patience:
            waiting.give_up(dict.fromkeys(sorted(remaining), phase))
        orphans = [number for number in sorted(remaining) if share.owner(number) in waiting.absent]
        # Each waiting job begins with other regions.
        begin = len(orphans) * share.index // share.count
        done += sum(_run_regions(run, state, phase, [number]) for number in orphans[begin:] + orphans[:begin])
        if not orphans:
            waiting.pause()
    return done


def run_status(run: Run) -> dict[str, Any]:
    """Return how far a run is, as plain values. Nothing is written, and the source is not needed.

    Returns a dict of ``target`` and ``source``, a list if there are several; ``phases``, a list of ``name``, ``done``
    and ``tasks``; ``current``, the current phase; ``complete``, whether `finalize_run` can publish; ``failure``, of a
    region that is still to be done, or None; ``notes`` on the contrast, once all regions are quantised.
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
            done = len(state.noted(phase))
        phases.append({"name": str(phase), "done": done, "tasks": tasks})
    unfinished = [phase["name"] for phase in phases if phase["done"] < tasks]
    failure, sources = run_directory.read_failure(run.folder), run.spec.sources
    if current == QUANTISE and not remaining:
        with suppress(ScratchCorrupted, FileNotFoundError):
            state.read_bin_counts()
    is_pending = failure and failure["phase"] == str(current) and failure["region"] in remaining
    return {
        "target": run.target.address,
        "source": sources[0] if sources is not None and len(sources) == 1 else sources,
        "phases": phases,
        "current": unfinished[0] if unfinished else None,
        "complete": not unfinished,
        "failure": failure if is_pending else None,
        "notes": list(state.notes),
    }


def finalize_run(run: Run, *, keep_scratch: bool = False) -> RunState:
    """Publish the labels and remove the folder of the run.

    Raises `NotYet` if regions remain, and `SourceChanged` if the source has changed since the run started.
    """
    state, marks = _advance(run)
    repairer = _repairer(run, state)
    with hold_lease(run.folder):
        is_published = run_directory.is_published(run)
        if not is_published:
            current = state.current or LABEL
            count = len(set(state.regions(current)) - marks.keys())
            if current != LABEL or count:
                raise NotYet(f"the run is not complete: {count} regions of {current} remain; see dseeds status.")
        gather_bin_counts(run, state, repairer.protect)
        if not is_published:
            if not run.target.is_nifti:
                # Publishing that was interrupted may have described them as finished.
                create_labels(run, state.job)
            for number in marks:
                _run_region(run, state, LABEL, number, marked=True)
            build_pyramids(run, state.job, Executor(1))
            labels = StoredLabels(run, state)
            measure_labels(run, labels, state.job.windows, Executor(1), TASK_BYTES)
            repairer.protect(partial(finish_labels, run, labels, state, lambda: None))
    if not keep_scratch:
        run_directory.forget_run(run)
    return state


def debug_region_task(run: Run, phase: str, region: int) -> TaskResult:
    """Run a region's task of the current phase, or of one for which it is ready, in this process, without retries."""
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
    if task_phase != state.current and not _has_inputs(state, task_phase, region):
        raise ValueError(f"the run is at {state.current}, so {phase} cannot run: pass --phase {state.current}.")
    return perform_task(state.job, task_phase, region, state.task_input(task_phase, region))


def _has_inputs(state: RunState, phase: Phase, number: int) -> bool:
    """Return whether a region can do a round, although others have not done rounds before it."""
    if not phase.is_round:
        return False
    state.take_messages()
    near = state.job.regions.within(number, state.job.exchange.reach(phase.turn))
    return state.are_done(phase.turn - 1, near)
