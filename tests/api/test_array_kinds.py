"""Arrays as people have them: every function takes every memory order, byte order and kind, with the right values."""

import inspect
import json
import warnings
from functools import partial

import dask.array as da
import nibabel
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import SimpleITK as sitk
import xarray as xr
import zarr
from ome_zarr_models import v05

import dseeds
from dseeds.convert.describe import describe
from dseeds.seeds.contrast import ContrastWarning
from tests.support.runs import labels_in, noise

SHAPE = (12, 14, 17)
IMAGE = noise(SHAPE, seed=2)
LABELS = dseeds.supervoxels(IMAGE, step=5)


def strided(array, folder):
    padded = np.zeros([2 * n for n in array.shape], array.dtype)
    padded[tuple(slice(None, None, 2) for _ in array.shape)] = array
    return padded[tuple(slice(None, None, 2) for _ in array.shape)]


def backwards(array, folder):
    return array[tuple(slice(None, None, -1) for _ in array.shape)].copy()[(slice(None, None, -1),) * array.ndim]


def read_only(array, folder):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def mapped(array, folder):
    np.save(folder / "mapped.npy", np.asfortranarray(array))
    return np.load(folder / "mapped.npy", mmap_mode="r")


class Tensor:
    """An array of a library that NumPy converts, such as a tensor of PyTorch."""

    def __init__(self, array):
        self.values, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


KINDS = {
    "Fortran": lambda array, folder: np.asfortranarray(array),
    "swapped": lambda array, folder: np.swapaxes(np.ascontiguousarray(np.swapaxes(array, -1, -2)), -1, -2),
    "strided": strided,
    "backwards": backwards,
    "read-only": read_only,
    "mapped": mapped,
    "big-endian": lambda array, folder: array.astype(array.dtype.newbyteorder(">")),
    "masked nowhere": lambda array, folder: np.ma.array(array),
    "converted": lambda array, folder: Tensor(array),
}
# Those of a second dtype and a second axis of channels: the others differ in nothing that depends on these.
FEW_KINDS = {name: KINDS[name] for name in ("Fortran", "strided", "big-endian")}


def segmented(image, labels, folder, **options):
    report = dseeds.segment(image, folder / "labels.zarr", step=5, features=True, **options)
    table = dseeds.Features(report.features).table
    return labels_in(report.target), np.array(table["num_pixels"]), *intensity_columns(table)


def intensity_columns(table):
    return [np.array(table[name]) for name in table.column_names if name.startswith("intensity_mean")]


def measured(image, labels, folder, **options):
    features = dseeds.features(labels, image, **options)
    return [
        np.array(column) for column in (*features.table.columns[:-1], *features.edges.columns) if not nested(column)
    ]


def nested(column):
    return pa.types.is_fixed_size_list(column.type)


def evaluated(image, labels, folder):
    figures = dseeds.evaluate(labels, np.asarray(labels) > 9, image=image)
    return [np.array(value) for value in figures.values() if not isinstance(value, dict)]


def exported(image, labels, folder):
    for name, values in (("labels", labels), ("image", image)):
        dseeds.export_volume(values, folder / f"{name}.npy")
    return np.load(folder / "labels.npy"), np.load(folder / "image.npy")


def imported(image, labels, folder, **options):
    dseeds.import_volume(image, folder / "image.zarr", **options)
    return (zarr.open_array(folder / "image.zarr" / "0")[:],)


def reported(image, labels, folder):
    target = dseeds.segment(IMAGE, folder / "labels.zarr", step=5).target
    dseeds.html_report(target, folder / "page.html", image=image, truth=labels, sizes=False)
    return (np.array((folder / "page.html").stat().st_size > 10_000),)


def planned(image, labels, folder, **options):
    plan = dseeds.plan(image, folder / "labels.zarr", step=5, calibrate=False, **options)
    return (np.array([*plan.shape, *plan.step, plan.supervoxels]),)


def pooled(image, labels, folder, **options):
    table = dseeds.pool(labels, image, statistics=("mean", "max"), **options).table
    return [np.array(column.to_pylist()) for column in table.columns]


def textured(image, labels, folder, **options):
    return [np.array(column) for column in dseeds.textures(labels, image, **options).table.columns]


def perturbed(image, labels, folder):
    return (dseeds.perturb(image, labels, np.arange(LABELS.max() + 1) % 2 == 0),)


def cropped(image, labels, folder, **options):
    around = dseeds.crops(labels, image, dseeds.features(labels), size=4, **options)
    return [array for number in (0, 9) for array in (around[number].image, around[number].mask)]


def tokenised(image, labels, folder, **options):
    made = dseeds.tokens(labels, image, dseeds.features(labels), shape=2, **options)
    return made.labels, made.values, made.masks


FUNCTIONS = {
    "supervoxels": lambda image, labels, folder, **o: (dseeds.supervoxels(image, step=5, **o),),
    "segment": segmented,
    "plan": planned,
    "features": measured,
    "evaluate": evaluated,
    "preview": lambda image, labels, folder: (np.asarray(dseeds.preview(labels, image, size=64)),),
    "paint": lambda image, labels, folder: (dseeds.paint(labels, np.arange(LABELS.max() + 1) / 2).compute(),),
    "export_volume": exported,
    "import_volume": imported,
    "html_report": reported,
    "vote": lambda image, labels, folder: [np.array(column) for column in dseeds.vote(labels, labels).table.columns],
    "pool": pooled,
    "textures": textured,
    "crops": cropped,
    "tokens": tokenised,
    "edit": lambda image, labels, folder: (dseeds.edit(labels).labels,),
    "feature_mask": lambda image, labels, folder: dseeds.feature_mask(labels),
    "perturb": perturbed,
    "fill_features": lambda image, labels, folder: (dseeds.fill_features(image, labels),),
}
WITH_CHANNELS = ("supervoxels", "segment", "plan", "features", "import_volume", "pool", "textures", "crops", "tokens")
# These take addresses, tables and graphs.
OTHERS = {"segment_many", "agglomerate", "load_graph", "propagate"}


def test_every_function_is_here():
    functions = {name for name in dseeds.__all__ if inspect.isfunction(getattr(dseeds, name))}
    assert functions == set(FUNCTIONS) | OTHERS


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("dtype", "kinds"), [("float32", KINDS), ("int16", FEW_KINDS)], ids=["float32", "int16"])
def test_every_function_takes_arrays_of_every_kind(tmp_path, function, dtype, kinds):
    call, image = FUNCTIONS[function], IMAGE.astype(dtype)
    (tmp_path / "plain").mkdir()
    expected = call(image, LABELS, tmp_path / "plain")
    for kind, make in kinds.items():
        folder = tmp_path / kind
        (folder / "labels").mkdir(parents=True)
        given = make(image, folder), make(LABELS, folder / "labels")
        np.testing.assert_array_equal(given[0], image)
        assert_equal(call(*given, folder), expected, (function, kind))


@pytest.mark.parametrize("function", WITH_CHANNELS)
@pytest.mark.parametrize(("axis", "kinds"), [(0, FEW_KINDS), (-1, KINDS)], ids=["first", "last"])
def test_channels_of_every_kind(tmp_path, function, axis, kinds):
    image = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]], axis=axis)
    call = partial(FUNCTIONS[function], channel_axis=axis)
    (tmp_path / "plain").mkdir()
    expected = call(np.ascontiguousarray(image), LABELS, tmp_path / "plain")
    for kind, make in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert_equal(call(make(image, folder), LABELS, folder), expected, (function, kind))


def assert_equal(values, expected, what):
    assert len(values) == len(expected)
    for one, other in zip(values, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=str(what))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["npy", "zarr", "zarr 2"])
def test_files_in_every_order(tmp_path, order, kind):
    expected = segmented(IMAGE, None, make_folder(tmp_path / "plain"))
    if kind == "npy":
        path = tmp_path / "image.npy"
        np.save(path, np.asarray(IMAGE, order=order))
    else:
        path = tmp_path / "image.zarr"
        version = {"zarr_format": 2, "order": order} if kind == "zarr 2" else {"zarr_format": 3}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = zarr.create_array(path, shape=SHAPE, dtype=IMAGE.dtype, chunks=(5, 6, 7), **version)
        array[:] = np.asarray(IMAGE, order=order)
    for where, options in (("here", {}), ("regions", {"region": 10})):
        assert_equal(segmented(path, None, make_folder(tmp_path / where), **options), expected, where)


def make_folder(path):
    path.mkdir()
    return path


# Masked arrays.


@pytest.mark.parametrize("dtype", ["u1", "i8"])
def test_what_is_masked_in_an_image_is_outside(tmp_path, client, dtype):
    image = (IMAGE / 4 + 100).clip(0, 250).astype(dtype)
    hidden = noise(SHAPE, seed=3) > 60
    more = noise(SHAPE, seed=4) < 90
    masked = np.ma.array(image, mask=hidden)
    lazy = da.ma.masked_array(da.from_array(image, chunks=7), mask=da.from_array(hidden, chunks=7))
    for options, inside in (({}, ~hidden), ({"mask": more}, ~hidden & more)):
        expected = dseeds.supervoxels(image, step=5, mask=inside)
        np.testing.assert_array_equal(dseeds.supervoxels(masked, step=5, **options), expected)
        np.testing.assert_array_equal(dseeds.supervoxels(lazy, step=5, **options).compute(), expected)
        for number, (source, who) in enumerate(
            ((masked, {}), (masked, {"client": client}), (lazy, {"client": client}))
        ):
            target = tmp_path / f"{len(options)}-{number}.zarr"
            dseeds.segment(source, target, step=5, region=10, **options, **who)
            np.testing.assert_array_equal(labels_in(target), expected)
    means = dseeds.features(LABELS, masked).table["intensity_mean"].to_numpy()
    where = LABELS == 7
    assert means[6] == pytest.approx(image[where & ~hidden].mean())


def test_a_number_of_supervoxels_is_one_inside_a_masked_image(tmp_path, client):
    hidden = np.ones(SHAPE, bool)
    hidden[2:10, 3:11, 4:12] = False
    expected = dseeds.supervoxels(IMAGE, n_segments=8, mask=~hidden)
    assert 6 <= expected.max() <= 10
    masked = np.ma.array(IMAGE, mask=hidden)
    lazy = da.ma.masked_array(da.from_array(IMAGE, chunks=7), mask=da.from_array(hidden, chunks=7))
    channels = np.ma.stack([masked, IMAGE])
    np.testing.assert_array_equal(dseeds.supervoxels(masked, n_segments=8), expected)
    np.testing.assert_array_equal(dseeds.supervoxels(lazy, n_segments=8).compute(), expected)
    assert dseeds.supervoxels(channels, n_segments=8, channel_axis=0).max() == expected.max()
    for number, (source, who) in enumerate(((masked, {}), (masked, {"client": client}), (lazy, {"client": client}))):
        dseeds.segment(source, tmp_path / f"{number}.zarr", n_segments=8, region=10, **who)
        np.testing.assert_array_equal(labels_in(tmp_path / f"{number}.zarr"), expected)


def test_a_mask_that_leaves_nothing_out_is_none():
    expected = dseeds.supervoxels(IMAGE, n_segments=8)
    nothing = np.zeros(SHAPE, bool)
    lazy = da.ma.masked_array(da.from_array(IMAGE, chunks=7), mask=da.from_array(nothing, chunks=7))
    for image, mask in ((np.ma.array(IMAGE, mask=nothing), None), (lazy, None), (IMAGE, ~nothing)):
        np.testing.assert_array_equal(np.asarray(dseeds.supervoxels(image, n_segments=8, mask=mask)), expected)


def test_masked_labels_are_0():
    hidden = noise(SHAPE, seed=3) > 60
    plain, masked = np.where(hidden, 0, LABELS), np.ma.array(LABELS, mask=hidden)
    assert dseeds.features(masked).table.equals(dseeds.features(plain).table)
    np.testing.assert_array_equal(dseeds.paint(masked, {1: 5}).compute(), dseeds.paint(plain, {1: 5}).compute())


def test_a_dask_array_is_what_it_declares(tmp_path, client):
    def lie(block):
        return block.astype("u1")

    image = da.from_array(IMAGE, chunks=7)
    other = image.map_blocks(lie, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    short = image.map_blocks(lambda block: block[:1], dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    for array in (other, short):
        with pytest.raises(ValueError, match="the Dask array declares float32 and a shape of"):
            dseeds.supervoxels(array, step=5).compute()
        with pytest.raises(ValueError, match="the Dask array declares float32 and a shape of"):
            dseeds.segment(array, tmp_path / "labels.zarr", step=5, client=client)
        assert list(tmp_path.iterdir()) == []


# Images of other packages, further axes and planes.


def images_of_packages():
    itk = sitk.GetImageFromArray(IMAGE)
    itk.SetSpacing((1.0, 1.0, 2.5))
    itk.SetOrigin((3.0, -4.0, 5.0))
    return {
        "SimpleITK": itk,
        "nibabel": nibabel.Nifti1Image(IMAGE.T, np.diag([1, 1, 2.5, 1])),
        "one volume": IMAGE[np.newaxis],
        "one channel": IMAGE[..., np.newaxis],
    }


@pytest.mark.parametrize("name", images_of_packages())
def test_images_of_other_packages(tmp_path, name):
    image = images_of_packages()[name]
    np.testing.assert_array_equal(dseeds.supervoxels(image, step=5), LABELS)
    np.testing.assert_array_equal(segmented(image, None, tmp_path)[0], LABELS)
    assert_equal(measured(image, LABELS, tmp_path, spacing=(1, 1, 1))[:2], measured(IMAGE, LABELS, tmp_path)[:2], name)
    assert_equal(evaluated(image, LABELS, tmp_path), evaluated(IMAGE, LABELS, tmp_path), name)
    assert dseeds.preview(LABELS, image).width > 0
    assert_equal(
        perturbed(np.squeeze(image) if "one" in name else image, LABELS, tmp_path),
        perturbed(IMAGE, LABELS, tmp_path),
        name,
    )
    dseeds.export_volume(image, tmp_path / "image.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy").reshape(SHAPE), IMAGE)
    if name in ("SimpleITK", "nibabel"):
        lengths = dseeds.supervoxels(IMAGE, step="5mm", spacing=(2.5, 1, 1))
        np.testing.assert_array_equal(dseeds.supervoxels(image, step="5mm"), lengths)


def test_the_components_of_simpleitk_are_channels():
    vectors = sitk.GetImageFromArray(np.stack([IMAGE, IMAGE[::-1]], axis=-1), isVector=True)
    expected = dseeds.supervoxels(np.stack([IMAGE, IMAGE[::-1]]), step=5, channel_axis=0)
    np.testing.assert_array_equal(dseeds.supervoxels(vectors, step=5), expected)


@pytest.mark.parametrize("function", ["features", "evaluate", "vote", "pool", "textures", "perturb", "feature_mask"])
def test_labels_may_be_lists(tmp_path, function):
    call = FUNCTIONS[function]
    assert_equal(call(IMAGE, LABELS.tolist(), tmp_path), call(IMAGE, LABELS, tmp_path), function)


def test_an_array_on_another_device_says_so_itself():
    class OnDevice(Tensor):
        def __array__(self, dtype=None, copy=None):
            raise TypeError("use .get() to construct a NumPy array")

    for function in ("supervoxels", "features", "evaluate"):
        with pytest.raises(TypeError, match=r"^use \.get\(\)"):
            FUNCTIONS[function](OnDevice(IMAGE), LABELS, None)


@pytest.mark.parametrize("function", ["segment", "plan", "features", "pool", "textures"])
def test_floats_of_more_than_64_bits_are_refused(tmp_path, function):
    with pytest.raises(TypeError, match="at most 64 bits"):
        FUNCTIONS[function](IMAGE.astype(np.longdouble), LABELS, tmp_path)


def test_several_volumes_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"choose one volume of it, such as image\[0\], or pass channel_axis"):
        dseeds.supervoxels(np.stack([IMAGE, IMAGE]), step=5)


def test_labels_of_two_axes_are_one_plane():
    labels, image = LABELS[5], IMAGE[5]
    plane, volume = dseeds.features(labels, image), dseeds.features(labels[np.newaxis], image[np.newaxis])
    assert plane.table.equals(volume.table)
    assert plane.edges.equals(volume.edges)
    for axis in (0, -1):
        channels = dseeds.features(labels, np.stack([image, image], axis=axis), channel_axis=axis).table
        np.testing.assert_array_equal(channels["intensity_mean-1"], plane.table["intensity_mean"])
    figures = dseeds.evaluate(labels, labels > 9, image=image)
    assert figures == dseeds.evaluate(labels[None], labels[None] > 9, image=image[None])
    assert dseeds.preview(labels, image).size == dseeds.preview(labels[None], image[None]).size
    values = np.arange(LABELS.max() + 1)
    for given in (labels, da.from_array(labels, chunks=6), xr.DataArray(labels, dims=("y", "x"))):
        np.testing.assert_array_equal(dseeds.paint(given, values).compute(), labels)
    with pytest.raises(ValueError, match="the mask has shape"):
        dseeds.supervoxels(IMAGE, step=5, mask=labels > 0)


def test_places_and_shapes_need_no_image(tmp_path, client):
    alone, full = dseeds.features(LABELS), dseeds.features(LABELS, IMAGE)
    assert alone.table.equals(full.table.select(alone.table.column_names))
    assert alone.edges.equals(full.edges.select(alone.edges.column_names))
    assert not any("intensity" in name for name in (*alone.table.column_names, *alone.edges.column_names))
    stored = dseeds.features(LABELS, None, tmp_path / "labels.features", region=6, client=client)
    assert stored.table.equals(alone.table)
    assert stored.edges.equals(alone.edges)
    with pytest.raises(ValueError, match="are those of an image"):
        dseeds.features(LABELS, window=(0, 1))


VECTOR = np.random.default_rng(0).random(LABELS.max() + 1)
NAMES = np.array(["liver", "kidney", "spleen"])[np.arange(LABELS.max()) % 3]
IDS = np.arange(1, LABELS.max() + 1)


@pytest.mark.parametrize(
    "table",
    [
        VECTOR,
        list(VECTOR),
        Tensor(VECTOR),
        pl.Series(VECTOR),
        pa.array(VECTOR),
        pd.Series(VECTOR),
        pd.Series(VECTOR[IDS][::-1], IDS[::-1]),
    ],
    ids=["array", "list", "converted", "polars", "arrow", "pandas", "pandas, reversed"],
)
def test_values_by_label_are_painted(table):
    np.testing.assert_array_equal(dseeds.paint(LABELS, table).compute(), VECTOR[LABELS])


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"label": IDS, "organ": pd.Categorical(NAMES)}),
        pl.DataFrame({"label": IDS, "organ": pl.Series(NAMES, dtype=pl.Enum(sorted(set(NAMES))))}),
        pa.table(
            {"label": IDS, "organ": pa.chunked_array([pa.array(NAMES[:5]), pa.array(NAMES[5:])]).dictionary_encode()}
        ),
    ],
    ids=["pandas", "polars", "arrow"],
)
def test_categories_are_numbered_from_1(table):
    painted = dseeds.paint(LABELS, table, column="organ").compute()
    order = ["liver", "kidney", "spleen"] if isinstance(table, pa.Table) else sorted(set(NAMES))
    expected = np.array([order.index(name) + 1 for name in NAMES])[LABELS - 1]
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize(
    "table", [5, None, {1, 2}, np.arange(LABELS.max() + 1) * 1j, np.zeros((3, 2)), IDS.astype("g")]
)
def test_what_is_no_table_is_refused(table):
    message = "a table is a path or URL|more than numbers of 64 bits|has one axis"
    with pytest.raises((TypeError, ValueError), match=message):
        dseeds.paint(LABELS, table)


@pytest.mark.parametrize("as_labels", [True, False])
def test_names_of_categories_are_kept(tmp_path, as_labels):
    table = pd.Series(pd.Categorical(NAMES, ["spleen", "liver", "kidney", "none"]), IDS)
    painted = dseeds.paint(LABELS, table, tmp_path / "organs.zarr", as_labels=as_labels)
    assert painted.categories == ("spleen", "liver", "kidney", "none")
    assert json.loads(painted.to_json())["categories"] == list(painted.categories)
    assert "from 1: spleen, liver, kidney, none" in str(painted)
    group = zarr.open_group(painted.target, mode="r")
    organs = labels_in(painted.target)
    names = {int(value): name for value, name in group.attrs["dseeds"]["categories"].items()}
    assert [names[value] for value in organs[LABELS == 1]] == [NAMES[0]] * np.count_nonzero(LABELS == 1)
    if as_labels:
        spleen, *_ = group.attrs["ome"]["image-label"]["properties"]
        assert spleen == {"label-value": 1, "name": "spleen"}
        v05.ImageLabel.from_zarr(group)


def test_categories_that_are_numbers_are_these():
    table = pd.Series(pd.Categorical(np.arange(LABELS.max()) % 3 * 10), IDS)
    np.testing.assert_array_equal(dseeds.paint(LABELS, table).compute(), (LABELS - 1) % 3 * 10)


# Contrast.


def sparse(dtype):
    image = np.zeros((24, 32, 32), dtype)
    image[8:14, 12:17, 12:16] = 120
    image[2, 2, 2] = image[20, 20, 5] = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1e6
    return image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "int64"])
def test_a_hot_voxel_in_a_sparse_image_does_not_hide_the_rest(tmp_path, client, dtype):
    image = sparse(dtype)
    with pytest.warns(ContrastWarning, match="share one of the 64 intensity bins of the window 0 to 120, so that"):
        labels = dseeds.supervoxels(image, step=4)
    np.testing.assert_array_equal(labels, dseeds.supervoxels(image, step=4, window=(0, 120)))
    assert (labels != dseeds.supervoxels(np.zeros(image.shape, dtype), step=4)).any()
    for name, who in (("here", {}), ("dask", {"client": client})):
        with pytest.warns(ContrastWarning, match="share one of"):
            report = dseeds.segment(image, tmp_path / f"{name}.zarr", step=4, region=16, **who)
        assert len(report.notes) == 1
        assert "note: " in str(report)
        np.testing.assert_array_equal(labels_in(report.target), labels)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (
            np.linspace(0, 1, 1000).reshape(10, 10, 10),
            {"window": "abdomen"},
            "^all of the voxels share one .* to 240, so",
        ),
        (np.linspace(0, 1, 1000).reshape(10, 10, 10), {"window": (5, 9)}, "5 to 9, at or beyond an end of it, so"),
        (sparse("uint16"), {"window": (0, 65535), "mask": "auto"}, '^mask="auto" leaves 2 of 24576 voxels'),
    ],
)
def test_a_window_beside_the_intensities_is_noticed(call, tmp_path, image, options, message):
    with pytest.warns(ContrastWarning, match=message):
        dseeds.supervoxels(image, step=4, **options)
    np.save(tmp_path / "image.npy", image)
    window = options["window"] if isinstance(options["window"], str) else "{}:{}".format(*options["window"])
    arguments = ["segment", tmp_path / "image.npy", tmp_path / "labels.zarr", "--step", 4, "--window", window]
    code, out, _ = call(*arguments, *(["--mask", "auto"] if "mask" in options else []))
    assert code == 0
    assert "note: " in out


def test_a_mask_that_leaves_few_voxels_is_noticed_beside_a_map_of_boundaries():
    """Which is followed instead of the intensities, so that these may lie beside their window."""
    image = sparse("uint16")
    options = {"step": 4, "window": (0, 65535), "boundaries": np.random.default_rng(0).random(image.shape)}
    with pytest.warns(ContrastWarning, match='^mask="auto" leaves 2 of 24576 voxels'):
        dseeds.supervoxels(image, mask="auto", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dseeds.supervoxels(image, **options)


def test_hot_pixels_leave_half_of_the_bins_to_the_others(tmp_path, client):
    rng = np.random.default_rng(0)
    hot = rng.random(SHAPE) < 0.02
    image = np.where(hot, 60000, IMAGE).astype("float32")
    report = dseeds.segment(image, tmp_path / "labels.zarr", step=5, region=10, client=client)
    labels = labels_in(report.target)
    np.testing.assert_array_equal(dseeds.supervoxels(image, step=5), labels)
    [knee], [note] = report.knees, report.notes
    assert knee == np.percentile(image, 95, method="higher")
    assert f"half are below and half above {knee:g}" in note
    assert describe(report.target)["knees"] == [knee]
    explained = [
        dseeds.evaluate(cut, image=IMAGE)["explained_variation"]
        for cut in (dseeds.supervoxels(image, step=5, bins="linear"), labels)
    ]
    assert explained[0] + 0.1 < explained[1]
    for name, options in {
        "linear": {"bins": "linear"},
        "auto": {"mask": "auto"},
        "map": {"boundaries": "gradient"},
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ContrastWarning)
            assert dseeds.segment(image, tmp_path / f"{name}.zarr", step=5, **options).knees == (None,)


def test_contrast_is_no_news():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dseeds.supervoxels(IMAGE, step=5)
        dseeds.supervoxels(np.full(SHAPE, 3), step=5)


# Integers that floats do not hold.


@pytest.mark.parametrize(
    ("dtype", "offset"), [("int64", 2**60), ("int64", -(2**62)), ("uint64", 2**63), ("int64", 2**53)]
)
def test_integers_beyond_2_53_keep_their_differences(tmp_path, client, dtype, offset):
    image = (IMAGE / 3 + 300).astype(dtype)
    far = image + np.array(offset, dtype)
    labels = dseeds.supervoxels(image, step=5)
    np.testing.assert_array_equal(dseeds.supervoxels(far, step=5), labels)
    for name, who in (("here", {}), ("dask", {"client": client})):
        report = dseeds.segment(far, tmp_path / f"{name}.zarr", step=5, region=10, features=True, **who)
        np.testing.assert_array_equal(labels_in(report.target), labels)
        own, other = dseeds.features(labels, image), dseeds.Features(report.features)
        for column in ("intensity_std", "histogram", "num_pixels"):
            assert own.table[column].equals(other.table[column])
        for column in ("intensity_gradient", "histogram_distance"):
            np.testing.assert_allclose(own.edges[column], other.edges[column], rtol=1e-6)
        np.testing.assert_allclose(own.edges["intensity_difference"], other.edges["intensity_difference"], atol=1e-5)
