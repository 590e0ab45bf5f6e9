"""The schedule: which levels, how many sweeps, which halo; and one round on one window.

A round moves units with the supervoxels' statistics frozen. It is the same function for a volume in memory, which is
one window, and for a region out of core, whose window has a halo as wide as the round's reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Lattice, Window
from dseeds.seeds import scores
from dseeds.seeds.kernels.blocks import (
    BLOCK_UNIT,
    count_blocks,
    count_fine_blocks,
    sweep_blocks,
)
from dseeds.seeds.kernels.connectivity import connectivity_table
from dseeds.seeds.kernels.layout import WindowGeometry, new_window
from dseeds.seeds.kernels.simd import BLOCK_BINS
from dseeds.seeds.kernels.voxels import count_voxels, sweep_voxels
from dseeds.seeds.schedule import BLOCK_GAINS, COLOURS, Round

# Planes that a colour does in one go, and that a thread has at least.
WAVE, THINNEST = 16, 8

# What a colour does in one go: the colour, how far around the core units still matter, the first plane and the end.
Turn = tuple[int, int, int, int]


def window_geometry(window: Window) -> WindowGeometry:
    """Describe a window to the kernels."""
    core = window.core.relative_to(window.box.lo)
    homes = window.grid.homes_of(window.box)
    return WindowGeometry(core.lo, core.hi, window.box.lo, *homes, window.cells.lo, window.cells.shape)


def sweep_window(
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
    where = window_geometry(window)
    costs = scores.distance_costs(lattice, window.grid, window.box, compactness, round_.weight)
    if round_.weight is not None:
        table = scores.voxel_scores(counts, round_.weight, weights)
        weight = sum(weights) if len(weights) > 1 else None
        colour = partial(sweep_voxels, values, labels, state, table, weight, connectivity_table(), costs, where)
    else:
        fine = round_.level == len(lattice.grids) - 2
        colour = partial(
            sweep_blocks,
            values if fine else new_window((0, 0, 0), 0, channels=1),
            np.zeros((0, 0, 0, BLOCK_BINS), np.uint8) if fine else values,
            *window.grid.edges_of(window.box),
            labels,
            state,
            *scores.block_scores(counts, math.prod(lattice.step)),
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


def _wave(where: WindowGeometry, round_: Round, thickness: int) -> Iterator[Turn]:
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


def count_statistics(
    round_: Round, lattice: Lattice, window: Window, values: NDArray[Any], labels: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Take the statistics of a window's core; values and labels are those of `sweep_window`.

    Returns
    -------
    ndarray of uint32, shape (cells, bins)
        The histograms of ``window.cells`` over the voxels of the core.
    """
    counts = np.zeros((window.cells.size, round_.bins), np.uint32)
    if round_.weight is not None:
        count_voxels(values, labels, window_geometry(window), counts)
    elif round_.level == len(lattice.grids) - 2:
        count_fine_blocks(values, *window.grid.edges_of(window.box), labels, window_geometry(window), counts)
    else:
        count_blocks(values, labels, window_geometry(window), counts)
    return counts
