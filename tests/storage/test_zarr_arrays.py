"""Zarr arrays in scratch: no two tasks write to one file, and damage is detected."""

import pickle
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zarr.core import codec_pipeline

from dseeds.core.geometry import Box, Lattice, Regions
from dseeds.engine.scratch import Scratch
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import Layout, ScratchCorrupted, chunk_length, read_array, write_array


@given(st.integers(1, 3000), st.integers(1, 200))
@example(256, 64)
@example(67, 64)
def test_a_chunk_is_the_divisor_nearest_to_the_target(extent, target):
    def distance(length):
        return max(Fraction(length, target), Fraction(target, length))

    length = chunk_length(extent, target)
    assert extent % length == 0
    assert all(distance(length) <= distance(d) for d in range(1, extent + 1) if extent % d == 0)


@st.composite
def cuts(draw):
    """Return a lattice with regions; the last cell may include a remainder, and the last regions may be short."""
    step = draw(st.tuples(*[st.integers(1, 9)] * 3))
    shape = tuple(draw(st.integers(1, 4 * s)) for s in step)
    lattice = Lattice(shape, step)
    return Regions(lattice, draw(st.tuples(*[st.integers(1, n) for n in lattice.cells])))


def files(folder):
    """Return all files with the attributes that change when they are rewritten."""
    length = {path: path.stat() for path in Path(folder).rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in length.items()}


@settings(max_examples=12)
@given(cuts())
@example(Regions(Lattice((11, 9, 129), (8, 4, 8)), (1, 1, 5)))
@example(Regions(Lattice((129, 4, 4), (8, 4, 4)), (16, 1, 1)))
def test_no_file_is_written_by_two_regions(regions):
    """Neither of an array of cells nor of one with a piece for each region."""
    pieces = Layout.cut((*regions.counts, 3), np.int64, (1, 1, 1, 3), 1)
    with TemporaryDirectory() as folder:
        store = Scratch(folder, regions)
        layouts = {**store.layouts, "digits-0": pieces}
        store.create(layouts)
        for name, layout in layouts.items():
            for number in range(len(regions)):
                box = regions.around(number, 0) if layout is pieces else regions.box(number)
                before = files(folder)
                store.write(name, box, np.full((*box.shape, *layout.shape[3:]), number + 1, layout.dtype))
                after = files(folder)
                assert before.items() <= after.items(), "a file of another region has changed"
                assert len(after) > len(before)
            whole = store.read(name, Box((0, 0, 0), layout.shape[:3]))
            assert (whole > 0).all(), "the regions make up the array"


def array_in(folder, shape, dtype, shard, target):
    Layout.cut(shape, dtype, shard, target).create(Path(folder) / "a")
    return zarr.open_array(Path(folder) / "a", mode="r")


@pytest.fixture(params=["BatchedCodecPipeline", "FusedCodecPipeline"])
def pipeline(request):
    """Have zarr encode and decode by one of its pipelines, which a user may choose by an environment variable."""
    if not hasattr(codec_pipeline, request.param):
        pytest.skip(f"zarr {zarr.__version__} has no {request.param}")
    with zarr.config.set({"codec_pipeline.path": f"{codec_pipeline.__name__}.{request.param}"}):
        yield request.param


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "flipped", "zeroed", "exchanged"])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 8, 8)])
@pytest.mark.parametrize("value", [0, 7])
def test_damage_is_detected(tmp_path, how, shape, value, pipeline):
    """Missing zeros are damage too, although zarr itself does not store them."""
    array = array_in(tmp_path, shape, np.uint16, (4, 4, 4), 2)
    assert type(array.async_array.codec_pipeline).__name__ == pipeline
    whole = Box((0, 0, 0), shape)
    write_array(open_location(tmp_path), "a", whole, np.full(shape, value, np.uint16))
    np.testing.assert_array_equal(read_array(open_location(tmp_path), "a", whole), value)
    path = tmp_path / "a" / "c" / "1" / "0" / "1"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "exchanged":
        path.write_bytes(b"\xff" * len(content))
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        path.write_bytes(
            {"empty": b"", "truncated": content[:-3], "flipped": flipped, "zeroed": bytes(len(content))}[how]
        )
    with pytest.raises(ScratchCorrupted, match="a in scratch is damaged") as caught:
        read_array(open_location(tmp_path), "a", whole)
    assert (caught.value.name, caught.value.box) == ("a", whole)
    assert pickle.loads(pickle.dumps(caught.value)).box == whole
    # The rest can be read, and the damaged part rewritten.
    first = Box((0, 0, 0), (4, 4, 4))
    np.testing.assert_array_equal(read_array(open_location(tmp_path), "a", first), value)
    box = Box((4, 0, 4), (8, 4, 8))
    write_array(open_location(tmp_path), "a", box, np.full(box.shape, value, np.uint16))
    np.testing.assert_array_equal(read_array(open_location(tmp_path), "a", whole), value)


@st.composite
def boxes(draw):
    """Return an array cut into shards, and a box in it."""
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    shard = draw(st.tuples(*[st.integers(1, 5)] * 3))
    lo = [draw(st.integers(0, n - 1)) for n in shape]
    hi = [draw(st.integers(a + 1, n)) for a, n in zip(lo, shape, strict=True)]
    if draw(st.booleans()):
        lo = [a // s * s for a, s in zip(lo, shard, strict=True)]
        hi = [min(n, -(-h // s) * s) for h, s, n in zip(hi, shard, shape, strict=True)]
    return shape, shard, Box(tuple(lo), tuple(hi))


@settings(max_examples=150)
@given(boxes())
@example(((4, 4, 4), (2, 2, 2), Box((0, 0, 0), (3, 4, 4))))
@example(((5, 4, 4), (2, 2, 2), Box((4, 0, 0), (5, 4, 4))))
@example(((5, 4, 4), (2, 2, 2), Box((3, 0, 0), (5, 4, 4))))
def test_only_whole_shards_are_written(case):
    shape, shard, box = case
    # At the end of the array, the part of a shard that exists counts as whole.
    touched = np.zeros(shape, bool)
    touched[box.slices] = True
    axes = [np.arange(n) // s for n, s in zip(shape, shard, strict=True)]
    number = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), shape)
    whole = not set(number[touched].tolist()) & set(number[~touched].tolist())
    with TemporaryDirectory() as folder:
        array = array_in(folder, shape, np.uint16, shard, 2)
        if whole:
            write_array(open_location(folder), "a", box, np.full(box.shape, 9, np.uint16))
            np.testing.assert_array_equal(array[:] == 9, touched)
        else:
            before = files(folder)
            with pytest.raises(RuntimeError, match="not made up of whole shards"):
                write_array(open_location(folder), "a", box, np.full(box.shape, 9, np.uint16))
            assert files(folder) == before


def test_further_axes_are_not_cut(tmp_path):
    array = array_in(tmp_path, (6, 6, 6, 32), np.uint32, (4, 4, 4, 32), 2)
    assert (array.shards, array.chunks) == ((4, 4, 4, 32), (2, 2, 2, 32))
    write_array(open_location(tmp_path), "a", Box((4, 0, 4), (6, 4, 6)), np.ones((2, 4, 2, 32), np.uint32))
    assert int(array[:].sum()) == 2 * 4 * 2 * 32
    with pytest.raises(RuntimeError):
        write_array(open_location(tmp_path), "a", Box((4, 1, 4), (6, 4, 6)), np.ones((2, 3, 2, 32), np.uint32))
