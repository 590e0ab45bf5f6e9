"""The fast loops against the slow oracle, their tables against arithmetic, and windows against the whole volume."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import njit
from skimage.measure import label as connected_components

from dseeds import supervoxels
from dseeds.core.geometry import Box, Lattice, Regions, Window, per_axis
from dseeds.seeds import rounds, scores
from dseeds.seeds.binning import quantise_box, quantise_window
from dseeds.seeds.block_histograms import coarsen_level, hide_outside, histogram_dtype, level_histograms
from dseeds.seeds.in_memory import run_rounds
from dseeds.seeds.kernels import simd
from dseeds.seeds.kernels.blocks import BLOCK_UNIT, MOST_RATIO
from dseeds.seeds.kernels.connectivity import connectivity_table
from dseeds.seeds.kernels.label_codes import refine_labels, seed_labels, write_global_labels
from dseeds.seeds.kernels.layout import (
    FACES,
    LANES,
    NEIGHBOURS,
    neighbour_distances,
    new_window,
    pack_planes,
    unpack_box,
)
from dseeds.seeds.kernels.simd import NOTHING, OPEN
from dseeds.seeds.kernels.voxels import MASKED, VOXEL_UNIT
from dseeds.seeds.schedule import BLOCK_GAINS, BLOCK_ROUNDS, VOXEL_SWEEPS, VOXEL_WEIGHTS, Round, schedule
from tests.support import oracle
from tests.support.oracle import oracle_labels, oracle_supervoxels

# One answer.


@settings(max_examples=80)
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


def owners(lattice, grid, labels):
    """Return the numbers of the cells that own the units of a window of the whole volume."""
    out = np.zeros(grid.shape, np.uint32)
    write_global_labels(labels, grid.cells, lattice.cells, out)
    return out.astype(np.int64) - 1


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


# Channels and masks.


def climbed(channels, step, weights=(1,), inside=None, compactness=0, threads=1):
    """Return the labels of a run in memory on bins, (c, z, y, x)."""
    lattice = Lattice(channels[0].shape, step)
    bins = new_window(lattice.shape, 0, len(channels))
    for window, channel in zip(bins, channels, strict=True):
        pack_planes(channel if inside is None else np.where(inside, channel, np.uint8(MASKED)), 0, window)
    labels = run_rounds(
        lattice,
        bins,
        schedule(lattice, len(channels)),
        compactness=compactness,
        threads=threads,
        weights=weights,
        masked=inside is not None,
    )
    return owners(lattice, lattice.grids[-1], labels) + 1


@settings(max_examples=120)
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


# Layout.


@given(oracle.shapes(), st.data())
def test_a_window_keeps_every_unit(shape, data):
    units = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    window = new_window(shape, 77)
    begin = data.draw(st.integers(0, shape[0]))
    pack_planes(units[:begin], 0, window)
    pack_planes(units[begin:], begin, window)
    plain = np.full([n + 2 for n in shape], 77, np.uint8)
    plain[1:-1, 1:-1, 1:-1] = units
    for x in range(shape[2] + 2):
        np.testing.assert_array_equal(window[:, :, x & 1, x >> 1], plain[:, :, x])
    lo = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(lo, shape, strict=True))
    out = np.zeros_like(units[box])
    unpack_box(window, tuple(lo), out)
    np.testing.assert_array_equal(out, units[box])


@given(oracle.shapes())
def test_distances_lead_to_the_neighbours(shape):
    """Also behind the window's last unit, where a vector still reads."""
    window = new_window(shape, 0)
    flat = window.reshape(-1)
    assert len(window.base) == flat.size + LANES
    assert len(new_window(shape, 0, channels=3).base) == 3 * flat.size + LANES
    place = np.arange(flat.size).reshape(window.shape)
    distances = neighbour_distances(window).view(np.int64)
    for unit in [(0, 0, 0), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]:
        z, y, x = (i + 1 for i in unit)
        for k, (dz, dy, dx) in enumerate(NEIGHBOURS):
            there = place[z + dz, y + dy, (x + dx) & 1, (x + dx) >> 1]
            assert place[z, y, x & 1, x >> 1] + distances[x & 1, k] == there
            assert 0 <= there < flat.size


# Lanes.


@njit
def _look(labels, unit, distances, votes, fresh):
    simd.count_neighbours(labels, unit, distances, votes, fresh)
    return simd.boundary_lanes(labels, unit, distances)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_lanes_see_what_single_units_see(seed, kinds):
    rng = np.random.default_rng(seed)
    window = new_window((3, 3, 3 * LANES), 0)
    labels = rng.choice([NOTHING, 0, 21, 63], window.size + LANES, p=rng.dirichlet([1] * 4)).astype(np.uint8)
    labels[labels == 63] = rng.integers(0, kinds)
    distances = neighbour_distances(window)[1]
    unit = window.size // 2
    votes, fresh = np.zeros(7 * LANES, np.uint8), np.zeros(4, np.uint64)
    boundary = _look(labels, np.uint64(unit), distances, votes, fresh)
    candidates = [bool(int(fresh[at // 64]) >> at % 64 & 1) for at in range(8 * LANES)]
    for lane in range(LANES):
        at = unit + lane
        around = labels[at + distances.view(np.int64)]
        considered = [labels[at], *(around[f] for f in FACES)]
        for c, label in enumerate(considered):
            assert votes[c * LANES + lane] == (around == label).sum()
            new = c == 0 or (label != NOTHING and label not in considered[:c])
            assert candidates[c * LANES + lane] == new
        assert not candidates[7 * LANES + lane]
        differs = any(label != labels[at] for label in considered)
        assert boundary >> lane & 1 == (differs and labels[at] != NOTHING)


@njit
def _take(marks, unit, count):
    return simd.take_marked(marks, unit, count)


@given(st.integers(0, 2**32 - 1), st.integers(1, LANES))
def test_marks_are_taken_once_and_from_no_others(seed, count):
    marks = np.random.default_rng(seed).integers(0, 4, 3 * LANES).astype(np.uint8)
    before = marks.copy()
    first = slice(LANES, LANES + count)
    bits = int(_take(marks, np.uint64(LANES), count))
    assert [bool(bits >> lane & 1) for lane in range(count)] == ((before[first] & OPEN) != 0).tolist()
    assert bits >> count == 0 or count == LANES
    expected = before.copy()
    expected[first][(before[first] & OPEN) != 0] = 0
    np.testing.assert_array_equal(marks, expected)
    assert _take(marks, np.uint64(LANES), count) == 0


# Connectivity.


def _bits(table):
    return ((table[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(bool).ravel()


def test_the_connectivity_table_is_right_for_every_neighbourhood():
    offsets = np.array(NEIGHBOURS)
    assert len(offsets) == 18
    assert sorted(map(tuple, offsets)) == sorted(oracle.OFFSETS)
    assert [NEIGHBOURS[f] for f in FACES] == oracle.FACES
    touching = (np.abs(offsets[:, None] - offsets).sum(-1) <= 1).astype(np.float32)
    is_face = np.abs(offsets).sum(1) == 1
    same = (np.arange(1 << 18)[:, None] >> np.arange(18)) & 1 == 1
    # From the first face neighbour of the label, walk until nothing new is reached.
    first = np.argmax(same & is_face, axis=1)
    reached = np.zeros_like(same)
    reached[np.arange(1 << 18), first] = same[np.arange(1 << 18), first] & is_face[first]
    while True:
        wider = (reached.astype(np.float32) @ touching > 0) & same
        if (wider == reached).all():
            break
        reached = wider
    expected = (same & is_face).any(axis=1) & ~(same & is_face & ~reached).any(axis=1)
    np.testing.assert_array_equal(_bits(connectivity_table()), expected)


@settings(max_examples=300)
@given(st.integers(0, (1 << 18) - 1))
def test_the_connectivity_table_agrees_with_connected_components(mask):
    around = np.zeros((3, 3, 3), bool)
    for k, offset in enumerate(NEIGHBOURS):
        around[tuple(np.add(offset, 1))] = mask >> k & 1
    components = connected_components(around, connectivity=1)
    at_faces = {int(components[tuple(np.add(face, 1))]) for face in oracle.FACES} - {0}
    assert _bits(connectivity_table())[mask] == (len(at_faces) == 1)
    assert oracle.is_simple(tuple(bool(mask >> k & 1) for k in range(18))) == (len(at_faces) == 1)


# Tables.


def _log(n):
    return int(scores._log(np.int64(n), scores.log_table()))


@settings(max_examples=300)
@given(st.one_of(st.integers(1, 5000), st.integers(1, 2**62)))
def test_logarithms_are_the_oracles_and_accurate(n):
    assert _log(n) == oracle.log(n)
    # Half a unit from the table, one from rounding down twice, and half from each octave's ln 2.
    assert abs(_log(n) / 2**20 - math.log(n)) < (2 + n.bit_length() / 2) * 2**-20


def test_logarithms_never_fall():
    logs = [_log(n) for n in [*range(1, 5000), *(2**e + d for e in range(13, 62) for d in (-1, 0, 1))]]
    assert (np.diff(logs) >= 0).all()


def test_the_schedule_is_the_oracles():
    assert [numerator for numerator, _ in VOXEL_WEIGHTS] == list(oracle.LAMBDAS)
    assert {denominator for _, denominator in VOXEL_WEIGHTS} == {100}
    assert BLOCK_ROUNDS == oracle.BLOCK_ROUNDS
    assert [gain * BLOCK_UNIT // 1000 for gain in BLOCK_GAINS] == list(oracle.BLOCK_GAINS)
    assert VOXEL_SWEEPS == oracle.VOXEL_SWEEPS
    assert MOST_RATIO == oracle.MOST_RATIO


def test_smoothing_weights_are_the_oracles():
    assert scores.block_smoothing().tolist() == list(oracle.gaussian(1, 3, 256).values())
    assert scores.voxel_smoothing().tolist() == list(oracle.gaussian(4, 16, 65536).values())


def _histograms(bins):
    """Draw a histogram with empty bins, single voxels and the largest counts."""
    count = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 2**32 - 1))
    return st.lists(count, min_size=bins, max_size=bins).filter(any)


@given(st.lists(_histograms(64), min_size=1, max_size=3), st.sampled_from(VOXEL_WEIGHTS))
def test_voxel_scores_are_the_oracles(histograms, weight):
    table = scores.voxel_scores(np.array(histograms, np.uint32), weight)
    assert table[1:].reshape(-1, 64).tolist() == [oracle.voxel_scores(h, weight[0]) for h in histograms]
    # Out of reach is worse than anything, also with all neighbours and where the other pays for being far.
    assert int(table[0]) + 18 * VOXEL_UNIT < table[1:].min() - scores.LARGEST_COST


@given(
    st.lists(_histograms(64), min_size=6, max_size=6),
    st.sampled_from([(1, 1), (3, 1, 2), (scores.LARGEST_WEIGHT - 5, 2, 3)]),
)
def test_voxel_scores_of_channels_are_those_of_each_times_its_weight(histograms, weights):
    counts = np.array(histograms, np.uint32).reshape(-1, 64 * len(weights))
    table = scores.voxel_scores(counts, (20, 100), weights).astype(np.int64)
    for c, weight in enumerate(weights):
        single = scores.voxel_scores(counts[:, 64 * c : 64 * c + 64].copy(), (20, 100)).astype(np.int64)
        np.testing.assert_array_equal(table[1:].reshape(len(counts), -1, 64)[:, c].ravel(), weight * single[1:])
        assert table[0] == sum(weights) * single[0]


@given(st.lists(_histograms(64), min_size=1, max_size=1))
def test_voxel_scores_are_the_formula_in_the_documentation(histograms):
    """In floating point, from the definition: right to the rounding to units of lambda / 16 and that of the mean."""
    h = np.array(histograms[0], float)
    total, centres = h.sum(), (np.arange(64) + 0.5) / 64
    blur = np.exp(-(np.arange(-16, 17) ** 2) / 32)
    smoothed = np.convolve(h, blur / blur.sum())[16:-16]
    mean = (h @ centres) / total
    u = np.log(smoothed + 0.5 / 64) - np.log(total + 0.5) - 5 * (centres - mean) ** 2 - 0.25 * np.log(total)
    table = scores.voxel_scores(np.array(histograms, np.uint32), (16, 512))[1:]
    # The weights are rounded to 2^-16: far out, where only their tail reaches, that shows.
    near = smoothed >= 1e-2 * h.max()
    assert np.abs(table / 512 - np.maximum(u, -12000 / 512))[near].max() < 0.02


def test_an_empty_supervoxel_has_a_score_but_no_weight():
    empty = np.zeros((1, 64), np.uint32)
    assert (scores.voxel_scores(empty, (80, 100))[1:] == 0).all()
    share, size, handicap = scores.block_scores(empty[:, :32], 512)
    assert [table.any() for table in (share, size, handicap)] == [False] * 3


@given(_histograms(32), st.integers(8, 10**8))
def test_block_tables_are_the_oracles(histogram, cell_size):
    share, size, handicap = scores.block_scores(np.array([histogram], np.uint32), cell_size)
    total = sum(histogram)
    assert size.tolist() == [total]
    expected = [128 * s // total for s in oracle.smooth(histogram, oracle.gaussian(1, 3, 256))]
    assert share[0].tolist() == expected
    assert sum(expected) <= BLOCK_UNIT
    assert handicap[0] == (oracle.log(total) - oracle.log(cell_size)) * 4096 // (10 * 2**17)
    assert abs(handicap[0] / BLOCK_UNIT - 0.1 * math.log(total / cell_size)) < 1e-4


def test_block_tables_of_channels_are_those_of_each():
    counts = np.random.default_rng(0).multinomial(500, [1 / 32] * 32, (7, 3)).astype(np.uint32)
    share, *others = scores.block_scores(counts.reshape(7, 96), 512)
    for c in range(3):
        single, *single_others = scores.block_scores(counts[:, c].copy(), 512)
        np.testing.assert_array_equal(share[c::3], single)
        np.testing.assert_array_equal(others, single_others)


# Windows.


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
            pack_planes(bins[voxels.slices], 0, window)
        return level_histograms(around, grid, box) if round_.level < len(self.lattice.grids) - 2 else around

    def labels(self, round_, codes, window, values):
        labels = new_window(window.box.shape, NOTHING)
        pack_planes(codes[window.box.slices], 0, labels)
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
        pack_planes(open_[window.box.slices], 0, state)
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
        pack_planes(codes, 0, labels)
        return owners(self.lattice, grid, labels) + 1


def quantised(image, window):
    bins = np.zeros(image.shape, np.uint8)
    quantise_box([image], [window], bins[None])
    return bins


@settings(max_examples=40)
@given(oracle.cases(longest=40, voxels=12000), st.tuples(*[st.integers(1, 5)] * 3), st.sampled_from([0, 2]))
def test_a_volume_in_regions_gets_the_labels_of_the_whole(case, cells_per_region, compactness):
    image, step, window = case
    np.testing.assert_array_equal(
        Cut([quantised(image, window)], step, cells_per_region, compactness=compactness).run(),
        supervoxels(image, step=step, window=window, compactness=compactness),
    )


@settings(max_examples=40)
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
    pack_planes(codes, 0, labels)
    np.testing.assert_array_equal(owners(lattice, grid, labels), np.ravel_multi_index(tuple(owner), lattice.cells))


@given(oracle.shapes(), oracle.steps)
def test_finer_units_inherit_the_label_of_the_coarser_one(shape, step):
    lattice = Lattice(shape, step)
    for coarse, fine in pairwise(lattice.grids):
        values = np.random.default_rng(0).integers(0, 64, coarse.shape).astype(np.uint8)
        labels = new_window(coarse.shape, NOTHING)
        pack_planes(values, 0, labels)
        out = np.zeros(fine.shape, np.uint8)
        unpack_box(refine_labels(labels, per_axis(fine.parents(coarse))), (0, 0, 0), out)
        np.testing.assert_array_equal(out, values[np.ix_(*fine.parents(coarse))])


@given(oracle.cases(longest=24, voxels=4000))
def test_coarser_histograms_are_sums_of_finer_ones(case):
    image, step, window = case
    lattice = Lattice(image.shape, step)
    plain = quantised(image, window)
    bins = new_window(image.shape, 0, channels=1)
    pack_planes(plain, 0, bins[0])
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
