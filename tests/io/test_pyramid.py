"""Coarser levels against plain NumPy, however they are cut and wherever the tasks run."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.io.pyramid import build_pyramid
from dseeds.io.pyramid_levels import TOP_EXTENT, PyramidLevel, choose_levels, compute_resolutions
from dseeds.parallel.executor import Executor
from tests.support.clusters import in_process

LABELS, INTEGERS = ("uint32", "uint64"), ("uint8", "int16", ">i2", "int64", "uint64")


def blocks(volume, factors):
    """Yield the voxels of each block along (z, y, x), flat."""
    shape = [-(-n // f) for n, f in zip(volume.shape, factors, strict=True)]
    for place in itertools.product(*map(range, shape)):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(place, factors, strict=True))
        yield place, volume[box].reshape(-1)


def expected(volume, factors, method):
    out = np.empty([-(-n // f) for n, f in zip(volume.shape, factors, strict=True)], volume.dtype)
    for place, block in blocks(volume, factors):
        if method == "nearest":
            out[place] = block[0]
        elif method == "mode":
            labels, counts = np.unique(block, return_counts=True)
            out[place] = labels[np.argmax(counts)]
        elif volume.dtype.kind == "f":
            out[place] = np.nan if np.isnan(block).all() else np.float32(np.nanmean(block.astype(np.float64)))
        else:
            # Python rounds halves to the even neighbour.
            out[place] = round(Fraction(sum(map(int, block)), len(block)))
    return out


def write(folder, volume, chunks, shards=None):
    zarr.create_array(f"{folder}/0", data=volume, chunks=chunks, shards=shards)


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    factors = draw(st.tuples(*[st.integers(1, 4)] * 3))
    method = draw(st.sampled_from(["mode", "nearest", "mean"]))
    dtype = np.dtype(draw(st.sampled_from(LABELS if method == "mode" else (*INTEGERS, "float16", "float32"))))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "f":
        volume = rng.choice([0.5, 1.25, -3, np.nan], shape)
    elif method == "mode" or draw(st.booleans()):
        volume = rng.choice(np.array([np.iinfo(dtype).max, 0, 5], dtype), shape)
    else:
        volume = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype.newbyteorder("=").type)
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return volume.astype(dtype), factors, method, chunks


@given(cases())
@settings(max_examples=50)
def test_levels_are_those_of_plain_numpy(tmp_path_factory, case):
    volume, factors, method, chunks = case
    folder = str(tmp_path_factory.mktemp("pyramid"))
    write(folder, volume, chunks)
    once = tuple(-(-n // f) for n, f in zip(volume.shape, factors, strict=True))
    twice = tuple(-(-n // f) for n, f in zip(once, factors, strict=True))
    build_pyramid(folder, method, [PyramidLevel(once, factors), PyramidLevel(twice, factors)])
    one = expected(volume, factors, method)
    np.testing.assert_array_equal(zarr.open_array(f"{folder}/1")[:], one)
    np.testing.assert_array_equal(zarr.open_array(f"{folder}/2")[:], expected(one, factors, method))


def test_neither_cut_nor_executor_makes_a_difference(tmp_path, ct_3mm):
    organs = ct_3mm[1].astype(np.uint32)
    levels = PyramidLevel((56, 48, 60), (2, 2, 2)), PyramidLevel((56, 24, 30), (1, 2, 2))
    results = []
    with in_process(2) as client:
        for number, (chunks, shards, executor) in enumerate(
            [
                ((112, 96, 120), None, Executor(1)),
                ((16, 16, 24), (32, 48, 48), Executor(3)),
                ((7, 32, 30), None, Executor(0, client)),
            ]
        ):
            folder = str(tmp_path / str(number))
            write(folder, organs, chunks, shards)
            build_pyramid(folder, "mode", levels, executor=executor)
            results.append([zarr.open_array(f"{folder}/{level}")[:] for level in (1, 2)])
    np.testing.assert_array_equal(results[0][0], expected(organs, (2, 2, 2), "mode"))
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_channels_have_levels_of_their_own(tmp_path):
    image = np.random.default_rng(0).integers(0, 999, (2, 5, 8, 9)).astype(np.int16)
    write(tmp_path, image, (1, 2, 4, 4), (2, 4, 4, 8))
    build_pyramid(str(tmp_path), "mean", [PyramidLevel((3, 4, 5), (2, 2, 2))])
    level = zarr.open_array(tmp_path / "1")
    assert level.shape == (2, 3, 4, 5)
    assert level.shards == (2, 2, 4, 4)
    for channel in (0, 1):
        np.testing.assert_array_equal(level[channel], expected(image[channel], (2, 2, 2), "mean"))


@given(st.tuples(*[st.integers(1, 3000)] * 3), st.tuples(*[st.sampled_from([0.1, 0.5, 1.0, 1.4, 3.0])] * 3))
def test_halvings_end_and_bring_voxels_nearer_to_cubes(shape, spacing):
    levels = choose_levels(shape, spacing)
    assert (not levels) == (max(shape) <= TOP_EXTENT)
    before, sizes = shape, np.array(spacing)
    for level in levels:
        assert level.shape == tuple(-(-n // f) for n, f in zip(before, level.factors, strict=True))
        long = np.array([n > 64 for n in before])
        sizes_after = sizes * level.factors
        assert level.factors[int(np.argmin(np.where(long, sizes, np.inf)))] == 2
        ratio, after = np.ptp(np.log(sizes[long])), np.ptp(np.log(sizes_after[long]))
        assert after <= max(ratio, math.log(2)) + 1e-9
        before, sizes = level.shape, sizes_after
    assert max(before) <= TOP_EXTENT


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4))
def test_a_block_lies_where_the_mean_of_its_voxels_does(steps):
    place = np.arange(256.0)
    levels, shape = [], (256,) * 3
    for factors in steps:
        shape = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
        levels.append(PyramidLevel(shape, factors))
    last = compute_resolutions(levels, "mean")[-1]
    first = compute_resolutions(levels, "nearest")[-1]
    for axis in range(3):
        size = math.prod(factors[axis] for factors in steps)
        assert last.scale[axis] == first.scale[axis] == size
        assert last.offset[axis] == place[:size].mean()
        assert first.offset[axis] == place[0]


def test_arrays_without_levels_are_refused(tmp_path):
    write(tmp_path / "flat", np.zeros((4, 4), np.uint8), (4, 4))
    write(tmp_path / "floats", np.zeros((4, 4, 4), np.float32), (4, 4, 4))
    with pytest.raises(ValueError, match="three axes"):
        build_pyramid(str(tmp_path / "flat"), "mode", [])
    with pytest.raises(ValueError, match="have no mode"):
        build_pyramid(str(tmp_path / "floats"), "mode", [])
    with pytest.raises(ValueError, match="not 'median'"):
        build_pyramid(str(tmp_path / "floats"), "median", [])


def test_damage_is_reported(tmp_path):
    write(tmp_path / "a", np.arange(64, dtype=np.uint32).reshape(4, 4, 4), (4, 4, 4))
    [chunk] = [path for path in (tmp_path / "a" / "0" / "c").rglob("*") if path.is_file()]
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot be read back .*damaged since"):
        build_pyramid(str(tmp_path / "a"), "mode", [PyramidLevel((2, 2, 2), (2, 2, 2))])
