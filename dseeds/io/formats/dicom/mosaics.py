"""Mosaics of Siemens: all slices of a volume as tiles of one plane, with their places in Siemens' own header."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from dseeds.io.formats.dicom.files import DicomHeader, UnusableDicomError

# Siemens and United Imaging note the number of tiles of a mosaic in private elements.
_COUNTS = (("SIEMENS MR HEADER", 0x0019, 0x0A), ("Image Private Header", 0x0065, 0x50))
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# How far the two normals that a header states may differ, as a cosine.
_SAME_DIRECTION = 1e-4


class Mosaic(NamedTuple):
    """The tiles of a plane.

    Attributes
    ----------
    tiles, across : int
        The number of tiles, and how many lie side by side.
    rows, columns : int
        The size of a tile.
    origin, step : ndarray
        The position of the first tile's first voxel, and from one tile to the next, in millimetres.
    """

    tiles: int
    across: int
    rows: int
    columns: int
    origin: np.ndarray
    step: np.ndarray


def read_mosaic(header: DicomHeader) -> Mosaic | None:
    """Return the tiles of a mosaic; None if the image is none. Raise a ValueError if their places are not certain."""
    csa = _read_csa(header)
    count = 0 if csa is None else int(_csareader().get_n_mosaic(csa) or 0)
    if not count and not _is_called_mosaic(header):
        return None
    mosaic = _place_tiles(header, csa, count) if csa is not None and count > 1 else None
    if mosaic is None:
        raise UnusableDicomError(
            f"{header.file} is a mosaic, with all slices in one plane, and does not say for certain where these lie: "
            f"convert it to NIfTI with dcm2niix"
        )
    return mosaic


def _place_tiles(header: DicomHeader, csa: Any, count: int) -> Mosaic | None:
    """Place tiles as nibabel does; None unless all that this takes is there, and slices are numbered upwards."""
    dataset, across = header.dataset, math.ceil(math.sqrt(count))
    size = np.array([dataset.get("Rows") or 0, dataset.get("Columns") or 0])
    position, orientation, spacing = (
        np.array([float(value) for value in dataset.get(name) or ()])
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    distance = float(dataset.get("SpacingBetweenSlices") or 0)
    normal = _csareader().get_slice_normal(csa)
    first = _csareader().get_scalar(csa, "ProtocolSliceNumber")
    is_complete = (len(position), len(orientation), len(spacing)) == (3, 6, 2) and distance > 0 and normal is not None
    if not is_complete or first != 0 or any(size % across) or int(dataset.get("NumberOfFrames") or 1) != 1:
        return None
    if any(name in dataset for name in _GROUPS):
        return None
    along_columns, along_rows = orientation[:3], orientation[3:]
    own = np.cross(along_columns, along_rows)
    if abs(abs(float(own @ normal)) - 1) > _SAME_DIRECTION:
        return None
    rows, columns = (int(n) for n in size // across)
    # The position is that of a plane of the mosaic's size around the centre of the first slice.
    shift = (size - (rows, columns)) / 2 * spacing
    origin = position + along_columns * shift[1] + along_rows * shift[0]
    return Mosaic(count, across, rows, columns, origin, own * math.copysign(distance, float(own @ normal)))


def _read_csa(header: DicomHeader) -> Any:
    """Return Siemens' own header; None without one that can be read, which no mosaic lacks."""
    try:
        value = header.dataset.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value
        return _csareader().read(value)
    except Exception:
        return None


def _csareader() -> Any:
    # The package of this reader warns on import.
    return import_module("nibabel.nicom.csareader")


def _is_called_mosaic(header: DicomHeader) -> bool:
    """Return whether an image is a mosaic by its type or by the number of its tiles."""
    dataset = header.dataset
    names = _as_list(dataset.get("ImageType"))
    for groups in _GROUPS:
        for group in _as_list(dataset.get(groups))[:1]:
            for kind in _as_list(group.get("MRImageFrameTypeSequence")):
                names = [*names, *_as_list(kind.get("FrameType"))]
    if "MOSAIC" in [str(name).strip().upper() for name in names]:
        return True
    for creator, group, element in _COUNTS:
        try:
            value = dataset.private_block(group, creator)[element].value
        except KeyError:
            continue
        if value not in (None, b"", "", 0, 1):
            return True
    return False


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
