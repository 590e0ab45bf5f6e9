"""Segments that touch are merged, the two with the most similar histograms first.

Edges wait in a heap of which each knows its place, so that none is ever in it twice. Each has two halves, `2 * edge`
and `2 * edge + 1`, and each half stands in the ring of the node that it begins at: rings are spliced at once, whatever
their lengths. A table with open addressing finds the edge between two nodes. No array grows while nodes merge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit

# A histogram's share in a bin counts 2^-30. Half the sum of differences is the distance, so that this counts 2^-31.
SHARES = 1 << 30
FARTHEST = 1 << 31
# An entry of the heap is a distance and, below it, an edge.
EDGE_BITS = 31
EDGE_MASK = (1 << EDGE_BITS) - 1
# An odd number that scatters the keys of the table: 2^64 over the golden ratio, as a signed integer.
SCATTER = -7046029254386353131


class Nodes(NamedTuple):
    """What is known of the segments.

    Attributes
    ----------
    counts : ndarray of int64, shape (nodes, channels, bins)
        Their histograms.
    totals : ndarray of int64, shape (nodes, channels)
        The sums of these.
    drifts : ndarray of int64, shape (nodes,)
        How far a node's histogram may have moved since the distances along all its edges were last measured.
    degrees, rings : ndarray of int32, shape (nodes,)
        How many edges a node has, and a half of one of them; -1 where there is none.
    names, sizes : ndarray of int64, shape (nodes,)
        Which row of the tree a node has become, and of how many supervoxels it is.
    """

    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    drifts: NDArray[np.int64]
    degrees: NDArray[np.int32]
    rings: NDArray[np.int32]
    names: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Edges(NamedTuple):
    """What is known of who touches whom.

    Attributes
    ----------
    nodes : ndarray of int32, shape (2 * edges,)
        The node that a half begins at; its other half begins at the other node.
    following, before : ndarray of int32, shape (2 * edges,)
        The neighbours of a half in the ring.
    heap : ndarray of int64, shape (edges,)
        The entries of a heap with four branches, the least first.
    places : ndarray of int32, shape (edges,)
        Where in the heap an edge is.
    table : ndarray of int32, length a power of two
        Edges at the places that their nodes make, or at the next ones; -1 where a place is free.
    waiting : ndarray of int64, shape (1,)
        How many entries the heap has.
    """

    nodes: NDArray[np.int32]
    following: NDArray[np.int32]
    before: NDArray[np.int32]
    heap: NDArray[np.int64]
    places: NDArray[np.int32]
    table: NDArray[np.int32]
    waiting: NDArray[np.int64]


@jit
def begin_merging(nodes: Nodes, edges: Edges, weights: NDArray[np.int64]) -> None:
    """Make the rings, the table and the heap of edges whose nodes are known; see `merge_edges`."""
    ends, heap = edges.nodes, edges.heap
    shares, totals = np.empty(nodes.counts.shape[1:], np.int32), np.empty(len(weights), np.int64)
    measured = -1
    for half in range(len(ends)):
        _insert(edges.following, edges.before, nodes.rings, ends[half], half)
        nodes.degrees[ends[half]] += 1
    for edge in range(len(heap)):
        one, other = ends[2 * edge], ends[2 * edge + 1]
        edges.table[_find(edges.table, ends, one, other)] = edge
        # Edges are sorted by their first node.
        if one != measured:
            measured = one
            _share(nodes.counts, nodes.totals, one, shares, totals)
        distance = _distance(nodes.counts, nodes.totals, other, shares, totals, weights)
        heap[edge] = (distance << EDGE_BITS) | edge
    heap.sort()
    for place in range(len(heap)):
        edges.places[heap[place] & EDGE_MASK] = place
    edges.waiting[0] = len(heap)


@jit
def merge_edges(
    nodes: Nodes,
    edges: Edges,
    weights: NDArray[np.int64],
    limit: int,
    first: int,
    children: NDArray[np.int64],
    distances: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> int:
    """Merge nodes until rows are full or no edge is left.

    Parameters
    ----------
    nodes, edges
        From `begin_merging`; are changed.
    weights : ndarray of int64, shape (channels,)
        How much a channel's distance counts.
    limit : int
        How far a node's histogram may move before the distances along all its edges are measured again.
    first : int
        The number of the first row in the tree.
    children : ndarray of int64, shape (rows, 2)
        Filled with the two that are merged, the lower first.
    distances, sizes : ndarray of int64, shape (rows,)
        Filled with how far apart they were, in units of 2^-31, and of how many supervoxels they are together.

    Returns
    -------
    int
        How many rows were filled.
    """
    # Taken out of the tuples once: references are counted for each array that a call gets in a tuple.
    ends, waiting, degrees, names = edges.nodes, edges.waiting, nodes.degrees, nodes.names
    counts, totals, drifts = nodes.counts, nodes.totals, nodes.drifts
    old, new = np.empty(counts.shape[1:], np.int32), np.empty(counts.shape[1:], np.int32)
    old_totals, new_totals = np.empty(len(weights), np.int64), np.empty(len(weights), np.int64)
    for row in range(len(children)):
        if waiting[0] == 0:
            return row
        edge = edges.heap[0] & EDGE_MASK
        kept, gone = ends[2 * edge], ends[2 * edge + 1]
        # The longer list of edges stays where it is: each edge is moved a few times at the most.
        if (degrees[gone], -gone) > (degrees[kept], -kept):
            kept, gone = gone, kept
        _drop(nodes, edges, edge)
        _share(counts, totals, kept, old, old_totals)
        distances[row] = _distance(counts, totals, gone, old, old_totals, weights)
        children[row, 0], children[row, 1] = min(names[kept], names[gone]), max(names[kept], names[gone])
        names[kept] = first + row
        nodes.sizes[kept] += nodes.sizes[gone]
        sizes[row] = nodes.sizes[kept]
        counts[kept] += counts[gone]
        totals[kept] += totals[gone]
        _share(counts, totals, kept, new, new_totals)
        # A distance is rounded down, hence one more. It is a metric: no distance changes by more than a node moves.
        drifts[kept] += 1 + _distance(counts, totals, kept, old, old_totals, weights)
        _move(nodes, edges, kept, gone, new, new_totals, weights)
        if drifts[kept] > limit:
            drifts[kept] = 0
            _measure(nodes, edges, kept, new, new_totals, weights)
        _splice(nodes, edges, kept, gone)
    return len(children)


@jit
def _move(
    nodes: Nodes,
    edges: Edges,
    kept: int,
    gone: int,
    shares: NDArray[np.int32],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> None:
    """Let all edges of a node begin at another, and measure them; of two that become one the first of the table stays.

    They stay in the ring of the node that is gone.
    """
    ends, heap, places, table = edges.nodes, edges.heap, edges.places, edges.table
    half = nodes.rings[gone]
    for _ in range(nodes.degrees[gone]):
        edge, other, following = half >> 1, ends[half ^ 1], edges.following[half]
        twin = table[_find(table, ends, kept, other)]
        if twin >= 0:
            _drop(nodes, edges, max(edge, twin))
        if twin < 0 or edge < twin:
            _forget(table, ends, edge)
            ends[half] = kept
            table[_find(table, ends, kept, other)] = edge
        else:
            edge = twin
        distance = _distance(nodes.counts, nodes.totals, other, shares, sums, weights)
        _settle(heap, places, edges.waiting[0], places[edge], (distance << EDGE_BITS) | edge)
        half = following


@jit
def _measure(
    nodes: Nodes,
    edges: Edges,
    node: int,
    shares: NDArray[np.int32],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> None:
    """Measure the distances along all edges of a node."""
    counts, totals, waiting = nodes.counts, nodes.totals, edges.waiting[0]
    ends, following, heap, places = edges.nodes, edges.following, edges.heap, edges.places
    half = nodes.rings[node]
    for _ in range(nodes.degrees[node]):
        distance = _distance(counts, totals, ends[half ^ 1], shares, sums, weights)
        edge = half >> 1
        _settle(heap, places, waiting, places[edge], (distance << EDGE_BITS) | edge)
        half = following[half]


@jit
def _share(
    counts: NDArray[np.int64], totals: NDArray[np.int64], node: int, shares: NDArray[np.int32], sums: NDArray[np.int64]
) -> None:
    """Write down which share of a node's voxels is in each bin, and how many there are."""
    for c in range(shares.shape[0]):
        sums[c] = totals[node, c]
        scale = SHARES / max(sums[c], 1)
        for b in range(shares.shape[1]):
            shares[c, b] = np.int32(counts[node, c, b] * scale + 0.5)


@jit
def _distance(
    counts: NDArray[np.int64],
    totals: NDArray[np.int64],
    node: int,
    shares: NDArray[np.int32],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> Any:
    """Measure how far a node is from shares: half the sum of differences, averaged over the channels.

    A histogram of nothing is as far as can be from every other, and not far from another of nothing.
    """
    weighted, whole = np.int64(0), np.int64(0)
    for c in range(len(weights)):
        total, apart = totals[node, c], np.int64(0)
        if total == 0 or sums[c] == 0:
            apart = np.int64(FARTHEST) * (total != sums[c])
        else:
            scale = SHARES / total
            for b in range(shares.shape[1]):
                # In integers, for sums of floats are not reordered and so take one bin at a time.
                apart += abs(shares[c, b] - np.int32(counts[node, c, b] * scale + 0.5))
        # Shares are rounded, so that they may add up to a little more than all.
        weighted += weights[c] * min(apart, FARTHEST)
        whole += weights[c]
    return weighted // whole


@jit
def _drop(nodes: Nodes, edges: Edges, edge: int) -> None:
    """Take an edge out of everything."""
    ends, following, before = edges.nodes, edges.following, edges.before
    _forget(edges.table, ends, edge)
    for half in range(2 * edge, 2 * edge + 2):
        node, after = ends[half], following[half]
        following[before[half]], before[after] = after, before[half]
        nodes.rings[node] = -1 if after == half else after
        nodes.degrees[node] -= 1
    edges.waiting[0] -= 1
    last = edges.heap[edges.waiting[0]]
    if last & EDGE_MASK != edge:
        _settle(edges.heap, edges.places, edges.waiting[0], edges.places[edge], last)


@jit
def _settle(heap: NDArray[np.int64], places: NDArray[np.int32], waiting: int, place: int, entry: int) -> None:
    """Put an entry at a place of the heap, and move it up or down to where it belongs."""
    while place > 0 and heap[(place - 1) >> 2] > entry:
        above = (place - 1) >> 2
        heap[place] = heap[above]
        places[heap[place] & EDGE_MASK] = place
        place = above
    while 4 * place + 1 < waiting:
        least = 4 * place + 1
        for below in range(least + 1, min(least + 4, waiting)):
            if heap[below] < heap[least]:
                least = below
        if heap[least] >= entry:
            break
        heap[place] = heap[least]
        places[heap[place] & EDGE_MASK] = place
        place = least
    heap[place] = entry
    places[entry & EDGE_MASK] = place


@jit
def _insert(
    following: NDArray[np.int32], before: NDArray[np.int32], rings: NDArray[np.int32], node: int, half: int
) -> None:
    """Put a half into the ring of a node."""
    after = rings[node]
    if after < 0:
        rings[node] = following[half] = before[half] = half
        return
    following[before[after]], before[half] = half, before[after]
    following[half], before[after] = after, half


@jit
def _splice(nodes: Nodes, edges: Edges, kept: int, gone: int) -> None:
    """Put the ring of a node into that of another."""
    one, other = nodes.rings[kept], nodes.rings[gone]
    nodes.degrees[kept] += nodes.degrees[gone]
    if one < 0 or other < 0:
        nodes.rings[kept] = max(one, other)
        return
    after_one, after_other = edges.following[one], edges.following[other]
    edges.following[one], edges.before[after_other] = after_other, one
    edges.following[other], edges.before[after_one] = after_one, other


@jit
def _home(table: NDArray[np.int32], one: int, other: int) -> Any:
    """Give the place of the table that two nodes make."""
    key = (np.int64(min(one, other)) << 32) | np.int64(max(one, other))
    return ((key * SCATTER) >> 32) & (len(table) - 1)


@jit
def _find(table: NDArray[np.int32], ends: NDArray[np.int32], one: int, other: int) -> int:
    """Find the place of the edge between two nodes in the table, or the free place where it belongs."""
    place = _home(table, one, other)
    while table[place] >= 0:
        a, b = ends[2 * table[place]], ends[2 * table[place] + 1]
        if (a == one and b == other) or (a == other and b == one):
            break
        place = (place + 1) & (len(table) - 1)
    return place


@jit
def _forget(table: NDArray[np.int32], ends: NDArray[np.int32], edge: int) -> None:
    """Take an edge out of the table, and move those up that it was in the way of."""
    mask = len(table) - 1
    free = _find(table, ends, ends[2 * edge], ends[2 * edge + 1])
    place = (free + 1) & mask
    while table[place] >= 0:
        home = _home(table, ends[2 * table[place]], ends[2 * table[place] + 1])
        if (place - home) & mask >= (place - free) & mask:
            table[free] = table[place]
            free = place
        place = (place + 1) & mask
    table[free] = -1


@jit
def cut_merges(children: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Give the segments that merges make of `count` supervoxels: numbers from 1 in the order of their first ones.

    Parameters
    ----------
    children : ndarray of int64, shape (merges, 2)
        From `merge_edges`.
    count : int
        How many supervoxels there are.

    Returns
    -------
    ndarray of int64, shape (count,)
        Each one's segment.
    """
    roots = np.arange(count + len(children))
    for row in range(len(children) - 1, -1, -1):
        for child in range(2):
            roots[children[row, child]] = roots[count + row]
    numbers, found = np.zeros(len(roots), np.int64), 0
    segments = np.empty(count, np.int64)
    for k in range(count):
        if numbers[roots[k]] == 0:
            found += 1
            numbers[roots[k]] = found
        segments[k] = numbers[roots[k]]
    return segments
