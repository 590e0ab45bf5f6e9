"""An interrupted run leaves only its run folder, and resumes to the same labels."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

import dseeds
from dseeds import segment, supervoxels
from dseeds.engine.run import SUFFIX
from tests.support.runs import (
    FEW,
    GOOD,
    STAGES,
    Recorder,
    assert_idle,
    assert_no_image,
    interrupt,
    labels_in,
    names_in,
    nifti_saver,
    noise,
    snapshot,
    when,
)

# Only sparse images have the other.
DONE = [stage for stage in STAGES if stage != "contrast"]


@pytest.mark.parametrize(
    ("stage", "ending", "overwrite"),
    [
        *((stage, ".zarr", False) for stage in DONE[:-1]),
        ("label", ".zarr", True),
        *((stage, ".nii.gz", True) for stage in DONE),
        ("export", ".nii.gz", False),
    ],
)
def test_an_interrupted_run_can_be_resumed(tmp_path, client, stage, ending, overwrite):
    source = nifti_saver(".nii.gz")(tmp_path, noise((66, 8, 8), dtype="int16"))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"labels{ending}"
    mask = np.ones((66, 8, 8), np.uint8)
    mask[:, ::5] = 0
    np.random.default_rng(0).shuffle(mask[5:60].reshape(-1))
    nibabel.save(nibabel.Nifti1Image(mask.T, nibabel.load(source).affine), tmp_path / "mask.nii.gz")
    labels = {"mask": mask, "bins": "equalised", "min_size": 20}
    parameters = {**labels, "step": 4, "region": (36, 8, 4), "client": client, "mask": tmp_path / "mask.nii.gz"}
    if overwrite:
        segment(source, target, **{**parameters, "step": 3, "region": None})
    before = snapshot(tmp_path)
    progress = when("advance", stage, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, progress=progress, overwrite=overwrite, **parameters)
    assert progress.happened
    if (stage, ending) == ("label", ".zarr"):
        # The older output is gone by now.
        assert_no_image(target)
    else:
        assert_only_the_run_is_new(tmp_path, before, target)
    assert_idle(client)
    left = snapshot(tmp_path)
    time.sleep(0.1)
    # No task that was still running wrote anything since.
    assert snapshot(tmp_path) == left
    report = segment(source, target, resume=True, client=client)
    assert report.resumed
    assert report.skipped > 0 or stage in ("import", "label", "export")
    whole = supervoxels(noise((66, 8, 8), dtype="int16"), step=4, **labels)
    result = labels_in(target) if ending == ".zarr" else np.asarray(nibabel.load(target, mmap=False).dataobj).T
    np.testing.assert_array_equal(result, whole)
    assert names_in(tmp_path / "out") == [target.name]


def assert_only_the_run_is_new(folder, before, target):
    """Check that only the run's folder is new."""
    run = target.with_name(target.name + SUFFIX).relative_to(folder)
    new = {path for path in snapshot(folder).items() if path not in before.items()}
    assert new
    assert all(Path(path).is_relative_to(run) for path, _ in new)
    assert before.items() <= snapshot(folder).items()


def test_a_cluster_serves_again_after_an_interruption(tmp_path, client):
    with pytest.raises(KeyboardInterrupt):
        segment(
            GOOD,
            tmp_path / "a.zarr",
            **FEW,
            client=client,
            progress=when("advance", "sweep-blocks", 5, interrupt),
        )
    segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))
    assert names_in(tmp_path) == ["a.zarr"]


def interrupt_in_the_next_line():
    """Raise KeyboardInterrupt in the next line of the package that runs after this function."""
    before, package = sys.gettrace(), str(Path(dseeds.__file__).parent)

    def trace(frame, event, _arg):
        if event == "line" and frame.f_code.co_filename.startswith(package):
            sys.settrace(before)
            raise KeyboardInterrupt
        return trace

    frame = sys._getframe()
    while frame := frame.f_back:
        frame.f_trace = trace
    sys.settrace(trace)


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-blocks", "sweep-voxels", "label"])
def test_an_interruption_between_two_results(tmp_path, client, stage):
    """Ctrl-C may arrive while the run waits for a result, or between two results."""
    progress = when("advance", stage, 3, interrupt_in_the_next_line)
    with pytest.raises(KeyboardInterrupt) as caught:
        segment(
            noise((4, 4, 48)),
            tmp_path / "a.zarr",
            step=4,
            region=4,
            window=None if stage == "window" else (-200, 200),
            client=client,
            progress=progress,
        )
    assert progress.happened
    # Even while the traceback is referenced.
    assert caught.tb
    assert_no_image(tmp_path / "a.zarr")
    assert_idle(client)
    segment(noise((4, 4, 48)), tmp_path / "a.zarr", resume=True, client=client)
    window = None if stage == "window" else (-200, 200)
    whole = supervoxels(noise((4, 4, 48)), step=4, window=window)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), whole)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("event", ["begin", "end"])
@pytest.mark.parametrize("stage", ["window", "sweep-blocks", "label"])
def test_a_progress_that_fails_between_stages(tmp_path, client, stage, event):
    class BrokenError(Exception):
        pass

    def fail(*events):
        if events[:2] == (event, stage):
            raise BrokenError

    with pytest.raises(BrokenError):
        segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=Recorder(fail))
    assert_no_image(tmp_path / "a.zarr")
    assert_idle(client)
    segment(GOOD, tmp_path / "a.zarr", client=client, resume=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))


SCRIPT = """
import sys, numpy as np, dseeds
class Progress:
    def dashboard(self, link): pass
    def begin(self, stage, total): print(stage, flush=True)
    def advance(self, stage): pass
    def end(self, stage): pass
if __name__ == "__main__":
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 160)).astype("uint8")
    dseeds.segment(image, sys.argv[1], step=8, region=24, workers=2, progress=Progress())
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("whole_group", [True, False], ids=["as Ctrl-C", "to the main process"])
def test_an_interrupted_program_says_how_to_resume(tmp_path, whole_group):
    """A real signal interrupts a real program with worker processes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "out").mkdir()
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out" / "labels.zarr")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            for line in program.stdout:
                if line.strip() == "sweep-blocks":
                    break
            time.sleep(0.3)
            (os.killpg if whole_group else os.kill)(program.pid, signal.SIGINT)
            _, errors = program.communicate(timeout=250)
        finally:
            program.kill()
    assert program.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert names_in(tmp_path / "out") == ["labels.zarr.dseeds"]
    assert "--resume" in errors
