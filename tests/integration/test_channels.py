"""Images of several channels: their sources, reads, and errors."""

import json
import pickle

import hypothesis
import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from zarr.storage import MemoryStore, WrapperStore

from dseeds.io import open_image, open_source, write_nifti_labels

SHAPE = (5, 6, 7)
BOX = np.s_[1:4, 2:6, 0:3]


def channels(count=3, dtype="int16"):
    return [(np.arange(210).reshape(SHAPE) * (c + 1) % 251).astype(dtype) for c in range(count)]


def save_nifti(path, data, affine=None, intent=None):
    image = nibabel.Nifti1Image(data, np.diag([0.5, 0.75, 3.25, 1]) if affine is None else affine)
    image.header.set_xyzt_units("mm", "sec")
    if intent:
        image.header.set_intent(intent)
    nibabel.save(image, path)
    return path


def make_zarr(path, data, **options):
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **{"chunks": data.shape, **options})
    array[...] = data
    return array


def save_ome(path, data, axes, scale=None, **more):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    make_zarr(group.store_path / "0", data, chunks=(1,) * (data.ndim - 3) + (2, 3, 4))
    steps = {"coordinateTransformations": [{"type": "scale", "scale": scale}]} if scale else {}
    image = {
        "axes": [{"name": axis, **({"unit": "millimeter"} if axis in "zyx" else {})} for axis in axes],
        "datasets": [{"path": "0", **steps}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image], **more}
    return path


def colours(data):
    """Return channels (c, z, y, x) as NIfTI's RGB voxels."""
    return np.stack(data, -1).astype("u1").view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0].T


def same(image, expected):
    """Check all ways to read an image against its channels."""
    assert image.shape == SHAPE
    assert image.channels == len(expected) == len(image.dtypes)
    assert image.dtypes == tuple(channel.dtype for channel in expected)
    assert image.itemsize == sum(channel.dtype.itemsize for channel in expected)
    for result, channel in zip(image.read(BOX), expected, strict=True):
        np.testing.assert_array_equal(result, channel[BOX])
    for thickness in (2, 100):
        depth = 0
        for z0, slabs in image.slabs(thickness):
            assert z0 == depth
            for slab, channel in zip(slabs, expected, strict=True):
                np.testing.assert_array_equal(slab, channel[z0 : z0 + thickness])
            depth += len(slabs[0])
        assert depth == SHAPE[0]
    assert json.loads(json.dumps(image.identity)) == image.identity == image.reopened().identity


# Sources


def test_one_channel_is_as_its_source(tmp_path):
    [data] = channels(1)
    path = save_nifti(tmp_path / "a.nii.gz", data.T)
    image, source = open_image(path), open_source(path)
    same(image, [data])
    for field in ("name", "kind", "path", "shape", "spacing", "chunks", "shards", "readable_by_workers", "identity"):
        assert getattr(image, field) == getattr(source, field)
    assert (image.dtypes, image.paths) == ((source.dtype,), (str(path),))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volumes_of_nifti(tmp_path, ending):
    data = channels(4)
    path = save_nifti(tmp_path / f"a{ending}", np.stack(data, -1).transpose(2, 1, 0, 3))
    for given in (path, nibabel.load(path)):
        image = open_image(given, channel_axis=0)
        same(image, data)
        assert image.spacing == (3.25, 0.75, 0.5)
    assert open_image(path, channel_axis=-4).identity == image.identity
    same(open_image(path, volume=2), data[2:3])


@pytest.mark.parametrize("in_memory", [False, True])
def test_channels_of_times_of_nifti(tmp_path, in_memory):
    data = np.stack([np.stack([c + t for t in range(2)]) for c in channels()])  # (c, t, z, y, x)
    made = nibabel.Nifti1Image(data.T, np.eye(4))
    if not in_memory:
        nibabel.save(made, tmp_path / "a.nii")
        made = tmp_path / "a.nii"
    same(open_image(made, channel_axis=0, volume=1), data[:, 1])
    same(open_image(made, channel_axis=1, volume=2), data[2])
    with pytest.raises(ValueError, match=r"holds 2 volumes: pass volume= .*to say which$"):
        open_image(made, channel_axis=0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ""])
def test_colours_of_nifti(tmp_path, ending):
    data = channels(dtype="u1")
    made = nibabel.Nifti1Image(colours(data), np.eye(4))
    given = made
    if ending:
        nibabel.save(made, given := tmp_path / f"a{ending}")
    same(open_image(given), data)
    with pytest.raises(ValueError, match="3 channels in every voxel: leave out channel_axis"):
        open_image(given, channel_axis=0)
    with pytest.raises(ValueError, match="holds records of 3 values"):
        open_source(given)
    series = nibabel.Nifti1Image(np.stack([colours(data), colours(data[::-1])], -1), np.eye(4))
    same(open_image(series, volume=1), data[::-1])


@pytest.mark.parametrize("axis", range(4))
def test_an_axis_of_an_array(axis):
    data = channels()
    stacked = np.stack(data, axis)
    same(open_image(stacked, channel_axis=axis), data)
    same(open_image(stacked, channel_axis=axis - 4), data)
    same(open_image(make_zarr({}, stacked), channel_axis=axis), data)
    same(open_image(np.stack([stacked, stacked + 1]), channel_axis=axis + 1, volume=1), [c + 1 for c in data])


@hypothesis.given(st.integers(1, 16), st.integers(1, 3), st.integers(0, 3), st.data())
def test_channels_anywhere_and_times_before(count, times, place, draws):
    volume = draws.draw(st.integers(0, times - 1))
    stacked = np.stack([np.stack(channels(count), place) + t for t in range(times)])
    image = open_image(stacked, channel_axis=place + 1, volume=volume)
    same(image, [channel + volume for channel in channels(count)])


def test_ome_zarr(tmp_path):
    data = channels()
    path = save_ome(tmp_path / "a.zarr", np.stack(data), "czyx", [1, 3.0, 2.0, 2.0])
    for axis in ("c", 0, -4):
        image = open_image(path, channel_axis=axis)
        same(image, data)
        assert (image.spacing, image.chunks, image.shards) == ((3, 2, 2), (2, 3, 4), None)
        assert (image.name, image.kind, image.readable_by_workers) == ("a.zarr", "zarr", True)
    same(open_image(path, volume=1), data[1:2])
    both = save_ome(tmp_path / "b.zarr", np.stack([data, [c + 1 for c in data]]), "tczyx")
    same(open_image(both, channel_axis="c", volume=1), [c + 1 for c in data])
    same(open_image(both, channel_axis="t", volume=2), [data[2], data[2] + 1])
    single = save_ome(tmp_path / "c.zarr", data[0][None], "czyx")
    same(open_image(single, channel_axis="c"), data[:1])
    same(open_image(single), data[:1])


def test_several_files(tmp_path):
    data = [*channels(2), *channels(1, "float32")]
    paths = [save_nifti(tmp_path / f"{n}.nii.gz", channel.T) for n, channel in enumerate(data)]
    for given in (paths, tuple(paths)):
        image = open_image(given)
        same(image, data)
        assert image.path == str(paths[0])
        assert image.paths == tuple(map(str, paths))
        assert (image.name, image.kind, image.readable_by_workers) == ("0.nii.gz and 2 more", "nifti", False)
        assert image.spacing == (3.25, 0.75, 0.5)
    assert open_image(paths[::-1]).identity != image.identity


def test_files_of_different_kinds_and_channels(tmp_path):
    data = channels(5)
    four = save_nifti(tmp_path / "a.nii", np.stack(data[:2], -1).transpose(2, 1, 0, 3))
    zarrs = save_ome(tmp_path / "b.zarr", np.stack(data[2:4]), "czyx", [1, 3.25, 0.75, 0.5])
    image = open_image([four, zarrs], channel_axis=0)
    same(image, data[:4])
    assert not image.readable_by_workers
    assert image.paths == (str(four), str(zarrs / "0"))
    make_zarr(tmp_path / "c.zarr", data[4])
    mixed = open_image([tmp_path / "c.zarr", data[0]])
    same(mixed, [data[4], data[0]])
    assert (mixed.paths, mixed.spacing) == ((str(tmp_path / "c.zarr"),), None)


def test_the_cut_is_that_of_which_most_is_decoded(tmp_path):
    data = np.zeros((8, 8, 8), "u1")
    small = make_zarr(tmp_path / "small.zarr", data.astype("f4"), chunks=(2, 2, 2), shards=(4, 4, 4))
    large = make_zarr(tmp_path / "large.zarr", data, chunks=(8, 8, 8))
    assert open_image([small, small]).shards == (4, 4, 4)
    for given in ([small, large], [large, small]):
        image = open_image(given)
        assert (image.chunks, image.shards, image.itemsize) == ((8, 8, 8), None, 5)


class Counting(WrapperStore):
    """A store that counts reads of chunks."""

    count = 0

    async def get(self, key, prototype, byte_range=None):
        Counting.count += "/c/" in f"/{key}"
        return await super().get(key, prototype, byte_range)


@pytest.mark.parametrize("axis", [0, 3])
def test_channels_of_one_chunk_are_decoded_once(axis):
    data = channels()
    stacked = np.stack(data, axis)
    store = Counting(MemoryStore())
    make_zarr(store, stacked, chunks=tuple(3 if n == axis else 10 for n in range(4)))
    image = open_image(zarr.open_array(store, mode="r"), channel_axis=axis)
    Counting.count = 0
    image.read(BOX)
    assert Counting.count == 1


def test_images_pickle(tmp_path):
    data = channels(dtype="u1")
    first, last = np.stack(data), np.stack(data, -1)
    images = [
        open_image(last, channel_axis=-1),
        open_image(make_zarr({}, last), channel_axis=-1),
        open_image(make_zarr(tmp_path / "a.zarr", last), channel_axis=-1),
        open_image(save_nifti(tmp_path / "a.nii.gz", first.T), channel_axis=0),
        open_image(save_nifti(tmp_path / "rgb.nii.gz", colours(data))),
        open_image(data),
    ]
    for image in images:
        copy = pickle.loads(pickle.dumps(image))
        same(copy, data)
        assert copy.identity == image.identity


def test_identity_tells_channels_apart(tmp_path):
    stacked = np.zeros((3, 3, 4, 5), "u1")
    path = tmp_path / "a.zarr"
    make_zarr(path, stacked)
    known = [
        open_image(path, volume=0),
        open_image(path, channel_axis=0),
        open_image(path, channel_axis=1),
        open_image([path, path], volume=0),
    ]
    identities = {json.dumps(image.identity) for image in known}
    assert len(identities) == len(known)
    make_zarr(path, stacked, chunks=(1, 3, 4, 5), overwrite=True)
    assert not identities & {json.dumps(image.reopened().identity) for image in known}


# Errors


def test_the_error_names_the_channel_axis_that_helps(tmp_path):
    ome = save_ome(tmp_path / "a.zarr", np.stack(channels()), "czyx")
    message = r"holds 3 channels: pass channel_axis='c' \(--channel-axis c\) to take all of them together, or volume= "
    with pytest.raises(ValueError, match=message):
        open_image(ome)
    message = r"holds 3 volumes: pass volume= \(--volume on the command line\), 0 to 2, to say which, or "
    with pytest.raises(ValueError, match=message + r"channel_axis= \(--channel-axis\) to take all"):
        open_image(np.stack(channels()))
    with pytest.raises(ValueError, match=r"to say which$"):
        open_source(ome)
    both = save_ome(tmp_path / "b.zarr", np.zeros((2, 3, *SHAPE), "u1"), "tczyx")
    with pytest.raises(ValueError, match=r"\(2 along t and 3 along c\): name .* with channel_axis='c'"):
        open_image(both)
    with pytest.raises(ValueError, match="holds 2 volumes"):
        open_image(both, channel_axis="c")


@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((17, 3, 4, 5), 0, "has 17 channels, and no more than 16"),
        ((100, 3, 4, 5), 0, "has 100 channels, and no more than 16"),
        ((2, 3, 4, 5), 4, "has no axis 4 for channels: it has 4, numbered from 0"),
        ((2, 3, 4, 5), -5, "has no axis -5 for channels"),
        ((2, 3, 4, 5), "c", "has no names for its axes, so none of them is 'c'"),
        ((2, 2, 3, 4, 5), 0, "holds 2 volumes: pass volume="),
        ((2, 2, 2, 3, 4, 5), 0, r"more than one way \(2 along axis 1 and 2 along axis 2\): store the one"),
    ],
)
def test_axes_that_are_refused(tmp_path, shape, axis, message):
    data = np.zeros(shape, "u1")
    with pytest.raises(ValueError, match=message):
        open_image(data, channel_axis=axis)
    with pytest.raises(ValueError, match=message):
        open_image(make_zarr(tmp_path / "a.zarr", data), channel_axis=axis)


@pytest.mark.parametrize(
    ("shape", "axis", "message"),
    [
        ((17, 3, 4, 5), 0, "has 17 channels, and no more than 16"),
        ((100, 4, 5), 0, r"has shape \(100, 4, 5\), the last three of which are z, y and x"),
        ((2, 3, 4, 5), 1, "the last three of which are z, y and x"),
        ((2, 3, 4, 5), -1, "the last three of which are z, y and x"),
        ((2, 3, 4, 5), 4, "has no axis 4 for channels"),
        ((2, 3, 4, 5), "c", "has no names for its axes"),
    ],
)
def test_axes_of_nifti_that_are_refused(tmp_path, shape, axis, message):
    path = save_nifti(tmp_path / "a.nii", np.zeros(shape, "u1").T)
    for given in (path, nibabel.Nifti1Image(np.zeros(shape, "u1").T, np.eye(4))):
        with pytest.raises(ValueError, match=message):
            open_image(given, channel_axis=axis)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("q", "has no axis 'q' for channels: its axes are t, c, z, y, x"),
        ("y", "has y as its axis 3, which cannot be that of channels"),
        (2, "has z as its axis 2, which cannot be that of channels"),
        (7, "has no axis 7 for channels"),
        ("t", "has 17 channels"),
    ],
)
def test_axes_of_ome_zarr_that_are_refused(tmp_path, axis, message):
    path = save_ome(tmp_path / "a.zarr", np.zeros((17, 1, 3, 4, 5), "u1"), "tczyx")
    with pytest.raises(ValueError, match=message):
        open_image(path, channel_axis=axis)


def test_too_many_or_no_files():
    with pytest.raises(ValueError, match="list of sources is empty"):
        open_image([])
    with pytest.raises(ValueError, match="has 17 channels"):
        open_image([np.zeros(SHAPE)] * 17)
    assert open_image([np.zeros(SHAPE)] * 16).channels == 16
    with pytest.raises(TypeError, match="a source is a path"):
        open_image([{}])


def moved(by):
    affine = np.diag([0.5, 0.75, 3.25, 1])
    affine[0, 3] = by
    return affine


TURNED = np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 3.25, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        (
            (5, 6, 8),
            None,
            r"1.nii has the shape \(5, 6, 8\), but .*0.nii has \(5, 6, 7\).* must be the same",
        ),
        (
            SHAPE,
            np.diag([0.5, 0.76, 3.25, 1]),
            r"1.nii lie in different places.*x 0.76 x 0.5 mm and .* x 0.75 x 0.5 mm",
        ),
        (SHAPE, moved(0.1), r"0.nii and .*1.nii lie in different places or orientations"),
        (SHAPE, np.diag([-0.5, 0.75, 3.25, 1]), "lie in different places or orientations"),
        (SHAPE, moved(0.0001), None),
        (SHAPE, np.diag([0.5, 0.7501, 3.25, 1]), None),
    ],
)
def test_files_that_must_agree(tmp_path, shape, affine, message):
    paths = [
        save_nifti(tmp_path / "0.nii", np.zeros(SHAPE, "u1").T),
        save_nifti(tmp_path / "1.nii", np.zeros(shape, "u1").T, affine),
    ]
    if message is None:
        assert open_image(paths).channels == 2
        return
    with pytest.raises(ValueError, match=message):
        open_image(paths)
    # The plain array between them carries no affine and does not hide the difference.
    if shape == SHAPE:
        with pytest.raises(ValueError, match=message):
            open_image([np.zeros(SHAPE), *paths])


@pytest.mark.parametrize("shape", [(3, 4, 5), (100, 4, 5)])
def test_an_array_of_planes_has_no_channels(shape):
    with pytest.raises(ValueError, match="beside channels, supervoxels need three axes"):
        open_image(np.zeros(shape, "u1"), channel_axis=0)


def test_arrays_that_must_agree():
    with pytest.raises(ValueError, match=r"array \(channel 1\) has the shape \(3, 4, 6\), but array \(channel 0\) has"):
        open_image([np.zeros((3, 4, 5)), np.zeros((3, 4, 6))])


def test_labels_are_no_image(tmp_path):
    message = "holds labels, not intensities: pass the image that they belong to"
    labels = channels(1, "uint8")[0]
    made = nibabel.Nifti1Image(labels.T, np.eye(4))
    write_nifti_labels(tmp_path / "ours.nii.gz", [(0, labels)], made, SHAPE)
    theirs = save_nifti(tmp_path / "theirs.nii", labels.T, intent="label")
    made.header.set_intent("label")
    ome = save_ome(tmp_path / "a.zarr", labels, "zyx", **{"image-label": {"version": "0.5"}})
    old = zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    make_zarr(old.store_path / "0", labels, zarr_format=2)
    old.attrs.update(
        {"multiscales": [{"axes": list("zyx"), "datasets": [{"path": "0"}]}], "image-label": {"version": "0.4"}}
    )
    for given in (tmp_path / "ours.nii.gz", theirs, made, ome, zarr.open_group(ome, mode="r"), old):
        with pytest.raises(ValueError, match=message):
            open_image(given)
        assert open_source(given).shape == SHAPE


@pytest.mark.parametrize("make", [np.asarray, lambda data: make_zarr({}, data)])
def test_truth_values_are_no_image(make):
    with pytest.raises(ValueError, match="is boolean; supervoxels need intensities: pass the image"):
        open_image(make(np.zeros(SHAPE, bool)))
