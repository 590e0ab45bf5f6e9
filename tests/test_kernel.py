"""The fast loops against the slow oracle, their tables against arithmetic, and windows against the whole volume."""

import math
import random

import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import oracle_supervoxels
from skimage.measure import label as connected_components

from dseeds import kernel, rounds, scores, supervoxels
from dseeds.lattice import Box, Lattice, Regions, Window
from dseeds.quantise import quantise

# One answer.


@settings(max_examples=80)
@given(oracle.cases())
def test_labels_are_the_oracles(case):
    image, step, window = case
    np.testing.assert_array_equal(supervoxels(image, step=step, window=window), oracle_supervoxels(image, step, window))


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
    """So that the test before this one can fail: all units as one colour depend on their order."""
    image = np.random.default_rng(0).normal(size=(8, 8, 8))
    axes = oracle.levels(image.shape, (4, 4, 4))[-1]
    bins = oracle.to_bins(image, (-2, 2))
    found = []
    for seed in range(2):
        level = oracle.Level(axes, [2, 2, 2])
        level.seed()
        units = list(level.units)
        random.Random(seed).shuffle(units)
        for unit in units:
            level.visit(unit, lambda unit: lambda label, around: -abs(int(bins[unit]) - 8 * label))
        found.append(level.labels)
    assert found[0] != found[1]


def _rounds_of_made_up_blocks(seed, steps):
    """Three rounds of the coarsest blocks by both, from made-up histograms: no volume is needed for them."""
    rng = np.random.default_rng(seed)
    step = tuple(int(s) for s in rng.integers(*steps, 3))
    shape = tuple(int(rng.integers(s // 2 + 1, s * 5 // 2)) for s in step)
    lattice = Lattice(shape, step)
    grid = lattice.grids[0]
    level = oracle.Level(oracle.levels(shape, step)[0], lattice.cells)
    level.seed()
    prototypes = rng.dirichlet(np.full(32, rng.choice([0.02, 0.2, 5.0])), rng.integers(2, 5))
    histograms = np.zeros((*grid.shape, 32), rounds.histogram_dtype(grid))
    for unit in level.units:
        histograms[unit] = rng.multinomial(level.size(unit), rng.choice(prototypes))
    labels = np.empty([n + 2 for n in grid.shape], np.int32)
    kernel.seed(labels, *grid.cells, lattice.cells)
    whole = Window.around(lattice, grid, Box((0, 0, 0), lattice.cells), 8)
    round_ = rounds.Round(0, rounds.BLOCK_SWEEPS)
    plain = {unit: histograms[unit].tolist() for unit in level.units}
    for _ in range(3):
        counts = rounds.count(round_, whole, histograms, labels)
        rounds.sweep(round_, lattice, whole, histograms, labels, counts)
        oracle.block_round(level, plain, lattice.step, None)
        yield labels.ravel().tolist(), level.labels


# Two in which a supervoxel of a single block grows, and that block then may leave.
@example(1481, (20, 150))
@example(8373, (20, 150))
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 20), (20, 150), (150, 331)]))
def test_blocks_of_many_voxels_move_as_the_oracles(seed, steps):
    for ours, theirs in _rounds_of_made_up_blocks(seed, steps):
        assert ours == theirs


@given(oracle.cases(longest=10, voxels=600))
def test_a_round_says_how_much_moved(case):
    image, step, window = case
    lattice = Lattice(image.shape, step)
    bins = np.zeros([n + 2 for n in image.shape], np.uint8)
    quantise(image, window, bins[1:-1, 1:-1, 1:-1])
    voxels = Window.around(lattice, lattice.grids[-1], Box((0, 0, 0), lattice.cells), 0)
    labels = np.empty(bins.shape, np.int32)
    kernel.seed(labels, *voxels.grid.cells, lattice.cells)
    round_ = rounds.schedule(lattice)[-1]
    before = labels.copy()
    moves = rounds.sweep(round_, lattice, voxels, bins, labels, rounds.count(round_, voxels, bins, labels))
    assert (moves > 0) == (labels != before).any()
    assert moves >= (labels != before).sum()


# Connectivity.


def _bits(table):
    return ((table[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(bool).ravel()


def test_the_connectivity_table_is_right_for_every_neighbourhood():
    offsets = np.array(kernel.NEIGHBOURS)
    assert len(offsets) == 18
    assert sorted(map(tuple, offsets)) == sorted(oracle.OFFSETS)
    assert [kernel.NEIGHBOURS[f] for f in kernel.FACES] == oracle.FACES
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
    np.testing.assert_array_equal(_bits(kernel.connectivity_table()), expected)


@settings(max_examples=300)
@given(st.integers(0, (1 << 18) - 1))
def test_the_connectivity_table_agrees_with_connected_components(mask):
    around = np.zeros((3, 3, 3), bool)
    for k, offset in enumerate(kernel.NEIGHBOURS):
        around[tuple(np.add(offset, 1))] = mask >> k & 1
    components = connected_components(around, connectivity=1)
    at_faces = {int(components[tuple(np.add(face, 1))]) for face in oracle.FACES} - {0}
    assert _bits(kernel.connectivity_table())[mask] == (len(at_faces) == 1)
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


@pytest.mark.parametrize("weight", rounds.VOXEL_WEIGHTS)
def test_edge_weights_are_the_oracles(weight):
    numerator, denominator = weight
    assert denominator == 100
    table = scores.edge_weights(numerator, denominator).reshape(64, 64)
    for one in range(64):
        expected = [oracle.edge_weight(numerator, abs(one - other)) for other in range(64)]
        assert table[one].tolist() == expected
    assert table[0, 0] == round(512 * numerator / denominator)


def test_the_schedule_is_the_oracles():
    assert [numerator for numerator, _ in rounds.VOXEL_WEIGHTS] == list(oracle.LAMBDAS)
    assert [rounds.BLOCK_ROUNDS, rounds.BLOCK_SWEEPS] == [oracle.BLOCK_ROUNDS, oracle.BLOCK_SWEEPS]
    assert rounds.VOXEL_SWEEPS == oracle.VOXEL_SWEEPS
    assert rounds.NEIGHBOUR_GAIN == oracle.NEIGHBOUR_GAIN
    assert kernel.MOST_RATIO == oracle.MOST_RATIO


def test_smoothing_weights_are_the_oracles():
    assert scores.block_smoothing().tolist() == list(oracle.gaussian(1, 3, 256).values())
    assert scores.voxel_smoothing().tolist() == list(oracle.gaussian(4, 16, 65536).values())


def _histograms(bins):
    """One histogram, in it empty bins, single voxels and as many voxels as a count can hold."""
    count = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 2**32 - 1))
    return st.lists(count, min_size=bins, max_size=bins).filter(any)


@given(st.lists(_histograms(64), min_size=1, max_size=3))
def test_voxel_scores_are_the_oracles(histograms):
    table = scores.voxel_table(np.array(histograms, np.uint32)).reshape(-1, 64)
    assert table.tolist() == [oracle.voxel_scores(histogram) for histogram in histograms]


@given(st.lists(_histograms(64), min_size=1, max_size=1))
def test_voxel_scores_are_the_formula_in_the_design(histograms):
    """In floating point, from the definition: right to a unit, 1/512, and the rounding of the mean."""
    h = np.array(histograms[0], float)
    total, centres = h.sum(), (np.arange(64) + 0.5) / 64
    blur = np.exp(-(np.arange(-16, 17) ** 2) / 32)
    smoothed = np.convolve(h, blur / blur.sum())[16:-16]
    mean = (h @ centres) / total
    u = np.log(smoothed + 0.5 / 64) - np.log(total + 0.5) - 5 * (centres - mean) ** 2 - 0.5 * np.log(total)
    table = scores.voxel_table(np.array(histograms, np.uint32))
    # The weights are rounded to 2^-16: far out, where only their tail reaches, that shows.
    near = smoothed >= 1e-2 * h.max()
    assert np.abs(table / 512 - np.maximum(u, -64))[near].max() < 0.02


def test_an_empty_supervoxel_has_a_score_but_no_weight():
    empty = np.zeros((1, 64), np.uint32)
    assert (scores.voxel_table(empty) == 0).all()
    share, size, handicap = scores.block_table(empty[:, :32], 512)
    assert [table.any() for table in (share, size, handicap)] == [False] * 3


@given(_histograms(32), st.integers(8, 10**8))
def test_block_tables_are_the_oracles(histogram, cell_size):
    share, size, handicap = scores.block_table(np.array([histogram], np.uint32), cell_size)
    total = sum(histogram)
    assert size.tolist() == [total]
    expected = [128 * s // total for s in oracle.smooth(histogram, oracle.gaussian(1, 3, 256))]
    assert share[0].tolist() == expected
    assert sum(expected) <= kernel.BLOCK_UNIT
    assert handicap[0] == (oracle.log(total) - oracle.log(cell_size)) * 4096 // (10 * 2**17)
    assert abs(handicap[0] / kernel.BLOCK_UNIT - 0.1 * math.log(total / cell_size)) < 1e-4


# Windows.


class Cut:
    """A run on a volume cut into regions of whole cells, every region swept by itself in its window.

    Between regions there are only codes and summed-up statistics, as there are out of core. The bins around a window
    are noise: nothing may depend on them.
    """

    def __init__(self, image, step, window, cells_per_region, halo=lambda round_: round_.halo):
        self.lattice = Lattice(image.shape, step)
        self.regions = Regions(self.lattice, cells_per_region)
        self.bins = np.zeros(image.shape, np.uint8)
        quantise(image, window, self.bins)
        self.halo = halo
        self.noise = np.random.default_rng(0)

    def values(self, round_, box):
        grid = self.lattice.grids[round_.level]
        voxels = self.bins[grid.voxels_of(box).slices]
        if round_.weight is None:
            return rounds.histograms(voxels, grid, box)
        around = self.noise.integers(0, 64, [n + 2 for n in box.shape]).astype(np.uint8)
        around[1:-1, 1:-1, 1:-1] = voxels
        return around

    def decode(self, codes, window):
        labels = np.full([n + 2 for n in window.box.shape], 99, np.int32)
        kernel.decode(codes[window.box.slices], *window.local_cells(), window.cells.shape, labels)
        return labels

    def count(self, round_, codes):
        grid = self.lattice.grids[round_.level]
        total = np.zeros((*self.lattice.cells, round_.bins), np.int64)
        for number in range(len(self.regions)):
            window = Window.around(self.lattice, grid, self.regions.box(number), 0)
            part = rounds.count(round_, window, self.values(round_, window.box), self.decode(codes, window))
            total[window.cells.slices] += part.reshape(*window.cells.shape, -1)
        return total

    def sweep(self, round_, codes, total, number):
        """One region's codes after a round."""
        grid = self.lattice.grids[round_.level]
        window = Window.around(self.lattice, grid, self.regions.box(number), self.halo(round_))
        labels = self.decode(codes, window)
        counts = total[window.cells.slices].reshape(-1, round_.bins).astype(np.uint32)
        rounds.sweep(round_, self.lattice, window, self.values(round_, window.box), labels, counts)
        core = window.core.relative_to(window.box.lo)
        out = np.zeros(core.shape, np.uint8)
        kernel.encode(labels, (core.lo, core.hi), *window.local_cells(), window.cells.shape, out)
        return window.core, out

    def run(self):
        schedule = rounds.schedule(self.lattice)
        grid = self.lattice.grids[0]
        codes = np.full(grid.shape, 14, np.uint8)
        for round_ in schedule:
            if self.lattice.grids[round_.level] is not grid:
                coarser, grid = grid, self.lattice.grids[round_.level]
                codes = codes[np.ix_(*grid.parents(coarser))]
            total = self.count(round_, codes)
            assert total.sum() == self.bins.size
            after = np.zeros_like(codes)
            for number in range(len(self.regions)):
                core, out = self.sweep(round_, codes, total, number)
                assert not after[core.slices].any()
                after[core.slices] = out
            codes = after
        whole = Window.around(self.lattice, grid, Box((0, 0, 0), self.lattice.cells), 0)
        return self.decode(codes, whole)[1:-1, 1:-1, 1:-1] + 1


@settings(max_examples=40)
@given(oracle.cases(longest=40, voxels=12000), st.tuples(*[st.integers(1, 5)] * 3))
def test_a_volume_in_regions_gets_the_labels_of_the_whole(case, cells_per_region):
    image, step, window = case
    np.testing.assert_array_equal(
        Cut(image, step, window, cells_per_region).run(), supervoxels(image, step=step, window=window)
    )


def test_a_real_volume_in_regions_gets_the_labels_of_the_whole(ct_3mm):
    image = ct_3mm[0][30:94, 20:84, 30:95]
    np.testing.assert_array_equal(
        Cut(image, (8, 8, 8), (-150, 250), (3, 4, 5)).run(),
        supervoxels(image, step=8, window=(-150, 250)),
    )


@pytest.mark.parametrize("level", ["blocks", "voxels"])
def test_the_halo_of_one_sweep_is_not_enough_for_a_round(level):
    """So that the tests before this one can fail: with too small a halo, the cuts show."""

    def halo(round_):
        return rounds.REACH if (round_.weight is None) == (level == "blocks") else round_.halo

    z, y, x = np.indices((48, 48, 48))
    rng = np.random.default_rng(1)
    image = sum(
        np.sin(a * z + b * y + c * x + phase)
        for a, b, c, phase in zip(*rng.uniform(0, 0.9, (3, 5)), rng.uniform(0, 6, 5), strict=True)
    )
    step, window = (8, 8, 8), (-4, 4)
    whole = supervoxels(image, step=step, window=window)
    np.testing.assert_array_equal(Cut(image, step, window, (2, 2, 2)).run(), whole)
    assert (Cut(image, step, window, (2, 2, 2), halo).run() != whole).any()


@given(oracle.cases(longest=24, voxels=4000), st.data())
def test_codes_mean_the_same_in_every_window(case, data):
    """Labels become codes in one window and labels again in another, with other cells' numbers."""
    image, step, window = case
    lattice = Lattice(image.shape, step)
    owners = supervoxels(image, step=step, window=window).astype(np.int64) - 1
    grid = lattice.grids[-1]
    whole = Window.around(lattice, grid, Box((0, 0, 0), lattice.cells), 0)
    codes = np.zeros(grid.shape, np.uint8)
    padded = np.pad(owners, 1, constant_values=-1).astype(np.int32)
    everything = ((0, 0, 0), grid.shape)
    kernel.encode(padded, everything, *whole.local_cells(), whole.cells.shape, codes)
    assert codes.min() >= 1
    assert codes.max() <= 27
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in lattice.cells)
    hi = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lo, lattice.cells, strict=True))
    part = Window.around(lattice, grid, Box(lo, hi), data.draw(st.integers(0, 12)))
    labels = np.empty([n + 2 for n in part.box.shape], np.int32)
    kernel.decode(codes[part.box.slices], *part.local_cells(), part.cells.shape, labels)
    local = np.stack(np.unravel_index(labels[1:-1, 1:-1, 1:-1], part.cells.shape))
    origin = np.reshape(part.cells.lo, (3, 1, 1, 1))
    np.testing.assert_array_equal(np.ravel_multi_index(tuple(local + origin), lattice.cells), owners[part.box.slices])
    labels[1:-1, 1:-1, 1:-1] = -1
    assert (labels == -1).all()


@given(oracle.cases(longest=24, voxels=4000))
def test_coarser_histograms_are_sums_of_finer_ones(case):
    image, step, window = case
    lattice = Lattice(image.shape, step)
    bins = np.zeros(image.shape, np.uint8)
    quantise(image, window, bins)
    axes = oracle.levels(image.shape, step)
    finer = None
    for number in reversed(range(len(lattice.grids) - 1)):
        grid = lattice.grids[number]
        whole = Box((0, 0, 0), grid.shape)
        direct = rounds.histograms(bins, grid, whole)
        if finer is not None:
            fine = lattice.grids[number + 1]
            summed = rounds.coarsen(finer, fine, Box((0, 0, 0), fine.shape), grid)
            np.testing.assert_array_equal(summed, direct)
        expected = oracle.block_histograms(oracle.Level(axes[number], lattice.cells), bins.astype(int))
        assert all(direct[unit].tolist() == histogram for unit, histogram in expected.items())
        finer = direct
