"""Crops and tokens: equal to NumPy and SciPy, in every process, and read from where they are."""

import json
import multiprocessing
import os
import pickle
import tempfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import dseeds
from dseeds.measure import sampling, tokens

few = settings(max_examples=20)
RNG = np.random.default_rng(2)
IMAGE = RNG.integers(0, 250, (14, 22, 18)).astype(np.uint8)
LABELS = dseeds.supervoxels(IMAGE, step=6)
FEATURES = dseeds.features(LABELS, IMAGE)
TWO = np.stack([IMAGE, 255 - IMAGE])
sizes = st.tuples(*[st.integers(1, 9)] * 3)


def stored(folder, chunk=5, shape=IMAGE.shape):
    """Write labels and an image of two channels in small chunks, and return both as arrays of Zarr."""
    made = []
    for name, values in (("labels.zarr", LABELS), ("image.zarr", TWO)):
        chunks = (*[1] * (values.ndim - 3), *[chunk] * 3)
        array = zarr.create_array(Path(folder, name), shape=values.shape, dtype=values.dtype, chunks=chunks)
        array[...] = values
        made.append(array)
    return made


def padded(values, start, size, fill):
    """Cut a box out of an array that is continued on all sides."""
    margin = max(size) + 1
    wide = np.pad(values, margin, constant_values=fill)
    return wide[tuple(slice(a + margin, a + margin + n) for a, n in zip(start, size, strict=True))]


def same(one, other):
    assert one.label == other.label
    for name in ("image", "mask", "inside"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """The volumes in memory and in chunks of several sizes."""
    folders = [(chunk, tmp_path_factory.mktemp("volumes")) for chunk in (5, 8, 30)]
    return [(LABELS, TWO), *(stored(folder, chunk) for chunk, folder in folders)]


@few
@given(sizes, st.integers(0, 3), st.sampled_from([0.0, -7.5, np.nan]))
def test_a_crop_is_cut_out_around_the_centroid(volumes, size, number, fill):
    around = dseeds.crops(*volumes[number], FEATURES, size, fill=fill, channel_axis=0)
    assert (len(around), around.size) == (len(np.unique(LABELS)), size)
    for position in (0, len(around) // 2, -1):
        crop = around[position]
        centre = [int(np.floor(c + 0.5)) for c in ndimage.center_of_mass(crop.label == LABELS)]
        start = [c - n // 2 for c, n in zip(centre, size, strict=True)]
        for channel, values in zip(crop.image, TWO.astype(np.float32), strict=True):
            np.testing.assert_array_equal(channel, padded(values, start, size, fill))
        np.testing.assert_array_equal(crop.mask, padded(crop.label == LABELS, start, size, False))
        np.testing.assert_array_equal(crop.inside, padded(np.ones(IMAGE.shape, bool), start, size, False))
    with pytest.raises(IndexError):
        around[len(around)]


@few
@given(sizes, st.tuples(*[st.sampled_from([0.4, 1.0, 1.5])] * 3), st.sampled_from([0.5, 1.0, (2.0, 0.3, 0.7)]))
def test_a_resampled_crop_is_that_of_scipy(size, spacing, resolution):
    around = dseeds.crops(LABELS, IMAGE, FEATURES, size, spacing=spacing, resolution=resolution, fill=-1)
    ratio = np.broadcast_to(resolution, 3) / spacing
    for number in (0, len(around) // 2, len(around) - 1):
        crop = around[number]
        centre = ndimage.center_of_mass(crop.label == LABELS)
        axes = [c + (np.arange(n) - (n - 1) / 2) * r for c, n, r in zip(centre, size, ratio, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"))
        ends = np.array(IMAGE.shape).reshape(3, 1, 1, 1) - 0.5
        inside = ((points > -0.5) & (points < ends)).all(axis=0)
        np.testing.assert_array_equal(crop.inside, inside)
        expected = ndimage.map_coordinates(IMAGE.astype(float), points, order=1, mode="nearest")
        np.testing.assert_allclose(crop.image[0], np.where(inside, expected, -1), atol=1e-3)
        nearest = [np.clip(np.floor(p + 0.5).astype(int), 0, n - 1) for p, n in zip(points, IMAGE.shape, strict=True)]
        np.testing.assert_array_equal(crop.mask, inside & (LABELS[tuple(nearest)] == crop.label))


def test_lengths_and_batches():
    around = dseeds.crops(LABELS, IMAGE, FEATURES, "6mm", spacing=(3, 1, 0.75))
    assert around.size == (2, 6, 8)
    assert dseeds.crops(LABELS, IMAGE, FEATURES, "6mm", spacing=(3, 1, 1), resolution=0.5).size == (12, 12, 12)
    order = RNG.permutation(len(around))
    for batches, positions in ((around.batches(5), range(len(around))), (around.batches(5, order), order)):
        whole = list(batches)
        assert {len(batch.label) for batch in whole[:-1]} == {5}
        joined = dseeds.SupervoxelCrop(*(np.concatenate(parts) for parts in zip(*whole, strict=True)))
        assert joined.image.shape == (len(around), 1, 2, 6, 8)
        np.testing.assert_array_equal(joined.label, around.labels[positions])
        for number, position in enumerate(positions):
            same(dseeds.SupervoxelCrop(*(part[number] for part in joined)), around[position])
    assert len(dseeds.crops(LABELS, IMAGE, FEATURES.table.slice(2, 3), 4)) == 3


def test_little_memory_makes_no_difference(tmp_path, monkeypatch):
    labels, image = stored(tmp_path)
    expected = list(dseeds.crops(LABELS, TWO, FEATURES, 7, channel_axis=0))
    for name, value in (("CACHE_BYTES", 300), ("LARGEST_BLOCK", 10)):
        monkeypatch.setattr(sampling, name, value)
        for one, other in zip(dseeds.crops(labels, image, FEATURES, 7, channel_axis=0), expected, strict=True):
            same(one, other)


def test_only_chunks_of_the_crop_are_read(tmp_path):
    labels, image = stored(tmp_path, chunk=4)
    around = dseeds.crops(labels, image, FEATURES, 4, channel_axis=0)
    expected = around[0]
    for array in ("labels.zarr", "image.zarr"):
        far = [
            path for path in (tmp_path / array / "c").rglob("*") if path.is_file() and int(path.parent.parent.name) > 1
        ]
        assert far
        for path in far:
            path.write_bytes(b"damaged")
    again = pickle.loads(pickle.dumps(around))
    same(again[0], expected)
    with pytest.raises(ValueError, match="cannot be read"):
        again[len(again) - 1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_process_reads_by_itself(method, tmp_path):
    labels, image = stored(tmp_path)
    nibabel.save(nibabel.Nifti1Image(LABELS.T.astype(np.int32), np.eye(4)), tmp_path / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.eye(4)), tmp_path / "image.nii.gz")
    expected = dseeds.crops(LABELS, TWO, FEATURES, 6, channel_axis=0)
    files = [tmp_path / f"{name}.nii.gz" for name in ("labels", "image")]
    datasets = [
        dseeds.crops(labels, image, FEATURES, 6, channel_axis=0),
        dseeds.crops(*files, FEATURES, 6),
        dseeds.crops(LABELS, IMAGE, FEATURES, 6),
    ]
    for dataset in datasets:
        # So that a child could inherit what is open.
        same(dataset[0], dseeds.SupervoxelCrop(expected[0].image[: dataset[0].image.shape[0]], *expected[0][1:]))
    with multiprocessing.get_context(method).Pool(2) as pool:
        for dataset in datasets:
            for number, crop in enumerate(pool.map(dataset.__getitem__, range(len(dataset)))):
                known = expected[number]
                same(crop, dseeds.SupervoxelCrop(known.image[: len(crop.image)], *known[1:]))


def test_a_fork_does_not_read_through_what_its_parent_has_opened(tmp_path):
    labels, image = stored(tmp_path)
    around = dseeds.crops(labels, image, FEATURES, 6, channel_axis=0)
    expected, opened = around[3], around._reader._opened
    parent, child = multiprocessing.Pipe()

    def read():
        child.send((around[3], around._reader._opened[0] == os.getpid(), around._reader._opened[1] is not opened[1]))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    crop, *is_anew = parent.recv()
    process.join()
    same(crop, expected)
    assert is_anew == [True, True]


def test_what_has_no_share_does_not_matter():
    values = np.array([[[[1.0, np.nan, 3.0]]]])
    points = [np.zeros(1), np.zeros(1), np.array([0.0, 0.5, 1.0, 2.0])]
    assert sampling.interpolate(values, points).ravel().tolist() == pytest.approx([1, np.nan, np.nan, 3], nan_ok=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pytorch_loads_crops(method, tmp_path):
    torch = pytest.importorskip("torch", reason="PYTORCH IS MISSING: ITS DATALOADER IS NOT TESTED")
    labels, image = stored(tmp_path)
    around = dseeds.crops(labels, image, FEATURES, 6, channel_axis=0)
    around[0]
    loader = torch.utils.data.DataLoader(
        around, batch_size=7, shuffle=True, num_workers=2, multiprocessing_context=method
    )
    seen = []
    for batch in loader:
        assert batch.image.dtype == torch.float32
        for number, label in enumerate(batch.label.tolist()):
            seen.append(label)
            expected = around[int(np.searchsorted(around.labels, label))]
            same(dseeds.SupervoxelCrop(*(np.asarray(part[number]) for part in batch)), expected)
    assert sorted(seen) == around.labels.tolist()


def test_what_is_refused(tmp_path):
    others = LABELS.copy()
    others[3:5, 3:5, 3:5] = LABELS.max()
    table = FEATURES.table
    for make in (dseeds.crops, dseeds.tokens):
        with pytest.raises(ValueError, match="was made from other labels than the array"):
            make(others, IMAGE, FEATURES)
        with pytest.raises(ValueError, match="not in the volume: is the table of these labels"):
            make(LABELS[:5], IMAGE[:5], table)
        with pytest.raises(ValueError, match=r"no column '(centroid|bbox)-0'"):
            make(LABELS, IMAGE, {"label": [1]})
    for size, message in (
        (0, "from 1"),
        ((4, 4), "three of them"),
        ("6 feet", "such as '20mm'"),
        (10**4, "voxels: choose"),
    ):
        with pytest.raises(ValueError, match=message):
            dseeds.crops(LABELS, IMAGE, FEATURES, size, spacing=(1, 1, 1))
    for options in ({"size": "6mm"}, {"resolution": 1}):
        with pytest.raises(ValueError, match="the size of the voxels is unknown: pass spacing="):
            dseeds.crops(LABELS, IMAGE, FEATURES, **options)
    holes = table.to_pandas().astype({"bbox-3": float})
    holes.loc[2, "bbox-3"] = np.nan
    with pytest.raises(ValueError, match="a number in the columns bbox-0, bbox-1"):
        dseeds.tokens(LABELS, IMAGE, holes)
    with pytest.raises(ValueError, match="a whole number of at least 1 crops"):
        dseeds.crops(LABELS, IMAGE, FEATURES).batches(0)


def independent_token(label, shape):
    """Return a token by SciPy, and its mask in rational numbers."""
    [box] = ndimage.find_objects((label == LABELS).astype(int))
    part, own = IMAGE[box].astype(float), LABELS[box] == label
    places = [
        [Fraction(2 * i + 1, 2 * n) * extent for i in range(n)] for n, extent in zip(shape, part.shape, strict=True)
    ]
    points = np.meshgrid(*([float(p) - 0.5 for p in axis] for axis in places), indexing="ij")
    voxels = np.ix_(*([int(p) for p in axis] for axis in places))
    return ndimage.map_coordinates(part, points, order=1, mode="nearest"), own[voxels]


@few
@given(sizes, st.sampled_from([None, -3.0]), st.integers(1, 9), st.integers(1, 3))
def test_a_token_is_that_of_scipy(shape, outside, batch, threads):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(tokens, "MOST_TOKENS", batch)
        options = {"shape": shape, "outside": outside, "threads": threads}
        made = dseeds.tokens(LABELS, IMAGE, FEATURES, **options)
        on_disk = dseeds.tokens(LABELS, IMAGE, FEATURES, Path(folder, "tokens.zarr"), **options)
        for name in ("labels", "values", "masks"):
            np.testing.assert_array_equal(getattr(made, name), getattr(on_disk, name)[:])
        assert made.origin.identity == on_disk.origin.identity == FEATURES.origin.identity
    assert made.values.shape == (len(made.labels), 1, *shape)
    for label, values, mask in zip(made.labels, made.values, made.masks, strict=True):
        expected, own = independent_token(label, shape)
        np.testing.assert_array_equal(mask, own)
        np.testing.assert_allclose(
            values[0], expected if outside is None else np.where(own, expected, outside), atol=1e-4
        )


def test_tokens_replace_older_ones_alone(tmp_path):
    labels, image = stored(tmp_path)
    target = tmp_path / "tokens.zarr"
    made = dseeds.tokens(labels, image, FEATURES, target, shape=3, channel_axis=0)
    assert made.values.shape == (len(FEATURES.table), 2, 3, 3, 3)
    group = zarr.open_group(target, mode="r")
    assert sorted(group.array_keys()) == ["labels", "masks", "values"]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        dseeds.tokens(labels, image, FEATURES, target, shape=3, channel_axis=0)
    dseeds.tokens(labels, image, FEATURES, target, shape=2, channel_axis=0, overwrite=True)
    assert made.masks.shape[1:] == (2, 2, 2)
    (target / "mine.txt").write_text("mine")
    for place, message in ((target, "holds mine.txt"), (tmp_path / "labels.zarr", "is the source")):
        with pytest.raises(FileExistsError, match=message):
            dseeds.tokens(labels, image, FEATURES, place, channel_axis=0, overwrite=True)
    (target / "mine.txt").unlink()
    for path in (tmp_path / "image.zarr" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        dseeds.tokens(labels, image, FEATURES, target, channel_axis=0, overwrite=True)
    assert not target.exists()
    unfinished = tmp_path / "unfinished.zarr"
    unfinished.mkdir()
    (unfinished / "dseeds-incomplete.json").write_text(json.dumps({"run": "1", "kind": "tokens"}))
    with pytest.raises(FileNotFoundError, match="or not all of them"):
        dseeds.Tokens(str(unfinished)).labels  # noqa: B018


def test_a_fork_refuses_object_stores():
    """Its parent's connections are threads of obstore that a fork does not have: it would wait for ever."""
    pytest.importorskip("obstore", reason="OBSTORE IS MISSING: FORKS WITH OBJECT STORES ARE NOT TESTED")
    parent, child = multiprocessing.Pipe()

    def read():
        try:
            sampling._open_anew(SimpleNamespace(path="s3://bucket/labels.zarr", readable_by_workers=True))
        except ValueError as error:
            child.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    assert "do not survive a fork: use processes that are spawned" in parent.recv()
    process.join()
