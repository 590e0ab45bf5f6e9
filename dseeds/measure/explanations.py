"""Supervoxels as features of explanations: masks of features, and images in which some features are replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dseeds.core.dtypes import native_values, unmask
from dseeds.core.duck_arrays import is_itk_image, is_nibabel_image
from dseeds.core.geometry import Box
from dseeds.core.optional import import_optional
from dseeds.io import open_image
from dseeds.io.labels import open_labels, read_labels
from dseeds.measure.pooling import pool

BASELINES = ("mean", "zero", "blur")


def feature_mask(labels: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return supervoxels numbered from 0 without gaps, as captum, LIME and SHAP take features.

    Parameters
    ----------
    labels : source
        The supervoxels of any program, axes (z, y, x), as for `features`. They are read into memory.

    Returns
    -------
    mask : ndarray of int64, shape (z, y, x)
        The feature of each voxel, in the order of the labels. Voxels of label 0, masked out, are one more feature, the
        last one.
    ids : ndarray of int64, shape (features,)
        The label of each feature.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> mask, ids = dseeds.feature_mask(np.array([[[5, 5, 0, 2]]]))
    >>> mask.tolist(), ids.tolist()
    ([[[1, 1, 2, 0]]], [2, 5, 0])
    """
    source = open_labels(labels)
    ids, places = np.unique(read_labels(source, Box((0, 0, 0), source.shape)), return_inverse=True)
    mask = places.reshape(source.shape).astype(np.int64, copy=False)
    if ids.size and ids[0] == 0:
        ids, mask = np.roll(ids, -1), np.where(mask == 0, len(ids), mask) - 1
    return mask, ids


def perturb(
    image: ArrayLike, mask: ArrayLike, kept: ArrayLike, baseline: str | float | ArrayLike = "mean", sigma: float = 4.0
) -> NDArray[Any]:
    """Return copies of an image in which some supervoxels are replaced, for a model whose answers are to be explained.

    Parameters
    ----------
    image : array_like, nibabel or SimpleITK image, shape (z, y, x) or (channels, z, y, x)
        The intensities; the components of a SimpleITK image are channels.
    mask : array_like of int, shape (z, y, x)
        The feature of each voxel, from 0; see `feature_mask`.
    kept : array_like of bool, shape (features,) or (batch, features)
        Which features remain as they are.
    baseline : str, float or array_like, default "mean"
        What replaces the others: ``"mean"``, that of each supervoxel and channel; ``"zero"``; ``"blur"``, the image
        after a Gaussian filter, which needs SciPy; a number; or an array of the image's shape. For many batches, pass
        the array that `fill_features` returns.
    sigma : float, default 4
        The filter's standard deviation in voxels.

    Returns
    -------
    ndarray, shape (batch, ...) or that of the image
        Of the image's dtype if that is a float, else float32.

    Raises
    ------
    ValueError
        If shapes differ, features are not whole numbers from 0, or the baseline is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> image, mask = np.array([[[1.0, 3.0, 8.0]]]), np.array([[[0, 0, 1]]])
    >>> dseeds.perturb(image, mask, [[True, False], [False, True]], baseline="zero").tolist()
    [[[[1.0, 3.0, 0.0]]], [[[0.0, 0.0, 8.0]]]]
    >>> dseeds.perturb(image, mask, [False, False]).tolist()
    [[[2.0, 2.0, 8.0]]]
    """
    values, features = _check_image(image, mask)
    chosen = np.asarray(kept, bool)
    count = int(features.max(initial=-1)) + 1
    if chosen.ndim not in (1, 2) or chosen.shape[-1] < count:
        raise ValueError(f"kept has shape {chosen.shape}, but there are {count} features: pass (batch, features).")
    replaced = fill_features(values, features, baseline, sigma)
    inside = chosen[..., features]
    if values.ndim > 3:
        inside = np.expand_dims(inside, -4)
    return np.where(inside, values, replaced)


def fill_features(
    image: ArrayLike, mask: ArrayLike, baseline: str | float | ArrayLike = "mean", sigma: float = 4.0
) -> NDArray[Any]:
    """Return the image with all features replaced; see `perturb` for the parameters.

    Examples
    --------
    >>> fill_features(np.array([[[1.0, 3.0, 8.0]]]), np.array([[[0, 0, 1]]])).tolist()
    [[[2.0, 2.0, 8.0]]]
    """
    values, features = _check_image(image, mask)
    if not isinstance(baseline, str):
        return np.broadcast_to(np.asarray(baseline, values.dtype), values.shape)
    if baseline not in BASELINES:
        raise ValueError(f"baseline {baseline!r} is unknown: choose one of {', '.join(BASELINES)}, or pass values.")
    if baseline == "zero":
        return np.zeros_like(values)
    channels = values.reshape(-1, *features.shape)
    if baseline == "mean":
        ids, means = pool(features + 1, channels, statistics="mean", channel_axis=0).to_numpy()
        by_feature = np.zeros((int(ids[-1]), len(channels)), values.dtype)
        by_feature[ids - 1] = means
        filled = np.moveaxis(by_feature[features], -1, 0)
    else:
        gaussian = import_optional("scipy.ndimage", "A blurred baseline", "scipy").gaussian_filter
        # SciPy has no filters for float16.
        filled = np.stack([gaussian(native_values(channel), sigma) for channel in channels])
    return np.ascontiguousarray(filled, values.dtype).reshape(values.shape)


def _check_image(image: ArrayLike, mask: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the image in floats, NaN where it is masked, and the mask."""
    if is_itk_image(image) or is_nibabel_image(image):
        channels = open_image(image).read((slice(None), slice(None), slice(None)))
        values = channels[0] if len(channels) == 1 else np.stack(channels)
    else:
        values = unmask(np.asanyarray(image), is_image=True)
    if np.ma.is_masked(mask):
        raise ValueError(
            "mask must hold a feature for every voxel, but some are masked: make it with dseeds.feature_mask."
        )
    features = np.asarray(mask)
    if features.dtype.kind not in "iu" or features.min(initial=0) < 0:
        raise ValueError("mask must hold whole numbers from 0: make it with dseeds.feature_mask.")
    if values.ndim not in (3, 4) or values.shape[-3:] != features.shape:
        raise ValueError(
            f"image has shape {values.shape} and mask {features.shape}: they must agree in z, y and x, after one axis "
            f"of channels at most."
        )
    return values if values.dtype.kind == "f" else values.astype(np.float32), features.astype(np.int64, copy=False)
