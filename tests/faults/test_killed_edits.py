"""Edits that are killed: what was begun is completed, and nothing is half."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr

import dseeds
from dseeds.io import pyramid_levels
from dseeds.io.pyramid import build_pyramid
from dseeds.storage.label_group import EDITING, own_attribute
from dseeds.storage.location import open_location
from dseeds.storage.parquet_dataset import Dataset
from tests.support.edits import assert_same_tables
from tests.support.paths import ROOT
from tests.support.runs import names_in, noise

pytestmark = pytest.mark.faults

IMAGE = noise((16, 20, 24), dtype="int16")
# Kills the process at the so-maniest call of a method, before or after the call.
DIES = """
import os, signal, sys
import numpy as np
import dseeds
from dseeds.io.editable_labels import GroupLabels
from dseeds.storage.edit_log import EditLog
from dseeds.storage.parquet_dataset import Dataset

target, action, owner, name, number = sys.argv[1:]
owner = {"labels": GroupLabels, "log": EditLog, "data": Dataset}[owner]
method, calls = getattr(owner, name), []

def dying(self, *arguments, **more):
    calls.append(arguments)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return method(self, *arguments, **more)

edits = dseeds.edit(target)
if action == "update":
    edits.merge([1, 2])
    image = np.load(target.replace("labels.zarr", "image.npy"))
    setattr(owner, name, dying)
    edits.update_features(target.replace("labels.zarr", "labels.features"), image)
if action == "undo":
    edits.merge([1, 2, 6])
setattr(owner, name, dying)
edits.undo() if action == "undo" else edits.merge([1, 2, 6])
"""
# Where an edit dies, and whether it is known completely by then and so goes on.
POINTS = [
    (("merge", "log", "write_piece", 2), False),
    (("merge", "labels", "set_state", 1), False),
    (("merge", "labels", "write", 2), True),
    (("merge", "labels", "finish", 1), True),
    (("merge", "labels", "set_state", 2), True),
    (("undo", "labels", "write", 2), True),
]
# Where an update of features dies: before, while and after it is staged, and while it is put into its place.
UPDATES = [("stage", 2), ("publish_update", 1), ("finish_update", 2), ("move_staged", 2)]


def die(folders, commands):
    """Run all of these at once until each is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIES, str(folder / "labels.zarr"), *map(str, command)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, command in zip(folders, commands, strict=True)
    ]
    errors = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * len(processes), errors


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Make as many folders with the same labels as there are points."""
    monkeypatch.setattr(pyramid_levels, "TOP_EXTENT", 5)
    monkeypatch.setattr(pyramid_levels, "THIN_EXTENT", 2)
    (tmp_path / "first").mkdir()
    dseeds.segment(IMAGE, tmp_path / "first" / "labels.zarr", step=6, chunks=6, shards=6)

    def make(count):
        for number in range(count):
            shutil.copytree(tmp_path / "first", tmp_path / str(number))
        return [tmp_path / str(number) for number in range(count)]

    return make


def levels_of(target):
    return [zarr.open_array(target / str(level), mode="r")[:] for level in range(3)]


def test_a_killed_edit_is_completed_or_was_never_begun(folders, call):
    copies = folders(len(POINTS))
    die(copies, [command for command, _ in POINTS])
    before = levels_of(copies[0].parent / "first" / "labels.zarr")
    merged = dseeds.edit(before[0])
    merged.merge([1, 2, 6])
    for folder, (command, has_begun) in zip(copies, POINTS, strict=True):
        target, count = folder / "labels.zarr", 1 + (command[0] == "undo")
        assert (EDITING in own_attribute(open_location(target))) == has_begun
        if has_begun:
            with pytest.raises(ValueError, match=r"unfinished: .* log"):
                dseeds.features(target)
        else:
            np.testing.assert_array_equal(levels_of(target)[0], before[0])
        assert call("edit", target, "log", "--quiet")[0] == 0
        edits = dseeds.edit(target)
        assert len(edits.log) == has_begun * count
        expected = merged.labels if has_begun and count == 1 else before[0]
        np.testing.assert_array_equal(levels_of(target)[0], expected)
        copy = shutil.copytree(target, folder.with_suffix(".zarr"))
        levels = pyramid_levels.choose_levels(IMAGE.shape)
        build_pyramid(str(copy), "mode", levels)
        for stored, new in zip(levels_of(target), levels_of(copy), strict=True):
            np.testing.assert_array_equal(stored, new)
        if edits.log and count == 1:
            edits.undo()
        assert edits.merge([1, 2, 6]).number == len(edits.log)
        np.testing.assert_array_equal(levels_of(target)[0], merged.labels)
        assert names_in(folder) == ["labels.zarr"]
    # Nothing that was left hinders a new run.
    dseeds.segment(IMAGE, copies[2] / "labels.zarr", step=6, overwrite=True)
    assert not (copies[2] / "labels.zarr" / "edits").exists()


def test_a_killed_update_of_features_is_completed_or_was_never_begun(folders):
    # Leases are written, too, by a thread; so are staged parts, the marker, and the parts in their places.
    commands = [("update", "data", name, number) for name, number in UPDATES]
    copies = folders(len(UPDATES))
    for folder in copies:
        np.save(folder / "image.npy", IMAGE)
        dseeds.features(folder / "labels.zarr", IMAGE, folder / "labels.features")
    die(copies, commands)
    anew = None
    for folder in copies:
        target, tables = folder / "labels.zarr", folder / "labels.features"
        anew = anew or dseeds.features(target, IMAGE)
        dataset = Dataset(open_location(tables))
        if dataset.location.read(dataset.kind.note) is None:
            with pytest.raises(FileNotFoundError, match="not all of them"):
                dseeds.load_graph(tables)
        updated = dseeds.edit(target).update_features(tables, IMAGE)
        assert_same_tables(updated, anew)
        assert names_in(tables) == ["dseeds-features.json", "edges.parquet", "table.parquet"]
