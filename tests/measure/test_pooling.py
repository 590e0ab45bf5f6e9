"""Pooled channels: equal to NumPy and to rational numbers, the same however the volume is cut, on coarser grids too."""

import json
import sys
import types
from fractions import Fraction

import nibabel
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dseeds
from dseeds.storage import label_records
from tests.support.clusters import in_process

TOP = 2**63 - 1
STATISTICS = ("mean", "std", "min", "max")


def bits(pooled):
    return [pooled.to_numpy(name)[1].tobytes() for name in STATISTICS]


@st.composite
def pooled_volumes(draw):
    """Labels with ids that are far apart, and channels on a grid that is coarser by whole factors."""
    factors = draw(st.tuples(*[st.integers(1, 3)] * 3))
    coarse = draw(st.tuples(*[st.integers(1, 3)] * 3))
    shape = tuple(n * f for n, f in zip(coarse, factors, strict=True))
    ids = np.array([0, *draw(st.lists(st.integers(1, TOP), min_size=1, max_size=4, unique=True))], np.int64)
    labels = ids[draw(arrays(np.int8, shape, elements=st.integers(0, len(ids) - 1)))]
    labels[0, 0, 0] = ids[1]
    dtype = np.dtype(draw(st.sampled_from(["float16", "float32", "float64", ">f4", "int8", "uint16", "int32"])))
    if dtype.kind == "f":
        width = 8 * dtype.itemsize
        elements = st.floats(width=width) | st.floats(-4, 4, width=width) | st.just(0.125)
    else:
        elements = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return labels, draw(arrays(dtype, (draw(st.integers(1, 3)), *coarse), elements=elements)), factors


def moments(values):
    """Return mean, standard deviation and extremes, computed in rational numbers."""
    terms = [Fraction(value) for value in values.tolist()]
    mean = sum(terms) / len(terms)
    return float(mean), float(sum((term - mean) ** 2 for term in terms) / len(terms)) ** 0.5, min(values), max(values)


@settings(max_examples=40)
@given(pooled_volumes(), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 20), st.integers(1, 3))
def test_each_supervoxel_is_pooled_as_by_itself(case, region, rows, threads):
    labels, channels, factors = case
    whole = dseeds.pool(labels, channels, statistics=STATISTICS, channel_axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_records, "BATCH", 2)
        patch.setattr("dseeds.measure.pooling.RANGE", rows)
        cut = dseeds.pool(labels, channels, statistics=STATISTICS, channel_axis=0, region=region, threads=threads)
    assert bits(cut) == bits(whole)
    ids, means = whole.to_numpy()
    np.testing.assert_array_equal(ids, np.unique(labels[labels > 0]))
    assert means.dtype == (np.float64 if channels.dtype in ("float64", "int32") else np.float32)
    assert whole.table["num_pixels"].to_pylist() == [int((labels == label).sum()) for label in ids]
    fine = channels
    for axis, factor in enumerate(factors, start=1):
        fine = np.repeat(fine, factor, axis=axis)
    for row, label in enumerate(ids):
        for channel, values in enumerate(fine):
            inside = values[labels == label].astype(np.float64)
            inside = inside[np.isfinite(inside)]
            found = [float(whole.to_numpy(name)[1][row, channel]) for name in STATISTICS]
            if not inside.size:
                assert np.isnan(found).all()
                continue
            largest = np.abs(inside).max()
            if largest > 1e150 or 0 < largest < 1e-150:
                # Their squares are beyond what a float holds.
                continue
            expected = [float(means.dtype.type(value)) for value in moments(inside)]
            # Squares of float64 are rounded, and the smallest numbers of float32 have fewer digits.
            bounds = (3e-7, 1e-10 * largest + 1e-44) if means.dtype == np.float32 else (1e-13, 1e-7 * largest)
            assert found == pytest.approx(expected, rel=bounds[0], abs=bounds[1])


def test_constant_channels_do_not_deviate():
    labels = np.random.default_rng(0).integers(1, 5, (6, 5, 4))
    for value in (0.1, 1e-30, 1e30, -65504):
        for dtype in ("float16", "float32", "float64"):
            with np.errstate(over="ignore"):
                channel = np.full(labels.shape, value, dtype)
            pooled = dseeds.pool(labels, channel, region=4)
            if np.isfinite(channel[0, 0, 0]):
                assert not pooled.to_numpy("std")[1].any()
                assert (pooled.to_numpy("mean")[1] == channel[0, 0, 0]).all()


def test_means_far_above_their_deviation_keep_it():
    rng = np.random.default_rng(0)
    labels, image = rng.integers(1, 4, (12, 12, 12)), (1e4 + rng.normal(size=(12, 12, 12)) * 0.01).astype(np.float32)
    expected = [np.std(image[labels == label].astype(np.float64) - 1e4) for label in (1, 2, 3)]
    np.testing.assert_allclose(dseeds.pool(labels, image).to_numpy("std")[1][:, 0], expected, rtol=1e-7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels and 40 channels at half the resolution in Zarr."""
    folder, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(1)
    labels = np.kron(rng.permutation(np.arange(1, 28)).reshape(3, 3, 3), np.ones((4, 4, 4), int)).astype(np.uint32)
    zarr.create_array(folder / "labels.zarr", data=labels, chunks=(6, 6, 6))
    channels = rng.normal(size=(40, 6, 6, 6)).astype(np.float16)
    zarr.create_array(folder / "embedding.zarr", data=channels, chunks=(16, 3, 3, 3))
    return folder


def test_channels_in_files(folder, tmp_path):
    labels, embedding = (zarr.open_array(folder / f"{name}.zarr")[:] for name in ("labels", "embedding"))
    stored = dseeds.pool(folder / "labels.zarr", folder / "embedding.zarr", tmp_path / "pool", channel_axis=0, region=5)
    held = dseeds.pool(labels, list(embedding))
    ids, means = stored.to_numpy()
    assert (stored.supervoxels, stored.channels, means.shape) == (27, 40, (27, 40))
    np.testing.assert_array_equal(means, held.to_numpy()[1])
    fine = embedding.repeat(2, 1).repeat(2, 2).repeat(2, 3).astype(np.float64)
    for name, function in (("mean", np.mean), ("std", np.std)):
        expected = [[function(channel[labels == label]) for channel in fine] for label in ids]
        np.testing.assert_allclose(stored.to_numpy(name)[1], expected, rtol=1e-5, atol=1e-7)
    with in_process(2) as client:
        shared = dseeds.pool(
            folder / "labels.zarr", embedding, tmp_path / "shared", channel_axis=0, region=5, client=client
        )
    assert shared.table.equals(stored.table)
    frame = pd.read_parquet(tmp_path / "pool" / "table.parquet")
    np.testing.assert_array_equal(np.stack(frame["mean"]), means)


def test_matrices_have_the_labels_as_their_index(folder, monkeypatch):
    pooled = dseeds.pool(folder / "labels.zarr", folder / "embedding.zarr", channel_axis=0)
    ids, means = pooled.to_numpy()
    dataset = pooled.to_xarray()
    assert dataset["mean"].dims == ("label", "channel")
    np.testing.assert_array_equal(dataset["mean"].sel(label=ids[3]), means[3])
    assert dataset["num_pixels"].sel(label=ids[0]) == 64
    # A stand-in that keeps what it gets, where the package is missing.
    if "anndata" not in sys.modules:
        monkeypatch.setitem(sys.modules, "anndata", types.SimpleNamespace(AnnData=types.SimpleNamespace))
    matrix = pooled.to_anndata()
    np.testing.assert_array_equal(matrix.X, means)
    assert matrix.obs.index.tolist() == [str(label) for label in ids]
    assert matrix.obs["label"].tolist() == ids.tolist()
    np.testing.assert_array_equal(matrix.layers["std"], pooled.to_numpy("std")[1])
    with pytest.raises(ValueError, match="'max' was not pooled: choose one of mean, std"):
        pooled.to_numpy("max")


def test_a_coarser_file_lies_where_the_labels_do(tmp_path):
    labels = np.ones((8, 8, 8), np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labels.nii")
    affine = np.diag([2, 2, 2, 1.0])
    affine[:3, 3] = 0.5
    for shift, fits in ((0, True), (3, False)):
        affine[0, 3] += shift
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), affine), tmp_path / "image.nii")
        if fits:
            assert dseeds.pool(tmp_path / "labels.nii", tmp_path / "image.nii").to_numpy()[1].tolist() == [[1]]
        else:
            with pytest.raises(ValueError, match="does not cover what"):
                dseeds.pool(tmp_path / "labels.nii", tmp_path / "image.nii")


def test_the_command(folder, tmp_path, call):
    arguments = "pool", folder / "labels.zarr", folder / "embedding.zarr", "--channel-axis", 0, "-o", tmp_path / "pool"
    code, out, _ = call(*arguments, "--json", "--statistics", "mean,max")
    assert code == 0
    assert json.loads(out) == {"target": str(tmp_path / "pool"), "supervoxels": 27, "channels": 40}
    assert dseeds.Pooled(str(tmp_path / "pool")).table.column_names == ["label", "num_pixels", "mean", "max"]
    code, out, _ = call(*arguments, "--overwrite")
    assert out == f"27 supervoxels, 40 channels: {tmp_path / 'pool'}\n"


def test_what_does_not_match_is_refused(folder, tmp_path):
    labels = zarr.open_array(folder / "labels.zarr")[:]
    for image, options, words in (
        (np.zeros((5, 6, 6)), {}, "by one whole factor along each axis"),
        (np.zeros((24, 12, 12)), {}, "may be coarser than labels but not finer"),
        (np.zeros((40, 6, 6, 6)), {}, "channel_axis"),
        (np.zeros((6, 6, 6)), {"statistics": ["median"]}, "not 'median'"),
        (np.zeros((6, 6, 6)), {"statistics": []}, "statistics must be some of"),
    ):
        with pytest.raises(ValueError, match=words):
            dseeds.pool(labels, image, tmp_path / "pool", **options)
    with pytest.raises(ValueError, match="no supervoxel"):
        dseeds.pool(0 * labels, labels)
    assert not (tmp_path / "pool").exists()
