"""Images of every dtype, with all values that the dtype can hold."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dseeds.seeds.order_statistics import find_windows

KINDS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
dtypes = st.sampled_from([order + kind for kind in KINDS for order in "<>"] + ["<f2", ">f2"])
# float16 in the other byte order has a test of its own.


@st.composite
def images(draw, shape=None):
    """Draw all that a dtype can hold: a few voxels of every oddity, or so many that some are outside the window."""
    dtype = np.dtype(draw(dtypes))
    if draw(st.booleans()):
        return draw(hnp.arrays(dtype, shape or hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = shape or tuple(rng.integers(1, 15, 3))
    if draw(st.booleans()):
        # Every bit pattern is as likely as any other: NaN, infinity, denormals, both zeros.
        return rng.integers(0, 256, (math.prod(shape), dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    values = rng.normal(draw(st.sampled_from([0, 60])), draw(st.sampled_from([0.4, 9, 30])), shape)
    values = values if dtype.kind == "f" else values.round()
    return np.clip(values, 0 if dtype.kind == "u" else -127, 127).astype(dtype)


@st.composite
def masked_images(draw):
    """Draw one to three channels, each of its own dtype, and a mask or None."""
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    values = draw(st.lists(images(shape), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return values, draw(st.sampled_from([None, rng.random(shape) < 0.5, np.ones(shape, bool), np.zeros(shape, bool)]))


@st.composite
def windows_of(draw, values):
    """Draw for each channel a window that contains much of it or nothing, is as wide as possible, or empty."""
    windows = []
    for channel in values:
        some = [exact(v) for v in channel.flat if math.isfinite(v)] or [0.0]
        ends = st.one_of(st.sampled_from(some), st.floats(-300, 300), st.sampled_from([-1.7e308, 1.7e308]))
        windows.append(tuple(sorted((draw(ends), draw(ends)))))
    return windows


def intensity_window(image):
    """Return the default window of a single image."""
    return find_windows([image], [None])[0]


def window_by_sorting(image, inside=None, percentiles=(5_000, 995_000)):
    values = (image if inside is None else image[inside]).ravel()
    if image.dtype.kind == "f":
        values = values[np.isfinite(values)]
    values = np.sort(values)
    last = len(values) - 1
    low, high = last * percentiles[0] // 10**6, -(-last * percentiles[1] // 10**6)
    if values[low] < values[high] or values[0] == values[-1]:
        return exact(values[low]), exact(values[high])
    # Of all other values, what lies within Tukey's fences.
    common, others = values[low], values[values != values[low]]
    rank = (len(others) - 1) // 4
    lower, upper = others[rank].item(), others[-1 - rank].item()
    reach = 3 * (upper - lower) // 2 if image.dtype.kind != "f" else 1.5 * (upper - lower)
    low = min(common.item(), max(values[0].item(), lower - reach))
    high = max(common.item(), min(values[-1].item(), upper + reach))
    return exact(low), exact(high)


def exact(number):
    """Return a number as a float, or as an integer if floats may not hold it."""
    number = number.item() if hasattr(number, "item") else number
    return number if isinstance(number, int) and abs(number) >= 2**53 else float(number)


def has_values(image, inside=None):
    return np.isfinite(image if inside is None else image[inside]).any()


def cut(shape, data):
    """Draw a cut of a volume along an axis, as slices."""
    axis = data.draw(st.integers(0, 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[axis]), max_size=4)))
    return [(slice(None),) * axis + (slice(a, b),) for a, b in pairwise([0, *cuts, shape[axis]])]
