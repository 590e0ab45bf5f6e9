"""The tasks of a region in each phase up to the last round: pure functions of a job and a region.

A task reads what earlier phases left in scratch and writes only its own region's part, so it can be repeated anywhere
at any time. A mark in the journal records that it is done. Nothing here depends on Dask. `dseeds.engine.label_tasks`
holds the tasks that make labels of what the rounds leave.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Grid, Window, per_axis
from dseeds.core.process import peak_memory
from dseeds.engine import label_tasks
from dseeds.engine.job import Job, Rested, box_of_parents, parents_in
from dseeds.engine.phases import LABEL, Phase
from dseeds.engine.report import TaskResult
from dseeds.engine.scratch import (
    bins_name,
    codes_name,
    core_name,
    digits_name,
    histograms_name,
    shells_name,
    statistics_name,
)
from dseeds.seeds import rounds, statistics_exchange
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.block_histograms import hide_outside, stored_histograms
from dseeds.seeds.histograms import count_grey_levels
from dseeds.seeds.kernels.label_codes import pack_labels, refine_labels, seed_labels
from dseeds.seeds.kernels.layout import new_window, pack_planes, unpack_box
from dseeds.seeds.kernels.simd import NOTHING, OPEN
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.storage.zarr_arrays import ByteCounter, byte_counter

# The bit of a unit's label code that marks its block as open: its neighbourhood has changed since it was last visited.
OPEN_BIT = 128


def perform_task(job: Job, phase: Phase, number: int, task_input: Any = None, is_marked: bool = False) -> TaskResult:
    """Perform a region's task of a phase, then mark it as done; `RunState.task_input` returns the input.

    If the task is marked already, its labels are only checked, because nothing later would notice that a machine went
    down before they reached its disk.
    """
    counter = ByteCounter()
    token = byte_counter.set(counter)
    start = time.perf_counter()
    try:
        if is_marked and phase == LABEL and all(labels.is_complete(job.voxel_box(number)) for labels in job.labels):
            outcome = "labelled"
        else:
            outcome = _TASKS[phase.stage](job, number, phase.turn, task_input)
    finally:
        byte_counter.reset(token)
    seconds = time.perf_counter() - start
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


def count_digits(job: Job, number: int, turn: int, search: WindowSearch) -> str:
    """Count the digits of a region's values for a pass of the search for the intensity windows."""
    box = job.voxel_box(number)
    rows = search.count(job.read_image(box), job.read_mask(box))
    counts = np.zeros((search.rows(turn), rows.shape[1]), np.int64)
    counts[: len(rows)] = rows
    job.store.write(digits_name(turn), job.regions.around(number, 0), counts[None, None, None])
    return "counted"


def count_intensities(job: Job, number: int, _turn: int, _input: None) -> str:
    """Count a region's grey levels, for the threshold of the background and for equalised bins."""
    box = job.voxel_box(number)
    counts = count_grey_levels(job.read_image(box), job.windows, job.read_mask(box))
    job.store.write("intensities", job.regions.around(number, 0), counts[None, None, None])
    return "counted"


def quantise_region(job: Job, number: int, _turn: int = 0, _input: None = None) -> str:
    """Write a region's bins, block histograms and the initial statistics of its cells.

    Returns whether ``"all"``, ``"part"`` or ``"nothing"`` of the region lies inside the mask; in the last case nothing
    is written.
    """
    region, box = job.regions.box(number), job.voxel_box(number)
    bins = np.empty((job.channels, *box.shape), np.uint8)
    extent = quantise_box(
        job.read_image(box),
        job.windows,
        bins,
        inside=job.read_mask(box),
        tables=job.tables,
        thresholds=job.thresholds,
    )
    if extent == "nothing":
        return extent
    for channel, values in enumerate(bins):
        job.store.write(bins_name(channel), box, values)
    if job.schedule:
        windows = new_window(box.shape, 0, channels=job.channels)
        for values, window in zip(bins, windows, strict=True):
            pack_planes(values, 0, window)
        _write_initial_statistics(job, region, windows, extent)
    return extent


def _write_initial_statistics(job: Job, region: Box, values: NDArray[Any], extent: str) -> None:
    """Write the histograms of a region's blocks, and the statistics of its cells when each has its own voxels."""
    grids, first = job.lattice.grids, job.schedule[0]
    coarsest = values
    for level, coarsest in stored_histograms(job.lattice, values, region):
        job.store.write(histograms_name(level), grids[level].units_of(region), coarsest)
    window = Window.around(job.lattice, grids[first.level], region, 0)
    labels = seed_labels(window.grid.homes_of(window.box))
    if extent == "part":
        hide_outside(first.level, job.lattice, window.box, coarsest, labels)
    counts = rounds.count_statistics(first, job.lattice, window, coarsest, labels)
    own, _ = statistics_exchange.split_statistics(counts, window.cells, region, job.regions)
    job.store.write(statistics_name(0), region, own)


def sweep_region(job: Job, number: int, turn: int, rested: Rested) -> str:
    """Do a round in a region: write its label codes, and its contributions to the next round's statistics.

    Returns whether units moved, also in the halo: ``"moved"`` or ``"still"``.
    """
    round_ = job.schedule[turn]
    grid = job.lattice.grids[round_.level]
    window = Window.around(job.lattice, grid, job.regions.box(number), round_.halo)
    labels, state = _read_labels(job, turn, window, rested)
    values = _read_values(job, round_.level, window.box)
    if job.masked and (turn == 0 or job.schedule[turn - 1].level != round_.level):
        hide_outside(round_.level, job.lattice, window.box, values, labels)
    counts = job.read_cells(statistics_name(turn), window.cells).reshape(-1, round_.bins)
    moves, change = rounds.sweep_window(
        round_,
        job.lattice,
        window,
        values,
        labels,
        state,
        counts,
        compactness=job.compactness,
        weights=job.weights,
    )
    codes = _core(labels, window)
    marks = _core(state, window) & OPEN if round_.weight is None else 0
    job.store.write(codes_name(turn), window.core, codes | OPEN_BIT * marks)
    if turn + 1 < len(job.schedule):
        # Free the window's arrays before those of the next level are made.
        del labels, state, values
        _write_contributions(job, number, turn, codes, change, window)
    return "moved" if moves else "still"


def _write_contributions(
    job: Job, number: int, turn: int, codes: NDArray[np.uint8], change: NDArray[np.uint32], window: Window
) -> None:
    """Write a region's contributions to the statistics after a round.

    They are the changes to the counts; if the next round's statistics have other bins, the new counts themselves.
    """
    region, following = job.regions.box(number), job.schedule[turn + 1]
    cells = window.cells
    if following.bins != job.schedule[turn].bins:
        voxels, labels, values = _refine_to_voxels(job, region, window.grid, codes)
        change, cells = rounds.count_statistics(following, job.lattice, voxels, values, labels), voxels.cells
    own, shell = statistics_exchange.split_statistics(change, cells, region, job.regions)
    job.store.write(core_name(turn + 1), region, own)
    job.store.write(shells_name(turn + 1), job.regions.around(number, 0), shell[None, None, None])


def merge_region(job: Job, number: int, turn: int, rested: Rested) -> str:
    """Add the contributions of all regions to the statistics of a region's cells before a round.

    A region that rested in the round before contributes nothing.
    """
    before, round_ = job.schedule[turn - 1], job.schedule[turn]
    region, around = job.regions.box(number), job.regions.around(number, 1)
    if number in rested:
        counts = np.zeros((*region.shape, round_.bins), np.uint32)
    else:
        counts = job.store.read(core_name(turn), region)
    pieces = job.read_pieces(shells_name(turn), around, rested)
    statistics_exchange.join_statistics(counts, pieces, around.lo, number, job.regions)
    if before.bins == round_.bins:
        counts += job.store.read(statistics_name(turn - 1), region)
    job.store.write(statistics_name(turn), region, counts)
    return "merged"


def _core(units: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return the core of a packed window."""
    out = np.empty(window.core.shape, np.uint8)
    unpack_box(units, window.core.relative_to(window.box.lo).lo, out)
    return out


def _read_labels(job: Job, turn: int, window: Window, rested: Rested) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the packed windows of the labels and states before a round."""
    state = new_window(window.box.shape, OPEN)
    if turn == 0:
        return seed_labels(window.grid.homes_of(window.box)), state
    before = job.schedule[turn - 1]
    grid = job.lattice.grids[before.level]
    if grid is window.grid:
        codes = job.read_units(codes_name(turn - 1), window.box, fill=NOTHING, rested=rested)
        if before.weight is None:
            pack_planes(codes // OPEN_BIT, 0, state)
        return pack_labels(codes % OPEN_BIT), state
    parents = parents_in(window.grid, grid, window.box)
    codes = job.read_units(codes_name(turn - 1), box_of_parents(parents), fill=NOTHING, rested=rested)
    return refine_labels(pack_labels(codes % OPEN_BIT), per_axis(p - p[0] for p in parents)), state


def _read_values(job: Job, level: int, box: Box) -> NDArray[Any]:
    """Return the values of a box of units as `dseeds.seeds.rounds.sweep_window` needs them."""
    grids = job.lattice.grids
    if level < len(grids) - 2:
        return job.read_units(histograms_name(level), box)
    voxels = grids[level].voxels_of(box)
    windows = new_window(voxels.shape, 0, channels=job.channels)
    for channel, window in enumerate(windows):
        pack_planes(job.read_units(bins_name(channel), voxels, fill=MASKED), 0, window)
    return windows


def _refine_to_voxels(
    job: Job, region: Box, blocks: Grid, codes: NDArray[np.uint8]
) -> tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a region's voxels, with the labels of their blocks and their bins."""
    level = len(job.lattice.grids) - 1
    window = Window.around(job.lattice, job.lattice.grids[level], region, 0)
    parents = parents_in(window.grid, blocks, window.box)
    labels = refine_labels(pack_labels(codes), per_axis(p - p[0] for p in parents))
    values = _read_values(job, level, window.box)
    if job.masked:
        hide_outside(level, job.lattice, window.box, values, labels)
    return window, labels, values


_TASKS: dict[str, Callable[..., str]] = {
    "mask": check_mask,
    "window": count_digits,
    "histogram": count_intensities,
    "quantise": quantise_region,
    "sweep-blocks": sweep_region,
    "sweep-voxels": sweep_region,
    "merge": merge_region,
    "parts": label_tasks.count_parts,
    "number": label_tasks.number_region,
    "graph": label_tasks.write_graph,
    "label": label_tasks.label_region,
}
