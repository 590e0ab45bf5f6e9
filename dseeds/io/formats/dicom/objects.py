"""Which objects of DICOM hold the planes of volumes, and why others are refused."""

from __future__ import annotations

import math

import numpy as np

from dseeds.io.formats.dicom.files import (
    DEFLATED,
    JPEG,
    PLAIN,
    RUN_LENGTHS,
    DicomHeader,
    UnusableDicomError,
    damaged,
)
from dseeds.io.source import require_file_length, shorten

# What is refused although it holds voxels: what it is, and what to do.
_REFUSED = {
    "1.2.840.10008.5.1.4.1.1.66.4": ("a segmentation", "convert its segments to NIfTI"),
    "1.2.840.10008.5.1.4.1.1.66.7": ("a segmentation", "convert its segments to NIfTI"),
    "1.2.840.10008.5.1.4.1.1.77.1.6": ("a whole slide image, whose frames are tiles", "convert it to OME-Zarr or TIFF"),
    "1.2.840.10008.5.1.4.1.1.6.2": ("a volume of ultrasound in coordinates of its own", "convert it to NRRD or NIfTI"),
}
_DIRECTORY = "1.2.840.10008.1.3.10"
_TO_NIFTI = "convert it to NIfTI with dcm2niix"
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_PALETTE = "PALETTE COLOR"
_COLOURS = ("Red", "Green", "Blue")
_BITS = (8, 16, 32, 64)
# How many bytes a byte of the file may become: deflated, in run lengths; JPEG has no limit.
_EXPANSION = 1100


def is_image(header: DicomHeader) -> bool:
    """Return whether an object is an image: reports, plans, presentation states and others are not.

    Raises a ValueError for an image without voxels.
    """
    if header.object_uid == _DIRECTORY or header.file.name == "DICOMDIR":
        return False
    if header.pixels is not None:
        return True
    # A known object without rows has no voxels by design, unless its file was cut short.
    name = header.object_name
    is_cut_short = "Rows" in header.dataset or not header.object_uid or name.endswith(("Image", "Dose"))
    if is_cut_short and "Spectroscopy" not in name:
        raise damaged(header.file, "it ends before its voxels or holds none")
    return False


def refuse_other_object(header: DicomHeader) -> None:
    """Raise a ValueError that says what an object is that is no image."""
    if header.object_uid == _DIRECTORY or header.file.name == "DICOMDIR":
        raise UnusableDicomError(f"{header.file} is the index of a medium: pass the folder of one of its series")
    raise UnusableDicomError(f"{header.file} holds no image but a {header.object_name}: pass the folder of a series")


def require_planes(header: DicomHeader) -> None:
    """Raise a ValueError unless the frames of an image may be the planes of volumes."""
    uid = str(header.object_uid)
    if uid in _REFUSED:
        what, advice = _REFUSED[uid]
    elif "TotalPixelMatrixColumns" in header.dataset:
        what, advice = "an image of tiles", "convert it to OME-Zarr or TIFF"
    elif header.syntax not in {*PLAIN, *JPEG, DEFLATED, RUN_LENGTHS}:
        what, advice = f"compressed in a way that is not read ({shorten(header.syntax, 70)})", "decompress it"
    else:
        return
    raise UnusableDicomError(f"{header.file} is {what}: {advice}")


def stored_dtype(header: DicomHeader) -> np.dtype:
    """Return the type of the stored voxels."""
    if header.pixels in ("FloatPixelData", "DoubleFloatPixelData"):
        return np.dtype("f4" if header.pixels == "FloatPixelData" else "f8")
    bits, stored, signed = (read_count(header, name) for name in ("BitsAllocated", "BitsStored", "PixelRepresentation"))
    high = header.dataset.get("HighBit", stored - 1)
    if bits not in _BITS or not 0 < stored <= bits or high != stored - 1 or signed not in (0, 1):
        raise UnusableDicomError(
            f"{header.file} has voxels of {stored} of {bits} bits, up to bit {high}, which cannot be read: "
            f"convert them to 8, 16 or 32 bits"
        )
    return np.dtype(f"{'i' if signed else 'u'}{bits // 8}")


def require_voxels(header: DicomHeader, frames: int) -> None:
    """Raise a ValueError unless the voxels can be decoded, and the file is long enough for them."""
    dataset, file = header.dataset, header.file
    rows, columns, samples = (read_count(header, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    photometric = shorten(str(dataset.get("PhotometricInterpretation", "")), 40)
    if has_palette(header):
        _require_palette(header, samples)
    elif photometric not in _PHOTOMETRIC or (samples == 1) != photometric.startswith("MONOCHROME"):
        raise UnusableDicomError(
            f"{file} has colours of a kind that is not read ({photometric or 'not named'}, {samples} per voxel): "
            f"convert it to shades of grey or RGB"
        )
    if "ModalityLUTSequence" in dataset:
        raise UnusableDicomError(f"{file} has a table of the values of its voxels, which is not read: {_TO_NIFTI}")
    _require_length(header, (rows, columns, samples), frames, photometric)


def has_palette(header: DicomHeader) -> bool:
    """Return whether voxels are numbers of colours in a palette."""
    return header.text("PhotometricInterpretation") == _PALETTE


def palette_dtype(header: DicomHeader) -> np.dtype:
    """Return the type of the colours in a palette, as pydicom has it."""
    bits = {int(header.dataset[f"{name}PaletteColorLookupTableDescriptor"].value[2]) for name in _COLOURS}
    return np.dtype("u1" if bits == {8} else "u2")


def _require_palette(header: DicomHeader, samples: int) -> None:
    """Raise a ValueError unless a palette has all colours, of 8 or of 16 bits, and voxels are their plain numbers."""
    dataset = header.dataset
    tables = [dataset.get(f"{name}PaletteColorLookupTableDescriptor") for name in _COLOURS]
    is_complete = all(table is not None and len(table) == 3 and table[2] == tables[0][2] for table in tables)
    is_scaled = (dataset.get("RescaleSlope") or 1, dataset.get("RescaleIntercept") or 0) != (1, 0)
    if not is_complete or tables[0][2] not in (8, 16) or samples != 1 or is_scaled:
        raise UnusableDicomError(
            f"{header.file} has a palette (PALETTE COLOR) that is incomplete or unusual: convert it to RGB"
        )


def read_count(header: DicomHeader, name: str) -> int:
    """Read a number from 0 that every image has."""
    value = header.dataset.get(name)
    if not isinstance(value, int) or value < 0:
        raise damaged(header.file, f"its header has no valid {name}")
    return int(value)


def _require_length(header: DicomHeader, size: tuple[int, int, int], frames: int, photometric: str) -> None:
    file, plane = header.file, math.prod(size) * stored_dtype(header).itemsize
    if photometric == "YBR_FULL_422" and header.pixel_bytes is not None:
        plane = plane // 3 * 2
    needed = plane * frames
    if header.syntax in (DEFLATED, RUN_LENGTHS):
        require_file_length(file, needed, _EXPANSION)
    if header.pixel_bytes is None:
        return
    if needed > header.pixel_bytes:
        raise UnusableDicomError(
            f"{file} is incomplete: its header promises {needed} bytes of voxels, and it holds {header.pixel_bytes}, "
            f"so copy or export it again"
        )
    # Some writers fill up with zeros. Anything else, and a plane more, means that a size in the header is wrong.
    surplus = header.pixel_bytes - needed
    if surplus > 1 and (surplus >= plane or header.read_last_pixel_bytes(surplus).strip(b"\0")):
        raise damaged(file, f"its header promises {needed} bytes of voxels, and it holds {header.pixel_bytes}")
