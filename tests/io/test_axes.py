"""Axes by the names that files give them: NRRD's kinds, axistags, dimension names, and planes without z."""

import bz2
import gzip
import json
import struct

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from dseeds.io import open_image, open_source
from dseeds.io.axes import find_space
from dseeds.io.formats import hdf5

WHOLE = np.s_[:, :, :]
SIZES = {"z": 4, "y": 5, "x": 6, "c": 3, "t": 2}


def values(axes, dtype="i2"):
    """Voxels whose value says where they are, with axes in the order of their names; and as (..., z, y, x)."""
    ordered = [axis for axis in "tczyx" if axis in axes]
    array = np.arange(np.prod([SIZES[axis] for axis in ordered]), dtype=dtype).reshape([SIZES[a] for a in ordered])
    return array.transpose([ordered.index(axis) for axis in axes]), array


orders = st.permutations("zyxc") | st.permutations("zyx") | st.permutations("yxc") | st.permutations("zyxt")


def stored_as_named(path, how, axes, array):
    """Write an array with the names of its axes, each in its own way."""
    if how == "axistags":
        with h5py.File(path / "a.h5", "w") as file:
            tags = {"axes": [{"key": key, "typeFlags": 2} for key in axes]}
            file.create_dataset("exported_data", data=array).attrs["axistags"] = json.dumps(tags)
        return path / "a.h5"
    if how in ("labels", "scales"):
        with h5py.File(path / "a.h5", "w") as file:
            data = file.create_dataset("data", data=array)
            for dimension, key in zip(data.dims, axes, strict=True):
                if how == "labels":
                    dimension.label = key
                else:
                    file[key] = np.arange(SIZES[key])
                    file[key].make_scale(key)
                    dimension.attach_scale(file[key])
        return path / "a.h5"
    if how == "zarr 3":
        options = {"dimension_names": list(axes), "zarr_format": 3}
    else:
        options = {"attributes": {"_ARRAY_DIMENSIONS": list(axes)}, "zarr_format": 2}
    made = zarr.create_array(path / "a.zarr", shape=array.shape, dtype=array.dtype, **options)
    made[...] = array
    return path / "a.zarr"


@pytest.mark.parametrize("how", ["axistags", "labels", "scales", "zarr 3", "zarr 2"])
@given(axes=orders)
def test_named_axes_in_any_order(tmp_path_factory, how, axes):
    stored, expected = values(axes)
    path = stored_as_named(tmp_path_factory.mktemp("axes"), how, axes, stored)
    if "z" not in axes:
        expected = expected[..., None, :, :]
    with pytest.MonkeyPatch.context() as patch:
        # A process for each file would take its time.
        patch.setattr(hdf5, "_read_apart", lambda *_: None)
        check_named_axes(path, axes, expected)


def check_named_axes(path, axes, expected):
    if "c" in axes:
        with pytest.raises(ValueError, match="holds 3 channels: pass channel_axis='c'"):
            open_image(path)
        image = open_image(path, channel_axis="c")
        np.testing.assert_array_equal(np.stack(image.read(WHOLE)), expected)
        np.testing.assert_array_equal(np.concatenate([np.stack(s) for _, s in image.slabs(3)], 1), expected)
        assert open_image(path, channel_axis=axes.index("c")).identity == image.identity
        np.testing.assert_array_equal(open_source(path, volume=1).read(WHOLE), expected[1])
    elif "t" in axes:
        with pytest.raises(ValueError, match="holds 2 volumes: pass volume="):
            open_source(path)
        np.testing.assert_array_equal(open_source(path, volume=1).read(WHOLE), expected[1])
    else:
        source = open_source(path)
        np.testing.assert_array_equal(source.read(WHOLE), expected)
        np.testing.assert_array_equal(source.read(np.s_[1:3, 2:4, 1:5]), expected[1:3, 2:4, 1:5])


@pytest.mark.parametrize(
    ("names", "space"),
    [
        (("Slice", "ROW", "Col"), (0, 1, 2)),
        (("channel", "depth", "height", "width"), (1, 2, 3)),
        (("time", "y", "x"), (None, 1, 2)),
        (("phase", "z", "y", "x"), (1, 2, 3)),
        (("section", "y", "x"), (0, 1, 2)),
        (("dim_0", "dim_1", "dim_2", "dim_3"), (1, 2, 3)),
    ],
)
def test_common_names(names, space):
    assert find_space(names, [4] * len(names), "a") == space


@pytest.mark.parametrize("names", [("x", "x", "y"), ("a", "b", "y", "x"), ("c", "t", "x"), ("z",)])
def test_names_that_are_not_certain(names):
    with pytest.raises(ValueError, match="supervoxels need z, y and x, or two of them, once"):
        find_space(names, [4] * len(names), "a")


@pytest.mark.parametrize("how", ["axistags", "labels", "scales"])
def test_names_of_any_length_are_read_in_another_process(tmp_path, how, monkeypatch):
    stored, expected = values("xzcy")
    path = stored_as_named(tmp_path, how, "xzcy", stored)
    np.testing.assert_array_equal(np.stack(open_image(path, channel_axis="c").read(WHOLE)), expected)
    monkeypatch.setattr(hdf5, "_read_apart", hdf5._read_apart.__wrapped__)
    # A program that cannot start.
    monkeypatch.setattr(hdf5, "_SCRIPT", tmp_path / "missing.py")
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_NO_PROGRAM", 2)
        assert open_image(path, channel_axis="c").shape == (4, 5, 6)
    # One that hangs, as libhdf5 may.
    (tmp_path / "missing.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(hdf5, "_PATIENCE", 0.2)
    with pytest.raises(ValueError, match=r"a\.h5:/\w+ cannot be read \(the names of its axes are damaged\)"):
        open_source(path)
    # One that crashes, as libhdf5 does.
    (tmp_path / "missing.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5, "_PATIENCE", 60)
    with pytest.raises(ValueError, match=r"a\.h5:/\w+ cannot be read \(the names of its axes are damaged\)"):
        open_source(path)


def test_damaged_names_of_any_length(tmp_path):
    path = stored_as_named(tmp_path, "labels", "zyx", values("zyx")[0])
    content = bytearray(path.read_bytes())
    # Read by libhdf5 in this process, this would end it.
    address = content.index(struct.pack("<Q", content.index(b"GCOL")))
    content[address : address + 3] = b"AAA"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read \(the names of its axes are damaged\)"):
        open_source(path)


def test_names_that_do_not_fit(tmp_path):
    for tags, message in (
        ("[", "has axistags that cannot be read"),
        ('{"axes": [{"key": "z"}]}', "names 1 axes in axistags for an array"),
    ):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", data=np.zeros((3, 4, 5))).attrs["axistags"] = tags
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / "a.h5")
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((3, 4, 5)), attributes={"_ARRAY_DIMENSIONS": ["y", "x"]})
    with pytest.raises(ValueError, match="names 2 axes in _ARRAY_DIMENSIONS for an array of 3"):
        open_source(tmp_path / "a.zarr")


# NRRD: the slowest axis is the first of the array and the last of the header.

KINDS = {"c": ("vector", "list", "RGB-color", "3-vector", "normal", "point"), "t": ("time",)}
DIRECTIONS = {"x": "(0.5,0,0)", "y": "(0,0.75,0)", "z": "(0,0,2)"}


def write_nrrd(path, axes, array, *, kind="vector", encoding="raw", directions=True, endian="little"):
    fields = ["NRRD0004", "type: short", f"dimension: {len(axes)}", f"sizes: {' '.join(map(str, array.shape[::-1]))}"]
    if directions:
        listed = " ".join(DIRECTIONS.get(axis, "none") for axis in axes[::-1])
        fields += ["space: left-posterior-superior", f"space directions: {listed}", "space origin: (1,2,3)"]
    fields += [f"kinds: {' '.join('domain' if axis in 'zyx' else kind for axis in axes[::-1])}"]
    fields += [f"endian: {endian}", f"encoding: {encoding}", "", ""]
    data = np.ascontiguousarray(array, "<i2" if endian == "little" else ">i2").tobytes()
    if encoding == "ascii":
        data = " ".join(map(str, array.ravel())).encode()
    compress = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)
    path.write_bytes("\n".join(fields).encode() + compress(data))
    return path


@pytest.mark.parametrize("axes", ["czyx", "zyxc", "zcyx", "zyc" + "x"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("kind", KINDS["c"])
def test_nrrd_says_which_axis_holds_the_values(tmp_path, axes, encoding, kind):
    stored, expected = values(axes)
    path = write_nrrd(tmp_path / "a.nrrd", axes, stored, kind=kind, encoding=encoding)
    image = open_image(path, channel_axis="c")
    assert image.channels == 3
    np.testing.assert_array_equal(np.stack(image.read(WHOLE)), expected)
    np.testing.assert_array_equal(np.concatenate([np.stack(s) for _, s in image.slabs(3)], 1), expected)
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:3, 2:4, 1:5])), expected[:, 1:3, 2:4, 1:5])
    # SimpleITK, which has no bzip2, moves the values to the end.
    same = write_nrrd(tmp_path / "b.nrrd", axes, stored, kind=kind) if encoding == "bzip2" else path
    itk = sitk.GetArrayFromImage(sitk.ReadImage(same))
    np.testing.assert_array_equal(np.moveaxis(itk, -1, 0), expected)
    assert image.spacing == (2, 0.75, 0.5)
    assert open_image(path, channel_axis=axes.index("c")).identity == image.identity


def test_two_components_are_channels_and_a_time_is_not(tmp_path):
    stored, expected = values("tzyx")
    path = write_nrrd(tmp_path / "a.nrrd", "tzyx", stored, kind="list")
    with pytest.raises(ValueError, match=r"holds 2 channels: pass channel_axis='c' .*, or volume= .*, 0 to 1, for one"):
        open_image(path)
    path = write_nrrd(tmp_path / "a.nrrd", "tzyx", stored, kind="time")
    with pytest.raises(ValueError, match="holds 2 volumes: pass volume="):
        open_image(path)
    np.testing.assert_array_equal(open_source(path, volume=1).read(WHOLE), expected[1])


def test_an_axis_of_nrrd_without_kind_and_spacing(tmp_path):
    stored, expected = values("zyxc")
    path = write_nrrd(tmp_path / "a.nrrd", "zyxc", stored, directions=False)
    content = path.read_bytes().replace(b"kinds", b"spacings: nan 0.5 0.75 2\nkinds")
    path.write_bytes(content)
    np.testing.assert_array_equal(np.stack(open_image(path, channel_axis="c").read(WHOLE)), expected)
    path.write_bytes(content.replace(b"kinds: vector", b"kinds: ???"))
    with pytest.raises(ValueError, match="has an axis with neither kind nor spacing"):
        open_image(path)


@pytest.mark.parametrize("count", [3, 4])
def test_a_space_of_nrrd_without_a_name_is_that_of_itk(tmp_path, count):
    image = sitk.GetImageFromArray(np.zeros((2, 4, 5, 6)[-count:], "i2"), isVector=False)
    image.SetSpacing((0.5, 0.75, 2.0, 1.0)[:count])
    image.SetOrigin((1.0, 2.0, 3.0, 0.0)[:count])
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content.replace(b"space: left-posterior-superior", b"space dimension: 3"))
    affine = open_source(tmp_path / "a.nrrd", volume=0).affine
    np.testing.assert_allclose(affine, [[-0.5, 0, 0, -1], [0, -0.75, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]])


def test_a_header_whose_file_of_voxels_is_missing(tmp_path):
    for name in ("a.nhdr", "a.mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), "i2")), tmp_path / name)
        (tmp_path / "a.raw").unlink()
        with pytest.raises(ValueError, match=rf"{name} cannot be read: the file a\.raw is missing, so copy it to"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_vectors_of_a_plane(tmp_path, ending, count):
    data = np.arange(30 * 40 * count, dtype="i2").reshape(30, 40, count)
    plane = sitk.GetImageFromArray(data, isVector=True)
    plane.SetSpacing((0.5, 0.75))
    sitk.WriteImage(plane, tmp_path / f"a.{ending}")
    image = open_image(tmp_path / f"a.{ending}", channel_axis="c")
    assert (image.shape, image.channels, image.spacing) == ((1, 30, 40), count, (0.5, 0.75, 0.5))
    np.testing.assert_array_equal(np.stack(image.read(WHOLE), -1)[0], data)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_more_voxels_than_the_header_says(tmp_path, encoding):
    stored, _ = values("zyx")
    path = write_nrrd(tmp_path / "a.nrrd", "zyx", stored, encoding=encoding)
    path.write_bytes(path.read_bytes().replace(b"sizes: 6 5 4", b"sizes: 6 5 3"))
    with pytest.raises(ValueError, match=r"(more voxels|longer) than its header describes"):
        list(open_source(path).slabs(2))
    # The end of a line is no voxel.
    path = write_nrrd(tmp_path / "a.nrrd", "zyx", stored, encoding=encoding)
    path.write_bytes(path.read_bytes() + b"\n")
    np.testing.assert_array_equal(open_source(path).read(WHOLE), stored)


# MINC, of nibabel's own tests


def write_minc(path, axes, stored):
    with h5py.File(path, "w") as file:
        dimensions = file.create_group("minc-2.0/dimensions")
        for name, size in zip(axes, stored.shape, strict=True):
            dimension = dimensions.create_dataset(name, data=np.int32(0))
            cosines = [float(name == f"{axis}space") for axis in "xyz"]
            dimension.attrs.update({"length": size, "start": 0.0, "step": 1.5, "direction_cosines": cosines})
        image = file.create_group("minc-2.0/image/0")
        made = image.create_dataset("image", data=stored)
        made.attrs.update({"dimorder": np.bytes_(",".join(axes)), "valid_range": [0.0, 65535.0]})
        image["image-min"], image["image-max"] = 0.0, 65535.0
    return path


def test_vectors_of_minc_and_nifti(tmp_path):
    stored = np.arange(2 * 4 * 5 * 6, dtype="u2").reshape(4, 5, 6, 2)
    minc = write_minc(tmp_path / "a.mnc", ["zspace", "yspace", "xspace", "vector_dimension"], stored)
    # As nibabel has it: not turned, with an affine that says which axis is which.
    np.testing.assert_array_equal(nibabel.load(minc).affine @ (1, 0, 0, 0), (0, 0, 1.5, 0))
    nibabel.save(nibabel.Nifti1Image(stored[:, :, :, None].astype("i2"), np.eye(4)), tmp_path / "a.nii")
    for path in (minc, tmp_path / "a.nii"):
        with pytest.raises(ValueError, match="holds 2 channels: pass channel_axis='c'"):
            open_image(path)
        np.testing.assert_array_equal(np.stack(open_image(path, channel_axis="c").read(WHOLE)), stored.T)
        np.testing.assert_array_equal(open_source(path, volume=1).read(WHOLE), stored.T[1])


@pytest.mark.parametrize("name", ["tiny.mnc", "small.mnc", "minc1_4d.mnc", "minc2_4d.mnc"])
def test_volumes_of_minc(name):
    path = f"{nibabel.__path__[0]}/tests/data/{name}"
    image = nibabel.load(path)
    data = image.get_fdata()
    volumes = data if data.ndim == 4 else data[None]
    for number, volume in enumerate(volumes):
        source = open_source(path, volume=number if data.ndim == 4 else None)
        # As nibabel's: the axes of the file, reversed.
        np.testing.assert_allclose(source.read(WHOLE), volume.T, rtol=1e-6)
        np.testing.assert_allclose(source.affine, image.affine)
        np.testing.assert_allclose(source.spacing, np.linalg.norm(image.affine[:3, :3], axis=0)[::-1])
    if data.ndim == 4:
        with pytest.raises(ValueError, match=f"holds {len(data)} volumes: pass volume="):
            open_source(path)


# One plane


def plane_files(folder, plane):
    tifffile.imwrite(folder / "a.tif", plane, photometric="minisblack")
    nibabel.save(nibabel.Nifti1Image(plane.T, np.diag([0.5, 0.75, 2, 1])), folder / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(plane), folder / "a.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(plane), folder / "a.mha", True)
    np.save(folder / "a.npy", plane)
    zarr.create_array(folder / "a.zarr", data=plane)
    with h5py.File(folder / "a.h5", "w") as file:
        file["plane"] = plane
    return ["a.tif", "a.nii.gz", "a.nrrd", "a.mha", "a.npy", "a.zarr", "a.h5", "a.h5:/plane"]


def test_two_axes_are_one_plane(tmp_path):
    plane = np.random.default_rng(0).integers(0, 99, (6, 7)).astype("i2")
    for name in plane_files(tmp_path, plane):
        source = open_source(f"{tmp_path}/{name}")
        assert source.shape == (1, 6, 7), name
        np.testing.assert_array_equal(source.read(WHOLE), plane[None])
        np.testing.assert_array_equal(source.read(np.s_[0:1, 2:4, 3:7]), plane[None, 2:4, 3:7])
        np.testing.assert_array_equal(np.concatenate([slab for _, slab in source.slabs(2)]), plane[None])
    assert open_source(tmp_path / "a.nii.gz").spacing == (2, 0.75, 0.5)


def test_the_colours_of_one_plane(tmp_path):
    colours = np.random.default_rng(0).integers(0, 99, (6, 7, 3)).astype("u1")
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    np.save(tmp_path / "a.npy", colours)
    for image in (open_image(tmp_path / "a.tif"), open_image(tmp_path / "a.npy", channel_axis=-1)):
        assert (image.shape, image.channels) == ((1, 6, 7), 3)
        np.testing.assert_array_equal(np.stack(image.read(WHOLE), -1)[0], colours)
