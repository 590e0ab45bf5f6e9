"""xarray: labelled arrays in and out, and the accessor ``.dseeds`` of a `DataArray`, which importing this registers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import xarray as xr

from dseeds import __version__
from dseeds.arrays import is_dask
from dseeds.io.ome import PER_MM
from dseeds.io.source import ArraySource, Source, Spacing, Wanted, opened, spacing_in_mm
from dseeds.steps import millimetres

SPACE = ("z", "y", "x")
CHANNELS = ("c", "channel", "channels", "band", "bands")
# What is noted of how labels came about.
NOTED = ("step", "n_segments", "spacing", "window", "percentiles", "bins", "compactness", "min_size", "weights")
# How far coordinates may be from even, as a part of their distance.
UNEVEN = 1e-3


def axes_of(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Find the dimensions of z, y and x, and that of channels.

    Those of these names, in either case, are meant; where they are not all there, the last three in their order.
    Channels lie along `channel_axis`, or along a dimension called c, channel, channels, band or bands.

    Raises
    ------
    ValueError
        If there are too few, or others that are longer than 1.

    Examples
    --------
    >>> axes_of(xr.DataArray(np.zeros((2, 3, 4, 5)), dims=("x", "c", "y", "z")))
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


def spacing_of(image: xr.DataArray, space: tuple[str, ...]) -> Spacing | str:
    """Give the size of a voxel along (z, y, x) in millimetres, or say why none is known.

    >>> z = xr.Variable("z", [0.0, 2.0, 4.0], {"units": "um"})
    >>> image = xr.DataArray(np.zeros((3, 1, 1)), dims=("z", "y", "x"), coords={"z": z})
    >>> spacing_of(image, ("z", "y", "x"))
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
    return spacing_in_mm(sizes, units) or "some coordinates do not differ"


def plain(image: xr.DataArray, channel_axis: int | str | None = None) -> tuple[Any, tuple[str, ...], bool]:
    """Give the array of a `DataArray`, axes (z, y, x) or (c, z, y, x), its spatial dimensions, and which it is."""
    space, channels = axes_of(image, channel_axis)
    order = space if channels is None else (channels, *space)
    others = {name: 0 for name in image.dims if name not in order}
    return image.isel(others).transpose(*order).data, space, channels is not None


def like(image: xr.DataArray, space: tuple[str, ...], values: Any, name: str, **attributes: Any) -> xr.DataArray:
    """Give values (z, y, x) the dimensions of an image, in its order, and those of its coordinates that apply."""
    coords = {key: value for key, value in image.coords.items() if set(value.dims) <= set(space)}
    found = xr.DataArray(values, dims=space, coords=coords, name=name, attrs=attributes)
    return found.transpose(*(dim for dim in image.dims if dim in space))


def open_labelled(image: xr.DataArray, wanted: Wanted) -> tuple[Source, ...]:
    """Open a `DataArray` as `dseeds.io.open_source` opens arrays, with the spacing that its coordinates tell."""
    data, space, has_channels = plain(image, wanted.channel_axis)
    spacing = spacing_of(image, space)
    size = None if isinstance(spacing, str) else spacing
    inner = Wanted(wanted.volume, 0 if has_channels else None, wanted.purpose)
    if is_dask(data):
        from dseeds.dask_source import open_dask

        return open_dask(data, inner, size)
    everything = (slice(None),) * 3
    return tuple(ArraySource(source.read(everything), spacing=size) for source in opened(np.asarray(data), inner))


def labelled_supervoxels(image: xr.DataArray, *, channel_axis: int | str | None, levels: int, **options: Any) -> Any:
    """Cut a `DataArray` into supervoxels, see `dseeds.supervoxels`: labels with its dimensions and coordinates.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `dseeds.supervoxels`; and if a length is asked for and the coordinates tell no spacing.
    """
    from dseeds.memory import supervoxels

    data, space, has_channels = plain(image, channel_axis)
    notes = {name: value for name, value in options.items() if name in NOTED and value is not None}
    if options["spacing"] is None:
        options["spacing"] = _spacing_for(image, space, options["step"], options["n_segments"])
    found = supervoxels(data, channel_axis=0 if has_channels else None, levels=levels, **options)
    labels, *parents = found if levels else (found,)
    result = like(image, space, labels, "supervoxels", long_name="supervoxels", dseeds=__version__, **notes)
    return (result, *parents) if levels else result


def _spacing_for(image: xr.DataArray, space: tuple[str, ...], step: Any, n_segments: Any) -> Spacing | None:
    """Give the spacing where it is wanted, for lengths and numbers of supervoxels: a step in voxels is what it is."""
    length = isinstance(step, str) and millimetres(step) is not None
    if not length and n_segments is None:
        return None
    spacing = spacing_of(image, space)
    if not isinstance(spacing, str):
        return spacing
    if length:
        raise ValueError(f"step {step!r} needs the voxels' size, but {spacing}: give spacing=(z, y, x) in millimetres.")
    return None


@xr.register_dataarray_accessor("dseeds")
class Accessor:
    """What ``image.dseeds`` offers, for a `DataArray` of intensities or of labels.

    Examples
    --------
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
        """Cut this image into supervoxels: `dseeds.supervoxels`."""
        from dseeds.memory import supervoxels

        return supervoxels(self._array, **options)

    def features(self, image: Any, target: Any = None, **options: Any) -> Any:
        """Measure these supervoxels and their contacts in an image: `dseeds.features`."""
        from dseeds.tabulation import features

        return features(self._array, image, target, **options)

    def paint(self, table: Any, **options: Any) -> xr.DataArray:
        """Give every voxel of these supervoxels a value from a table, lazily: `dseeds.paint` without a target."""
        from dseeds.painting import paint

        data, space, _ = plain(self._array)
        return like(self._array, space, paint(data, table, **options), options.get("column") or "value")
