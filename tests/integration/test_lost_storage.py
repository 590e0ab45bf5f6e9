"""Targets and scratch that vanish, and disks that fill up, while a run is at work."""

import shutil
import subprocess

import nibabel
import numpy as np
import pytest

from dseeds import segment, supervoxels
from dseeds.engine.repair import BeyondRepair, RegionFailed
from tests.support.runs import (
    FEW,
    GOOD,
    Recorder,
    assert_idle,
    assert_no_image,
    assert_sentence,
    labels_in,
    names_in,
    nifti_saver,
    noise,
    when,
)


@pytest.mark.parametrize("lost", ["", "0", "0/zarr.json"])
def test_a_target_that_is_removed_is_no_image(tmp_path, client, lost):
    """The run fails if its output is removed, and the rest does not look like an output."""

    def take():
        path = tmp_path / "a.zarr" / lost
        path.unlink() if path.is_file() else shutil.rmtree(path)

    progress = when("begin", "label", None, take)
    with pytest.raises(Exception, match=r"a\.zarr"):
        segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=progress)
    assert progress.happened
    assert_no_image(tmp_path / "a.zarr")
    # A task may just have written labels.
    shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
    segment(GOOD, tmp_path / "a.zarr", client=client, resume=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))


def test_scratch_that_is_removed(tmp_path, client):
    """What the workers still know is enough, or the error says what is gone."""
    (tmp_path / "scratch").mkdir()

    def take():
        for path in (tmp_path / "scratch").iterdir():
            shutil.rmtree(path)

    progress = when("begin", "sweep-voxels", None, take)
    target = tmp_path / "a.zarr"
    try:
        segment(GOOD, target, **FEW, client=client, progress=progress, scratch=tmp_path / "scratch")
        np.testing.assert_array_equal(labels_in(target), supervoxels(GOOD, step=4))
    except (BeyondRepair, RegionFailed, FileNotFoundError) as error:
        assert_sentence(error)
        assert_no_image(target)
    assert progress.happened


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"A FULL DISK IS NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"A FULL DISK IS NOT TESTED, for lack of the right to mount one: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], timeout=60, check=True)


def fill(folder, leaving):
    """Fill a disk up to a number of free bytes."""
    room = shutil.disk_usage(folder).free - leaving
    (folder / "filling").write_bytes(b"\0" * room)


@pytest.mark.parametrize(
    ("full", "ending", "leaving", "stage"),
    [
        ("scratch", ".zarr", 1000 << 10, "quantise"),
        ("scratch", ".zarr", 8 << 10, None),
        ("target", ".zarr", 160 << 10, "label"),
        ("target", ".zarr", 48 << 10, "sweep-blocks"),
        ("target", ".zarr", 0, None),
        ("target", ".nii", 160 << 10, "export"),
    ],
)
def test_a_full_disk(tmp_path, client, small_disk, monkeypatch, full, ending, leaving, stage):
    """The disk fills up during the run; when the run began, enough was free."""
    source = nifti_saver(".nii")(tmp_path, noise((70, 80, 80), dtype="int16"))
    (tmp_path / "out").mkdir()
    folders = {"target": tmp_path / "out", "scratch": tmp_path / "out", full: small_disk}
    fill(small_disk, leaving)
    room = shutil.disk_usage(small_disk)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    progress = Recorder()
    with pytest.raises(OSError, match="No space left on device") as caught:
        segment(
            source,
            folders["target"] / f"labels{ending}",
            step=10,
            region=40,
            scratch=folders["scratch"],
            client=client,
            progress=progress,
        )
    assert "\n" not in str(caught.value)
    target = folders["target"] / f"labels{ending}"
    assert not target.is_file()
    assert_no_image(target)
    if stage:
        assert stage in {name for _, name, _ in progress.events}, "it came as far as it was meant to"
    assert_idle(client)
    (small_disk / "filling").unlink()
    segment(source, target, step=10, region=40, scratch=folders["scratch"], client=client, resume=True)
    result = labels_in(target) if ending == ".zarr" else np.asarray(nibabel.load(target, mmap=False).dataobj).T
    np.testing.assert_array_equal(result, supervoxels(noise((70, 80, 80), dtype="int16"), step=10))
    assert names_in(folders["target"]) == [target.name]
