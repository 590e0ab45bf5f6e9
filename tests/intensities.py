"""Images of every dtype, with whatever the dtype can hold."""

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
