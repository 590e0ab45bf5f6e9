"""Features of explanations: numbered from 0, and replaced one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

import dseeds

SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=30)
@given(SHAPES.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 5) | st.integers(0, 2**63 - 1))))
def test_features_are_numbered_without_gaps(labels):
    mask, ids = dseeds.feature_mask(labels)
    np.testing.assert_array_equal(ids[mask], labels)
    np.testing.assert_array_equal(np.unique(mask), np.arange(len(ids)))
    assert (ids[:-1] > 0).all()
    assert (np.diff(ids[ids > 0]) > 0).all()


@settings(max_examples=30)
@given(SHAPES, st.integers(0, 99), st.integers(0, 2), st.sampled_from(["uint8", "float16", "float32", "float64"]))
def test_each_feature_is_kept_or_replaced(shape, seed, channels, dtype):
    rng = np.random.default_rng(seed)
    mask, ids = dseeds.feature_mask(rng.integers(0, 4, shape))
    image = rng.integers(0, 50, (channels, *shape) if channels else shape).astype(dtype)
    kept = rng.random((3, len(ids))) < 0.5
    for baseline in ("mean", "zero", "blur", 7, rng.random(image.shape)):
        batch = dseeds.perturb(image, mask, kept, baseline, sigma=1)
        assert batch.shape == (3, *image.shape)
        assert batch.dtype == (dtype if dtype != "uint8" else "float32")
        for row, sample in zip(kept, batch, strict=True):
            np.testing.assert_array_equal(dseeds.perturb(image, mask, row, baseline, sigma=1), sample)
            flat = zip(image.reshape(-1, *shape), sample.reshape(-1, *shape), strict=True)
            for channel, (before, after) in enumerate(flat):
                expected = before.astype(np.float64)
                for feature in np.flatnonzero(~row):
                    inside = mask == feature
                    if isinstance(baseline, str):
                        blurred = ndimage.gaussian_filter(before.astype(np.float64), 1)
                        values = {"zero": 0, "mean": expected[inside].mean(), "blur": blurred[inside]}[baseline]
                    else:
                        values = np.broadcast_to(baseline, image.shape).reshape(-1, *shape)[channel][inside]
                    expected[inside] = values
                np.testing.assert_allclose(after, expected, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-5)


def test_what_does_not_match_is_refused():
    image, mask = np.zeros((2, 3, 4)), np.zeros((2, 3, 4), int)
    for arguments, words in (
        ((image[0], mask, [True]), "they must agree"),
        ((image, mask - 1, [True]), "whole numbers from 0"),
        ((image, mask + 0.5, [True]), "whole numbers from 0"),
        ((image, mask + 1, [True]), "there are 2 features"),
        ((image, mask, [True], "median"), "baseline 'median' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            dseeds.perturb(*arguments)
