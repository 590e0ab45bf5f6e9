"""Arrays of Dask and xarray, told apart without importing either: who has one has imported it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


def is_dask_array(value: Any) -> TypeGuard[da.Array]:
    """Tell whether something is a Dask array.

    >>> is_dask_array([1, 2])
    False
    """
    return "dask.array" in sys.modules and isinstance(value, sys.modules["dask.array"].Array)


def is_data_array(value: Any) -> TypeGuard[xr.DataArray]:
    """Tell whether something is an xarray `DataArray`.

    >>> is_data_array([1, 2])
    False
    """
    return "xarray" in sys.modules and isinstance(value, sys.modules["xarray"].DataArray)
