"""Scratch and output: no file is written by two tasks, and nothing that is not ours is removed."""

import json
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dseeds.lattice import Box, Lattice, Regions
from dseeds.rounds import schedule
from dseeds.store import (
    MARKER,
    Scratch,
    begin_target,
    check_target,
    chunk_length,
    create_array,
    is_ours,
    publish,
    region_units,
    remove_target,
    write,
)


@given(st.integers(1, 3000), st.integers(1, 200))
@example(256, 64)
@example(67, 64)
def test_a_chunk_is_the_divisor_nearest_to_what_is_wanted(extent, wanted):
    def distance(length):
        return max(Fraction(length, wanted), Fraction(wanted, length))

    found = chunk_length(extent, wanted)
    assert extent % found == 0
    assert all(distance(found) <= distance(d) for d in range(1, extent + 1) if extent % d == 0)


@st.composite
def cuts(draw):
    """A lattice and regions: remainders are folded into the last cell or not, last regions may be short."""
    step = draw(st.tuples(*[st.integers(1, 9)] * 3))
    shape = tuple(draw(st.integers(1, 4 * s)) for s in step)
    lattice = Lattice(shape, step)
    return Regions(lattice, draw(st.tuples(*[st.integers(1, n) for n in lattice.cells])))


def files(folder):
    """Every file, and what changes when it is written again."""
    found = {path: path.stat() for path in Path(folder).rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


@settings(max_examples=12)
@given(cuts())
@example(Regions(Lattice((11, 9, 129), (8, 4, 8)), (1, 1, 5)))
@example(Regions(Lattice((129, 4, 4), (8, 4, 4)), (16, 1, 1)))
def test_no_file_is_written_by_two_regions(regions):
    lattice = regions.lattice
    with TemporaryDirectory() as folder:
        store = Scratch(Path(folder), regions)
        store.create()
        arrays = {"bins": (store.bins(), lattice.grids[-1])}
        for turn, round_ in enumerate(schedule(lattice)):
            grid = lattice.grids[round_.level]
            arrays[f"codes {round_.level} {turn % 2}"] = (store.codes(turn, round_), grid)
            arrays[f"core {round_.bins} {turn % 2}"] = (store.core(turn, round_), None)
            arrays[f"statistics {round_.bins} {turn % 2}"] = (store.statistics(turn, round_), None)
        for level in range(len(lattice.grids) - 2):
            arrays[f"histograms {level}"] = (store.histograms(level), lattice.grids[level])
        shard = region_units(regions, lattice.grids[-1])
        arrays["labels"] = (create_array(Path(folder) / "labels", lattice.shape, "u4", shard, 64), lattice.grids[-1])
        for array, grid in arrays.values():
            for number in range(len(regions)):
                box = regions.box(number) if grid is None else grid.of_cells(regions.box(number))
                before = files(folder)
                write(array, box, np.full((*box.shape, *array.shape[3:]), number + 1, array.dtype))
                after = files(folder)
                assert before.items() <= after.items(), "a file of another region has changed"
                assert len(after) > len(before)
            assert (array[:] > 0).all(), "the regions make up the array"


@settings(max_examples=25)
@given(cuts())
def test_rounds_do_not_overwrite_what_they_read(regions):
    """What a round reads was written by the one before it, so the two must not share arrays."""
    with TemporaryDirectory() as folder:
        store = Scratch(Path(folder), regions)
        store.create()
        rounds = schedule(regions.lattice)
        for turn in range(len(rounds) - 1):
            for kind in (store.codes, store.core, store.statistics, store.shell):
                here, after = kind(turn, rounds[turn]), kind(turn + 1, rounds[turn + 1])
                assert here.store_path != after.store_path
            assert store.codes(turn, rounds[turn]).shape == regions.lattice.grids[rounds[turn].level].shape


@st.composite
def boxes(draw):
    """An array that is cut into shards, and any box of it."""
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
def test_a_part_of_a_shard_is_not_written(case):
    shape, shard, box = case
    # A shard is whole if the box holds all of it that there is.
    touched = np.zeros(shape, bool)
    touched[box.slices] = True
    axes = [np.arange(n) // s for n, s in zip(shape, shard, strict=True)]
    number = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), shape)
    whole = not set(number[touched].tolist()) & set(number[~touched].tolist())
    with TemporaryDirectory() as folder:
        array = create_array(Path(folder) / "a", shape, np.uint16, shard, 2)
        if whole:
            write(array, box, np.full(box.shape, 9, np.uint16))
            np.testing.assert_array_equal(array[:] == 9, touched)
        else:
            before = files(folder)
            with pytest.raises(RuntimeError, match="not made up of whole shards"):
                write(array, box, np.full(box.shape, 9, np.uint16))
            assert files(folder) == before


def test_further_axes_are_not_cut(tmp_path):
    array = create_array(tmp_path / "a", (6, 6, 6, 32), np.uint32, (4, 4, 4, 32), 2)
    assert (array.shards, array.chunks) == ((4, 4, 4, 32), (2, 2, 2, 32))
    write(array, Box((4, 0, 4), (6, 4, 6)), np.ones((2, 4, 2, 32), np.uint32))
    assert int(array[:].sum()) == 2 * 4 * 2 * 32
    with pytest.raises(RuntimeError):
        write(array, Box((4, 1, 4), (6, 4, 6)), np.ones((2, 3, 2, 32), np.uint32))


# The target.


def finished(target):
    begin_target(target)
    zarr.create_array(target / "0", data=np.arange(5))
    publish(target, {"dseeds": {"supervoxels": 5}, "ome": {}})


def unfinished(target):
    begin_target(target)
    zarr.create_array(target / "0", data=np.arange(5))


def barely_begun(target):
    begin_target(target)


def group_with(attributes):
    def group(target):
        zarr.create_group(target, attributes=attributes).create_array("0", data=np.arange(5))

    return group


def mine(name, then):
    def with_a_file_of_mine(target):
        then(target)
        (target / name).write_text("precious")

    return with_a_file_of_mine


def file(target):
    target.write_text("precious")


def link(then):
    def link_to(target):
        then(target.with_name("elsewhere"))
        target.symlink_to(target.with_name("elsewhere"))

    return link_to


def tree(folder):
    return {
        path: path.read_bytes() if path.is_file() else path.is_symlink() and path.readlink()
        for path in Path(folder).rglob("*")
    }


@pytest.mark.parametrize("make", [finished, unfinished, barely_begun])
def test_our_own_may_be_overwritten_but_only_when_told_to(tmp_path, make):
    target = tmp_path / "a.zarr"
    make(target)
    assert is_ours(target)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_target(target, overwrite=False)
    before = tree(tmp_path)
    check_target(target, overwrite=True)
    assert tree(tmp_path) == before
    remove_target(target)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "make",
    [
        file,
        Path.mkdir,
        group_with({}),
        group_with({"dseeds": "supervoxels"}),
        group_with({"dseeds": ["supervoxels"]}),
        group_with({"dseeds": {"phantom": {"supervoxels": 3}}}),
        group_with({"dseeds": 3}),
        group_with({"dseeds": None}),
        group_with({"supervoxels": 3}),
        mine("zarr.json", Path.mkdir),
        mine("notes.txt", Path.mkdir),
        mine("notes.txt", finished),
        mine("notes.txt", unfinished),
        mine("0/notes.txt", finished),
        mine("1", finished),
        link(finished),
        link(Path.mkdir),
        link(lambda _target: None),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_overwritten(tmp_path, make, overwrite):
    target = tmp_path / "a.zarr"
    make(target)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"a\.zarr"):
        check_target(target, overwrite=overwrite)
    with pytest.raises(FileExistsError):
        begin_target(target)
    assert tree(tmp_path) == before


def test_a_target_needs_a_folder_to_lie_in(tmp_path):
    check_target(tmp_path / "a.zarr", overwrite=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_target(tmp_path / "none" / "a.zarr", overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        check_target(tmp_path / "file" / "a.zarr", overwrite=True)


def test_a_target_is_an_image_only_when_it_is_published(tmp_path):
    target = tmp_path / "a.zarr"
    begin_target(target)
    create_array(target / "0", (4, 4, 4), "u4", (4, 4, 4), 64)
    with pytest.raises(FileNotFoundError):
        zarr.open(target, mode="r")
    assert (target / MARKER).is_file()
    publish(target, {"dseeds": {"supervoxels": 1}, "more": [1, 2]})
    group = zarr.open(target, mode="r")
    assert isinstance(group, zarr.Group)
    assert group.attrs.asdict() == {"dseeds": {"supervoxels": 1}, "more": [1, 2]}
    assert group.metadata.zarr_format == 3
    assert {path.name for path in target.iterdir()} == {"0", "zarr.json"}
    json.loads((target / "zarr.json").read_text())


def test_removal_takes_what_makes_it_an_image_first(tmp_path, monkeypatch):
    """A removal that is cut short must not leave half an image that looks like one."""
    target = tmp_path / "a.zarr"
    finished(target)

    def cut_short(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dseeds.store.shutil.rmtree", cut_short)
    with pytest.raises(KeyboardInterrupt):
        remove_target(target)
    with pytest.raises(FileNotFoundError):
        zarr.open(target, mode="r")
