"""The promises of `supervoxels`: connected regions, canonical labels, one answer, helpful errors, quality and speed."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label as connected_components
from skimage.segmentation import slic
from threadpoolctl import threadpool_limits

from dseeds import evaluate, supervoxels
from tests.support import oracle


def lattice(shape, step):
    """Return the labels before any move."""
    z, y, x = (oracle.cells_along(n, s) for n, s in zip(shape, step, strict=True))
    cells = z[-1] + 1, y[-1] + 1, x[-1] + 1
    return np.ravel_multi_index(np.meshgrid(z, y, x, indexing="ij"), cells) + 1


def check_supervoxels(labels, shape, step):
    cells = lattice(shape, step)
    count = int(cells.max())
    assert labels.shape == shape
    assert labels.dtype == np.uint32
    assert np.unique(labels).tolist() == list(range(1, count + 1))
    # As many components as labels: each is in one piece.
    assert connected_components(labels.astype(np.int64), connectivity=1, background=-1).max() == count
    # No supervoxel has left its own cell's 26 neighbours.
    extent = [oracle.cells_along(n, s)[-1] + 1 for n, s in zip(shape, step, strict=True)]
    far = np.subtract(np.unravel_index(labels - 1, extent), np.unravel_index(cells - 1, extent))
    assert np.abs(far).max() <= 1


# The partition.


@settings(max_examples=25)
@given(oracle.cases(longest=40, voxels=6000), st.sampled_from(["image", "dark", "gradient", "map"]))
def test_every_cell_keeps_one_connected_supervoxel_with_boundaries(case, kind):
    image, step, window = case
    rank = np.argsort(image, axis=None).reshape(image.shape)
    boundaries = rank if kind == "map" and image.size > 1 else "image" if kind == "map" else kind
    check_supervoxels(supervoxels(image, step=step, window=window, boundaries=boundaries), image.shape, step)


@settings(max_examples=20)
@given(oracle.volumes(longest=30, voxels=8000), st.sampled_from([0, 5]))
def test_parts_cut_off_by_a_mask_are_supervoxels_with_boundaries(volume, min_size):
    channels, step, weights, inside = volume
    if inside is None or not inside.any():
        return
    options = {"window": (0, 63), "channel_axis": 0, "weights": weights, "mask": inside}
    labels = supervoxels(channels, step=step, boundaries="image", min_size=min_size, **options)
    np.testing.assert_array_equal(labels > 0, inside)
    count = int(labels.max())
    assert np.unique(labels[inside]).tolist() == list(range(1, count + 1))
    pieces = connected_components(labels.astype(np.int64), connectivity=1, background=0)
    assert pieces.max() == count


def test_a_boundary_map_may_be_of_any_type_or_a_file(tmp_path):
    """The image is as good a map as "image", NaN is outside, and boundaries are stated in any unit."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 64, (12, 14, 16)).astype(np.uint8)
    expected = supervoxels(image, step=5, boundaries="image")
    np.save(tmp_path / "map.npy", image)
    for boundaries in (image, image.astype(">i4") * 100 - 3000, image / 64, tmp_path / "map.npy", image.tolist()):
        np.testing.assert_array_equal(supervoxels(image, step=5, boundaries=boundaries), expected)
    assert (expected != supervoxels(image, step=5)).any()
    holes = np.where(image < 5, np.nan, image.astype(float))
    labels = supervoxels(image, step=5, boundaries=holes, mask="auto")
    assert not labels[image < 5].any()
    np.testing.assert_array_equal(labels, supervoxels(image, step=5, boundaries=holes, mask="auto", threads=1))
    walls = np.zeros(image.shape, bool)
    walls[:, :, 6] = True
    with pytest.raises(ValueError, match=r"the boundary map has the shape .*, but the image has"):
        supervoxels(image, step=5, boundaries=image[1:])
    labels = supervoxels(np.zeros_like(image), step=8, boundaries=walls, percentiles=(0, 100))
    assert not np.intersect1d(labels[..., :6], labels[..., 7:]).size


@settings(max_examples=150)
@given(oracle.cases(longest=40, voxels=12000))
def test_every_cell_keeps_one_connected_supervoxel(case):
    image, step, window = case
    check_supervoxels(supervoxels(image, step=step, window=window), image.shape, step)


@pytest.mark.parametrize("step", [(8, 8, 8), (4, 11, 16)])
def test_every_cell_of_a_real_volume_keeps_one_connected_supervoxel(ct_3mm, step):
    image = ct_3mm[0]
    check_supervoxels(supervoxels(image, step=step), image.shape, step)


def test_an_anisotropic_real_volume(mr_sarcoma):
    image = mr_sarcoma[0]
    check_supervoxels(supervoxels(image, step=(3, 12, 12)), image.shape, (3, 12, 12))


@pytest.mark.parametrize("plane", range(9, 16))
def test_the_image_is_followed(plane):
    """Two grey levels with a plane between them that the lattice does not know."""
    image = np.zeros((24, 24, 24), int)
    image[:, :, plane:] = 1
    labels = supervoxels(image, step=8)
    best = [np.bincount(image[labels == label]).max() for label in range(1, 28)]
    assert sum(best) >= 0.98 * image.size


@pytest.mark.parametrize("value", [0, -7, 1e300, np.float32(0.1)])
@pytest.mark.parametrize(("shape", "step"), [((20, 13, 9), (8, 4, 5)), ((1, 1, 1), (2, 2, 2))])
def test_a_constant_image_gives_the_lattice(shape, step, value):
    np.testing.assert_array_equal(supervoxels(np.full(shape, value), step=step), lattice(shape, step))


@given(oracle.shapes(), oracle.steps)
def test_a_volume_with_nothing_in_the_window_still_is_cut(shape, step):
    """All voxels in one bin of a given window: moves depend on sizes and neighbours alone."""
    labels = supervoxels(np.zeros(shape), step=step, window=(5, 6))
    check_supervoxels(labels, shape, step)


@pytest.mark.parametrize(
    ("shape", "step", "count"),
    [
        ((5, 6, 7), 8, 1),
        ((5, 6, 40), (100, 100, 10), 4),
        ((1, 1, 9), 3, 3),
        ((4, 64, 1), (2, 8, 999), 16),
        ((9, 9, 9), 10**12, 1),
    ],
)
def test_a_step_longer_than_the_volume_makes_one_cell(shape, step, count):
    image = np.random.default_rng(0).normal(size=shape)
    assert np.unique(supervoxels(image, step=step)).tolist() == list(range(1, count + 1))


def test_the_default_step_is_16():
    image = np.random.default_rng(0).normal(size=(32, 33, 50))
    np.testing.assert_array_equal(supervoxels(image), supervoxels(image, step=16))
    assert supervoxels(image).max() == 2 * 2 * 3


def test_the_default_window_is_the_central_99_percent():
    image = np.random.default_rng(0).normal(size=(14, 15, 16)) ** 3
    ordered = np.sort(image, axis=None)
    cut = (image.size - 1) * 5 // 1000
    window = ordered[cut], ordered[-1 - cut]
    np.testing.assert_array_equal(supervoxels(image, step=5), supervoxels(image, step=5, window=window))
    np.testing.assert_array_equal(
        supervoxels(image, step=5), supervoxels(np.clip(image, *window), step=5, window=window)
    )


# One answer.

WHOLE_NUMBERS = np.random.default_rng(5).integers(0, 100, (17, 18, 19))
WHOLE_NUMBERS[:, 5:12, 4:] += 27
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


@cache
def expected_labels(window):
    ordered = np.sort(WHOLE_NUMBERS, axis=None)
    cut = (WHOLE_NUMBERS.size - 1) * 5 // 1000
    return oracle.oracle_supervoxels(WHOLE_NUMBERS, (4, 5, 6), window or (ordered[cut], ordered[-1 - cut]))


@pytest.mark.parametrize("window", [None, (10, 110)])
@pytest.mark.parametrize(
    "dtype",
    [
        *(order + dtype for dtype in DTYPES for order in "<>" if order + dtype != ">f2"),
        # The dtype in the other byte order does not equal np.float16.
        ">f2",
    ],
)
def test_the_dtype_does_not_matter(dtype, window):
    image = WHOLE_NUMBERS.astype(dtype)
    np.testing.assert_array_equal(supervoxels(image, step=(4, 5, 6), window=window), expected_labels(window))


def reversed_view(image):
    return image[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]


def every_other(image):
    wide = np.full([2 * n for n in image.shape], image.max() + 1)
    wide[::2, 1::2, ::2] = image
    return wide[::2, 1::2, ::2]


def unaligned(image):
    raw = bytearray(image.nbytes + 1)
    view = np.frombuffer(raw, image.dtype, image.size, offset=1).reshape(image.shape)
    view[:] = image
    assert not view.flags.aligned
    return view


def read_only(image):
    image = image.copy()
    image.flags.writeable = False
    return image


def broadcast(image):
    return np.broadcast_to(image[:1], image.shape)


@pytest.mark.parametrize(
    "arrange",
    [
        np.asfortranarray,
        reversed_view,
        every_other,
        unaligned,
        read_only,
        broadcast,
        np.ndarray.tolist,
        lambda image: image.transpose(1, 2, 0).copy().transpose(2, 0, 1),
        lambda image: image.byteswap().view(image.dtype.newbyteorder()),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_memory_order_does_not_matter(arrange, dtype):
    image = WHOLE_NUMBERS.astype(dtype)
    arranged = arrange(image)
    plain = np.array(arranged, dtype, order="C")
    np.testing.assert_array_equal(supervoxels(arranged, step=6), supervoxels(plain, step=6))


@given(oracle.cases(longest=24, voxels=4000))
def test_a_second_run_gives_the_same_and_the_image_stays_as_it_is(case):
    image, step, window = case
    before = image.copy()
    once = supervoxels(image, step=step, window=window)
    kept = once.copy()
    again = supervoxels(image, step=step, window=window)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(again, once)
    again[:] = 0
    np.testing.assert_array_equal(once, kept)


def test_runs_in_several_threads_at_once_do_not_disturb_each_other():
    images = np.random.default_rng(0).normal(size=(12, 24, 20, 28)).cumsum(axis=3)
    alone = [supervoxels(image, step=6) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: supervoxels(image, step=6), images))
    np.testing.assert_array_equal(together, alone)


@settings(max_examples=30)
@given(oracle.cases(longest=16, voxels=2000), st.integers(-3, 3))
def test_the_unit_of_the_intensities_does_not_matter(case, exponent):
    """A power of two changes no bin."""
    image, step, window = case
    factor = 2.0**exponent
    np.testing.assert_array_equal(
        supervoxels(image * factor, step=step, window=np.multiply(window, factor)),
        supervoxels(image, step=step, window=window),
    )


def test_infinities_count_as_the_ends_of_the_window():
    image = np.random.default_rng(3).normal(size=(12, 13, 14))
    strange, plain = image.copy(), image.copy()
    strange[1::5], plain[1::5] = -np.inf, -1.0
    strange[:, 2], plain[:, 2] = np.inf, 1.0
    np.testing.assert_array_equal(
        supervoxels(strange, step=5, window=(-1, 1)), supervoxels(plain, step=5, window=(-1, 1))
    )
    check_supervoxels(supervoxels(strange, step=5), image.shape, (5, 5, 5))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_the_widest_intensities_overflow_nothing(dtype):
    limits = np.finfo(dtype) if dtype == np.float64 else np.iinfo(dtype)
    image = np.full((8, 8, 16), limits.min, dtype)
    image[:, :, 5:] = limits.max
    image[:, 3] = 0
    labels = supervoxels(image, step=8)
    check_supervoxels(labels, image.shape, (8, 8, 8))
    assert not set(labels[:, 5:, :5].ravel()) & set(labels[:, 5:, 5:].ravel())


# Parameters.


def test_a_number_of_supervoxels():
    image = np.random.default_rng(0).normal(size=(64, 64, 64))
    assert abs(supervoxels(image, n_segments=500).max() / 500 - 1) < 0.05
    assert supervoxels(image, n_segments=1).max() == 1


def test_a_spacing_makes_cells_isotropic():
    image = np.random.default_rng(0).normal(size=(16, 64, 64))
    expected = supervoxels(image, step=(4, 16, 16))
    spacing = (4.0, 1.0, 1.0)
    np.testing.assert_array_equal(supervoxels(image, step="16mm", spacing=spacing), expected)
    assert supervoxels(image, n_segments=64, spacing=spacing).max() == 64


def sentence(error):
    message = str(error)
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    assert len(message) < 200
    return message


GOOD = np.random.default_rng(0).normal(size=(8, 9, 10))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (GOOD[0], ValueError, "add an axis of length 1"),
        (GOOD[0, 0], ValueError, "(10,)"),
        (np.float32(3), ValueError, "shape is ()"),
        ([], ValueError, "shape is (0,)"),
        (np.zeros((2, 3, 4, 5, 6)), ValueError, "choose one volume"),
        (np.zeros((4, 0, 5)), ValueError, "empty: its shape (z, y, x) is (4, 0, 5)"),
        (np.full((8, 8, 8), np.nan), ValueError, "no finite value"),
        (np.full((8, 8, 8), np.inf, np.float16), ValueError, "no finite value"),
        (GOOD > 0, TypeError, "bool"),
        (GOOD.astype(complex), TypeError, "complex128"),
        (GOOD.astype(object), TypeError, "object"),
        (GOOD.astype("U4"), TypeError, "<U4"),
        (GOOD.astype("M8[s]"), TypeError, "datetime64[s]"),
        (None, TypeError, "object"),
    ],
)
def test_an_image_that_cannot_be_cut_is_refused(image, error, message):
    with pytest.raises(error) as refused:
        supervoxels(image, step=4)
    assert message in sentence(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 1}, "at least 2 voxels along every axis, got 1"),
        ({"step": 0}, "at least 2"),
        ({"step": -8}, "at least 2"),
        ({"step": (8, 1, 8)}, "got (8, 1, 8)"),
        ({"step": True}, "at least 2"),
        ({"step": 2.5}, "whole number"),
        ({"step": (8, 8)}, "three of them"),
        ({"step": (8, 8, 8, 8)}, "three of them"),
        ({"step": (8, 8, "x")}, "three of them"),
        ({"step": "8,8"}, "three of them"),
        ({"step": "wide"}, "'wide'"),
        ({"step": ""}, "''"),
        ({"step": "8mm"}, "give spacing"),
        ({"step": "1mm", "spacing": (1, 1, 1)}, "less than two voxels"),
        ({"step": 8, "n_segments": 8}, "not both"),
        ({"n_segments": 0}, "from 1 to the number of voxels, 720, got 0"),
        ({"n_segments": 721}, "got 721"),
        ({"n_segments": 2.5}, "whole number"),
        ({"n_segments": True}, "whole number"),
        ({"step": 4, "spacing": (1, 1)}, "three positive numbers"),
        ({"step": 4, "spacing": (1, 0, 1)}, "three positive numbers"),
        ({"n_segments": 4, "spacing": (1, 1, np.nan)}, "three positive numbers"),
        ({"step": 4, "window": (1, 1)}, "low < high, got (1, 1)"),
        ({"step": 4, "window": (2, 1)}, "low < high"),
        ({"step": 4, "window": (np.nan, 1)}, "two finite"),
        ({"step": 4, "window": (0, np.inf)}, "two finite"),
        ({"step": 4, "window": (0, 1, 2)}, "two finite"),
        ({"step": 4, "window": ()}, "two finite"),
        ({"step": 4, "compactness": -0.1}, "from 0 to 30, got -0.1"),
        ({"step": 4, "compactness": 31}, "got 31"),
        ({"step": 4, "compactness": np.nan}, "got nan"),
        ({"step": 4, "compactness": "round"}, "got 'round'"),
        ({"step": 4, "boundaries": np.ones(GOOD.shape)}, "is 1 everywhere"),
        ({"step": 4, "boundaries": "image", "compactness": 1}, "leave out compactness or boundaries"),
        ({"step": 4, "threads": 0}, "at least 1, got 0"),
        ({"step": 4, "threads": 1.5}, "whole number"),
        ({"step": 4, "threads": True}, "whole number"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=r"\w") as refused:
        supervoxels(GOOD, **options)
    assert message in sentence(refused.value)


def test_all_parameters_but_the_image_are_keywords():
    kinds = [p.kind for p in inspect.signature(supervoxels).parameters.values()]
    assert set(kinds[1:]) == {inspect.Parameter.KEYWORD_ONLY}


# Better and faster.


def test_quality_on_a_real_ct(ct_3mm):
    image, organs = ct_3mm
    window = (-150, 250)
    labels = supervoxels(image, step=8, window=window)
    figures = evaluate(labels, organs, image=np.clip(image, *window))
    assert figures["supervoxels"] == 2520
    assert figures["disconnected"] == 0
    assert len(figures["achievable_dice_per_structure"]) == 61
    assert figures["achievable_dice"] >= 0.6
    assert figures["undersegmentation_error"] <= 0.15
    assert figures["explained_variation"] >= 0.92
    assert evaluate(labels, organs, image=image)["explained_variation"] >= 0.92


def test_supervoxels_are_better_than_those_of_slic(ct_3mm, hippocampus):
    """At equal counts, on volumes of two modalities, in all three figures, with the tolerance of a flipped axis."""
    for (volume, structures), step, window in ((ct_3mm, 16, (-150, 250)), (hippocampus, 4, None)):
        whole = tuple(slice(n // step * step) for n in volume.shape)
        truth = structures[whole]
        lo, hi = window or np.percentile(volume[whole], [0.5, 99.5])
        image = np.clip((volume[whole] - lo) / (hi - lo), 0, 1).astype(np.float32)
        count = image.size // step**3
        ours = evaluate(supervoxels(image, step=step, window=(0, 1)), truth, image=image)
        theirs = [
            evaluate(slic(image, n_segments=count, compactness=c, channel_axis=None), truth, image=image)
            for c in (0.1, 0.3)
        ]
        assert ours["achievable_dice"] > max(f["achievable_dice"] for f in theirs) - 0.01
        assert ours["undersegmentation_error"] < min(f["undersegmentation_error"] for f in theirs)
        assert ours["explained_variation"] > max(f["explained_variation"] for f in theirs) + 0.02


def test_compactness_goes_from_ragged_to_cells(ct_3mm):
    image = ct_3mm[0][:64, :64, :64]
    values = 0, 0.1, 0.3, 1, 3, 10, 30
    results = [supervoxels(image, step=8, window=(-150, 250), compactness=c) for c in values]
    shapes = [evaluate(labels)["compactness"] for labels in results]
    assert shapes == sorted(shapes)
    assert shapes[-1] > 2 * shapes[0]
    cells = supervoxels(np.zeros((64, 64, 64)), step=8)
    assert (results[-1] == cells).mean() > 0.99 > 0.8 > (results[0] == cells).mean()
    np.testing.assert_array_equal(results[0], supervoxels(image, step=8, window=(-150, 250)))


@pytest.mark.slow
def test_speed_against_slic(ct_3mm):
    """Equal numbers of supervoxels, one thread each, in turns, best of three; measured: about 15 times as fast."""
    image = ct_3mm[0]
    scaled = ((np.clip(image, -150, 250) + 150) / 400).astype(np.float32)
    runs = {
        "dseeds": lambda: supervoxels(image, step=8, window=(-150, 250), threads=1),
        "slic": lambda: slic(scaled, n_segments=2520, compactness=0.1, channel_axis=None),
    }
    best = dict.fromkeys(runs, np.inf)
    runs["dseeds"]()
    with threadpool_limits(1):
        for _ in range(3):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - begin)
    assert best["slic"] >= 6 * best["dseeds"], best
