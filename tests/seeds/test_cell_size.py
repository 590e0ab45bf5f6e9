"""The step per axis, from the parameters that the user gives."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Lattice
from dseeds.core.mask_blocks import MaskBlocks
from dseeds.seeds.cell_size import _count_parts, choose_step
from tests.support import oracle

sides = st.integers(1, 300)
shapes = st.tuples(sides, sides, sides)
spacings = st.tuples(*[st.floats(0.1, 10)] * 3)


# Voxels.


@given(shapes, st.integers(2, 400))
def test_a_number_is_the_step_along_every_axis(shape, step):
    expected = tuple(min(step, n) for n in shape)
    assert choose_step(shape, step=step) == expected
    assert choose_step(shape, step=float(step)) == expected
    assert choose_step(shape, step=np.int16(step)) == expected
    assert choose_step(shape, step=str(step)) == expected
    assert {type(s) for s in choose_step(shape, step=np.int16(step))} == {int}


@given(shapes, st.tuples(*[st.integers(2, 400)] * 3))
def test_three_numbers_are_the_steps_along_z_y_x(shape, step):
    expected = tuple(min(s, n) for s, n in zip(step, shape, strict=True))
    for form in (step, list(step), np.array(step), "{},{},{}".format(*step), " {} , {}, {} ".format(*step)):
        assert choose_step(shape, step=form) == expected
    assert choose_step(shape, step=step, spacing=(3, 1, 0.5)) == expected


def test_the_default_is_16():
    assert choose_step((100, 100, 100)) == (16, 16, 16)
    assert choose_step((100, 9, 100)) == (16, 9, 16)


def test_a_known_spacing_changes_no_step_in_voxels():
    assert choose_step((99, 99, 99), step=8, known_spacing=(3, 1, 1)) == (8, 8, 8)
    assert choose_step((99, 99, 99), known_spacing=(3, 1, 1)) == (16, 16, 16)


def test_an_axis_of_one_voxel_may_have_a_step_of_one():
    assert choose_step((1, 99, 99), step=(1, 8, 8)) == (1, 8, 8)


# Millimetres.


def check_isotropic(step, edge, shape, spacing):
    """Check that each side of a cell is as close to the edge as whole voxels allow, with 2 voxels at least."""
    for s, n, mm in zip(step, shape, spacing, strict=True):
        assert 1 <= s <= n
        if 2 < s < n:
            assert abs(s * mm - edge) <= mm * (0.5 + 1e-9)
        elif s == n:
            assert edge >= (n - 0.5 - 1e-9) * mm or n <= 2
        else:
            assert edge <= 2.5 * mm * (1 + 1e-9)


@given(shapes, st.floats(1, 100), spacings)
def test_a_length_makes_cells_isotropic(shape, length, spacing):
    assume(length >= 2 * min(spacing))
    text = f"{length:.3f}mm"
    assume(float(text[:-2]) >= 2 * min(spacing))
    step = choose_step(shape, step=text, spacing=spacing)
    check_isotropic(step, float(text[:-2]), shape, spacing)
    assert choose_step(shape, step=f" {length:.3f} mm ", known_spacing=spacing) == step


@given(shapes, st.integers(2, 60), spacings)
def test_a_number_with_a_spacing_makes_a_cube_of_as_many_voxels(shape, step, spacing):
    cell = choose_step(shape, step=step, spacing=spacing)
    check_isotropic(cell, step * math.prod(spacing) ** (1 / 3), shape, spacing)


@given(st.integers(2, 60), st.floats(0.1, 10))
def test_an_isotropic_spacing_changes_no_step(step, mm):
    assert choose_step((300, 300, 300), step=step, spacing=(mm, mm, mm)) == (step,) * 3


def test_a_given_spacing_overrides_a_known_one():
    spacings = {"spacing": (2, 1, 1), "known_spacing": (5, 5, 5)}
    assert choose_step((99, 99, 99), step="8mm", **spacings) == (4, 8, 8)


# Numbers of supervoxels.


def cells(shape, steps):
    return ((2 * np.array(shape) + steps) // (2 * steps)).prod(axis=-1)


def best_miss(shape, target, ratio):
    """Return the smallest relative miss of the target over all steps with at most this ratio of edges."""
    edge = (math.prod(shape) / target) ** (1 / 3)
    axis = np.arange(max(2, int(edge / ratio)), int(edge * ratio) + 2)
    steps = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[(steps.max(axis=1) <= ratio * steps.min(axis=1)) & (steps <= shape).all(axis=1)]
    return np.abs(cells(shape, steps) / target - 1).min(initial=np.inf)


large = st.integers(64, 200)


@settings(max_examples=100)
@given(st.tuples(large, large, large), st.data())
@example((64, 64, 64), None)
def test_the_number_of_supervoxels_is_within_five_per_cent_where_cells_allow_it(shape, data):
    if data is None:
        target = 432
    else:
        target = round(math.exp(data.draw(st.floats(math.log(200), math.log(math.prod(shape) / 27)))))
    step = choose_step(shape, n_segments=target)
    miss = abs(cells(shape, np.array(step)) / target - 1)
    assert max(step) <= 2.5 * min(step) or miss <= 0.05
    assert miss <= 0.05 or best_miss(shape, target, 2.5) > 0.05


@pytest.mark.parametrize(("shape", "target"), [((86, 192, 186), 108282), ((184, 188, 174), 116062)])
def test_the_number_is_met_with_cells_of_few_voxels_too(shape, target):
    step = choose_step(shape, n_segments=target)
    assert abs(cells(shape, np.array(step)) / target - 1) <= 0.05
    assert max(step) <= 2.5 * min(step)


@given(shapes, st.data(), st.one_of(st.none(), spacings))
def test_any_number_of_supervoxels_gives_steps_that_fit(shape, data, spacing):
    target = data.draw(st.integers(1, math.prod(shape)))
    step = choose_step(shape, n_segments=target, spacing=spacing)
    assert all(min(2, n) <= s <= n for s, n in zip(step, shape, strict=True))
    assert {type(s) for s in step} == {int}
    assert choose_step(shape, n_segments=target, known_spacing=spacing) == step
    if spacing is not None:
        assert choose_step(shape, n_segments=target, spacing=spacing, known_spacing=(1, 1, 1)) == step


@given(shapes)
def test_one_supervoxel_is_the_volume(shape):
    assert Lattice(shape, choose_step(shape, n_segments=1)).size == 1


@settings(max_examples=50)
@given(st.tuples(large, large, large), st.tuples(*[st.floats(0.4, 1.6)] * 3), st.data())
def test_cells_for_a_number_are_isotropic_in_millimetres(shape, spacing, data):
    """The longer edge of a cell is at most 2.5 times the shorter, unless a cube would be flat or a voxel or two."""
    target = data.draw(st.integers(200, 2000))
    edge = (math.prod(shape) * math.prod(spacing) / target) ** (1 / 3)
    assume(all(4 * mm <= edge <= n * mm / 2 for n, mm in zip(shape, spacing, strict=True)))
    step = choose_step(shape, n_segments=target, spacing=spacing)
    edges = np.multiply(step, spacing)
    assert edges.max() <= 2.5 * edges.min()
    assert abs(cells(shape, np.array(step)) / target - 1) <= 0.05


@pytest.mark.parametrize(
    ("shape", "target", "spacing"),
    [((30, 256, 256), 1000, (4, 1, 1)), ((3, 200, 200), 400, (1, 1, 1)), ((1, 500, 1), 50, (1, 1, 1))],
)
def test_flat_volumes_get_their_number_too(shape, target, spacing):
    step = choose_step(shape, n_segments=target, spacing=spacing)
    assert abs(cells(shape, np.array(step)) / target - 1) <= 0.05


thick = st.tuples(st.sampled_from([1, 1, 2, 3, 5, 10, 26, 40]), st.just(1), st.sampled_from([1, 1, 1.3]))
plausible = st.tuples(*[st.one_of(st.integers(1, 8), st.integers(3, 60), st.integers(40, 300))] * 3)


@settings(max_examples=400)
@given(plausible, thick, st.sampled_from([1, 0.335, 0.05]), st.floats(0, 1))
@example((19, 45, 36), (26, 1, 1), 0.335, None)
def test_the_number_is_met_with_thick_slices_wherever_the_lattice_can(shape, thickness, pixel, share):
    most = max(1, math.prod(shape) // 8)
    target = 12 if share is None else round(math.exp(share * math.log(most)))
    step = choose_step(shape, n_segments=target, spacing=np.multiply(thickness, pixel))
    ratio = how_far_off(cells(shape, np.array(step)), target)
    # The best of all steps, one for each number of cells.
    axes = [np.arange(min(2, n), n + 1) for n in shape]
    counts = [np.unique((2 * n + steps) // (2 * steps)) for n, steps in zip(shape, axes, strict=True)]
    products = np.unique(np.outer(np.unique(np.outer(counts[0], counts[1])), counts[2]))
    assert ratio <= max(1.5, how_far_off(products, target).min())


def how_far_off(counts, target):
    return np.maximum(counts / target, target / counts)


# Inside a mask.


def blocks_of(inside, factors=(1, 1, 1), shape=None):
    own, shape = inside.shape, shape or tuple(np.multiply(inside.shape, factors).tolist())
    return MaskBlocks.of(lambda: ((z, inside[z : z + 3]) for z in range(0, own[0], 3)), own, factors, shape)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 20)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.data())
def test_cells_inside_a_mask_are_counted_exactly(seed, own, factors, data):
    rng = np.random.default_rng(seed)
    inside = rng.random(own) < rng.choice([0.01, 0.1, 0.9])
    shape = tuple(n * f - data.draw(st.integers(0, f - 1)) for n, f in zip(own, factors, strict=True))
    blocks = blocks_of(inside, factors, shape)
    if inside.all() or not inside.any():
        assert blocks is None
        return
    # Cells at least as long as the mask's voxels.
    step = tuple(data.draw(st.integers(f, max(f, n))) for f, n in zip(factors, shape, strict=True))
    fine = inside.repeat(factors[0], 0).repeat(factors[1], 1).repeat(factors[2], 2)[tuple(map(slice, shape))]
    along = [np.array(oracle.cells_along(n, s)) for n, s in zip(shape, step, strict=True)]
    touched = {tuple(axis[i] for axis, i in zip(along, voxel, strict=True)) for voxel in np.argwhere(fine)}
    if factors == (1, 1, 1):
        assert blocks.count_cells(step) == len(touched)
        assert blocks.inside == inside.sum()
    else:
        # A voxel of the mask that lies in several cells counts in one of them.
        assert blocks.count_cells(step) <= len(touched)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 20)] * 3), st.data(), st.integers(0, 12))
def test_large_parts_of_cells_inside_a_mask_are_counted_exactly(seed, shape, data, least):
    inside = np.random.default_rng(seed).random(shape) < data.draw(st.sampled_from([0.1, 0.4, 0.8]))
    assume(inside.any() and not inside.all())
    step = tuple(data.draw(st.integers(1, n)) for n in shape)
    along = [np.array(oracle.cells_along(n, s)) for n, s in zip(shape, step, strict=True)]
    expected = 0
    for cell in itertools.product(*map(np.unique, along)):
        parts = inside[np.ix_(*(cells == number for cells, number in zip(along, cell, strict=True)))]
        sizes = np.bincount(scipy.ndimage.label(parts)[0][parts])
        expected += max(np.count_nonzero(sizes >= max(1, least)), int(parts.any()))
    assert _count_parts(blocks_of(inside), step, least) == expected


@pytest.mark.parametrize("target", [1, 3, 20, 150, 900])
@pytest.mark.parametrize("radius", [9, 16])
def test_a_number_of_supervoxels_is_one_inside_the_mask(target, radius):
    z, y, x = np.indices((40, 44, 48))
    inside = (z - 18) ** 2 + (y - 20) ** 2 + (x - 30) ** 2 < radius**2
    blocks = blocks_of(inside)
    if target > inside.sum() / 27:
        return
    for spacing in (None, (2, 1, 1)):
        step = choose_step(inside.shape, n_segments=target, spacing=spacing, mask=blocks)
        assert how_far_off(blocks.count_cells(step), target) <= 1.35


def test_a_large_mask_is_counted_in_blocks():
    inside = np.zeros((8, 700, 900), bool)
    inside[2:7, 100:600, 50:850] = True
    blocks = blocks_of(inside)
    assert max(blocks.filled.shape) <= 128
    step = choose_step(inside.shape, n_segments=1000, mask=blocks)
    along = [np.array(oracle.cells_along(n, s)) for n, s in zip(inside.shape, step, strict=True)]
    touched = np.prod(
        [len(set(axis[lo:hi])) for axis, (lo, hi) in zip(along, [(2, 7), (100, 600), (50, 850)], strict=True)]
    )
    assert how_far_off(touched, 1000) <= 1.15


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 8, "n_segments": 9}, "not both"),
        ({"step": 1}, "at least 2"),
        ({"step": (2, 2, 1)}, "at least 2"),
        ({"step": -1}, "at least 2"),
        ({"step": True}, "at least 2"),
        ({"step": 3.5}, "whole number"),
        ({"step": (3.5, 4, 4)}, "whole number"),
        ({"step": math.nan}, "whole number"),
        ({"step": math.inf}, "whole number"),
        ({"step": (4, math.inf, 4)}, "whole number"),
        ({"step": [4]}, "three of them"),
        ({"step": "4,4"}, "three of them"),
        ({"step": "4cm"}, "4cm"),
        ({"step": "mm"}, "12mm"),
        ({"step": "-4mm", "spacing": (1, 1, 1)}, "12mm"),
        ({"step": "4mm"}, "needs the voxels' size"),
        ({"step": "0mm", "spacing": (1, 1, 1)}, "less than two voxels"),
        ({"step": "3mm", "spacing": (2, 2, 2)}, "less than two voxels"),
        ({"step": 4, "spacing": (1, 1)}, "three positive numbers"),
        ({"step": 4, "known_spacing": (1, 1, 0)}, "three positive numbers"),
        ({"n_segments": 0}, "from 1 to the number of voxels, 1000"),
        ({"n_segments": 1001}, "from 1 to"),
        ({"n_segments": 1.5}, "whole number"),
        ({"n_segments": False}, "whole number"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose_step((10, 10, 10), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"step": "1.2.3mm", "spacing": (1, 1, 1)},
        {"n_segments": math.nan},
        {"n_segments": "many"},
        {"n_segments": math.inf},
        {"step": object()},
        {"n_segments": [3]},
        {"step": 4, "spacing": 1},
        {"step": 4, "spacing": "abc"},
        {"step": 4, "spacing": (1e300, 1e300, 1e300)},
    ],
)
def test_nonsense_is_refused_with_our_own_messages(options):
    with pytest.raises(ValueError, match=r"(step|n_segments|spacing) must"):
        choose_step((10, 10, 10), **options)
