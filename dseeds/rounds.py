"""The schedule: which levels, how many sweeps, which halo; and one round on one window.

A round moves units with the supervoxels' statistics frozen. It is the same function for a volume in memory, which is
one window, and for a region out of core, whose window has a halo as wide as the round's reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds import scores
from dseeds.kernel.blocks import (
    BLOCK_UNIT,
    block_histograms,
    coarsen_histograms,
    count_blocks,
    count_fine_blocks,
    hide_blocks,
    hide_fine_units,
    sweep_blocks,
)
from dseeds.kernel.connectivity import connectivity_table
from dseeds.kernel.lanes import BLOCK_BINS
from dseeds.kernel.layout import Place, padded
from dseeds.kernel.voxels import BINS, count_voxels, sweep_voxels
from dseeds.lattice import Box, Grid, Lattice, Window, per_axis

COLOURS = 4
# Rounds of blocks, shared out among their levels: more to the coarser ones.
BLOCK_ROUNDS = 9
# What a block's neighbour counts, in thousandths of a full histogram intersection: at the first level, and after it.
BLOCK_GAINS = 50, 25
VOXEL_SWEEPS = 3
# The weight of a voxel's neighbours in each round: from smooth to sharp, and then smoothed a little. It is constant
# within a round, so that a voxel whose neighbours have not changed need not be looked at again.
VOXEL_WEIGHTS = ((60, 100), (20, 100), (10, 100), (20, 100))
# Planes that a colour does in one go, and that a thread has at least.
WAVE, THINNEST = 16, 8

# What a colour does in one go: the colour, how far around the core units still matter, the first plane and the end.
Turn = tuple[int, int, int, int]


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
    channels : int, default 1
        Channels of the volume.
    """

    level: int
    sweeps: int
    weight: tuple[int, int] | None = None
    channels: int = 1

    @property
    def halo(self) -> int:
        """How many units around a region its outcome depends on."""
        return COLOURS * self.sweeps + self.rim

    @property
    def rim(self) -> int:
        """How many units around a region have to be right as well: next to a block that moves, one is to be looked at.

        Voxels are all looked at when a round begins.
        """
        return int(self.weight is None)

    @property
    def bins(self) -> int:
        """Bins of the statistics that this round needs."""
        return self.channels * (BLOCK_BINS if self.weight is None else BINS)


def schedule(lattice: Lattice, channels: int = 1) -> tuple[Round, ...]:
    """List the rounds of a run, in order.

    Examples
    --------
    >>> [round.level for round in schedule(Lattice((64, 64, 64), (16, 16, 16)))]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    """
    levels = len(lattice.grids) - 1
    each, more = divmod(BLOCK_ROUNDS, levels) if levels else (0, 0)
    turns = [level for level in range(levels) for _ in range(max(1, each + (level < more)))]
    return (
        *(Round(level, 1, None, channels) for level in turns),
        *(Round(levels, VOXEL_SWEEPS, weight, channels) for weight in VOXEL_WEIGHTS),
    )


def may_rest(rounds: tuple[Round, ...], turn: int) -> bool:
    """Tell whether a round can be left out where nothing has moved since the round two before it began.

    Nothing moves then: a round like it, on the same labels and statistics and with no fewer units to be looked at, has
    moved nothing. What this round would leave is what the round before it left: the same labels, with no unit still to
    be looked at, and no change of the statistics. So that one has to be of the same level, and the next round must not
    want other statistics.
    """
    if turn < 2 or rounds[turn - 2].level != rounds[turn].level:
        return False
    same = rounds[turn] in rounds[turn - 2 : turn]
    return same and (turn + 1 == len(rounds) or rounds[turn + 1].bins == rounds[turn].bins)


def place(window: Window) -> Place:
    """Describe a window to the kernels."""
    core = window.core.relative_to(window.box.lo)
    homes = window.grid.homes_of(window.box)
    return Place(core.lo, core.hi, window.box.lo, *homes, window.cells.lo, window.cells.shape)


def sweep(
    round_: Round,
    lattice: Lattice,
    window: Window,
    values: NDArray[Any],
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    counts: NDArray[np.uint32],
    *,
    compactness: float = 0.0,
    threads: int = 1,
    weights: Sequence[int] = (1,),
) -> tuple[int, NDArray[np.uint32]]:
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
        For voxels and for the finest blocks, the bins of the voxels, uint8, a window of `kernel.layout` for each
        channel. For coarser blocks, their histograms, shape (z, y, x, channels * 32).
    labels : ndarray of uint8
        The labels, a window of `kernel.layout`; under a mask, `hide` has seen them.
    state : ndarray of uint8
        Which units are to be looked at, a window of `kernel.layout`: all in the first round of a level and in every
        round of voxels; then what the round before it left.
    counts : ndarray of uint32, shape (cells, bins)
        The statistics of ``window.cells`` at the round's start.
    compactness : float, default 0
        See `supervoxels`.
    threads : int, default 1
        How many threads share the work. The result is the same.
    weights : sequence of int, default (1,)
        What each channel counts; their sum is at most `scores.LARGEST_WEIGHT`.

    Returns
    -------
    moves : int
        How many units moved, those outside the core included.
    change : ndarray of uint32, shape (cells, bins)
        What the moves in the core add to the statistics, modulo 2^32.
    """
    # One channel always weighs 1.
    weights = [w // math.gcd(*weights) for w in weights]
    where = place(window)
    costs = scores.distance_costs(lattice, window.grid, window.box, compactness, round_.weight)
    if round_.weight is not None:
        table = scores.voxel_table(counts, round_.weight, weights)
        weight = sum(weights) if len(weights) > 1 else None
        colour = partial(sweep_voxels, values, labels, state, table, weight, connectivity_table(), costs, where)
    else:
        fine = round_.level == len(lattice.grids) - 2
        colour = partial(
            sweep_blocks,
            values if fine else padded((0, 0, 0), 0, channels=1),
            np.zeros((0, 0, 0, BLOCK_BINS), np.uint8) if fine else values,
            *window.grid.edges_of(window.box),
            labels,
            state,
            *scores.block_table(counts, math.prod(lattice.step)),
            BLOCK_GAINS[min(round_.level, 1)] * BLOCK_UNIT // 1000,
            np.array(weights) if len(weights) > 1 else None,
            scores.smoothed_counts(),
            connectivity_table(),
            costs,
            where,
        )
    moves, changes = 0, [np.zeros_like(counts) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for turn in _wave(where, round_, WAVE if threads == 1 else lattice.shape[0]):
            moves += _run(colour, turn, pool, changes)
    change, *others = changes
    for other in others:
        change += other
    return moves, change


def _wave(where: Place, round_: Round, thickness: int) -> Iterator[Turn]:
    """List the colours' turns of a round, a few planes each, so that what is in the cache is used by them all.

    A colour's turn at a plane has to come after the turn before it, and before the turn after it, at the planes on
    both sides. So each follows the one before it two planes behind.
    """
    turns = COLOURS * round_.sweeps
    nz = len(where.cell_z)
    for begin in range(0, nz + 2 * turns, thickness):
        for turn in range(turns):
            spare = turns - 1 - turn + round_.rim
            z0 = max(0, where.core_lo[0] - spare, begin - 2 * turn)
            z1 = min(nz, where.core_hi[0] + spare, begin + thickness - 2 * turn)
            if z0 < z1:
                yield turn % COLOURS, spare, z0, z1


def _run(kernel: Callable[..., int], turn: Turn, pool: Executor, changes: list[NDArray[np.uint32]]) -> int:
    """Do a colour's turn at some planes, shared among as many threads as there are places for their changes.

    Threads must not come near each other, for a move marks the planes on both sides. So each does its own planes but
    for the last two, and when all are done, those.
    """
    *which, z0, z1 = turn
    pieces = min(len(changes), (z1 - z0) // THINNEST)
    if pieces < 2:
        return kernel(*turn, changes[0])
    cuts = [z0 + (z1 - z0) * k // pieces for k in range(pieces + 1)]
    ends = [cut - 2 for cut in cuts[1:]]
    return sum(
        sum(pool.map(partial(kernel, *which), *planes, changes)) for planes in ((cuts[:-1], ends), (ends, cuts[1:]))
    )


def count(
    round_: Round, lattice: Lattice, window: Window, values: NDArray[Any], labels: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Take the statistics of a window's core; values and labels are those of `sweep`.

    Returns
    -------
    ndarray of uint32, shape (cells, bins)
        The histograms of ``window.cells`` over the voxels of the core.
    """
    counts = np.zeros((window.cells.size, round_.bins), np.uint32)
    if round_.weight is not None:
        count_voxels(values, labels, place(window), counts)
    elif round_.level == len(lattice.grids) - 2:
        count_fine_blocks(values, *window.grid.edges_of(window.box), labels, place(window), counts)
    else:
        count_blocks(values, labels, place(window), counts)
    return counts


def hide(level: int, lattice: Lattice, box: Box, values: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Take the labels of those of a box of units that have no voxel in the mask; values are those of `sweep`."""
    if level >= len(lattice.grids) - 2:
        hide_fine_units(values, *lattice.grids[level].edges_of(box), labels)
    else:
        hide_blocks(values, labels)


def histogram_dtype(grid: Grid) -> np.dtype[np.unsignedinteger]:
    """Choose the dtype of the histograms of a grid's blocks."""
    return np.dtype(np.uint8 if grid.largest < 256 else np.uint32)


def histograms(bins: NDArray[np.uint8], grid: Grid, box: Box) -> NDArray[Any]:
    """Take the histograms of a box of blocks from the windows, one a channel, of the voxels that they cover."""
    out = np.zeros((*box.shape, len(bins) * BLOCK_BINS), histogram_dtype(grid))
    block_histograms(bins, *grid.edges_of(box), out)
    return out


def coarsen(finer: NDArray[Any], fine: Grid, box: Box, coarse: Grid) -> NDArray[Any]:
    """Add up the histograms of the blocks of a box of whole cells to those of a coarser grid."""
    parents = per_axis(p[a:h] - p[a] for p, a, h in zip(fine.parents(coarse), box.lo, box.hi, strict=True))
    shape = [p[-1] + 1 for p in parents]
    out = np.zeros((*shape, finer.shape[3]), histogram_dtype(coarse))
    coarsen_histograms(finer, *parents, out)
    return out


def stored_histograms(lattice: Lattice, bins: NDArray[np.uint8], region: Box) -> Iterator[tuple[int, NDArray[Any]]]:
    """Take the histograms of the blocks of a box of cells, level by level: for all but the two finest levels.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    bins : ndarray of uint8
        The bins of the region's voxels, a window of `kernel.layout` for each channel.
    region : Box
        The cells.

    Yields
    ------
    level : int
        From the finest to the coarsest.
    histograms : ndarray of unsigned int, shape (z, y, x, channels * 32)
        Of the level's blocks.
    """
    finest = len(lattice.grids) - 3
    values: NDArray[Any] = bins
    for level in range(finest, -1, -1):
        grid = lattice.grids[level]
        if level == finest:
            values = histograms(bins, grid, grid.of_cells(region))
        else:
            finer = lattice.grids[level + 1]
            values = coarsen(values, finer, finer.of_cells(region), grid)
        yield level, values
