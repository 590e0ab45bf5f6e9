"""Supervoxels that touch are merged by their histograms, the most similar first, into a tree that can be cut anywhere.

This is what `skimage.graph.merge_hierarchical` does, for graphs of many millions of edges.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.measure.kernels.agglomeration import FARTHEST, Edges, Nodes, begin_merging, cut_merges, merge_edges
from dseeds.measure.region_graph import HISTOGRAM, AdjacencyGraph, column_names, load_graph
from dseeds.seeds.intensity_windows import check_weights
from dseeds.storage.table_file import check_table_file, read_table_file, write_table_file

if TYPE_CHECKING:
    from dseeds.measure.features import Features

# What the table of a tree, and that of segments, note themselves as.
TREE, SEGMENTS = "tree of merges", "table of segments"
EPSILON = 1 / 1024
# Merges between two looks at whether someone wants to stop.
TOGETHER = 1 << 14
# So that halves of edges fit 32 bits.
MOST_EDGES = (1 << 30) - 1


@dataclass(frozen=True, eq=False, repr=False)
class MergeTree:
    """Which segments were merged, one merge after the other, until all that hang together are one.

    Supervoxels are the tree's nodes 0 to n - 1, and merge k makes node n + k, as in `scipy.cluster.hierarchy.linkage`.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        The supervoxels, in ascending order.
    children : ndarray of int64, shape (merges, 2)
        The nodes that are merged, the lower first.
    distances : ndarray of float64, shape (merges,)
        How far apart their histograms are, 0 to 1. What is merged later may be closer, for a segment is not where its
        parts were.
    sizes : ndarray of int64, shape (merges,)
        How many supervoxels the two are together.

    Examples
    --------
    >>> tree = MergeTree(np.array([3, 5, 8]), np.array([[1, 2], [0, 3]]), np.array([0.25, 0.5]), np.array([2, 3]))
    >>> tree
    MergeTree(3 supervoxels, 2 merges)
    >>> tree.cut(n_segments=2), tree.cut(threshold=0.5)
    (array([1, 2, 2]), array([1, 1, 1]))
    """

    labels: NDArray[np.int64]
    children: NDArray[np.int64]
    distances: NDArray[np.float64]
    sizes: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.labels)} supervoxels, {len(self.children)} merges)"

    @property
    def components(self) -> int:
        """How many parts the graph has that do not hang together: fewer segments there cannot be."""
        return len(self.labels) - len(self.children)

    @cached_property
    def heights(self) -> NDArray[np.float64]:
        """The highest distance up to each merge, float64, shape (merges,): by these a threshold cuts."""
        return np.maximum.accumulate(self.distances)

    def cut(self, *, n_segments: int | None = None, threshold: float | None = None) -> NDArray[np.int64]:
        """Give each supervoxel's segment, by exactly one of two.

        Parameters
        ----------
        n_segments : int, optional
            How many segments there shall be.
        threshold : float, optional
            Do all merges up to the first whose distance is higher, and neither that one nor any later.

        Returns
        -------
        ndarray of int64, shape (n,)
            For each of `labels` the segment, 1 to N in the order of each segment's lowest label.

        Raises
        ------
        ValueError
            If there cannot be so many segments, or so few, or it is not said which of the two to go by.
        """
        return cut_merges(self.children[: self._merges(n_segments, threshold)], len(self.labels))

    def _merges(self, n_segments: int | None, threshold: float | None) -> int:
        """Count the merges that are done."""
        check_cut(n_segments, threshold)
        if threshold is not None:
            return int(np.searchsorted(self.heights, threshold, side="right"))
        count, most = cast(int, n_segments), len(self.labels)
        if count > most:
            raise ValueError(f"n_segments is {count}, but there are only {most} supervoxels.")
        if count < self.components:
            raise ValueError(
                f"n_segments is {count}, but the graph has {self.components} parts that do not touch: ask for at "
                "least as many."
            )
        return most - count

    def to_scipy(self) -> NDArray[np.float64]:
        """Give the linkage matrix that `scipy.cluster.hierarchy` takes for its dendrograms and flat clusters.

        Returns
        -------
        ndarray of float64, shape (n - 1, 4)
            The two nodes, the height and the number of supervoxels.

        Raises
        ------
        ValueError
            If the graph does not hang together, for which SciPy has no tree.
        """
        if self.components != 1:
            raise ValueError(f"SciPy's trees have one root, but the graph has {self.components} parts: cut it instead.")
        return np.column_stack([self.children, self.heights, self.sizes]).astype(np.float64)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the tree to a Parquet file, with a row for each node.

        Its columns are ``label`` (null for what is merged), ``child_a``, ``child_b`` and ``distance`` (null for
        supervoxels), and ``size``.

        Parameters
        ----------
        path : str or path
            The file, or its URL in an object store.
        overwrite : bool, default False
            Replace an older table of dseeds; nothing else is ever replaced.

        Raises
        ------
        FileExistsError
            If something would be lost.
        FileNotFoundError
            If the folder does not exist.
        """
        check_table_file(path, overwrite)
        leaves, merges = len(self.labels), len(self.children)
        for_leaves, for_merges = pa.nulls(leaves, pa.int64()), pa.nulls(merges, pa.int64())
        columns = {
            "label": [pa.array(self.labels), for_merges],
            "child_a": [for_leaves, pa.array(self.children[:, 0])],
            "child_b": [for_leaves, pa.array(self.children[:, 1])],
            "distance": [pa.nulls(leaves, pa.float64()), pa.array(self.distances)],
            "size": [pa.array(np.ones(leaves, np.int64)), pa.array(self.sizes)],
        }
        write_table_file(path, pa.table({name: pa.chunked_array(parts) for name, parts in columns.items()}), TREE)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MergeTree:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds no tree.
        """
        table = read_table_file(path, TREE)
        leaves = len(table) - table.column("label").null_count
        merges = table.slice(leaves)
        children = np.column_stack([merges.column(name).to_numpy() for name in ("child_a", "child_b")])
        labels = table.slice(0, leaves).column("label").to_numpy()
        return cls(labels, children, merges.column("distance").to_numpy(), merges.column("size").to_numpy())


def agglomerate(
    features: str | os.PathLike[str] | Features | AdjacencyGraph,
    *,
    weights: Sequence[float] | None = None,
    epsilon: float = EPSILON,
    progress: Callable[[int, int], None] | None = None,
) -> MergeTree:
    """Merge supervoxels that touch, the two with the most similar histograms first, until none touch any more.

    The distance of two is the total variation of their normalised histograms, which is half the sum of differences,
    averaged over the channels; that of two merged is of their histograms' sum. A histogram of nothing is at distance 1
    from all others but those of nothing too. Equal distances are merged in the order of the first edge between the
    two, by its labels. Distances count in steps of 2^-31, so that the tree is the same on every machine.

    Parameters
    ----------
    features : str, path, Features or AdjacencyGraph
        The folder of features, its URL, what `dseeds.features` gives, or the graph, loaded with its histograms.
    weights : sequence of float, optional
        How much each channel counts, in the order of the histograms' columns; all the same by default.
    epsilon : float, default 1/1024
        How much larger the distance of what is merged may be than the smallest at that moment. With 0 it is always the
        smallest, which takes time that grows with the square of a segment's neighbours.
    progress : callable, optional
        Called as ``progress(done, total)``.

    Returns
    -------
    MergeTree
        Complete, for each part of the graph that hangs together.

    Raises
    ------
    FileNotFoundError
        If the folder holds no features.
    ValueError
        If there are no histograms, or weights or epsilon are not possible.

    Notes
    -----
    When a small segment joins a large one, the large one's histogram hardly changes, but each of its distances does.
    Total variation is a metric: none changes by more than the histogram itself has moved. So they are measured again
    only once that adds up to a quarter of `epsilon`; those of the small one are measured at once.

    Examples
    --------
    >>> histograms = np.array([[4, 0, 0], [3, 1, 0], [0, 0, 4]])
    >>> graph = AdjacencyGraph(np.array([1, 2, 3]), np.array([[0, 1], [1, 2]]), {"histogram": histograms}, {})
    >>> tree = agglomerate(graph)
    >>> tree.children, tree.distances
    (array([[0, 1],
           [2, 3]]), array([0.25, 1.  ]))
    """
    limit = math.floor(check_epsilon(epsilon) / 4 * FARTHEST)
    if isinstance(features, AdjacencyGraph):
        graph, counts = features, _histograms(features).astype(np.int64)
    else:
        # No one else sees these, so that there need not be another copy to add up in.
        graph = _with_histograms(features)
        counts = np.ascontiguousarray(_histograms(graph), np.int64)
    fractions = np.array(check_weights(weights, counts.shape[1]), np.int64)
    nodes, edges = _structures(counts, graph.pairs)
    begin_merging(nodes, edges, fractions)
    most = max(len(counts) - 1, 0)
    children, distances, sizes = np.empty((most, 2), np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    filled, blocks = 0, -(-most // TOGETHER)
    for block in range(blocks):
        if progress:
            progress(block, blocks)
        rows = slice(filled, filled + TOGETHER)
        found = children[rows], distances[rows], sizes[rows]
        filled += merge_edges(nodes, edges, fractions, limit, len(counts) + filled, *found)
    if progress and blocks:
        progress(blocks, blocks)
    return MergeTree(graph.labels, children[:filled], distances[:filled] / FARTHEST, sizes[:filled])


def write_segments(
    path: str | os.PathLike[str], labels: NDArray[np.int64], segments: NDArray[np.int64], *, overwrite: bool = False
) -> None:
    """Write which segment each supervoxel is part of to a Parquet file, with the columns ``label`` and ``segment``.

    Parameters
    ----------
    path : str or path
        The file, or its URL in an object store.
    labels, segments : ndarray of int64, shape (n,)
        Those of `MergeTree` and `MergeTree.cut`.
    overwrite : bool, default False
        Replace an older table of dseeds; nothing else is ever replaced.

    Raises
    ------
    FileExistsError
        If something would be lost.
    FileNotFoundError
        If the folder does not exist.
    """
    check_table_file(path, overwrite)
    write_table_file(path, pa.table({"label": labels, "segment": segments}), SEGMENTS)


def check_cut(n_segments: object, threshold: object) -> None:
    """Check where a tree is to be cut, given by the user.

    Raises
    ------
    ValueError
        If it is not said by exactly one of a whole number from 1 and a number from 0.
    """
    if (n_segments is None) == (threshold is None):
        raise ValueError("a tree is cut by one of two: give n_segments (--n-segments) or threshold (--threshold).")
    if n_segments is not None:
        if isinstance(n_segments, bool) or not isinstance(n_segments, Integral) or int(n_segments) < 1:
            raise ValueError(f"n_segments must be a whole number from 1, got {n_segments!r}.")
    elif isinstance(threshold, bool) or not isinstance(threshold, Real) or not float(threshold) >= 0:
        raise ValueError(f"threshold must be a number from 0 to 1, got {threshold!r}.")


def check_epsilon(epsilon: object) -> float:
    """Check how far from the smallest a distance may be, given by the user.

    Raises
    ------
    ValueError
        If it is no number from 0 to 1.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 <= float(epsilon) <= 1:
        raise ValueError(f"epsilon must be a number from 0 to 1, got {epsilon!r}.")
    return float(epsilon)


def _with_histograms(features: str | os.PathLike[str] | Features) -> AdjacencyGraph:
    names = [name for name in column_names(features) if name.partition("-")[0] == HISTOGRAM]
    return load_graph(features, columns=names, edge_columns=[])


def _histograms(graph: AdjacencyGraph) -> NDArray[np.int64]:
    """Give the channels' histograms as one array (n, channels, bins), which is a view of the graph's if it is one.

    Raises
    ------
    ValueError
        If there are none.
    """
    channels = [column for name, column in graph.nodes.items() if name.partition("-")[0] == HISTOGRAM]
    if not channels:
        raise ValueError(
            "the graph has no histograms to merge by: name the folder of features instead, or load them with "
            'load_graph(..., columns=["histogram"]).'
        )
    return channels[0][:, None] if len(channels) == 1 else np.stack(channels, axis=1)


def _structures(counts: NDArray[np.int64], pairs: NDArray[np.int64]) -> tuple[Nodes, Edges]:
    """Make the arrays that the kernel works on."""
    n, m = len(counts), len(pairs)
    if m > MOST_EDGES:
        raise ValueError(f"the graph has {m} edges, and {MOST_EDGES} can be merged along: take a coarser level.")
    nodes = Nodes(
        counts,
        totals=counts.sum(axis=2),
        drifts=np.zeros(n, np.int64),
        degrees=np.zeros(n, np.int32),
        rings=np.full(n, -1, np.int32),
        ids=np.arange(n),
        sizes=np.ones(n, np.int64),
    )
    edges = Edges(
        nodes=pairs.astype(np.int32).reshape(-1),
        following=np.empty(2 * m, np.int32),
        previous=np.empty(2 * m, np.int32),
        heap=np.empty(m, np.int64),
        positions=np.empty(m, np.int32),
        # At most half full.
        table=np.full(1 << (2 * m).bit_length(), -1, np.int32),
        heap_size=np.zeros(1, np.int64),
    )
    return nodes, edges
