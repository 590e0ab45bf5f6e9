"""A run without a scheduler: arrays of batch jobs that share nothing but the run's folder.

`begin_batch` checks and records a run, `run_step` does a share of a phase, `finalize_run` publishes. Every job reads the
state of the run from the journal, so jobs may come in any order, run twice or die; a Dask cluster can resume what jobs
began, and the other way round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dseeds.core.progress import Progress
from dseeds.engine import repair, run_directory
from dseeds.engine.dask_runner import RETRIES, RegionFailed, failure_reason
from dseeds.engine.driver import create_scratch, debug_command
from dseeds.engine.io_model import check_disk
from dseeds.engine.phases import GRAPH, LABEL, PARTS, Phase
from dseeds.engine.publishing import begin_labels, build_pyramids, finish_labels, measure_labels
from dseeds.engine.report import TaskResult
from dseeds.engine.run import SUFFIX, Run, RunOptions
from dseeds.engine.run_state import Marks, RunState
from dseeds.engine.source_import import import_count, import_source, is_imported
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run
from dseeds.io.labels import TASK_BYTES
from dseeds.parallel.cluster import Capacity
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import written_by
from dseeds.storage.lease import RunInUse, hold_lease
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import ScratchCorrupted

# How long other jobs may seem to do nothing until others do their share.
PATIENCE_SECONDS = 300.0
# How often to look whether other jobs are done: after a tenth of the time that they have taken so far, within bounds.
LOOK_SECONDS = 0.1, 10.0
# Where batch systems say which job of an array this is, how many there are, what they are numbered from and to, and how
# far apart numbers are. A number is what would be said if it were.
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
    """Which regions a job of an array does: every `count`-th, from the `index`-th on.

    Attributes
    ----------
    index : int
        From 0.
    count : int
        Jobs in the array.

    Examples
    --------
    >>> Share(1, 3).of([10, 11, 12, 13, 14])
    [11, 14]
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"index {self.index} is none of an array of {self.count} jobs, which are counted from 0: see --index "
                f"and --count."
            )

    def of(self, regions: list[int]) -> list[int]:
        """Pick the share out of a phase's regions."""
        return regions[self.index :: self.count]


def share_of(environment: Mapping[str, str], index: int | None = None, count: int | None = None) -> Share:
    """Find out which job of an array this is; what is given counts more than what the environment says.

    Arrays may be numbered from anywhere, for numbers are taken modulo how many there are. With `count`, a job has the
    same share in whatever part of the array it is sent once more.

    Raises
    ------
    ValueError
        If neither says, or numbers are left out in between.

    Examples
    --------
    >>> slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "16"}
    >>> share_of(slurm), share_of(slurm, count=5)
    (Share(index=7, count=16), Share(index=2, count=5))
    """
    if index is None:
        array = _array(environment)
        index, apart = array[0], 1
        if count is None:
            count, apart = _counted(*array)
        index = index // apart % max(1, count)
    elif count is None:
        raise ValueError(f"of how many jobs {index} is one is not said: say it with --count.")
    return Share(index, count)


def _array(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Read what the batch system says, in the order of `ARRAYS`, with -1 for what it does not."""
    for names in ARRAYS:
        texts = [name if name.isdecimal() else environment.get(name, "") for name in names]
        index, count, first, last, apart = (int(text) if text.isdecimal() else -1 for text in texts)
        if index >= 0 and not (names[2].isdecimal() and index < first):
            return index, count, first, last, apart
    known = ", ".join(names[0] for names in ARRAYS)
    raise ValueError(f"which job of the array this is says neither --index nor any of {known}.")


def _counted(_index: int, count: int, first: int, last: int, apart: int) -> tuple[int, int]:
    """Tell how many jobs an array has, and how far apart their numbers are."""
    apart = max(1, apart)
    between = (last - first) // apart + 1 if min(first, last) >= 0 else count
    if between < 0 or count not in (-1, between):
        raise ValueError("how many jobs the whole array has is not said here: say it with --count.")
    return between, apart


def begin_batch(
    source: str | Path | list[str],
    target: str | Path,
    asked: RunOptions,
    memory: int,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Check a run, write it down, and copy the source if it is one that cannot be read in parts.

    Parameters
    ----------
    source, target : path or URL, or a list of sources
        As for `dseeds.segment`.
    asked : Asked
        What to do.
    memory : int
        Bytes that a job may use.
    overwrite : bool
        Whether to replace an older output of this program, which goes at once, and an unfinished run.
    progress : Progress, optional
        Is told about the copying.

    Returns
    -------
    Run
        Its `folder` is what `run_step` and `finalize_run` want to be told.

    Raises
    ------
    Exception
        As `dseeds.segment`.
    """
    run, _ = prepare_run(source, target, asked, partial(Capacity, 1, 1, memory, 1), overwrite=overwrite)
    if run.document["given"] is None or (run.mask is not None and run.document["given_mask"] is None):
        raise ValueError("jobs open the source and the mask themselves: give each as a path or URL.")
    check_disk(run)
    run_directory.begin_run(run, resume=False)
    try:
        course = run.course()
        create_scratch(run, course)
        _begin_target(run, course)
        if import_count(run):
            import_source(run, course.job, lambda: None)
    except BaseException:
        run_directory.abandon_run(run)
        raise
    return run


def _begin_target(run: Run, course: RunState) -> None:
    """Make room for the labels in the target: one job does, and others wait for it."""
    if run.nifti:
        return
    place = open_location(run.target)
    while written_by(place) != run.identity:
        with suppress(RunInUse), hold_lease(run.folder):
            begin_labels(run, course.job)
    for labels in course.job.labels:
        labels.create(run.labels_layout)


def open_batch_run(plan: str | Path, *, with_source: bool = True) -> Run:
    """Read a run from its folder, or from its target's name.

    Parameters
    ----------
    plan : path or URL
        The folder or the target.
    with_source : bool
        Whether to open the source, which `run_status` does without.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, or its source cannot be opened.
    """
    address = open_location(plan).address
    folder = address if address.endswith(SUFFIX) else address + SUFFIX
    return run_directory.load_run(folder, with_source=with_source)


def run_step(
    run: Run, share: Share, *, phase: str | None = None, wait: bool = False, patience: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """Do a job's share of a phase.

    Parameters
    ----------
    run : Run
        The run, from `open_batch_run`.
    share : Share
        Which regions.
    phase : str, optional
        Which phase. Default: the one that the run has come to.
    wait : bool
        Whether to wait for the other jobs and go on with the next phase, up to the last one.
    patience : float
        After how many seconds in which nothing gets done to take over what other jobs have left.

    Returns
    -------
    dict
        ``"phase"``, the last one, or None where the run has been published meanwhile, and how many regions were
        ``"done"``.

    Raises
    ------
    NotYet
        If the phase before has not been done by all jobs.
    RegionFailed
        If a region's task fails again and again.
    ValueError
        If there is no such phase, or one is named to wait in.
    """
    if wait and phase is not None:
        raise ValueError("to wait is to do all phases: give --wait or --phase, not both.")
    done = 0
    # Jobs that have been waited for in vain, which is enough once.
    absent: set[int] = set()
    while run_directory.is_current(run):
        course, _ = _advanced(run)
        here = _phase(course, phase)
        if here is None:
            return {"phase": phase, "done": done}
        done += _do(run, course, here, share.of(course.regions(here)))
        if not wait:
            return {"phase": str(here), "done": done}
        done += _wait(run, course, here, share, patience, absent)
        if here == LABEL:
            return {"phase": str(here), "done": done}
    return {"phase": None, "done": done}


def _followed(run: Run) -> tuple[RunState, Phase, Marks]:
    """Follow a run to the phase that it has come to, and say what is done of that."""
    while True:
        course = run.course()
        phase = course.current or LABEL
        marks = course.job.journal.marks(phase)
        # Else it has been closed meanwhile, and its marks are going.
        if course.job.journal.record(phase) is None:
            return course, phase, marks


def _advanced(run: Run) -> tuple[RunState, Marks]:
    """Follow a run, and close the phase that it has come to if all its regions are done."""
    while True:
        course, phase, marks = _followed(run)
        if phase == LABEL or len(marks) < len(course.regions(phase)):
            return course, marks
        try:
            _close(run, course, phase, marks)
        except ScratchCorrupted as damage:
            if course.job.journal.record(phase) is None:
                _mend(run, course, damage)


def _close(run: Run, course: RunState, phase: Phase, marks: Marks) -> None:
    """Close a phase; where that takes much reading and memory, one job does, and others wait for it."""
    if phase not in (PARTS, GRAPH):
        course.close(phase, marks)
        return
    try:
        with hold_lease(run.folder):
            if course.job.journal.record(phase) is None:
                course.close(phase, marks)
    except RunInUse:
        time.sleep(LOOK_SECONDS[0])


def _phase(course: RunState, name: str | None) -> Phase | None:
    """Find the phase that a job is to do; None if it is done already, or there is nothing to do in it."""
    current = course.current or LABEL
    if name is None:
        return current
    by_name = {str(phase): phase for phase in course.planned}
    if name not in by_name:
        raise ValueError(f"there is no phase {name}: the phases are {', '.join(by_name)}.")
    phase = by_name[name]
    if phase in course.done or phase not in course.possible:
        return None
    if phase != current:
        left = len(course.regions(current)) - len(course.job.journal.marks(current))
        raise NotYet(f"{name} begins when all phases before it are done: {left} regions are left of {current}.")
    return phase


def _begin(run: Run, course: RunState, phase: Phase) -> None:
    """Make sure that what a phase needs is there, whoever began the run and was killed meanwhile."""
    if not is_imported(run, course.job):
        raise NotYet("the source has not been copied to its end: if dseeds init is over, begin anew with --overwrite.")
    if not course.done:
        create_scratch(run, course)
    if phase == LABEL:
        _begin_target(run, course)


def _do(run: Run, course: RunState, phase: Phase, numbers: list[int]) -> int:
    """Do those of some regions that are not done, and count them."""
    marks = course.job.journal.marks(phase)
    left = [number for number in numbers if number not in marks]
    if left and course.job.journal.record(phase) is None and run_directory.is_current(run):
        _begin(run, course, phase)
        for number in left:
            _persist(run, course, phase, number)
        if not run_directory.is_current(run):
            run_directory.remove_leftovers(run)
    return len(left)


def _persist(run: Run, course: RunState, phase: Phase, number: int, marked: bool = False) -> None:
    """Do a region's task, again where it fails."""
    for attempt in range(RETRIES + 1):
        try:
            perform_task(course.job, phase, number, course.known(phase, number), marked)
            return
        except Exception as error:
            if course.job.journal.record(phase) is not None or not run_directory.is_current(run):
                # Another job has done it long ago, and what it read is gone.
                return
            if attempt == RETRIES:
                failed = RegionFailed(str(phase), number, attempt + 1, failure_reason(error))
                run_directory.write_failure(run, failed.to_dict())
                failed.add_note(f"try that region alone with: {debug_command(run, failed)}")
                raise failed from error
            if isinstance(error, ScratchCorrupted):
                _mend(run, course, error)


def _mend(run: Run, course: RunState, damage: ScratchCorrupted) -> None:
    def again(phase: Phase, number: int) -> None:
        perform_task(course.job, phase, number, course.known(phase, number))

    repair.repair_damage(course, damage, again, partial(import_source, run, course.job, lambda: None, again=True))


def _wait(run: Run, course: RunState, phase: Phase, share: Share, patience: float, absent: set[int]) -> int:
    """Wait until all regions of a phase are done; do those of jobs that are absent, and count them."""
    regions, journal = course.regions(phase), course.job.journal
    owners = {number: position % share.count for position, number in enumerate(regions)}
    done, seen, since = 0, -1, time.monotonic()
    while journal.record(phase) is None and run_directory.is_current(run):
        marks = journal.marks(phase)
        left = [number for number in regions if number not in marks]
        if not left:
            break
        if len(left) != seen:
            seen, since = len(left), time.monotonic()
        waited = time.monotonic() - since
        if waited > patience:
            absent.update(owners[number] for number in left)
        orphans = [number for number in left if owners[number] in absent]
        # Each job that waits begins elsewhere.
        begin = len(orphans) * share.index // share.count
        done += sum(_do(run, course, phase, [number]) for number in orphans[begin:] + orphans[:begin])
        if not orphans:
            shortest, longest = LOOK_SECONDS
            time.sleep(min(max(shortest, waited / 10), longest))
    return done


def run_status(run: Run) -> dict[str, Any]:
    """Say how far a run is: plain values, ready for JSON. Nothing is written, and the source is not needed.

    Returns
    -------
    dict
        ``target`` and ``source``, a list where there are several; ``phases``, a list of ``name``, ``done`` and
        ``tasks``; ``current``, the phase at work; ``complete``, whether `finalize_run` can publish; ``failure``, of a
        region that is still to be done, or None.
    """
    course, current, marks = _followed(run)
    # Regions at rest have nothing to do.
    left = set(course.regions(current)) - marks.keys()
    tasks = len(course.job.regions)
    phases: list[dict[str, Any]] = []
    for phase in course.possible:
        done = tasks if phase in course.done else tasks - len(left) if phase == current else 0
        phases.append({"name": str(phase), "done": done, "tasks": tasks})
    behind = [phase["name"] for phase in phases if phase["done"] < tasks]
    failure, given = run_directory.read_failure(run), run.document["given"]
    return {
        "target": run.target,
        "source": given[0] if given is not None and len(given) == 1 else given,
        "phases": phases,
        "current": behind[0] if behind else None,
        "complete": not behind,
        "failure": failure if failure and failure["phase"] == str(current) and failure["region"] in left else None,
    }


def finalize_run(run: Run, *, keep_scratch: bool = False) -> RunState:
    """Publish the labels when all phases are done, and remove what is known of the run.

    Raises
    ------
    NotYet
        If there is something left to do.
    SourceChanged
        If the source has changed since the run began.
    """
    course, marks = _advanced(run)
    with hold_lease(run.folder):
        if not run_directory.is_published(run):
            current = course.current or LABEL
            left = len(course.regions(current)) - len(marks)
            if current != LABEL or left:
                raise NotYet(f"there is something left to do: {left} regions of {current}; see dseeds status.")
            for number in marks:
                _persist(run, course, LABEL, number, marked=True)
            build_pyramids(run, course.job, Executor(1))
            measure_labels(run, course, Executor(1), TASK_BYTES)
            repair.repairing(partial(finish_labels, run, course, lambda: None), partial(_mend, run, course))
    if not keep_scratch:
        run_directory.forget_run(run)
    return course


def debug_region_task(run: Run, phase: str, region: int) -> TaskResult:
    """Do a region's task of a phase in this process, letting its error through.

    Raises
    ------
    ValueError
        If there is no such phase or region.
    """
    course = run.course()
    by_name = {str(known): known for known in course.phases}
    if phase not in by_name or not 0 <= region < len(course.job.regions):
        raise ValueError(
            f"there is no {phase} of region {region}: regions go from 0 to {len(course.job.regions) - 1}, the phases "
            f"are {', '.join(by_name)}."
        )
    chosen = by_name[phase]
    if chosen != course.current:
        raise ValueError(f"the run is at {course.current}; what {phase} reads is not there.")
    return perform_task(course.job, chosen, region, course.known(chosen, region))
