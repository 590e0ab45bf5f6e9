"""The commands of batch runs: init, step, status, finalize and debug-region, their output and exit codes."""

import json
import os

import numpy as np
import pytest
import zarr

from dseeds import segment
from dseeds.cli import main
from dseeds.cli.errors import NOT_YET
from dseeds.engine import batch, run_directory
from dseeds.engine.batch import NotYet
from dseeds.engine.job_array import ARRAYS, Share
from dseeds.engine.phases import LABEL
from dseeds.engine.publishing import SourceChanged
from dseeds.engine.run import SUFFIX
from dseeds.engine.scratch import BIN_COUNTS
from tests.support.batches import (
    ASKED,
    IMAGE,
    assert_only_labels,
    init,
    reopen,
    scratch_files,
    status,
    step_all,
)
from tests.support.runs import (
    as_zarr,
    interrupt,
    labels_in,
    snapshot,
    when,
)

ARRAY_VARIABLES = {name for names in ARRAYS for name in names if name and not name.isdecimal()}


def test_a_failed_region_is_reported_and_can_be_tried_alone(tmp_path, plan, source, capsys):
    chunk = next(path for path in (source / "c").rglob("*") if path.is_file())
    content, status_before = chunk.read_bytes(), chunk.stat()
    chunk.write_bytes(b"no chunk")
    assert main(["step", plan, "--index", "0", "--count", "1"]) == 1
    failed, advice = capsys.readouterr().err.splitlines()
    result = status(plan)["failure"]
    assert failed.startswith(f"error: window-00 of region {result['region']} failed 3 times (")
    assert advice.startswith("try that region alone with: dseeds debug-region ")
    assert main(advice.partition(": dseeds ")[2].split()) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["status", plan]) == 0
    assert f"window-00 of region {result['region']} has failed: " in capsys.readouterr().out
    chunk.write_bytes(content)
    os.utime(chunk, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))
    assert main(advice.partition(": dseeds ")[2].split()) == 0
    assert capsys.readouterr().out.startswith(f"window-00 of region {result['region']}: counted, ")
    assert status(plan)["failure"] is None
    step_all(plan)
    batch.finalize_run(reopen(plan))


@pytest.mark.parametrize(
    ("phase", "region", "message"),
    [
        ("window-00", -1, "regions go from 0 to 7"),
        ("window-00", 8, "regions go from 0 to 7"),
        ("swoop", 0, "the phases are window-00, quantise"),
        ("sweep-03", 0, "the run is at window-00, so sweep-03 cannot run: pass --phase window-00"),
    ],
)
def test_a_region_that_cannot_be_tried_alone(plan, phase, region, message):
    with pytest.raises(ValueError, match=message):
        batch.debug_region_task(reopen(plan), phase, region)


def test_contrast_is_told_by_status_and_finalize(tmp_path, source, capsys):
    """Once all regions are quantised, also if what they have counted is damaged; it is read once."""
    plan = init(source, tmp_path / "labels.zarr", window=(9000, 9999))
    note = "all of the voxels share one of the 64 intensity bins of the window 9000 to 9999"
    step_all(plan, end="sweep-00")
    assert status(plan)["notes"][0].startswith(note)
    for number, path in enumerate(scratch_files(reopen(plan), BIN_COUNTS)):
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-5])
    assert status(plan)["notes"] == []
    step_all(plan)
    assert main(["status", plan]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    # The sum is in the record of the phase.
    for path in scratch_files(reopen(plan), BIN_COUNTS):
        path.unlink()
    assert status(plan)["notes"][0].startswith(note)
    assert main(["finalize", plan]) == 0
    assert f"\nnote: {note}" in capsys.readouterr().out


def test_status_as_a_table_and_as_json(plan, source, tmp_path, capsys):
    step_all(plan, end="sweep-00")
    batch.run_step(reopen(plan), Share(0, 3))
    # The source is not needed.
    source.rename(tmp_path / "gone")
    before = snapshot(tmp_path)
    assert main(["status", plan, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["target"] == str(tmp_path / "labels.zarr")
    assert result["source"] == str(source)
    assert result["phases"][:4] == [
        {"name": "window-00", "done": 8, "tasks": 8},
        {"name": "quantise", "done": 8, "tasks": 8},
        {"name": "sweep-00", "done": 3, "tasks": 8},
        {"name": "sweep-01", "done": 0, "tasks": 8},
    ]
    assert (result["current"], result["complete"], result["failure"]) == ("sweep-00", False, None)
    # The target is accepted as well.
    assert main(["status", str(tmp_path / "labels.zarr")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert ["sweep-00", "3", "8"] in [line.replace("│", " ").split() for line in captured.out.splitlines()]
    assert captured.out.splitlines()[-1] == "at sweep-00"
    assert snapshot(tmp_path) == before
    (tmp_path / "gone").rename(source)
    step_all(plan)
    assert main(["status", plan]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "complete: publish with dseeds finalize"


def test_status_of_a_run_whose_source_was_in_memory(tmp_path, client):
    progress = when("advance", "sweep-voxels", 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(IMAGE, tmp_path / "labels.zarr", **ASKED, client=client, progress=progress)
    # The tasks that were under way may have ended after the interruption.
    assert status(tmp_path / "labels.zarr")["current"] in ("sweep-00", "sweep-01")
    with pytest.raises(ValueError, match="was in the memory of the process that started it"):
        reopen(tmp_path / "labels.zarr")


def test_init_says_where_the_run_is(tmp_path, source, capsys):
    assert main(["init", str(source), str(tmp_path / "labels.zarr"), "--step", "3", "--region", "12,12,24"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}/labels.zarr{SUFFIX}\n"
    assert captured.err == "7 phases of 8 regions\n"
    arguments = ["init", str(source), str(tmp_path / "labels.zarr"), "--step", "4", "--overwrite", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plan"] == f"{tmp_path}/labels.zarr{SUFFIX}"
    assert result["phases"][0] == {"name": "window-00", "done": 0, "tasks": 1}


def test_an_init_that_fails_leaves_everything_as_it_was(tmp_path, source, plan):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("mine")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    before = snapshot(tmp_path)
    for error, message, from_, to, overwrite in (
        (ValueError, "as a path or URL", IMAGE, "new.zarr", False),
        (FileExistsError, "not written by dseeds", source, "mine.zarr", True),
        (FileExistsError, "unfinished run", source, "labels.zarr", False),
        (FileNotFoundError, "does not exist", tmp_path / "no.zarr", "new.zarr", False),
        (ValueError, "broken.nii.gz", tmp_path / "broken.nii.gz", "new.zarr", False),
    ):
        with pytest.raises(error, match=message):
            init(from_, tmp_path / to, overwrite=overwrite)
        assert snapshot(tmp_path) == before
    with pytest.raises(FileNotFoundError, match="there is no unfinished run"):
        reopen(tmp_path / "new.zarr")


def test_beginning_anew(tmp_path, source, plan, expected):
    step_all(plan)
    batch.finalize_run(reopen(plan))
    with pytest.raises(FileExistsError, match="--overwrite"):
        init(source, tmp_path / "labels.zarr")
    # First the older output is replaced, then the unfinished run.
    for step in (8, 3):
        plan = init(source, tmp_path / "labels.zarr", overwrite=True, step=step)
        batch.run_step(reopen(plan), Share(0, 2))
    step_all(plan)
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")


def test_a_late_job_of_a_finished_run_leaves_nothing(tmp_path, source, plan, expected):
    """Others did its share and published, taking it for dead; when it resumes, it ends."""
    step_all(plan, end="label")
    late = reopen(plan)
    course = late.state()
    step_all(plan)
    batch.finalize_run(reopen(plan))
    before = snapshot(tmp_path)
    assert batch.run_step(late, Share(0, 1), wait=True) == {"phase": None, "done": 0}
    batch._run_region(late, course, LABEL, 3)
    course.job.journal.mark(LABEL, 3, "labelled")
    run_directory.remove_leftovers(late)
    assert snapshot(tmp_path) == before
    assert_only_labels(tmp_path, "image.zarr")


def test_finalize_too_early_twice_and_with_kept_scratch(tmp_path, source, plan, expected, capsys):
    with pytest.raises(NotYet, match="8 regions of window-00"):
        batch.finalize_run(reopen(plan))
    step_all(plan, end="label")
    batch.run_step(reopen(plan), Share(0, 3))
    with pytest.raises(NotYet, match="5 regions of label"):
        batch.finalize_run(reopen(plan))
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "labels.zarr", mode="r")
    step_all(plan)
    assert main(["finalize", plan, "--keep-scratch"]) == 0
    assert capsys.readouterr().out == f"{expected.max()} supervoxels: {tmp_path}/labels.zarr\n"
    assert_only_labels(tmp_path, "image.zarr", f"labels.zarr{SUFFIX}")
    published = snapshot(tmp_path / "labels.zarr")
    # Late jobs find nothing to do, and remove nothing.
    assert batch.run_step(reopen(plan), Share(0, 2)) == {"phase": "label", "done": 0}
    assert main(["finalize", plan, "--quiet"]) == 0
    assert snapshot(tmp_path / "labels.zarr") == published
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")
    assert main(["finalize", plan]) == 1
    assert "there is no unfinished run" in capsys.readouterr().err


def test_a_source_that_has_changed_is_not_published(plan, source, tmp_path):
    step_all(plan)
    zarr.open_array(source, mode="r+")[0, 0, 0] = 999
    with pytest.raises(SourceChanged):
        batch.finalize_run(reopen(plan))
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "labels.zarr", mode="r")


def test_nothing_finite(tmp_path, capsys):
    source = as_zarr(tmp_path / "image.zarr", np.full((8, 8, 8), np.nan), 8)
    plan = init(source, tmp_path / "labels.zarr", region=8)
    code = [main(["step", plan, "--index", "0", "--count", "1"]) for _ in range(2)]
    assert code == [0, 1]
    assert "finite" in capsys.readouterr().err
    assert main(["status", plan]) == 0
    np.testing.assert_array_equal(zarr.open_array(source)[:], np.nan)


def test_exit_codes_and_sentences(tmp_path, plan, capsys, monkeypatch):
    for name in ARRAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        code, output = main([str(argument) for argument in arguments]), capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        return code, output.err.removeprefix("error: ").rstrip()

    first = ("--index", 0, "--count", 2)
    left = "sweep-01 begins when all phases before it are done: 8 regions of window-00 remain"
    assert call("step", plan, "--phase", "sweep-01", *first) == (NOT_YET, left)
    assert call("finalize", plan)[0] == NOT_YET
    code, output = call("step", plan, "--phase", "swoop", *first)
    assert code == 1
    assert output.startswith("there is no phase swoop: the phases are window-00, ")
    assert "given neither by --index nor any of SLURM_ARRAY_TASK_ID" in call("step", plan)[1]
    assert "not both" in call("step", plan, "--wait", "--phase", "quantise", *first)[1]
    other = f"{tmp_path}/other.zarr"
    assert call("step", other, *first) == (1, f"there is no unfinished run at {other}{SUFFIX}")
