"""What DICOM, NRRD and MetaImage share: SimpleITK reads their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dseeds.io.source import shorten


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
    """Return the last part of SimpleITK's message, which follows the names of source files and objects."""
    return shorten(str(error).rpartition("): ")[2]).rstrip(".")
