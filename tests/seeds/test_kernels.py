"""The fast loops against the slow oracle, their tables against arithmetic, and windows against the whole volume."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dseeds import supervoxels
from dseeds.core.geometry import Box, Lattice, Window
from dseeds.seeds import rounds
from dseeds.seeds.binning import quantise_window
from dseeds.seeds.block_histograms import hide_outside, histogram_dtype
from dseeds.seeds.kernels.label_codes import seed_labels
from dseeds.seeds.kernels.layout import (
    new_window,
)
from dseeds.seeds.kernels.simd import OPEN
from dseeds.seeds.schedule import Round, schedule
from tests.support import oracle
from tests.support.kernels import climbed, owners
from tests.support.oracle import oracle_labels, oracle_supervoxels


@settings(max_examples=50)
@given(oracle.cases(), st.sampled_from([0, 0, 0.3, 7, 30]))
def test_labels_are_the_oracles(case, compactness):
    image, step, window = case
    np.testing.assert_array_equal(
        supervoxels(image, step=step, window=window, compactness=compactness),
        oracle_supervoxels(image, step, window, compactness=compactness),
    )


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("step", [4, 16])
def test_threads_do_not_matter(threads, step):
    z, y, x = np.indices((75, 40, 50))
    image = np.sin(z / 5) + np.sin(y / 6 + x / 9) + 0.3 * np.random.default_rng(1).normal(size=z.shape)
    np.testing.assert_array_equal(
        supervoxels(image, step=step, threads=threads), supervoxels(image, step=step, threads=1)
    )


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        ((20, 20, 20), (8, 8, 8)),
        # Blocks of more and fewer than 256 voxels, and a rest that is folded into the cell before it.
        ((22, 30, 25), (15, 20, 17)),
        # A row of more than two batches of one colour, in more than eight words.
        ((2, 3, 530), (2, 2, 2)),
        ((1, 1, 600), (5, 5, 5)),
        ((3, 300, 3), (3, 4, 3)),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "waves"])
def test_labels_are_the_oracles_in_larger_volumes(shape, step, kind):
    rng = np.random.default_rng(7)
    z, y, x = np.indices(shape)
    image = np.sin(0.5 * z + 0.3) + np.sin(0.4 * y + 0.1 * x) + np.sin(0.37 * x)
    image = rng.normal(size=shape) if kind == "noise" else image + 0.1 * rng.normal(size=shape)
    window = float(image.min()), float(image.max())
    np.testing.assert_array_equal(supervoxels(image, step=step, window=window), oracle_supervoxels(image, step, window))


def test_a_real_volume_gets_the_oracles_labels(hippocampus):
    image = hippocampus[0][:16, :18, :20]
    window = float(image.min()), float(image.max())
    np.testing.assert_array_equal(
        supervoxels(image, step=(4, 5, 6), window=window), oracle_supervoxels(image, (4, 5, 6), window)
    )


@settings(max_examples=15)
@given(oracle.cases(longest=12, voxels=800), st.randoms(use_true_random=False))
def test_the_order_within_a_colour_does_not_matter(case, order):
    image, step, window = case
    np.testing.assert_array_equal(
        oracle_supervoxels(image, step, window), oracle_supervoxels(image, step, window, order.shuffle)
    )


def test_the_order_would_matter_without_colours():
    """Proves that the previous test can fail: with a single colour, the labels depend on the order of the units."""
    image = np.random.default_rng(0).normal(size=(8, 8, 8))
    axes = oracle.levels(image.shape, (4, 4, 4))[-1]
    bins = oracle.to_bins(image, (-2, 2))
    results = []
    for seed in range(2):
        level = oracle.Level(axes, [2, 2, 2])
        level.seed()
        units = list(level.units)
        random.Random(seed).shuffle(units)
        for unit in units:
            level.visit(unit, lambda unit: lambda label, around: -abs(int(bins[unit]) - 8 * label))
        results.append(level.labels)
    assert results[0] != results[1]


def _rounds_of_random_blocks(seed, steps, weights=(1,), masked=False):
    """Yield the owners after each of six rounds of the coarsest blocks, ours and the oracle's, on random histograms."""
    rng = np.random.default_rng(seed)
    step = tuple(int(s) for s in rng.integers(*steps, 3))
    shape = tuple(int(rng.integers(s // 2 + 1, s * 5 // 2)) for s in step)
    lattice = Lattice(shape, step)
    grid = lattice.grids[0]
    level = oracle.Level(oracle.levels(shape, step)[0], lattice.cells)
    if masked:
        level.sizes = {unit: int(rng.integers(rng.integers(1, size + 1) + 1)) for unit, size in level.sizes.items()}
        level.units = [unit for unit in level.units if level.sizes[unit] > 0]
    level.seed()
    prototypes = rng.dirichlet(np.full(32, rng.choice([0.02, 0.2, 5.0])), rng.integers(2, 5))
    histograms = np.zeros((*grid.shape, len(weights), 32), histogram_dtype(grid))
    for unit in level.units:
        histograms[unit] = [rng.multinomial(level.sizes[unit], rng.choice(prototypes)) for _ in weights]
    plain = [{unit: histograms[unit][c].tolist() for unit in level.units} for c in range(len(weights))]
    histograms = histograms.reshape(*grid.shape, -1)
    labels, state = seed_labels(grid.cells), new_window(grid.shape, OPEN)
    hide_outside(0, lattice, Box((0, 0, 0), grid.shape), histograms, labels)
    whole = Window.around(lattice, grid, Box((0, 0, 0), lattice.cells), 8)
    round_ = Round(0, 1, channels=len(weights))
    for _ in range(6):
        counts = rounds.count_statistics(round_, lattice, whole, histograms, labels)
        rounds.sweep_window(round_, lattice, whole, histograms, labels, state, counts, weights=weights)
        oracle.block_round(level, plain, lattice.step, None, weights=weights)
        yield owners(lattice, grid, labels), oracle._unpadded(level)


# Two in which a supervoxel of a single block grows, and that block then may leave.
@example(1481, (20, 150))
@example(8373, (20, 150))
@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 20), (20, 150), (150, 331)]))
def test_blocks_of_many_voxels_move_as_the_oracles(seed, steps):
    for ours, theirs in _rounds_of_random_blocks(seed, steps):
        np.testing.assert_array_equal(ours, theirs)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(8, 20), (20, 150), (150, 331)]),
    st.sampled_from([(1,), (1, 1), (2, 5, 1)]),
    st.booleans(),
)
def test_blocks_of_many_voxels_move_as_the_oracles_with_channels_and_a_mask(seed, steps, weights, masked):
    for ours, theirs in _rounds_of_random_blocks(seed, steps, weights, masked):
        np.testing.assert_array_equal(ours, theirs)


@given(oracle.cases(longest=10, voxels=600))
def test_a_round_reports_its_moves(case):
    image, step, window = case
    lattice = Lattice(image.shape, step)
    bins = new_window(image.shape, 0, channels=1)
    quantise_window([image], [window], bins)
    voxels = Window.around(lattice, lattice.grids[-1], Box((0, 0, 0), lattice.cells), 0)
    labels = seed_labels(voxels.grid.cells)
    round_ = schedule(lattice)[-1]
    before = labels.copy()
    counts = rounds.count_statistics(round_, lattice, voxels, bins, labels)
    moves, change = rounds.sweep_window(round_, lattice, voxels, bins, labels, new_window(image.shape, OPEN), counts)
    assert (moves > 0) == (labels != before).any()
    assert moves >= (labels != before).sum()
    np.testing.assert_array_equal(counts + change, rounds.count_statistics(round_, lattice, voxels, bins, labels))


@settings(max_examples=50)
@given(oracle.volumes(), st.sampled_from([0, 0, 0.3, 7]))
def test_labels_are_the_oracles_with_channels_and_a_mask(volume, compactness):
    channels, step, weights, inside = volume
    np.testing.assert_array_equal(
        climbed(channels, step, weights, inside, compactness),
        oracle_labels(channels, step, weights, inside, compactness=compactness),
    )


@pytest.mark.parametrize(
    ("shape", "step"), [((20, 20, 20), (8, 8, 8)), ((22, 30, 25), (15, 20, 17)), ((2, 3, 530), (2, 2, 2))]
)
def test_labels_are_the_oracles_in_larger_volumes_with_channels_and_a_mask(shape, step):
    rng = np.random.default_rng(3)
    z, y, x = np.indices(shape)
    waves = np.sin(0.5 * z) + np.sin(0.4 * y + 0.1 * x), np.sin(0.37 * x) + np.sin(0.3 * y)
    channels = [(10 * wave + 30 + rng.integers(0, 12, shape)).astype(np.uint8) for wave in waves]
    inside = (np.sin(0.2 * z + 0.31 * y) + np.sin(0.27 * x) > -0.4) & (rng.random(shape) < 0.95)
    np.testing.assert_array_equal(
        climbed(channels, step, (2, 1), inside), oracle_labels(channels, step, (2, 1), inside)
    )


@settings(max_examples=40)
@given(oracle.volumes(longest=30, voxels=8000), st.integers(1, 16))
def test_identical_channels_are_as_good_as_one(volume, count):
    channels, step, (weight, *_), inside = volume
    np.testing.assert_array_equal(
        climbed([channels[0]] * count, step, [weight] * count, inside),
        climbed(channels[:1], step, inside=inside),
    )


@settings(max_examples=40)
@given(oracle.volumes(longest=30, voxels=8000), st.data())
def test_the_order_of_channels_and_a_factor_of_their_weights_do_not_matter(volume, data):
    channels, step, weights, inside = volume
    order = data.draw(st.permutations(range(len(channels))))
    np.testing.assert_array_equal(
        climbed(channels[list(order)], step, [3 * weights[c] for c in order], inside),
        climbed(channels, step, weights, inside),
    )


@settings(max_examples=40)
@given(oracle.volumes(longest=30, voxels=8000))
def test_a_mask_that_hides_nothing_changes_nothing(volume):
    channels, step, weights, _ = volume
    np.testing.assert_array_equal(
        climbed(channels, step, weights, np.ones(channels[0].shape, bool)), climbed(channels, step, weights)
    )


@settings(max_examples=40)
@given(oracle.volumes(longest=30, voxels=8000), st.data())
def test_masked_voxels_have_no_label_and_no_influence(volume, data):
    channels, step, weights, _ = volume
    inside = data.draw(oracle.masks(channels[0].shape))
    labels = climbed(channels, step, weights, inside)
    np.testing.assert_array_equal(labels > 0, inside)
    # A cell with a voxel in the mask keeps its supervoxel, and no other has one.
    lattice = Lattice(channels[0].shape, step)
    numbers = np.ravel_multi_index(np.meshgrid(*lattice.grids[-1].cells, indexing="ij"), lattice.cells) + 1
    np.testing.assert_array_equal(np.unique(labels[inside]), np.unique(numbers[inside]))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter_with_channels_and_a_mask(threads):
    z, y, x = np.indices((75, 40, 50))
    channels = [(30 + 20 * np.sin(z / 5) + 5 * np.sin(y / 6 + c)).astype(np.uint8) for c in range(2)]
    inside = np.sin(z / 7) + np.sin(x / 5) < 0.8
    np.testing.assert_array_equal(
        climbed(channels, (8, 8, 8), (1, 2), inside, threads=threads), climbed(channels, (8, 8, 8), (1, 2), inside)
    )
