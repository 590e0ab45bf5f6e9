"""Bad input to an out-of-core run raises an error of one sentence, and nothing is written."""

import json

import numpy as np
import pytest
import zarr

from dseeds import segment, supervoxels
from dseeds.engine.repair import RegionFailed
from dseeds.engine.run import SUFFIX
from dseeds.engine.run_directory import RunMismatch
from tests.support import oracle
from tests.support.runs import (
    FEW,
    GOOD,
    Recorder,
    as_zarr,
    assert_sentence,
    copy_of_ours,
    labels_in,
    nifti_saver,
    noise,
    snapshot,
)


def truncated(folder):
    path = nifti_saver(".nii.gz")(folder, noise((40, 26, 33), dtype="int16"))
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def no_gzip(folder):
    (folder / "a.nii.gz").write_bytes(b"not an image at all" * 100)
    return folder / "a.nii.gz"


def damaged_chunk(folder):
    path = as_zarr(folder / "a.zarr", noise((20, 26, 33)), 16)
    chunk = path / "c" / "1" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    return path


def empty_folder(folder):
    (folder / "a.zarr").mkdir()
    return folder / "a.zarr"


def make(image):
    return lambda _folder: image


BAD = {
    "missing": (lambda folder: folder / "none.zarr", {}, FileNotFoundError, "none.zarr does not exist"),
    "missing nifti": (lambda folder: folder / "none.nii.gz", {}, FileNotFoundError, "none.nii.gz does not exist"),
    "boundaries": (make(GOOD), {"boundaries": "drak"}, ValueError, "choose .image., .dark. or .gradient."),
    "truncated": (truncated, {}, ValueError, "a.nii.gz cannot be read"),
    "no gzip": (no_gzip, {}, ValueError, "a.nii.gz cannot be opened as an image"),
    "empty folder": (empty_folder, {}, ValueError, "without Zarr metadata"),
    "2D": (make(GOOD[0]), {}, ValueError, "three axes"),
    "4D": (make(np.stack([GOOD, GOOD])), {}, ValueError, "holds 2 volumes: pass volume="),
    "5D": (make(np.zeros((2, 3, 4, 5, 6))), {}, ValueError, "volumes in more than one way"),
    "no such volume": (make(np.stack([GOOD, GOOD])), {"volume": 2}, ValueError, "has no volume 2"),
    "empty axis": (make(GOOD[:, :0]), {}, ValueError, "an axis is empty"),
    "NaN only": (make(GOOD * np.nan), {}, ValueError, "holds no finite value"),
    "infinite only": (make(np.full((9, 9, 9), -np.inf)), {}, ValueError, "holds no finite value"),
    "boolean": (make(GOOD > 0), {}, (TypeError, ValueError), "boolean"),
    "complex": (make(GOOD.astype("c8")), {}, (TypeError, ValueError), "complex"),
    "longdouble": (make(GOOD.astype(np.longdouble)), {}, TypeError, "at most 64 bits"),
    "a list": (make([[[1, 2]]]), {}, ValueError, "need three axes, z, y and x"),
    "step 1": (make(GOOD), {"step": 1}, ValueError, "step must be at least 2"),
    "step -8": (make(GOOD), {"step": (8, -8, 8)}, ValueError, "step must be at least 2"),
    "two steps": (make(GOOD), {"step": (8, 8)}, ValueError, "step must be"),
    "half a step": (make(GOOD), {"step": 8.5}, ValueError, "step must be"),
    "step of NaN": (make(GOOD), {"step": float("nan")}, ValueError, "step must be"),
    "step of infinity": (make(GOOD), {"step": float("inf")}, ValueError, "step must be"),
    "a word as step": (make(GOOD), {"step": "large"}, ValueError, "step must be"),
    "step in mm without spacing": (make(GOOD), {"step": "8mm"}, ValueError, "needs the voxels' size"),
    "both": (make(GOOD), {"step": 8, "n_segments": 8}, ValueError, "either step or n_segments"),
    "no segments": (make(GOOD), {"step": None, "n_segments": 0}, ValueError, "n_segments must be"),
    "too many": (make(GOOD), {"step": None, "n_segments": GOOD.size + 1}, ValueError, "n_segments must be"),
    "NaN segments": (make(GOOD), {"step": None, "n_segments": float("nan")}, ValueError, "n_segments must be"),
    "spacing 0": (make(GOOD), {"spacing": (1, 0, 1)}, ValueError, "spacing must be three positive"),
    "one spacing": (make(GOOD), {"spacing": 3}, (TypeError, ValueError), "spacing must be three positive"),
    "window upside down": (make(GOOD), {"window": (3, 1)}, ValueError, "window must be two finite"),
    "window of NaN": (make(GOOD), {"window": (0, np.nan)}, ValueError, "window must be two finite"),
    "three in a window": (make(GOOD), {"window": (0, 1, 2)}, ValueError, "window must be two finite"),
    "one in a window": (make(GOOD), {"window": 5}, (TypeError, ValueError), "window must be two finite"),
    "region 0": (make(GOOD), {"region": 0}, ValueError, "region must be"),
    "two regions": (make(GOOD), {"region": (8, 8)}, ValueError, "region must be"),
    "half a region": (make(GOOD), {"region": (8, 8, 8.5)}, ValueError, "region must be"),
    "region of NaN": (make(GOOD), {"region": (8, 8, float("nan"))}, ValueError, "region must be"),
    "a word as region": (make(GOOD), {"region": "all"}, (TypeError, ValueError), "region must be"),
    "no memory": (make(GOOD), {"memory": 0}, ValueError, "memory must be"),
    "a word as memory": (make(GOOD), {"memory": "much"}, ValueError, "memory must be"),
    "little memory": (make(GOOD), {"memory": "10MiB", "region": None}, ValueError, "more memory"),
    "little memory for a region": (make(GOOD), {"memory": "10MiB"}, ValueError, "more memory"),
    "workers and client": (make(GOOD), {"workers": 2}, ValueError, "workers= starts a local cluster"),
    "no workers": (make(GOOD), {"workers": 0, "client": None}, ValueError, "workers must be .*at least 1"),
    "no scratch": (make(GOOD), {"scratch": "/nonexistent/scratch"}, FileNotFoundError, "scratch folder"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gets_a_sentence_and_nothing_is_written(tmp_path, client, ours, bad, overwrite):
    source, parameters, kind, message = BAD[bad]
    source = source(tmp_path)
    (tmp_path / "out").mkdir()
    if overwrite:
        copy_of_ours(tmp_path / "out" / "labels.zarr", ours)
    before = snapshot(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        segment(
            source,
            tmp_path / "out" / "labels.zarr",
            **{**FEW, "client": client, "overwrite": overwrite, **parameters},
        )
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before


def test_a_source_that_is_damaged_somewhere(tmp_path, client):
    """The error names the region, the results of others are kept, and the run's folder holds a report."""
    source = damaged_chunk(tmp_path)
    target = tmp_path / "labels.zarr"
    with pytest.raises(RegionFailed, match=r"a.zarr cannot be read from voxel") as caught:
        segment(source, target, step=4, region=12, client=client)
    assert_sentence(caught.value)
    failed = json.loads((tmp_path / f"labels.zarr{SUFFIX}" / "failure.json").read_text())
    assert failed == {"phase": "window-00", "region": caught.value.region, "attempts": 3, "reason": caught.value.reason}
    debug, resume = caught.value.__notes__
    assert f"dseeds debug-region {target}{SUFFIX} --phase window-00 --region {failed['region']}" in debug
    assert resume == f"resume with: dseeds segment {source} {target} --resume"
    image = noise((20, 26, 33))
    zarr.open_array(source, mode="r+")[:] = image
    with pytest.raises(RunMismatch, match=r"source was .* and is now"):
        segment(source, target, client=client, resume=True)
    segment(source, target, step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, step=4))


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ("none/labels.zarr", FileNotFoundError, "the folder .*none for the target does not exist"),
        ("file/labels.zarr", FileNotFoundError, "the folder .*file for the target does not exist"),
        ("none/labels.nii.gz", FileNotFoundError, "the folder .*none for the target does not exist"),
        ("ftp://host/labels.zarr", ValueError, "neither a path nor an address in an object store"),
        ("labels.nii.gz", ValueError, "would be NIfTI, but the source is not"),
        ("labels.nii", ValueError, "would be NIfTI, but the source is not"),
        ("labels.TIF", ValueError, "would be a file, but the output is a Zarr folder"),
        ("labels.h5", ValueError, "would be a file, but the output is a Zarr folder"),
        ("LABELS.NII.GZ", ValueError, "NIfTI"),
        ("a\0b", ValueError, "null|name"),
    ],
)
def test_targets_that_cannot_be(tmp_path, client, monkeypatch, target, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    source = nifti_saver(".nii")(tmp_path, GOOD) if target == "none/labels.nii.gz" else GOOD
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(kind, match=message):
        segment(source, target, step=8, client=client, progress=progress)
    assert progress.events == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("image", "step", "cells"),
    [
        (np.full((20, 26, 33), 5, "int16"), 8, (3, 3, 4)),
        (noise((7, 9, 50)), 16, (1, 1, 3)),
        (noise((7, 9, 50)), 100, (1, 1, 1)),
        (noise((1, 1, 1)), 2, (1, 1, 1)),
        (noise((1, 40, 1)), 8, (1, 5, 1)),
    ],
)
def test_unusual_input_that_works(tmp_path, client, image, step, cells):
    report = segment(image, tmp_path / "a.zarr", step=step, region=8, client=client)
    assert report.cells == cells
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=step))
    if image.min() == image.max():
        # The labels are the lattice itself.
        axes = [oracle.cells_along(n, step) for n in image.shape]
        index = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), cells)
        np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), index + 1)
