"""Sources of every format: arrays, boxes, identity, pickling, and what is refused."""

import json
import os
import pickle

import nibabel
import numpy as np
import pytest
import zarr

from dseeds.io import open_source
from tests.support.sources import make_zarr, save_nifti, save_ome, volume, whole


def test_numpy_arrays():
    data = volume()
    source = open_source(data)
    assert (source.kind, source.name, source.spacing, source.chunks) == ("array", "array", None, None)
    assert not source.readable_by_workers
    np.testing.assert_array_equal(whole(source), data)
    assert np.shares_memory(source.array, data)
    box = (slice(1, 3), slice(2, 5), slice(0, 4))
    np.testing.assert_array_equal(source.read(box), data[box])


@pytest.mark.parametrize("shape", [(1, 5, 6, 7), (5, 6, 7, 1), (1, 1, 5, 6, 7), (1, 5, 6, 7, 1, 1)])
def test_axes_of_size_one_are_dropped(shape):
    np.testing.assert_array_equal(whole(open_source(volume().reshape(shape))), volume())


def test_a_single_plane_is_a_volume():
    assert open_source(volume((1, 6, 7))).shape == (1, 6, 7)
    assert open_source(volume((1, 6, 7, 1))).shape == (1, 6, 7)


def test_the_first_axis_chooses():
    data = volume((3, 4, 5, 6))
    np.testing.assert_array_equal(whole(open_source(data, volume=2)), data[2])
    np.testing.assert_array_equal(whole(open_source(data[None], volume=1)), data[1])


def as_numpy(_folder, data):
    return data


def as_zarr(folder, data):
    make_zarr(folder / "a.zarr", data, zarr_format=2)
    return folder / "a.zarr"


def as_nifti(folder, data):
    return save_nifti(folder / "a.nii", data.T)


RECORDS = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (as_numpy, np.zeros((3, 4, 5), bool), "is boolean; supervoxels need intensities"),
        (as_zarr, np.zeros((3, 4, 5), bool), "is boolean; supervoxels need intensities"),
        (as_numpy, np.zeros((3, 4, 5), "c8"), "is complex"),
        (as_zarr, np.zeros((3, 4, 5), "c8"), "is complex"),
        (as_nifti, np.zeros((3, 4, 5), "c8"), "is complex"),
        (as_numpy, RECORDS, "holds records of 3 values"),
        (as_zarr, RECORDS, "holds records of 3 values"),
        (as_nifti, RECORDS, "holds records of 3 values"),
        (as_numpy, np.zeros((3, 4, 5), object), "holds values of type object"),
        (as_numpy, np.zeros((3, 4, 5), "M8[s]"), r"holds values of type datetime64\[s\]"),
        (as_zarr, np.zeros((3, 4, 5), "U3"), "holds values of type <U3"),
        (as_numpy, volume((4, 5)), "supervoxels need three axes"),
        (as_zarr, volume((4,)), "supervoxels need three axes"),
        (as_nifti, volume((4,)), "supervoxels need three axes"),
        (as_numpy, volume((3, 0, 5)), "an axis is empty"),
        (as_zarr, volume((3, 0, 5)), "an axis is empty"),
        (as_numpy, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_zarr, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_nifti, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_numpy, volume((2, 2, 3, 4, 5)), r"more than one way \(2 along axis 0 and 2 along axis 1\)"),
        (as_zarr, volume((2, 2, 3, 4, 5)), "more than one way"),
        (as_nifti, volume((3, 2, 3, 4, 5)), r"more than one way \(2 along t and 3 along c\)"),
    ],
)
def test_refused(tmp_path, make, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(make(tmp_path, data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [as_numpy, as_zarr, as_nifti])
@pytest.mark.parametrize(("count", "number"), [(2, 2), (2, -1), (1, 1), (1, -1)])
def test_no_such_volume(tmp_path, make, count, number):
    data = volume((count, 3, 4, 5)) if count > 1 else volume()
    with pytest.raises(ValueError, match=f"has no volume {number}: it holds {count}, numbered from 0"):
        open_source(make(tmp_path, data), volume=number)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((2, 3, 5, 6, 7), "tczyx", r"more than one way \(2 along t and 3 along c\)"),
        ((7,), "x", "supervoxels need z, y and x, or two of them"),
        ((3, 6, 7), "tcx", "supervoxels need z, y and x, or two of them"),
        ((5, 6, 7), "zxx", "supervoxels need z, y and x, or two of them, once"),
        ((2, 5, 6, 7), "tzyx", "holds 2 volumes"),
    ],
)
def test_ome_zarr_refused(tmp_path, shape, axes, message):
    with pytest.raises(ValueError, match=message):
        open_source(save_ome(tmp_path / "a.zarr", volume(shape), axes))


@pytest.mark.parametrize("name", ["none.nii.gz", "none.zarr", "none", "none.nii/inside"])
def test_a_path_that_does_not_exist(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist$"):
        open_source(tmp_path / name)


def test_urls_that_do_not_exist():
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source("memory://dseeds-test/nothing")
    with pytest.raises(ValueError, match="cannot be opened as Zarr"):
        open_source("nonsense://a/b.zarr")
    with pytest.raises(ValueError, match="download it"):
        open_source("https://example.org/a.nii.gz")


@pytest.mark.parametrize("address", [None, 3, {1: 2}, b"a.nii"])
def test_objects_that_are_no_sources(address):
    with pytest.raises(TypeError, match="a source is a path or URL, an array of numpy"):
        open_source(address)


@pytest.fixture(params=["nii", "nii.gz", "numpy", "nibabel", "zarr", "memory", "ome"])
def any_source(request, tmp_path):
    data = volume()
    match request.param:
        case "nii" | "nii.gz":
            return open_source(save_nifti(tmp_path / f"a.{request.param}", data.T))
        case "numpy":
            return open_source(data)
        case "nibabel":
            return open_source(nibabel.Nifti1Image(data.T, np.eye(4)))
        case "zarr":
            return open_source(make_zarr(tmp_path / "a.zarr", data))
        case "memory":
            return open_source(make_zarr({}, data))
        case "ome":
            return open_source(save_ome(tmp_path / "a.zarr", data, "zyx", scale=[1.0, 2.0, 3.0]))


def test_sources_pickle(any_source):
    copy = pickle.loads(pickle.dumps(any_source))
    np.testing.assert_array_equal(whole(copy), volume())
    for field in ("name", "kind", "shape", "dtype", "spacing", "chunks", "readable_by_workers", "identity"):
        assert getattr(copy, field) == getattr(any_source, field)


def test_sources_read_boxes(any_source):
    for box in [(slice(0, 5), slice(0, 6), slice(0, 7)), (slice(1, 3), slice(4, 6), slice(2, 3))]:
        np.testing.assert_array_equal(any_source.read(box), volume()[box])


def test_identity_goes_into_json_and_stays(any_source):
    assert json.loads(json.dumps(any_source.identity)) == any_source.identity
    assert any_source.identity["shape"] == [5, 6, 7]


def test_identity_tells_sources_apart(tmp_path):
    other = volume() + 1
    path = save_nifti(tmp_path / "a.nii", volume().T)
    first = open_source(path).identity
    assert open_source(path).identity == first
    save_nifti(path, other.T)
    os.utime(path, ns=(0, 0))
    assert open_source(path).identity != first

    make_zarr(tmp_path / "a.zarr", volume())
    first = open_source(tmp_path / "a.zarr").identity
    zarr.open_array(tmp_path / "a.zarr").attrs["note"] = "added later"
    assert open_source(tmp_path / "a.zarr").identity == first
    make_zarr(tmp_path / "a.zarr", volume(), chunks=(3, 3, 3), overwrite=True)
    assert open_source(tmp_path / "a.zarr").identity != first

    for make in (np.asarray, lambda data: make_zarr({}, data)):
        assert open_source(make(volume())).identity == open_source(make(volume())).identity
        assert open_source(make(volume())).identity != open_source(make(other)).identity

    series = volume((2, 3, 4, 5))
    for address in (as_nifti(tmp_path, series), as_zarr(tmp_path / "series", series)):
        assert open_source(address, volume=0).identity != open_source(address, volume=1).identity
