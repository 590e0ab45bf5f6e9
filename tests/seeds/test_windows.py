"""Rounds on windows with halos: a volume in regions gets the labels of the whole."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds import supervoxels
from dseeds.core.geometry import Box, Lattice, Regions, Window, per_axis
from dseeds.seeds import rounds
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.block_histograms import coarsen_level, hide_outside, level_histograms
from dseeds.seeds.kernels.label_codes import refine_labels, seed_labels
from dseeds.seeds.kernels.layout import (
    new_window,
    pack_box,
    unpack_box,
)
from dseeds.seeds.kernels.simd import NOTHING, OPEN
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.seeds.schedule import schedule
from tests.support import oracle
from tests.support.kernels import climbed, owners


class Cut:
    """A run on a volume cut into regions of whole cells, every region swept by itself in its window.

    Between regions there are only codes and summed-up statistics, as there are out of core. The bins around a window
    are noise: nothing may depend on them.
    """

    def __init__(
        self,
        channels,
        step,
        cells_per_region,
        halo=lambda round_: round_.halo,
        compactness=0,
        weights=(1,),
        inside=None,
    ):
        self.lattice = Lattice(channels[0].shape, step)
        self.regions = Regions(self.lattice, cells_per_region)
        self.masked = inside is not None
        self.bins = [np.where(inside, bins, np.uint8(MASKED)) if self.masked else bins for bins in channels]
        self.halo, self.compactness, self.weights = halo, compactness, weights
        self.noise = np.random.default_rng(0)

    def values(self, round_, box):
        grid = self.lattice.grids[round_.level]
        voxels = grid.voxels_of(box)
        around = new_window(voxels.shape, 0, len(self.bins))
        around[:] = self.noise.integers(0, MASKED + 1, around.shape)
        for window, bins in zip(around, self.bins, strict=True):
            pack_box(bins[voxels.slices], (0, 0, 0), window)
        return level_histograms(around, grid, box) if round_.level < len(self.lattice.grids) - 2 else around

    def labels(self, round_, codes, window, values):
        labels = new_window(window.box.shape, NOTHING)
        pack_box(codes[window.box.slices], (0, 0, 0), labels)
        if self.masked:
            hide_outside(round_.level, self.lattice, window.box, values, labels)
        return labels

    def count(self, round_, codes):
        grid = self.lattice.grids[round_.level]
        total = np.zeros((*self.lattice.cells, round_.bins), np.int64)
        for number in range(len(self.regions)):
            window = Window.around(self.lattice, grid, self.regions.box(number), 0)
            values = self.values(round_, window.box)
            labels = self.labels(round_, codes, window, values)
            part = rounds.count_statistics(round_, self.lattice, window, values, labels)
            total[window.cells.slices] += part.reshape(*window.cells.shape, -1)
        return total

    def sweep(self, round_, codes, open_, total, number):
        """Return a region's codes and marks after a round, and the change in the statistics due to its core."""
        grid = self.lattice.grids[round_.level]
        window = Window.around(self.lattice, grid, self.regions.box(number), self.halo(round_))
        state = new_window(window.box.shape, 0)
        pack_box(open_[window.box.slices], (0, 0, 0), state)
        counts = total[window.cells.slices].reshape(-1, round_.bins).astype(np.uint32)
        values = self.values(round_, window.box)
        labels = self.labels(round_, codes, window, values)
        _, change = rounds.sweep_window(
            round_,
            self.lattice,
            window,
            values,
            labels,
            state,
            counts,
            compactness=self.compactness,
            weights=self.weights,
        )
        core = window.core.relative_to(window.box.lo)
        out = np.zeros((2, *core.shape), np.uint8)
        unpack_box(labels, core.lo, out[0])
        unpack_box(state, core.lo, out[1])
        return window, *out, change.astype(np.int32).reshape(*window.cells.shape, -1)

    def run(self):
        rounds = schedule(self.lattice, len(self.bins))
        grid = self.lattice.grids[0]
        codes, open_ = np.zeros(grid.shape, np.uint8), np.ones(grid.shape, np.uint8)
        unpack_box(seed_labels(grid.cells), (0, 0, 0), codes)
        for round_ in rounds:
            if self.lattice.grids[round_.level] is not grid:
                coarser, grid = grid, self.lattice.grids[round_.level]
                codes = codes[np.ix_(*grid.parents(coarser))]
            if codes.shape != open_.shape or round_.weight is not None:
                open_ = np.ones_like(codes)
            total = self.count(round_, codes)
            assert total.sum() == sum((bins != MASKED).sum() for bins in self.bins)
            after, still_open = np.full_like(codes, NOTHING), np.zeros_like(codes)
            moved = total.copy()
            for number in range(len(self.regions)):
                window, out, marks, change = self.sweep(round_, codes, open_, total, number)
                assert (after[window.core.slices] == NOTHING).all()
                after[window.core.slices], still_open[window.core.slices] = out, marks & OPEN
                moved[window.cells.slices] += change
            codes, open_ = after, still_open
            np.testing.assert_array_equal(moved, self.count(round_, codes))
        labels = new_window(grid.shape, NOTHING)
        pack_box(codes, (0, 0, 0), labels)
        return owners(self.lattice, grid, labels) + 1


def quantised(image, window):
    bins = np.zeros(image.shape, np.uint8)
    quantise_box([image], [window], bins[None])
    return bins


@settings(max_examples=25)
@given(oracle.cases(longest=40, voxels=12000), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from([0, 2]))
def test_a_volume_in_regions_gets_the_labels_of_the_whole(case, cells_per_region, compactness):
    image, step, window = case
    np.testing.assert_array_equal(
        Cut([quantised(image, window)], step, cells_per_region, compactness=compactness).run(),
        supervoxels(image, step=step, window=window, compactness=compactness),
    )


@settings(max_examples=20)
@given(oracle.volumes(longest=40, voxels=12000), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from([0, 2]))
def test_a_volume_in_regions_gets_the_labels_of_the_whole_with_channels_and_a_mask(
    volume, cells_per_region, compactness
):
    channels, step, weights, inside = volume
    np.testing.assert_array_equal(
        Cut(channels, step, cells_per_region, compactness=compactness, weights=weights, inside=inside).run(),
        climbed(channels, step, weights, inside, compactness),
    )


def test_a_real_volume_in_regions_gets_the_labels_of_the_whole(ct_3mm):
    image = ct_3mm[0][30:94, 20:84, 30:95]
    np.testing.assert_array_equal(
        Cut([quantised(image, (-150, 250))], (8, 8, 8), (3, 4, 5)).run(),
        supervoxels(image, step=8, window=(-150, 250)),
    )


@pytest.mark.parametrize("level", ["blocks", "voxels"])
def test_a_quarter_of_the_halo_is_not_enough_for_a_round(level):
    """Proves that the previous tests can fail: with too small a halo, the labels depend on the cut."""

    def halo(round_):
        return round_.halo // (4 if (round_.weight is None) == (level == "blocks") else 1)

    z, y, x = np.indices((48, 48, 48))
    rng = np.random.default_rng(1)
    image = sum(
        np.sin(a * z + b * y + c * x + phase)
        for a, b, c, phase in zip(*rng.uniform(0, 0.9, (3, 5)), rng.uniform(0, 6, 5), strict=True)
    )
    step, window = (8, 8, 8), (-4, 4)
    whole = supervoxels(image, step=step, window=window)
    bins = [quantised(image, window)]
    np.testing.assert_array_equal(Cut(bins, step, (2, 2, 2)).run(), whole)
    assert (Cut(bins, step, (2, 2, 2), halo).run() != whole).any()


@given(oracle.shapes(), oracle.steps, st.integers(0, 2**32 - 1))
def test_every_owner_within_reach_has_a_label_of_its_own(shape, step, seed):
    lattice = Lattice(shape, step)
    grid = lattice.grids[-1]
    own = np.stack(np.meshgrid(*grid.cells, indexing="ij"))
    away = np.random.default_rng(seed).integers(-1, 2, own.shape)
    owner = np.clip(own + away, 0, np.reshape(lattice.cells, (3, 1, 1, 1)) - 1)
    codes = (16 * (owner[0] % 4) + 4 * (owner[1] % 4) + owner[2] % 4).astype(np.uint8)
    labels = new_window(shape, NOTHING)
    pack_box(codes, (0, 0, 0), labels)
    np.testing.assert_array_equal(owners(lattice, grid, labels), np.ravel_multi_index(tuple(owner), lattice.cells))


@given(oracle.shapes(), oracle.steps)
def test_finer_units_inherit_the_label_of_the_coarser_one(shape, step):
    lattice = Lattice(shape, step)
    for coarse, fine in pairwise(lattice.grids):
        values = np.random.default_rng(0).integers(0, 64, coarse.shape).astype(np.uint8)
        labels = new_window(coarse.shape, NOTHING)
        pack_box(values, (0, 0, 0), labels)
        out = np.zeros(fine.shape, np.uint8)
        unpack_box(refine_labels(labels, per_axis(fine.parents(coarse))), (0, 0, 0), out)
        np.testing.assert_array_equal(out, values[np.ix_(*fine.parents(coarse))])


@given(oracle.cases(longest=24, voxels=4000))
def test_coarser_histograms_are_sums_of_finer_ones(case):
    image, step, window = case
    lattice = Lattice(image.shape, step)
    plain = quantised(image, window)
    bins = new_window(image.shape, 0, channels=1)
    pack_box(plain, (0, 0, 0), bins[0])
    axes = oracle.levels(image.shape, step)
    finer = None
    for number in reversed(range(len(lattice.grids) - 1)):
        grid = lattice.grids[number]
        whole = Box((0, 0, 0), grid.shape)
        direct = level_histograms(bins, grid, whole)
        if finer is not None:
            fine = lattice.grids[number + 1]
            summed = coarsen_level(finer, fine, Box((0, 0, 0), fine.shape), grid)
            np.testing.assert_array_equal(summed, direct)
        expected = oracle.block_histograms(oracle.Level(axes[number], lattice.cells), plain.astype(int))
        assert all(direct[unit].tolist() == histogram for unit, histogram in expected.items())
        finer = direct
