"""Killed workers, programs and schedulers: the run finishes, or resumes to the same labels."""

import random
import subprocess
import sys
from contextlib import contextmanager, suppress

import dask
import psutil
import pytest
from distributed import Client

from dseeds import cli, segment, supervoxels
from dseeds.engine import run_directory
from tests.support.clusters import worker_process_client
from tests.support.faults import (
    ASKED,
    FLOATS,
    IMAGE,
    WORK,
    as_nifti,
    assert_labels,
    identity_folder,
    kill_group,
    program,
    remove,
    resume_run,
    run_folder,
)
from tests.support.runs import (
    Recorder,
    as_zarr,
    assert_no_image,
    interrupt,
    noise,
    when,
)
from tests.support.waiting import SECONDS, wait_until

pytestmark = pytest.mark.faults


# Workers restart after each of the many kills, which takes long on a busy machine.
@pytest.mark.timeout(900)
def test_killed_workers_in_every_stage(out, faulty_workers):
    """In each stage a worker of the caller's cluster dies before its work, or between its work and the mark."""
    acts = ("kill", "killed")
    faults = faulty_workers(*((stage, None, n % 4, acts[n % 2], 1) for n, stage in enumerate(WORK)))
    with worker_process_client() as client:
        segment(IMAGE, out / "labels.zarr", client=client, **ASKED)
    assert [fault.happened for fault in faults] == [1] * len(WORK)
    assert_labels(out / "labels.zarr")


def test_killed_workers_of_its_own_cluster(out, faulty_workers):
    """Workers are replaced, and their tasks count as retried."""
    faults = faulty_workers(("sweep-voxels", None, 1, "kill", 1), ("sweep-blocks", 3, 2, "killed", 1))
    report = segment(IMAGE, out / "labels.zarr", workers=2, memory="1GiB", progress=Recorder(), **ASKED)
    assert [fault.happened for fault in faults] == [1, 1]
    assert report.retried >= 2
    assert_labels(out / "labels.zarr")


def done_of(stage, target):
    """Return a function that tells whether a task of a stage is done."""
    if stage == "export":
        return (run_folder(target) / "publishing").exists
    places = {
        "window": "done/window-00",
        "quantise": "scratch/messages/quantise",
        "sweep-blocks": "scratch/messages/sweep-00",
        "sweep-voxels": "scratch/messages/sweep-10",
    }
    place = places.get(stage, f"done/{stage}")
    return lambda: any(run_folder(target).glob(f"*/{place}/*"))


@pytest.mark.timeout(900)
def test_a_killed_program_can_be_resumed(tmp_path, out, client, started):
    """It is killed in every stage, in turns with its workers and alone, and resumed each time."""
    source = as_nifti(tmp_path / "image.nii", IMAGE)
    target = out / "labels.nii.gz"
    parameters = ["--step", 8, "--region", 16]
    for number, stage in enumerate(("import", *WORK, "export")):
        with program("segment", source, target, "--workers", 1, "--quiet", "--resume", *parameters) as process:
            wait_until(done_of(stage, target), process)
            workers = psutil.Process(process.pid).children(recursive=True)
            if number % 2:
                kill_group(process)
            else:
                process.kill()
            process.wait(SECONDS)
            # Workers do not outlive their program, so they cannot write later.
            _, alive = psutil.wait_procs(workers, SECONDS)
            assert alive == []
        assert not target.exists() or stage == "export"
        parameters = []
    if not run_folder(target).exists():
        # It had finished before it was killed.
        assert_labels(target)
        return
    resume_run(target, client, source)


def test_a_program_killed_again_and_again(tmp_path, out, started):
    image = noise((30, 30, 50), dtype="int16")
    source, target = as_zarr(tmp_path / "image.zarr", image, 16), out / "labels.zarr"
    chance = random.Random(0)
    for _ in range(3):
        with program("segment", source, target, "--step", 8, "--region", 16, "--workers", 2, "--resume") as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(2, 5))
            kill_group(process)
    # Unless it had finished before.
    if not target.exists() or run_folder(target).exists():
        with program("segment", source, target, "--resume", "--quiet", "--step", 8) as process:
            assert process.wait(SECONDS) == 0, process.stderr.read()
    assert_labels(target, supervoxels(image, step=8))


@pytest.mark.parametrize("ending", [".zarr", ".nii"])
@pytest.mark.parametrize("lost", ["nothing", "done", "scratch and done"])
def test_a_program_killed_when_all_was_published(tmp_path, out, client, ending, lost, monkeypatch):
    """After publishing, only the run's folder is left to be removed."""
    source, target = as_nifti(tmp_path / "image.nii"), out / f"labels{ending}"
    with monkeypatch.context() as context:
        context.setattr(run_directory, "remove_run", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            segment(source, target, client=client, **ASKED)
    for name in lost.split(" and ") if lost != "nothing" else ():
        remove(identity_folder(target) / name)
    before = target.stat().st_mtime_ns
    report = resume_run(target, client, source)
    assert not any(stage.tasks for stage in report.stages)
    assert target.stat().st_mtime_ns == before


DIES = """
import os, sys
from dseeds import cli
from dseeds.storage.zarr_arrays import Layout

create, made = Layout.create, []

def some(self, where, **more):
    made.append(where)
    create(self, where, **more) if len(made) < 3 else os._exit(9)

Layout.create = some
if __name__ == "__main__":
    cli.main(sys.argv[1:])
"""


def test_a_program_killed_when_it_had_just_begun(tmp_path, out, client, started):
    """The run is recorded, but some of its arrays do not exist yet."""
    source, target = as_zarr(tmp_path / "image.zarr", FLOATS, 16), out / "labels.zarr"
    (tmp_path / "dies.py").write_text(DIES)
    command = [sys.executable, tmp_path / "dies.py", "segment", source, target, "--step", "8", "--region", "16"]
    done = subprocess.run([*command, "--workers", "1", "--quiet"], check=False, timeout=SECONDS)
    assert done.returncode == 9
    assert len(list(identity_folder(target).rglob("zarr.json"))) == 2
    resume_run(target, client, source, supervoxels(FLOATS, step=8))


@contextmanager
def processes_of_a_cluster(folder):
    """Run a scheduler and a worker as processes of their own; yield the scheduler and a client."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    commands = (
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"],
        ["worker", "--no-dashboard"],
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    running = [
        subprocess.Popen([sys.executable, "-m", "dask", *command, "--scheduler-file", str(file)], cwd=folder, **quiet)
        for command in commands
    ]
    try:
        wait_until(file.exists)
        with dask.config.set({"distributed.comm.timeouts.connect": "3s"}), Client(scheduler_file=str(file)) as client:
            yield running[0], client
    finally:
        for process in running:
            kill_group(process)
            process.wait(SECONDS)


@pytest.mark.parametrize("stage", ["window", "sweep-voxels", "label"])
def test_a_killed_scheduler(tmp_path, out, client, started, stage):
    with processes_of_a_cluster(tmp_path) as (scheduler, own):

        def kill():
            scheduler.kill()
            scheduler.wait(SECONDS)

        progress = when("advance", stage, 2, kill)
        with pytest.raises(Exception, match=r"cluster|scheduler") as caught:
            segment(IMAGE, out / "labels.zarr", client=own, progress=progress, **ASKED)
    assert progress.happened
    assert "\n" not in cli.errors.describe_error(caught.value)
    assert caught.value.__notes__ == [f"resume with: dseeds segment SOURCE {out}/labels.zarr --resume"]
    assert_no_image(out / "labels.zarr")
    resume_run(out / "labels.zarr", client)
