"""Absurd and hostile files: gigantic headers, programs in metadata, paths that leave their group."""

import gzip
import pickle
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from nibabel.nifti1 import Nifti1Header
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from dseeds import cli
from dseeds.convert.describe import describe
from dseeds.io import open_source
from tests.support import dicom_files
from tests.support.mutants import (
    assert_sentence,
    change,
    sound_array,
    sound_image,
    watched,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does it")


def rewrite(path, **fields):
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw[:348], Nifti1Header.template_dtype.newbyteorder("<")).copy()
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.tobytes() + raw[348:])


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_header_that_promises_the_earth(tmp_path, ending):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5), "u1"), np.eye(4)), path)
    rewrite(path, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    if ending == "nii.gz":
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    with (
        watched(),
        pytest.raises(ValueError, match=r"a\.nii.* is incomplete: its header promises 35181150962015 bytes"),
    ):
        open_source(path)


def test_a_high_gzip_ratio_is_accepted(tmp_path):
    data = np.zeros((300, 300, 300), "u1")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    raw = gzip.compress(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()), 9)
    (tmp_path / "a.nii.gz").write_bytes(raw)
    assert data.nbytes > 900 * len(raw)
    assert open_source(tmp_path / "a.nii.gz").shape == (300, 300, 300)


def test_the_first_volume_of_a_series_that_was_cut_short(tmp_path):
    path = tmp_path / "a.nii"
    data = np.random.default_rng(0).integers(0, 100, (7, 6, 5, 3), "u1")
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(open_source(path, volume=1).read((slice(None),) * 3), data[..., 1].T)
    with pytest.raises(ValueError, match="is incomplete"):
        open_source(path, volume=2)


def test_values_that_overflow_in_scaling_are_infinite(tmp_path):
    path = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(np.full((7, 6, 5), 1e300), np.eye(4))
    nibabel.save(image, path)
    rewrite(path, scl_slope=1e30, scl_inter=-np.float32(1e30))
    assert np.isposinf(open_source(path).read((slice(None),) * 3)).all()


def grid(document):
    return document["chunk_grid"]["configuration"]


ODD = {
    "no codec of that name": ({}, lambda d: d["codecs"].append({"name": "nope"}), "Unknown codec: 'nope'"),
    "a storage transformer": ({}, lambda d: d.update(storage_transformers=[{"name": "nope"}]), "storage transformers"),
    "what must be understood": ({}, lambda d: d.update(nope={"must_understand": True}), "extra fields"),
    "chunks of nothing": ({}, lambda d: grid(d).update(chunk_shape=[0, 4, 4]), "chunk"),
    "huge chunks": ({}, lambda d: grid(d).update(chunk_shape=[2**20] * 3), "cannot be read from voxel"),
    "huge numbers of chunks": ({}, lambda d: d.update(shape=[2**50] * 3), None),
    "more voxels than zarr can number": ({}, lambda d: d.update(shape=[6, 2**60, 8]), "longer than 9007199254740992"),
    "huge shards": (
        {"shards": (6, 8, 8)},
        lambda d: (d.update(shape=[2**40] * 3), grid(d).update(chunk_shape=[3 * 2**38, 2**40, 2**40])),
        "cannot be read from voxel",
    ),
    "chunks that do not divide shards": (
        {"shards": (6, 8, 8)},
        lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[5, 5, 5]),
        "divisible",
    ),
    "an object type": ({}, lambda d: d.update(data_type="object"), "No Zarr data type"),
    "a fill value that does not fit": ({}, lambda d: d.update(fill_value=2**40), "cannot be opened as Zarr"),
    "a separator that climbs": (
        {},
        lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/../../"),
        "separator",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_zarr(tmp_path, name):
    options, edit, message = ODD[name]
    sound_array(tmp_path / "a.zarr", 3, **options)
    change(tmp_path / "a.zarr", "zarr.json", edit)
    with watched():
        if message is None:
            assert open_source(tmp_path / "a.zarr").read((slice(0, 2),) * 3).shape == (2, 2, 2)
            return
        with pytest.raises(ValueError, match=message) as caught:
            open_source(tmp_path / "a.zarr").read((slice(0, 2),) * 3)
    assert_sentence(str(caught.value))


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dtype", ["<i2", "|u1", ">f4", "<f8", "|b1", "<c8", "|S4", "<U4", "|V4", "|O", [["a", "<i2"]]])
@pytest.mark.parametrize(
    "coded",
    [
        {"filters": [{"id": "pickle"}], "compressor": None},
        {"filters": None, "compressor": {"id": "pickle"}},
        {"filters": [{"id": "vlen-utf8"}, {"id": "pickle"}], "compressor": None},
        {"filters": [{"id": "shuffle"}], "compressor": {"id": "pickle"}},
    ],
)
@pytest.mark.parametrize("ome", [False, True])
def test_no_program_in_a_file_is_run(tmp_path, dtype, coded, ome):
    path, trap = tmp_path / "a.zarr", tmp_path / "sprung"
    payload = pickle.dumps(Payload(trap))
    pickle.loads(payload)
    assert trap.exists(), "the trap works"
    trap.unlink()
    if ome:
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.attrs["multiscales"] = [{"axes": list("zyx"), "datasets": [{"path": "0"}]}]
    array = path / "0" if ome else path
    sound_array(array, 2)
    change(array, ".zarray", lambda d: d.update(coded, dtype=dtype, fill_value=None))
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.zarr") as caught:
        describe(path)
    assert_sentence(str(caught.value))
    with pytest.raises(ValueError, match=r"a\.zarr"):
        open_source(path).read((slice(None),) * 3)
    assert not trap.exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "way", ["../other", "0/../../other", "{folder}/other", "/other", "\\other", "..\\other", "C:/a"]
)
def test_ome_paths_stay_in_their_group(tmp_path, zarr_format, way):
    sound_image(tmp_path / "a.zarr", zarr_format)
    sound_array(tmp_path / "other", zarr_format)
    name = ".zattrs" if zarr_format == 2 else "zarr.json"

    def lead(document):
        ome = document if zarr_format == 2 else document["attributes"]["ome"]
        ome["multiscales"][0]["datasets"][0]["path"] = way.format(folder=tmp_path)

    change(tmp_path / "a.zarr", name, lead)
    with pytest.raises(ValueError, match="which would lie outside of it") as caught:
        open_source(tmp_path / "a.zarr")
    assert_sentence(str(caught.value))


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    "elements", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 2**31 - 1}, {"Rows": 65535}]
)
def test_a_dicom_header_that_promises_the_earth(tmp_path, elements, syntax):
    voxels = np.random.default_rng(0).integers(0, 9, (3, 64, 64), "u2")
    dataset = dicom_files.new_enhanced(voxels, [dicom_files.groups_of(z) for z in range(3)])
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    for name, value in elements.items():
        setattr(dataset, name, value)
    path = dicom_files.save(dataset, tmp_path / "a.dcm")
    with watched(), pytest.raises(ValueError, match=r"a\.dcm (cannot be read|is incomplete)") as caught:
        open_source(path).read((slice(None),) * 3)
    assert_sentence(str(caught.value))


def test_lengths_beyond_the_end_of_dicom(tmp_path):
    # An element of 4 GiB before the voxels.
    dataset = dicom_files.new_slice(np.zeros((6, 7), "u2"), 0)
    dataset.add_new((0x0029, 0x1010), "OB", b"0123456789")
    path = dicom_files.save(dataset, tmp_path / "a.dcm")
    data = path.read_bytes()
    at = data.index(b"0123456789")
    path.write_bytes(data[: at - 4] + b"\xf0\xff\xff\xff" + data[at:])
    with watched(), pytest.raises(ValueError, match=r"a\.dcm cannot be read as DICOM") as caught:
        open_source(path)
    assert_sentence(str(caught.value))


def test_links_are_followed(tmp_path):
    sound_image(tmp_path / "a.zarr", 3)
    (tmp_path / "a.zarr" / "0").rename(tmp_path / "elsewhere")
    (tmp_path / "a.zarr" / "0").symlink_to(tmp_path / "elsewhere")
    assert open_source(tmp_path / "a.zarr", volume=1).shape == (6, 7, 8)


def test_changed_attributes(tmp_path, capsys):
    sound_image(tmp_path / "a.zarr", 3)
    for noted in (
        *({"phantom": [1]}, {"phantom": None}, {"parameters": 3}, {"parameters": None}, {}, {"source": [5]}),
        {"parameters": {"windows": 3, "asked": {"spacing": "wide"}}},
    ):
        zarr.open_group(tmp_path / "a.zarr").attrs["dseeds"] = noted
        assert describe(tmp_path / "a.zarr", volume=0)["shape"] == [6, 7, 8]
        assert cli.main(["info", str(tmp_path / "a.zarr"), "--volume", "0"]) == 0
        assert "6 x 7 x 8" in capsys.readouterr().out


def test_the_checksum_of_mgz_counts_too(tmp_path):
    path = tmp_path / "a.mgz"
    nibabel.save(nibabel.MGHImage(np.arange(210, dtype="i4").reshape(7, 6, 5), np.eye(4)), path)
    assert len(list(open_source(path).slabs(2))) == 3
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="a checksum does not match"):
        list(open_source(path).slabs(2))
