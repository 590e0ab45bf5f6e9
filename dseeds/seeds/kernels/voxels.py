"""Steps 4 and 5, single voxels: their sweep and their statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.connectivity import may_leave
from dseeds.seeds.kernels.label_codes import owner_lookup, owner_number, row_home
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
    NOTHING,
    boundary_lanes,
    count_neighbours,
    same_neighbours,
    take_marked,
    trailing_zeros,
)

BINS = 64
# The bin, in every channel, of a voxel that is masked out.
MASKED = 64
# A score's unit: this is one neighbour of the same label.
VOXEL_UNIT = 16
# A bit of a voxel's state, besides `OPEN`: another label scores better, but the move would cut the supervoxel.
PINNED = 2


@jit
def sweep_voxels(
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    table: NDArray[Any],
    weight: int | None,
    costs: DistanceCosts,
    simple: NDArray[np.uint64],
    geometry: WindowGeometry,
    turn: Turn,
    change: NDArray[np.uint32],
) -> int:
    """Move the voxels of one colour between supervoxels, in place; return the number of moves.

    A voxel whose neighbours have not changed since its last visit would stay, because scores are frozen. So would a
    voxel that saw nothing better and whose neighbour has since joined its own supervoxel: what that supervoxel gained,
    the others lost. So only voxels with a reason to move are visited.

    - `bins`, uint8: a window for each channel.
    - `labels`, `state`, uint8: windows; `state` is `OPEN` where a unit is due for a visit, everywhere at the start of a
      round of voxels.
    - `table`, int16 or int32 (1 + cells * channels * 64,): the frozen score of a bin in a supervoxel, by channel. The
      first entry is that of a supervoxel out of reach.
    - `weight`: the sum of the channels' weights; None for a single channel, for which less code is compiled.
    - `costs`: the costs of a voxel's distance from the centre of its owner's cell.
    - `simple`: from `connectivity_table`.
    - `change`, uint32 (cells, channels * 64): receives, modulo 2^32, the change in the supervoxels' histograms due to
      the moves in the core.
    """
    channels, window = len(bins), np.uint64(labels.size)
    flat_labels, flat_bins, flat_state = labels.reshape(-1), bins.reshape(-1), state.reshape(-1)
    distances = neighbour_distances(labels)
    offsets, home_x, number_x = owner_lookup(geometry)
    votes, fresh, beside = np.zeros(7 * LANES, np.uint8), np.zeros(4, np.uint64), np.zeros(7, np.uint64)
    top, best = np.zeros(LANES, np.int64), np.zeros(LANES, np.uint8)
    far = len(costs.x) > 0
    row_costs = np.zeros(16, np.int32)
    one = np.uint64(1)
    begin_y, end_y = rows_of_turn(geometry, turn)
    moves = 0
    for z in range(turn.begin, turn.end):
        for y in range(begin_y, end_y):
            parity, begin, end = row_of_colour(z, y, geometry, turn)
            around = distances[parity]
            for f in range(6):
                beside[f + 1] = around[FACES[f]]
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
                x = 2 * i + parity - 1
                better = np.uint64(0)
                # First the lanes' own labels, then those at each face, two sets of lanes at a time: a loop over lanes
                # inside a loop over labels is faster than the other way round, because most lanes have few labels
                # around them and the branches are hard to predict.
                for w in range(4):
                    candidates = fresh[w] & (due | (due << np.uint64(LANES)))
                    while candidates != 0:
                        at = trailing_zeros(candidates) + np.uint64(2 * LANES * w)
                        candidates &= candidates - one
                        lane = at & np.uint64(LANES - 1)
                        label = np.uint64(flat_labels[first + lane + beside[at // np.uint64(LANES)]])
                        column = np.uint64(x) + (lane << one)
                        owner = number_row + number_x[column] + offsets[home_row + home_x[column] + label]
                        score = VOXEL_UNIT * np.int64(votes[at])
                        if far:
                            score -= np.int64(row_costs[label >> np.uint64(2)]) + costs.x[column, label & np.uint64(3)]
                        # The table's first entry serves all owners out of reach.
                        if weight is None:
                            entry = max(0, BINS * owner + np.int64(flat_bins[first + lane]) + 1)
                            score += np.int64(table[np.uint64(entry)])
                        else:
                            score *= weight
                            for c in range(channels):
                                bin_ = np.int64(flat_bins[np.uint64(c) * window + first + lane])
                                entry = max(0, BINS * (channels * owner + c) + bin_ + 1)
                                score += np.int64(table[np.uint64(entry)])
                        if at < LANES:
                            top[lane] = score
                        elif score > top[lane]:
                            top[lane], best[lane] = score, label
                            better |= one << lane
                while better != 0:
                    lane = trailing_zeros(better)
                    better &= better - one
                    before = np.uint64(flat_labels[first + lane])
                    if not _move(first + lane, best[lane], flat_labels, flat_state, around, simple):
                        continue
                    moves += 1
                    x = 2 * (i + np.int64(lane)) + parity - 1
                    if in_core(z, y, x, geometry):
                        home, first_number = home_row + home_x[x], number_row + number_x[x]
                        old = first_number + offsets[home + before]
                        new = first_number + offsets[home + np.uint64(best[lane])]
                        for c in range(channels):
                            bin_ = np.int64(flat_bins[np.uint64(c) * window + first + lane])
                            change[np.uint64(old), np.uint64(BINS * c + bin_)] -= np.uint32(1)
                            change[np.uint64(new), np.uint64(BINS * c + bin_)] += np.uint32(1)
    return moves


@jit
def _move(
    voxel: np.uint64,
    label: np.uint8,
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    around: NDArray[np.uint64],
    simple: NDArray[np.uint64],
) -> bool:
    """Relabel a voxel if its own supervoxel stays connected, and return whether it did."""
    if not may_leave(same_neighbours(labels, voxel, around), simple):
        state[voxel] = PINNED
        return False
    labels[voxel] = label
    for k in range(18):
        neighbour = voxel + around[k]
        # Of the voxels that already have the new label, only pinned ones may move now.
        pinned = state[neighbour] >> 1
        state[neighbour] |= np.uint8(labels[neighbour] != label) | np.uint8(pinned)
    return True


@jit
def count_voxels(
    bins: NDArray[np.uint8], labels: NDArray[np.uint8], geometry: WindowGeometry, counts: NDArray[np.uint32]
) -> None:
    """Add the bins of the core's voxels to the histograms of their supervoxels."""
    owners = owner_lookup(geometry)
    for c in range(len(bins)):
        for z in range(geometry.core_lo[0], geometry.core_hi[0]):
            for y in range(geometry.core_lo[1], geometry.core_hi[1]):
                home = row_home(z, y, geometry)
                row, bin_row = labels[z + 1, y + 1], bins[c, z + 1, y + 1]
                for x in range(geometry.core_lo[2], geometry.core_hi[2]):
                    label = row[(x + 1) & 1, (x + 1) >> 1]
                    if label == NOTHING:
                        continue
                    bin_ = bin_row[(x + 1) & 1, (x + 1) >> 1]
                    owner = owner_number(owners, home, x, label)
                    counts[np.uint64(owner), np.uint64(BINS * c + bin_)] += np.uint32(1)
