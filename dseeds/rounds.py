"""The schedule: which levels, how many sweeps, which halo; and one round on one window.

A round moves units with the supervoxels' statistics frozen. It is the same function for a volume in memory, which is
one window, and for a region out of core, whose window has a halo as wide as the round's reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds import kernel, scores
from dseeds.lattice import Box, Grid, Lattice, Window, per_axis

# Four colours a sweep, one unit each.
REACH = 4
BLOCK_ROUNDS, BLOCK_SWEEPS = 3, 2
VOXEL_SWEEPS = 3
# The weight of the neighbours in each voxel round: from smooth to sharp. It is constant within a round, so that a
# voxel whose neighbours have not changed need not be looked at again.
VOXEL_WEIGHTS = ((80, 100), (50, 100), (30, 100), (15, 100))
NEIGHBOUR_GAIN = (3 * kernel.BLOCK_UNIT) // 100


@dataclass(frozen=True)
class Round:
    """One or more sweeps of one level with frozen statistics.

    Attributes
    ----------
    level : int
        Index into `Lattice.grids`.
    sweeps : int
        Sweeps before the statistics are taken anew.
    weight : tuple of int or None
        The neighbours' weight as a fraction, for voxels; None for blocks.
    """

    level: int
    sweeps: int
    weight: tuple[int, int] | None = None

    @property
    def halo(self) -> int:
        """How many units around a region its outcome depends on."""
        return REACH * self.sweeps

    @property
    def bins(self) -> int:
        """Bins of the statistics that this round needs."""
        return kernel.BLOCK_BINS if self.weight is None else kernel.BINS


def schedule(lattice: Lattice) -> tuple[Round, ...]:
    """List the rounds of a run, in order.

    Examples
    --------
    >>> [round.level for round in schedule(Lattice((64, 64, 64), (16, 16, 16)))]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    """
    blocks = len(lattice.grids) - 1
    return tuple(Round(level, BLOCK_SWEEPS) for level in range(blocks) for _ in range(BLOCK_ROUNDS)) + tuple(
        Round(blocks, VOXEL_SWEEPS, weight) for weight in VOXEL_WEIGHTS
    )


def sweep(
    round_: Round,
    lattice: Lattice,
    window: Window,
    values: NDArray[Any],
    labels: NDArray[np.int32],
    counts: NDArray[np.uint32],
) -> int:
    """Do one round on one window, in place; exact in the window's core.

    Parameters
    ----------
    round_ : Round
        What to do.
    lattice : Lattice
        The lattice.
    window : Window
        Where.
    values : ndarray
        Voxels: the padded bins, uint8, shape (z + 2, y + 2, x + 2). Blocks: their histograms, shape (z, y, x, 32).
    labels : ndarray of int32, shape (z + 2, y + 2, x + 2)
        Padded labels, local to ``window.cells``.
    counts : ndarray of uint32, shape (cells, bins)
        The statistics of ``window.cells`` at the round's start.

    Returns
    -------
    int
        How many units moved.
    """
    open_units = np.empty((labels.shape[0], labels.shape[1], (labels.shape[2] + 63) // 64), np.uint64)
    core = window.core.relative_to(window.box.lo)
    kernel.mark_boundaries(labels, open_units)
    where: tuple[Any, ...] = (round_.sweeps, core.bounds, window.box.lo, *window.local_cells(), window.cells.shape)
    if round_.weight is not None:
        return kernel.sweep_voxels(
            values,
            labels,
            open_units,
            scores.voxel_table(counts),
            scores.edge_weights(*round_.weight),
            kernel.connectivity_table(),
            *where,
        )
    cell_size = int(np.prod(lattice.step))
    return kernel.sweep_blocks(
        values,
        labels,
        open_units,
        *scores.block_table(counts, cell_size),
        scores.block_smoothing(),
        NEIGHBOUR_GAIN,
        kernel.connectivity_table(),
        *where,
    )


def count(round_: Round, window: Window, values: NDArray[Any], labels: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Take the statistics of a window's core.

    Returns
    -------
    ndarray of uint32, shape (cells, bins)
        The histograms of ``window.cells`` over the voxels of the core.
    """
    counts = np.zeros((window.cells.size, round_.bins), np.uint32)
    core = window.core.relative_to(window.box.lo).bounds
    (kernel.count_blocks if round_.weight is None else kernel.count_voxels)(values, labels, core, counts)
    return counts


def histogram_dtype(grid: Grid) -> np.dtype[np.unsignedinteger]:
    """Choose the dtype of the histograms of a grid's blocks."""
    return np.dtype(np.uint8 if grid.largest < 256 else np.uint32)


def histograms(bins: NDArray[np.uint8], grid: Grid, box: Box) -> NDArray[Any]:
    """Take the histograms of a box of blocks from its voxels.

    Parameters
    ----------
    bins : ndarray of uint8
        The voxels of the box, without padding.
    """
    out = np.zeros((*box.shape, kernel.BLOCK_BINS), histogram_dtype(grid))
    block = per_axis(
        np.repeat(np.arange(h - a), np.diff(e[a : h + 1])) for e, a, h in zip(grid.edges, box.lo, box.hi, strict=True)
    )
    kernel.block_histograms(bins, *block, out)
    return out


def coarsen(finer: NDArray[Any], fine: Grid, box: Box, coarse: Grid) -> NDArray[Any]:
    """Add up the histograms of the blocks of a box of whole cells to those of a coarser grid."""
    parents = per_axis(p[a:h] - p[a] for p, a, h in zip(fine.parents(coarse), box.lo, box.hi, strict=True))
    shape = [p[-1] + 1 for p in parents]
    out = np.zeros((*shape, kernel.BLOCK_BINS), histogram_dtype(coarse))
    kernel.coarsen_histograms(finer, *parents, out)
    return out
