"""Zarr and OME-Zarr as sources: arrays, axes, units, scales, damaged metadata and chunks."""

import pickle

import numpy as np
import pytest
import zarr

from dseeds.io import ZarrSource, open_source
from tests.support.sources import make_zarr, save_ome, volume, whole


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


def test_an_array_is_the_same_when_it_is_reopened(tmp_path):
    source = open_source(make_zarr(tmp_path / "a.zarr", volume(dtype=">f8")))
    assert source.reopened().identity == source.identity


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
