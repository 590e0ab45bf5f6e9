"""Geometry: cells, blocks, parents, regions and windows against voxel-by-voxel definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dseeds.core.geometry import Box, Lattice, Regions, Window, check_shape, check_spacing
from tests.support import oracle

lengths = st.integers(1, 70)
shapes = st.tuples(lengths, lengths, lengths)
steps = st.tuples(*[st.integers(2, 80)] * 3)
lattices = st.builds(Lattice, shapes, steps)


@st.composite
def grids(draw):
    lattice = draw(lattices)
    return lattice, draw(st.sampled_from(lattice.grids))


@st.composite
def boxes(draw, shape):
    lo = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return Box(lo, tuple(draw(st.integers(a + 1, n)) for a, n in zip(lo, shape, strict=True)))


def paint(box, shape):
    mask = np.zeros(shape, bool)
    mask[box.slices] = True
    return mask


# Boxes.


@given(st.data(), shapes, st.integers(0, 80))
def test_a_box_grows_to_all_within_reach(data, shape, by):
    box = data.draw(boxes(shape))
    assert box.size == paint(box, shape).sum() == math.prod(box.shape)
    grown = box.grow(by, within=shape)
    for n, a, h, lo, hi in zip(shape, box.lo, box.hi, grown.lo, grown.hi, strict=True):
        assert list(range(lo, hi)) == [i for i in range(n) if a - by <= i < h + by]


@given(st.data(), shapes)
def test_a_box_relative_to_another(data, shape):
    outer = data.draw(boxes(shape))
    inner = data.draw(boxes(outer.shape))
    there = Box(tuple(np.add(inner.lo, outer.lo).tolist()), tuple(np.add(inner.hi, outer.lo).tolist()))
    assert there.relative_to(outer.lo) == inner
    volume = np.arange(math.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(volume[outer.slices][inner.slices], volume[there.slices])


# Cells.


@given(shapes, steps)
def test_cells_are_a_step_long_but_for_the_last(shape, step):
    lattice = Lattice(shape, step)
    for n, s, count, of_voxel in zip(shape, step, lattice.cells, lattice.grids[-1].cells, strict=True):
        sizes = np.bincount(of_voxel)
        assert len(sizes) == count
        assert (np.diff(of_voxel) >= 0).all()
        length = min(s, n)
        assert (sizes[:-1] == length).all()
        # A remainder of half a step is a cell; a smaller one belongs to the cell before it.
        assert 2 * sizes[-1] >= length
        assert 2 * sizes[-1] < 3 * length
        assert of_voxel.tolist() == oracle.cells_along(n, s)
    assert lattice.size == math.prod(lattice.cells)


@pytest.mark.parametrize(
    ("n", "step", "sizes"),
    [
        (129, 8, [8] * 15 + [9]),
        (131, 8, [8] * 15 + [11]),
        (132, 8, [8] * 16 + [4]),
        (135, 8, [8] * 16 + [7]),
        (12, 5, [5, 7]),
        (13, 5, [5, 5, 3]),
        (5, 8, [5]),
        (1, 8, [1]),
        (11, 8, [11]),
        (12, 8, [8, 4]),
    ],
)
def test_the_remainder_of_an_axis(n, step, sizes):
    lattice = Lattice((1, n, 1), (2, step, 2))
    assert np.bincount(lattice.grids[-1].cells[1]).tolist() == sizes


def test_blocks_of_too_many_voxels_are_refused():
    with pytest.raises(ValueError, match="too large"):
        Lattice((1040, 1040, 1040), (520, 520, 520))
    # One cell is as large as its volume.
    with pytest.raises(ValueError, match="too large"):
        Lattice((1000, 1000, 1000), (10**9, 10**9, 10**9))
    assert Lattice((1000, 1000, 1000), (340, 340, 340)).cells == (3, 3, 3)
    assert Lattice((1000, 1000, 100), (1000, 1000, 10)).cells == (1, 1, 10)


def test_labels_fit_their_dtype():
    assert Lattice((2**11, 2**11, 2**11), (2, 2, 2)).label_dtype == np.uint32
    # 2^32 cells with labels 1 .. 2^32.
    assert Lattice((2**12, 2**12, 2**11), (2, 2, 2)).label_dtype == np.uint64
    assert Lattice((2**12, 2**12, 2**11 - 2), (2, 2, 2)).label_dtype == np.uint32


# Blocks.


@given(lattices)
def test_levels_halve_every_axis_while_its_blocks_stay_two_voxels_long(lattice):
    *blocks, voxels = lattice.grids
    assert voxels.parts == lattice.step
    assert voxels.shape == lattice.shape
    before = (1, 1, 1)
    for grid in blocks:
        for s, p, q in zip(lattice.step, before, grid.parts, strict=True):
            assert q == (2 * p if s >= 4 * p else p)
        assert grid.parts != before
        before = grid.parts
    assert all(s < 4 * p for s, p in zip(lattice.step, before, strict=True))


@given(lattices)
def test_grids_are_the_oracles(lattice):
    for grid, axes in zip(lattice.grids, oracle.levels(lattice.shape, lattice.step), strict=True):
        for edges, cells, units in zip(grid.edges, grid.cells, axes, strict=True):
            assert list(zip(edges[:-1], edges[1:], cells, strict=True)) == units


@given(grids())
def test_units_cut_the_axis_into_pieces_within_cells(case):
    lattice, grid = case
    for n, edges, cells, of_voxel in zip(lattice.shape, grid.edges, grid.cells, lattice.grids[-1].cells, strict=True):
        assert edges[0] == 0
        assert edges[-1] == n
        # None is empty, and so they cover every voxel once.
        assert (np.diff(edges) >= 1).all()
        for unit, cell in enumerate(cells):
            assert set(of_voxel[edges[unit] : edges[unit + 1]]) == {cell}
    if grid is not lattice.grids[-1]:
        for p, cells in zip(grid.parts, grid.cells, strict=True):
            assert (np.bincount(cells) == p).all()
    assert grid.largest == max(
        math.prod(sizes) for sizes in itertools.product(*(set(np.diff(e).tolist()) for e in grid.edges))
    )


@given(grids())
def test_blocks_of_an_axis_of_a_cell_differ_by_one_voxel_at_most(case):
    _, grid = case
    for edges, cells in zip(grid.edges, grid.cells, strict=True):
        for cell in range(cells[-1] + 1):
            assert np.ptp(np.diff(edges)[cells == cell]) <= 1


@given(st.data(), lattices)
def test_parents_hold_their_children(data, lattice):
    a = data.draw(st.integers(0, len(lattice.grids) - 1))
    b = data.draw(st.integers(a, len(lattice.grids) - 1))
    coarse, fine = lattice.grids[a], lattice.grids[b]
    for axis, parents in enumerate(fine.parents(coarse)):
        assert len(parents) == fine.shape[axis]
        for child, parent in enumerate(parents):
            assert coarse.edges[axis][parent] <= fine.edges[axis][child]
            assert fine.edges[axis][child + 1] <= coarse.edges[axis][parent + 1]
            assert coarse.cells[axis][parent] == fine.cells[axis][child]
        assert set(parents.tolist()) == set(range(coarse.shape[axis]))


@given(st.data(), grids())
def test_boxes_of_cells_units_and_voxels_are_the_same_place(data, case):
    lattice, grid = case
    cells = data.draw(boxes(lattice.cells))
    units = grid.units_of(cells)
    assert grid.cells_of(units) == cells
    assert grid.voxels_of(units) == lattice.grids[-1].units_of(cells)
    for axis in range(3):
        inside = [u for u, c in enumerate(grid.cells[axis]) if cells.lo[axis] <= c < cells.hi[axis]]
        assert list(range(units.lo[axis], units.hi[axis])) == inside


# Regions and windows.

few_cells = st.tuples(*[st.integers(1, 4)] * 3)


@given(st.builds(Lattice, st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(4, 12)] * 3)), few_cells)
def test_regions_cut_the_cells_into_boxes(lattice, size):
    regions = Regions(lattice, size)
    owner = np.full(lattice.cells, -1)
    for number in range(len(regions)):
        box = regions.box(number)
        assert (owner[box.slices] == -1).all()
        assert all(1 <= extent <= most for extent, most in zip(box.shape, size, strict=True))
        assert all(index * k == a for index, k, a in zip(regions.index(number), size, box.lo, strict=True))
        owner[box.slices] = number
    assert (owner >= 0).all()
    assert math.prod(regions.counts) == len(regions)
    for number in range(len(regions)):
        assert (
            regions.within(number, 1)
            == np.unique(owner[regions.box(number).grow(1, within=lattice.cells).slices]).tolist()
        )


@given(st.data(), grids(), st.integers(0, 12))
def test_a_window_holds_the_region_its_halo_and_every_owner_there(data, case, halo):
    lattice, grid = case
    region = data.draw(boxes(lattice.cells))
    window = Window.around(lattice, grid, region, halo)
    assert grid.cells_of(window.core) == region
    assert window.box == window.core.grow(halo, within=grid.shape)
    for axis in range(3):
        home = grid.cells[axis][window.box.lo[axis] : window.box.hi[axis]]
        # Owners are at most a cell away: exactly these, as far as the volume goes.
        reach = range(max(0, home.min() - 1), min(lattice.cells[axis], home.max() + 2))
        assert range(window.cells.lo[axis], window.cells.hi[axis]) == reach


@given(grids())
def test_the_window_of_everything_is_the_volume(case):
    lattice, grid = case
    whole = Box((0, 0, 0), lattice.cells)
    window = Window.around(lattice, grid, whole, 12)
    assert window.core == window.box == Box((0, 0, 0), grid.shape)
    assert window.cells == whole


# What is refused.


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((), "add an axis"),
        ((5,), "add an axis"),
        ((5, 6), "add an axis"),
        ((2, 5, 6, 7), "choose one volume"),
        ((1, 2, 5, 6, 7), "choose one volume"),
        ((5, 0, 7), "empty"),
    ],
)
def test_shapes_of_no_volume_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        check_shape(shape)


def test_a_shape_becomes_plain_numbers():
    shape = check_shape(tuple(np.array([4, 5, 6])))
    assert shape == (4, 5, 6)
    assert {type(n) for n in shape} == {int}


@pytest.mark.parametrize(
    "spacing", [(1, 1), (1, 1, 1, 1), (), (1, 0, 1), (-1, 1, 1), (1, math.nan, 1), (1, 1, math.inf)]
)
def test_nonsense_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="three positive numbers"):
        check_spacing(spacing)


def test_a_spacing_may_be_an_array():
    assert check_spacing(np.array([3, 1, 0.5], np.float32)) == (3.0, 1.0, 0.5)
