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


class Killed(Exception):
    pass


def labels_in_version_2(target):
    """Write labels of 5 x 6 x 7 voxels that are not published yet, and return them with their group."""
    begin_target(open_location(target), RUN)
    group = LabelGroup(open_location(target), "0", RUN, zarr_format=2)
    group.create(Layout((5, 6, 7), np.dtype("uint32"), (4, 4, 4), (4, 4, 4), "zstd", checked=False))
    labels = np.arange(210, dtype=np.uint32).reshape(5, 6, 7)
    group.write(Box((0, 0, 0), (4, 6, 7)), labels[:4])
    group.write(Box((4, 0, 0), (5, 6, 7)), labels[4:])
    return group, labels


ATTRIBUTES_04 = {"dseeds": {"supervoxels": 5}, "multiscales": [{"version": "0.4", "datasets": [{"path": "0"}]}]}


def test_labels_in_zarr_v2(tmp_path):
    target = tmp_path / "labels"
    group, labels = labels_in_version_2(target)
    box = Box((0, 0, 0), labels.shape)
    np.testing.assert_array_equal(group.read(box), labels)
    publish_labels(open_location(target), ATTRIBUTES_04, zarr_format=2)
    assert {path.name for path in target.rglob("*") if path.name.strip(".").isalpha()} == {
        ".zattrs",
        ".zgroup",
        ".zarray",
    }
    array = zarr.open_array(target / "0", mode="r", zarr_format=2)
    np.testing.assert_array_equal(array[:], labels)
    assert array.chunks == (4, 4, 4)
    assert zarr.open_group(target, mode="r", zarr_format=2).attrs.asdict() == ATTRIBUTES_04
    assert is_our_group(open_location(target))
    check_target(open_location(target), overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_target(open_location(target), overwrite=False)
    (target / "0" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        check_target(open_location(target), overwrite=True)
    (target / "0" / "notes.txt").unlink()
    remove_target(open_location(target))
    assert not target.exists()


def test_a_missing_chunk_of_zarr_v2_is_noticed(tmp_path):
    group, labels = labels_in_version_2(tmp_path / "labels")
    (tmp_path / "labels" / "0" / "1" / "0" / "0").unlink()
    assert not group.is_complete(Box((0, 0, 0), labels.shape))
    assert group.is_complete(Box((0, 0, 0), (4, 6, 7)))


@pytest.mark.parametrize("step", range(6))
def test_publishing_in_zarr_v2_can_be_repeated(tmp_path, monkeypatch, step):
    """Killed before any of its steps, it leaves an unfinished output, which a resumed run can read and publish."""
    target = tmp_path / "labels"
    group, labels = labels_in_version_2(target)
    kind, left = type(open_location(target)), [step]

    def killed(function):
        def run(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for name in ("write", "delete"):
            patch.setattr(kind, name, killed(getattr(kind, name)))
        if step < 5:
            with pytest.raises(Killed):
                publish_labels(open_location(target), ATTRIBUTES_04, zarr_format=2)
            assert written_by(open_location(target)) == RUN
        else:
            publish_labels(open_location(target), ATTRIBUTES_04, zarr_format=2)
    if step < 5:
        group.create(Layout((5, 6, 7), np.dtype("uint32"), (4, 4, 4), (4, 4, 4), "zstd", checked=False))
        np.testing.assert_array_equal(group.read(Box((0, 0, 0), labels.shape)), labels)
        publish_labels(open_location(target), ATTRIBUTES_04, zarr_format=2)
    np.testing.assert_array_equal(zarr.open_array(target / "0", mode="r")[:], labels)
    assert not list(target.rglob("zarr.json"))
    assert written_by(open_location(target)) is None
