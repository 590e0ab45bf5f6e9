"""Step 7, `min_size`: small supervoxels join their most similar neighbours."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.contacts import AdjacencyLists, add_contact
from dseeds.seeds.kernels.mask_components import find_root

# Means of bins are in units of 2^-16.
NODE_MEAN_BITS = 16


@jit
def join_nodes(
    limits: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
    lists: AdjacencyLists,
) -> NDArray[np.int64]:
    """Join all nodes below their limits to others, the smallest first; return the node that each became part of.

    A node joins the neighbour whose means differ least; ties go to the longest contact, then to the lower number. From
    then on it is part of that neighbour. A node without neighbours stays. Of nodes of equal size, the lower number
    comes first.

    All arrays are int64: `limits` (nodes,), the sizes from which nodes are large enough; `sizes` (nodes,) and `sums` of
    bins (nodes, channels), updated in place; the channels' `weights` (channels,). The adjacency lists of nodes that are
    large enough may be empty.
    """
    starts, others, contacts = lists
    count = len(sizes)
    ends = np.arange(count)
    # The nodes that joined another follow it in a chain, which gives access to their neighbours.
    following, last = np.full(count, -1), np.arange(count)
    # The contact of the current node with each other, and the nodes with any.
    shared, touched = np.zeros(count, np.int64), np.empty(count, np.int64)
    due = [(sizes[node], node) for node in range(count) if sizes[node] < limits[node]]
    heapify(due)
    while len(due) > 0:
        size, node = heappop(due)
        # The entry is stale: the node joined another, or grew and has a later entry.
        if ends[node] != node or sizes[node] != size:
            continue
        candidates = 0
        member = node
        while member >= 0:
            for k in range(starts[member], starts[member + 1]):
                other = find_root(ends, others[k])
                if other != node:
                    candidates = add_contact(other, contacts[k], shared, touched, candidates)
            member = following[member]
        best, least, longest = -1, np.int64(0), np.int64(0)
        for k in range(candidates):
            other = touched[k]
            difference, contact = mean_difference(node, other, sizes, sums, weights), shared[other]
            shared[other] = 0
            if best < 0 or (difference, -contact, other) < (least, -longest, best):
                best, least, longest = other, difference, contact
        if best < 0:
            continue
        ends[node] = best
        sizes[best] += size
        sums[best] += sums[node]
        following[last[best]], last[best] = node, last[node]
        if sizes[best] < limits[best]:
            heappush(due, (sizes[best], best))
    for node in range(count):
        ends[node] = find_root(ends, node)
    return ends


@jit
def mean_difference(
    one: int, other: int, sizes: NDArray[np.int64], sums: NDArray[np.int64], weights: NDArray[np.int64]
) -> int:
    """Return the weighted sum over the channels of the differences between two nodes' means."""
    total = 0
    for c in range(len(weights)):
        difference = (sums[one, c] << NODE_MEAN_BITS) // sizes[one] - (sums[other, c] << NODE_MEAN_BITS) // sizes[other]
        total += weights[c] * abs(difference)
    return total


@jit
def relabel_ids(ids: NDArray[Any], removed: NDArray[np.int64], targets: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Replace ids by numbers without gaps, and removed ids by their targets; see `seeds.min_size.JoinResult`."""
    previous, number = np.int64(0), np.int64(0)
    for k in range(len(ids)):
        label = np.int64(ids[k])
        # Labels come in runs.
        if label != previous:
            previous = label
            place = np.searchsorted(removed, label)
            number = targets[place] if place < len(removed) and removed[place] == label else label - place
        out[k] = number
