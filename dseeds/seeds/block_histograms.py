"""Step 2: the histograms of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Grid, Lattice, per_axis
from dseeds.seeds.kernels.blocks import coarsen_histograms, count_block_histograms, hide_blocks, hide_fine_units
from dseeds.seeds.kernels.simd import BLOCK_BINS


def hide_outside(level: int, lattice: Lattice, box: Box, values: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Remove the labels of the units in a box that have no voxel in the mask; values are those of `sweep_window`."""
    if level >= len(lattice.grids) - 2:
        hide_fine_units(values, lattice.grids[level].edges_of(box), labels)
    else:
        hide_blocks(values, labels)


def histogram_dtype(grid: Grid) -> np.dtype[np.unsignedinteger]:
    """Return the dtype of the histograms of a grid's blocks."""
    return np.dtype(np.uint8 if grid.largest < 256 else np.uint32)


def level_histograms(bins: NDArray[np.uint8], grid: Grid, box: Box) -> NDArray[Any]:
    """Return the histograms of a box of blocks, from the windows of their voxels, one for each channel."""
    histograms = np.zeros((*box.shape, len(bins) * BLOCK_BINS), histogram_dtype(grid))
    count_block_histograms(bins, grid.edges_of(box), histograms)
    return histograms


def coarsen_level(finer: NDArray[Any], fine: Grid, box: Box, coarse: Grid) -> NDArray[Any]:
    """Add up the histograms of the blocks in a box of whole cells to those of a coarser grid."""
    parents = per_axis(p - p[0] for p in fine.parents(coarse, box))
    histograms = np.zeros((*(p[-1] + 1 for p in parents), finer.shape[3]), histogram_dtype(coarse))
    coarsen_histograms(finer, parents, histograms)
    return histograms


def stored_histograms(
    lattice: Lattice, bins: NDArray[np.uint8], region: Box, coarsest: int = 0
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the blocks' histograms in a box of cells, from the finest level to a coarsest, with the level's number.

    The two finest levels have none. `bins` are the region's voxels, a window of `kernels.layout` for each channel;
    histograms are unsigned integers, shape (z, y, x, channels * 32).
    """
    finest = len(lattice.grids) - 3
    values: NDArray[Any] = bins
    for level in range(finest, coarsest - 1, -1):
        grid = lattice.grids[level]
        if level == finest:
            values = level_histograms(bins, grid, grid.units_of(region))
        else:
            finer = lattice.grids[level + 1]
            values = coarsen_level(values, finer, finer.units_of(region), grid)
        yield level, values
