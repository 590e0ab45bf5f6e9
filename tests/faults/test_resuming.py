"""Sources that change during a run, and attempts to resume a run with other parameters or another version."""

import os

import numpy as np
import pytest
import zarr

from dseeds import segment, supervoxels
from dseeds.engine.journal import seal, unseal
from dseeds.engine.publishing import SourceChanged
from dseeds.engine.run_directory import RunMismatch
from dseeds.seeds.contrast import ContrastWarning
from tests.support.clusters import in_process
from tests.support.faults import ASKED, IMAGE, as_nifti, assert_labels, interrupt_run, resume_run, run_folder
from tests.support.runs import (
    as_zarr,
    assert_no_image,
    assert_sentence,
    interrupt,
    snapshot,
    when,
)

pytestmark = pytest.mark.faults


def rewrite(source):
    array = zarr.open_array(source, mode="r+")
    array[:16, :16, :16] = array[:16, :16, :16][::-1]


def annotate(source):
    zarr.open_array(source, mode="r+").attrs["patient"] = "another"


def touch(source):
    os.utime(source)


@pytest.mark.parametrize("change", [rewrite, touch], ids=["zarr", "nifti"])
@pytest.mark.parametrize("stage", ["quantise", "label"])
def test_a_source_that_changes_during_the_run(tmp_path, out, client, change, stage):
    source = as_nifti(tmp_path / "a.nii") if change is touch else as_zarr(tmp_path / "a.zarr", IMAGE, 16)
    target = out / ("labels.nii.gz" if change is touch else "labels.zarr")
    progress = when("advance", stage, 2, lambda: change(source))
    with pytest.raises(SourceChanged) as caught:
        segment(source, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert_sentence(caught.value)
    assert not hasattr(caught.value, "__notes__"), "the run cannot be resumed"
    assert not target.is_file()
    assert_no_image(target)
    segment(source, target, client=client, overwrite=True, **ASKED)
    assert_labels(target, supervoxels(IMAGE if change is touch else zarr.open_array(source)[:], step=8))


def test_notes_in_the_margin_of_a_source_do_not_matter(tmp_path, out, client):
    source = as_zarr(tmp_path / "a.zarr", IMAGE, 16)
    progress = when("advance", "sweep-blocks", 2, lambda: annotate(source))
    segment(source, out / "labels.zarr", client=client, progress=progress, **ASKED)
    assert progress.happened
    assert_labels(out / "labels.zarr")


def test_contrast_of_a_run_that_was_interrupted(tmp_path, client):
    image = np.where(np.indices(IMAGE.shape).sum(axis=0) % 200, IMAGE, 30000)
    options = {**ASKED, "window": (29000, 30000)}
    message = r"^99\..* % of the voxels share one of"
    with pytest.warns(ContrastWarning, match=message) as whole:
        segment(image, tmp_path / "whole.zarr", client=client, **options)
    source = as_zarr(tmp_path / "a.zarr", image, 16)
    progress = when("advance", "quantise", 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, tmp_path / "labels.zarr", client=client, progress=progress, **options)
    with pytest.warns(ContrastWarning, match=message) as resumed:
        report = segment(source, tmp_path / "labels.zarr", client=client, resume=True)
    assert report.resumed
    assert [str(one.message) for one in resumed] == [str(one.message) for one in whole] == list(report.notes)


@pytest.mark.parametrize("change", [rewrite, touch], ids=["zarr", "nifti"])
def test_a_source_that_changes_before_the_run_is_resumed(tmp_path, out, client, change):
    source = as_nifti(tmp_path / "a.nii") if change is touch else as_zarr(tmp_path / "a.zarr", IMAGE, 16)
    target = out / "labels.zarr"
    interrupt_run(target, client, source=source)
    if change is rewrite:
        annotate(source)
    before = snapshot(out)
    change(source)
    with pytest.raises(RunMismatch, match=r"source was \{\"(chunks|mtime_ns)\": .* and is now") as caught:
        segment(source, target, client=client, resume=True)
    assert_sentence(caught.value)
    assert snapshot(out) == before


def test_resuming_with_other_parameters_is_refused(tmp_path, out, client):
    series = np.stack([IMAGE, IMAGE[::-1]])
    source, target = as_zarr(tmp_path / "a.zarr", series, 16), out / "labels.zarr"
    parameters = {"volume": 0, "window": (-100, 200), "compactness": 0.5}
    interrupt_run(target, client, source=source, **parameters)
    before = snapshot(out)
    for difference, message in (
        ({"step": 4}, r"step was \[8, 8, 8\] and is now \[4, 4, 4\]"),
        ({"n_segments": 100}, "step was"),
        ({"window": (0, 200)}, r"windows was \[\[-100\.0, 200\.0\]\] and is now \[\[0\.0, 200\.0\]\]"),
        ({"compactness": 1}, r"compactness was 0\.5 and is now 1\.0"),
        ({"region": 32}, r"region was \[2, 2, 2\] and is now"),
        ({"volume": 1}, r"source was \{\"index\": \[0, .* and is now \{\"index\": \[1, "),
        ({"scratch": tmp_path}, "scratch was null and is now "),
        ({"chunks": 4}, "labels was"),
    ):
        with pytest.raises(RunMismatch, match=message) as caught:
            segment(source, target, client=client, resume=True, **difference)
        assert_sentence(caught.value)
        assert snapshot(out) == before
    with pytest.raises(FileExistsError, match="--resume"):
        segment(source, target, client=client, **ASKED, **parameters)
    assert snapshot(out) == before
    # The same parameters in another notation, and other workers.
    with in_process(1, 1) as one:
        resume_run(
            target,
            one,
            source,
            supervoxels(IMAGE, step=8, window=(-100, 200), compactness=0.5),
            step=(8, 8, 8),
            region=(9, 16, 16),
            memory="1GiB",
        )


@pytest.mark.parametrize("key", ["dseeds", "format"])
def test_resuming_a_run_of_another_version_is_refused(out, client, key):
    target = out / "labels.zarr"
    interrupt_run(target, client)
    path = run_folder(target) / "run.json"
    sound = path.read_bytes()
    path.write_bytes(seal({**unseal(sound), key: "0.0.1"}))
    before = snapshot(out)
    with pytest.raises(RunMismatch, match="resume it with that version, or start again") as caught:
        segment(IMAGE, target, client=client, resume=True)
    assert_sentence(caught.value)
    assert snapshot(out) == before
    path.write_bytes(sound)
    resume_run(target, client)


@pytest.mark.parametrize("stage", ["quantise", "sweep-blocks"])
def test_work_is_not_lost_where_no_phase_is_closed(out, client, stage):
    """Messages are marks, too: with a window, quantising is the first phase."""
    target = out / "labels.zarr"
    interrupt_run(target, client, stage, 3, window=(-100, 100))
    report = resume_run(target, client, whole=supervoxels(IMAGE, step=8, window=(-100, 100)))
    assert report.skipped


def test_resuming_without_a_run_starts_one(out, client):
    report = segment(IMAGE, out / "labels.zarr", client=client, resume=True, **ASKED)
    assert not report.resumed
    assert report.skipped == 0
    assert_labels(out / "labels.zarr")
