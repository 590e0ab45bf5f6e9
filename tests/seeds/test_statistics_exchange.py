"""The exchange of statistics: the counts of regions add up to the count of the whole."""

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dseeds.core.geometry import Box, Lattice, Regions
from dseeds.seeds import statistics_exchange

BINS = 3


@st.composite
def cut_lattices(draw, most=6):
    """Draw a lattice and its regions: single cells, regions as long as an axis, and short last regions."""
    cells = draw(st.tuples(*[st.integers(1, most)] * 3))
    step = draw(st.tuples(*[st.integers(1, 3)] * 3))
    # Under half a step more is folded into the last cell.
    shape = [n * s + draw(st.integers(0, (s - 1) // 2)) for n, s in zip(cells, step, strict=True)]
    lattice = Lattice(tuple(shape), step)
    assert lattice.cells == cells
    return Regions(lattice, draw(st.tuples(*[st.integers(1, n) for n in cells])))


def owners(lattice, rng):
    """Return owners, each the home or any of the 26 cells around it, and bins of voxels."""
    voxels = lattice.grids[-1]
    own = np.stack(np.meshgrid(*voxels.cells, indexing="ij"))
    there = own + rng.integers(-1, 2, own.shape)
    there = np.clip(there, 0, np.reshape(lattice.cells, (3, 1, 1, 1)) - 1)
    return there, rng.integers(0, BINS, lattice.shape)


def count(owner, bins, cells):
    """Count the voxels that each cell of a box owns, by bin."""
    counts = np.zeros((*cells.shape, BINS), np.uint32)
    np.add.at(counts, (*(owner - np.reshape(cells.lo, (3, 1, 1, 1))), bins), 1)
    return counts.reshape(-1, BINS)


def split_all(regions, owner, bins, margin):
    """Return the core and the shell of every region."""
    lattice = regions.lattice
    cores, shells = [], np.zeros((*regions.counts, statistics_exchange.shell_length(regions.cells), BINS), np.uint32)
    for number in range(len(regions)):
        region = regions.box(number)
        inside = lattice.grids[-1].units_of(region).slices
        cells = region.grow(margin, within=lattice.cells)
        counts = count(owner[(slice(None), *inside)], bins[inside], cells)
        core, shells[regions.index(number)] = statistics_exchange.split_statistics(counts, cells, region, regions)
        cores.append(core.copy())
    return cores, shells


@given(cut_lattices(), st.integers(0, 2**32 - 1), st.integers(1, 3))
@example(Regions(Lattice((8, 8, 8), (2, 2, 2)), (1, 1, 1)), 0, 1)
@example(Regions(Lattice((10, 8, 6), (2, 2, 2)), (4, 3, 3)), 0, 1)
def test_merged_parts_are_the_statistics_of_the_whole(regions, seed, margin):
    lattice = regions.lattice
    owner, bins = owners(lattice, np.random.default_rng(seed))
    everything = Box((0, 0, 0), lattice.cells)
    whole = count(owner, bins, everything).reshape(*lattice.cells, BINS)
    cores, shells = split_all(regions, owner, bins, margin)
    # Nothing is lost and nothing counts twice.
    assert sum(int(core.sum()) for core in cores) + int(shells.sum()) == prod(lattice.shape)
    for number, core in enumerate(cores):
        # A task reads the shells of its region's neighbours alone.
        here = regions.index(number)
        around = Box(here, tuple(i + 1 for i in here)).grow(1, within=regions.counts)
        statistics_exchange.join_statistics(core, shells[around.slices], around.lo, number, regions)
        np.testing.assert_array_equal(core, whole[regions.box(number).slices])


@given(cut_lattices(), st.integers(0, 2**32 - 1))
def test_a_region_reads_its_neighbours_shells_alone(regions, seed):
    """A merge depends neither on the shells of regions further away nor on its own."""
    rng = np.random.default_rng(seed)
    shells = rng.integers(0, 100, (*regions.counts, statistics_exchange.shell_length(regions.cells), BINS)).astype(
        np.uint32
    )
    number = int(rng.integers(len(regions)))
    neighbours = {regions.index(other) for other in regions.within(number, 1)} - {regions.index(number)}
    spoilt = shells.copy()
    for index in product(*map(range, regions.counts)):
        if index not in neighbours:
            spoilt[index] = 77
    results = []
    for these in (shells, spoilt):
        core = np.zeros((*regions.box(number).shape, BINS), np.uint32)
        statistics_exchange.join_statistics(core, these, (0, 0, 0), number, regions)
        results.append(core)
    np.testing.assert_array_equal(*results)
    assert (results[0].sum() > 0) == bool(neighbours)


@given(st.tuples(*[st.integers(1, 9)] * 3))
def test_a_shell_is_all_around(cells):
    assert statistics_exchange.shell_length(cells) == prod(n + 2 for n in cells) - prod(cells)


def test_large_counts_add_up():
    """Each region contributes to its own cell and to the other's; the sum needs all 32 bits."""
    regions = Regions(Lattice((4, 2, 2), (2, 2, 2)), (1, 1, 1))
    box = Box((0, 0, 0), (2, 1, 1))
    counts = [np.array(values, np.uint32).reshape(2, 1) for values in ([2_500_000_000, 7], [1_500_000_000, 9])]
    parts = [
        statistics_exchange.split_statistics(counts[number], box, regions.box(number), regions) for number in (0, 1)
    ]
    shells = np.stack([shell for _, shell in parts])[:, None, None]
    for number, expected in enumerate((4_000_000_000, 16)):
        core = parts[number][0].copy()
        statistics_exchange.join_statistics(core, shells, (0, 0, 0), number, regions)
        assert core.ravel().tolist() == [expected]


@pytest.mark.parametrize("number", [0, 1])
def test_cells_outside_receive_nothing(number):
    regions = Regions(Lattice((4, 2, 2), (2, 2, 2)), (1, 1, 1))
    box = Box((0, 0, 0), (2, 1, 1))
    _, shell = statistics_exchange.split_statistics(np.full((2, 1), 5, np.uint32), box, regions.box(number), regions)
    assert sorted(shell.ravel().tolist()) == [0] * 25 + [5]
