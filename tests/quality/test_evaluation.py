"""`evaluate` against an independent computation in memory, over any cut, and the laws that its figures obey."""

import json
import math
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.segmentation import slic

import dseeds
from dseeds.io import ArraySource
from dseeds.phantom import phantom
from dseeds.quality.evaluation import Tiling
from dseeds.quality.seams import seam_excess
from tests.support.clusters import in_process

quick = settings(max_examples=25)

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
HUGE = 2**63 - 1
# Sums of floats in another order.
FLOATS = {"rel": 1e-12, "abs": 1e-12}


def volumes(shape, low, high):
    """Small labels, many of them meeting; not only scattered voxels but also blocks, as supervoxels are."""
    fine = hnp.arrays(np.int64, shape, elements=st.integers(low, high))
    coarse = hnp.arrays(np.int64, [-(-n // 2) for n in shape], elements=st.integers(low, high))
    return st.one_of(fine, coarse.map(lambda a: np.kron(a, np.ones((2, 2, 2), int))[tuple(map(slice, shape))]))


@st.composite
def cases(draw, smallest=0):
    """Labels with a mask, or none with smallest=1, and a truth with a structure at a labelled voxel."""
    shape = draw(shapes)
    labels, truth = draw(volumes(shape, smallest, 4)), draw(volumes(shape, 0, 3))
    assume(truth[labels > 0].any())
    return labels, truth


ids = st.lists(st.integers(1, HUGE) | st.integers(HUGE - 9, HUGE), min_size=4, max_size=4, unique=True)
regions = st.tuples(*[st.integers(2, 6)] * 3)


# ---- the independent computation


def oracle(labels, truth=None, image=None, tolerance=1, spacing=None):
    """All figures but those of seams, with NumPy, SciPy and scikit-image, in memory."""
    inside = labels != 0
    names, own = np.unique(labels[inside], return_inverse=True)
    small = np.zeros(labels.shape, int)
    small[inside] = own + 1
    sizes = np.bincount(own)
    pieces = connected_components(small, connectivity=1)
    components = np.bincount(np.unique(np.stack([pieces[inside], own]), axis=1)[1])
    padded = np.pad(small, 1)
    faces = np.zeros(len(names) + 1)
    for axis in range(3):
        below, above = (np.take(padded, range(i, padded.shape[axis] - 1 + i), axis) for i in range(2))
        for side in (below, above):
            faces += np.bincount(side[below != above], minlength=len(faces))
    figures = {
        "compactness": np.average(36 * math.pi * sizes**2 / faces[1:] ** 3, weights=sizes),
        "supervoxels": len(names),
        "components_per_label": components.mean(),
        "disconnected": (components > 1).sum(),
        **{f"size_{name}": getattr(np, name)(sizes) for name in ("min", "mean", "median", "max", "std")},
    }
    if truth is not None:
        figures |= compared(own, sizes, truth[inside])
        wanted, found = boundary(truth, inside), boundary(small, inside)
        hit = wanted & near(found, tolerance, spacing)
        figures["boundary_recall"] = hit.sum() / wanted.sum() if wanted.any() else 1
    if image is not None:
        x = image[inside].astype(float)
        means = np.bincount(own, x - x.mean()) / sizes
        figures["explained_variation"] = np.var(means[own]) / x.var() if np.ptp(x) else 1
    return figures


def compared(own, sizes, true):
    segments, true = np.unique(true, return_inverse=True)
    table = np.zeros((len(sizes), len(segments)), int)
    np.add.at(table, (own, true), 1)
    # The first of equals is the lowest.
    painted = table.argmax(axis=1)[own]
    dice = {
        int(segment): 2 * ((painted == i) & (true == i)).sum() / ((painted == i).sum() + (true == i).sum())
        for i, segment in enumerate(segments)
        if segment
    }
    met = sizes @ (table > 0)
    return {
        "achievable_dice": np.mean(list(dice.values())),
        "achievable_dice_per_structure": dice,
        "achievable_segmentation_accuracy": (painted == true).mean(),
        "undersegmentation_error": np.minimum(table, sizes[:, None] - table).sum() / len(own),
        "undersegmentation_error_levinshtein": (met / table.sum(axis=0) - 1).mean(),
    }


def boundary(volume, inside):
    """Voxels that are not all there is among themselves and their labelled face neighbours."""
    cross = ndimage.generate_binary_structure(3, 1)
    values = np.unique(volume, return_inverse=True)[1].reshape(volume.shape) + 1
    low = ndimage.minimum_filter(np.where(inside, values, values.size + 2), footprint=cross, mode="nearest")
    high = ndimage.maximum_filter(np.where(inside, values, 0), footprint=cross, mode="nearest")
    return inside & (low != high)


def near(found, tolerance, spacing):
    if not found.any():
        return found
    if spacing is None:
        return ndimage.distance_transform_cdt(~found, "chessboard") <= tolerance
    return ndimage.distance_transform_edt(~found, sampling=spacing) <= tolerance * (1 + 1e-9)


def assert_same(found, expected):
    """All that is whole is the same, all else but for rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, int) else pytest.approx(value, **FLOATS)), name


# ---- one answer, and the right one


@quick
@given(cases(), ids, ids, regions, st.data())
def test_figures_are_right_however_the_volume_is_cut(case, names, segments, region, data):
    labels, truth = (
        np.array([0, *names], np.uint64)[volume] for volume, names in zip(case, (names, segments), strict=True)
    )
    dtype = data.draw(st.sampled_from(["uint8", "int16", ">i2", ">f4", "float16", "float32", "float64"]))
    image = data.draw(hnp.arrays(np.uint8, labels.shape)).astype(dtype) / np.array(3, dtype)
    tolerance = data.draw(st.integers(0, 3))
    asked = {"image": image, "tolerance": tolerance, "chunks": 2, "step": data.draw(st.none() | st.integers(2, 3))}
    whole = dseeds.evaluate(labels, truth, **asked, threads=1)
    cut = dseeds.evaluate(labels, truth, **asked, region=region, threads=data.draw(st.integers(1, 3)))
    assert cut == whole
    shown = {name: value for name, value in whole.items() if "seam" not in name}
    assert_same(shown, oracle(labels, truth, image, tolerance))


@quick
@given(cases(), regions, st.tuples(*[st.sampled_from([0.1, 0.3, 1.0, 2.5])] * 3), st.sampled_from([0.3, 1, 2.5, 3.0]))
def test_tolerances_in_millimetres(case, region, spacing, tolerance):
    found = dseeds.evaluate(*case, tolerance=f"{tolerance}mm", spacing=spacing, region=region)
    assert found["boundary_recall"] == oracle(*case, tolerance=tolerance, spacing=spacing)["boundary_recall"]


def test_three_voxels_of_a_tenth_of_a_millimetre_are_three_tenths():
    labels, truth = (np.arange(12).reshape(1, 1, 12) >= edge for edge in (2, 6))
    # True boundary voxels 5 and 6, those of the labels 1 and 2.
    for tolerance, expected in (("0.29mm", 0), ("0.3mm", 0.5), ("0.4mm", 1), (2, 0), (3, 0.5), ("4", 1)):
        found = dseeds.evaluate(labels + 1, truth, tolerance=tolerance, spacing=(1, 1, 0.1), region=4)
        assert found["boundary_recall"] == expected


@pytest.mark.parametrize("seed", range(3))
def test_winding_components(seed):
    """Long detours through many regions, which are joined late."""
    labels = np.random.default_rng(seed).choice(3, (24, 25, 26), p=[0.35, 0.35, 0.3])
    expected = [connected_components(labels == own, connectivity=1).max() for own in (1, 2)]
    for region in ((24, 25, 26), (5, 7, 9), (3, 25, 26)):
        assert dseeds.evaluate(labels, region=region)["components_per_label"] == np.mean(expected)


def test_a_real_volume(ct_3mm):
    image, organs = ct_3mm
    labels = dseeds.supervoxels(image, step=8, window=(-160, 240))
    labels = np.where(organs == organs.max(), 0, labels)
    expected = oracle(labels, organs, image, 3, (3, 3, 3))
    for region in (None, (50, 37, 41)):
        found = dseeds.evaluate(labels, organs, image=image, tolerance="3mm", spacing=(3, 3, 3), region=region)
        assert_same(found, expected)


def test_sources_of_all_kinds(mr_sarcoma, tmp_path):
    """Float labels in a compressed file, a truth in a Zarr array, an image in a file: and whoever does the work."""
    image, tumour = mr_sarcoma
    labels = dseeds.supervoxels(image, step=(4, 16, 16))
    space = np.diag([0.8, 0.8, 4, 1])
    nib.save(nib.Nifti1Image(labels.T.astype(np.float32), space), tmp_path / "labels.nii.gz")
    nib.save(nib.Nifti1Image(image.T, space), tmp_path / "image.nii")
    kept = zarr.create_array(tmp_path / "truth.zarr", data=tumour.astype(np.uint64) * HUGE, chunks=(8, 64, 64))
    sources = (tmp_path / "labels.nii.gz", kept)
    asked = {"image": tmp_path / "image.nii", "tolerance": "2mm"}
    found = dseeds.evaluate(*sources, **asked, memory="20MiB", scratch=tmp_path / "scratch")
    expected = oracle(labels, tumour.astype(np.uint64) * HUGE, image, 2, (4, 0.8, 0.8))
    assert_same(found, expected)
    with in_process(1, 2) as client:
        for one, more in ((sources, asked), ((labels, kept), {**asked, "image": image, "spacing": (4, 0.8, 0.8)})):
            assert dseeds.evaluate(*one, **more, region=100, client=client, scratch=tmp_path / "scratch") == found
    assert not list((tmp_path / "scratch").iterdir())


def test_no_more_is_read_than_a_region_and_its_surroundings(monkeypatch):
    read, sizes = ArraySource.read, []

    def spy(source, box):
        sizes.append(np.prod([side.stop - side.start for side in box]))
        return read(source, box)

    monkeypatch.setattr(ArraySource, "read", spy)
    image, truth = phantom((64, 64, 64))
    labels = np.arange(1, 65)[:, None, None] // 8 + 1 + np.zeros(truth.shape, int)
    dseeds.evaluate(labels, truth, image=image, tolerance=2, region=16)
    # Labels and image twice, for intensities have to be centred first.
    assert len(sizes) == len(Tiling(truth.shape, (16, 16, 16))) * 5
    assert max(sizes) <= (16 + 2 * 3) ** 3


# ---- laws


@quick
@given(cases(), ids, st.sampled_from(["int64", "uint64", ">u8"]))
def test_ids_do_not_matter(case, names, dtype):
    labels, truth = case
    image = (labels * 7 + truth * 3) % 5
    renamed = np.array([0, *names], dtype)[labels]
    assert dseeds.evaluate(renamed, truth, image=image) == dseeds.evaluate(labels, truth, image=image)


@quick
@given(cases(), st.lists(st.integers(1, HUGE), min_size=3, max_size=3, unique=True).map(sorted))
def test_only_the_order_of_true_labels_matters(case, segments):
    labels, truth = case
    names = [0, *segments]
    expected, found = dseeds.evaluate(labels, truth), dseeds.evaluate(labels, np.array(names, np.uint64)[truth])
    named = {names[k]: dice for k, dice in expected.pop("achievable_dice_per_structure").items()}
    assert found.pop("achievable_dice_per_structure") == named
    assert found == expected


@quick
@given(cases(smallest=1))
def test_perfect_labels_have_perfect_figures(case):
    _, truth = case
    figures = dseeds.evaluate(truth + 1, truth, image=truth * 0.1, tolerance=0)
    assert set(figures["achievable_dice_per_structure"].values()) == {1.0}
    assert figures["achievable_dice"] == figures["achievable_segmentation_accuracy"] == figures["boundary_recall"] == 1
    assert figures["undersegmentation_error"] == figures["undersegmentation_error_levinshtein"] == 0
    assert figures["explained_variation"] == pytest.approx(1)


@quick
@given(cases())
def test_so_have_single_voxels(case):
    _, truth = case
    voxels = np.arange(1, truth.size + 1).reshape(truth.shape)
    figures = dseeds.evaluate(voxels, truth, image=truth)
    assert figures["achievable_dice"] == figures["achievable_segmentation_accuracy"] == 1
    assert figures["undersegmentation_error"] == figures["undersegmentation_error_levinshtein"] == 0
    assert figures["explained_variation"] == pytest.approx(1)
    assert figures["compactness"] == pytest.approx(math.pi / 6)


@quick
@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_merging_makes_nothing_better(case, one, other):
    labels, truth = case
    image = (truth * 5 + np.arange(truth.size).reshape(truth.shape)) % 7
    merged = np.where(labels == one, other, labels)
    before, after = (dseeds.evaluate(each, truth, image=image) for each in (labels, merged))
    for key in ("achievable_segmentation_accuracy", "boundary_recall", "explained_variation"):
        assert after[key] <= before[key] + 1e-12
    for key in ("undersegmentation_error", "undersegmentation_error_levinshtein"):
        assert after[key] >= before[key] - 1e-12


@quick
@given(cases(), st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_axes_may_be_swapped_and_flipped(case, order, flipped):
    turned = [np.flip(volume.transpose(order), sorted(flipped)) for volume in case]
    image = np.sin(np.arange(case[0].size)).reshape(case[0].shape)
    expected = dseeds.evaluate(*case, image=image)
    assert dseeds.evaluate(*turned, image=np.flip(image.transpose(order), sorted(flipped))) == expected


@quick
@given(cases(), st.data())
def test_nothing_under_the_mask_matters(case, data):
    labels, truth = case
    image = (truth * 2.5 + labels) % 3
    masked = labels == 0
    other = np.where(masked, data.draw(volumes(labels.shape, 0, HUGE)), truth)
    hole = np.where(masked, np.nan, image)
    assert dseeds.evaluate(labels, other, image=hole) == dseeds.evaluate(labels, truth, image=image)


# ---- seams


def brute_force(labels, chunks, step=None):
    """Excess along each axis and of all, face by face, by comparing a seam with planes alike."""
    total = np.zeros((3, 2))
    for axis in range(3):
        volume, n = np.moveaxis(labels, axis, 0), labels.shape[axis]
        alike = {}
        for k in range(1, n):
            pairs = (volume[k] != 0) & (volume[k - 1] != 0)
            cells = [i * step for i in range(1, max(1, math.floor(n / step + 0.5)))] if step else []
            place = k - max([0, *(cell for cell in cells if cell <= k)]) if step else 0
            alike.setdefault(place, []).append(
                (k % chunks[axis] == 0, pairs.sum(), (pairs & (volume[k] != volume[k - 1])).sum())
            )
        for planes in alike.values():
            others = [sum(p) for p in zip(*((faces, ends) for seam, faces, ends in planes if not seam), strict=True)]
            if others and others[0]:
                for seam, faces, ends in planes:
                    total[axis] += (ends, faces * others[1] / others[0]) if seam else (0, 0)

    def excess(ends, expected):
        return ends / expected - 1 if expected else None

    return [excess(*pair) for pair in (*total, total.sum(axis=0))]


@quick
@given(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12), st.tuples(*[st.integers(2, 5)] * 3), st.data()
)
def test_the_excess_is_that_of_counting_face_by_face(shape, chunks, data):
    labels = data.draw(volumes(shape, 0, 4))
    assume(labels.any())
    step = data.draw(st.none() | st.integers(2, 4))
    # A step is cut to the axis' length, and a cell has two voxels at least.
    assume(step is None or min(shape) >= step)
    found = dseeds.evaluate(labels, chunks=chunks, step=step, region=data.draw(regions))
    expected = brute_force(labels, chunks, step)
    for value, wanted in zip((*found["seam_excess_per_axis"].values(), found["seam_excess"]), expected, strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted, **FLOATS))


def cut_up(image, chunk, cut):
    """Cut chunks into supervoxels of their own."""
    labels = np.zeros(image.shape, np.int64)
    for corner in np.ndindex(*(n // chunk for n in image.shape)):
        box = tuple(slice(i * chunk, (i + 1) * chunk) for i in corner)
        labels[box] = cut(image[box]) + labels.max()
    return labels


def test_labels_that_were_cut_as_a_whole_have_no_seams_and_others_have(ct_3mm):
    image = np.clip(ct_3mm[0][:96, :96, :96], -160, 240)

    def others(part):
        count = part.size // 330
        return slic(part, n_segments=count, compactness=0.05, channel_axis=None, start_label=1)

    def ours(part):
        return dseeds.supervoxels(part, step=8, window=(-160, 240)).astype(np.int64)

    for cut, step, seams in ((others, None, 2), (ours, 8, 1)):
        assert abs(dseeds.evaluate(cut(image), chunks=32, step=step)["seam_excess"]) < 0.1
        found = dseeds.evaluate(cut_up(image, 32, cut), chunks=32, step=step)
        assert found["seam_excess"] > seams
        assert all(value > seams for value in found["seam_excess_per_axis"].values())
        assert {(seam["axis"], seam["plane"]) for seam in found["worst_seams"]} <= set(product("zyx", (32, 64)))


@quick
@given(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=12), st.tuples(*[st.integers(2, 5)] * 3), st.data()
)
def test_the_worst_seams_are_those_of_counting_chunk_by_chunk(shape, chunks, data):
    labels = data.draw(volumes(shape, 0, 4))
    assume(labels.any())
    found = dseeds.evaluate(labels, chunks=chunks, region=data.draw(regions))["worst_seams"]
    expected = []
    for axis in range(3):
        pairs, changes = (np.zeros(shape, bool) for _ in range(2))
        below, above = (
            tuple(side if a == axis else slice(None) for a in range(3)) for side in (slice(-1), slice(1, None))
        )
        pairs[above] = (labels[below] != 0) & (labels[above] != 0)
        changes[above] = pairs[above] & (labels[below] != labels[above])
        planes = np.arange(shape[axis]) % chunks[axis] == 0
        others = np.flatnonzero(~planes)
        faces, ends = (np.take(volume, others, axis).sum() for volume in (pairs, changes))
        for plane in np.flatnonzero(planes)[1:]:
            own, boundary = (volume.take([plane], axis) for volume in (pairs, changes))
            if faces and boundary.sum() > own.sum() * ends / faces:
                expected.append(
                    (boundary.sum() - own.sum() * ends / faces, "zyx"[axis], plane, own, boundary, ends / faces)
                )
    expected.sort(key=lambda seam: -seam[0])
    assert len(found) == min(5, len(expected))
    for seam, (surplus, *_) in zip(found, expected, strict=False):
        [match] = [other for other in expected if other[1:3] == (seam["axis"], seam["plane"])]
        _, name, plane, own, boundary, density = match
        assert match[0] == pytest.approx(surplus)
        axis = "zyx".index(name)
        assert seam["at"][axis] == plane
        assert seam["excess"] == (pytest.approx(boundary.sum() / (own.sum() * density) - 1) if density else None)
        surpluses = {}
        for corner in product(
            *(range(0, n, c) for a, (n, c) in enumerate(zip(shape, chunks, strict=True)) if a != axis)
        ):
            box = [slice(begin, begin + c) for begin, c in zip(corner, np.delete(chunks, axis), strict=True)]
            box.insert(axis, slice(None))
            surpluses[corner] = boundary[tuple(box)].sum() - own[tuple(box)].sum() * density
        place = tuple(int(i - i % c) for i, c in zip(np.delete(seam["at"], axis), np.delete(chunks, axis), strict=True))
        assert surpluses[place] == pytest.approx(max(surpluses.values()))


def test_the_step_is_what_the_labels_say(tmp_path):
    labels = np.random.default_rng(0).integers(1, 9, (8, 9, 10))
    group = zarr.create_group(tmp_path / "labels.zarr", attributes={"dseeds": {"parameters": {"step": [2, 3, 5]}}})
    kept = group.create_array("0", data=labels)
    found = dseeds.evaluate(kept, chunks=4)
    assert found["seam_step"] == [2, 3, 5]
    assert found == dseeds.evaluate(labels, chunks=4, step=(2, 3, 5))


def test_a_seam_is_as_much_denser_as_it_is():
    rows = [np.array([[10, 1], [10, 4], [10, 3], [10, 4]]), *(np.zeros((0, 2), int) for _ in range(2))]
    assert seam_excess(rows, (2, 2, 2))["seam_excess_per_axis"] == {"z": 1.0, "y": None, "x": None}


# ---- by hand


def test_one_supervoxel_over_all():
    truth = np.zeros((4, 4, 4), int)
    truth[:2] = 1
    figures = dseeds.evaluate(np.ones((4, 4, 4), np.uint32), truth, image=truth, chunks=2)
    # A tie, and the smaller label, the background, wins.
    assert figures == {
        "achievable_dice": 0.0,
        "achievable_dice_per_structure": {1: 0.0},
        "achievable_segmentation_accuracy": 0.5,
        "undersegmentation_error": 1.0,
        "undersegmentation_error_levinshtein": 1.0,
        "boundary_recall": 0.0,
        "explained_variation": 0.0,
        "compactness": pytest.approx(math.pi / 6),
        "supervoxels": 1,
        "components_per_label": 1.0,
        "disconnected": 0,
        "size_min": 64,
        "size_mean": 64.0,
        "size_median": 64.0,
        "size_max": 64,
        "size_std": 0.0,
        "seam_excess": None,
        "seam_excess_per_axis": {"z": None, "y": None, "x": None},
        "seam_step": None,
        "worst_seams": [],
    }


def test_figures_are_plain_numbers_for_json():
    image = np.array([[[1, 2, 3]]], np.float32)
    figures = dseeds.evaluate([[[1, 1, 2]]], np.array([[[0, 1, 1]]], bool), image=image, chunks=1)
    assert json.loads(json.dumps(figures)) == {**figures, "achievable_dice_per_structure": {"1": 2 / 3}}
    assert {type(value) for value in figures.values()} <= {int, float, dict, list, type(None)}


def test_figures_that_need_something_are_left_out():
    assert not {"achievable_dice", "boundary_recall", "explained_variation", "seam_excess"} & {
        *dseeds.evaluate([[[1]]])
    }


@pytest.mark.parametrize("value", [0, 0.1, -1e300, 1e-320])
def test_a_constant_image_is_explained(value):
    figures = dseeds.evaluate(np.ones((3, 3, 3), int), image=np.full((3, 3, 3), value, float))
    assert figures["explained_variation"] == 1


@pytest.mark.parametrize(("scale", "offset"), [(1e200, 0), (1e-200, 0), (1, 1e9), (1e306, 0)])
def test_explained_variation_does_not_depend_on_the_unit(scale, offset):
    rng = np.random.default_rng(0)
    labels, image = rng.integers(1, 9, (8, 8, 8)), rng.integers(-99, 99, (8, 8, 8))
    expected, found = (dseeds.evaluate(labels, image=x)["explained_variation"] for x in (image, image * scale + offset))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "offset"), [("i8", 2**60), ("i8", -(2**63)), (">u8", 2**64 - 9)])
def test_variation_of_integers_beyond_2_to_the_53_is_explained_as_of_small_ones(dtype, offset):
    rng = np.random.default_rng(0)
    labels, image = rng.integers(0, 9, (6, 7, 8)), rng.integers(0, 9, (6, 7, 8))
    # Outside, where nothing counts, the difference of two values may take more than 64 bits.
    large = np.where(labels > 0, image.astype(object) + offset, 0).astype(dtype)
    expected = dseeds.evaluate(labels, image=image)["explained_variation"]
    assert dseeds.evaluate(labels, image=large, region=5)["explained_variation"] == expected


def test_arrays_may_be_read_only():
    labels = np.ones((2, 3, 4), np.int32)
    labels.flags.writeable = False
    assert dseeds.evaluate(labels, labels, image=labels)["supervoxels"] == 1


def test_whole_numbers_may_be_floats():
    labels = np.arange(1, 25).reshape(2, 3, 4)
    assert dseeds.evaluate(labels * 1.0, labels * 1.0) == dseeds.evaluate(labels, labels)


# ---- mistakes

GOOD = np.ones((2, 3, 4), int)
LARGE = np.broadcast_to(GOOD[0, 0, 0], (99, 99, 99))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": GOOD[0]}, r"truth has the shape \(2, 3, 4\), but labels has \(1, 3, 4\)"),
        ({"labels": GOOD * 0.5}, "labels must be integers"),
        ({"truth": GOOD * 0.5}, "truth must be integers"),
        ({"truth": GOOD * np.inf}, "truth must be integers"),
        ({"labels": -GOOD}, r"labels must be from 0 to 2\^63 - 1, but array holds -1"),
        ({"labels": np.full(GOOD.shape, 2**63, np.uint64)}, r"labels must be from 0 to 2\^63 - 1"),
        ({"truth": np.full(GOOD.shape, 2**64 - 1, np.uint64)}, r"truth must be from 0 to 2\^63 - 1"),
        ({"labels": GOOD * 0}, "labels has no supervoxel"),
        ({"labels": GOOD * 0, "image": GOOD}, "labels has no supervoxel"),
        ({"labels": GOOD[:0]}, "an axis is empty"),
        ({"truth": GOOD * 0}, "truth has no structure"),
        ({"truth": GOOD[:1]}, r"truth has the shape \(1, 3, 4\), but labels has \(2, 3, 4\)"),
        ({"image": GOOD[:1]}, r"image has the shape \(1, 3, 4\), but labels has \(2, 3, 4\)"),
        ({"image": GOOD * 1j}, "is complex"),
        ({"image": GOOD * np.nan}, "image has NaN or infinite values"),
        ({"image": GOOD * np.inf}, "image has NaN or infinite values"),
        ({"tolerance": -1}, "tolerance must be a whole number of voxels, 0 or more, or a length such as 3mm, not -1"),
        ({"tolerance": 1.5}, r"tolerance must be a whole number of voxels.* not 1\.5"),
        ({"tolerance": "far"}, "tolerance must be .* not 'far'"),
        ({"tolerance": 99, "labels": LARGE, "truth": LARGE}, "tolerance 99 is too large"),
        ({"tolerance": "2mm"}, "needs the voxels' size: give spacing"),
        ({"spacing": (1, 2)}, "spacing must be three positive numbers"),
        ({"chunks": 0}, "chunks must be a number of voxels"),
        ({"step": 1}, "step must be at least 2"),
        ({"region": 0}, "region must be a number of voxels"),
        ({"memory": "much"}, "memory must be a number of bytes"),
        ({"threads": 0}, "threads must be a whole number"),
    ],
)
def test_mistakes_are_explained(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dseeds.evaluate(**{"labels": GOOD, "truth": GOOD, "scratch": tmp_path, **arguments})
    assert not list(tmp_path.iterdir())


def test_a_cluster_needs_scratch_that_it_sees():
    with pytest.raises(ValueError, match="needs scratch="):
        dseeds.evaluate(GOOD, client=object())
