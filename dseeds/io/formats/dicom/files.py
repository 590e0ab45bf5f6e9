"""Which files are DICOM, and their headers, read by pydicom."""

from __future__ import annotations

import errno
import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from typing_extensions import override

from dseeds.core.optional import MissingDependency, import_optional
from dseeds.io.source import shorten

_PREAMBLE = 128
# Two elements, and their values if they are short.
_SNIFFED = 512
# The groups in which a data set without a preamble begins.
_FIRST_GROUPS = (0x0002, 0x0008)
# In explicit encoding these value representations have a length of 4 bytes after 2 that are reserved.
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_UNDEFINED_LENGTH = 0xFFFFFFFF
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"

# Transfer syntaxes: voxels as they are, in a deflated data set, in run lengths, and in one of the kinds of JPEG.
PLAIN = frozenset({_IMPLICIT, _EXPLICIT, _BIG_ENDIAN})
DEFLATED = "1.2.840.10008.1.2.1.99"
RUN_LENGTHS = "1.2.840.10008.1.2.5"
JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203))


class UnusableDicomError(ValueError):
    """A file that is refused, with the reason in the message."""


@dataclass(frozen=True)
class DicomHeader:
    """The header of a file.

    Attributes
    ----------
    dataset : pydicom.Dataset
        All elements before the voxels.
    syntax : str
        The UID of the transfer syntax.
    pixels : str or None
        The name of the element that holds the voxels; None without one.
    pixel_bytes : int or None
        Its length; None if it is encapsulated.
    pixel_start : int or None
        Where its value begins in the file; None if the file is deflated.
    """

    file: Path
    dataset: Any
    syntax: str
    pixels: str | None
    pixel_bytes: int | None
    pixel_start: int | None

    def read_last_pixel_bytes(self, count: int) -> bytes:
        """Return the end of the element that holds the voxels."""
        if self.pixel_start is None or self.pixel_bytes is None:
            return bytes(self.dataset[self.pixels].value[-count:])
        with self.file.open("rb") as stream:
            stream.seek(self.pixel_start + self.pixel_bytes - count)
            return stream.read(count)

    def text(self, name: str) -> str:
        """Return the text of an element; empty if it is missing."""
        with describe_dicom_damage(self.file):
            return str(self.dataset.get(name) or "")

    @property
    def object_name(self) -> str:
        """The name of the kind of object, such as ``CT Image``."""
        name = str(getattr(self.object_uid, "name", "")).removesuffix(" Storage")
        return shorten(name, 80) or "object of an unknown kind"

    @property
    def object_uid(self) -> Any:
        """The UID of the kind of object; empty if it is missing."""
        with describe_dicom_damage(self.file):
            return self.dataset.get("SOPClassUID") or self.dataset.file_meta.get("MediaStorageSOPClassUID") or ""


def is_dicom(path: Path) -> bool:
    """Return whether a path is a file of DICOM, or a folder that contains one."""
    return next(list_dicom_files(path), None) is not None


def list_dicom_files(path: Path) -> Iterator[Path]:
    """List the files of DICOM that are, or lie in, a path, by their first bytes."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and _is_dicom_file(file):
            yield file


def read_header(file: Path) -> DicomHeader:
    """Read a header; raise a ValueError if the file is damaged."""
    pydicom = import_pydicom()
    with describe_dicom_damage(file), open_dicom_file(file) as stream:
        dataset = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID") or _guess_syntax(dataset))
        if syntax == DEFLATED:
            stream.seek(0)
            dataset = pydicom.dcmread(stream, force=True)
            pixels = next((name for name in _pixel_elements().values() if name in dataset), None)
            length = None if pixels is None else len(dataset[pixels].value or b"")
            start = None
        else:
            start = stream.tell() + (8 if dataset.original_encoding[0] else 12)
            pixels, length = _read_pixel_element(stream.read(12), *dataset.original_encoding)
            if length is not None and start + length > os.fstat(stream.fileno()).st_size:
                raise damaged(file, f"it ends before its {length} bytes of voxels do")
    return DicomHeader(file, dataset, syntax, pixels, length, start)


class _BoundedReader(io.BufferedReader):
    """A file that allocates no more than it holds, whatever length a header promises."""

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


def open_dicom_file(file: Path) -> BinaryIO:
    """Open a file for pydicom."""
    return _BoundedReader(io.FileIO(file))


def import_pydicom(module: str = "pydicom") -> Any:
    """Return pydicom, or a module of it; raise `MissingDependency` without it."""
    return import_optional(module, "DICOM", "dseeds[dicom]")


@contextmanager
def describe_dicom_damage(file: Path) -> Iterator[None]:
    """Turn what libraries raise on damaged files into a ValueError that names the file, and silence their warnings.

    Their messages speak of their own functions and temporary files, so that none of them is passed on.
    """
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            yield
    except (MemoryError, MissingDependency, UnusableDicomError):
        raise
    except Exception as error:
        # The disk or the network is at fault, not the file.
        if isinstance(error, FileNotFoundError | PermissionError) or (
            isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
        ):
            raise
        raise damaged(file, "it is damaged or incomplete") from error


def damaged(file: Path, reason: str) -> UnusableDicomError:
    """Return the error for a file whose contents make no sense."""
    return UnusableDicomError(f"{file} cannot be read as DICOM: {reason}, so copy or export it again")


def _is_dicom_file(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(_PREAMBLE + 4)
        if start[_PREAMBLE:] == b"DICM":
            return True
        return _is_data_set((start + stream.read(_SNIFFED))[:_SNIFFED])


def _is_data_set(start: bytes) -> bool:
    """Return whether bytes begin with two elements of DICOM, as in files without a preamble."""
    return any(_has_two_elements(start, explicit, order) for explicit in (True, False) for order in "<>")


def _has_two_elements(start: bytes, explicit: bool, order: str) -> bool:
    position, before = 0, (-1, -1)
    for _ in range(2):
        header = start[position : position + 12]
        if len(header) < 12:
            return False
        tag = struct.unpack(f"{order}HH", header[:4])
        if tag[0] not in _FIRST_GROUPS or tag <= before or tag[1] > 0x2000:
            return False
        if not explicit:
            size, length = 8, struct.unpack(f"{order}L", header[4:8])[0]
        elif header[4:6] in _SHORT:
            size, length = 8, struct.unpack(f"{order}H", header[6:8])[0]
        elif header[4:6] in _LONG:
            size, length = 12, struct.unpack(f"{order}L", header[8:12])[0]
        else:
            return False
        before = tag
        position += size + length
        # An implicit element has no letters that prove it.
        if length % 2 or (not explicit and length > 64):
            return False
    return True


def _guess_syntax(dataset: Any) -> str:
    implicit, little_endian = dataset.original_encoding
    return _IMPLICIT if implicit else _EXPLICIT if little_endian else _BIG_ENDIAN


def _read_pixel_element(start: bytes, implicit: bool, little_endian: bool) -> tuple[str | None, int | None]:
    """Interpret the first bytes of the element that holds the voxels, at which pydicom stopped."""
    order = "<" if little_endian else ">"
    if len(start) < 12:
        return None, None
    length = struct.unpack(f"{order}L", start[4:8] if implicit else start[8:12])[0]
    return _pixel_elements().get(
        struct.unpack(f"{order}HH", start[:4])
    ), None if length == _UNDEFINED_LENGTH else length


def _pixel_elements() -> dict[tuple[int, ...], str]:
    return {
        (0x7FE0, 0x0008): "FloatPixelData",
        (0x7FE0, 0x0009): "DoubleFloatPixelData",
        (0x7FE0, 0x0010): "PixelData",
    }
