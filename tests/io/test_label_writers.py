"""Writers of labels: NIfTI files, and the metadata of OME-Zarr labels."""

import math

import nibabel
import numpy as np
import pytest
import zarr

from dseeds.io import ome_label_attributes, open_source, write_nifti_labels
from tests.support.sources import LABELS, NIBABEL, REAL, make_zarr, real, save_nifti, volume, whole


def in_slabs(labels, thickness=3):
    return ((z0, labels[z0 : z0 + thickness]) for z0 in range(0, len(labels), thickness))


def labels_for(image):
    shape = image.shape[2::-1]
    return (np.arange(math.prod(shape), dtype="uint32") // 5 + 1).reshape(shape)


KEPT = ("qform_code", "sform_code", "descrip", "xyzt_units", "srow_x", "srow_y", "srow_z")
KEPT += ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "name", ["example4d.nii.gz", "anatomical.nii", "example_nifti2.nii.gz", "standard.nii.gz", *REAL]
)
def test_labels_lie_where_the_image_lies(tmp_path, name, ending):
    path = real(name) if name in REAL else NIBABEL / name
    image = nibabel.load(path)
    labels = labels_for(image)
    write_nifti_labels(tmp_path / f"labels{ending}", in_slabs(labels), path, labels.shape)
    written = nibabel.load(tmp_path / f"labels{ending}")
    assert type(written) is type(image)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)
    np.testing.assert_array_equal(written.affine, image.affine)
    for field in KEPT:
        assert written.header[field] == pytest.approx(image.header[field]) or (
            written.header[field] == image.header[field]
        )
    assert written.header.get_zooms() == image.header.get_zooms()[:3]
    assert written.header.get_data_dtype() == np.dtype("<i4")
    assert written.header.get_intent()[0] == "label"
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert written.header["cal_max"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"labels{ending}"]
    np.testing.assert_array_equal(whole(open_source(tmp_path / f"labels{ending}")), labels)


@pytest.mark.parametrize("name", ["test.mgz", "minc1_1_scale.mnc"])
def test_labels_for_other_formats(tmp_path, name):
    image = nibabel.load(NIBABEL / name)
    labels = labels_for(image)
    write_nifti_labels(tmp_path / "labels.nii.gz", in_slabs(labels), image, labels.shape)
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert isinstance(written, nibabel.Nifti1Image)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)
    np.testing.assert_allclose(written.affine, image.affine, rtol=1e-6, atol=1e-6)


def test_labels_for_an_image_in_memory_and_a_pair(tmp_path):
    labels = volume(dtype="uint32")
    affine = np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    for kind in (nibabel.Nifti1Image, nibabel.Nifti1Pair, nibabel.Nifti2Image, nibabel.AnalyzeImage):
        write_nifti_labels(
            tmp_path / "labels.nii", in_slabs(labels), kind(volume().T, affine), labels.shape, overwrite=True
        )
        written = nibabel.load(tmp_path / "labels.nii")
        assert isinstance(written, nibabel.Nifti2Image if kind is nibabel.Nifti2Image else nibabel.Nifti1Image)
        assert written.header["magic"] in (b"n+1", b"n+2")
        np.testing.assert_allclose(written.affine, affine)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)


def test_the_images_own_header_stays(tmp_path):
    image = nibabel.load(NIBABEL / "example4d.nii.gz")
    image.header.set_data_offset(1024)
    before, extensions = image.header.binaryblock, len(image.header.extensions)
    labels = labels_for(image)
    write_nifti_labels(tmp_path / "labels.nii", in_slabs(labels), image, labels.shape)
    assert (image.header.binaryblock, len(image.header.extensions)) == (before, extensions)
    written = nibabel.load(tmp_path / "labels.nii")
    assert not written.header.extensions
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)


@pytest.mark.parametrize(
    ("top", "dtype"), [(None, "i4"), (2**31 - 1, "i4"), (2**31, "u4"), (2**32 - 1, "u4"), (2**32, "u8")]
)
def test_the_type_of_the_labels(tmp_path, top, dtype):
    labels = volume(dtype="uint64")
    labels[-1, -1, -1] = top or 1
    image = nibabel.Nifti1Image(volume().T, np.eye(4))
    write_nifti_labels(tmp_path / "a.nii.gz", in_slabs(labels), image, labels.shape, max_label=top)
    written = nibabel.load(tmp_path / "a.nii.gz")
    assert written.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)


def test_a_long_axis_needs_nifti_2(tmp_path):
    labels = volume((2, 2, 40000), "uint32")
    image = nibabel.Nifti2Image(labels.T, np.eye(4))
    write_nifti_labels(tmp_path / "a.nii.gz", in_slabs(labels), image, labels.shape)
    write_nifti_labels(
        tmp_path / "b.nii.gz",
        in_slabs(labels),
        nibabel.MGHImage(labels.T.astype("f4"), np.eye(4)),
        labels.shape,
    )
    for name in ("a.nii.gz", "b.nii.gz"):
        written = nibabel.load(tmp_path / name)
        assert isinstance(written, nibabel.Nifti2Image)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels.T)


def test_equal_labels_make_equal_files(tmp_path):
    image = nibabel.Nifti1Image(volume().T, np.eye(4))
    for name, labels in (("a.nii.gz", LABELS), ("b.nii.gz", np.asfortranarray(LABELS))):
        write_nifti_labels(tmp_path / name, in_slabs(labels), image, labels.shape)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    # The date in the header of gzip is 0.
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == b"\0\0\0\0"


@pytest.mark.parametrize(
    ("slabs", "message"),
    [
        (in_slabs(LABELS[:4]), "the slabs end after 4 of 5 planes"),
        ([], "the slabs end after 0 of 5 planes"),
        ([(0, LABELS[:2]), (3, LABELS[3:])], "at plane 3 does not continue .* at plane 2"),
        ([(0, LABELS), (5, LABELS[:1])], "does not continue"),
        ([(0, LABELS[:, :3])], "does not continue"),
        ([(0, LABELS - 1)], "planes 0 to 4 is not between 0 and 210"),
        ([(0, LABELS + 2**40)], "planes 0 to 4 is not between 0 and 210"),
    ],
)
def test_slabs_that_make_no_volume(tmp_path, slabs, message):
    image = nibabel.Nifti1Image(volume().T, np.eye(4))
    (tmp_path / "a.nii.gz").write_bytes(b"from an earlier run")
    with pytest.raises(ValueError, match=message):
        write_nifti_labels(tmp_path / "a.nii.gz", slabs, image, (5, 6, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == b"from an earlier run"


def test_a_failure_half_way_leaves_nothing(tmp_path):
    def broken():
        yield 0, LABELS[:2]
        assert list(tmp_path.glob(".a.nii-*.partial"))
        assert not (tmp_path / "a.nii").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_nifti_labels(tmp_path / "a.nii", broken(), nibabel.Nifti1Image(volume().T, None), (5, 6, 7))
    assert not list(tmp_path.iterdir())


def test_targets_that_are_refused(tmp_path):
    path = save_nifti(tmp_path / "image.nii.gz", volume().T)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is the image itself"):
        write_nifti_labels(path, in_slabs(LABELS), path, (5, 6, 7))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"does not end in .nii or .nii.gz"):
        write_nifti_labels(tmp_path / "labels.tif", in_slabs(LABELS), path, (5, 6, 7))
    with pytest.raises(ValueError, match="do not fit an image of shape"):
        write_nifti_labels(tmp_path / "labels.nii", in_slabs(LABELS), path, (5, 7, 6))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        write_nifti_labels(tmp_path / "nowhere" / "labels.nii", in_slabs(LABELS), path, (5, 6, 7))
    with pytest.raises(FileNotFoundError, match=r"none\.nii does not exist"):
        write_nifti_labels(tmp_path / "labels.nii", in_slabs(LABELS), tmp_path / "none.nii", (5, 6, 7))


@pytest.mark.parametrize("spacing", [(3.25, 0.5, 0.75), None])
def test_ome_label_metadata(tmp_path, spacing):
    group = zarr.open_group(tmp_path / "labels.zarr", mode="w", zarr_format=3)
    make_zarr(group.store_path / "0", volume(dtype="uint32"))
    ome = ome_label_attributes(spacing=spacing, source="ct.nii.gz")
    group.attrs["ome"] = ome
    assert (ome["version"], ome["image-label"]) == ("0.5", {"version": "0.5"})
    [image] = ome["multiscales"]
    unit = {"unit": "millimeter"} if spacing else {}
    assert image["axes"] == [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    [dataset] = image["datasets"]
    scale = list(spacing or (1, 1, 1))
    assert dataset == {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    source = open_source(tmp_path / "labels.zarr")
    assert source.spacing == spacing
    np.testing.assert_array_equal(whole(source), volume())
