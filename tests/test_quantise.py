"""Bins against the formula."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from intensities import KINDS, has_values, images

from dseeds.quantise import check_dtype, quantise
from dseeds.windows import intensity_window


@settings(max_examples=300)
@given(images(), st.data())
def test_bins_are_the_formula(image, data):
    if has_values(image) and data.draw(st.booleans()):
        window = intensity_window(image)
    else:
        window = tuple(sorted(data.draw(st.tuples(*[st.floats(-300, 300)] * 2))))
    assume(window[0] < window[1])
    bins = np.full(image.shape, 99, np.uint8)
    quantise(image, window, bins)
    np.testing.assert_array_equal(bins, oracle.to_bins(image, window))


@given(hnp.arrays(np.float64, (1, 1, 40), elements=st.floats(allow_nan=False)), st.floats(), st.floats())
def test_bins_rise_with_the_intensity(image, a, b):
    assume(math.isfinite(a) and math.isfinite(b) and a != b)
    lo, hi = min(a, b), max(a, b)
    image = np.sort(np.concatenate([image, [[[lo, hi]]]], axis=2))
    bins = np.zeros(image.shape, np.uint8)
    quantise(image, (lo, hi), bins)
    assert (np.diff(bins.astype(int)) >= 0).all()
    assert (bins[image <= lo] == 0).all()
    assert (bins[image >= hi] == 63).all()


def test_bins_have_equal_widths():
    image = np.arange(-100, 740, dtype=np.int16).reshape(1, 1, -1)
    bins = np.zeros(image.shape, np.uint8)
    quantise(image, (0, 640), bins)
    np.testing.assert_array_equal(bins, np.clip(image // 10, 0, 63))


def test_nan_and_infinity_have_bins():
    image = np.array([[[np.nan, -np.inf, np.inf, 0, 1, -1, 0.5]]])
    bins = np.full(image.shape, 99, np.uint8)
    quantise(image, (0, 1), bins)
    assert bins.tolist() == [[[0, 0, 63, 0, 63, 0, 32]]]


def test_the_widest_window_does_not_overflow():
    most = np.finfo(np.float64).max
    image = np.array([[[-most, -most / 2, 0, most / 2, most]]])
    bins = np.zeros(image.shape, np.uint8)
    quantise(image, (-most, most), bins)
    assert bins.tolist() == [[[0, 16, 32, 48, 63]]]


def test_the_narrowest_window_does_not_divide_by_zero():
    image = np.array([[[0, 5e-324]]])
    bins = np.zeros(image.shape, np.uint8)
    quantise(image, (0, 5e-324), bins)
    assert bins.tolist() == [[[0, 63]]]


@pytest.mark.parametrize("window", [(3, 3), (4, 3)])
def test_an_empty_window_has_one_bin(window):
    bins = np.full((2, 2, 2), 99, np.uint8)
    quantise(np.arange(8.0).reshape(2, 2, 2), window, bins)
    assert not bins.any()


def test_bins_may_be_a_view_of_a_padded_volume():
    image = np.random.default_rng(0).normal(size=(4, 5, 6))
    padded = np.full((6, 7, 8), 99, np.uint8)
    quantise(image, (-1, 1), padded[1:-1, 1:-1, 1:-1])
    np.testing.assert_array_equal(padded[1:-1, 1:-1, 1:-1], oracle.to_bins(image, (-1, 1)))
    padded[1:-1, 1:-1, 1:-1] = 99
    assert (padded == 99).all()


def test_large_images_are_read_in_slabs(monkeypatch):
    image = np.random.default_rng(0).normal(size=(20, 30, 40))
    bins, whole = np.zeros((2, *image.shape), np.uint8)
    quantise(image, (-1, 1), whole)
    monkeypatch.setattr("dseeds.quantise.SLAB_BYTES", 1000)
    quantise(image, (-1, 1), bins)
    np.testing.assert_array_equal(bins, whole)


def test_float16_in_the_other_byte_order():
    image = np.arange(300, dtype=np.float16).reshape(3, 10, 10)
    bins, expected = np.zeros((2, *image.shape), np.uint8)
    quantise(image, (1, 298), expected)
    quantise(image.astype(image.dtype.newbyteorder()), (1, 298), bins)
    np.testing.assert_array_equal(bins, expected)


# What is refused.


@pytest.mark.parametrize("dtype", [*KINDS, ">i2", ">f8", "f2"])
def test_intensities_of_these_dtypes_are_accepted(dtype):
    check_dtype(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["?", "F", "D", "O", "S3", "U3", "M8[s]", "m8[s]", "i4,f4", "g"])
def test_other_dtypes_are_refused(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is no longer than double here")
    with pytest.raises(TypeError, match="integer or float"):
        check_dtype(np.dtype(dtype))
