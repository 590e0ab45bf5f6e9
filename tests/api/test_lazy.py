"""Dask arrays in and out: the labels of the same image in memory, computed once, out of core and on demand."""

import gc
import pickle
import threading
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dseeds
from dseeds.api import lazy
from dseeds.io.formats import dask_array
from dseeds.phantom import phantom
from tests.support.clusters import in_process

SHAPE = 24, 28, 32
IMAGE, TRUTH = phantom(SHAPE)
STEP = 6
LABELS = dseeds.supervoxels(IMAGE, step=STEP)


@pytest.fixture(autouse=True)
def temporary(tmp_path):
    """The folder for all stored data."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with dask.config.set({"temporary-directory": str(folder)}):
        yield folder
    # As when this process ends.
    dask_array._SHARED.clear()


@pytest.fixture
def one_thread():
    """A cluster that deadlocks if a task waits for another."""
    with in_process(set_as_default=True) as client:
        yield client


@pytest.fixture
def cuts(monkeypatch):
    """All calls of `segment` by labels."""
    calls = []

    def counted(*sources, **options):
        calls.append(sources)
        return dseeds.segment(*sources, **options)

    monkeypatch.setattr(lazy, "segment", counted)
    return calls


def forbidden(block):
    raise AssertionError("a block was computed")


def chunks(length):
    """Draw the chunks of an axis."""
    return st.lists(st.integers(1, length - 1), max_size=3, unique=True).map(
        lambda ends: tuple(np.diff([0, *sorted(ends), length]).tolist())
    )


def same(result, expected):
    return result.dtype == expected.dtype and np.array_equal(result, expected)


@settings(max_examples=5)
@given(
    cut=st.tuples(*map(chunks, SHAPE)),
    options=st.fixed_dictionaries(
        {"window": st.sampled_from([None, (200, 1800)])},
        optional={
            "n_segments": st.integers(20, 120),
            "mask": st.sampled_from([TRUTH > 0, da.from_array(TRUTH[::2, ::2, ::2] > 0, chunks=5), "auto"]),
            "compactness": st.sampled_from([0.5]),
            "min_size": st.sampled_from([40]),
            "bins": st.just("equalised"),
        },
    ),
)
def test_labels_are_those_of_the_image_in_memory(cut, options):
    image = da.from_array(IMAGE, chunks=cut)
    labels = dseeds.supervoxels(image, **options)
    in_memory = {key: np.asarray(value) if isinstance(value, da.Array) else value for key, value in options.items()}
    assert labels.chunks == image.chunks
    assert same(labels.compute(scheduler="threads"), dseeds.supervoxels(IMAGE, **in_memory))


def test_channels():
    image = np.stack([IMAGE, TRUTH.astype(np.uint16)], axis=-1)
    expected = dseeds.supervoxels(image, step=STEP, channel_axis=-1, weights=(2, 1))
    labels = dseeds.supervoxels(da.from_array(image, chunks=(9, 28, 20, 2)), step=STEP, channel_axis=-1, weights=(2, 1))
    assert same(labels.compute(), expected)


def test_any_graph():
    parts = [da.from_array(IMAGE[:10], chunks=7), da.from_array(IMAGE[10:], chunks=9)]
    image = (da.concatenate(parts).astype(np.float64) * 2 + 1).rechunk((5, 28, 31))
    assert same(dseeds.supervoxels(image, step=STEP).compute(), dseeds.supervoxels(IMAGE * 2.0 + 1, step=STEP))


def test_nothing_is_computed_before_the_labels_are(temporary):
    image = da.map_blocks(forbidden, da.from_array(IMAGE, chunks=12), dtype=IMAGE.dtype, meta=np.empty((0, 0, 0)))
    labels = dseeds.supervoxels(image, step=STEP, mask=image > 0)
    assert (labels.shape, labels.dtype) == (SHAPE, np.uint32)
    assert not list(temporary.glob("dseeds-*"))
    with pytest.raises(AssertionError, match="was computed"):
        labels.compute(scheduler="synchronous")


def test_the_work_is_done_once_and_its_copy_of_the_image_is_removed(temporary, cuts):
    labels = dseeds.supervoxels(da.from_array(IMAGE, chunks=9), step=STEP)
    assert same(labels[5].compute(), LABELS[5])
    assert same((labels + 1)[:, 3:5].compute(), LABELS[:, 3:5] + 1)
    # Two threads at the same time.
    threads = [threading.Thread(target=labels.compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(cuts) == 1
    assert [path.name for path in temporary.glob("*/*/*")] == ["labels.zarr"]


def test_stored_data_are_removed_with_the_last_array(temporary):
    labels = dseeds.supervoxels(da.from_array(IMAGE, chunks=9), step=STEP)
    more = labels % 7
    del labels
    gc.collect()
    assert same(more.compute(), LABELS % 7)
    assert list(temporary.glob("dseeds-*"))
    del more
    gc.collect()
    assert not list(temporary.glob("dseeds-*"))


def test_one_thread_of_a_cluster_is_enough(one_thread, cuts):
    image = da.from_array(IMAGE, chunks=9).persist()
    labels = dseeds.supervoxels(image, step=STEP, mask=image > 0)
    assert same(labels.compute(), dseeds.supervoxels(IMAGE, step=STEP, mask=IMAGE > 0))
    assert same(labels[3].compute(), labels.compute()[3])
    assert len(cuts) == 1


def test_labels_that_were_sent_elsewhere_outlive_those_here():
    labels = dseeds.supervoxels(da.from_array(IMAGE, chunks=9), step=STEP)
    labels[0].compute()
    packed = pickle.dumps(labels)
    del labels
    gc.collect()
    assert same(pickle.loads(packed).compute(), LABELS)


def test_few_blocks_are_held_at_once():
    alive, most, lock = set(), [0], threading.Lock()

    def block(block_info=None):
        (z0, z1), *_ = block_info[None]["array-location"]
        values = np.array(IMAGE[z0:z1])
        with lock:
            alive.add(z0)
            most[0] = max(most[0], len(alive))
        weakref.finalize(values, alive.discard, z0)
        return values

    planes = da.map_blocks(block, chunks=((1,) * SHAPE[0], SHAPE[1:2], SHAPE[2:]), dtype=IMAGE.dtype)
    assert same(dseeds.supervoxels(planes, step=STEP, threads=2).compute(), LABELS)
    assert 0 < most[0] <= SHAPE[0] // 3


def test_memory_is_what_a_worker_may_use():
    labels = dseeds.supervoxels(da.from_array(IMAGE), step=STEP, memory="1MiB")
    with pytest.raises(ValueError, match="memory"):
        labels.compute()


def test_scratch(tmp_path, temporary):
    (tmp_path / "scratch").mkdir()
    labels = dseeds.supervoxels(da.from_array(IMAGE), step=STEP, scratch=tmp_path / "scratch")
    assert same(labels.compute(), LABELS)
    assert list((tmp_path / "scratch").iterdir())
    assert not list(temporary.glob("dseeds-*"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": 1}, ValueError, "cannot be lazy"),
        ({"step": 1}, ValueError, "at least 2"),
        ({"n_segments": 0}, ValueError, "n_segments"),
        ({"compactness": -1}, ValueError, "compactness"),
        ({"weights": (1, 2)}, ValueError, "weights"),
        ({"channel_axis": 7}, ValueError, "no axis 7"),
        ({"mask": np.ones((99, 99, 99))}, ValueError, "finer"),
        ({"memory": "much"}, ValueError, "memory"),
        ({"scratch": "/there/is/none"}, FileNotFoundError, "does not exist"),
    ],
)
def test_errors_are_raised_at_once(options, error, message):
    with pytest.raises(error, match=message):
        dseeds.supervoxels(da.from_array(IMAGE), **options)


def test_chunks_of_unknown_sizes():
    image = da.from_array(IMAGE, chunks=8)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        dseeds.supervoxels(image[image[:, 0, 0] >= 0])


def test_memory_and_scratch_are_for_dask_arrays():
    with pytest.raises(ValueError, match="for Dask arrays"):
        dseeds.supervoxels(IMAGE, memory="1GiB")


def test_as_sources(tmp_path, temporary, one_thread):
    image, truth = da.from_array(IMAGE, chunks=(9, 28, 32)), da.from_array(TRUTH, chunks=11)
    with pytest.raises(FileNotFoundError):
        # Before anything is computed.
        dseeds.segment(da.map_blocks(forbidden, image, dtype=image.dtype, meta=np.empty((0, 0, 0))), "no/folder.zarr")
    assert dseeds.plan(image, tmp_path / "labels.zarr", step=STEP, client=one_thread).supervoxels == LABELS.max()
    dseeds.segment(image, tmp_path / "labels.zarr", step=STEP, mask=truth > 0, region=(12, 28, 32), client=one_thread)
    masked = dseeds.supervoxels(IMAGE, step=STEP, mask=TRUTH > 0)
    assert same(zarr.open_array(tmp_path / "labels.zarr" / "0")[:], masked)
    labels = da.from_array(LABELS, chunks=10)
    result, expected = dseeds.features(labels, image), dseeds.features(LABELS, IMAGE)
    assert result.table.equals(expected.table)
    assert result.edges.equals(expected.edges)
    assert dseeds.evaluate(labels, truth, image=image) == dseeds.evaluate(LABELS, TRUTH, image=IMAGE)
    painted = dseeds.paint(labels, result, column="intensity_mean")
    assert painted.chunks == labels.chunks
    assert same(painted.compute(), dseeds.paint(LABELS, expected, column="intensity_mean").compute())
    gc.collect()
    assert not list(temporary.glob("dseeds-*"))


def test_other_work_of_the_process_keeps_its_scheduler(monkeypatch):
    """While labels are computed, Dask's configuration, which all threads share, is what it was."""
    seen = []

    def watched(*sources, **options):
        seen.append(dask.config.get("scheduler", None))
        return dseeds.segment(*sources, **options)

    monkeypatch.setattr(lazy, "segment", watched)
    before = dask.config.get("scheduler", None)
    image = np.random.default_rng(1).random((12, 12, 12))
    labels = dseeds.supervoxels(da.from_array(image, chunks=6), step=4).compute(scheduler="threads")
    np.testing.assert_array_equal(labels, dseeds.supervoxels(image, step=4))
    assert seen == [before]
