"""Supervoxels that stop at boundaries out of core: maps from anywhere, and the labels of the volume in memory."""

import random

import dask.array as da
import nibabel
import numpy as np
import pytest
import zarr

import dseeds
from dseeds import segment, supervoxels
from dseeds.engine import batch
from dseeds.engine.run import SUFFIX
from tests.support.batches import init, reopen, step_in_any_order
from tests.support.runs import assert_sentence, labels_in, noise, snapshot

IMAGE = noise((36, 40, 44), dtype="uint16")
MAP = noise(IMAGE.shape, seed=1)
EXPECTED = supervoxels(IMAGE, step=8, boundaries=MAP)
CUT = {"step": 8, "region": (16, 24, 16)}


def stored(folder, name, values):
    zarr.create_array(folder / name, data=values, chunks=(16, 16, 16))
    return folder / name


@pytest.fixture
def inputs(tmp_path):
    """An image in NIfTI, and a map that lies in the same place but is stored the other way round."""
    affine = np.diag([2.0, 3, 4, 1])
    flipped = affine @ np.array([[-1, 0, 0, IMAGE.shape[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, affine), tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(MAP.T[::-1], flipped), tmp_path / "map.nii.gz")
    return tmp_path / "image.nii.gz", tmp_path / "map.nii.gz"


def test_maps_in_files_lie_where_the_image_does(tmp_path, inputs, client, call):
    image, boundaries = inputs
    segment(image, tmp_path / "a.zarr", boundaries=boundaries, client=client, **CUT)
    assert not call("segment", image, tmp_path / "b.nii.gz", "--step", 8, "--boundaries", boundaries)[0]
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), EXPECTED)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "b.nii.gz").dataobj).T, EXPECTED)
    parameters = zarr.open_group(tmp_path / "a.zarr").attrs["dseeds"]["parameters"]
    assert parameters["boundaries"]["path"].endswith("map.nii.gz")
    assert len(parameters["windows"]) == 1


def test_an_unfinished_run_knows_its_map(tmp_path, client, monkeypatch):
    source, boundaries = stored(tmp_path, "image.zarr", IMAGE), stored(tmp_path, "map.zarr", MAP)
    with monkeypatch.context() as patch:
        patch.setattr("dseeds.engine.driver.finish_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segment(source, tmp_path / "a.zarr", boundaries=boundaries, client=client, **CUT)
    with pytest.raises(ValueError, match=r"boundaries was .* and is now"):
        segment(source, tmp_path / "a.zarr", boundaries="dark", client=client, resume=True)
    segment(source, tmp_path / "a.zarr", client=client, resume=True)
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), EXPECTED)


def test_batch_jobs(tmp_path, inputs):
    image, boundaries = inputs
    init(image, tmp_path / "a.zarr", boundaries=str(boundaries), **CUT)
    plan = f"{tmp_path}/a.zarr{SUFFIX}"
    step_in_any_order(plan, random.Random(0), 3)
    batch.finalize_run(reopen(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "a.zarr"), EXPECTED)


def test_lazy_arrays(client):
    image, boundaries = (da.from_array(values, chunks=(20, 16, 44)) for values in (IMAGE, MAP))
    for given in (boundaries, MAP):
        np.testing.assert_array_equal(supervoxels(image, step=8, boundaries=given).compute(), EXPECTED)
    expected = supervoxels(IMAGE, step=8, boundaries="dark")
    np.testing.assert_array_equal(supervoxels(image, step=8, boundaries="dark").compute(), expected)


def test_many_volumes(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", IMAGE)
        np.save(tmp_path / f"{name}-map.npy", MAP)
    sources = [tmp_path / "a.npy", tmp_path / "b.npy"]
    with pytest.raises(ValueError, match="cannot be the boundary map of several volumes"):
        dseeds.segment_many(sources, tmp_path / "out", step=8, boundaries=f"{tmp_path}/a-map.npy")
    boundaries = f"{tmp_path}/{{name}}-map.npy"
    results = dseeds.segment_many(sources, tmp_path / "out", step=8, boundaries=boundaries)
    for result in results:
        assert result.error is None
        np.testing.assert_array_equal(labels_in(result.target), EXPECTED)


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        (np.zeros_like(MAP), "shows no boundary"),
        (MAP[:-1], "the boundary map has the shape"),
        (np.stack([MAP, MAP]), "channel"),
        ("drak", r"choose .image., .dark. or .gradient."),
    ],
)
@pytest.mark.parametrize("on_dask", [True, False])
def test_what_is_no_map_leaves_nothing(tmp_path, client, boundaries, message, on_dask):
    with pytest.raises(ValueError, match=message) as caught:
        segment(IMAGE, tmp_path / "a.zarr", boundaries=boundaries, **({"client": client, **CUT} if on_dask else {}))
    assert_sentence(caught.value)
    assert not snapshot(tmp_path)


def test_plan():
    plan = dseeds.plan(IMAGE, "labels.zarr", boundaries=MAP, workers=2, memory="2GiB", **CUT)
    rounds = [stage.tasks for stage in plan.stages if stage.name == "sweep-voxels"]
    assert rounds == [plan.rounds * plan.regions]
    assert plan.seconds > 0
