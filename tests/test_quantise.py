"""Intensity windows against sorting, and bins against the formula."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dseeds.quantise import OrderStatistics, check_dtype, check_window, intensity_window, quantise

KINDS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
dtypes = st.sampled_from([order + kind for kind in KINDS for order in "<>"] + ["<f2", ">f2"])
# float16 in the other byte order has a test of its own.


@st.composite
def images(draw, ndim=3):
    """Anything a dtype can hold: a few voxels of every oddity, or so many that some are outside the window."""
    dtype = np.dtype(draw(dtypes))
    if draw(st.booleans()):
        shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=7))
        return draw(hnp.arrays(dtype, shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(rng.integers(1, 15, ndim))
    if draw(st.booleans()):
        # Every bit pattern is as likely as any other: NaN, infinity, denormals, both zeros.
        return rng.integers(0, 256, (math.prod(shape), dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    values = rng.normal(draw(st.sampled_from([0, 60])), draw(st.sampled_from([0.4, 9, 30])), shape)
    values = values if dtype.kind == "f" else values.round()
    return np.clip(values, 0 if dtype.kind == "u" else -127, 127).astype(dtype)


def window_by_sorting(image):
    values = image.ravel()
    if image.dtype.kind == "f":
        values = values[np.isfinite(values)]
    values = np.sort(values)
    last = len(values) - 1
    low, high = float(values[last * 5 // 1000]), float(values[last - last * 5 // 1000])
    return (low, high) if low < high else (float(values[0]), float(values[last]))


def has_values(image):
    return image.dtype.kind != "f" or np.isfinite(image).any()


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


@settings(max_examples=100)
@given(images(), st.data())
def test_any_cut_of_the_image_gives_the_same_counts(image, data):
    assume(has_values(image))
    axis = data.draw(st.integers(0, 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, image.shape[axis]), max_size=4)))
    parts = np.split(image, cuts, axis)
    search = OrderStatistics(image.dtype)
    passes = 0
    while not search.done:
        whole = search.counts(image)
        np.testing.assert_array_equal(sum(search.counts(part) for part in parts), whole)
        search.narrow(whole)
        passes += 1
    bits = 32 if (image.dtype.kind, image.dtype.itemsize) == ("f", 2) else 8 * image.dtype.itemsize
    assert passes == max(1, bits // 16)
    assert search.window() == window_by_sorting(image)


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
    monkeypatch.setattr("dseeds.quantise.SLAB_BYTES", 1000)
    image = np.random.default_rng(0).normal(size=(20, 30, 40))
    bins, whole = np.zeros((2, *image.shape), np.uint8)
    for view in (image, image.transpose(2, 0, 1), image[::-2], np.broadcast_to(image[0], image.shape)):
        assert intensity_window(view) == window_by_sorting(view)
    quantise(image, (-1, 1), bins)
    monkeypatch.undo()
    quantise(image, (-1, 1), whole)
    np.testing.assert_array_equal(bins, whole)


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
    bins, expected = np.zeros((2, *image.shape), np.uint8)
    quantise(image, (1, 298), expected)
    quantise(other, (1, 298), bins)
    np.testing.assert_array_equal(bins, expected)


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
    """Where the percentiles coincide, the ends are the least and the greatest value."""
    image = np.full(1000, 7, dtype)
    image[3] = 9
    assert intensity_window(image) == (7, 9)
    image[4] = 2
    assert intensity_window(image) == (2, 9)


# Bins.


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


@pytest.mark.parametrize(
    "window", [(1, 1), (2, 1), (math.nan, 1), (0, math.nan), (0, math.inf), (-math.inf, 0), (), (1,), (1, 2, 3)]
)
def test_nonsense_windows_are_refused(window):
    with pytest.raises(ValueError, match="two finite intensities"):
        check_window(window)


def test_a_window_may_be_any_pair_of_numbers():
    assert check_window(np.array([-150, 250])) == (-150.0, 250.0)
    assert check_window([np.float32(0.5), 2**70]) == (0.5, 2.0**70)
