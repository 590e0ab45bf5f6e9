"""Frames: the planes in files of DICOM, with their places, scales and the moments or echoes that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from dseeds.io.formats.dicom.files import (
    DicomHeader,
    UnusableDicomError,
    damaged,
    describe_dicom_damage,
    import_pydicom,
)
from dseeds.io.formats.dicom.mosaics import Mosaic, read_mosaic
from dseeds.io.formats.dicom.objects import (
    has_palette,
    palette_dtype,
    read_count,
    require_planes,
    require_voxels,
    stored_dtype,
)

Vector: TypeAlias = tuple[float, ...]

_RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
_NUCLEAR_MEDICINE = "1.2.840.10008.5.1.4.1.1.20"
_TOO_FEW_BYTES = 8
# What tells the volumes of a series apart, in the order in which they are numbered: names for people, and elements.
_SERIES_KEYS: Mapping[str, str | tuple[int, int]] = {
    "temporal position": "TemporalPositionIdentifier",
    "temporal index": "TemporalPositionIndex",
    "echo": "EchoNumbers",
    "echo time": "EchoTime",
    "inversion time": "InversionTime",
    "trigger time": "TriggerTime",
    "frame reference time": "FrameReferenceTime",
    "acquisition": "AcquisitionNumber",
    "b-value": "DiffusionBValue",
    "b-value of Siemens": (0x0019, 0x100C),
    "b-value of Philips": (0x2001, 0x1003),
    "b-value of GE": (0x0043, 0x1039),
    "gradient": "DiffusionGradientOrientation",
    "gradient of Siemens": (0x0019, 0x100E),
    "gradient of Philips": (0x2001, 0x1004),
    "flip angle": "FlipAngle",
    "image type": "ImageType",
    "component": "ComplexImageComponent",
    "voltage": "KVP",
    "acquisition time": "AcquisitionDateTime",
    "time of acquisition": "AcquisitionTime",
    "cardiac phase": "NominalPercentageOfCardiacPhase",
    "description": "SeriesDescription",
    "comments": "ImageComments",
}
# The same for functional groups: the group, and the element in it.
_GROUP_KEYS: Mapping[str, tuple[str, ...]] = {
    "temporal index": ("FrameContentSequence", "TemporalPositionIndex"),
    "temporal offset": ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    "echo time": ("MREchoSequence", "EffectiveEchoTime"),
    "inversion time": ("MRModifierSequence", "InversionTimes"),
    "trigger time": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "phase of the heart": ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "phase of breathing": ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"),
    "b-value": ("MRDiffusionSequence", "DiffusionBValue"),
    "direction": ("MRDiffusionSequence", "DiffusionDirectionality"),
    "gradient": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation"),
    "flip angle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "component": ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    "image type": ("MRImageFrameTypeSequence", "FrameType"),
    "type of CT": ("CTImageFrameTypeSequence", "FrameType"),
    "type of PET": ("PETFrameTypeSequence", "FrameType"),
    "voltage": ("CTXRayDetailsSequence", "KVP"),
    "kernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "acquisition": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "label": ("FrameContentSequence", "FrameLabel"),
    "quantity": ("RealWorldValueMappingSequence", "LUTLabel"),
}
# In nuclear medicine a vector for each axis of the frames.
_VECTORS = {
    (0x0054, 0x0010): "energy window",
    (0x0054, 0x0020): "detector",
    (0x0054, 0x0030): "phase",
    (0x0054, 0x0050): "rotation",
    (0x0054, 0x0060): "R-R interval",
    (0x0054, 0x0070): "time slot",
    (0x0054, 0x0080): "slice",
    (0x0054, 0x0090): "angular view",
    (0x0054, 0x0100): "time slice",
}


@dataclass(frozen=True, kw_only=True)
class DicomFrame:
    """A plane of voxels.

    Attributes
    ----------
    file, syntax : str
        The file, and the UID of its transfer syntax.
    number : int
        The frame in the file, from 0; the tile in a mosaic.
    stored, dtype : numpy.dtype
        The type of the stored voxels, and of those that are scaled by `slope` and `intercept`.
    size : tuple of int
        Rows, columns and values per voxel.
    spacing : tuple of float
        Along y, x; empty if unknown.
    thickness : float or None
        The size of a voxel along z, for volumes of one plane.
    position, orientation : tuple of float
        The first voxel's centre in millimetres, and the directions of x and y; empty if unknown.
    series, uid, space : str
        The series, the object, and the frame of reference.
    stack : str
        The identifier of the group of parallel frames; empty unless the file has functional groups.
    order : tuple of int
        The place in which the frame was sent: that of its file, then that in it.
    parts : int
        How many files the object is made of; 0 if that is not known.
    palette : bool
        Whether the stored voxels are numbers of colours in the file's palette; `size` and `dtype` are of the colours.
    across : int
        How many tiles lie side by side in the plane that holds them; 1 unless the file is a mosaic.
    keys : dict
        What may tell volumes apart; values by name.
    """

    file: str
    syntax: str
    number: int
    stored: np.dtype
    dtype: np.dtype
    size: tuple[int, int, int]
    slope: float
    intercept: float
    spacing: Vector
    thickness: float | None
    position: Vector
    orientation: Vector
    series: str
    uid: str
    space: str
    stack: str = ""
    grouped: bool = False
    order: tuple[int, int] = (0, 0)
    parts: int = 0
    palette: bool = False
    across: int = 1
    keys: dict[str, Hashable] = field(default_factory=dict)

    @property
    def normal(self) -> np.ndarray:
        """The direction of the plane's normal."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def read_frames(header: DicomHeader) -> list[DicomFrame]:
    """Return the frames of an image; raise a ValueError if they cannot be planes of volumes."""
    with describe_dicom_damage(header.file):
        require_planes(header)
        return list(_Reader(header).frames())


class _Reader:
    """Reads the frames of one file."""

    def __init__(self, header: DicomHeader) -> None:
        self._header, self._dataset = header, header.dataset
        self._file = header.file
        self._stored = stored_dtype(header)
        frames = self._dataset.get("NumberOfFrames")
        self._count = 1 if frames in (None, "") else int(frames)
        if (
            self._count < 1
            or self._count * _TOO_FEW_BYTES > max(self._file.stat().st_size, header.pixel_bytes or 0) * 8
        ):
            raise damaged(self._file, "its NumberOfFrames is none that the file can hold")
        require_voxels(header, self._count)
        # A concatenation is an object in several files.
        self._offset = int(self._dataset.get("ConcatenationFrameOffsetNumber") or 0)
        self._parts = int(self._dataset.get("InConcatenationTotalNumber") or 0)

    def frames(self) -> Iterator[DicomFrame]:
        dataset, uid = self._dataset, str(self._header.object_uid)
        if mosaic := read_mosaic(self._header):
            yield from self._by_tiles(mosaic)
        elif "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
            yield from self._by_groups()
        elif self._count == 1:
            position, orientation = self._vector(dataset, "ImagePositionPatient"), self._orientation(dataset)
            yield self._frame(0, dataset, position=position, orientation=orientation, keys=self._series_keys())
        elif uid == _RT_DOSE:
            yield from self._by_offsets()
        elif uid == _NUCLEAR_MEDICINE:
            yield from self._by_vectors()
        else:
            raise self._without_places()

    def _by_groups(self) -> Iterator[DicomFrame]:
        dataset = self._dataset
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), None)
        if len(groups) != self._count:
            raise damaged(self._file, f"it has {self._count} frames, and functional groups for {len(groups)}")
        dimensions = _dimension_names(dataset)
        for number, group in enumerate(groups):
            values = _GroupValues(group, shared)
            position = self._vector(values.item("PlanePositionSequence"), "ImagePositionPatient")
            orientation = self._orientation(values.item("PlaneOrientationSequence"))
            if len(position) != 3 or len(orientation) != 6:
                raise self._without_places()
            content = values.item("FrameContentSequence")
            indices = _as_tuple(content.get("DimensionIndexValues"))
            keys: dict[str, Hashable] = {}
            if len(indices) == len(dimensions):
                keys.update(zip(dimensions, map(_hashable, indices), strict=True))
            keys.update((name, _hashable(values.find(path))) for name, path in _GROUP_KEYS.items())
            scale = values.item("PixelValueTransformationSequence", dataset)
            if "RescaleSlope" not in scale:
                # Voxels that only this makes comparable stay as stored.
                slope = values.find(("RealWorldValueMappingSequence", "RealWorldValueSlope"))
                keys["real-world slope"] = _hashable(slope)
            yield self._frame(
                number,
                values.item("PixelMeasuresSequence", dataset),
                scale=scale,
                position=position,
                orientation=orientation,
                stack=str(content.get("StackID") or ""),
                grouped=True,
                keys=keys,
            )

    def _by_tiles(self, mosaic: Mosaic) -> Iterator[DicomFrame]:
        orientation, keys = self._orientation(self._dataset), self._series_keys()
        for number in range(mosaic.tiles):
            place = tuple(mosaic.origin + number * mosaic.step)
            tile = self._frame(number, self._dataset, position=place, orientation=orientation, keys=keys)
            size = (mosaic.rows, mosaic.columns, tile.size[2])
            yield replace(tile, size=size, across=mosaic.across)

    def _by_offsets(self) -> Iterator[DicomFrame]:
        """Place the frames of a dose, whose first offset is 0, or the position along z itself."""
        dataset = self._dataset
        offsets = np.array(self._vector(dataset, "GridFrameOffsetVector"))
        position, orientation = self._vector(dataset, "ImagePositionPatient"), self._orientation(dataset)
        if len(position) != 3 or len(orientation) != 6 or len(offsets) != self._count:
            raise self._without_places()
        normal = np.cross(orientation[:3], orientation[3:])
        if offsets[0] != 0:
            if not np.isclose(offsets[0], position[2], rtol=0, atol=1e-2) or abs(normal[2]) < 1 - 1e-4:
                raise UnusableDicomError(
                    f"{self._file} says in two ways where its planes lie (GridFrameOffsetVector begins with "
                    f"{offsets[0]:g}): export the dose again, with offsets from 0"
                )
            offsets, normal = offsets - offsets[0], np.array([0.0, 0.0, 1.0])
        for number, offset in enumerate(offsets):
            place = tuple(position + offset * normal)
            yield self._frame(number, dataset, position=place, orientation=orientation)

    def _by_vectors(self) -> Iterator[DicomFrame]:
        """Place the frames of nuclear medicine, which are planes only if they were reconstructed."""
        dataset = self._dataset
        names = {
            tag: _VECTORS.get((tag >> 16, tag & 0xFFFF)) for tag in _as_tuple(dataset.get("FrameIncrementPointer"))
        }
        vectors = {name: _as_tuple(dataset[tag].value) for tag, name in names.items() if name and tag in dataset}
        detector = next(iter(dataset.get("DetectorInformationSequence") or []), dataset)
        position, orientation = self._vector(detector, "ImagePositionPatient"), self._orientation(detector)
        step = _number(self._file, dataset, "SpacingBetweenSlices")
        is_volume = "RECON" in " ".join(map(str, _as_tuple(dataset.get("ImageType"))))
        if (
            not is_volume
            or "slice" not in vectors
            or len(vectors) != len(names)
            or {len(vector) for vector in vectors.values()} != {self._count}
            or (len(position), len(orientation)) != (3, 6)
            or not step
        ):
            raise self._without_places()
        normal = np.cross(orientation[:3], orientation[3:])
        slices = vectors.pop("slice")
        for number, plane in enumerate(slices):
            place = tuple(position + (float(plane) - 1) * step * normal)
            keys = {name: _hashable(vector[number]) for name, vector in vectors.items()}
            yield self._frame(number, dataset, position=place, orientation=orientation, keys=keys)

    def _frame(self, number: int, measures: Any, *, scale: Any = None, **more: Any) -> DicomFrame:
        dataset, header = self._dataset, self._header
        scale = dataset if scale is None else scale
        slope, intercept = self._scale(scale)
        rows, columns, samples = (read_count(header, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
        spacing = self._vector(measures, "PixelSpacing")
        instance = _optional(dataset, "InstanceNumber")
        dtype = scaled_dtype(self._stored, int(dataset.get("BitsStored") or 0), slope, intercept)
        palette = has_palette(header)
        return DicomFrame(
            file=str(self._file),
            syntax=header.syntax,
            number=number,
            stored=self._stored,
            dtype=palette_dtype(header) if palette else dtype,
            size=(rows, columns, 3 if palette else samples),
            palette=palette,
            slope=slope,
            intercept=intercept,
            spacing=spacing if len(spacing) == 2 and min(spacing) > 0 else (),
            thickness=_size(measures, "SpacingBetweenSlices") or _size(measures, "SliceThickness"),
            series=str(dataset.get("SeriesInstanceUID") or ""),
            uid=str(dataset.get("SOPInstanceUID") or ""),
            space=str(dataset.get("FrameOfReferenceUID") or ""),
            order=(int(instance) if isinstance(instance, int) else -1, self._offset + number),
            parts=self._parts,
            **more,
        )

    def _scale(self, scale: Any) -> tuple[float, float]:
        slope = _number(self._file, scale, "RescaleSlope")
        intercept = _number(self._file, scale, "RescaleIntercept")
        # Some writers leave 0 in a slope that is not used.
        return slope or 1.0, intercept or 0.0

    def _series_keys(self) -> dict[str, Hashable]:
        return {name: _hashable(_optional(self._dataset, key)) for name, key in _SERIES_KEYS.items()}

    def _orientation(self, dataset: Any) -> Vector:
        orientation = self._vector(dataset, "ImageOrientationPatient")
        if not orientation:
            return ()
        x, y = np.array(orientation[:3]), np.array(orientation[3:])
        if len(orientation) != 6 or not np.allclose([x @ x, y @ y, x @ y], [1, 1, 0], rtol=0, atol=1e-2):
            raise damaged(self._file, "its ImageOrientationPatient is not two directions at right angles")
        return orientation

    def _vector(self, dataset: Any, name: str) -> Vector:
        values = tuple(float(value) for value in _as_tuple(dataset.get(name)))
        if not all(map(math.isfinite, values)):
            raise damaged(self._file, f"its {name} is not finite")
        return values

    def _without_places(self) -> UnusableDicomError:
        return UnusableDicomError(
            f"{self._file} ({self._header.object_name}) does not say where its {self._count} frames lie, which may be "
            f"moments or views: convert it to NIfTI, in the right order"
        )


class _GroupValues:
    """Functional groups: those of a frame, then those of all frames."""

    def __init__(self, frame: Any, shared: Any) -> None:
        self._places = [place for place in (frame, shared) if place is not None]

    def item(self, name: str, default: Any = None) -> Any:
        """Return a group; an empty one, or the default, if it is missing."""
        for place in self._places:
            if items := place.get(name):
                return items[0]
        return {} if default is None else default

    def find(self, path: tuple[str, ...]) -> Any:
        """Return an element of a group; None if it is missing."""
        item = self.item(path[0])
        for name in path[1:-1]:
            item = next(iter(item.get(name) or []), {})
        return _optional(item, path[-1])


def scaled_dtype(stored: np.dtype, bits: int, slope: float, intercept: float) -> np.dtype:
    """Return the smallest type for all voxels of `bits` bits after scaling, as SimpleITK chooses it.

    >>> scaled_dtype(np.dtype("u2"), 12, 1, -1024), scaled_dtype(np.dtype("u2"), 16, 0.5, 0)
    (dtype('int16'), dtype('float64'))
    """
    if (slope, intercept) == (1, 0):
        return stored
    if (
        stored.kind == "f"
        or not (slope.is_integer() if isinstance(slope, float) else True)
        or intercept != int(intercept)
    ):
        return np.dtype("f8")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.kind == "i" else (0, 2**bits - 1)
    ends = sorted(int(slope) * end + int(intercept) for end in (low, high))
    kind = "u" if ends[0] >= 0 else "i"
    for size in (1, 2, 4):
        limits = np.iinfo(f"{kind}{size}")
        if limits.min <= ends[0] and ends[1] <= limits.max:
            return limits.dtype
    return np.dtype("f8")


def _optional(dataset: Any, key: str | tuple[int, int]) -> Any:
    """Return the value of an element that an image does not need; None if it is missing or makes no sense."""
    try:
        return dataset[key].value if key in dataset else None
    except Exception:
        return None


def _size(dataset: Any, name: str) -> float | None:
    value = _optional(dataset, name)
    return float(value) if isinstance(value, float | int) and math.isfinite(value) and value > 0 else None


def _number(file: Any, dataset: Any, name: str) -> float | None:
    value = dataset.get(name)
    if value in (None, ""):
        return None
    number = float(value)
    if not math.isfinite(number):
        raise damaged(file, f"its {name} is not finite")
    return number


def _dimension_names(dataset: Any) -> list[str]:
    """Return a name for each dimension of the frames.

    The numbers keep names apart that are equal.
    """
    keyword = import_pydicom("pydicom.datadict").keyword_for_tag
    pointers = [item.get("DimensionIndexPointer", 0) for item in dataset.get("DimensionIndexSequence") or []]
    words = [re.sub(r"\B(?=[A-Z][a-z])", " ", keyword(pointer) or "").lower() for pointer in pointers]
    return [word if word and words.count(word) == 1 else f"dimension {n}" for n, word in enumerate(words, 1)]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else (value,)


def _hashable(value: Any) -> Hashable:
    """Return a value of an element, in plain types that can be compared."""
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value)
    if hasattr(value, "append"):
        return tuple(_hashable(part) for part in value)
    return value if isinstance(value, bytes) else str(value)
