"""The fault matrix: whatever goes wrong, the labels are those of the volume in memory, or there is a clear sentence.

After a sentence nothing is lost: the run is gone on with, and its labels are those. See docs/reliability.md.
"""

import itertools
import json
import os
import pickle
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import dask
import nibabel
import numpy as np
import psutil
import pytest
import zarr
from distributed import Client, LocalCluster

from dseeds import cli, segment, supervoxels
from dseeds.core import jit
from dseeds.engine import run_directory, tasks
from dseeds.engine.dask_runner import RegionFailed, StageRunner
from dseeds.engine.journal import seal, unseal
from dseeds.engine.publishing import SourceChanged
from dseeds.engine.repair import BeyondRepair
from dseeds.engine.run import SUFFIX, Run
from dseeds.engine.run_directory import RunMismatch
from dseeds.storage import lease as leases
from dseeds.storage.lease import LeaseLost, RunInUse
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import ScratchCorrupted
from tests.support import faulty_tasks
from tests.support.faulty_tasks import Fault
from tests.support.runs import (
    Recorder,
    as_zarr,
    assert_no_image,
    assert_sentence,
    in_process,
    interrupt,
    labels_in,
    names_in,
    noise,
    snapshot,
    when,
)

pytestmark = pytest.mark.faults

# Four regions in a row, so that not all are neighbours, and two levels of blocks; a window is asked for or found.
IMAGE = noise((16, 16, 64), dtype="int16")
ASKED = {"step": 8, "region": 16}
WHOLE = supervoxels(IMAGE, step=8)
# Two turns of the search for the window.
FLOATS = noise((16, 16, 64))
WORK = ("window", "quantise", "sweep-blocks", "merge", "sweep-voxels", "label")
SECONDS = 60


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiled code for processes that are started here, which would each take ten seconds for it."""
    folder = os.environ.get(jit.CACHE_FOLDER) or str(tmp_path_factory.mktemp("compiled"))
    environment = {**os.environ, jit.CACHE_FOLDER: folder}
    subprocess.run([sys.executable, "-m", "dseeds", "compile"], env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def started(compiled, monkeypatch):
    """What processes that are started here find in their environment."""
    monkeypatch.setenv(jit.CACHE_FOLDER, compiled)
    for name, value in faulty_tasks.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def faulty_workers(started, tmp_path, monkeypatch):
    """Let tasks go wrong on workers that are started from now on."""
    (tmp_path / "faults").mkdir()

    def make(*wanted):
        faults = [Fault(str(tmp_path / "faults"), *fault) for fault in wanted]
        for name, value in faulty_tasks.environment(*faults).items():
            monkeypatch.setenv(name, value)
        return faults

    with dask.config.set({"distributed.worker.preload": ["faulty_tasks"]}):
        yield make


@pytest.fixture(scope="module")
def client():
    with in_process(2, 2) as client:
        yield client


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def as_nifti(path, image=IMAGE):
    nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), path)
    return path


def found_in(target):
    if target.name.endswith(".zarr"):
        return labels_in(target)
    return np.asarray(nibabel.load(target, mmap=False).dataobj).T


def assert_whole(target, whole=WHOLE):
    """The labels are right, and nothing lies around."""
    np.testing.assert_array_equal(found_in(target), whole)
    assert names_in(target.parent) == [target.name]


def run_folder(target):
    return target.with_name(target.name + SUFFIX)


def identity_folder(target):
    """What lies under the run's identity: what is done, and the scratch."""
    return next(path for path in run_folder(target).iterdir() if path.is_dir() and len(path.name) == 16)


def resumed(target, client, source=IMAGE, whole=WHOLE, **asked):
    report = segment(source, target, resume=True, client=client, **asked)
    assert report.resumed
    assert_whole(target, whole)
    return report


def interrupted(target, client, stage="sweep-voxels", number=3, source=IMAGE, **asked):
    """A run that was interrupted in a stage."""
    progress = when("advance", stage, number, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, client=client, progress=progress, **{**ASKED, **asked})
    assert progress.happened


def once(condition, do):
    """A progress that does something as soon as something is so; `happened` says whether it ever was."""

    def act(*told):
        if not recorder.happened and condition(*told):
            recorder.happened = True
            do()

    recorder = Recorder(act)
    recorder.happened = False
    return recorder


# Processes that are killed.


@contextmanager
def program(*arguments):
    """The command line in a process group of its own, which is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "dseeds", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            kill_group(process)


def kill_group(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for(happened, process=None):
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end, "it never came so far"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.002)


# A worker starts anew after each of the many kills, which takes its time on a busy machine.
@pytest.mark.timeout(1800)
def test_killed_workers_in_every_stage(out, faulty_workers):
    """In each stage one dies before its work, or after it and before the mark; the cluster is the user's."""
    acts = ("kill", "killed")
    faults = faulty_workers(*((stage, None, n % 4, acts[n % 2], 1) for n, stage in enumerate(WORK)))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        segment(IMAGE, out / "labels.zarr", client=client, **ASKED)
    assert [fault.happened for fault in faults] == [1] * len(WORK)
    assert_whole(out / "labels.zarr")


def test_killed_workers_of_its_own_cluster(out, faulty_workers):
    """They are replaced, and what they were at is counted as tried again."""
    faults = faulty_workers(("sweep-voxels", None, 1, "kill", 1), ("merge", 3, 2, "killed", 1))
    report = segment(IMAGE, out / "labels.zarr", workers=2, memory="1GiB", progress=Recorder(), **ASKED)
    assert [fault.happened for fault in faults] == [1, 1]
    assert report.retried >= 2
    assert_whole(out / "labels.zarr")


def done_of(stage, target):
    """How to see that a stage is at work."""
    if stage == "export":
        return (run_folder(target) / "publishing").exists
    names = {"import": "import", "quantise": "quantise", "label": "label", "sweep-voxels": "sweep-10"}
    name = names.get(stage, f"{stage.partition('-')[0]}-0{int(stage == 'merge')}")
    return lambda: any(run_folder(target).glob(f"*/done/{name}/*"))


@pytest.mark.parametrize("whole_group", [True, False], ids=["with its workers", "alone"])
def test_a_killed_program_is_gone_on_with(tmp_path, out, client, started, whole_group):
    """From stage to stage it is killed in each, and the next goes on."""
    source = as_nifti(tmp_path / "image.nii", IMAGE)
    target = out / "labels.nii.gz"
    asked = ["--step", 8, "--region", 16]
    for stage in ("import", *WORK, "export"):
        with program("segment", source, target, "--workers", 1, "--quiet", "--resume", *asked) as process:
            wait_for(done_of(stage, target), process)
            workers = psutil.Process(process.pid).children(recursive=True)
            if whole_group:
                kill_group(process)
            else:
                process.kill()
            process.wait()
            # Workers do not outlive their program, so that none comes between.
            _, alive = psutil.wait_procs(workers, SECONDS)
            assert alive == []
        assert not target.exists() or stage == "export"
        asked = []
    if not run_folder(target).exists():
        # It was through before it was killed.
        assert_whole(target)
        return
    resumed(target, client, source)


def test_a_program_killed_again_and_again(tmp_path, out, started):
    image = noise((30, 30, 50), dtype="int16")
    source, target = as_zarr(tmp_path / "image.zarr", image, 16), out / "labels.zarr"
    chance = random.Random(0)
    for _ in range(5):
        with program("segment", source, target, "--step", 8, "--region", 16, "--workers", 2, "--resume") as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(2, 6))
            kill_group(process)
    # Unless it was done before the last was begun.
    if not target.exists() or run_folder(target).exists():
        with program("segment", source, target, "--resume", "--quiet", "--step", 8) as process:
            assert process.wait(2 * SECONDS) == 0, process.stderr.read()
    assert_whole(target, supervoxels(image, step=8))


@pytest.mark.parametrize("ending", [".zarr", ".nii"])
@pytest.mark.parametrize("lost", ["nothing", "done", "scratch and done"])
def test_a_program_killed_when_all_was_published(tmp_path, out, client, ending, lost, monkeypatch):
    """Between the labels' appearing and the last of the run's folder nothing is left to do but to tidy up."""
    source, target = as_nifti(tmp_path / "image.nii"), out / f"labels{ending}"
    with monkeypatch.context() as context:
        context.setattr(run_directory, "remove", lambda _: interrupt())
        with pytest.raises(KeyboardInterrupt):
            segment(source, target, client=client, **ASKED)
    for name in lost.split(" and ") if lost != "nothing" else ():
        remove(identity_folder(target) / name)
    before = target.stat().st_mtime_ns
    report = resumed(target, client, source)
    assert not any(stage.tasks for stage in report.stages)
    assert target.stat().st_mtime_ns == before


DIES = """
import os, sys
from dseeds import cli, store

create, made = store.Layout.create, []

def some(self, where, **more):
    made.append(where)
    create(self, where, **more) if len(made) < 5 else os._exit(9)

store.Layout.create = some
if __name__ == "__main__":
    cli.main(sys.argv[1:])
"""


def test_a_program_killed_when_it_had_just_begun(tmp_path, out, client, started):
    """The run is written down, but its arrays are not all there."""
    source, target = as_zarr(tmp_path / "image.zarr", IMAGE, 16), out / "labels.zarr"
    (tmp_path / "dies.py").write_text(DIES)
    command = [sys.executable, tmp_path / "dies.py", "segment", source, target, "--step", "8", "--region", "16"]
    done = subprocess.run([*command, "--workers", "1", "--quiet"], check=False, timeout=SECONDS)
    assert done.returncode == 9
    assert len(list(identity_folder(target).rglob("zarr.json"))) == 4
    resumed(target, client, source)


@contextmanager
def processes_of_a_cluster(folder):
    """A scheduler and a worker, each a process of its own, and a client."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    commands = (["scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1"], ["worker", "--no-dashboard"])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    running = [
        subprocess.Popen([sys.executable, "-m", "dask", *command, "--scheduler-file", str(file)], cwd=folder, **quiet)
        for command in commands
    ]
    try:
        wait_for(file.exists)
        with dask.config.set({"distributed.comm.timeouts.connect": "3s"}), Client(scheduler_file=str(file)) as client:
            yield running[0], client
    finally:
        for process in running:
            kill_group(process)
            process.wait()


@pytest.mark.parametrize("stage", ["window", "sweep-voxels", "label"])
def test_a_killed_scheduler(tmp_path, out, client, started, stage):
    with processes_of_a_cluster(tmp_path) as (scheduler, own):

        def kill():
            scheduler.kill()
            scheduler.wait()

        progress = when("advance", stage, 2, kill)
        with pytest.raises(Exception, match=r"cluster|scheduler") as caught:
            segment(IMAGE, out / "labels.zarr", client=own, progress=progress, **ASKED)
    assert progress.happened
    assert "\n" not in cli.errors.sentence(caught.value)
    assert caught.value.__notes__ == [f"go on with: dseeds segment SOURCE {out}/labels.zarr --resume"]
    assert_no_image(out / "labels.zarr")
    resumed(out / "labels.zarr", client)


# Tasks that fail.


@contextmanager
def theirs(own, memory):
    """Two workers of so much memory: what to tell `segment`."""
    if own:
        yield {"workers": 2, "memory": memory}
        return
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(memory_limit=memory, **options) as cluster,
        Client(cluster) as client,
    ):
        yield {"client": client}


@pytest.mark.parametrize("own", [True, False], ids=["its own cluster", "a cluster of the user's"])
def test_a_task_that_never_fits_its_worker(out, client, faulty_workers, own):
    """It takes a few workers along, but no other task."""
    (fault,) = faulty_workers(("merge", 2, 1, "eat"))
    target = out / "labels.zarr"
    says = r"merge-02 of region 1 failed .*for want of memory"
    with theirs(own, "700MiB") as more, pytest.raises(RegionFailed, match=says) as caught:
        segment(IMAGE, target, progress=Recorder(), **ASKED, **more)
    assert_sentence(caught.value)
    assert fault.happened <= (3 if own else 4)
    debug, go_on = caught.value.__notes__
    assert debug.endswith(f"dseeds debug-region {run_folder(target)} --phase merge-02 --region 1")
    assert go_on.endswith(f"{target} --resume")
    failed = json.loads((run_folder(target) / "failure.json").read_text())
    assert (failed["phase"], failed["region"]) == ("merge-02", 1)
    report = resumed(target, client)
    # All others had done theirs.
    assert next(stage.skipped for stage in report.stages if stage.name == "merge") >= 3


def test_a_task_that_does_not_fit_its_worker_once(out, faulty_workers):
    (fault,) = faulty_workers(("sweep-voxels", None, 2, "eat", 1))
    report = segment(IMAGE, out / "labels.zarr", workers=2, memory="700MiB", progress=Recorder(), **ASKED)
    assert fault.happened == 1
    assert report.retried >= 1
    assert_whole(out / "labels.zarr")


@pytest.fixture
def faulty_here(tmp_path, monkeypatch):
    """Let tasks go wrong in this process."""
    (tmp_path / "faults").mkdir()

    def make(*wanted):
        fault = Fault(str(tmp_path / "faults"), *wanted)
        monkeypatch.setitem(tasks._TASKS, fault.stage, fault.wrapped(tasks._TASKS[fault.stage]))
        return fault

    return make


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("stage", ["window", "merge", "label"])
def test_a_task_that_fails_at_first(out, client, faulty_here, stage, times):
    fault = faulty_here(stage, None, 3, "raise", times)
    report = segment(IMAGE, out / "labels.zarr", client=client, **ASKED)
    assert fault.happened == report.retried == times
    assert {found.name: found.retried for found in report.stages}[stage] == times
    assert_whole(out / "labels.zarr")


def test_a_task_that_fails_always_can_be_looked_at(tmp_path, out, client, faulty_here, monkeypatch, capsys):
    source, target = as_zarr(tmp_path / "image.zarr", IMAGE, 16), out / "labels.zarr"
    with monkeypatch.context():
        fault = faulty_here("sweep-blocks", 2, 1, "raise")
        address = client.scheduler.address
        code = cli.main(
            ["segment", str(source), str(target), "--step", "8", "--region", "16", "--scheduler", address, "--quiet"]
        )
        said = capsys.readouterr().err.splitlines()
        assert code == 1
        assert said[0] == (
            "error: sweep-02 of region 1 failed 3 times (ArithmeticError: an error that was asked for)"
        ), said
        assert fault.happened == 3
        failed = json.loads((run_folder(target) / "failure.json").read_text())
        assert (failed["phase"], failed["region"], failed["attempts"]) == ("sweep-02", 1, 3)
        debug, go_on = (shlex.split(line.partition(": dseeds ")[2] or line.partition(": ")[2]) for line in said[1:])
        assert cli.main(debug) == 1
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "an error that was asked for" in shown
        assert "faulty_tasks.py" in shown
    monkeypatch.undo()
    assert cli.main(debug) == 0
    assert cli.main([*go_on, "--scheduler", address, "--quiet"]) == 0
    assert_whole(target)


# A target that cannot be written to.


@pytest.fixture
def disk(tmp_path):
    """A file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"A READ-ONLY TARGET IS NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"A READ-ONLY TARGET IS NOT TESTED, for lack of the right to mount one: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def make(path, what):
    """Let a file system be read-only or writable; it refuses while a file is being written."""
    command = ["mount", "-o", f"remount,{what}", str(path)]
    wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0)


def test_a_target_that_is_read_only(disk, client):
    make(disk, "ro")
    with pytest.raises(OSError, match="Read-only file system") as caught:
        segment(IMAGE, disk / "labels.zarr", client=client, **ASKED)
    assert "read-only file system" in cli.errors.sentence(caught.value)
    make(disk, "rw")
    assert names_in(disk) == []
    segment(IMAGE, disk / "labels.zarr", client=client, **ASKED)
    assert_whole(disk / "labels.zarr")


@pytest.mark.parametrize("stage", ["window", "merge", "label"])
def test_a_target_that_becomes_read_only(disk, client, stage):
    progress = when("advance", stage, 2, lambda: make(disk, "ro"))
    with pytest.raises(OSError, match="Read-only file system") as caught:
        segment(IMAGE, disk / "labels.zarr", client=client, progress=progress, **ASKED)
    assert progress.happened
    assert "\n" not in cli.errors.sentence(caught.value)
    assert any(note.endswith("--resume") for note in caught.value.__notes__)
    make(disk, "rw")
    assert_no_image(disk / "labels.zarr")
    resumed(disk / "labels.zarr", client)


# Scratch that is damaged.


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    if path.is_dir():
        for inner in path.iterdir():
            remove(inner)
        path.rmdir()
    else:
        path.unlink()


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def empty(path):
    path.write_bytes(b"")


DAMAGES = [flip, truncate, remove, zero]


def shards(target, name):
    return sorted(path for path in (identity_folder(target) / "scratch" / name / "c").rglob("*") if path.is_file())


def damage(files):
    for hurt, path in zip(itertools.cycle(DAMAGES), files, strict=False):
        hurt(path)


@pytest.fixture
def mended(monkeypatch):
    """The names of the arrays that were found damaged."""
    found = []

    def noting(course, damage, *rest):
        found.append(damage.name)
        return mend(course, damage, *rest)

    mend = runs_engine().mend
    monkeypatch.setattr(runs_engine(), "mend", noting)
    return found


def runs_engine():
    from importlib import import_module

    return import_module("dseeds.engine.driver")


@pytest.mark.parametrize(
    ("name", "stage", "number"),
    [
        ("source-0", "window", 1),
        ("digits-0", "window", 4),
        ("digits-1", "window", 8),
        ("bins-0", "quantise", 4),
        ("bins-0", "sweep-blocks", 36),
        ("histograms-0", "sweep-blocks", 6),
        ("codes-00", "sweep-blocks", 4),
        ("codes-04", "sweep-blocks", 20),
        ("codes-08", "sweep-blocks", 36),
        ("codes-12", "sweep-voxels", 16),
        ("statistics-00", "quantise", 4),
        ("statistics-05", "merge", 20),
        ("statistics-09", "merge", 36),
        ("core-01", "sweep-blocks", 4),
        ("core-09", "sweep-blocks", 36),
        ("core-11", "sweep-voxels", 8),
        ("shells-01", "sweep-blocks", 4),
        ("shells-09", "sweep-blocks", 36),
        ("shells-12", "sweep-voxels", 12),
        ("labels", "label", 4),
    ],
)
def test_damaged_scratch_is_noticed_and_made_again(tmp_path, out, client, mended, name, stage, number):
    """All four shards of an array, each in its own way, when they are all written."""
    source = as_nifti(tmp_path / "image.nii", FLOATS)
    target = out / ("labels.nii.gz" if name == "labels" else "labels.zarr")

    def hurt():
        files = shards(target, name)
        # The source is cut into slabs, not into regions.
        assert len(files) == (1 if name == "source-0" else 4)
        damage(files)

    progress = when("advance", stage, number, hurt)
    segment(source, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert name in mended
    assert_whole(target, supervoxels(FLOATS, step=8))


@pytest.mark.parametrize("hurt", DAMAGES)
def test_a_damaged_copy_of_the_source(tmp_path, out, client, mended, hurt):
    source, target = as_nifti(tmp_path / "image.nii"), out / "labels.zarr"
    progress = when("begin", "window", None, lambda: hurt(shards(target, "source-0")[0]))
    segment(source, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert mended[0] == "source-0"
    assert_whole(target)


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-blocks", "merge", "sweep-voxels"])
@pytest.mark.parametrize("first", [0, 1])
def test_scratch_damaged_before_it_is_gone_on_with(out, client, stage, first):
    """One shard of everything at once, each in another way; what it was made of may then be gone too."""
    target = out / "labels.zarr"
    interrupted(target, client, stage, 4)
    arrays = sorted(path.name for path in (identity_folder(target) / "scratch").iterdir())
    damage([path for name in arrays[first::2] for path in shards(target, name)[1:2]])
    try:
        resumed(target, client)
    except BeyondRepair as error:
        assert_beyond_repair(error, target, client)


def assert_beyond_repair(error, target, client):
    """The run is lost, which is said; another one is not."""
    assert_sentence(error)
    assert "begin anew" in str(error)
    assert not hasattr(error, "__notes__")
    assert_no_image(target)
    segment(IMAGE, target, overwrite=True, client=client, **ASKED)
    assert_whole(target)


@pytest.mark.parametrize("turn", [2, 6, 10])
def test_codes_of_two_rounds_damaged(out, client, mended, turn):
    target = out / "labels.zarr"
    stage, number = ("sweep-blocks", 4 * (turn + 1)) if turn < 9 else ("sweep-voxels", 4 * (turn - 8))

    def hurt():
        damage(shards(target, f"codes-{turn:02}"))
        damage(shards(target, f"codes-{turn - 1:02}"))

    progress = when("advance", stage, number, hurt)
    try:
        segment(IMAGE, target, client=client, progress=progress, **ASKED)
        assert_whole(target)
    except BeyondRepair as error:
        assert_beyond_repair(error, target, client)
    assert progress.happened
    assert f"codes-{turn:02}" in mended


def test_codes_of_regions_that_rest_damaged(out, client, mended):
    """They were written rounds ago."""
    image = np.zeros((16, 16, 160))
    image[:, :, :12] = np.random.default_rng(0).normal(3, 1, (16, 16, 12))
    target = out / "labels.zarr"
    asked = {**ASKED, "window": (0, 6), "client": client}

    def hurt():
        for array in (identity_folder(target) / "scratch").glob("codes-*"):
            for path in shards(target, array.name)[-1:]:
                flip(path)

    progress = when("begin", "label", None, hurt)
    try:
        segment(image, target, progress=progress, **asked)
    except BeyondRepair as error:
        assert_sentence(error)
        segment(image, target, overwrite=True, **asked)
    assert progress.happened
    assert mended
    assert_whole(target, supervoxels(image, step=8, window=(0, 6)))


@pytest.mark.parametrize("hurt", [truncate, remove, zero, empty])
def test_labels_damaged_before_it_is_gone_on_with(out, client, hurt):
    """In the target, whose array is as its readers want it: without checksums of ours."""
    target = out / "labels.zarr"
    interrupted(target, client, "label", 4)
    hurt(target / "0" / "c" / "0" / "0" / "2")
    resumed(target, client)


@pytest.mark.parametrize("what", ["run.json", "quantise.json", "sweep-03.json", "window-00.json"])
def test_what_is_known_of_a_run_is_damaged(out, client, what):
    target = out / "labels.zarr"
    interrupted(target, client)
    path = next(run_folder(target).rglob(what))
    before, sound = snapshot(out), path.read_bytes()
    for hurt in (flip, truncate, zero, empty):
        hurt(path)
        with pytest.raises(ValueError, match=f"{what} is damaged") as caught:
            segment(IMAGE, target, resume=True, client=client)
        assert_sentence(caught.value)
        path.write_bytes(sound)
        assert snapshot(out) == before
    resumed(target, client)


@pytest.mark.parametrize("hurt", [truncate, remove, zero, empty])
def test_what_is_known_of_a_failure_is_damaged(out, client, hurt):
    """It is for people to read, and nothing depends on it."""
    target = out / "labels.zarr"
    interrupted(target, client)
    path = run_folder(target) / "failure.json"
    path.write_text('{"phase": "merge-02", "region": 1}')
    hurt(path)
    assert run_directory.read_failure(Run(None, None, str(target), {})) is None
    resumed(target, client)


def test_one_letter_of_a_record_is_another(out, client):
    """What still can be read is not believed: the window would be another, and so the labels."""
    target = out / "labels.zarr"
    interrupted(target, client)
    path = next(run_folder(target).rglob("window-00.json"))
    sound = path.read_bytes()
    for place in [n for n, letter in enumerate(sound) if chr(letter).isdecimal()]:
        digit = str((int(chr(sound[place])) + 1) % 10).encode()
        path.write_bytes(sound[:place] + digit + sound[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            segment(IMAGE, target, resume=True, client=client)
    path.write_bytes(sound)
    resumed(target, client)


# A source that changes.


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
    assert not hasattr(caught.value, "__notes__"), "the run cannot be gone on with"
    assert not target.is_file()
    assert_no_image(target)
    segment(source, target, client=client, overwrite=True, **ASKED)
    assert_whole(target, supervoxels(IMAGE if change is touch else zarr.open_array(source)[:], step=8))


def test_notes_in_the_margin_of_a_source_do_not_matter(tmp_path, out, client):
    source = as_zarr(tmp_path / "a.zarr", IMAGE, 16)
    progress = when("advance", "merge", 2, lambda: annotate(source))
    segment(source, out / "labels.zarr", client=client, progress=progress, **ASKED)
    assert progress.happened
    assert_whole(out / "labels.zarr")


@pytest.mark.parametrize("change", [rewrite, touch], ids=["zarr", "nifti"])
def test_a_source_that_changes_before_it_is_gone_on_with(tmp_path, out, client, change):
    source = as_nifti(tmp_path / "a.nii") if change is touch else as_zarr(tmp_path / "a.zarr", IMAGE, 16)
    target = out / "labels.zarr"
    interrupted(target, client, source=source)
    if change is rewrite:
        annotate(source)
    before = snapshot(out)
    change(source)
    with pytest.raises(RunMismatch, match=r"source was \{\"(chunks|mtime_ns)\": .* and is now") as caught:
        segment(source, target, client=client, resume=True)
    assert_sentence(caught.value)
    assert snapshot(out) == before


# Going on with something else.


def test_going_on_with_another_run_is_refused(tmp_path, out, client):
    series = np.stack([IMAGE, IMAGE[::-1]])
    source, target = as_zarr(tmp_path / "a.zarr", series, 16), out / "labels.zarr"
    asked = {"volume": 0, "window": (-100, 200), "compactness": 0.5}
    interrupted(target, client, source=source, **asked)
    before = snapshot(out)
    for difference, says in (
        ({"step": 4}, r"step was \[8, 8, 8\] and is now \[4, 4, 4\]"),
        ({"n_segments": 100}, "step was"),
        ({"window": (0, 200)}, r"windows was \[\[-100\.0, 200\.0\]\] and is now \[\[0\.0, 200\.0\]\]"),
        ({"compactness": 1}, r"compactness was 0\.5 and is now 1\.0"),
        ({"region": 32}, r"region was \[2, 2, 2\] and is now"),
        ({"volume": 1}, r"source was \{\"index\": \[0, .* and is now \{\"index\": \[1, "),
        ({"scratch": tmp_path}, "scratch was null and is now "),
        ({"chunks": 4}, "labels was"),
    ):
        with pytest.raises(RunMismatch, match=says) as caught:
            segment(source, target, client=client, resume=True, **difference)
        assert_sentence(caught.value)
        assert snapshot(out) == before
    with pytest.raises(FileExistsError, match="--resume"):
        segment(source, target, client=client, **ASKED, **asked)
    assert snapshot(out) == before
    # With the same, asked for in other words, and other workers.
    with in_process(1, 1) as one:
        resumed(
            target,
            one,
            source,
            supervoxels(IMAGE, step=8, window=(-100, 200), compactness=0.5),
            step=(8, 8, 8),
            region=(9, 16, 16),
            memory="1GiB",
        )


@pytest.mark.parametrize("key", ["dseeds", "format"])
def test_going_on_with_a_run_of_another_version_is_refused(out, client, key):
    target = out / "labels.zarr"
    interrupted(target, client)
    path = run_folder(target) / "run.json"
    sound = path.read_bytes()
    path.write_bytes(seal({**unseal(sound), key: "0.0.1"}))
    before = snapshot(out)
    with pytest.raises(RunMismatch, match="go on with that version, or begin anew") as caught:
        segment(IMAGE, target, client=client, resume=True)
    assert_sentence(caught.value)
    assert snapshot(out) == before
    path.write_bytes(sound)
    resumed(target, client)


def test_going_on_where_nothing_was_begun_begins(out, client):
    report = segment(IMAGE, out / "labels.zarr", client=client, resume=True, **ASKED)
    assert not report.resumed
    assert report.skipped == 0
    assert_whole(out / "labels.zarr")


# Two at work.


@pytest.fixture
def holder(tmp_path, out, faulty_workers):
    """A program that has come to a task that takes long."""
    (fault,) = faulty_workers(("sweep-blocks", 4, 1, "sleep", 1))
    source = as_zarr(tmp_path / "image.zarr", IMAGE, 16)
    with program(
        "segment", source, out / "labels.zarr", "--step", 8, "--region", 16, "--workers", 1, "--quiet"
    ) as process:
        wait_for(lambda: fault.happened, process)
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
    process.wait()
    # That it is dead is seen at once.
    began = time.monotonic()
    leases.check_free(open_location(run_folder(target)))
    assert time.monotonic() - began < 1
    resumed(target, client, source)


@pytest.mark.parametrize("done", [True, False], ids=["to its end", "while it is at work"])
def test_a_run_that_is_taken_over_from_a_stopped_process(out, client, holder, monkeypatch, done):
    """A laptop that slept: when it wakes up, somebody else is at the run, or through with it."""
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
    assert_whole(target)


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize("readable", [True, False])
def test_a_lease_of_another_machine(out, client, monkeypatch, beats, readable):
    target = out / "labels.zarr"
    interrupted(target, client)
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
        resumed(target, client)
        return
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunInUse, match="process 1 on elsewhere" if readable else "another process is at work"):
            segment(IMAGE, target, client=client, resume=True)
    finally:
        stop.set()
        thread.join()
    resumed(target, client)


@pytest.mark.parametrize("beats", ["taken over", "taken away"])
def test_a_lease_that_is_lost_is_noticed_before_a_phase_is_closed(out, client, monkeypatch, beats):
    """Even if the next beat is far off."""
    target = out / "labels.zarr"
    monkeypatch.setattr(leases, "BEAT_SECONDS", 1000.0)

    def take():
        folder = run_folder(target) / "lease"
        remove(folder)
        if beats == "taken over":
            folder.mkdir()
            (folder / "000002.json").write_text("{}")

    progress = when("advance", "merge", 2, take)
    with pytest.raises(LeaseLost) as caught:
        segment(IMAGE, target, client=client, progress=progress, **ASKED)
    assert_sentence(caught.value)
    assert progress.told[-1][1] == "merge", "no further stage was begun"
    remove(run_folder(target) / "lease") if beats == "taken over" else None
    monkeypatch.undo()
    resumed(target, client)


# Tasks that come late.


def test_tasks_of_older_phases_that_run_again_late(out, client, monkeypatch):
    """Every task of every phase, again when later rounds are done, and again when all is: nothing changes."""
    target, late, run = out / "labels.zarr", [], StageRunner.run

    def noting(self, phase, numbers, function, call, **options):
        numbers = list(numbers)
        # As they would be on another machine.
        late.extend(pickle.dumps((function, *call(number))) for number in numbers)
        run(self, phase, numbers, function, call, **options)

    def again():
        for function, *arguments in map(pickle.loads, late):
            with suppress(ScratchCorrupted, RuntimeError):
                function(*arguments)

    monkeypatch.setattr(StageRunner, "run", noting)
    progress = once(lambda event, stage, number: (event, stage, number) == ("advance", "sweep-voxels", 10), again)
    last = when("begin", "label", None, again)
    progress.act = (lambda first, second: lambda *told: (first(*told), second(*told)))(progress.act, last.act)
    segment(FLOATS, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert last.happened
    whole = supervoxels(FLOATS, step=8)
    assert_whole(target, whole)
    again()
    np.testing.assert_array_equal(labels_in(target), whole)
    # What they leave of a run that is gone is in nobody's way; and another run's labels are not theirs to write.
    segment(IMAGE, target, client=client, overwrite=True, **ASKED)
    again()
    np.testing.assert_array_equal(labels_in(target), WHOLE)
