"""Agglomeration: supervoxels that touch are merged by their histograms into a tree that can be cut anywhere.

Like `skimage.graph.merge_hierarchical`, but for graphs of many millions of edges.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.measure.identity import TableOrigin, note_of
from dseeds.measure.kernels.agglomeration import FARTHEST, Edges, Nodes, begin_merging, cut_merges, merge_edges
from dseeds.measure.region_graph import HISTOGRAM, AdjacencyGraph, column_names, load_graph
from dseeds.seeds.intensity_windows import check_weights
from dseeds.storage.table_file import check_table_file, read_note, read_table_file, write_table_file

if TYPE_CHECKING:
    from dseeds.measure.features import Features

# The kinds of table files.
TREE, SEGMENTS = "tree of merges", "table of segments"
EPSILON = 1 / 1024
# Merges in a call of the kernel, which cannot be interrupted.
BLOCK = 1 << 14
# Half-edges are numbered in 32 bits.
MOST_EDGES = (1 << 30) - 1


@dataclass(frozen=True, eq=False, repr=False)
class MergeTree:
    """The merges of supervoxels into segments, one after the other, until each connected component is one segment.

    Supervoxels are the tree's nodes 0 to n - 1, and merge k makes node n + k, as in `scipy.cluster.hierarchy.linkage`.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        The supervoxels, in ascending order.
    children : ndarray of int64, shape (merges, 2)
        The merged nodes, the lower first.
    distances : ndarray of float64, shape (merges,)
        The distances of their histograms, 0 to 1. They need not ascend, because a segment's histogram differs from
        those of its parts.
    sizes : ndarray of int64, shape (merges,)
        The number of supervoxels in both.
    origin : TableOrigin, optional
        The labels that the supervoxels are of, which the files of tree and segments record.

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
    origin: TableOrigin | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.labels)} supervoxels, {len(self.children)} merges)"

    @property
    def components(self) -> int:
        """The number of connected components of the graph, which is the smallest number of segments."""
        return len(self.labels) - len(self.children)

    @cached_property
    def heights(self) -> NDArray[np.float64]:
        """The largest distance up to each merge, float64, shape (merges,), to which `cut` compares a threshold."""
        return np.maximum.accumulate(self.distances)

    def cut(self, *, n_segments: int | None = None, threshold: float | None = None) -> NDArray[np.int64]:
        """Return the segment of each supervoxel, for either a number of segments or a threshold.

        Parameters
        ----------
        n_segments : int, optional
            The number of segments.
        threshold : float, optional
            Do all merges before the first whose distance is larger.

        Returns
        -------
        ndarray of int64, shape (n,)
            The segments of the `labels`, from 1 to N in the order of their lowest labels.

        Raises
        ------
        ValueError
            If the number of segments is not possible, or not exactly one of the two is given.
        """
        check_cut(n_segments, threshold)
        supervoxels = len(self.labels)
        if threshold is not None:
            merges = int(np.searchsorted(self.heights, threshold, side="right"))
        else:
            # A Python integer, since unsigned ones of NumPy wrap below 0.
            merges = supervoxels - int(cast(int, n_segments))
        if merges < 0:
            raise ValueError(f"n_segments is {n_segments}, but there are only {supervoxels} supervoxels.")
        if merges > len(self.children):
            raise ValueError(
                f"n_segments is {n_segments}, but the graph has {self.components} parts that do not touch: request "
                f"at least {self.components}."
            )
        return cut_merges(self.children[:merges], supervoxels)

    def to_scipy(self) -> NDArray[np.float64]:
        """Return the linkage matrix that `scipy.cluster.hierarchy` takes for its dendrograms and flat clusters.

        Returns
        -------
        ndarray of float64, shape (n - 1, 4)
            The two nodes, the height and the number of supervoxels.

        Raises
        ------
        ValueError
            If the graph is not connected, for which SciPy has no tree.
        """
        if self.components != 1:
            raise ValueError(f"SciPy's trees have one root, but the graph has {self.components} parts: cut it instead.")
        return np.column_stack([self.children, self.heights, self.sizes]).astype(np.float64)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the tree to a Parquet file, with a row for each node.

        The columns are ``label`` (null for merges), ``child_a``, ``child_b`` and ``distance`` (null for supervoxels),
        and ``size``.

        Parameters
        ----------
        path : str or path
            The file, or its URL in an object store.
        overwrite : bool, default False
            Replace an older table of dseeds; nothing else is ever replaced.

        Raises
        ------
        FileExistsError
            If the file exists and may not be overwritten.
        FileNotFoundError
            If the folder does not exist.
        """
        check_table_file(path, overwrite)
        child_a, child_b = self.children.T
        leaves = pa.table({"label": self.labels, "size": np.ones(len(self.labels), np.int64)})
        merges = pa.table({"child_a": child_a, "child_b": child_b, "distance": self.distances, "size": self.sizes})
        nodes = pa.concat_tables([leaves, merges], promote_options="default")
        nodes = nodes.select(["label", "child_a", "child_b", "distance", "size"])
        write_table_file(path, nodes, TREE, note_of(self.origin))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MergeTree:
        """Read a tree that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        ValueError
            If it does not hold a tree.
        """
        table = read_table_file(path, TREE)
        leaves = len(table) - table.column("label").null_count
        merges = table.slice(leaves)
        children = np.column_stack([merges.column(name).to_numpy() for name in ("child_a", "child_b")])
        labels = table.slice(0, leaves).column("label").to_numpy()
        origin = TableOrigin.of_file(read_note(table.schema), str(path))
        return cls(labels, children, merges.column("distance").to_numpy(), merges.column("size").to_numpy(), origin)


def agglomerate(
    features: str | os.PathLike[str] | Features | AdjacencyGraph,
    *,
    weights: Sequence[float] | None = None,
    epsilon: float = EPSILON,
    progress: Callable[[int, int], None] | None = None,
) -> MergeTree:
    """Merge supervoxels that touch, the two with the most similar histograms first, until none touch any more.

    The distance of two segments is the total variation of their normalised histograms, half the sum of absolute
    differences, averaged over the channels; the histogram of a merged segment is the sum of both. An empty histogram is
    at distance 1 from all that are not empty. Pairs at equal distances are merged in the order of the labels of their
    first edge. Distances are rounded to multiples of 2^-31, so that the tree is the same on every machine.

    Parameters
    ----------
    features : str, path, Features or AdjacencyGraph
        The folder of features or its URL, the result of `dseeds.features`, or a graph that was loaded with its
        histograms.
    weights : sequence of float, optional
        The weight of each channel, in the order of the histograms' columns; equal by default.
    epsilon : float, default 1/1024
        By how much the distance of a merge may exceed the smallest at that moment. With 0 it is always the smallest,
        which takes time that grows with the square of a segment's neighbours.
    progress : callable, optional
        Called as ``progress(done, total)``.

    Returns
    -------
    MergeTree
        Complete for each connected component of the graph.

    Raises
    ------
    FileNotFoundError
        If the folder holds no features.
    ValueError
        If there are no histograms, or weights or epsilon are out of range.

    Notes
    -----
    When a small segment joins a large one, the large one's histogram hardly changes, but each of its distances does.
    Total variation is a metric: no distance changes by more than the histogram has moved. So the distances of the large
    segment are measured again only when its movements add up to a quarter of `epsilon`, those of the small one at once.

    Examples
    --------
    >>> histograms = np.array([[4, 0, 0], [3, 1, 0], [0, 0, 4]])
    >>> graph = AdjacencyGraph(np.array([1, 2, 3]), np.array([[0, 1], [1, 2]]), {"histogram": histograms}, {})
    >>> tree = agglomerate(graph)
    >>> tree.children, tree.distances
    (array([[0, 1],
           [2, 3]]), array([0.25, 1.  ]))
    """
    limit = math.floor(_check_epsilon(epsilon) / 4 * FARTHEST)
    if isinstance(features, AdjacencyGraph):
        graph, counts = features, _histograms(features).astype(np.int64)
    else:
        names = [name for name in column_names(features) if _is_histogram(name)]
        graph = load_graph(features, columns=names, edge_columns=[])
        # Merging changes the counts, but of this graph nobody else sees them, so they need not be copied.
        counts = np.ascontiguousarray(_histograms(graph), np.int64)
    fractions = np.array(check_weights(weights, counts.shape[1]), np.int64)
    nodes, edges = _allocate(counts, graph.pairs)
    begin_merging(nodes, edges, fractions)
    most = max(len(counts) - 1, 0)
    children, distances, sizes = np.empty((most, 2), np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    filled, blocks = 0, -(-most // BLOCK)
    for block in range(blocks):
        if progress:
            progress(block, blocks)
        rows = slice(filled, filled + BLOCK)
        out = children[rows], distances[rows], sizes[rows]
        filled += merge_edges(nodes, edges, fractions, limit, len(counts) + filled, *out)
    if progress and blocks:
        progress(blocks, blocks)
    return MergeTree(graph.labels, children[:filled], distances[:filled] / FARTHEST, sizes[:filled], graph.origin)


def write_segments(
    path: str | os.PathLike[str], tree: MergeTree, segments: NDArray[np.int64], *, overwrite: bool = False
) -> None:
    """Write the supervoxels of a tree and their segments to a Parquet file: the columns ``label`` and ``segment``."""
    check_table_file(path, overwrite)
    write_table_file(path, pa.table({"label": tree.labels, "segment": segments}), SEGMENTS, note_of(tree.origin))


def check_cut(n_segments: object, threshold: object) -> None:
    """Raise a ValueError unless a tree is cut by either a whole number from 1 or a number from 0."""
    if (n_segments is None) == (threshold is None):
        raise ValueError("give either n_segments (--n-segments) or threshold (--threshold).")
    if n_segments is not None:
        if isinstance(n_segments, bool) or not isinstance(n_segments, Integral) or int(n_segments) < 1:
            raise ValueError(f"n_segments must be a whole number from 1, got {n_segments!r}.")
    elif isinstance(threshold, bool) or not isinstance(threshold, Real) or not float(threshold) >= 0:
        raise ValueError(f"threshold must be a number of at least 0, got {threshold!r}.")


def _check_epsilon(epsilon: object) -> float:
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 <= float(epsilon) <= 1:
        raise ValueError(f"epsilon must be a number from 0 to 1, got {epsilon!r}.")
    return float(epsilon)


def _is_histogram(column: str) -> bool:
    return column.partition("-")[0] == HISTOGRAM


def _histograms(graph: AdjacencyGraph) -> NDArray[np.int64]:
    """Return the histograms (n, channels, bins), with one channel as a view; raise a ValueError if there are none."""
    channels = [column for name, column in graph.nodes.items() if _is_histogram(name)]
    if not channels:
        raise ValueError(
            "the graph has no histograms to merge by: name the folder of features instead, or load them with "
            'load_graph(..., columns=["histogram"]).'
        )
    return channels[0][:, None] if len(channels) == 1 else np.stack(channels, axis=1)


def _allocate(counts: NDArray[np.int64], pairs: NDArray[np.int64]) -> tuple[Nodes, Edges]:
    """Return the arrays on which the kernel works."""
    n, m = len(counts), len(pairs)
    if m > MOST_EDGES:
        raise ValueError(f"the graph has {m} edges, and {MOST_EDGES} can be merged along: use a coarser level.")
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
