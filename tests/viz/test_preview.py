"""Previews of supervoxels: contours, means, orientation, resolution levels, and the number of chunks read."""

import itertools
import warnings

import h5py
import nibabel
import numpy as np
import pytest
import zarr
from PIL import Image as Picture
from scipy import ndimage
from zarr.storage import LocalStore, WrapperStore

import dseeds
from dseeds import cli
from dseeds.io import ArraySource, open_image, open_source
from dseeds.io.resolution_levels import read_resolution_levels
from dseeds.viz import html_report
from dseeds.viz.drawing import AMBER, UNDER
from dseeds.viz.preview import draw_sheet
from dseeds.viz.sections import Orientation, PlaneReader, View, middle_voxel, read_sections
from tests.support.paths import DATA

SHAPE = (20, 24, 28)


def blocks(shape, side=4):
    """Return labels of small boxes, from 1."""
    counts = [-(-n // side) for n in shape]
    return 1 + np.ravel_multi_index(tuple(i // side for i in np.indices(shape)), counts)


def noise(shape=SHAPE, high=1000):
    return np.random.default_rng(5).integers(0, high, shape, "int32")


def plane(volume, axis):
    return volume.take(volume.shape[axis] // 2, axis)


def enlarged(values, zoom):
    return values.repeat(zoom, 0).repeat(zoom, 1)


def panels(labels, image, **options):
    """Return the panels of a picture as arrays, row by row."""
    sources = [None if volume is None else ArraySource(np.asarray(volume)) for volume in (labels, image)]
    shown = None if image is None else open_image(sources[1].array)
    return [[np.asarray(panel) for _, panel in row] for row in draw_sheet(sources[0], shown, **options).rows]


def pyramid(root, levels, *, translated=False, labels=False, attributes=None, chunks=64):
    """Write an OME-Zarr image of these levels, each half the size of the previous one."""
    group = zarr.open_group(root, mode="w")
    datasets = []
    for number, level in enumerate(levels):
        array = group.create_array(str(number), shape=level.shape, chunks=(chunks,) * 3, dtype=level.dtype)
        array[...] = level
        factor = 2.0**number
        steps = [{"type": "scale", "scale": [factor * 0.5] * 3}]
        if translated:
            steps.append({"type": "translation", "translation": [(factor - 1) / 4] * 3})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.put({"ome": {**ome, **({"image-label": {}} if labels else {})}, **(attributes or {})})
    return root


def halved(volume):
    return volume.reshape(*itertools.chain(*((n // 2, 2) for n in volume.shape))).mean((1, 3, 5)).astype(volume.dtype)


@pytest.mark.parametrize("zoom", [3, 10])
def test_contours_lie_at_the_ends_of_labels(zoom):
    labels, image = blocks(SHAPE), noise()
    above, _ = panels(labels, image, size=28 * zoom, window=(0, 1000))
    for axis, panel in enumerate(above):
        large = enlarged(plane(labels, axis), zoom)
        shades = np.round(255 * enlarged(plane(image, axis), zoom) / 1000)[..., None]
        ahead = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0]], bool)
        edges = np.zeros(large.shape, bool)
        for extreme in (ndimage.maximum_filter, ndimage.minimum_filter):
            # The last pixels are their own neighbours.
            edges |= extreme(large, footprint=ahead, mode="nearest") != large
        assert 0 < edges.mean() < 0.5
        amber = np.trunc(UNDER * shades + (1 - UNDER) * np.array(AMBER))
        assert np.abs(panel[..., :3] - np.where(edges[..., None], amber, shades)).max() <= 1
        assert (panel[..., 3] == 255).all()


def test_supervoxels_are_painted_with_the_mean_intensity_of_the_plane():
    labels, image = blocks(SHAPE, side=5), noise()
    labels[:, 15:] = 0
    _, below = panels(labels, image, size=280, window=(100, 900))
    for axis, panel in enumerate(below):
        ids, values = plane(labels, axis), plane(image, axis)
        means = np.zeros(ids.shape)
        for label in np.unique(ids[ids > 0]):
            means[ids == label] = values[ids == label].mean()
        shades = 255 * np.clip((means - 100) / 800, 0, 1)
        inside = enlarged(ids > 0, 10)
        assert np.array_equal(panel[..., 3] > 0, inside)
        assert np.abs(panel[..., 0] - enlarged(shades, 10))[inside].max() <= 0.5 + 1e-9


@pytest.mark.parametrize("codes", list(itertools.permutations(("LR", "PA", "IS"))))
def test_right_front_and_head_are_at_the_upper_left(tmp_path, codes):
    """The voxel furthest to the right, front and head is there however the volume is stored."""
    for ends in itertools.product((0, 1), repeat=3):
        axes = "".join(pair[end] for pair, end in zip(codes, ends, strict=True))
        affine = nibabel.orientations.inv_ornt_aff(
            nibabel.orientations.ornt_transform(
                nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
            ),
            (6, 6, 6),
        )
        assert "".join(nibabel.aff2axcodes(affine)) == axes
        corner = tuple(5 if code in "RAS" else 0 for code in axes)
        data = np.zeros((6, 6, 6), "int16")
        data[corner] = 100
        nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii")
        image, labels = open_image(tmp_path / "a.nii"), np.arange(1, 217).reshape(6, 6, 6)
        sheet = draw_sheet(ArraySource(labels), image, at=corner[::-1], size=120, window=(0, 100))
        for _, panel in sheet.rows[1]:
            shown = np.asarray(panel)[..., 0]
            # The letters are in the middle of the sides and hide no corner.
            assert shown[:20, :20].min() == 255
            assert shown[-20:].max() == shown[:, -20:].max() == 0


def test_without_an_affine_planes_are_shown_as_stored():
    image = np.zeros(SHAPE, "uint16")
    image[10, 0, 0] = 1
    _, (axial, _, _) = panels(np.ones(SHAPE, int), image, size=280)
    [[axial, *_]] = panels(np.where(image > 0, 1, 0), None, size=280)
    assert axial[:10, :10, 3].min() == 255
    assert axial[..., 3].sum() == 100 * 255


def test_pixels_are_square_on_anisotropic_mr():
    path = DATA / "mr_sarcoma" / "mr_t1.nii.gz"
    if not path.is_file():
        pytest.skip(f"the real volume {path} is missing")
    source = open_source(path)
    extents = np.multiply(source.shape, source.spacing)
    assert source.spacing[0] > 1.5 * source.spacing[2]
    rows = draw_sheet(ArraySource(blocks(source.shape)), open_image(path), size=300).rows
    for axis, (_, panel) in enumerate(rows[0]):
        height, width = np.delete(extents, axis)
        assert panel.height / panel.width == pytest.approx(height / width, rel=0.02)
    assert max(max(panel.size) for _, panel in rows[0]) == 300


def test_nifti_and_arrays_give_one_picture(tmp_path):
    labels, image = blocks(SHAPE), noise()
    for name, data in (("labels", labels.astype("int32")), ("image", image)):
        nibabel.save(nibabel.Nifti1Image(data.T, np.diag([-1, -1, 1, 1])), tmp_path / f"{name}.nii.gz")
    files = dseeds.preview(tmp_path / "labels.nii.gz", tmp_path / "image.nii.gz", size=140)
    arrays = dseeds.preview(labels, image, size=140)
    # A crop of the axial plane without the letters: along x and y, voxels are stored as radiologists view them.
    pixels, expected = (np.asarray(picture)[22:122, 20:120, :3].astype(int) for picture in (files, arrays))
    assert np.array_equal(pixels[:, :40], expected[:, :40])


# Pyramids


def test_levels_lie_where_their_voxels_do(tmp_path):
    """A voxel of the labels gets the mean of the coarse voxel that contains it."""
    ramp = np.broadcast_to(np.arange(64.0, dtype="float32"), (64, 64, 64))
    levels = [ramp, halved(ramp), halved(halved(ramp))]
    source = open_source(pyramid(tmp_path / "a.zarr", levels, translated=True))
    assert [level.scale for level in read_resolution_levels(source)] == [(f,) * 3 for f in (1.0, 2.0, 4.0)]
    assert [level.offset for level in read_resolution_levels(source)] == [(o,) * 3 for o in (0.0, 0.5, 1.5)]
    at = middle_voxel(source.shape)
    labels = PlaneReader(ArraySource(blocks(source.shape)), at)
    [axial, *_] = read_sections(labels, PlaneReader(source, at), View.whole(source.shape, (1, 1, 1), 16), Orientation())
    # The labels have one level, of which about every fourth voxel is read, one in each block.
    columns = np.unique(np.floor((np.arange(16) + 0.5) * 4 - 0.5 + 0.5))
    assert np.array_equal(axial.image, np.broadcast_to(columns // 4 * 4 + 1.5, axial.image.shape))


@pytest.mark.parametrize(("size", "level"), [(64, 0), (46, 0), (45, 1), (33, 1), (22, 2)])
def test_the_level_matches_the_pixels(tmp_path, size, level):
    levels = [np.full((64 >> k,) * 3, k + 1, "uint16") for k in range(3)]
    source = open_source(pyramid(tmp_path / "a.zarr", levels))
    volume = PlaneReader(source, middle_voxel(source.shape))
    assert volume.choose_level(View.whole(source.shape, source.spacing, size)) is volume.levels[level]


@pytest.mark.parametrize("dataset", [{"path": "../a"}, {"path": "none"}, {"path": 5}])
def test_missing_levels_are_left_out(tmp_path, dataset):
    path = pyramid(tmp_path / "a.zarr", [noise((16, 16, 16)), noise((8, 8, 8))])
    group = zarr.open_group(path)
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"][1] = dataset
    group.attrs["ome"] = ome
    assert len(read_resolution_levels(open_source(path))) == 1


def test_an_image_is_refused_as_labels(tmp_path):
    path = pyramid(tmp_path / "ct.zarr", [noise((16, 16, 16))])
    with pytest.raises(ValueError, match=r"ct.zarr is an image: name its labels"):
        dseeds.preview(path)


class Counted(WrapperStore):
    """Counts the requests to a store."""

    requests = 0

    async def get(self, *arguments, **options):
        Counted.requests += 1
        return await super().get(*arguments, **options)


def giant(path, **more):
    """Write a cube of 10^12 voxels whose chunks are all missing, which readers request nonetheless."""
    group = zarr.open_group(Counted(LocalStore(path)), mode="w")
    datasets = []
    for number in range(6):
        side = 10_000 >> number
        group.create_array(str(number), shape=(side,) * 3, chunks=(64,) * 3, dtype="uint16", fill_value=3)
        steps = [{"type": "scale", "scale": [2.0**number] * 3}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    axes = [{"name": axis, "type": "space"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}], **more}
    return group


def test_little_of_a_giant_is_read(tmp_path):
    labels, image = giant(tmp_path / "labels.zarr", **{"image-label": {}}), giant(tmp_path / "image.zarr")
    Counted.requests = 0
    assert dseeds.preview(labels, image).height > 960
    # A plane of the matching level has 10 x 10 chunks, one of the finest level 157 x 157.
    assert 600 <= Counted.requests <= 700


def test_small_supervoxels_are_shown_in_detail(tmp_path):
    labels, image = blocks((8, 400, 400), side=4), noise((8, 400, 400))
    sheet = draw_sheet(ArraySource(labels), open_image(image), size=200, window=(0, 1000))
    titles = [title for title, _ in sheet.rows[0]]
    assert titles == ["axial, z = 4, 8 x closer", "coronal, y = 200, 8 x closer", "sagittal, x = 200, 8 x closer"]
    detail, whole = (np.asarray(row[0][1]) for row in sheet.rows)
    amber = (detail[..., :3] == AMBER).all(-1) | (np.abs(detail[..., 0].astype(int) - detail[..., 2]) > 60)
    lines = np.flatnonzero(amber.all(0))
    # 4 voxels of 4 pixels each.
    assert set(np.diff(lines)) == {16}
    frame = np.argwhere((whole[..., :3] == AMBER).all(-1))
    assert frame.min(0).tolist() == [87, 87]
    assert np.ptp(frame, axis=0).tolist() == [24, 24]
    # The short axis z is shown whole.
    assert sheet.rows[0][1][1].size == (200, 32)


# The image recorded in the labels


def labels_of(tmp_path, image, windows=(), **options):
    """Write labels that record their image."""
    labels = blocks(SHAPE).astype("uint32")
    record = {"source": open_image(image, **options).identity, "parameters": {"windows": windows}}
    return pyramid(tmp_path / "labels.zarr", [labels], labels=True, attributes={"dseeds": record})


def test_labels_lead_to_their_image(tmp_path):
    image = pyramid(tmp_path / "a.zarr", [noise()])
    labels = labels_of(tmp_path, image, windows=[[0, 1000]])
    assert dseeds.preview(labels) == dseeds.preview(labels, image, window="0:1000")
    assert dseeds.preview(labels) != dseeds.preview(labels, image, window="0:2000")


def test_labels_lead_to_channels_and_volumes(tmp_path):
    stack = np.stack([noise(), noise(high=500)])
    array = zarr.create_array(tmp_path / "a.zarr", shape=stack.shape, chunks=(1, 8, 8, 8), dtype=stack.dtype)
    array[...] = stack
    nibabel.save(nibabel.Nifti1Image(stack.T, np.eye(4)), tmp_path / "b.nii.gz")
    path = labels_of(tmp_path, array, channel_axis=0)
    expected = [dseeds.preview(path, channel, window="0:500") for channel in stack]
    assert [dseeds.preview(path, channel=c, window="0:500") for c in (0, 1)] == expected
    path = labels_of(tmp_path, array, volume=1)
    assert dseeds.preview(path, window="0:500") == expected[1]
    for options in ({"volume": 1}, {"channel_axis": 0}):
        path = labels_of(tmp_path, tmp_path / "b.nii.gz", **options)
        again = dseeds.preview(path, tmp_path / "b.nii.gz", window="0:500", **options)
        assert dseeds.preview(path, window="0:500") == again
    np.save(tmp_path / "c.npy", stack)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["0"], file["1"] = stack
    for source, options in ((tmp_path / "c.npy", {"volume": 1}), (f"{tmp_path}/d.h5:/1", {})):
        path = labels_of(tmp_path, source, **options)
        assert dseeds.preview(path, window="0:500") == expected[1]
        # Its path does not open exactly this image.
        assert html_report._path_of(open_image(source, **options)) is None


@pytest.mark.parametrize("source", [None, 5, {}, {"path": 3}, {"kind": "zarr", "path": "/none/a.zarr/0", "index": []}])
def test_without_an_image_labels_are_coloured_with_a_warning(tmp_path, source):
    labels = blocks(SHAPE).astype("uint32")
    attributes = {} if source is None else {"dseeds": {"source": source}}
    path = pyramid(tmp_path / "labels.zarr", [labels], labels=True, attributes=attributes)
    with pytest.warns(UserWarning, match="labels are shown in arbitrary colours; name their image"):
        picture = np.asarray(dseeds.preview(path, size=84))
    with warnings.catch_warnings():
        # An array needs no warning: it records no image.
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(dseeds.preview(labels, size=84)), picture)
    axial = picture[22 : 22 + 72, :84, :3]
    assert len(np.unique(axial.reshape(-1, 3), axis=0)) == 6 * 7
    assert np.array_equal(axial[::3, ::3][::4, ::4].repeat(12, 0).repeat(12, 1), axial)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": (0, 0)}, "at must be a voxel"),
        ({"at": (20, 0, 0)}, "at must be a voxel"),
        ({"size": 10}, "size must be"),
        ({"channel": 1}, "channel must be 0 to 0"),
        ({"spacing": (1, 1, 0)}, "spacing must be"),
        ({"window": "nothing"}, "window"),
        ({"image": noise((4, 4, 4))}, "shape"),
    ],
)
def test_invalid_parameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dseeds.preview(blocks(SHAPE), **{"image": noise(), **options})


def test_constant_and_infinite_images_are_shown(tmp_path):
    for image in (np.full(SHAPE, 7, "int16"), np.full(SHAPE, np.nan, "float32"), np.where(noise() > 5, np.inf, 1.0)):
        assert dseeds.preview(blocks(SHAPE), image, size=84).mode == "RGBA"


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels_of(tmp_path, pyramid(tmp_path / "a.zarr", [noise()]), windows=[[0, 1000]])
    assert cli.main(["preview", "labels.zarr", "--size", "84"]) == 0
    assert capsys.readouterr() == ("labels.png\n", "")
    with Picture.open("labels.png") as picture:
        assert picture.size == dseeds.preview("labels.zarr", size=84).size
        assert picture.text == {"Software": "made by dseeds"}
    for content, arguments, reason in [
        (None, [], "overwrite"),
        (b"mine", ["--overwrite"], "was not written by dseeds"),
    ]:
        if content:
            (tmp_path / "labels.png").write_bytes(content)
        before = (tmp_path / "labels.png").read_bytes()
        assert cli.main(["preview", "labels.zarr", *arguments]) == 1
        assert reason in capsys.readouterr().err
        assert (tmp_path / "labels.png").read_bytes() == before
    assert cli.main(["preview", "labels.zarr", "-o", "none/a.png"]) == 1
    assert "the folder" in capsys.readouterr().err
    zarr.open_group("labels.zarr").attrs["dseeds"] = {}
    assert cli.main(["preview", "labels.zarr", "-o", "b.png"]) == 0
    assert capsys.readouterr().err.startswith("note: labels.zarr does not say which image it was made from")
