"""The command line on full and read-only disks."""

import subprocess
from contextlib import contextmanager

import pytest

from tests.support.commands import EXAMPLE, assert_one_sentence, image, listing, save


@contextmanager
def mounted(folder, options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        pytest.skip(f"NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"NOT TESTED: a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], timeout=60, check=True)


@pytest.mark.dask
@pytest.mark.parametrize(
    ("target", "scratch", "filled"),
    [
        ("labels.zarr", "disk", 900),
        ("labels.nii.gz", "disk", 900),
        ("labels.zarr", "elsewhere", 1000),
        ("labels.nii", "elsewhere", 1000),
    ],
)
def test_a_full_disk(call, cluster, tmp_path, target, scratch, filled):
    """The free space is too small from the start; disks that fill up during a run are tested with the runs."""
    (tmp_path / "elsewhere").mkdir()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "mine").write_bytes(bytes(filled << 10))
        before = listing(tmp_path)
        code, out, err = call(
            "segment",
            *(EXAMPLE, disk / target),
            *("--volume", 0, "--step", 8, "--quiet"),
            *("--scratch", tmp_path / scratch, "--scheduler", cluster.scheduler_address),
        )
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "are free: free some" in err
        assert listing(tmp_path) == before


def test_a_full_disk_under_a_phantom(call, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        code, out, err = call("phantom", disk / "body.zarr", "--shape", "128,128,128")
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "no space left on device" in err
        assert listing(disk) == {}


@pytest.mark.parametrize("arguments", [["segment", "image.zarr"], ["phantom", "--shape", "8,8,8"]])
def test_a_read_only_disk(call, no_cluster, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "image.zarr", image())
    with mounted(tmp_path / "disk", "ro") as disk:
        code, out, err = call(*arguments, disk / "new.zarr")
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "read-only file system" in err
