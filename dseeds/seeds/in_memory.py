"""`supervoxels`: the run in memory, one window as large as the volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Grid, Lattice, Window
from dseeds.seeds import rounds
from dseeds.seeds.block_histograms import hide_outside, stored_histograms
from dseeds.seeds.kernels.label_codes import refine_labels, seed_labels
from dseeds.seeds.kernels.layout import new_window
from dseeds.seeds.kernels.simd import OPEN
from dseeds.seeds.schedule import Round

LabelArray = NDArray[np.uint32]


def run_rounds(
    lattice: Lattice,
    bins: NDArray[np.uint8],
    schedule: tuple[Round, ...],
    *,
    compactness: float = 0.0,
    threads: int = 1,
    weights: Sequence[int] = (1,),
    masked: bool = False,
) -> NDArray[np.uint8]:
    """Run all rounds on the whole volume.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    bins : ndarray of uint8
        The quantised volume, a window of `kernel.layout` for each channel.
    schedule : tuple of Round
        The rounds.
    compactness, threads
        As for `supervoxels`.
    weights : sequence of int, default (1,)
        What each channel counts; their sum is at most `scores.LARGEST_WEIGHT`.
    masked : bool, default False
        Whether some bins are `MASKED`.

    Returns
    -------
    ndarray of uint8
        The labels, a window of `kernel.layout`.
    """
    everything = Box((0, 0, 0), lattice.cells)
    # What the rounds of each level look at: histograms, or for the two finest the bins.
    values: list[NDArray[Any]] = [bins] * len(lattice.grids)
    for level, histograms in stored_histograms(lattice, bins, everything):
        values[level] = histograms
    level = 0 if schedule else len(lattice.grids) - 1
    grid: Grid = lattice.grids[level]
    labels = seed_labels(grid.cells)
    if masked:
        hide_outside(level, lattice, Box((0, 0, 0), grid.shape), values[level], labels)
    counts = np.zeros((0, 0), np.uint32)
    for level, turns in itertools.groupby(schedule, key=lambda round_: round_.level):
        finer: Grid = lattice.grids[level]
        if finer is not grid:
            labels = refine_labels(labels, finer.parents(grid))
            grid = finer
            if masked:
                hide_outside(level, lattice, Box((0, 0, 0), grid.shape), values[level], labels)
        state = new_window(grid.shape, OPEN)
        for round_ in turns:
            if round_.weight is not None:
                state[:] = OPEN
            window = Window.around(lattice, grid, everything, round_.halo)
            if counts.shape[1] != round_.bins:
                counts = rounds.count_statistics(round_, lattice, window, values[level], labels)
            _, change = rounds.sweep_window(
                round_,
                lattice,
                window,
                values[level],
                labels,
                state,
                counts,
                compactness=compactness,
                threads=threads,
                weights=weights,
            )
            counts += change
        # Histograms that are no longer needed.
        values[level] = bins
    return labels
