"""Series of DICOM are read as SimpleITK reads them, and refused unless they make up a volume."""

import json
import locale
import pickle
import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from dseeds.io import DicomSource, open_image, open_source
from tests.support.paths import DATA

TILTED = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]])


def write_slice(path, plane, position, *, turned=None, spacing=(0.5, 0.75), series="1.2.3", tags=()):
    """Write one plane (y, x) at a position in millimetres; `spacing` is along y, x, `turned` has the axes as rows."""
    image = sitk.GetImageFromArray(plane, isVector=plane.ndim == 3)
    image.SetSpacing(spacing[::-1])
    axes = np.eye(3) if turned is None else turned
    all_tags = {
        "0008|0060": "CT",
        "0020|000e": series,
        "0020|0032": "\\".join(f"{n:.10g}" for n in position),
        "0020|0037": "\\".join(f"{n:.10g}" for n in axes[:2].ravel()),
        **dict(tags),
    }
    return write(path, image, all_tags)


def write_frames(path, data):
    """Write a volume as the frames of one file."""
    image = sitk.GetImageFromArray(data)
    image.SetSpacing((0.5, 0.75, 2.5))
    image.SetOrigin((10, -20, 30))
    return write(path, image, {"0020|000e": "1.2.3"})


def write(path, image, tags):
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    # GDCM's writer leaves another locale behind, in which Python decodes the output of programs as ASCII.
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return path


def patch(file, old, new):
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))


def planes(depth=5):
    return (np.arange(depth * 42).reshape(depth, 6, 7) * 3 - 100).astype("int16")


def write_series(folder, data, *, turned=None, gap=2.5, places=None, names=None, **more):
    """Write a volume, a file per plane; the order of the names is not that of the planes."""
    folder.mkdir(exist_ok=True)
    axes = np.eye(3) if turned is None else turned
    for z, plane in enumerate(data):
        place = np.array([10.0, -20, 30]) + axes[2] * (z * gap if places is None else places[z])
        name = f"{len(data) - z:02}.dcm" if names is None else names[z]
        write_slice(folder / name, plane, place, turned=turned, **more)
    return folder


def whole(source, thickness=2):
    return np.concatenate([slab for _, slab in source.slabs(thickness)], axis=-3)


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def place_by_simpleitk(image, xyz):
    """The position of a voxel, with x and y as in NIfTI."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint(xyz)) * (-1, -1, 1)


def agree(source, image):
    np.testing.assert_array_equal(whole(source), sitk.GetArrayFromImage(image))
    assert source.spacing == pytest.approx(image.GetSpacing()[::-1])
    for xyz in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (1.5, 2, 3)]:
        np.testing.assert_allclose(source.affine @ (*xyz, 1), (*place_by_simpleitk(image, xyz), 1), atol=1e-6)


def test_a_real_series_is_read_as_simpleitk_reads_it():
    if not (folder := DATA / "ct_dicom").is_dir():
        pytest.skip(f"the real volume {folder} is missing")
    source, image = open_source(folder), by_simpleitk(folder)
    assert isinstance(source, DicomSource)
    assert (source.kind, source.name, source.readable_by_workers) == ("dicom", "ct_dicom", False)
    assert (source.shape, source.dtype, source.spacing) == ((20, 512, 512), np.int16, (2, 0.9765625, 0.9765625))
    agree(source, image)
    box = (slice(3, 5), slice(100, 300), slice(7, 9))
    np.testing.assert_array_equal(source.read(box), sitk.GetArrayFromImage(image)[box])
    assert source.read(box).min() < -900  # air, in HU


@pytest.mark.parametrize("turned", [np.eye(3), TILTED, np.eye(3)[[1, 2, 0]], np.diag([1, -1, -1.0])])
def test_any_orientation(tmp_path, turned):
    folder = write_series(tmp_path / "series", planes(), turned=turned)
    source = open_source(folder)
    np.testing.assert_array_equal(whole(source), planes())
    assert source.spacing == pytest.approx((2.5, 0.5, 0.75))
    agree(source, by_simpleitk(folder))


def test_slices_in_the_order_of_their_places(tmp_path):
    folder = write_series(tmp_path / "series", planes()[::-1], places=[10, 7.5, 5, 2.5, 0])
    np.testing.assert_array_equal(whole(open_source(folder)), planes())


def test_slices_with_scales_of_their_own(tmp_path):
    folder = tmp_path / "pet"
    folder.mkdir()
    for z, slope in enumerate((b"1 ", b".5", b"2 ")):
        tags = {"0028|1053": "1", "0028|1052": "3"}
        file = write_slice(folder / f"{z}.dcm", planes()[z] + 3, (0, 0, z), tags=tags)
        patch(file, (tag := b"\x28\x00\x53\x10\x02\x00\x00\x00") + b"1 ", tag + slope)
    source = open_source(folder)
    assert source.dtype == np.float64
    expected = planes(3) * np.array([1, 0.5, 2])[:, None, None] + 3
    np.testing.assert_array_equal(whole(source), expected)
    np.testing.assert_array_equal(source.read(np.s_[1:3, 2:4, 0:7]), expected[1:3, 2:4])


def test_one_file_is_a_plane_or_many(tmp_path):
    plane = write_slice(tmp_path / "a.dcm", planes()[0], (0, 0, 0))
    assert open_source(plane).shape == (1, 6, 7)
    np.testing.assert_array_equal(whole(open_source(plane)), planes()[:1])

    frames = tmp_path / "frames"
    frames.mkdir()
    write_frames(frames / "all.dcm", planes().astype("uint8"))
    for path in (frames, frames / "all.dcm"):
        source = open_source(path)
        agree(source, sitk.ReadImage(frames / "all.dcm"))
        np.testing.assert_array_equal(whole(source), planes().astype("uint8"))
        box = (slice(1, 3), slice(2, 5), slice(0, 4))
        np.testing.assert_array_equal(source.read(box), planes().astype("uint8")[box])


def test_colours_are_channels(tmp_path):
    data = np.arange(3 * 6 * 7 * 3, dtype="uint8").reshape(3, 6, 7, 3)
    folder = write_series(tmp_path / "colours", data)
    image = open_image(folder)
    assert (image.channels, image.dtypes, image.shape) == (3, (np.dtype("u1"),) * 3, (3, 6, 7))
    np.testing.assert_array_equal(np.stack(image.read(np.s_[1:3, :4, 2:5]), -1), data[1:3, :4, 2:5])
    np.testing.assert_array_equal(np.concatenate([np.stack(slab, -1) for _, slab in image.slabs(2)]), data)
    with pytest.raises(ValueError, match="holds records of 3 values"):
        open_source(folder)


def test_series_pickle_and_are_known_by_their_files(tmp_path):
    folder = write_series(tmp_path / "series", planes())
    source = open_source(folder)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(whole(copy), planes())
    assert copy.identity == source.identity == open_source(folder).identity == source.reopened().identity
    assert json.loads(json.dumps(source.identity)) == source.identity
    write_slice(folder / "05.dcm", planes()[1], (10, -20, 30))
    assert source.reopened().identity != source.identity


def test_other_files_in_the_folder_are_ignored(tmp_path):
    folder = write_series(tmp_path / "series", planes())
    (folder / "notes.txt").write_text("scanned twice")
    (folder / "more").mkdir()
    shutil.copy(folder / "01.dcm", folder / "DICOMDIR")
    np.testing.assert_array_equal(whole(open_source(folder)), planes())


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0, 2, 6, 8, 10], "lacks slices between 04.dcm and 03.dcm, which are 4 mm apart, and others 2 mm"),
        ([0, 2, 4, 6, 60], "lacks slices between 02.dcm and 01.dcm, which are 54 mm apart"),
        ([0, 2, 4.5, 6, 8], "unevenly spaced, from 1.5 to 2.5 mm"),
        ([0, 2, 2, 4, 6], "several slices of one place, such as 03.dcm and 04.dcm"),
        ([0, 0, 0, 0, 0], "several slices of one place"),
    ],
)
def test_slices_that_are_not_evenly_spaced(tmp_path, places, message):
    with pytest.raises(ValueError, match=message):
        open_source(write_series(tmp_path / "series", planes(), places=places))


def test_positions_are_rounded(tmp_path):
    folder = write_series(tmp_path / "series", planes(), places=[0, 1.66, 3.33, 5, 6.66])
    assert open_source(folder).spacing[0] == pytest.approx(1.665)


def test_several_series_are_listed(tmp_path):
    folder = write_series(tmp_path / "series", planes(), tags={"0008|103e": "thorax"})
    write_series(folder, planes(2), series="1.2.4", names=["x", "y"], tags={"0008|103e": "scout"})
    message = r"holds 2 series \(scout \(1.2.4\): 2 files, thorax \(1.2.3\): 5 files\): pass a folder with one"
    with pytest.raises(ValueError, match=message):
        open_source(folder)


def test_slices_that_do_not_belong_together(tmp_path):
    folder = write_series(tmp_path / "series", planes())
    write_slice(folder / "09.dcm", planes()[0, :4], (10, -20, 42.5))
    with pytest.raises(ValueError, match=r"slices of different sizes, 01.dcm and 09.dcm"):
        open_source(folder)
    write_slice(folder / "09.dcm", planes()[0], (10, -20, 42.5), turned=TILTED)
    with pytest.raises(ValueError, match=r"slices that are not parallel, 01.dcm and 09.dcm"):
        open_source(folder)
    file = write_slice(folder / "09.dcm", planes()[0], (10, -20, 42.5))
    patch(file, b"\x20\x00\x32\x00", b"\x20\x00\x31\x00")
    with pytest.raises(ValueError, match=r"09.dcm does not say where its slice lies"):
        open_source(folder)


def test_several_files_of_several_planes(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        write_frames(tmp_path / name, planes().astype("uint8"))
    with pytest.raises(
        ValueError, match=r"several slices of one place, such as a.dcm and b.dcm, and nothing that tells"
    ):
        open_source(tmp_path)


def test_a_damaged_slice_is_named(tmp_path):
    folder = write_series(tmp_path / "series", planes())
    source = open_source(folder)
    data = (folder / "02.dcm").read_bytes()
    for damaged in (data[:200], data[:-60]):
        (folder / "02.dcm").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"02.dcm cannot be read as DICOM") as caught:
            whole(source)
        assert "\n" not in str(caught.value)
    (folder / "02.dcm").write_bytes(data[:200])
    with pytest.raises(ValueError, match=r"02.dcm cannot be read as DICOM"):
        open_source(folder)


def test_no_volume_or_axis_can_be_chosen(tmp_path):
    folder = write_series(tmp_path / "series", planes())
    assert open_source(folder, volume=0).shape == (5, 6, 7)
    with pytest.raises(ValueError, match="has no volume 1"):
        open_source(folder, volume=1)
    with pytest.raises(ValueError, match="leave out channel_axis"):
        open_image(folder, channel_axis=0)


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="folder without Zarr metadata"):
        open_source(tmp_path)
    (tmp_path / "study").mkdir()
    folder = write_series(tmp_path / "study" / "series", planes())
    with pytest.raises(ValueError, match=f"is no image itself, but holds study/series: pass {folder}"):
        open_source(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "series", planes())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'dseeds\[dicom\]'"):
        open_source(folder)
