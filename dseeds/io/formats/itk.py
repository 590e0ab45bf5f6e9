"""What DICOM, NRRD and MetaImage share: SimpleITK reads their headers."""

from __future__ import annotations

import re
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
    r"""Return the cause that SimpleITK's message states last, without the names of source files, objects and functions.

    >>> summarise_itk_error(RuntimeError("a.cxx:4:\nitk::ERROR: IO(0x5): Error reading /a:\n[nrrd] f: no field\n"))
    'no field'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1].rpartition("): ")[2] if lines else type(error).__name__
    cause = shorten(re.sub(r"^(\[\w+\] )?(\w+: )*", "", last)).rstrip(".")
    # MetaIO only prints what it finds wrong.
    return "its header makes no sense" if cause == "Success" else cause
