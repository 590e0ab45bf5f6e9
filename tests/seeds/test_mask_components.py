"""Components of supervoxels under a mask, against scipy and in any window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dseeds.core.geometry import Box, Lattice, Regions
from dseeds.seeds.kernels.mask_components import count_components, number_components
from dseeds.seeds.kernels.simd import NOTHING

quick = settings(max_examples=60)


def volume(seed, lattice, masked):
    """Return owners, the home or a neighbour, -1 where masked out: blobs with scattered voxels in between."""
    rng = np.random.default_rng(seed)
    homes = np.stack(np.meshgrid(*lattice.grids[-1].cells, indexing="ij"), -1)
    offsets = rng.integers(-1, 2, homes.shape)
    for axis in range(3):
        offsets = np.where(rng.random(offsets.shape[:3])[..., None] < 0.7, np.roll(offsets, 1, axis), offsets)
    owners = np.clip(homes + offsets, 0, np.array(lattice.cells) - 1)
    codes = ((owners & 3) * (16, 4, 1)).sum(-1).astype(np.uint8)
    numbers = np.ravel_multi_index(tuple(np.moveaxis(owners, -1, 0)), lattice.cells)
    outside = rng.random(numbers.shape) < masked
    codes[outside], numbers[outside] = NOTHING, -1
    return codes, numbers


def parts(numbers, size):
    """Return for each owner its components as arrays of flat voxels, in the order of their first voxels."""
    components = []
    for owner in range(size):
        labels, count = ndimage.label(numbers == owner)
        flat = labels.reshape(-1)
        components.append(sorted((np.flatnonzero(flat == k + 1) for k in range(count)), key=lambda part: part[0]))
    return components


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 11)] * 3))
    step = draw(st.tuples(*[st.integers(2, 4)] * 3))
    lattice = Lattice(shape, step)
    regions = Regions(lattice, draw(st.tuples(*[st.integers(1, 3)] * 3)))
    return lattice, regions, draw(st.integers(0, 999)), draw(st.sampled_from([0, 0.2, 0.5, 1]))


def window_of(lattice, cells, reach):
    grid = lattice.grids[-1]
    around = cells.grow(reach, within=lattice.cells)
    box = grid.units_of(around)
    return around, box, grid.homes_of(box)


@quick
@given(cases())
def test_regions_number_the_components_of_the_whole(case):
    lattice, regions, seed, masked = case
    codes, owners = volume(seed, lattice, masked)
    expected = parts(owners, lattice.size)
    counts = np.zeros(lattice.cells, np.uint32)
    for number in range(len(regions)):
        region = regions.box(number)
        _, box, homes = window_of(lattice, region, 1)
        counts[region.slices] = count_components(np.ascontiguousarray(codes[box.slices]), homes, region)
    assert counts.reshape(-1).tolist() == [len(components) for components in expected]

    offsets = np.cumsum(counts).reshape(counts.shape).astype(np.uint64) - counts
    whole = np.zeros(owners.size, np.uint64)
    for label, voxels in enumerate((voxels for components in expected for voxels in components), 1):
        whole[voxels] = label
    for dtype in (np.uint32, np.uint64):
        labels = np.full(lattice.shape, 99, dtype)
        for number in range(len(regions)):
            region = regions.box(number)
            owning = region.grow(1, within=lattice.cells)
            _, box, homes = window_of(lattice, region, 2)
            core = lattice.grids[-1].units_of(region)
            out = np.empty(core.shape, dtype)
            window = np.ascontiguousarray(codes[box.slices])
            number_components(window, homes, owning, offsets[owning.slices], core.relative_to(box.lo), out)
            labels[core.slices] = out
        np.testing.assert_array_equal(labels.reshape(-1), whole)


@pytest.mark.parametrize("seed", range(3))
def test_winding_components(seed):
    """Long detours, on which the trees of the union-find are joined late and deep."""
    lattice = Lattice((30, 31, 32), (32, 32, 32))
    inside = np.random.default_rng(seed).random(lattice.shape) < 0.4
    codes = np.where(inside, 0, NOTHING).astype(np.uint8)
    everything = Box((0, 0, 0), lattice.shape)
    homes, cells = lattice.grids[-1].cells, Box((0, 0, 0), lattice.cells)
    expected, count = ndimage.label(inside)
    assert count_components(codes, homes, cells).tolist() == [[[count]]]
    out = np.empty(lattice.shape, np.uint32)
    number_components(codes, homes, cells, np.zeros((1, 1, 1), np.uint64), everything, out)
    np.testing.assert_array_equal(out, expected)


def test_numbers_beyond_32_bits():
    lattice = Lattice((4, 4, 4), (2, 2, 2))
    codes, _ = volume(0, lattice, 0.3)
    cells, everything = Box((0, 0, 0), lattice.cells), Box((0, 0, 0), lattice.shape)
    out, low = np.empty(lattice.shape, np.uint64), np.empty(lattice.shape, np.uint64)
    far = np.full(lattice.cells, 2**60 + 1, np.uint64)
    number_components(codes, lattice.grids[-1].cells, cells, far, everything, out)
    number_components(codes, lattice.grids[-1].cells, cells, np.zeros_like(far), everything, low)
    np.testing.assert_array_equal(out, np.where(low, low + far[0, 0, 0], 0))
