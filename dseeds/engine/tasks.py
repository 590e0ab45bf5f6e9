"""What one task does in each phase up to the last round: pure functions of a job and a region.

Each reads what the phases before it left in scratch and writes only its own region's part, so it can be repeated
anywhere, at any time. When it is written, a mark says so. Nothing here knows of Dask. How labels are made of what the
rounds leave is told in `dseeds.engine.label_tasks`.
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

# The bit of a label's code that says that its block is still to be looked at.
OPEN_BIT = 128


def perform_task(job: Job, phase: Phase, number: int, known: Any = None, marked: bool = False) -> TaskResult:
    """Do a region's task of a phase, then mark it as done.

    Parameters
    ----------
    job : Job
        The run.
    phase : Phase
        The phase.
    number : int
        The region.
    known : object
        For a pass of the search for the windows: the search. For a round and the merging before it, and for what reads
        the last round's codes: `Rested`.
    marked : bool
        Whether it has a mark already, of which only the labels are to be looked at: what a machine that went down
        had not yet brought to its disk is noticed nowhere else.
    """
    counter = ByteCounter()
    token = byte_counter.set(counter)
    start = time.perf_counter()
    try:
        found = (
            "labelled"
            if marked and phase == LABEL and all(labels.is_complete(job.voxel_box(number)) for labels in job.labels)
            else _TASKS[phase.stage](job, number, phase.turn, known)
        )
    finally:
        byte_counter.reset(token)
    result = TaskResult(number, found, time.perf_counter() - start, counter.read, counter.written, peak_memory())
    job.journal.mark(phase, result.number, result.outcome)
    return result


def perform_pickled_task(packed: bytes, phase: Phase, number: int, known: Any, marked: bool) -> TaskResult:
    """Do as `perform` for a job that was pickled once for many tasks, and is unpickled once for many."""
    return perform_task(_unpacked(packed), phase, number, known, marked)


@lru_cache(maxsize=4)
def _unpacked(packed: bytes) -> Job:
    job = pickle.loads(packed)
    assert isinstance(job, Job)
    return job


def check_mask(job: Job, number: int, _turn: int, _known: None) -> str:
    """Tell whether the mask leaves any voxel of a region: ``"inside"`` or ``"outside"``."""
    inside = job.read_mask(job.voxel_box(number))
    return "inside" if inside is None or inside.any() else "outside"


def count_digits(job: Job, number: int, turn: int, search: WindowSearch) -> str:
    """Count the digits that the search for the intensity windows is at, in a region's voxels."""
    box = job.voxel_box(number)
    found = search.count(job.read_image(box), job.read_mask(box))
    counts = np.zeros((search.rows(turn), found.shape[1]), np.int64)
    counts[: len(found)] = found
    job.store.write(digits_name(turn), job.regions.around(number, 0), counts[None, None, None])
    return "counted"


def count_intensities(job: Job, number: int, _turn: int, _known: None) -> str:
    """Count how often each level of intensity occurs in a region, for the background's end and for bins."""
    box = job.voxel_box(number)
    counts = count_grey_levels(job.read_image(box), job.windows, job.read_mask(box))
    job.store.write("intensities", job.regions.around(number, 0), counts[None, None, None])
    return "counted"


def quantise_region(job: Job, number: int, _turn: int = 0, _known: None = None) -> str:
    """Write a region's bins, block histograms and the statistics of the lattice's own cells.

    Returns
    -------
    str
        How much of the region is to be cut: ``"all"``, ``"part"`` or ``"nothing"``, and then nothing is written.
    """
    grids = job.lattice.grids
    region, box = job.regions.box(number), job.voxel_box(number)
    values = np.empty((job.channels, *box.shape), np.uint8)
    found = quantise_box(
        job.read_image(box),
        job.windows,
        values,
        inside=job.read_mask(box),
        tables=job.tables,
        thresholds=job.thresholds,
    )
    if found == "nothing":
        return found
    for channel, one in enumerate(values):
        job.store.write(bins_name(channel), box, one)
    if not job.schedule:
        return found
    voxels = _entered(values)
    looked_at: NDArray[Any] = voxels
    for level, looked_at in stored_histograms(job.lattice, voxels, region):
        job.store.write(histograms_name(level), grids[level].units_of(region), looked_at)
    first = job.schedule[0]
    window = Window.around(job.lattice, grids[first.level], region, 0)
    labels = seed_labels(*window.grid.homes_of(window.box))
    if found == "part":
        hide_outside(first.level, job.lattice, window.box, looked_at, labels)
    counts = rounds.count_statistics(first, job.lattice, window, looked_at, labels)
    own, _ = statistics_exchange.split_statistics(counts, window.cells, region, job.regions)
    job.store.write(statistics_name(0), region, own)
    return found


def sweep_region(job: Job, number: int, turn: int, rested: Rested) -> str:
    """Do a round on a region: write its label codes, and its part in how the statistics change.

    Where the next round's statistics have other bins, it writes its part of these instead.

    Returns
    -------
    str
        Whether units moved, the halo's included: ``"moved"`` or ``"still"``.
    """
    round_ = job.schedule[turn]
    region = job.regions.box(number)
    grid = job.lattice.grids[round_.level]
    window = Window.around(job.lattice, grid, region, round_.halo)
    labels, state = _units(job, turn, window, rested)
    values = _values(job, round_.level, window.box)
    if turn == 0 or job.schedule[turn - 1].level != round_.level:
        _hide(job, round_.level, window.box, values, labels)
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
    left = _core(labels, window)
    marks = _core(state, window) & OPEN if round_.weight is None else 0
    job.store.write(codes_name(turn), window.core, left | OPEN_BIT * marks)
    if turn + 1 < len(job.schedule):
        following = job.schedule[turn + 1]
        cells = window.cells
        if following.bins != round_.bins:
            voxels, labels, values = _as_voxels(job, region, grid, left)
            change, cells = rounds.count_statistics(following, job.lattice, voxels, values, labels), voxels.cells
        own, shell = statistics_exchange.split_statistics(change, cells, region, job.regions)
        job.store.write(core_name(turn + 1), region, own)
        job.store.write(shells_name(turn + 1), job.regions.around(number, 0), shell[None, None, None])
    return "moved" if moves else "still"


def merge_region(job: Job, number: int, turn: int, rested: Rested) -> str:
    """Bring the statistics of a region's cells up to date for a round: add up what all regions say of them.

    A region that rested in the round before says nothing.
    """
    before, round_ = job.schedule[turn - 1], job.schedule[turn]
    region = job.regions.box(number)
    rests = number in rested
    own = np.zeros((*region.shape, round_.bins), np.uint32) if rests else job.store.read(core_name(turn), region)
    around = job.regions.around(number, 1)
    statistics_exchange.join_statistics(
        own, job.read_pieces(shells_name(turn), around, rested), around.lo, number, job.regions
    )
    if before.bins == round_.bins:
        own += job.store.read(statistics_name(turn - 1), region)
    job.store.write(statistics_name(turn), region, own)
    return "merged"


def _entered(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make windows of bins (c, z, y, x)."""
    windows = new_window(values.shape[1:], 0, channels=len(values))
    for one, window in zip(values, windows, strict=True):
        pack_planes(one, 0, window)
    return windows


def _core(units: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Take the core's units out of a window."""
    out = np.empty(window.core.shape, np.uint8)
    unpack_box(units, window.core.relative_to(window.box.lo).lo, out)
    return out


def _units(job: Job, turn: int, window: Window, rested: Rested) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the windows of labels and of states that a round finds."""
    state = new_window(window.box.shape, OPEN)
    if turn == 0:
        return seed_labels(*window.grid.homes_of(window.box)), state
    before = job.schedule[turn - 1]
    grid = job.lattice.grids[before.level]
    if grid is window.grid:
        left = job.read_units(codes_name(turn - 1), window.box, fill=NOTHING, rested=rested)
        if before.weight is None:
            pack_planes(left // OPEN_BIT, 0, state)
        return pack_labels(left % OPEN_BIT), state
    parents = parents_in(window.grid, grid, window.box)
    box = box_of_parents(parents)
    coarse = pack_labels(job.read_units(codes_name(turn - 1), box, fill=NOTHING, rested=rested) % OPEN_BIT)
    return refine_labels(coarse, *per_axis(p - p[0] for p in parents)), state


def _values(job: Job, level: int, box: Box) -> NDArray[Any]:
    """Read what a round looks at in a box of units: see `rounds.sweep`."""
    grids = job.lattice.grids
    if level < len(grids) - 2:
        return job.read_units(histograms_name(level), box)
    voxels = grids[level].voxels_of(box)
    windows = new_window(voxels.shape, 0, channels=job.channels)
    for channel, window in enumerate(windows):
        pack_planes(job.read_units(bins_name(channel), voxels, fill=MASKED), 0, window)
    return windows


def _hide(job: Job, level: int, box: Box, values: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Leave out the units that lie outside the mask."""
    if job.masked:
        hide_outside(level, job.lattice, box, values, labels)


def _as_voxels(
    job: Job, region: Box, grid: Grid, left: NDArray[np.uint8]
) -> tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]:
    """Refine a region's blocks to its voxels, for the statistics of the first voxel round."""
    level = len(job.lattice.grids) - 1
    voxels = job.lattice.grids[level]
    window = Window.around(job.lattice, voxels, region, 0)
    box = grid.units_of(region)
    parents = per_axis(
        p[a:h] - o for p, a, h, o in zip(voxels.parents(grid), window.box.lo, window.box.hi, box.lo, strict=True)
    )
    labels = refine_labels(pack_labels(left), *parents)
    values = _values(job, level, window.box)
    _hide(job, level, window.box, values, labels)
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
