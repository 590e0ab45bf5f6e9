"""Voxels of DICOM: pydicom reads plain ones and run lengths, GDCM, by way of SimpleITK, all kinds of JPEG.

GDCM reads each frame from a file of its own, with a plain header: it would apply the scale of the first frame to all
others, and turn MONOCHROME1 around. Its voxels are wrong for run lengths of more than one byte, and for big-endian
ones of 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from dseeds.core.optional import import_optional
from dseeds.io.formats.dicom.files import (
    DEFLATED,
    PLAIN,
    RUN_LENGTHS,
    damaged,
    describe_dicom_damage,
    import_pydicom,
    open_dicom_file,
)
from dseeds.io.formats.dicom.frames import DicomFrame
from dseeds.io.formats.itk import new_reader

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IMAGE_ELEMENTS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
)
# How the code of JPEG 2000 begins, and the markers of JPEG and JPEG-LS that precede the size.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_FRAME_HEADERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
# From this size on, a plane of JPEG must be stored in more than a few bytes.
_LARGE, _MAX_RATIO = 1 << 27, 5000


class FrameDecoder:
    """Decodes frames; what it holds of the last file is no larger than the file."""

    def __init__(self) -> None:
        self._file: str | None = None
        self._dataset: Any = None
        self._codes: list[bytes] = []

    def planes(self, frames: Sequence[DicomFrame], dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield the planes (y, x), or (y, x, values), of frames of one file, scaled, of a type."""
        file = Path(frames[0].file)
        if frames[0].across > 1:
            [mosaic] = self.planes([_whole_mosaic(frames[0])], dtype)
            yield from (_cut_tile(mosaic, frame) for frame in frames)
            return
        with ExitStack() as stack:
            with describe_dicom_damage(file):
                stream = stack.enter_context(open_dicom_file(file))
                # Closed before the file is.
                stored = stack.enter_context(closing(self._decode(file, stream, frames)))
                palette = _read_palette(file) if frames[0].palette else None
            for frame in frames:
                with describe_dicom_damage(file):
                    plane = _require_unchanged(file, next(stored), frame)
                    if palette is None:
                        plane = _scale(file, plane, frame, dtype)
                    else:
                        plane = _colour(file, plane, frame, palette).astype(dtype, copy=False)
                yield plane

    def _decode(self, file: Path, stream: BinaryIO, frames: Sequence[DicomFrame]) -> Generator[np.ndarray, None, None]:
        syntax, numbers = frames[0].syntax, [frame.number for frame in frames]
        pixels = import_pydicom("pydicom.pixels")
        if syntax in PLAIN or syntax == RUN_LENGTHS:
            uid = import_pydicom("pydicom.uid").UID(syntax)
            yield from pixels.iter_pixels(stream, indices=numbers, transfer_syntax_uid=uid)
            return
        if self._file != str(file):
            self._file, self._codes = str(file), []
            self._dataset = import_pydicom().dcmread(stream, force=True)
            if syntax != DEFLATED:
                self._codes = _split_frames(self._dataset)
                del self._dataset.PixelData
        if syntax == DEFLATED:
            yield from pixels.iter_pixels(self._dataset, indices=numbers)
            return
        for frame in frames:
            yield self._decode_jpeg(file, frame)

    def _decode_jpeg(self, file: Path, frame: DicomFrame) -> np.ndarray:
        itk = import_simpleitk()
        code = self._codes[frame.number]
        if _read_code_size(code) != frame.size[:2]:
            raise damaged(file, "its compressed voxels are damaged, or not of the size that its header says")
        size = int(np.prod(frame.size[: 2 if frame.palette else 3])) * frame.stored.itemsize
        if size > _LARGE and size > _MAX_RATIO * len(code):
            raise damaged(file, f"its header promises {size} bytes of voxels, more than the file can hold")
        with TemporaryDirectory(prefix="dseeds-") as folder:
            path = Path(folder) / "frame.dcm"
            _write_frame(path, self._dataset, frame.syntax, code)
            try:
                image = new_reader(itk, path, "GDCMImageIO").Execute()
            except RuntimeError as error:
                raise damaged(file, "its compressed voxels are damaged or of an unusual kind") from error
        plane: np.ndarray = itk.GetArrayFromImage(image)[0]
        return plane


def _whole_mosaic(tile: DicomFrame) -> DicomFrame:
    """Return the plane that holds the tiles of a mosaic as a frame."""
    rows, columns, values = tile.size
    return replace(tile, number=0, size=(rows * tile.across, columns * tile.across, values), across=1)


def _cut_tile(plane: np.ndarray, tile: DicomFrame) -> np.ndarray:
    (row, column), (rows, columns, _) = divmod(tile.number, tile.across), tile.size
    return plane[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def import_simpleitk() -> Any:
    """Return SimpleITK; raise `MissingDependency` without it."""
    return import_optional("SimpleITK", "DICOM", "dseeds[dicom]")


def _require_unchanged(file: Path, plane: np.ndarray, frame: DicomFrame) -> np.ndarray:
    """Return a plane as it was decoded, if it has the size and type of its header."""
    size = frame.size[:2] if frame.size[2] == 1 or frame.palette else frame.size
    if plane.shape != size or plane.dtype.newbyteorder("=") != frame.stored:
        raise damaged(file, "it has changed since it was opened, or its header does not fit its voxels")
    return plane


def _split_frames(dataset: Any) -> list[bytes]:
    """Return the code of each frame."""
    encaps = import_pydicom("pydicom.encaps")
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    count = int(dataset.get("NumberOfFrames") or 1)
    return list(encaps.generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets))


def _read_code_size(code: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that JPEG, JPEG-LS or JPEG 2000 state; GDCM takes those of the header instead."""
    position = code.find(_JPEG_2000)
    if position >= 0 and len(code) >= position + 24:
        right, bottom, left, top = struct.unpack(">4L", code[position + 8 : position + 24])
        return bottom - top, right - left
    position = 2
    while position + 9 <= len(code) and code[position] == 0xFF:
        marker = code[position + 1]
        if marker in _FRAME_HEADERS:
            rows, columns = struct.unpack(">2H", code[position + 5 : position + 9])
            return rows, columns
        # Any number of bytes may precede a marker.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(code[position + 2 : position + 4])
    return None


def _write_frame(path: Path, dataset: Any, syntax: str, code: bytes) -> None:
    """Write one frame as a file of its own, without scales."""
    pydicom = import_pydicom()
    frame, meta = pydicom.Dataset(), import_pydicom("pydicom.dataset").FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = frame.SOPClassUID = _SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = frame.SOPInstanceUID = "1.2.3"
    for name in _IMAGE_ELEMENTS:
        if name in dataset:
            setattr(frame, name, dataset[name].value)
    if frame.SamplesPerPixel == 1:
        frame.PhotometricInterpretation = "MONOCHROME2"
    frame.PixelData = import_pydicom("pydicom.encaps").encapsulate([code])
    frame["PixelData"].VR = "OB"
    frame.file_meta = meta
    frame.save_as(path, enforce_file_format=True)


def _read_palette(file: Path) -> Any:
    """Return a header with the tables of its colours."""
    with open_dicom_file(file) as stream:
        return import_pydicom().dcmread(stream, force=True, stop_before_pixels=True)


def _colour(file: Path, plane: np.ndarray, frame: DicomFrame, palette: Any) -> np.ndarray:
    """Replace the numbers of colours in a plane by these, (y, x, 3)."""
    coloured: np.ndarray = import_pydicom("pydicom.pixels").apply_color_lut(plane, palette)
    if coloured.shape != frame.size or coloured.dtype != frame.dtype:
        raise damaged(file, "its palette does not fit its header")
    return coloured


def _scale(file: Path, plane: np.ndarray, frame: DicomFrame, dtype: np.dtype) -> np.ndarray:
    if (frame.slope, frame.intercept) == (1, 0):
        return plane.astype(dtype, copy=False)
    if frame.dtype.kind == "f":
        return (plane * np.float64(frame.slope) + frame.intercept).astype(dtype, copy=False)
    scaled = plane.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    limits = np.iinfo(frame.dtype)
    if scaled.min() < limits.min or scaled.max() > limits.max:
        raise damaged(file, "its voxels have more bits than its header says")
    return scaled.astype(dtype)
