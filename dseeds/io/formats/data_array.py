"""Arrays of xarray in and out: named dimensions, and coordinates that contain the spacing."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import xarray as xr

from dseeds.core.dtypes import unmask
from dseeds.core.duck_arrays import is_dask_array
from dseeds.io.axes import axis_meaning, find_space
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import ArraySource, Source, SourceQuery, Spacing, convert_to_mm, split_channels

# How far the steps between coordinates may differ, as a fraction.
_TOLERANCE = 1e-3


def find_dimensions(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Return the dimensions of z, y and x, and that of channels.

    z, y and x are found as in `dseeds.io.axes.find_space`. Channels lie along `channel_axis`, or along a dimension
    whose name says so, such as c, channel or band.
    Raises a ValueError if there are too few, or others that are longer than 1.

    >>> find_dimensions(xr.DataArray(np.zeros((2, 3, 4, 5)), dims=("x", "c", "y", "z")))
    (('z', 'y', 'x'), 'c')
    """
    names = [str(dim) for dim in image.dims]
    if channel_axis is None:
        channels = next((name for name in names if axis_meaning(name) == "c"), None)
    elif isinstance(channel_axis, str):
        channels = channel_axis
    else:
        number = operator.index(channel_axis)
        channels = names[number] if -len(names) <= number < len(names) else str(number)
    if channels is not None and channels not in names:
        raise ValueError(f"the DataArray has no dimension {channels} for channels: it has {', '.join(names)}.")
    others = [name for name in names if name != channels]
    found = find_space(others, [image.sizes[name] for name in others], "the DataArray")
    space = tuple(others[n] for n in found if n is not None)
    longer = [name for name in others if name not in space and image.sizes[name] > 1]
    if len(space) < 3 or longer:
        raise ValueError(
            f"the DataArray has the dimensions {', '.join(names)}: supervoxels need z, y and x, and channels if any; "
            f"choose one of all others with isel()."
        )
    return space, channels


def read_spacing(image: xr.DataArray, space: tuple[str, ...]) -> Spacing | str:
    """Return the size of a voxel along (z, y, x) in millimetres, or the reason why it is unknown.

    >>> z = xr.Variable("z", [0.0, 2.0, 4.0], {"units": "um"})
    >>> image = xr.DataArray(np.zeros((3, 1, 1)), dims=("z", "y", "x"), coords={"z": z})
    >>> read_spacing(image, ("z", "y", "x"))
    'y has no coordinates'
    """
    sizes, units = [], []
    for name in space:
        if name not in image.coords:
            return f"{name} has no coordinates"
        coordinate = image.coords[name]
        if "units" not in coordinate.attrs:
            return f"the coordinates of {name} have no attribute units"
        units.append(PER_MM.get(str(coordinate.attrs["units"])))
        if units[-1] is None:
            return f"{coordinate.attrs['units']!r} of {name} is not a known unit of length"
        if coordinate.size < 2 or coordinate.dtype.kind not in "iuf":
            return f"{name} does not have two coordinates that are numbers"
        steps = np.diff(coordinate.values.astype(np.float64))
        if not np.allclose(steps, steps.mean(), rtol=_TOLERANCE, atol=0):
            return f"the coordinates of {name} are not evenly spaced"
        sizes.append(abs(float(steps.mean())))
    return convert_to_mm(sizes, units) or "some coordinates do not differ"


def extract_array(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[Any, tuple[str, ...], bool]:
    """Return the array, axes (z, y, x) or (c, z, y, x), the dimensions of space, and whether it has channels."""
    space, channels = find_dimensions(image, channel_axis)
    order = space if channels is None else (channels, *space)
    others = {name: 0 for name in image.dims if name not in order}
    return image.isel(others).transpose(*order).data, space, channels is not None


def wrap_like(image: xr.DataArray, space: tuple[str, ...], values: Any, name: str, **attributes: Any) -> xr.DataArray:
    """Return values (z, y, x) as an array with the dimensions of an image, in its order, and its coordinates."""
    coords = {key: value for key, value in image.coords.items() if set(value.dims) <= set(space)}
    wrapped = xr.DataArray(values, dims=space, coords=coords, name=name, attrs=attributes)
    return wrapped.transpose(*(dim for dim in image.dims if dim in space))


def open_data_array(image: xr.DataArray, query: SourceQuery) -> tuple[Source, ...]:
    """Open a `DataArray` as `dseeds.io.open_source` opens arrays, with the spacing of its coordinates."""
    if query.planes and image.ndim == 2:
        missing = next(name for name in "zyx" if name not in image.dims)
        image = image.expand_dims(missing)
    data, space, has_channels = extract_array(image, query.channel_axis)
    spacing = read_spacing(image, space)
    size = None if isinstance(spacing, str) else spacing
    inner = SourceQuery(query.volume, 0 if has_channels else None, query.purpose)
    if is_dask_array(data):
        from dseeds.io.formats.dask_array import open_dask_array

        return open_dask_array(data, inner, size)
    values = unmask(np.asanyarray(data), is_image=query.is_image)
    return tuple(ArraySource(channel, spacing=size) for channel in split_channels(values, inner))
