"""`min_size`: what is smaller joins a neighbour.

Everything is decided from the regions' graphs, which are gone through three times, in whole numbers and in an order
that depends on sizes and ids alone: the answer is the same, however the volume was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.seeds.contact_graph import ContactGraph, adjacency_lists, combine_graphs
from dseeds.seeds.kernels.min_size import join_nodes, relabel_ids


@dataclass(frozen=True, eq=False)
class JoinResult:
    """What became of supervoxels that were too small.

    Attributes
    ----------
    count : int
        How many supervoxels are left. They are numbered from 1 anew, in the order of their ids.
    gone : ndarray of int64
        The ids that are no more, ascending.
    into : ndarray of int64
        The new number of the supervoxel that each of them is part of.
    """

    count: int
    gone: NDArray[np.int64]
    into: NDArray[np.int64]

    @property
    def kept_ids(self) -> NDArray[np.int64]:
        """The ids that are left, ascending."""
        return np.delete(np.arange(1, self.count + len(self.gone) + 1), self.gone - 1)

    def relabel(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Give the new numbers for ids of any integer type and shape; 0 stays 0."""
        out = np.empty(ids.shape, ids.dtype)
        relabel_ids(np.ascontiguousarray(ids).reshape(-1), self.gone, self.into, out.reshape(-1))
        return out

    def relabel_graph(self, graph: ContactGraph) -> ContactGraph:
        """Give a graph, the whole or a region's, with the new numbers."""
        return graph.relabelled(self.relabel(graph.ids), self.relabel(graph.pairs))


def check_min_size(min_size: Any) -> int:
    """Check a least size given by the user.

    Raises
    ------
    ValueError
        If it is no whole number from 0.
    """
    if isinstance(min_size, bool) or not isinstance(min_size, Integral) or int(min_size) < 0:
        raise ValueError(f"min_size must be a whole number of voxels, at least 0, got {min_size!r}.")
    return int(min_size)


def join_small_supervoxels(
    count: int, graphs: Callable[[], Iterable[ContactGraph]], min_size: int, weights: tuple[int, ...] = (1,)
) -> JoinResult:
    """Join every supervoxel that is too small to the touching one that is most alike.

    The smallest comes first, of equal ones that with the lowest id. It joins the one from which its means of bins,
    in units of 2^-16, differ least in the weighted sum over the channels, of equal ones that with the longest contact,
    of these the lowest id; and what comes of them, if it is still too small, is due again. One that touches no other
    stays as it is.

    Parameters
    ----------
    count : int
        How many supervoxels there are: their ids are 1 to `count`.
    graphs : callable
        Gives the regions' graphs, three times.
    min_size : int
        Of how many voxels a supervoxel is large enough.
    weights : tuple of int
        How much the channels count.

    Examples
    --------
    >>> from dseeds.seeds.contact_graph import build_contact_graph
    >>> from dseeds.core.geometry import Box
    >>> labels = np.array([[[1, 1, 2, 3, 3]]])
    >>> bins = np.array([[[[10, 10, 29, 30, 30]]]], np.uint8)
    >>> graph = build_contact_graph(labels, Box((0, 0, 0), (1, 1, 5)), bins)
    >>> joined = join_small_supervoxels(3, lambda: [graph], min_size=2)
    >>> joined.count, joined.relabel(labels).tolist()
    (2, [[[1, 1, 2, 2, 2]]])
    """
    sizes = np.zeros(count + 1, np.int64)
    for graph in graphs():
        sizes[graph.ids] += graph.sizes
    small = sizes < min_size
    # Of the large ones only those matter that small ones touch.
    edges = combine_graphs(
        graph.part(slice(0), small[graph.pairs[:, 0]] | small[graph.pairs[:, 1]]) for graph in graphs()
    )
    small[edges.pairs.reshape(-1)] = True
    nodes = combine_graphs(graph.part(small[graph.ids], slice(0)) for graph in graphs())
    limits = np.full(len(nodes.ids), min_size)
    starts, others, contacts = adjacency_lists(len(limits), np.searchsorted(nodes.ids, edges.pairs), edges.contacts)
    ends = join_nodes(limits, nodes.sizes, nodes.sums, np.array(weights, np.int64), starts, others, contacts)
    moved = ends != np.arange(len(ends))
    gone, into = nodes.ids[moved], nodes.ids[ends[moved]]
    return JoinResult(count - len(gone), gone, into - np.searchsorted(gone, into))
