"""The command line as people and scripts use it: its output, its exit codes, and the files it leaves behind."""

import errno
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import zarr
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from nibabel.testing import data_path
from rich.console import Console

import dseeds
from dseeds import cli, phantom
from dseeds.engine.batch import NotYet
from dseeds.engine.repair import BeyondRepair, RegionFailed
from dseeds.engine.report import Report
from dseeds.parallel import terminal_progress
from dseeds.storage.lease import LeaseLost
from dseeds.storage.ownership import MARKER
from dseeds.storage.zarr_arrays import ScratchCorrupted

EXAMPLE = Path(data_path) / "example4d.nii.gz"
SCRIPT = Path(sys.executable).with_name("dseeds")
REPORT = Report(
    "b.zarr", None, *[(1, 1, 1)] * 3, ((0.0, 1.0),), 1, (), 1, 0, 0, False, (1, 1, 1), 1, 1, 1.0, 1.0, {}, ()
)
HEAVY = ("numba", "zarr", "dask", "distributed", "nibabel", "pyarrow")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one worker process, which compiles once for all tests of this module."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        memory_limit="2GiB",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        yield cluster


@pytest.fixture
def no_cluster(monkeypatch):
    """Make the start of a cluster an error."""

    def refuse(**_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("dseeds.parallel.cluster.LocalCluster", refuse)


@pytest.fixture
def arguments_of_segment(monkeypatch):
    """Record the arguments that the command line passes to `dseeds.segment`, which does nothing."""
    passed = {}

    def segment(source, target, **options):
        passed.update(options, source=source, target=target)
        return REPORT

    monkeypatch.setattr("dseeds.api.segment.segment", segment)
    return passed


def run(*arguments, **options):
    """Run the console script."""
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False, **options
    )


def listing(folder):
    """Return all paths in a folder with the contents of the files."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_one_sentence(stderr):
    """Assert that there is one error besides lines of progress, and no traceback."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("Dask dashboard: ", "import: ", "window: "))]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) > len("error: ") + 10


def image(shape=(20, 24, 28), dtype="int16"):
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def save(path, data):
    if path.suffix == ".zarr":
        array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=[max(1, n // 2) for n in data.shape])
        array[...] = data
    else:
        nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), path)
    return path


# Help


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "dseeds"]])
def test_version(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dseeds {dseeds.__version__}\n", "")


def test_help_imports_no_heavy_packages():
    code = f"import sys, dseeds.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_the_commands(call, arguments):
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    commands = ["segment", "info", "phantom", "evaluate", "features", "map", "agglomerate", "--version"]
    assert all(command in out for command in commands)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "segment",
            "--step --n-segments --spacing --window --volume --region --workers --memory --scheduler "
            "--tls-ca-file --tls-cert --tls-key --scratch --overwrite --json --quiet",
        ),
        ("info", "--volume --json"),
        ("phantom", "--shape --spacing --dtype --noise --organs --seed --chunk --threads --overwrite --quiet"),
        (
            "evaluate",
            "--image --tolerance --chunks --step --spacing --volume --region --memory --threads --scheduler "
            "--tls-ca-file --tls-cert --tls-key --scratch --json --quiet",
        ),
        ("agglomerate", "--n-segments --threshold --weights --epsilon --tree --overwrite --json --quiet"),
        (
            "map",
            "--column --label-column --fill --dtype --as-labels --threads --workers --scheduler --overwrite --json",
        ),
    ],
)
def test_help_explains_every_option(call, command, options):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    for option in options.split():
        line = next(line for line in out.splitlines() if option in line.split())
        assert len(line.split(option)[1].split()) > 3
    assert f"dseeds {command} " in out.split("Examples")[1]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", {"step": None, "n_segments": None, "workers": None, "client": None, "overwrite": False}),
        ("--step 8", {"step": "8"}),
        ("--step 8,16,16", {"step": "8,16,16"}),
        ("--step 12mm", {"step": "12mm"}),
        ("--n-segments 500 --spacing 3,0.75,.75", {"n_segments": 500, "spacing": (3.0, 0.75, 0.75)}),
        ("--window -150,250", {"window": "-150,250"}),
        ("--window=-150:250", {"window": "-150:250"}),
        ("--window abdomen;;lung", {"window": "abdomen;;lung"}),
        ("--percentiles 1,99", {"percentiles": "1,99"}),
        ("--weights 1,.5", {"weights": (1.0, 0.5)}),
        ("--channel-axis -1", {"channel_axis": -1}),
        ("--channel-axis c", {"channel_axis": "c"}),
        ("--mask auto --min-size 20 --levels 2", {"mask": "auto", "min_size": 20, "levels": 2}),
        ("--volume 0", {"volume": 0}),
        ("--region 128", {"region": 128}),
        ("--region 64,128,256", {"region": (64, 128, 256)}),
        ("--workers 3 --memory 2GiB --scratch /x", {"workers": 3, "memory": "2GiB", "scratch": "/x"}),
        ("--overwrite", {"overwrite": True, "resume": False, "keep_scratch": False}),
        ("--resume --keep-scratch", {"resume": True, "keep_scratch": True}),
        ("--chunks 32 --shards 64,128,128", {"chunks": 32, "shards": (64, 128, 128)}),
        ("--scratch s3://fast/tmp", {"scratch": "s3://fast/tmp"}),
    ],
)
def test_options_arrive(call, arguments_of_segment, arguments, options):
    code, _, err = call("segment", "a.nii.gz", "b.zarr", *arguments.split())
    assert (code, err) == (0, "")
    assert {key: arguments_of_segment[key] for key in options} == options
    assert (arguments_of_segment["source"], arguments_of_segment["target"]) == ("a.nii.gz", "b.zarr")


@pytest.mark.parametrize(
    ("options", "printed"), [([], f"{REPORT}\n"), (["--json"], f"{REPORT.to_json()}\n"), (["--quiet"], "")]
)
@pytest.mark.usefixtures("arguments_of_segment")
def test_the_report_is_alone_on_standard_output(call, options, printed):
    assert call("segment", "a.zarr", "b.zarr", *options) == (0, printed, "")


# Errors


def broken_nifti(path):
    """Write a file that is truncated in the middle of the voxels."""
    save(path, image())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_checksum(path):
    save(path, image())
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def broken_zarr(path):
    save(path, image())
    chunk = next(file for file in (path / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:30])


SOURCES = {
    "missing.zarr": lambda path: None,
    "text.nii.gz": lambda path: path.write_text("hello"),
    "empty.nii.gz": lambda path: path.write_bytes(gzip.compress(b"")),
    "folder.zarr": lambda path: path.mkdir(),
    "flat.zarr": lambda path: save(path, image((20, 24))),
    "five.zarr": lambda path: save(path, image((2, 3, 8, 8, 8))),
    "four.zarr": lambda path: save(path, image((2, 8, 8, 8))),
    "hollow.zarr": lambda path: save(path, image((0, 8, 8))),
    "truth.zarr": lambda path: save(path, image((8, 8, 8), bool)),
    "phase.zarr": lambda path: save(path, image((8, 8, 8), complex)),
}
# Errors that appear only when the voxels are read.
DAMAGED_SOURCES = {
    "broken.nii.gz": broken_nifti,
    "checksum.nii.gz": bad_checksum,
    "broken.zarr": broken_zarr,
    "nan.zarr": lambda path: save(path, np.full((20, 20, 20), np.nan, "float32")),
}
OPTIONS = [
    "--step 1",
    "--step 0",
    "--step=-4",
    "--step abc",
    "--step 4,4",
    "--step 12mm",
    "--step 8 --n-segments 50",
    "--n-segments 0",
    "--n-segments many",
    "--spacing 0,1,1",
    "--spacing 1,1",
    "--spacing a,b,c",
    "--window 5",
    "--window 5,a",
    "--window 5:1",
    "--window nan,1",
    "--volume 3",
    "--region a",
    "--region 8,a",
    "--region 1.5",
    "--workers 0",
    "--workers 1 --scheduler tcp://127.0.0.1:1",
    "--memory lots",
    "--memory 0",
    "--scratch nowhere",
    "--scheduler nonsense",
    "--scheduler nonsense://127.0.0.1:8786",
    "--no-such-option",
]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("target", ["labels.zarr", "labels.nii.gz"])
def test_a_bad_source_is_refused(call, no_cluster, tmp_path, name, target):
    SOURCES[name](tmp_path / name)
    before = listing(tmp_path)
    code, out, err = call("segment", tmp_path / name, tmp_path / target)
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert name in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", DAMAGED_SOURCES)
def test_a_damaged_source_leaves_nothing(call, cluster, tmp_path, name):
    DAMAGED_SOURCES[name](tmp_path / name)
    before = listing(tmp_path)
    code, out, err = call(
        "segment", tmp_path / name, tmp_path / "labels.zarr", "--scheduler", cluster.scheduler_address
    )
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bad_option_is_refused(call, no_cluster, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "image.zarr", image())
    before = listing(tmp_path)
    code, out, err = call("segment", "image.zarr", "labels.zarr", *options.split())
    assert (code in (1, 2), out) == (True, "")
    assert_one_sentence(err)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", ["--region 0", "--region 8,8", "--memory 100MiB"])
def test_an_option_that_does_not_suit_the_cluster_is_refused(call, cluster, tmp_path, options):
    save(tmp_path / "image.zarr", image())
    before = listing(tmp_path)
    code, out, err = call(
        "segment",
        tmp_path / "image.zarr",
        tmp_path / "labels.zarr",
        "--scheduler",
        cluster.scheduler_address,
        *options.split(),
    )
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert listing(tmp_path) == before


def test_a_scheduler_that_does_not_answer(call, tmp_path, monkeypatch):
    monkeypatch.setattr("dseeds.cli.cluster.CONNECT_SECONDS", 1)
    save(tmp_path / "image.zarr", image())
    code, out, err = call(
        "segment", tmp_path / "image.zarr", tmp_path / "labels.zarr", "--scheduler", "tcp://127.0.0.1:1"
    )
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert "tcp://127.0.0.1:1" in err


@pytest.mark.parametrize("arguments", [["nonsense"], ["segment"], ["segment", "a"], ["info"], ["phantom", "a"]])
def test_invalid_arguments(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "--help" in err


@pytest.mark.parametrize("source", ["image.zarr", "image.nii.gz"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "target", ["somebody's", "somebody's.nii.gz", "somebody's.zarr", "more.zarr", "nowhere/labels.zarr"]
)
def test_files_of_others_are_never_touched(call, no_cluster, tmp_path, source, overwrite, target):
    save(tmp_path / source, image())
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "thesis.tex").write_text("precious")
    save(tmp_path / "somebody's.nii.gz", image())
    save(tmp_path / "somebody's.zarr", image())
    (tmp_path / "more.zarr").mkdir()
    (tmp_path / "more.zarr" / MARKER).write_text("{}")
    (tmp_path / "more.zarr" / "thesis.tex").write_text("precious")
    before = listing(tmp_path)
    code, out, err = call("segment", tmp_path / source, tmp_path / target, *overwrite)
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KilledWorker("task", None, 3), "--memory"),
        (FutureCancelledError("sweep-1", "scheduler-connection-lost"), "scheduler-connection-lost"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 3 TiB"), "3 TiB"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left on device: free some"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "permission denied (/root/x)"),
        (TimeoutError("the cluster has had no worker for 120 s."), "no worker for 120 s"),
        (ValueError("one\n  thing\tand\nanother."), "error: one thing and another\n"),
    ],
)
def test_errors_of_a_run_are_one_sentence(call, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("dseeds.api.segment.segment", fail)
    code, out, err = call("segment", "a", "b")
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert words in err
    monkeypatch.setenv(cli.errors.DEBUG, "1")
    with pytest.raises(type(error)):
        call("segment", "a", "b")


def test_expected_errors_exist():
    kinds = RegionFailed, BeyondRepair, LeaseLost, NotYet, ScratchCorrupted
    assert {kind.__name__ for kind in kinds} == cli.errors.EXPECTED


def test_a_bug_shows_its_traceback(call, monkeypatch):
    monkeypatch.setattr("dseeds.api.segment.segment", lambda *_, **__: {}["nothing"])
    with pytest.raises(KeyError):
        call("segment", "a", "b")


# Full and closed disks


@contextmanager
def mounted(folder, options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"NOT TESTED: a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("target", "scratch", "filled"),
    [
        ("labels.zarr", "disk", 900),
        ("labels.nii.gz", "disk", 900),
        ("labels.zarr", "elsewhere", 1000),
        ("labels.nii", "elsewhere", 1000),
    ],
)
def test_a_full_disk(call, cluster, tmp_path, target, scratch, filled):
    """The free space is too small from the start; disks that fill up during a run are tested with the runs."""
    (tmp_path / "elsewhere").mkdir()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "mine").write_bytes(bytes(filled << 10))
        before = listing(tmp_path)
        code, out, err = call(
            "segment",
            *(EXAMPLE, disk / target),
            *("--volume", 0, "--step", 8, "--quiet"),
            *("--scratch", tmp_path / scratch, "--scheduler", cluster.scheduler_address),
        )
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "are free: free some" in err
        assert listing(tmp_path) == before


def test_a_full_disk_under_a_phantom(call, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        code, out, err = call("phantom", disk / "body.zarr", "--shape", "128,128,128")
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "no space left on device" in err
        assert listing(disk) == {}


@pytest.mark.parametrize("arguments", [["segment", "image.zarr"], ["phantom", "--shape", "8,8,8"]])
def test_a_read_only_disk(call, no_cluster, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "image.zarr", image())
    with mounted(tmp_path / "disk", "ro") as disk:
        code, out, err = call(*arguments, disk / "new.zarr")
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert "read-only file system" in err


# Real runs


@pytest.fixture(scope="module")
def labels():
    """The labels that a real run must produce."""
    return dseeds.supervoxels(np.asarray(nibabel.load(EXAMPLE).dataobj)[..., 0].T, step=8)


def test_a_run_on_a_local_cluster(tmp_path, labels):
    target = tmp_path / "labels.nii.gz"
    arguments = ("segment", EXAMPLE, target, "--volume", 0, "--step", 8, "--workers", 1, "--memory", "1GiB")
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == str(target)
    assert report["supervoxels"] == labels.max()
    dashboard, *lines = done.stderr.splitlines()
    assert dashboard.startswith("Dask dashboard: http://127.0.0.1:")
    assert [line.split(":")[0] for line in lines] == [stage["name"] for stage in report["stages"]]
    assert all(" of " in line and "/" in line and "done in 0:0" in line for line in lines)
    assert list(tmp_path.iterdir()) == [target]
    written, source = nibabel.load(target), nibabel.load(EXAMPLE)
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, labels)
    np.testing.assert_array_equal(written.affine, source.affine)


def test_a_run_on_a_scheduler(call, cluster, tmp_path, labels):
    target = tmp_path / "labels.zarr"
    arguments = ("segment", EXAMPLE, target, "--volume", 0, "--step", 8, "--scheduler", cluster.scheduler_address)
    code, out, err = call(*arguments)
    assert code == 0, err
    assert out.startswith("576 supervoxels")
    assert "Dask dashboard" not in err
    np.testing.assert_array_equal(zarr.open_array(target / "0", mode="r")[:], labels)
    with Client(cluster) as client:
        assert len(client.nthreads()) == 1
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0

    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert "--overwrite" in err
    code, out, err = call(*arguments, "--overwrite", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == [target]

    code, out, err = call("info", target, "--json")
    assert (code, err) == (0, "")
    described = json.loads(out)
    expected = {
        "kind": "labels",
        "path": str(target),
        "format": "zarr",
        "supervoxels": 576,
        "shape": [24, 96, 128],
        "dtype": "uint32",
        "step": [8, 8, 8],
        "cells": [3, 12, 16],
        "asked": {"step": "8", "volume": 0},
    }
    assert {key: described[key] for key in expected} == expected
    assert described["spacing"] == pytest.approx([2.2, 2, 2], rel=1e-5)
    assert described["windows"][0][0] < described["windows"][0][1]
    assert described["source"]["path"] == str(EXAMPLE)
    assert described["versions"]["dseeds"] == dseeds.__version__
    assert {"chunks", "shards", "rounds"} <= set(described)
    code, out, err = call("info", target)
    assert (code, err) == (0, "")
    assert "24 x 96 x 128" in out
    assert str(EXAMPLE) in "".join(out.split())


@pytest.mark.parametrize(
    ("stop", "begun", "arguments"),
    [
        (signal.SIGINT, "quantise: ", "segment body.zarr labels.zarr --step 4 --workers 1 --region 16"),
        (signal.SIGTERM, "", "phantom large.zarr --shape 1024,1024,1024"),
    ],
)
def test_interrupted_in_the_middle(tmp_path, stop, begun, arguments):
    phantom.write_phantom(tmp_path / "body.zarr", shape=(64, 64, 64))
    before = listing(tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [SCRIPT, *arguments.split()]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as process:
        if begun:
            assert any(line.startswith(begun) for line in process.stderr)
        else:
            # Not before the array is created: zarr's pending tasks would print warnings.
            wait_for(tmp_path / "large.zarr" / "0" / "c")
        children = psutil.Process(process.pid).children(recursive=True)
        # A terminal signals every process; impatient people press Ctrl-C twice.
        os.killpg(process.pid, stop)
        os.killpg(process.pid, stop)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    lines = ["interrupted: cleaning up", "interrupted; nothing was published"]
    if begun:
        lines[1:1] = [f"resume with: dseeds segment {tmp_path}/body.zarr {tmp_path}/labels.zarr --resume"]
        assert (tmp_path / "labels.zarr.dseeds").is_dir()
        shutil.rmtree(tmp_path / "labels.zarr.dseeds")
    assert err.splitlines() == lines
    assert listing(tmp_path) == before
    assert psutil.wait_procs(children, timeout=10)[1] == []


def wait_for(path):
    end = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


# Info, phantom, evaluate


def test_phantom_and_its_description(call, tmp_path):
    target = tmp_path / "body.zarr"
    arguments = ("phantom", target, "--shape", "24,40,32", "--spacing", "2,1,1", "--dtype", "int16", "--noise", "0")
    arguments = (*arguments, "--organs", "12", "--seed", "3", "--chunk", "16", "--threads", "1")
    code, out, err = call(*arguments)
    assert (code, out) == (0, f"24 x 40 x 32 voxels (z, y, x): {target}\n")
    assert err.startswith("phantom: 1 of 1")
    made = phantom.phantom((24, 40, 32), spacing=(2, 1, 1), dtype="int16", noise=0, organs=12, seed=3)
    np.testing.assert_array_equal(zarr.open_array(target / "0", mode="r")[:], made[0])
    np.testing.assert_array_equal(zarr.open_array(target / "labels/organs/0", mode="r")[:], made[1])

    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert call(*arguments, "--overwrite", "--quiet") == (0, "", "")

    code, out, _ = call("info", target, "--json")
    assert json.loads(out) == {
        "kind": "phantom",
        "path": str(target),
        "format": "zarr",
        "shape": [24, 40, 32],
        "dtype": "int16",
        "spacing": [2.0, 1.0, 1.0],
        "chunks": [16, 16, 16],
        "shards": [32, 48, 32],
        "level": 0,
        "levels": 1,
        "translation": [0.0, 0.0, 0.0],
        "units": ["millimeter"] * 3,
        "noise": 0.0,
        "organs": 12,
        "seed": 3,
    }
    code, out, _ = call("info", target / "labels/organs", "--json")
    assert (json.loads(out)["kind"], json.loads(out)["dtype"]) == ("image", "uint8")


@pytest.mark.parametrize(
    "options", ["--shape 0,8,8", "--shape 8,8", "--shape big", "--shape 8,8,8 --dtype bool", "--shape 8,8,8 --noise -1"]
)
def test_an_impossible_phantom(call, tmp_path, options):
    code, out, err = call("phantom", tmp_path / "body.zarr", *options.split())
    assert (code in (1, 2), out) == (True, "")
    assert_one_sentence(err)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("marker", [MARKER, phantom.PHANTOM_MARKER])
def test_info_on_unfinished_output(call, tmp_path, marker):
    (tmp_path / marker).write_text("{}")
    code, out, err = call("info", tmp_path)
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    assert "unfinished" in err


@pytest.mark.parametrize("name", SOURCES)
def test_info_on_invalid_images(call, tmp_path, name):
    SOURCES[name](tmp_path / name)
    code, out, err = call("info", tmp_path / name)
    assert (code, out) == (1, "")
    assert_one_sentence(err)


def test_info_on_nifti(call, tmp_path):
    code, out, _ = call("info", EXAMPLE, "--volume", 1, "--json")
    assert code == 0
    assert {key: json.loads(out)[key] for key in ("kind", "format", "shape", "dtype")} == {
        "kind": "image",
        "format": "nifti",
        "shape": [24, 96, 128],
        "dtype": "int16",
    }


def test_evaluate(call, tmp_path):
    picture, truth = phantom.phantom((24, 40, 32), noise=5)
    labels = dseeds.supervoxels(picture, step=8)
    names = [tmp_path / name for name in ("labels.zarr", "truth.nii.gz", "image.zarr")]
    for name, data in zip(names, (labels, truth, picture), strict=True):
        save(name, data)
    options = "--image", names[2], "--tolerance", "2mm", "--chunks", "16", "--step", "8", "--spacing", "1,1,1"
    code, out, err = call("evaluate", *names[:2], *options, "--region", "20,16,32", "--json")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["range", "measure", "count"]
    expected = dseeds.evaluate(labels, truth, image=picture, tolerance="2mm", chunks=16, step=8, spacing=(1, 1, 1))
    assert json.loads(out) == json.loads(json.dumps(expected))
    code, out, err = call("evaluate", *names[:2], "--chunks", "16", "--quiet")
    assert (code, out, err) == (0, "", "")
    code, out, err = call("evaluate", *names[:2], "--chunks", "16")
    assert code == 0
    assert all(figure in out for figure in ("undersegmentation error", "seam excess of axis z", "dice of structure 3"))
    assert "explained variation" not in out
    code, out, err = call("evaluate", names[0], "--tolerance", "2mm")
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    save(tmp_path / "small.zarr", truth[1:])
    code, out, err = call("evaluate", names[0], tmp_path / "small.zarr")
    assert (code, out) == (1, "")
    assert_one_sentence(err)


# Progress


def follow(display, stage="sweep", total=4):
    with display.bars:
        display.begin(stage, total)
        for _ in range(total):
            display.advance(stage)
        display.end(stage)


def test_bars_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    follow(terminal_progress.TerminalProgress(console))
    shown = console.file.getvalue()
    assert all(part in shown for part in ("sweep", "━", "4/4", "done in 0:00:00"))


@pytest.mark.parametrize(("seconds", "lines"), [(60, 1), (-1, 5)])
def test_lines_without_a_terminal(monkeypatch, seconds, lines):
    monkeypatch.setattr(terminal_progress, "LINE_SECONDS", seconds)
    console = Console(file=io.StringIO(), width=20)
    follow(terminal_progress.TerminalProgress(console))
    shown = console.file.getvalue().splitlines()
    assert len(shown) == lines
    assert shown[-1].startswith("sweep: 4 of 4, ")
    assert shown[-1].endswith("done in 0:00:00")
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("completed", "seconds", "rate", "left"),
    [
        (0, 5, "", ""),
        (50, 10, "5.0/s", "0:00:10 left"),
        (5, 100, "3.0/min", "0:31:40 left"),
        (1, 360, "10.0/h", "9:54:00 left"),
    ],
)
def test_rates_are_readable(completed, seconds, rate, left):
    clock = iter([0.0, seconds])
    bars = terminal_progress.Bars(get_time=lambda: next(clock, seconds), disable=True)
    bars.add_task("sweep", total=100)
    (task,) = bars.tasks
    task.completed = completed
    assert (terminal_progress.describe_rate(task), terminal_progress.describe_time_left(task)) == (rate, left)
