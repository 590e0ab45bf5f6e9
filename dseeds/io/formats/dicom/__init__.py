"""DICOM in: series of slices, and files of many frames, whose place in space is certain."""

from dseeds.io.formats.dicom.files import is_dicom
from dseeds.io.formats.dicom.source import DicomSource, open_dicom

__all__ = ["DicomSource", "is_dicom", "open_dicom"]
