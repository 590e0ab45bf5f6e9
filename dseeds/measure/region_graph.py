"""The region adjacency graph of supervoxels with their features, and its conversion for other libraries.

A folder of features holds two tables in Parquet parts: `table.parquet` has a row for each supervoxel, sorted by label,
and `edges.parquet` a row for each pair that touches, sorted by both labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from dseeds.core.optional import import_optional
from dseeds.measure.columns import CENTROID, CENTROID_WORLD
from dseeds.measure.identity import TableOrigin, folder_origin
from dseeds.measure.lookup import is_numeric
from dseeds.measure.network_graph import (
    DISTANCE,
    OFFSET,
    edge_geometry,
    nearest_edges,
    read_targets,
    split_nodes,
    spread_contacts,
)
from dseeds.storage.location import open_location
from dseeds.storage.ownership import MARKER
from dseeds.storage.parquet_dataset import EDGES, TABLE, Dataset

if TYPE_CHECKING:
    import networkx
    import scipy.sparse

    from dseeds.measure.features import Features

HISTOGRAM = "histogram"
# Columns with positions, which do not describe what a supervoxel is like.
POSITIONS = ("centroid", "bbox", "centroid_world", "bbox_world")


@dataclass(frozen=True, eq=False, repr=False)
class AdjacencyGraph:
    """The region adjacency graph of supervoxels, with their features.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        The supervoxels, in ascending order.
    pairs : ndarray of int64, shape (m, 2)
        The pairs that touch, as positions in `labels`, the lower one first; sorted, each once.
    nodes : dict of str to ndarray, shapes (n,) or (n, bins)
        Columns of the table of supervoxels.
    edges : dict of str to ndarray, shape (m,)
        Columns of the table of edges.
    origin : TableOrigin, optional
        The labels that the graph was measured on; it is refused together with a table of others.

    Raises
    ------
    ValueError
        If labels or pairs are not in order, or a column has the wrong length.

    Examples
    --------
    >>> pairs = np.array([[0, 1], [1, 2]])
    >>> nodes = {"num_pixels": np.array([8, 9, 7]), "intensity_mean": np.array([0.5, 1.0, 4.0])}
    >>> graph = AdjacencyGraph(np.array([2, 3, 5]), pairs, nodes, {"area": np.array([1.5, 2.5])})
    >>> graph
    AdjacencyGraph(3 supervoxels, 2 edges)
    >>> graph.to_scipy().toarray()
    array([[0. , 1.5, 0. ],
           [1.5, 0. , 2.5],
           [0. , 2.5, 0. ]])
    >>> graph.to_networkx().edges[5, 3]
    {'area': 2.5}
    >>> graph.to_torch_geometric()["edge_index"]
    array([[0, 1, 1, 2],
           [1, 0, 2, 1]])
    """

    labels: NDArray[np.int64]
    pairs: NDArray[np.int64]
    nodes: Mapping[str, NDArray[Any]]
    edges: Mapping[str, NDArray[Any]]
    origin: TableOrigin | None = None

    def __post_init__(self) -> None:
        labels, (source, target) = self.labels, self.pairs.T
        if labels.size and (labels[0] < 1 or (labels[1:] <= labels[:-1]).any()):
            raise ValueError("labels of supervoxels must be 1 or greater, in ascending order, each once.")
        if source.size and not (source.min() >= 0 and target.max() < len(labels) and (source < target).all()):
            raise ValueError(
                f"edges must be pairs of positions in labels, at least 0 and below {len(labels)}, the lower first."
            )
        if not ((source[1:] > source[:-1]) | ((source[1:] == source[:-1]) & (target[1:] > target[:-1]))).all():
            raise ValueError("edges must be in ascending order, each once.")
        for table, count in ((self.nodes, len(labels)), (self.edges, len(source))):
            for name, column in table.items():
                if len(column) != count:
                    raise ValueError(f"the column {name!r} must have {count} rows, but has {len(column)}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.labels)} supervoxels, {len(self.pairs)} edges)"

    def to_scipy(self, weight: str | None = "area") -> scipy.sparse.csr_array:
        """Return the adjacency matrix, for `scipy.sparse.csgraph` and spectral methods.

        Parameters
        ----------
        weight : str, optional
            The column of edges with its entries, by default the area of contact in mm^2; None for ones.

        Returns
        -------
        scipy.sparse.csr_array of float64, shape (n, n)
            Symmetric, in the order of `labels`. An edge of weight 0 is stored like any other.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        ValueError
            If the column is not loaded.
        """
        sparse = import_optional("scipy.sparse", "a sparse matrix", "scipy")
        weights = np.ones(len(self.pairs)) if weight is None else self.edge_column(weight)
        source, target = self.pairs.T
        ends = np.concatenate([source, target]), np.concatenate([target, source])
        return sparse.csr_array((np.tile(np.asarray(weights, np.float64), 2), ends), shape=(len(self.labels),) * 2)

    def to_networkx(
        self, columns: Iterable[str] | None = None, edge_columns: Iterable[str] | None = None
    ) -> networkx.Graph:
        """Return the graph for NetworkX: its nodes are labels, and nodes and edges have the columns as attributes.

        Parameters
        ----------
        columns, edge_columns : sequence of str, optional
            The columns of supervoxels and of edges; all by default.

        Returns
        -------
        networkx.Graph
            Attributes are Python numbers, or lists of them for histograms.

        Raises
        ------
        ImportError
            If NetworkX is not installed.
        ValueError
            If a column is not loaded.
        """
        networkx = import_optional("networkx", "a NetworkX graph", "networkx")
        graph = networkx.Graph()
        nodes = _rows(self.nodes, columns, "supervoxels", len(self.labels))
        graph.add_nodes_from(zip(self.labels.tolist(), nodes, strict=True))
        edges = _rows(self.edges, edge_columns, "edges", len(self.pairs))
        ends = self.labels[self.pairs].tolist()
        graph.add_edges_from((source, target, row) for (source, target), row in zip(ends, edges, strict=True))
        return graph

    def to_torch_geometric(
        self,
        columns: Iterable[str] | None = None,
        edge_columns: Iterable[str] | None = None,
        *,
        y: Any = None,
        column: str | None = None,
        split: Sequence[float] | Mapping[str, ArrayLike] | None = None,
        seed: int = 0,
        k: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays of a ``torch_geometric.data.Data``.

        This does not need PyTorch. With PyTorch, the graph is::

            Data(**{name: torch.from_numpy(array) for name, array in graph.to_torch_geometric().items()})

        Parameters
        ----------
        columns : sequence of str, optional
            The columns of ``x``, one for each bin of a histogram; by default all but centroids and bounding boxes.
        edge_columns : sequence of str, optional
            The columns of ``edge_attr``: those of the contacts, 0 where two do not touch; ``"distance"``, of the
            centroids in mm; and ``"offset"``, from source to target in mm along (x, y, z). Default: all of the
            contacts; with `k`, distance and offset.
        y : Votes, table, dict or vector, optional
            What is to be learnt: the result of `dseeds.vote` or its folder, of which the majorities are taken where
            there are votes; a dict or Series from label to class or number; or a table, as for `dseeds.paint`.
        column : str, optional
            The column of that table.
        split : sequence of float or dict, optional
            The shares of the nodes for training, validation and test, such as ``(0.6, 0.2, 0.2)``, by chance, of each
            class by itself, among those with a known `y`; or the labels of ``"train"``, ``"val"`` and ``"test"``.
        seed : int, default 0
            What chance depends on.
        k : int, optional
            Connect each supervoxel with this many nearest ones by their centroids in mm, instead of those it touches.

        Returns
        -------
        dict of str to ndarray
            ``x`` float32 (n, features); ``edge_index`` int64 (2, e), each edge in both directions, sorted;
            ``edge_attr`` float32 (e, columns); ``pos`` float32 (n, 3), the centroids in voxels (z, y, x), if they were
            loaded; ``y`` (n,), int64, -1 where unknown, or float32 and NaN if not all are whole numbers; and
            ``train_mask``, ``val_mask`` and ``test_mask`` bool (n,).

        Raises
        ------
        ImportError
            If SciPy is not installed, for `k`.
        ValueError
            If a column is not loaded, `y` is of other labels, or a parameter is out of range.
        """
        if columns is None:
            columns = [name for name in self.nodes if not is_position(name)]
        index = self._directed_edges() if k is None else nearest_edges(self.places, k)
        if edge_columns is None:
            edge_columns = list(self.edges) if k is None else [DISTANCE, OFFSET]
        arrays: dict[str, NDArray[Any]] = {
            "x": self.matrix(columns),
            "edge_index": index,
            "edge_attr": self._edge_matrix(list(edge_columns), index),
        }
        if set(CENTROID) <= set(self.nodes):
            arrays["pos"] = self.matrix(CENTROID)
        if y is not None:
            arrays["y"] = read_targets(y, column, self.labels, self.origin)
        if split is not None:
            arrays |= split_nodes(split, seed, self.labels, arrays.get("y"))
        return arrays

    @property
    def places(self) -> NDArray[np.float64]:
        """The centroids in mm along (x, y, z), float64 (n, 3); raise a ValueError if they are not loaded."""
        return np.column_stack([self.node_column(name) for name in CENTROID_WORLD]).astype(np.float64)

    def _edge_matrix(self, names: Sequence[str], index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the columns of edges (2, e), side by side, float32."""
        parts = [np.empty((index.shape[1], 0))]
        for name in names:
            if name in (DISTANCE, OFFSET) and name not in self.edges:
                parts.append(edge_geometry(name, index, self.places))
            else:
                parts.append(spread_contacts(self.edge_column(name), self.pairs, index, len(self.labels)))
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")

    def matrix(self, columns: Iterable[str] | None = None) -> NDArray[np.float32]:
        """Return columns of the supervoxels side by side, for classifiers and networks.

        Parameters
        ----------
        columns : sequence of str, optional
            One column of the matrix each, and one for each bin of a histogram; all by default.

        Returns
        -------
        ndarray of float32, shape (n, columns)

        Raises
        ------
        ValueError
            If a column is not loaded.
        """
        return _matrix(self.nodes, columns, "supervoxels", len(self.labels))

    def node_column(self, name: str) -> NDArray[Any]:
        """Return a column of the supervoxels; raise a ValueError if it is not loaded."""
        return _column(self.nodes, name, "supervoxels")

    def edge_column(self, name: str) -> NDArray[Any]:
        """Return a column of the edges; raise a ValueError if it is not loaded."""
        return _column(self.edges, name, "edges")

    def _directed_edges(self) -> NDArray[np.int64]:
        """Return every edge in both directions (2, 2 m), sorted."""
        index = np.concatenate([self.pairs, self.pairs[:, ::-1]]).T
        return np.ascontiguousarray(index[:, np.lexsort((index[1], index[0]))])


def load_graph(
    features: str | os.PathLike[str] | Features,
    *,
    columns: Sequence[str] | None = None,
    edge_columns: Sequence[str] | None = None,
) -> AdjacencyGraph:
    """Load the region adjacency graph of supervoxels from their folder of features.

    Parameters
    ----------
    features : str, path or Features
        The folder, or its URL in an object store; or the result of `dseeds.features`.
    columns : sequence of str, optional
        The columns of supervoxels to load; by default all with one number per supervoxel, thus without histograms.
    edge_columns : sequence of str, optional
        The columns of edges to load, likewise.

    Returns
    -------
    AdjacencyGraph
        Supervoxels that touch no other are nodes without edges.

    Raises
    ------
    FileNotFoundError
        If the folder holds no features.
    ValueError
        If a column does not exist, or the two tables do not belong together.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> tables = {
    ...     "table": {"label": [1, 2, 4], "num_pixels": [8, 9, 7]},
    ...     "edges": {"source": [1, 2], "target": [2, 4], "area": [1.5, 2.5]},
    ... }
    >>> with TemporaryDirectory() as folder:
    ...     for name, table in tables.items():
    ...         Path(folder, f"{name}.parquet").mkdir()
    ...         pq.write_table(pa.table(table), Path(folder, f"{name}.parquet", "part-00000.parquet"))
    ...     graph = load_graph(folder)
    >>> graph.labels, graph.pairs, graph.nodes["num_pixels"]
    (array([1, 2, 4]), array([[0, 1],
           [1, 2]]), array([8, 9, 7]))
    """
    nodes = _load(features, TABLE, ("label",), columns)
    edges = _load(features, EDGES, ("source", "target"), edge_columns)
    labels = nodes.pop("label")
    ends = np.stack([edges.pop("source"), edges.pop("target")], axis=1)
    known = np.isin(ends, labels)
    if not known.all():
        raise ValueError(
            f"{features}/{EDGES} has an edge of supervoxel {ends[~known][0]}, which is missing in {TABLE}."
        )
    try:
        return AdjacencyGraph(labels, np.searchsorted(labels, ends), nodes, edges, _find_origin(features))
    except ValueError as error:
        raise ValueError(f"{features} is damaged, make the features again: {error}") from error


def column_names(features: str | os.PathLike[str] | Features, table: str = TABLE) -> list[str]:
    """Return the columns of a table in a folder of features; raise a FileNotFoundError if there is no such table."""
    return list(next(_parts(features, table)).schema_arrow.names)


def is_position(column: str) -> bool:
    """Return whether a column of supervoxels says where they are, not what they are like."""
    return column.partition("-")[0] in POSITIONS


def _find_origin(features: str | os.PathLike[str] | Features) -> TableOrigin | None:
    """Return which labels the features were measured on; None if that is not recorded."""
    if not isinstance(features, str | os.PathLike):
        return features.origin
    dataset = Dataset(open_location(features))
    return None if dataset.location.read(dataset.kind.note) is None else folder_origin(dataset)


def _load(
    features: str | os.PathLike[str] | Features, table: str, keys: tuple[str, ...], columns: Sequence[str] | None
) -> dict[str, NDArray[Any]]:
    """Load columns of a table, and the keys, into arrays of the full length, part by part."""
    schema = next(_parts(features, table)).schema_arrow
    if columns is None:
        columns = [field.name for field in schema if is_numeric(field.type)]
    names = list(dict.fromkeys([*keys, *columns]))
    for name in names:
        if name not in schema.names:
            raise ValueError(f"{features}/{table} has no column {name!r}, only {', '.join(schema.names)}.")
        if not is_numeric(schema.field(name).type) and not pa.types.is_fixed_size_list(schema.field(name).type):
            raise ValueError(f"the column {name!r} of {features}/{table} holds no numbers; leave it out.")
    # Concatenating the parts would need the memory of histograms twice.
    count = sum(part.metadata.num_rows for part in _parts(features, table))
    arrays = {name: _empty(count, schema.field(name).type) for name in names}
    begin = 0
    for part in _parts(features, table):
        rows = part.read(columns=names)
        for name, array in arrays.items():
            values = rows.column(name).combine_chunks()
            flat = values.flatten() if array.ndim == 2 else values
            array[begin : begin + len(rows)] = flat.to_numpy(zero_copy_only=False).reshape(-1, *array.shape[1:])
        begin += len(rows)
    return arrays


def _parts(features: str | os.PathLike[str] | Features, table: str) -> Iterator[pq.ParquetFile]:
    """Open the parts of a table one after the other, at least one."""
    if not isinstance(features, str | os.PathLike):
        if features.address is None:
            sink = pa.BufferOutputStream()
            pq.write_table(features.table if table == TABLE else features.edges, sink)
            with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as part:
                yield part
            return
        features = features.address
    dataset = Dataset(open_location(features))
    if dataset.location.read(MARKER) is not None:
        # Raises, because the features are unfinished.
        dataset.note()
    numbers = dataset.parts(table)
    if not numbers:
        raise FileNotFoundError(f"{features} holds no {table}: name a folder of features.")
    for number in numbers:
        with dataset.open(table, number) as part:
            yield part


def _empty(count: int, kind: pa.DataType) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(kind):
        return np.empty((count, kind.list_size), kind.value_type.to_pandas_dtype())
    return np.empty(count, kind.to_pandas_dtype())


def _column(table: Mapping[str, NDArray[Any]], name: str, kind: str) -> NDArray[Any]:
    if name not in table:
        loaded = ", ".join(table) or "none"
        raise ValueError(f"the graph's {kind} have no column {name!r} loaded, only {loaded}; name it in load_graph.")
    return table[name]


def _rows(
    table: Mapping[str, NDArray[Any]], columns: Iterable[str] | None, of: str, count: int
) -> Iterator[dict[str, Any]]:
    """Return an iterator over the rows of a table, as dicts."""
    names = list(table if columns is None else columns)
    values = [_column(table, name, of).tolist() for name in names]
    if not names:
        return iter([{} for _ in range(count)])
    return (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))


def _matrix(
    table: Mapping[str, NDArray[Any]], columns: Iterable[str] | None, of: str, count: int
) -> NDArray[np.float32]:
    """Return columns side by side as a matrix."""
    names = table if columns is None else columns
    parts = [np.empty((count, 0), np.float32)]
    parts += [_column(table, name, of).reshape(count, math.prod(table[name].shape[1:])) for name in names]
    return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")
