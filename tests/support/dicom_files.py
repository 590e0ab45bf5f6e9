"""Small files of DICOM, written by pydicom: slices, and objects of many frames."""

import struct

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
NUCLEAR_MEDICINE = "1.2.840.10008.5.1.4.1.1.20"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
ULTRASOUND_FRAMES = "1.2.840.10008.5.1.4.1.1.3.1"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"

STRAIGHT = np.eye(3)
# Rows are the directions of x, y and the normal.
OBLIQUE = np.array([[0.8, 0.6, 0], [-0.36, 0.48, 0.8], [0.48, -0.64, 0.6]])
ORIGIN = np.array([-10.0, -12, 5])


def item(**elements):
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def new_object(uid, **elements):
    """Return an object without voxels, and with the identifiers that all objects have."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.9"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "MR", "x", "x"
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = ""
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def new_image(uid, voxels, **elements):
    """Return an image of voxels (y, x), (n, y, x) or, of bytes, (y, x, 3)."""
    colours = voxels.shape[-1] == 3
    shape = voxels.shape[:-1] if colours else voxels.shape
    dataset = new_object(uid)
    dataset.Rows, dataset.Columns = shape[-2:]
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    dataset.SamplesPerPixel = 3 if colours else 1
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    if colours:
        dataset.PlanarConfiguration = 0
    if voxels.dtype.kind != "f":
        dataset.BitsAllocated = dataset.BitsStored = 8 * voxels.itemsize
        dataset.HighBit = dataset.BitsAllocated - 1
        dataset.PixelRepresentation = int(voxels.dtype.kind == "i")
        dataset.PixelData = voxels.astype(voxels.dtype.newbyteorder("<")).tobytes()
        dataset["PixelData"].VR = "OW" if voxels.itemsize > 1 else "OB"
        if len(dataset.PixelData) % 2:
            dataset.PixelData += b"\0"
    else:
        dataset.BitsAllocated = 8 * voxels.itemsize
        setattr(dataset, "FloatPixelData" if voxels.itemsize == 4 else "DoubleFloatPixelData", voxels.tobytes())
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_big_endian(dataset, path, size):
    """Write voxels of `size` bytes in the byte order that was retired."""
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{size}").astype(f">u{size}").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_without_preamble(dataset, path, syntax=ImplicitVRLittleEndian):
    """Write a data set only, as programs did before files of DICOM had a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return path


def place(z, axes=STRAIGHT, gap=3.0):
    """Return the position of a plane."""
    return [round(float(n), 9) for n in ORIGIN + gap * z * axes[2]]


def directions(axes):
    return [float(n) for n in axes[:2].ravel()]


def measures(**more):
    return Sequence([item(**{"PixelSpacing": [0.8, 0.9], "SliceThickness": 2.5, **more})])


def groups_of(z, axes=STRAIGHT, *, stack="1", time=None, **groups):
    """Return the functional groups of a frame at the place `z`; every keyword is a group as a dict or a sequence."""
    content = {"StackID": stack, "InStackPositionNumber": 1 + int(z)}
    if time is not None:
        content["TemporalPositionIndex"] = int(time)
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=place(z, axes))],
        FrameContentSequence=[item(**content)],
        **{name: [item(**group)] if isinstance(group, dict) else group for name, group in groups.items()},
    )


def new_enhanced(voxels, groups, axes=STRAIGHT, *, uid=ENHANCED_MR, shared=None, **elements):
    """Return an object of frames (n, y, x), with a dataset of functional groups for each."""
    common = item(
        PixelMeasuresSequence=measures(),
        PlaneOrientationSequence=[item(ImageOrientationPatient=directions(axes))],
    )
    for name, group in (shared or {}).items():
        if group is None:
            delattr(common, name)
        else:
            setattr(common, name, [item(**group)] if isinstance(group, dict) else group)
    return new_image(
        uid,
        voxels,
        SharedFunctionalGroupsSequence=[common],
        PerFrameFunctionalGroupsSequence=list(groups),
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        **elements,
    )


def new_slice(plane, z, axes=STRAIGHT, *, uid=MR, **elements):
    """Return a slice of a series; `InstanceNumber` is 1 more than `z`."""
    fields = {"PixelSpacing": [0.8, 0.9], "SliceThickness": 2.5, "InstanceNumber": int(z) + 1}
    fields |= {"ImageOrientationPatient": directions(axes), "ImagePositionPatient": place(z, axes)}
    return new_image(uid, plane, **{**fields, **elements})


def affine_of(axes=STRAIGHT, gap=3.0, spacing=(0.8, 0.9), origin=ORIGIN):
    """Return the affine of the volumes above, as in NIfTI."""
    affine = np.eye(4)
    affine[:3, :3] = axes.T * (spacing[1], spacing[0], gap)
    affine[:3, 3] = origin
    return np.diag([-1.0, -1, 1, 1]) @ affine


def csa_header(**values):
    """Return a header of Siemens' own with some numbers, or lists of numbers."""
    header = b"SV10\4\3\2\1" + struct.pack("<2I", len(values), 77)
    for name, value in values.items():
        numbers = np.atleast_1d(value)
        code = b"US" if numbers.dtype.kind == "i" else b"FD"
        header += struct.pack("<64si4s3i", name.encode(), len(numbers), code, 6, len(numbers), 77)
        for number in numbers.tolist():
            text = str(number).encode().ljust(24, b"\0")
            header += struct.pack("<4i", len(text), len(text), 77, len(text)) + text
    return header


def new_mosaic(volume, axes=STRAIGHT, *, normal=1, gap=3.0, moment=0, **csa):
    """Return a mosaic of Siemens' whose slices follow each other along the normal, or against it."""
    depth, rows, columns = volume.shape
    across = int(np.ceil(np.sqrt(depth)))
    plane = np.zeros((across * rows, across * columns), volume.dtype)
    for z, tile in enumerate(volume):
        y, x = z // across * rows, z % across * columns
        plane[y : y + rows, x : x + columns] = tile
    shift = (plane.shape[1] - columns) / 2 * 0.9 * axes[0] + (plane.shape[0] - rows) / 2 * 0.8 * axes[1]
    dataset = new_slice(plane, moment, axes, ImagePositionPatient=(ORIGIN - shift).tolist(), SpacingBetweenSlices=gap)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    numbers = {"NumberOfImagesInMosaic": depth, "ProtocolSliceNumber": 0, "SliceNormalVector": normal * axes[2], **csa}
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa_header(**{name: value for name, value in numbers.items() if value is not None}))
    return dataset
