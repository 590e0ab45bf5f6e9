"""TIFF, NRRD, MetaImage, NumPy and HDF5: files of other programs are read as these do, or refused."""

import gzip
import itertools
import json
import pickle
import subprocess
import sys
import warnings
import zlib

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dseeds
from dseeds import cli
from dseeds.convert.describe import describe
from dseeds.io import FileSource, open_image, open_mask, open_source
from tests.support.paths import DATA

few = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
DTYPES = [*INTEGERS, "f4", "f8"]
shapes = st.tuples(*[st.integers(1, 9)] * 3)
seeds = st.integers(0, 2**32 - 1)


def numbers(shape, dtype, seed=0):
    """Voxels of random bits, without NaN."""
    bits = np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    voxels = np.frombuffer(bits, dtype).reshape(shape)
    return np.nan_to_num(voxels) if voxels.dtype.kind == "f" else voxels


def agree(source, expected, thickness=2):
    """Check that slabs and a box of a source hold the expected voxels."""
    assert source.shape == expected.shape
    assert source.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
    slabs = list(source.slabs(thickness))
    assert [z0 for z0, _ in slabs] == list(range(0, source.shape[0], thickness))
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in slabs]), expected)
    box = tuple(slice(n // 3, n) for n in expected.shape)
    np.testing.assert_array_equal(source.read(box), expected[box])


def refused(path, message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        open_source(path, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# NumPy


@few
@given(shapes, st.sampled_from(DTYPES), st.sampled_from("<>"), st.booleans(), seeds)
def test_numpy(tmp_path, shape, dtype, order, fortran, seed):
    data = numbers(shape, order + dtype, seed)
    np.save(tmp_path / "a.npy", np.asfortranarray(data) if fortran else data)
    source = open_source(tmp_path / "a.npy")
    assert (source.kind, source.spacing, source.affine, source.readable_by_workers) == ("numpy", None, None, True)
    agree(source, data)


def test_numpy_of_more_axes(tmp_path):
    data = numbers((3, 4, 5, 6), "u2")
    np.save(tmp_path / "a.npy", data)
    agree(open_source(tmp_path / "a.npy", volume=1), data[1])
    image = open_image(tmp_path / "a.npy", channel_axis=0)
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:3, :4, 2:5])), data[:, 1:3, :4, 2:5])
    refused(tmp_path / "a.npy", "holds 3 volumes: pass volume=")


def test_no_pickle_is_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a program in a file was run",))

    np.save(tmp_path / "a.npy", np.array([[[Bomb()]]], object), allow_pickle=True)
    refused(tmp_path / "a.npy", "holds values of type object")


# NRRD and MetaImage


def oblique(seed, left_handed):
    """Return three axes at right angles, in any direction."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return turned if (np.linalg.det(turned) < 0) == left_handed else turned * [1, 1, -1]


def itk_image(data, *, seed=0, left_handed=False):
    image = sitk.GetImageFromArray(data)
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((10, -20, 30.25))
    image.SetDirection(oblique(seed, left_handed).ravel())
    return image


def lies_as(source, image):
    """Check positions against SimpleITK, with x and y as in NIfTI."""
    assert source.spacing == pytest.approx(image.GetSpacing()[::-1])
    for xyz in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (1.5, 2, 3)]:
        place = np.array(image.TransformContinuousIndexToPhysicalPoint(xyz)) * (-1, -1, 1)
        np.testing.assert_allclose(source.affine @ (*xyz, 1), (*place, 1), atol=1e-6)


@settings(few, max_examples=40)
@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from(["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_nrrd_and_metaimage_as_simpleitk_writes_them(tmp_path, shape, dtype, name, compressed, left_handed, seed):
    data = numbers(shape, dtype, seed)
    image = itk_image(data, seed=seed, left_handed=left_handed)
    sitk.WriteImage(image, tmp_path / name, compressed)
    source = open_source(tmp_path / name)
    assert isinstance(source, FileSource)
    assert source.kind == ("nrrd" if "n" in name else "metaimage")
    agree(source, data)
    lies_as(source, image)


@few
@given(shapes, st.sampled_from(DTYPES), st.sampled_from("<>"), st.sampled_from(["raw", "gzip"]), seeds)
def test_byte_orders_of_nrrd_and_metaimage(tmp_path, shape, dtype, order, encoding, seed):
    data, sizes = numbers(shape, order + dtype, seed), " ".join(map(str, shape[::-1]))
    types = {"i": "int", "u": "uint", "f": "float"}
    kind = f"{types[data.dtype.kind]}{8 * data.itemsize}".replace("float32", "float").replace("float64", "double")
    ending = {"<": "little", ">": "big"}[order]
    header = f"NRRD0004\ntype: {kind}\ndimension: 3\nsizes: {sizes}\nendian: {ending}\nencoding: {encoding}\n\n"
    stored = gzip.compress(data.tobytes()) if encoding == "gzip" else data.tobytes()
    (tmp_path / "a.nrrd").write_bytes(header.encode() + stored)
    source = open_source(tmp_path / "a.nrrd")
    assert (source.spacing, source.affine) == (None, None)
    agree(source, data)

    names = {"u1": "UCHAR", "i1": "CHAR", "u2": "USHORT", "i2": "SHORT", "u4": "UINT", "i4": "INT"}
    names |= {"u8": "ULONG_LONG", "i8": "LONG_LONG", "f4": "FLOAT", "f8": "DOUBLE"}
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {order == '>'}\n"
        f"CompressedData = {encoding == 'gzip'}\nDimSize = {sizes}\nElementType = MET_{names[dtype]}\n"
        f"ElementDataFile = LOCAL\n"
    )
    stored = zlib.compress(data.tobytes()) if encoding == "gzip" else data.tobytes()
    (tmp_path / "a.mha").write_bytes(header.encode() + stored)
    agree(open_source(tmp_path / "a.mha"), data)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_real_volume_in_nrrd_and_metaimage(tmp_path, name, compressed, ct_3mm):
    image = itk_image(np.ascontiguousarray(ct_3mm[0]), seed=5)
    sitk.WriteImage(image, tmp_path / name, compressed)
    agree(open_source(tmp_path / name), ct_3mm[0], 17)
    lies_as(open_source(tmp_path / name), image)
    assert describe(tmp_path / name)["format"] == open_source(tmp_path / name).kind


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_colours_and_vectors_of_itk(tmp_path, name):
    data = numbers((4, 5, 6, 3), "u1")
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=True), tmp_path / name, True)
    image = open_image(tmp_path / name)
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:3, :4, 2:5]), -1), data[1:3, :4, 2:5])
    np.testing.assert_array_equal(np.concatenate([np.stack(slab, -1) for _, slab in image.slabs(3)]), data)
    data = numbers((4, 5, 6, 2), "i2")
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=True), tmp_path / name)
    np.testing.assert_array_equal(np.stack(open_image(tmp_path / name, channel_axis=-1).read(np.s_[:, :, :]), -1), data)


def test_volumes_in_a_row_in_nrrd(tmp_path):
    data = numbers((3, 4, 5, 6), "u2")
    for compressed in (False, True):
        sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), tmp_path / "a.nrrd", compressed)
        source = open_source(tmp_path / "a.nrrd", volume=2)
        agree(source, data[2])
        np.testing.assert_array_equal(source.read(np.s_[2:3, :, :]), data[2, 2:3])


def test_encodings_that_simpleitk_reads_whole(tmp_path):
    """Text, bzip2 and a file for each plane."""
    data = numbers((3, 4, 5), "u2")
    text = " ".join(map(str, data.ravel()))
    header = "NRRD0004\ntype: uint16\ndimension: 3\nsizes: 5 4 3\nencoding: ascii\nspacings: 1 2 3\n\n"
    (tmp_path / "a.nrrd").write_text(header + text)
    agree(open_source(tmp_path / "a.nrrd"), data)
    assert open_source(tmp_path / "a.nrrd").spacing == (3, 2, 1)
    for z in range(3):
        (tmp_path / f"p{z}.raw").write_bytes(data[z].tobytes())
    header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 5 4 3\nElementType = MET_USHORT\n"
    (tmp_path / "a.mhd").write_text(f"{header}ElementDataFile = LIST\np0.raw\np1.raw\np2.raw\n")
    agree(open_source(tmp_path / "a.mhd"), data)


def test_units_of_nrrd(tmp_path):
    data = numbers((3, 4, 5), "u1")
    space = "space: LPS\nspace directions: (2,0,0) (0,2,0) (0,0,5)\nspace origin: (10,20,30)\n"
    header = f"NRRD0005\ntype: uint8\ndimension: 3\n{space}sizes: 5 4 3\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(f'{header}space units: "um" "um" "um"\n\n'.encode() + data.tobytes())
    source = open_source(tmp_path / "a.nrrd")
    assert source.spacing == pytest.approx((0.005, 0.002, 0.002))
    np.testing.assert_allclose(source.affine @ (0, 0, 0, 1), (-0.01, -0.02, 0.03, 1))


# TIFF


@few
@given(
    shapes,
    st.sampled_from([*DTYPES, "f2"]),
    st.sampled_from("<>"),
    st.sampled_from([{}, {"compression": "zlib"}, {"tile": (16, 32)}, {"rowsperstrip": 2}]),
    st.booleans(),
    seeds,
)
def test_tiff(tmp_path, shape, dtype, order, how, big, seed):
    data = numbers(shape, order + dtype, seed)
    tifffile.imwrite(tmp_path / "a.tif", data, byteorder=order, bigtiff=big, photometric="minisblack", **how)
    source = open_source(tmp_path / "a.tif")
    assert (source.kind, source.spacing, source.affine) == ("tiff", None, None)
    agree(source, data)


def test_tiff_of_imagej_and_ome_knows_its_spacing(tmp_path, mr_sarcoma):
    data = mr_sarcoma[0][:20]
    metadata = {"axes": "ZYX", "spacing": 3.27, "unit": "mm"}
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, resolution=(1 / 0.5, 1 / 0.75), metadata=metadata)
    source = open_source(tmp_path / "a.tif")
    assert source.spacing == pytest.approx((3.27, 0.75, 0.5))
    agree(source, data)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.75, "PhysicalSizeZ": 3270}
    metadata |= {"PhysicalSizeXUnit": "mm", "PhysicalSizeYUnit": "mm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, metadata=metadata)
    source = open_source(tmp_path / "a.ome.tif")
    assert source.spacing == pytest.approx((3.27, 0.75, 0.5))
    agree(source, data)
    # The unit is not a length, or the depth is missing: then the spacing is unknown.
    tifffile.imwrite(
        tmp_path / "b.tif", data, imagej=True, resolution=(2, 2), metadata={"axes": "ZYX", "unit": "pixel"}
    )
    assert open_source(tmp_path / "b.tif").spacing is None


def test_channels_and_times_of_tiff(tmp_path):
    data = numbers((2, 4, 3, 5, 6), "u1")
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZCYX"})
    refused(tmp_path / "a.tif", "2 along t and 3 along c")
    image = open_image(tmp_path / "a.tif", channel_axis="c", volume=1)
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:4, :, 2:])), data[1].swapaxes(0, 1)[:, 1:4, :, 2:])
    colours = numbers((4, 5, 6, 3), "u1")
    tifffile.imwrite(tmp_path / "b.tif", colours, photometric="rgb")
    assert open_image(tmp_path / "b.tif").channels == 3
    np.testing.assert_array_equal(np.stack(open_image(tmp_path / "b.tif").read(np.s_[:, :, :]), -1), colours)
    with pytest.raises(ValueError, match="has z as its axis 0, which cannot be that of channels"):
        open_image(tmp_path / "b.tif", channel_axis="z")


def test_pages_that_were_written_one_by_one(tmp_path):
    data = numbers((5, 6, 7), "u2")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane in data:
            writer.write(plane, photometric="minisblack")
    agree(open_source(tmp_path / "a.tif"), data)


def test_a_folder_of_planes(tmp_path):
    """In the order of their numbers: 10 comes after 9."""
    folder, data = tmp_path / "planes", numbers((12, 6, 7), "u2")
    folder.mkdir()
    for z, plane in enumerate(data):
        tifffile.imwrite(folder / f"plane{z}.tif", plane, compression="zlib" if z % 2 else None)
    (folder / "notes.txt").write_text("scanned twice")
    source = open_source(folder)
    assert (source.name, source.kind) == ("planes", "tiff")
    agree(source, data, 5)
    state = source.identity
    tifffile.imwrite(folder / "plane3.tif", data[3] + 1)
    assert source.reopened().identity != state
    tifffile.imwrite(folder / "plane3.tif", data[3, 1:])
    refused(folder, "TIFFs of different sizes or types, plane0.tif and plane3.tif")
    with pytest.raises(ValueError, match=r"plane3.tif has changed since it was opened"):
        source.read(np.s_[3:4, :, :])
    for z in range(12):
        tifffile.imwrite(folder / f"plane{z}.tif", data, photometric="minisblack")
    refused(folder, "holds 12 TIFFs that are stacks of their own")


def test_a_missing_number_among_planes(tmp_path):
    plane = numbers((6, 7), "u1")
    for number in (2, 4, 6, 8):
        tifffile.imwrite(tmp_path / f"scan1_z{number:03}.tif", plane)
    assert open_source(tmp_path).shape == (4, 6, 7)
    tifffile.imwrite(tmp_path / "scan1_z014.tif", plane)
    refused(tmp_path, r"lacks a plane between scan1_z008\.tif and scan1_z014\.tif, for the other numbers are 2 apart")


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["z0_c0.tif", "z0_c1.tif", "z1_c0.tif", "z1_c1.tif"], "z0_c1.tif and z1_c0.tif"),
        (["ct_1.tif", "ct_2.tif", "mr_1.tif"], "ct_2.tif and mr_1.tif"),
        (["s1.tif", "s2.tif", "mask.tif"], "mask.tif and s1.tif"),
        (["s1.tif", "s1.tiff", "s2.tif"], "s1.tif and s1.tiff"),
        (["z1_c1.tif", "z1_c2.tif", "z2_c2.tif"], "z1_c1.tif and z1_c2.tif"),
        (["a.tif", "b.tif"], None),
        (["20200101_s1.tif", "20200101_s2.tif", "20200102_s4.tif"], None),
    ],
)
def test_numbers_that_do_not_order_planes(tmp_path, names, pair):
    for n, name in enumerate(names):
        tifffile.imwrite(tmp_path / name, np.full((6, 7), n, "u1"))
    if pair is None:
        np.testing.assert_array_equal(open_source(tmp_path).read(np.s_[:, 0:1, 0:1]).ravel(), range(len(names)))
    else:
        refused(tmp_path, f"holds {pair}, whose numbers do not say which plane is next")


def test_several_images_in_a_tiff(tmp_path):
    one, other = numbers((5, 16, 16), "u1"), numbers((7, 20, 22), "u2", 1)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(one, photometric="minisblack", metadata={"axes": "ZYX", "PhysicalSizeX": 1, "Name": "cells"})
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.75, "PhysicalSizeZ": 2}
        writer.write(other, photometric="minisblack", metadata={"axes": "ZYX", "Name": "dish/2:b", **sizes})
    listed = r"2 images: 0 'cells' \(5 x 16 x 16\), 1 'dish/2:b' \(7 x 20 x 22\)"
    refused(tmp_path / "a.ome.tif", rf"holds {listed}; pass {tmp_path}/a\.ome\.tif:0 for the first")
    for missing in ("2", "", "Cells", "-1", "99999999999999999999"):
        refused(f"{tmp_path}/a.ome.tif:{missing}", f"has no image '{missing}': it holds {listed}")
    for first in ("0", "cells"):
        agree(open_source(f"{tmp_path}/a.ome.tif:{first}"), one)
    agree(open_source(f"{tmp_path}/a.ome.tif:dish/2:b"), other)
    source = open_source(f"{tmp_path}/a.ome.tif:1")
    agree(source, other)
    assert source.spacing == pytest.approx((0.002, 0.00075, 0.0005))
    assert source.identity != open_source(f"{tmp_path}/a.ome.tif:0").identity
    dseeds.segment(f"{tmp_path}/a.ome.tif:1", tmp_path / "labels.zarr", step=4)
    assert dseeds.preview(tmp_path / "labels.zarr", size=64).mode == "RGBA"
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(one, photometric="minisblack")
        writer.write(other, photometric="minisblack")
    refused(tmp_path / "b.tif", "holds 2 images")
    agree(open_source(f"{tmp_path}/b.tif:1"), other)
    refused(f"{tmp_path}/missing.tif:1", "missing.tif does not exist", error=FileNotFoundError)
    nibabel.save(nibabel.Nifti1Image(one.T, np.eye(4)), tmp_path / "c.nii")
    refused(f"{tmp_path}/c.nii:1", r"c\.nii is none of TIFF, HDF5 and OME-Zarr, .* leave out :1")


def test_images_of_one_name_are_chosen_by_their_numbers(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for number in range(2):
            writer.write(numbers((5, 6, 7 + number), "u1"), photometric="minisblack", metadata={"Name": "a"})
    refused(f"{tmp_path}/a.ome.tif:a", r"has several images of the name 'a' \(2 images: .*: pass a number")


def test_a_plane_with_a_second_image(tmp_path):
    for z in range(3):
        with tifffile.TiffWriter(tmp_path / f"{z}.tif") as writer:
            for size in (16, 4):
                writer.write(numbers((size, size), "u1"), photometric="minisblack")
    refused(tmp_path, r"0\.tif holds 2 images, and in a folder every TIFF is one plane")


@pytest.mark.parametrize("codec", ["lzw", "zstd", "jpeg2000", "packbits", "lzma"])
def test_compressions_of_tiff(tmp_path, monkeypatch, codec):
    data = numbers((5, 16, 16), "u1")
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", compression=codec)
    agree(open_source(tmp_path / "a.tif"), data)
    (tmp_path / "planes").mkdir()
    for z in range(2):
        tifffile.imwrite(tmp_path / f"planes/{z}.tif", data[z], compression=codec)
    agree(open_source(tmp_path / "planes"), data[:2])


@pytest.mark.parametrize("codec", ["lzw", "jpeg"])
def test_a_missing_codec_is_named(tmp_path, monkeypatch, codec):
    tifffile.imwrite(tmp_path / "a.tif", numbers((5, 16, 16), "u1"), photometric="minisblack", compression=codec)

    def missing(self, key):
        raise KeyError(f"{key!r} requires the 'imagecodecs' package")

    monkeypatch.setattr(type(tifffile.TIFF.DECOMPRESSORS), "__getitem__", missing)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    message = rf"compressed with {codec.upper()}, needs one more package: pip install 'dseeds\[formats\]'"
    assert "damaged" not in str(refused(tmp_path / "a.tif", message))


def test_an_ome_tiff_whose_metadata_are_elsewhere(tmp_path):
    data = numbers((5, 16, 17), "u1")
    schema = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
    binary = '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:2"/>'
    xml = f'<?xml version="1.0"?><OME {schema} UUID="urn:uuid:1">{binary}</OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", data, photometric="minisblack", description=xml, metadata=None)
    agree(open_source(tmp_path / "a.ome.tif"), data)
    assert open_source(tmp_path / "a.ome.tif").spacing is None
    pixels = (
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="17" SizeY="16" SizeZ="5" SizeC="{}" '
        'SizeT="1" PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeZ="2"/>'
    )
    companion = f'<OME {schema}><Image ID="Image:0">{pixels}</Image></OME>'
    (tmp_path / "a.companion.ome").write_text(companion.format(1))
    assert open_source(tmp_path / "a.ome.tif").spacing == pytest.approx((0.002, 0.001, 0.001))
    (tmp_path / "a.companion.ome").write_text(companion.format(5))
    refused(tmp_path / "a.ome.tif", "its planes belong to several volumes: convert the data set")


@pytest.mark.parametrize(("unit", "mm"), [("microns", 1e-3), ("micrometers", 1e-3), ("nm", 1e-6), ("inches", 25.4)])
def test_units_of_imagej(tmp_path, unit, mm):
    metadata = {"axes": "ZYX", "spacing": 3.0, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", numbers((5, 16, 16), "u2"), imagej=True, resolution=(2, 4), metadata=metadata)
    assert open_source(tmp_path / "a.tif").spacing == pytest.approx((3 * mm, 0.25 * mm, 0.5 * mm))


def test_ome_tiff_in_several_files(tmp_path):
    data = numbers((4, 6, 7), "u2")
    names = ("a.ome.tif", "b.ome.tif")
    # tifffile cannot write an image into several files, so its description is written here.
    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % 2}" PlaneCount="1"><UUID FileName="{names[z // 2]}">urn:uuid:{z // 2}'
        f"</UUID></TiffData>"
        for z in range(4)
    )
    for number, name in enumerate(names):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{number}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            f'SizeX="7" SizeY="6" SizeZ="4" SizeC="1" SizeT="1" PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeZ="2">'
            f"{parts}</Pixels></Image></OME>"
        )
        half = data[2 * number : 2 * number + 2]
        tifffile.imwrite(tmp_path / name, half, photometric="minisblack", metadata=None, description=xml)
    source = open_source(tmp_path / names[0])
    agree(source, data)
    assert source.spacing == pytest.approx((0.002, 0.001, 0.001))
    assert len(source.files) == 2


# HDF5


@few
@given(shapes, st.sampled_from([*DTYPES, "f2"]), st.sampled_from("<>"), st.booleans(), seeds)
def test_hdf5(tmp_path, shape, dtype, order, chunked, seed):
    data = numbers(shape, order + dtype, seed)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("volumes/raw", data=data, compression="gzip" if chunked else None)
        made.attrs["element_size_um"] = (2000.0, 500, 250)
        file["volumes/name"] = "a mouse"
        file["volumes/table"] = np.zeros((3, 2))
    for name in ("a.h5", "a.h5:/volumes/raw", "a.h5:volumes/raw"):
        source = open_source(tmp_path / name)
        assert (source.kind, source.name, source.spacing) == ("hdf5", "a.h5", (2, 0.5, 0.25))
        agree(source, data)


def test_datasets_of_hdf5_are_listed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"], file["b/two"] = np.zeros((4, 5, 6), "u1"), np.ones((4, 5, 6), "u1")
    listed = r"2 datasets: /b/two \(4 x 5 x 6\), /one \(4 x 5 x 6\)"
    refused(tmp_path / "a.h5", rf"holds {listed}; pass {tmp_path}/a.h5:/b/two for the first")
    refused(f"{tmp_path}/a.h5:three", r"has no dataset 'three': it holds 2 datasets")
    refused(f"{tmp_path}/a.h5:b", r"has no dataset 'b'")
    assert open_source(f"{tmp_path}/a.h5:one").read(np.s_[:, :, :]).max() == 0
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["list"], file["words"] = np.zeros(4), np.array([[b"a", b"b"]])
    refused(tmp_path / "b.h5", "holds no dataset of numbers with two axes")
    with pytest.raises(FileNotFoundError, match=r"c\.h5 does not exist"):
        open_source(f"{tmp_path}/c.h5:one")


@pytest.mark.parametrize("name", ["a.nc", "a.mat", "a.data"])
def test_hdf5_with_the_ending_of_another_program(tmp_path, name):
    data = numbers((4, 5, 6), "u2")
    with h5py.File(tmp_path / name, "w", userblock_size=512 if name == "a.mat" else 0) as file:
        file["a"] = data
        file["b"] = data[::-1]
    listed = refused(tmp_path / name, "holds 2 datasets")
    assert f"pass {tmp_path / name}:/a for the first" in str(listed)
    if name != "a.data":
        agree(open_source(f"{tmp_path / name}:/b"), data[::-1])


# Imaris: attributes are arrays of letters, and arrays are filled up to whole chunks.


def write_imaris(path, data, edges=((10, 17), (-20, -17), (30, 40)), unit="um"):
    """Write voxels (t, c, z, y, x) as Imaris does, with the edges of the image along x, y and z."""

    def note(group, **texts):
        for key, text in texts.items():
            group.attrs[key] = np.frombuffer(str(text).encode(), "S1")

    with h5py.File(path, "w") as file:
        for level, (t, c) in itertools.product(range(2), np.ndindex(data.shape[:2])):
            group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}")
            note(group, **{f"ImageSize{axis}": n for axis, n in zip("ZYX", data.shape[2:], strict=True)})
            full = np.pad(data[t, c], [(0, -n % 4) for n in data.shape[2:]], constant_values=99)
            group.create_dataset("Data", data=full[:: level + 1], chunks=(2, 4, 4), compression="gzip")
        space = file.create_group("DataSetInfo/Image")
        note(space, Unit=unit, **{f"ExtMin{n}": low for n, (low, _) in enumerate(edges)})
        note(space, **{f"ExtMax{n}": high for n, (_, high) in enumerate(edges)})


def test_imaris(tmp_path):
    path, data = tmp_path / "a.ims", numbers((2, 3, 5, 6, 7), "u2")
    write_imaris(path, data[:1, :1])
    source = open_source(path)
    agree(source, data[0, 0])
    assert source.spacing == pytest.approx((0.002, 0.0005, 0.001))
    # The centre of the first voxel.
    np.testing.assert_allclose(source.affine[:3, 3], [0.0105, -0.01975, 0.031])
    dseeds.import_volume(path, tmp_path / "a.zarr")
    dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "a.nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii.gz").affine, source.affine, rtol=1e-6)
    write_imaris(path, data[:1])
    image = open_image(path, channel_axis="c")
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:4, :, 2:5])), data[0, :, 1:4, :, 2:5])
    with pytest.raises(ValueError, match="holds 3 channels: pass channel_axis='c'"):
        open_image(path)
    write_imaris(path, data[:, :1], unit="mm")
    agree(open_source(path, volume=1), data[1, 0])
    assert open_source(path, volume=1).spacing == pytest.approx((2, 0.5, 1))
    with h5py.File(path, "r+") as file:
        del file["DataSet/ResolutionLevel 0/TimePoint 1/Channel 0"]
        del file["DataSetInfo/Image"].attrs["ExtMax1"]
    source = open_source(path, volume=1)
    assert source.spacing is source.affine is None
    with pytest.raises(ValueError, match=r"a\.ims cannot be read"):
        source.read(np.s_[:, :, :])


def test_known_formats_that_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.zeros(3), two=np.zeros(3))
    refused(
        tmp_path / "a.npz", r"an archive of NumPy's arrays \(one, two\), which is not read: load it with numpy\.load"
    )
    for name, advice in (("a.zip", "unpack it"), ("b.npz", "save the array"), ("a.czi", "convert it to OME-Zarr")):
        (tmp_path / name).write_bytes(b"nothing")
        refused(tmp_path / name, advice)
    for name, message in (("attributes.json", "N5"), ("info", "precomputed format"), ("1.png", "folder of pictures")):
        folder = tmp_path / message
        folder.mkdir()
        (folder / name).write_bytes(b"{}")
        refused(folder, rf"is a {message}|is a folder of .*{message}, which is not read: ")


def test_long_chunks_are_read_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (4, 600, 600), "u1", chunks=(1, 600, 600))
        file.create_dataset("b", (4, 600, 600), "u1", chunks=(4, 64, 64))
    assert not open_source(f"{tmp_path}/a.h5:a").readable_by_workers
    assert open_source(f"{tmp_path}/a.h5:b").readable_by_workers


@pytest.mark.skipif(sys.platform != "linux", reason="HDF5 locks files as Linux does it")
def test_a_file_that_another_program_writes(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.zeros((3, 4, 5))
    code = f"import h5py, sys; f = h5py.File({str(tmp_path / 'a.h5')!r}, 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "damaged" not in str(refused(tmp_path / "a.h5", "is open in another program, which has locked it"))
        other.stdin.close()
    assert open_source(tmp_path / "a.h5").shape == (3, 4, 5)


# All of them


def written(folder, data, name):
    """Write a volume in a format, by its own library."""
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, data)
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=data, chunks=(2, 4, 4), compression="gzip")
    elif name.endswith(".tif"):
        tifffile.imwrite(path, data, photometric="minisblack", compression="zlib" if "z" in name else None)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(data), path, "z" in name)
    return path


NAMES = ["a.npy", "a.h5", "a.tif", "az.tif", "a.nrrd", "az.nrrd", "a.mha", "az.mha"]


@pytest.mark.parametrize("name", NAMES)
def test_sources_pickle_and_are_known_by_their_files(tmp_path, name):
    data = numbers((5, 6, 7), "i2")
    source = open_source(written(tmp_path, data, name))
    copy = pickle.loads(pickle.dumps(source))
    agree(copy, data, 3)
    assert copy.identity == source.identity == source.reopened().identity
    assert json.loads(json.dumps(source.identity)) == source.identity
    written(tmp_path, numbers((5, 6, 9), "i2"), name)
    assert source.reopened().identity != source.identity


@pytest.mark.parametrize("name", NAMES)
def test_plans_and_masks_take_them(tmp_path, name):
    path = written(tmp_path, np.clip(numbers((20, 24, 28), "u1"), 1, 9), name)
    assert describe(path)["shape"] == [20, 24, 28]
    assert dseeds.plan(path, tmp_path / "labels.zarr", step=8).supervoxels == 3 * 3 * 4
    assert open_mask(path, open_image(path)).shape == (20, 24, 28)


@pytest.mark.parametrize("name", NAMES)
@settings(few, max_examples=30)
@given(st.data())
def test_damaged_files_are_refused_in_one_sentence_or_read(tmp_path, name, data):
    path = written(tmp_path, numbers((5, 6, 7), "i2"), name)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # More often in the header.
        places = st.integers(0, len(content) - 1) | st.integers(0, min(len(content), 400) - 1)
        for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
            content[place] = value
    path.write_bytes(content)
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = open_source(path)
            if np.prod(source.shape) < 1 << 16:
                for _, slab in source.slabs(2):
                    assert slab.shape[1:] == source.shape[1:]
                source.read(tuple(slice(0, min(n, 2)) for n in source.shape))
        except (ValueError, FileNotFoundError, MemoryError) as error:
            message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files_are_never_read_as_black(tmp_path, name):
    path = written(tmp_path, np.full((5, 60, 70), 7, "i2"), name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=r"damaged|incomplete"):
        list(open_source(path).slabs(2))


def test_a_checksum_that_is_wrong(tmp_path):
    path = written(tmp_path, numbers((5, 60, 70), "u1"), "az.nrrd")
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(ValueError, match="cannot be read"):
        list(open_source(path).slabs(2))


@pytest.mark.parametrize(
    ("name", "package"), [("a.tif", "tifffile"), ("a.h5", "h5py"), ("a.nrrd", "SimpleITK"), ("a.mha", "SimpleITK")]
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, name, package):
    path = written(tmp_path, numbers((5, 6, 7), "i2"), name)
    monkeypatch.setitem(sys.modules, package, None)
    refused(path, r"needs one more package: pip install 'dseeds\[formats\]'")
    assert cli.main(["info", str(path)]) == 1
    assert "pip install 'dseeds[formats]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.tif", "a.nrrd", "a.mha"])
def test_nonsense_and_files_without_a_volume(tmp_path, name):
    (tmp_path / name).write_bytes(b"not at all")
    refused(tmp_path / name, str(tmp_path / name))
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, str(tmp_path / name))
    if name == "a.npy":
        written(tmp_path, numbers((6,), "i2"), name)
        refused(tmp_path / name, "three axes")


def test_files_elsewhere(tmp_path):
    refused("https://example.org/a.tif", "is not on this machine")
    refused("https://example.org/a.nii.gz", "is not on this machine")


def test_a_real_series_of_dicom_through_metaimage(tmp_path):
    """Both formats have the same affine."""
    if not (folder := DATA / "ct_dicom").is_dir():
        pytest.skip(f"the real volume {folder} is missing")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), tmp_path / "a.mha")
    dicom, meta = open_source(folder), open_source(tmp_path / "a.mha")
    np.testing.assert_allclose(meta.affine, dicom.affine, atol=1e-6)
    np.testing.assert_array_equal(meta.read(np.s_[3:5, :, :]), dicom.read(np.s_[3:5, :, :]))
