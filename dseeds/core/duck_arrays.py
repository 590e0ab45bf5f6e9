"""Arrays of Dask and xarray, recognised without importing either: if one exists, its package is imported already."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr


def is_dask_array(value: Any) -> TypeGuard[da.Array]:
    """Return whether a value is a Dask array.

    >>> is_dask_array([1, 2])
    False
    """
    return "dask.array" in sys.modules and isinstance(value, sys.modules["dask.array"].Array)


def is_data_array(value: Any) -> TypeGuard[xr.DataArray]:
    """Return whether a value is an xarray `DataArray`.

    >>> is_data_array([1, 2])
    False
    """
    return "xarray" in sys.modules and isinstance(value, sys.modules["xarray"].DataArray)
