"""What one task does in each phase: pure functions of a job and a region.

Each reads what the phases before it left in scratch and writes only its own region's part, so it can be repeated
anywhere, at any time. When it is written, a mark says so. Nothing here knows of Dask.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds import merge, rounds
from dseeds.io import Source
from dseeds.journal import Journal
from dseeds.kernel.labels import global_labels, refine, seeds
from dseeds.kernel.lanes import NOTHING, OPEN
from dseeds.kernel.layout import enter, leave, padded
from dseeds.kernel.voxels import MASKED
from dseeds.lattice import Box, Grid, Lattice, Regions, Triple, Window, per_axis, triple
from dseeds.phases import Phase
from dseeds.quantise import quantise
from dseeds.report import peak_memory
from dseeds.store import (
    ImportedSource,
    Scratch,
    Traffic,
    codes,
    core,
    digit_rows,
    digits,
    histograms,
    shells,
    statistics,
    tally,
    traffic,
)
from dseeds.target import Labels
from dseeds.windows import OrderStatistics

# The bit of a label's code that says that its block is still to be looked at.
OPEN_BIT = 128

# For the regions around one that rested in the round before: the last round in which each wrote its codes.
Rested = Mapping[int, int]


@dataclass(frozen=True)
class Job:
    """Everything that a task needs to know.

    Attributes
    ----------
    source : Source
        The volume; readable by workers.
    shape, step : tuple of int
        The lattice, (z, y, x).
    region : tuple of int
        Cells per region, (z, y, x).
    scratch : str
        The folder or bucket's prefix for the arrays that tasks hand to each other.
    journal : Journal
        Where tasks note that they are done.
    labels : Labels
        Where the labels go.
    window : tuple of float
        The intensity window; equal numbers for a constant image.
    compactness : float
        See `supervoxels`.
    """

    source: Source | ImportedSource
    shape: Triple
    step: Triple
    region: Triple
    scratch: str
    journal: Journal
    labels: Labels
    window: tuple[float, float] = (0.0, 0.0)
    compactness: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached, which grows with the volume and would travel with every task.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice."""
        return Lattice(self.shape, self.step)

    @cached_property
    def regions(self) -> Regions:
        """The regions."""
        return Regions(self.lattice, self.region)

    @cached_property
    def store(self) -> Scratch:
        """The arrays in scratch."""
        return Scratch(self.scratch, self.regions)

    @cached_property
    def schedule(self) -> tuple[rounds.Round, ...]:
        """The rounds; none for a constant image, which leaves nothing to climb."""
        return rounds.schedule(self.lattice) if self.window[0] < self.window[1] else ()

    def grid_of(self, name: str) -> Grid:
        """Give the grid in whose units an array of units, blocks or voxels, is stored."""
        kind, _, number = name.partition("-")
        if kind == "histograms":
            return self.lattice.grids[int(number)]
        return self.lattice.grids[self.schedule[int(number)].level if kind == "codes" else -1]


class Result(NamedTuple):
    """What a task tells of itself.

    Attributes
    ----------
    number : int
        The region.
    found : str
        What the phase wants to know of it, as a word.
    seconds : float
        Time taken.
    read, written : int
        Bytes, as they are in memory.
    peak_memory : int
        The highest resident memory of its process so far, in bytes.
    """

    number: int
    found: str
    seconds: float
    read: int
    written: int
    peak_memory: int


def perform(job: Job, phase: Phase, number: int, known: Any = None, marked: bool = False) -> Result:
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
        For a pass of the search for the window: the search. For a round and the merging before it: `Rested`.
    marked : bool
        Whether it has a mark already, of which only the labels are to be looked at: what a machine that went down
        had not yet brought to its disk is noticed nowhere else.
    """
    counter = Traffic()
    token = traffic.set(counter)
    start = time.perf_counter()
    try:
        found = (
            "labelled"
            if marked and job.labels.whole(_voxels(job, number))
            else _TASKS[phase.stage](job, number, phase.turn, known)
        )
    finally:
        traffic.reset(token)
    result = Result(number, found, time.perf_counter() - start, counter.read, counter.written, peak_memory())
    job.journal.mark(phase, result.number, result.found)
    return result


def perform_packed(packed: bytes, phase: Phase, number: int, known: Any, marked: bool) -> Result:
    """Do as `perform` for a job that was pickled once for many tasks, and is unpickled once for many."""
    return perform(_unpacked(packed), phase, number, known, marked)


@lru_cache(maxsize=4)
def _unpacked(packed: bytes) -> Job:
    job = pickle.loads(packed)
    assert isinstance(job, Job)
    return job


def count_digits(job: Job, number: int, turn: int, search: OrderStatistics) -> str:
    """Count the digits that the search for the intensity window is at, in a region's voxels."""
    found = search.counts(_source(job, _voxels(job, number)))
    counts = np.zeros((digit_rows(turn), found.shape[1]), np.int64)
    counts[: len(found)] = found
    job.store.write(digits(turn), job.regions.around(number, 0), counts[None, None, None])
    return "counted"


def quantise_region(job: Job, number: int, _turn: int = 0, _known: None = None) -> str:
    """Write a region's bins, block histograms and the statistics of the lattice's own cells.

    Returns
    -------
    str
        Whether the region holds a finite value: ``"finite"`` or ``"nothing"``.
    """
    grids = job.lattice.grids
    region = job.regions.box(number)
    box = grids[-1].of_cells(region)
    bins = np.empty(box.shape, np.uint8)
    found = quantise([_source(job, box)], [job.window], bins[None])
    found = found if found == "nothing" else "finite"
    # Rounds know nothing of a mask yet.
    bins[bins == MASKED] = 0
    job.store.write("bins", box, bins)
    if not job.schedule:
        return found
    voxels = _padded(bins, 0)
    values: NDArray[Any] = voxels
    for level, values in rounds.stored_histograms(job.lattice, voxels, region):
        job.store.write(histograms(level), grids[level].of_cells(region), values)
    first = job.schedule[0]
    window = Window.around(job.lattice, grids[first.level], region, 0)
    counts = rounds.count(first, job.lattice, window, values, seeds(*window.grid.homes_of(window.box)))
    own, _ = merge.split(counts, window.cells, region, job.regions)
    job.store.write(statistics(0), region, own)
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
    counts = job.store.read(statistics(turn), window.cells).reshape(-1, round_.bins)
    moves, change = rounds.sweep(
        round_, job.lattice, window, values, labels, state, counts, compactness=job.compactness
    )
    left = _core(labels, window)
    marks = _core(state, window) & OPEN if round_.weight is None else 0
    job.store.write(codes(turn), window.core, left | OPEN_BIT * marks)
    if turn + 1 < len(job.schedule):
        following = job.schedule[turn + 1]
        cells = window.cells
        if following.bins != round_.bins:
            voxels, labels, values = _as_voxels(job, region, grid, left)
            change, cells = rounds.count(following, job.lattice, voxels, values, labels), voxels.cells
        own, shell = merge.split(change, cells, region, job.regions)
        job.store.write(core(turn + 1), region, own)
        job.store.write(shells(turn + 1), job.regions.around(number, 0), shell[None, None, None])
    return "moved" if moves else "still"


def merge_region(job: Job, number: int, turn: int, rested: Rested) -> str:
    """Bring the statistics of a region's cells up to date for a round: add up what all regions say of them.

    A region that rested in the round before says nothing.
    """
    before, round_ = job.schedule[turn - 1], job.schedule[turn]
    region = job.regions.box(number)
    rests = number in rested
    own = np.zeros((*region.shape, round_.bins), np.uint32) if rests else job.store.read(core(turn), region)
    around = job.regions.around(number, 1)
    shell = _shells(job, turn, around, rested)
    merge.join(own, shell, around.lo, number, job.regions)
    if before.bins == round_.bins:
        own += job.store.read(statistics(turn - 1), region)
    job.store.write(statistics(turn), region, own)
    return "merged"


def label_region(job: Job, number: int, _turn: int, rested: Rested) -> str:
    """Write a region's labels."""
    box = _voxels(job, number)
    cells = job.lattice.grids[-1].homes_of(box)
    if job.schedule:
        last = len(job.schedule) - 1
        owners = _padded(job.store.read(codes(rested.get(number, last)), box), NOTHING)
    else:
        owners = seeds(*cells)
    labels = np.empty(box.shape, job.lattice.label_dtype)
    global_labels(owners, *cells, job.lattice.cells, labels)
    job.labels.write(box, labels)
    return "labelled"


def _padded(values: NDArray[np.uint8], fill: int) -> NDArray[np.uint8]:
    """Make a window of units (z, y, x)."""
    window = padded(values.shape, fill)
    enter(values, 0, window)
    return window


def _core(units: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Take the core's units out of a window."""
    out = np.empty(window.core.shape, np.uint8)
    leave(units, window.core.relative_to(window.box.lo).lo, out)
    return out


def _units(job: Job, turn: int, window: Window, rested: Rested) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the windows of labels and of states that a round finds."""
    state = padded(window.box.shape, OPEN)
    if turn == 0:
        return seeds(*window.grid.homes_of(window.box)), state
    before = job.schedule[turn - 1]
    grid = job.lattice.grids[before.level]
    if grid is window.grid:
        left = _codes(job, turn - 1, grid, window.box, rested)
        if before.weight is None:
            enter(left // OPEN_BIT, 0, state)
        return _padded(left % OPEN_BIT, NOTHING), state
    parents = [p[a:h] for p, a, h in zip(window.grid.parents(grid), window.box.lo, window.box.hi, strict=True)]
    box = Box(triple([p[0] for p in parents]), triple([p[-1] + 1 for p in parents]))
    coarse = _padded(_codes(job, turn - 1, grid, box, rested) % OPEN_BIT, NOTHING)
    return refine(coarse, *per_axis(p - p[0] for p in parents)), state


def _codes(job: Job, turn: int, grid: Grid, box: Box, rested: Rested) -> NDArray[np.uint8]:
    """Read the codes that a round left in a box of units; those of an earlier round where regions rested since."""
    if not rested:
        return job.store.read(codes(turn), box)
    out = np.empty(box.shape, np.uint8)
    for number in job.regions.touching(grid.cells_of(box)):
        piece = box.overlap(grid.of_cells(job.regions.box(number)))
        out[piece.relative_to(box.lo).slices] = job.store.read(codes(rested.get(number, turn)), piece)
    return out


def _shells(job: Job, turn: int, around: Box, rested: Rested) -> NDArray[np.uint32]:
    """Read the shells of a box of regions; zeros where regions rested."""
    if not rested:
        return job.store.read(shells(turn), around)
    bins = job.schedule[turn].bins
    out = np.zeros((*around.shape, merge.shell_length(job.region), bins), np.uint32)
    for index in itertools.product(*map(range, around.lo, around.hi)):
        one = Box(triple(index), triple([i + 1 for i in index]))
        if job.regions.number(one.lo) not in rested:
            out[one.relative_to(around.lo).slices] = job.store.read(shells(turn), one)
    return out


def _voxels(job: Job, number: int) -> Box:
    """Give a region's voxels."""
    return job.lattice.grids[-1].of_cells(job.regions.box(number))


def _source(job: Job, box: Box) -> NDArray[Any]:
    """Read the volume in a box."""
    values = job.source.read(box.slices)
    # Scratch counts for itself.
    if not isinstance(job.source, ImportedSource):
        tally(read=values.nbytes)
    return values


def _values(job: Job, level: int, box: Box) -> NDArray[Any]:
    """Read what a round looks at in a box of units: see `rounds.sweep`."""
    grids = job.lattice.grids
    if level < len(grids) - 2:
        return job.store.read(histograms(level), box)
    return _padded(job.store.read("bins", grids[level].voxels_of(box)), 0)


def _as_voxels(
    job: Job, region: Box, grid: Grid, left: NDArray[np.uint8]
) -> tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]:
    """Refine a region's blocks to its voxels, for the statistics of the first voxel round."""
    voxels = job.lattice.grids[-1]
    window = Window.around(job.lattice, voxels, region, 0)
    box = grid.of_cells(region)
    parents = per_axis(
        p[a:h] - o for p, a, h, o in zip(voxels.parents(grid), window.box.lo, window.box.hi, box.lo, strict=True)
    )
    labels = refine(_padded(left, NOTHING), *parents)
    return window, labels, _values(job, len(job.lattice.grids) - 1, window.box)


_TASKS: dict[str, Callable[..., str]] = {
    "window": count_digits,
    "quantise": quantise_region,
    "sweep-blocks": sweep_region,
    "sweep-voxels": sweep_region,
    "merge": merge_region,
    "label": label_region,
}
