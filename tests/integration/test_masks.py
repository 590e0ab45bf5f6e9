"""Masks, channels, minimum sizes and coarser levels: equal in memory and out of core, and as documented."""

from contextlib import suppress
from itertools import pairwise
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
import scipy.ndimage
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dseeds import segment, supervoxels
from dseeds.engine.tasks import _TASKS
from dseeds.seeds.order_statistics import NoFiniteValues
from tests.support.paths import DATA
from tests.support.runs import GOOD, as_zarr, assert_sentence, labels_in, names_in, noise
from tests.support.volumes import read_volume

BLOBS = scipy.ndimage.gaussian_filter(noise((48, 48, 48), seed=1, dtype="float64"), 2)


def every_label_is_connected(labels):
    """Return whether each label but 0 is one 6-connected component."""
    boxes = scipy.ndimage.find_objects(labels)
    return all(
        box is not None and scipy.ndimage.label(labels[box] == label)[1] == 1 for label, box in enumerate(boxes, 1)
    )


def assert_sound(labels, inside=None):
    """Check that labels are 1..N without gaps, each connected, and 0 exactly outside the mask."""
    assert labels.max() == len(np.unique(labels[labels > 0]))
    assert every_label_is_connected(labels)
    np.testing.assert_array_equal(labels > 0, np.ones(labels.shape, bool) if inside is None else inside)


@st.composite
def masks(draw, shape):
    """Draw a mask of random voxels, planes, a box or a single voxel; boolean or numeric, perhaps coarser."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = (1, 1, 1) if draw(st.booleans()) else draw(st.tuples(*[st.integers(1, 5)] * 3))
    own = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
    kind = draw(st.sampled_from(["sparse", "dense", "planes", "box", "one", "all"]))
    mask = np.zeros(own, bool)
    if kind in ("sparse", "dense"):
        mask = rng.random(own) < (0.4 if kind == "sparse" else 0.9)
    elif kind == "planes":
        mask[..., :: int(rng.integers(2, 6))] = True
    elif kind == "box":
        mask[tuple(slice(int(rng.integers(0, n)), None) for n in own)] = True
    mask.flat[rng.integers(0, mask.size)] = True
    if kind == "all":
        mask[:] = True
    return draw(st.sampled_from([mask, mask * np.uint8(7), np.where(mask, -0.5, np.nan)]))


@st.composite
def runs(draw):
    shape = draw(st.tuples(*[st.integers(1, draw(st.sampled_from([12, 24, 40])))] * 3))
    channels = draw(st.sampled_from([1, 1, 2, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(["u1", ">i2", "f4", "f8"]))
    images = [(noise(shape, seed) / 4 + 100).clip(0, 200).astype(dtype) for seed in range(channels)]
    if images[0].dtype.kind == "f" and draw(st.booleans()):
        images[-1][rng.random(shape) < 0.2] = np.nan
        images[-1].flat[0] = 3
    parameters = {
        "step": draw(st.sampled_from([3, 4, 8, (2, 5, 7)])),
        "mask": draw(st.none() | st.just("auto") | masks(shape)),
        "bins": draw(st.sampled_from(["auto", "linear", "equalised"])),
        "percentiles": draw(st.sampled_from([(0.5, 99.5), (0, 90)])),
        "min_size": draw(st.sampled_from([0, None, 5, 40])),
        "levels": draw(st.sampled_from([0, 0, 2])),
        "compactness": draw(st.sampled_from([0, 0.5])),
    }
    if channels > 1:
        parameters["weights"] = draw(st.sampled_from([None, (1, 0.5, 2)[:channels]]))
    step = parameters["step"] if isinstance(parameters["step"], tuple) else (parameters["step"],) * 3
    region = tuple(s * draw(st.integers(max(1, n // s // 3), n // s + 1)) for s, n in zip(step, shape, strict=True))
    return images, parameters, region


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(runs(), st.sampled_from(["array", 7]))
def test_any_cut_gives_the_labels_of_the_whole(clients, run, stored):
    client, (images, parameters, region) = clients[1], run
    if len(images) > 1:
        whole, parameters = np.stack(images, axis=-1), {**parameters, "channel_axis": -1}
    else:
        whole = images[0]
    expected = found_or_refused(lambda: supervoxels(whole, **parameters))
    if expected is None:
        # NaN everywhere in the mask.
        with TemporaryDirectory() as folder:
            target = f"{folder}/labels.zarr"
            assert not found_or_refused(lambda: segment(whole, target, region=region, client=client, **parameters))
            assert names_in(folder) == []
        return
    expected, parents = expected if parameters["levels"] else (expected, [])
    with TemporaryDirectory() as folder:
        if stored == "array":
            source = whole
        elif len(images) == 1:
            source = as_zarr(f"{folder}/image.zarr", images[0], stored)
        else:
            source = [as_zarr(f"{folder}/image-{n}.zarr", image, stored) for n, image in enumerate(images)]
            parameters = {key: value for key, value in parameters.items() if key != "channel_axis"}
        report = segment(source, f"{folder}/labels.zarr", region=region, client=client, **parameters)
        np.testing.assert_array_equal(labels_in(report.target), expected)
        assert report.supervoxels == expected.max()
        group, coarse = zarr.open_group(report.target, mode="r"), expected
        for level, table in enumerate(parents, 1):
            coarse = table[coarse]
            np.testing.assert_array_equal(group[f"{2**level}x/0"][:], coarse)
            np.testing.assert_array_equal(group[f"{2**level}x/parents"][:], table)
            assert report.coarser[level - 1] == coarse.max()
            assert_sound(coarse, expected > 0)
    assert_sound(expected, expected > 0)


def found_or_refused(function):
    """Return the result of a function, or None if it raises NothingFinite."""
    with suppress(NoFiniteValues):
        return function()


# Masks


@settings(max_examples=12)
@given(st.data())
def test_labels_are_where_the_mask_is(data):
    shape = data.draw(st.tuples(*[st.integers(4, 20)] * 3))
    mask = data.draw(masks(shape).filter(lambda mask: mask.shape == shape))
    labels = supervoxels(noise(shape), step=4, mask=mask)
    assert_sound(labels, (mask != 0) & (mask == mask))


def test_a_mask_that_is_open_everywhere_changes_nothing():
    expected = supervoxels(GOOD, step=4)
    np.testing.assert_array_equal(supervoxels(GOOD, step=4, mask=np.ones(GOOD.shape, bool)), expected)
    np.testing.assert_array_equal(supervoxels(GOOD, step=4, mask=np.ones((1, 1, 1), bool)), expected)


def test_two_parts_are_two_supervoxels():
    """scikit-image's SLIC gives one label to two components here: its issue 8295."""
    skimage = pytest.importorskip("skimage.segmentation")
    image = noise((20, 20, 20), dtype="float64")
    mask = np.ones(image.shape, bool)
    mask[:, 9:11] = mask[:, :, 9:11] = False
    mask[:, 4] = False
    theirs = skimage.slic(
        image, n_segments=27, mask=mask, channel_axis=None, compactness=0.01, enforce_connectivity=False
    )
    assert not every_label_is_connected(theirs)
    ours = supervoxels(image, n_segments=27, mask=mask)
    assert_sound(ours, mask)


def ball(radius):
    z, y, x = np.ogrid[:48, :48, :48]
    return (z - 24) ** 2 + (y - 22) ** 2 + (x - 26) ** 2 < radius**2


def rough(threshold):
    """Return a mask with ragged surfaces, and the scraps that a threshold leaves."""
    fine, coarse = noise((48, 48, 48), dtype="float64"), noise((6, 6, 6), dtype="float64")
    smooth = scipy.ndimage.zoom(coarse, 8, order=1) + 0.2 * scipy.ndimage.gaussian_filter(fine, 1)
    return smooth > np.quantile(smooth, threshold)


ROUGH = {
    "ball": ball(19),
    "shell": ball(20) & ~ball(18),
    "two halves": ball(20) & (np.arange(48) % 25 > 0),
    "half": rough(0.5),
    "tenth": rough(0.9),
    "sieve": np.indices((48, 48, 48)).max(axis=0) % 12 > 0,
}


@pytest.mark.parametrize("name", ROUGH)
def test_a_mask_that_cuts_cells_leaves_the_number_of_supervoxels(tmp_path, client, name):
    """Only parts of the mask that touch nothing else come on top: they have no neighbour to join."""
    mask, number = ROUGH[name], 80
    labels = supervoxels(BLOBS, n_segments=number, mask=mask)
    assert_sound(labels, mask)
    least = mask.sum() // (10 * number)
    sizes = np.bincount(scipy.ndimage.label(mask)[0][mask])
    scraps = np.count_nonzero((sizes > 0) & (sizes < least))
    assert number / 1.35 <= labels.max() - scraps <= number * 1.35
    segment(BLOBS, tmp_path / "labels.zarr", n_segments=number, mask=mask, region=20, client=client)
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), labels)


def test_a_number_within_organs(ct_3mm):
    """Their outlines cut cells into pieces, of which most have fewer voxels than a tenth of the mean."""
    image, organs = ct_3mm
    assert 500 / 1.2 <= supervoxels(image, n_segments=500, mask=organs).max() <= 500 * 1.2
    # As many as ever if each is wanted.
    assert supervoxels(image, n_segments=500, mask=organs, min_size=0).max() > 1000


def test_regions_outside_the_mask_cost_nothing(client, tmp_path, monkeypatch):
    """No task but that of the mask, no read of the image, no chunk of labels."""
    image = noise((16, 16, 96))
    source = as_zarr(tmp_path / "image.zarr", image, 16)
    mask = np.zeros(image.shape, bool)
    mask[:, :, 70:80] = True
    # Chunks that must not be read are unreadable.
    for number in (0, 1, 2, 3):
        (Path(source) / "c" / "0" / "0" / str(number)).write_bytes(b"damaged")
    seen = []
    for stage, task in list(_TASKS.items()):
        monkeypatch.setitem(
            _TASKS,
            stage,
            lambda *arguments, stage=stage, task=task: (seen.append((stage, arguments[1])), task(*arguments))[1],
        )
    report = segment(source, tmp_path / "labels.zarr", step=8, region=16, mask=mask, client=client)
    assert {number for stage, number in seen if stage == "mask"} == set(range(6))
    assert {number for stage, number in seen if stage != "mask"} == {4}
    assert {stage for stage, _ in seen} >= {"window", "quantise", "sweep-blocks", "sweep-voxels", "parts", "label"}
    assert [path.name for path in (tmp_path / "labels.zarr" / "0" / "c" / "0" / "0").iterdir()] == ["4"]
    expected = supervoxels(image[:, :, 64:80], step=8, mask=mask[:, :, 64:80])
    np.testing.assert_array_equal(labels_in(report.target)[:, :, 64:80], expected)
    assert not labels_in(report.target)[:, :, :64].any()


def test_levels_where_a_region_lies_outside(client, tmp_path):
    """A cell without a supervoxel does not shift the numbers of later cells."""
    image, mask = noise((8, 8, 24)), np.ones((8, 8, 24), bool)
    mask[:, :, 8:16] = mask[0, :, 5] = False
    labels, parents = supervoxels(image, step=4, mask=mask, levels=2)
    report = segment(image, tmp_path / "labels.zarr", step=4, mask=mask, levels=2, region=8, client=client)
    assert sum(stage.skipped for stage in report.stages if stage.name == "label") == 1
    group = zarr.open_group(report.target, mode="r")
    np.testing.assert_array_equal(group["0"][:], labels)
    for name, table in zip(("2x", "4x"), parents, strict=True):
        np.testing.assert_array_equal(group[f"{name}/parents"][:], table)


def test_a_pyramid_where_a_region_lies_outside(client, tmp_path):
    """No labels are stored of the region, so zeros are taken for them."""
    image, mask = noise((8, 8, 300)), np.ones((8, 8, 300), bool)
    mask[:, :, 60:180] = False
    options = {"step": 4, "mask": mask, "levels": 1, "spacing": (4, 4, 1)}
    segment(image, tmp_path / "here.zarr", **options)
    report = segment(image, tmp_path / "labels.zarr", region=(8, 8, 60), client=client, **options)
    assert sum(stage.skipped for stage in report.stages if stage.name == "label") == 2
    ours, same = zarr.open_group(report.target, mode="r"), zarr.open_group(tmp_path / "here.zarr", mode="r")
    for name in ("0", "1", "2x/0", "2x/1"):
        np.testing.assert_array_equal(ours[name][:], same[name][:])
        assert not ours[name][:][:, :, ours[name].shape[2] // 4 : ours[name].shape[2] // 2].any()


@pytest.mark.parametrize("kind", ["array", "zarr", "nifti", "coarse"])
def test_a_mask_of_any_kind(client, tmp_path, kind):
    mask = noise((6, 7, 20), 3) > 0
    full = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    source = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(GOOD.T, np.diag([2, 2, 3, 1])), source)
    if kind == "nifti":
        given = tmp_path / "mask.nii.gz"
        nibabel.save(nibabel.Nifti1Image(full.T.astype("u1"), np.diag([2, 2, 3, 1])), given)
    elif kind == "zarr":
        given = as_zarr(tmp_path / "mask.zarr", full, 8)
    else:
        given = mask if kind == "coarse" else full
    expected = supervoxels(GOOD, step=4, mask=full)
    for target in ("labels.zarr", "labels.nii.gz"):
        report = segment(source, tmp_path / target, step=4, region=(12, 14, 20), mask=given, client=client)
        result = (
            labels_in(report.target) if target.endswith("zarr") else np.asarray(nibabel.load(report.target).dataobj).T
        )
        np.testing.assert_array_equal(result, expected)


def test_the_foreground_is_otsus():
    threshold_otsu = pytest.importorskip("skimage.filters").threshold_otsu
    image = noise((20, 24, 40)) / 30
    image[5:15, 6:18, 8:30] += 100
    image[9:11, 11:13, 12:16] -= 100
    labels = supervoxels(image, step=4, mask="auto", percentiles=(0, 100))
    assert not labels[10, 12, 13], "a hole stays a hole"
    assert_sound(labels, labels > 0)
    # The thresholds differ by less than a histogram bin.
    assert ((labels > 0) != (image > threshold_otsu(image, nbins=4096))).mean() < 0.001


def test_nan_is_masked():
    image = GOOD.copy()
    image[3:6, 2:9, 10:30] = np.nan
    labels = supervoxels(image, step=4)
    assert_sound(labels, ~np.isnan(image))
    np.testing.assert_array_equal(labels, supervoxels(np.nan_to_num(image, nan=7.0), step=4, mask=~np.isnan(image)))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(GOOD.shape, bool), "no finite value, or none inside the mask"),
        (np.ones((12, 14, 41), bool), "may be coarser than the image but not finer"),
        (np.ones((12, 14), bool), "three axes"),
        ("nowhere.nii.gz", "does not exist"),
    ],
)
def test_a_mask_that_will_not_do(tmp_path, client, mask, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as in_memory:
        supervoxels(GOOD, step=4, mask=mask)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as out_of_core:
        segment(GOOD, tmp_path / "labels.zarr", step=4, mask=mask, client=client)
    for error in (in_memory, out_of_core):
        assert_sentence(error.value)
    assert names_in(tmp_path) == []


# Minimum size


@settings(max_examples=8)
@given(st.integers(2, 200), st.booleans())
def test_no_supervoxel_is_smaller_than_the_minimum(min_size, masked):
    """Except isolated ones."""
    mask = noise(GOOD.shape, 5) > -50 if masked else np.ones(GOOD.shape, bool)
    labels = supervoxels(GOOD, step=4, mask=mask, min_size=min_size)
    assert_sound(labels, mask)
    sizes = np.bincount(labels.reshape(-1))
    islands, _ = scipy.ndimage.label(mask)
    for label in np.flatnonzero((sizes < min_size) & (sizes > 0)):
        if label:
            assert (labels[islands == islands[labels == label][0]] == label).all(), "it is all of its island"


def test_without_small_ones_nothing_changes():
    labels = supervoxels(GOOD, step=8)
    least = np.bincount(labels.reshape(-1))[1:].min()
    np.testing.assert_array_equal(supervoxels(GOOD, step=8, min_size=least), labels)
    assert supervoxels(GOOD, step=8, min_size=least + 1).max() < labels.max()


# Channels


def test_the_same_channel_twice_is_one():
    expected = supervoxels(GOOD, step=4)
    for channels in (2, 5, 16):
        image = np.broadcast_to(GOOD, (channels, *GOOD.shape))
        np.testing.assert_array_equal(supervoxels(image, step=4, channel_axis=0), expected)


def test_every_channel_counts():
    """Boundaries follow edges that only one of two channels has."""
    one, other = (noise((16, 16, 16), seed) / 20 for seed in (1, 2))
    one[:, :, 7:] += 200
    other[:, 6:] += 200
    both = supervoxels(np.stack([one, other]), step=8, channel_axis=0)
    for axis, at in ((2, 7), (1, 6)):
        before, after = np.take(both, at - 1, axis), np.take(both, at, axis)
        assert (before != after).mean() > 0.95
    alone = supervoxels(one, step=8)
    assert (np.take(alone, 5, 1) != np.take(alone, 6, 1)).mean() < 0.5


def test_files_as_channels_and_windows_of_each(tmp_path, client):
    images = [noise((12, 14, 40), seed) for seed in range(3)]
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(image.T, np.diag([1, 1, 2, 1])), paths[-1])
    parameters = {"window": [None, (-100, 100), "0,300"], "weights": (1, 2, 1), "step": 4}
    report = segment(paths, tmp_path / "labels.nii.gz", region=(12, 14, 20), client=client, **parameters)
    expected = supervoxels(np.stack(images), channel_axis=0, **parameters)
    np.testing.assert_array_equal(np.asarray(nibabel.load(report.target).dataobj).T, expected)
    assert report.windows[1:] == ((-100, 100), (-150, 150))


def test_memory_and_time_are_linear_in_channels():
    """Eight channels take less than 16 times the time of one."""
    import time

    def best(channels):
        image = np.stack([noise((48, 48, 48), seed) for seed in range(channels)])
        supervoxels(image, step=8, channel_axis=0, threads=1)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            supervoxels(image, step=8, channel_axis=0, threads=1)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert best(8) < 16 * best(1)


# Levels


def test_levels_are_unions_and_about_an_eighth(ct_3mm):
    image, _ = ct_3mm
    labels, parents = supervoxels(image, step=4, levels=3, window=(-160, 240))
    counts = [labels.max()]
    for table in parents:
        assert table[0] == 0
        assert len(table) == counts[-1] + 1
        labels = table[labels]
        assert_sound(labels)
        counts.append(labels.max())
    for fine, coarse in pairwise(counts):
        assert 5 < fine / coarse < 11


@pytest.mark.parametrize("target", ["labels.nii.gz", "labels.zarr"])
def test_levels_out_of_core(tmp_path, client, target):
    source = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(GOOD.T, np.diag([1, 1, 2, 1])), source)
    if target.endswith("nii.gz"):
        with pytest.raises(ValueError, match="one level") as caught:
            segment(source, tmp_path / target, step=4, levels=2, client=client)
        assert_sentence(caught.value)
        return
    for overwrite in (False, True):
        report = segment(source, tmp_path / target, step=4, levels=2, client=client, overwrite=overwrite)
    assert names_in(report.target) == ["0", "2x", "4x", "zarr.json"]
    group = zarr.open_group(report.target, mode="r")
    assert "image-label" in group["2x"].attrs["ome"]
    assert group["4x/0"][:].max() == report.coarser[1]
    segment(source, tmp_path / target, step=4, client=client, overwrite=True)
    assert names_in(report.target) == ["0", "zarr.json"]


# Real volumes


def test_the_foreground_of_an_mr(mr_sarcoma, tmp_path, client):
    """A thigh with 6.5 mm between slices: only the foreground, cells isotropic in millimetres."""
    image, _ = mr_sarcoma
    parameters = {"step": "12mm", "spacing": (6.5, 0.8, 0.8), "mask": "auto", "min_size": 30}
    expected = supervoxels(image, **parameters)
    report = segment(image, tmp_path / "labels.zarr", region=(8, 75, 75), client=client, **parameters)
    np.testing.assert_array_equal(labels_in(report.target), expected)
    assert_sound(expected, expected > 0)
    z, y, x = report.step
    assert (z, y, x) == (2, 15, 15)
    assert 0.1 < (expected > 0).mean() < 0.9


def test_ten_intensity_scales():
    """The scanners of the hippocampi differ by a factor of 1000, which percentiles compensate."""
    for path in sorted((DATA / "hippocampus").glob("image_*.nii.gz")):
        image = read_volume("hippocampus", path.name)
        labels = supervoxels(image, step=4)
        assert_sound(labels)
        np.testing.assert_array_equal(supervoxels(image.astype(">f8") * 1000 - 5, step=4), labels)


def test_a_ct_by_its_presets(ct_3mm):
    image, _ = ct_3mm
    abdomen = supervoxels(image, step=8, window="abdomen")
    np.testing.assert_array_equal(abdomen, supervoxels(image, step=8, window=(-160, 240)))
    assert (abdomen != supervoxels(image, step=8, window="lung")).any()
    assert (abdomen != supervoxels(image, step=8, window="abdomen", bins="equalised")).any()


def test_a_single_slice(mr_sarcoma):
    """2D superpixels."""
    image, _ = mr_sarcoma
    one = image[len(image) // 2][None]
    labels = supervoxels(one, step=8)
    assert labels.shape == one.shape
    assert labels.max() == prod(round(n / 8) for n in one.shape[1:])
    assert_sound(labels)
