"""From DICOM to labels in other formats: they lie where SimpleITK sees the voxels of the original."""

import numpy as np
import pytest
import SimpleITK as sitk

import dseeds
from dseeds.io import open_source
from tests.support import dicom_files as files


def smooth_volume(seed):
    noise = np.random.default_rng(seed).random((8, 12, 14)).cumsum(0).cumsum(1).cumsum(2)
    return (noise * 1000 / noise.max()).astype("u2")


def write_moments(folder, axes):
    """Write two volumes as one object of many frames, and each as a series of slices."""
    volumes = [smooth_volume(0), smooth_volume(1)]
    frames = np.random.default_rng(2).permutation(16)
    groups = [files.groups_of(n % 8, axes, time=1 + n // 8) for n in frames]
    files.save(files.new_enhanced(np.concatenate(volumes)[frames], groups, axes), folder / "object" / "a.dcm")
    for number, volume in enumerate(volumes):
        for z, plane in enumerate(volume):
            files.save(files.new_slice(plane, z, axes), folder / f"series{number}" / f"{z}.dcm")


@pytest.mark.parametrize("axes", [files.STRAIGHT, files.OBLIQUE])
@pytest.mark.parametrize("ending", ["nrrd", "nii.gz", "mha"])
def test_labels_lie_where_simpleitk_sees_the_original(tmp_path, axes, ending):
    write_moments(tmp_path, axes)
    dseeds.import_volume(tmp_path / "object", tmp_path / "image.zarr", volume=1)
    dseeds.segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", step=4)
    dseeds.export_volume(tmp_path / "labels.zarr", tmp_path / f"labels.{ending}")

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series1")))
    original = reader.Execute()
    labels = dseeds.supervoxels(sitk.GetArrayFromImage(original), step=4)
    exported = sitk.ReadImage(tmp_path / f"labels.{ending}")
    resampled = sitk.Resample(exported, original, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), labels)
    np.testing.assert_allclose(open_source(tmp_path / "image.zarr").affine, files.affine_of(axes), atol=1e-6)
    np.testing.assert_allclose(open_source(tmp_path / f"labels.{ending}").affine, files.affine_of(axes), atol=1e-5)
