"""Values return to their voxels: each voxel has what the table says of its label, whatever the table comes in."""

import json
import shutil
import tempfile
from pathlib import Path

import dask
import dask.array as da
import nibabel
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import dseeds
from dseeds.convert.describe import describe
from dseeds.io import open_source
from dseeds.measure import lookup, painting
from dseeds.storage.label_group import begin_target, is_our_group, written_by
from dseeds.storage.location import open_location
from dseeds.storage.ownership import MARKER
from tests.support.clusters import in_process

TOP = 2**63 - 1
quick, few = settings(max_examples=40), settings(max_examples=12)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
ids = st.integers(0, 6) | st.integers(0, TOP) | st.sampled_from([2**32 - 1, 2**32, TOP - 1, TOP])


@pytest.fixture(scope="module", autouse=True)
def lazily_by_threads():
    """Clients of other tests, closed or not, have no part in what is computed here."""
    with dask.config.set(scheduler="threads"):
        yield


@pytest.fixture(scope="module")
def client():
    with in_process(2) as client:
        yield client


def oracle(labels, table, fill):
    """Look voxels up one at a time."""
    return np.array([table.get(int(label), fill) for label in labels.ravel()]).reshape(labels.shape)


def stored(address, labels, chunks=(4, 4, 4), shards=None):
    array = zarr.create_array(address, shape=labels.shape, dtype=labels.dtype, chunks=chunks, shards=shards)
    array[...] = labels
    return array


def written(target):
    return np.asarray(zarr.open_array(Path(target) / "0", mode="r"))


def blobs(shape=(12, 10, 14), count=9, seed=0):
    """Labels in blocks, some of them 0."""
    coarse = np.random.default_rng(seed).integers(0, count, [-(-n // 3) for n in shape])
    return np.kron(coarse, np.ones((3, 3, 3), int))[tuple(map(slice, shape))]


LABELS = blobs()
TABLE = {label: label * 0.5 for label in range(1, 9)}
COLUMNS = {"label": list(TABLE), "x": list(TABLE.values())}


@st.composite
def tables(draw):
    """Labels, and a table that has rows for some of them and for others."""
    known = draw(st.lists(ids, min_size=1, max_size=12, unique=True))
    there = draw(st.lists(ids, max_size=4)) + known
    shape, seed = draw(shapes), draw(st.integers(0, 99))
    labels = np.array(there, np.int64)[np.random.default_rng(seed).integers(0, len(there), shape)]
    number = draw(
        st.sampled_from([st.integers(-(2**63), TOP), st.integers(0, 255), st.floats(width=32), st.booleans()])
    )
    return labels, {label: draw(number) for label in known}


# What a voxel gets


@quick
@given(tables())
def test_every_voxel_has_the_value_of_its_label(case):
    labels, table = case
    painted = dseeds.paint(labels, table).compute()
    fill = np.nan if painted.dtype.kind == "f" else 0
    np.testing.assert_array_equal(painted, oracle(labels, table, fill))


@few
@given(tables(), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), shapes, st.integers(1, 3))
def test_no_voxel_depends_on_how_the_volume_is_cut(case, chunks, factors, region, threads):
    labels, table = case
    shards = tuple(c * f for c, f in zip(chunks, factors, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        source = stored(Path(folder, "labels.zarr"), labels, chunks, shards)
        report = dseeds.paint(source, table, Path(folder, "a.zarr"), region=region, threads=threads)
        array = zarr.open_array(Path(folder, "a.zarr", "0"), mode="r")
        assert (array.chunks, array.shards) == (chunks, shards if shards != chunks else None)
        lazy = dseeds.paint(source, table)
        assert (array.dtype.name, lazy.dtype) == (report.dtype, array.dtype)
        np.testing.assert_array_equal(array[...], lazy.compute())
    np.testing.assert_array_equal(array.dtype.type(report.fill), np.nan if array.dtype.kind == "f" else 0)
    assert report.without_value == np.count_nonzero(
        ~np.isin(labels, [k for k in table if table[k] == table[k]]) & (labels != 0)
    )


def test_a_cluster_paints_the_same(client, tmp_path):
    for name, source in (("stored", stored(tmp_path / "labels.zarr", LABELS)), ("array", LABELS)):
        for how in ({"client": client}, {"threads": 2}):
            dseeds.paint(source, TABLE, tmp_path / f"{name}-{len(how.get('client', '') and 'c')}", region=4, **how)
    for target in tmp_path.glob("*-*"):
        np.testing.assert_array_equal(written(target), oracle(LABELS, TABLE, np.nan))
        assert not (target / "scratch").exists()


def test_another_volume_at_the_same_place(client, tmp_path):
    """Copies of the labels are known by their run: processes remember arrays that they have opened."""
    for shape in ((12, 10, 14), (7, 20, 9)):
        labels = blobs(shape)
        dseeds.paint(labels, TABLE, tmp_path / "a.zarr", client=client, overwrite=True)
        np.testing.assert_array_equal(written(tmp_path / "a.zarr"), oracle(labels, TABLE, np.nan))


@pytest.mark.parametrize(
    ("numbers", "fill", "dtype"),
    [
        ([0, 255], None, "uint8"),
        ([0, 256], None, "int16"),
        ([-1, 255], None, "int16"),
        ([0, 255], -1, "int16"),
        ([0, 40000], None, "uint16"),
        ([-1, 40000], None, "int32"),
        ([0, 2**31], None, "uint32"),
        ([-1, 2**31], None, "int64"),
        (np.uint64([0, 2**63]), None, "uint64"),
        ([True, False], None, "uint8"),
        (np.float16([0.5, 1]), None, "float32"),
        (np.float32([0.5, 1]), None, "float32"),
        ([0.5, 1], 0, "float64"),
    ],
)
def test_values_are_stored_as_narrow_as_they_fit(numbers, fill, dtype):
    labels = np.array([[[1, 2, 3]]])
    table = {"label": [1, 2], "x": np.asarray(numbers)}
    painted = dseeds.paint(labels, table, column="x", fill=fill).compute()
    assert painted.dtype == dtype
    expected = fill if fill is not None else np.nan if painted.dtype.kind == "f" else 0
    np.testing.assert_array_equal(painted[0, 0], [*np.asarray(numbers).tolist(), expected])


def test_missing_values_are_filled():
    labels = np.array([[[0, 1, 2, 3, 4]]])
    table = pa.table({"label": [1, 2, 3], "x": [1.5, None, float("nan")], "n": pa.array([7, None, 2**60])})
    np.testing.assert_array_equal(dseeds.paint(labels, table, column="x", fill=-1).compute(), [[[-1, 1.5, -1, -1, -1]]])
    np.testing.assert_array_equal(dseeds.paint(labels, table, column="n").compute(), [[[0, 7, 0, 2**60, 0]]])
    # A row for what is masked out is a row.
    np.testing.assert_array_equal(dseeds.paint(labels, {0: 9, 1: 8}).compute(), [[[9, 8, 0, 0, 0]]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": {1: 0.5}, "dtype": "int16"}, "not integers"),
        ({"table": {1: 300}, "dtype": "uint8"}, "from 0 to 300, which uint8 does not hold"),
        ({"table": {1: 3}, "dtype": "uint8", "fill": -1}, "from -1 to 3"),
        ({"table": {1: 3}, "fill": float("nan")}, "float32 or float64"),
        ({"table": {1: 3}, "fill": float("inf")}, "float32 or float64"),
        ({"table": {1: 3}, "dtype": "complex64"}, "dtype must be one of"),
        ({"table": {1: 3}, "dtype": "foo"}, "dtype must be one of"),
        ({"table": {1: -3}, "as_labels": True}, "integers from 0"),
        ({"table": {1: 0.5}, "as_labels": True}, "integers from 0"),
        ({"table": {1: -1, 2: 2**63}}, "more than numbers of 64 bits"),
        ({"table": {1: "a", 2: 1}}, "more than numbers of 64 bits"),
        (
            {"table": pa.table({"label": [1], "x": pa.array([2**63], pa.uint64())}), "column": "x", "fill": -1},
            "from -1 to",
        ),
        ({"table": {}}, "no rows"),
    ],
)
def test_what_cannot_be_stored_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        dseeds.paint(LABELS, options.pop("table"), **options)


def test_a_smaller_dtype_may_be_asked_for():
    painted = dseeds.paint(np.array([[[1, 2]]]), {1: 0.1, 2: 1e300}, dtype="float32").compute()
    np.testing.assert_array_equal(painted, np.array([[[np.float32(0.1), np.inf]]]))


def test_organs_in_their_mean_density(ct_3mm):
    scan, organs = ct_3mm
    named = np.unique(organs)
    means = ndimage.mean(scan, organs, named)
    table = pd.DataFrame({"mean": means}, index=pd.Index(named, name="label"))
    painted = dseeds.paint(organs, table, column="mean").compute()
    assert painted.dtype == np.float64
    np.testing.assert_array_equal(ndimage.minimum(painted, organs, named), means)
    np.testing.assert_array_equal(ndimage.maximum(painted, organs, named), means)


# What tables come in


def as_files(folder):
    shuffled = pa.table(COLUMNS).take([3, 0, 7, 2, 6, 1, 5, 4])
    pq.write_table(shuffled, folder / "a.parquet")
    (folder / "parts").mkdir()
    for part in (0, 1):
        pq.write_table(shuffled.slice(4 * part, 4), folder / "parts" / f"part-{part}.parquet")
    pyarrow.csv.write_csv(shuffled, folder / "a.csv")
    shuffled.to_pandas().to_csv(folder / "a.tsv", sep="\t", index=False)
    shuffled.to_pandas().to_csv(folder / "a.csv.gz", index=False)


@pytest.mark.parametrize("name", ["a.parquet", "parts", "a.csv", "a.tsv", "a.csv.gz"])
def test_files(tmp_path, name):
    as_files(tmp_path)
    painted = dseeds.paint(LABELS, tmp_path / name, column="x")
    np.testing.assert_array_equal(painted, oracle(LABELS, TABLE, np.nan))


@pytest.mark.parametrize(
    "make",
    [
        lambda: COLUMNS,
        lambda: pa.table(COLUMNS),
        lambda: pd.DataFrame(COLUMNS),
        lambda: pd.DataFrame({**COLUMNS, "mixed": [1, "a", None, *range(5)]}).set_index("label"),
        lambda: pytest.importorskip("polars").DataFrame(COLUMNS),
    ],
)
def test_tables_in_memory(make):
    np.testing.assert_array_equal(dseeds.paint(LABELS, make(), column="x"), oracle(LABELS, TABLE, np.nan))


def test_a_csv_whose_first_values_are_whole(tmp_path):
    rows = 200_000
    table = pa.table({"label": np.arange(1, rows + 1), "x": np.where(np.arange(rows) < rows - 5, 1, 0.5)})
    lines = "\n".join(f"{label},{x:g}" for label, x in zip(*table.to_pydict().values(), strict=True))
    (tmp_path / "a.csv").write_text(f"label,x\n{lines}\n")
    labels = np.array([[[1, rows]]])
    np.testing.assert_array_equal(dseeds.paint(labels, tmp_path / "a.csv", column="x"), [[[1, 0.5]]])


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (COLUMNS, {"column": "y"}, "no column 'y': its columns are label, x"),
        (COLUMNS, {"column": "x", "label_column": "id"}, "no column 'id': its columns are label, x"),
        (pa.table(COLUMNS), {}, "which one holds the values"),
        ({"label": [1, 2, 1], "x": [1, 1, 1]}, {"column": "x"}, "more than one row for label 1"),
        ({"label": [1, 2, 2], "x": [1, 1, None]}, {"column": "x"}, "more than one row for label 2"),
        ({"label": [1], "x": ["a"]}, {"column": "x"}, "type string in its column 'x'"),
        ({"label": [1], "x": [[1, 2]]}, {"column": "x"}, "type list"),
        ({"label": ["1"], "x": [1]}, {"column": "x"}, "type string in its column 'label'"),
        ({"label": [None, 1], "x": [1, 1]}, {"column": "x"}, "missing labels"),
        ({"label": [0.5], "x": [1]}, {"column": "x"}, "not integers from 0"),
        ({"label": [-1], "x": [1]}, {"column": "x"}, "not integers from 0"),
        ({"label": np.uint64([2**63]), "x": [1]}, {"column": "x"}, "not integers from 0"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, table, options, words):
    with pytest.raises(ValueError, match=words):
        dseeds.paint(LABELS, table, tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_no_table(tmp_path):
    (tmp_path / "a.parquet").write_text("no Parquet")
    (tmp_path / "a.csv").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").touch()
    for name, error, words in (
        ("a.parquet", ValueError, "cannot be read as a table"),
        ("a.csv", ValueError, "cannot be read as a table"),
        ("folder", ValueError, "without Parquet"),
        ("folder/a.txt", ValueError, "is not a table"),
        ("b.parquet", FileNotFoundError, "does not exist"),
        ("features", FileNotFoundError, "does not exist: name a folder of features"),
    ):
        with pytest.raises(error, match=words):
            dseeds.paint(LABELS, tmp_path / name, column="x")
    with pytest.raises(TypeError, match=r"not builtins\.int"):
        dseeds.paint(LABELS, 5, column="x")


def test_what_was_counted_comes_back(tmp_path):
    labels, image = blobs((20, 18, 22), 30), np.zeros((20, 18, 22), np.uint8)
    kept = dseeds.features(labels, image, window=(0, 1))
    dseeds.features(labels, image, tmp_path / "features", window=(0, 1))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    for table in (kept, kept.table, tmp_path / "features", tmp_path / "features" / "table.parquet"):
        painted = dseeds.paint(labels, table, column="num_pixels")
        np.testing.assert_array_equal(painted, sizes[labels])
    (tmp_path / "features" / "dseeds-features.json").rename(tmp_path / "features" / MARKER)
    with pytest.raises(FileNotFoundError, match="not all of them"):
        dseeds.paint(labels, tmp_path / "features", column="num_pixels")


# Many rows


def in_parts(folder, labels, numbers, rows):
    folder.mkdir()
    for part, begin in enumerate(range(0, len(labels), rows)):
        some = slice(begin, begin + rows)
        table = pa.table({"label": labels[some], "x": numbers[some]})
        pq.write_table(table, folder / f"part-{part:05}.parquet")


@quick
@given(st.sets(ids, min_size=2, max_size=30), st.integers(1, 9), st.integers(0, 99))
def test_rows_are_read_from_the_parts_that_have_them(known, rows, seed):
    rng = np.random.default_rng(seed)
    known = np.sort(np.array(list(known), np.int64))
    numbers = rng.integers(-300, 300, len(known)).astype(float)
    numbers[rng.random(len(known)) < 0.2] = np.nan
    labels = rng.choice(np.concatenate([known, [0, 5, TOP, 2**40]]), (4, 5, 6))
    table = dict(zip(known.tolist(), numbers.tolist(), strict=True))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "MAX_HELD_ROWS", 1)
        in_parts(Path(folder, "parts"), known, numbers, rows)
        opened = lookup.open_values(f"{folder}/parts", "x")
        assert isinstance(opened, lookup.PartedValues)
        painted = dseeds.paint(labels, f"{folder}/parts", column="x").compute()
        narrow = dseeds.paint(labels, f"{folder}/parts", column="x", dtype="float32").compute()
    np.testing.assert_array_equal(painted, oracle(labels, table, np.nan))
    np.testing.assert_array_equal(narrow, painted)
    assert narrow.dtype == np.float32


def test_a_region_reads_its_own_parts_alone_and_once(tmp_path, monkeypatch):
    labels = np.arange(1, 8001).reshape(20, 20, 20)
    in_parts(tmp_path / "parts", np.arange(1, 8001), np.arange(1, 8001), 400)
    monkeypatch.setattr(lookup, "MAX_HELD_ROWS", 1)
    painted = dseeds.paint(labels, tmp_path / "parts", column="x")
    assert painted.dtype == np.int16
    lookup._read_cached.cache_clear()
    for _ in range(2):
        np.testing.assert_array_equal(painted[3:5].compute(), labels[3:5])
    assert lookup._read_cached.cache_info().misses == 2
    # A plane of labels is a part here.
    shutil.rmtree(tmp_path / "parts")
    in_parts(tmp_path / "parts", np.arange(1, 8001), np.arange(8000), 400)
    again = dseeds.paint(labels, tmp_path / "parts", column="x")
    np.testing.assert_array_equal(again[3:5].compute(), labels[3:5] - 1)
    shutil.rmtree(tmp_path / "parts")
    with pytest.raises(FileNotFoundError):
        painted[6].compute()


@pytest.mark.parametrize("order", [np.s_[::-1], np.s_[[0, 2, 1, *range(3, 20)]]])
def test_parts_in_any_order_are_held(tmp_path, monkeypatch, order):
    known = np.arange(1, 21)[order]
    monkeypatch.setattr(lookup, "MAX_HELD_ROWS", 1)
    in_parts(tmp_path / "parts", known, known * 2, 7)
    assert isinstance(lookup.open_values(tmp_path / "parts", "x"), lookup.HeldValues)
    np.testing.assert_array_equal(dseeds.paint(LABELS, tmp_path / "parts", column="x"), LABELS * 2)


# Lazily


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    stored(tmp_path / "labels.zarr", LABELS)
    asked = []
    reading = painting.read_labels
    monkeypatch.setattr(painting, "read_labels", lambda source, box: asked.append(box.shape) or reading(source, box))
    painted = dseeds.paint(tmp_path / "labels.zarr", TABLE)
    assert isinstance(painted, da.Array)
    assert painted.chunks == ((4, 4, 4), (4, 4, 2), (4, 4, 4, 2))
    assert not asked
    corner = painted[:2, 1, 3].compute(scheduler="synchronous")
    # No more than the slice, for Dask hands it down.
    assert asked == [(2, 1, 1)]
    np.testing.assert_array_equal(corner, LABELS[:2, 1, 3] * 0.5)


@few
@given(st.tuples(*[st.slices(12), st.slices(10), st.slices(14)]), st.integers(-10, 9))
def test_any_part_is_that_of_the_volume(index, number):
    painted, whole = dseeds.paint(LABELS, {**TABLE, 0: 0}), LABELS * 0.5
    rows = [0, 9, 2, 2]
    np.testing.assert_array_equal(painted[index].compute(scheduler="synchronous"), whole[index])
    for mixed in ((index[0], number, index[2]), (number, rows), (index[0], rows, number)):
        np.testing.assert_array_equal(
            painted[mixed].compute(scheduler="synchronous"), da.asarray(whole)[mixed].compute()
        )


def test_workers_compute_what_is_lazy(client):
    np.testing.assert_array_equal(client.compute(dseeds.paint(LABELS, TABLE)).result(60), oracle(LABELS, TABLE, np.nan))


# Where it goes


@pytest.mark.parametrize(("ending", "as_labels"), [(".nii", False), (".nii.gz", True)])
def test_nifti_lies_where_the_labels_do(tmp_path, ending, as_labels):
    affine = np.array([[0, -2, 0.0, 5], [3, 0, 0, -7], [0, 0, 4, 11], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(LABELS.T.astype(np.float32), affine), tmp_path / "labels.nii.gz")
    target = tmp_path / f"a{ending}"
    report = dseeds.paint(tmp_path / "labels.nii.gz", {1: 300, 2: 7}, target, as_labels=as_labels)
    image = nibabel.load(target)
    np.testing.assert_array_equal(image.affine, affine)
    assert image.get_data_dtype() == report.dtype == "int16"
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, oracle(LABELS, {1: 300, 2: 7}, 0))
    assert report.without_value == np.count_nonzero(LABELS > 2)
    assert describe(target)["kind"] == ("labels" if as_labels else "image")
    with pytest.raises(FileExistsError, match="overwrite"):
        dseeds.paint(tmp_path / "labels.nii.gz", TABLE, target)
    dseeds.paint(tmp_path / "labels.nii.gz", TABLE, target, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.nii.gz", target.name}


@pytest.mark.parametrize("as_labels", [False, True])
def test_ome_zarr_is_read_again(tmp_path, as_labels):
    nibabel.save(nibabel.Nifti1Image(LABELS.T.astype(np.int32), np.diag([2, 3, 4, 1])), tmp_path / "labels.nii")
    dseeds.paint(tmp_path / "labels.nii", {1: 1}, tmp_path / "a.zarr", as_labels=as_labels)
    source = open_source(tmp_path / "a.zarr")
    assert source.spacing == (4, 3, 2)
    np.testing.assert_array_equal(source.read(np.s_[:, :, :]), LABELS == 1)
    attributes = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs.asdict()
    assert ("image-label" in attributes["ome"]) == as_labels
    assert describe(tmp_path / "a.zarr")["kind"] == ("labels" if as_labels else "image")
    assert {path.name for path in (tmp_path / "a.zarr").iterdir()} == {"0", "zarr.json"}


def test_nothing_is_overwritten_that_should_not_be(tmp_path):
    stored(tmp_path / "labels.zarr", LABELS)
    dseeds.paint(tmp_path / "labels.zarr", TABLE, tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        dseeds.paint(tmp_path / "labels.zarr", TABLE, tmp_path / "a.zarr")
    dseeds.paint(tmp_path / "labels.zarr", {1: 1}, tmp_path / "a.zarr", overwrite=True)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), LABELS == 1)
    # What is read is never written to, though both are ours.
    with pytest.raises(FileExistsError, match="is the source, or holds it"):
        dseeds.paint(tmp_path / "a.zarr", TABLE, tmp_path / "a.zarr", overwrite=True)
    (tmp_path / "a.zarr" / "scratch").mkdir()
    (tmp_path / "a.zarr" / "scratch" / "mine").touch()
    with pytest.raises(FileExistsError, match="scratch"):
        dseeds.paint(tmp_path / "labels.zarr", TABLE, tmp_path / "a.zarr", overwrite=True)
    with pytest.raises(FileExistsError, match="not written by dseeds"):
        dseeds.paint(LABELS, TABLE, tmp_path / "labels.zarr", overwrite=True)
    with pytest.raises(FileNotFoundError, match="folder"):
        dseeds.paint(LABELS, TABLE, tmp_path / "none" / "a.zarr")
    as_files(tmp_path)
    with pytest.raises(FileExistsError, match="is the source"):
        dseeds.paint(LABELS, tmp_path / "parts", tmp_path / "parts", column="x", overwrite=True)
    with pytest.raises(ValueError, match="but the labels are not"):
        dseeds.paint(LABELS, TABLE, tmp_path / "a.nii")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("target", ["a.zarr", "a.nii.gz"])
def test_what_ends_early_leaves_nothing(tmp_path, monkeypatch, stop, target):
    source = tmp_path / ("labels.nii" if target.endswith(".gz") else "labels.zarr")
    if source.suffix == ".nii":
        nibabel.save(nibabel.Nifti1Image(LABELS.T.astype(np.int32), None), source)
    else:
        stored(source, LABELS)
    calls = []

    def fail(source, box):
        calls.append(box)
        if len(calls) > 1:
            raise stop
        return source.read(box.slices)

    monkeypatch.setattr(painting, "read_labels", fail)
    monkeypatch.setattr(painting, "slab_thickness", lambda *_: 4)
    with pytest.raises(stop):
        dseeds.paint(source, TABLE, tmp_path / target, region=4, threads=1)
    assert len(calls) > 1
    assert list(tmp_path.iterdir()) == [source]


def test_what_was_killed_is_unfinished_and_may_be_overwritten(tmp_path):
    target = tmp_path / "a.zarr"
    begin_target(open_location(target), "0123456789abcdef")
    stored(target / "0", LABELS)
    stored(target / "scratch" / f"labels-{2 * '0123456789abcdef'}", LABELS)
    assert is_our_group(open_location(target))
    with pytest.raises(ValueError, match="unfinished"):
        describe(target)
    with pytest.raises(FileExistsError, match="overwrite"):
        dseeds.paint(LABELS, TABLE, target)
    dseeds.paint(LABELS, TABLE, target, overwrite=True)
    np.testing.assert_array_equal(written(target), oracle(LABELS, TABLE, np.nan))


def test_a_run_that_is_overtaken_neither_finishes_nor_removes_anything(tmp_path, monkeypatch):
    target = tmp_path / "a.zarr"
    paint_region = painting.paint_region

    def overtake(*task):
        found = paint_region(*task)
        begin_target(open_location(target), "another", overwrite=True)
        return found

    monkeypatch.setattr(painting, "paint_region", overtake)
    with pytest.raises(RuntimeError, match="another run"):
        dseeds.paint(LABELS, TABLE, target)
    assert written_by(open_location(target)) == "another"


def test_no_label_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="must be integers"):
        dseeds.paint(LABELS + 0.5, TABLE, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="from 0 to"):
        dseeds.paint(LABELS - 5, TABLE, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


# On the command line


def test_the_command(call, tmp_path):
    stored(tmp_path / "labels.zarr", LABELS)
    as_files(tmp_path)
    asked = ["map", tmp_path / "labels.zarr", tmp_path / "a.csv", tmp_path / "a.zarr"]
    code, out, err = call(*asked, "--column", "x", "--json", "--fill", "-1", "--dtype", "float32", "--threads", "1")
    assert code == 0, err
    found = json.loads(out)
    assert (found["dtype"], found["fill"], found["without_value"]) == ("float32", -1, 0)
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), oracle(LABELS, TABLE, -1))
    code, out, err = call(*asked, "--column", "label", "--as-labels", "--overwrite")
    assert (code, out) == (0, f"label as uint8 in 1680 voxels: {tmp_path / 'a.zarr'}\n"), err
    np.testing.assert_array_equal(written(tmp_path / "a.zarr"), LABELS)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--column", "y"], 1, "its columns are label, x"),
        (["--column", "x", "--label-column", "id"], 1, "no column 'id'"),
        (["--column", "x", "--dtype", "int8"], 1, "round them"),
        (
            ["--column", "x", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"],
            2,
            "cannot be combined with --scheduler",
        ),
        ([], 2, "--column"),
    ],
)
def test_errors_are_one_sentence(call, tmp_path, options, code, words):
    stored(tmp_path / "labels.zarr", LABELS)
    as_files(tmp_path)
    found, out, err = call("map", tmp_path / "labels.zarr", tmp_path / "a.csv", tmp_path / "a.zarr", *options)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert words in err
    assert not (tmp_path / "a.zarr").exists()


# In an object store


def test_a_bucket(faulty_store, tmp_path):
    bucket = open_location(faulty_store.make_bucket())
    array = zarr.create_array(bucket.zarr("labels.zarr"), shape=LABELS.shape, dtype=LABELS.dtype, chunks=(4, 4, 4))
    array[...] = LABELS
    as_files(tmp_path)
    for file in ("a.parquet", "a.csv.gz", "parts/part-0.parquet", "parts/part-1.parquet"):
        bucket.write(file, (tmp_path / file).read_bytes())
    for name in ("a.parquet", "a.csv.gz", "parts"):
        table, target = bucket.at(name).address, bucket.at("b.zarr").address
        dseeds.paint(bucket.at("labels.zarr").address, table, target, column="x", overwrite=True)
        painted = open_source(target)
        np.testing.assert_array_equal(painted.read(np.s_[:, :, :]), oracle(LABELS, TABLE, np.nan))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        dseeds.paint(LABELS, bucket.at("none.parquet").address, column="x")
