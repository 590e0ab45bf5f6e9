"""The adapters: what they open, what they refuse and with which message, and what they write."""

import gzip
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from nibabel.openers import ImageOpener
from nibabel.testing import data_path

from dseeds.io import ArraySource, NiftiSource, ZarrSource, ome_label_attributes, open_source, write_nifti_labels
from dseeds.seeds.cell_size import choose_step
from tests.support.paths import DATA

NIBABEL = Path(data_path)
SHARED = DATA
REAL = ("ct_3mm/ct.nii.gz", "mr_sarcoma/mr_t1.nii.gz", "hippocampus/image_001.nii.gz")


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the real volume {path} is not on this machine")
    return path


def volume(shape=(5, 6, 7), dtype="int16"):
    return (np.arange(math.prod(shape)) % 251).reshape(shape).astype(dtype)


LABELS = volume(dtype="int64")


def whole(source, thickness=2):
    """Return the volume as its slabs, after checking their order and type."""
    parts, depth = [], 0
    for z0, slab in source.slabs(thickness):
        assert z0 == depth
        assert slab.dtype == source.dtype
        assert slab.shape == (min(thickness, source.shape[0] - z0), *source.shape[1:])
        parts.append(slab)
        depth += len(slab)
    joined = np.concatenate(parts)
    assert joined.shape == source.shape
    return joined


def save_nifti(path, data, *, kind=nibabel.Nifti1Image, affine=None, units=("mm", "sec"), **fields):
    image = kind(data, np.diag([0.5, 0.75, 3.25, 1]) if affine is None else affine)
    image.header.set_xyzt_units(*units)
    for field, value in fields.items():
        image.header[field] = value
    nibabel.save(image, path)
    return path


def save_ome(path, data, axes, *, version="0.4", scale=None, overall=None, unit="micrometer", dataset="0"):
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    array = group.create_array(dataset, shape=data.shape, dtype=data.dtype, chunks=data.shape)
    array[...] = data
    image = {
        "axes": [{"name": axis, **({"unit": unit} if axis in "zyx" and unit else {})} for axis in axes],
        "datasets": [{"path": dataset}, {"path": "smaller"}],
    }
    if scale:
        image["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    if overall:
        image["coordinateTransformations"] = [{"type": "scale", "scale": overall}]
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": version, **image}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


# NIfTI in


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
    with pytest.raises(ValueError, match="cannot be read"):
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
@pytest.mark.parametrize(("size", "expected"), [(np.nan, None), (np.inf, None), (0, None), (-2.5, (1, 1, 2.5))])
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


# Damaged NIfTI


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
    with pytest.raises(ValueError, match=r"cannot be read .*No such file"):
        next(source.slabs(1))


def test_a_file_that_is_no_volume():
    with pytest.raises(ValueError, match="cannot be opened as an image"):
        open_source(__file__)


# Arrays


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


# Zarr


def make_zarr(path, data, **options):
    options = {"chunks": (2,) * data.ndim, **options}
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **options)
    array[...] = data
    return array


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"shards": (4, 4, 4)}])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<f4"])
def test_zarr_arrays(tmp_path, options, dtype):
    data = volume(dtype=dtype)
    array = make_zarr(tmp_path / "a.zarr", data, **options)
    for address in (tmp_path / "a.zarr", str(tmp_path / "a.zarr"), f"file://{tmp_path}/a.zarr", array):
        source = open_source(address)
        assert isinstance(source, ZarrSource)
        assert (source.kind, source.name, source.spacing) == ("zarr", "a.zarr", None)
        assert (source.shape, source.dtype, source.chunks) == ((5, 6, 7), np.dtype(dtype), (2, 2, 2))
        assert source.readable_by_workers
        np.testing.assert_array_equal(whole(source), data)
    box = (slice(1, 3), slice(2, 5), slice(0, 4))
    np.testing.assert_array_equal(source.read(box), data[box])


def test_big_endian_zarr(tmp_path):
    data = volume(dtype=">f4")
    make_zarr(tmp_path / "a.zarr", data, zarr_format=2)
    assert open_source(tmp_path / "a.zarr").dtype == np.dtype(">f4")
    np.testing.assert_array_equal(whole(open_source(tmp_path / "a.zarr")), data)


def test_a_volume_of_a_zarr_series(tmp_path):
    data = volume((3, 4, 5, 6))
    make_zarr(tmp_path / "a.zarr", data)
    source = open_source(tmp_path / "a.zarr", volume=2)
    assert source.chunks == (2, 2, 2)
    np.testing.assert_array_equal(whole(source), data[2])


def test_zarr_in_memory_is_not_for_workers():
    data = volume()
    source = open_source(make_zarr({}, data))
    assert not source.readable_by_workers
    np.testing.assert_array_equal(whole(source), data)
    logged = zarr.storage.LoggingStore(source.array.store, log_level="CRITICAL")
    assert not open_source(zarr.open_array(logged, mode="r")).readable_by_workers


def test_zarr_behind_a_url(tmp_path):
    data = volume()
    make_zarr("memory://dseeds-test/a.zarr", data)
    source = open_source("memory://dseeds-test/a.zarr")
    assert not source.readable_by_workers
    np.testing.assert_array_equal(whole(source), data)

    make_zarr(tmp_path / "a.zarr", data)
    source = open_source(f"local://{tmp_path}/a.zarr")
    assert source.readable_by_workers
    assert (source.name, source.identity["path"]) == ("a.zarr", f"file://{tmp_path}/a.zarr")
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(source))), data)


def test_zarr_by_a_relative_path_is_read_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = make_zarr("a.zarr", volume())
    sources = [open_source("a.zarr"), open_source(array)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in sources:
        assert source.identity["path"] == str(tmp_path / "a.zarr")
        np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(source))), volume())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    data = volume()
    path = save_ome(tmp_path / "a.zarr", data, "zyx", version=version, scale=[2.0, 0.65, 0.65], dataset="s0")
    for address in (path, zarr.open_group(path, mode="r")):
        source = open_source(address)
        assert source.spacing == (0.002, 0.00065, 0.00065)
        assert source.name == "a.zarr"
        np.testing.assert_array_equal(whole(source), data)


def test_both_scales_of_ome_zarr_count(tmp_path):
    path = save_ome(
        tmp_path / "a.zarr",
        volume((1, 5, 6, 7)),
        "tzyx",
        scale=[1, 2.0, 0.5, 0.5],
        overall=[0.1, 2, 2, 2],
        unit="millimeter",
    )
    assert open_source(path).spacing == (4, 1, 1)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nanometer", 0.00025),
        ("\N{MICRO SIGN}m", 0.25),
        ("millimeter", 250),
        ("meter", 250000),
        (None, None),
        ("furlong", None),
    ],
)
def test_units_of_ome_zarr(tmp_path, unit, expected):
    path = save_ome(tmp_path / "a.zarr", volume(), "zyx", scale=[250.0] * 3, unit=unit)
    assert open_source(path).spacing == (expected and (expected,) * 3)


@pytest.mark.parametrize("scale", [None, [0, 1, 1], [1, -1, 1], [1, 1, 1e999]])
def test_ome_zarr_without_a_sensible_scale(tmp_path, scale):
    assert open_source(save_ome(tmp_path / "a.zarr", volume(), "zyx", scale=scale)).spacing is None


def test_ome_zarr_of_the_first_versions(tmp_path):
    path = save_ome(tmp_path / "a.zarr", volume((1, 1, 5, 6, 7)), "tczyx")
    group = zarr.open_group(path, mode="r+")
    for axes in ({"axes": list("tczyx")}, {}):
        group.attrs["multiscales"] = [{**axes, "datasets": [{"path": "0"}]}]
        assert open_source(path).shape == (5, 6, 7)


@pytest.mark.parametrize("axes", ["tzyx", "czyx"])
def test_times_or_channels_of_ome_zarr(tmp_path, axes):
    data = volume((3, 5, 6, 7))
    path = save_ome(tmp_path / "a.zarr", data, axes)
    np.testing.assert_array_equal(whole(open_source(path, volume=1)), data[1])
    both = save_ome(tmp_path / "b.zarr", data[None] if axes[0] == "c" else data[:, None], "tczyx")
    np.testing.assert_array_equal(whole(open_source(both, volume=2)), data[2])
    with pytest.raises(ValueError, match="holds 3 volumes: pass volume="):
        open_source(both)


def damaged_zarr(folder, how):
    path = folder / "a.zarr"
    data = volume()
    match how:
        case "empty folder" | "empty folder behind a URL":
            path.mkdir()
        case "no Zarr in it":
            path.mkdir()
            (path / "notes.txt").write_text("none")
        case "group without image":
            zarr.open_group(path, mode="w", zarr_format=3)
        case "v2 group without image":
            zarr.open_group(path, mode="w", zarr_format=2)
        case "ome without multiscales":
            zarr.open_group(path, mode="w").attrs["ome"] = {"version": "0.5", "plate": {}}
        case "ome is a list":
            zarr.open_group(path, mode="w").attrs["ome"] = []
        case "multiscales is empty":
            zarr.open_group(path, mode="w").attrs["multiscales"] = []
        case "multiscales without datasets":
            zarr.open_group(path, mode="w").attrs["multiscales"] = [{"axes": []}]
        case "scale too short":
            save_ome(path, data, "zyx", scale=[1])
        case "array missing":
            save_ome(path, data, "zyx")
            (path / "0" / ".zarray").unlink()
        case "array is a group":
            save_ome(path, data, "zyx", dataset="0/1")
            group = zarr.open_group(path, mode="r+")
            group.attrs["multiscales"] = [{"axes": list("zyx"), "datasets": [{"path": "0"}]}]
        case "axes missing":
            save_ome(path, data, "zy")
        case _:
            path.mkdir()
            name, text = how.split(" ", 1)
            (path / name).write_text(text)
    return f"local://{path}" if how.endswith("URL") else path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty folder", "without Zarr metadata"),
        ("empty folder behind a URL", "does not exist, or holds neither"),
        ("no Zarr in it", "without Zarr metadata"),
        ("group without image", "without an OME-Zarr image"),
        ("v2 group without image", "without an OME-Zarr image"),
        ("ome without multiscales", "without an OME-Zarr image"),
        ("ome is a list", "without an OME-Zarr image"),
        ("multiscales is empty", "OME metadata that cannot be read"),
        ("multiscales without datasets", "OME metadata that cannot be read"),
        ("scale too short", "OME metadata that cannot be read"),
        ("array missing", "names the array '0', which cannot be opened"),
        ("array is a group", "which is a group"),
        ("axes missing", "names 2 axes for an array of 3"),
        ("zarr.json {nope", "cannot be opened as Zarr"),
        ("zarr.json [1]", "cannot be opened as Zarr"),
        ("zarr.json {}", "without an OME-Zarr image"),
        ("zarr.json", "cannot be opened as Zarr"),
        ('zarr.json {"zarr_format": 4, "node_type": "array"}', "cannot be opened as Zarr"),
        ('zarr.json {"zarr_format": 3, "node_type": "array"}', "cannot be opened as Zarr"),
        (".zarray {nope", "cannot be opened as Zarr"),
        (".zarray {}", "cannot be opened as Zarr"),
        (".zgroup {nope", "cannot be opened as Zarr"),
    ],
)
def test_damaged_zarr_is_named(tmp_path, how, message):
    path = damaged_zarr(tmp_path, how if " " in how else f"{how} ")
    with pytest.raises((ValueError, FileNotFoundError), match=r"a\.zarr") as caught:
        open_source(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["zstd", "gzip", "blosc"])
def test_a_damaged_chunk_is_named(tmp_path, codec):
    codecs = {
        "zstd": zarr.codecs.ZstdCodec(),
        "gzip": zarr.codecs.GzipCodec(),
        "blosc": zarr.codecs.BloscCodec(),
    }
    make_zarr(tmp_path / "a.zarr", volume((8, 8, 8)), chunks=(4, 4, 4), compressors=codecs[codec])
    source = open_source(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    source.read((slice(0, 4), slice(0, 4), slice(0, 4)))
    with pytest.raises(ValueError, match=r"a.zarr cannot be read from voxel \(4, 0, 0\)"):
        source.read((slice(4, 8), slice(0, 4), slice(0, 4)))


# What is refused, whatever it comes from


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
        (as_zarr, volume((4, 5)), "supervoxels need three axes"),
        (as_nifti, volume((4, 5)), "supervoxels need three axes"),
        (as_numpy, volume((3, 0, 5)), "an axis is empty"),
        (as_zarr, volume((3, 0, 5)), "an axis is empty"),
        (as_numpy, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_zarr, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_nifti, volume((2, 3, 4, 5)), "holds 2 volumes: pass volume= .*--volume.*0 to 1"),
        (as_numpy, volume((2, 2, 3, 4, 5)), r"more than one way \(2 along axis 0 and 2 along axis 1\)"),
        (as_zarr, volume((2, 2, 3, 4, 5)), "more than one way"),
        (as_nifti, volume((3, 2, 3, 4, 5)), r"more than one way \(2 along axis 3 and 3 along axis 4\)"),
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


@pytest.mark.parametrize("address", [None, 3, [[1]], b"a.nii"])
def test_objects_that_are_no_sources(address):
    with pytest.raises(TypeError, match="a source is a path or URL, an array of numpy"):
        open_source(address)


# Every source


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


# NIfTI out


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


# OME-Zarr out


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
