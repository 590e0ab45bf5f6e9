"""Small images in several formats, and readers of whole sources."""

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from nibabel.testing import data_path

from tests.support.paths import DATA

NIBABEL = Path(data_path)
SHARED = DATA
REAL = ("ct_3mm/ct.nii.gz", "mr_sarcoma/mr_t1.nii.gz", "hippocampus/image_001.nii.gz")


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the real volume {path} is not on this machine")
    return path


def volume(shape=(5, 6, 7), dtype="int16"):
    return (np.arange(math.prod(shape)) % 251).reshape(shape).astype(dtype)


LABELS = volume(dtype="int64")


def whole(source, thickness=2):
    """Return the volume as its slabs, after checking their order and type."""
    parts, depth = [], 0
    for z0, slab in source.slabs(thickness):
        assert z0 == depth
        assert slab.dtype == source.dtype
        assert slab.shape == (min(thickness, source.shape[0] - z0), *source.shape[1:])
        parts.append(slab)
        depth += len(slab)
    joined = np.concatenate(parts)
    assert joined.shape == source.shape
    return joined


def save_nifti(path, data, *, kind=nibabel.Nifti1Image, affine=None, units=("mm", "sec"), **fields):
    image = kind(data, np.diag([0.5, 0.75, 3.25, 1]) if affine is None else affine)
    image.header.set_xyzt_units(*units)
    for field, value in fields.items():
        image.header[field] = value
    nibabel.save(image, path)
    return path


def save_ome(path, data, axes, *, version="0.4", scale=None, overall=None, unit="micrometer", dataset="0"):
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    array = group.create_array(dataset, shape=data.shape, dtype=data.dtype, chunks=data.shape)
    array[...] = data
    image = {
        "axes": [{"name": axis, **({"unit": unit} if axis in "zyx" and unit else {})} for axis in axes],
        "datasets": [{"path": dataset}, {"path": "smaller"}],
    }
    if scale:
        image["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    if overall:
        image["coordinateTransformations"] = [{"type": "scale", "scale": overall}]
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": version, **image}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


def make_zarr(path, data, **options):
    options = {"chunks": (2,) * data.ndim, **options}
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    array[...] = data
    return array
