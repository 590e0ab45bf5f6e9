"""The dtypes of written arrays, and arrays that Numba can read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Integers are stored as the first of these that holds all of them, because viewers support the first ones best.
INTEGER_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMERIC_DTYPES = ("int8", *INTEGER_DTYPES, "float32", "float64")


def native_values(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array, contiguous and in native byte order, with float16 as float32; copied only if needed."""
    return np.ascontiguousarray(array, dtype=native_dtype(array.dtype))


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype that Numba supports and that holds the same values."""
    native = dtype.newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native
