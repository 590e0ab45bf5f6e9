"""Merging supervoxels: against plain Python, scikit-image and SciPy, and what can go wrong."""

import json
import time
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from skimage import graph as skimage_graph

import dseeds
from dseeds.cli import main
from dseeds.measure import agglomeration
from dseeds.measure.agglomeration import MergeTree, agglomerate
from dseeds.measure.region_graph import AdjacencyGraph
from tests.support.feature_folders import BINS, write_features

# The steps that shares and distances count in.
SHARE, STEP = 1 << 30, 1 << 31


def graph_of(histograms, pairs, labels=None):
    """A graph of histograms (n, channels, bins) and pairs of positions."""
    labels = np.arange(1, len(histograms) + 1) if labels is None else np.asarray(labels)
    channels = {f"histogram-{c}": histograms[:, c] for c in range(histograms.shape[1])}
    return AdjacencyGraph(labels, np.array(sorted(pairs), np.int64).reshape(-1, 2), channels, {})


def apart(one, other, weights):
    """The distance of two lists of histograms, in plain Python: an integer in steps of 2^-31."""
    total = 0
    for a, b, weight in zip(one, other, weights, strict=True):
        n, m = sum(a), sum(b)
        if n == 0 or m == 0:
            total += weight * STEP * (n != m)
            continue
        shares = [(int(i * (SHARE / n) + 0.5), int(j * (SHARE / m) + 0.5)) for i, j in zip(a, b, strict=True)]
        total += weight * min(sum(abs(i - j) for i, j in shares), STEP)
    return total // sum(weights)


class Oracle:
    """Segments that are looked through from end to end at each merge."""

    def __init__(self, histograms, pairs, weights):
        self.weights = weights
        self.histograms = {k: own.tolist() for k, own in enumerate(histograms)}
        self.members = {k: [k] for k in self.histograms}
        # Between two segments, the first edge of the table.
        self.edges = {frozenset(map(int, pair)): edge for edge, pair in enumerate(sorted(pairs))}

    def distances(self):
        """What can be merged, with the distance and the first edge."""
        return {
            pair: (apart(*(self.histograms[node] for node in pair), self.weights), edge)
            for pair, edge in self.edges.items()
        }

    def merge(self, one, other, into):
        self.members[into] = self.members.pop(one) + self.members.pop(other)
        both = zip(self.histograms.pop(one), self.histograms.pop(other), strict=True)
        self.histograms[into] = [[a + b for a, b in zip(*channel, strict=True)] for channel in both]
        old, self.edges = self.edges, {}
        for pair, edge in old.items():
            renamed = frozenset(into if node in (one, other) else node for node in pair)
            if len(renamed) == 2:
                self.edges[renamed] = min(edge, self.edges.get(renamed, edge))

    def run(self):
        """All merges, always of the smallest distance."""
        rows, node = [], len(self.histograms)
        while self.edges:
            found = self.distances()
            pair = min(found, key=found.__getitem__)
            self.merge(*pair, node)
            rows.append((*sorted(pair), found[pair][0], len(self.members[node])))
            node += 1
        return rows


def rows_of(tree):
    steps = [Fraction(distance) * STEP for distance in tree.distances.tolist()]
    return [
        (*pair, step, size) for pair, step, size in zip(tree.children.tolist(), steps, tree.sizes.tolist(), strict=True)
    ]


@st.composite
def graphs(draw, most=12):
    """Small graphs of few grey values, so that ties, empty histograms, hubs and several parts are common."""
    n, channels = draw(st.integers(1, most)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    high, bins = draw(st.sampled_from([2, 5, 1000, 1 << 40])), draw(st.sampled_from([2, 3, 8]))
    histograms = rng.integers(0, high, (n, channels, bins)) * (
        rng.random((n, channels, bins)) < draw(st.floats(0.2, 1))
    )
    every = [(a, b) for a in range(n) for b in range(a + 1, n)]
    hub = [(0, b) for b in range(1, n)] if draw(st.booleans()) else []
    kept = rng.random(len(every)) < draw(st.floats(0, 1))
    return histograms, sorted({*hub, *(pair for pair, keep in zip(every, kept, strict=True) if keep)})


@given(graphs(), st.sampled_from([None, (1, 2), (5, 3)]))
@settings(max_examples=100)
def test_it_is_the_greedy_algorithm(made, weights):
    histograms, pairs = made
    weights = None if histograms.shape[1] == 1 else weights
    tree = agglomerate(graph_of(histograms, pairs), epsilon=0, weights=weights)
    whole = agglomeration.check_weights(weights, histograms.shape[1])
    assert rows_of(tree) == Oracle(histograms, pairs, whole).run()


@given(graphs(most=16), st.sampled_from([1 / 1024, 1 / 64, 0.25, 1.0]))
@settings(max_examples=50)
def test_no_merge_is_further_from_the_smallest_than_said(made, epsilon):
    histograms, pairs = made
    oracle = Oracle(histograms, pairs, [1] * histograms.shape[1])
    tree = agglomerate(graph_of(histograms, pairs), epsilon=epsilon)
    for k, (one, other, step, size) in enumerate(rows_of(tree)):
        found = oracle.distances()
        # What is written down is the distance itself, however it was chosen.
        assert step == found[frozenset((one, other))][0]
        assert step <= min(found.values())[0] + epsilon * STEP
        oracle.merge(one, other, len(histograms) + k)
        assert len(oracle.members[len(histograms) + k]) == size
    assert not oracle.edges


def hub(count, channels=1):
    """A large background that all others touch, each of a shade a little further from it, in a ring."""
    rng = np.random.default_rng(0)
    histograms = rng.integers(0, 50, (count, channels, BINS)) + np.linspace(0, 400, count).astype(int)[
        :, None, None
    ] * (np.arange(BINS) == 3)
    histograms[0] *= 10_000
    ring = {tuple(sorted((k, k % (count - 1) + 1))) for k in range(1, count)}
    return histograms, sorted({*ring, *((0, k) for k in range(1, count))})


def test_epsilon_saves_work():
    """A hub is not measured again whenever it has swallowed something."""
    histograms = np.random.default_rng(0).integers(0, 50, (4000, 1, BINS))
    histograms[0] *= 1_000_000
    star, seconds = graph_of(histograms, [(0, k) for k in range(1, 4000)]), {}
    # The kernels compile.
    agglomerate(graph_of(*hub(3)))
    for epsilon in (0, 1 / 1024):
        start = time.process_time()
        agglomerate(star, epsilon=epsilon)
        seconds[epsilon] = time.process_time() - start
    assert seconds[0] > 3 * seconds[1 / 1024]


def test_sums_beyond_32_bits():
    """Numbers of voxels in the same relation make the same tree, however large."""
    histograms, pairs = hub(40)
    small, large = (agglomerate(graph_of(histograms * factor, pairs)) for factor in (1, 1 << 34))
    np.testing.assert_array_equal(small.children, large.children)
    np.testing.assert_array_equal(small.distances, large.distances)


def test_labels_and_order_of_what_is_loaded_do_not_matter(tmp_path):
    histograms, pairs = hub(30, 2)
    labels = np.sort(np.random.default_rng(3).choice(1 << 62, 30, replace=False)) + 1
    folder = write_features(tmp_path / "labels.features", labels, pairs, histograms, parts=4)
    tree, expected = agglomerate(folder), agglomerate(graph_of(histograms, pairs))
    np.testing.assert_array_equal(tree.labels, labels)
    np.testing.assert_array_equal(tree.children, expected.children)
    loaded = dseeds.load_graph(folder, columns=["histogram-0", "histogram-1"])
    np.testing.assert_array_equal(agglomerate(loaded).children, expected.children)
    np.testing.assert_array_equal(loaded.nodes["histogram-0"], histograms[:, 0])


def test_weights_are_those_of_channels():
    histograms, pairs = hub(30, 2)
    first = agglomerate(graph_of(histograms[:, :1], pairs), epsilon=0)
    assert rows_of(agglomerate(graph_of(histograms[:, [0, 0]], pairs), epsilon=0)) == rows_of(first)
    both = [agglomerate(graph_of(histograms, pairs), epsilon=0, weights=w) for w in ((2, 2), (1, 1), (3, 1))]
    assert rows_of(both[0]) == rows_of(both[1])
    assert rows_of(both[0]) != rows_of(both[2])


def test_histograms_of_nothing_join_each_other_first_and_others_last():
    histograms = np.zeros((4, 1, BINS), int)
    histograms[0, 0, 0], histograms[1, 0, :2] = 9, 4
    tree = agglomerate(graph_of(histograms, [(0, 1), (1, 2), (2, 3)]))
    assert tree.children.tolist() == [[2, 3], [0, 1], [4, 5]]
    assert tree.distances.tolist() == [0, 0.5, 1]


# Other libraries


@pytest.fixture(scope="module")
def volume(hippocampus):
    """A crop of a real brain in cells, their histograms and which of them touch."""
    image = hippocampus[0][4:28, 4:36, 4:28]
    labels = np.ravel_multi_index(np.indices(image.shape) // 4, (6, 8, 6)) + 1
    edges = np.quantile(image, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, image.ravel())
    count = int(labels.max())
    histograms = np.bincount((labels.ravel() - 1) * BINS + bins, minlength=count * BINS).reshape(count, 1, BINS)
    pairs = set()
    for axis in range(3):
        low, high = (np.take(labels, range(first, labels.shape[axis] - 1 + first), axis) for first in (0, 1))
        pairs |= {pair for pair in zip((low - 1).flat, (high - 1).flat, strict=True) if pair[0] != pair[1]}
    return labels, histograms, sorted(pairs)


def partition(segments):
    return {frozenset(np.flatnonzero(segments == segment).tolist()) for segment in np.unique(segments)}


@pytest.mark.parametrize("threshold", [0.3, 0.35, 0.4])
def test_scikit_image_makes_the_same_segments(volume, threshold):
    """Of the same weights in floating point, where no two are the same."""
    labels, histograms, pairs = volume
    rag = skimage_graph.RAG()
    for k, own in enumerate(histograms[:, 0], 1):
        rag.add_node(k, labels=[k], histogram=own.astype(float))

    def weight(graph, one, other):
        shares = [graph.nodes[node]["histogram"] / graph.nodes[node]["histogram"].sum() for node in (one, other)]
        return {"weight": np.abs(shares[0] - shares[1]).sum() / 2}

    def add(graph, one, other):
        graph.nodes[other]["histogram"] = graph.nodes[one]["histogram"] + graph.nodes[other]["histogram"]

    for a, b in pairs:
        rag.add_edge(a + 1, b + 1, **weight(rag, a + 1, b + 1))
    theirs = skimage_graph.merge_hierarchical(
        labels,
        rag,
        thresh=threshold,
        rag_copy=False,
        in_place_merge=True,
        merge_func=add,
        weight_func=lambda graph, one, other, neighbour: weight(graph, other, neighbour),
    )
    first = np.unique(labels, return_index=True)[1]
    ours = agglomerate(graph_of(histograms, pairs), epsilon=0).cut(threshold=threshold)
    assert 2 < ours.max() < 0.9 * len(ours)
    assert partition(ours) == partition(theirs.ravel()[first])


def test_scipy_takes_the_tree(volume):
    _, histograms, pairs = volume
    tree = agglomerate(graph_of(histograms, pairs))
    linkage = tree.to_scipy()
    assert is_valid_linkage(linkage)
    assert linkage[-1, 3] == len(histograms)
    for threshold in (0.1, 0.3, float(tree.heights[40]), 1):
        flat = fcluster(linkage, threshold, "distance")
        assert partition(tree.cut(threshold=threshold)) == partition(flat)


# The tree


def test_segments_are_numbered_by_their_lowest_labels_and_nested():
    tree = agglomerate(graph_of(*hub(60)))
    before = tree.cut(n_segments=60)
    assert before.tolist() == list(range(1, 61))
    for count in range(59, 0, -1):
        segments = tree.cut(n_segments=count)
        firsts = np.unique(segments, return_index=True)
        assert firsts[0].tolist() == list(range(1, count + 1))
        assert (np.diff(firsts[1]) > 0).all()
        assert len({*zip(before.tolist(), segments.tolist(), strict=True)}) == count + 1
        before = segments


def test_a_threshold_stops_at_the_first_that_is_higher():
    """Even if what comes later is lower again."""
    children = np.array([[0, 1], [2, 4], [3, 5]])
    tree = MergeTree(np.arange(1, 5), children, np.array([0.25, 0.75, 0.5]), np.array([2, 3, 4]))
    assert tree.heights.tolist() == [0.25, 0.75, 0.75]
    for threshold, segments in ((0.2, [1, 2, 3, 4]), (0.25, [1, 1, 2, 3]), (0.5, [1, 1, 2, 3]), (0.75, [1, 1, 1, 1])):
        assert tree.cut(threshold=threshold).tolist() == segments


def test_parts_that_do_not_touch_stay_apart():
    histograms = np.ones((6, 1, BINS), int)
    tree = agglomerate(graph_of(histograms, [(0, 2), (1, 4)]))
    assert tree.components == 4
    assert tree.cut(n_segments=4).tolist() == tree.cut(threshold=1).tolist() == [1, 2, 1, 3, 2, 4]
    with pytest.raises(ValueError, match="n_segments is 3, but the graph has 4 parts that do not touch"):
        tree.cut(n_segments=3)
    with pytest.raises(ValueError, match="one root, but the graph has 4 parts"):
        tree.to_scipy()


@pytest.mark.parametrize("count", [0, 1])
def test_trees_of_next_to_nothing(count):
    tree = agglomerate(graph_of(np.ones((count, 1, BINS), int), []))
    assert tree.children.shape == (0, 2)
    assert tree.cut(threshold=0).tolist() == [1] * count


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "give either n_segments"),
        ({"n_segments": 2, "threshold": 0.5}, "give either n_segments"),
        ({"n_segments": 0}, "whole number from 1, got 0"),
        ({"n_segments": 2.0}, "whole number from 1, got 2.0"),
        ({"n_segments": True}, "whole number from 1"),
        ({"n_segments": 99}, "only 3 supervoxels"),
        ({"n_segments": np.uint64(5)}, "only 3 supervoxels"),
        ({"threshold": -0.1}, "number of at least 0, got -0.1"),
        ({"threshold": float("nan")}, "number of at least 0, got nan"),
        ({"threshold": "much"}, "number of at least 0, got 'much'"),
    ],
)
def test_impossible_cuts_are_refused(asked, sentence):
    tree = agglomerate(graph_of(np.ones((3, 1, BINS), int), [(0, 1), (1, 2)]))
    with pytest.raises(ValueError, match=sentence):
        tree.cut(**asked)


@pytest.mark.parametrize("epsilon", [-1, 2, float("nan"), "some", True])
def test_impossible_epsilons_are_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a number from 0 to 1"):
        agglomerate(graph_of(np.ones((3, 1, BINS), int), [(0, 1)]), epsilon=epsilon)


def test_without_histograms_nothing_is_merged():
    with pytest.raises(ValueError, match="no histograms to merge by"):
        agglomerate(AdjacencyGraph(np.array([1]), np.empty((0, 2), np.int64), {"area": np.ones(1)}, {}))


def test_progress_comes_to_its_end(monkeypatch):
    monkeypatch.setattr(agglomeration, "BLOCK", 7)
    told = []
    histograms, pairs = hub(30)
    tree = agglomerate(graph_of(histograms, pairs), progress=lambda *step: told.append(step))
    assert told == [(k, 5) for k in range(6)]
    monkeypatch.undo()
    assert rows_of(tree) == rows_of(agglomerate(graph_of(histograms, pairs)))


# Files


def test_a_tree_is_saved_and_loaded(tmp_path):
    tree = agglomerate(graph_of(np.ones((4, 1, BINS), int), [(0, 1), (1, 3)], labels=[2, 5, 6, 1 << 60]))
    path = tmp_path / "tree.parquet"
    tree.save(path)
    loaded = MergeTree.load(path)
    for name in ("labels", "children", "distances", "sizes"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(tree, name))
        assert getattr(loaded, name).dtype == getattr(tree, name).dtype
    assert pq.read_table(path).column("label").to_pylist() == [2, 5, 6, 1 << 60, None, None]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tree.save(path)
    tree.save(path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["tree.parquet"]


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    tree = agglomerate(graph_of(np.ones((2, 1, BINS), int), [(0, 1)]))
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "other.parquet")
    (tmp_path / "folder.parquet").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        with pytest.raises(FileExistsError, match="not overwritten"):
            tree.save(path, overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(FileNotFoundError, match="does not exist"):
        tree.save(tmp_path / "nowhere" / "tree.parquet")
    with pytest.raises(ValueError, match="is not a tree of merges"):
        MergeTree.load(tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        MergeTree.load(tmp_path / "missing.parquet")


# The command line


@pytest.fixture
def call(capsys):
    """Run `dseeds agglomerate` in this process: exit code, standard output, standard error."""

    def call(*arguments):
        code = main(["agglomerate", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def folder(tmp_path):
    histograms, pairs = hub(30)
    return write_features(tmp_path / "labels.features", range(5, 35), pairs, histograms)


def test_the_command_writes_what_map_takes(call, folder, tmp_path):
    table, tree = tmp_path / "segments.parquet", tmp_path / "tree.parquet"
    code, out, _ = call(folder, table, "--n-segments", 4, "--tree", tree, "--json")
    assert code == 0
    assert json.loads(out) == {"supervoxels": 30, "components": 1, "segments": 4, "table": str(table)}
    expected = agglomerate(folder)
    written = pq.read_table(table)
    assert written.schema.names == ["label", "segment"]
    assert written.column("label").to_pylist() == list(range(5, 35))
    assert written.column("segment").to_pylist() == expected.cut(n_segments=4).tolist()
    assert rows_of(MergeTree.load(tree)) == rows_of(expected)
    # The tree is cut elsewhere, without the features.
    assert call(tree, tmp_path / "others.parquet", "--threshold", 0.2, "--quiet")[:2] == (0, "")
    found = pq.read_table(tmp_path / "others.parquet").column("segment").to_pylist()
    assert found == expected.cut(threshold=0.2).tolist()


def test_the_command_says_what_it_did(call, folder, tmp_path):
    code, out, err = call(folder, tmp_path / "segments.parquet", "--threshold", 1, "--epsilon", 0, "--weights", 2)
    assert code == 0
    assert "segments     1" in out
    assert "merge: 1 of 1" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("F T", "give either n_segments"),
        ("F T --n-segments 4 --threshold 0.3", "give either n_segments"),
        ("F T --n-segments 99", "only 30 supervoxels"),
        ("F T --n-segments 0", "whole number from 1"),
        ("F T --threshold=-1", "number of at least 0"),
        ("F T --n-segments 4 --weights 1,2", "one for each channel"),
        ("F T --n-segments 4 --epsilon 2", "epsilon must be"),
        ("F T --n-segments 4 --tree T", "cannot be both"),
        ("F nowhere/T --n-segments 4", "does not exist"),
        ("F other --n-segments 4 --overwrite", "not written by dseeds"),
        ("F T --n-segments 4 --tree other", "not written by dseeds"),
        ("nothing T --n-segments 4", "name a folder of features"),
        ("other T --n-segments 4", "not a tree of merges"),
    ],
)
def test_the_command_refuses_in_a_sentence_and_writes_nothing(call, folder, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    folder.rename("F")
    (tmp_path / "other").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*arguments.split())
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert sentence in line
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_overwrites_only_when_told(call, folder, tmp_path):
    table = tmp_path / "segments.parquet"
    assert call(folder, table, "--n-segments", 4, "--quiet") == (0, "", "")
    code, _, err = call(folder, table, "--n-segments", 5)
    assert code == 1
    assert "--overwrite" in err
    assert call(folder, table, "--n-segments", 5, "--overwrite", "--quiet")[0] == 0
    assert max(pq.read_table(table).column("segment").to_pylist()) == 5


def test_a_tree_is_not_replaced_by_what_is_cut_of_it(call, folder, tmp_path):
    tree = tmp_path / "tree.parquet"
    assert call(folder, tmp_path / "segments.parquet", "--n-segments", 4, "--tree", tree, "--quiet")[0] == 0
    content = tree.read_bytes()
    code, _, err = call(tree, tree, "--n-segments", 5, "--overwrite")
    assert code == 1
    assert "is the source" in err
    assert tree.read_bytes() == content
