"""`propagate`: the classes of a few supervoxels, spread to all by a random walker or a classifier.

The random walker: L. Grady, "Random walks for image segmentation", IEEE PAMI 28, 2006. A walker that starts at a
supervoxel crosses a contact with a chance in proportion to its weight; the probability of a class is that of meeting a
supervoxel of this class first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.checks import check_threads, is_whole_number
from dseeds.core.optional import import_optional
from dseeds.measure.identity import TableOrigin, check_same_labels, note_of
from dseeds.measure.lookup import open_values
from dseeds.measure.region_graph import AdjacencyGraph, column_names, is_position, load_graph
from dseeds.storage.parquet_dataset import EDGES
from dseeds.storage.table_file import check_table_file, write_table_file

if TYPE_CHECKING:
    from dseeds.measure.features import Features

Floats = NDArray[np.float64]

BETA = 1.0
# What a weight is at least, as a share of what it would be without any difference.
LEAST_SHARE = 1e-6
# A walk is solved until a multigrid cycle would change the probabilities by less, as the root mean square.
TOLERANCE = 1e-9
MOST_STEPS = 500
# A graph of at most this many nodes is solved directly.
COARSEST = 200
# The share of its strongest contact that makes a contact strong, for interpolation between levels: of a million nodes,
# a larger share takes twice as many steps.
STRONG = 0.1
# Nodes that may become known before the multigrid is built again.
MOST_ADDED = 100
# Probabilities that agree in units of this share are equal, so that rounding decides no class.
UNIT = 2.0**-20
# Hops between suggestions from which on they do not count as near.
FAR = 6
WALKER, FOREST, BOOSTING = METHODS = ("random_walker", "random_forest", "gradient_boosting")
CLASSES = "table of classes"


@dataclass(frozen=True, eq=False, repr=False)
class Propagated:
    """The classes of all supervoxels, and how probable each is.

    Attributes
    ----------
    graph : AdjacencyGraph
        The supervoxels.
    classes : ndarray of int64, shape (k,)
        The classes, in ascending order.
    probabilities : ndarray of float64, shape (n, k)
        The probability of each class; they sum to 1, or are NaN for supervoxels that no annotation reaches.
    annotated : ndarray of bool, shape (n,)
        The supervoxels whose class was given.

    Examples
    --------
    >>> graph = AdjacencyGraph(np.array([2, 4, 6, 8]), np.array([[0, 1], [1, 2]]), {}, {"area": np.array([3.0, 1.0])})
    >>> result = propagate(graph, {2: 1, 6: 5})
    >>> result
    Propagated(4 supervoxels, 2 annotated, classes 1, 5)
    >>> result.assigned, result.probabilities[:, 1]
    (array([1, 1, 5, 0]), array([0.  , 0.25, 1.  ,  nan]))
    >>> result.suggest(2)
    array([8, 4])
    """

    graph: AdjacencyGraph
    classes: NDArray[np.int64]
    probabilities: Floats
    annotated: NDArray[np.bool_]

    def __repr__(self) -> str:
        classes = ", ".join(map(str, self.classes.tolist()))
        supervoxels = f"{len(self.annotated)} supervoxels, {np.count_nonzero(self.annotated)} annotated"
        return f"{type(self).__name__}({supervoxels}, classes {classes})"

    @property
    def labels(self) -> NDArray[np.int64]:
        """The supervoxels, in ascending order."""
        return self.graph.labels

    @property
    def origin(self) -> TableOrigin | None:
        """The labels that the supervoxels are of; None if the graph does not know them."""
        return None if self.graph.origin is None else TableOrigin(self.graph.origin.identity, "the table of classes")

    @property
    def assigned(self) -> NDArray[np.int64]:
        """The most probable class of each supervoxel, int64 (n,); of several the smallest; 0 if there is none."""
        best = np.nan_to_num(np.round(self.probabilities / UNIT)).argmax(axis=1)
        return np.where(np.isnan(self.probabilities[:, 0]), 0, self.classes[best])

    @property
    def uncertainty(self) -> Floats:
        """How far from certain each class is, float64 (n,): 1 minus the lead of the most probable class, from 0 to 1.

        It is 1 where two classes are equally probable, and where no annotation reaches.
        """
        ordered = np.sort(np.round(self.probabilities / UNIT) * UNIT, axis=1)
        second = ordered[:, -2] if len(self.classes) > 1 else 0
        return np.nan_to_num(1 - (ordered[:, -1] - second), nan=1.0)

    @property
    def table(self) -> pa.Table:
        """A row for each supervoxel, sorted by label.

        The columns are ``label``; ``class``, 0 if there is none; ``probability``, that of the class; ``uncertainty``;
        ``annotated``; and for each class its probability, such as ``probability-3``.
        """
        columns = {
            "label": self.labels,
            "class": self.assigned,
            "probability": self.probabilities.max(axis=1),
            "uncertainty": self.uncertainty,
            "annotated": self.annotated,
        }
        columns |= {f"probability-{name}": self.probabilities[:, k] for k, name in enumerate(self.classes.tolist())}
        return pa.table(columns)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the table to a Parquet file, which `paint` and ``dseeds map`` take.

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
        write_table_file(path, self.table, CLASSES, note_of(self.origin))

    def suggest(self, count: int = 10) -> NDArray[np.int64]:
        """Return the supervoxels to annotate next, those whose answer would help most first.

        The help of an answer is the supervoxel's own uncertainty, times the sum of its own and that of all that touch
        it. One after the other, that with the largest help is taken, of several that with the smallest label. After
        that, the help of supervoxels at a distance of d contacts is multiplied by ``1 - 2^(1 - d)``, up to a distance
        of 5. So none of the suggestions touch, and they are spread over the graph.

        Parameters
        ----------
        count : int, default 10
            How many to return; there are fewer if all others are certain or touch them.

        Returns
        -------
        ndarray of int64, shape (at most count,)
            Labels of supervoxels that are not annotated.

        Raises
        ------
        ValueError
            If the count is not a whole number from 1.
        """
        if isinstance(count, bool) or not is_whole_number(count) or count < 1:
            raise ValueError(f"count must be a whole number of at least 1, got {count!r}.")
        own, (one, other) = np.where(self.annotated, 0, self.uncertainty), self.graph.pairs.T
        around = np.bincount(one, own[other], len(own)) + np.bincount(other, own[one], len(own))
        help_, distances = own * (own + around), np.full(len(own), float(FAR))
        paths = import_optional("scipy.sparse.csgraph", "A suggestion", "scipy")
        contacts = self.graph.to_scipy(None)
        suggestions: list[int] = []
        while len(suggestions) < count:
            share = np.where(distances < FAR, 1 - np.exp2(1.0 - distances), 1)
            best = int(np.argmax(help_ * share)) if len(own) else 0
            if not len(own) or help_[best] * share[best] <= 0:
                break
            suggestions.append(best)
            hops = paths.dijkstra(contacts, indices=best, unweighted=True, limit=FAR - 1)
            distances = np.minimum(distances, hops)
            # A distance of 0 has a share of -1.
            help_[best] = 0
        return self.labels[suggestions]


class RandomWalker:
    """The random walker on a graph of supervoxels, which answers again and again while annotations are added.

    Each call of `propagate` starts from the answer before. The multigrid that speeds it up is kept while annotations
    are only added.

    Parameters
    ----------
    features, beta, columns, weight, threads
        As for the function `propagate`.

    Examples
    --------
    >>> nodes = {"intensity_mean": np.array([10, 11, 14, 14])}
    >>> area = {"area": np.ones(3)}
    >>> graph = AdjacencyGraph(np.arange(1, 5), np.array([[0, 1], [1, 2], [2, 3]]), nodes, area)
    >>> walker = RandomWalker(graph)
    >>> walker.propagate({1: 1, 4: 2}).assigned
    array([1, 1, 2, 2])
    >>> walker.propagate({1: 1, 3: 1, 4: 2}).assigned
    array([1, 1, 1, 2])
    """

    def __init__(
        self,
        features: str | os.PathLike[str] | Features | AdjacencyGraph,
        *,
        beta: float = BETA,
        columns: Sequence[str] | None = None,
        weight: str | None = "area",
        threads: int | None = None,
    ) -> None:
        share = _check_beta(beta)
        self.threads = check_threads(threads)
        # Found missing before the graph is read.
        for module in ("scipy.sparse", "pyamg"):
            import_optional(module, "The random walker", "dseeds[random-walker]")
        self.graph, names = _open_contacts(features, columns, weight)
        weights = contact_weights(self.graph, names, weight, share)
        self._laplacian, self._parts = _build_laplacian(replace(self.graph, edges={"weight": weights}))
        self._hierarchy: _Hierarchy | None = None
        self._last: Propagated | None = None

    def propagate(self, classes: Any, *, column: str | None = None) -> Propagated:
        """Return the probabilities for these annotations, which replace those of earlier calls.

        Parameters and errors are those of the function `propagate`.
        """
        annotated = read_classes(classes, column, self.graph)
        held = annotated > 0
        names, given = np.unique(annotated[held], return_inverse=True)
        with_annotation = np.zeros(self._parts.max() + 1, bool)
        with_annotation[self._parts[held]] = True
        reached = with_annotation[self._parts]
        probabilities = np.zeros((len(annotated), len(names)))
        probabilities[held, given] = 1
        # The last class is what is missing to 1.
        self._fill_in(probabilities[:, :-1], names, reached & ~held)
        probabilities[:, -1] = np.maximum(1 - probabilities[:, :-1].sum(axis=1), 0)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        probabilities[~reached] = np.nan
        self._last = Propagated(self.graph, names, probabilities, held)
        return self._last

    def _fill_in(self, probabilities: Floats, names: NDArray[np.int64], unknown: NDArray[np.bool_]) -> None:
        """Set the probabilities of each class at the unknown nodes, where they are 0."""
        if not unknown.any() or not probabilities.shape[1]:
            return
        rows = self._laplacian[unknown]
        matrix = rows[:, unknown]
        if self._hierarchy is None or not self._hierarchy.serves(unknown):
            self._hierarchy = _Hierarchy.of(matrix, unknown)
        preconditioner = self._hierarchy.restrict(unknown)

        def solve(k: int) -> Floats:
            inflow = -(rows @ probabilities[:, k])
            return _solve(matrix, inflow, self._first_guess(int(names[k]), unknown), preconditioner)

        with ThreadPoolExecutor(self.threads) as pool:
            solutions = list(pool.map(solve, range(probabilities.shape[1])))
        for k, solution in enumerate(solutions):
            probabilities[unknown, k] = solution

    def _first_guess(self, name: int, unknown: NDArray[np.bool_]) -> Floats:
        """Return the last probabilities of a class at the unknown nodes, and 0 where there are none."""
        if self._last is None or name not in self._last.classes:
            return np.zeros(np.count_nonzero(unknown))
        guess: Floats = np.nan_to_num(self._last.probabilities[unknown, np.searchsorted(self._last.classes, name)])
        return guess


@dataclass(frozen=True, eq=False)
class _Hierarchy:
    """An algebraic multigrid for the equations of the unknown nodes that it was built for.

    It preconditions the equations of fewer nodes as well: each node that has become known since takes one more step of
    conjugate gradients at most.
    """

    unknown: NDArray[np.bool_]
    cycle: Any

    @classmethod
    def of(cls, matrix: Any, unknown: NDArray[np.bool_]) -> _Hierarchy:
        """Return the multigrid of these equations."""
        import pyamg

        # Forward before and backward after: together they are symmetric, as conjugate gradients require.
        before, after = (("gauss_seidel", {"sweep": sweep}) for sweep in ("forward", "backward"))
        levels = pyamg.ruge_stuben_solver(
            matrix,
            strength=("classical", {"theta": STRONG}),
            presmoother=before,
            postsmoother=after,
            max_coarse=COARSEST,
            coarse_solver="cholesky",
        )
        cycle = levels.aspreconditioner(cycle="W")
        # The coarsest level is factorised here, not by several threads at once.
        cycle @ np.zeros(len(matrix.indptr) - 1)
        return cls(unknown, cycle)

    def serves(self, unknown: NDArray[np.bool_]) -> bool:
        """Return whether it is good for these unknown nodes, too."""
        is_part = not (unknown & ~self.unknown).any()
        return is_part and int(np.count_nonzero(self.unknown & ~unknown)) <= MOST_ADDED

    def restrict(self, unknown: NDArray[np.bool_]) -> Any:
        """Return the preconditioner of the equations of these nodes."""
        from scipy.sparse.linalg import LinearOperator

        kept = unknown[self.unknown]

        def apply(residual: Floats) -> Floats:
            whole = np.zeros(len(kept))
            whole[kept] = residual
            result: Floats = (self.cycle @ whole)[kept]
            return result

        return self.cycle if kept.all() else LinearOperator((np.count_nonzero(kept),) * 2, apply, dtype=np.float64)


def _build_laplacian(graph: AdjacencyGraph) -> tuple[Any, NDArray[np.int32]]:
    """Return the Laplacian (n, n) of a graph with edges of a ``weight``, and the connected component of each node."""
    from scipy import sparse

    adjacency = graph.to_scipy("weight")
    parts = sparse.csgraph.connected_components(adjacency, directed=False)[1]
    return (sparse.diags_array(adjacency.sum(axis=1)) - adjacency).tocsr(), parts


def _solve(matrix: Any, inflow: Floats, guess: Floats, preconditioner: Any) -> Floats:
    """Return the probabilities of a class at the unknown nodes, by conjugate gradients."""
    from pyamg.krylov import cg

    scale = np.linalg.norm(preconditioner @ inflow)
    if scale == 0:
        return np.zeros_like(guess)
    # Relative to the scale, which is far too large where a node has become known in a part that hardly anything enters.
    share = TOLERANCE * math.sqrt(len(guess)) / scale
    solution, failure = cg(matrix, inflow, guess, share, criteria="MrMr", maxiter=MOST_STEPS, M=preconditioner)
    if failure:
        reason = f"not solved in {MOST_STEPS} steps" if failure > 0 else "too nearly singular"
        raise RuntimeError(f"the equations were {reason}: choose a smaller beta.")
    probabilities: Floats = np.clip(solution, 0, 1)
    return probabilities


def propagate(
    features: str | os.PathLike[str] | Features | AdjacencyGraph,
    classes: Any,
    *,
    column: str | None = None,
    method: Any = WALKER,
    beta: float = BETA,
    columns: Sequence[str] | None = None,
    weight: str | None = "area",
    threads: int | None = None,
) -> Propagated:
    """Spread the classes of a few supervoxels to all others, by a random walker on the graph or a classifier.

    Parameters
    ----------
    features : str, path, Features or AdjacencyGraph
        The folder of features or its URL, the result of `dseeds.features`, or a graph that was loaded with the columns
        that are used.
    classes : Votes, table or dict
        The annotated supervoxels: the result of `dseeds.vote` or its folder; a dict or Series from label to class; or
        a table with one row for each label, as for `paint`. Classes are whole numbers from 1; 0 is not annotated.
    column : str, optional
        The table's column of classes. Default: ``"majority"`` for votes and addresses.
    method : str or scikit-learn classifier, default "random_walker"
        ``"random_walker"``; ``"random_forest"`` or ``"gradient_boosting"``, which need scikit-learn; or a classifier
        with ``fit`` and ``predict_proba``, which is fitted.
    beta : float, default 1
        How strongly a difference keeps the random walker from crossing a contact; with 0 only contacts count.
    columns : sequence of str, optional
        What supervoxels are compared by: columns of their table, lists of numbers too, and for the random walker also
        columns of the edges that are differences already, such as ``"histogram_distance"``; a name that both have is
        that of the supervoxels. Default: the mean intensities for the random walker, all numbers but positions for a
        classifier.
    weight : str, optional
        The column of edges with the size of a contact, by default the area in mm^2; None if all are equal.
    threads : int, optional
        Threads of this process. Default: one per core.

    Returns
    -------
    Propagated
        With probabilities, classes, the table for `paint`, and `suggest` for what to annotate next. To add annotations
        one after the other, keep a `RandomWalker` instead.

    Raises
    ------
    FileNotFoundError
        If the folder holds no features.
    ImportError
        If pyamg (``dseeds[random-walker]``) or scikit-learn (``dseeds[classifiers]``) is needed and not installed.
    ValueError
        If nothing is annotated, an annotated label is not in the graph, both are known to be of different labels, a
        column does not exist, or a parameter is out of range.

    Notes
    -----
    Annotated supervoxels keep their class, with probability 1. Supervoxels of a connected component without any
    annotation have class 0 and probabilities NaN in a random walk; a classifier answers for them as well.

    The weight of a contact is ``size * max(exp(-beta * d), 1e-6)``. Here d is the mean over the columns of the squared
    difference of both supervoxels, in units of the column's mean difference over all contacts; the difference of lists
    is the Euclidean distance. A missing value counts as the mean difference.

    The result depends on the table and the graph alone, not on how the volume was cut. The random walker solves its
    equations by conjugate gradients with pyamg's multigrid (Ruge and Stuben). Its probabilities are exact to about
    1e-6, also if they are those of an earlier answer and an added annotation; other machines may differ by as much.
    Classes whose probabilities agree in units of 2^-20 are equally probable.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 2, 3, 4, 5]]])
    >>> image = np.array([[[10, 12, 11, 50, 52]]], np.uint8)
    >>> result = dseeds.propagate(dseeds.features(labels, image), {1: 1, 5: 2})
    >>> result.assigned
    array([1, 1, 1, 2, 2])
    >>> dseeds.paint(labels, result, column="class").compute()
    array([[[1, 1, 1, 2, 2]]], dtype=uint8)
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}, or pass a classifier.")
    if isinstance(method, str) and method == WALKER:
        walker = RandomWalker(features, beta=beta, columns=columns, weight=weight, threads=threads)
        return walker.propagate(classes, column=column)
    count = check_threads(threads)
    graph = features if isinstance(features, AdjacencyGraph) else load_graph(features, columns=columns, edge_columns=[])
    names = [name for name in graph.nodes if not is_position(name)] if columns is None else columns
    return classify(graph, read_classes(classes, column, graph), names, make_classifier(method, count))


def classify(
    graph: AdjacencyGraph, annotated: NDArray[np.int64], columns: Sequence[str], classifier: Any
) -> Propagated:
    """Return the probabilities by a classifier that is fitted to the annotated supervoxels."""
    values, known = graph.matrix(columns), annotated > 0
    names, given = np.unique(annotated[known], return_inverse=True)
    probabilities = np.ones((len(annotated), len(names)))
    if len(names) > 1:
        if not values.shape[1]:
            raise ValueError("a classifier needs columns of the supervoxels: make the features with an image.")
        classifier.fit(values[known], annotated[known])
        probabilities = np.array(classifier.predict_proba(values), np.float64)
    probabilities[known] = np.arange(len(names)) == given[:, None]
    return Propagated(graph, names, probabilities, known)


def make_classifier(method: Any, threads: int) -> Any:
    """Return a classifier by its name, or the given one."""
    if not isinstance(method, str):
        return method
    ensemble = import_optional("sklearn.ensemble", "A classifier", "dseeds[classifiers]")
    if method == FOREST:
        return ensemble.RandomForestClassifier(n_jobs=threads, random_state=0)
    # Annotations are few.
    return ensemble.HistGradientBoostingClassifier(min_samples_leaf=5, random_state=0)


def read_classes(classes: Any, column: str | None, graph: AdjacencyGraph) -> NDArray[np.int64]:
    """Return the class of each supervoxel of a graph, int64 (n,), and 0 where none is given; see `propagate`.

    >>> graph = AdjacencyGraph(np.array([1, 2, 3]), np.zeros((0, 2), np.int64), {}, {})
    >>> read_classes({2: 7, 3: 0}, None, graph)
    array([0, 7, 0])
    """
    labels = graph.labels
    if column is None and (
        isinstance(classes, str | os.PathLike) or isinstance(getattr(classes, "table", None), pa.Table)
    ):
        column = "majority"
    if isinstance(classes, Mapping) and not classes:
        raise ValueError("no supervoxel has a class: annotate at least one.")
    table = open_values(classes, column)
    check_same_labels(table.origin, graph.origin)
    keys, values = table.select(labels)
    wrong = values[(values < 0) | (values != np.floor(values)) | (values >= 2.0**63)]
    if len(wrong):
        raise ValueError(f"classes must be whole numbers from 0 to 2^63 - 1, got {wrong[0]}.")
    keys, values = keys[values > 0], values[values > 0].astype(np.int64)
    unknown = keys[~np.isin(keys, labels)]
    if len(unknown):
        raise ValueError(f"label {unknown[0]} has a class, but is not in the graph: are both of the same labels?")
    if not len(keys):
        raise ValueError("no supervoxel has a class: annotate at least one.")
    annotated = np.zeros(len(labels), np.int64)
    annotated[np.searchsorted(labels, keys)] = values
    return annotated


def contact_weights(graph: AdjacencyGraph, columns: Sequence[str], weight: str | None, beta: float) -> Floats:
    """Return how easily a random walker crosses each edge, float64 (m,); see `propagate`.

    >>> graph = AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), {"a": np.array([3, 5])}, {"area": np.array([2.0])})
    >>> contact_weights(graph, ["a"], "area", np.log(2))
    array([1.])
    """
    sizes = np.ones(len(graph.pairs)) if weight is None else graph.edge_column(weight).astype(np.float64)
    if not ((sizes > 0) & (sizes < np.inf)).all():
        raise ValueError(f"the column {weight!r} of the edges must be larger than 0 for all: choose another weight.")
    total = np.zeros(len(sizes))
    for name in columns:
        difference = _difference(graph, name)
        known = np.isfinite(difference)
        mean = difference[known].mean() if known.any() else 0.0
        if mean > 0:
            total += np.where(known, np.square(difference / mean), 1)
    share: Floats = np.maximum(np.exp(-beta * total / max(len(columns), 1)), LEAST_SHARE)
    return sizes * share


def _check_beta(beta: object) -> float:
    if isinstance(beta, bool) or not isinstance(beta, Real) or not 0 <= float(beta) < np.inf:
        raise ValueError(f"beta must be a number of at least 0, got {beta!r}.")
    return float(beta)


def _difference(graph: AdjacencyGraph, name: str) -> Floats:
    """Return the difference of each edge's supervoxels in a column, or the column of the edges, float64 (m,)."""
    if name not in graph.nodes and name in graph.edges:
        return np.abs(graph.edges[name].astype(np.float64))
    values = graph.node_column(name).astype(np.float64)
    values = values.reshape(len(values), -1)
    total = np.zeros(len(graph.pairs))
    for entries in values.T:
        total += np.square(entries[graph.pairs[:, 0]] - entries[graph.pairs[:, 1]])
    return np.sqrt(total)


def _open_contacts(
    features: str | os.PathLike[str] | Features | AdjacencyGraph, columns: Sequence[str] | None, weight: str | None
) -> tuple[AdjacencyGraph, Sequence[str]]:
    """Return the graph with the columns that a random walker needs, and the names of those to compare by."""
    names = list(features.nodes) if isinstance(features, AdjacencyGraph) else column_names(features)
    if columns is None:
        columns = [name for name in names if name.partition("-")[0] == "intensity_mean"]
    if isinstance(features, AdjacencyGraph):
        return features, columns
    of_edges = column_names(features, EDGES)
    own = [name for name in columns if name in names or name not in of_edges]
    edges = [name for name in columns if name not in own] + ([] if weight is None else [weight])
    return load_graph(features, columns=own, edge_columns=edges), columns
