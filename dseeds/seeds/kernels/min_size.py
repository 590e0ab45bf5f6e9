"""Small supervoxels join the touching ones that are most alike."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.mask_components import find_root

# Means of bins count 2^-16.
NODE_MEAN_BITS = 16


@jit
def join_nodes(
    limits: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
    starts: NDArray[np.int64],
    others: NDArray[np.int64],
    contacts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Join all nodes below their limits to others, the smallest first, of equal ones the first.

    A node joins the touching one whose means differ least, of equal ones that with the longest contact, of these the
    first. It counts as that one from then on. One that touches no other stays.

    Parameters
    ----------
    limits : ndarray of int64, shape (nodes,)
        Of which size a node is large enough.
    sizes, sums : ndarray of int64, shapes (nodes,) and (nodes, channels)
        Are changed.
    weights : ndarray of int64, shape (channels,)
        How much a channel's difference counts.
    starts, others, contacts : ndarray of int64
        From `graph.neighbours`; of nodes that are large enough the lists may be empty.

    Returns
    -------
    ndarray of int64, shape (nodes,)
        The node that each one ended in.
    """
    count = len(sizes)
    ends = np.arange(count)
    # The nodes that joined one follow it in a chain, and with them their lists of neighbours.
    following, last = np.full(count, -1), np.arange(count)
    # The contact with each node, of the one that is due.
    shared, touched = np.zeros(count, np.int64), np.empty(count, np.int64)
    due = [(sizes[node], node) for node in range(count) if sizes[node] < limits[node]]
    heapify(due)
    while len(due) > 0:
        size, node = heappop(due)
        # It has joined another, or has grown and stands further behind.
        if ends[node] != node or sizes[node] != size:
            continue
        found = 0
        member = node
        while member >= 0:
            for k in range(starts[member], starts[member + 1]):
                other = find_root(ends, others[k])
                if other == node:
                    continue
                if shared[other] == 0:
                    touched[found] = other
                    found += 1
                shared[other] += contacts[k]
            member = following[member]
        best, least, longest = -1, np.int64(0), np.int64(0)
        for k in range(found):
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
    """Add up over the channels how much the means of two nodes differ."""
    total = 0
    for c in range(len(weights)):
        difference = (sums[one, c] << NODE_MEAN_BITS) // sizes[one] - (sums[other, c] << NODE_MEAN_BITS) // sizes[other]
        total += weights[c] * abs(difference)
    return total


@jit
def relabel_ids(ids: NDArray[Any], gone: NDArray[np.int64], into: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Replace ids by numbers without gaps: one that is gone by that which it is part of, see `joining.Joined`."""
    known, number = np.int64(0), np.int64(0)
    for k in range(len(ids)):
        label = np.int64(ids[k])
        # Labels come in runs.
        if label != known:
            known = label
            place = np.searchsorted(gone, label)
            number = into[place] if place < len(gone) and gone[place] == label else label - place
        out[k] = number
