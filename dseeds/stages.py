"""What one task does in each stage: pure functions of a job and a region.

Each reads what the stage before it left in scratch and writes only its own region's part, so it can be repeated
anywhere until the next stage begins. Nothing here knows of Dask.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds import merge, rounds
from dseeds.io import Source
from dseeds.kernel.labels import global_labels, refine, seeds
from dseeds.kernel.lanes import NOTHING, OPEN
from dseeds.kernel.layout import enter, leave, padded
from dseeds.lattice import Box, Grid, Lattice, Regions, Triple, Window, per_axis, triple
from dseeds.quantise import OrderStatistics, quantise
from dseeds.store import Scratch, read, write

# The bit of a label's code that says that its block is still to be looked at.
OPEN_BIT = 128


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
    scratch : Path
        The scratch directory.
    labels : Path
        The array of labels to write.
    window : tuple of float
        The intensity window; equal numbers for a constant image.
    compactness : float
        See `supervoxels`.
    """

    source: Source
    shape: Triple
    step: Triple
    region: Triple
    scratch: Path
    labels: Path
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


def count_digits(job: Job, number: int, search: OrderStatistics) -> NDArray[np.int64]:
    """Count the digits that the search for the intensity window is at, in a region's voxels."""
    box = job.lattice.grids[-1].of_cells(job.regions.box(number))
    return search.counts(job.source.read(box.slices))


def quantise_region(job: Job, number: int) -> bool:
    """Write a region's bins, block histograms and the statistics of the lattice's own cells.

    Returns
    -------
    bool
        Whether the region holds a finite value.
    """
    grids = job.lattice.grids
    region = job.regions.box(number)
    box = grids[-1].of_cells(region)
    bins = np.empty(box.shape, np.uint8)
    finite = quantise(job.source.read(box.slices), job.window, bins)
    write(job.store.bins(), box, bins)
    if not job.schedule:
        return finite
    voxels = _padded(bins, 0)
    values: NDArray[Any] = voxels
    for level, values in rounds.stored_histograms(job.lattice, voxels, region):
        write(job.store.histograms(level), grids[level].of_cells(region), values)
    first = job.schedule[0]
    window = Window.around(job.lattice, grids[first.level], region, 0)
    counts = rounds.count(first, job.lattice, window, values, seeds(*window.grid.homes_of(window.box)))
    core, _ = merge.split(counts, window.cells, region, job.regions)
    write(job.store.statistics(0, first), region, core)
    return finite


def sweep_region(job: Job, number: int, turn: int) -> tuple[int, int]:
    """Do a round on a region: write its label codes, and its part in how the statistics change.

    Where the next round's statistics have other bins, it writes its part of these instead.

    Returns
    -------
    number, moves : int
        The region, and how many units moved, the halo's included.
    """
    round_ = job.schedule[turn]
    region = job.regions.box(number)
    grid = job.lattice.grids[round_.level]
    window = Window.around(job.lattice, grid, region, round_.halo)
    labels, state = _units(job, turn, window)
    values = _values(job, round_.level, window.box)
    statistics = read(job.store.statistics(turn, round_), window.cells).reshape(-1, round_.bins)
    moves, change = rounds.sweep(
        round_, job.lattice, window, values, labels, state, statistics, compactness=job.compactness
    )
    codes = _core(labels, window)
    marks = _core(state, window) & OPEN if round_.weight is None else 0
    write(job.store.codes(turn, round_), window.core, codes | OPEN_BIT * marks)
    if turn + 1 < len(job.schedule):
        following = job.schedule[turn + 1]
        cells = window.cells
        if following.bins != round_.bins:
            voxels, labels, values = _as_voxels(job, region, grid, codes)
            change, cells = rounds.count(following, job.lattice, voxels, values, labels), voxels.cells
        core, shell = merge.split(change, cells, region, job.regions)
        write(job.store.core(turn + 1, following), region, core)
        write(job.store.shell(turn + 1, following), job.regions.around(number, 0), shell[None, None, None])
    return number, moves


def merge_region(job: Job, number: int, turn: int) -> None:
    """Bring the statistics of a region's cells up to date for a round: add up what all regions say of them."""
    before, round_ = job.schedule[turn - 1], job.schedule[turn]
    region = job.regions.box(number)
    around = job.regions.around(number, 1)
    core = read(job.store.core(turn, round_), region)
    merge.join(core, read(job.store.shell(turn, round_), around), around.lo, number, job.regions)
    if before.bins == round_.bins:
        core += read(job.store.statistics(turn - 1, before), region)
    write(job.store.statistics(turn, round_), region, core)


def label_region(job: Job, number: int) -> None:
    """Write a region's labels."""
    voxels = job.lattice.grids[-1]
    box = voxels.of_cells(job.regions.box(number))
    cells = voxels.homes_of(box)
    if job.schedule:
        owners = _padded(read(job.store.codes(len(job.schedule) - 1, job.schedule[-1]), box), NOTHING)
    else:
        owners = seeds(*cells)
    labels = np.empty(box.shape, job.lattice.label_dtype)
    global_labels(owners, *cells, job.lattice.cells, labels)
    write(zarr.open_array(job.labels, mode="r+"), box, labels)


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


def _units(job: Job, turn: int, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make the windows of labels and of states that a round finds."""
    state = padded(window.box.shape, OPEN)
    if turn == 0:
        return seeds(*window.grid.homes_of(window.box)), state
    before = job.schedule[turn - 1]
    grid = job.lattice.grids[before.level]
    if grid is window.grid:
        codes = read(job.store.codes(turn - 1, before), window.box)
        if before.weight is None:
            enter(codes // OPEN_BIT, 0, state)
        return _padded(codes % OPEN_BIT, NOTHING), state
    parents = [p[a:h] for p, a, h in zip(window.grid.parents(grid), window.box.lo, window.box.hi, strict=True)]
    box = Box(triple([p[0] for p in parents]), triple([p[-1] + 1 for p in parents]))
    coarse = _padded(read(job.store.codes(turn - 1, before), box) % OPEN_BIT, NOTHING)
    return refine(coarse, *per_axis(p - p[0] for p in parents)), state


def _values(job: Job, level: int, box: Box) -> NDArray[Any]:
    """Read what a round looks at in a box of units: see `rounds.sweep`."""
    grids = job.lattice.grids
    if level < len(grids) - 2:
        return read(job.store.histograms(level), box)
    return _padded(read(job.store.bins(), grids[level].voxels_of(box)), 0)


def _as_voxels(
    job: Job, region: Box, grid: Grid, codes: NDArray[np.uint8]
) -> tuple[Window, NDArray[np.uint8], NDArray[np.uint8]]:
    """Refine a region's blocks to its voxels, for the statistics of the first voxel round."""
    voxels = job.lattice.grids[-1]
    window = Window.around(job.lattice, voxels, region, 0)
    box = grid.of_cells(region)
    parents = per_axis(
        p[a:h] - o for p, a, h, o in zip(voxels.parents(grid), window.box.lo, window.box.hi, box.lo, strict=True)
    )
    labels = refine(_padded(codes, NOTHING), *parents)
    return window, labels, _values(job, len(job.lattice.grids) - 1, window.box)
