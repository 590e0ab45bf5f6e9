"""Step 3: the score tables of a round, in integers.

`log` and `exp` differ in their last bits between machines, and a tie that flips changes the labels. So every table is
computed once per round from integers: constants by `decimal`, which rounds correctly everywhere, and logarithms from a
table of integers with linear interpolation. Formulas: docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Grid, Lattice
from dseeds.core.jit import jit
from dseeds.seeds.kernels.blocks import BLOCK_UNIT, SMOOTHING_SUM
from dseeds.seeds.kernels.layout import DistanceCosts
from dseeds.seeds.kernels.simd import BLOCK_BINS, leading_zeros
from dseeds.seeds.kernels.voxels import BINS, VOXEL_UNIT

# Logarithms are in units of 2^-20, and the table has 2^11 steps per octave: an error below 2^-15 over all sizes.
LOG_BITS = 20
STEP_BITS = 11
OCTAVE_BITS = 40
# In the voxel score: the cost of the distance from the mean, and of the logarithm of the size as a power of 1/2.
MEAN_WEIGHT = 5
SIZE_SHIFT = 2
# Together with all neighbours, the three fit 16 bits and keep their order.
LARGEST_SCORE, LARGEST_COST, OUT_OF_REACH_SCORE = 12000, 7500, -24000
# The largest sum of the channels' weights: times a score it still fits 32 bits, and scores of channels are added up in
# 64 bits.
LARGEST_WEIGHT = 1 << 16
# A full histogram intersection is worth this many units of a voxel's log-likelihood.
BLOCK_SHARE = 10
# The bits to which a compactness is rounded, and its maximum, up to which no cost within a cell is clipped, so that
# more is always more compact.
COMPACTNESS_BITS, MOST_COMPACT = 20, 30


def _gaussian(sigma: int, radius: int, total: int) -> NDArray[np.int64]:
    """Sample a Gaussian as integers of sum `total`; the centre takes the rounding error."""
    with localcontext() as context:
        context.prec = 30
        weights = [(Decimal(-d * d) / (2 * sigma * sigma)).exp() for d in range(-radius, radius + 1)]
        rounded = [int(w / sum(weights) * total + Decimal("0.5")) for w in weights]
    rounded[radius] += total - sum(rounded)
    return np.array(rounded)


@cache
def block_smoothing() -> NDArray[np.int32]:
    """Return the smoothing weights over bins for blocks: sigma 1, sum 256."""
    return _gaussian(1, 3, SMOOTHING_SUM).astype(np.int32)


@cache
def voxel_smoothing() -> NDArray[np.int64]:
    """Return the smoothing weights over bins for voxels: sigma 4, sum 2^16."""
    return _gaussian(4, 16, 1 << 16)


@cache
def log_table() -> NDArray[np.int64]:
    """Tabulate ln(1 + i / 2^11) for i = 0 .. 2^11 and, at the end, ln 2, in units of 2^-20.

    The table is the same on every machine: no value is as close to where rounding turns as 10^8 times the error of a
    logarithm, which a test checks.
    """
    steps = 1 << STEP_BITS
    return np.floor(np.log1p(np.arange(steps + 1) / steps) * (1 << LOG_BITS) + 0.5).astype(np.int64)


@cache
def smoothed_counts() -> NDArray[np.uint16]:
    """Tabulate the smoothed histogram, for blocks, of a count of one in each bin, shape (32, 32)."""
    taps = block_smoothing()
    out = np.zeros((BLOCK_BINS, BLOCK_BINS + 6), np.uint16)
    for bin_ in range(BLOCK_BINS):
        out[bin_, bin_ : bin_ + 7] = taps
    return np.ascontiguousarray(out[:, 3:-3])


@jit
def _log(n: int, table: NDArray[np.int64]) -> int:
    exponent = np.int64(63) - np.int64(leading_zeros(np.uint64(n)))
    mantissa = n << (OCTAVE_BITS - exponent) if exponent <= OCTAVE_BITS else n >> (exponent - OCTAVE_BITS)
    fraction = mantissa - (1 << OCTAVE_BITS)
    i = fraction >> (OCTAVE_BITS - STEP_BITS)
    rest = fraction - (i << (OCTAVE_BITS - STEP_BITS))
    return (
        exponent * table[1 << STEP_BITS] + table[i] + (((table[i + 1] - table[i]) * rest) >> (OCTAVE_BITS - STEP_BITS))
    )


@jit
def _voxel_table(
    counts: NDArray[np.uint32],
    smooth: NDArray[np.int64],
    logs: NDArray[np.int64],
    numerator: int,
    denominator: int,
    weights: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    ln2 = logs[1 << STEP_BITS]
    taps = len(smooth)
    # The smoothed histogram, with room beyond both ends.
    blurred = np.zeros(BINS + taps - 1, np.int64)
    for c in range(counts.shape[0]):
        size, moment = np.int64(0), np.int64(0)
        blurred[:] = 0
        for q in range(BINS):
            count = np.int64(counts[c, q])
            if count == 0:
                continue
            size += count
            moment += q * count
            for i in range(taps):
                blurred[q + i] += smooth[i] * count
        if size == 0:
            continue
        weight = weights[c % len(weights)]
        mean = (moment << 8) // size
        # ln(T + 0.5) + ln(T) / 4
        by_size = _log(2 * size + 1, logs) - ln2 + (_log(size, logs) >> SIZE_SHIFT)
        for q in range(BINS):
            # ln(S / 2^16 + 0.5 / 64); bins count 1/64, the mean has 8 more bits.
            likelihood = _log(blurred[q + taps // 2] + 512, logs) - 16 * ln2
            distance = (q << 8) - mean
            score = likelihood - by_size - ((MEAN_WEIGHT * distance * distance) >> 8)
            scaled = (score * denominator // numerator + (1 << (LOG_BITS - 1))) >> LOG_BITS
            out[1 + c * BINS + q] = weight * min(max(scaled, -LARGEST_SCORE), LARGEST_SCORE)


def voxel_scores(counts: NDArray[np.uint32], weight: tuple[int, int], weights: Sequence[int] = (1,)) -> NDArray[Any]:
    """Score every bin of every channel in every supervoxel: int16, or int32 for several channels.

    ``U[C, q] = ln((G4 * H[C])_q + 0.5/64) - ln(T[C] + 0.5) - 5 (c_q - mu_C)^2 - 0.25 ln T[C]``.

    `counts`, uint32 (cells, channels * 64), are the supervoxels' histograms, and `weight` is lambda, the weight of a
    neighbour, as a fraction. Scores, shape (1 + cells * channels * 64,), are in units of lambda / 16, times the
    channel's weight: a neighbour counts 16 for each channel. The first entry is lower than every other score with any
    number of neighbours.
    """
    out = np.zeros(1 + counts.size, np.int16 if len(weights) == 1 else np.int32)
    out[0] = OUT_OF_REACH_SCORE * sum(weights)
    numerator, denominator = weight
    _voxel_table(
        counts.reshape(-1, BINS),
        voxel_smoothing(),
        log_table(),
        numerator,
        VOXEL_UNIT * denominator,
        np.array(weights),
        out,
    )
    return out


@jit
def _block_table(
    counts: NDArray[np.uint32],
    smooth: NDArray[np.int32],
    logs: NDArray[np.int64],
    cell_size: int,
    share: NDArray[np.uint16],
    size: NDArray[np.int64],
    handicap: NDArray[np.int32],
) -> None:
    channels = counts.shape[1] // BLOCK_BINS
    for c in range(counts.shape[0]):
        for j in range(BLOCK_BINS):
            size[c] += counts[c, j]
        if size[c] == 0:
            continue
        for k in range(channels):
            for j in range(BLOCK_BINS):
                blurred = np.int64(0)
                for i in range(max(0, 3 - j), min(7, BLOCK_BINS + 3 - j)):
                    blurred += smooth[i] * np.int64(counts[c, BLOCK_BINS * k + j + i - 3])
                share[channels * c + k, j] = blurred * (BLOCK_UNIT // SMOOTHING_SUM) // size[c]
        handicap[c] = ((_log(size[c], logs) - _log(cell_size, logs)) * (BLOCK_UNIT // 8)) // (10 << (LOG_BITS - 3))


def block_scores(
    counts: NDArray[np.uint32], cell_size: int
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int32]]:
    """Tabulate the supervoxels for the block score.

    ``score(C) = sum_j min(H[C, j] / T[C], h_j / t) + gain n_C - 0.1 ln(T[C] / cell_size)``.

    `counts`, uint32 (cells, channels * 32), are the supervoxels' histograms. Returns ``H / T``, smoothed over bins,
    uint16 (cells * channels, 32); ``T`` in voxels, int64 (cells,); and the last term of the score, int32 (cells,).
    Shares and scores are in units of 2^-15.
    """
    share = np.zeros((counts.size // BLOCK_BINS, BLOCK_BINS), np.uint16)
    size = np.zeros(len(counts), np.int64)
    handicap = np.zeros(len(counts), np.int32)
    _block_table(counts, block_smoothing(), log_table(), cell_size, share, size, handicap)
    return share, size, handicap


def check_compactness(compactness: Any) -> float:
    """Return a compactness; raise a ValueError unless it is a number from 0 to 30."""
    if not (isinstance(compactness, Real) and 0 <= float(compactness) <= MOST_COMPACT):
        raise ValueError(f"compactness must be a number from 0 to {MOST_COMPACT}, got {compactness!r}.")
    return float(compactness)


def distance_costs(
    lattice: Lattice, grid: Grid, box: Box, compactness: float, weight: tuple[int, int] | None
) -> DistanceCosts:
    """Tabulate the costs of the distances of a box of units from the centres of their owners' cells.

    ``compactness d^2``, in units of a voxel's log-likelihood, where d is the distance between the centres of the unit
    and of the cell, in steps. Blocks pay a tenth of that, as a share of a full histogram intersection.

    `weight` is lambda of a round of voxels, as a fraction, or None for blocks. Costs are in the units of the round's
    scores; they are empty for a compactness of 0.
    """
    fixed = round(compactness * (1 << COMPACTNESS_BITS))
    if weight is None:
        unit, divisor, largest = fixed * BLOCK_UNIT, BLOCK_SHARE << COMPACTNESS_BITS, 1 << 20
    else:
        unit, divisor, largest = fixed * VOXEL_UNIT * weight[1], weight[0] << COMPACTNESS_BITS, LARGEST_COST // 3
    axes = []
    for axis, (lo, hi) in enumerate(zip(box.lo, box.hi, strict=True)):
        edges, own = grid.edges[axis], grid.cells[axis][lo:hi]
        step, last, n = lattice.step[axis], lattice.cells[axis] - 1, lattice.shape[axis]
        costs = np.zeros((hi - lo, 4) if fixed else (0, 4), np.int32)
        for cell in (own - 1, own, own + 1) if fixed else ():
            end = np.where(cell == last, n, (cell + 1) * step)
            twice = edges[lo:hi] + edges[lo + 1 : hi + 1] - (cell * step + end)
            cost = unit * twice**2 // (4 * step**2 * divisor)
            costs[np.arange(hi - lo), cell & 3] = np.minimum(cost, largest)
        axes.append(costs)
    return DistanceCosts(*axes)
