"""The dtypes of written arrays, and arrays that Numba can read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Integers are stored as the first of these that holds all of them, because viewers support the first ones best.
INTEGER_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
# The largest integer up to which float64 holds all.
LARGEST_EXACT = 1 << 53
NUMERIC_DTYPES = ("int8", *INTEGER_DTYPES, "float32", "float64")


def unmask(values: NDArray[Any], *, is_image: bool) -> NDArray[Any]:
    """Return a masked array of NumPy as a plain one, in which what is masked is outside; any other array as it is.

    Masked voxels of a mask or of labels are 0. Those of an image are NaN, so that integers become floats if any is
    masked; raise a ValueError for integers that have none of 64 bits.

    >>> unmask(np.ma.masked_less([3, 7], 5), is_image=True), unmask(np.ma.masked_less([3, 7], 5), is_image=False)
    (array([nan,  7.]), array([0, 7]))
    >>> unmask(np.ma.masked_all(2, np.int64), is_image=True)
    array([nan, nan])
    """
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if not is_image:
        return np.asarray(values.filled(0))
    if values.dtype.kind not in "iuf" or not np.ma.is_masked(values):
        return np.asarray(values.data)
    dtype = unmasked_dtype(values.dtype)
    # What is masked as a whole has no minimum.
    if values.dtype.itemsize == 8 and values.dtype.kind != "f" and values.count():
        low, high = values.min(), values.max()
        if max(-int(low), int(high)) > LARGEST_EXACT:
            raise ValueError(
                f"the masked image holds integers beyond 2^53 ({low} to {high}): subtract their minimum, or pass the "
                "image without its mask and the voxels inside as mask="
            )
    return np.where(np.ma.getmaskarray(values), dtype.type(np.nan), values.data.astype(dtype))


def unmasked_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that holds the values of a masked image of a dtype, and NaN."""
    if dtype.kind not in "iu":
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def above_origin(values: NDArray[Any], origin: int) -> NDArray[Any]:
    """Return by how much values exceed an integer, which is subtracted from integers as such; as they are for 0."""
    if not origin:
        return values
    if values.dtype.kind == "f" or not np.iinfo(values.dtype).min <= origin <= np.iinfo(values.dtype).max:
        return np.subtract(values.astype(np.float64), float(origin))
    own = values.dtype.type(origin)
    # Differences wrap around where they are negative, and fit 64 bits.
    above, below = (values - own).astype(np.uint64), (own - values).astype(np.uint64)
    difference: NDArray[np.float64] = np.where(values >= own, above.astype(np.float64), -below.astype(np.float64))
    return difference


def native_values(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array, contiguous and in native byte order, with float16 as float32; copied only if needed."""
    return np.ascontiguousarray(array, dtype=native_dtype(array.dtype))


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype that Numba supports and that holds the same values."""
    native = dtype.newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native
