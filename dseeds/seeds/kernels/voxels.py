"""The sweep of voxels, and their statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.connectivity import may_leave
from dseeds.seeds.kernels.label_codes import home_and_number, homes_and_numbers, owner_offsets
from dseeds.seeds.kernels.layout import (
    FACES,
    LANES,
    Costs,
    WindowGeometry,
    cost_of_row,
    in_core,
    neighbour_distances,
    row_of_colour,
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
# What a voxel's byte says, besides `OPEN`: it would move, but would cut its supervoxel.
PINNED = 2


@jit
def sweep_voxels(
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    table: NDArray[Any],
    weight: int | None,
    simple: NDArray[np.uint64],
    costs: Costs,
    place: WindowGeometry,
    colour: int,
    spare: int,
    z0: int,
    z1: int,
    change: NDArray[np.uint32],
) -> int:
    """Move the voxels of one colour between supervoxels, in place.

    A voxel whose neighbours have not changed since it was last looked at would stay as it is, for the scores are
    frozen. One that saw nothing better, and now has a neighbour that joined its own supervoxel, would stay as well:
    what it has gained, the others have lost. So only voxels that something speaks for are looked at.

    Parameters
    ----------
    bins : ndarray of uint8
        The window, one for each channel.
    labels, state : ndarray of uint8
        The window; `state` is `OPEN` everywhere when a round begins.
    table : ndarray of int16 or int32, shape (1 + cells * channels * 64,)
        The score of a bin in a supervoxel, by channel; before all, that of a supervoxel that is out of reach.
    weight : int or None
        The sum of the channels' weights; None for a single channel, for which less code is compiled.
    simple : ndarray of uint64
        From `connectivity_table`.
    costs : Costs
        What it costs a voxel to be far from the centre of the cell that its supervoxel grew from.
    place : Place
        Where the window lies.
    colour, spare : int
        See `row_of_colour`.
    z0, z1 : int
        The planes to do. Marks reach one plane further.
    change : ndarray of uint32, shape (cells, channels * 64)
        To this is added, modulo 2^32, how the moves in the core change the supervoxels' histograms.

    Returns
    -------
    int
        How many voxels moved.
    """
    ny, nx = len(place.cell_y), len(place.cell_x)
    channels, window = len(bins), np.uint64(labels.size)
    flat_labels, flat_bins, flat_state = labels.reshape(-1), bins.reshape(-1), state.reshape(-1)
    distances = neighbour_distances(labels)
    owners = owner_offsets(place.cells)
    home_x, number_x = homes_and_numbers(place)
    votes, fresh, beside = np.zeros(7 * LANES, np.uint8), np.zeros(4, np.uint64), np.zeros(7, np.uint64)
    top, best = np.zeros(LANES, np.int64), np.zeros(LANES, np.uint8)
    far = len(costs.x) > 0
    row_costs = np.zeros(16, np.int32)
    one = np.uint64(1)
    moves = 0
    for z in range(z0, z1):
        for y in range(max(0, place.core_lo[1] - spare), min(ny, place.core_hi[1] + spare)):
            parity, begin, end = row_of_colour(z, y, colour, place, spare, nx)
            around = distances[parity]
            for f in range(6):
                beside[f + 1] = around[FACES[f]]
            own_row, number_row = home_and_number(z, y, place)
            cost_of_row(costs, z, y, row_costs)
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
                # First the own labels, then those at each face, two at a time: a loop over lanes inside one over labels
                # is quicker than the other way round, for most lanes have few labels around, and it is hard to tell
                # which.
                for w in range(4):
                    left = fresh[w] & (due | (due << np.uint64(LANES)))
                    while left != 0:
                        at = trailing_zeros(left) + np.uint64(2 * LANES * w)
                        left &= left - one
                        lane = at & np.uint64(LANES - 1)
                        label = np.uint64(flat_labels[first + lane + beside[at // np.uint64(LANES)]])
                        column = np.uint64(x) + (lane << one)
                        owner = number_row + number_x[column] + owners[own_row + home_x[column] + label]
                        score = VOXEL_UNIT * np.int64(votes[at])
                        if far:
                            score -= np.int64(row_costs[label >> np.uint64(2)]) + costs.x[column, label & np.uint64(3)]
                        # What is out of reach has a place before all.
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
                    if in_core(z, y, x, place):
                        home, first_number = own_row + home_x[x], number_row + number_x[x]
                        old = first_number + owners[home + before]
                        new = first_number + owners[home + np.uint64(best[lane])]
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
    """Give a voxel another label, if its own supervoxel stays whole; say whether."""
    if not may_leave(same_neighbours(labels, voxel, around), simple):
        state[voxel] = PINNED
        return False
    labels[voxel] = label
    for k in range(18):
        neighbour = voxel + around[k]
        # Of those that it joins, only one that was held may now move.
        held = state[neighbour] >> 1
        state[neighbour] |= np.uint8(labels[neighbour] != label) | np.uint8(held)
    return True


@jit
def count_voxels(
    bins: NDArray[np.uint8], labels: NDArray[np.uint8], place: WindowGeometry, counts: NDArray[np.uint32]
) -> None:
    """Add the bins of the core's voxels to the histograms of their supervoxels."""
    owners = owner_offsets(place.cells)
    home_x, number_x = homes_and_numbers(place)
    for c in range(len(bins)):
        for z in range(place.core_lo[0], place.core_hi[0]):
            for y in range(place.core_lo[1], place.core_hi[1]):
                own_row, number_row = home_and_number(z, y, place)
                row, bin_row = labels[z + 1, y + 1], bins[c, z + 1, y + 1]
                for x in range(place.core_lo[2], place.core_hi[2]):
                    label = row[(x + 1) & 1, (x + 1) >> 1]
                    if label == NOTHING:
                        continue
                    cell = number_row + number_x[x] + owners[own_row + home_x[x] + np.uint64(label)]
                    bin_ = bin_row[(x + 1) & 1, (x + 1) >> 1]
                    counts[np.uint64(cell), np.uint64(BINS * c + bin_)] += np.uint32(1)
