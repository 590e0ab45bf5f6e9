"""Votes: equal to independent counts, the same however the volume is cut, and back on the voxels."""

import json

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.cluster import contingency_matrix

import dseeds
from dseeds.measure import votes as voting
from dseeds.storage import label_records
from tests.support.clusters import in_process

TOP = 2**63 - 1


def assert_same(one, other):
    """Equal in every bit."""
    for a, b in ((one.table, other.table), (one.counts, other.counts)):
        assert a.schema == b.schema
        for name in a.column_names:
            assert a[name].to_numpy().tobytes() == b[name].to_numpy().tobytes(), name


@st.composite
def annotated(draw):
    """Labels and classes with ids that are far apart."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    volumes = []
    for _ in range(2):
        ids = np.array([0, *draw(st.lists(st.integers(1, TOP), min_size=1, max_size=5, unique=True))], np.int64)
        volumes.append(ids[draw(arrays(np.int8, shape, elements=st.integers(0, len(ids) - 1)))])
    volumes[0][0, 0, 0] = 7
    return volumes


@settings(max_examples=40)
@given(annotated(), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 20), st.integers(1, 3), st.booleans())
def test_votes_are_those_of_a_contingency_table(volumes, region, rows, threads, full):
    labels, classes = volumes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_records, "BATCH", 2)
        patch.setattr(label_records.label_ranges, "__defaults__", (rows,))
        votes = dseeds.vote(labels, classes, ignore=None if full else 0, region=region, threads=threads)
    assert_same(votes, dseeds.vote(labels, classes, ignore=None if full else 0))
    own = labels > 0
    values, ids = np.unique(classes[own]), np.unique(labels[own])
    matrix = contingency_matrix(labels[own], classes[own])
    sizes, matrix, values = matrix.sum(1), *((matrix, values) if full else (matrix[:, values > 0], values[values > 0]))
    assert votes.table["label"].to_pylist() == ids.tolist()
    assert votes.table["num_pixels"].to_pylist() == sizes.tolist()
    assert votes.table["num_annotated"].to_pylist() == matrix.sum(1).tolist()
    assert votes.table["num_classes"].to_pylist() == (matrix > 0).sum(1).tolist()
    places = np.argwhere(matrix)
    counts = [(ids[i], values[j], matrix[i, j]) for i, j in places]
    assert list(zip(*(column.to_pylist() for column in votes.counts.columns), strict=True)) == counts
    for row, line in zip(votes.table.to_pylist(), matrix, strict=True):
        if not line.sum():
            assert (row["majority"], row["num_majority"], row["coverage"]) == (0, 0, 0)
            assert np.isnan(row["purity"])
            continue
        # Of equally many, argmax takes the first, which is the smallest.
        assert (row["majority"], row["num_majority"]) == (values[line.argmax()], line.max())
        assert row["purity"] == line.max() / line.sum()
        assert row["coverage"] == line.sum() / row["num_pixels"]
    assert (votes.supervoxels, votes.annotated) == (len(ids), int((matrix.sum(1) > 0).sum()))
    assert votes.contested == len(votes.conflicts) == int(((matrix > 0).sum(1) > 1).sum())
    assert np.all(np.diff(votes.conflicts["purity"].to_numpy()) >= 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels, scribbles of two classes and votes in files."""
    folder = tmp_path_factory.mktemp("votes")
    labels = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((4, 4, 4), int)).astype(np.uint32)
    scribbles = np.zeros(labels.shape, np.uint8)
    scribbles[1, 1, 1:7] = 3
    scribbles[1, 2, 2:4] = 5
    for name, volume in (("labels", labels), ("scribbles", scribbles)):
        zarr.create_array(folder / f"{name}.zarr", data=volume, chunks=(4, 4, 4))
    dseeds.vote(folder / "labels.zarr", folder / "scribbles.zarr", folder / "labels.vote", region=3)
    return folder


def test_a_folder_reads_as_in_memory(folder):
    stored = dseeds.Votes(str(folder / "labels.vote"))
    held = dseeds.vote(zarr.open_array(folder / "labels.zarr")[:], zarr.open_array(folder / "scribbles.zarr")[:])
    assert_same(stored, held)
    assert (stored.annotated, stored.contested) == (held.annotated, held.contested) == (2, 1)
    assert stored.counts_of([1, 3]) == {1: {3: 3, 5: 2}, 3: {}}


def test_a_cluster_counts_the_same(folder, tmp_path):
    labels = zarr.open_array(folder / "labels.zarr")[:]
    with in_process(2) as client:
        votes = dseeds.vote(labels, folder / "scribbles.zarr", tmp_path / "votes", region=3, client=client)
        with pytest.raises(ValueError, match="a cluster needs target="):
            dseeds.vote(labels, labels, client=client)
    assert_same(votes, dseeds.Votes(str(folder / "labels.vote")))
    assert sorted(path.name for path in (tmp_path / "votes").iterdir()) == [
        "counts.parquet",
        "dseeds-vote.json",
        "table.parquet",
    ]


@pytest.mark.parametrize("held", [True, False])
def test_the_majority_returns_to_the_voxels(folder, held):
    labels = zarr.open_array(folder / "labels.zarr")[:]
    votes = dseeds.Votes(str(folder / "labels.vote"))
    painted = dseeds.paint(labels, votes if held else folder / "labels.vote", column="majority").compute()
    np.testing.assert_array_equal(painted, np.isin(labels, [1, 2]) * 3)


def test_the_command(folder, tmp_path, call):
    arguments = "vote", folder / "labels.zarr", folder / "scribbles.zarr", "-o", tmp_path / "votes"
    code, out, _ = call(*arguments, "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["supervoxels"], summary["annotated"], summary["conflicts"]) == (8, 2, 1)
    assert summary["least_pure"] == [
        {"label": 1, "majority": 3, "purity": 0.6, "coverage": 5 / 64, "votes": {"3": 3, "5": 2}}
    ]
    code, out, _ = call(*arguments, "--overwrite", "--conflicts", 0, "--ignore", "none")
    assert out == f"8 supervoxels, 8 annotated, 2 conflicts: {tmp_path / 'votes'}\n"
    code, out, _ = call(*arguments, "--overwrite")
    assert "3: 3, 5: 2" in out
    code, _, err = call(*arguments, "--overwrite", "--ignore", "-3")
    assert (code, "neither a class" in err) == (2, True)


def test_what_is_not_right_is_refused(folder, tmp_path):
    labels = zarr.open_array(folder / "labels.zarr")[:]
    for annotation, options, words in (
        (labels[:3], {}, "has the shape"),
        (labels - 2.5, {}, "annotation must be integers"),
        (labels.astype(int) - 2, {}, "annotation must be from 0"),
        (labels, {"ignore": -1}, "ignore is -1"),
        (labels, {"ignore": 0.5}, "ignore is 0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            dseeds.vote(labels, annotation, tmp_path / "votes", **options)
    with pytest.raises(ValueError, match="no supervoxel"):
        dseeds.vote(0 * labels, labels, tmp_path / "votes")
    assert not (tmp_path / "votes").exists()
    dseeds.features(labels, labels, tmp_path / "features")
    for written in ("features", "table"):
        with pytest.raises(FileExistsError, match="not written by dseeds as the output of dseeds vote"):
            dseeds.vote(labels, labels, tmp_path / "features", overwrite=True)
        # A folder that was left unfinished is of its kind as well.
        if written == "features":
            (tmp_path / "features" / "dseeds-features.json").rename(tmp_path / "features" / "dseeds-incomplete.json")
    with pytest.raises(FileExistsError, match="exists; choose another target"):
        dseeds.vote(labels, labels, folder / "labels.vote")
    with pytest.raises(FileNotFoundError, match="run that command"):
        _ = dseeds.Votes(str(tmp_path / "none")).table
    with pytest.raises(FileNotFoundError, match=r"holds no edges.parquet"):
        dseeds.load_graph(folder / "labels.vote")


def test_rows_are_added_up_in_any_order():
    rows = np.array([[2, 9, 1], [1, 3, 1], [2, 9, 4], [1, 0, 8], [2, 0, 1]])
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    assert voting.add_up_pairs(shuffled).tolist() == [[1, 0, 8], [1, 3, 1], [2, 0, 1], [2, 9, 5]]
    assert isinstance(voting.build_vote_tables(voting.add_up_pairs(rows), 0)[0], pa.Table)
