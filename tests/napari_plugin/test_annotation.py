"""Annotations of supervoxels: undo, answers that are kept only for what they answer, and the folder of a volume."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

import dseeds
from dseeds.measure.region_graph import AdjacencyGraph
from dseeds.napari_plugin import annotation
from dseeds.napari_plugin.annotation import AnnotationFolder, AnnotationSession, FolderSettings, scribbled_labels
from dseeds.napari_plugin.cut_progress import CutCancelled, CutProgress

COUNT = 6
GRAPH = AdjacencyGraph(
    np.arange(1, COUNT + 1),
    np.array([[i, i + 1] for i in range(COUNT - 1)]),
    {},
    {"area": np.arange(1.0, COUNT)},
)
SETTINGS = FolderSettings(step=(8, 8, 8), window=(0.0, 255.0), compactness=0.0, spacing=(1.0, 1.0, 1.0))
labels = st.lists(st.integers(0, COUNT), max_size=3)
steps = st.one_of(st.tuples(labels, st.integers(0, 3)), st.sampled_from(["undo", "redo", "propagate"]))


@given(st.lists(steps, max_size=12))
def test_undo_and_redo_restore_what_was(actions):
    session = AnnotationSession(GRAPH)
    past, future = [], []
    for action in actions:
        before = session.state
        if action == "propagate":
            if before.classes:
                answer = session.propagate()
                assert session.state.is_current
                assert session.state.answer is answer
        elif action == "undo":
            assert session.undo() is bool(past)
            if past:
                future.append(before)
                assert session.state is past.pop()
        elif action == "redo":
            assert session.redo() is bool(future)
            if future:
                past.append(before)
                assert session.state is future.pop()
        elif session.annotate(*action):
            past.append(before)
            future.clear()
            named, name = action
            assert {label: session.state.classes.get(label, 0) for label in named if label} == dict.fromkeys(
                [label for label in named if label], name
            )
            assert not session.state.is_current


def test_old_answers_are_dropped_for_memory(monkeypatch):
    monkeypatch.setattr(annotation, "UNDO_BYTES", COUNT * 8 * 2)
    session = AnnotationSession(GRAPH, {1: 1, 6: 2})
    answers = [session.propagate()]
    for label in (2, 3):
        session.annotate([label], 1)
        answers.append(session.propagate())
    session.annotate([4], 2)
    assert session.undo()
    assert session.state.answer is answers[2]
    assert session.undo()
    assert session.state.answer is None
    assert session.state.classes == {1: 1, 2: 1, 6: 2}


def test_unknown_supervoxels_and_classes_are_refused():
    session = AnnotationSession(GRAPH)
    with pytest.raises(ValueError, match="9 is no supervoxel"):
        session.annotate([9], 1)
    with pytest.raises(ValueError, match="not -1"):
        session.annotate([1], -1)
    assert not session.undo()


def test_a_folder_keeps_everything(tmp_path):
    image = np.zeros((16, 24, 24), np.uint8)
    image[:, :, 16:] = 200
    folder = AnnotationFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="cut a layer into it first"):
        folder.open()
    session = folder.cut([image], SETTINGS)
    cells = zarr.open_array(folder.labels / "0", mode="r")[:]
    assert np.array_equal(cells, dseeds.supervoxels(image, step=8, window=(0, 255)))
    session.annotate([cells[0, 0, 0]], 1)
    session.annotate([cells[0, 0, 23]], 2)
    folder.save(session)
    # Both sides of the only edge.
    assert np.array_equal(zarr.open_array(folder.classes / "0", mode="r")[:], 1 + (image > 100))
    assert pq.read_table(folder.table).num_rows == cells.max()
    again = folder.open()
    assert again.state.classes == session.state.classes
    folder.save(again)
    with pytest.raises(FileExistsError, match="choose another folder"):
        folder.cut([image], SETTINGS)


def test_a_cancelled_cut_goes_on_only_with_the_same_settings(tmp_path):
    image = np.random.default_rng(0).integers(0, 200, (32, 32, 32), np.uint8)
    mask = np.ones(image.shape, np.uint8)
    mask[:, :8] = 0
    image_array, mask_array = (
        zarr.create_array(tmp_path / f"{name}.zarr", data=values, chunks=(16, 16, 16))
        for name, values in (("image", image), ("mask", mask))
    )
    folder = AnnotationFolder(tmp_path / "folder")
    folder.path.mkdir()
    masked = replace(SETTINGS, mask=mask_array)

    class CancelledLate(CutProgress):
        def advance(self, stage):
            if stage not in ("quantise", "windows"):
                self.cancel()
            super().advance(stage)

    with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0"):
        with pytest.raises(CutCancelled):
            folder.cut([image_array], masked, CancelledLate())
        assert not folder.labels.exists()
        # Resumed, it would silently keep the mask.
        for other in (SETTINGS, replace(masked, compactness=1.0)):
            with pytest.raises(ValueError, match="unfinished cut"):
                folder.cut([image_array], other)
        folder.cut([image_array], masked)
    expected = dseeds.supervoxels(image, step=8, window=(0, 255), mask=mask)
    assert np.array_equal(zarr.open_array(folder.labels / "0", mode="r")[:], expected)


def test_voxels_of_suggestions_lie_in_them(tmp_path):
    image = np.random.default_rng(1).integers(0, 200, (24, 40, 40), np.uint8)
    folder = AnnotationFolder(tmp_path)
    session = folder.cut([image], SETTINGS)
    cells = zarr.open_array(folder.labels / "0", mode="r")[:]
    everything = session.graph.labels
    for label, voxel in zip(everything, folder.locate(everything), strict=True):
        assert cells[voxel] == label
        inside = np.argwhere(cells == label)
        distances = np.linalg.norm(inside - inside.mean(axis=0), axis=1)
        assert np.linalg.norm(voxel - inside.mean(axis=0)) == pytest.approx(distances.min(), abs=1e-4)


def test_scribbles_read_only_their_box():
    class Recorder:
        shape = (8, 50, 50)

        def __getitem__(self, index):
            assert [(i.start, i.stop) for i in index] == [(3, 4), (10, 13), (5, 21)]
            return np.arange(48).reshape(1, 3, 16)

    assert scribbled_labels(Recorder(), [(3, 10, 5), (3, 12, 20)]).tolist()[::15] == [0, 47]
    assert not scribbled_labels(Recorder(), [(-5, 0, 0)]).size
