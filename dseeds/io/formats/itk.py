"""Images of SimpleITK, and what DICOM, NRRD and MetaImage share: SimpleITK reads their headers."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dseeds.io.affine import from_lps
from dseeds.io.axes import select_axes
from dseeds.io.source import ArraySource, SourceQuery, Spacing, require_volume, shorten


def open_itk_image(image: Any, query: SourceQuery) -> tuple[ArraySource, ...]:
    """Open an image of SimpleITK, whose arrays are (z, y, x); the components of its voxels are channels."""
    # Not a view, which must not outlive the image.
    values = sys.modules["SimpleITK"].GetArrayFromImage(image)
    where, count = "the image", image.GetDimension()
    names = ["t", "z", "y", "x"][-count:]
    if image.GetNumberOfComponentsPerPixel() > 1:
        names.append("c")
        if query.allows_channels and query.channel_axis is None and query.volume is None:
            query = replace(query, channel_axis="c")
    require_volume(values.shape, values.dtype, where, query, planes=True)
    selection = select_axes(names, values.shape, query, where)
    volume = values[selection.index]
    channels = [volume]
    if selection.channel_axis is not None:
        kept = [axis for axis, taken in enumerate(selection.index) if isinstance(taken, slice)]
        channels = list(np.moveaxis(volume, kept.index(selection.channel_axis), 0))
    if channels[0].ndim == 2:
        channels = [channel[np.newaxis] for channel in channels]
    spacing, affine = _place(image)
    return tuple(ArraySource(channel, "image", spacing=spacing, affine=affine) for channel in channels)


def _place(image: Any) -> tuple[Spacing | None, np.ndarray | None]:
    """Return the size of a voxel along (z, y, x) and the affine; None for a plane, which lies nowhere in space."""
    count = image.GetDimension()
    if count < 3:
        return None, None
    x, y, z = (float(size) for size in image.GetSpacing()[:3])
    direction = np.array(image.GetDirection()).reshape(count, count)[:3, :3]
    return (z, y, x), from_lps(direction, (z, y, x), np.array(image.GetOrigin()[:3]))


def new_reader(itk: Any, file: Path, image_io: str) -> Any:
    """Return a reader of a file, by one of SimpleITK's formats."""
    reader = itk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(file))
    return reader


def voxel_dtype(itk: Any, reader: Any) -> np.dtype:
    """Return the type that the image of a reader has as an array."""
    image = itk.Image([1, 1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    dtype: np.dtype = itk.GetArrayViewFromImage(image).dtype
    return dtype


def summarise_itk_error(error: Exception) -> str:
    r"""Return the cause that SimpleITK's message states last, without the names of source files, objects and functions.

    >>> summarise_itk_error(RuntimeError("a.cxx:4:\nitk::ERROR: IO(0x5): Error reading /a:\n[nrrd] f: no field\n"))
    'no field'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1].rpartition("): ")[2] if lines else type(error).__name__
    cause = shorten(re.sub(r"^(\[\w+\] )?(\w+: )*", "", last)).rstrip(".")
    # MetaIO only prints what it finds wrong, and the NRRD library names C's functions.
    return "its header makes no sense" if cause == "Success" or re.search(r"\w\(", cause) else cause
