"""Step 7: the region adjacency graph, in pieces that add up.

A region counts its own voxels and the faces at their upper sides. So every voxel and every face of the volume counts
once, however the volume is cut, and the regions' graphs add up to that of the whole volume.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.seeds.kernels.contacts import AdjacencyLists, count_voxels_and_faces, fill_adjacency_lists

FIELDS = ("ids", "sizes", "sums", "pairs", "contacts")
DIGEST_BYTES = sha256().digest_size
# Graphs that are added up at a time.
GRAPHS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class ContactGraph:
    """Supervoxels and the pairs of them that touch; both are sorted and unique. All arrays are int64.

    `ids` (n,) are the supervoxels that have a voxel in this piece, `sizes` (n,) their numbers of voxels, and `sums` (n,
    channels) the sums of their voxels' bins. `pairs` (m, 2) are supervoxels that touch, the lower id first; their own
    voxels may be counted in another piece. `contacts` (m,) are the numbers of voxel faces that they share.
    """

    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    sums: NDArray[np.int64]
    pairs: NDArray[np.int64]
    contacts: NDArray[np.int64]

    def relabelled(self, ids: NDArray[np.int64], pairs: NDArray[np.int64]) -> ContactGraph:
        """Relabel the nodes with an id for each of `ids` and `pairs`; nodes that receive the same id are merged."""
        pairs = np.sort(pairs, axis=1)
        apart = pairs[:, 0] != pairs[:, 1]
        return _merged(ids, self.sizes, self.sums, pairs[apart], self.contacts[apart])

    def select(self, nodes: NDArray[np.bool_] | slice, edges: NDArray[np.bool_] | slice) -> ContactGraph:
        """Return the graph of some of the nodes and some of the edges."""
        return ContactGraph(
            self.ids[nodes], self.sizes[nodes], self.sums[nodes], self.pairs[edges], self.contacts[edges]
        )

    def to_bytes(self) -> bytes:
        """Return the graph as bytes, with a checksum."""
        file = io.BytesIO()
        np.savez_compressed(file, **{name: getattr(self, name) for name in FIELDS})
        content = file.getvalue()
        return sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, data: bytes) -> ContactGraph:
        """Read a graph from `to_bytes`; raise a ValueError if its checksum is wrong."""
        content = data[DIGEST_BYTES:]
        if sha256(content).digest() != data[:DIGEST_BYTES]:
            raise ValueError("the graph is damaged: its checksum is wrong; run its region again.")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(*(arrays[name] for name in FIELDS))


def combine_graphs(graphs: Iterable[ContactGraph]) -> ContactGraph:
    """Add up graphs of the same channels; raise a ValueError if there are none.

    >>> labels = np.array([[[1, 1, 2, 0]]])
    >>> bins = np.array([[[[10, 20, 30, 64]]]], np.uint8)
    >>> cut = [Box((0, 0, 0), (1, 1, 2)), Box((0, 0, 2), (1, 1, 4))]
    >>> whole = combine_graphs(build_contact_graph(labels, box, bins[..., box.slices[2]]) for box in cut)
    >>> whole.ids, whole.sizes, whole.sums[:, 0], whole.pairs, whole.contacts
    (array([1, 2]), array([2, 1]), array([30, 30]), array([[1, 2]]), array([1]))
    """
    total, waiting = None, iter(graphs)
    # A few at a time, because there may be many regions, and merging removes what they share.
    while pieces := list(islice(waiting, GRAPHS_AT_ONCE)):
        pieces += [] if total is None else [total]
        total = _merged(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in FIELDS))
    if total is None:
        raise ValueError("no graphs to add up: give at least one.")
    return total


def build_contact_graph(labels: NDArray[Any], core: Box, bins: NDArray[np.uint8]) -> ContactGraph:
    """Build a region's part of the graph: its voxels, and their faces towards higher z, y and x.

    `labels`, unsigned int (z, y, x), is a window of global labels, 0 where masked out: the region, `core`, and one
    voxel more at the upper end of each axis, unless the volume ends there. `bins`, uint8 (channels, z, y, x), are the
    quantised voxels of the region alone. Faces count between different labels other than 0.
    """
    nodes, totals, edges, faces = count_voxels_and_faces(labels, core.lo, bins)
    return _merged(nodes[:, 0], totals[:, 0], totals[:, 1:], edges, faces[:, 0])


def adjacency_lists(count: int, pairs: NDArray[np.int64], contacts: NDArray[np.int64]) -> AdjacencyLists:
    """Return the neighbours of each of `count` nodes, numbered from 0."""
    starts = np.zeros(count + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(pairs.reshape(-1), minlength=count))
    others, faces = np.empty((2, 2 * len(pairs)), np.int64)
    fill_adjacency_lists(pairs, contacts, AdjacencyLists(starts.copy(), others, faces))
    return AdjacencyLists(starts, others, faces)


def _merged(
    ids: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.int64],
    pairs: NDArray[np.int64],
    contacts: NDArray[np.int64],
) -> ContactGraph:
    """Return the graph of sorted nodes and edges, of which equal ones are added up."""
    order = np.argsort(ids, kind="stable")
    first = _firsts(ids[order, None])
    edges = np.lexsort((pairs[:, 1], pairs[:, 0]))
    first_edge = _firsts(pairs[edges])
    return ContactGraph(
        ids[order[first]],
        _sums(sizes[order], first),
        _sums(sums[order], first),
        pairs[edges[first_edge]],
        _sums(contacts[edges], first_edge),
    )


def _firsts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of the first of each run of equal rows."""
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return np.flatnonzero(fresh)


def _sums(values: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    # `reduceat` refuses an empty array.
    return np.add.reduceat(values, firsts, axis=0) if len(firsts) else values
