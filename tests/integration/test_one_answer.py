"""Labels of an out-of-core run equal those of the volume in memory, however the volume is cut."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import prod
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import skimage.measure
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dseeds import segment, supervoxels
from dseeds.core.geometry import Lattice
from dseeds.engine.pipeline import Pipeline
from dseeds.engine.residents import Residents
from dseeds.seeds.cell_size import choose_step
from dseeds.seeds.schedule import may_rest, schedule
from tests.support import oracle
from tests.support.paths import DATA
from tests.support.regions import cut_by_tasks
from tests.support.runs import (
    STAGES,
    Recorder,
    as_zarr,
    cuts,
    labels_in,
    mostly_constant,
    names_in,
    noise,
    sizes,
    snapshot,
    voxels,
)
from tests.support.volumes import read_volume
from tests.support.waiting import SECONDS


@st.composite
def runs(draw):
    longest = draw(st.sampled_from([3, 12, 25, 25, 50, 80]))
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    size = draw(sizes(shape))
    region = draw(st.none() | cuts(Lattice(shape, choose_step(shape, **size))))
    image, window = draw(voxels(shape))
    boundaries = draw(st.sampled_from([None, None, None, "gradient", "map"]))
    if boundaries == "map":
        boundaries, _ = draw(voxels(shape))
    return image, {**size, "window": window, "boundaries": boundaries}, region


@st.composite
def any_runs(draw):
    """Draw a tiny volume of any kind, and any of the options that its labels depend on."""
    shape = draw(st.tuples(*[st.integers(1, draw(st.sampled_from([4, 9, 15])))] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    options = {**draw(sizes(shape)), "region": draw(st.sampled_from([4, 7, 11, (5, 9, 30)]))}
    count = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, windows = zip(*(draw(voxels(shape)) for _ in range(count)), strict=True)
    image = channels[0]
    options["window"] = windows[0]
    if count > 1:
        axis = draw(st.sampled_from([0, -1]))
        image = np.asarray(np.stack(channels, axis=axis), order=draw(st.sampled_from("CF")))
        options |= {"channel_axis": axis, "window": draw(st.sampled_from([None, windows]))}
        options["weights"] = draw(st.sampled_from([None, (1, 0.5, 2)[:count]]))
    if draw(st.booleans()):
        # Hot pixels, which give bins a knee.
        limits = np.iinfo(image.dtype) if image.dtype.kind in "iu" else np.finfo(image.dtype)
        image = np.where(rng.random(image.shape) < 0.04, image.dtype.type(limits.max // 2), image)
    if draw(st.integers(0, 4)) == 0:
        image = np.ma.array(image, mask=rng.random(image.shape) < 0.2)
    options |= {
        "percentiles": draw(st.sampled_from([(0.5, 99.5), (0, 100), (2, 90.5), "5,99.99"])),
        "mask": draw(st.sampled_from([None, None, "auto", "given", "given", "coarser", "masked"])),
        "bins": draw(st.sampled_from(["auto", "auto", "linear", "equalised"])),
        "compactness": draw(st.sampled_from([0, 0, 0.3, 30])),
        "min_size": draw(st.sampled_from([0, None, None, 20])),
        "levels": draw(st.sampled_from([0, 0, 2])),
    }
    boundaries = draw(st.sampled_from([None, None, "image", "dark", "gradient", "map", "map"]))
    if boundaries is not None:
        options |= {"compactness": 0, "boundaries": draw(voxels(shape))[0] if boundaries == "map" else boundaries}
    if options["mask"] not in (None, "auto"):
        factors = draw(st.tuples(*[st.integers(1, 4)] * 3)) if options["mask"] == "coarser" else (1, 1, 1)
        inside = rng.random([-(-n // f) for n, f in zip(shape, factors, strict=True)]) < rng.choice([0.3, 0.9])
        hidden = rng.random(inside.shape) < 0.3
        options["mask"] = np.ma.array(inside, mask=hidden) if options["mask"] == "masked" else inside * np.uint8(3)
    return image, options


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_runs(), st.sampled_from([1, 3]))
def test_tasks_give_the_labels_of_the_whole_with_any_options(run, threads):
    """Tiny volumes, all options, without a cluster: the tests below do the same on Dask, with fewer of both."""
    image, options = run
    whole = {name: value for name, value in options.items() if name != "region"}
    with TemporaryDirectory() as folder:
        results = [
            result_or_error(lambda: supervoxels(image, **whole, threads=threads)),
            result_or_error(lambda: cut_by_tasks(image, folder, **options)),
        ]
    if isinstance(results[1], str):
        assert results[0] == results[1]
        return
    expected = results[0] if options["levels"] else (results[0], [])
    np.testing.assert_array_equal(results[1][0], expected[0])
    assert len(results[1][1]) == len(expected[1])
    for parents, others in zip(results[1][1], expected[1], strict=True):
        np.testing.assert_array_equal(parents, others)


def result_or_error(function):
    try:
        return function()
    except ValueError as error:
        return str(error).rstrip(".")


LARGEST = noise((80, 80, 80), dtype="uint16")


@pytest.mark.slow
@settings(max_examples=18, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example((LARGEST, {"step": (16, 9, 12)}, (32, 28, 50)), "array", 4)
@given(runs(), st.sampled_from(["array", "array", 16, 61]), st.sampled_from([1, 4]))
def test_any_cut_gives_the_labels_of_the_whole(clients, run, stored, threads):
    image, parameters, region = run
    expected = supervoxels(image, **parameters)
    progress = Recorder()
    with TemporaryDirectory() as folder:
        source = image if stored == "array" else as_zarr(f"{folder}/image.zarr", image, stored)
        report = segment(
            source, f"{folder}/labels.zarr", region=region, client=clients[threads], progress=progress, **parameters
        )
        np.testing.assert_array_equal(labels_in(report.target), expected)
        assert set(names_in(folder)) <= {"labels.zarr", "image.zarr"}
    assert report.supervoxels == expected.max()
    if not any(
        np.isnan(array).any() for array in (image, parameters.get("boundaries")) if isinstance(array, np.ndarray)
    ):
        assert report.supervoxels == prod(report.cells)
    if region is not None:
        cells = [-(-e // s) for e, s in zip(region, report.step, strict=True)]
        assert report.regions == prod(-(-n // k) for n, k in zip(report.cells, cells, strict=True))
    assert_events_in_order(progress.events, report)


@pytest.mark.slow
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mostly_constant(), st.sampled_from([8, 12, (5, 40, 9)]))
def test_regions_that_rest_are_left_out_and_no_label_changes(clients, tmp_path_factory, case, region):
    image, parameters = case
    target = tmp_path_factory.mktemp("rest") / "labels.zarr"
    progress = Recorder()
    report = segment(image, target, region=region, client=clients[1], progress=progress, **parameters)
    np.testing.assert_array_equal(labels_in(target), supervoxels(image, **parameters))
    assert_events_in_order(progress.events, report)


def test_a_background_rests(clients, tmp_path, monkeypatch):
    """Only one end has structure: elsewhere every round that may rest is skipped, and the labels are right."""
    image = np.zeros((16, 16, 160), np.uint8)
    image[:, :, :12] = np.random.default_rng(0).normal(60, 20, (16, 16, 12)).clip(0, 120)
    swept = Counter()
    finish = Pipeline.finish

    def counted(self, task, *result):
        if task[0].is_round:
            swept[task[0].turn] += 1
        finish(self, task, *result)

    monkeypatch.setattr(Pipeline, "finish", counted)
    report = segment(image, tmp_path / "labels.zarr", step=8, region=16, window=(0, 120), client=clients[1])
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(image, step=8, window=(0, 120)))
    rounds = schedule(Lattice(image.shape, (8, 8, 8)))
    assert [turn for turn in range(len(rounds)) if swept[turn] < report.regions] == [
        turn for turn in range(len(rounds)) if may_rest(rounds, turn)
    ]
    assert min(swept.values()) < report.regions // 2


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(runs(), st.sampled_from([0, 1 << 18, 1 << 40]), st.integers(0, 2**32), st.sampled_from([1, 4]))
@example((noise((24, 30, 41)), {"step": 8}, (16, 16, 16)), 1 << 40, 0, 4)
@example((noise((24, 30, 41)), {"step": 8}, (16, 16, 16)), 1 << 18, 1, 1)
def test_states_that_are_lost_or_given_up_are_made_again(clients, run, room, seed, threads):
    """Whatever a process forgets at whatever moment, and however little it may keep."""
    image, parameters, region = run
    chance, take = random.Random(seed), Residents.take

    def forgetful(self, *key):
        state = take(self, *key)
        return None if chance.random() < 0.3 else state

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dseeds.engine.driver.resident_room", lambda *_: room)
        patch.setattr(Residents, "take", forgetful)
        report = segment(image, f"{folder}/labels.zarr", region=region, client=clients[threads], **parameters)
        np.testing.assert_array_equal(labels_in(report.target), supervoxels(image, **parameters))


def assert_events_in_order(events, report):
    """Check that every stage begins once with its number of tasks, advances as often, and ends once."""
    for stage in report.stages:
        own = [(event, number) for event, name, number in events if name == stage.name]
        total = stage.tasks + stage.skipped
        advances = [("advance", number) for number in range(1, total + 1)]
        assert own == [("begin", total), *advances, ("end", None)]
    assert {name for _, name, _ in events} == {stage.name for stage in report.stages} <= set(STAGES)
    if report.rounds:
        sweeps = sum(stage.tasks + stage.skipped for stage in report.stages if stage.name.startswith("sweep"))
        assert sweeps == report.rounds * report.regions


@pytest.fixture(scope="module")
def ct():
    """The whole abdominal CT, shape (112, 101, 122), with its labels at step 8."""
    image = read_volume("ct_3mm", "ct.nii.gz")
    assert image.shape == (112, 101, 122)
    return DATA / "ct_3mm" / "ct.nii.gz", image, supervoxels(image, step=8, window=(-150, 250))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "region", "regions"),
    [
        ("zarr", 64, 8),
        ("nifti", (50, 37, 61), 12),
        ("zarr", (16, 500, 500), 7),
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
        # The last voxel belongs to the cell before it, and so to its region.
        (8, 128, (129, 129, 129), 1),
        # The last voxel is a cell of its own, and a region of one plane.
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
    _, components = skimage.measure.label(labels, connectivity=1, background=-1, return_num=True)
    assert components == prod(counts)
    # No voxel moves further than a cell, but many move.
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
    """Return all files, without the run's duration and workers in the attributes."""
    files = snapshot(target)
    known = json.loads((target / "zarr.json").read_bytes())
    assert known["attributes"]["dseeds"].pop("report")["supervoxels"] > 0
    del known["attributes"]["dseeds"]["plan"]
    return {**files, "zarr.json": known}


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "followed"), [(1, False), (2, True)])
def test_processes_are_equal_to_threads(tmp_path, clients, capfd, workers, followed):
    image = noise((40, 30, 55), dtype="int16")
    source = as_zarr(tmp_path / "image.zarr", image, 32)
    segment(image, tmp_path / "threads.zarr", step=8, region=30, client=clients[workers**2])
    progress = Recorder() if followed else None
    report = segment(
        source, tmp_path / "processes.zarr", step=8, region=30, workers=workers, memory="1GiB", progress=progress
    )
    np.testing.assert_array_equal(labels_in(tmp_path / "processes.zarr"), labels_in(tmp_path / "threads.zarr"))
    # Without a progress, the address is printed.
    link = progress.link if followed else re.fullmatch("Dask dashboard: (.*)\n", capfd.readouterr().err)[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", link)
    assert report.workers == len(report.peak_memory) == workers
    # Separate processes, each within its memory limit.
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
        assert run.result(SECONDS).regions > 1
        np.testing.assert_array_equal(labels_in(tmp_path / f"{n}.zarr"), supervoxels(image, step=8))
