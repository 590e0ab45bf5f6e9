"""`supervoxels` of a `DataArray`: labels with its dimensions and coordinates. Needs xarray, which is optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import xarray as xr

from dseeds._version import __version__
from dseeds.api.options import SupervoxelOptions
from dseeds.io.formats.data_array import extract_array, read_spacing, wrap_like
from dseeds.io.source import Spacing
from dseeds.seeds.cell_size import millimetres

# The options that are written into the labels' attributes.
RECORDED = ("step", "n_segments", "spacing", "window", "percentiles", "bins", "compactness", "min_size", "weights")


def labelled_supervoxels(
    image: xr.DataArray, options: SupervoxelOptions, cut: Callable[[Any, SupervoxelOptions], Any]
) -> Any:
    """Cut a `DataArray` into supervoxels; `cut` does the same for plain arrays.

    Raise a ValueError if the step is a length and the coordinates have no spacing.
    """
    data, space, has_channels = extract_array(image, options.channel_axis)
    spacing = _spacing_for(image, space, options) if options.spacing is None else options.spacing
    result = cut(data, replace(options, channel_axis=0 if has_channels else None, spacing=spacing))
    labels, *parents = result if options.levels else (result,)
    attributes = {name: getattr(options, name) for name in RECORDED if getattr(options, name) is not None}
    labels = wrap_like(image, space, labels, "supervoxels", long_name="supervoxels", dseeds=__version__, **attributes)
    return (labels, *parents) if options.levels else labels


def _spacing_for(image: xr.DataArray, space: tuple[str, ...], options: SupervoxelOptions) -> Spacing | None:
    """Return the coordinates' spacing if it is needed: for a length or a number of supervoxels, not for voxels."""
    is_length = isinstance(options.step, str) and millimetres(options.step) is not None
    if not is_length and options.n_segments is None:
        return None
    spacing = read_spacing(image, space)
    if not isinstance(spacing, str):
        return spacing
    if is_length:
        raise ValueError(
            f"step {options.step!r} needs the voxels' size, but {spacing}: give spacing=(z, y, x) in millimetres."
        )
    return None
