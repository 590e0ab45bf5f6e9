"""Step 4: one round on one window.

A round moves units while the supervoxels' statistics are frozen. The function is the same for a volume in memory, which
is a single window, and for a region out of core, whose window has a halo as wide as the round's reach.
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
    BlockScores,
    BlockValues,
    count_blocks,
    count_fine_blocks,
    sweep_blocks,
)
from dseeds.seeds.kernels.connectivity import connectivity_table
from dseeds.seeds.kernels.layout import Turn, WindowGeometry, new_window, window_geometry
from dseeds.seeds.kernels.simd import BLOCK_BINS
from dseeds.seeds.kernels.voxels import count_voxels, sweep_voxels
from dseeds.seeds.schedule import BLOCK_GAINS, COLOURS, Round

# Planes that a colour does in one go, and the fewest that a thread gets.
WAVE, THINNEST = 16, 8


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

    - `values`: for voxels and for the finest blocks, the bins of the voxels, uint8, a window of `kernels.layout` for
      each channel; for coarser blocks, their histograms, shape (z, y, x, channels * 32).
    - `labels`: uint8, a window of `kernels.layout`; under a mask, after `hide_outside`.
    - `state`: the units due for a visit, in such a window: all in the first round of a level and in every round of
      voxels; otherwise those that the previous round left.
    - `counts`: uint32 (cells, bins), the statistics of ``window.cells`` at the start of the round.
    - `weights`: of the channels; their sum is at most `scores.LARGEST_WEIGHT`.

    Returns the number of units that moved, including those outside the core, and the change in the statistics due to
    moves in the core, modulo 2^32. Neither depends on the number of threads.
    """
    # A single channel always has the weight 1.
    weights = [w // math.gcd(*weights) for w in weights]
    geometry = window_geometry(window)
    costs = scores.distance_costs(lattice, window.grid, window.box, compactness, round_.weight)
    kernel: Callable[..., int]
    if round_.weight is not None:
        table = scores.voxel_scores(counts, round_.weight, weights)
        weight = sum(weights) if len(weights) > 1 else None
        kernel = partial(sweep_voxels, values, labels, state, table, weight, costs)
    else:
        fine = round_.level == len(lattice.grids) - 2
        blocks = BlockValues(
            values if fine else new_window((0, 0, 0), 0, channels=1),
            np.zeros((0, 0, 0, BLOCK_BINS), np.uint8) if fine else values,
            window.grid.edges_of(window.box),
        )
        tables = BlockScores(
            *scores.block_scores(counts, math.prod(lattice.step)),
            BLOCK_GAINS[min(round_.level, 1)] * BLOCK_UNIT // 1000,
            np.array(weights) if len(weights) > 1 else None,
            scores.smoothed_counts(),
            costs,
        )
        kernel = partial(sweep_blocks, blocks, labels, state, tables)
    kernel = partial(kernel, connectivity_table(), geometry)
    moves, changes = 0, [np.zeros_like(counts) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for turn in _turns(geometry, round_, WAVE if threads == 1 else lattice.shape[0]):
            moves += _run(kernel, turn, pool, changes)
    change, *others = changes
    for other in others:
        change += other
    return moves, change


def _turns(geometry: WindowGeometry, round_: Round, thickness: int) -> Iterator[Turn]:
    """Yield the turns of a round's colours, a few planes each, so that all colours use the planes in the cache.

    A colour's turn at a plane has to come after the turn before it, and before the turn after it, at the planes on
    both sides. So each turn follows the previous one two planes behind.
    """
    turns = COLOURS * round_.sweeps
    nz = len(geometry.homes[0])
    for first in range(0, nz + 2 * turns, thickness):
        for turn in range(turns):
            margin = turns - 1 - turn + round_.rim
            begin = max(0, geometry.core_lo[0] - margin, first - 2 * turn)
            end = min(nz, geometry.core_hi[0] + margin, first + thickness - 2 * turn)
            if begin < end:
                yield Turn(turn % COLOURS, margin, begin, end)


def _run(kernel: Callable[..., int], turn: Turn, pool: Executor, changes: list[NDArray[np.uint32]]) -> int:
    """Do a turn, shared among as many threads as there are arrays of changes, and return the number of moves.

    A move marks the planes on both sides, so threads must not come near each other. Each does its own planes except
    the last two; when all have finished, they do those.
    """
    pieces = min(len(changes), (turn.end - turn.begin) // THINNEST)
    if pieces < 2:
        return kernel(turn, changes[0])
    cuts = [turn.begin + (turn.end - turn.begin) * k // pieces for k in range(pieces + 1)]
    ends = [cut - 2 for cut in cuts[1:]]
    moves = 0
    for begins, stops in ((cuts[:-1], ends), (ends, cuts[1:])):
        turns = [turn._replace(begin=begin, end=end) for begin, end in zip(begins, stops, strict=True)]
        moves += sum(pool.map(kernel, turns, changes))
    return moves


def count_statistics(
    round_: Round, lattice: Lattice, window: Window, values: NDArray[Any], labels: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Return the histograms of ``window.cells`` over the voxels of the core: uint32 (cells, bins).

    Values and labels are those of `sweep_window`.
    """
    counts = np.zeros((window.cells.size, round_.bins), np.uint32)
    if round_.weight is not None:
        count_voxels(values, labels, window_geometry(window), counts)
    elif round_.level == len(lattice.grids) - 2:
        count_fine_blocks(values, window.grid.edges_of(window.box), labels, window_geometry(window), counts)
    else:
        count_blocks(values, labels, window_geometry(window), counts)
    return counts
