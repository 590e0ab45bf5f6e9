"""The command line as people and scripts use it: its output, its exit codes, and the files it leaves behind."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

import dseeds
import dseeds.api.segment as api_segment
from dseeds import cli
from dseeds.engine.batch import NotYet
from dseeds.engine.repair import BeyondRepair, RegionFailed
from dseeds.storage.lease import LeaseLost
from dseeds.storage.ownership import MARKER
from dseeds.storage.zarr_arrays import ScratchCorrupted
from tests.support.broken_files import SOURCES, bad_checksum, broken_nifti, broken_zarr
from tests.support.commands import REPORT, SCRIPT, assert_one_sentence, image, listing, save

HEAVY = ("numba", "zarr", "dask", "distributed", "nibabel", "pyarrow")


@pytest.mark.parametrize("command", [[SCRIPT], [sys.executable, "-m", "dseeds"]])
def test_version(command):
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dseeds {dseeds.__version__}\n", "")


def test_help_imports_no_heavy_packages():
    code = f"import sys, dseeds.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
        == "[]\n"
    )


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


@pytest.mark.dask
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


@pytest.mark.dask
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
    monkeypatch.setattr("dseeds.parallel.clients.CONNECT_SECONDS", 1)
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

    monkeypatch.setattr(api_segment, "segment", fail)
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
    monkeypatch.setattr(api_segment, "segment", lambda *_, **__: {}["nothing"])
    with pytest.raises(KeyError):
        call("segment", "a", "b")
