"""Classes spread over supervoxels: against dense solutions, scikit-image, scikit-learn and NetworkX."""

import json
import sys

import networkx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator
from skimage.segmentation import random_walker
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.naive_bayes import GaussianNB

import dseeds
from dseeds.measure import propagation
from dseeds.measure.propagation import FAR, RandomWalker, contact_weights, propagate
from dseeds.measure.region_graph import AdjacencyGraph
from tests.support.feature_folders import write_features

# What the documentation promises.
EXACT = 1e-6


def graph_of(pairs, values, sizes=None):
    """A graph with labels from 1, mean intensities, and areas."""
    pairs = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    sizes = np.ones(len(pairs)) if sizes is None else sizes
    return AdjacencyGraph(np.arange(1, len(values) + 1), pairs, {"intensity_mean": np.asarray(values)}, {"area": sizes})


def grid(values):
    """The graph of all voxels of a volume, in their flat order."""
    places = np.arange(values.size).reshape(values.shape)
    pairs = []
    for axis in range(3):
        low, high = (np.take(places, range(first, values.shape[axis] - 1 + first), axis) for first in (0, 1))
        pairs += zip(low.ravel().tolist(), high.ravel().tolist(), strict=True)
    return graph_of(pairs, values.ravel())


def dense(graph, classes, beta):
    """The probabilities of all classes (n, k), by LAPACK; NaN where there are none."""
    n, weights = len(graph.labels), contact_weights(graph, ["intensity_mean"], "area", beta)
    adjacency = np.zeros((n, n))
    adjacency[graph.pairs[:, 0], graph.pairs[:, 1]] = weights
    adjacency += adjacency.T
    laplacian = np.diag(adjacency.sum(1)) - adjacency
    given = np.array([classes.get(label, 0) for label in graph.labels.tolist()])
    names = np.unique(given[given > 0])
    parts = connected_components(adjacency > 0)[1]
    free = (given == 0) & np.isin(parts, parts[given > 0])
    result = np.full((n, len(names)), np.nan)
    result[given > 0] = given[given > 0, None] == names
    inflow = adjacency[free][:, given > 0] @ result[given > 0]
    result[free] = np.linalg.solve(laplacian[np.ix_(free, free)], inflow)
    return result


@st.composite
def annotated_graphs(draw):
    """Small graphs with some annotations: several parts, nodes without edges, and weights that differ by far."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    every = [(a, b) for a in range(n) for b in range(a + 1, n)]
    kept = rng.random(len(every)) < draw(st.sampled_from([0.02, 0.1, 0.5]))
    pairs = [pair for pair, keep in zip(every, kept, strict=True) if keep]
    graph = graph_of(pairs, rng.integers(0, draw(st.sampled_from([1, 3, 1000])), n), rng.uniform(0.1, 9, len(pairs)))
    count = draw(st.integers(1, n))
    labels = rng.choice(n, count, replace=False) + 1
    return graph, dict(zip(labels.tolist(), rng.choice([1, 2, 70], count).tolist(), strict=True))


@given(annotated_graphs(), st.sampled_from([0, 0.3, 2, 100]))
@settings(max_examples=60, deadline=None)
def test_probabilities_solve_the_equations(made, beta):
    graph, classes = made
    result = propagate(graph, classes, beta=beta, threads=1)
    expected = dense(graph, classes, beta)
    np.testing.assert_allclose(result.probabilities, expected, atol=EXACT)
    reached = ~np.isnan(expected[:, 0])
    np.testing.assert_allclose(result.probabilities[reached].sum(1), 1, atol=1e-12)
    assert (result.assigned[~reached] == 0).all()
    assert (result.uncertainty[~reached] == 1).all()
    # The class is one of the most probable, and of equal ones the smallest.
    places = np.searchsorted(result.classes, result.assigned[reached])
    chosen = np.take_along_axis(expected[reached], places[:, None], 1)[:, 0]
    assert (chosen >= expected[reached].max(1) - 2 * EXACT).all()
    again = propagate(graph, classes, beta=beta, threads=3)
    assert again.probabilities.tobytes() == result.probabilities.tobytes()


@pytest.fixture(scope="module")
def organs():
    """The graph of a lattice of 1,331 supervoxels of three shades with noise, and a few annotations."""
    rng = np.random.default_rng(0)
    z, y, x = np.indices((11, 11, 11)) - 5
    shades = 10 + 5 * (z * z + y * y + x * x < 18) + 5 * (x > 2)
    graph = grid(shades + rng.normal(0, 1.5, shades.shape))
    chosen = rng.choice(1331, 20, replace=False)
    return graph, dict(zip((chosen + 1).tolist(), (shades.ravel()[chosen] // 5).tolist(), strict=True))


@pytest.mark.parametrize("beta", [0.1, 1, 100])
def test_coarser_levels_change_nothing_and_answers_follow_annotations(organs, beta):
    graph, classes = organs
    walker = RandomWalker(graph, beta=beta)
    before = walker.propagate(classes)
    np.testing.assert_allclose(before.probabilities, dense(graph, classes, beta), atol=EXACT)
    # Another class, some more of one, and one that is taken back.
    first, second = before.suggest(2).tolist()
    for changes in ({first: 9}, {first: 2, second: 2}, {min(classes): 0}):
        changed = {**classes, **changes}
        warm = walker.propagate(changed)
        np.testing.assert_allclose(warm.probabilities, propagate(graph, changed, beta=beta).probabilities, atol=EXACT)
    more = walker.propagate({**classes, first: 2})
    own = (before.classes == 2).argmax()
    assert (more.probabilities[:, own] >= before.probabilities[:, own] - EXACT).all()
    assert (np.delete(more.probabilities - before.probabilities, own, 1) <= EXACT).all()


def test_an_added_annotation_takes_fewer_steps(organs, monkeypatch):
    graph, classes = organs
    cycles, restrict = [], propagation._Hierarchy.restrict

    def counted(*arguments):
        inner = restrict(*arguments)
        return LinearOperator(inner.shape, lambda b: cycles.append(1) or inner @ b, dtype=np.float64)

    monkeypatch.setattr(propagation._Hierarchy, "restrict", counted)
    walker = RandomWalker(graph, threads=1)
    last = walker.propagate(classes)
    cold, hierarchy = len(cycles), walker._hierarchy
    cycles.clear()
    added = {**classes, int(last.suggest(1)[0]): 2}
    walker.propagate(added)
    assert len(cycles) < cold
    # The scales of the answer and of what is missing to it are found, and no step is taken.
    cycles.clear()
    walker.propagate(added)
    assert len(cycles) == 3 * (len(last.classes) - 1)
    assert walker._hierarchy is hierarchy
    walker.propagate({max(classes): 1, min(classes): 2})
    assert walker._hierarchy is not hierarchy


def test_a_missing_solver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyamg", None)
    with pytest.raises(ImportError, match=r"The random walker needs one more package: pip install .*random-walker"):
        propagate(graph_of([(0, 1)], [1, 2]), {1: 1, 2: 2})


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 9, 8)])
def test_scikit_image_has_the_same_probabilities(shape):
    """Where every voxel is a supervoxel: its weights are those of the squared difference over ten deviations."""
    rng = np.random.default_rng(4)
    image = rng.uniform(size=shape)
    markers = np.zeros(shape, np.int64)
    markers.flat[rng.choice(image.size, 6, replace=False)] = [1, 1, 2, 2, 3, 3]
    theirs = random_walker(image, markers, beta=20, mode="bf", return_full_prob=True)
    graph = grid(image)
    values = image.ravel()
    mean = np.abs(values[graph.pairs[:, 0]] - values[graph.pairs[:, 1]]).mean()
    classes = {int(place) + 1: int(markers.flat[place]) for place in np.flatnonzero(markers)}
    ours = propagate(graph, classes, beta=20 / (10 * image.std()) * mean**2)
    np.testing.assert_allclose(ours.probabilities.T.reshape(3, *shape), theirs, atol=EXACT)


def test_of_equal_classes_the_smallest_is_taken():
    """Whatever rounding does to a chain with a class at either end."""
    graph = graph_of([(k, k + 1) for k in range(400)], np.zeros(401))
    for low, high in ((3, 8), (8, 3)):
        result = propagate(graph, {1: low, 401: high})
        assert result.assigned[200] == 3
        assert result.uncertainty.argmax() == 200
        assert result.suggest(1).tolist() == [201]
        np.testing.assert_allclose(
            result.probabilities[:, result.classes == low].ravel(), np.linspace(1, 0, 401), 0, EXACT
        )


def test_what_supervoxels_are_compared_by():
    nodes = {
        "histogram": np.array([[0, 3], [4, 0], [4, 1]]),
        "intensity_mean": np.array([1.0, np.nan, 3.0]),
        "intensity_std": np.array([5.0, 5.0, 5.0]),
    }
    edges = {"area": np.array([2.0, 3.0]), "histogram_distance": np.array([0.2, 0.6])}
    graph = AdjacencyGraph(np.array([1, 2, 3]), np.array([[0, 1], [1, 2]]), nodes, edges)
    for columns, exponents in (
        (["histogram"], [(5 / 3) ** 2, (1 / 3) ** 2]),
        (["histogram_distance"], [0.25, 2.25]),
        # Missing values count as the mean difference, and nothing but missing ones as nothing.
        (["intensity_std"], [0, 0]),
        (["intensity_mean"], [0, 0]),
        (["intensity_std", "histogram_distance"], [0.125, 1.125]),
        ([], [0, 0]),
    ):
        np.testing.assert_allclose(
            contact_weights(graph, columns, "area", 0.5), np.exp(-0.5 * np.array(exponents)) * [2, 3]
        )
        np.testing.assert_allclose(contact_weights(graph, columns, None, 0.5), np.exp(-0.5 * np.array(exponents)))
    three = AdjacencyGraph(graph.labels, graph.pairs, {"a": np.array([1, 1, np.nan])}, edges)
    assert contact_weights(three, ["a"], None, 1).tolist() == [1, 1]
    assert contact_weights(graph, ["histogram"], None, 100).tolist() == [1e-6, np.exp(-100 / 9)]


def test_suggestions_are_those_of_a_plain_search(organs):
    graph, classes = organs
    result = propagate(graph, classes)
    network = graph.to_networkx()
    own = {label: 0 if label in classes else value for label, value in zip(network, result.uncertainty, strict=True)}
    help_ = {label: own[label] * (own[label] + sum(own[other] for other in network[label])) for label in network}
    expected, share = [], dict.fromkeys(network, 1.0)
    for _ in range(12):
        best = max(network, key=lambda label: (help_[label] * share[label], -label))
        expected.append(best)
        for label, distance in networkx.single_source_shortest_path_length(network, best, FAR - 1).items():
            share[label] = min(share[label], 1 - 2.0 ** (1 - distance) if distance else 0)
    suggestions = result.suggest(12)
    assert suggestions.tolist() == expected
    assert not set(expected) & set(classes)
    assert not network.subgraph(expected).edges
    np.testing.assert_array_equal(result.suggest(3), suggestions[:3])


def test_few_suggestions():
    graph = graph_of([(0, 1), (1, 2), (2, 3)], np.zeros(5))
    assert propagate(graph, {1: 1, 4: 2}).suggest(9).tolist() == [5, 2]
    assert propagate(graph, {1: 1, 5: 1}).suggest().tolist() == []
    for count in (0, 2.5, True, "all"):
        with pytest.raises(ValueError, match="count must be a whole number of at least 1"):
            propagate(graph, {1: 1}).suggest(count)


# Classifiers


@pytest.mark.parametrize("method", ["random_forest", "gradient_boosting"])
def test_classifiers_are_those_of_scikit_learn(tmp_path, method):
    rng = np.random.default_rng(2)
    histograms = rng.integers(0, 9, (60, 1, 64))
    folder = write_features(tmp_path / "labels.features", np.arange(1, 61) * 7, [], histograms)
    classes = {7 * k: k % 3 + 1 for k in range(1, 31)}
    result = propagate(folder, classes, method=method)
    table = dseeds.load_graph(folder).nodes
    values = np.stack([table[name] for name in ("num_pixels", "area", "intensity_mean")], 1).astype(np.float32)
    model = RandomForestClassifier(random_state=0)
    if method == "gradient_boosting":
        model = HistGradientBoostingClassifier(min_samples_leaf=5, random_state=0)
    expected = model.fit(values[:30], list(classes.values())).predict_proba(values[30:])
    np.testing.assert_allclose(result.probabilities[30:], expected, atol=1e-12)
    assert result.assigned[:30].tolist() == list(classes.values())
    assert (result.probabilities[:30].max(1) == 1).all()
    assert propagate(folder, {7: 4}, method=method).assigned.tolist() == [4] * 60


def test_any_classifier_and_columns(tmp_path):
    histograms = np.random.default_rng(2).integers(0, 9, (40, 1, 64))
    histograms[20:, :, :32] += 9
    folder = write_features(tmp_path / "labels.features", range(1, 41), [(0, 1)], histograms)
    result = propagate(folder, {1: 1, 2: 1, 30: 2, 31: 2}, method=GaussianNB(var_smoothing=1), columns=["histogram"])
    assert result.assigned.tolist() == [1] * 20 + [2] * 20
    with pytest.raises(ValueError, match="needs columns of the supervoxels"):
        propagate(folder, {1: 1, 2: 2}, method=GaussianNB(), columns=[])


def test_a_missing_classifier_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError, match=r"pip install 'dseeds\[classifiers\]'"):
        propagate(graph_of([(0, 1)], [1, 2]), {1: 1, 2: 2}, method="random_forest")


# Annotations


def test_annotations_of_every_kind(tmp_path):
    graph = graph_of([(0, 1), (1, 2), (2, 3)], [1, 1, 9, 9])
    frame = pd.DataFrame({"label": [1, 4], "organ": [3, 5]})
    frame.to_csv(tmp_path / "clicks.csv", index=False)
    votes = dseeds.vote(np.array([[[1, 1, 2, 3, 4]]]), np.array([[[3, 5, 0, 0, 5]]]), tmp_path / "labels.vote")
    for classes, column in (
        ({1: 3, 4: 5}, None),
        ({1: 3.0, 2: 0, 3: np.nan, 4: 5.0}, None),
        (pd.Series([3, 5], index=[1, 4]), None),
        (frame, "organ"),
        (pa.Table.from_pandas(frame), "organ"),
        (tmp_path / "clicks.csv", "organ"),
        (votes, None),
        (str(tmp_path / "labels.vote"), None),
    ):
        assert propagate(graph, classes, column=column).assigned.tolist() == [3, 3, 5, 5]


@pytest.mark.parametrize(
    ("classes", "options", "sentence"),
    [
        ({}, {}, "no supervoxel has a class"),
        ({1: 0}, {}, "no supervoxel has a class"),
        ({1: 1.5}, {}, r"whole numbers from 0 to 2\^63 - 1, got 1.5"),
        ({1: -2}, {}, "got -2"),
        ({7: 1}, {}, "label 7 has a class, but is not in the graph"),
        ({1: 1}, {"beta": -1}, "beta must be a number of at least 0, got -1"),
        ({1: 1}, {"beta": float("nan")}, "beta must be"),
        ({1: 1}, {"method": "magic"}, "method 'magic' is unknown: choose one of random_walker, random_forest"),
        ({1: 1}, {"columns": ["colour"]}, "have no column 'colour' loaded"),
        ({1: 1}, {"weight": "num_faces"}, "have no column 'num_faces' loaded"),
        ({1: 1}, {"weight": "nothing"}, "'nothing' of the edges must be larger than 0"),
        ({1: 1}, {"threads": 0}, "threads must be"),
    ],
)
def test_what_is_not_right_is_refused(classes, options, sentence):
    graph = graph_of([(0, 1), (1, 2)], [1, 2, 3])
    graph.edges["nothing"] = np.array([1, 0])
    with pytest.raises(ValueError, match=sentence):
        propagate(graph, classes, **options)


def test_the_command(tmp_path, call):
    pairs = [(k, k + 1) for k in range(29)]
    histograms = np.ones((31, 1, 64), int)
    folder = write_features(tmp_path / "labels.features", range(1, 32), pairs, histograms)
    pq.write_table(pa.table({"label": [1, 30], "majority": [1, 4]}), tmp_path / "votes.parquet")
    arguments = "propagate", folder, tmp_path / "votes.parquet", tmp_path / "classes.parquet"
    code, out, _ = call(*arguments, "--json", "--suggest", 2, "--columns", "intensity_mean,histogram_distance")
    assert code == 0
    summary = json.loads(out)
    expected = propagate(folder, {1: 1, 30: 4}, columns=["intensity_mean", "histogram_distance"])
    table = pq.read_table(tmp_path / "classes.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), expected.table.to_pandas())
    assert table.column_names[-2:] == ["probability-1", "probability-4"]
    assert (summary["supervoxels"], summary["annotated"], summary["without class"]) == (31, 2, 1)
    assert sum(summary["classes"].values()) == 30
    assert [row["label"] for row in summary["suggestions"]] == expected.suggest(2).tolist()
    centroids = dseeds.load_graph(folder).nodes
    place = summary["suggestions"][0]["label"] - 1
    assert summary["suggestions"][0]["at"] == [round(centroids[f"centroid-{axis}"][place]) for axis in range(3)]
    code, _, err = call(*arguments)
    assert (code, "exists" in err) == (1, True)
    code, out, _ = call(*arguments, "--overwrite", "--method", "random_forest", "--suggest", 1)
    assert (code, "at (z,y,x)" in out) == (0, True)
    code, _, err = call("propagate", folder, tmp_path / "votes.parquet", tmp_path / "votes.parquet", "--overwrite")
    assert (code, "is the source" in err) == (1, True)
