"""Textures: equal to scikit-image's in planes and to NumPy's in space, the same however the volume is cut."""

import json
from itertools import product

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.feature import graycomatrix, graycoprops

import dseeds
from dseeds.measure.textures import COLUMNS
from dseeds.storage import label_records

DIRECTIONS = [o for o in product((-1, 0, 1), repeat=3) if o > (0, 0, 0)]


def matrix_of(levels, inside):
    """Count pairs with shifted arrays: direction by direction, both ways."""
    matrix = np.zeros((64, 64))
    padded, valid = np.pad(levels, 1), np.pad(inside, 1)
    for offset in DIRECTIONS:
        other, there = (np.roll(array, [-o for o in offset], (0, 1, 2)) for array in (padded, valid))
        np.add.at(matrix, (padded[valid & there], other[valid & there]), 1)
    return matrix + matrix.T


def properties_of(matrix):
    """Return the textures as scikit-image computes them from a matrix."""
    values = (matrix / matrix.sum())[:, :, None, None]
    return [float(graycoprops(values, name)[0, 0]) for name in COLUMNS]


@st.composite
def levelled(draw):
    """Labels with ids that are far apart, and grey levels from 0 to 63."""
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    ids = np.array([0, *draw(st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=4, unique=True))], np.int64)
    labels = ids[draw(arrays(np.int8, shape, elements=st.integers(0, len(ids) - 1)))]
    labels[0, 0, 0] = ids[1]
    levels = st.integers(0, 63) if draw(st.booleans()) else st.integers(0, 2)
    return labels, draw(arrays(np.uint8, (draw(st.integers(1, 2)), *shape), elements=levels))


@settings(max_examples=40)
@given(levelled(), st.tuples(*[st.integers(1, 4)] * 3), st.integers(1, 20), st.integers(1, 3))
def test_each_supervoxel_has_the_textures_of_its_own_matrix(case, region, rows, threads):
    labels, channels = case
    options = {"window": (0, 64), "channel_axis": 0}
    whole = dseeds.textures(labels, channels, **options).table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_records, "BATCH", 2)
        patch.setattr(label_records.label_ranges, "__defaults__", (rows,))
        cut = dseeds.textures(labels, channels, **options, region=region, threads=threads).table
    assert cut.schema == whole.schema
    for name in whole.column_names:
        assert cut[name].to_numpy().tobytes() == whole[name].to_numpy().tobytes(), name
    assert whole["label"].to_pylist() == np.unique(labels[labels > 0]).tolist()
    for row in whole.to_pylist():
        inside = labels == row["label"]
        assert row["num_pixels"] == inside.sum()
        for c, levels in enumerate(channels):
            suffix = "" if len(channels) == 1 else f"-{c}"
            matrix = matrix_of(levels, inside)
            assert row[f"num_pairs{suffix}"] == matrix.sum() / 2
            found = [row[f"{name}{suffix}"] for name in COLUMNS]
            if matrix.any():
                assert found == pytest.approx(properties_of(matrix), rel=1e-9, abs=1e-12)
            else:
                assert np.isnan(found).all()


def test_a_plane_has_the_textures_of_scikit_image():
    """In one plane there are the four directions of `graycomatrix`, which are added up."""
    levels = np.random.default_rng(0).integers(0, 64, (1, 30, 40)).astype(np.uint8)
    matrices = graycomatrix(levels[0], [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels=64, symmetric=True)
    [row] = dseeds.textures(np.ones_like(levels), levels, window=(0, 64), region=7).table.to_pylist()
    assert [row[name] for name in COLUMNS] == pytest.approx(properties_of(matrices.sum(axis=(2, 3)).astype(float)))


def test_levels_are_the_bins_of_the_window(ct_3mm):
    image, organs = (volume[:40, :40, :40] for volume in ct_3mm)
    labels = dseeds.supervoxels(image, step=8, window=(-160, 240), mask=organs > 0)
    levels = np.clip(np.floor((image.astype(float) + 160) / 400 * 64), 0, 63).astype(np.uint8)
    table = dseeds.textures(labels, image, window=(-160, 240), region=24).table
    for row in [row for row in table.to_pylist() if row["num_pairs"]][:12]:
        expected = properties_of(matrix_of(levels, labels == row["label"]))
        assert [row[name] for name in COLUMNS] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_what_is_no_number_has_no_pairs():
    labels, image = np.ones((1, 1, 4), np.uint8), np.array([[[1, 2, np.nan, 3]]])
    [row] = dseeds.textures(labels, image, window=(0, 64)).table.to_pylist()
    assert (row["num_pixels"], row["num_pairs"], row["contrast"]) == (4, 1, 1)


def test_the_command(tmp_path, call):
    labels = np.kron(np.arange(1, 9).reshape(2, 2, 2), np.ones((3, 3, 3), int)).astype(np.uint32)
    image = np.random.default_rng(0).integers(0, 64, labels.shape).astype(np.uint8)
    for name, volume in (("labels", labels), ("image", image)):
        zarr.create_array(tmp_path / f"{name}.zarr", data=volume, chunks=(4, 4, 4))
    arguments = "textures", tmp_path / "labels.zarr", tmp_path / "image.zarr", "--window", "0:64"
    code, out, _ = call(*arguments, "--json")
    assert code == 0
    assert json.loads(out) == {"target": str(tmp_path / "labels.textures"), "supervoxels": 8}
    stored = dseeds.Textures(str(tmp_path / "labels.textures")).table
    assert stored.equals(dseeds.textures(labels, image, window=(0, 64)).table)
    code, out, _ = call(*arguments, "--overwrite")
    assert out == f"8 supervoxels: {tmp_path / 'labels.textures'}\n"
    painted = dseeds.paint(labels, tmp_path / "labels.textures", column="entropy").compute()
    assert painted[0, 0, 0] == stored["entropy"][0].as_py()
