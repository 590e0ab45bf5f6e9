"""Import of volumes into OME-Zarr."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dseeds
from dseeds.convert.describe import describe
from dseeds.convert.slab_reader import SlabReader
from dseeds.io import ome_image_attributes, open_image, open_source
from tests.support.volumes_in_files import DTYPES, FILES, few, listing, nifti, numbers, oblique, real, seeds, shapes


@few
@example(shape=(1, 1, 1), dtype="u1", left_handed=False, seed=15641)
@given(shape=shapes, dtype=st.sampled_from(DTYPES), left_handed=st.booleans(), seed=seeds)
def test_round_trip(tmp_path, shape, dtype, left_handed, seed):
    """NIfTI keeps its voxels, type and affine through OME-Zarr."""
    affine, data = oblique(seed, left_handed), numbers(shape, dtype, seed)
    path = nifti(tmp_path / "a.nii", data, affine)
    dseeds.import_volume(path, tmp_path / "a.zarr", overwrite=True)
    exported = dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "b.nii.gz", overwrite=True)
    before, after = nibabel.load(path), nibabel.load(tmp_path / "b.nii.gz")
    assert (exported.shape, exported.dtype, exported.labels) == (shape, np.dtype(dtype).name, False)
    np.testing.assert_array_equal(np.asarray(after.dataobj), data.T)
    assert after.get_data_dtype() == data.dtype
    np.testing.assert_array_equal(after.affine, before.affine)
    # A quaternion of float32 is less precise near half a turn, by nibabel as well.
    reference = nibabel.Nifti1Header()
    reference.set_qform(before.affine)
    np.testing.assert_allclose(after.header.get_qform(), reference.get_qform(), atol=1e-5)
    np.testing.assert_allclose(after.header.get_zooms(), before.header.get_zooms(), rtol=1e-6)


@pytest.mark.parametrize("parts", [("ct_3mm", "ct.nii.gz"), ("mr_sarcoma", "mr_t1.nii.gz")])
def test_round_trip_of_real_volumes(tmp_path, parts):
    path = real(*parts)
    imported = dseeds.import_volume(path, tmp_path / "a.zarr")
    dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "a.nii.gz")
    before, after = nibabel.load(path), nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_array_equal(after.affine, before.affine)
    assert imported.spacing == open_source(path).spacing == open_source(tmp_path / "a.zarr").spacing
    assert describe(tmp_path / "a.zarr")["kind"] == "image"


def test_a_dicom_series_is_imported_with_a_pyramid(tmp_path):
    folder = real("ct_dicom")
    imported = dseeds.import_volume(folder, tmp_path / "a.zarr")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    voxels = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(group["0"][:], voxels)
    assert (group["0"].chunks, imported.levels) == ((20, 64, 64), 2)
    means = voxels.reshape(20, 256, 2, 256, 2).mean((2, 4))
    assert np.abs(group["1"][:] - means).max() <= 0.5
    # The position of a voxel, by SimpleITK and by the group's attributes.
    affine = np.array(group.attrs["dseeds"]["affine"])
    place = np.array(image.TransformIndexToPhysicalPoint((100, 200, 7))) * (-1, -1, 1)
    np.testing.assert_allclose(affine @ (100, 200, 7, 1), (*place, 1), atol=1e-6)
    coarse = open_source(tmp_path / "a.zarr", level=1)
    np.testing.assert_allclose(coarse.affine @ (0, 0, 0, 1), affine @ (0.5, 0.5, 0, 1), atol=1e-6)


def test_other_programs_read_an_import(tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models.v05 import Image

    affine = np.diag([0.5, 0.75, 2.0, 1])
    affine[:3, 3] = (10, 20, 30)
    data = [numbers((20, 24, 28), "u2", seed) for seed in (1, 2)]
    paths = [nifti(tmp_path / f"{n}.nii.gz", one, affine) for n, one in enumerate(data)]
    dseeds.import_volume(paths, tmp_path / "a.zarr")
    image = Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    [multiscale] = image.ome_attributes.multiscales
    assert [(axis.name, axis.type) for axis in multiscale.axes] == [("c", "channel"), *[(a, "space") for a in "zyx"]]
    scale, translation = multiscale.datasets[0].coordinateTransformations
    assert tuple(scale.scale) == (1, 2, 0.75, 0.5)
    assert tuple(translation.translation) == (0, 30, 20, 10)
    [node] = list(Reader(parse_url(tmp_path / "a.zarr"))())
    np.testing.assert_array_equal(np.asarray(node.data[0]), np.stack(data))


def test_channels_of_all_kinds(tmp_path):
    data = numbers((3, 4, 5, 6), "u2")
    dseeds.import_volume(data, tmp_path / "a.zarr", channel_axis=0)
    image = open_image(tmp_path / "a.zarr", channel_axis="c")
    np.testing.assert_array_equal(np.stack(image.read(np.s_[:, :, :])), data)
    # Channels of an import, as of TIFF, are read together by default.
    dseeds.import_volume(tmp_path / "a.zarr", tmp_path / "b.zarr")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b.zarr/0")[:], data)
    dseeds.import_volume(tmp_path / "a.zarr", tmp_path / "c.zarr", volume=1)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "c.zarr/0")[:], data[1])
    # Channels of several types are stored in a common type.
    mixed = [data[0].astype("u1"), data[1].view("i2")]
    dseeds.import_volume(mixed, tmp_path / "d.zarr")
    array = zarr.open_array(tmp_path / "d.zarr/0")
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array[:], np.stack([mixed[0].astype("i2"), mixed[1]]))
    with pytest.raises(ValueError, match="types that have none in common"):
        dseeds.import_volume([data[0].astype("u8"), data[1].astype("f4")], tmp_path / "e.zarr")


def test_volumes_of_4d(tmp_path):
    data = numbers((3, 4, 5, 6), "u2")
    nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="holds 3 volumes"):
        dseeds.import_volume(tmp_path / "a.nii.gz", tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    dseeds.import_volume(tmp_path / "a.nii.gz", tmp_path / "a.zarr", volume=2)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr/0")[:], data[2])
    dseeds.import_volume(tmp_path / "a.nii.gz", tmp_path / "b.zarr", channel_axis=0)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b.zarr/0")[:], data)


@settings(few, max_examples=20)
@given(
    st.tuples(*[st.integers(1, 24)] * 3),
    st.sampled_from(["a.npy", "a.nrrd"]),
    # Not so small that there are thousands of files.
    st.none() | st.tuples(*[st.integers(3, 9)] * 3),
    st.none() | st.tuples(*[st.integers(1, 4)] * 3),
    st.sampled_from([1 << 14, 1 << 16, 1 << 29]),
)
def test_chunks_shards_and_memory(tmp_path, shape, name, chunks, times, memory):
    """Voxels do not depend on chunks, shards, memory, or whether the source is read at random or from top to bottom."""
    data = numbers(shape, "u2")
    np.save(tmp_path / "a.npy", data)
    sitk.WriteImage(sitk.GetImageFromArray(data), tmp_path / "a.nrrd", True)
    shards = tuple(c * t for c, t in zip(chunks, times, strict=True)) if chunks and times else None
    options = {"chunks": chunks, "shards": shards, "memory": memory, "overwrite": True, "pyramid": False, "threads": 2}
    try:
        report = dseeds.import_volume(tmp_path / name, tmp_path / "a.zarr", **options)
    except ValueError as error:
        # Only given chunks can be too deep, and only for a source that is read from top to bottom.
        if not ("do not fit the memory" in str(error) and chunks and name == "a.nrrd"):
            raise
        return
    array = zarr.open_array(tmp_path / "a.zarr/0")
    np.testing.assert_array_equal(array[:], data)
    assert (array.chunks, array.shards) == (report.chunks, report.shards)
    if chunks:
        assert report.chunks == tuple(map(min, chunks, shape))


def test_labels_stay_labels(tmp_path):
    data = np.random.default_rng(0).integers(0, 9, (20, 300, 24)).astype("u1")
    path = nifti(tmp_path / "a.nii.gz", data, np.eye(4), labels=True)
    assert dseeds.import_volume(path, tmp_path / "a.zarr").labels
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert "image-label" in group.attrs["ome"]
    assert set(np.unique(group["1"][:])) <= set(np.unique(data))
    assert describe(tmp_path / "a.zarr")["kind"] == "labels"
    with pytest.raises(ValueError, match="holds labels, not intensities"):
        open_image(tmp_path / "a.zarr")
    assert dseeds.export_volume(tmp_path / "a.zarr", tmp_path / "b.nii.gz").labels
    assert nibabel.load(tmp_path / "b.nii.gz").header.get_intent()[0] == "label"
    # NIfTI often holds labels as floats, and does not declare them as labels.
    path = nifti(tmp_path / "c.nii.gz", data.astype("f4"), np.eye(4))
    assert dseeds.import_volume(path, tmp_path / "c.zarr", labels=True).dtype == "int32"
    path = nifti(tmp_path / "d.nii.gz", data + np.float32(0.5), np.eye(4))
    with pytest.raises(ValueError, match="are not whole numbers"):
        dseeds.import_volume(path, tmp_path / "d.zarr", labels=True)
    assert not (tmp_path / "d.zarr").exists()
    assert dseeds.import_volume(data > 4, tmp_path / "e.zarr").dtype == "uint8"


def test_the_spacing_can_be_replaced(tmp_path):
    affine = oblique(1, True)
    path = nifti(tmp_path / "a.nii.gz", numbers((4, 5, 6), "u1"), affine)
    dseeds.import_volume(path, tmp_path / "a.zarr", spacing=(5, 1.5, 1))
    source = open_source(tmp_path / "a.zarr")
    assert source.spacing == (5, 1.5, 1)
    np.testing.assert_allclose(source.affine, nibabel.load(path).affine * (2, 2, 2, 1), rtol=1e-6)
    for wrong in [(1, 1), (0, 1, 1), (1, 1, float("nan"))]:
        with pytest.raises(ValueError, match="three positive numbers"):
            dseeds.import_volume(path, tmp_path / "b.zarr", spacing=wrong)


@pytest.mark.parametrize("unit", ["micrometer", None])
def test_ome_zarr_keeps_its_position(tmp_path, unit):
    frame = {"spacing": (2.0, 0.5, 0.25), "translation": (10.0, -20.0, 30.0), "units": (unit,) * 3}
    group = zarr.create_group(tmp_path / "a.zarr", attributes={"ome": ome_image_attributes(name="a", **frame)})
    group.create_array("0", data=numbers((4, 5, 6), "u1"))
    dseeds.import_volume(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert vars(open_source(tmp_path / "b.zarr").frame) == frame


def test_slabs_are_as_deep_as_shards():
    array = zarr.create_array(zarr.storage.MemoryStore(), data=numbers((20, 4, 4), "u1"), chunks=(6, 4, 4))
    reading = SlabReader(open_image(array), 1 << 20, None)
    assert [len(slab) for _, slab in reading.slabs("read", planes=8)] == [8, 8, 4]


def test_an_import_replaces_only_our_output(tmp_path):
    data = numbers((4, 5, 6), "u1")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not written by dseeds"):
            dseeds.import_volume(data, tmp_path / "a.zarr", overwrite=overwrite)
    dseeds.import_volume(data, tmp_path / "b.zarr")
    with pytest.raises(FileExistsError, match="overwrite"):
        dseeds.import_volume(data, tmp_path / "b.zarr")
    with pytest.raises(FileExistsError, match="is the source, or holds it"):
        dseeds.import_volume(tmp_path / "b.zarr", tmp_path / "b.zarr", overwrite=True)
    dseeds.import_volume(data + 1, tmp_path / "b.zarr", overwrite=True)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b.zarr/0")[:], data + 1)
    with pytest.raises(FileNotFoundError, match="for the target does not exist"):
        dseeds.import_volume(data, tmp_path / "c/d.zarr")


def test_a_failure_leaves_no_files(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    nifti(path, numbers((40, 50, 60), "u2"), np.eye(4))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        dseeds.import_volume(path, tmp_path / "a.zarr")
    for ending in FILES:
        with pytest.raises(ValueError, match="damaged or incomplete"):
            dseeds.export_volume(path, tmp_path / f"a{ending.replace('.nii', '-.nii')}")
    assert listing(tmp_path) == before


def test_import_into_an_object_store(faulty_store):
    """The image and its pyramid are written, and replaced by a smaller one."""
    data, target = numbers((20, 300, 28), "u2"), f"{faulty_store.make_bucket()}/a.zarr"
    dseeds.import_volume(data, target, spacing=(2, 1, 1))
    source = open_source(target)
    np.testing.assert_array_equal(source.read(np.s_[:, :, :]), data)
    assert source.spacing == (2, 1, 1)
    assert open_source(target, level=1).shape == (20, 150, 28)
    with pytest.raises(FileExistsError):
        dseeds.import_volume(data, target)
    dseeds.import_volume(data[:9], target, overwrite=True)
    assert open_source(target).shape == (9, 300, 28)
