"""The sweep of voxels, and their statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dseeds.compilation import jit
from dseeds.kernel.connectivity import may_leave
from dseeds.kernel.labels import home_and_number, homes_and_numbers, owner_distances
from dseeds.kernel.lanes import (
    better_lanes,
    boundary_lanes,
    clear_marked_lanes,
    marked_lanes,
    same_neighbours,
    trailing_zeros,
    weigh_neighbours,
)
from dseeds.kernel.layout import FACES, LANES, Place, neighbour_distances, row_of_colour

BINS = 64
# What a voxel's byte says: it is to be looked at; or it would move, but would cut its supervoxel.
OPEN, HELD = 1, 2
F0, F1, F2, F3, F4, F5 = FACES


@jit
def sweep_voxels(
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    table: NDArray[np.int16],
    simple: NDArray[np.uint64],
    place: Place,
    colour: int,
    spare: int,
    z0: int,
    z1: int,
) -> int:
    """Move the voxels of one colour between supervoxels, in place.

    A voxel whose neighbours have not changed since it was last looked at would stay as it is, for the scores are
    frozen. One that saw nothing better, and now has a neighbour that joined its own supervoxel, would stay as well:
    what it has gained, the others have lost. So only voxels that something speaks for are looked at.

    Parameters
    ----------
    bins, labels, state : ndarray of uint8
        The window; `state` is `OPEN` everywhere when a round begins.
    table : ndarray of int16, shape (1 + cells * 64,)
        The score of a bin in a supervoxel; before all, that of a supervoxel that is out of reach.
    simple : ndarray of uint64
        From `connectivity_table`.
    place : Place
        Where the window lies.
    colour, spare : int
        See `row_of_colour`.
    z0, z1 : int
        The planes to do. Marks reach one plane further.

    Returns
    -------
    int
        How many voxels moved.
    """
    ny, nx = len(place.cell_y), len(place.cell_x)
    flat_labels, flat_bins, flat_state = labels.reshape(-1), bins.reshape(-1), state.reshape(-1)
    distances = neighbour_distances(labels)
    owners = owner_distances(place.cells)
    home_x, number_x = homes_and_numbers(place)
    # In places of the table.
    owners *= BINS
    number_x *= BINS
    scores = np.zeros(7 * LANES, np.int16)
    one = np.uint64(1)
    moves = 0
    for z in range(z0, z1):
        for y in range(max(0, place.core_lo[1] - spare), min(ny, place.core_hi[1] + spare)):
            parity, begin, end = row_of_colour(z, y, colour, place, spare, nx)
            around = distances[parity]
            own_row, number_row = home_and_number(z, y, place)
            row = (((z + 1) * labels.shape[1] + y + 1) * 2 + parity) * labels.shape[3]
            for i in range(begin, end, LANES):
                first = np.uint64(row + i)
                count = min(LANES, end - i)
                due = marked_lanes(flat_state, first) & boundary_lanes(flat_labels, first, around)
                due &= (one << np.uint64(count)) - one
                if count == LANES:
                    clear_marked_lanes(flat_state, first)
                else:
                    for voxel in range(first, first + np.uint64(count)):
                        flat_state[voxel] *= (flat_state[voxel] & OPEN) ^ OPEN
                if due == 0:
                    continue
                weigh_neighbours(flat_labels, flat_bins, first, around, scores)
                x = 2 * i + parity - 1
                _add_fit(
                    due, flat_labels, flat_bins, first, around, table, owners, own_row, home_x[x::2],
                    BINS * number_row + 1, number_x[x::2], scores
                )
                due &= better_lanes(scores)
                while due != 0:
                    lane = trailing_zeros(due)
                    due &= due - one
                    moves += _move(first + lane, lane, flat_labels, flat_state, around, scores, simple)
    return moves


@jit
def _add_fit(
    due: np.uint64,
    labels: NDArray[np.uint8],
    bins: NDArray[np.uint8],
    first: np.uint64,
    around: NDArray[np.uint64],
    table: NDArray[np.int16],
    owners: NDArray[np.int64],
    own_row: np.uint64,
    home: NDArray[np.uint64],
    row: int,
    number: NDArray[np.int64],
    scores: NDArray[np.int16],
) -> None:
    """Add to the scores how well the voxels that are due fit their own supervoxel and those at their faces."""
    n0, n1, n2, n3, n4, n5 = around[F0], around[F1], around[F2], around[F3], around[F4], around[F5]
    while due != 0:
        lane = trailing_zeros(due)
        due &= due - np.uint64(1)
        voxel = first + lane
        own, score = own_row + home[lane], row + number[lane] + np.int64(bins[voxel])
        # Written out: this is the inmost of all, and a loop over the faces would not be unrolled.
        scores[lane] += _fit(labels[voxel], own, score, owners, table)
        scores[lane + np.uint64(LANES)] += _fit(labels[voxel + n0], own, score, owners, table)
        scores[lane + np.uint64(2 * LANES)] += _fit(labels[voxel + n1], own, score, owners, table)
        scores[lane + np.uint64(3 * LANES)] += _fit(labels[voxel + n2], own, score, owners, table)
        scores[lane + np.uint64(4 * LANES)] += _fit(labels[voxel + n3], own, score, owners, table)
        scores[lane + np.uint64(5 * LANES)] += _fit(labels[voxel + n4], own, score, owners, table)
        scores[lane + np.uint64(6 * LANES)] += _fit(labels[voxel + n5], own, score, owners, table)


@jit
def _fit(label: np.uint8, home: np.uint64, score: int, owners: NDArray[np.int64], table: NDArray[np.int16]) -> int:
    """Look up the score of a voxel in the supervoxel of a label; 0 is the place of what is out of reach."""
    return table[np.uint64(max(np.int64(0), score + owners[home + np.uint64(label)]))]


@jit
def _move(
    voxel: np.uint64,
    lane: np.uint64,
    labels: NDArray[np.uint8],
    state: NDArray[np.uint8],
    around: NDArray[np.uint64],
    scores: NDArray[np.int16],
    simple: NDArray[np.uint64],
) -> int:
    """Give a voxel the best of the labels at its faces, if its own supervoxel stays whole."""
    if not may_leave(same_neighbours(labels, voxel, around), simple):
        state[voxel] = HELD
        return 0
    best, top = labels[voxel], scores[lane]
    for f in range(6):
        score = scores[lane + np.uint64((f + 1) * LANES)]
        if score > top:
            best, top = labels[voxel + around[FACES[f]]], score
    labels[voxel] = best
    for k in range(18):
        neighbour = voxel + around[k]
        # Of those that it joins, only one that was held may now move.
        held = state[neighbour] >> 1
        state[neighbour] |= np.uint8(labels[neighbour] != best) | np.uint8(held)
    return 1


@jit
def count_voxels(
    bins: NDArray[np.uint8], labels: NDArray[np.uint8], place: Place, counts: NDArray[np.uint32]
) -> None:
    """Add the bins of the core's voxels to the histograms of their supervoxels."""
    owners = owner_distances(place.cells)
    home_x, number_x = homes_and_numbers(place)
    flat = counts.reshape(-1)
    for z in range(place.core_lo[0], place.core_hi[0]):
        for y in range(place.core_lo[1], place.core_hi[1]):
            own_row, number_row = home_and_number(z, y, place)
            row, bin_row = labels[z + 1, y + 1], bins[z + 1, y + 1]
            for x in range(place.core_lo[2], place.core_hi[2]):
                label = row[(x + 1) & 1, (x + 1) >> 1]
                cell = number_row + number_x[x] + owners[own_row + home_x[x] + np.uint64(label)]
                flat[np.uint64(BINS * cell + bin_row[(x + 1) & 1, (x + 1) >> 1])] += np.uint32(1)
