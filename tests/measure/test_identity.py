"""A table is known by the voxels of the labels that it was made from, and refused for others."""

import json
import shutil
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dseeds
from dseeds.cli import app
from dseeds.io import ArraySource
from dseeds.io.labels import open_labels
from dseeds.measure.identity import identify
from dseeds.napari_plugin.annotation import AnnotationFolder, FolderSettings
from dseeds.storage.edit_log import UNMOVED
from dseeds.storage.label_group import ATTRIBUTE
from tests.support.clusters import in_process

TOP = 2**63 - 1
MASK = 2**64 - 1
few = settings(max_examples=25)
shapes = st.tuples(*[st.integers(1, 9)] * 3)


def mix(number):
    """The finaliser of SplitMix64, in Python's integers."""
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & MASK
    return number ^ number >> 31


def oracle(labels):
    """Return the hash, voxel by voxel."""
    begin, total = 0x9E3779B97F4A7C15, 0
    for position, label in enumerate(labels.ravel().tolist(), begin):
        total += mix(label) * (mix((position + 1) & MASK) - mix(position & MASK))
    return f"{total & MASK:016x}"


@st.composite
def volumes(draw, top=TOP):
    """Labels of which at least one is not 0."""
    known = draw(st.lists(st.integers(0, min(top, 6)) | st.integers(0, top), min_size=1, max_size=5))
    shape, seed = draw(shapes), draw(st.integers(0, 99))
    labels = np.array(known, np.int64)[np.random.default_rng(seed).integers(0, len(known), shape)]
    labels.flat[-1] = draw(st.integers(1, top))
    return labels


@few
@given(volumes(), shapes)
def test_the_hash_is_a_sum_over_voxels_however_they_are_cut(labels, region):
    whole = identify(ArraySource(labels))
    assert whole.total == oracle(labels)
    image = (labels % 7).astype(np.int16)
    for measure, others in ((dseeds.features, ()), (dseeds.vote, (labels,)), (dseeds.pool, (image,))):
        assert measure(labels, *others, region=region, threads=2).origin.identity == whole


@few
@given(volumes(127), st.sampled_from(["int8", "uint8", ">i2", "uint32", "uint64", "float32", "float64"]))
def test_types_and_formats_make_no_difference(labels, dtype):
    whole = identify(ArraySource(labels))
    assert identify(ArraySource(labels.astype(dtype))) == whole
    assert identify(ArraySource(np.asfortranarray(labels))) == whole
    with tempfile.TemporaryDirectory() as folder:
        for name in ("labels.nii", "labels.nii.gz"):
            stored = labels.T.astype(np.dtype(dtype).newbyteorder("="))
            nibabel.save(nibabel.Nifti1Image(stored, np.eye(4), dtype=stored.dtype), Path(folder, name))
            assert identify(open_labels(Path(folder, name))) == whole


@settings(max_examples=100)
@given(volumes(), st.data())
def test_every_voxel_counts(labels, data):
    changed = labels.copy()
    changed.flat[data.draw(st.integers(0, labels.size - 1))] ^= data.draw(st.integers(1, TOP))
    one, other = identify(ArraySource(labels)), identify(ArraySource(changed))
    assert not one.is_same(other)
    # All of a small volume is in the boxes that are looked at first.
    assert one.sample != other.sample


def test_moved_swapped_and_reshaped_labels_are_others():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 50, (4, 4, 4)), np.ones((4, 4, 4), int))
    versions = [labels, labels[::-1], labels.swapaxes(0, 2), np.roll(labels, 1, 2), labels.reshape(8, 8, 64)]
    one, other = np.unique(labels)[1:3]
    versions += [np.where(labels == one, other, np.where(labels == other, one, labels)), labels + (labels > 0)]
    assert len({(i.shape, i.total) for i in map(identify, map(ArraySource, versions))}) == len(versions)


IMAGE = np.random.default_rng(1).integers(0, 200, (24, 30, 26)).astype(np.uint8)
LABELS = dseeds.supervoxels(IMAGE, step=6)
OTHERS = LABELS.copy()
OTHERS[11:13, 14:16, 12:14] = 3
CLASSES = np.where(IMAGE > 180, 2, 1) * (np.arange(26) % 2)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of every kind of the same labels, in memory and in files."""
    folder = tmp_path_factory.mktemp("tables")
    made = {}
    for name, measure, others in (
        ("features", dseeds.features, (IMAGE,)),
        ("vote", dseeds.vote, (CLASSES,)),
        ("pool", dseeds.pool, (IMAGE,)),
        ("textures", dseeds.textures, (IMAGE,)),
    ):
        made[name] = measure(LABELS, *others)
        made[f"{name} in files"] = measure(LABELS, *others, folder / f"labels.{name}", region=11)
        made[f"address of {name}"] = folder / f"labels.{name}"
    made["classes"] = dseeds.propagate(made["features"], made["vote"])
    made["classes"].save(folder / "classes.parquet")
    made["file of classes"] = str(folder / "classes.parquet")
    tree = dseeds.agglomerate(made["features in files"])
    tree.save(folder / "tree.parquet")
    assert dseeds.MergeTree.load(folder / "tree.parquet").origin.identity == tree.origin.identity
    arguments = [str(folder / name) for name in ("tree.parquet", "segments.parquet")]
    assert app(["agglomerate", *arguments, "--n-segments", "5", "--quiet"], standalone_mode=False) in (None, 0)
    made["file of segments"] = folder / "segments.parquet"
    return made


COLUMNS = {"features": "area", "vote": "majority", "textures": "entropy", "classes": "class", "segments": "segment"}
PAINTED = [(name, COLUMNS[name.split(" ")[-1]]) for name in ("features", "vote", "textures", "classes")]
PAINTED += [("vote in files", "majority"), ("address of features", "area"), ("address of textures", "entropy")]
PAINTED += [("file of classes", "class"), ("file of segments", "segment")]


@pytest.mark.parametrize(("name", "column"), PAINTED)
def test_tables_are_painted_on_their_own_labels_alone(tables, name, column, tmp_path):
    table = tables[name]
    for number, own in enumerate((LABELS, LABELS.astype("int64"))):
        dseeds.paint(own, table, column=column).compute()
        dseeds.paint(own, table, tmp_path / f"own-{number}.zarr", column=column, region=13)
    for number, (labels, message) in enumerate(
        ((OTHERS, "was made from other labels than the array: "), (LABELS[1:], r"labels of shape \(24, 30, 26\)"))
    ):
        with pytest.raises(ValueError, match=message):
            dseeds.paint(labels, table, column=column)
        target = tmp_path / f"others-{number}.zarr"
        with pytest.raises(ValueError, match=message):
            dseeds.paint(labels, table, target, column=column)
        assert not target.exists()


def test_rows_alone_and_tables_of_others_are_taken(tables, tmp_path):
    features, path = tables["features"], tables["address of features"]
    features.table.to_pandas()[["label", "area"]].to_csv(tmp_path / "areas.csv", index=False)
    for table in (features.table, features.table.to_pandas(), tmp_path / "areas.csv", path / "table.parquet"):
        assert dseeds.paint(OTHERS, table, column="area").compute()[0, 0, 0] > 0


def test_folders_of_before_are_taken(tables, tmp_path):
    measured = dseeds.features(LABELS, IMAGE, tmp_path / "old.features")
    note = tmp_path / "old.features" / "dseeds-features.json"
    entries = json.loads(note.read_text())
    del entries["identity"]
    note.write_text(json.dumps(entries))
    assert measured.origin is None
    assert dseeds.load_graph(measured).origin is None
    dseeds.paint(OTHERS, measured, column="area")
    dseeds.propagate(measured, tables["vote"])


def test_graphs_and_classes_must_be_of_the_same_labels(tables):
    others = dseeds.vote(OTHERS, CLASSES)
    for features in ("features", "address of features"):
        graph = dseeds.load_graph(tables[features], columns=["intensity_mean"])
        assert graph.origin.identity == identify(ArraySource(LABELS))
        for method in ("random_walker", "random_forest"):
            with pytest.raises(ValueError, match=r"vote and .*features were made from different labels"):
                dseeds.propagate(graph, others, method=method)
        with pytest.raises(ValueError, match="different labels"):
            dseeds.RandomWalker(graph).propagate(others)
    dseeds.propagate(tables["features"], tables["file of classes"], column="class")


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """Labels in files with a pyramid, and features that were measured in the same run."""
    folder = tmp_path_factory.mktemp("segmented")
    image = np.tile(IMAGE, (2, 2, 11))
    dseeds.segment(image, folder / "labels.zarr", step=9, features=True)
    dseeds.segment(image, folder / "others.zarr", step=9, compactness=3)
    return folder


def change(address, box):
    array = zarr.open_array(str(address / "0"), mode="a")
    array[box] = np.asarray(array[box]) ^ 1


def test_labels_are_recognised_in_every_format_and_at_every_level(segmented):
    features = segmented / "labels.features"
    written = dseeds.Features(str(features)).origin.identity.written
    group = zarr.open_group(str(segmented / "labels.zarr"), mode="r")
    assert written == (group.attrs[ATTRIBUTE]["run"], 0, UNMOVED)
    levels = len(group.attrs["ome"]["multiscales"][0]["datasets"])
    assert levels > 1
    for level in range(levels):
        dseeds.paint(segmented / f"labels.zarr/{level}", features, column="area")
        dseeds.paint(segmented / f"labels.zarr/{level}", features, segmented / f"areas-{level}.zarr", column="area")
        dseeds.paint(group[str(level)], features, column="area")
    for name in ("labels.nii.gz", "labels.nrrd", "labels.tif"):
        dseeds.export_volume(segmented / "labels.zarr", segmented / name)
        painted = dseeds.paint(segmented / name, features, column="label").compute()
        np.testing.assert_array_equal(painted, group["0"][...])
    dseeds.paint(segmented / "labels.nii.gz", features, segmented / "areas.nii.gz", column="area")
    for name in ("others.zarr", "labels.zarr/1"):
        dseeds.export_volume(segmented / name, segmented / "others.nii.gz", overwrite=True)
        for target in (None, segmented / "bad.nii.gz", segmented / "bad.zarr"):
            with pytest.raises(ValueError, match=r"labels\.features was made from "):
                dseeds.paint(segmented / "others.nii.gz", features, target, column="area")
    assert not list(segmented.glob("*bad*"))


def test_others_of_the_same_shape_are_refused_without_reading_them_whole(segmented):
    with pytest.raises(ValueError, match=r"made from other labels than others\.zarr: run dseeds features"):
        dseeds.paint(segmented / "others.zarr", segmented / "labels.features", column="area")


def test_edited_labels(segmented, tmp_path):
    """An edit that is recorded is told at once, one by another program when the labels are read whole."""
    features = dseeds.features(segmented / "labels.zarr", target=tmp_path / "labels.features")
    dseeds.segment(np.tile(IMAGE, (2, 2, 11)), tmp_path / "labels.zarr", step=9)
    # Other parameters, thus another run, with the same voxels.
    dseeds.paint(tmp_path / "labels.zarr", features, tmp_path / "values.zarr", column="area")
    change(tmp_path / "labels.zarr", np.s_[:1, -1:, :1])
    dseeds.paint(tmp_path / "labels.zarr", features, column="area")
    with pytest.raises(ValueError, match=r"made from other labels than labels\.zarr: run dseeds features"):
        dseeds.paint(tmp_path / "labels.zarr", features, tmp_path / "bad.zarr", column="area")
    assert not (tmp_path / "bad.zarr").exists()
    measured = dseeds.features(tmp_path / "labels.zarr", target=tmp_path / "own.features")
    edits = dseeds.edit(tmp_path / "labels.zarr")
    edits.merge(neighbours(tmp_path / "labels.zarr"))
    for target in (None, tmp_path / "bad.zarr"):
        with pytest.raises(ValueError, match=r"labels\.zarr was edited after own\.features was made from it: bring"):
            dseeds.paint(tmp_path / "labels.zarr", measured, target, column="area")
    # An edit that is taken back has changed nothing.
    edits.undo()
    dseeds.paint(tmp_path / "labels.zarr", measured, tmp_path / "good.zarr", column="area")
    edits.merge(neighbours(tmp_path / "labels.zarr"))
    edits.update_features(measured)
    dseeds.paint(tmp_path / "labels.zarr", measured, tmp_path / "better.zarr", column="area")


def neighbours(address):
    row = zarr.open_array(str(address / "0"), mode="r")[3, 3]
    return [int(row[0]), int(row[np.flatnonzero(np.diff(row))[0] + 1])]


def test_the_same_number_of_edits_is_not_the_same_edits(segmented, tmp_path):
    """Labels that are made again have the run of those before, and may have as many edits."""
    target, copy = tmp_path / "labels.zarr", tmp_path / "copy"
    shutil.copytree(segmented / "labels.zarr", target)
    shutil.copytree(segmented / "labels.zarr", copy)
    dseeds.edit(target).merge(neighbours(target))
    kept = dseeds.features(target, target=tmp_path / "labels.features")
    shutil.rmtree(target)
    shutil.copytree(copy, target)
    edits = dseeds.edit(target)
    labels = zarr.open_array(str(target / "0"), mode="r")[...]
    row = labels[-3, -3]
    edits.merge([int(row[-1]), int(row[np.flatnonzero(np.diff(row))[-1]])])
    with pytest.raises(ValueError, match=r"labels\.zarr was edited after labels\.features"):
        dseeds.paint(target, kept, column="area")
    with pytest.raises(ValueError, match="measured after 1 edits of labels that were replaced"):
        edits.update_features(kept)


def test_features_of_another_array_are_not_brought_up_to_date():
    table, one, other = dseeds.features(LABELS), *np.unique(LABELS)[1:3]
    swapped = np.where(one == LABELS, other, np.where(other == LABELS, one, LABELS))
    with pytest.raises(ValueError, match="made from other labels than the array"):
        dseeds.edit(swapped).update_features(table)


def test_a_cluster_hashes_the_same(tmp_path):
    with in_process(2) as client:
        measured = dseeds.features(LABELS, IMAGE, tmp_path / "labels.features", region=9, client=client)
        assert measured.origin.identity == identify(ArraySource(LABELS))
        dseeds.paint(LABELS, measured, tmp_path / "good.zarr", column="area", client=client)
        with pytest.raises(ValueError, match="other labels"):
            dseeds.paint(OTHERS, measured, tmp_path / "bad.zarr", column="area", client=client)


def test_annotations_open_with_their_own_labels_alone(tmp_path):
    folder = AnnotationFolder(tmp_path)
    session = folder.cut([IMAGE], FolderSettings((6, 6, 6), None, 0, (1, 1, 1)))
    session.annotate([1], 1)
    folder.save(session)
    assert folder.open().state.classes == {1: 1}
    change(folder.labels, np.s_[10:14, 10:14, 10:14])
    group = zarr.open_group(str(folder.labels), mode="a")
    group.attrs[ATTRIBUTE] = {**group.attrs[ATTRIBUTE], "edits": 1, "moved": "1"}
    with pytest.raises(ValueError, match="was edited after"):
        folder.open()
    dseeds.features(folder.labels, IMAGE, folder.features, overwrite=True)
    with pytest.raises(ValueError, match=r"classes\.parquet has the classes of other labels"):
        folder.open()
