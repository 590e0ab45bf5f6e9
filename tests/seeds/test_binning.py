"""Bins against the formula."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dseeds.seeds import histograms
from dseeds.seeds.binning import check_dtype, quantise_box, quantise_window
from dseeds.seeds.contrast import new_counts
from dseeds.seeds.histograms import GREY_LEVELS, count_grey_levels, equalised_bins, otsu_threshold
from dseeds.seeds.kernels.layout import new_window, unpack_box
from dseeds.seeds.kernels.voxels import MASKED
from tests.support import oracle
from tests.support.intensities import KINDS, cut, exact, images, masked_images, windows_of


def bins_of(values, windows, **options):
    """Return the bins, and the reported part of the voxels that remain."""
    bins = np.full((len(values), *values[0].shape), 99, np.uint8)
    remaining = quantise_box(values, windows, bins, **options)
    return bins, remaining


def bins_one_by_one(values, windows, inside=None, knees=None, tables=None, thresholds=None):
    """Return the same by the rules alone."""
    levels = np.array(
        [
            oracle.to_bins(v, window, GREY_LEVELS) * (window[0] < window[1])
            for v, window in zip(values, windows, strict=True)
        ]
    )
    stays = ~np.any([np.isnan(channel) for channel in values], axis=0)
    if inside is not None:
        stays &= inside
    if thresholds is not None:
        stays &= (levels > np.reshape(thresholds, (-1, 1, 1, 1))).any(axis=0)
    if tables is None:
        bins = np.array(
            [bins_of_channel(*channel) for channel in zip(values, windows, knees or [None] * len(values), strict=True)]
        )
    else:
        bins = np.array([table[grey] for table, grey in zip(tables, levels, strict=True)])
    return np.where(stays, bins, 64), "all" if stays.all() else "part" if stays.any() else "nothing"


def bins_of_channel(values, window, knee):
    low, high = window
    if low >= high:
        return np.zeros(values.shape, int)
    if knee is None:
        return oracle.to_bins(values, window)
    below, above = oracle.to_bins(values, (low, knee), 32), oracle.to_bins(values, (knee, high), 32)
    return np.where([[[exact(v) >= knee for v in row] for row in plane] for plane in values], 32 + above, below)


@st.composite
def cases(draw):
    """Draw channels with their windows, and all that the bins depend on besides."""
    values, inside = draw(masked_images())
    windows = draw(windows_of(values))
    counts = count_grey_levels(values, windows, inside)
    tables = draw(st.sampled_from([None, [equalised_bins(occurs) for occurs in counts]]))
    thresholds = draw(st.sampled_from([None, [otsu_threshold(occurs) for occurs in counts], [2000] * len(values)]))
    # A knee is one of the values.
    between = [
        [v for v in map(exact, channel.flat) if lo < v < hi] for channel, (lo, hi) in zip(values, windows, strict=True)
    ]
    knees = [draw(st.sampled_from([None, *some])) for some in between]
    return values, windows, {"inside": inside, "knees": knees, "tables": tables, "thresholds": thresholds}


@settings(max_examples=300)
@given(images(), st.data())
def test_bins_follow_the_formula(image, data):
    windows = data.draw(windows_of([image]))
    assume(windows[0][0] < windows[0][1])
    bins, remaining = bins_of([image], windows)
    valid = ~np.isnan(image)
    np.testing.assert_array_equal(bins[0], np.where(valid, oracle.to_bins(image, windows[0]), MASKED))
    assert remaining == ("all" if valid.all() else "part" if valid.any() else "nothing")


@settings(max_examples=300)
@given(cases())
def test_bins_follow_the_rules(case):
    values, windows, options = case
    counts = new_counts(len(values))
    bins, remaining = bins_of(values, windows, **options, counts=counts)
    for own, channel in zip(counts, bins, strict=True):
        np.testing.assert_array_equal(own, np.bincount(channel.ravel(), minlength=256))
    expected, expected_remaining = bins_one_by_one(values, windows, **options)
    np.testing.assert_array_equal(bins, expected)
    assert remaining == expected_remaining


@given(cases(), st.data())
def test_any_cut_of_the_image_gives_the_same_bins(case, data):
    values, windows, options = case
    bins, remaining = bins_of(values, windows, **options)
    pieces = np.full_like(bins, 99)
    parts = set()
    for part in cut(values[0].shape, data):
        inside = None if options["inside"] is None else options["inside"][part]
        whole = (slice(None), *part)
        parts.add(quantise_box([v[part] for v in values], windows, pieces[whole], **{**options, "inside": inside}))
    np.testing.assert_array_equal(pieces, bins)
    assert remaining == "part" or remaining in parts


@given(cases(), st.sampled_from([100, 1000, 10**6]))
def test_windows_of_the_kernels_have_the_same_bins(case, slab):
    values, windows, options = case
    bins, remaining = bins_of(values, windows, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dseeds.seeds.histograms.COPY_BYTES", slab)
        padded_bins = np.array([new_window(values[0].shape, 99) for _ in values])
        untouched = padded_bins.copy()
        assert quantise_window(values, windows, padded_bins, **options) == remaining
    for window, before, expected in zip(padded_bins, untouched, bins, strict=True):
        inner = np.empty_like(expected)
        unpack_box(window, (0, 0, 0), inner)
        np.testing.assert_array_equal(inner, expected)
        assert (window != before).sum() == expected.size


@given(cases())
def test_a_channel_twice_is_a_channel_once(case):
    values, windows, options = case
    bins, remaining = bins_of(values, windows, **options)
    twice = {name: given if name == "inside" or given is None else [*given, *given] for name, given in options.items()}
    both, also_remaining = bins_of([*values, *values], [*windows, *windows], **twice)
    np.testing.assert_array_equal(both, np.concatenate([bins, bins]))
    assert also_remaining == remaining


@given(hnp.arrays(np.float64, (1, 1, 40), elements=st.floats(allow_nan=False)), st.floats(), st.floats())
def test_bins_rise_with_the_intensity(image, a, b):
    assume(math.isfinite(a) and math.isfinite(b) and a != b)
    lo, hi = min(a, b), max(a, b)
    image = np.sort(np.concatenate([image, [[[lo, hi]]]], axis=2))
    (bins,), remaining = bins_of([image], [(lo, hi)])
    assert remaining == "all"
    assert (np.diff(bins.astype(int)) >= 0).all()
    assert (bins[image <= lo] == 0).all()
    assert (bins[image >= hi] == 63).all()


def test_bins_have_equal_widths():
    image = np.arange(-100, 740, dtype=np.int16).reshape(1, 1, -1)
    np.testing.assert_array_equal(bins_of([image], [(0, 640)])[0][0], np.clip(image // 10, 0, 63))


def test_nan_is_masked_and_infinity_is_not():
    image = np.array([[[np.nan, -np.inf, np.inf, 0, 1, -1, 0.5]]])
    bins, remaining = bins_of([image], [(0, 1)])
    assert (bins.tolist(), remaining) == ([[[[MASKED, 0, 63, 0, 63, 0, 32]]]], "part")
    other = np.array([[[0, np.nan, 1, 1, 1, 1, 1]]], np.float32)
    bins, remaining = bins_of([image, other], [(0, 1), (0, 2)])
    assert (bins[0].tolist(), remaining) == ([[[MASKED, MASKED, 63, 0, 63, 0, 32]]], "part")
    assert bins[1].tolist() == [[[MASKED, MASKED, 32, 32, 32, 32, 32]]]


def test_background_is_what_is_dark_in_all_channels():
    first, second = np.array([[[0, 0, 100, 100]]]), np.array([[[0, 9, 0, 9]]], np.uint8)
    bins, remaining = bins_of([first, second], [(0, 100), (0, 9)], thresholds=[2000, 2000])
    assert (bins[:, 0, 0].tolist(), remaining) == ([[MASKED, 0, 63, 63], [MASKED, 63, 0, 63]], "part")
    assert bins_of([first * 0], [(0, 100)], thresholds=[0])[1] == "nothing"
    assert bins_of([first * 0], [(0, 100)], thresholds=[-1])[1] == "all"


def test_the_widest_window_does_not_overflow():
    most = np.finfo(np.float64).max
    image = np.array([[[-most, -most / 2, 0, most / 2, most]]])
    assert bins_of([image], [(-most, most)])[0].tolist() == [[[[0, 16, 32, 48, 63]]]]


def test_the_narrowest_window_does_not_divide_by_zero():
    assert bins_of([np.array([[[0, 5e-324]]])], [(0, 5e-324)])[0].tolist() == [[[[0, 63]]]]


@pytest.mark.parametrize("window", [(3, 3), (4, 3)])
@pytest.mark.parametrize("tables", [None, [equalised_bins(np.eye(1, GREY_LEVELS, dtype=np.int64)[0])]])
def test_a_constant_channel_has_one_bin(window, tables):
    image = np.append(np.arange(5.0), [np.inf, -np.inf, np.nan]).reshape(2, 2, 2)
    bins, remaining = bins_of([image], [window], tables=tables)
    assert (bins.ravel().tolist(), remaining) == ([0] * 7 + [MASKED], "part")


def test_bins_may_be_a_view_of_a_padded_volume():
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    inside = image[0] > -1
    around = np.full((2, 6, 7, 8), 99, np.uint8)
    quantise_box(image, [(-1, 1)] * 2, around[:, 1:-1, 1:-1, 1:-1], inside=inside)
    np.testing.assert_array_equal(around[:, 1:-1, 1:-1, 1:-1], bins_of(image, [(-1, 1)] * 2, inside=inside)[0])
    around[:, 1:-1, 1:-1, 1:-1] = 99
    assert (around == 99).all()


def test_large_images_are_read_in_slabs(monkeypatch):
    image = np.random.default_rng(0).normal(size=(2, 20, 30, 40))
    options = {"inside": image[0] > -0.5, "thresholds": [1000, 3000]}
    whole = bins_of(image, [(-1, 1), (-2, 3)], **options)
    monkeypatch.setattr(histograms, "COPY_BYTES", 1000)
    bins = bins_of(image, [(-1, 1), (-2, 3)], **options)
    np.testing.assert_array_equal(bins[0], whole[0])
    assert bins[1] == whole[1] == "part"


def test_float16_in_the_other_byte_order():
    image = np.arange(300, dtype=np.float16).reshape(3, 10, 10)
    other = image.astype(image.dtype.newbyteorder())
    np.testing.assert_array_equal(bins_of([other], [(1, 298)])[0], bins_of([image], [(1, 298)])[0])


# What is refused.


@pytest.mark.parametrize("dtype", [*KINDS, ">i2", ">f8", "f2"])
def test_intensities_of_these_dtypes_are_accepted(dtype):
    check_dtype(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["?", "F", "D", "O", "S3", "U3", "M8[s]", "m8[s]", "i4,f4", "g"])
def test_other_dtypes_are_refused(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is no longer than double here")
    with pytest.raises(TypeError, match=r"integer or float .* convert it first, to uint8 if it is bool"):
        check_dtype(np.dtype(dtype))
