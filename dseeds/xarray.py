"""The accessor ``.dseeds`` of xarray's `DataArray`; importing this module registers it."""

from __future__ import annotations

from typing import Any

import xarray as xr

from dseeds.io.formats.data_array import extract_array, wrap_like


@xr.register_dataarray_accessor("dseeds")
class Accessor:
    """The methods of ``image.dseeds``, for a `DataArray` of intensities or of labels.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import dseeds.xarray
    >>> image = xr.DataArray(np.zeros((8, 8, 8)), dims=("z", "y", "x"), coords={"x": np.arange(8) / 2})
    >>> image[:, :, 4:] = 9
    >>> labels = image.dseeds.supervoxels(step=4)
    >>> float(labels.sel(x=1.5, z=0, y=0)), float(labels.x[-1])
    (1.0, 3.5)
    >>> table = labels.dseeds.features(image).table
    >>> labels.dseeds.paint(table, column="intensity_mean").equals(image)
    True
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def supervoxels(self, **options: Any) -> Any:
        """Return the supervoxels of this image, see `dseeds.supervoxels`."""
        from dseeds.api.supervoxels import supervoxels

        return supervoxels(self._array, **options)

    def features(self, image: Any = None, target: Any = None, **options: Any) -> Any:
        """Measure these supervoxels and their contacts in an image, see `dseeds.features`."""
        from dseeds.measure.features import features

        return features(self._array, image, target, **options)

    def paint(self, table: Any, **options: Any) -> xr.DataArray:
        """Return a lazy array with a table's value for each voxel, see `dseeds.paint`."""
        from dseeds.measure.painting import paint

        data, space, _ = extract_array(self._array)
        return wrap_like(self._array, space, paint(data, table, **options), options.get("column") or "value")
