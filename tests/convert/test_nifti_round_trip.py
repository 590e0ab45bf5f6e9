"""From NIfTI to Zarr and back: what a header says of the voxels' position survives, also where it says it twice."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dseeds
from dseeds.convert.describe import describe
from dseeds.io import open_source
from tests.support.volumes_in_files import few, numbers, oblique, seeds

CODES = st.integers(0, 4)
SHAPE = (6, 7, 8)


def write_image(path, seed, qform_code, sform_code, *, shear=0.0, unit="mm"):
    """Write an image whose qform and sform are different rotations, in different places."""
    image = nibabel.Nifti1Image(numbers(SHAPE, "i2", seed).T, None)
    sform = oblique(seed, seed % 2 == 0)
    sform[0, 1] += shear
    image.set_qform(oblique(seed + 1, seed % 3 == 0), qform_code)
    image.set_sform(sform, sform_code)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def assert_same_place(path, original, per_mm=1.0):
    """Compare both forms of a file, and where its voxels are for nibabel and ITK, with those of the original."""
    image, reference = nibabel.load(path), nibabel.load(original)
    in_mm = np.diag([1 / per_mm] * 3 + [1.0])
    for form in ("qform", "sform"):
        matrix, code = getattr(image.header, f"get_{form}")(coded=True)
        expected, expected_code = getattr(reference.header, f"get_{form}")(coded=True)
        assert code == expected_code
        if code:
            np.testing.assert_allclose(matrix, in_mm @ expected, atol=1e-4)
    if reference.header["qform_code"] or reference.header["sform_code"]:
        np.testing.assert_allclose(image.affine, in_mm @ reference.affine, atol=1e-4)
    ours, theirs = sitk.ReadImage(path), sitk.ReadImage(original)
    for xyz in [(0, 0, 0), (7, 0, 0), (0, 6, 5)]:
        place = theirs.TransformContinuousIndexToPhysicalPoint(xyz)
        np.testing.assert_allclose(ours.TransformContinuousIndexToPhysicalPoint(xyz), place, atol=1e-3)


@settings(few, max_examples=25)
@given(seeds, CODES, CODES, st.sampled_from(["mm", "micron", "meter"]))
def test_both_forms_survive_zarr(tmp_path, seed, qform_code, sform_code, unit):
    path = write_image(tmp_path / "a.nii", seed, qform_code, sform_code, unit=unit)
    per_mm = {"mm": 1.0, "micron": 1e3, "meter": 1e-3}[unit]
    imported = dseeds.import_volume(path, tmp_path / "a.zarr", overwrite=True)
    exported = dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "b.nii", overwrite=True)
    assert_same_place(tmp_path / "b.nii", path, per_mm)
    notes = open_source(path).notes
    assert len(notes) == bool(qform_code and sform_code)
    assert imported.notes == exported.notes == notes == open_source(tmp_path / "a.zarr").notes
    dseeds.export_volume(path, tmp_path / "b.nii", overwrite=True)
    assert_same_place(tmp_path / "b.nii", path, per_mm)


@pytest.mark.parametrize(
    ("source", "target"), [("a.nii.gz", "labels.zarr"), ("a.nii.gz", "labels.nii.gz"), ("a.zarr", None)]
)
def test_labels_lie_on_their_image(tmp_path, source, target):
    path, source = write_image(tmp_path / "a.nii.gz", 5, 1, 2, shear=0.3), tmp_path / source
    if source != path:
        dseeds.import_volume(path, source)
    into = {"into_image": True} if target is None else {"target": tmp_path / target}
    report = dseeds.segment(source, step=3, **into)
    [note] = report.notes
    assert "the sform is taken" in note
    assert str(report).count("note: ") == 1
    labels = report.target
    if not labels.endswith(".nii.gz"):
        assert describe(labels)["notes"] == [note]
        dseeds.paint(labels, {1: 2.0}, tmp_path / "values.zarr", fill=0)
        for zarr_labels in (labels, tmp_path / "values.zarr"):
            dseeds.export_volume(zarr_labels, tmp_path / "exported.nii.gz", overwrite=True)
            assert_same_place(tmp_path / "exported.nii.gz", path)
    else:
        assert_same_place(labels, path)


def test_sizes_that_contradict_the_affine_survive_zarr(tmp_path):
    """ITK takes them (pixdim), and nibabel the affine: image and labels are in the same place for both."""
    path = write_image(tmp_path / "a.nii", 3, 0, 1)
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.array([1, 2, 3], "<f4").tobytes()
    path.write_bytes(raw)
    dseeds.import_volume(path, tmp_path / "a.zarr")
    report = dseeds.segment(tmp_path / "a.zarr", tmp_path / "labels.zarr", step=3)
    exported = dseeds.export_volume(tmp_path / "labels.zarr", tmp_path / "b.nii")
    assert_same_place(tmp_path / "b.nii", path)
    assert nibabel.load(tmp_path / "b.nii").header.get_zooms() == (1, 2, 3)
    assert exported.notes == report.notes == open_source(path).notes
    assert "(pixdim, 3 x 2 x 1 mm along z, y, x) contradict its affine" in report.notes[0]


def test_a_given_spacing_counts_for_both_forms(tmp_path):
    path = write_image(tmp_path / "a.nii", 3, 1, 2)
    dseeds.import_volume(path, tmp_path / "a.zarr", spacing=(3.0, 2.0, 1.0))
    dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "b.nii")
    header = nibabel.load(tmp_path / "b.nii").header
    for form in (header.get_qform(), header.get_sform()):
        np.testing.assert_allclose(np.linalg.norm(form[:3, :3], axis=0), (1.0, 2.0, 3.0), rtol=1e-5)


def test_levels_keep_both_forms(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((300, 3, 2), "u1"), None)
    for form, matrix in (("qform", np.diag([1.0, 1, 1, 1])), ("sform", np.diag([-1.0, 1, 1, 1]))):
        getattr(image, f"set_{form}")(matrix, 1)
    nibabel.save(image, tmp_path / "a.nii")
    dseeds.import_volume(tmp_path / "a.nii", tmp_path / "a.zarr")
    level = open_source(tmp_path / "a.zarr", level=1)
    np.testing.assert_array_equal(level.forms.qform[0], [2, 0, 0, 0.5])
    np.testing.assert_array_equal(level.affine[0], [-2, 0, 0, -0.5])


@pytest.mark.parametrize("damage", [{"qform_code": "1"}, {"qform": [[0]]}, {"sform_code": -1}, [], None])
def test_damaged_attributes_are_ignored(tmp_path, damage):
    dseeds.import_volume(write_image(tmp_path / "a.nii", 1, 1, 2), tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr")
    attribute = dict(group.attrs["dseeds"])
    attribute["nifti"] = {**attribute["nifti"], **damage} if isinstance(damage, dict) else damage
    group.attrs["dseeds"] = attribute
    source = open_source(tmp_path / "a.zarr")
    assert source.notes == ()
    assert source.affine is not None
    dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "b.nii")
