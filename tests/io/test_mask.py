"""Masks: formats and types, the voxels of the image that they cover, and their position in space."""

import json
import pickle
import re

import dask.array as da
import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from dseeds.io import ResampledMask, open_image, open_mask
from dseeds.io.alignment import coarsening_factors

SHAPE = (5, 6, 7)
WHOLE = (slice(0, 5), slice(0, 6), slice(0, 7))


def truth(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape) < 0.5


def nifti(path, data, affine):
    nibabel.save(nibabel.Nifti1Image(data.T, affine), path)
    return path


def make_zarr(path, data):
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=(2,) * data.ndim)
    array[...] = data
    return array


IMAGE = open_image(np.zeros(SHAPE, "u1"))


@pytest.mark.parametrize("kind", ["array", "numbers", "zarr", "memory", "nii", "nii.gz", "nibabel", "labels"])
def test_masks_of_every_kind(tmp_path, kind):
    inside = truth()
    match kind:
        case "array":
            source = inside
        case "numbers":
            source = np.where(inside, [-3.5, 7] * 3 + [np.inf], [0, np.nan] * 3 + [-0.0])
        case "zarr":
            source = str(make_zarr(tmp_path / "a.zarr", inside).store.root)
        case "memory":
            source = make_zarr({}, inside.astype("u2") * 9)
        case "nii" | "nii.gz":
            source = nifti(tmp_path / f"a.{kind}", inside.astype("u1"), np.eye(4))
        case "nibabel":
            source = nibabel.Nifti1Image(inside.T.astype("f4"), np.eye(4))
        case "labels":
            source = nibabel.Nifti1Image(inside.T.astype("i4") * 40, np.eye(4))
            source.header.set_intent("label")
    mask = open_mask(source, IMAGE)
    assert (mask.shape, mask.own) == (SHAPE, SHAPE)
    assert mask.readable_by_workers == (kind == "zarr")
    assert (mask.path is None) == (kind in ("array", "numbers", "memory", "nibabel", "labels"))
    for one in (mask, pickle.loads(pickle.dumps(mask)), mask.reopened()):
        assert one.identity == json.loads(json.dumps(mask.identity))
        values = one.read(WHOLE)
        assert values.dtype == bool
        np.testing.assert_array_equal(values, inside)
        np.testing.assert_array_equal(one.read(np.s_[1:3, 2:5, 0:1]), inside[1:3, 2:5, 0:1])
        np.testing.assert_array_equal(np.concatenate([slab for _, slab in one.slabs(2)]), inside)


lengths = st.integers(1, 40)


@given(st.tuples(lengths, lengths, lengths), st.data())
def test_a_coarser_mask_selects_the_voxels_that_it_covers(shape, data):
    factors = [data.draw(st.integers(1, n)) for n in shape]
    is_cut = data.draw(st.booleans())
    own = tuple(n // f if is_cut else -(-n // f) for n, f in zip(shape, factors, strict=True))
    inside = truth(own)
    mask = open_mask(inside, open_image(np.broadcast_to(np.uint8(0), shape)))
    lo = [data.draw(st.integers(0, n - 1)) for n in shape]
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(lo, shape, strict=True))
    values = mask.read(box)
    found = coarsening_factors(shape, own)
    # Few long blocks leave the factor open.
    assert all(own_f == f or n < 2 * f * f + f for own_f, n, f in zip(found, shape, factors, strict=True))
    along = [[min(i // f, m - 1) for i in range(n)] for n, m, f in zip(shape, own, found, strict=True)]
    np.testing.assert_array_equal(values, inside[np.ix_(*along)][box])
    # A copy works as well, and only the needed voxels are read.
    copied = mask.through(Copy(inside))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copied)).read(box), values)


class Copy:
    def __init__(self, values):
        self.values = values

    def read(self, box):
        assert all(0 <= side.start < side.stop <= n for side, n in zip(box, self.values.shape, strict=True))
        return self.values[box]


def test_whole_multiples_are_repeated():
    inside = truth((2, 3, 4))
    expected = inside.repeat(2, 0).repeat(3, 1).repeat(4, 2)
    mask = ResampledMask(Copy(inside), (2, 3, 4), expected.shape)
    np.testing.assert_array_equal(mask.read(np.s_[0:4, 0:9, 0:16]), expected)


def test_only_the_needed_voxels_are_read(tmp_path):
    boxes = []

    class Spy(Copy):
        def read(self, box):
            boxes.append(box)
            return super().read(box)

    ResampledMask(Spy(truth((10, 10, 10))), (10, 10, 10), (100, 20, 10)).read(np.s_[15:31, 3:4, 2:9])
    assert boxes == [(slice(1, 4), slice(1, 2), slice(2, 9))]


@pytest.mark.parametrize(
    ("image", "own"),
    [
        (SHAPE, (5, 6, 8)),
        (SHAPE, (6, 1, 1)),
        (SHAPE, (10, 12, 14)),
        ((40, 48, 56), (39, 48, 56)),
        ((40, 48, 56), (40, 48, 55)),
        ((40, 48, 56), (31, 48, 5)),
        ((40, 48, 56), (20, 24, 27)),
        ((40, 48, 56), (56, 48, 40)),
        # A last block that is left out along one axis, and kept along another.
        ((41, 41, 41), (20, 21, 21)),
    ],
)
def test_masks_of_other_shapes_are_refused(image, own):
    shapes = rf"the mask array has shape {re.escape(str(own))} and .* {re.escape(str(image))}"
    with pytest.raises(ValueError, match=f"{shapes}: the mask array may be coarser"):
        open_mask(truth(own), open_image(np.broadcast_to(np.uint8(0), image)))


def test_what_is_masked_in_a_mask_is_outside():
    inside, hidden = truth(), truth(seed=1)
    given = np.ma.array(inside, mask=hidden)
    np.testing.assert_array_equal(open_mask(given, IMAGE).read(WHOLE), inside & ~hidden)
    np.testing.assert_array_equal(open_mask(da.from_array(given, chunks=3), IMAGE).read(WHOLE), inside & ~hidden)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, *SHAPE), bool), "the mask holds 2 volumes: a mask is one, so store"),
        (np.zeros(SHAPE, "c8"), "the mask is complex"),
        (np.zeros((6, 7), bool), "the mask has shape"),
        (make_zarr({}, np.zeros((2, *SHAPE), bool)), "holds 2 volumes: a mask is one"),
    ],
)
def test_sources_that_are_no_masks(source, message):
    with pytest.raises(ValueError, match=message):
        open_mask(source, IMAGE)


def test_masks_that_do_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nii does not exist"):
        open_mask(tmp_path / "none.nii", IMAGE)
    with pytest.raises(TypeError, match="a source is"):
        open_mask(True, IMAGE)


# Masks in space

OBLIQUE = np.array([[1.8, -0.5, 0.1, 9], [0.6, 1.4, -0.2, -30], [0.1, 0.3, 2.9, 4], [0, 0, 0, 1.0]])


def coarse(affine, factors):
    """Return the affine of voxels that are larger by factors along x, y, z, from the same corner on."""
    out = affine @ np.diag([*factors, 1])
    out[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    return out


@pytest.fixture(params=[np.diag([2.0, 1.5, 3, 1]), OBLIQUE, np.diag([-1, -1, 1, 1.0])])
def affine(request):
    return request.param


def lying(image_affine, mask_affine, own, shape=(6, 8, 12)):
    image = open_image(nibabel.Nifti1Image(np.zeros(shape[::-1], "u1"), image_affine))
    return open_mask(nibabel.Nifti1Image(np.ones(own[::-1], "u1"), mask_affine), image)


@pytest.mark.parametrize(("own", "factors"), [((6, 8, 12), (1, 1, 1)), ((3, 4, 4), (3, 2, 2)), ((1, 8, 6), (2, 1, 6))])
def test_masks_in_the_images_place(affine, own, factors):
    assert lying(affine, coarse(affine, factors), own).own == own
    # An incomplete block at the end, and voxels that were picked, not averaged.
    assert lying(affine, coarse(affine, (2, 2, 2)), (3, 4, 6), (5, 8, 11)).own == (3, 4, 6)
    assert lying(affine, affine @ np.diag([4, 4, 2, 1]), (3, 2, 3)).own == (3, 2, 3)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("voxels", "refused"), [(0.45, False), (-0.45, False), (0.55, True), (-0.55, True), (9, True)])
def test_masks_that_are_shifted(affine, axis, voxels, refused):
    shifted = coarse(affine, (2, 2, 2))
    shifted[:3, 3] += voxels * shifted[:3, axis]
    if not refused:
        lying(affine, shifted, (3, 4, 6))
        return
    with pytest.raises(ValueError, match=r"does not cover what the image covers, a corner is .* resample the mask"):
        lying(affine, shifted, (3, 4, 6))


def test_masks_of_another_size(affine):
    with pytest.raises(ValueError, match="does not cover what the image covers"):
        lying(affine, affine, (3, 4, 6))


def test_masks_of_another_orientation_are_turned():
    image, flipped = np.diag([2.0, 1.5, 3, 1]), np.diag([-2.0, 1.5, 3, 1])
    flipped[0, 3] = 22
    inside = truth((6, 8, 12))
    mask = open_mask(
        nibabel.Nifti1Image(inside.T.astype("u1"), flipped),
        open_image(nibabel.Nifti1Image(np.zeros((12, 8, 6), "u1"), image)),
    )
    np.testing.assert_array_equal(mask.read((slice(None),) * 3), inside[..., ::-1])
    flipped[:3, :3] = flipped[:3, :3] @ [[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"lie in different places or orientations \(the axes differ by"):
        lying(image, flipped, (6, 8, 12))


def test_units_count_and_a_missing_position_does_not(tmp_path):
    image = open_image(nibabel.Nifti1Image(np.zeros((12, 8, 6), "u1"), np.diag([1000.0, 1000, 1000, 1])))
    in_microns = nibabel.Nifti1Image(np.zeros((12, 8, 6), "u1"), np.diag([1e6, 1e6, 1e6, 1]))
    in_microns.header.set_xyzt_units("micron")
    open_mask(in_microns, image)
    in_microns.header.set_xyzt_units("mm")
    with pytest.raises(ValueError, match="the voxels measure"):
        open_mask(in_microns, image)
    nowhere = nibabel.Nifti1Image(np.zeros((12, 8, 6), "u1"), None)
    open_mask(nowhere, image)
    open_mask(in_microns, open_image(nowhere))
