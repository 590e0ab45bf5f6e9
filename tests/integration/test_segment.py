"""The out-of-core run: one answer however the volume is cut, from any source, and nothing left behind when it fails."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import dask
import nibabel
import numpy as np
import psutil
import pytest
import skimage.measure
import zarr
from dask.utils import key_split
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nibabel.testing import data_path

import dseeds
from dseeds import segment, supervoxels
from dseeds.core.geometry import Lattice
from dseeds.engine.dask_runner import IN_FLIGHT, RegionFailed, StageRunner
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.memory_model import TaskShape, task_bytes, worker_bytes
from dseeds.engine.phases import LABEL
from dseeds.engine.run import SUFFIX
from dseeds.engine.run_directory import RunMismatch
from dseeds.engine.tasks import perform_task
from dseeds.parallel import cluster
from dseeds.phantom import write_phantom
from dseeds.seeds.cell_size import choose_step
from dseeds.seeds.schedule import may_rest, schedule
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.zarr_arrays import Layout
from tests.support import oracle
from tests.support.paths import DATA
from tests.support.runs import (
    GOOD,
    Recorder,
    as_zarr,
    assert_no_image,
    assert_sentence,
    cuts,
    folder,
    in_process,
    interrupt,
    labels_in,
    mostly_constant,
    names_in,
    noise,
    sizes,
    snapshot,
    text,
    voxels,
    when,
)

STAGES = (
    "import",
    "mask",
    "window",
    "histogram",
    "quantise",
    "sweep-blocks",
    "sweep-voxels",
    "merge",
    "parts",
    "number",
    "graph",
    "label",
    "export",
)


@pytest.fixture(scope="module")
def clients():
    """In-process clusters of 1 and of 2 x 2 threads."""
    with in_process(1, 1) as one, in_process(2, 2) as four:
        yield {1: one, 4: four}


@pytest.fixture
def client(clients):
    return clients[4]


# Two regions, and few rounds.
FEW = {"step": 4, "region": (12, 14, 20)}


# One answer.


@st.composite
def runs(draw):
    longest = draw(st.sampled_from([3, 12, 25, 25, 50, 80]))
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    size = draw(sizes(shape))
    region = draw(st.none() | cuts(Lattice(shape, choose_step(shape, **size))))
    image, window = draw(voxels(shape))
    return image, {**size, "window": window}, region


LARGEST = noise((80, 80, 80), dtype="uint16")


@pytest.mark.slow
@settings(max_examples=18, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example((LARGEST, {"step": (16, 9, 12)}, (32, 28, 50)), "array", 4)
@given(runs(), st.sampled_from(["array", "array", 16, 61]), st.sampled_from([1, 4]))
def test_any_cut_gives_the_labels_of_the_whole(clients, run, stored, threads):
    image, asked, region = run
    expected = supervoxels(image, **asked)
    progress = Recorder()
    with TemporaryDirectory() as folder:
        source = image if stored == "array" else as_zarr(f"{folder}/image.zarr", image, stored)
        report = segment(
            source, f"{folder}/labels.zarr", region=region, client=clients[threads], progress=progress, **asked
        )
        np.testing.assert_array_equal(labels_in(report.target), expected)
        assert set(names_in(folder)) <= {"labels.zarr", "image.zarr"}
    assert report.supervoxels == expected.max()
    if not np.isnan(image.astype(float)).any():
        assert report.supervoxels == prod(report.cells)
    if region is not None:
        cells = [-(-e // s) for e, s in zip(region, report.step, strict=True)]
        assert report.regions == prod(-(-n // k) for n, k in zip(report.cells, cells, strict=True))
    assert_told_in_order(progress.told, report)


@pytest.mark.slow
@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mostly_constant(), st.sampled_from([8, 12, (5, 40, 9)]))
def test_regions_that_rest_are_left_out_and_no_label_changes(clients, tmp_path_factory, case, region):
    image, asked = case
    target = tmp_path_factory.mktemp("rest") / "labels.zarr"
    progress = Recorder()
    report = segment(image, target, region=region, client=clients[1], progress=progress, **asked)
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, **asked))
    assert_told_in_order(progress.told, report)


def test_a_background_rests(clients, tmp_path, monkeypatch):
    """At one end something moves: elsewhere every round that may be left out is, and labels are right."""
    image = np.zeros((16, 16, 160))
    image[:, :, :12] = np.random.default_rng(0).normal(3, 1, (16, 16, 12))
    swept = []
    run = StageRunner.run

    def counted(self, phase, numbers, *args, **options):
        if phase.stage.startswith("sweep"):
            swept.append((phase.turn, len(numbers)))
        run(self, phase, numbers, *args, **options)

    monkeypatch.setattr(StageRunner, "run", counted)
    report = segment(image, tmp_path / "labels.zarr", step=8, region=16, window=(0, 6), client=clients[1])
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(image, step=8, window=(0, 6)))
    rounds = schedule(Lattice(image.shape, (8, 8, 8)))
    assert [turn for turn, count in swept if count < report.regions] == [
        turn for turn in range(len(rounds)) if may_rest(rounds, turn)
    ]
    assert min(count for _, count in swept) < report.regions // 2


def assert_told_in_order(told, report):
    """Every stage begins once with its number of tasks, advances so often, and ends once."""
    for stage in report.stages:
        events = [(event, number) for event, name, number in told if name == stage.name]
        total = stage.tasks + stage.skipped
        advances = [("advance", number) for number in range(1, total + 1)]
        assert events == [("begin", total), *advances, ("end", None)]
    assert {name for _, name, _ in told} == {stage.name for stage in report.stages} <= set(STAGES)
    if report.rounds:
        sweeps = sum(stage.tasks + stage.skipped for stage in report.stages if stage.name.startswith("sweep"))
        assert sweeps == report.rounds * report.regions


@pytest.fixture(scope="module")
def ct():
    """The abdominal CT as it is, shape (112, 101, 122), with its labels at step 8."""
    path = DATA / "ct_3mm" / "ct.nii.gz"
    if not path.is_file():
        pytest.skip(f"the real volume {path} is missing; set DSEEDS_DATA to the folder with ct_3mm/")
    image = np.asarray(nibabel.load(path).dataobj).T
    assert image.shape == (112, 101, 122)
    return path, image, supervoxels(image, step=8, window=(-150, 250))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "region", "regions"),
    [
        ("zarr", 64, 8),
        ("nifti", (50, 37, 61), 12),
        ("zarr", (16, 500, 500), 7),
        ("zarr", (100, 60, 33), 12),
        ("nifti", (112, 101, 122), 1),
        ("zarr", 1000, 1),
        ("zarr", (300, 101, 33), 3),
        ("nifti", None, None),
    ],
)
def test_a_real_volume_gets_the_labels_of_the_whole(tmp_path, client, ct, kind, region, regions):
    path, image, expected = ct
    source = path if kind == "nifti" else as_zarr(tmp_path / "ct.zarr", image, 48)
    report = segment(source, tmp_path / "labels.zarr", step=8, window=(-150, 250), region=region, client=client)
    assert regions in (None, report.regions)
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "region", "shape", "regions"),
    [
        # The last voxel is folded into the cell before it, and so into its region.
        (8, 128, (129, 129, 129), 1),
        # It is a cell of its own, and a region of one plane.
        ((2, 16, 16), 128, (128, 128, 128), 2),
        ((16, 8, 16), 64, (64, 64, 64), 8),
    ],
)
def test_129_voxels_meet_regions_of_128(tmp_path, client, ct, step, region, shape, regions):
    image = np.pad(ct[1], [(0, 129 - n) for n in ct[1].shape], mode="wrap")
    report = segment(image, tmp_path / "a.zarr", step=step, region=region, client=client)
    assert (report.shape, report.regions) == ((129, 129, 129), regions)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=step))


def test_every_label_is_one_component_and_every_cell_keeps_its_own(tmp_path, client):
    image, step = noise((45, 52, 61), seed=3), (6, 9, 7)
    segment(image, tmp_path / "a.zarr", step=step, region=(48, 27, 35), client=client)
    labels = labels_in(tmp_path / "a.zarr").astype(np.int64)
    cells = [np.array(oracle.cells_along(n, s)) for n, s in zip(image.shape, step, strict=True)]
    counts = [c[-1] + 1 for c in cells]
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, prod(counts) + 1))
    _, found = skimage.measure.label(labels, connectivity=1, background=-1, return_num=True)
    assert found == prod(counts)
    # Nothing is further than a cell from where it began, and by far not everything is where it began.
    owner = np.unravel_index(labels - 1, counts)
    away = np.max([np.abs(o - c) for o, c in zip(owner, np.meshgrid(*cells, indexing="ij"), strict=True)], axis=0)
    assert away.max() == 1
    assert 0.1 < (away == 1).mean() < 0.9


def test_two_runs_are_equal_to_the_byte(tmp_path, clients):
    image = noise((20, 33, 50))
    for number, client in enumerate([clients[4], clients[4], clients[1]]):
        segment(image, tmp_path / f"{number}.zarr", step=8, region=20, client=client)
    assert written(tmp_path / "0.zarr") == written(tmp_path / "1.zarr") == written(tmp_path / "2.zarr")


def written(target):
    """All files, but for what the labels say of how long their run took, and on which workers."""
    files = snapshot(target)
    known = json.loads((target / "zarr.json").read_bytes())
    assert known["attributes"]["dseeds"].pop("report")["supervoxels"] > 0
    del known["attributes"]["dseeds"]["plan"]
    return {**files, "zarr.json": known}


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "told"), [(1, False), (2, True)])
def test_processes_are_equal_to_threads(tmp_path, clients, capfd, workers, told):
    image = noise((40, 30, 55), dtype="int16")
    source = as_zarr(tmp_path / "image.zarr", image, 32)
    segment(image, tmp_path / "threads.zarr", step=8, region=30, client=clients[workers**2])
    progress = Recorder() if told else None
    report = segment(
        source, tmp_path / "processes.zarr", step=8, region=30, workers=workers, memory="1GiB", progress=progress
    )
    np.testing.assert_array_equal(labels_in(tmp_path / "processes.zarr"), labels_in(tmp_path / "threads.zarr"))
    # Where nobody follows the progress, the address is printed.
    link = progress.link if told else re.fullmatch("Dask dashboard: (.*)\n", capfd.readouterr().err)[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", link)
    assert report.workers == len(report.peak_memory) == workers
    # Processes of their own, each within what it was given.
    assert all(50 << 20 < peak < 1 << 30 for peak in report.peak_memory.values())


def test_two_runs_at_once_on_one_cluster(tmp_path, client):
    images = [noise((30, 33, 40), seed) for seed in (1, 2)]
    images.append(noise((12, 33, 40)))
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(segment, image, tmp_path / f"{n}.zarr", step=8, region=24, client=client)
            for n, image in enumerate(images)
        ]
    for n, (run, image) in enumerate(zip(runs, images, strict=True)):
        assert run.result().regions > 1
        np.testing.assert_array_equal(labels_in(tmp_path / f"{n}.zarr"), supervoxels(image, step=8))


# Sources.


def zarr_v2(folder, image):
    array = zarr.create_array(folder / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(7, 9, 11), zarr_format=2)
    array[:] = image
    return folder / "a.zarr"


def zarr_sharded(folder, image):
    array = zarr.create_array(
        folder / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(8, 8, 8), shards=(16, 16, 32)
    )
    array[:] = image
    return str(folder / "a.zarr")


def zarr_open(folder, image):
    return zarr.open_array(zarr_v2(folder, image), mode="r")


def zarr_in_memory(_folder, image):
    return zarr.create_array({}, data=image, chunks=(8, 8, 8))


def nifti(ending, kind=nibabel.Nifti1Image):
    def save(folder, image):
        nibabel.save(kind(image.T, np.diag([0.5, 0.75, 3.25, 1])), folder / f"a{ending}")
        return folder / f"a{ending}"

    return save


def nibabel_open(folder, image):
    return nibabel.load(nifti(".nii")(folder, image))


def nibabel_in_memory(_folder, image):
    return nibabel.Nifti1Image(image.T, np.eye(4))


def as_it_is(_folder, image):
    return image


def not_contiguous(_folder, image):
    return np.repeat(image[::-1], 2, axis=2)[::-1, :, ::2]


STORES = [
    as_it_is,
    not_contiguous,
    zarr_v2,
    zarr_sharded,
    zarr_open,
    zarr_in_memory,
    nifti(".nii"),
    nifti(".nii.gz"),
    nifti(".img"),
    nifti(".nii.gz", nibabel.Nifti2Image),
    nibabel_open,
    nibabel_in_memory,
]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__qualname__.replace(".<locals>.save", ""))
@pytest.mark.parametrize("dtype", ["int16", ">f4"])
def test_sources(tmp_path, client, store, dtype):
    # A step of 3 has no blocks, so few rounds.
    image = noise((12, 14, 40), dtype=dtype)
    report = segment(store(tmp_path, image), tmp_path / "labels.zarr", step=3, region=(12, 14, 21), client=client)
    assert report.regions == 2
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(image, step=3))


def test_a_scaled_nifti(tmp_path, client):
    stored = noise((20, 26, 33), dtype="int16")
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    scaled = nibabel.load(tmp_path / "a.nii.gz")
    scaled.header.set_slope_inter(0.25, -1024)
    with (tmp_path / "b.nii").open("wb") as file:
        scaled.header.write_to(file)
        file.write(b"\0" * (int(scaled.header["vox_offset"]) - file.tell()))
        file.write(stored.tobytes())
    values = np.asarray(nibabel.load(tmp_path / "b.nii").dataobj).T
    np.testing.assert_array_equal(values, stored * 0.25 - 1024)
    window = (-1030, -1000)
    segment(tmp_path / "b.nii", tmp_path / "b.zarr", step=7, region=(14, 99, 99), window=window, client=client)
    np.testing.assert_array_equal(labels_in(tmp_path / "b.zarr"), supervoxels(values, step=7, window=window))


def test_a_volume_of_a_series(tmp_path, client):
    path = Path(data_path) / "example4d.nii.gz"
    image = np.asarray(nibabel.load(path).dataobj[..., 1]).T
    report = segment(path, tmp_path / "a.zarr", step=(6, 16, 16), volume=1, client=client)
    assert report.shape == (24, 96, 128)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=(6, 16, 16)))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """An OME-Zarr image with anisotropic voxels."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.zarr"
    write_phantom(path, shape=(24, 60, 66), spacing=(2.5, 1.0, 1.0), chunk=16)
    return path


@pytest.mark.parametrize("asked", [{"n_segments": 200}, {"step": "8mm"}])
def test_the_spacing_of_a_source_makes_isotropic_cells(tmp_path, client, phantom, asked):
    image = zarr.open_array(phantom / "0", mode="r")[:]
    report = segment(phantom, tmp_path / "a.zarr", client=client, **asked)
    assert 2 * report.step[0] <= report.step[1]
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, spacing=(2.5, 1.0, 1.0), **asked))


def test_a_step_in_voxels_is_taken_as_it_is(tmp_path, client, phantom):
    report = segment(phantom, tmp_path / "a.zarr", step=10, client=client)
    assert report.step == (10, 10, 10)
    np.testing.assert_array_equal(
        labels_in(tmp_path / "a.zarr"), supervoxels(zarr.open_array(phantom / "0", mode="r")[:], step=10)
    )


def test_a_spacing_that_is_given_counts_more_than_the_sources(tmp_path, client, phantom):
    report = segment(phantom, tmp_path / "a.zarr", step="8mm", spacing=(1, 2, 2), client=client)
    assert report.step == (8, 4, 4)
    ome = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    scale = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale == [{"type": "scale", "scale": [1, 2, 2]}]


def test_labels_may_lie_within_the_image(tmp_path, client, phantom):
    shutil.copytree(phantom, tmp_path / "a.zarr")
    before = snapshot(tmp_path)
    target = tmp_path / "a.zarr" / "labels" / "supervoxels"
    segment(tmp_path / "a.zarr", target, step=12, client=client)
    expected = supervoxels(zarr.open_array(phantom / "0", mode="r")[:], step=12)
    np.testing.assert_array_equal(labels_in(target), expected)
    # The image lists them, beside those that it has.
    listed = json.loads((target.parent / "zarr.json").read_text())
    assert listed["attributes"]["ome"]["labels"].pop() == "supervoxels"
    (target.parent / "zarr.json").write_text(json.dumps(listed, indent=2))
    shutil.rmtree(target)
    assert snapshot(tmp_path) == before


def test_relative_paths_and_home(tmp_path, client, monkeypatch):
    as_zarr(tmp_path / "image.zarr", GOOD, 16)
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    segment("image.zarr", "a.zarr", **FEW, scratch="scratch", client=client)
    segment("image.zarr", "~/b.zarr", **FEW, scratch="~", client=client)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))
    np.testing.assert_array_equal(labels_in(tmp_path / "home" / "b.zarr"), supervoxels(GOOD, step=4))
    assert names_in(tmp_path / "scratch") == []


# Outputs.


def no_constants(name):
    raise AssertionError(f"{name} is no JSON")


def test_the_output_says_what_it_is(tmp_path, client):
    image = noise((20, 26, 33), dtype="int16")
    source = nifti(".nii.gz")(tmp_path, image)
    asked = {"step": np.int64(7), "window": np.array([-90, 150.5]), "volume": 0}
    report = segment(source, tmp_path / "a.zarr", region=14, client=client, **asked)
    assert names_in(tmp_path / "a.zarr") == ["0", "zarr.json"]
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text(), parse_constant=no_constants)
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    ours = document["attributes"]["dseeds"]
    assert ours["supervoxels"] == report.supervoxels == 3 * 4 * 5
    assert ours["parameters"] == {
        "asked": {"step": 7, "window": [-90, 150.5], "volume": 0},
        "step": [7, 7, 7],
        "cells": [3, 4, 5],
        "windows": [[-90, 150.5]],
        "bins": "linear",
        "weights": [1],
        "thresholds": None,
        "compactness": 0,
        "min_size": 0,
        "rounds": report.rounds,
    }
    assert Path(ours["source"]["path"]) == source
    assert ours["source"]["size"] == source.stat().st_size
    for name in ("dseeds", "numpy", "numba", "zarr", "dask", "distributed"):
        assert ours["versions"][name] == version(name)
    scale = document["attributes"]["ome"]["multiscales"][0]
    assert scale["datasets"] == [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [3.25, 0.75, 0.5]}]}
    ]
    assert [axis["name"] for axis in scale["axes"]] == ["z", "y", "x"]
    assert "image-label" in document["attributes"]["ome"]

    labels = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"]
    assert labels.metadata.zarr_format == 3
    assert (labels.shape, labels.dtype) == (image.shape, np.uint32)
    assert labels.metadata.dimension_names == ("z", "y", "x")
    assert (labels.shards or labels.chunks) == report.region_shape == (14, 14, 14)
    assert json.loads(report.to_json()) == json.loads(json.dumps(report.to_dict()))
    assert "60 supervoxels" in str(report)


def test_an_output_is_not_cut_again(tmp_path, client):
    """Labels are no intensities: who cuts them has most likely mixed up two names."""
    segment(noise((20, 26, 33)), tmp_path / "a.zarr", step=8, client=client)
    with pytest.raises(ValueError, match="labels"):
        segment(tmp_path / "a.zarr", tmp_path / "b.zarr", step=6, client=client)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize(
    ("cells", "dtype"), [((1, 1, 1), "u4"), ((65535, 65537, 1), "u4"), ((65536, 65536, 1), "u8"), ((2**11,) * 3, "u8")]
)
def test_labels_are_as_wide_as_they_need_be(cells, dtype):
    """As labels begin at 1, the last of 2^32 - 1 cells is the last that fits 32 bits."""
    lattice = Lattice([2 * n for n in cells], (2, 2, 2))
    assert lattice.cells == cells
    assert lattice.label_dtype == dtype


def test_labels_beyond_32_bits(tmp_path):
    shape = (1 << 13, 1 << 12, 1 << 10)
    folder = str(tmp_path)
    job = Job(None, shape, (2, 2, 2), (8, 8, 8), folder, Journal(folder, "run"), (LabelGroup(folder, "labels"),))
    assert job.lattice.size == 1 << 32
    job.labels[0].create(Layout.cut(shape, job.lattice.label_dtype, (16, 16, 16), 16))
    perform_task(job, LABEL, len(job.regions) - 1, {})
    labels = zarr.open_array(tmp_path / "labels", mode="r")[-16:, -16:, -16:]
    assert labels.dtype == np.uint64
    z, y, x = (np.arange(n - 16, n) // 2 for n in shape)
    expected = 1 + (z[:, None, None] * (1 << 11) + y[:, None]) * (1 << 9) + x
    np.testing.assert_array_equal(labels, expected.astype(np.uint64))
    assert labels.max() == 1 << 32


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("opened", [False, True])
def test_nifti_in_gives_nifti_out(tmp_path, client, ending, opened):
    image = noise((70, 26, 33), dtype="int16")
    affine = np.array([[0, -0.5, 0, 11], [0.75, 0, 0, -7], [0, 0, 3.25, 3], [0, 0, 0, 1]])
    made = nibabel.Nifti1Image(image.T, affine)
    made.header.set_xyzt_units("mm", "sec")
    made.header["descrip"] = b"a scanner's words"
    made.set_qform(affine, 1)
    made.set_sform(affine, 4)
    nibabel.save(made, tmp_path / "image.nii.gz")
    source = nibabel.load(tmp_path / "image.nii.gz")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"labels{ending}"
    report = segment(source if opened else tmp_path / "image.nii.gz", target, step="8mm", region=40, client=client)
    assert names_in(tmp_path / "out") == [target.name]
    assert report.target == str(target)
    found = nibabel.load(target)
    expected = supervoxels(image, step="8mm", spacing=(3.25, 0.5, 0.75))
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected.T)
    assert found.get_data_dtype() == np.int32
    np.testing.assert_array_equal(found.affine, source.affine)
    for field in ("pixdim", "xyzt_units", "qform_code", "sform_code", "descrip"):
        np.testing.assert_array_equal(found.header[field], source.header[field])


def test_nifti_of_one_of_a_series(tmp_path, client):
    path = Path(data_path) / "example4d.nii.gz"
    source = nibabel.load(path)
    segment(path, tmp_path / "a.nii.gz", step=(6, 16, 16), volume=0, client=client)
    found = nibabel.load(tmp_path / "a.nii.gz")
    image = np.asarray(source.dataobj[..., 0]).T
    np.testing.assert_array_equal(np.asarray(found.dataobj).T, supervoxels(image, step=(6, 16, 16)))
    np.testing.assert_array_equal(found.affine, source.affine)


def test_it_is_no_image_before_it_is_whole(tmp_path, client):
    seen = []

    def look(event, stage, _number):
        if stage == "label":
            with pytest.raises(FileNotFoundError):
                zarr.open(tmp_path / "a.zarr", mode="r")
            seen.append(event)

    segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=Recorder(look))
    assert seen == ["begin", "advance", "advance", "end"]
    assert isinstance(zarr.open(tmp_path / "a.zarr", mode="r"), zarr.Group)


# Bad input: one sentence, and nothing is written.


def truncated(folder):
    path = nifti(".nii.gz")(folder, noise((40, 26, 33), dtype="int16"))
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def no_gzip(folder):
    (folder / "a.nii.gz").write_bytes(b"not an image at all" * 100)
    return folder / "a.nii.gz"


def damaged_chunk(folder):
    path = as_zarr(folder / "a.zarr", noise((20, 26, 33)), 16)
    chunk = path / "c" / "1" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    return path


def empty_folder(folder):
    (folder / "a.zarr").mkdir()
    return folder / "a.zarr"


def make(image):
    return lambda _folder: image


BAD = {
    "missing": (lambda folder: folder / "none.zarr", {}, FileNotFoundError, "none.zarr does not exist"),
    "missing nifti": (lambda folder: folder / "none.nii.gz", {}, FileNotFoundError, "none.nii.gz does not exist"),
    "truncated": (truncated, {}, ValueError, "a.nii.gz cannot be read"),
    "no gzip": (no_gzip, {}, ValueError, "a.nii.gz cannot be opened as an image"),
    "empty folder": (empty_folder, {}, ValueError, "without Zarr metadata"),
    "2D": (make(GOOD[0]), {}, ValueError, "three axes"),
    "4D": (make(np.stack([GOOD, GOOD])), {}, ValueError, "holds 2 volumes: pass volume="),
    "5D": (make(np.zeros((2, 3, 4, 5, 6))), {}, ValueError, "volumes in more than one way"),
    "no such volume": (make(np.stack([GOOD, GOOD])), {"volume": 2}, ValueError, "has no volume 2"),
    "empty axis": (make(GOOD[:, :0]), {}, ValueError, "an axis is empty"),
    "NaN only": (make(GOOD * np.nan), {}, ValueError, "holds no finite value"),
    "infinite only": (make(np.full((9, 9, 9), -np.inf)), {}, ValueError, "holds no finite value"),
    "boolean": (make(GOOD > 0), {}, (TypeError, ValueError), "boolean"),
    "complex": (make(GOOD.astype("c8")), {}, (TypeError, ValueError), "complex"),
    "longdouble": (make(GOOD.astype(np.longdouble)), {}, TypeError, "at most 64 bits"),
    "a list": (make([[[1, 2]]]), {}, TypeError, "a source is a path or URL"),
    "step 1": (make(GOOD), {"step": 1}, ValueError, "step must be at least 2"),
    "step -8": (make(GOOD), {"step": (8, -8, 8)}, ValueError, "step must be at least 2"),
    "two steps": (make(GOOD), {"step": (8, 8)}, ValueError, "step must be"),
    "half a step": (make(GOOD), {"step": 8.5}, ValueError, "step must be"),
    "step of NaN": (make(GOOD), {"step": float("nan")}, ValueError, "step must be"),
    "step of infinity": (make(GOOD), {"step": float("inf")}, ValueError, "step must be"),
    "a word as step": (make(GOOD), {"step": "large"}, ValueError, "step must be"),
    "step in mm without spacing": (make(GOOD), {"step": "8mm"}, ValueError, "needs the voxels' size"),
    "both": (make(GOOD), {"step": 8, "n_segments": 8}, ValueError, "either step or n_segments"),
    "no segments": (make(GOOD), {"step": None, "n_segments": 0}, ValueError, "n_segments must be"),
    "too many": (make(GOOD), {"step": None, "n_segments": GOOD.size + 1}, ValueError, "n_segments must be"),
    "NaN segments": (make(GOOD), {"step": None, "n_segments": float("nan")}, ValueError, "n_segments must be"),
    "spacing 0": (make(GOOD), {"spacing": (1, 0, 1)}, ValueError, "spacing must be three positive"),
    "one spacing": (make(GOOD), {"spacing": 3}, (TypeError, ValueError), "spacing must be three positive"),
    "window upside down": (make(GOOD), {"window": (3, 1)}, ValueError, "window must be two finite"),
    "window of NaN": (make(GOOD), {"window": (0, np.nan)}, ValueError, "window must be two finite"),
    "three in a window": (make(GOOD), {"window": (0, 1, 2)}, ValueError, "window must be two finite"),
    "one in a window": (make(GOOD), {"window": 5}, (TypeError, ValueError), "window must be two finite"),
    "region 0": (make(GOOD), {"region": 0}, ValueError, "region must be"),
    "two regions": (make(GOOD), {"region": (8, 8)}, ValueError, "region must be"),
    "half a region": (make(GOOD), {"region": (8, 8, 8.5)}, ValueError, "region must be"),
    "region of NaN": (make(GOOD), {"region": (8, 8, float("nan"))}, ValueError, "region must be"),
    "a word as region": (make(GOOD), {"region": "all"}, (TypeError, ValueError), "region must be"),
    "no memory": (make(GOOD), {"memory": 0}, ValueError, "memory must be"),
    "a word as memory": (make(GOOD), {"memory": "much"}, ValueError, "memory must be"),
    "little memory": (make(GOOD), {"memory": "10MiB", "region": None}, ValueError, "more memory"),
    "little memory for a region": (make(GOOD), {"memory": "10MiB"}, ValueError, "more memory"),
    "workers and client": (make(GOOD), {"workers": 2}, ValueError, "workers= makes a local cluster"),
    "no workers": (make(GOOD), {"workers": 0, "client": None}, ValueError, "workers must be .*at least 1"),
    "no scratch": (make(GOOD), {"scratch": "/nonexistent/scratch"}, FileNotFoundError, "scratch folder"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gets_a_sentence_and_nothing_is_written(tmp_path, client, ours, bad, overwrite):
    source, asked, kind, says = BAD[bad]
    source = source(tmp_path)
    (tmp_path / "out").mkdir()
    if overwrite:
        copy_of_ours(tmp_path / "out" / "labels.zarr", ours)
    before = snapshot(tmp_path)
    with pytest.raises(kind, match=says) as caught:
        segment(
            source,
            tmp_path / "out" / "labels.zarr",
            **{**FEW, "client": client, "overwrite": overwrite, **asked},
        )
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before


def test_a_source_that_is_damaged_somewhere(tmp_path, client):
    """The region that fails is named, what became of the others is kept, and a report lies in the run's folder."""
    source = damaged_chunk(tmp_path)
    target = tmp_path / "labels.zarr"
    with pytest.raises(RegionFailed, match=r"a.zarr cannot be read from voxel") as caught:
        segment(source, target, step=4, region=12, client=client)
    assert_sentence(caught.value)
    failed = json.loads((tmp_path / f"labels.zarr{SUFFIX}" / "failure.json").read_text())
    assert failed == {"phase": "window-00", "region": caught.value.region, "attempts": 3, "reason": caught.value.reason}
    debug, resume = caught.value.__notes__
    assert f"dseeds debug-region {target}{SUFFIX} --phase window-00 --region {failed['region']}" in debug
    assert resume == f"go on with: dseeds segment {source} {target} --resume"
    image = noise((20, 26, 33))
    zarr.open_array(source, mode="r+")[:] = image
    with pytest.raises(RunMismatch, match=r"source was .* and is now"):
        segment(source, target, client=client, resume=True)
    segment(source, target, step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, step=4))


@pytest.mark.parametrize(
    ("target", "kind", "says"),
    [
        ("none/labels.zarr", FileNotFoundError, "the folder .*none for the target does not exist"),
        ("file/labels.zarr", FileNotFoundError, "the folder .*file for the target does not exist"),
        ("none/labels.nii.gz", FileNotFoundError, "the folder .*none for the target does not exist"),
        ("ftp://host/labels.zarr", ValueError, "neither a path nor an address in an object store"),
        ("labels.nii.gz", ValueError, "would be NIfTI, but the source is not"),
        ("labels.nii", ValueError, "would be NIfTI, but the source is not"),
        ("labels.TIF", ValueError, "would be a file, but what is written here is Zarr"),
        ("labels.h5", ValueError, "would be a file, but what is written here is Zarr"),
        ("LABELS.NII.GZ", ValueError, "NIfTI"),
        ("a\0b", ValueError, "null|name"),
    ],
)
def test_targets_that_cannot_be(tmp_path, client, monkeypatch, target, kind, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    source = nifti(".nii")(tmp_path, GOOD) if target == "none/labels.nii.gz" else GOOD
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(kind, match=says):
        segment(source, target, step=8, client=client, progress=progress)
    assert progress.told == []
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("image", "step", "cells"),
    [
        (np.full((20, 26, 33), 5, "int16"), 8, (3, 3, 4)),
        (noise((7, 9, 50)), 16, (1, 1, 3)),
        (noise((7, 9, 50)), 100, (1, 1, 1)),
        (noise((1, 1, 1)), 2, (1, 1, 1)),
        (noise((1, 40, 1)), 8, (1, 5, 1)),
    ],
)
def test_unusual_input_that_works(tmp_path, client, image, step, cells):
    report = segment(image, tmp_path / "a.zarr", step=step, region=8, client=client)
    assert report.cells == cells
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=step))
    if image.min() == image.max():
        # The lattice itself.
        axes = [oracle.cells_along(n, step) for n in image.shape]
        index = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), cells)
        np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), index + 1)


# What is not ours is not overwritten.


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """An output of an older run."""
    path = tmp_path_factory.mktemp("ours") / "labels.zarr"
    with in_process(1, 1) as own:
        segment(noise((16, 16, 16), seed=9), path, step=8, client=own)
    return path


def copy_of_ours(target, ours):
    shutil.copytree(ours, target)


def file_of_mine(target, _ours):
    target.write_text("precious")


def no_folder_of_ours(target, _ours):
    target.mkdir()


def folder_of_mine(target, _ours):
    target.mkdir()
    (target / "thesis.txt").write_text("precious")


def zarr_of_mine(target, _ours):
    group = zarr.create_group(target, attributes={"mine": True})
    group.create_array("0", data=np.arange(5))


def array_of_mine(target, _ours):
    zarr.create_array(target, data=np.arange(5), attributes={"mine": True})


def zarr_with(attribute):
    def zarr_with_attribute(target, _ours):
        group = zarr.create_group(target, attributes={"dseeds": attribute})
        group.create_array("0", data=np.arange(5))

    return zarr_with_attribute


def phantom_of_ours(target, _ours):
    write_phantom(target, shape=(6, 7, 8))


def unfinished_phantom(target, _ours):
    def keep(done, _all):
        if done == 1:
            shutil.copytree(target.with_name("phantom.zarr"), target)

    write_phantom(target.with_name("phantom.zarr"), shape=(6, 7, 8), progress=keep)


def added(*names):
    def ours_with_more(target, ours):
        copy_of_ours(target, ours)
        path = target.joinpath(*names)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("precious")

    return ours_with_more


def metadata_that_is_damaged(target, ours):
    copy_of_ours(target, ours)
    (target / "zarr.json").write_text("{")


def metadata_that_is_no_text(target, ours):
    copy_of_ours(target, ours)
    (target / "zarr.json").write_bytes(b"\xff\xfe")


def labels_replaced_by_a_link(target, ours):
    copy_of_ours(target, ours)
    mine = target.with_name("mine")
    (target / "0").rename(mine)
    (target / "0").symlink_to(mine)


def link_to_ours(target, ours):
    copy_of_ours(target.with_name("original.zarr"), ours)
    target.symlink_to(target.with_name("original.zarr"))


def link_to_a_folder_of_mine(target, ours):
    folder_of_mine(target.with_name("mine"), ours)
    target.symlink_to(target.with_name("mine"))


def link_to_nowhere(target, _ours):
    target.symlink_to(target.with_name("nowhere"))


NOT_OURS = [
    file_of_mine,
    no_folder_of_ours,
    folder_of_mine,
    zarr_of_mine,
    array_of_mine,
    zarr_with("supervoxels of mine"),
    zarr_with(["supervoxels"]),
    zarr_with(5),
    zarr_with(None),
    zarr_with({"phantom": {}}),
    phantom_of_ours,
    unfinished_phantom,
    added("thesis.txt"),
    added("1"),
    added("labels", "organs", "zarr.json"),
    added("0", "thesis.txt"),
    added("0", "c", "0", "thesis.txt"),
    metadata_that_is_damaged,
    metadata_that_is_no_text,
    labels_replaced_by_a_link,
    link_to_ours,
    link_to_a_folder_of_mine,
    link_to_nowhere,
]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("make", NOT_OURS, ids=lambda make: make.__name__)
def test_what_is_not_ours_is_not_overwritten(tmp_path, client, ours, make, overwrite):
    make(tmp_path / "labels.zarr", ours)
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(FileExistsError, match=r"labels\.zarr") as caught:
        segment(GOOD, tmp_path / "labels.zarr", step=4, client=client, overwrite=overwrite, progress=progress)
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before
    assert progress.told == [], "it is refused at once, not after the work"


def nifti_of_mine(target):
    nibabel.save(nibabel.Nifti1Image(GOOD.T, np.eye(4)), target)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("make", [text, nifti_of_mine, folder])
def test_nifti_that_is_not_ours_is_not_overwritten(tmp_path, client, make, overwrite):
    source = nifti(".nii")(tmp_path, GOOD)
    make(tmp_path / "labels.nii.gz")
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises(FileExistsError, match=r"labels\.nii\.gz"):
        segment(source, tmp_path / "labels.nii.gz", step=8, client=client, overwrite=overwrite, progress=progress)
    assert snapshot(tmp_path) == before
    assert progress.told == []


def test_ours_is_overwritten_when_told_to(tmp_path, client, ours):
    copy_of_ours(tmp_path / "labels.zarr", ours)
    with pytest.raises(FileExistsError, match="--overwrite"):
        segment(GOOD, tmp_path / "labels.zarr", step=4, client=client)
    assert snapshot(tmp_path / "labels.zarr") == snapshot(ours)
    segment(GOOD, tmp_path / "labels.zarr", step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(GOOD, step=4))


def test_nifti_of_ours_is_overwritten_when_told_to(tmp_path, client):
    source = nifti(".nii")(tmp_path, GOOD)
    segment(source, tmp_path / "labels.nii.gz", step=8, client=client)
    with pytest.raises(FileExistsError, match="--overwrite"):
        segment(source, tmp_path / "labels.nii.gz", step=4, client=client)
    segment(source, tmp_path / "labels.nii.gz", step=4, client=client, overwrite=True)
    found = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj).T
    np.testing.assert_array_equal(found, supervoxels(GOOD, step=4))


def test_what_a_killed_run_left_is_overwritten_when_told_to(tmp_path, client):
    """A run that could not tidy up after itself leaves a marker."""

    def keep():
        shutil.copytree(tmp_path / "a.zarr", tmp_path / "left.zarr")

    progress = when("advance", "label", 1, keep)
    segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=progress)
    assert progress.happened
    with pytest.raises(FileExistsError):
        segment(GOOD, tmp_path / "left.zarr", step=4, client=client)
    segment(GOOD, tmp_path / "left.zarr", step=4, client=client, overwrite=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "left.zarr"), supervoxels(GOOD, step=4))


@pytest.mark.parametrize(
    ("make", "overwrite"),
    [
        (copy_of_ours, False),
        (folder_of_mine, False),
        (folder_of_mine, True),
        (link_to_ours, False),
        (link_to_ours, True),
    ],
)
def test_what_appears_during_the_run_is_not_overwritten(tmp_path, client, ours, make, overwrite):
    """Somebody else may choose the same name while we work: what they wrote, they did not agree to lose."""
    target = tmp_path / "labels.zarr"
    progress = when("begin", "sweep-voxels", None, lambda: make(target, ours))
    with pytest.raises(FileExistsError, match=r"labels\.zarr"):
        segment(GOOD, target, **FEW, client=client, progress=progress, overwrite=overwrite)
    assert progress.happened
    mine = snapshot(tmp_path)
    shutil.rmtree(target) if not target.is_symlink() else target.unlink()
    shutil.rmtree(tmp_path / "original.zarr", ignore_errors=True)
    make(target, ours)
    assert mine == snapshot(tmp_path)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("labels.zarr", "labels.zarr"),
        ("labels.zarr/0", "labels.zarr"),
        ("link.zarr", "labels.zarr"),
        ("folder/../labels.zarr", "labels.zarr"),
        ("labels.nii", "labels.nii"),
        ("link.nii", "labels.nii"),
    ],
)
def test_the_source_is_not_overwritten(tmp_path, client, ours, monkeypatch, source, target):
    """Even where the source is an output of ours, which may be overwritten."""
    monkeypatch.chdir(tmp_path)
    copy_of_ours(tmp_path / "labels.zarr", ours)
    nifti_of_mine(tmp_path / "image.nii")
    segment("image.nii", "labels.nii", step=8, client=client)
    (tmp_path / "link.zarr").symlink_to("labels.zarr")
    (tmp_path / "link.nii").symlink_to("labels.nii")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    progress = Recorder()
    with pytest.raises((ValueError, FileExistsError)) as caught:
        segment(source, target, step=4, client=client, overwrite=True, progress=progress)
    assert_sentence(caught.value)
    assert snapshot(tmp_path) == before
    assert progress.told == [], "it is refused at once, not after the work"


# Failures half-way.


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("stage", "ending"), [*((stage, ".zarr") for stage in STAGES[:-1]), *((stage, ".nii.gz") for stage in STAGES)]
)
def test_an_interrupted_run_can_be_gone_on_with(tmp_path, client, stage, ending, overwrite):
    source = nifti(".nii.gz")(tmp_path, noise((66, 8, 8), dtype="int16"))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"labels{ending}"
    mask = np.ones((66, 8, 8), np.uint8)
    mask[:, ::5] = 0
    np.random.default_rng(0).shuffle(mask[5:60].reshape(-1))
    nibabel.save(nibabel.Nifti1Image(mask.T, nibabel.load(source).affine), tmp_path / "mask.nii.gz")
    labels = {"mask": mask, "bins": "equalised", "min_size": 20}
    asked = {**labels, "step": 4, "region": (36, 8, 4), "client": client, "mask": tmp_path / "mask.nii.gz"}
    if overwrite:
        segment(source, target, **{**asked, "step": 3, "region": None})
    before = snapshot(tmp_path)
    progress = when("advance", stage, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, progress=progress, overwrite=overwrite, **asked)
    assert progress.happened
    if (stage, ending) == ("label", ".zarr"):
        # By now the older output has had to make room.
        assert_no_image(target)
    else:
        assert_only_the_run_is_new(tmp_path, before, target)
    assert_idle(client)
    left = snapshot(tmp_path)
    time.sleep(0.1)
    # No task that was still running wrote anything after that.
    assert snapshot(tmp_path) == left
    report = segment(source, target, resume=True, client=client)
    assert report.resumed
    assert report.skipped > 0 or stage in ("import", "label", "export")
    whole = supervoxels(noise((66, 8, 8), dtype="int16"), step=4, **labels)
    found = labels_in(target) if ending == ".zarr" else np.asarray(nibabel.load(target, mmap=False).dataobj).T
    np.testing.assert_array_equal(found, whole)
    assert names_in(tmp_path / "out") == [target.name]


def assert_only_the_run_is_new(folder, before, target):
    """Nothing is written but what the run is to be gone on with by."""
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


def assert_idle(client):
    """The cluster works on nothing, and soon has nothing of us left to do."""
    assert not any(client.run(lambda dask_worker: len(dask_worker.active_keys)).values())
    end = time.monotonic() + 5
    # Whoever holds on to a traceback may hold on to a result.
    while tasks_known(client, but=("memory", "erred")) and time.monotonic() < end:
        time.sleep(0.01)
    assert tasks_known(client, but=("memory", "erred")) == []


def tasks_known(client, but=("erred",)):
    """The scheduler's tasks; but those that failed in another test are known for as long as Python holds tracebacks."""

    def ask(dask_scheduler):
        return [str(key) for key, task in dask_scheduler.tasks.items() if task.state not in but]

    return client.run_on_scheduler(ask)


def interrupt_in_the_next_line():
    """Raise KeyboardInterrupt not here, but in the next line of the package that is run when we are done."""
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


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-blocks", "sweep-voxels", "merge", "label"])
def test_an_interruption_between_two_results(tmp_path, client, stage):
    """It is chance whether Ctrl-C comes while we wait for a result or while we go on to the next."""
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
    # Even while somebody holds on to the traceback.
    assert caught.tb
    assert_no_image(tmp_path / "a.zarr")
    assert_idle(client)
    segment(noise((4, 4, 48)), tmp_path / "a.zarr", resume=True, client=client)
    window = None if stage == "window" else (-200, 200)
    whole = supervoxels(noise((4, 4, 48)), step=4, window=window)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), whole)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("event", ["begin", "end"])
@pytest.mark.parametrize("stage", ["window", "merge", "label"])
def test_a_progress_that_fails_between_stages(tmp_path, client, stage, event):
    class BrokenError(Exception):
        pass

    def fail(*told):
        if told[:2] == (event, stage):
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
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 64)).astype("uint8")
    dseeds.segment(image, sys.argv[1], step=8, region=24, workers=2, progress=Progress())
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["as Ctrl-C", "to the main process"])
def test_an_interrupted_program_says_how_to_go_on(tmp_path, whole_group):
    """A real signal to a real program with worker processes."""
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
            _, errors = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert names_in(tmp_path / "out") == ["labels.zarr.dseeds"]
    assert "--resume" in errors


@pytest.fixture
def processes():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_killed_workers_do_not_change_the_answer(tmp_path, processes):
    image = noise((60, 50, 55))
    source = as_zarr(tmp_path / "image.zarr", image, 32)
    killed = []

    def pids():
        return processes.run(os.getpid, on_error="ignore").values()

    def kill(event, stage, number):
        # Both in the middle of the block rounds, then one, then one when all is done but for the last words.
        victims = {("advance", "sweep-blocks", 13): 2, ("advance", "sweep-voxels", 5): 1, ("advance", "label", 8): 1}
        count = victims.get((event, stage, number), 0)
        if count:
            # One that is killed before its nanny knows it is up is never replaced.
            processes.wait_for_workers(2, timeout=60)
            time.sleep(1)
            for pid in list(pids())[:count]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    report = segment(
        source, tmp_path / "a.zarr", step=8, region=(16, 24, 55), client=processes, progress=Recorder(kill)
    )
    assert report.regions == 8
    assert len(set(killed)) == 4
    assert not set(killed) & set(pids())
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=8))
    assert names_in(tmp_path) == ["a.zarr", "image.zarr"]


@pytest.mark.parametrize("lost", ["", "0", "0/zarr.json"])
def test_a_target_that_is_taken_away_is_no_image(tmp_path, client, lost):
    """Somebody removes what is being written: the run fails, and what is left does not look like an output."""

    def take():
        path = tmp_path / "a.zarr" / lost
        path.unlink() if path.is_file() else shutil.rmtree(path)

    progress = when("begin", "label", None, take)
    with pytest.raises(Exception, match=r"a\.zarr"):
        segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=progress)
    assert progress.happened
    assert_no_image(tmp_path / "a.zarr")
    # Some task may just have written some labels.
    shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
    segment(GOOD, tmp_path / "a.zarr", client=client, resume=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))


def test_scratch_that_is_taken_away(tmp_path, client):
    (tmp_path / "scratch").mkdir()

    def take():
        for path in (tmp_path / "scratch").iterdir():
            shutil.rmtree(path)

    progress = when("begin", "sweep-voxels", None, take)
    with pytest.raises(Exception, match="scratch"):
        segment(
            GOOD,
            tmp_path / "a.zarr",
            **FEW,
            client=client,
            progress=progress,
            scratch=tmp_path / "scratch",
        )
    assert progress.happened
    assert_no_image(tmp_path / "a.zarr")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, with room for 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"A FULL DISK IS NOT TESTED: {error}")
    if done.returncode:
        pytest.skip(f"A FULL DISK IS NOT TESTED, for lack of the right to mount one: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(folder, leaving):
    """Leave so many bytes on a disk."""
    room = shutil.disk_usage(folder).free - leaving
    (folder / "filling").write_bytes(b"\0" * room)


@pytest.mark.parametrize(
    ("full", "ending", "leaving", "stage"),
    [
        ("scratch", ".zarr", 1000 << 10, "quantise"),
        ("scratch", ".zarr", 8 << 10, None),
        ("target", ".zarr", 160 << 10, "label"),
        ("target", ".zarr", 48 << 10, "sweep-blocks"),
        ("target", ".zarr", 0, None),
        ("target", ".nii", 160 << 10, "export"),
    ],
)
def test_a_full_disk(tmp_path, client, small_disk, monkeypatch, full, ending, leaving, stage):
    """It fills up while the run is at work: what was free when it began was enough."""
    monkeypatch.setattr("dseeds.engine.driver.check_disk", lambda _run: None)
    source = nifti(".nii")(tmp_path, noise((70, 80, 80), dtype="int16"))
    (tmp_path / "out").mkdir()
    folders = {"target": tmp_path / "out", "scratch": tmp_path / "out", full: small_disk}
    fill(small_disk, leaving)
    progress = Recorder()
    with pytest.raises(OSError, match="No space left on device") as caught:
        segment(
            source,
            folders["target"] / f"labels{ending}",
            step=10,
            region=40,
            scratch=folders["scratch"],
            client=client,
            progress=progress,
        )
    assert "\n" not in str(caught.value)
    target = folders["target"] / f"labels{ending}"
    assert not target.is_file()
    assert_no_image(target)
    if stage:
        assert stage in {name for _, name, _ in progress.told}, "it came as far as it was meant to"
    assert_idle(client)
    (small_disk / "filling").unlink()
    segment(source, target, step=10, region=40, scratch=folders["scratch"], client=client, resume=True)
    found = labels_in(target) if ending == ".zarr" else np.asarray(nibabel.load(target, mmap=False).dataobj).T
    np.testing.assert_array_equal(found, supervoxels(noise((70, 80, 80), dtype="int16"), step=10))
    assert names_in(folders["target"]) == [target.name]


# The cluster.


@pytest.mark.parametrize("threads", [1, 4])
def test_the_scheduler_knows_a_bounded_number_of_tasks(tmp_path, clients, threads):
    client = clients[threads]
    known = {stage: [] for stage in STAGES}
    names = {stage: set() for stage in STAGES}
    others = len(client.futures)

    def count(event, stage, _number):
        if event == "advance" and stage != "import":
            keys = tasks_known(client)
            known[stage].append(len(keys))
            names[stage] |= {key_split(key) for key in keys}
            assert len(client.futures) <= others + IN_FLIGHT * threads + 1

    report = segment(
        noise((7, 14, 84)), tmp_path / "a.zarr", step=7, region=(7, 7, 7), client=client, progress=Recorder(count)
    )
    assert report.regions == 24
    for stage in ("window", "quantise", "sweep-blocks", "sweep-voxels", "merge", "label"):
        # One more may just be on its way out.
        assert max(known[stage]) <= IN_FLIGHT * threads + 1
        assert max(known[stage]) >= threads, "no thread waits for the client"
        # So they are grouped on the dashboard.
        assert stage in names[stage]
    assert set().union(*names.values()) <= set(STAGES)


def test_what_a_task_is_told_does_not_grow_with_the_volume(tmp_path):
    folder = str(tmp_path)
    shape, cells = (1 << 14,) * 3, (16, 16, 16)
    job = Job(None, shape, cells, cells, folder, Journal(folder, "run"), (LabelGroup(folder),), ((0.0, 1.0),))
    # The client looks at all of these.
    assert job.lattice.grids
    assert len(job.regions) == 64**3
    assert job.schedule
    told = pickle.dumps(job)
    assert len(told) < 5000
    assert pickle.loads(told) == job


@pytest.mark.parametrize("workers", [1, 2])
def test_the_callers_zarr_settings_stay(tmp_path, clients, workers):
    mine = {"async.concurrency": 7, "threading.max_workers": 3}
    with zarr.config.set(mine):
        segment(GOOD, tmp_path / "a.zarr", step=4, client=clients[workers**2])
        assert {key: zarr.config.get(key) for key in mine} == mine


@pytest.fixture
def workers_with():
    """In-process clusters whose workers are told of a memory limit; that of this process is none of their business."""
    settings = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")}

    def make(limit, threads=1):
        return in_process(1, threads, memory_limit=limit)

    with dask.config.set(settings):
        yield make


def test_a_worker_that_is_nearly_full_from_the_start_is_not_paused(tmp_path, monkeypatch):
    def in_this_process(**options):
        return LocalCluster(**options | {"processes": False, "host": None})

    monkeypatch.setattr(cluster, "LocalCluster", in_this_process)
    held = np.ones(64 << 20)
    full = int(psutil.Process().memory_info().rss / 0.88)
    report = segment(GOOD, tmp_path / "a.zarr", step=4, workers=1, memory=full)
    assert report.supervoxels == supervoxels(GOOD, step=4).max()
    assert held.all()


def test_workers_with_less_memory_get_smaller_regions(tmp_path, workers_with):
    # A constant image has no rounds, so that a larger one is quick.
    image = zarr.create_array(tmp_path / "image.zarr", shape=(128, 128, 512), dtype="uint8", chunks=(64, 64, 128))
    enough = worker_bytes(task_bytes(Lattice(image.shape, (16, 16, 16)), (8, 8, 8), TaskShape(1)), 1)
    shapes = []
    for limit, threads, memory in (
        (enough, 1, None),
        (enough - 1, 1, None),
        (4 * enough, 1, enough - 1),
        # They share their worker's memory.
        (enough, 2, None),
    ):
        with workers_with(limit, threads) as client:
            target = tmp_path / f"{len(shapes)}.zarr"
            report = segment(image, target, step=16, client=client, memory=memory)
        shapes.append(report.region_shape)
        assert zarr.open_array(target / "0", mode="r")[-1, -1, -1] == report.supervoxels == 8 * 8 * 32
    assert shapes[0] == (128, 128, 128)
    assert all(prod(shape) < 128**3 for shape in shapes[1:])
    assert shapes[1] == shapes[2]


def test_memory_that_is_more_than_the_workers_have_helps_nothing(tmp_path, workers_with):
    with workers_with("300MiB") as client, pytest.raises(ValueError, match="more memory") as caught:
        segment(GOOD, tmp_path / "a.zarr", step=4, client=client, memory="64GiB")
    assert_sentence(caught.value)
    needed, given = (int(n) for n in re.findall(r"(\d+) MiB", str(caught.value))[:2])
    assert needed > given, "the sentence makes sense"
    assert snapshot(tmp_path) == {}


def test_a_cluster_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("dseeds.parallel.cluster.WORKERS_TIMEOUT", 0.2)
    with in_process(0, 1) as client, pytest.raises(TimeoutError, match="has had no worker for"):
        segment(GOOD, tmp_path / "a.zarr", step=4, client=client)
    assert snapshot(tmp_path) == {}


def test_regions_are_what_was_asked_for(tmp_path, client):
    report = segment(GOOD, tmp_path / "a.zarr", step=(5, 6, 7), region=(6, 7, 20), client=client)
    assert report.region_shape == (10, 12, 21)
    # Cells: 2, 2 and 6.
    assert report.regions == 1 * 1 * 2


@pytest.mark.parametrize("region", [np.int64(16), np.array([16, 16, 16]), [16, 16, 16]])
def test_numbers_of_numpy_are_numbers(tmp_path, client, region):
    report = segment(GOOD, tmp_path / "a.zarr", step=np.int32(8), region=region, client=client)
    assert report.region_shape == (16, 16, 16)
