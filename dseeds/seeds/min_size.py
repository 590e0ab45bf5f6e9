"""Step 7, `min_size`: smaller supervoxels join a neighbour.

The joins follow from the regions' graphs alone, which are read three times, in whole numbers and in an order that
depends only on sizes and ids. So the result is the same however the volume was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.mask_blocks import MaskBlocks
from dseeds.seeds.contact_graph import ContactGraph, adjacency_lists, combine_graphs
from dseeds.seeds.kernels.min_size import join_nodes, relabel_ids


@dataclass(frozen=True, eq=False)
class JoinResult:
    """The numbers of supervoxels after the small ones joined others.

    `count` supervoxels remain, renumbered from 1 in the order of their ids. The ids in `removed`, ascending, no longer
    exist; `targets` are the new numbers of the supervoxels that they joined.
    """

    count: int
    removed: NDArray[np.int64]
    targets: NDArray[np.int64]

    @property
    def kept_ids(self) -> NDArray[np.int64]:
        """The ids that remain, ascending."""
        return np.delete(np.arange(1, self.count + len(self.removed) + 1), self.removed - 1)

    def relabel(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Return the new numbers of ids of any integer type and shape; 0 stays 0."""
        out = np.empty(ids.shape, ids.dtype)
        relabel_ids(np.ascontiguousarray(ids).reshape(-1), self.removed, self.targets, out.reshape(-1))
        return out

    def relabel_graph(self, graph: ContactGraph) -> ContactGraph:
        """Return a graph, of the whole volume or of a region, with the new numbers."""
        return graph.relabelled(self.relabel(graph.ids), self.relabel(graph.pairs))


def choose_min_size(min_size: Any, n_segments: int | None, mask: MaskBlocks | None) -> int:
    """Return the minimum size that is given or, for None, 0; raise a ValueError unless it is a whole number from 0.

    If a number of supervoxels inside a mask is given, None is a tenth of their mean size: a rough mask cuts cells into
    pieces, which would come on top of the number.
    """
    if min_size is None:
        return 0 if mask is None or n_segments is None else mask.least_voxels(n_segments)
    if isinstance(min_size, bool) or not isinstance(min_size, Integral) or int(min_size) < 0:
        raise ValueError(f"min_size must be a whole number of voxels, at least 0, got {min_size!r}.")
    return int(min_size)


def join_small_supervoxels(
    count: int, graphs: Callable[[], Iterable[ContactGraph]], min_size: int, weights: tuple[int, ...] = (1,)
) -> JoinResult:
    """Join every supervoxel of fewer than `min_size` voxels to its most similar neighbour.

    The smallest comes first; ties go to the lower id. It joins the neighbour whose means of bins, in units of 2^-16,
    differ least in the weighted sum over the channels; ties go to the longest contact, then to the lower id. A union
    that is still too small is due again. A supervoxel without neighbours stays.

    The ids are 1 to `count`; `graphs` returns the regions' graphs, and is called three times.

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
    # Large supervoxels matter only if a small one touches them.
    edges = combine_graphs(
        graph.select(slice(0), small[graph.pairs[:, 0]] | small[graph.pairs[:, 1]]) for graph in graphs()
    )
    small[edges.pairs.reshape(-1)] = True
    nodes = combine_graphs(graph.select(small[graph.ids], slice(0)) for graph in graphs())
    limits = np.full(len(nodes.ids), min_size)
    lists = adjacency_lists(len(limits), np.searchsorted(nodes.ids, edges.pairs), edges.contacts)
    ends = join_nodes(limits, nodes.sizes, nodes.sums, np.array(weights, np.int64), lists)
    moved = ends != np.arange(len(ends))
    removed, targets = nodes.ids[moved], nodes.ids[ends[moved]]
    return JoinResult(count - len(removed), removed, targets - np.searchsorted(removed, targets))
