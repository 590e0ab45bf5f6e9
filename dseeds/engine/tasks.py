"""The tasks of a region in each phase up to the last round: functions of a job and a region.

A task reads what earlier phases published and writes only its own region's part, so it can be repeated anywhere at any
time. What it keeps in memory for the region's next task is a cache. A mark in the journal, or the message of a region,
records that the task is done. Nothing here depends on Dask. `dseeds.engine.label_tasks` holds the tasks that make
labels of what the rounds leave.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from dseeds.core.process import peak_memory
from dseeds.engine import label_tasks
from dseeds.engine.history import STILL
from dseeds.engine.job import AnalysisInput, Job, RegionInput
from dseeds.engine.phases import LABEL, QUANTISE, Phase, turn_phase
from dseeds.engine.region_state import (
    RegionImage,
    advance,
    begin_pieces,
    load_state,
    quantise_region,
    read_region,
    round_pieces,
    store_bins,
)
from dseeds.engine.report import TaskResult
from dseeds.engine.residents import residents
from dseeds.engine.scratch import BIN_COUNTS, digits_name
from dseeds.engine.wavefront import has_checkpoint, obsolete_turns
from dseeds.seeds.contrast import new_counts
from dseeds.seeds.histograms import count_grey_levels
from dseeds.seeds.kernels.voxels import BINS
from dseeds.storage.zarr_arrays import ByteCounter, byte_counter


def perform_task(job: Job, phase: Phase, number: int, task_input: Any = None, is_marked: bool = False) -> TaskResult:
    """Perform a region's task of a phase, then mark it as done; `RunState.task_input` returns the input.

    If the task is marked already, its labels are only checked, because nothing later would notice that a machine went
    down before they reached its disk.
    """
    counter = ByteCounter()
    token = byte_counter.set(counter)
    start = time.perf_counter()
    try:
        if is_marked and phase == LABEL and label_tasks.has_labels(job, number):
            outcome = "labelled"
        else:
            outcome = _TASKS[phase.stage](job, number, phase.turn, task_input)
    finally:
        byte_counter.reset(token)
    seconds = time.perf_counter() - start
    # Messages are marks themselves.
    if not phase.publishes_messages:
        job.journal.mark(phase, number, outcome)
    return TaskResult(number, outcome, seconds, counter.read, counter.written, peak_memory())


def perform_pickled_task(pickled: bytes, phase: Phase, number: int, task_input: Any, is_marked: bool) -> TaskResult:
    """Call `perform_task` with a job that is pickled once for many tasks, and unpickled once per worker."""
    return perform_task(_unpickle(pickled), phase, number, task_input, is_marked)


@lru_cache(maxsize=4)
def _unpickle(pickled: bytes) -> Job:
    job = pickle.loads(pickled)
    assert isinstance(job, Job)
    return job


def check_mask(job: Job, number: int, _turn: int, _input: None) -> str:
    """Return whether any voxel of a region lies inside the mask: ``"inside"`` or ``"outside"``."""
    inside = job.read_mask(job.voxel_box(number))
    return "inside" if inside is None or inside.any() else "outside"


def count_digits(job: Job, number: int, turn: int, task_input: AnalysisInput) -> str:
    """Count the digits of a region's values for a pass of the search for the intensity windows."""
    image = _load_image(job, number)
    rows = task_input.search.count(image.values, image.inside)
    counts = np.zeros((task_input.search.rows(turn), rows.shape[1]), np.int64)
    counts[: len(rows)] = rows
    job.store.write(digits_name(turn), job.regions.around(number, 0), counts[None, None, None])
    residents.keep(job.key, image, task_input.room)
    return "counted"


def count_intensities(job: Job, number: int, _turn: int, task_input: AnalysisInput) -> str:
    """Count a region's grey levels, for the threshold of the background and for equalised bins."""
    image = _load_image(job, number)
    counts = count_grey_levels(image.values, job.windows, image.inside)
    job.store.write("intensities", job.regions.around(number, 0), counts[None, None, None])
    residents.keep(job.key, image, task_input.room)
    return "counted"


def _load_image(job: Job, number: int) -> RegionImage:
    return residents.take_image(job.key, number) or read_region(job, number)


def begin_region(job: Job, number: int, _turn: int, task_input: RegionInput) -> str:
    """Quantise a region, count its voxels in each bin, and publish what its neighbours need of it.

    Returns whether ``"all"``, ``"part"`` or ``"nothing"`` of the region lies inside the mask.
    """
    counts = new_counts(job.channels)
    state, extent = quantise_region(job, number, image=residents.take_image(job.key, number), counts=counts)
    job.store.write(BIN_COUNTS, job.regions.around(number, 0), counts[None, None, None, :, :BINS])
    pieces = {} if state is None else begin_pieces(job, state)
    job.messages.publish(QUANTISE, number, extent[0], pieces)
    if state is not None:
        residents.keep(job.key, state, task_input.room)
    return extent


def sweep_region(job: Job, number: int, turn: int, task_input: RegionInput) -> str:
    """Do a round in a region, and publish what its neighbours need of the result.

    Returns whether units moved, also in the halo: ``"moved"`` or ``"still"``.
    """
    history, room = task_input.history, task_input.room
    last = history.last_turn(number)
    state = load_state(job, number, last, history, residents.take(job.key, number, last))
    result = advance(job, state, turn, history)
    is_kept = residents.has_room(job.key, state, room)
    with_checkpoint = has_checkpoint(job.exchange, turn) or not is_kept
    # A region at rest publishes nothing for some rounds, while older messages are removed.
    with_checkpoint |= task_input.may_rest and result.outcome == STILL
    pieces = round_pieces(job, state, result, with_checkpoint=with_checkpoint)
    if not is_kept:
        store_bins(job, state)
    trail = history.trail(turn - 1, number) + result.outcome[0]
    job.messages.publish(turn_phase(job.schedule, turn), number, trail, pieces)
    # Not before: another life of this task may go on with it.
    residents.keep(job.key, state, room)
    obsolete = obsolete_turns(job.exchange, trail)
    job.messages.discard((turn_phase(job.schedule, u), number, trail[: u + 2]) for u in obsolete)
    return result.outcome


_TASKS: dict[str, Callable[..., str]] = {
    "mask": check_mask,
    "window": count_digits,
    "contrast": count_digits,
    "histogram": count_intensities,
    "quantise": begin_region,
    "sweep-blocks": sweep_region,
    "sweep-voxels": sweep_region,
    "parts": label_tasks.count_parts,
    "graph": label_tasks.write_graph,
    "label": label_tasks.label_region,
}
