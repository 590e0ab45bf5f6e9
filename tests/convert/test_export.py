"""Export of volumes to other formats, and both commands from end to end."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dseeds
from dseeds.io import open_source
from tests.support.volumes_in_files import (
    DTYPES,
    FILES,
    few,
    nifti,
    numbers,
    oblique,
    read_by_library,
    seeds,
    shapes,
)


@pytest.mark.parametrize("ending", [*FILES, ".ome.tif"])
@settings(few, max_examples=6)
@given(shapes, st.sampled_from(DTYPES), st.sampled_from("<>"), st.booleans(), seeds)
def test_other_programs_read_an_export(tmp_path, ending, shape, dtype, order, labelled, seed):
    if ".tif" in ending and dtype in ("i8", "u8"):
        dtype = "u4"
    data, affine = numbers(shape, order + dtype, seed), oblique(seed, seed % 2 == 0)
    labelled = labelled and data.dtype.kind in "iu"
    if labelled:
        data = (numbers(shape, "u1", seed) % 100).astype(data.dtype)
    path, target = nifti(tmp_path / "source.nii", data, affine), tmp_path / f"a{ending}"
    target.unlink(missing_ok=True)
    report = dseeds.export_volume(path, target, labels=labelled)
    voxels, spacing = read_by_library(target)
    np.testing.assert_array_equal(voxels.reshape(shape), data)
    assert voxels.dtype.newbyteorder("=") == report.dtype
    assert spacing is None or spacing == pytest.approx((2.5, 0.75, 0.5), rel=1e-4)
    if not labelled:
        assert report.dtype == data.dtype.newbyteorder("=")
    else:
        assert report.dtype == "uint8"
    if ".tif" in ending and shape[0] == 1:
        return  # a single page is no volume
    source = open_source(target)
    np.testing.assert_array_equal(source.read(np.s_[:, :, :]), data)
    if source.kind in ("nrrd", "metaimage"):
        image = sitk.ReadImage(target)
        for xyz in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (1.5, 2, 3)]:
            place = np.array(image.TransformContinuousIndexToPhysicalPoint(xyz)) * (-1, -1, 1)
            np.testing.assert_allclose(nibabel.load(path).affine @ (*xyz, 1), (*place, 1), atol=1e-4)
        np.testing.assert_allclose(source.affine, nibabel.load(path).affine, atol=1e-6)


@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".nrrd", ".mha", ".h5", ".npy"])
def test_channels_are_exported(tmp_path, ending):
    data = numbers((3, 4, 5, 6), "u1")
    dseeds.import_volume(data, tmp_path / "a.zarr", channel_axis=0, spacing=(2.5, 0.75, 0.5))
    report = dseeds.export_volume(tmp_path / "a.zarr", tmp_path / f"a{ending}")
    assert report.channels == 3
    voxels, spacing = read_by_library(tmp_path / f"a{ending}")
    if ending == ".ome.tif":
        voxels = np.moveaxis(voxels, 1, 0)
    np.testing.assert_array_equal(voxels, data)
    assert spacing is None or spacing == pytest.approx((2.5, 0.75, 0.5), rel=1e-4)


def test_nifti_has_one_channel(tmp_path):
    data = numbers((3, 4, 5, 6), "u1")
    with pytest.raises(ValueError, match=r"holds one channel, but the source has 3: choose one with volume="):
        dseeds.export_volume(data, tmp_path / "a.nii", channel_axis=0)
    dseeds.export_volume(data, tmp_path / "a.nii", volume=1)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "a.nii").dataobj).T, data[1])


def test_requested_types(tmp_path):
    data = np.array([[[0, 1, 300]]], "i4")
    assert dseeds.export_volume(data, tmp_path / "a.tif", dtype="uint16").dtype == "uint16"
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").ravel(), [0, 1, 300])
    with pytest.raises(ValueError, match="from 0 to 300, which uint8 does not hold"):
        dseeds.export_volume(data, tmp_path / "b.tif", dtype="uint8")
    with pytest.raises(ValueError, match="not whole numbers, which int16 does not hold"):
        dseeds.export_volume(data + 0.5, tmp_path / "b.tif", dtype="int16")
    with pytest.raises(ValueError, match="dtype must be one of"):
        dseeds.export_volume(data, tmp_path / "b.tif", dtype="complex64")
    assert dseeds.export_volume(data.astype("f2"), tmp_path / "b.nii").dtype == "float32"
    assert dseeds.export_volume(data.astype(bool), tmp_path / "c.nii").dtype == "uint8"
    assert dseeds.export_volume(data, tmp_path / "d.nii", labels=True).dtype == "int16"
    assert dseeds.export_volume(data.astype("u8") + 2**40, tmp_path / "e.h5", labels=True).dtype == "int64"
    with pytest.raises(ValueError, match="tiff cannot store int64: name another type"):
        dseeds.export_volume(data.astype("i8"), tmp_path / "e.tif")
    with pytest.raises(ValueError, match=r"the labels are from -1 to 300, which none of uint8"):
        dseeds.export_volume(np.array([[[-1, 300]]]), tmp_path / "f.tif", labels=True)


def test_targets(tmp_path):
    data = numbers((4, 5, 6), "u1")
    for target, says in [
        ("a.jpg", r"none of the endings \.nii"),
        ("a.zarr", "dseeds import writes"),
        ("s3://bucket/a.nii", "not on this machine"),
    ]:
        with pytest.raises(ValueError, match=says):
            dseeds.export_volume(data, target if ":" in target else tmp_path / target)
    with pytest.raises(ValueError, match="format must be one of nifti, tiff"):
        dseeds.export_volume(data, tmp_path / "a.tif", format="jpeg")
    with pytest.raises(ValueError, match=r"a\.tif is the name of tiff, not of nrrd"):
        dseeds.export_volume(data, tmp_path / "a.tif", format="nrrd")
    assert dseeds.export_volume(data, tmp_path / "a.raw", format="numpy").format == "numpy"
    assert dseeds.export_volume(data, f"{tmp_path}/a.h5:/deep/er").format == "hdf5"
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["deep/er"][:], data)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.raw", tmp_path / "a.h5"] or len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("ending", FILES)
def test_an_export_replaces_only_our_output(tmp_path, ending):
    data, target = numbers((4, 5, 6), "u1"), tmp_path / f"a{ending}"
    dseeds.export_volume(data, target)
    if ending == ".npy":
        # Nothing in the file shows what wrote it.
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="not written by dseeds"):
                dseeds.export_volume(data, target, overwrite=overwrite)
        return
    with pytest.raises(FileExistsError, match="--overwrite"):
        dseeds.export_volume(data, target)
    dseeds.export_volume(data + 1, target, overwrite=True)
    np.testing.assert_array_equal(open_source(target).read(np.s_[:, :, :]), data + 1)
    for content in (b"another's", b""):
        target.write_bytes(content)
        with pytest.raises(FileExistsError, match="not written by dseeds"):
            dseeds.export_volume(data, target, overwrite=True)
        assert target.read_bytes() == content
    with pytest.raises(FileExistsError, match="is the source"):
        dseeds.export_volume(target, target, overwrite=True) if ending == ".npy" else _onto_itself(data, target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_file_with_added_datasets_is_not_replaced(tmp_path):
    data, target = numbers((4, 5, 6), "u1"), tmp_path / "a.h5"
    dseeds.export_volume(data, target)
    with h5py.File(target, "a") as file:
        file["mine"] = 1
    with pytest.raises(FileExistsError, match="not written by dseeds"):
        dseeds.export_volume(data, target, overwrite=True)
    with h5py.File(target, "a") as file:
        assert file["mine"][()] == 1
        del file["mine"]
        file.attrs["software"] = "dseeds"  # of any length, as older versions wrote it
    with pytest.raises(FileExistsError, match=r"may be of an older version of dseeds .*: remove it"):
        dseeds.export_volume(data, target, overwrite=True)


def _onto_itself(data, target):
    target.unlink()
    dseeds.export_volume(data, target)
    dseeds.export_volume(target, target, overwrite=True)


def precomputed(folder, scale=0):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "file", "path": f"{folder}/"}
    array = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": spec, "scale_index": scale}).result()
    return array.read().result().transpose(3, 2, 1, 0)


def chunk_of(folder, number, grid, chunk):
    """Read a chunk of a raw volume byte by byte, as the format's specification says, without its libraries."""
    info = json.loads((folder / "info").read_text())
    scale = info["scales"][number]
    sharding = scale["sharding"]
    bits, code, place = [max(n - 1, 0).bit_length() for n in grid], 0, 0
    for bit in range(max(bits)):
        for axis in range(3):
            if 2**bit < grid[axis]:
                code |= (chunk[axis] >> bit & 1) << place
                place += 1
    minishard = code & (1 << sharding["minishard_bits"]) - 1
    shard = code >> sharding["minishard_bits"] & (1 << sharding["shard_bits"]) - 1
    name = f"{shard:0{-(-sharding['shard_bits'] // 4)}x}" if sharding["shard_bits"] else "0"
    content = (folder / scale["key"] / f"{name}.shard").read_bytes()
    index = 16 << sharding["minishard_bits"]
    begin, end = np.frombuffer(content, "<u8", 2, 16 * minishard) + np.uint64(index)
    table = np.frombuffer(gzip.decompress(content[int(begin) : int(end)]), "<u8").reshape(3, -1)
    ids, gaps, sizes = np.cumsum(table[0]), table[1], table[2]
    [entry] = np.flatnonzero(ids == code)
    at = index + int(gaps[: entry + 1].sum() + sizes[:entry].sum())
    return np.frombuffer(gzip.decompress(content[at : at + int(sizes[entry])]), np.dtype(info["data_type"]))


def test_neuroglancer_reads_a_volume_with_all_its_resolutions(tmp_path):
    pytest.importorskip("tensorstore")
    data = numbers((20, 300, 140), "u2")
    dseeds.import_volume(data, tmp_path / "a.zarr", spacing=(2e-3, 5e-4, 5e-4))
    report = dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "a.precomputed")
    assert (report.format, report.labels) == ("precomputed", False)
    np.testing.assert_array_equal(precomputed(tmp_path / "a.precomputed")[0], data)
    coarse = zarr.open_array(tmp_path / "a.zarr/1")[:]
    np.testing.assert_array_equal(precomputed(tmp_path / "a.precomputed", 1)[0], coarse)
    info = json.loads((tmp_path / "a.precomputed/info").read_text())
    assert (info["type"], info["data_type"], info["num_channels"]) == ("image", "uint16", 1)
    full, half = info["scales"]
    assert (full["size"], half["size"]) == ([140, 300, 20], [70, 150, 20])
    assert full["resolution"] == pytest.approx([500, 500, 2000])
    assert half["resolution"] == pytest.approx([1000, 1000, 2000])
    for x, y in [(0, 0), (2, 4), (1, 3)]:
        stored = chunk_of(tmp_path / "a.precomputed", 0, (3, 5, 1), (x, y, 0))
        expected = data[:, 64 * y : 64 * y + 64, 64 * x : 64 * x + 64]
        np.testing.assert_array_equal(stored, expected.ravel())


def test_neuroglancer_reads_labels_and_channels(tmp_path):
    pytest.importorskip("tensorstore")
    data = np.random.default_rng(0).integers(0, 2**33, (70, 80, 90)).astype("u8")
    dseeds.export_volume(data, tmp_path / "a.precomputed", labels=True, memory=1 << 23)
    info = json.loads((tmp_path / "a.precomputed/info").read_text())
    assert (info["type"], info["data_type"]) == ("segmentation", "uint64")
    assert info["scales"][0]["encoding"] == "compressed_segmentation"
    np.testing.assert_array_equal(precomputed(tmp_path / "a.precomputed")[0], data)
    assert dseeds.export_volume(data % 9, tmp_path / "b.precomputed", labels=True).dtype == "uint32"
    channels = numbers((2, 20, 30, 40), "u1")
    dseeds.export_volume(channels, tmp_path / "c", format="precomputed", channel_axis=0)
    np.testing.assert_array_equal(precomputed(tmp_path / "c"), channels)


def test_only_our_precomputed_is_overwritten(tmp_path):
    pytest.importorskip("tensorstore")
    data, target = numbers((20, 30, 40), "u1"), tmp_path / "a.precomputed"
    dseeds.export_volume(data, target)
    with pytest.raises(FileExistsError, match="overwrite"):
        dseeds.export_volume(data, target)
    dseeds.export_volume(data + 1, target, overwrite=True)
    np.testing.assert_array_equal(precomputed(target)[0], data + 1)
    (target / "mesh").mkdir()
    with pytest.raises(FileExistsError, match="holds mesh, which dseeds did not write"):
        dseeds.export_volume(data, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_the_package_that_neuroglancer_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ValueError, match=r"pip install 'dseeds\[neuroglancer\]'"):
        dseeds.export_volume(numbers((4, 5, 6), "u1"), tmp_path / "a.precomputed")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path, call):
    data = numbers((20, 24, 28), "u2")
    np.save(tmp_path / "a.npy", data)
    code, out, _ = call("import", tmp_path / "a.npy", tmp_path / "a.zarr", "--spacing", "2,1,1", "--json")
    assert code == 0
    assert json.loads(out)["spacing"] == [2, 1, 1]
    code, out, _ = call("export", tmp_path / "a.zarr", tmp_path / "a.tif")
    assert (code, out.strip()) == (0, f"an image of 20 x 24 x 28 voxels, uint16, as tiff: {tmp_path}/a.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), data)
    code, out, _ = call("export", tmp_path / "a.zarr", tmp_path / "b.nrrd", "--labels", "--json", "-q")
    assert json.loads(out)["labels"] is True
    code, out, err = call("import", tmp_path / "a.npy", tmp_path / "a.zarr")
    assert (code, out) == (1, "")
    assert "--overwrite" in err
    assert call("import", tmp_path / "a.npy", tmp_path / "a.zarr", "--overwrite", "--no-pyramid", "-q")[:2] == (0, "")
    assert call("import", tmp_path / "a.npy", tmp_path / "b.zarr", "--spacing", "wide")[0] == 2
    assert not (tmp_path / "b.zarr").exists()


BIG = """
import sys, numpy as np
from dseeds.core.process import peak_memory
from dseeds import import_volume, export_volume
from dseeds.cli import main
import dseeds.convert.import_volume, dseeds.convert.export_volume, tifffile, nibabel, SimpleITK
warm = np.zeros((8, 9, 9), "u2")
for name in ("w.zarr", "w.tif", "w.nii.gz"):
    (import_volume if "zarr" in name else export_volume)(warm, name)
before = peak_memory()
import_volume(sys.argv[1], "big.zarr", memory="32MiB", threads=2, pyramid=False)
export_volume(sys.argv[1], "big.tif", memory="32MiB")
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does it")
def test_memory_is_bounded(tmp_path):
    """Conversion of a compressed file of 300 MB stays within the memory limit, plus what libraries need."""
    shape = (300, 1000, 500)
    header = "NRRD0005\ntype: uint16\ndimension: 3\nsizes: 500 1000 300\nendian: little\nencoding: gzip\n\n"
    with (tmp_path / "big.nrrd").open("wb") as file:
        file.write(header.encode())
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as stream:
            for _ in range(30):
                stream.write(bytes(10_000_000))
    command = [sys.executable, "-c", BIG, "big.nrrd"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    assert int(done.stdout) < 120 << 20
    assert zarr.open_array(tmp_path / "big.zarr/0").shape == shape
    shutil.rmtree(tmp_path)
