"""Merging of adjacent segments, the two with the most similar histograms first.

Edges wait in a heap, and each knows its position there, so that none is in it twice. An edge consists of two
half-edges, `2 * edge` and `2 * edge + 1`, and each half-edge is in the ring of the node where it begins: rings are
joined in constant time, whatever their lengths. A hash table with open addressing finds the edge between two nodes. No
array grows while nodes merge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit

# Shares of a histogram are in units of 2^-30; distances, which are half a sum of differences of shares, of 2^-31.
SHARES = 1 << 30
FARTHEST = 1 << 31
# An entry of the heap has a distance in its upper bits, and an edge in the lower ones.
EDGE_BITS = 31
EDGE_MASK = (1 << EDGE_BITS) - 1
# The multiplier of the hash: 2^64 over the golden ratio, as a signed integer.
HASH_FACTOR = -7046029254386353131


class Nodes(NamedTuple):
    """The segments.

    Attributes
    ----------
    counts, totals : ndarray of int64, shapes (nodes, channels, bins) and (nodes, channels)
        Their histograms, and the sums of these.
    drifts : ndarray of int64, shape (nodes,)
        A bound on how far a node's histogram has moved since the distances along all its edges were last measured.
    degrees, rings : ndarray of int32, shape (nodes,)
        The number of edges, and a half-edge that begins at the node; -1 if there is none.
    ids, sizes : ndarray of int64, shape (nodes,)
        The node's number in the tree, and its number of supervoxels.
    """

    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    drifts: NDArray[np.int64]
    degrees: NDArray[np.int32]
    rings: NDArray[np.int32]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Edges(NamedTuple):
    """The edges of the region adjacency graph.

    Attributes
    ----------
    nodes, following, previous : ndarray of int32, shape (2 * edges,)
        The node where a half-edge begins, and its neighbours in the ring.
    heap : ndarray of int64, shape (edges,)
        A heap with four branches, the smallest entry first.
    positions : ndarray of int32, shape (edges,)
        The position of each edge in the heap.
    table : ndarray of int32, length a power of two
        The hash table of edges by their two nodes; -1 in free slots.
    heap_size : ndarray of int64, shape (1,)
    """

    nodes: NDArray[np.int32]
    following: NDArray[np.int32]
    previous: NDArray[np.int32]
    heap: NDArray[np.int64]
    positions: NDArray[np.int32]
    table: NDArray[np.int32]
    heap_size: NDArray[np.int64]


@jit
def begin_merging(nodes: Nodes, edges: Edges, weights: NDArray[np.int64]) -> None:
    """Fill the rings, the hash table and the heap of edges whose nodes are known; see `merge_edges`."""
    ends, heap = edges.nodes, edges.heap
    shares, totals = np.empty(nodes.counts.shape[1:], np.int32), np.empty(len(weights), np.int64)
    measured = -1
    for half in range(len(ends)):
        _insert_half_edge(edges.following, edges.previous, nodes.rings, ends[half], half)
        nodes.degrees[ends[half]] += 1
    for edge in range(len(heap)):
        one, other = ends[2 * edge], ends[2 * edge + 1]
        edges.table[_find_slot(edges.table, ends, one, other)] = edge
        # Edges are sorted by their first node.
        if one != measured:
            measured = one
            _normalise(nodes.counts, nodes.totals, one, shares, totals)
        distance = _distance(nodes.counts, nodes.totals, other, shares, totals, weights)
        heap[edge] = (distance << EDGE_BITS) | edge
    heap.sort()
    for position in range(len(heap)):
        edges.positions[heap[position] & EDGE_MASK] = position
    edges.heap_size[0] = len(heap)


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
    """Merge nodes until the rows of the tree are full or no edge is left, and return the number of rows filled.

    Parameters
    ----------
    nodes, edges
        From `begin_merging`; they are changed.
    weights : ndarray of int64, shape (channels,)
    limit : int
        How far a node's histogram may move before the distances along all its edges are measured again.
    first : int
        The number of the first row's node in the tree.
    children, distances, sizes : ndarray of int64, shapes (rows, 2), (rows,) and (rows,)
        Filled with the two merged nodes, the lower first, their distance in units of 2^-31, and their number of
        supervoxels.
    """
    # Taken out of the tuples once, since each call with a tuple counts the references of all its arrays.
    ends, heap_size, degrees, ids = edges.nodes, edges.heap_size, nodes.degrees, nodes.ids
    counts, totals, drifts = nodes.counts, nodes.totals, nodes.drifts
    old, new = np.empty(counts.shape[1:], np.int32), np.empty(counts.shape[1:], np.int32)
    old_totals, new_totals = np.empty(len(weights), np.int64), np.empty(len(weights), np.int64)
    for row in range(len(children)):
        if heap_size[0] == 0:
            return row
        edge = edges.heap[0] & EDGE_MASK
        kept, absorbed = ends[2 * edge], ends[2 * edge + 1]
        # The longer list of edges stays where it is, so that each edge is moved a few times at most.
        if (degrees[absorbed], -absorbed) > (degrees[kept], -kept):
            kept, absorbed = absorbed, kept
        _remove_edge(nodes, edges, edge)
        _normalise(counts, totals, kept, old, old_totals)
        distances[row] = _distance(counts, totals, absorbed, old, old_totals, weights)
        children[row, 0], children[row, 1] = min(ids[kept], ids[absorbed]), max(ids[kept], ids[absorbed])
        ids[kept] = first + row
        nodes.sizes[kept] += nodes.sizes[absorbed]
        sizes[row] = nodes.sizes[kept]
        counts[kept] += counts[absorbed]
        totals[kept] += totals[absorbed]
        _normalise(counts, totals, kept, new, new_totals)
        # One more, since distances are rounded down. They are a metric: none changes by more than the node moves.
        drifts[kept] += 1 + _distance(counts, totals, kept, old, old_totals, weights)
        _move_edges(nodes, edges, kept, absorbed, new, new_totals, weights)
        if drifts[kept] > limit:
            drifts[kept] = 0
            _measure_edges(nodes, edges, kept, new, new_totals, weights)
        _join_rings(nodes, edges, kept, absorbed)
    return len(children)


@jit
def _move_edges(
    nodes: Nodes,
    edges: Edges,
    kept: int,
    absorbed: int,
    shares: NDArray[np.int32],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> None:
    """Move the edges of an absorbed node to the one that is kept, and measure them; of double edges, keep the first.

    The half-edges stay in the ring of the absorbed node.
    """
    ends, heap, positions, table = edges.nodes, edges.heap, edges.positions, edges.table
    half = nodes.rings[absorbed]
    for _ in range(nodes.degrees[absorbed]):
        edge, other, following = half >> 1, ends[half ^ 1], edges.following[half]
        twin = table[_find_slot(table, ends, kept, other)]
        if twin >= 0:
            _remove_edge(nodes, edges, max(edge, twin))
        if twin < 0 or edge < twin:
            _remove_from_table(table, ends, edge)
            ends[half] = kept
            table[_find_slot(table, ends, kept, other)] = edge
        else:
            edge = twin
        distance = _distance(nodes.counts, nodes.totals, other, shares, sums, weights)
        _sift(heap, positions, edges.heap_size[0], positions[edge], (distance << EDGE_BITS) | edge)
        half = following


@jit
def _measure_edges(
    nodes: Nodes,
    edges: Edges,
    node: int,
    shares: NDArray[np.int32],
    sums: NDArray[np.int64],
    weights: NDArray[np.int64],
) -> None:
    """Measure the distances along all edges of a node."""
    counts, totals, heap_size = nodes.counts, nodes.totals, edges.heap_size[0]
    ends, following, heap, positions = edges.nodes, edges.following, edges.heap, edges.positions
    half = nodes.rings[node]
    for _ in range(nodes.degrees[node]):
        distance = _distance(counts, totals, ends[half ^ 1], shares, sums, weights)
        edge = half >> 1
        _sift(heap, positions, heap_size, positions[edge], (distance << EDGE_BITS) | edge)
        half = following[half]


@jit
def _normalise(
    counts: NDArray[np.int64], totals: NDArray[np.int64], node: int, shares: NDArray[np.int32], sums: NDArray[np.int64]
) -> None:
    """Write the share of a node's voxels in each bin, and their number in each channel."""
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
    """Return the distance of a node from shares: half the sum of differences, averaged over the channels.

    An empty histogram is at the largest distance from all others, and at distance 0 from another empty one.
    """
    weighted, weight_sum = np.int64(0), np.int64(0)
    for c in range(len(weights)):
        total, distance = totals[node, c], np.int64(0)
        if total == 0 or sums[c] == 0:
            distance = np.int64(FARTHEST) * (total != sums[c])
        else:
            scale = SHARES / total
            for b in range(shares.shape[1]):
                # In integers: compilers do not reorder sums of floats, and so could not vectorise this.
                distance += abs(shares[c, b] - np.int32(counts[node, c, b] * scale + 0.5))
        # Shares are rounded, so their sum may be a little larger than 1.
        weighted += weights[c] * min(distance, FARTHEST)
        weight_sum += weights[c]
    return weighted // weight_sum


@jit
def _remove_edge(nodes: Nodes, edges: Edges, edge: int) -> None:
    """Remove an edge from the table, the rings and the heap."""
    ends, following, previous = edges.nodes, edges.following, edges.previous
    _remove_from_table(edges.table, ends, edge)
    for half in range(2 * edge, 2 * edge + 2):
        node, after = ends[half], following[half]
        following[previous[half]], previous[after] = after, previous[half]
        nodes.rings[node] = -1 if after == half else after
        nodes.degrees[node] -= 1
    edges.heap_size[0] -= 1
    last = edges.heap[edges.heap_size[0]]
    if last & EDGE_MASK != edge:
        _sift(edges.heap, edges.positions, edges.heap_size[0], edges.positions[edge], last)


@jit
def _sift(heap: NDArray[np.int64], positions: NDArray[np.int32], heap_size: int, position: int, entry: int) -> None:
    """Put an entry at a position of the heap, and move it up or down to where it belongs."""
    while position > 0 and heap[(position - 1) >> 2] > entry:
        parent = (position - 1) >> 2
        heap[position] = heap[parent]
        positions[heap[position] & EDGE_MASK] = position
        position = parent
    while 4 * position + 1 < heap_size:
        smallest = 4 * position + 1
        for child in range(smallest + 1, min(smallest + 4, heap_size)):
            if heap[child] < heap[smallest]:
                smallest = child
        if heap[smallest] >= entry:
            break
        heap[position] = heap[smallest]
        positions[heap[position] & EDGE_MASK] = position
        position = smallest
    heap[position] = entry
    positions[entry & EDGE_MASK] = position


@jit
def _insert_half_edge(
    following: NDArray[np.int32], previous: NDArray[np.int32], rings: NDArray[np.int32], node: int, half: int
) -> None:
    """Insert a half-edge into the ring of a node."""
    after = rings[node]
    if after < 0:
        rings[node] = following[half] = previous[half] = half
        return
    following[previous[after]], previous[half] = half, previous[after]
    following[half], previous[after] = after, half


@jit
def _join_rings(nodes: Nodes, edges: Edges, kept: int, absorbed: int) -> None:
    """Join the ring of an absorbed node to that of the one that is kept."""
    one, other = nodes.rings[kept], nodes.rings[absorbed]
    nodes.degrees[kept] += nodes.degrees[absorbed]
    if one < 0 or other < 0:
        nodes.rings[kept] = max(one, other)
        return
    after_one, after_other = edges.following[one], edges.following[other]
    edges.following[one], edges.previous[after_other] = after_other, one
    edges.following[other], edges.previous[after_one] = after_one, other


@jit
def _first_slot(table: NDArray[np.int32], one: int, other: int) -> Any:
    """Return the slot where the search for the edge between two nodes begins."""
    key = (np.int64(min(one, other)) << 32) | np.int64(max(one, other))
    return ((key * HASH_FACTOR) >> 32) & (len(table) - 1)


@jit
def _find_slot(table: NDArray[np.int32], ends: NDArray[np.int32], one: int, other: int) -> int:
    """Return the slot of the edge between two nodes, or a free slot for it."""
    slot = _first_slot(table, one, other)
    while table[slot] >= 0:
        a, b = ends[2 * table[slot]], ends[2 * table[slot] + 1]
        if (a == one and b == other) or (a == other and b == one):
            break
        slot = (slot + 1) & (len(table) - 1)
    return slot


@jit
def _remove_from_table(table: NDArray[np.int32], ends: NDArray[np.int32], edge: int) -> None:
    """Remove an edge from the table, and move the edges up that it had displaced."""
    mask = len(table) - 1
    free = _find_slot(table, ends, ends[2 * edge], ends[2 * edge + 1])
    slot = (free + 1) & mask
    while table[slot] >= 0:
        home = _first_slot(table, ends[2 * table[slot]], ends[2 * table[slot] + 1])
        if (slot - home) & mask >= (slot - free) & mask:
            table[free] = table[slot]
            free = slot
        slot = (slot + 1) & mask
    table[free] = -1


@jit
def cut_merges(children: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the segments, int64 (count,), into which merges join `count` supervoxels.

    They are numbered from 1, in the order of their first supervoxels; `children` is that of `merge_edges`.
    """
    roots = np.arange(count + len(children))
    for row in range(len(children) - 1, -1, -1):
        for child in range(2):
            roots[children[row, child]] = roots[count + row]
    numbers, segment_count = np.zeros(len(roots), np.int64), 0
    segments = np.empty(count, np.int64)
    for k in range(count):
        if numbers[roots[k]] == 0:
            segment_count += 1
            numbers[roots[k]] = segment_count
        segments[k] = numbers[roots[k]]
    return segments
