"""Volumes that fit in memory are cut in this process: the same target as out of core, and nothing left by a crash."""

import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import dseeds
from dseeds import segment
from dseeds.core.geometry import Lattice
from dseeds.engine import in_process
from dseeds.engine.in_process_model import needed_bytes, peak_bytes
from dseeds.engine.memory_model import TaskShape
from dseeds.engine.run import RunOptions
from dseeds.engine.validation import prepare_run
from dseeds.parallel.capacity import Capacity
from tests.support.paths import ROOT
from tests.support.runs import FEW, GOOD, Recorder, labels_in, names_in, noise, sizes, snapshot, voxels, when
from tests.support.sources import make_zarr

GIB = 1 << 30
ALL_OPTIONS = {"step": 6, "levels": 2, "min_size": 30, "features": True, "region": 13, "mask": "auto"}


@st.composite
def runs(draw):
    """Draw a volume, how it is stored, and any of the options that the labels or their layout depend on."""
    shape = draw(st.tuples(*[st.integers(1, draw(st.sampled_from([12, 30, 45])))] * 3))
    image, window = draw(voxels(shape))
    options = {**draw(sizes(shape)), "window": window}
    options |= {
        "percentiles": None if window else draw(st.sampled_from([None, (0, 100), (2, 90.5), "5,99.99"])),
        "mask": draw(st.sampled_from([None, None, "auto", *MASKS])),
        "bins": draw(st.sampled_from(["auto", "linear", "equalised"])),
        "compactness": draw(st.sampled_from([0, 0, 1.5])),
        "min_size": draw(st.sampled_from([0, 0, 20])),
        "levels": draw(st.sampled_from([0, 0, 2])),
        "pyramid": draw(st.sampled_from(["mode", "nearest", "none"])),
        "features": draw(st.booleans()),
        "region": draw(st.sampled_from([None, 13, 24])),
    }
    step = options.get("step")
    if step and draw(st.booleans()):
        shard = np.multiply(step, draw(st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 2, 3)])))
        options |= {"shards": shard.tolist(), "chunks": draw(st.sampled_from([None, step]))}
        options["region"] = draw(st.sampled_from([None, (2 * shard).tolist()]))
    stored = draw(st.sampled_from(["array", "channels", "levels", "nifti"]))
    if stored == "channels":
        image = np.stack([image, image[::-1]])
        options |= {"channel_axis": 0, "weights": (1, 2), "window": None}
    if stored == "levels":
        options["level"] = draw(st.sampled_from([0, 1, 1]))
    return image, stored, options, draw(st.integers(1, 4))


def save_levels(path, image):
    """Save an image as the second of three levels of OME-Zarr."""
    group, datasets = zarr.create_group(path), []
    finer = image.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    for level, values in enumerate((finer, image, image[::2, ::2, ::2])):
        group.create_array(str(level), data=np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
        scale = [{"type": "scale", "scale": [2.0**level] * 3}]
        datasets.append({"path": str(level), "coordinateTransformations": scale})
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return path


def save_nifti(path, values):
    values = np.asarray(values, order="C").T
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 0.75, 3.25, 1]), dtype=values.dtype), path)
    return path


# Masks in memory and in files: one that workers can read, and one that they cannot, of floats with NaN.
MASKS = {
    "in memory": lambda folder, inside: inside,
    "coarse": lambda folder, inside: make_zarr(folder / "mask.zarr", inside[::2, ::2, ::2].astype("u1")),
    "nifti": lambda folder, inside: save_nifti(folder / "mask.nii.gz", np.where(inside, 2.5, np.nan)),
}


def stored_as(kind, folder, image):
    """Return a source of an image, which is stored in a folder unless it is an array."""
    if kind == "levels":
        return save_levels(folder / "image.zarr", image)
    # NIfTI has no half floats.
    if kind == "nifti" and image.dtype != np.float16:
        return save_nifti(folder / "image.nii.gz", image)
    return image


@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example((noise((30, 40, 35)), "array", ALL_OPTIONS, 3))
@example((noise((20, 23, 26)), "levels", {**ALL_OPTIONS, "level": 1, "mask": "coarse", "shards": 12, "chunks": 4}, 2))
@example((noise((20, 23, 26)), "nifti", {**ALL_OPTIONS, "mask": "nifti", "percentiles": (2, 90.5)}, 1))
@given(runs())
def test_every_byte_is_that_of_a_run_on_dask(clients, run):
    image, kind, options, threads = run
    with TemporaryDirectory() as name, patch.object(in_process, "cpu_count", lambda: threads):
        folder = Path(name)
        source = stored_as(kind, folder, image)
        inside = noise(np.shape(image)[-3:], seed=5) > -60
        if options["mask"] in MASKS:
            options = {**options, "mask": MASKS[options["mask"]](folder, inside)}
        outcomes = []
        for engine, who in (("dask", {"client": clients[4]}), ("here", {})):
            (folder / engine).mkdir()
            try:
                report = segment(source, folder / engine / "labels.zarr", **options, **who)
            except ValueError as error:
                outcomes.append((str(error), names_in(folder / engine)))
                continue
            assert (report.workers == 0) == (engine == "here")
            outcomes.append(contents(folder / engine))
        assert outcomes[0] == outcomes[1]


def contents(folder):
    """Return the bytes of all files in a folder, without the plan and the report of the run."""
    files = snapshot(Path(folder))
    attributes = json.loads(files.pop("labels.zarr/zarr.json"))
    for record in ("plan", "report"):
        del attributes["attributes"]["dseeds"][record]
    return {**files, "labels.zarr/zarr.json": attributes}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(client, tmp_path, ending):
    affine = np.array([[0.5, 0.1, 0, 9], [0, 0.7, 0, -8], [0.2, 0, 3, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(GOOD.T, affine), tmp_path / "a.nii.gz")
    for name, who in (("dask", {"client": client}), ("here", {})):
        segment(tmp_path / "a.nii.gz", tmp_path / f"{name}{ending}", step=4, **who)
    dask, here = (nibabel.load(tmp_path / f"{name}{ending}") for name in ("dask", "here"))
    assert here.header == dask.header
    np.testing.assert_array_equal(np.asarray(here.dataobj), np.asarray(dask.dataobj))
    assert names_in(tmp_path) == ["a.nii.gz", f"dask{ending}", f"here{ending}"]


def test_who_asks_for_workers_gets_them(client, tmp_path):
    reports = [
        segment(GOOD, tmp_path / f"{number}.zarr", step=4, **options)
        for number, options in enumerate(({}, {"client": client}, {"memory": "1GiB"}, {"keep_scratch": True}))
    ]
    assert [report.workers > 0 for report in reports[:2]] == [False, True]
    assert reports[2].workers == 0
    assert reports[3].workers > 0
    plans = [dseeds.plan(GOOD, tmp_path / "plan.zarr", calibrate=False, **o) for o in ({}, {"workers": 1})]
    assert [plan.workers for plan in plans] == [0, 1]
    assert "this one" in str(plans[0])


def test_progress_and_report(tmp_path):
    progress = Recorder()
    report = segment(GOOD, tmp_path / "labels.zarr", levels=1, progress=progress, **FEW)
    assert [stage.name for stage in report.stages] == ["read", "cut", "write"]
    for stage in report.stages:
        own = [(event, number) for event, name, number in progress.events if name == stage.name]
        advances = [("advance", number) for number in range(1, stage.tasks + 1)]
        assert own == [("begin", stage.tasks), *advances, ("end", None)]
    plan = dseeds.plan(GOOD, tmp_path / "other.zarr", levels=1, calibrate=False, **FEW)
    assert [(s.name, s.tasks, s.read, s.written) for s in plan.stages] == [
        (s.name, s.tasks, s.read, s.written) for s in report.stages
    ]
    assert "in this process" in str(report)


@pytest.mark.parametrize(("stage", "number"), [("read", 1), ("cut", 3), ("write", 1)])
@pytest.mark.parametrize("older", [False, True])
def test_a_failure_leaves_the_target_as_it_was(tmp_path, stage, number, older):
    target = tmp_path / "labels.zarr"
    if older:
        segment(GOOD, target, step=6)
    before = snapshot(tmp_path)

    def fail():
        raise KeyboardInterrupt

    progress = when("advance", stage, number, fail)
    with pytest.raises(KeyboardInterrupt):
        segment(GOOD, target, overwrite=older, progress=progress, **FEW)
    assert progress.happened
    assert snapshot(tmp_path) == before
    segment(GOOD, target, overwrite=older, **FEW)
    np.testing.assert_array_equal(labels_in(target), dseeds.supervoxels(GOOD, step=4))


KILLED = """
import os, signal, sys
import numpy as np
import dseeds
from tests.support.runs import FEW, GOOD, when

stage, number, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kill = when("advance", stage, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
dseeds.segment(GOOD, target, overwrite=True, progress=kill, **FEW)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "number"), [("cut", 2), ("write", 1)])
def test_a_kill_leaves_the_target_as_it_was(tmp_path, environment, stage, number):
    target = tmp_path / "labels.zarr"
    segment(GOOD, target, step=6)
    before = snapshot(target)
    command = [sys.executable, "-c", KILLED, stage, str(number), str(target)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert snapshot(target) == before
    # Begun anew, without a word about the one before.
    segment(GOOD, target, overwrite=True, **FEW)
    np.testing.assert_array_equal(labels_in(target), dseeds.supervoxels(GOOD, step=4))
    assert names_in(tmp_path) == ["labels.zarr"]


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
import dseeds
from tests.support.runs import FEW, GOOD

rename = Path.rename

def kill_at_second(path, target):
    if str(target) == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

Path.rename = kill_at_second
dseeds.segment(GOOD, sys.argv[1], overwrite=True, **FEW)
"""


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["dask", "here"])
def test_a_kill_while_the_target_is_replaced(tmp_path, environment, clients, engine):
    """The next run moves the older labels back, and replaces them only if it is asked to, and when it is done."""
    target, who = tmp_path / "labels.zarr", {"client": clients[1]} if engine == "dask" else {}
    segment(GOOD, target, step=6)
    before = snapshot(target)

    def kill():
        command = [sys.executable, "-c", KILLED_BETWEEN, str(target)]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert names_in(tmp_path) == ["labels.zarr.dseeds"]

    kill()
    with pytest.raises(FileExistsError, match="exists"):
        segment(GOOD, target, **FEW, **who)
    assert snapshot(target) == before
    kill()

    def stop(*event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(GOOD, target, overwrite=True, progress=Recorder(stop), **FEW, **who)
    assert snapshot(target) == before
    kill()
    segment(GOOD, target, overwrite=True, **FEW, **who)
    np.testing.assert_array_equal(labels_in(target), dseeds.supervoxels(GOOD, step=4))
    assert names_in(tmp_path) == ["labels.zarr"]


def test_two_runs_with_one_target(tmp_path):
    """The second is refused while the first works, whichever engine it would take."""
    refused = []

    def another():
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FileExistsError, match="at work on"):
                segment(GOOD, tmp_path / "labels.zarr", **FEW, **options)
            refused.append(options)

    segment(GOOD, tmp_path / "labels.zarr", progress=when("advance", "cut", 1, another), **FEW)
    assert len(refused) == 3
    assert names_in(tmp_path) == ["labels.zarr"]


def test_an_unfinished_run_on_dask_is_resumed_on_dask(client, tmp_path):
    target = tmp_path / "labels.zarr"

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(GOOD, target, client=client, progress=when("advance", "sweep-blocks", 2, fail), **FEW)
    with pytest.raises(FileExistsError, match="unfinished run"):
        segment(GOOD, target, **FEW)
    report = segment(GOOD, target, client=client, resume=True, **FEW)
    assert report.resumed
    np.testing.assert_array_equal(labels_in(target), dseeds.supervoxels(GOOD, step=4))
    # With nothing to resume, a run begins.
    assert segment(GOOD, tmp_path / "other.zarr", resume=True, **FEW).workers == 0


def test_into_an_image(client, tmp_path):
    (tmp_path / "image").mkdir()
    dseeds.import_volume(GOOD, tmp_path / "image" / "a.zarr", spacing=(2, 1, 1))
    for name, who in (("dask", {"client": client}), ("here", {})):
        shutil.copytree(tmp_path / "image", tmp_path / name)
        segment(tmp_path / name / "a.zarr", into_image=True, step=4, **who)
    dask, here = (snapshot(tmp_path / name) for name in ("dask", "here"))
    assert {path for path in dask if dask[path] != here[path]} == {"a.zarr/labels/supervoxels/zarr.json"}
    assert dask.keys() == here.keys()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    image = zarr.create_array(tmp_path / "image.zarr", data=GOOD)

    def change():
        image[:] = 0

    with pytest.raises(ValueError, match="changed after the run started"):
        segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", progress=when("advance", "cut", 1, change), **FEW)
    assert names_in(tmp_path) == ["image.zarr"]


# Shape, dtype, how the image is stored, how a mask of floats is stored if there is one, and options.
WHOLE = {"chunks": "whole"}
SHARDED = {"chunks": (32, 32, 32), "shards": "whole"}
PROJECTED = [
    ((96, 100, 110), "uint16", {}, None, {"step": 8}),
    ((96, 100, 110), "float32", {}, None, {"step": 16, "mask": "auto", "bins": "equalised"}),
    ((96, 96, 96), "uint8", {}, None, {"step": 4}),
    ((64, 64, 64), "uint8", {}, None, {"step": 2}),
    ((96, 96, 96), "int16", {}, None, {"step": 8, "min_size": 50, "levels": 2}),
    ((3, 64, 64, 96), "int16", {}, None, {"step": 8, "channel_axis": 0}),
    ((96, 96, 96), "float64", WHOLE, None, {"step": 16}),
    ((96, 96, 96), ">f8", SHARDED, None, {"step": 16}),
    ((96, 96, 96), "uint8", "nifti", None, {"step": 16}),
    ((96, 96, 96), "uint8", WHOLE, WHOLE, {"step": 16}),
    ((96, 96, 96), "uint8", WHOLE, "nifti", {"step": 16}),
    ((96, 96, 96), "uint16", WHOLE, None, {"step": 16, "features": True}),
    ((64, 96, 96), "uint16", SHARDED, None, {"step": 8, "features": True, "min_size": 20}),
    ((280, 64, 64), "uint8", {}, None, {"step": 8, "levels": 1}),
]


def stored_values(path, values, how):
    """Store values as Zarr or NIfTI, and return what opens them."""
    if how == "nifti":
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), f"{path}.nii.gz")
        return f"{path}.nii.gz"
    cut = {key: values.shape if cut == "whole" else cut for key, cut in how.items()}
    return zarr.create_array(f"{path}.zarr", data=values, **cut)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype", "how", "mask", "options"), PROJECTED)
def test_a_run_needs_what_was_projected(tmp_path, shape, dtype, how, mask, options):
    image = (60 + 10 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    source = stored_values(tmp_path / "image", image, how)
    if mask is not None:
        options = {**options, "mask": stored_values(tmp_path / "mask", np.ones(shape), mask)}
    del image

    def run(name):
        capacity = Capacity(1, 1, 64 * GIB, 1)
        return prepare_run(source, tmp_path / name, RunOptions(**options), lambda: capacity)[0]

    # Once without a look at the memory, which compiling takes too.
    in_process.run_in_process(run("first.zarr"), threads=2)
    again = run("again.zarr")
    tracemalloc.start()
    try:
        in_process.run_in_process(again, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    needed = needed_bytes(again, 2)
    assert 0.3 * needed < peak < needed + (4 << 20), (peak, needed)


RESIDENT = """
import sys
import psutil
from dseeds.core.process import peak_memory
from dseeds.engine import in_process
from dseeds.engine.in_process_model import needed_bytes
from dseeds.engine.run import RunOptions
from dseeds.engine.validation import prepare_run
from dseeds.parallel.capacity import Capacity

def run(source, target):
    options = RunOptions(step=16, features=True, mask=source.replace("image", "mask"))
    run, _ = prepare_run(source, target, options, lambda: Capacity(1, 1, 1 << 36, 1))
    in_process.run_in_process(run, threads=2)
    return run

run(sys.argv[1], "small.zarr")
before = psutil.Process().memory_info().rss
needed = needed_bytes(run(sys.argv[2], "large.zarr"), 2)
print(peak_memory() - before, needed)
"""


@pytest.mark.slow
def test_the_memory_of_the_process_grows_by_what_was_projected(tmp_path, environment):
    """As the system counts it, with what compressors and Arrow take."""
    for name, shape in (("small", (24, 24, 24)), ("large", (192, 192, 192))):
        image = (60 + 10 * np.random.default_rng(0).normal(size=shape)).astype("uint16")
        stored_values(tmp_path / f"{name}-image", image, WHOLE)
        stored_values(tmp_path / f"{name}-mask", np.ones(shape, np.float32), WHOLE)
    command = [sys.executable, "-c", RESIDENT, "small-image.zarr", "large-image.zarr"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=300)
    peak, needed = map(int, process.stdout.split())
    # The allocator keeps what it has freed, and Arrow has memory of its own.
    assert 0.5 * needed < peak < 1.3 * needed + (64 << 20), (peak, needed)


@given(st.integers(1, 3), st.booleans(), st.booleans())
def test_more_options_need_no_less_memory(channels, masked, has_joins):
    lattice = Lattice((64, 64, 64), (8, 8, 8))
    least = peak_bytes(lattice, TaskShape(2, 1), 2)
    assert peak_bytes(lattice, TaskShape(2 * channels, channels, masked=masked, has_joins=has_joins), 2) >= least
