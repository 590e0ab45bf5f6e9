"""Outputs of an out-of-core run: metadata, label widths, NIfTI, and no image before it is complete."""

import json
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from nibabel.testing import data_path

from dseeds import segment, supervoxels
from dseeds.core.geometry import Lattice
from dseeds.engine.history import History
from dseeds.engine.job import Job, RegionInput
from dseeds.engine.journal import Journal
from dseeds.engine.phases import LABEL
from dseeds.engine.tasks import perform_task
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import Layout
from tests.support.runs import (
    FEW,
    GOOD,
    Recorder,
    names_in,
    nifti_saver,
    noise,
)


def no_constants(name):
    raise AssertionError(f"{name} is no JSON")


def test_the_output_describes_itself(tmp_path, client):
    image = noise((20, 26, 33), dtype="int16")
    source = nifti_saver(".nii.gz")(tmp_path, image)
    parameters = {"step": np.int64(7), "window": np.array([-90, 150.5]), "volume": 0}
    report = segment(source, tmp_path / "a.zarr", region=14, client=client, **parameters)
    assert names_in(tmp_path / "a.zarr") == ["0", "zarr.json"]
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text(), parse_constant=no_constants)
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    ours = document["attributes"]["dseeds"]
    assert ours["supervoxels"] == report.supervoxels == 3 * 4 * 5
    assert ours["parameters"] == {
        "asked": {"step": 7, "window": [-90, 150.5], "volume": 0},
        "step": [7, 7, 7],
        "cells": [3, 4, 5],
        "windows": [[-90, 150.5]],
        "bins": "auto",
        "knees": [None],
        "weights": [1],
        "thresholds": None,
        "compactness": 0,
        "min_size": 0,
        "boundaries": None,
        "rounds": report.rounds,
    }
    assert Path(ours["source"]["path"]) == source
    assert ours["source"]["size"] == source.stat().st_size
    for name in ("dseeds", "numpy", "numba", "zarr", "dask", "distributed"):
        assert ours["versions"][name] == version(name)
    scale = document["attributes"]["ome"]["multiscales"][0]
    assert scale["datasets"] == [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [3.25, 0.75, 0.5]}]}
    ]
    assert [axis["name"] for axis in scale["axes"]] == ["z", "y", "x"]
    assert "image-label" in document["attributes"]["ome"]

    labels = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"]
    assert labels.metadata.zarr_format == 3
    assert (labels.shape, labels.dtype) == (image.shape, np.uint32)
    assert labels.metadata.dimension_names == ("z", "y", "x")
    assert (labels.shards or labels.chunks) == report.region_shape == (14, 14, 14)
    assert json.loads(report.to_json()) == json.loads(json.dumps(report.to_dict()))
    assert "60 supervoxels" in str(report)


def test_an_output_is_not_cut_again(tmp_path, client):
    """Labels are no intensities: segmenting them is most likely a mix-up of paths."""
    segment(noise((20, 26, 33)), tmp_path / "a.zarr", step=8, client=client)
    with pytest.raises(ValueError, match="labels"):
        segment(tmp_path / "a.zarr", tmp_path / "b.zarr", step=6, client=client)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize(
    ("cells", "dtype"), [((1, 1, 1), "u4"), ((65535, 65537, 1), "u4"), ((65536, 65536, 1), "u8"), ((2**11,) * 3, "u8")]
)
def test_labels_are_as_wide_as_they_need_be(cells, dtype):
    """Labels begin at 1, so 2^32 - 1 cells still fit 32 bits."""
    lattice = Lattice([2 * n for n in cells], (2, 2, 2))
    assert lattice.cells == cells
    assert lattice.label_dtype == dtype


def test_labels_beyond_32_bits(tmp_path):
    shape = (1 << 13, 1 << 12, 1 << 10)
    folder = str(tmp_path)
    job = Job(
        None,
        shape,
        (2, 2, 2),
        (8, 8, 8),
        folder,
        Journal(folder, "run"),
        (LabelGroup(open_location(folder), "labels"),),
    )
    assert job.lattice.size == 1 << 32
    job.labels[0].create(Layout.cut(shape, job.lattice.label_dtype, (16, 16, 16), 16))
    perform_task(job, LABEL, len(job.regions) - 1, RegionInput(History((), b"")))
    labels = zarr.open_array(tmp_path / "labels", mode="r")[-16:, -16:, -16:]
    assert labels.dtype == np.uint64
    z, y, x = (np.arange(n - 16, n) // 2 for n in shape)
    expected = 1 + (z[:, None, None] * (1 << 11) + y[:, None]) * (1 << 9) + x
    np.testing.assert_array_equal(labels, expected.astype(np.uint64))
    assert labels.max() == 1 << 32


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("opened", [False, True])
def test_nifti_in_gives_nifti_out(tmp_path, client, ending, opened):
    image = noise((70, 26, 33), dtype="int16")
    affine = np.array([[0, -0.5, 0, 11], [0.75, 0, 0, -7], [0, 0, 3.25, 3], [0, 0, 0, 1]])
    made = nibabel.Nifti1Image(image.T, affine)
    made.header.set_xyzt_units("mm", "sec")
    made.header["descrip"] = b"a scanner's words"
    made.set_qform(affine, 1)
    made.set_sform(affine, 4)
    nibabel.save(made, tmp_path / "image.nii.gz")
    source = nibabel.load(tmp_path / "image.nii.gz")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / f"labels{ending}"
    report = segment(source if opened else tmp_path / "image.nii.gz", target, step="8mm", region=40, client=client)
    assert names_in(tmp_path / "out") == [target.name]
    assert report.target == str(target)
    result = nibabel.load(target)
    expected = supervoxels(image, step="8mm", spacing=(3.25, 0.5, 0.75))
    np.testing.assert_array_equal(np.asarray(result.dataobj), expected.T)
    assert result.get_data_dtype() == np.int32
    np.testing.assert_array_equal(result.affine, source.affine)
    for field in ("pixdim", "xyzt_units", "qform_code", "sform_code", "descrip"):
        np.testing.assert_array_equal(result.header[field], source.header[field])


def test_nifti_of_one_of_a_series(tmp_path, client):
    path = Path(data_path) / "example4d.nii.gz"
    source = nibabel.load(path)
    segment(path, tmp_path / "a.nii.gz", step=(6, 16, 16), volume=0, client=client)
    result = nibabel.load(tmp_path / "a.nii.gz")
    image = np.asarray(source.dataobj[..., 0]).T
    np.testing.assert_array_equal(np.asarray(result.dataobj).T, supervoxels(image, step=(6, 16, 16)))
    np.testing.assert_array_equal(result.affine, source.affine)


def test_it_is_no_image_before_it_is_whole(tmp_path, client):
    seen = []

    def look(event, stage, _number):
        if stage == "label":
            with pytest.raises(FileNotFoundError):
                zarr.open(tmp_path / "a.zarr", mode="r")
            seen.append(event)

    segment(GOOD, tmp_path / "a.zarr", **FEW, client=client, progress=Recorder(look))
    assert seen == ["begin", "advance", "advance", "end"]
    assert isinstance(zarr.open(tmp_path / "a.zarr", mode="r"), zarr.Group)
