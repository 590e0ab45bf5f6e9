"""Original -> import -> segment -> export, for each format: labels lie on the voxels of the original.

Originals are written, and exports read, by other programs than this one. The right labels are those of the array.
"""

import json
from functools import cache

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr

import dseeds
from dseeds.io import ome_image_attributes, open_source
from tests.support import dicom_files as files
from tests.support.volumes_in_files import oblique, read_by_library

SHAPE = (8, 12, 14)
VOXELS = (np.random.default_rng(0).random(SHAPE).cumsum(0).cumsum(1).cumsum(2) * 40).astype("u2")
SPACING = (2.5, 0.75, 0.5)
PLACE = (30.0, -20.0, 10.0)
AFFINES = {
    "flipped": np.array([[-0.5, 0, 0, 30], [0, -0.75, 0, 40], [0, 0, 2.5, -50], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 2.5, 30], [0.5, 0, 0, -40], [0, 0.75, 0, 50], [0, 0, 0, 1.0]]),
    "oblique": oblique(3, False),
    "left-handed": oblique(4, True),
}
TO_LPS = np.diag([-1, -1, 1.0])


def itk_image(affine):
    image = sitk.GetImageFromArray(VOXELS)
    lps = TO_LPS @ affine[:3]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def write_itk(path, affine):
    sitk.WriteImage(itk_image(affine), path, useCompression=path.suffix == ".mha")


def write_nibabel(path, affine):
    kind = nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image
    nibabel.save(kind(VOXELS.T.astype("i2"), affine), path)


def write_pynrrd(path, affine):
    lps = TO_LPS @ affine[:3]
    header = {"space": "left-posterior-superior", "space directions": lps[:, :3].T, "space origin": lps[:, 3]}
    nrrd.write(str(path), VOXELS.T, header)


def dicom_geometry(affine):
    """Return directions of x, y and the normal, and the position of each plane."""
    lps = TO_LPS @ affine[:3]
    axes = (lps[:, :3] / np.linalg.norm(lps[:, :3], axis=0)).T
    positions = [(lps[:, 3] + z * lps[:, 2]).tolist() for z in range(len(VOXELS))]
    return axes, positions


def write_series(path, affine):
    axes, positions = dicom_geometry(affine)
    for z, (plane, position) in enumerate(zip(VOXELS, positions, strict=True)):
        elements = {"PixelSpacing": list(SPACING[1:]), "ImagePositionPatient": position}
        files.save(files.new_slice(plane, len(VOXELS) - z, axes, **elements), path / f"{z}.dcm")


def write_enhanced(path, affine):
    """Write the volume as the second moment of an object whose frames are in no order."""
    axes, positions = dicom_geometry(affine)
    frames = np.random.default_rng(2).permutation(2 * len(VOXELS))
    groups = [files.groups_of(n % len(VOXELS), axes, time=1 + n // len(VOXELS)) for n in frames]
    for group, n in zip(groups, frames, strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient = positions[n % len(VOXELS)]
    stored = np.concatenate([VOXELS[::-1], VOXELS])[frames]
    shared = {"PixelMeasuresSequence": files.measures(PixelSpacing=list(SPACING[1:]))}
    files.save(files.new_enhanced(stored, groups, axes, shared=shared), path)


def write_hdf5(path, _):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exported_data", data=VOXELS.transpose(2, 0, 1))
        data.attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "xzy"]})
        data.attrs["element_size_um"] = [1e3 * size for size in SPACING]


def write_tiff(path, _):
    sizes = {"resolution": (1 / SPACING[2], 1 / SPACING[1])}
    tifffile.imwrite(path, VOXELS, imagej=True, metadata={"axes": "ZYX", "spacing": SPACING[0], "unit": "mm"}, **sizes)


def write_ome_tiff(path, _):
    sizes = {f"PhysicalSize{axis}": 1e3 * size for axis, size in zip("ZYX", SPACING, strict=True)}
    tifffile.imwrite(path, VOXELS, compression="lzw", metadata={"axes": "ZYX", **sizes})


def write_planes(path, _):
    path.mkdir()
    for z, plane in enumerate(VOXELS):
        tifffile.imwrite(path / f"z{z}.tif", plane)


def write_zarr(path, _):
    zarr.create_array(path, data=VOXELS.T, dimension_names=["x", "y", "z"])


def write_ome_zarr(path, _):
    attributes = ome_image_attributes(spacing=SPACING, name="a", translation=PLACE)
    zarr.open_group(path, mode="w", attributes={"ome": attributes}).create_array("0", data=VOXELS)


# How originals are written, and whether their format holds a position in space, or the size of voxels only, or neither.
PLACED = {
    **dict.fromkeys(("a.nii", "a.nii.gz", "a.mgz"), write_nibabel),
    **dict.fromkeys(("a.nrrd", "a.mha", "a.mhd"), write_itk),
    "pynrrd.nrrd": write_pynrrd,
    "series": write_series,
    "enhanced.dcm": write_enhanced,
}
SIZED = {"a.tif": write_tiff, "a.ome.tif": write_ome_tiff, "a.h5": write_hdf5, "a.ome.zarr": write_ome_zarr}
BARE = {"a.npy": lambda path, _: np.save(path, VOXELS), "planes": write_planes, "a.zarr": write_zarr}
# Slices of DICOM are sorted along their normal: axes are right-handed there.
RIGHT_HANDED = ("series", "enhanced.dcm")
CASES = [(name, turn) for name in PLACED for turn in AFFINES if turn != "left-handed" or name not in RIGHT_HANDED] + [
    (name, None) for name in (*SIZED, *BARE)
]
TARGETS = ("a.nii.gz", "a.nrrd", "a.mha", "a.tif", "a.ome.tif", "a.h5", "a.npy")


@cache
def expected_labels():
    return dseeds.supervoxels(VOXELS, step=4)


@pytest.mark.parametrize(("name", "turn"), CASES)
def test_labels_lie_on_the_original(tmp_path, name, turn):
    affine = AFFINES.get(turn)
    if name == "a.ome.zarr":
        affine = np.diag([*SPACING[::-1], 1.0])
        affine[:3, 3] = PLACE[::-1]
    {**PLACED, **SIZED, **BARE}[name](tmp_path / name, affine)
    choice = {"volume": 1} if name == "enhanced.dcm" else {"spacing": SPACING} if name in BARE else {}
    dseeds.import_volume(tmp_path / name, tmp_path / "image.zarr", **choice)
    dseeds.segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", step=4)
    for target in TARGETS:
        report = dseeds.export_volume(tmp_path / "labels.zarr", tmp_path / f"labels-{target}")
        voxels, spacing = read_by_library(tmp_path / f"labels-{target}")
        np.testing.assert_array_equal(voxels, expected_labels())
        if spacing is not None:
            np.testing.assert_allclose(spacing, SPACING, rtol=1e-5)
        holds_place = target in ("a.nii.gz", "a.nrrd", "a.mha")
        # What a format cannot hold is not lost without a word.
        assert ["lost" in note for note in report.notes] == [True] * (affine is not None and not holds_place)
        if affine is not None and holds_place:
            check_place(tmp_path / f"labels-{target}", affine)
    if name.startswith("a.nii"):
        # Every bit of the affine is kept.
        before, after = (nibabel.load(tmp_path / path).affine for path in (name, "labels-a.nii.gz"))
        np.testing.assert_array_equal(after, before)


def check_place(path, affine):
    """Compare the affine of labels, as other programs read it, and their place for SimpleITK, with the original's."""
    precision = {"rtol": 1e-6, "atol": 1e-5}  # of NIfTI's float32
    np.testing.assert_allclose(open_source(path).affine, affine, **precision)
    if path.suffix == ".gz":
        np.testing.assert_allclose(nibabel.load(path).affine, affine, **precision)
    elif path.suffix == ".nrrd":
        header = nrrd.read_header(str(path))
        np.testing.assert_allclose(header["space directions"].T, (TO_LPS @ affine[:3])[:, :3], **precision)
    # Resampled to the grid of the original by SimpleITK, every voxel has its label.
    resampled = sitk.Resample(sitk.ReadImage(path), itk_image(affine), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), expected_labels())
