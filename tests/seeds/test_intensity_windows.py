"""Intensity windows against sorting."""

import json
import math
import pickle
from copy import copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dseeds.seeds import order_statistics
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_window, read_windows
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch, find_windows
from tests.support.intensities import (
    KINDS,
    cut,
    exact,
    has_values,
    images,
    intensity_window,
    masked_images,
    window_by_sorting,
)

INF, NAN = math.inf, math.nan


@settings(max_examples=300)
@given(images())
def test_the_window_is_what_sorting_gives(image):
    assume(has_values(image))
    assert intensity_window(image) == window_by_sorting(image)


@pytest.mark.parametrize("n", [1, 2, 200, 201, 400, 401, 402, 1000, 1001, 1201])
def test_the_ranks_of_the_window(n):
    cut = (n - 1) * 5 // 1000
    image = np.random.default_rng(n).permutation(n).astype(np.float32)
    assert intensity_window(image) == (cut, n - 1 - cut)


@st.composite
def percentiles(draw):
    low, high = sorted(draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True)))
    return draw(st.sampled_from([(low, high), (0, 10**6), (5_000, 995_000), (0, high), (low, 10**6)]))


@given(images(), percentiles(), st.data())
def test_any_percentiles_are_what_sorting_gives(image, percentiles, data):
    inside = data.draw(st.one_of(st.none(), hnp.arrays(bool, image.shape)))
    assume(has_values(image, inside) and percentiles[0] < percentiles[1])
    assert find_windows([image], [None], percentiles, inside) == (window_by_sorting(image, inside, percentiles),)


@settings(max_examples=200)
@given(images(), percentiles(), st.sampled_from([None, "min", "max"]), st.integers(2, 99))
def test_a_knee_is_where_a_few_values_widen_the_window(image, percentiles, end, spacing):
    image = image.copy()
    assume(has_values(image) and percentiles[0] < percentiles[1])
    if end is not None:
        limits = np.iinfo(image.dtype) if image.dtype.kind in "iu" else np.finfo(image.dtype)
        image.reshape(-1)[::spacing] = getattr(limits, end)
    search = WindowSearch([image.dtype], [None], percentiles, has_knees=True)
    search.finish([image])
    assert search.windows() == find_windows([image], [None], percentiles)
    assert search.knees() == (knee_by_sorting(image, percentiles),)


def knee_by_sorting(image, percentiles):
    values = np.sort(image[np.isfinite(image)] if image.dtype.kind == "f" else image.ravel())
    last = len(values) - 1
    ranks = last * percentiles[0] // 10**6, -(-last * percentiles[1] // 10**6), last // 20, last - last // 20
    low, high, lower, upper = (Fraction(exact(values[rank])) for rank in ranks)
    if high - low >= 2**1024 - 2**970:
        return None
    near = [knee for knee, far in ((lower, high - lower), (upper, upper - low)) if 6 * far < high - low]
    return next((exact(values[values == knee][0]) for knee in near if low < knee < high), None)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_hot_pixels_leave_half_of_the_bins_to_all_others(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(10, 20, 10_000).astype(dtype)
    image[rng.permutation(10_000)[:300]] = 250
    search = WindowSearch([image.dtype] * 2, [None, (0.0, 9.0)], has_knees=True)
    search.finish([image, image])
    assert search.windows() == ((10.0, 250.0), (0.0, 9.0))
    assert search.knees() == (19.0, None)
    search = WindowSearch([image.dtype], [None], has_knees=True)
    search.finish([np.asarray(255, dtype) - image])
    assert search.knees() == (236.0,)


@settings(max_examples=200)
@given(masked_images(), st.data())
def test_any_cut_of_the_image_gives_the_same_counts(image, data):
    values, inside = image
    fixed = [data.draw(st.sampled_from([None, (1.0, 2.0)])) for _ in values]
    parts = cut(values[0].shape, data)
    search = WindowSearch([channel.dtype for channel in values], fixed, has_knees=data.draw(st.booleans()))
    searched = [channel for channel, window in zip(values, fixed, strict=True) if window is None]
    assert search.passes == max(map(passes_of, searched), default=0)
    if not all(has_values(channel, inside) for channel in searched):
        with pytest.raises(NoFiniteValues, match="image holds no finite value"):
            search.narrow(search.count(values, inside))
        return
    turn = 0
    while turn < search.passes + search.further_passes:
        assert not search.done
        whole = search.count(values, inside)
        assert len(whole) <= search.rows(turn)
        pieces = [
            search.count([channel[part] for channel in values], None if inside is None else inside[part])
            for part in parts
        ]
        np.testing.assert_array_equal(sum(pieces), whole)
        search.narrow(whole)
        turn += 1
    assert search.done
    assert search.further_passes in (0, search.most_further_passes)
    assert search.rows(search.passes + search.most_further_passes) == len(search.count(values, inside)) == 0
    assert search.windows() == tuple(
        window or window_by_sorting(channel, inside) for channel, window in zip(values, fixed, strict=True)
    )


def passes_of(channel):
    bits = 32 if (channel.dtype.kind, channel.dtype.itemsize) == ("f", 2) else 8 * channel.dtype.itemsize
    return max(1, bits // 16)


@given(masked_images(), st.integers(0, 8), st.booleans())
def test_a_search_continues_from_the_state_of_another(image, turns, has_knees):
    values, inside = image
    assume(all(has_values(channel, inside) for channel in values))
    begin, fixed = [channel.dtype for channel in values], [None] * len(values)
    first, second = (WindowSearch(begin, fixed, has_knees=has_knees) for _ in range(2))
    copies, state = (copy(first), copy(second)), first.state()
    for _ in range(turns):
        if not first.done:
            first.narrow(first.count(values, inside))
    second.restore(json.loads(json.dumps(first.state())))
    while not second.done:
        second = pickle.loads(pickle.dumps(second))
        second.narrow(second.count(values, inside))
    assert second.windows() == find_windows(values, fixed, inside=inside)
    assert all(untouched.state() == state for untouched in copies)


@given(images(), st.permutations(range(3)), st.sampled_from([1, -1, 2, -3]), st.data())
def test_a_mask_may_have_any_memory_order(image, order, stride, data):
    inside = np.random.default_rng(data.draw(st.integers(0, 99))).random(image.shape) < 0.7
    view, mask = (array.transpose(order)[::stride] for array in (image, inside))
    assume(has_values(view, mask))
    expected = (window_by_sorting(view, mask),)
    assert find_windows([view], [None], inside=mask) == expected
    assert find_windows([np.ascontiguousarray(view)], [None], inside=mask) == expected
    assert find_windows([view], [None], inside=np.asfortranarray(mask)) == expected


@given(images(), st.permutations(range(3)), st.sampled_from([1, -1, 2, -3]))
def test_the_memory_order_does_not_matter(image, order, stride):
    view = image.transpose(order)[::stride]
    assume(has_values(view))
    assert intensity_window(view) == window_by_sorting(view)
    assert intensity_window(np.asfortranarray(view)) == window_by_sorting(view)


@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_any_number_of_axes_will_do(ndim):
    image = np.random.default_rng(0).normal(size=4096).reshape([int(4096 ** (1 / ndim) + 0.5)] * ndim)
    assert intensity_window(image) == window_by_sorting(image)


def test_large_images_are_read_in_slabs(monkeypatch):
    monkeypatch.setattr(order_statistics, "COPY_BYTES", 1000)
    image = np.random.default_rng(0).normal(size=(20, 30, 40))
    for view in (image, image.transpose(2, 0, 1), image[::-2], np.broadcast_to(image[0], image.shape)):
        assert intensity_window(view) == window_by_sorting(view)


@pytest.mark.parametrize("dtype", ["<f2", "f4", "f8"])
def test_only_finite_values_count(dtype):
    image = np.full(1000, np.nan, dtype)
    image[::3] = np.inf
    image[1::3] = -np.inf
    image[7], image[500], image[900] = -2, 0, 5
    # Three values are too few for percentiles to leave any out.
    assert intensity_window(image) == (-2, 5)
    image[[7, 500, 900]] = np.nan
    with pytest.raises(ValueError, match="no finite value"):
        intensity_window(image)


def test_an_image_without_voxels_is_refused():
    with pytest.raises(ValueError, match="no finite value"):
        intensity_window(np.zeros((0, 4, 4)))


def test_float16_in_the_other_byte_order():
    image = np.arange(300, dtype=np.float16).reshape(3, 10, 10)
    other = image.astype(image.dtype.newbyteorder())
    assert intensity_window(other) == intensity_window(image) == (1, 298)


@pytest.mark.parametrize("dtype", ["<f2", "f4", "f8"])
def test_negative_zero_is_zero(dtype):
    image = np.zeros(1001, dtype)
    image[::2] = -0.0
    assert intensity_window(image) == (0, 0)
    image[:20], image[-20:] = -1, 1
    assert intensity_window(image) == (-1, 1)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_constant_image_has_equal_ends(dtype):
    assert intensity_window(np.full((3, 4, 5), 7, dtype)) == (7, 7)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_few_voxels_on_a_constant_background_still_make_a_window(dtype):
    """Where the percentiles coincide, the window comes from the other values."""
    image = np.full(1000, 7, dtype)
    image[3] = 9
    assert intensity_window(image) == (7, 9)
    image[4] = 2
    assert intensity_window(image) == (2, 9)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("background", [7, 60])
def test_a_few_hot_and_dead_voxels_do_not_matter(dtype, background):
    image = np.full(100_000, background, dtype)
    image[:400] = np.arange(400) // 20 + 50
    image[500:530] = 120
    image[600:610] = 1
    # The quartiles of the others are 55 and 65, so that fences are 15 away from them.
    others = np.sort(image[image != background])
    rank = (len(others) - 1) // 4
    lower, upper = int(others[rank]), int(others[-1 - rank])
    reach = 3 * (upper - lower) // 2 if image.dtype.kind != "f" else 1.5 * (upper - lower)
    assert intensity_window(image) == (min(background, lower - reach), max(background, upper + reach))
    assert intensity_window(image)[0] > 1
    assert 69 <= intensity_window(image)[1] < 120


def test_integers_that_floats_do_not_hold():
    image = np.arange(1001, dtype=np.int64) + 2**60 + 1
    assert intensity_window(image) == (2**60 + 6, 2**60 + 996)
    image[:] = 2**60 + 1
    image[:5] += [3, 3, 3, 3, 999]
    assert intensity_window(image) == (2**60 + 1, 2**60 + 4)
    assert read_window((2**60 + 1, 2**60 + 9)) == read_window(f"{2**60 + 1}:{2**60 + 9}") == (2**60 + 1, 2**60 + 9)


def test_the_channel_without_a_finite_value_is_named():
    values = [np.zeros((2, 2, 2)), np.full((2, 2, 2), NAN)]
    with pytest.raises(NoFiniteValues, match=r"^channel 1 of the image holds no finite value, or none inside the mask"):
        find_windows(values, [None, None])
    assert find_windows(values, [None, (0.0, 1.0)]) == ((0, 0), (0, 1))
    with pytest.raises(NoFiniteValues, match=r"^the image holds no finite value, or none inside the mask"):
        find_windows(values[:1], [None], inside=np.zeros((2, 2, 2), bool))
    error = NoFiniteValues("channel 3 of the image")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# What the user gives.


@pytest.mark.parametrize(
    ("form", "window"),
    [
        (None, None),
        ("abdomen", (-160, 240)),
        ("Lung", (-1350, 150)),
        (" BONE ", (-500, 1300)),
        ("brain", (0, 80)),
        ("40,400", (-160, 240)),
        ("-600, 1500", (-1350, 150)),
        ("-160:240", (-160, 240)),
        ("-1e3 : 2.5", (-1000, 2.5)),
        ((-160, 240), (-160, 240)),
        (np.array([-150, 250]), (-150, 250)),
        ([np.float32(0.5), 2**70], (0.5, 2.0**70)),
    ],
)
def test_a_window_has_many_forms(form, window):
    assert read_window(form) == window
    for channels in (1, 3):
        assert read_windows(form, channels) == (window,) * channels
    for several in ([form, form], (form, form)):
        assert read_windows(several, 2) == (window, window)


NONSENSE = [(1, 1), (2, 1), (NAN, 1), (0, NAN), (0, INF), (-INF, 0), (), (1,), (1, 2, 3), 5, (0, 10**400), {}, object()]
NONSENSE += ["liver", "1", "1,2,3", "1:2:3", "1,0", "1,-2", "2:1", "1:1", ":", ",", "1:", "nan,1", "0:inf", "1e308:a"]
NONSENSE += ["1e30,1", "1e308,1e309", "abdomen,lung", "a" * 100]


@pytest.mark.parametrize("window", NONSENSE)
def test_nonsense_windows_are_refused(window):
    with pytest.raises(ValueError, match=r"^window must be two finite intensities .* got"):
        read_window(window)
    for channels in (1, 2):
        with pytest.raises(ValueError, match=r"^window must be two finite intensities .* got"):
            read_windows(window, channels)


def test_an_empty_string_is_no_single_window():
    with pytest.raises(ValueError, match="two finite intensities"):
        read_window("")


@pytest.mark.parametrize(
    ("form", "windows"),
    [
        ("abdomen;40,400;0:100", ((-160, 240), (-160, 240), (0, 100))),
        ("0:1; ;brain", ((0, 1), None, (0, 80))),
        (";;", (None, None, None)),
        ("", (None, None, None)),
        (["brain", None, (0, 1)], ((0, 80), None, (0, 1))),
        (np.arange(6).reshape(3, 2), ((0, 1), (2, 3), (4, 5))),
        ([(0, 1)], ((0, 1),) * 3),
    ],
)
def test_channels_may_have_windows_of_their_own(form, windows):
    assert read_windows(form, 3) == windows


@pytest.mark.parametrize("form", ["brain;brain", [(0, 1), (2, 3)], "1:2;;;", [None] * 4])
def test_windows_for_other_channels_are_refused(form):
    with pytest.raises(ValueError, match=r"^window is given for [24] channels, but the image has 3: give one"):
        read_windows(form, 3)


@pytest.mark.parametrize(
    ("percentiles", "millionths"),
    [
        ((0.5, 99.5), (5_000, 995_000)),
        ("1,99", (10_000, 990_000)),
        (" 0.1 , 99.9 ", (1_000, 999_000)),
        ((0, 100), (0, 10**6)),
        ([np.float32(0.1), np.float64(99.9999)], (1_000, 999_999)),
        (np.array([2, 98]), (20_000, 980_000)),
        ((1e-4, "1.50000000"), (1, 15_000)),
    ],
)
def test_percentiles_are_exact(percentiles, millionths):
    checked = check_percentiles(percentiles)
    assert checked == millionths
    assert all(type(value) is int for value in checked)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_percentile_of_four_decimals_is_exact(low, high):
    assume(low < high)
    assert check_percentiles((low / 10_000, high / 10_000)) == (low, high)


NO_PERCENTILES = [(1, 1), (2, 1), (-1, 99), (1, 101), (NAN, 1), (0, NAN), (0, INF), (), (1,), (1, 2, 3), 5, None]
NO_PERCENTILES += ["", "1", "a,b", "1;99", (1 / 3, 99), ("1e-999999999", 99), (0, "1e999999999"), "sNaN,1"]


@pytest.mark.parametrize("percentiles", NO_PERCENTILES)
def test_nonsense_percentiles_are_refused(percentiles):
    with pytest.raises(ValueError, match=r"^percentiles must be two numbers .* got"):
        check_percentiles(percentiles)


@pytest.mark.parametrize(
    ("numbers", "weights"),
    [
        (None, (1, 1, 1)),
        ((5, 5, 5), (1, 1, 1)),
        ((1, 2, 3), (21, 43, 64)),
        ((1e-9, 1, 1e-300), (1, 64, 1)),
        ((1e308, 5e307, 1e308), (2, 1, 2)),
        (np.array([0.25, 0.5, 1]), (1, 2, 4)),
        ((10**30, 10**30, 10**30), (1, 1, 1)),
    ],
)
def test_weights_are_whole_numbers(numbers, weights):
    assert check_weights(numbers, 3) == weights


@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=16))
def test_weights_keep_their_proportions(numbers):
    whole = check_weights(numbers, len(numbers))
    assert math.gcd(*whole) == 1
    assert all(1 <= weight <= 64 for weight in whole)
    for number, weight in zip(numbers, whole, strict=True):
        relation = Fraction(weight, max(whole))
        assert abs(max(number / max(numbers), 1 / 64) - relation) <= 1 / 128


@pytest.mark.parametrize(
    "weights", [(), (1,), (1, 2, 3), (1, 0), (1, -1), (NAN, 1), (INF, 1), ("a", 1), 5, (1, 10**400)]
)
def test_nonsense_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"^weights must be positive numbers, one for each channel .* got"):
        check_weights(weights, 2)


def test_bins_are_of_three_kinds():
    assert check_bins("auto") == "auto"
    assert check_bins("linear") == "linear"
    assert check_bins("equalised") == "equalised"
    for other in ("Linear", "", None, 64, ["linear"]):
        with pytest.raises(ValueError, match=r"^bins must be one of auto, linear, equalised, got"):
            check_bins(other)
