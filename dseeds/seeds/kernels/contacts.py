"""Step 7, the region adjacency graph: voxels and contacts, counted in hash tables that grow.

The tables have open addressing: `keys` are pairs of numbers, of which the first is 0 in a free slot, and `values` holds
the counts of each key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit

# Slots of a new table, a power of two.
FIRST_SLOTS = 1024


class AdjacencyLists(NamedTuple):
    """The neighbours of each node of a graph, one list after the other.

    `starts`, int64 (nodes + 1,), holds where each list begins and the last one ends; `others` and `contacts`, int64 (2
    * pairs,), hold the neighbours and the number of faces shared with each, in order if the pairs are.
    """

    starts: NDArray[np.int64]
    others: NDArray[np.int64]
    contacts: NDArray[np.int64]


@jit
def count_voxels_and_faces(
    labels: NDArray[Any], lo: Triple, bins: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count the voxels of a box and their faces towards higher z, y and x; see `build_contact_graph`.

    `labels`, unsigned int (z, y, x), is the window, `lo` the first voxel of the box in it, and `bins`, uint8 (channels,
    z, y, x), the box's voxels. Returns int64 arrays: labels, each followed by a 0 (n, 2); their numbers of voxels and
    sums of bins (n, 1 + channels); pairs of labels that touch (m, 2); and the number of faces between them (m, 1).
    """
    channels, nz, ny, nx = bins.shape
    nodes, totals = np.zeros((FIRST_SLOTS, 2), np.int64), np.zeros((FIRST_SLOTS, 1 + channels), np.int64)
    edges, faces = np.zeros((FIRST_SLOTS, 2), np.int64), np.zeros((FIRST_SLOTS, 1), np.int64)
    used_nodes, used_edges = 0, 0
    for z in range(nz):
        for y in range(ny):
            # The most that a row can add.
            while 2 * (used_nodes + nx) > len(nodes):
                nodes, totals = double_table(nodes, totals)
            while 2 * (used_edges + 3 * nx) > len(edges):
                edges, faces = double_table(edges, faces)
            here = labels[lo[0] + z, lo[1] + y]
            used_nodes += _add_nodes(here, lo[2], bins[:, z, y], nodes, totals)
            if lo[2] + 1 < labels.shape[2]:
                used_edges += _add_faces(here[lo[2] :], here[lo[2] + 1 :], nx, edges, faces)
            if lo[1] + y + 1 < labels.shape[1]:
                used_edges += _add_faces(here[lo[2] :], labels[lo[0] + z, lo[1] + y + 1, lo[2] :], nx, edges, faces)
            if lo[0] + z + 1 < labels.shape[0]:
                used_edges += _add_faces(here[lo[2] :], labels[lo[0] + z + 1, lo[1] + y, lo[2] :], nx, edges, faces)
    used, touching = nodes[:, 0] != 0, edges[:, 0] != 0
    return nodes[used], totals[used], edges[touching], faces[touching]


@jit
def _add_nodes(
    row: NDArray[Any], begin: int, bins: NDArray[np.uint8], keys: NDArray[np.int64], values: NDArray[np.int64]
) -> int:
    """Count a row's voxels, and return the number of new keys."""
    fresh = 0
    channels, length = bins.shape
    x = 0
    while x < length:
        label, first = row[begin + x], x
        while x < length and row[begin + x] == label:
            x += 1
        if label == 0:
            continue
        slot = find_slot(keys, np.int64(label), 0)
        if keys[slot, 0] == 0:
            keys[slot, 0] = label
            fresh += 1
        values[slot, 0] += x - first
        for c in range(channels):
            total = 0
            for i in range(first, x):
                total += bins[c, i]
            values[slot, 1 + c] += total
    return fresh


@jit
def _add_faces(
    row: NDArray[Any], other: NDArray[Any], length: int, keys: NDArray[np.int64], values: NDArray[np.int64]
) -> int:
    """Count the faces between the voxels of two adjacent rows, and return the number of new keys."""
    fresh = 0
    x = 0
    while x < min(length, len(other)):
        a, b = row[x], other[x]
        x += 1
        if a == b or a == 0 or b == 0:
            continue
        count = 1
        while x < min(length, len(other)) and row[x] == a and other[x] == b:
            count += 1
            x += 1
        low, high = np.int64(min(a, b)), np.int64(max(a, b))
        slot = find_slot(keys, low, high)
        if keys[slot, 0] == 0:
            keys[slot, 0], keys[slot, 1] = low, high
            fresh += 1
        values[slot, 0] += count
    return fresh


@jit
def hash_pair(low: int, high: int) -> np.int64:
    """Return a hash of a pair of numbers whose lower bits serve as a slot."""
    # Both numbers reach the upper half.
    product = (np.uint64(low) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(high)) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64(product >> np.uint64(32))


@jit
def find_slot(keys: NDArray[np.int64], low: int, high: int) -> np.int64:
    """Return the slot of a key, or a free slot for it."""
    slot = hash_pair(low, high) & (len(keys) - 1)
    while keys[slot, 0] != 0 and (keys[slot, 0] != low or keys[slot, 1] != high):
        slot = (slot + 1) & (len(keys) - 1)
    return slot


@jit
def double_table(keys: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Copy a table into one of twice the length."""
    more_keys = np.zeros((2 * keys.shape[0], keys.shape[1]), np.int64)
    more_values = np.zeros((2 * values.shape[0], values.shape[1]), np.int64)
    for i in range(len(keys)):
        if keys[i, 0] != 0:
            slot = find_slot(more_keys, keys[i, 0], keys[i, 1])
            # Element by element: whole rows take six times as long to compile.
            for k in range(keys.shape[1]):
                more_keys[slot, k] = keys[i, k]
            for k in range(values.shape[1]):
                more_values[slot, k] = values[i, k]
    return more_keys, more_values


@jit
def fill_adjacency_lists(pairs: NDArray[np.int64], contacts: NDArray[np.int64], lists: AdjacencyLists) -> None:
    """Enter every pair into the lists of both nodes; `starts` then holds where the lists end."""
    ends, others, faces = lists
    for k in range(len(pairs)):
        for side in range(2):
            place = ends[pairs[k, side]]
            others[place], faces[place] = pairs[k, 1 - side], contacts[k]
            ends[pairs[k, side]] += 1


@jit
def add_contact(other: int, contact: int, shared: NDArray[np.int64], touched: NDArray[np.int64], count: int) -> int:
    """Add a contact with another item to `shared`, list it in `touched` if it is new, and return the list's length."""
    if shared[other] == 0:
        touched[count] = other
        count += 1
    shared[other] += contact
    return count
