"""What regions exchange, by brute force on small lattices: what a region needs is what the others publish for it."""

import itertools
import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Lattice, Regions
from dseeds.engine.exchange import BINS, CODES, COUNTS, Exchange, box_of_parents, histograms_name, label_reach
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.schedule import schedule


@st.composite
def exchanges(draw, most=40):
    step = draw(st.tuples(*[st.integers(2, 9)] * 3) | st.sampled_from([(4, 4, 4), (8, 8, 8), (16, 16, 16)]))
    shape = tuple(draw(st.integers(1, 6 * s)) for s in step)
    lattice = Lattice(shape, step)
    cells = [draw(st.integers(1, n)) for n in lattice.cells]
    while math.prod(-(-n // k) for n, k in zip(lattice.cells, cells, strict=True)) > most:
        cells = [min(n, k + 1) for n, k in zip(lattice.cells, cells, strict=True)]
    channels, reach = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    flood = schedule(lattice, channels, draw(st.sampled_from(["image", "map"]))) if channels > 1 else ()
    rounds = draw(st.sampled_from([schedule(lattice, channels)] * 3 + [flood]))
    return Exchange(Regions(lattice, tuple(cells)), rounds, channels, reach)


def tall(step=(4, 4, 4), layers=9):
    """Regions of a single cell, of which many are within reach of each other."""
    lattice = Lattice((step[0] * layers, step[1], step[2]), step)
    return Exchange(Regions(lattice, (1, 1, 1)), schedule(lattice), 1, 1)


# The blocks of the last cell are only one voxel long.
SHORT_END = Lattice((1, 1, 20), (1, 1, 8))


def mask_of(box, shape):
    inside = np.zeros(shape, np.bool_)
    inside[box.slices] = True
    return inside


def dilated(inside, by):
    """What lies within a distance, diagonals included."""
    for axis in range(3):
        grown = inside.copy()
        for shift in range(1, by + 1):
            before, after = (slice(None),) * axis + (slice(shift, None),), (slice(None),) * axis + (slice(-shift),)
            grown[before] |= inside[after]
            grown[after] |= inside[before]
        inside = grown
    return inside


def bounding(inside):
    """What lies in the bounding box."""
    out = np.zeros_like(inside)
    out[tuple(slice(min(i), max(i) + 1) for i in np.nonzero(inside))] = True
    return out


def parents_of(inside, fine, coarse):
    """Which units of a coarser grid hold one of a finer grid's."""
    out = np.zeros(coarse.shape, np.bool_)
    begins = [e[:-1] for e in fine.edges]
    for unit in np.argwhere(inside):
        voxel = [b[i] for b, i in zip(begins, unit, strict=True)]
        out[tuple(int(np.searchsorted(e, v, side="right")) - 1 for e, v in zip(coarse.edges, voxel, strict=True))] = (
            True
        )
    return out


def homes_of(inside, grid, cells):
    """Which cells are the home of a unit."""
    out = np.zeros(cells, np.bool_)
    if inside.any():
        out[np.ix_(*[np.unique(c[i]) for c, i in zip(grid.cells, np.nonzero(inside), strict=True)])] = True
    return out


def published(exchange, reader, turn, shapes):
    """How many other regions publish each unit for a reader, by array, and the bytes of each unit."""
    counts, sizes = {name: np.zeros(shape, int) for name, shape in shapes.items()}, {}
    for number in range(len(exchange.regions)):
        if number == reader:
            continue
        extracts = list(exchange.published(number, reader, turn))
        # Beyond its neighbours nothing is published for it.
        assert number in exchange.neighbours(reader, turn + 1) or not extracts
        assert (number in exchange.neighbours(reader, turn + 1)) == (reader in exchange.neighbours(number, turn + 1))
        for name, box, itemsize in extracts:
            assert box.size > 0
            counts[name][box.slices] += 1
            sizes[name] = itemsize
    return counts, sizes


def some_regions(exchange):
    count = len(exchange.regions)
    return sorted({0, count // 2, count - 1})


@settings(max_examples=8)
@given(exchanges())
@example(tall())
def test_quantising_publishes_what_is_needed_of_values(exchange):
    lattice, regions, rounds = exchange.lattice, exchange.regions, exchange.schedule
    # A flood has rounds of voxels alone.
    voxels, used = lattice.grids[-1], sorted({round_.level for round_ in rounds})
    levels = [level for level in used if level < len(lattice.grids) - 2]
    shapes = {BINS: lattice.shape, COUNTS: lattice.cells}
    shapes |= {histograms_name(level): lattice.grids[level].shape for level in levels}
    for reader in some_regions(exchange):
        counts, sizes = published(exchange, reader, -1, shapes)
        assert sizes.get(BINS, exchange.channels) == exchange.channels
        own = mask_of(exchange.voxels(reader), lattice.shape)
        cells = mask_of(regions.box(reader), lattice.cells)
        assert not counts[BINS][own].any()
        held = mask_of(exchange.binned_voxels(reader), lattice.shape)
        np.testing.assert_array_equal(counts[BINS], held & ~own)
        if not rounds:
            labelled = dilated(cells, exchange.label_reach)
            np.testing.assert_array_equal(held, labelled[np.ix_(*voxels.cells)])
            assert not counts[COUNTS].any()
            continue
        for level in used:
            grid = lattice.grids[level]
            core = cells[np.ix_(*grid.cells)]
            window = dilated(core, max(round_.window_halo for round_ in rounds if round_.level == level))
            if level in levels:
                name = histograms_name(level)
                np.testing.assert_array_equal(counts[name], window & ~core)
                width = 32 * exchange.channels * histogram_dtype(grid).itemsize
                assert sizes.get(name, width) == width
            else:
                # A unit's bins are held whole.
                assert (
                    held | ~window[np.ix_(*(np.repeat(np.arange(len(e) - 1), np.diff(e)) for e in grid.edges))]
                ).all()
        first = lattice.grids[rounds[0].level]
        owners = dilated(homes_of(dilated(cells[np.ix_(*first.cells)], rounds[0].window_halo), first, lattice.cells), 1)
        np.testing.assert_array_equal(counts[COUNTS], owners & ~cells)


@settings(max_examples=6)
@given(exchanges())
@example(tall())
@example(tall((16, 16, 16)))
def test_rounds_publish_what_the_next_needs(exchange):
    lattice, regions, rounds = exchange.lattice, exchange.regions, exchange.schedule
    for turn, reader in itertools.product(range(len(rounds)), some_regions(exchange)):
        grid = lattice.grids[rounds[turn].level]
        shapes = {CODES: grid.shape, COUNTS: lattice.cells}
        counts, sizes = published(exchange, reader, turn, shapes)
        cells = mask_of(regions.box(reader), lattice.cells)
        core = cells[np.ix_(*grid.cells)]
        if turn + 1 == len(rounds):
            labelled = dilated(cells, exchange.label_reach)[np.ix_(*grid.cells)]
            np.testing.assert_array_equal(counts[CODES], labelled & ~core)
            assert not counts[COUNTS].any()
            continue
        following = rounds[turn + 1]
        next_grid = lattice.grids[following.level]
        window = dilated(cells[np.ix_(*next_grid.cells)], following.window_halo)
        wanted = parents_of(window, next_grid, grid)
        for later in range(turn + 2, len(rounds)):
            if rounds[later].level == rounds[turn].level + 1 == rounds[turn + 1].level + 1:
                # What is needed of regions that rest until then.
                fine = lattice.grids[rounds[later].level]
                wanted |= parents_of(dilated(cells[np.ix_(*fine.cells)], rounds[later].window_halo), fine, grid)
        np.testing.assert_array_equal(counts[CODES], bounding(wanted) & ~core)
        # All regions whose units may have moved to a cell contribute to it.
        owners = dilated(homes_of(window, next_grid, lattice.cells), 1)
        contributed = np.zeros(lattice.cells, int)
        for number in range(len(regions)):
            if number != reader:
                contributed += dilated(mask_of(regions.box(number), lattice.cells), 1)
        # The seeds of a flood stay as they are.
        np.testing.assert_array_equal(counts[COUNTS], contributed * owners * rounds[turn].changes_statistics)
        assert sizes.get(CODES, 1) == 1
        assert sizes.get(COUNTS, following.bins * 4) == following.bins * 4


@settings(max_examples=12)
@given(exchanges())
@example(tall())
@example(Exchange(Regions(SHORT_END, (1, 1, 1)), schedule(SHORT_END)))
def test_windows_lie_within_what_was_needed_before(exchange):
    """So that a region has what it needs of its own state, and of older messages of regions that rest."""
    for number, turn in itertools.product(some_regions(exchange), range(1, len(exchange.schedule))):
        window, before = exchange.window(number, turn), exchange.window(number, turn - 1)
        units = box_of_parents(exchange.parents(number, turn)) if exchange.is_refined(turn) else window.box
        wanted = exchange.wanted_units(number, turn - 1)
        assert units.bounding(wanted) == wanted
        if turn > 1 and exchange.schedule[turn - 2].level == exchange.schedule[turn - 1].level:
            older = exchange.wanted_units(number, turn - 2)
            assert units.bounding(older) == older
        assert window.cells.bounding(before.cells) == before.cells
        held = exchange.binned_voxels(number)
        if exchange.schedule[turn].level >= len(exchange.lattice.grids) - 2:
            assert window.grid.voxels_of(window.box).bounding(held) == held


@settings(max_examples=12)
@given(exchanges())
@example(tall())
def test_nothing_beyond_reach_matters(exchange):
    """Neither units of a window nor statistics of cells follow from regions that are further away."""
    regions, turns = exchange.regions, range(len(exchange.schedule))
    assert all(exchange.reach(turn) <= exchange.farthest for turn in range(len(turns) + 1))
    for number, turn in itertools.product(some_regions(exchange), turns):
        cells = exchange.window(number, turn).cells
        near = set(regions.within(number, exchange.reach(turn)))
        for other in set(range(len(regions))) - near:
            assert not regions.box(other).grow(1, within=exchange.lattice.cells).overlaps(cells)
        assert exchange.neighbours(number, turn) == sorted(near - {number})


@settings(max_examples=12)
@given(exchanges())
def test_a_checkpoint_holds_a_region_and_its_next_statistics(exchange):
    for number, turn in itertools.product(some_regions(exchange), range(len(exchange.schedule))):
        grid = exchange.lattice.grids[exchange.schedule[turn].level]
        codes, *counts = exchange.checkpoint(number, turn)
        assert codes == (CODES, grid.units_of(exchange.regions.box(number)), 1)
        assert codes.nbytes == codes.box.size
        assert [part.box for part in counts] == [
            exchange.window(number, following).cells for following in [turn + 1] if following < len(exchange.schedule)
        ]


def test_labels_depend_on_cells_around():
    assert label_reach(masked=False, has_joins=False) == 0
    assert label_reach(masked=True, has_joins=True) > label_reach(masked=True, has_joins=False) > 1
