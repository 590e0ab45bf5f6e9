"""Label groups: an output is an image only when it is complete, and files of others are never removed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dseeds.core.geometry import Box
from dseeds.storage.label_group import (
    LabelGroup,
    begin_target,
    check_target,
    is_our_group,
    publish_labels,
    remove_target,
    written_by,
)
from dseeds.storage.location import open_location
from dseeds.storage.ownership import MARKER, check_apart
from dseeds.storage.zarr_arrays import Layout

RUN = "0123456789abcdef"


def finished(target):
    begin_target(open_location(target), RUN)
    zarr.create_array(target / "0", data=np.arange(5))
    publish_labels(open_location(target), {"dseeds": {"supervoxels": 5}, "ome": {}})


def unfinished(target):
    begin_target(open_location(target), RUN)
    zarr.create_array(target / "0", data=np.arange(5))


def barely_begun(target):
    begin_target(open_location(target), RUN)


def group_with(attributes):
    def group(target):
        zarr.create_group(target, attributes=attributes).create_array("0", data=np.arange(5))

    return group


def with_my_file(name, then):
    def add_file(target):
        then(target)
        (target / name).write_text("precious")

    return add_file


def file(target):
    target.write_text("precious")


def link(then):
    def link_to(target):
        then(target.with_name("elsewhere"))
        target.symlink_to(target.with_name("elsewhere"))

    return link_to


def tree(folder):
    return {
        path: path.read_bytes() if path.is_file() else path.is_symlink() and path.readlink()
        for path in Path(folder).rglob("*")
    }


@pytest.mark.parametrize("make", [finished, unfinished, barely_begun])
def test_an_output_of_ours_is_overwritten_only_on_request(tmp_path, make):
    target = tmp_path / "a.zarr"
    make(target)
    assert is_our_group(open_location(target))
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_target(open_location(target), overwrite=False)
    before = tree(tmp_path)
    check_target(open_location(target), overwrite=True)
    assert tree(tmp_path) == before
    remove_target(open_location(target))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "make",
    [
        file,
        Path.mkdir,
        group_with({}),
        group_with({"dseeds": "supervoxels"}),
        group_with({"dseeds": ["supervoxels"]}),
        group_with({"dseeds": {"phantom": {"supervoxels": 3}}}),
        group_with({"dseeds": 3}),
        group_with({"dseeds": None}),
        group_with({"supervoxels": 3}),
        with_my_file("zarr.json", Path.mkdir),
        with_my_file("notes.txt", Path.mkdir),
        with_my_file("notes.txt", finished),
        with_my_file("notes.txt", unfinished),
        with_my_file("0/notes.txt", finished),
        with_my_file("1", finished),
        link(finished),
        link(Path.mkdir),
        link(lambda _target: None),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_overwritten(tmp_path, make, overwrite):
    target = tmp_path / "a.zarr"
    make(target)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"a\.zarr"):
        check_target(open_location(target), overwrite=overwrite)
    with pytest.raises(FileExistsError):
        begin_target(open_location(target), "another", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_a_target_needs_an_existing_parent_folder(tmp_path):
    check_target(open_location(tmp_path / "a.zarr"), overwrite=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_target(open_location(tmp_path / "none" / "a.zarr"), overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        check_target(open_location(tmp_path / "file" / "a.zarr"), overwrite=True)


def test_a_target_becomes_an_image_when_it_is_published(tmp_path):
    target = tmp_path / "a.zarr"
    begin_target(open_location(target), RUN)
    LabelGroup(open_location(target)).create(Layout.cut((4, 4, 4), "u4", (4, 4, 4), 64))
    with pytest.raises(FileNotFoundError):
        zarr.open(target, mode="r")
    assert (target / MARKER).is_file()
    publish_labels(open_location(target), {"dseeds": {"supervoxels": 1}, "more": [1, 2]})
    group = zarr.open(target, mode="r")
    assert isinstance(group, zarr.Group)
    assert group.attrs.asdict() == {"dseeds": {"supervoxels": 1}, "more": [1, 2]}
    assert group.metadata.zarr_format == 3
    assert {path.name for path in target.iterdir()} == {"0", "zarr.json"}
    json.loads((target / "zarr.json").read_text())


def test_removal_deletes_the_metadata_first(tmp_path, monkeypatch):
    """An interrupted removal must not leave part of an image that looks like a complete one."""
    target = tmp_path / "a.zarr"
    finished(target)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        remove_target(open_location(target))
    with pytest.raises(FileNotFoundError):
        zarr.open(target, mode="r")


def test_a_resumed_run_keeps_its_labels_and_another_run_removes_them(tmp_path):
    target = tmp_path / "a.zarr"
    labels = LabelGroup(open_location(target))
    whole = Box((0, 0, 0), (4, 4, 8))

    def begin(run):
        begin_target(open_location(target), run, overwrite=True)
        labels.create(Layout.cut((4, 4, 8), "u4", (4, 4, 4), 64))

    begin(RUN)
    labels.write(Box((0, 0, 0), (4, 4, 4)), np.full((4, 4, 4), 3, np.uint32))
    assert written_by(open_location(target)) == RUN
    before = tree(tmp_path)
    begin(RUN)
    assert tree(tmp_path) == before
    assert labels.is_complete(Box((0, 0, 0), (4, 4, 4)))
    assert not labels.is_complete(whole)
    begin("another")
    assert written_by(open_location(target)) == "another"
    assert not labels.is_complete(Box((0, 0, 0), (4, 4, 4)))


@pytest.mark.parametrize("name", ["a.mgz", "a.png", "a.csv", "a.NII.GZ", "a.parquet", "a.zip", "a.json"])
def test_targets_with_the_name_of_a_file_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="would be a file, but the output is a Zarr folder"):
        check_target(open_location(tmp_path / name), overwrite=False)
    check_target(open_location(tmp_path / "a.v2"), overwrite=False)


def test_a_target_inside_the_array_of_its_source(tmp_path):
    zarr.create_group(tmp_path / "a.zarr").create_array("0", shape=(4, 4, 4), dtype="u1")
    source = str(tmp_path / "a.zarr/0")
    for inside in ("labels", "c/labels.zarr"):
        with pytest.raises(FileExistsError, match="lies in the source, the Zarr array"):
            check_apart(f"{source}/{inside}", source)
    check_apart(str(tmp_path / "a.zarr/labels/supervoxels"), source)
    check_apart(str(tmp_path / "b.zarr"), source)
    with pytest.raises(FileExistsError, match="lies in the source"):
        check_apart("s3://bucket/a.zarr/0/labels", "s3://bucket/a.zarr/0")
    # A folder that holds files may also hold labels.
    check_apart(str(tmp_path / "labels.zarr"), str(tmp_path))
