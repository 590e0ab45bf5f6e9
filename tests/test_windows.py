"""Intensity windows against sorting."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from intensities import KINDS, has_values, images, window_by_sorting

from dseeds.windows import OrderStatistics, check_window, intensity_window


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
    monkeypatch.setattr("dseeds.windows.SLAB_BYTES", 1000)
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
    """Where the percentiles coincide, the ends are the least and the greatest value."""
    image = np.full(1000, 7, dtype)
    image[3] = 9
    assert intensity_window(image) == (7, 9)
    image[4] = 2
    assert intensity_window(image) == (2, 9)


@pytest.mark.parametrize(
    "window", [(1, 1), (2, 1), (math.nan, 1), (0, math.nan), (0, math.inf), (-math.inf, 0), (), (1,), (1, 2, 3)]
)
def test_nonsense_windows_are_refused(window):
    with pytest.raises(ValueError, match="two finite intensities"):
        check_window(window)


def test_a_window_may_be_any_pair_of_numbers():
    assert check_window(np.array([-150, 250])) == (-150.0, 250.0)
    assert check_window([np.float32(0.5), 2**70]) == (0.5, 2.0**70)
