"""Runs as arrays of batch jobs in this process: in any order, twice, damaged, and in turns with Dask."""

import random
import shutil
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dseeds import segment, supervoxels
from dseeds.core.geometry import Lattice
from dseeds.engine import batch
from dseeds.engine.batch import NotYet
from dseeds.engine.job_array import Share
from dseeds.engine.run import SUFFIX
from dseeds.engine.source_import import IMPORT
from dseeds.io.label_listing import resolve_target
from dseeds.io.ome_metadata import in_version_04, ome_image_attributes
from dseeds.io.pyramid_kernels import take_modes
from dseeds.io.pyramid_levels import PyramidLevel, compute_resolutions
from dseeds.seeds.cell_size import choose_step
from dseeds.storage.label_group import remove_target
from dseeds.storage.location import LocalLocation
from dseeds.storage.ownership import MARKER
from dseeds.storage.zarr_arrays import open_arrays
from tests.support.batches import (
    IMAGE,
    LONG,
    assert_only_labels,
    init,
    messages,
    nifti_labels,
    reopen,
    scratch_files,
    status,
    step_all,
    step_in_any_order,
)
from tests.support.runs import (
    as_zarr,
    cuts,
    interrupt,
    labels_in,
    mostly_constant,
    noise,
    sizes,
    snapshot,
    voxels,
    when,
)


@pytest.fixture
def client(clients):
    return clients[1]


@st.composite
def small_runs(draw):
    longest = draw(st.sampled_from([3, 12, 25, 30]))
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    size = draw(sizes(shape))
    region = draw(st.none() | cuts(Lattice(shape, choose_step(shape, **size))))
    image, window = draw(voxels(shape))
    return image, {**size, "window": window}, region


@pytest.mark.slow
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example((np.full((8, 9, 10), 7, np.uint8), {"step": 4}, (4, 8, 8)), 2, 0)
@example((np.zeros((1, 1, 1), np.float32), {"step": 2}, None), 3, 0)
@given(small_runs(), st.integers(1, 4), st.integers(0, 2**32))
def test_any_order_gives_the_labels_of_the_whole(run, count, seed):
    check_any_order(*run, count, seed)


@pytest.mark.slow
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mostly_constant(), st.sampled_from([12, (5, 40, 9)]), st.integers(1, 4), st.integers(0, 2**32))
def test_any_order_where_much_rests(case, region, count, seed):
    check_any_order(*case, region, count, seed)


def check_any_order(image, parameters, region, count, seed):
    with TemporaryDirectory() as folder:
        source = as_zarr(f"{folder}/image.zarr", image, 16)
        parameters = {"n_segments": None, **parameters}
        plan = init(source, f"{folder}/labels.zarr", **{"step": None, **parameters}, region=region)
        step_in_any_order(plan, random.Random(seed), count)
        course = batch.finalize_run(reopen(plan))
        result = labels_in(f"{folder}/labels.zarr")
        np.testing.assert_array_equal(result, supervoxels(image, **parameters))
        assert course.supervoxels == result.max()
        assert_only_labels(folder, "image.zarr")


def test_a_phase_that_turns_out_not_to_be_is_done(tmp_path):
    """A constant image has no rounds, but the phases that init listed can still be called."""
    plan = init(
        as_zarr(tmp_path / "image.zarr", np.full((8, 8, 16), 3, "u1"), 8), tmp_path / "labels.zarr", step=4, region=8
    )
    planned = [phase["name"] for phase in status(plan)["phases"]]
    assert "sweep-03" in planned
    for phase in planned:
        batch.run_step(reopen(plan), Share(0, 1), phase=phase)
    assert status(plan)["complete"]
    assert [phase["name"] for phase in status(plan)["phases"]] == ["window-00", "quantise", "label"]
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(np.full((8, 8, 16), 3), step=4))


@pytest.mark.parametrize(("ending", "elsewhere"), [(".zarr", False), (".nii.gz", True)])
def test_nifti_and_a_scratch_folder(tmp_path, expected, ending, elsewhere):
    source, target = tmp_path / "image.nii.gz", tmp_path / "out" / f"labels{ending}"
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.diag([1, 2, 3, 1])), source)
    target.parent.mkdir()
    (tmp_path / "fast").mkdir()
    before = snapshot(tmp_path)
    plan = init(source, target, scratch=str(tmp_path / "fast") if elsewhere else None)
    step_all(plan)
    if elsewhere:
        (scratch,) = (tmp_path / "fast").iterdir()
        assert scratch.name.startswith(target.name + SUFFIX)
    # Only the target, the run's folder and the scratch are written.
    mine = (f"out/{target.name}", f"fast/{target.name}{SUFFIX}")
    assert {path: held for path, held in snapshot(tmp_path).items() if not path.startswith(mine)} == before
    batch.finalize_run(reopen(plan))
    result = labels_in(target) if ending == ".zarr" else nifti_labels(target)
    np.testing.assert_array_equal(result, expected)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert list((tmp_path / "fast").iterdir()) == []
    if ending != ".zarr":
        np.testing.assert_array_equal(nibabel.load(target).affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize(("stage", "overwrite"), [("quantise", False), ("sweep-blocks", True), ("label", True)])
def test_dask_begins_jobs_go_on_dask_goes_on_jobs_end(tmp_path, client, source, stage, overwrite):
    target = tmp_path / "labels.zarr"
    if overwrite:
        segment(source, target, step=8, client=client)
    progress = when("advance", stage, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, **LONG, client=client, progress=progress, overwrite=overwrite)
    plan = str(target) + SUFFIX
    if stage != "label":
        step_all(plan, end="sweep-03")
        batch.run_step(reopen(plan), Share(1, 3))
        progress = when("advance", "sweep-voxels", 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            segment(source, target, resume=True, client=client, progress=progress)
        assert progress.happened
    step_all(plan)
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(target), supervoxels(IMAGE, step=4))
    assert_only_labels(tmp_path, "image.zarr")


@pytest.mark.parametrize("end", ["window-00", "sweep-05", "label", None])
def test_jobs_begin_and_dask_ends(tmp_path, client, source, end):
    plan = init(source, tmp_path / "labels.zarr", **LONG)
    step_all(plan, end=end)
    if end is not None:
        batch.run_step(reopen(plan), Share(0, 3))
    report = segment(source, tmp_path / "labels.zarr", resume=True, client=client)
    assert report.resumed
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(IMAGE, step=4))
    assert_only_labels(tmp_path, "image.zarr")


def test_a_killed_init_can_be_continued_by_jobs(tmp_path, source, plan, expected):
    """Jobs create what init had not created yet."""
    run = reopen(plan)
    shutil.rmtree(run.scratch)
    remove_target(run.target.location)
    assert not run.target.path.exists()
    step_all(plan)
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)


def test_an_import_that_was_killed_is_waited_for(tmp_path):
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.eye(4)), tmp_path / "image.nii.gz")
    plan = init(tmp_path / "image.nii.gz", tmp_path / "labels.zarr")
    journal = reopen(plan).job().journal
    journal.unmark(IMPORT, journal.marks(IMPORT))
    with pytest.raises(NotYet, match="--overwrite"):
        batch.run_step(reopen(plan), Share(0, 1))


def test_scratch_that_is_damaged_is_mended(tmp_path, plan, expected):
    step_all(plan, end="sweep-02")
    run = reopen(plan)
    for path in messages(run, "quantise", "sweep-01"):
        path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    step_all(plan)
    for path in messages(reopen(plan), "sweep-03"):
        path.unlink()
    next((tmp_path / "labels.zarr" / "0" / "c").rglob("*[0-9]/*[0-9]/*[0-9]")).unlink()
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)


def test_a_mask_small_ones_and_levels_by_jobs(tmp_path):
    """Their phases run in any order, too, and damaged tables are computed again."""
    image = noise((24, 20, 40))
    image[2:9, :, 11:13] = np.nan
    mask = as_zarr(tmp_path / "mask.zarr", noise(image.shape, 4) > -60, 8)
    zarr.open_array(mask)[:, :, :8] = False
    parameters = {"step": 4, "min_size": 20, "levels": 2}
    labels, parents = supervoxels(image, mask=zarr.open_array(mask)[:], **parameters)
    source = as_zarr(tmp_path / "image.zarr", image, 8)
    plan = init(source, tmp_path / "labels.zarr", mask=mask, region=(12, 20, 20), **parameters)
    assert {"mask", "parts", "graph"} <= {phase["name"] for phase in status(plan)["phases"]}
    with pytest.raises(NotYet, match="parts begins when"):
        batch.run_step(reopen(plan), Share(0, 1), phase="parts")
    step_in_any_order(plan, random.Random(0), 3)
    for name in ("table-0", "table-1", "offsets"):
        for path in scratch_files(reopen(plan), name):
            path.write_bytes(path.read_bytes()[:-5])
    course = batch.finalize_run(reopen(plan))
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][:], labels)
    assert course.counts == [labels.max(), *(table.max() for table in parents)]
    for name, table in zip(("2x", "4x"), parents, strict=True):
        np.testing.assert_array_equal(group[f"{name}/parents"][:], table)
        labels = table[labels]
        np.testing.assert_array_equal(group[f"{name}/0"][:], labels)


def test_jobs_of_an_image_that_may_hold_nan(tmp_path):
    """The phases that init lists finish the run, with or without NaN."""
    for number, hole in enumerate([(), np.s_[3:5, 2:9, 4:30]]):
        image = noise((8, 12, 40))
        image[hole or slice(0)] = np.nan
        plan = init(
            as_zarr(tmp_path / f"{number}.zarr", image, 8), tmp_path / f"labels-{number}.zarr", step=4, region=8
        )
        for phase in status(plan)["phases"]:
            batch.run_step(reopen(plan), Share(0, 1), phase=phase["name"])
        batch.finalize_run(reopen(plan))
        np.testing.assert_array_equal(labels_in(tmp_path / f"labels-{number}.zarr"), supervoxels(image, step=4))


def test_a_late_job_leaves_published_labels_alone(tmp_path):
    """Others took its regions over and published, while it was at its first labels."""
    source, target = as_zarr(tmp_path / "image.zarr", IMAGE, 8), tmp_path / "labels.zarr"
    plan = init(source, target)
    step_all(plan)
    batch.finalize_run(reopen(plan))
    plan = init(source, target, overwrite=True)
    step_all(plan, end="label")
    late = reopen(plan)
    state = late.state()
    step_all(plan)
    batch.finalize_run(reopen(plan))
    published = snapshot(target)
    batch._begin_target(late, state)
    assert snapshot(target) == published
    assert not tmp_path.joinpath(f"labels.zarr{SUFFIX}").exists()


def test_finalizing_is_repeated_after_a_kill_before_the_marker_is_removed(tmp_path, monkeypatch):
    """Labels in an image of OME-Zarr 0.4 are described as such last, so that they no longer look unfinished."""
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    encoding = {"name": "v2", "separator": "/"}
    for name, values in (("0", IMAGE), ("1", IMAGE[::2, ::2, ::2])):
        group.create_array(name, data=values, chunks=(8, 8, 8), chunk_key_encoding=encoding)
    half = PyramidLevel((10, 12, 20), (2, 2, 2))
    attributes = ome_image_attributes(spacing=(1, 1, 1), name="image", levels=compute_resolutions([half], "mean"))
    group.attrs.update(in_version_04({"ome": attributes}))
    target = resolve_target(str(tmp_path / "image.zarr"), None, True)
    # Regions write the coarser level as well.
    plan = init(str(tmp_path / "image.zarr"), target, chunks=6)
    assert reopen(plan).region_levels == 1
    step_all(plan)

    def killed(location, names):
        names = list(names)
        if names == [MARKER]:
            raise KeyboardInterrupt
        delete(location, names)

    delete = LocalLocation.delete
    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            batch.finalize_run(reopen(plan))
    # As in another process.
    open_arrays.cache_clear()
    batch.finalize_run(reopen(plan))
    labels, coarser = (zarr.open_array(f"{target}/{level}", mode="r", zarr_format=2)[:] for level in range(2))
    np.testing.assert_array_equal(labels, supervoxels(IMAGE, step=3))
    expected = np.empty_like(coarser)
    take_modes(labels, half.factors, expected)
    np.testing.assert_array_equal(coarser, expected)
