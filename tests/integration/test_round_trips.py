"""Original -> import -> segment -> export: the labels lie on the voxels of the original, by independent readers."""

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

import dseeds
from dseeds.convert.export_volume import export_volume
from dseeds.convert.import_volume import import_volume
from dseeds.io import ome_image_attributes, open_source
from tests.support.volumes_in_files import oblique

SHAPE = (12, 14, 16)
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("i2")
AFFINES = {
    "plain": np.diag([0.5, 0.75, 2.5, 1.0]),
    "flipped": np.array([[-0.5, 0, 0, 30], [0, -0.75, 0, 40], [0, 0, 2.5, -50], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 2.5, 30], [0.5, 0, 0, -40], [0, -0.75, 0, 50], [0, 0, 0, 1.0]]),
    "oblique": oblique(3, False),
    "left-handed": oblique(4, True),
}


def itk_image(affine):
    image = sitk.GetImageFromArray(VOXELS)
    lps = np.diag([-1, -1, 1.0]) @ affine[:3]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def original(folder, kind, affine):
    """Write the volume in a format, by another program than this one."""
    path = folder / f"original.{kind}"
    if kind in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image(VOXELS.T, affine), path)
    elif kind == "pynrrd.nrrd":
        lps = np.diag([-1, -1, 1.0]) @ affine[:3]
        header = {"space": "left-posterior-superior", "space directions": lps[:, :3].T, "space origin": lps[:, 3]}
        nrrd.write(str(path), VOXELS.T, header)
    else:
        sitk.WriteImage(itk_image(affine), path, useCompression=kind == "mha")
    return path


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "pynrrd.nrrd", "mha", "mhd"])
def test_labels_lie_on_the_original(tmp_path, kind, name):
    affine = AFFINES[name]
    path = original(tmp_path, kind, affine)
    import_volume(path, tmp_path / "image.zarr")
    dseeds.segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", step=4)
    labels = dseeds.supervoxels(VOXELS, step=4)
    for ending in ("nii.gz", "nrrd", "mha"):
        target = tmp_path / f"labels.{ending}"
        export_volume(tmp_path / "labels.zarr", target)
        np.testing.assert_allclose(open_source(target).affine, affine, rtol=1e-6, atol=1e-5)
        written = sitk.ReadImage(target)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)
        # Resampled to the grid of the original by SimpleITK, every voxel has its label.
        resampled = sitk.Resample(written, itk_image(affine), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), labels)
    np.testing.assert_allclose(nibabel.load(tmp_path / "labels.nii.gz").affine, affine, rtol=1e-6, atol=1e-5)
    data, header = nrrd.read(str(tmp_path / "labels.nrrd"))
    np.testing.assert_array_equal(data.T, labels)
    directions = np.diag([-1, -1, 1.0]) @ affine[:3, :3]
    np.testing.assert_allclose(header["space directions"].T, directions, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("translation", [None, (30.0, -20.0, 10.0)])
def test_ome_zarr_keeps_its_position(tmp_path, translation):
    attributes = ome_image_attributes(spacing=(2.5, 0.75, 0.5), name="a", translation=translation)
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", attributes={"ome": attributes})
    group.create_array("0", data=VOXELS)
    dseeds.segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", step=4)
    image, labels = (open_source(tmp_path / name) for name in ("image.zarr", "labels.zarr"))
    assert labels.frame.spacing == image.frame.spacing == (2.5, 0.75, 0.5)
    assert labels.frame.translation == image.frame.translation == (translation or (0, 0, 0))
    export_volume(tmp_path / "labels.zarr", tmp_path / "labels.mha")
    written = sitk.ReadImage(tmp_path / "labels.mha")
    place = np.multiply(written.TransformIndexToPhysicalPoint((1, 2, 3)), (-1, -1, 1) if translation else (1, 1, 1))
    np.testing.assert_allclose(place, np.add((translation or (0, 0, 0))[::-1], (0.5, 1.5, 7.5)))
