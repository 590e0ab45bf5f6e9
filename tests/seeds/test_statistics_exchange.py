"""The boundary merging: what regions count apart adds up to what is counted at once."""

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
    """A lattice and regions of it: single cells, regions that hold all of an axis, and last ones that are short."""
    cells = draw(st.tuples(*[st.integers(1, most)] * 3))
    step = draw(st.tuples(*[st.integers(1, 3)] * 3))
    # Under half a step more is folded into the last cell.
    shape = [n * s + draw(st.integers(0, (s - 1) // 2)) for n, s in zip(cells, step, strict=True)]
    lattice = Lattice(tuple(shape), step)
    assert lattice.cells == cells
    return Regions(lattice, draw(st.tuples(*[st.integers(1, n) for n in cells])))


def owners(lattice, rng):
    """Voxels with bins, each owned by its own cell or by any of the 26 around it."""
    voxels = lattice.grids[-1]
    own = np.stack(np.meshgrid(*voxels.cells, indexing="ij"))
    there = own + rng.integers(-1, 2, own.shape)
    there = np.clip(there, 0, np.reshape(lattice.cells, (3, 1, 1, 1)) - 1)
    return there, rng.integers(0, BINS, lattice.shape)


def count(owner, bins, cells):
    """Per cell of a box and bin the voxels that it owns."""
    counts = np.zeros((*cells.shape, BINS), np.uint32)
    np.add.at(counts, (*(owner - np.reshape(cells.lo, (3, 1, 1, 1))), bins), 1)
    return counts.reshape(-1, BINS)


def split_all(regions, owner, bins, margin):
    """What every region has to tell: its core, and its shell."""
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
    # Nothing is lost and nothing is told twice.
    assert sum(int(core.sum()) for core in cores) + int(shells.sum()) == prod(lattice.shape)
    for number, core in enumerate(cores):
        # A task reads the shells of its region's neighbours alone.
        here = regions.index(number)
        around = Box(here, tuple(i + 1 for i in here)).grow(1, within=regions.counts)
        statistics_exchange.join_statistics(core, shells[around.slices], around.lo, number, regions)
        np.testing.assert_array_equal(core, whole[regions.box(number).slices])


@given(cut_lattices(), st.integers(0, 2**32 - 1))
def test_a_region_reads_its_neighbours_shells_alone(regions, seed):
    """Whatever lies in other regions' shells, and in its own, a merge does not depend on it."""
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
    found = []
    for these in (shells, spoilt):
        core = np.zeros((*regions.box(number).shape, BINS), np.uint32)
        statistics_exchange.join_statistics(core, these, (0, 0, 0), number, regions)
        found.append(core)
    np.testing.assert_array_equal(*found)
    assert (found[0].sum() > 0) == bool(neighbours)


@given(st.tuples(*[st.integers(1, 9)] * 3))
def test_a_shell_is_all_around(cells):
    assert statistics_exchange.shell_length(cells) == prod(n + 2 for n in cells) - prod(cells)


def test_large_counts_add_up():
    """Each region holds its own cell and a part in the other's; the sum fits 32 bits, no less."""
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
def test_nothing_is_told_of_cells_outside(number):
    regions = Regions(Lattice((4, 2, 2), (2, 2, 2)), (1, 1, 1))
    box = Box((0, 0, 0), (2, 1, 1))
    _, shell = statistics_exchange.split_statistics(np.full((2, 1), 5, np.uint32), box, regions.box(number), regions)
    assert sorted(shell.ravel().tolist()) == [0] * 25 + [5]
