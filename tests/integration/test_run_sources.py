"""Sources of an out-of-core run: Zarr, NIfTI and arrays, and the voxel spacing they carry."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from nibabel.testing import data_path

from dseeds import segment, supervoxels
from dseeds.phantom import write_phantom
from tests.support.runs import (
    FEW,
    GOOD,
    as_zarr,
    labels_in,
    names_in,
    nifti_saver,
    noise,
    snapshot,
)


def zarr_v2(folder, image):
    array = zarr.create_array(folder / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(7, 9, 11), zarr_format=2)
    array[:] = image
    return folder / "a.zarr"


def zarr_sharded(folder, image):
    array = zarr.create_array(
        folder / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(8, 8, 8), shards=(16, 16, 32)
    )
    array[:] = image
    return str(folder / "a.zarr")


def zarr_open(folder, image):
    return zarr.open_array(zarr_v2(folder, image), mode="r")


def zarr_in_memory(_folder, image):
    return zarr.create_array({}, data=image, chunks=(8, 8, 8))


def nibabel_open(folder, image):
    return nibabel.load(nifti_saver(".nii")(folder, image))


def nibabel_in_memory(_folder, image):
    return nibabel.Nifti1Image(image.T, np.eye(4))


def as_it_is(_folder, image):
    return image


def not_contiguous(_folder, image):
    return np.repeat(image[::-1], 2, axis=2)[::-1, :, ::2]


STORES = [
    as_it_is,
    not_contiguous,
    zarr_v2,
    zarr_sharded,
    zarr_open,
    zarr_in_memory,
    nifti_saver(".nii"),
    nifti_saver(".nii.gz"),
    nifti_saver(".img"),
    nifti_saver(".nii.gz", nibabel.Nifti2Image),
    nibabel_open,
    nibabel_in_memory,
]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__qualname__.replace(".<locals>.save", ""))
@pytest.mark.parametrize("dtype", ["int16", ">f4"])
def test_sources(tmp_path, client, store, dtype):
    # A step of 3 has no blocks, and so few rounds.
    image = noise((12, 14, 40), dtype=dtype)
    report = segment(store(tmp_path, image), tmp_path / "labels.zarr", step=3, region=(12, 14, 21), client=client)
    assert report.regions == 2
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(image, step=3))


def test_a_scaled_nifti(tmp_path, client):
    stored = noise((20, 26, 33), dtype="int16")
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    scaled = nibabel.load(tmp_path / "a.nii.gz")
    scaled.header.set_slope_inter(0.25, -1024)
    with (tmp_path / "b.nii").open("wb") as file:
        scaled.header.write_to(file)
        file.write(b"\0" * (int(scaled.header["vox_offset"]) - file.tell()))
        file.write(stored.tobytes())
    values = np.asarray(nibabel.load(tmp_path / "b.nii").dataobj).T
    np.testing.assert_array_equal(values, stored * 0.25 - 1024)
    window = (-1030, -1000)
    segment(tmp_path / "b.nii", tmp_path / "b.zarr", step=7, region=(14, 99, 99), window=window, client=client)
    np.testing.assert_array_equal(labels_in(tmp_path / "b.zarr"), supervoxels(values, step=7, window=window))


def test_a_volume_of_a_series(tmp_path, client):
    path = Path(data_path) / "example4d.nii.gz"
    image = np.asarray(nibabel.load(path).dataobj[..., 1]).T
    report = segment(path, tmp_path / "a.zarr", step=(6, 16, 16), volume=1, client=client)
    assert report.shape == (24, 96, 128)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(image, step=(6, 16, 16)))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """An OME-Zarr image with anisotropic voxels."""
    path = tmp_path_factory.mktemp("phantom") / "phantom.zarr"
    write_phantom(path, shape=(24, 60, 66), spacing=(2.5, 1.0, 1.0), chunk=16)
    return path


@pytest.mark.parametrize("parameters", [{"n_segments": 200}, {"step": "8mm"}])
def test_the_spacing_of_a_source_makes_isotropic_cells(tmp_path, client, phantom, parameters):
    image = zarr.open_array(phantom / "0", mode="r")[:]
    report = segment(phantom, tmp_path / "a.zarr", client=client, **parameters)
    assert 2 * report.step[0] <= report.step[1]
    np.testing.assert_array_equal(
        labels_in(tmp_path / "a.zarr"), supervoxels(image, spacing=(2.5, 1.0, 1.0), **parameters)
    )


def test_a_step_in_voxels_is_taken_as_it_is(tmp_path, client, phantom):
    report = segment(phantom, tmp_path / "a.zarr", step=10, client=client)
    assert report.step == (10, 10, 10)
    np.testing.assert_array_equal(
        labels_in(tmp_path / "a.zarr"), supervoxels(zarr.open_array(phantom / "0", mode="r")[:], step=10)
    )


def test_a_spacing_that_is_given_counts_more_than_the_sources(tmp_path, client, phantom):
    report = segment(phantom, tmp_path / "a.zarr", step="8mm", spacing=(1, 2, 2), client=client)
    assert report.step == (8, 4, 4)
    ome = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    scale = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale == [{"type": "scale", "scale": [1, 2, 2]}]


def test_labels_may_lie_within_the_image(tmp_path, client, phantom):
    shutil.copytree(phantom, tmp_path / "a.zarr")
    before = snapshot(tmp_path)
    target = tmp_path / "a.zarr" / "labels" / "supervoxels"
    segment(tmp_path / "a.zarr", target, step=12, client=client)
    expected = supervoxels(zarr.open_array(phantom / "0", mode="r")[:], step=12)
    np.testing.assert_array_equal(labels_in(target), expected)
    # The image lists them besides its other labels.
    listed = json.loads((target.parent / "zarr.json").read_text())
    assert listed["attributes"]["ome"]["labels"].pop() == "supervoxels"
    (target.parent / "zarr.json").write_text(json.dumps(listed, indent=2))
    shutil.rmtree(target)
    assert snapshot(tmp_path) == before


def test_relative_paths_and_home(tmp_path, client, monkeypatch):
    as_zarr(tmp_path / "image.zarr", GOOD, 16)
    (tmp_path / "home").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    segment("image.zarr", "a.zarr", **FEW, scratch="scratch", client=client)
    segment("image.zarr", "~/b.zarr", **FEW, scratch="~", client=client)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), supervoxels(GOOD, step=4))
    np.testing.assert_array_equal(labels_in(tmp_path / "home" / "b.zarr"), supervoxels(GOOD, step=4))
    assert names_in(tmp_path / "scratch") == []
