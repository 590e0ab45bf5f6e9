"""Steps 2 to 4, blocks: their histograms, their sweep and their statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays
from dseeds.core.jit import jit
from dseeds.seeds.kernels.connectivity import may_leave
from dseeds.seeds.kernels.label_codes import OUT_OF_REACH, owner_lookup, owner_number, row_home
from dseeds.seeds.kernels.layout import (
    FACES,
    LANES,
    DistanceCosts,
    Turn,
    WindowGeometry,
    add_row_costs,
    in_core,
    neighbour_distances,
    row_of_colour,
    rows_of_turn,
)
from dseeds.seeds.kernels.simd import (
    BLOCK_BINS,
    NOTHING,
    OPEN,
    boundary_lanes,
    count_neighbours,
    intersect,
    intersect_without,
    same_neighbours,
    sum_rows,
    take_marked,
    trailing_zeros,
)
from dseeds.seeds.kernels.voxels import MASKED

# The sum of the weights that smooth a histogram over its bins.
SMOOTHING_SUM = 256
# A score's unit: this is a full histogram intersection.
BLOCK_UNIT = 1 << 15
# A block weighs at most 8 times the rest of its supervoxel, in units of 2^-12, so that its product with a share fits
# 32 bits.
MOST_RATIO = 8 << 12
# Blocks that can be halved no further have up to 4 voxels along an axis, or 6 in a cell that took in a remainder.
LARGEST_FINE_BLOCK = 6**3


@jit
def count_block_histograms(bins: NDArray[np.uint8], edges: AxisArrays, histograms: NDArray[Any]) -> None:
    """Count a window's voxels, with 64 bins, in the histograms of its blocks, shape (z, y, x, channels * 32).

    `edges` holds per axis where the blocks begin and the last one ends, in voxels of the window.
    """
    edge_z, edge_y, edge_x = edges
    for c in range(len(bins)):
        for z in range(len(edge_z) - 1):
            for y in range(len(edge_y) - 1):
                for vz in range(edge_z[z], edge_z[z + 1]):
                    for vy in range(edge_y[y], edge_y[y + 1]):
                        row = bins[c, vz + 1, vy + 1]
                        for x in range(len(edge_x) - 1):
                            histogram = histograms[z, y, x]
                            for vx in range(edge_x[x] + 1, edge_x[x + 1] + 1):
                                bin_ = row[vx & 1, vx >> 1] >> 1
                                if bin_ < BLOCK_BINS:
                                    histogram[BLOCK_BINS * c + bin_] += 1


@jit
def hide_blocks(histograms: NDArray[Any], labels: NDArray[np.uint8]) -> None:
    """Set the labels of the blocks without a voxel in the mask to `NOTHING`."""
    for z in range(histograms.shape[0]):
        for y in range(histograms.shape[1]):
            for x in range(histograms.shape[2]):
                inside = False
                for j in range(BLOCK_BINS):
                    inside |= histograms[z, y, x, j] != 0
                if not inside:
                    labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = NOTHING


@jit
def hide_fine_units(bins: NDArray[np.uint8], edges: AxisArrays, labels: NDArray[np.uint8]) -> None:
    """Set the labels of units without a voxel in the mask to `NOTHING`, from the units' voxels."""
    edge_z, edge_y, edge_x = edges
    for z in range(len(edge_z) - 1):
        for y in range(len(edge_y) - 1):
            for x in range(len(edge_x) - 1):
                inside = False
                for vz in range(edge_z[z] + 1, edge_z[z + 1] + 1):
                    for vy in range(edge_y[y] + 1, edge_y[y + 1] + 1):
                        for vx in range(edge_x[x] + 1, edge_x[x + 1] + 1):
                            inside |= bins[0, vz, vy, vx & 1, vx >> 1] != MASKED
                if not inside:
                    labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = NOTHING


@jit
def coarsen_histograms(finer: NDArray[Any], parents: AxisArrays, histograms: NDArray[Any]) -> None:
    """Add the histograms of finer blocks to those of the coarser blocks that contain them."""
    parent_z, parent_y, parent_x = parents
    # The number of bins is not a constant to the compiler, here and below: it would unroll instead of vectorise.
    bins = finer.shape[3]
    for z in range(finer.shape[0]):
        for y in range(finer.shape[1]):
            for x in range(finer.shape[2]):
                for j in range(bins):
                    histograms[parent_z[z], parent_y[y], parent_x[x], j] += finer[z, y, x, j]


@jit
def count_blocks(
    histograms: NDArray[Any], labels: NDArray[np.uint8], geometry: WindowGeometry, counts: NDArray[np.uint32]
) -> None:
    """Add the histograms of the core's blocks to those of their supervoxels."""
    owners = owner_lookup(geometry)
    bins = histograms.shape[3]
    for z in range(geometry.core_lo[0], geometry.core_hi[0]):
        for y in range(geometry.core_lo[1], geometry.core_hi[1]):
            home = row_home(z, y, geometry)
            for x in range(geometry.core_lo[2], geometry.core_hi[2]):
                label = labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1]
                if label == NOTHING:
                    continue
                owner = owner_number(owners, home, x, label)
                for j in range(bins):
                    counts[owner, j] += histograms[z, y, x, j]


@jit
def count_fine_blocks(
    bins: NDArray[np.uint8],
    edges: AxisArrays,
    labels: NDArray[np.uint8],
    geometry: WindowGeometry,
    counts: NDArray[np.uint32],
) -> None:
    """Add the voxels of the core's blocks to the histograms of their supervoxels."""
    edge_z, edge_y, edge_x = edges
    owners = owner_lookup(geometry)
    for c in range(len(bins)):
        for z in range(geometry.core_lo[0], geometry.core_hi[0]):
            for y in range(geometry.core_lo[1], geometry.core_hi[1]):
                home = row_home(z, y, geometry)
                for vz in range(edge_z[z], edge_z[z + 1]):
                    for vy in range(edge_y[y], edge_y[y + 1]):
                        row = bins[c, vz + 1, vy + 1]
                        for x in range(geometry.core_lo[2], geometry.core_hi[2]):
                            label = labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1]
                            if label == NOTHING:
                                continue
                            owner = owner_number(owners, home, x, label)
                            for vx in range(edge_x[x] + 1, edge_x[x + 1] + 1):
                                bin_ = row[vx & 1, vx >> 1] >> 1
                                if bin_ < BLOCK_BINS:
                                    counts[np.uint64(owner), np.uint64(BLOCK_BINS * c + bin_)] += np.uint32(1)


class BlockValues(NamedTuple):
    """The intensities of a window of blocks: histograms, or for the finest blocks their voxels.

    - `bins`, uint8: for the finest blocks, a window of their voxels for each channel; otherwise unused.
    - `histograms`, unsigned int (z, y, x, channels * 32): for coarser blocks; otherwise empty.
    - `edges`: per axis where the blocks begin and the last one ends, in voxels from the window's first.
    """

    bins: NDArray[np.uint8]
    histograms: NDArray[Any]
    edges: AxisArrays


class BlockScores(NamedTuple):
    """The tables from which blocks are scored in a round.

    - `shares`, uint16 (cells * channels, 32): the supervoxels' smoothed histograms as shares of their size, in units of
      `BLOCK_UNIT`.
    - `sizes`, int64 (cells,), and `handicaps`, int32 (cells,): the supervoxels' sizes in voxels, and the costs of
      these.
    - `neighbour_gain`: the score of one neighbour of the same label.
    - `weights`, int64 (channels,): the channels' weights; None for a single channel, for which less code is compiled.
    - `smoothed`, uint16 (32, 32): the smoothed histogram of a count of one in each bin.
    - `costs`: the costs of a block's distance from the centre of its owner's cell.
    """

    shares: NDArray[np.uint16]
    sizes: NDArray[np.int64]
    handicaps: NDArray[np.int32]
    neighbour_gain: int
    weights: NDArray[np.int64] | None
    smoothed: NDArray[np.uint16]
    costs: DistanceCosts


@jit
def sweep_blocks(
    values: BlockValues,
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    scores: BlockScores,
    simple: NDArray[np.uint64],
    geometry: WindowGeometry,
    turn: Turn,
    change: NDArray[np.uint32],
) -> int:
    """Move the blocks of one colour between supervoxels, in place; return the number of moves.

    Arguments are those of `sweep_voxels`, for a window of blocks and histograms of 32 bins.
    """
    bins, histograms, (edge_z, edge_y, edge_x) = values
    shares, sizes, handicaps, neighbour_gain, weights, smoothed, costs = scores
    flat_labels, flat_state = labels.reshape(-1), state.reshape(-1)
    distances = neighbour_distances(labels)
    offsets, home_x, number_x = owner_lookup(geometry)
    votes, fresh = np.zeros(7 * LANES, np.uint8), np.zeros(4, np.uint64)
    channels = len(shares) // len(sizes)
    rows = np.empty(channels * LARGEST_FINE_BLOCK, np.uint8)
    profiles = np.empty((channels, BLOCK_BINS), np.uint16)
    row_costs = np.zeros(16, np.int32)
    total = np.empty(BLOCK_BINS, np.uint32)
    fine, far = histograms.size == 0, len(costs.x) > 0
    one = np.uint64(1)
    begin_y, end_y = rows_of_turn(geometry, turn)
    moves = 0
    for z in range(turn.begin, turn.end):
        for y in range(begin_y, end_y):
            parity, begin, end = row_of_colour(z, y, geometry, turn)
            around = distances[parity]
            home_row, number_row = row_home(z, y, geometry)
            add_row_costs(costs, z, y, row_costs)
            row = (((z + 1) * labels.shape[1] + y + 1) * 2 + parity) * labels.shape[3]
            for i in range(begin, end, LANES):
                first = np.uint64(row + i)
                due = take_marked(flat_state, first, min(LANES, end - i))
                due &= boundary_lanes(flat_labels, first, around)
                if due == 0:
                    continue
                count_neighbours(flat_labels, first, around, votes, fresh)
                while due != 0:
                    lane = trailing_zeros(due)
                    due &= due - one
                    block = first + lane
                    if not may_leave(same_neighbours(flat_labels, block, around), simple):
                        continue
                    x = 2 * (i + np.int64(lane)) + parity - 1
                    edges = edge_z[z], edge_z[z + 1], edge_y[y], edge_y[y + 1], edge_x[x], edge_x[x + 1]
                    size = 0
                    for k in range(channels):
                        if fine:
                            size = _list_voxels(bins, edges, k, rows, LARGEST_FINE_BLOCK * k)
                            sum_rows(smoothed, rows, LARGEST_FINE_BLOCK * k, size, _scale(size), profiles, k)
                        else:
                            size = _smooth_histogram(histograms[z, y, x], smoothed, total, profiles, k)
                    home, cell = home_row + home_x[x], number_row + number_x[x]
                    best, top, old, new = flat_labels[block], 0, np.uint64(0), np.uint64(0)
                    for c in range(7):
                        if (fresh[c >> 1] >> (lane + np.uint64(LANES * (c & 1)))) & one == 0:
                            continue
                        label = flat_labels[block + around[FACES[c - 1]]] if c > 0 else best
                        offset = offsets[home + np.uint64(label)]
                        if offset == OUT_OF_REACH:
                            continue
                        owner = np.uint64(cell + offset)
                        score = np.int64(votes[lane + np.uint64(c * LANES)]) * neighbour_gain - handicaps[owner]
                        if far:
                            score -= row_costs[label >> 2] + costs.x[x, label & 3]
                        ratio = np.int32(0)
                        if c == 0:
                            ratio = np.int32(min(MOST_RATIO, (size << 12) // max(1, sizes[owner] - size)))
                        score = _add_likeness(score, weights, shares, owner, profiles, ratio, c == 0)
                        if c == 0:
                            old = owner
                        if c == 0 or score > top:
                            best, top, new = label, score, owner
                    if new == old:
                        continue
                    flat_labels[block] = best
                    flat_state[block] = OPEN
                    for k in range(18):
                        flat_state[block + around[k]] = OPEN
                    moves += 1
                    if in_core(z, y, x, geometry):
                        if fine:
                            _count_fine_move(rows, size, old, new, change)
                        else:
                            for j in range(histograms.shape[3]):
                                change[old, j] -= np.uint32(histograms[z, y, x, j])
                                change[new, j] += np.uint32(histograms[z, y, x, j])
    return moves


@jit
def _list_voxels(
    bins: NDArray[np.uint8],
    edges: tuple[int, int, int, int, int, int],
    channel: int,
    rows: NDArray[np.uint8],
    begin: int,
) -> int:
    """List the bins, of 32, of a block's voxels in a channel, and return how many there are."""
    count = begin
    for z in range(edges[0] + 1, edges[1] + 1):
        for y in range(edges[2] + 1, edges[3] + 1):
            row = bins[channel, z, y]
            for x in range(edges[4] + 1, edges[5] + 1):
                bin_ = row[x & 1, x >> 1] >> 1
                rows[count] = bin_
                # The next voxel overwrites one that is masked out.
                count += bin_ < BLOCK_BINS
    return count - begin


@jit
def _smooth_histogram(
    histogram: NDArray[Any],
    smoothed: NDArray[np.uint16],
    total: NDArray[np.uint32],
    profiles: NDArray[np.uint16],
    channel: int,
) -> int:
    """Smooth a block's histogram in a channel into shares, rounded down; return the number of its voxels."""
    size, bins = 0, len(total)
    total[:] = 0
    for j in range(bins):
        count = np.uint32(histogram[bins * channel + j])
        if count != 0:
            size += np.int64(count)
            for k in range(bins):
                total[k] += count * np.uint32(smoothed[j, k])
    scale = _scale(size)
    for k in range(bins):
        profiles[channel, k] = np.uint16(np.float32(total[k]) * scale)
    return size


@jit
def _scale(size: int) -> np.float32:
    """Return the factor that turns a block's smoothed histogram into shares of its size."""
    return np.float32(BLOCK_UNIT / SMOOTHING_SUM) / np.float32(size)


@jit
def _add_likeness(
    score: np.int64,
    weights: NDArray[np.int64] | None,
    shares: NDArray[np.uint16],
    owner: np.uint64,
    profiles: NDArray[np.uint16],
    ratio: np.int32,
    own: bool,
) -> np.int64:
    """Add the intersections of a block's histograms with those of a supervoxel."""
    if weights is None:
        return score + _intersect(shares, owner, profiles, np.uint64(0), ratio, own)
    score *= weights.sum()
    channels = np.uint64(len(weights))
    for k in range(channels):
        score += weights[k] * _intersect(shares, owner * channels + k, profiles, k, ratio, own)
    return score


@jit
def _intersect(
    shares: NDArray[np.uint16],
    share: np.uint64,
    profiles: NDArray[np.uint16],
    profile: np.uint64,
    ratio: np.int32,
    own: bool,
) -> np.int64:
    """Intersect a supervoxel's shares with a block's, without the block if it is the block's own supervoxel."""
    if own:
        return np.int64(intersect_without(shares, share, profiles, profile, ratio))
    return np.int64(intersect(shares, share, profiles, profile))


@jit
def _count_fine_move(
    rows: NDArray[np.uint8], size: int, old: np.uint64, new: np.uint64, change: NDArray[np.uint32]
) -> None:
    """Move a fine block's voxels, listed by channel, from the histograms of one owner to those of another."""
    for k in range(len(rows) // LARGEST_FINE_BLOCK):
        for v in range(LARGEST_FINE_BLOCK * k, LARGEST_FINE_BLOCK * k + size):
            change[old, BLOCK_BINS * k + rows[v]] -= np.uint32(1)
            change[new, BLOCK_BINS * k + rows[v]] += np.uint32(1)
