"""NIfTI and other formats of nibabel as sources: voxels, orientation, spacing, scaling, damaged files."""

import gzip
import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.openers import ImageOpener

from dseeds.convert.describe import describe
from dseeds.convert.export_volume import export_volume
from dseeds.convert.import_volume import import_volume
from dseeds.io import ArraySource, NiftiSource, open_image, open_source
from dseeds.seeds.cell_size import choose_step
from tests.support.sources import NIBABEL, REAL, real, save_nifti, volume, whole


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("thickness", [7, 1000])
def test_real_nifti_arrives_as_nibabel_reads_it(name, thickness):
    path = real(name)
    source, image = open_source(path), nibabel.load(path)
    assert isinstance(source, NiftiSource)
    assert source.shape == image.shape[::-1]
    assert source.spacing == pytest.approx(image.header.get_zooms()[::-1])
    np.testing.assert_array_equal(whole(source, thickness), np.asanyarray(image.dataobj).T)
    assert (source.kind, source.name, source.readable_by_workers) == ("nifti", path.name, False)


@pytest.mark.parametrize(
    ("name", "index"),
    [("example4d.nii.gz", 0), ("example4d.nii.gz", 1), ("example_nifti2.nii.gz", 1), ("functional.nii", 17)],
)
def test_a_volume_of_a_series(name, index):
    expected = np.asanyarray(nibabel.load(NIBABEL / name).dataobj)[..., index].T
    source = open_source(NIBABEL / name, volume=index)
    np.testing.assert_array_equal(whole(source), expected)
    box = (slice(1, 3), slice(2, 9), slice(0, 5))
    np.testing.assert_array_equal(source.read(box), expected[box])


@pytest.mark.parametrize("name", ["analyze.hdr", "nifti1.hdr", "nifti2.hdr"])
def test_a_header_without_its_voxels_is_refused(name):
    with pytest.raises(ValueError, match=r"\.img is missing: put it back, or copy it to the folder of its header"):
        open_source(NIBABEL / name)


@pytest.mark.parametrize("ending", [".hdr", ".img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage])
def test_header_and_voxels_in_two_files(tmp_path, kind, ending):
    data = volume()
    nibabel.save(kind(data.T, np.diag([2, 3, 4, 1])), tmp_path / "pair.hdr")
    source = open_source(tmp_path / f"pair{ending}")
    np.testing.assert_array_equal(whole(source), data)
    assert source.spacing == (4, 3, 2)


@pytest.mark.parametrize("name", ["test.mgz", "minc1_1_scale.mnc", "scaled+tlrc.HEAD"])
def test_other_formats_of_nibabel(name):
    if not (NIBABEL / name).exists():
        pytest.skip(f"this nibabel comes without {name}")
    image = nibabel.load(NIBABEL / name)
    last = image.shape[3] - 1 if image.ndim == 4 else 0
    expected = np.asanyarray(image.dataobj).reshape((*image.shape[:3], -1))[..., last].T
    np.testing.assert_array_equal(whole(open_source(NIBABEL / name, volume=last)), expected)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">f4", "<f8", "<u4", ">i8"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_types_of_either_byte_order(tmp_path, dtype, ending):
    data = volume(dtype=dtype)
    header = nibabel.Nifti1Header(endianness="big" if dtype[0] == ">" else "little")
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(data.T, None, header, dtype=np.dtype(dtype))
    nibabel.save(image, tmp_path / f"a{ending}")
    source = open_source(tmp_path / f"a{ending}")
    assert source.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(whole(source), data)


@pytest.mark.parametrize(("slope", "inter"), [(2.5, -1024.0), (1.0, 7.0), (3.0, 0.0)])
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4"])
def test_scaling_is_nibabels(tmp_path, slope, inter, dtype):
    path = tmp_path / "scaled.nii"
    header = nibabel.Nifti1Header()
    header.set_data_shape((7, 6, 5))
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, inter)
    with path.open("wb") as file:
        header.write_to(file)
        file.write(volume(dtype=np.dtype(dtype).newbyteorder("<")).tobytes())
    source, expected = open_source(path), np.asanyarray(nibabel.load(path).dataobj).T
    assert source.dtype == expected.dtype
    np.testing.assert_array_equal(whole(source), expected)
    assert expected[0, 0, 1] == slope + inter


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("unknown", 1), ("micron", 1e-3), ("meter", 1e3), (5, None)])
def test_units_of_nifti(tmp_path, unit, factor):
    units = (unit, "sec") if factor else ("mm", "sec")
    path = save_nifti(tmp_path / "a.nii", volume().T, units=units)
    if not factor:
        raw = bytearray(path.read_bytes())
        raw[123] = unit
        path.write_bytes(raw)
    expected = tuple(size * factor for size in (3.25, 0.75, 0.5)) if factor else None
    assert open_source(path).spacing == (None if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr"])
@pytest.mark.parametrize(("size", "expected"), [(np.nan, None), (np.inf, None), (0, None), (-2.5, (1, 1, 1))])
def test_a_senseless_spacing_is_unknown(tmp_path, ending, size, expected):
    path = save_nifti(tmp_path / "a.nii", volume().T, affine=np.eye(4))
    if ending == ".hdr":
        nibabel.save(nibabel.load(path), path := tmp_path / "a.hdr")
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.array([size], "<f4").tobytes()
    path.write_bytes(raw)
    if ending == ".nii.gz":
        path = path.with_suffix(ending)
        path.write_bytes(gzip.compress(raw))
    assert open_source(path).spacing == expected


def test_a_spacing_that_contradicts_the_affine(tmp_path):
    """The affine counts for everything, as in nibabel, and it is said."""
    path = save_nifti(tmp_path / "a.nii", volume().T, affine=np.diag([-0.5, -0.5, 2, 1]))
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.array([1, 1, 1], "<f4").tobytes()
    path.write_bytes(raw)
    source = open_source(path)
    assert source.spacing == (2, 0.5, 0.5)
    np.testing.assert_allclose(source.affine, nibabel.load(path).affine)
    assert describe(path)["notes"] == list(source.notes)
    assert "the affine is taken" in source.notes[0]


def test_a_qform_that_contradicts_the_sform(tmp_path):
    image = nibabel.Nifti1Image(volume().T, None)
    image.set_qform(np.diag([0.5, 0.5, 2, 1]), 1)
    image.set_sform(np.diag([-0.5, 0.5, 2, 1]), 2)
    nibabel.save(image, tmp_path / "a.nii.gz")
    [note] = open_source(tmp_path / "a.nii.gz").notes
    assert "qform and sform differ" in note
    np.testing.assert_array_equal(open_source(tmp_path / "a.nii.gz").affine, np.diag([-0.5, 0.5, 2, 1]))
    image.set_qform(np.diag([-0.5, 0.5, 2, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert open_source(tmp_path / "a.nii.gz").notes == ()


def oriented(order, signs, angles=(0, 0, 0), spacing=(0.5, 0.75, 3.25)):
    """Return an affine whose axes are those of space, permuted, reversed and rotated."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(order)] * signs
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        one, other = (n for n in range(3) if n != axis)
        turn[[one, other], [one, other]] = np.cos(angle)
        turn[one, other], turn[other, one] = np.sin(angle), -np.sin(angle)
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, :3] *= spacing
    affine[:3, 3] = (-90, 126, 7)
    return affine


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.5, 1.2)])
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_orientation_changes_neither_order_nor_spacing(tmp_path, order, signs, angles):
    # Half of them are left-handed.
    affine = oriented(order, signs, angles)
    source = open_source(save_nifti(tmp_path / "a.nii", volume().T, affine=affine))
    np.testing.assert_array_equal(whole(source), volume())
    assert source.spacing == (3.25, 0.75, 0.5)
    np.testing.assert_allclose(source.affine, affine, rtol=1e-6)


@pytest.mark.parametrize("form", ["qform", "sform"])
def test_either_form_of_orientation_will_do(tmp_path, form):
    affine = oriented((1, 0, 2), (1, -1, 1), (0.3, -0.5, 1.2))
    image = nibabel.Nifti1Image(volume().T, None)
    getattr(image, f"set_{form}")(affine, 1)
    image.header.set_zooms((0.5, 0.75, 3.25))
    nibabel.save(image, tmp_path / "a.nii")
    source = open_source(tmp_path / "a.nii")
    assert source.spacing == (3.25, 0.75, 0.5)
    np.testing.assert_allclose(source.affine, affine, rtol=1e-5, atol=1e-5)


def test_a_sheared_affine(tmp_path):
    # A tilted gantry, which only the sform can express.
    affine = np.diag([0.5, 0.75, 3.25, 1])
    affine[1, 2] = 0.4
    image = nibabel.Nifti1Image(volume().T, None)
    image.set_sform(affine, 1)
    image.header.set_zooms((0.5, 0.75, 3.25))
    nibabel.save(image, tmp_path / "a.nii")
    source = open_source(tmp_path / "a.nii")
    assert source.spacing == (3.25, 0.75, 0.5)
    np.testing.assert_array_equal(whole(source), volume())
    np.testing.assert_allclose(source.affine, affine, rtol=1e-6)


@pytest.mark.parametrize("affine", [None, np.diag([0, 1, 1, 1.0]), np.full((4, 4), np.nan), np.diag([1e300] * 3 + [1])])
def test_a_senseless_affine_is_unknown(affine):
    image = nibabel.Nifti1Image(volume().T, None)
    image.header["sform_code"] = affine is not None
    image._affine = affine
    source = open_source(image)
    assert source.affine is None
    np.testing.assert_array_equal(whole(source), volume())


def test_a_qform_cannot_hold_a_shear(tmp_path):
    affine = np.diag([-0.5, -0.75, 3.25, 1])
    affine[1, 2] = 0.8
    nibabel.save(nibabel.Nifti1Image(volume().T, affine), tmp_path / "a.nii")
    import_volume(tmp_path / "a.nii", tmp_path / "a.zarr")
    report = export_volume(tmp_path / "a.zarr", tmp_path / "b.nii.gz")
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(written.affine, affine, rtol=1e-6)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 2)
    assert "shear" in report.notes[0]
    assert "shear" in str(report)


@pytest.mark.parametrize("dtype", ["RGB", "RGBA"])
def test_colours_of_nifti(tmp_path, dtype):
    colours = np.random.default_rng(0).integers(0, 255, (7, 6, 5, len(dtype))).astype("u1")
    packed = colours.view([(name, "u1") for name in dtype])[..., 0]
    nibabel.save(nibabel.Nifti1Image(packed, np.eye(4)), tmp_path / "a.nii.gz")
    image = open_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.stack(image.read((slice(None),) * 3), -1), colours.transpose(2, 1, 0, 3))


@pytest.mark.parametrize("size", [0, np.nan])
def test_a_length_needs_sensible_voxels(tmp_path, size):
    path = save_nifti(tmp_path / "a.nii", volume((20, 20, 20)).T, affine=np.eye(4))
    raw = bytearray(path.read_bytes())
    raw[80:84] = np.array([size], "<f4").tobytes()
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(ValueError, match=r"step '4mm' needs the voxels' size: give spacing="):
        choose_step(source.shape, step="4mm", known_spacing=source.spacing)
    assert choose_step(source.shape, step="4mm", spacing=(2, 1, 1)) == (2, 4, 4)


def test_spacing_is_the_decimal_that_was_written(tmp_path):
    path = save_nifti(tmp_path / "a.nii", volume().T, affine=np.diag([0.977, 3.27, 1.1, 1]))
    assert open_source(path).spacing == (1.1, 3.27, 0.977)


@pytest.mark.parametrize("shape", [(7, 6, 5, 1), (7, 6, 5, 1, 1), (7, 6, 5, 1, 1, 1)])
def test_nifti_axes_of_size_one_are_dropped(tmp_path, shape):
    path = save_nifti(tmp_path / "a.nii.gz", volume().T.reshape(shape))
    np.testing.assert_array_equal(whole(open_source(path)), volume())


def test_nibabel_images(tmp_path):
    data = volume()
    held = nibabel.Nifti1Image(data.T, np.diag([2, 3, 4, 1]))
    source = open_source(held)
    assert isinstance(source, ArraySource)
    assert (source.kind, source.spacing) == ("nifti", (4, 3, 2))
    np.testing.assert_array_equal(whole(source), data)
    stored = nibabel.load(save_nifti(tmp_path / "a.nii.gz", data.T))
    assert isinstance(open_source(stored), NiftiSource)
    np.testing.assert_array_equal(whole(open_source(stored)), data)
    streamed = nibabel.Nifti1Image.from_bytes(held.to_bytes())
    np.testing.assert_array_equal(whole(open_source(streamed)), data)


class CountingFile:
    """A file that counts the bytes that are read from it."""

    def __init__(self, path):
        self.file, self.count = Path(path).open("rb"), 0  # noqa: SIM115

    def read(self, size=-1):
        data = self.file.read(size)
        self.count += len(data)
        return data

    def seek(self, *to):
        return self.file.seek(*to)

    def close(self):
        self.file.close()


@pytest.mark.parametrize("thickness", [1, 3, 64])
def test_gzip_is_decompressed_once(tmp_path, monkeypatch, thickness):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 40, 3), "uint8")
    path = save_nifti(tmp_path / "a.nii.gz", noise)
    source = open_source(path, volume=1)
    opened = []

    def counting(name, mode, *_args, **_kwargs):
        opened.append(CountingFile(name))
        return gzip.GzipFile(fileobj=opened[-1], mode=mode)

    monkeypatch.setitem(ImageOpener.compress_ext_map, ".gz", (counting, ("mode",)))
    np.testing.assert_array_equal(whole(source, thickness), noise[..., 1].T)
    assert len(opened) == 1
    assert opened[0].count == path.stat().st_size
    opened[0].close()


def test_a_slab_needs_a_plane():
    with pytest.raises(ValueError, match="at least 1 plane"):
        list(open_source(volume()).slabs(0))


def damaged_nifti(folder, how):
    data = np.random.default_rng(1).integers(0, 256, (40, 30, 20), "uint8")
    path = save_nifti(folder / ("a.nii" if "plain" in how else "a.nii.gz"), data)
    raw = bytearray(path.read_bytes())
    match how:
        case "truncated" | "plain truncated":
            raw = raw[: len(raw) // 2]
        case "truncated in the header":
            raw = raw[:60]
        case "a flipped byte":
            raw[len(raw) // 2] ^= 255
        case "a wrong checksum":
            raw[-8] ^= 255
        case "no header" | "plain no header":
            raw = bytearray(os.urandom(1000))
        case "empty" | "plain empty":
            raw = bytearray()
        case "plain unknown type":
            raw[70:72] = b"\xff\x7f"
        case "plain negative axis":
            raw[42:44] = b"\xff\xff"
        case "plain no axes":
            raw[40:42] = b"\x00\x00"
        case "plain too many axes":
            raw[40:42] = b"\x09\x00"
        case "plain bad offset":
            raw[108:112] = np.array([7], "<f4").tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "truncated in the header",
        "a flipped byte",
        "a wrong checksum",
        "no header",
        "empty",
        "plain truncated",
        "plain no header",
        "plain empty",
        "plain unknown type",
        "plain negative axis",
        "plain no axes",
        "plain too many axes",
        "plain bad offset",
    ],
)
def test_damaged_nifti_is_named(tmp_path, how):
    path = damaged_nifti(tmp_path, how)
    with pytest.raises(ValueError, match="a\\.nii") as caught:
        whole(open_source(path), 3)
    assert "\n" not in str(caught.value)


def test_a_file_that_vanishes(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", volume().T)
    source = open_source(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.nii\.gz is missing: put it back"):
        next(source.slabs(1))


def test_a_file_that_is_no_volume():
    with pytest.raises(ValueError, match="cannot be opened as an image"):
        open_source(__file__)
