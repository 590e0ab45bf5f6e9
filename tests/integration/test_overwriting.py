"""An out-of-core run overwrites only what the package wrote itself, and only with `overwrite`."""

import shutil

import nibabel
import numpy as np
import pytest
import zarr

from dseeds import segment, supervoxels
from dseeds.phantom import write_phantom
from tests.support.runs import (
    FEW,
    GOOD,
    Recorder,
    assert_sentence,
    copy_of_ours,
    folder,
    labels_in,
    nifti_saver,
    snapshot,
    text,
    when,
)


def file_of_mine(target, _ours):
    target.write_text("precious")


def no_folder_of_ours(target, _ours):
    target.mkdir()


def folder_of_mine(target, _ours):
    target.mkdir()
    (target / "thesis.txt").write_text("precious")


def zarr_of_mine(target, _ours):
    group = zarr.create_group(target, attributes={"mine": True})
    group.create_array("0", data=np.arange(5))


def array_of_mine(target, _ours):
    zarr.create_array(target, data=np.arange(5), attributes={"mine": True})


def zarr_with(attribute):
    def zarr_with_attribute(target, _ours):
        group = zarr.create_group(target, attributes={"dseeds": attribute})
        group.create_array("0", data=np.arange(5))

    return zarr_with_attribute


def phantom_of_ours(target, _ours):
    write_phantom(target, shape=(6, 7, 8))


def unfinished_phantom(target, _ours):
    def keep(done, _all):
        if done == 1:
            shutil.copytree(target.with_name("phantom.zarr"), target)

    write_phantom(target.with_name("phantom.zarr"), shape=(6, 7, 8), progress=keep)


def added(*names):
    def ours_with_more(target, ours):
        copy_of_ours(target, ours)
        path = target.joinpath(*names)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("precious")

    return ours_with_more


def metadata_that_is_damaged(target, ours):
    copy_of_ours(target, ours)
    (target / "zarr.json").write_text("{")


def metadata_that_is_no_text(target, ours):
    copy_of_ours(target, ours)
    (target / "zarr.json").write_bytes(b"\xff\xfe")


def labels_replaced_by_a_link(target, ours):
    copy_of_ours(target, ours)
    mine = target.with_name("mine")
    (target / "0").rename(mine)
    (target / "0").symlink_to(mine)


def link_to_ours(target, ours):
    copy_of_ours(target.with_name("original.zarr"), ours)
    target.symlink_to(target.with_name("original.zarr"))


def link_to_a_folder_of_mine(target, ours):
    folder_of_mine(target.with_name("mine"), ours)
    target.symlink_to(target.with_name("mine"))


def link_to_nowhere(target, _ours):
    target.symlink_to(target.with_name("nowhere"))


NOT_OURS = [
    file_of_mine,
    no_folder_of_ours,
    folder_of_mine,
    zarr_of_mine,
    array_of_mine,
    zarr_with("supervoxels of mine"),
    zarr_with(["supervoxels"]),
    zarr_with(5),
    zarr_with(None),
    zarr_with({"phantom": {}}),
    phantom_of_ours,
    unfinished_phantom,
    added("thesis.txt"),
    added("1"),
    added("labels", "organs", "zarr.json"),
    added("0", "thesis.txt"),
    added("0", "c", "0", "thesis.txt"),
    metadata_that_is_damaged,
    metadata_that_is_no_text,
    labels_replaced_by_a_link,
    link_to_ours,
    link_to_a_folder_of_mine,
    link_to_nowhere,
]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("make", NOT_OURS, ids=lambda make: make.__name__)
def test_output_of_others_is_not_overwritten(tmp_path, client, ours, make, overwrite):
    make(tmp_path / "labels.zarr", ours)
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(FileExistsError, match=r"labels\.zarr") as caught:
        segment(GOOD, tmp_path / "labels.zarr", step=4, client=client, overwrite=overwrite, progress=progress)
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before
    assert progress.events == [], "it is refused at once, not after the work"


def nifti_of_mine(target):
    nibabel.save(nibabel.Nifti1Image(GOOD.T, np.eye(4)), target)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("make", [text, nifti_of_mine, folder])
def test_nifti_of_others_is_not_overwritten(tmp_path, client, make, overwrite):
    source = nifti_saver(".nii")(tmp_path, GOOD)
    make(tmp_path / "labels.nii.gz")
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(FileExistsError, match=r"labels\.nii\.gz"):
        segment(source, tmp_path / "labels.nii.gz", step=8, client=client, overwrite=overwrite, progress=progress)
    assert snapshot(tmp_path) == before
    assert progress.events == []


def test_our_output_is_overwritten_on_request(tmp_path, client, ours):
    copy_of_ours(tmp_path / "labels.zarr", ours)
    with pytest.raises(FileExistsError, match="--overwrite"):
        segment(GOOD, tmp_path / "labels.zarr", step=4, client=client)
    assert snapshot(tmp_path / "labels.zarr") == snapshot(ours)
    segment(GOOD, tmp_path / "labels.zarr", step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(GOOD, step=4))


def test_our_nifti_is_overwritten_on_request(tmp_path, client):
    source = nifti_saver(".nii")(tmp_path, GOOD)
    segment(source, tmp_path / "labels.nii.gz", step=8, client=client)
    with pytest.raises(FileExistsError, match="--overwrite"):
        segment(source, tmp_path / "labels.nii.gz", step=4, client=client)
    segment(source, tmp_path / "labels.nii.gz", step=4, client=client, overwrite=True)
    result = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj).T
    np.testing.assert_array_equal(result, supervoxels(GOOD, step=4))


def test_the_rest_of_a_killed_run_is_overwritten_on_request(tmp_path, client):
    """A killed run leaves a marker."""

    def keep():
        shutil.copytree(tmp_path / "a.zarr", tmp_path / "left.zarr")

    progress = when("advance", "label", 1, keep)
    segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=progress)
    assert progress.happened
    with pytest.raises(FileExistsError):
        segment(GOOD, tmp_path / "left.zarr", step=4, client=client)
    segment(GOOD, tmp_path / "left.zarr", step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "left.zarr"), supervoxels(GOOD, step=4))


@pytest.mark.parametrize(
    ("make", "overwrite"),
    [
        (copy_of_ours, False),
        (folder_of_mine, False),
        (folder_of_mine, True),
        (link_to_ours, False),
        (link_to_ours, True),
    ],
)
def test_output_that_appears_during_the_run_is_not_overwritten(tmp_path, client, ours, make, overwrite):
    """Another program may write to the same path during the run, and must not lose its data."""
    target = tmp_path / "labels.zarr"
    progress = when("begin", "sweep-voxels", None, lambda: make(target, ours))
    with pytest.raises(FileExistsError, match=r"labels\.zarr"):
        segment(GOOD, target, **FEW, client=client, progress=progress, overwrite=overwrite)
    assert progress.happened
    mine = snapshot(tmp_path)
    shutil.rmtree(target) if not target.is_symlink() else target.unlink()
    shutil.rmtree(tmp_path / "original.zarr", ignore_errors=True)
    make(target, ours)
    assert mine == snapshot(tmp_path)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("labels.zarr", "labels.zarr"),
        ("labels.zarr/0", "labels.zarr"),
        ("link.zarr", "labels.zarr"),
        ("folder/../labels.zarr", "labels.zarr"),
        ("labels.nii", "labels.nii"),
        ("link.nii", "labels.nii"),
    ],
)
def test_the_source_is_not_overwritten(tmp_path, client, ours, monkeypatch, source, target):
    """Even if the source was written by the package and could be overwritten."""
    monkeypatch.chdir(tmp_path)
    copy_of_ours(tmp_path / "labels.zarr", ours)
    nifti_of_mine(tmp_path / "image.nii")
    segment("image.nii", "labels.nii", step=8, client=client)
    (tmp_path / "link.zarr").symlink_to("labels.zarr")
    (tmp_path / "link.nii").symlink_to("labels.nii")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises((ValueError, FileExistsError)) as caught:
        segment(source, target, step=4, client=client, overwrite=True, progress=progress)
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before
    assert progress.events == [], "it is refused at once, not after the work"
