"""Floods of boundary maps: the oracle's labels, the same in regions and with any number of threads."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Lattice, Regions, Window
from dseeds.seeds.flood import KINDS, begin_flood, boundary_map, flood_volume, flood_window, seed_table
from dseeds.seeds.kernels.layout import new_window, pack_box, unpack_box
from dseeds.seeds.kernels.simd import NOTHING
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.seeds.schedule import flood_schedule
from tests.support import oracle
from tests.support.flood_oracle import Flood
from tests.support.kernels import owners

kinds = st.sampled_from(sorted(KINDS))


def masked_bins(volume, kind):
    """Return the bins of a drawn volume, with one more channel if the map is one, the weights, and the step."""
    bins, step, weights, inside = volume
    if kind == "map":
        bins = np.concatenate([bins, bins[:1, ::-1, ::-1, ::-1]])
    return bins if inside is None else np.where(inside, bins, np.uint8(MASKED)), weights, step


def packed(bins):
    windows = new_window(bins.shape[1:], 0, len(bins))
    for channel, window in zip(bins, windows, strict=True):
        pack_box(channel, (0, 0, 0), window)
    return windows


def flooded(bins, weights, step, kind, threads=1):
    lattice = Lattice(bins.shape[1:], step)
    codes = flood_volume(boundary_map(kind, weights), lattice, packed(bins), threads=threads)
    return owners(lattice, lattice.grids[-1], codes)


def flooded_in_regions(bins, weights, step, kind, cells_per_region):
    """Return the owners after a flood in which regions know of each other only codes and seeds."""
    lattice, boundaries = Lattice(bins.shape[1:], step), boundary_map(kind, weights)
    regions, grid = Regions(lattice, cells_per_region), lattice.grids[-1]
    rounds = flood_schedule(lattice, len(weights))
    seeds = np.zeros((*lattice.cells, rounds[0].bins), np.uint32)
    for number in range(len(regions)):
        window = Window.around(lattice, grid, regions.box(number), 0)
        own = seed_table(boundaries, lattice, window, packed(bins[:, *window.box.slices]))
        seeds[window.cells.slices] += own.reshape(*window.cells.shape, -1)
    codes = np.full(lattice.shape, NOTHING, np.uint8)
    for round_ in rounds:
        after = codes.copy()
        for number in range(len(regions)):
            window = Window.around(lattice, grid, regions.box(number), round_.halo)
            around, table = packed(bins[:, *window.box.slices]), seeds[window.cells.slices].reshape(-1, seeds.shape[3])
            labels = new_window(window.box.shape, NOTHING)
            pack_box(np.ascontiguousarray(codes[window.box.slices]), (0, 0, 0), labels)
            if round_ is rounds[0]:
                begin_flood(boundaries, window, around, labels, table)
            flood_window(round_, boundaries, lattice, window, around, labels, table)
            out = np.empty(window.core.shape, np.uint8)
            unpack_box(labels, window.core.relative_to(window.box.lo).lo, out)
            after[window.core.slices] = out
        codes = after
    return owners(lattice, grid, packed(codes[None])[0])


@settings(max_examples=20)
@given(oracle.volumes(longest=14, voxels=400), kinds)
def test_labels_are_the_oracles(volume, kind):
    bins, weights, step = masked_bins(volume, kind)
    expected = np.full(bins.shape[1:], -1)
    flood = Flood(bins, step, weights, kind)
    for voxel, cell in flood.run().items():
        expected[voxel] = np.ravel_multi_index(cell, [axis[-1] + 1 for axis in flood.axes])
    np.testing.assert_array_equal(flooded(bins, weights, step, kind), expected)


@settings(max_examples=25)
@given(oracle.volumes(longest=40, voxels=6000), kinds, st.tuples(*[st.integers(1, 5)] * 3), st.integers(2, 5))
def test_neither_regions_nor_threads_matter(volume, kind, cells_per_region, threads):
    bins, weights, step = masked_bins(volume, kind)
    whole = flooded(bins, weights, step, kind)
    np.testing.assert_array_equal(flooded_in_regions(bins, weights, step, kind, cells_per_region), whole)
    np.testing.assert_array_equal(flooded(bins, weights, step, kind, threads), whole)


def test_a_flood_stops_at_a_wall():
    """A thin wall beside the middle of a cell, invisible in the image, separates supervoxels."""
    image, walls = np.zeros((1, 16, 32, 32), np.uint8), np.zeros((1, 16, 32, 32), np.uint8)
    walls[..., 11] = 63
    labels = flooded(np.concatenate([image, walls]), (1,), (8, 8, 8), "map")
    assert not np.intersect1d(labels[..., :11], labels[..., 12:]).size
