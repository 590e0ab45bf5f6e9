"""Commands that run: segment, phantom, info and evaluate, with their output and exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from io import BytesIO, TextIOWrapper

import nibabel
import numpy as np
import psutil
import pytest
import tifffile
import zarr
from distributed import Client

import dseeds
from dseeds import phantom
from dseeds.cli import main
from dseeds.storage.ownership import MARKER
from tests.support.broken_files import SOURCES
from tests.support.commands import EXAMPLE, SCRIPT, assert_one_sentence, image, listing, run, save
from tests.support.runs import assert_no_image


@pytest.fixture(scope="module")
def labels():
    """The labels that a real run must produce."""
    return dseeds.supervoxels(np.asarray(nibabel.load(EXAMPLE).dataobj)[..., 0].T, step=8)


@pytest.mark.dask
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


@pytest.mark.dask
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


@pytest.mark.dask
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
        # Regions write their labels without waiting for all others.
        assert_no_image(tmp_path / "labels.zarr")
        shutil.rmtree(tmp_path / "labels.zarr", ignore_errors=True)
    assert err.splitlines() == lines
    assert listing(tmp_path) == before
    assert psutil.wait_procs(children, timeout=10)[1] == []


def wait_for(path):
    end = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


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
    if name in ("four.zarr", "five.zarr"):
        # Volumes to choose from are described.
        assert (code, err) == (0, "")
        return
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


@pytest.mark.parametrize("name", ["1", "cells"])
def test_one_of_several_images(call, tmp_path, name):
    """Every command takes an image of a file with several as FILE:1, and those that read one image have --image."""
    file, labels = tmp_path / "a.ome.tif", tmp_path / "labels.zarr"
    picture = np.random.default_rng(0).integers(0, 255, (9, 16, 20)).astype("u1")
    with tifffile.TiffWriter(file, ome=True) as writer:
        writer.write(picture[:5, 2:], photometric="minisblack", metadata={"axes": "ZYX"})
        writer.write(picture, photometric="minisblack", metadata={"axes": "ZYX", "Name": "cells"})
    for command, rest in [
        ("info", ["--json"]),
        ("plan", [labels, "--step", "4", "--json", "--no-calibrate"]),
        ("segment", [labels, "--step", "4", "--json"]),
        ("import", [tmp_path / "copy.zarr", "--json"]),
        ("export", [tmp_path / "copy.nii", "--json"]),
    ]:
        code, out, err = call(command, file, *rest)
        assert (code, out) == (1, "")
        assert_one_sentence(err)
        assert f"pass {file}:0" in err
        for address, option in ((f"{file}:{name}", []), (file, ["--image", name])):
            code, out, err = call(command, address, *rest, *option, *(["--overwrite"] * (command not in ("info",))))
            assert code == 0, err
            assert json.loads(out)["shape"] == [9, 16, 20]
    for command, rest, own in [
        ("features", ["-o", tmp_path / "features", "--overwrite"], True),
        ("preview", ["-o", tmp_path / "a.png", "--overwrite"], True),
        ("evaluate", [], False),
        ("report", ["-o", tmp_path / "a.html", "--overwrite"], False),
    ]:
        positional = [] if own else ["--image"]
        code, _, err = call(command, labels, *positional, f"{file}:{name}", *rest)
        assert code == 0, err
        if own:
            code, _, err = call(command, labels, file, "--image", name, *rest)
            assert code == 0, err
    code, out, err = call("segment", f"{file}:{name}", "--into", tmp_path / "many", "--step", "4", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["target"] == str(tmp_path / f"many/a_{name}.zarr")


def test_evaluate(call, tmp_path):
    picture, truth = phantom.phantom((24, 40, 32), noise=5)
    labels = dseeds.supervoxels(picture, step=8)
    names = [tmp_path / name for name in ("labels.zarr", "truth.nii.gz", "image.zarr")]
    for name, data in zip(names, (labels, truth, picture), strict=True):
        save(name, data)
    options = "--image", names[2], "--tolerance", "2mm", "--chunks", "16", "--step", "8", "--spacing", "1,1,1"
    code, out, err = call("evaluate", *names[:2], *options, "--region", "20,16,32", "--json")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["range", "measure", "count", "seams"]
    expected = dseeds.evaluate(labels, truth, image=picture, tolerance="2mm", chunks=16, step=8, spacing=(1, 1, 1))
    assert json.loads(out) == json.loads(json.dumps(expected))
    code, out, err = call("evaluate", *names[:2], "--chunks", "16", "--quiet")
    assert (code, out, err) == (0, "", "")
    code, out, err = call("evaluate", *names[:2], "--chunks", "16")
    assert code == 0
    assert all(figure in out for figure in ("undersegmentation error", "seam excess of axis z", "dice of structure 3"))
    assert "explained variation" not in out
    assert re.search(rf"seam at [zyx] = (16|32|48), excess .*: dseeds preview {names[0]} --at \d+,\d+,\d+\n", out)
    code, out, err = call("evaluate", names[0], "--tolerance", "2mm")
    assert (code, out) == (1, "")
    assert_one_sentence(err)
    save(tmp_path / "small.zarr", truth[1:])
    code, out, err = call("evaluate", names[0], tmp_path / "small.zarr")
    assert (code, out) == (1, "")
    assert_one_sentence(err)


def test_tokens(call, tmp_path):
    labels, image = np.zeros((4, 6, 8), np.int32), np.arange(192.0).reshape(4, 6, 8)
    labels[1:3, 2:5, 1:7] = 3
    paths = [tmp_path / f"{name}.npy" for name in ("labels", "image")]
    for path, values in zip(paths, (labels, image), strict=True):
        np.save(path, values)
    assert call("features", paths[0], "-o", tmp_path / "features", "-q")[0] == 0
    command = ["tokens", paths[0], tmp_path / "features", tmp_path / "tokens.zarr", paths[1]]
    code, out, _ = call(*command, "--shape", "2,3,6", "--json")
    assert (code, json.loads(out)["shape"]) == (0, [1, 1, 2, 3, 6])
    values = zarr.open_group(tmp_path / "tokens.zarr", mode="r")["values"][0, 0]
    np.testing.assert_array_equal(values, image[1:3, 2:5, 1:7])
    code, _, err = call(*command, "--shape", "0", "--overwrite")
    assert code == 1
    assert "shape must be a whole number of voxels from 1" in err


def test_names_that_the_terminal_cannot_encode(tmp_path, monkeypatch):
    """Every command ends well where names have letters that the output has not."""
    folder = tmp_path / "Schädel-脳"
    folder.mkdir()
    source, labels = save(folder / "bild-ü.nii.gz", image((12, 12, 12))), folder / "étiquettes.zarr"
    commands = [
        ("phantom", folder / "körper.zarr", "--shape", "16,16,16"),
        ("info", source),
        ("plan", source, labels, "--step", 4),
        ("segment", source, labels, "--step", 4),
        ("segment", source, "--into", folder / "众", "--step", 4),
        ("features", labels, source),
        ("evaluate", labels),
        ("preview", labels, source, "-o", folder / "ñ.png"),
        ("report", labels, "-o", folder / "ñ.html"),
        ("map", labels, folder / "étiquettes.features", folder / "wert-ß.zarr", "--column", "num_pixels"),
        ("agglomerate", folder / "étiquettes.features", folder / "ast-ä.parquet", "--n-segments", 2),
        ("vote", labels, labels, "-o", folder / "wahl-ß"),
        ("propagate", folder / "étiquettes.features", folder / "wahl-ß", folder / "класс.parquet"),
        ("export", labels, folder / "ø.npy"),
        ("import", source, folder / "å.zarr"),
        ("init", source, folder / "stück.zarr", "--step", 4),
        ("status", folder / "stück.zarr"),
        ("info", folder / "nowhere-ж.nii"),
    ]
    for command in commands:
        out, err = (TextIOWrapper(BytesIO(), encoding="ascii") for _ in range(2))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        code = main(list(map(str, command)))
        for stream in (out, err):
            stream.flush()
        text = (out.buffer.getvalue() + err.buffer.getvalue()).decode("ascii")
        assert code == (1 if "nowhere" in str(command[1]) else 0), (command, text)
        assert out.errors == err.errors == "strict"
    assert "\\u0436" in text


def test_a_locale_without_names(tmp_path):
    target = tmp_path / "étiquettes.zarr"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    done = run("segment", save(tmp_path / "bild-ü.nii", image((12, 12, 12))), target, "--step", 4, env=environment)
    assert done.returncode == 0, done.stderr
    assert "27 supervoxels" in done.stdout
    assert (target / "zarr.json").exists()
