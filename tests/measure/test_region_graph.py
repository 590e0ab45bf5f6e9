"""The region adjacency graph as a user of SciPy, NetworkX or PyTorch Geometric meets it."""

import subprocess
import sys

import networkx
import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.csgraph import connected_components

import dseeds
from dseeds.measure.region_graph import AdjacencyGraph
from dseeds.storage.location import open_location
from tests.support.feature_folders import write_features, write_parts

LABELS = np.array([2, 3, 7, 1 << 40, (1 << 63) - 1])
# The third touches none.
PAIRS = np.array([[0, 1], [0, 3], [1, 3], [3, 4]])


@pytest.fixture
def folder(tmp_path):
    histograms = np.random.default_rng(1).integers(0, 9, (5, 1, 64))
    return write_features(tmp_path / "labels.features", LABELS, PAIRS, histograms)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_are_one_table(tmp_path, parts):
    histograms = np.random.default_rng(1).integers(0, 9, (5, 2, 64))
    folder = write_features(tmp_path / "labels.features", LABELS, PAIRS, histograms, parts)
    graph = dseeds.load_graph(folder, columns=["num_pixels", "histogram-1"], edge_columns=["num_faces"])
    np.testing.assert_array_equal(graph.labels, LABELS)
    np.testing.assert_array_equal(graph.pairs, PAIRS)
    np.testing.assert_array_equal(graph.nodes["num_pixels"], histograms.sum((1, 2)))
    np.testing.assert_array_equal(graph.nodes["histogram-1"], histograms[:, 1])
    assert (set(graph.nodes), set(graph.edges)) == ({"num_pixels", "histogram-1"}, {"num_faces"})
    assert graph.pairs.dtype == graph.labels.dtype == graph.nodes["num_pixels"].dtype == np.int64


def test_by_default_all_but_histograms_is_loaded(folder):
    graph = dseeds.load_graph(folder)
    places = {*(f"centroid-{axis}" for axis in range(3)), *(f"bbox-{axis}" for axis in range(6))}
    assert set(graph.nodes) == {"num_pixels", "area", "intensity_mean"} | places
    assert set(graph.edges) == {"num_faces", "area", "histogram_distance"}
    assert repr(graph) == "AdjacencyGraph(5 supervoxels, 4 edges)"


def test_scipy(folder):
    graph = dseeds.load_graph(str(folder))
    matrix = graph.to_scipy()
    assert isinstance(matrix, scipy.sparse.csr_array)
    assert (matrix.shape, matrix.dtype, matrix.nnz) == ((5, 5), np.float64, 8)
    expected = np.zeros((5, 5))
    for (one, other), area in zip(PAIRS, graph.edges["area"], strict=True):
        expected[one, other] = expected[other, one] = area
    np.testing.assert_array_equal(matrix.toarray(), expected)
    np.testing.assert_array_equal(graph.to_scipy("num_faces").toarray() > 0, expected > 0)
    np.testing.assert_array_equal(graph.to_scipy(None).toarray(), expected > 0)
    count, parts = connected_components(matrix)
    assert (count, parts.tolist()) == (2, [0, 0, 1, 0, 0])


def test_a_weight_of_nothing_is_still_an_edge():
    graph = AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), {}, {"intensity_difference": np.zeros(1)})
    assert graph.to_scipy("intensity_difference").nnz == 2


def test_networkx(folder):
    graph = dseeds.load_graph(folder)
    found = graph.to_networkx()
    assert isinstance(found, networkx.Graph)
    assert list(found.nodes) == LABELS.tolist()
    assert {frozenset(edge) for edge in found.edges} == {frozenset(LABELS[pair].tolist()) for pair in PAIRS}
    assert found.nodes[7] == {name: values[2] for name, values in graph.nodes.items()}
    assert found.edges[3, 2] == {name: values[0] for name, values in graph.edges.items()}
    assert type(found.nodes[7]["num_pixels"]) is int
    assert networkx.number_connected_components(found) == 2
    few = graph.to_networkx(columns=["area"], edge_columns=[])
    assert few.nodes[2] == {"area": graph.nodes["area"][0]}
    assert few.edges[2, 3] == {}
    assert dseeds.load_graph(folder, columns=["histogram"]).to_networkx().nodes[2]["histogram"][:2] == [4, 4]


def test_torch_geometric(folder):
    """As its documentation says: ``x`` and ``pos`` a row per node, ``edge_index`` in COO format, coalesced."""
    graph = dseeds.load_graph(folder)
    arrays = graph.to_torch_geometric()
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "x": ((5, 3), np.float32),
        "edge_index": ((2, 8), np.int64),
        "edge_attr": ((8, 3), np.float32),
        "pos": ((5, 3), np.float32),
    }
    assert all(array.flags.c_contiguous for array in arrays.values())
    index = arrays["edge_index"]
    assert sorted(index.T.tolist()) == index.T.tolist()
    assert {tuple(pair) for pair in index.T.tolist()} == {
        (*pair,) for way in (1, -1) for pair in PAIRS[:, ::way].tolist()
    }
    for (one, other), row in zip(index.T, arrays["edge_attr"], strict=True):
        edge = np.flatnonzero((sorted((one, other)) == PAIRS).all(1))[0]
        np.testing.assert_array_equal(row, [np.float32(values[edge]) for values in graph.edges.values()])
    np.testing.assert_array_equal(arrays["x"][:, 1], graph.nodes["area"].astype(np.float32))
    np.testing.assert_array_equal(arrays["pos"][:, 2], graph.nodes["centroid-2"].astype(np.float32))


def test_torch_geometric_takes_histograms_bin_by_bin(folder):
    graph = dseeds.load_graph(folder, columns=["histogram", "area"], edge_columns=[])
    arrays = graph.to_torch_geometric(["area", "histogram"])
    assert set(arrays) == {"x", "edge_index", "edge_attr"}
    np.testing.assert_array_equal(arrays["x"][:, 1:], graph.nodes["histogram"])
    assert arrays["edge_attr"].shape == (8, 0)


def test_positions_are_no_features():
    nodes = {f"{name}-0": np.ones(1) for name in ("centroid", "bbox", "centroid_world", "bbox_world", "intensity_mean")}
    graph = AdjacencyGraph(np.array([1]), np.empty((0, 2), np.int64), nodes, {})
    assert graph.to_torch_geometric()["x"].shape == (1, 1)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_edges(tmp_path, count):
    histograms = np.ones((count, 1, 64), int)
    folder = write_features(tmp_path / "labels.features", range(1, count + 1), [], histograms)
    graph = dseeds.load_graph(folder)
    assert graph.pairs.shape == (0, 2)
    assert graph.to_scipy().shape == (count, count)
    assert graph.to_scipy().nnz == 0
    assert list(graph.to_networkx().nodes) == list(range(1, count + 1))
    arrays = graph.to_torch_geometric()
    assert [arrays[name].shape for name in ("x", "edge_index", "edge_attr")] == [(count, 3), (2, 0), (0, 3)]


def test_a_folder_without_features_is_refused(tmp_path):
    for name in ("nothing.features", "."):
        with pytest.raises(FileNotFoundError, match=r"holds no table\.parquet: name a folder of features"):
            dseeds.load_graph(tmp_path / name)


def test_missing_columns_are_named(folder):
    with pytest.raises(ValueError, match=r"table\.parquet has no column 'colour', only label, num_pixels"):
        dseeds.load_graph(folder, columns=["colour"])
    with pytest.raises(ValueError, match=r"edges\.parquet has no column 'colour', only source, target"):
        dseeds.load_graph(folder, edge_columns=["colour"])
    graph = dseeds.load_graph(folder, columns=[], edge_columns=[])
    with pytest.raises(ValueError, match="edges have no column 'area' loaded, only none"):
        graph.to_scipy()
    with pytest.raises(ValueError, match="supervoxels have no column 'area' loaded"):
        graph.to_networkx(["area"])
    with pytest.raises(ValueError, match="edges have no column 'colour' loaded"):
        graph.to_torch_geometric(edge_columns=["colour"])


@pytest.mark.parametrize(
    ("table", "columns", "sentence"),
    [
        ("table", {"label": [3, 2, *LABELS[2:]]}, "labels of supervoxels must be 1 or greater, in ascending"),
        ("table", {"label": [0, 2, 3, *LABELS[3:]]}, "labels of supervoxels must be 1 or greater, in ascending"),
        ("table", {"label": [1, 2, 3, 4, 5], "name": ["a"] * 5}, "holds no numbers"),
        ("table", {"id": [1, 2, 3, 4, 5]}, "no column 'label'"),
        ("edges", {"source": [2], "target": [4]}, "supervoxel 4, which is missing in table.parquet"),
        ("edges", {"source": [3], "target": [2]}, "the lower first"),
        ("edges", {"source": [2, 2], "target": [3, 3]}, "edges must be in ascending order, each once"),
    ],
)
def test_damaged_tables_are_refused(folder, tmp_path, table, columns, sentence):
    (folder / f"{table}.parquet").rename(tmp_path / "away")
    write_parts(folder / f"{table}.parquet", {name: np.array(values) for name, values in columns.items()})
    with pytest.raises(ValueError, match=sentence):
        dseeds.load_graph(folder, columns=["name"] if "name" in columns else None)


@pytest.mark.parametrize(
    ("pairs", "nodes", "sentence"),
    [
        ([[0, 0]], 2, "the lower first"),
        ([[0, 2]], 2, "positions in labels"),
        ([[-1, 1]], 2, "positions in labels"),
        ([[0, 1]], 3, "'area' must have 2 rows, but has 3"),
    ],
)
def test_what_is_no_graph_is_refused(pairs, nodes, sentence):
    with pytest.raises(ValueError, match=sentence):
        AdjacencyGraph(np.array([1, 2]), np.array(pairs), {"area": np.ones(nodes)}, {})


@pytest.mark.parametrize(("name", "method"), [("scipy", "to_scipy(None)"), ("networkx", "to_networkx()")])
def test_what_is_not_installed_is_named(name, method):
    code = f"""
import sys
sys.modules[{name!r}] = sys.modules["scipy.sparse"] = None
import numpy as np
from dseeds.measure.region_graph import AdjacencyGraph
from dseeds.storage.location import open_location
graph = AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), {{}}, {{}})
assert graph.to_torch_geometric()["edge_index"].shape == (2, 2)
try:
    graph.{method}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert f"pip install {name}." in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_graph_in_an_object_store(folder, faulty_store):
    place = open_location(f"{faulty_store.make_bucket()}/labels.features")
    for path in folder.rglob("part-*"):
        place.write(path.relative_to(folder).as_posix(), path.read_bytes())
    np.testing.assert_array_equal(dseeds.load_graph(place.address).pairs, PAIRS)
