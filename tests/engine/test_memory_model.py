"""Sizes before anything runs: what a task is projected to need is what it needs, and regions fit the workers."""

import re
import tracemalloc
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import zarr
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Lattice, Regions
from dseeds.engine.driver import begin_labels
from dseeds.engine.exchange import Exchange
from dseeds.engine.memory_model import (
    DEFAULT_CHUNKS,
    SPREAD_EXTENT,
    TaskShape,
    choose_region_shape,
    resident_bytes,
    room_beside_tasks,
    stage_bytes,
    state_bytes,
    task_bytes,
    worker_bytes,
)
from dseeds.engine.run import RunOptions, chunk_shapes
from dseeds.engine.source_import import import_source
from dseeds.engine.tasks import perform_task
from dseeds.engine.validation import prepare_run, task_shape
from dseeds.engine.wavefront import wave_depth
from dseeds.parallel.capacity import READ_AT_ONCE, Capacity, parse_memory
from dseeds.seeds.schedule import schedule

GIB = 1 << 30


def dump(peaks, projected):
    return {s: (p, projected[s]) for s, p in peaks.items() if p > projected[s] + (1 << 18)}


# A coarse mask that cuts a volume into parts.
SIEVE = np.random.default_rng(0).random((24, 24, 24)) < 0.6


def workers(memory, number=1, threads=1):
    return Capacity(number, number * threads, memory, threads)


@st.composite
def lattices(draw, longest=2000):
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    step = draw(st.tuples(*[st.integers(2, 40)] * 3) | st.integers(2, 40).map(lambda s: (s, s, s)))
    return Lattice(shape, step)


@st.composite
def cuts(draw):
    lattice = draw(lattices(400))
    return lattice, tuple(draw(st.integers(1, min(n, 12))) for n in lattice.cells)


@settings(max_examples=30)
@given(cuts(), st.sampled_from([1, 2, 4, 8]))
@example((Lattice((160, 160, 256), (16, 16, 16)), (8, 8, 8)), 1)
@example((Lattice((160, 160, 256), (16, 16, 16)), (9, 9, 15)), 8)
def test_a_task_holds_at_least_its_region(cut, itemsize):
    """The largest one, wherever it lies: its voxels and their bins, and its codes and their labels."""
    lattice, cells = cut
    regions = Regions(lattice, cells)
    corners = np.ravel_multi_index(np.meshgrid(*[(0, n - 1) for n in regions.counts]), regions.counts)
    largest = max(lattice.grids[-1].units_of(regions.box(int(number))).size for number in corners.flat)
    assert task_bytes(lattice, cells, TaskShape(itemsize)) >= largest * max(
        itemsize + 1, 1 + lattice.label_dtype.itemsize
    )


@settings(max_examples=30)
@given(cuts(), st.sampled_from([1, 2, 4, 8]), st.data())
def test_a_larger_region_needs_no_less(cut, itemsize, data):
    lattice, cells = cut
    larger = tuple(data.draw(st.integers(k, n)) for k, n in zip(cells, lattice.cells, strict=True))
    assume(prod(larger) < 2000)
    few, more = (task_bytes(lattice, these, TaskShape(itemsize)) for these in (cells, larger))
    # Nearly: where the one in the middle lies makes a difference, and how many chunks its window touches.
    assert more >= 0.5 * few
    assert task_bytes(lattice, cells, TaskShape(itemsize + 1)) >= few


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "step", "region", "dtype", "cut"),
    [
        ((100, 64, 120), 8, 64, "uint16", {}),
        ((100, 110, 120), 16, 64, "float64", {}),
        ((96, 96, 96), 3, 96, "uint8", {}),
        ((60, 128, 200), (4, 16, 16), (32, 128, 128), "float32", {}),
        ((90, 90, 90), 45, 90, "int16", {}),
        ((112, 112, 112), 16, 96, "uint16", {}),
        ((96, 96, 96), 4, 64, "uint16", {}),
        ((160, 160, 160), 8, 128, "uint16", {"shards": 64}),
        ((160, 160, 160), 8, 128, "uint16", {"chunks": 128}),
        ((96, 96, 96), 8, 48, "uint16", {"mask": SIEVE, "min_size": 50}),
        ((96, 96, 96), 16, 64, "float32", {"mask": "auto", "bins": "equalised"}),
        ((96, 96, 96), 8, 64, "uint8", {"levels": 2, "bins": "equalised"}),
        ((4, 64, 64, 96), 8, 64, "int16", {"channel_axis": 0}),
    ],
)
def test_a_task_needs_what_was_projected(tmp_path, shape, step, region, dtype, cut):
    """Measured in a run without Dask, with what workers set of zarr's."""
    chunks = (1, 64, 64, 64)[-len(shape) :]
    source = zarr.create_array(tmp_path / "image.zarr", shape=shape, dtype=dtype, chunks=chunks)
    source[:] = (60 + 10 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    asked = RunOptions(step=step, region=region, **cut)
    run, _ = prepare_run(tmp_path / "image.zarr", tmp_path / "labels.zarr", asked, lambda: workers(64 * GIB))
    state = run.state()
    run.create_scratch(state)
    import_source(run, state.job, lambda: None)
    begin_labels(run, state.job)
    job, peaks = state.job, {}

    def measure(phase, number):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        perform_task(state.job, phase, number, state.task_input(phase, number))
        peak = tracemalloc.get_traced_memory()[1] - before
        peaks[phase.stage] = max(peak, peaks.get(phase.stage, 0))

    with zarr.config.set({"async.concurrency": READ_AT_ONCE}):
        while (phase := state.current) is not None:
            # Once without a look at the memory, which compiling takes too.
            numbers = state.regions(phase)
            marks = {n: perform_task(state.job, phase, n, state.task_input(phase, n)).outcome for n in numbers}
            tracemalloc.start()
            try:
                # One at each end and one in the middle are enough of a look, which takes its time.
                for number in {numbers[0], numbers[len(numbers) // 2], numbers[-1]} if numbers else ():
                    measure(phase, number)
            finally:
                tracemalloc.stop()
            state.close(phase, marks)
    chunks = chunk_shapes(run.image, run.spec.label_chunk)
    load = task_shape(run.image, run.spec.parameters)
    projected = stage_bytes(job.lattice, job.region, load, chunks)
    # No stage takes more than was projected, but for what does not grow, and a chunk that is fetched while
    # others are decoded; and all of them not half of it, or workers would idle.
    slack = (1 << 18) + run.image.itemsize * 64**3
    assert all(peak <= projected[stage] + slack for stage, peak in peaks.items()), dump(peaks, projected)
    largest = max(peaks.values())
    if "mask" not in cut:
        # Floating-point numbers may be NaN, which is masked out; these are not.
        projected = stage_bytes(job.lattice, job.region, replace(load, masked=False), chunks)
    assert largest <= max(projected.values()) + (1 << 18) <= 2 * largest, (peaks, projected)


@settings(max_examples=25)
@given(lattices(), st.sampled_from([1, 2, 8]), st.integers(1, 64), st.integers(1, 16), st.data())
def test_regions_fit_the_workers(lattice, itemsize, number, threads, data):
    memory = data.draw(st.integers(1, 64)) * GIB // 4
    has = workers(memory, number, threads)
    try:
        cells = choose_region_shape(lattice, TaskShape(itemsize), has)
    except ValueError:
        smallest = task_bytes(lattice, (1, 1, 1), TaskShape(itemsize))
        assert worker_bytes(smallest, threads) > memory / 2
        return
    assert min(cells) >= 1
    assert worker_bytes(task_bytes(lattice, cells, TaskShape(itemsize)), threads) <= memory
    # With more memory, the busiest thread never has more to do, unless only memory makes regions so small, or so that
    # fewer states find no room.
    richer = choose_region_shape(lattice, TaskShape(itemsize), workers(4 * memory, number, threads))
    is_small = min(k * s for k, s in zip(cells, lattice.step, strict=True)) < SPREAD_EXTENT
    has_room = resident_bytes(lattice, cells, TaskShape(itemsize), has, DEFAULT_CHUNKS) <= memory
    is_less = busiest(lattice, richer, number * threads) <= busiest(lattice, cells, number * threads)
    assert is_small or not has_room or is_less


@settings(max_examples=20)
@given(cuts(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_with_the_memory_that_keeps_all_regions_there_is_room_for_them(cut, channels, number, threads):
    lattice, cells = cut
    task = TaskShape(2 * channels, channels)
    needed = resident_bytes(lattice, cells, task, workers(0, number, threads), DEFAULT_CHUNKS)
    states = state_bytes(lattice, cells, task) * -(-len(Regions(lattice, cells)) // number)
    room = room_beside_tasks(lattice, cells, task, workers(needed + 2, number, threads), DEFAULT_CHUNKS)
    assert states <= room <= states + 4
    # A state holds the bins and the codes of its region at least.
    assert state_bytes(lattice, cells, task) >= (channels + 1) * min(prod(lattice.shape), prod(cells))


def busiest(lattice, cells, threads):
    """Return the voxels, with halos, of the thread that has the most regions."""
    counts = [-(-n // k) for n, k in zip(lattice.cells, cells, strict=True)]
    lengths = zip(counts, cells, lattice.step, lattice.shape, strict=True)
    window = prod(min(k * s, n) + min(count - 1, 2) * 12 for count, k, s, n in lengths)
    return -(-prod(counts) // threads) * window


@settings(max_examples=60)
@given(lattices(), st.integers(1, 64))
@example(Lattice((200, 200, 200), (200, 200, 200)), 4)
@example(Lattice((1000, 1000, 1000), (340, 340, 340)), 2)
@example(Lattice((1, 1, 1), (2, 2, 2)), 1)
@example(Lattice((300, 2, 2), (150, 2, 2)), 8)
def test_with_memory_to_spare_there_is_always_a_region(lattice, number):
    cells = choose_region_shape(lattice, TaskShape(2), workers(1 << 50, number))
    extents = [k * s for k, s in zip(cells, lattice.step, strict=True)]
    # Not so few that workers would idle, unless they are small or a single cell: halving them would not help.
    for axis in range(3):
        if cells[axis] > 1 and extents[axis] > 256:
            halves = tuple(-(-k // 2) if a == axis else k for a, k in enumerate(cells))
            assert busiest(lattice, cells, number) <= 1.1 * busiest(lattice, halves, number)


def test_a_region_of_a_large_volume_is_large():
    lattice = Lattice((4000, 4000, 4000), (16, 16, 16))
    cells = choose_region_shape(lattice, TaskShape(2), workers(16 * GIB, 8))
    # Layers along z may be thin, so that few regions are in work at a time.
    assert min(cells[1:]) * 16 >= 256
    assert prod(cells) * 16**3 >= 256**3
    assert len(Regions(lattice, cells)) >= 8
    # Threads share their worker's memory.
    assert prod(choose_region_shape(lattice, TaskShape(2), workers(2 * GIB, 1, 8))) < prod(cells)


def test_layers_of_a_tall_volume_are_thin_enough_to_stay_in_memory():
    """Of those that are in work at a time, so that states are not stored and loaded again."""
    lattice, task = Lattice((8192, 256, 256), (16, 16, 16)), TaskShape(2)
    capacity = workers(GIB, 2)
    cells = choose_region_shape(lattice, task, capacity)
    exchange = Exchange(Regions(lattice, cells), schedule(lattice))
    in_work = (wave_depth(exchange) + 1) * prod(exchange.regions.counts[1:])
    room = room_beside_tasks(lattice, cells, task, capacity, DEFAULT_CHUNKS)
    assert in_work * state_bytes(lattice, cells, task) <= 2 * room


@given(lattices(200), st.data())
def test_a_region_that_is_asked_for_is_rounded_up_to_whole_cells(lattice, data):
    region = data.draw(st.integers(1, 300) | st.tuples(*[st.integers(1, 300)] * 3))
    cells = choose_region_shape(lattice, TaskShape(1), workers(1 << 50), region=region)
    wanted = [region] * 3 if isinstance(region, int) else region
    for k, n, s, voxels in zip(cells, lattice.cells, lattice.step, wanted, strict=True):
        assert k == n or k * s >= voxels
        assert k == 1 or (k - 1) * s < voxels


@pytest.mark.parametrize("memory", [1, GIB // 4, GIB])
@pytest.mark.parametrize("region", [None, 4000])
def test_too_little_memory_is_said_in_a_sentence_that_helps(memory, region):
    lattice = Lattice((4000, 4000, 4000), (300, 300, 300))
    with pytest.raises(ValueError, match="memory") as caught:
        choose_region_shape(lattice, TaskShape(2), workers(memory, 2, 4), region=region)
    text = str(caught.value)
    assert "\n" not in text
    needed, given = (int(number) for number in re.findall(r"(\d+) MiB", text))
    assert needed > given
    # With what it says is needed, it works.
    assert choose_region_shape(lattice, TaskShape(2), workers(int((needed + 1) * (1 << 20)), 2, 4), region=region)


@pytest.mark.parametrize(
    "region", [0, -1, (8, 8), (8, 8, 8, 8), (8, 8, 8.5), (8, 0, 8), "large", float("nan"), (8, 8, float("inf"))]
)
def test_regions_that_are_none(region):
    with pytest.raises(ValueError, match="region must be"):
        choose_region_shape(Lattice((64, 64, 64), (8, 8, 8)), TaskShape(1), workers(GIB), region=region)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5kB", 1500), (12345, 12345), (np.int64(7), 7), ("1e6", 1000000)],
)
def test_amounts_of_memory(given, expected):
    assert parse_memory(given) == expected


@pytest.mark.parametrize("given", ["", "much", "-1GiB", 0, -5, "0", float("nan"), float("inf"), "12 apples", [1], None])
def test_no_amounts_of_memory(given):
    with pytest.raises(ValueError, match="memory must be a number of bytes such as 2GiB"):
        parse_memory(given)
