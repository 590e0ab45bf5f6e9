"""TODO."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import xarray as xr

from dseeds.core.duck_arrays import is_dask_array
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import ArraySource, Source, SourceQuery, Spacing, convert_to_mm, open_array

SPACE = ("z", "y", "x")
CHANNELS = ("c", "channel", "channels", "band", "bands")
# How far coordinates may be from even, as a part of their distance.
UNEVEN = 1e-3


def find_dimensions(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Find the dimensions of z, y and x, and that of channels.

    Those of these names, in either case, are meant; where they are not all there, the last three in their order.
    Channels lie along `channel_axis`, or along a dimension called c, channel, channels, band or bands.

    Raises
    ------
    ValueError
        If there are too few, or others that are longer than 1.

    Examples
    --------
    >>> find_dimensions(xr.DataArray(np.zeros((2, 3, 4, 5)), dims=("x", "c", "y", "z")))
    (('z', 'y', 'x'), 'c')
    """
    names = [str(dim) for dim in image.dims]
    if channel_axis is None:
        channels = next((name for name in names if name.lower() in CHANNELS), None)
    elif isinstance(channel_axis, str):
        channels = channel_axis
    else:
        number = operator.index(channel_axis)
        channels = names[number] if -len(names) <= number < len(names) else str(number)
    if channels is not None and channels not in names:
        raise ValueError(f"the DataArray has no dimension {channels} for channels: it has {', '.join(names)}.")
    others = [name for name in names if name != channels]
    known = {name.lower(): name for name in others}
    space = tuple(known[name] for name in SPACE) if set(SPACE) <= known.keys() else tuple(others[-3:])
    longer = [name for name in others if name not in space and image.sizes[name] > 1]
    if len(space) < 3 or longer:
        raise ValueError(
            f"the DataArray has the dimensions {', '.join(names)}: supervoxels need z, y and x, and channels if any; "
            f"choose one of all others with isel()."
        )
    return space, channels


def read_spacing(image: xr.DataArray, space: tuple[str, ...]) -> Spacing | str:
    """Give the size of a voxel along (z, y, x) in millimetres, or say why none is known.

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
            return f"{coordinate.attrs['units']!r} of {name} is no unit of length that is known"
        if coordinate.size < 2 or coordinate.dtype.kind not in "iuf":
            return f"{name} has no two coordinates that are numbers"
        steps = np.diff(coordinate.values.astype(np.float64))
        if not np.allclose(steps, steps.mean(), rtol=UNEVEN, atol=0):
            return f"the coordinates of {name} are not evenly spaced"
        sizes.append(abs(float(steps.mean())))
    return convert_to_mm(sizes, units) or "some coordinates do not differ"


def extract_array(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[Any, tuple[str, ...], bool]:
    """Give the array of a `DataArray`, axes (z, y, x) or (c, z, y, x), its spatial dimensions, and which it is."""
    space, channels = find_dimensions(image, channel_axis)
    order = space if channels is None else (channels, *space)
    others = {name: 0 for name in image.dims if name not in order}
    return image.isel(others).transpose(*order).data, space, channels is not None


def wrap_like(image: xr.DataArray, space: tuple[str, ...], values: Any, name: str, **attributes: Any) -> xr.DataArray:
    """Give values (z, y, x) the dimensions of an image, in its order, and those of its coordinates that apply."""
    coords = {key: value for key, value in image.coords.items() if set(value.dims) <= set(space)}
    found = xr.DataArray(values, dims=space, coords=coords, name=name, attrs=attributes)
    return found.transpose(*(dim for dim in image.dims if dim in space))


def open_data_array(image: xr.DataArray, wanted: SourceQuery) -> tuple[Source, ...]:
    """Open a `DataArray` as `dseeds.io.open_source` opens arrays, with the spacing that its coordinates tell."""
    data, space, has_channels = extract_array(image, wanted.channel_axis)
    spacing = read_spacing(image, space)
    size = None if isinstance(spacing, str) else spacing
    inner = SourceQuery(wanted.volume, 0 if has_channels else None, wanted.purpose)
    if is_dask_array(data):
        from dseeds.io.formats.dask_array import open_dask_array

        return open_dask_array(data, inner, size)
    everything = (slice(None),) * 3
    return tuple(ArraySource(source.read(everything), spacing=size) for source in open_array(np.asarray(data), inner))
