"""Tasks that fail or run out of memory, and targets that cannot be written to."""

import json
import shlex
import subprocess
from contextlib import contextmanager

import dask
import pytest

from dseeds import cli, segment
from dseeds.engine import tasks
from dseeds.engine.repair import RegionFailed
from tests.support.clusters import worker_process_client
from tests.support.faults import (
    ASKED,
    IMAGE,
    assert_labels,
    resume_run,
    run_folder,
)
from tests.support.faulty_tasks import Fault
from tests.support.runs import (
    Recorder,
    as_zarr,
    assert_no_image,
    assert_sentence,
    names_in,
    when,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.faults


@contextmanager
def theirs(own, memory):
    """Yield the parameters of `segment` for two workers with a memory limit, its own or the caller's."""
    if own:
        yield {"workers": 2, "memory": memory}
        return
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        worker_process_client(memory=memory) as client,
    ):
        yield {"client": client}


@pytest.mark.parametrize("own", [True, False], ids=["its own cluster", "a cluster of the user's"])
def test_a_task_that_never_fits_its_worker(out, client, faulty_workers, own):
    """It kills a few workers, but no other task fails."""
    (fault,) = faulty_workers(("sweep-blocks", 2, 1, "eat"))
    target = out / "labels.zarr"
    message = r"sweep-02 of region 1 failed .*most likely because it ran out of memory"
    with theirs(own, "700MiB") as more, pytest.raises(RegionFailed, match=message) as caught:
        segment(IMAGE, target, progress=Recorder(), **ASKED, **more)
    assert_sentence(caught.value)
    assert fault.happened <= (3 if own else 4)
    debug, go_on = caught.value.__notes__
    assert debug.endswith(f"dseeds debug-region {run_folder(target)} --phase sweep-02 --region 1")
    assert go_on.endswith(f"{target} --resume")
    failed = json.loads((run_folder(target) / "failure.json").read_text())
    assert (failed["phase"], failed["region"]) == ("sweep-02", 1)
    report = resume_run(target, client)
    # All other regions were done.
    assert next(stage.skipped for stage in report.stages if stage.name == "sweep-blocks") >= 3


def test_a_task_that_does_not_fit_its_worker_once(out, faulty_workers):
    (fault,) = faulty_workers(("sweep-voxels", None, 2, "eat", 1))
    report = segment(IMAGE, out / "labels.zarr", workers=2, memory="700MiB", progress=Recorder(), **ASKED)
    assert fault.happened == 1
    assert report.retried >= 1
    assert_labels(out / "labels.zarr")


@pytest.fixture
def faulty_here(tmp_path, monkeypatch):
    """Return a function that makes tasks fail in this process."""
    (tmp_path / "faults").mkdir()

    def make(*requested):
        fault = Fault(str(tmp_path / "faults"), *requested)
        monkeypatch.setitem(tasks._TASKS, fault.stage, fault.wrapped(tasks._TASKS[fault.stage]))
        return fault

    return make


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("stage", ["window", "sweep-voxels", "label"])
def test_a_task_that_fails_at_first(out, client, faulty_here, stage, times):
    fault = faulty_here(stage, None, 3, "raise", times)
    report = segment(IMAGE, out / "labels.zarr", client=client, **ASKED)
    assert fault.happened == report.retried == times
    assert {result.name: result.retried for result in report.stages}[stage] == times
    assert_labels(out / "labels.zarr")


def test_a_task_that_fails_always_can_be_looked_at(tmp_path, out, client, faulty_here, monkeypatch, capsys):
    source, target = as_zarr(tmp_path / "image.zarr", IMAGE, 16), out / "labels.zarr"
    with monkeypatch.context():
        fault = faulty_here("sweep-blocks", 2, 1, "raise")
        address = client.scheduler.address
        code = cli.main(
            ["segment", str(source), str(target), "--step", "8", "--region", "16", "--scheduler", address, "--quiet"]
        )
        output = capsys.readouterr().err.splitlines()
        assert code == 1
        assert output[0] == ("error: sweep-02 of region 1 failed 3 times (ArithmeticError: a fault of the test)"), (
            output
        )
        assert fault.happened == 3
        failed = json.loads((run_folder(target) / "failure.json").read_text())
        assert (failed["phase"], failed["region"], failed["attempts"]) == ("sweep-02", 1, 3)
        debug, go_on = (shlex.split(line.partition(": dseeds ")[2] or line.partition(": ")[2]) for line in output[1:])
        assert cli.main(debug) == 1
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "a fault of the test" in shown
        assert "faulty_tasks.py" in shown
    monkeypatch.undo()
    assert cli.main(debug) == 0
    assert cli.main([*go_on, "--scheduler", address, "--quiet"]) == 0
    assert_labels(target)


@pytest.fixture
def disk(tmp_path):
    """A separate file system."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"A READ-ONLY TARGET IS NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"A READ-ONLY TARGET IS NOT TESTED, for lack of the right to mount one: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], timeout=60, check=True)


def make(path, what):
    """Remount a file system, which fails while a file is being written."""
    command = ["mount", "-o", f"remount,{what}", str(path)]
    wait_until(lambda: subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0)


def test_a_target_that_is_read_only(disk, client):
    make(disk, "ro")
    with pytest.raises(OSError, match="Read-only file system") as caught:
        segment(IMAGE, disk / "labels.zarr", client=client, **ASKED)
    assert "read-only file system" in cli.errors.describe_error(caught.value)
    make(disk, "rw")
    assert names_in(disk) == []
    segment(IMAGE, disk / "labels.zarr", client=client, **ASKED)
    assert_labels(disk / "labels.zarr")


@pytest.mark.parametrize("stage", ["window", "sweep-voxels", "label"])
def test_a_target_that_becomes_read_only(disk, client, stage):
    progress = when("advance", stage, 2, lambda: make(disk, "ro"))
    with pytest.raises(OSError, match="Read-only file system") as caught:
        segment(IMAGE, disk / "labels.zarr", client=client, progress=progress, **ASKED)
    assert progress.happened
    assert "\n" not in cli.errors.describe_error(caught.value)
    assert any(note.endswith("--resume") for note in caught.value.__notes__)
    make(disk, "rw")
    assert_no_image(disk / "labels.zarr")
    resume_run(disk / "labels.zarr", client)
