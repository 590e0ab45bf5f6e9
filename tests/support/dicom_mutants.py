"""Mutated files of DICOM, and how pydicom reads them."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import UID, JPEGLSLossless, RLELossless

from tests.support import dicom_files as files
from tests.support.dicom_files import groups_of, new_enhanced, new_slice, save
from tests.support.mutants import flip

TEXTS = ("", "0 ", "1 ", "-1", "2 ", "3 ", "5 ", "7 ", "1e308 ", "-1e308", "nan ", "inf ", "1e-300", "9" * 20, "0.5 ")
TEXTS += (
    "1\\0",
    "0\\0\\1\\1\\0\\0 ",
    "1\\0\\0\\0\\1\\0",
    "0.8\\0.9 ",
    "1\\2\\3 ",
    "a\\b ",
    "\xff\xff",
    "MOSAIC",
    "RGB ",
    "\\" * 300,
)
TEXTS += ("1.2.840.10008.1.2", "1.2.840.10008.1.2.5 ", "1.2.840.10008.5.1.4.1.1.481.2 ", "x" * 5000, "PALETTE COLOR ")
NUMBERS = (0, 1, 2, 3, 6, 7, 8, 12, 16, 32, 255, 256, 32767, 65535, 2**31, 2**32 - 1)


def write_sound_dicom(folder):
    """Write valid files and folders."""
    volumes = np.arange(2 * 3 * 42, dtype="u2").reshape(6, 6, 7)
    for z in range(3):
        scale = {"RescaleSlope": 1 + z, "RescaleIntercept": -5}
        save(new_slice(volumes[z].astype("i2"), z, files.OBLIQUE, **scale), folder / "series" / f"{z}.dcm")
    scales = [{"RescaleSlope": 1 + n, "RescaleIntercept": -5, "RescaleType": "US"} for n in range(6)]
    groups = [groups_of(n % 3, time=1 + n // 3, PixelValueTransformationSequence=scales[n]) for n in range(6)]
    save(new_enhanced(volumes, groups), folder / "enhanced" / "a.dcm")
    for syntax in (JPEGLSLossless, RLELossless):
        dataset = new_enhanced(volumes, groups)
        dataset.compress(syntax, generate_instance_uid=False)
        save(dataset, folder / syntax.name / "a.dcm")
    fields = {"GridFrameOffsetVector": [0, 2, 4, 6, 8, 10], "PixelSpacing": [1, 2], "ImagePositionPatient": [1, 2, 3]}
    fields["ImageOrientationPatient"] = [1, 0, 0, 0, 1, 0]
    dose = files.new_image(files.RT_DOSE, volumes.astype("u4"), **fields)
    save(dose, folder / "dose" / "a.dcm")
    (folder / "big-endian").mkdir()
    files.save_big_endian(dose, folder / "big-endian" / "a.dcm", 4)
    colours = np.arange(6 * 7 * 3, dtype="u1").reshape(6, 7, 3)
    files.save_without_preamble(new_slice(colours, 0), folder / "colours" / "a.dcm")


def mutant_dicom(rng, folder, sound):
    """Write a mutant of one of the valid files and folders, each as {path: content}."""
    contents = dict(sound[rng.integers(len(sound))])
    name = str(rng.choice(sorted(contents)))
    raw = bytearray(contents[name])
    damage = rng.choice(["element", "element", "elements", "missing", "header", "anywhere", "short"])
    if damage in ("element", "elements", "missing"):
        raw = _with_other_elements(rng, bytes(raw), 1 if damage != "elements" else 3, damage == "missing")
    elif damage == "short":
        del raw[rng.integers(len(raw)) :]
    else:
        # Codes of JPEG have no checksums: each decoder makes something else of damaged ones.
        end = raw.find(b"\xe0\x7f\x10\x00OB") + 60 if JPEGLSLossless.encode() in raw else len(raw)
        flip(rng, raw, min(end, 1200) if damage == "header" else end)
    for path, content in {**contents, name: bytes(raw)}.items():
        (folder / path).write_bytes(content)
    return folder if rng.random() < 0.5 else folder / name


def _with_other_elements(rng, raw, count, is_removed):
    """Set or remove elements at any depth; their values are written as they are."""
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(raw), force=True)
        implicit, little_endian = dataset.original_encoding
        sequences = [holder for holder in _data_sets(dataset) if holder is not dataset]
        for _ in range(count):
            holder = sequences[rng.integers(len(sequences))] if sequences and rng.random() < 0.5 else dataset
            # The elements that describe the image, more often than others.
            tags = [tag for tag in holder if tag.tag.group in (0x0018, 0x0020, 0x0028, 0x3004, 0x5200)]
            tags = tags if tags and rng.random() < 0.9 else list(holder)
            element = tags[rng.integers(len(tags))]
            if element.tag == 0x7FE00010:
                continue
            if is_removed:
                del holder[element.tag]
            else:
                value = _junk(rng, element.VR, "<" if little_endian else ">")
                holder._dict[element.tag] = RawDataElement(
                    element.tag, element.VR, len(value), value, 0, implicit, little_endian
                )
                break
        buffer = pydicom.filebase.DicomBytesIO()
        dataset.save_as(buffer, implicit_vr=implicit, little_endian=little_endian, enforce_file_format=False)
    return buffer.getvalue()


def _data_sets(dataset):
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value:
                yield from _data_sets(item)


def _junk(rng, vr, order):
    if vr in ("US", "SS", "UL", "SL", "FD", "FL", "AT"):
        size, kind = {"US": (2, "H"), "SS": (2, "H"), "FD": (8, "d"), "FL": (4, "f"), "AT": (4, "I")}.get(vr, (4, "I"))
        count = int(rng.choice([0, 1, 1, 1, 1, 2, 3]))
        numbers = [NUMBERS[rng.integers(len(NUMBERS))] for _ in range(count)]
        if kind in "df":
            numbers = [float(rng.choice([0, 1, -1, 1e30, np.nan, np.inf, 0.5])) for _ in range(count)]
        return b"".join(struct.pack(f"{order}{kind}", n if kind in "df" else n % 256**size) for n in numbers)
    text = TEXTS[rng.integers(len(TEXTS))].encode("latin-1")
    return text + b" " * (len(text) % 2)


def by_pydicom(_path, source):
    """Return the voxels of a source, sorted by their places, with their scales, as pydicom reads all of these."""
    frames = []
    for plane in source.planes[0]:
        dataset = pydicom.dcmread(plane.file, force=True, stop_before_pixels=True)
        # Other frames, and the end of the file, may be damaged.
        where = pydicom.dcmread(plane.file) if plane.syntax == JPEGLSLossless else plane.file
        voxels = pydicom.pixels.pixel_array(where, index=plane.number, transfer_syntax_uid=UID(plane.syntax))
        depth = _depth(dataset, plane.number) if len(source.planes[0]) > 1 else 0
        frames.append((depth, _scaled(dataset, plane.number, voxels)))
    frames.sort(key=lambda frame: frame[0])
    expected = np.stack([voxels for _, voxels in frames])
    stored = expected.astype(source.dtype)
    np.testing.assert_array_equal(stored, expected)
    return stored


def _group(dataset, number, name):
    for sequence, index in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(sequence)
        if groups and groups[index].get(name):
            return groups[index].get(name)[0]
    return dataset


def _scaled(dataset, number, voxels):
    scale = _group(dataset, number, "PixelValueTransformationSequence")
    slope, intercept = (scale.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    return voxels * float(slope or 1) + float(intercept or 0) if slope or intercept else voxels


def _depth(dataset, number):
    position = _group(dataset, number, "PlanePositionSequence").get("ImagePositionPatient")
    directions = _group(dataset, number, "PlaneOrientationSequence").get("ImageOrientationPatient")
    normal = np.cross(*np.array(directions, float).reshape(2, 3))
    offsets = dataset.get("GridFrameOffsetVector")
    along = (
        float(offsets[number]) - float(offsets[0])
        if offsets and isinstance(offsets, list | pydicom.multival.MultiValue)
        else 0
    )
    return np.array(position, float) @ normal + along


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
