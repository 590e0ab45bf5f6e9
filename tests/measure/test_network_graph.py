"""Graphs for networks: classes, splits and nearest neighbours, against scikit-learn, and in PyTorch Geometric."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.neighbors import NearestNeighbors

import dseeds
from dseeds.measure.network_graph import nearest_edges, split_nodes

RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 200, (12, 20, 16)).astype(np.uint8)
LABELS = dseeds.supervoxels(IMAGE, step=5)
SPACING = (3.0, 0.5, 0.75)
FEATURES = dseeds.features(LABELS, IMAGE, spacing=SPACING)
GRAPH = dseeds.load_graph(FEATURES)
CLASSES = np.where(IMAGE > 100, 4, 2) * (np.arange(16) < 9)


@settings(max_examples=50)
@given(arrays(np.float64, st.tuples(st.integers(2, 12), st.just(3)), elements=st.integers(-3, 3)), st.integers(1, 5))
def test_nearest_neighbours_are_as_near_as_those_of_scikit_learn(places, k):
    index = nearest_edges(places, k)
    most = min(k, len(places) - 1)
    distances = NearestNeighbors(n_neighbors=most).fit(places).kneighbors()[0]
    # Of several that are equally near, any will do: their distances are those of scikit-learn.
    assert (index[0] != index[1]).all()
    edges = list(map(tuple, index.T.tolist()))
    assert edges == sorted({*edges, *((other, one) for one, other in edges)})
    for node in range(len(places)):
        own = np.linalg.norm(places[index[1, index[0] == node]] - places[node], axis=1)
        np.testing.assert_allclose(np.sort(own)[:most], distances[node])


def test_edges_to_the_nearest_have_distance_and_offset_in_mm():
    arrays_ = GRAPH.to_torch_geometric(k=4)
    index, attributes = arrays_["edge_index"], arrays_["edge_attr"]
    places = np.stack([FEATURES.table[f"centroid_world-{axis}"].to_numpy() for axis in range(3)], 1)
    offsets = places[index[1]] - places[index[0]]
    np.testing.assert_allclose(attributes, np.column_stack([np.linalg.norm(offsets, axis=1), offsets]), rtol=1e-6)
    assert attributes.dtype == np.float32
    both = GRAPH.to_torch_geometric(k=4, edge_columns=["area", "distance"])
    areas = GRAPH.to_scipy().toarray()
    np.testing.assert_array_equal(both["edge_index"], index)
    np.testing.assert_allclose(both["edge_attr"][:, 0], areas[tuple(index)].astype(np.float32))
    assert 0 < np.count_nonzero(both["edge_attr"][:, 0]) < len(offsets)
    np.testing.assert_array_equal(both["edge_attr"][:, 1], attributes[:, 0])
    contacts = GRAPH.to_torch_geometric(edge_columns=["offset", "area"])
    index = contacts["edge_index"]
    np.testing.assert_allclose(contacts["edge_attr"][:, :3], places[index[1]] - places[index[0]], atol=1e-5)
    np.testing.assert_allclose(contacts["edge_attr"][:, 3], areas[tuple(index)].astype(np.float32))


def test_what_is_to_be_learnt(tmp_path):
    votes = dseeds.vote(LABELS, CLASSES, tmp_path / "labels.vote")
    table = votes.table.to_pandas().set_index("label")
    expected = np.where(table["num_annotated"] > 0, table["majority"], -1)
    assert set(expected) == {-1, 2, 4}
    for y in (votes, tmp_path / "labels.vote", str(tmp_path / "labels.vote"), dseeds.vote(LABELS, CLASSES)):
        np.testing.assert_array_equal(GRAPH.to_torch_geometric(y=y)["y"], expected)
    known = table[table["num_annotated"] > 0]
    for y in (known["majority"], known["majority"].to_dict()):
        np.testing.assert_array_equal(GRAPH.to_torch_geometric(y=y)["y"], expected)
    numbers = GRAPH.to_torch_geometric(y=known, column="purity")["y"]
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[expected >= 0], known["purity"], rtol=1e-6)
    assert np.isnan(numbers[expected < 0]).all()
    with pytest.raises(ValueError, match="label 999 has a class, but is not in the graph"):
        GRAPH.to_torch_geometric(y={999: 1})
    with pytest.raises(ValueError, match="were made from different labels"):
        GRAPH.to_torch_geometric(y=dseeds.vote(LABELS[::-1], CLASSES))


@settings(max_examples=50)
@given(
    arrays(np.int64, st.integers(1, 60), elements=st.integers(-1, 3)),
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(sum),
    st.integers(0, 9),
)
def test_each_class_is_split_by_its_shares(targets, parts, seed):
    labels = np.arange(1, len(targets) + 1)
    shares = np.array(parts) / sum(parts)
    masks = split_nodes(tuple(shares), seed, labels, targets)
    assert list(masks) == ["train_mask", "val_mask", "test_mask"]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks.values()), targets >= 0)
    for name in set(targets.tolist()) - {-1}:
        own = targets == name
        for mask, share in zip(masks.values(), shares, strict=True):
            assert abs(np.count_nonzero(mask & own) - share * own.sum()) <= 1
    again = split_nodes(tuple(shares), seed, labels, targets)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, again[name])


def test_a_split_by_labels_and_what_is_none():
    ids = GRAPH.labels
    masks = GRAPH.to_torch_geometric(split={"train": ids[:3], "test": ids[5:6].tolist()})
    assert [np.flatnonzero(masks[f"{name}_mask"]).tolist() for name in ("train", "val", "test")] == [[0, 1, 2], [], [5]]
    for split, message in (
        ({"train": [1], "test": [1]}, "label 1 in two parts"),
        ({"train": [10**6]}, "label 1000000, which is not in the graph"),
        ({"dev": [1]}, "split has the part 'dev': its parts are train, val, test"),
        ((0.5, 0.6, 0.1), "split must be three shares of at least 0, together at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            GRAPH.to_torch_geometric(split=split)
    for k in (0, 1.5, True):
        with pytest.raises(ValueError, match="k must be a whole number"):
            GRAPH.to_torch_geometric(k=k)
    with pytest.raises(ValueError, match="no column 'centroid_world-0' loaded"):
        dseeds.load_graph(FEATURES, columns=["area"]).to_torch_geometric(k=2)


@pytest.mark.filterwarnings("ignore")
def test_pytorch_geometric_learns_from_it():
    reason = "PYTORCH OR PYTORCH GEOMETRIC IS MISSING: ITS GRAPHS ARE NOT TESTED"
    torch = pytest.importorskip("torch", reason=reason)
    geometric = pytest.importorskip("torch_geometric", reason=reason)
    from torch_geometric.data import Data

    votes = dseeds.vote(LABELS, CLASSES)
    made = GRAPH.to_torch_geometric(y=votes, split=(0.6, 0.2, 0.2), k=3)
    data = Data(**{name: torch.from_numpy(array) for name, array in made.items()})
    data.validate(raise_on_error=True)
    # Offsets differ in sign, edges do not.
    assert geometric.utils.is_undirected(data.edge_index)
    assert not data.has_self_loops()
    assert data.is_coalesced()
    layer = geometric.nn.GATConv(data.num_features, 5, edge_dim=4)
    out = layer(data.x, data.edge_index, data.edge_attr)[data.train_mask]
    loss = torch.nn.functional.cross_entropy(out, data.y[data.train_mask])
    loss.backward()
    assert bool(torch.isfinite(loss))
