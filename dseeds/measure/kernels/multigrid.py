"""Matrices of graphs and their coarser levels, for the random walker.

A graph is stored by rows: `begins` int64 (nodes + 1,), the entries at which each node's neighbours begin; `neighbours`
int32 (entries,), each edge in both directions; and `weights` float64 (entries,). With the `diagonal` float64 (nodes,)
it is the matrix A with ``A x = diagonal * x - sum of weight * x of neighbours``. Nodes whose diagonal is 0 are no
unknowns: they remain 0. All sums have a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit

Floats = NDArray[np.float64]
Offsets = NDArray[np.int64]
Nodes = NDArray[np.int32]

# The share of its strongest edge that an edge needs for its two nodes to become a pair.
STRONG = 0.25
# The share of the smaller mass that the edge between two needs.
WEAK = 1 / 32


@jit
def build_rows(pairs: NDArray[np.int64], count: int) -> tuple[Offsets, Nodes, Nodes]:
    """Return the `begins` and `neighbours` of a graph of sorted pairs (edges, 2), and the edge of each entry.

    The neighbours of a node are in ascending order.
    """
    begins = np.zeros(count + 1, np.int64)
    for edge in range(len(pairs)):
        begins[pairs[edge, 0] + 1] += 1
        begins[pairs[edge, 1] + 1] += 1
    for node in range(count):
        begins[node + 1] += begins[node]
    ends = begins[:-1].copy()
    neighbours, edges = np.empty(2 * len(pairs), np.int32), np.empty(2 * len(pairs), np.int32)
    # Lower neighbours first.
    for end in (1, 0):
        for edge in range(len(pairs)):
            entry = ends[pairs[edge, end]]
            neighbours[entry], edges[entry] = pairs[edge, 1 - end], edge
            ends[pairs[edge, end]] += 1
    return begins, neighbours, edges


@jit
def reach_nodes(begins: Offsets, neighbours: Nodes, sources: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which nodes are connected to one of the sources."""
    reached, queue, last = np.zeros(len(begins) - 1, np.bool_), np.empty(len(begins) - 1, np.int64), 0
    for source in sources:
        if not reached[source]:
            reached[source], queue[last] = True, source
            last += 1
    first = 0
    while first < last:
        for entry in range(begins[queue[first]], begins[queue[first] + 1]):
            if not reached[neighbours[entry]]:
                reached[neighbours[entry]], queue[last] = True, neighbours[entry]
                last += 1
        first += 1
    return reached


@jit
def pair_nodes(begins: Offsets, neighbours: Nodes, weights: Floats, masses: Floats) -> tuple[Nodes, int]:
    """Return the pair that each node belongs to, and the number of pairs.

    In their order, nodes choose the free neighbour with the largest weight. Those for which none is strong enough join
    the pair of their strongest neighbour. A node may stand for several of the level that is smoothed, whose diagonals
    add up to its mass. Two masses with a weak edge would not be smoothed against each other, so they stay apart.
    """
    pairs, count = np.full(len(begins) - 1, -1, np.int32), 0
    for node in range(len(pairs)):
        if pairs[node] >= 0:
            continue
        most = 0.0
        for entry in range(begins[node], begins[node + 1]):
            most = max(most, weights[entry])
        strongest, free, most_near, most_free = node, node, STRONG * most, STRONG * most
        for entry in range(begins[node], begins[node + 1]):
            other, weight = neighbours[entry], weights[entry]
            if weight < WEAK * min(masses[node], masses[other]):
                continue
            if weight > most_near:
                strongest, most_near = other, weight
            if weight > most_free and pairs[other] < 0:
                free, most_free = other, weight
        if free == node:
            free = strongest
        if pairs[free] < 0:
            pairs[free] = count
            count += 1
        pairs[node] = pairs[free]
    return pairs, count


@jit
def coarsen_rows(begins: Offsets, neighbours: Nodes, groups: Nodes, count: int) -> tuple[Offsets, Nodes, Nodes]:
    """Return `begins` and `neighbours` of the graph of groups, and the coarser entry of each entry.

    Entries within a group have no coarser entry: -1.
    """
    members, starts = _list_members(groups, count)
    coarse_begins, coarse_neighbours = np.zeros(count + 1, np.int64), np.empty(len(neighbours), np.int32)
    entries, slots, used = np.full(len(neighbours), -1, np.int32), np.full(count, -1, np.int64), 0
    for group in range(count):
        for member in range(starts[group], starts[group + 1]):
            for entry in range(begins[members[member]], begins[members[member] + 1]):
                other = groups[neighbours[entry]]
                if other == group:
                    continue
                if slots[other] < coarse_begins[group]:
                    slots[other], coarse_neighbours[used] = used, other
                    used += 1
                entries[entry] = slots[other]
        coarse_begins[group + 1] = used
    return coarse_begins, coarse_neighbours[:used].copy(), entries


@jit
def _list_members(groups: Nodes, count: int) -> tuple[Nodes, Offsets]:
    """Return the nodes of all groups, one group after the other, and where each begins."""
    starts = np.zeros(count + 1, np.int64)
    for group in groups:
        starts[group + 1] += 1
    for group in range(count):
        starts[group + 1] += starts[group]
    members, ends = np.empty(len(groups), np.int32), starts[:-1].copy()
    for node in range(len(groups)):
        members[ends[groups[node]]] = node
        ends[groups[node]] += 1
    return members, starts


@jit
def add_to_groups(groups: Nodes, values: Floats, totals: Floats) -> None:
    """Set `totals` to the sums of values by group; values of group -1 belong to none."""
    totals[:] = 0.0
    for item in range(len(groups)):
        if groups[item] >= 0:
            totals[groups[item]] += values[item]


@jit
def prolong(groups: Nodes, values: Floats, diagonal: Floats, totals: Floats) -> None:
    """Add the value of its group to each node that is an unknown."""
    for node in range(len(groups)):
        if diagonal[node] != 0:
            totals[node] += values[groups[node]]


@jit
def hold_nodes(begins: Offsets, neighbours: Nodes, weights: Floats, held: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the weights without those of edges of held nodes, and by node the sum of those to held ones."""
    kept, outflow = np.zeros(len(weights)), np.zeros(len(held))
    for node in range(len(held)):
        if held[node]:
            continue
        for entry in range(begins[node], begins[node + 1]):
            if held[neighbours[entry]]:
                outflow[node] += weights[entry]
            else:
                kept[entry] = weights[entry]
    return kept, outflow


@jit
def sum_weights(begins: Offsets, weights: Floats, outflow: Floats) -> Floats:
    """Return the diagonal: by node the sum of its weights and its outflow."""
    diagonal = outflow.copy()
    for node in range(len(diagonal)):
        for entry in range(begins[node], begins[node + 1]):
            diagonal[node] += weights[entry]
    return diagonal


@jit
def subtract_product(
    begins: Offsets, neighbours: Nodes, weights: Floats, diagonal: Floats, x: Floats, b: Floats, residual: Floats
) -> None:
    """Set `residual` to b - A x."""
    for node in range(len(diagonal)):
        total = b[node] - diagonal[node] * x[node]
        for entry in range(begins[node], begins[node + 1]):
            total += weights[entry] * x[neighbours[entry]]
        residual[node] = total


@jit
def smooth(
    begins: Offsets, neighbours: Nodes, weights: Floats, diagonal: Floats, b: Floats, x: Floats, forward: bool
) -> None:
    """Solve A x = b for one unknown after the other, once, in ascending or descending order (Gauss-Seidel)."""
    count = len(diagonal)
    for step in range(count):
        node = step if forward else count - 1 - step
        if diagonal[node] == 0:
            continue
        total = b[node]
        for entry in range(begins[node], begins[node + 1]):
            total += weights[entry] * x[neighbours[entry]]
        x[node] = total / diagonal[node]


@jit
def dot(one: Floats, other: Floats) -> float:
    """Return the scalar product of two vectors, added up in a fixed order."""
    total = 0.0
    for item in range(len(one)):
        total += one[item] * other[item]
    return total


@jit
def factorise(begins: Offsets, neighbours: Nodes, weights: Floats, diagonal: Floats) -> NDArray[np.float64]:
    """Return the Cholesky factor (nodes, nodes) of A, with ones on the diagonal where it is 0."""
    count = len(diagonal)
    factor = np.zeros((count, count))
    for node in range(count):
        factor[node, node] = diagonal[node] if diagonal[node] != 0 else 1.0
        for entry in range(begins[node], begins[node + 1]):
            factor[node, neighbours[entry]] = -weights[entry]
    for row in range(count):
        for column in range(row + 1):
            total = factor[row, column]
            for k in range(column):
                total -= factor[row, k] * factor[column, k]
            factor[row, column] = np.sqrt(total) if row == column else total / factor[column, column]
    return factor


@jit
def solve_factorised(factor: NDArray[np.float64], b: Floats) -> Floats:
    """Return x with A x = b, by the Cholesky factor of A."""
    x = b.copy()
    for row in range(len(x)):
        for column in range(row):
            x[row] -= factor[row, column] * x[column]
        x[row] /= factor[row, row]
    for row in range(len(x) - 1, -1, -1):
        for below in range(row + 1, len(x)):
            x[row] -= factor[below, row] * x[below]
        x[row] /= factor[row, row]
    return x
