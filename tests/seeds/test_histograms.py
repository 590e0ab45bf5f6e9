"""Grey levels against counts one by one, and thresholds against all others."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from dseeds.seeds import histograms
from dseeds.seeds.histograms import GREY_LEVELS, count_grey_levels, equalised_bins, otsu_threshold
from tests.support import oracle
from tests.support.intensities import cut, masked_images, windows_of


@settings(max_examples=200)
@given(masked_images(), st.data())
def test_levels_are_counted_as_one_by_one(image, data):
    values, inside = image
    windows = data.draw(windows_of(values))
    counted = np.ones(values[0].shape, bool) if inside is None else inside.copy()
    for channel in values:
        counted &= ~np.isnan(channel)
    counts = count_grey_levels(values, windows, inside)
    assert (counts.shape, counts.dtype) == ((len(values), GREY_LEVELS), np.int64)
    for channel, window, occurs in zip(values, windows, counts, strict=True):
        levels = oracle.to_bins(channel, window, GREY_LEVELS) * (window[0] < window[1])
        np.testing.assert_array_equal(occurs, np.bincount(levels[counted], minlength=GREY_LEVELS))
    pieces = [
        count_grey_levels([channel[part] for channel in values], windows, None if inside is None else inside[part])
        for part in cut(values[0].shape, data)
    ]
    np.testing.assert_array_equal(sum(pieces), counts)


def test_levels_of_large_images_are_counted_in_slabs(monkeypatch):
    image = np.random.default_rng(0).normal(size=(2, 20, 30, 40))
    inside = image[0] > -0.5
    whole = count_grey_levels(image, [(-1, 1), (-2, 3)], inside)
    monkeypatch.setattr(histograms, "COPY_BYTES", 1000)
    np.testing.assert_array_equal(count_grey_levels(image, [(-1, 1), (-2, 3)], inside), whole)


# Few or many levels that occur, few or many voxels in them.
drawn_histograms = st.one_of(
    st.dictionaries(st.integers(0, GREY_LEVELS - 1), st.integers(1, 2**40), max_size=6),
    st.integers(0, 2**32 - 1).map(
        lambda seed: dict(enumerate(np.random.default_rng(seed).poisson(3, GREY_LEVELS).tolist())),
    ),
).map(lambda counts: np.bincount(list(counts), list(counts.values()), GREY_LEVELS).astype(np.int64))


@settings(max_examples=50)
@given(drawn_histograms)
def test_the_threshold_is_the_best_of_all(counts):
    occurs = [Fraction(n) for n in counts.tolist()]
    total, mass = sum(occurs), sum(level * n for level, n in enumerate(occurs))
    best, expected = 0, -1
    below = mass_below = Fraction(0)
    for level, n in enumerate(occurs):
        below, mass_below = below + n, mass_below + level * n
        if 0 < below < total:
            apart = mass_below / below - (mass - mass_below) / (total - below)
            between = below * (total - below) * apart**2
            if between > best:
                best, expected = between, level
    assert otsu_threshold(counts) == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    share, many = rng.uniform(0.2, 0.8), 20_000
    values = np.where(rng.random(many) < share, rng.normal(30, 6, many), rng.normal(70, 9, many))
    # It counts in float32, and across a gap all thresholds are equally good: so few levels, all of which occur.
    counts = 1 + np.bincount(np.clip(values, 0, 99).astype(int), minlength=100)
    assert otsu_threshold(counts) == threshold_otsu(hist=(counts, np.arange(100)))


@pytest.mark.parametrize("level", [0, 7, GREY_LEVELS - 1])
def test_where_one_level_occurs_everything_is_foreground(level):
    counts = np.zeros(GREY_LEVELS, np.int64)
    assert otsu_threshold(counts) == -1
    counts[level] = 10
    assert otsu_threshold(counts) == -1
    counts[3] = 1
    assert otsu_threshold(counts) == min(3, level)


@given(drawn_histograms)
def test_equalised_bins_hold_about_equally_many(counts):
    bins = equalised_bins(counts)
    assert (bins.shape, bins.dtype) == (counts.shape, np.uint8)
    assert (np.diff(bins.astype(int)) >= 0).all()
    assert bins.max() <= 63
    occurring = np.flatnonzero(counts)
    if len(occurring) == 0:
        return
    assert bins[occurring[0]] == bins[0] == 0
    assert bins[occurring[-1]] == (63 if len(occurring) > 1 else 0)
    for number in range(64):
        # Levels cannot be cut: all but the last of a bin's are no more than its share.
        held = [int(counts[level]) for level in occurring if bins[level] == number]
        assert 64 * sum(held[:-1]) <= counts.sum()


def test_equalised_bins_of_equal_levels_are_nearly_linear():
    bins = equalised_bins(np.full(GREY_LEVELS, 3))
    assert np.abs(bins - np.arange(GREY_LEVELS) // 64).max() <= 1
    assert set(np.bincount(bins).tolist()) <= {63, 64, 65}
