"""Step 7, coarser levels: nodes of the graph move between groups, as units move between supervoxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.contacts import AdjacencyLists, add_contact
from dseeds.seeds.kernels.mask_components import find_root, unite_roots

MOST_GROUP_SWEEPS = 12
# Scores are squared differences of means, in units of 2^-8 of a bin each.
GROUP_MEAN_BITS = 8
SHARE_BITS = 16
# The score of having all contact with one group, and the cost of a group of average size: 16 and 3 squared bins,
# chosen on real volumes, where half or twice as much changes little.
CONTACT_WEIGHT, SIZE_WEIGHT = 16 << 2 * GROUP_MEAN_BITS, 3 << 2 * GROUP_MEAN_BITS


@jit
def climb_groups(
    groups: NDArray[np.int64],
    cells: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
    lists: AdjacencyLists,
) -> None:
    """Move nodes to the groups of their neighbours if that scores strictly better.

    Nodes are visited in their order, with the groups as they are at that time. ::

        score(G) = CONTACT share(G) - |mean of G - mean of node|^2 T[G] / (T[G] + t) - SIZE (T[G] + t) / (mean of T)

    t is the node's size; T[G] and the mean of G are those of the group without the node; share(G) is the part of the
    node's contact that it has with the group. The second term is the growth of the variance within, for each voxel of
    the node, when the two are joined (Ward). A node stays if it is alone in its group, or if its neighbours in the
    group would not be connected without it. It moves only between groups whose cells are the same or adjacent.

    All arrays are int64: `groups` (nodes,), updated in place; `cells` (groups, 3); `sizes` (nodes,) and `sums` of bins
    (nodes, channels); and the channels' `weights` (channels,).
    """
    starts, others, contacts = lists
    count = len(cells)
    members, totals = np.zeros(count, np.int64), np.zeros(count, np.int64)
    moments = np.zeros((count, sums.shape[1]), np.int64)
    for node in range(len(groups)):
        members[groups[node]] += 1
        totals[groups[node]] += sizes[node]
        moments[groups[node]] += sums[node]
    average = max(1, totals.sum() // max(1, count))
    # The contact of a node with each group, and the groups with any.
    shared, touched = np.zeros(count, np.int64), np.empty(count, np.int64)
    reached, queue = np.full(len(groups), -1), np.empty(len(groups), np.int64)
    for sweep in range(MOST_GROUP_SWEEPS):
        moves = 0
        for node in range(len(groups)):
            own = groups[node]
            if members[own] == 1:
                continue
            candidates, whole = 0, np.int64(0)
            for k in range(starts[node], starts[node + 1]):
                candidates = add_contact(groups[others[k]], contacts[k], shared, touched, candidates)
                whole += contacts[k]
            # Without the node, so that its own group is scored like the others.
            totals[own] -= sizes[node]
            moments[own] -= sums[node]
            best, top = own, np.int64(0)
            for k in range(-1, candidates):
                group = own if k < 0 else touched[k]
                if k >= 0 and (group == own or _apart(cells, own, group)):
                    continue
                score = (
                    CONTACT_WEIGHT * shared[group] // max(1, whole)
                    - SIZE_WEIGHT * (totals[group] + sizes[node]) // average
                )
                growth = _distance(group, node, totals, moments, sizes, sums, weights)
                score -= (growth * ((totals[group] << SHARE_BITS) // (totals[group] + sizes[node]))) >> SHARE_BITS
                if k < 0 or score > top:
                    best, top = group, score
            for k in range(candidates):
                shared[touched[k]] = 0
            mark = sweep * len(groups) + node
            if best != own and not _stays_connected(node, groups, lists, mark, reached, queue):
                best = own
            totals[best] += sizes[node]
            moments[best] += sums[node]
            if best != own:
                groups[node] = best
                members[own] -= 1
                members[best] += 1
                moves += 1
        if moves == 0:
            break


@jit
def _apart(cells: NDArray[np.int64], one: int, other: int) -> bool:
    return (
        abs(cells[one, 0] - cells[other, 0]) > 1
        or abs(cells[one, 1] - cells[other, 1]) > 1
        or abs(cells[one, 2] - cells[other, 2]) > 1
    )


@jit
def _distance(
    group: int,
    node: int,
    totals: NDArray[np.int64],
    moments: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> int:
    """Return the squared difference between a group's and a node's mean, averaged over the channels."""
    total = np.int64(0)
    for c in range(len(weights)):
        difference = (moments[group, c] << GROUP_MEAN_BITS) // totals[group] - (
            sums[node, c] << GROUP_MEAN_BITS
        ) // sizes[node]
        total += weights[c] * difference * difference
    return total // weights.sum()


@jit
def _stays_connected(
    node: int,
    groups: NDArray[np.int64],
    lists: AdjacencyLists,
    mark: int,
    reached: NDArray[np.int64],
    queue: NDArray[np.int64],
) -> bool:
    """Return whether a node's neighbours in its group are connected to each other without it."""
    starts, others, _ = lists
    own = groups[node]
    reached[node] = mark
    begin, end = 0, 0
    for k in range(starts[node], starts[node + 1]):
        other = others[k]
        if groups[other] != own or reached[other] == mark:
            continue
        # The first neighbour leads to all others, or the group falls apart.
        if end > 0:
            return False
        reached[other], queue[0], end = mark, other, 1
        while begin < end:
            here = queue[begin]
            begin += 1
            for i in range(starts[here], starts[here + 1]):
                there = others[i]
                if groups[there] == own and reached[there] != mark:
                    reached[there], queue[end] = mark, there
                    end += 1
    return True


@jit
def group_components(groups: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each node the first node of its connected component within its group."""
    first = np.arange(len(groups))
    for k in range(len(pairs)):
        if groups[pairs[k, 0]] == groups[pairs[k, 1]]:
            unite_roots(first, pairs[k, 0], pairs[k, 1])
    for node in range(len(first)):
        first[node] = find_root(first, node)
    return first
