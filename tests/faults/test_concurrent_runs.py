"""Two runs of one target: leases, processes that were stopped and wake up, and tasks that run late."""

import json
import os
import pickle
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

from dseeds import segment, supervoxels
from dseeds.engine.dask_runner import StageRunner
from dseeds.engine.tasks import perform_pickled_task
from dseeds.storage import lease as leases
from dseeds.storage.lease import LeaseLost, RunInUse
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import ScratchCorrupted
from tests.support.faults import (
    ASKED,
    FLOATS,
    IMAGE,
    WHOLE,
    assert_labels,
    interrupt_run,
    kill_group,
    once,
    program,
    remove,
    resume_run,
    run_folder,
)
from tests.support.runs import (
    as_zarr,
    assert_sentence,
    labels_in,
    when,
)
from tests.support.waiting import SECONDS, wait_until

pytestmark = pytest.mark.faults


@pytest.fixture
def holder(tmp_path, out, faulty_workers):
    """A program in the middle of a long task."""
    (fault,) = faulty_workers(("sweep-blocks", 4, 1, "sleep", 1))
    source = as_zarr(tmp_path / "image.zarr", IMAGE, 16)
    with program(
        "segment", source, out / "labels.zarr", "--step", 8, "--region", 16, "--workers", 1, "--quiet"
    ) as process:
        wait_until(lambda: fault.happened, process)
        yield source, process, fault


def test_two_runs_of_one_target(out, client, holder):
    source, process, _ = holder
    target = out / "labels.zarr"
    for option in ("resume", "overwrite"):
        with pytest.raises(RunInUse, match=rf"process {process.pid} on .* is at work on {target}: wait") as caught:
            segment(source, target, client=client, **ASKED, **{option: True})
        assert_sentence(caught.value)
        assert process.poll() is None
    kill_group(process)
    process.wait(SECONDS)
    # A dead process on this machine is detected at once.
    began = time.monotonic()
    leases.check_free(open_location(run_folder(target)))
    assert time.monotonic() - began < leases.WATCH_SECONDS
    resume_run(target, client, source)


@pytest.mark.parametrize("done", [True, False], ids=["to its end", "while it is at work"])
def test_a_run_that_is_taken_over_from_a_stopped_process(out, client, holder, monkeypatch, done):
    """As on a laptop that slept: when it wakes up, another process works on the run, or has finished it."""
    source, process, fault = holder
    target = out / "labels.zarr"
    os.killpg(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)

    def wake():
        for woken in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            woken.send_signal(signal.SIGCONT)
        fault.wake()
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert f"error: another process has taken over {target}" in errors
        assert errors.count("\n") == 1

    progress = once(lambda event, stage, _: not done and (event, stage) == ("advance", "sweep-voxels"), wake)
    report = segment(source, target, client=client, resume=True, progress=progress)
    assert report.resumed
    if done:
        wake()
    assert progress.happened != done
    assert_labels(target)


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize("readable", [True, False])
def test_a_lease_of_another_machine(out, client, monkeypatch, beats, readable):
    target = out / "labels.zarr"
    interrupt_run(target, client)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    path = run_folder(target) / "lease" / "000007.json"
    path.parent.mkdir(exist_ok=True)
    stop, count = threading.Event(), iter(range(1 << 30))

    def write():
        holder = {"host": "elsewhere", "machine": "another", "process": 1, "name": "x", "beats": next(count)}
        path.write_text(json.dumps(holder)[0 if readable else 5 :])

    def beat():
        while not stop.wait(0.2):
            write()

    write()
    if not beats:
        resume_run(target, client)
        return
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunInUse, match="process 1 on elsewhere" if readable else "another process is at work"):
            segment(IMAGE, target, client=client, resume=True)
    finally:
        stop.set()
        thread.join(SECONDS)
    resume_run(target, client)


@pytest.mark.parametrize("beats", ["taken over", "taken away"])
def test_a_lease_that_is_lost_is_noticed_before_a_phase_is_closed(out, client, monkeypatch, beats):
    """Even if the next beat is far away."""
    target = out / "labels.zarr"
    monkeypatch.setattr(leases, "BEAT_SECONDS", 1000.0)

    def take():
        folder = run_folder(target) / "lease"
        remove(folder)
        if beats == "taken over":
            folder.mkdir()
            (folder / "000002.json").write_text("{}")

    progress = when("advance", "window", 2, take)
    with pytest.raises(LeaseLost) as caught:
        segment(IMAGE, target, client=client, progress=progress, **ASKED)
    assert_sentence(caught.value)
    assert progress.events[-1][1] == "window", "no further stage was begun"
    remove(run_folder(target) / "lease") if beats == "taken over" else None
    monkeypatch.undo()
    resume_run(target, client)


def test_tasks_of_older_phases_that_run_again_late(out, client, monkeypatch):
    """Running every task again after later rounds, and after the end, changes nothing."""
    target, late, run = out / "labels.zarr", [], StageRunner.run

    def noting(self, tasks, call, repair):
        def arguments(task):
            # Pickled, as for another machine.
            late.append(pickle.dumps(call(task)))
            return call(task)

        run(self, tasks, arguments, repair)

    def again():
        for arguments in map(pickle.loads, list(late)):
            with suppress(ScratchCorrupted, RuntimeError):
                perform_pickled_task(*arguments)

    monkeypatch.setattr(StageRunner, "run", noting)
    progress = once(lambda event, stage, number: (event, stage, number) == ("advance", "sweep-voxels", 10), again)
    last = when("begin", "label", None, again)
    progress.act = (lambda first, second: lambda *events: (first(*events), second(*events)))(progress.act, last.act)
    segment(FLOATS, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert last.happened
    whole = supervoxels(FLOATS, step=8)
    assert_labels(target, whole)
    again()
    np.testing.assert_array_equal(labels_in(target), whole)
    # Leftovers of a run that is gone disturb no other run, whose labels they do not write.
    segment(IMAGE, target, client=client, overwrite=True, **ASKED)
    again()
    np.testing.assert_array_equal(labels_in(target), WHOLE)
