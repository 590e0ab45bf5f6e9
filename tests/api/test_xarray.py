"""xarray in and out: the labels of the plain array, with the image's dimensions and coordinates."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import dseeds
import dseeds.xarray
from dseeds.phantom import phantom
from tests.support.clusters import in_process

SHAPE = dict(zip("zyx", (20, 24, 28), strict=True))
IMAGE, TRUTH = phantom(tuple(SHAPE.values()))
STEP = 6
LABELS = dseeds.supervoxels(IMAGE, step=STEP)


def scan(values=IMAGE, sizes=(3.0, 1.5, 1.5), units="mm", dims=("z", "y", "x")):
    """Return an image with coordinates as from a DICOM reader: z from the top."""
    coords = {
        name: (name, size * np.arange(SHAPE[name])[:: -1 if name == "z" else 1], {"units": units} if units else {})
        for name, size in zip("zyx", sizes, strict=True)
    }
    return xr.DataArray(values, dims=dims, coords={**coords, "time": 7}, name="scan")


@settings(max_examples=15)
@given(st.permutations("czyx"), st.booleans(), st.sampled_from(["c", "band", "Channel"]))
def test_dimensions_in_any_order(order, upper, channels):
    both = np.stack([IMAGE, TRUTH.astype(np.uint16)])
    names = {**{name: name.upper() if upper else name for name in "zyx"}, "c": channels}
    image = xr.DataArray(both, dims=[names[name] for name in "czyx"]).transpose(*(names[name] for name in order))
    labels = dseeds.supervoxels(image, step=STEP)
    assert labels.dims == tuple(names[name] for name in order if name != "c")
    expected = dseeds.supervoxels(both, step=STEP, channel_axis=0)
    assert np.array_equal(labels.transpose(*(names[name] for name in "zyx")), expected)


def test_coordinates_stay():
    image = scan().transpose("x", "z", "y")
    labels = image.dseeds.supervoxels(step=STEP)
    assert labels.dims == image.dims
    xr.testing.assert_identical(labels.coords.to_dataset(), image.coords.to_dataset())
    assert labels.name == "supervoxels"
    assert labels.attrs["step"] == STEP
    assert labels.sel(z=9.0, y=3.0, x=4.5) == LABELS[16, 2, 3]


def test_other_names_are_taken_in_their_order():
    image = xr.DataArray(IMAGE[np.newaxis], dims=("t", "plane", "row", "column"))
    labels = dseeds.supervoxels(image, step=STEP)
    assert labels.dims == ("plane", "row", "column")
    assert np.array_equal(labels, LABELS)


def test_a_lazy_image_has_lazy_labels():
    lazy = scan(da.from_array(IMAGE, chunks=10))
    mask = xr.DataArray(da.from_array(TRUTH > 0, chunks=9).T, dims=("x", "y", "z"))
    labels = dseeds.supervoxels(lazy, step=STEP, mask=mask)
    assert isinstance(labels.data, da.Array)
    expected = dseeds.supervoxels(scan(), step=STEP, mask=TRUTH > 0)
    xr.testing.assert_equal(labels.compute(), expected)


@pytest.mark.parametrize(("units", "per_mm"), [("mm", 1), ("um", 1000), ("micrometer", 1000), ("cm", 0.1)])
def test_coordinates_are_a_spacing(units, per_mm):
    sizes = 3.0, 1.5, 1.5
    image = scan(sizes=[size * per_mm for size in sizes], units=units)
    for options in ({"step": "9mm"}, {"n_segments": 60}):
        labels = dseeds.supervoxels(image, **options)
        assert np.array_equal(labels, dseeds.supervoxels(IMAGE, spacing=sizes, **options))
    # A step in voxels is what it is.
    assert np.array_equal(dseeds.supervoxels(image, step=STEP), LABELS)


def test_a_spacing_that_is_given_counts():
    assert np.array_equal(
        dseeds.supervoxels(scan(), step="9mm", spacing=(1, 3, 3)),
        dseeds.supervoxels(IMAGE, step="9mm", spacing=(1, 3, 3)),
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (scan(units=None), "no attribute units"),
        (scan(units="s"), "'s' of z is not a known unit"),
        (scan().drop_vars("y"), "y has no coordinates"),
        (scan().assign_coords(x=("x", np.arange(28.0) ** 2, {"units": "mm"})), "x are not evenly spaced"),
        (scan().assign_coords(x=("x", np.zeros(28), {"units": "mm"})), "do not differ"),
    ],
)
def test_a_length_needs_a_spacing(image, message):
    with pytest.raises(ValueError, match=f"{message}.*give spacing="):
        dseeds.supervoxels(image, step="9mm")
    dseeds.supervoxels(image, n_segments=30)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (scan().isel(z=0), {}, "need z, y and x"),
        (scan().expand_dims(t=2), {}, "choose one of all others with isel"),
        (scan(), {"channel_axis": "c"}, "no dimension c"),
        (scan(), {"channel_axis": 3}, "no dimension 3"),
    ],
)
def test_dimensions_that_are_no_volume(image, options, message):
    with pytest.raises(ValueError, match=message):
        dseeds.supervoxels(image, **options)


def test_levels():
    labels, parents = dseeds.supervoxels(scan(), step=STEP, levels=1)
    expected, above = dseeds.supervoxels(IMAGE, step=STEP, levels=1)
    assert np.array_equal(labels, expected)
    assert np.array_equal(parents[0], above[0])


def test_labels_can_be_saved(tmp_path):
    labels = dseeds.supervoxels(scan(), step=(6, 6, 8), window="100:2000")
    labels.to_dataset().to_zarr(tmp_path / "labels.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "labels.zarr", consolidated=False) as dataset:
        xr.testing.assert_equal(dataset["supervoxels"].load(), labels)


def test_features_and_painting():
    image = scan().transpose("y", "x", "z")
    labels = image.dseeds.supervoxels(step=STEP)
    features = labels.dseeds.features(image)
    assert features.table.equals(dseeds.features(LABELS, IMAGE, spacing=(3.0, 1.5, 1.5)).table)
    painted = labels.dseeds.paint(features, column="intensity_mean")
    assert isinstance(painted.data, da.Array)
    xr.testing.assert_identical(painted.coords.to_dataset(), image.coords.to_dataset())
    expected = dseeds.paint(LABELS, features, column="intensity_mean")
    assert np.array_equal(painted.transpose("z", "y", "x").values, expected.compute())


def test_as_a_source(tmp_path):
    with in_process() as client:
        dseeds.segment(scan().transpose("x", "y", "z"), tmp_path / "labels.zarr", step="9mm", client=client)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    assert np.array_equal(group["0"], dseeds.supervoxels(scan(), step="9mm"))
    [transform] = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert transform["scale"] == [3.0, 1.5, 1.5]
