"""Tables and graphs of supervoxels: equal to independent ones, and in every bit whatever the cut."""

import json
from fractions import Fraction
from itertools import product

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import regionprops_table

import dseeds
from dseeds.cli import main
from dseeds.core import exact_sum
from dseeds.measure import features
from dseeds.seeds.kernels.voxels import BINS
from dseeds.storage import label_records
from dseeds.storage.location import open_location
from dseeds.storage.parquet_dataset import Dataset
from tests.support.clusters import in_process, worker_process_client

# What intensities are rounded to that are no integers of 16 bits, where the window is from -100 to 156.
UNIT = 256 / 2**24
DTYPES = ("uint8", "int16", "uint16", "int32", "uint64", "float32", "float64", ">i2", ">f4")


def frames(found):
    return found.table.to_pandas(), found.edges.to_pandas()


def assert_same(one, other):
    """Equal in every bit."""
    for a, b in zip((one.table, one.edges), (other.table, other.edges), strict=True):
        assert a.column_names == b.column_names
        for name in a.column_names:
            flat = [
                np.asarray(
                    t[name].combine_chunks().flatten() if name[:9] == "histogram" and name[9:10] != "_" else t[name]
                )
                for t in (a, b)
            ]
            assert flat[0].dtype == flat[1].dtype
            assert flat[0].tobytes() == flat[1].tobytes(), name


@st.composite
def volumes(draw):
    """Labels with ids that are far apart, and an image of one or two channels with odd values."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    ids = np.array([0, *draw(st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=6, unique=True))], np.uint64)
    labels = ids[draw(arrays(np.int8, shape, elements=st.integers(0, len(ids) - 1)))]
    labels[0, 0, 0] = ids[1]
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    channels = draw(st.integers(1, 2))
    if dtype.kind == "f":
        elements = st.floats(width=32) | st.floats(-1000, 1000, width=32)
    else:
        elements = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    image = draw(arrays(dtype, (channels, *shape), elements=elements))
    return labels, list(image)


@settings(max_examples=30)
@given(volumes(), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 20), st.integers(1, 3))
def test_no_bit_depends_on_the_cut(volume, region, rows, threads):
    labels, image = volume
    whole = dseeds.features(labels, image, window=(-100, 156))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_records, "BATCH", 2)
        patch.setattr(label_records.label_ranges, "__defaults__", (rows,))
        patch.setattr(features, "RANGE", rows)
        cut = dseeds.features(labels, image, window=(-100, 156), region=region, threads=threads)
    assert_same(whole, cut)


@settings(max_examples=30)
@given(volumes(), st.tuples(*[st.integers(1, 4)] * 3))
def test_each_supervoxel_is_measured_as_by_itself(volume, region):
    labels, image = volume
    table, _ = frames(dseeds.features(labels, image, window=(-100, 156), region=region, spacing=(3, 2, 0.5)))
    assert table["label"].tolist() == np.unique(labels[labels > 0]).tolist()
    for row in table.to_dict("records"):
        inside = labels == np.uint64(row["label"])
        places = np.argwhere(inside)
        assert row["num_pixels"] == len(places)
        assert row["area"] == pytest.approx(3 * len(places))
        assert [row[f"centroid-{a}"] for a in range(3)] == pytest.approx(places.mean(0))
        assert [row[f"bbox-{a}"] for a in range(6)] == [*places.min(0), *(places.max(0) + 1)]
        padded = np.pad(inside, 1)
        outer = [np.count_nonzero(np.diff(padded.astype(int), axis=a)) for a in range(3)]
        surface = outer[0] * 1 + outer[1] * 1.5 + outer[2] * 6
        assert row["surface_area"] == pytest.approx(surface)
        assert row["compactness"] == pytest.approx(36 * np.pi * row["area"] ** 2 / surface**3)
        assert row["border"] == any((places == 0).any(0) | (places == np.array(labels.shape) - 1).any(0))
        for c, channel in enumerate(image):
            name = "" if len(image) == 1 else f"-{c}"
            valid = inside & ~np.isnan(channel)
            values = channel[valid & np.isfinite(channel)].astype(np.float64)
            assert row[f"histogram{name}"].sum() == np.count_nonzero(valid)
            if not values.size:
                assert np.isnan(row[f"intensity_mean{name}"])
                continue
            assert (row[f"intensity_min{name}"], row[f"intensity_max{name}"]) == (values.min(), values.max())
            mean = float(sum(map(Fraction, values.tolist())) / values.size)
            assert row[f"intensity_mean{name}"] == pytest.approx(mean, rel=1e-12, abs=UNIT / 2)
            if np.abs(values).max() < 1e100:
                spread = sum((Fraction(v) - Fraction(mean)) ** 2 for v in values.tolist()) / values.size
                assert row[f"intensity_std{name}"] == pytest.approx(
                    float(spread) ** 0.5, rel=1e-6, abs=UNIT + 1e-6 * (1 + abs(mean))
                )


@settings(max_examples=30)
@given(volumes(), st.tuples(*[st.integers(1, 4)] * 3))
def test_each_contact_is_measured_as_by_itself(volume, region):
    labels, image = volume
    spacing = (3, 2, 0.5)
    found = dseeds.features(labels, image, window=(-100, 156), region=region, spacing=spacing)
    table, edges = frames(found)
    table = table.set_index("label")
    steps = {}
    for index in product(*map(range, labels.shape)):
        for axis in range(3):
            other = tuple(i + (a == axis) for a, i in enumerate(index))
            if other[axis] < labels.shape[axis] and labels[index] != labels[other] and labels[index] and labels[other]:
                pair = tuple(sorted((int(labels[index]), int(labels[other]))))
                steps.setdefault(pair, []).append((axis, index, other))
    assert list(zip(edges["source"], edges["target"], strict=True)) == sorted(steps)
    for row in edges.to_dict("records"):
        faces = steps[row["source"], row["target"]]
        assert row["num_faces"] == len(faces)
        assert row["area"] == pytest.approx(sum((1, 1.5, 6)[axis] for axis, *_ in faces))
        ends = table.loc[row["source"]], table.loc[row["target"]]
        for c, channel in enumerate(image):
            name = "" if len(image) == 1 else f"-{c}"
            x = channel.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                along = [abs(x[a] - x[b]) / spacing[axis] for axis, a, b in faces]
                both = [x[a] / 2 + x[b] / 2 for _, a, b in faces if np.isfinite(abs(x[a] - x[b]))]
            along = [value for value in along if np.isfinite(value)]
            expected = np.mean(along) if along else np.nan
            near = float(np.mean(np.array(both, np.longdouble))) if both else np.nan
            largest = max(map(abs, both), default=0)
            found = row[f"intensity_mean{name}"]
            assert found == pytest.approx(near, rel=1e-9, abs=UNIT + 1e-9 * largest, nan_ok=True)
            # Of two voxels, half a millimetre apart.
            tolerance = 2 * UNIT
            assert row[f"intensity_gradient{name}"] == pytest.approx(expected, rel=1e-9, abs=tolerance, nan_ok=True)
            means = [end[f"intensity_mean{name}"] for end in ends]
            assert row[f"intensity_difference{name}"] == pytest.approx(abs(means[0] - means[1]), nan_ok=True)
            counts = [end[f"histogram{name}"] for end in ends]
            if all(count.sum() for count in counts):
                shares = [count / count.sum() for count in counts]
                distance = 1 - np.minimum(*shares).sum()
                assert row[f"histogram_distance{name}"] == pytest.approx(distance, abs=1e-12)
            else:
                assert np.isnan(row[f"histogram_distance{name}"])


@settings(max_examples=200)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=30), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_and_are_right(numbers, random):
    rows = np.zeros((3, exact_sum.WIDTH), np.int64)
    for number in numbers:
        exact_sum.add_number(rows, 0, 0, number)
    shuffled = random.sample(numbers, len(numbers))
    middle = random.randint(0, len(numbers))
    for number in shuffled[:middle]:
        exact_sum.add_number(rows, 1, 0, number)
    for number in shuffled[middle:]:
        exact_sum.add_number(rows, 2, 0, number)
    exact_sum.add_sum(rows, 1, 0, rows, 2)
    assert rows[0].tolist() == rows[1].tolist()
    [total] = exact_sum.totals(rows[:1], 0)
    right = sum(map(Fraction, numbers), Fraction())
    largest = max(map(abs, numbers), default=0.0)
    if abs(right) < Fraction(1.7e308):
        # 72 bits below the digit of the largest, and the last bit of the result.
        assert abs(Fraction(float(total)) - right) <= len(numbers) * Fraction(largest) / 2**48 / 2**16 + abs(
            right
        ) / 2**51 + Fraction(5e-324)


@pytest.fixture(scope="module")
def supervoxels(ct_3mm):
    image = ct_3mm[0].astype(np.int16)
    return dseeds.supervoxels(image, step=8, window="abdomen"), image


def test_names_and_values_are_those_of_scikit_image(supervoxels):
    labels, image = supervoxels
    found = dseeds.features(labels, image, spacing=(3, 3, 3), window="abdomen", region=40).table.to_pandas()
    names = (
        "label",
        "area",
        "num_pixels",
        "bbox",
        "centroid",
        "intensity_mean",
        "intensity_min",
        "intensity_max",
        "intensity_std",
    )
    theirs = regionprops_table(labels.astype(np.int32), image, properties=names)
    for name, values in theirs.items():
        unit = 27 if name == "area" else 1
        np.testing.assert_allclose(found[name] * 1.0, values * unit, rtol=1e-9, atol=1e-6, err_msg=name)
    assert found["histogram"].map(len).eq(BINS).all()
    # A percentile is off by no more than a bin.
    exact_median = [np.median(image[labels == label]) for label in found["label"][:50]]
    inside = np.clip(exact_median, -160, 240)
    assert np.abs(np.clip(found["intensity_percentile_50"][:50], -160, 240) - inside).max() <= 2 * 400 / BINS


# Dask's own.
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_libraries_read_the_tables(supervoxels, tmp_path):
    import dask.dataframe as dd
    import polars as pl

    labels, image = supervoxels
    target = tmp_path / "labels.features"
    found = dseeds.features(labels, image, target, window="abdomen")
    assert (found.supervoxels, found.contacts) == (found.table.num_rows, found.edges.num_rows)
    for name, table in {"table.parquet": found.table, "edges.parquet": found.edges}.items():
        ours = table.to_pandas()
        pd.testing.assert_frame_equal(pd.read_parquet(target / name), ours)
        assert pl.read_parquet(target / name / "*.parquet").shape == ours.shape
        theirs = dd.read_parquet(str(target / name)).compute(scheduler="threads")
        assert len(theirs) == len(ours)
        assert theirs.iloc[:, 1].sum() == ours.iloc[:, 1].sum()
    assert not (target / "scratch").exists()


@pytest.mark.dask
def test_a_cluster_gives_the_same(supervoxels, tmp_path):
    labels, image = supervoxels
    store = zarr.create_array(tmp_path / "labels.zarr", data=labels, chunks=(32, 32, 32))
    with worker_process_client() as client:
        there = dseeds.features(store, image, tmp_path / "there", window="abdomen", region=64, client=client)
        assert_same(dseeds.features(labels, image, window="abdomen"), there)


def test_places_in_the_world_are_those_of_the_affine(tmp_path):
    labels = np.zeros((4, 5, 6), np.uint16)
    labels[1:3, 2:, :4] = 7
    affine = np.array([[0, -2.0, 0.1, 30], [1.5, 0, 0, -20], [0, 0.2, 4, 10], [0, 0, 0, 1]])
    for name, array in {"labels.nii.gz": labels, "image.nii": labels.astype(np.float32)}.items():
        nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), tmp_path / name)
    [row] = dseeds.features(tmp_path / "labels.nii.gz", tmp_path / "image.nii").table.to_pylist()
    centre = nib.affines.apply_affine(affine, [row[f"centroid-{a}"] for a in (2, 1, 0)])
    assert [row[f"centroid_world-{a}"] for a in range(3)] == pytest.approx(centre)
    corners = list(product(*[(row[f"bbox-{a}"] - 0.5, row[f"bbox-{a + 3}"] - 0.5) for a in (2, 1, 0)]))
    places = nib.affines.apply_affine(affine, corners)
    assert [row[f"bbox_world-{a}"] for a in range(6)] == pytest.approx([*places.min(0), *places.max(0)])
    assert row["area"] == pytest.approx(row["num_pixels"] * np.prod(nib.affines.voxel_sizes(affine)))


@pytest.mark.dask
def test_windows_are_those_of_the_labels_or_of_what_has_labels(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (16, 16, 16)).astype(np.float32)
    zarr.create_array(tmp_path / "image.zarr", data=image)
    dseeds.segment(tmp_path / "image.zarr", tmp_path / "labels.zarr", step=8, window=(80, 120), workers=1)
    noted = dseeds.features(tmp_path / "labels.zarr", image)
    assert_same(noted, dseeds.features(tmp_path / "labels.zarr", image, window=(80, 120)))
    labels = np.ones(image.shape, np.uint8)
    labels[8:] = 0
    image[8:] = 1e6
    low, high = np.percentile(image[:8], (0.5, 99.5), method="inverted_cdf")
    searched = dseeds.features(labels, image, region=5)
    assert_same(searched, dseeds.features(labels, image, window=(float(low), float(high))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.zeros((4, 4, 4), int)}, "no supervoxel"),
        ({"labels": np.full((4, 4, 4), -1)}, "from 0 to"),
        ({"labels": np.full((4, 4, 4), 2**63, np.uint64)}, "from 0 to"),
        ({"labels": np.full((4, 4, 4), 0.5)}, "integers"),
        ({"labels": np.ones((4, 4, 5), int)}, "same"),
        ({"window": (3, 2)}, "window"),
        ({"spacing": (1, 1)}, "spacing"),
        ({"region": 0}, "region"),
        ({"memory": "lots"}, "memory"),
        ({"threads": 0}, "threads"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing(change, words, tmp_path):
    arguments = {"labels": np.ones((4, 4, 4), int), "image": np.zeros((4, 4, 4))} | change
    with pytest.raises(ValueError, match=words):
        dseeds.features(arguments.pop("labels"), arguments.pop("image"), tmp_path / "features", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    labels = np.ones((4, 4, 4), int)
    target = tmp_path / "features"
    dseeds.features(labels, labels, target)
    with pytest.raises(FileExistsError, match="--overwrite"):
        dseeds.features(labels, labels, target)
    dseeds.features(labels + 1, labels, target, overwrite=True)
    assert pq.read_table(target / "table.parquet")["label"].to_pylist() == [2]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        dseeds.features(labels, labels, target, overwrite=True)
    with pytest.raises(FileNotFoundError, match="folder"):
        dseeds.features(labels, labels, tmp_path / "no" / "features")
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("window", [(-1e9, 1e9), (1e9, 2e9)])
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_integers_far_from_their_window_are_measured(dtype, window):
    image = np.random.default_rng(0).integers(0, 1 << 15, (4, 6, 8)).astype(dtype)
    labels = 1 + np.arange(image.size).reshape(image.shape) // 100
    near, far = (frames(dseeds.features(labels, image, window=given)) for given in ((0, 1 << 15), window))
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(near[0][f"intensity_{name}"], far[0][f"intensity_{name}"], rtol=1e-9)
    np.testing.assert_allclose(near[1]["intensity_gradient"], far[1]["intensity_gradient"], rtol=1e-9)


def test_labels_that_are_floats_keep_their_size():
    labels = np.array([[[1, 2.0**33, 2.0**62]]], np.float32)
    assert dseeds.features(labels, labels, window=(0, 1)).table["label"].to_pylist() == [1, 1 << 33, 1 << 62]


def test_a_run_that_is_overtaken_writes_and_removes_nothing(tmp_path):
    table = pa.table({"label": [1]})
    first = Dataset(open_location(tmp_path / "features")).begin()
    second = Dataset(first.location).begin()
    second.write("table.parquet", 0, table)
    for late in (lambda: first.write("table.parquet", 0, table), lambda: first.publish({})):
        with pytest.raises(RuntimeError, match="no longer this run's"):
            late()
    for read in (dseeds.load_graph, lambda address: dseeds.Features(address).table):
        with pytest.raises(FileNotFoundError, match="not all of them"):
            read(first.address)
    second.publish({})
    first.abandon()
    assert second.read_table("table.parquet") == table
    third = Dataset(first.location).begin()
    third.abandon()
    assert not (tmp_path / "features").exists()
    with pytest.raises(RuntimeError, match="no longer"):
        third.write("table.parquet", 0, table)


def test_damaged_scratch_is_noticed(tmp_path, monkeypatch):
    rows = np.arange(6).reshape(3, 2)
    kept = label_records.LabelRecords(open_location(tmp_path / "rows"), 2)
    [part] = label_records.label_ranges({0: kept.write(0, rows)})
    assert kept.read(part).tolist() == rows.tolist()
    path = tmp_path / "rows" / "0"
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        kept.read(part)


@pytest.mark.parametrize("ending", ["zarr", "nii.gz"])
def test_segment_measures_in_the_same_run(supervoxels, tmp_path, ending):
    _, image = supervoxels
    affine = np.diag([3, 3, 3, 1.0])
    source = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), affine), source)
    with in_process() as client:
        report = dseeds.segment(
            source, tmp_path / f"labels.{ending}", step=8, window="abdomen", features=True, region=64, client=client
        )
    assert report.features == str(tmp_path / "labels.features")
    labels = dseeds.supervoxels(image, step=8, window="abdomen")
    alone = dseeds.features(labels, source, window="abdomen")
    assert_same(alone, dseeds.Features(report.features))
    assert {path.name for path in tmp_path.iterdir()} == {"ct.nii.gz", f"labels.{ending}", "labels.features"}


def test_batch_jobs_measure_when_they_publish(supervoxels, tmp_path, capsys):
    _, image = supervoxels
    source, target = tmp_path / "image.zarr", tmp_path / "labels.zarr"
    zarr.save_array(source, image)
    said = ["--step", "8", "--window", "abdomen", "--region", "64", "--features"]
    assert main(["init", str(source), str(target), "--memory", "2GiB", *said]) == 0
    assert main(["step", f"{target}.dseeds", "--wait", "--index", "0", "--count", "1"]) == 0
    assert not (tmp_path / "labels.features").exists()
    assert main(["finalize", f"{target}.dseeds"]) == 0
    capsys.readouterr()
    assert_same(dseeds.features(target, image), dseeds.Features(str(tmp_path / "labels.features")))


def test_features_of_a_run_that_is_gone_on_with(supervoxels, tmp_path, monkeypatch):
    _, image = supervoxels
    source, target = zarr.create_array(tmp_path / "image.zarr", data=image), tmp_path / "labels.zarr"
    with in_process() as client:
        said = {"step": 8, "window": "abdomen", "region": 64, "client": client}
        with monkeypatch.context() as patch:
            patch.setattr("dseeds.measure.features.Dataset.publish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                dseeds.segment(source, target, features=True, **said)
        assert not (target / "zarr.json").exists()
        with pytest.raises(FileNotFoundError, match="not all of them"):
            _ = dseeds.Features(str(tmp_path / "labels.features")).supervoxels
        dseeds.segment(source, target, resume=True, client=client)
    assert_same(dseeds.features(target, image), dseeds.Features(str(tmp_path / "labels.features")))


def test_the_command_line(supervoxels, tmp_path, capsys):
    labels, image = supervoxels
    zarr.save_array(tmp_path / "labels.zarr", labels)
    zarr.save_array(tmp_path / "image.zarr", image)
    arguments = ["features", str(tmp_path / "labels.zarr"), str(tmp_path / "image.zarr"), "--window", "abdomen"]
    assert main([*arguments, "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    target = tmp_path / "labels.features"
    assert told == {
        "target": str(target),
        "supervoxels": int(labels.max()),
        "contacts": dseeds.Features(str(target)).contacts,
    }
    assert main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    zarr.save_array(tmp_path / "body.zarr" / "labels", labels)
    assert main(["features", str(tmp_path / "body.zarr" / "labels"), str(tmp_path / "image.zarr")]) == 2
    assert "--output" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "again"), "--region", "50", "--threads", "2"]) == 0
    assert_same(dseeds.Features(str(target)), dseeds.Features(str(tmp_path / "again")))


def test_all_of_it_may_lie_in_a_bucket(faulty_store):
    bucket = open_location(faulty_store.make_bucket())
    image = np.random.default_rng(0).integers(0, 200, (8, 9, 10)).astype(np.uint8)
    labels = 1 + np.arange(image.size).reshape(image.shape) // 37
    array = zarr.create_array(bucket.zarr("labels.zarr"), shape=labels.shape, dtype=np.int32, chunks=(8, 9, 5))
    array[...] = labels
    there, target = bucket.at("labels.zarr").address, bucket.at("labels.features").address
    assert_same(dseeds.features(there, image, target, region=(8, 9, 5)), dseeds.features(labels, image))
    with pytest.raises(FileExistsError, match="--overwrite"):
        dseeds.features(there, image, target)
    dseeds.agglomerate(target).save(bucket.at("tree.parquet").address)
    tree = dseeds.MergeTree.load(bucket.at("tree.parquet").address)
    assert tree.labels.tolist() == np.unique(labels).tolist()
    assert dseeds.evaluate(there, labels, region=(8, 9, 5), scratch=bucket.address) == dseeds.evaluate(labels, labels)
    # Nothing of the scratch is left.
    assert {name.partition("/")[0] for name in bucket.names()} == {"labels.zarr", "labels.features", "tree.parquet"}
    assert not any("scratch" in name for name in bucket.names())
