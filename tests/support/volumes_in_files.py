"""Volumes of numbers in files, for imports and exports."""

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dseeds.convert.export_volume import ENDINGS
from tests.support.paths import DATA

few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
FILES = [ending for ending in ENDINGS if ending != ".precomputed"]
shapes = st.tuples(*[st.integers(1, 9)] * 3)
seeds = st.integers(0, 2**32 - 1)


def numbers(shape, dtype, seed=0):
    bits = np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    voxels = np.frombuffer(bits, dtype).reshape(shape)
    return np.nan_to_num(voxels) if voxels.dtype.kind == "f" else voxels


def oblique(seed, left_handed):
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned = turned if (np.linalg.det(turned) < 0) == left_handed else turned * [1, 1, -1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned * (0.5, 0.75, 2.5), (10, -20, 30.25)
    return affine


def nifti(path, data, affine, *, labels=False):
    """Write a volume (z, y, x)."""
    image = nibabel.Nifti1Image(data.T, affine, dtype=data.dtype)
    if labels:
        image.header.set_intent("label")
    nibabel.save(image, path)
    return path


def read_by_library(path):
    """Return the voxels (z, y, x) or (c, z, y, x) and the spacing of a file, as the format's own library reads them."""
    name = path.name
    if ".nii" in name:
        image = nibabel.load(path)
        return np.asarray(image.dataobj).T, image.header.get_zooms()[::-1]
    if ".tif" in name:
        with tifffile.TiffFile(path) as tiff:
            voxels, axes = tiff.asarray(), tiff.series[0].axes
            voxels = voxels.reshape([1] * (3 - voxels.ndim) + list(voxels.shape))
            if tiff.is_ome:
                pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
                assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"mm"}
                return voxels, [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"]
            assert tiff.imagej_metadata["unit"] == "mm"
            sizes = [tiff.pages[0].tags[f"{axis}Resolution"].value for axis in "YX"]
            plane = [below / above for above, below in sizes]
            return (np.moveaxis(voxels, axes.index("C"), 0) if "C" in axes else voxels), [
                tiff.imagej_metadata["spacing"],
                *plane,
            ]
    if ".h5" in name or ".hdf5" in name:
        with h5py.File(path) as file:
            return file["volume"][:], [size / 1000 for size in file["volume"].attrs["element_size_um"]]
    if ".npy" in name:
        return np.load(path), None
    image = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(image)
    return np.moveaxis(voxels, -1, 0) if voxels.ndim > 3 else voxels, image.GetSpacing()[::-1]


def real(*parts):
    if not (path := DATA.joinpath(*parts)).exists():
        pytest.skip(f"the real volume {path} is missing")
    return path


def listing(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}
