"""Edits of supervoxels in memory and in place: only what was asked for changes, and everything can be undone."""

import json
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

import dseeds
from dseeds.engine.run_directory import hold_labels
from dseeds.io import editable_labels, pyramid_levels
from dseeds.io.pyramid import build_pyramid
from dseeds.measure import feature_updates, features
from dseeds.storage import label_records, lease
from dseeds.storage.label_group import EDITING, own_attribute, published_product, update_own_attribute
from dseeds.storage.location import open_location
from dseeds.storage.parquet_dataset import Dataset
from tests.support.edits import (
    act,
    assert_same_tables,
    cheapest_seeds,
    check_edit,
    connected_labels,
    edit_steps,
    nearest_seeds,
    open_edits,
)
from tests.support.runs import assert_sentence, noise, snapshot, when

IMAGE = noise((18, 22, 26), dtype="int16")
# Both parts of the second supervoxel have the same distance to its middle.
ROW = np.array([[[1, 1, 2, 2, 2, 2, 2, 3]]])


@st.composite
def volumes(draw):
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    return connected_labels(draw(arrays(np.int8, shape, elements=st.integers(0, 3), fill=st.nothing())) + 0)


@settings(max_examples=30)
@given(volumes(), edit_steps(8))
def test_an_edit_changes_what_was_asked_for_and_can_be_undone(labels, steps):
    if not labels.any():
        return
    edits, states = dseeds.edit(labels), [labels]
    used = set(np.unique(labels).tolist())
    history = []
    for step in steps:
        before = edits.labels.copy()
        record = act(edits, before, step)
        if record is None:
            continue
        check_edit(before, edits.labels, record, used)
        used |= set(record.after)
        if record.kind == "undo":
            np.testing.assert_array_equal(edits.labels, states[history.pop()])
        else:
            history.append(len(states) - 1)
        states.append(edits.labels.copy())
        assert edits.log[-1] == record
    for _ in open_edits(edits.log):
        edits.undo()
    np.testing.assert_array_equal(edits.labels, labels)
    with pytest.raises(ValueError, match="no edit"):
        edits.undo()


@settings(max_examples=30)
@given(volumes(), st.integers(0, 10**6), st.integers(2, 4))
def test_parts_grow_by_the_distance_within_the_supervoxel(labels, number, count):
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < count:
        return
    label = int(sizes.argmax())
    places = np.argwhere(labels == label)
    chosen = np.random.default_rng(number).choice(len(places), count, replace=False)
    seeds = [[tuple(point)] for point in places[chosen].tolist()]
    edits = dseeds.edit(labels)
    record = edits.split(label, seeds=seeds)
    expected = np.append(0, record.after)[nearest_seeds(labels == label, seeds)]
    np.testing.assert_array_equal(np.where(labels == label, edits.labels, 0), expected)
    scribbles = np.zeros(labels.shape, np.uint8)
    for value, [point] in enumerate(seeds):
        scribbles[point] = 7 + value
    # Of other supervoxels, they do not matter.
    scribbles[labels != label] = 3
    other = dseeds.edit(labels)
    other.split(label, seeds=scribbles)
    np.testing.assert_array_equal(other.labels, edits.labels)
    by_hand = dseeds.edit(labels)
    by_hand.split(label, parts=edits.labels)
    assert by_hand.log[0].moves == record.moves


def test_ties_go_to_the_first_part():
    edits = dseeds.edit(ROW)
    assert edits.split(2, seeds=[(0, 0, 6), (0, 0, 2)]).after == (2, 4)
    assert edits.labels.tolist() == [[[1, 1, 4, 4, 2, 2, 2, 3]]]
    mask = edits.labels == 2
    mask[0, 0, 6] = False
    assert edits.split(2, parts=mask).after == (2, 5)
    assert edits.labels.tolist() == [[[1, 1, 4, 4, 5, 5, 2, 3]]]


@settings(max_examples=20)
@given(arrays(np.uint8, (2, 4, 4, 5), elements=st.sampled_from([0, 0, 1, 9, 63])), st.integers(0, 10**6))
def test_parts_meet_where_the_image_changes(image, number):
    """Against Dijkstra's algorithm of SciPy; the intensities are bins already."""
    labels = np.ones((4, 4, 5), np.uint8)
    labels[1, 1:, 2] = 2
    image[:, 0, 0, 0], image[:, 0, 0, 1] = 0, 63
    places = np.argwhere(labels == 1)
    chosen = places[np.random.default_rng(number).choice(len(places), 3, replace=False)]
    seeds = [[tuple(point)] for point in chosen.tolist()]
    for channels in (image[:1], image, image[:1] * np.float64(0.5) + 1e6):
        edits = dseeds.edit(labels)
        record = edits.split(1, seeds=seeds, image=list(channels))
        bins = image[: len(channels)]
        if len(bins) == 1:
            expected = np.append(0, record.after)[cheapest_seeds(labels == 1, seeds, bins[0])]
            np.testing.assert_array_equal(np.where(labels == 1, edits.labels, 0), expected)
        assert all(ndimage.label(edits.labels == label)[1] == 1 for label in record.after)
    plain, flat = dseeds.edit(labels), dseeds.edit(labels)
    plain.split(1, seeds=seeds)
    flat.split(1, seeds=seeds, image=np.full(labels.shape, np.nan))
    np.testing.assert_array_equal(plain.labels, flat.labels)


@settings(max_examples=20)
@given(arrays(np.int8, (3, 4, 5), elements=st.integers(0, 2)))
def test_pieces_are_parts_of_their_own(drawing):
    edits = dseeds.edit(np.ones(drawing.shape, np.uint16))
    regions = {value: ndimage.label(drawing == value)[0] for value in np.unique(drawing)}
    count = sum(int(numbers.max()) for numbers in regions.values())
    if count == 1:
        return
    record = edits.split(1, parts=drawing, pieces=True)
    assert record.after == tuple(range(1, count + 1))
    # The parts are in the order of their values, and pieces in that of their first voxels.
    expected, before = np.zeros(drawing.shape, int), 0
    for numbers in regions.values():
        expected += np.where(numbers > 0, numbers + before, 0)
        before += numbers.max()
    np.testing.assert_array_equal(edits.labels, expected)
    if len(regions) > 1 and count > len(regions):
        with pytest.raises(ValueError, match="pieces=True"):
            dseeds.edit(np.ones(drawing.shape, int)).split(1, parts=drawing)


def test_a_plane_keeps_its_two_axes():
    edits = dseeds.edit(ROW[0])
    edits.merge([1, 2])
    assert edits.labels.tolist() == [[1] * 7 + [3]]
    with pytest.raises(ValueError, match="read-only"):
        edits.labels[0, 0] = 9
    assert ROW[0, 0, 2] == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda edits: edits.merge([1]), "two or more"),
        (lambda edits: edits.merge([1, 9]), "no supervoxel 9"),
        (lambda edits: edits.merge([0, 1]), "no supervoxel 0"),
        (lambda edits: edits.merge([1, 2**40]), "no supervoxel 1099511627776"),
        (lambda edits: edits.merge([1, 3]), "apart=True"),
        (lambda edits: edits.split(2), "either seeds or parts"),
        (lambda edits: edits.split(2, parts=ROW, image=ROW), "only with seeds"),
        (lambda edits: edits.split(9, seeds=[(0, 0, 2), (0, 0, 3)]), "no supervoxel 9"),
        (lambda edits: edits.split(2, seeds=[(0, 0, 2)]), "at least two parts"),
        (lambda edits: edits.split(2, seeds=[(0, 0, 2), (0, 0, 1)]), "lies in supervoxel 1"),
        (lambda edits: edits.split(2, seeds=[(0, 0, 2), (0, 0, 8)]), "outside the labels"),
        (lambda edits: edits.split(2, seeds=[(0, 0, 2), (0, 0, 2)]), "belongs to parts 1 and 2"),
        (lambda edits: edits.split(2, seeds=[(0, 0, 2), (0, 3.5, 2)]), "whole numbers"),
        (lambda edits: edits.split(2, seeds=[[(0, 0, 2), (0, 0, 6)], [(0, 0, 4)]]), "in 2 pieces"),
        (lambda edits: edits.split(2, seeds=np.zeros(ROW.shape, int)), "there is none"),
        (lambda edits: edits.split(2, seeds=np.ones((1, 2, 3), int)), "shape"),
        (lambda edits: edits.split(2, parts=np.ones(ROW.shape, int)), "only that of 1"),
        (lambda edits: edits.split(2, parts=np.ones(ROW.shape, int), pieces=True), "one part in one piece"),
        (lambda edits: edits.split(2, parts=np.arange(8).reshape(ROW.shape) % 2), "in 3 pieces"),
        (lambda edits: edits.update_features(), "no features"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(edit, message):
    edits = dseeds.edit(ROW)
    with pytest.raises(ValueError, match=message) as caught:
        edit(edits)
    assert_sentence(caught.value)
    np.testing.assert_array_equal(edits.labels, ROW)
    assert edits.log == []


def test_labels_that_are_not_connected():
    edits = dseeds.edit(np.array([[[1, 1, 2, 1, 3]]]))
    with pytest.raises(ValueError, match="no seed reaches 1"):
        edits.split(1, seeds=[(0, 0, 0), (0, 0, 1)])
    assert edits.split(1, parts=np.array([[[0, 0, 0, 1, 1]]])).after == (1, 4)
    edits.undo()
    # An id is never used again.
    assert edits.split(1, parts=np.zeros((1, 1, 5)), pieces=True).after == (1, 5)
    assert edits.labels.tolist() == [[[1, 1, 2, 5, 3]]]
    assert edits.merge([1, 3], apart=True).after == (1,)
    with pytest.raises(ValueError, match="uint8 end at 255"):
        dseeds.edit(np.array([[[255, 255]]], np.uint8)).split(255, seeds=[(0, 0, 0), (0, 0, 1)])
    for wrong in (np.zeros(3, int), np.zeros((2, 2, 2)), np.array([[[-1]]]), np.zeros((0, 2, 2), int)):
        with pytest.raises(ValueError, match="labels"):
            dseeds.edit(wrong)


@pytest.fixture
def small_pyramids(monkeypatch):
    monkeypatch.setattr(pyramid_levels, "TOP_EXTENT", 5)
    monkeypatch.setattr(pyramid_levels, "THIN_EXTENT", 2)


def cut(folder, **options):
    target = folder / "labels.zarr"
    dseeds.segment(IMAGE, target, **{"step": 6, **options})
    return target


def voxels(target, level="0"):
    return zarr.open_array(target / level, mode="r")[:]


def rebuilt(target, copy, method, levels):
    """Return the levels of a pyramid that is built anew."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(target, copy)
    for level in range(1, len(levels) + 1):
        shutil.rmtree(copy / str(level))
    build_pyramid(str(copy), method, levels)
    return [voxels(copy, str(level)) for level in range(len(levels) + 1)]


@pytest.mark.usefixtures("small_pyramids")
@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"chunks": (3, 5, 7), "shards": (6, 10, 7), "spacing": (4, 1, 1)}, "mode"),
        ({"chunks": (9, 8, 12), "mask": IMAGE > -100}, "nearest"),
        ({"chunks": 4, "shards": 12}, "mode"),
    ],
)
def test_in_place_is_as_in_memory_however_labels_are_cut(tmp_path, options, method):
    target = cut(tmp_path, pyramid=method, **options)
    original = snapshot(target)
    levels = pyramid_levels.choose_levels(IMAGE.shape, options.get("spacing"))
    assert len(levels) > 1
    first = [voxels(target, str(level)) for level in range(len(levels) + 1)]
    edits, copy = dseeds.edit(target), dseeds.edit(voxels(target))
    for step in [("m", 5), ("s", 11), ("s", 40), ("u", 0), ("m", 77)]:
        before = voxels(target)
        one, other = act(dseeds.edit(target), before, step), act(copy, before, step)
        assert (one.moves, one.before, one.after, one.largest) == (
            other.moves,
            other.before,
            other.after,
            other.largest,
        )
        np.testing.assert_array_equal(voxels(target), copy.labels)
        if step[0] != "m":
            for level, new in enumerate(rebuilt(target, tmp_path / "copy", method, levels)):
                np.testing.assert_array_equal(voxels(target, str(level)), new)
    attribute = own_attribute(open_location(target))
    ids = np.unique(copy.labels)
    assert attribute["supervoxels"] == np.count_nonzero(ids)
    assert (attribute["edits"], EDITING in attribute) == (5, False)
    while open_edits(edits.log):
        edits.undo()
    for level, values in enumerate(first):
        np.testing.assert_array_equal(voxels(target, str(level)), values)
    assert set(original) <= set(snapshot(target))
    assert [path.name for path in tmp_path.iterdir() if path.name != "copy"] == ["labels.zarr"]


@pytest.fixture
def small_parts(monkeypatch):
    """Cut tables into parts of a few rows."""
    monkeypatch.setattr(label_records, "BATCH", 2)
    monkeypatch.setattr(label_records.label_ranges, "__defaults__", (9,))
    monkeypatch.setattr(features, "RANGE", 9)
    monkeypatch.setattr(feature_updates, "RANGE", 9)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("image", "options"),
    [
        (None, {"spacing": (3, 2, 0.5)}),
        ([IMAGE, noise(IMAGE.shape, 3).astype("float32") * 1e4], {"window": (-100, 90)}),
        (np.where(IMAGE > 150, np.nan, IMAGE), {}),
        (IMAGE.astype("int64") + 2**60, {}),
    ],
)
def test_features_that_are_updated_are_those_measured_anew(tmp_path, image, options):
    target, folder = cut(tmp_path, chunks=6, mask=IMAGE > -150), tmp_path / "labels.features"
    in_memory = dseeds.edit(voxels(target))
    # Labels in memory do not know the windows.
    windows = dseeds.features(target, image, folder, **options)._note()["windows"]
    options = options if image is None else {**options, "window": windows}
    kept = dseeds.features(in_memory.labels, image, **options)
    edits = dseeds.edit(target, features=folder)
    for step in [("m", 5), ("s", 11), ("update", 0), ("s", 7), ("u", 0), ("m", 70), ("m", 3), ("s", 2), ("s", 9)]:
        if step[0] != "update":
            act(in_memory, voxels(target), step)
            act(edits, voxels(target), step)
            continue
        edits.update_features(image=image)
        assert Dataset(open_location(folder)).note()["identity"]["edits"] == 2
    updated = edits.update_features(image=image)
    parts = len(Dataset(open_location(folder)).parts("table.parquet"))
    assert parts > 3
    again = dseeds.features(target, image, **options)
    assert_same_tables(updated, again)
    assert (updated.supervoxels, updated.contacts) == (again.supervoxels, again.contacts)
    assert updated.origin.identity == again.origin.identity
    also_updated = in_memory.update_features(kept, image)
    assert_same_tables(also_updated, again)
    assert also_updated.origin.identity.is_same(again.origin.identity)
    while open_edits(edits.log):
        edits.undo()
    assert_same_tables(edits.update_features(image=image), kept)


@pytest.mark.parametrize("split", [False, True])
def test_features_of_a_single_edit_amid_others(split):
    """Contacts on all sides are measured again, also where the neighbour has the lower voxel."""
    cells = np.kron(np.arange(1, 28).reshape(3, 3, 3), np.ones((2, 3, 2), int))
    image = np.random.default_rng(0).integers(0, 99, cells.shape, np.uint8)
    before, edits = dseeds.features(cells, image, window=(0, 99)), dseeds.edit(cells)
    if split:
        edits.split(14, parts=np.indices(cells.shape)[1] > 4)
    else:
        edits.merge([14, 15])
    assert_same_tables(edits.update_features(before, image), dseeds.features(edits.labels, image, window=(0, 99)))


def test_features_of_others_are_refused(tmp_path):
    target, folder = cut(tmp_path), tmp_path / "labels.features"
    dseeds.features(target, IMAGE, folder)
    edits = dseeds.edit(target)
    edits.merge([1, 2])
    edits.split(5, seeds=[np.argwhere(voxels(target) == 5)[0], np.argwhere(voxels(target) == 5)[-1]])
    before = snapshot(folder)
    for image, message in [(None, "without an image"), (IMAGE + 1, "other intensities"), ([IMAGE] * 2, "channels")]:
        with pytest.raises(ValueError, match=message) as caught:
            edits.update_features(folder, image)
        assert_sentence(caught.value)
    dseeds.features(np.roll(voxels(target), 1), IMAGE, tmp_path / "array.features")
    with pytest.raises(ValueError, match="features of array"):
        edits.update_features(tmp_path / "array.features", IMAGE)
    note = json.loads((tmp_path / "array.features" / "dseeds-features.json").read_text())
    (tmp_path / "array.features" / "dseeds-features.json").write_text(json.dumps({**note, "labels": "labels.zarr"}))
    with pytest.raises(ValueError, match="other labels"):
        edits.update_features(tmp_path / "array.features", IMAGE)
    with pytest.raises(ValueError, match="other labels"):
        dseeds.edit(target, features=tmp_path / "array.features").merge([1, 3])
    assert snapshot(folder) == before


def test_what_an_edit_tells_others(tmp_path, call):
    target = cut(tmp_path)
    product = published_product(open_location(target))
    edits = dseeds.edit(target)
    edits.merge([1, 2])
    assert (product is None, published_product(open_location(target))) == (False, None)
    with pytest.raises(FileExistsError, match="was edited") as caught:
        dseeds.segment(IMAGE, target, step=6)
    assert_sentence(caught.value)
    with pytest.raises(FileExistsError, match="was edited"):
        dseeds.segment(IMAGE, target, step=6, resume=True)
    assert json.loads(call("info", target, "--json")[1])["edits"] == 1
    update_own_attribute(open_location(target), {EDITING: 2})
    for read in (dseeds.features, lambda source: dseeds.export_volume(source, tmp_path / "labels.nii.gz")):
        with pytest.raises(ValueError, match=r"edit 2 of .* is unfinished") as caught:
            read(target)
        assert_sentence(caught.value)
    assert "unfinished" in call("info", target)[1]
    update_own_attribute(open_location(target), {EDITING: None})
    (target / "edits" / "mine.txt").write_text("notes")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        dseeds.segment(IMAGE, target, step=6, overwrite=True)
    (target / "edits" / "mine.txt").unlink()
    dseeds.segment(IMAGE, target, step=6, overwrite=True)
    assert published_product(open_location(target)) == product
    assert not (target / "edits").exists()
    with pytest.raises(ValueError, match="no edit"):
        edits.undo()


@pytest.mark.parametrize("measure", [dseeds.features, dseeds.textures])
def test_labels_that_are_edited_while_they_are_measured(tmp_path, measure):
    target = cut(tmp_path)
    progress = when("begin", "table", None, lambda: dseeds.edit(target).merge([1, 2]))
    with pytest.raises(ValueError, match="was edited while") as caught:
        measure(target, IMAGE, tmp_path / "tables", progress=progress)
    assert progress.happened
    assert_sentence(caught.value)
    assert not (tmp_path / "tables").exists()


def test_many_volumes_are_not_up_to_date_once_edited(tmp_path):
    zarr.save_array(tmp_path / "image.zarr", IMAGE)
    sources, folder = [tmp_path / "image.zarr"], tmp_path / "cut"
    folder.mkdir()
    for _ in range(2):
        [result] = dseeds.segment_many(sources, folder, step=6, resume=True)
        assert result.error is None
    dseeds.edit(result.target).merge([1, 2])
    [result] = dseeds.segment_many(sources, folder, step=6, resume=True)
    assert "was edited" in result.error


def test_labels_that_are_not_edited(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Zarr group"):
        dseeds.edit(tmp_path / "labels.zarr")
    target = cut(tmp_path, levels=1)
    with pytest.raises(ValueError, match="coarser levels") as caught:
        dseeds.edit(target)
    assert_sentence(caught.value)
    zarr.create_group(tmp_path / "mine.zarr", attributes={"dseeds": "supervoxels"})
    with pytest.raises(ValueError, match="not written by dseeds segment"):
        dseeds.edit(tmp_path / "mine.zarr")
    dseeds.import_volume(voxels(target), tmp_path / "imported.zarr", labels=True)
    with pytest.raises(ValueError, match="not written by dseeds segment"):
        dseeds.edit(tmp_path / "imported.zarr")


def test_labels_that_were_replaced(tmp_path):
    target = cut(tmp_path)
    edits = dseeds.edit(target)
    dseeds.segment(IMAGE, target, step=5, overwrite=True)
    with pytest.raises(ValueError, match="was replaced"):
        edits.merge([1, 2])
    assert not (target / "edits").exists()


def test_labels_that_another_program_has_changed(tmp_path):
    target = cut(tmp_path)
    edits, array = dseeds.edit(target), zarr.open_array(target / "0")
    place = tuple(np.argwhere(array[:] == 2)[-1])
    edits.merge([1, 2])
    array[place] = 7
    before = snapshot(target)
    with pytest.raises(ValueError, match="another program") as caught:
        edits.undo()
    assert_sentence(caught.value)
    assert snapshot(target) == before
    array[place] = 1
    (target / "edits" / "000001" / "0").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="edit 1 is damaged"):
        edits.undo()
    assert EDITING not in own_attribute(open_location(target))


def test_an_edit_that_fails_says_how_it_is_completed(tmp_path, monkeypatch, call):
    target = cut(tmp_path)

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as context:
        context.setattr(editable_labels.GroupLabels, "finish", fail)
        code, _, errors = call("edit", target, "merge", 1, 2)
    assert (code, errors) == (1, f"error: no space left\nresume with: dseeds edit {target} log\n")
    assert call("edit", target, "log", "--json")[0] == 0
    expected = dseeds.edit(dseeds.supervoxels(IMAGE, step=6))
    expected.merge([1, 2])
    np.testing.assert_array_equal(voxels(target), expected.labels)


def test_labels_whose_run_is_kept(tmp_path, client):
    target = tmp_path / "labels.zarr"
    dseeds.segment(IMAGE, target, step=6, features=True, keep_scratch=True, client=client)
    edits = dseeds.edit(target)
    with pytest.raises(FileExistsError, match="finish it with dseeds segment --resume") as caught:
        edits.merge([1, 2])
    assert_sentence(caught.value)
    dseeds.segment(IMAGE, target, step=6, resume=True, client=client)
    edits.merge([1, 2])
    # The features of the run are brought up to date, too.
    updated = edits.update_features(tmp_path / "labels.features", IMAGE)
    assert_same_tables(updated, dseeds.features(target, IMAGE))
    assert "product" not in Dataset(open_location(tmp_path / "labels.features")).note()
    with pytest.raises(FileExistsError, match="was edited"):
        dseeds.segment(IMAGE, target, step=6, resume=True, client=client)


def test_two_editors(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    target = cut(tmp_path)
    edits, before = dseeds.edit(target), snapshot(target)
    with hold_labels(open_location(target)):
        with pytest.raises(FileExistsError, match="is at work") as caught:
            edits.merge([1, 2])
        assert_sentence(caught.value)
        with pytest.raises(FileExistsError, match="is at work"):
            dseeds.segment(IMAGE, target, step=6, overwrite=True)
    assert snapshot(target) == before
    # One after the other, in turns.
    other = dseeds.edit(target)
    edits.merge([1, 2])
    assert other.split(1, seeds=[tuple(np.argwhere(voxels(target) == 1)[n].tolist()) for n in (0, -1)]).number == 2
    edits.undo()
    edits.undo()
    np.testing.assert_array_equal(voxels(target), dseeds.supervoxels(IMAGE, step=6))


def test_labels_inside_an_image_of_zarr_v2(tmp_path, small_pyramids):
    group = zarr.create_group(tmp_path / "image.zarr", zarr_format=2)
    group.create_array("0", data=IMAGE, chunks=(8, 8, 8), chunk_key_encoding={"name": "v2", "separator": "/"})
    group.create_array("1", data=IMAGE[::2, ::2, ::2], chunk_key_encoding={"name": "v2", "separator": "/"})
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [n + 1.0] * 3}]} for n in (0, 1)
    ]
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    dseeds.segment(tmp_path / "image.zarr", into_image=True, step=6, chunks=6)
    target = tmp_path / "image.zarr" / "labels" / "supervoxels"
    before = [voxels(target, level) for level in "01"]
    edits, copy = dseeds.edit(target), dseeds.edit(before[0])
    for step in [("m", 5), ("s", 11)]:
        act(copy, voxels(target), step)
        act(edits, voxels(target), step)
    np.testing.assert_array_equal(voxels(target), copy.labels)
    assert (voxels(target, "1") != before[1]).any()
    assert zarr.open_group(target).attrs["dseeds"]["edits"] == 2
    edits.undo()
    edits.undo()
    for level, values in zip("01", before, strict=True):
        np.testing.assert_array_equal(voxels(target, level), values)
    assert sorted(path.name for path in target.parent.iterdir()) == [".zattrs", ".zgroup", "supervoxels"]


def test_labels_in_an_object_store(faulty_store):
    bucket = open_location(faulty_store.make_bucket())
    address = f"{bucket.address}/labels.zarr"
    dseeds.segment(IMAGE, address, step=6, chunks=6)
    dseeds.features(address, IMAGE, f"{bucket.address}/labels.features")
    edits = dseeds.edit(address, features=f"{bucket.address}/labels.features")
    edits.merge([1, 2])
    expected = dseeds.edit(dseeds.supervoxels(IMAGE, step=6))
    expected.merge([1, 2])
    np.testing.assert_array_equal(zarr.open_array(bucket.at("labels.zarr").zarr("0"))[:], expected.labels)
    assert_same_tables(edits.update_features(image=IMAGE), dseeds.features(address, IMAGE))
    edits.undo()
    assert {name.partition("/")[0] for name in bucket.names()} == {"labels.zarr", "labels.features"}
    assert ndimage.label(zarr.open_array(bucket.at("labels.zarr").zarr("0"))[:] == 1)[1] == 1


def test_the_command(tmp_path, call):
    target, folder = cut(tmp_path), tmp_path / "labels.features"
    np.save(tmp_path / "image.npy", IMAGE)
    dseeds.features(target, tmp_path / "image.npy", folder)
    moved = np.count_nonzero(voxels(target) == 2)
    code, out, err = call("edit", target, "merge", 2, 1, "--features", folder, "--image", tmp_path / "image.npy")
    assert (code, out) == (0, f"edit 1: merge, 1, 2 -> 1, {moved} voxels\n"), err
    points = [",".join(map(str, np.argwhere(voxels(target) == 1)[n])) for n in (0, -1)]
    code, out, err = call("edit", target, "split", 1, "--seed", points[0], "--seed", points[1], "--json")
    assert (code, json.loads(out)["kind"]) == (0, "split"), err
    assert call("edit", target, "undo")[0] == 0
    with_image = ("--by-contrast", "--image", tmp_path / "image.npy")
    assert call("edit", target, "split", 1, "--seed", points[0], "--seed", points[1], *with_image)[0] == 0
    assert call("edit", target, "undo", "--features", folder, "--image", tmp_path / "image.npy")[0] == 0
    code, out, err = call("edit", target, "log", "--json")
    assert [one["kind"] for one in json.loads(out)] == ["merge", *["split", "undo"] * 2], err
    assert "undo of 2" in call("edit", target, "log")[1]
    assert_same_tables(dseeds.Features(str(folder)), dseeds.features(target, IMAGE))
    for wrong in (
        ("cut", 1, 2),
        ("merge", 1),
        ("split", 1),
        ("split", 1, "--seed", "1,2"),
        ("undo", 3),
        ("split", 1, "--seed", "1,2,3", "--by-contrast"),
        ("merge", 1, 3, "--seed", "1,2,3"),
    ):
        assert call("edit", target, *wrong)[0] == 2
    assert call("edit", target, "merge", 1, 9999)[0] == 1
