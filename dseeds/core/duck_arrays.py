"""Arrays and images of other packages, recognised without importing these: if one exists, its package is imported."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

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


def is_itk_image(value: Any) -> bool:
    """Return whether a value is an image of SimpleITK.

    >>> is_itk_image([1, 2])
    False
    """
    return "SimpleITK" in sys.modules and isinstance(value, sys.modules["SimpleITK"].Image)


def is_nibabel_image(value: Any) -> bool:
    """Return whether a value is an image of nibabel.

    >>> is_nibabel_image([1, 2])
    False
    """
    name = "nibabel.spatialimages"
    return name in sys.modules and isinstance(value, sys.modules[name].SpatialImage)


def unmasked_voxels(image: Any, channel_axis: int | str | None = None) -> Any:
    """Return where a masked array of NumPy or Dask is not masked, in any of its channels; None for anything else.

    >>> unmasked_voxels(np.ma.masked_less([3, 7], 5))
    array([False,  True])
    """
    if is_dask_array(image) and isinstance(image._meta, np.ma.MaskedArray):
        unmasked = ~sys.modules["dask.array"].ma.getmaskarray(image)
    elif np.ma.is_masked(image):
        unmasked = ~np.ma.getmaskarray(image)
    else:
        return None
    return unmasked.all(axis=channel_axis) if isinstance(channel_axis, int) else unmasked
