"""Parts of the kernels: layout, lanes, connectivity, logarithms, scores and tables."""

import math
from decimal import Decimal, localcontext

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from skimage.measure import label as connected_components

from dseeds.seeds import scores
from dseeds.seeds.kernels import simd
from dseeds.seeds.kernels.blocks import BLOCK_UNIT, MOST_RATIO
from dseeds.seeds.kernels.connectivity import connectivity_table
from dseeds.seeds.kernels.layout import (
    FACES,
    LANES,
    NEIGHBOURS,
    neighbour_distances,
    new_window,
    pack_box,
    unpack_box,
)
from dseeds.seeds.kernels.simd import NOTHING, OPEN
from dseeds.seeds.kernels.voxels import VOXEL_UNIT
from dseeds.seeds.schedule import BLOCK_GAINS, BLOCK_ROUNDS, VOXEL_SWEEPS, VOXEL_WEIGHTS
from tests.support import oracle


@given(oracle.shapes(), st.data())
def test_a_window_keeps_every_unit(shape, data):
    units = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    window = new_window(shape, 77)
    begin = data.draw(st.integers(0, shape[0]))
    pack_box(units[:begin], (0, 0, 0), window)
    pack_box(units[begin:], (begin, 0, 0), window)
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


def _log(n):
    return int(scores._log(np.int64(n), scores.log_table()))


@settings(max_examples=300)
@given(st.one_of(st.integers(1, 5000), st.integers(1, 2**62)))
def test_logarithms_are_the_oracles_and_accurate(n):
    assert _log(n) == oracle.log(n)
    # Half a unit from the table, one from rounding down twice, and half from each octave's ln 2.
    assert abs(_log(n) / 2**20 - math.log(n)) < (2 + n.bit_length() / 2) * 2**-20


def test_the_table_of_logarithms_is_the_same_on_every_machine():
    """Its values are those of a decimal computation, and far from where rounding turns."""
    with localcontext() as context:
        context.prec = 30
        values = [(1 + Decimal(i) / 2048).ln() * 2**20 for i in range(2049)]
        assert scores.log_table().tolist() == [int(value + Decimal("0.5")) for value in values]
        assert min(abs(value % 1 - Decimal("0.5")) for value in values) > Decimal("1e-4")


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
