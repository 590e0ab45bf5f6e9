"""Many volumes with one call or command: each as if it were cut alone, and no failure stops the others."""

import json
import threading
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

import dseeds
from dseeds.api import segment_many as module
from dseeds.api.segment_many import name_targets, segment_many
from dseeds.engine import validation
from dseeds.engine.in_process import run_in_process
from tests.support.runs import assert_sentence, labels_in, names_in, noise

SHAPE = (10, 12, 14)


def image(seed):
    return noise(SHAPE, seed=seed, dtype="int16")


def save(folder, count=4):
    """Save volumes as NIfTI, TIFF and Zarr in turn; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"scan{number}{('.nii.gz', '.tif', '.zarr')[number % 3]}"
        if path.suffix == ".gz":
            nibabel.save(nibabel.Nifti1Image(image(number).T, np.eye(4)), path)
        elif path.suffix == ".tif":
            tifffile.imwrite(path, image(number))
        else:
            zarr.create_array(path, data=image(number))
        paths.append(path)
    return paths


def read(target):
    target = Path(target)
    return labels_in(target) if target.suffix == ".zarr" else np.asarray(nibabel.load(target).dataobj).T


@pytest.mark.parametrize("threads", [1, 3])
def test_every_volume_is_cut_as_if_alone(tmp_path, threads):
    paths, seen = save(tmp_path / "scans"), []
    results = segment_many(paths, tmp_path / "out", step=4, min_size=5, threads=threads, on_result=seen.append)
    assert [result.source for result in results] == list(map(str, paths))
    assert sorted(seen, key=lambda result: result.source) == results
    for number, result in enumerate(results):
        expected = dseeds.supervoxels(image(number), step=4, min_size=5)
        np.testing.assert_array_equal(read(result.target), expected)
        assert result.report.supervoxels == expected.max()
    assert names_in(tmp_path / "out") == ["scan0.nii.gz", "scan1.zarr", "scan2.zarr", "scan3.nii.gz"]


def test_a_failure_does_not_stop_the_others(tmp_path):
    paths = save(tmp_path / "scans")
    paths[0].write_bytes(b"no image")
    paths.insert(1, tmp_path / "missing.nii.gz")
    results = segment_many(paths, tmp_path / "out", step=4)
    assert [result.error is None for result in results] == [False, False, True, True, True]
    for result in results[:2]:
        assert_sentence(result.error)
        assert result.report is None
        assert not result.skipped
    assert len(names_in(tmp_path / "out")) == 3


def test_resuming_skips_what_is_done_and_nothing_else(tmp_path):
    paths = save(tmp_path / "scans")
    segment_many(paths[:2], tmp_path / "out", step=4)
    again = segment_many(paths, tmp_path / "out", step=4)
    assert [result.error is None for result in again] == [False, False, True, True]
    assert "exists" in again[0].error
    nibabel.save(nibabel.Nifti1Image(image(9).T, np.eye(4)), paths[3])
    resumed = segment_many(paths, tmp_path / "out", step=4, resume=True)
    assert [result.skipped for result in resumed] == [True, True, True, False]
    # Those of another image are not overwritten without being asked.
    assert "exists" in resumed[3].error
    other = segment_many(paths[:1], tmp_path / "out", step=5, resume=True, overwrite=True)
    assert other[0].report.step == (5, 5, 5)


def test_resuming_makes_what_is_missing(tmp_path):
    """Features asked for afterwards are made; other voxel sizes are other labels."""
    paths = save(tmp_path / "scans", 2)
    asked = {"step": 4, "spacing": (2, 1, 1)}
    before = segment_many(paths, tmp_path / "out", **asked)
    labels = [read(result.target) for result in before]
    other = segment_many(paths, tmp_path / "out", step=4, resume=True)
    assert all("exists" in result.error for result in other)
    measured = segment_many(paths, tmp_path / "out", **asked, features=True, resume=True)
    assert [result.error for result in measured] == [None, None]
    for result, before in zip(measured, labels, strict=True):
        np.testing.assert_array_equal(read(result.target), before)
        assert dseeds.Features(result.report.features).supervoxels == result.report.supervoxels
    for options in (asked, {**asked, "features": True}, {**asked, "features": True, "memory": "1GiB"}):
        assert all(result.skipped for result in segment_many(paths, tmp_path / "out", resume=True, **options))
    # Those of other labels, which have been replaced since, do not count.
    segment_many(paths, tmp_path / "out", step=5, overwrite=True)
    again = segment_many(paths, tmp_path / "out", step=5, features=True, resume=True)
    assert [result.report.features is not None for result in again] == [True, True]


def test_another_machine_skips_the_same(tmp_path, monkeypatch):
    """Regions chosen for less memory are not another result."""
    paths = save(tmp_path / "scans")
    segment_many(paths, tmp_path / "out", step=2)
    choose, regions = validation.choose_region_shape, []

    def choose_smaller(lattice, *arguments, **options):
        regions.append(choose(lattice, *arguments, **{**options, "region": 4}))
        return regions[-1]

    monkeypatch.setattr(validation, "choose_region_shape", choose_smaller)
    assert all(result.skipped for result in segment_many(paths, tmp_path / "out", step=2, resume=True))
    assert set(regions) == {(2, 2, 2)}
    # Shards and chunks that the user asks for are.
    other = segment_many(paths[1:3], tmp_path / "out", step=2, chunks=2, resume=True)
    assert all("exists" in result.error for result in other)


def test_masks_are_found_by_name(tmp_path):
    paths, masks = save(tmp_path / "scans"), tmp_path / "masks"
    masks.mkdir()
    for number in range(4):
        np.save(masks / f"scan{number}.npy", (image(number) > 0).astype("u1"))
    results = segment_many(paths, tmp_path / "out", step=4, mask=f"{masks}/{{name}}.npy")
    for number, result in enumerate(results):
        expected = dseeds.supervoxels(image(number), step=4, mask=image(number) > 0)
        np.testing.assert_array_equal(read(result.target), expected)
    # Volumes of one name have masks of their own.
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "ct.npy", image(1))
        np.save(masks / f"{folder}_ct.npy", np.full(SHAPE, folder == "p1", "u1"))
    same = [tmp_path / folder / "ct.npy" for folder in ("p1", "p2")]
    mask = f"{masks}/{{name}}.npy"
    first, second = segment_many(same, tmp_path / "same", name_folders=1, step=4, mask=mask)
    np.testing.assert_array_equal(read(first.target), dseeds.supervoxels(image(1), step=4))
    assert "no finite" in second.error or "outside" in second.error
    with pytest.raises(ValueError, match="mask of several volumes"):
        segment_many(paths, tmp_path / "other", step=4, mask=str(masks / "scan0.npy"))
    assert not (tmp_path / "other").exists()


def test_memory_is_shared(tmp_path, monkeypatch):
    """Volumes that do not fit together wait for each other."""
    paths, lock, most = save(tmp_path / "scans", 6), threading.Lock(), []
    running = 0

    def counted(run, **options):
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        try:
            return run_in_process(run, **options)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(module, "run_in_process", counted)
    monkeypatch.setattr(module, "needed_bytes", lambda run, threads: 60)
    monkeypatch.setattr(module, "allowed_bytes", lambda memory: 100)
    segment_many(paths, tmp_path / "out", step=4, threads=4)
    assert len(most) == 6
    assert max(most) == 1


@pytest.mark.dask
def test_a_volume_that_does_not_fit_is_cut_on_dask(tmp_path, monkeypatch):
    paths = save(tmp_path / "scans", 2)
    monkeypatch.setattr(module, "is_small", lambda run: run.image.kind != "tiff")
    monkeypatch.setattr("dseeds.engine.segmentation.runs_in_process", lambda run, resources: False)
    results = segment_many(paths, tmp_path / "out", step=4)
    assert [result.report.workers > 0 for result in results] == [False, True]
    np.testing.assert_array_equal(read(results[1].target), dseeds.supervoxels(image(1), step=4))


def test_names():
    two = {"a/ct.nii": "out/a_ct.nii", "b/ct.nii": "out/b_ct.nii"}
    assert name_targets(["a/ct.nii", "b/ct.nii"], "out/", 1) == two
    # As many as there are.
    assert name_targets(["a/ct.nii", "b/ct.nii"], "out/", 9) == two
    assert name_targets(["/s/a/1/ct.nii"], "out", 2) == {"/s/a/1/ct.nii": "out/a_1_ct.nii"}
    assert name_targets(["x.ome.zarr", "y.ome.tif", "z"], "s3://lab/out") == {
        "x.ome.zarr": "s3://lab/out/x.zarr",
        "y.ome.tif": "s3://lab/out/y.zarr",
        "z": "s3://lab/out/z.zarr",
    }
    # Folders of DICOM are often named by identifiers with dots.
    assert name_targets(["1.2.1", "1.2.2"], "o") == {"1.2.1": "o/1.2.1.zarr", "1.2.2": "o/1.2.2.zarr"}
    for sources, words in (
        ([], "no volumes"),
        (["a.tif", "a.tif"], "twice"),
        (["a/ct.nii", "b/ct.nii"], "name_folders=1"),
        # Their tables would be in one folder.
        (["a/x.nii.gz", "b/x.tif"], "both be named x"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            name_targets(sources, "out")
        assert_sentence(caught.value)
    with pytest.raises(ValueError, match="name_folders"):
        name_targets(["a"], "out", -1)


@given(
    st.lists(st.sampled_from(["ct", "b", "a/ct", "a/b", "c/a/ct"]).map("{}.tif".format), unique=True), st.integers(0, 2)
)
def test_a_name_does_not_depend_on_other_volumes(sources, name_folders):
    names = {}
    for source in sources:
        with suppress(ValueError):
            names |= name_targets([*names, source], "out", name_folders)
    for source, name in names.items():
        assert name_targets([source], "out", name_folders) == {source: name}


def test_the_command(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "scans")
    code, out, _ = call("segment", "scans/*", "--into", "out", "--step", 4)
    assert code == 0
    assert all(f"scan{number}" in out for number in range(4))
    np.testing.assert_array_equal(read("out/scan0.nii.gz"), dseeds.supervoxels(image(0), step=4))
    assert call("segment", "scans/scan1.tif", "--into", "more", "--name-folders", 1, "--step", 4)[0] == 0
    assert names_in("more") == ["scans_scan1.zarr"]
    (tmp_path / "scans" / "scan9.nii").write_bytes(b"no image")
    code, out, err = call("segment", "scans/*", "--into", "out", "--step", 4, "--resume", "--json")
    assert code == 1
    assert err.splitlines()[-1] == "error: 1 of 5 volumes failed"
    results = json.loads(out)
    assert [result["skipped"] for result in results] == [True, True, True, True, False]
    assert_sentence(results[-1]["error"])
    assert results[-1]["error"] in err
    for arguments, words in (
        (("nothing*.nii", "--into", "out"), "no file matches"),
        (("scans/*", "--into", "out", "--workers", 2), "cannot be combined with --into"),
        (("scans/scan0.nii.gz", "out.nii.gz", "--name-folders", 1), "needs --into"),
        (("--into", "out"), "name an image"),
    ):
        code, out, err = call("segment", *arguments)
        assert code == 2
        assert words in err
