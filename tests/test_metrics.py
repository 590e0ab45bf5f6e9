"""The figures of `dseeds.metrics` against slow, independent computations, and the laws that they obey."""

import itertools
import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label as connected_components

from dseeds import metrics
from dseeds.metrics import (
    achievable_dice,
    achievable_segmentation_accuracy,
    boundary_recall,
    compactness,
    component_counts,
    evaluate,
    explained_variation,
    overlap,
    undersegmentation_error,
)

# No deadline: the first example of a test waits for Numba.
quick = settings(deadline=None, max_examples=60)

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
HUGE = 2**63 - 1


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


def table(labels, truth):
    """Overlaps by counting voxels, one at a time."""
    counts = defaultdict(Counter)
    for own, true in zip(labels.flat, truth.flat, strict=True):
        if own:
            counts[int(own)][int(true)] += 1
    return counts


def choices(counts):
    """The truth label of each supervoxel: most voxels, then the smallest."""
    return {own: min(row, key=lambda true: (-row[true], true)) for own, row in counts.items()}


def boundary(volume, labels):
    """Labelled voxels with a labelled face neighbour of another value."""
    found = set()
    for voxel in np.ndindex(volume.shape):
        for axis, step in itertools.product(range(3), (-1, 1)):
            other = tuple(np.array(voxel) + step * np.eye(3, dtype=int)[axis])
            if (
                all(0 <= c < n for c, n in zip(other, volume.shape, strict=True))
                and labels[voxel]
                and labels[other]
                and volume[voxel] != volume[other]
            ):
                found.add(voxel)
    return found


# ---- oracles


@quick
@given(cases())
def test_overlaps_are_counted(case):
    labels, truth = case
    rows = overlap(labels, truth)
    expected = sorted((own, true, n) for own, row in table(*case).items() for true, n in row.items())
    assert list(zip(rows.labels.tolist(), rows.truth.tolist(), rows.counts.tolist(), strict=True)) == expected
    assert rows.counts.dtype == np.int64


@quick
@given(cases())
def test_dice_is_that_of_the_painted_segmentation(case):
    labels, truth = case
    choice = choices(table(*case))
    painted = np.vectorize(lambda own: choice.get(own, -1))(labels)
    inside = labels > 0
    expected = {}
    for structure in np.unique(truth[inside & (truth > 0)]):
        a, b = painted[inside] == structure, truth[inside] == structure
        expected[int(structure)] = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert achievable_dice(overlap(*case)) == pytest.approx(expected, rel=1e-15)
    assert evaluate(*case)["achievable_dice"] == pytest.approx(np.mean(list(expected.values())))
    right = (painted == truth)[inside].mean()
    assert achievable_segmentation_accuracy(overlap(*case)) == pytest.approx(right, rel=1e-15)


@quick
@given(cases())
def test_undersegmentation_error_is_the_formula(case):
    labels, truth = case
    error = 0
    for segment, own in itertools.product(np.unique(truth), np.unique(labels[labels > 0])):
        inside = ((labels == own) & (truth == segment)).sum()
        if inside:
            error += min(inside, (labels == own).sum() - inside)
    assert undersegmentation_error(overlap(*case)) == error / (labels > 0).sum()


@quick
@given(cases(), st.integers(0, 7))
def test_boundary_recall_is_that_of_all_pairs(case, tolerance):
    labels, truth = case
    wanted, found = boundary(truth, labels), boundary(labels, labels)
    hit = sum(any(max(abs(np.subtract(v, u))) <= tolerance for u in found) for v in wanted)
    expected = hit / len(wanted) if wanted else 1
    assert boundary_recall(labels, truth, tolerance=tolerance) == expected


@quick
@given(cases(), st.data())
def test_explained_variation_is_that_of_the_painted_means(case, data):
    labels, _ = case
    dtype = data.draw(st.sampled_from(["uint8", "int16", ">i2", ">f4", "float16", "float32", "float64"]))
    image = data.draw(hnp.arrays(np.uint8, labels.shape)).astype(dtype) / np.array(3, dtype)
    inside = labels > 0
    x = image[inside].astype(float)
    painted = np.empty(image.shape)
    for own in np.unique(labels):
        painted[labels == own] = image[labels == own].astype(float).mean()
    found = explained_variation(labels, image)
    if np.ptp(x) == 0:
        assert found == 1
    else:
        assert found == pytest.approx(painted[inside].var() / x.var(), abs=1e-9)


@quick
@given(cases())
def test_compactness_counts_the_faces(case):
    labels, _ = case
    padded = np.pad(labels, 1)
    quotients, sizes = [], []
    for own in np.unique(labels[labels > 0]):
        body = (padded == own).astype(int)
        faces = sum(np.abs(np.diff(body, axis=axis)).sum() for axis in range(3))
        quotients.append(36 * math.pi * body.sum() ** 2 / faces**3)
        sizes.append(body.sum())
    assert compactness(labels) == pytest.approx(np.average(quotients, weights=sizes))
    assert compactness(labels) <= math.pi / 6 * (1 + 1e-12)


@quick
@given(cases())
def test_components_are_those_of_scikit_image(case):
    labels, truth = case
    expected = [connected_components(labels == own, connectivity=1).max() for own in np.unique(labels) if own]
    assert component_counts(labels).tolist() == expected
    figures = evaluate(labels, truth)
    assert figures["components_per_label"] == pytest.approx(np.mean(expected))
    assert figures["disconnected"] == sum(n > 1 for n in expected)


@pytest.mark.parametrize("seed", range(3))
def test_winding_components(seed):
    """Long detours, on which the trees of the union-find are joined late and deep."""
    labels = np.random.default_rng(seed).choice(3, (24, 25, 26), p=[0.35, 0.35, 0.3])
    expected = [connected_components(labels == own, connectivity=1).max() for own in (1, 2)]
    assert component_counts(labels).tolist() == expected
    assert component_counts(labels.transpose(2, 0, 1)).tolist() == expected


def test_arrays_may_be_read_only():
    labels, truth = np.ones((2, 3, 4), np.int32), np.ones((2, 3, 4), np.int32)
    labels.flags.writeable = truth.flags.writeable = False
    assert evaluate(labels, truth, image=truth)["supervoxels"] == 1


@quick
@given(cases())
def test_sizes(case):
    labels, truth = case
    sizes = np.bincount(labels[labels > 0])
    sizes = sizes[sizes > 0]
    figures = evaluate(labels, truth)
    assert (figures["size_min"], figures["size_max"]) == (sizes.min(), sizes.max())
    assert figures["size_median"] == np.median(sizes)
    assert figures["supervoxels"] == sizes.size


# ---- laws


@quick
@given(cases(), st.data())
def test_ids_do_not_matter(case, data):
    labels, truth = case
    dtype, top = data.draw(st.sampled_from([("uint8", 255), ("int64", HUGE), ("uint64", 2**64 - 1), (">u8", HUGE)]))
    some = st.integers(1, top)
    ids = data.draw(st.lists(some | st.integers(top - 9, top), min_size=4, max_size=4, unique=True))
    renamed = np.array([0, *ids], dtype)[labels]
    image = (labels * 7 + truth * 3) % 5
    expected, found = evaluate(labels, truth, image=image), evaluate(renamed, truth, image=image)
    # Sums of floats depend on the order of the ids.
    for key in ("explained_variation", "compactness"):
        assert found.pop(key) == pytest.approx(expected.pop(key))
    assert found == expected
    assert set(overlap(renamed, truth).labels.tolist()) == {ids[own - 1] for own in np.unique(labels) if own}


@quick
@given(cases(), st.lists(st.integers(1, HUGE), min_size=3, max_size=3, unique=True).map(sorted))
def test_only_the_order_of_truth_labels_matters(case, ids):
    labels, truth = case
    names = [0, *ids]
    expected, found = evaluate(labels, truth), evaluate(labels, np.array(names, np.uint64)[truth])
    named = {names[k]: dice for k, dice in expected.pop("achievable_dice_per_structure").items()}
    assert found.pop("achievable_dice_per_structure") == named
    assert found == expected


@quick
@given(cases(smallest=1))
def test_perfect_labels_have_perfect_figures(case):
    _, truth = case
    figures = evaluate(truth + 1, truth, image=truth * 0.1, tolerance=0)
    assert figures["achievable_dice"] == 1
    assert set(figures["achievable_dice_per_structure"].values()) == {1.0}
    assert figures["achievable_segmentation_accuracy"] == 1
    assert figures["undersegmentation_error"] == 0
    assert figures["boundary_recall"] == 1
    assert figures["explained_variation"] == pytest.approx(1)


@quick
@given(cases())
def test_so_have_single_voxels(case):
    _, truth = case
    voxels = np.arange(1, truth.size + 1).reshape(truth.shape)
    figures = evaluate(voxels, truth, image=truth)
    assert figures["achievable_dice"] == figures["achievable_segmentation_accuracy"] == 1
    assert figures["undersegmentation_error"] == 0
    assert figures["explained_variation"] == pytest.approx(1)
    assert figures["compactness"] == pytest.approx(math.pi / 6)


@quick
@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_merging_makes_nothing_better(case, one, other):
    labels, truth = case
    image = (truth * 5 + np.arange(truth.size).reshape(truth.shape)) % 7
    merged = np.where(labels == one, other, labels)
    before, after = (evaluate(ids, truth, image=image) for ids in (labels, merged))
    for key in ("achievable_segmentation_accuracy", "boundary_recall", "explained_variation"):
        assert after[key] <= before[key] + 1e-12
    assert after["undersegmentation_error"] >= before["undersegmentation_error"]


@quick
@given(cases())
def test_figures_lie_within_their_bounds(case):
    figures = evaluate(*case, image=np.sin(case[0] + 3 * case[1]))
    for key in (
        "achievable_dice",
        "achievable_segmentation_accuracy",
        "undersegmentation_error",
        "boundary_recall",
        "explained_variation",
    ):
        assert 0 <= figures[key] <= 1, key


@quick
@given(cases(), st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_axes_may_be_swapped_and_flipped(case, order, flipped):
    turned = [np.flip(volume.transpose(order), sorted(flipped)) for volume in case]
    expected, found = evaluate(*case), evaluate(*turned)
    assert found.pop("compactness") == pytest.approx(expected.pop("compactness"))
    assert found == expected


@quick
@given(cases(), st.data())
def test_nothing_under_the_mask_matters(case, data):
    labels, truth = case
    image = (truth * 2.5 + labels) % 3
    masked = labels == 0
    other = np.where(masked, data.draw(volumes(labels.shape, 0, HUGE)), truth)
    hole = np.where(masked, np.nan, image)
    assert evaluate(labels, other, image=hole) == evaluate(labels, truth, image=image)


@quick
@given(cases())
def test_pieces_leave_no_trace(case):
    labels, truth = case[0] * 10**15, case[1]
    image = labels % 7 + truth
    expected = evaluate(labels, truth, image=image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PIECE", 5)
        found = evaluate(labels, truth, image=image)
    assert found.pop("explained_variation") == pytest.approx(expected.pop("explained_variation"))
    assert found == expected


# ---- by hand


def test_one_supervoxel_over_all():
    truth = np.zeros((4, 4, 4), int)
    truth[:2] = 1
    figures = evaluate(np.ones((4, 4, 4), np.uint32), truth, image=truth)
    # A tie, and the smaller label, the background, wins.
    assert figures == {
        "achievable_dice": 0.0,
        "achievable_dice_per_structure": {1: 0.0},
        "achievable_segmentation_accuracy": 0.5,
        "undersegmentation_error": 1.0,
        "boundary_recall": 0.0,
        "explained_variation": 0.0,
        "compactness": pytest.approx(math.pi / 6),
        "supervoxels": 1,
        "components_per_label": 1.0,
        "disconnected": 0,
        "size_min": 64,
        "size_median": 64.0,
        "size_max": 64,
    }


def test_figures_are_plain_numbers_for_json():
    figures = evaluate([[[1, 1, 2]]], np.array([[[0, 1, 1]]], bool), image=np.array([[[1, 2, 3]]], np.float32))
    assert json.loads(json.dumps(figures)) == {**figures, "achievable_dice_per_structure": {"1": 2 / 3}}


def test_without_an_image_there_is_no_explained_variation():
    assert "explained_variation" not in evaluate([[[1]]], [[[1]]])


@pytest.mark.parametrize("value", [0, 0.1, -1e300, 1e-320])
def test_a_constant_image_is_explained(value):
    assert explained_variation(np.ones((3, 3, 3), int), np.full((3, 3, 3), value)) == 1


@pytest.mark.parametrize(("scale", "offset"), [(1e200, 0), (1e-200, 0), (1, 1e9)])
def test_explained_variation_does_not_depend_on_the_unit(scale, offset):
    rng = np.random.default_rng(0)
    labels, image = rng.integers(1, 9, (8, 8, 8)), rng.integers(0, 99, (8, 8, 8))
    expected = explained_variation(labels, image)
    assert explained_variation(labels, image * scale + offset) == pytest.approx(expected)


# ---- mistakes

GOOD = np.ones((2, 3, 4), int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": GOOD[0]}, r"labels must have the three axes \(z, y, x\), not 2\."),
        ({"truth": GOOD[None]}, r"truth must have the three axes \(z, y, x\), not 4\."),
        ({"labels": GOOD * 0.5}, "labels must be integers, not float64"),
        ({"truth": GOOD * 0.5}, "truth must be integers, not float64"),
        ({"truth": GOOD * np.inf}, "truth must be integers, not float64"),
        ({"labels": -GOOD}, "labels must not be negative, but its smallest value is -1"),
        ({"truth": GOOD - 3}, "truth must not be negative, but its smallest value is -2"),
        ({"labels": GOOD * 0}, "labels has no supervoxel"),
        ({"labels": GOOD[:0]}, "labels has no supervoxel"),
        ({"truth": GOOD * 0}, "truth has no structure"),
        ({"truth": GOOD[:1]}, r"truth has the shape \(1, 3, 4\), but labels \(2, 3, 4\)"),
        ({"image": GOOD[:1]}, r"image has the shape \(1, 3, 4\), but labels \(2, 3, 4\)"),
        ({"image": GOOD * 1j}, "image must be real numbers, not complex128"),
        ({"image": GOOD * np.nan}, "image has NaN or infinite values"),
        ({"image": GOOD * np.inf}, "image has NaN or infinite values"),
        ({"tolerance": -1}, "tolerance must be a whole number of voxels, 0 or more, not -1"),
        ({"tolerance": 1.5}, r"tolerance must be a whole number of voxels, 0 or more, not 1\.5"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**{"labels": GOOD, "truth": GOOD, **arguments})


def test_whole_numbers_may_be_floats():
    assert evaluate(GOOD * 1.0, GOOD * 1.0) == evaluate(GOOD, GOOD)
