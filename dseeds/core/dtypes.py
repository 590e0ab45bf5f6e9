"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Whole numbers are stored as the first of these that holds them all, for viewers know the first ones best.
INTEGER_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMERIC_DTYPES = ("int8", *INTEGER_DTYPES, "float32", "float64")

# Order statistics.


def native_values(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array contiguous and in the machine's byte order, float16 as float32; copied only where needed."""
    return np.ascontiguousarray(array, dtype=native_dtype(array.dtype))


def native_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give a dtype that Numba knows and that holds the same values."""
    native = dtype.newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native
