"""Two volumes: of one grid, turned if only their axes are swapped or reversed, or refused with the difference."""

import itertools
import pickle

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

import dseeds
from dseeds.io import ArraySource, ome_image_attributes, open_image, open_mask, open_source
from dseeds.io.alignment import Grid3D, TurnedSource, align

WHOLE = (slice(None),) * 3
OBLIQUE = np.array([[1.8, -0.5, 0.1, 9], [0.6, 1.4, -0.2, -30], [0.1, 0.3, 2.9, 4], [0, 0, 0, 1.0]])
ORIENTATIONS = [
    np.column_stack([axes, signs])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def voxels(shape=(6, 5, 4)):
    return np.random.default_rng(1).integers(0, 1000, shape).astype("i2")


def turned(image, orientation):
    """Turn a NIfTI image as nibabel does: the voxels and the affine, so that each voxel stays in its place."""
    data = np.ascontiguousarray(apply_orientation(np.asanyarray(image.dataobj), orientation))
    return nibabel.Nifti1Image(data, image.affine @ inv_ornt_aff(orientation, image.shape))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("ending", [None, "nii", "nii.gz"])
def test_swapped_and_reversed_axes_are_turned(tmp_path, orientation, ending):
    reference = nibabel.Nifti1Image(voxels(), OBLIQUE)
    other = turned(reference, orientation)
    if ending:
        nibabel.save(other, tmp_path / f"a.{ending}")
        other = tmp_path / f"a.{ending}"
    source = align(open_source(other), "other", Grid3D.of(open_source(reference), "first"))
    for one in (source, pickle.loads(pickle.dumps(source))):
        assert one.shape == (4, 5, 6)
        np.testing.assert_allclose(one.affine, OBLIQUE, atol=1e-5)
        np.testing.assert_array_equal(one.read(WHOLE), voxels().T)
        np.testing.assert_array_equal(one.read(np.s_[1:3, 0:4, 2:5]), voxels().T[1:3, 0:4, 2:5])
        np.testing.assert_array_equal(np.concatenate([slab for _, slab in one.slabs(3)]), voxels().T)
    np.testing.assert_allclose(one.spacing, open_source(reference).spacing, rtol=1e-5)


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_channels_are_turned_as_well(axes, flips):
    data = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    expected = data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    np.testing.assert_array_equal(TurnedSource(ArraySource(data), tuple(axes), flips).read(WHOLE), expected)


def moved(affine, **shifts):
    affine = affine.copy()
    affine[:3, 3] += [shifts.get(axis, 0) for axis in "xyz"]
    return affine


def bent(affine, degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = affine.copy()
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


PLAIN = np.diag([-0.5, 0.5, 2.0, 1.0])
ELSEWHERE = {
    "shifted": (moved(PLAIN, x=0.5), r"the first voxels are 0\.5 mm apart"),
    "far away": (moved(PLAIN, z=200), "the first voxels are 200 mm apart"),
    "larger voxels": (PLAIN @ np.diag([1, 1, 1.5, 1]), r"the voxels measure 3 x 0\.5 x 0\.5 mm and 2 x 0\.5 x 0\.5 mm"),
    "turned": (bent(PLAIN, 7), "the axes differ by 7 degrees"),
    "flipped, but not in its place": (PLAIN @ np.diag([-1, 1, 1, 1]), "mm apart"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_everything_that_takes_two_images_refuses_other_places(name):
    affine, message = ELSEWHERE[name]
    here = nibabel.Nifti1Image(np.ones((12, 12, 12), "i2"), PLAIN)
    there = nibabel.Nifti1Image(np.ones((12, 12, 12), "i2"), affine)
    for call in (
        lambda: dseeds.evaluate(here, there),
        lambda: dseeds.evaluate(here, image=there),
        lambda: dseeds.features(here, there),
        lambda: dseeds.textures(here, there),
        lambda: dseeds.pool(here, there),
        lambda: dseeds.vote(here, there),
        lambda: dseeds.preview(here, there),
        lambda: dseeds.supervoxels(here, boundaries=there),
        lambda: open_mask(there, open_image(here)),
        lambda: open_image([here, there]),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "lie in different places" in str(caught.value)


def test_evaluate_features_and_previews_are_those_of_the_turned_image():
    rng = np.random.default_rng(3)
    labels = 1 + np.arange(6 * 8 * 10).reshape(6, 8, 10) // 40
    labels_image = nibabel.Nifti1Image(labels.T.astype("i4"), PLAIN)
    image = nibabel.Nifti1Image(rng.integers(0, 99, (10, 8, 6)).astype("i2"), PLAIN)
    truth = nibabel.Nifti1Image(rng.integers(0, 3, (10, 8, 6)).astype("i2"), PLAIN)
    orientation = np.array([[2, -1], [0, 1], [1, -1]])
    expected = dseeds.evaluate(labels_image, truth, image=image)
    assert dseeds.evaluate(labels_image, turned(truth, orientation), image=turned(image, orientation)) == expected
    table = dseeds.features(labels_image, image).table
    assert dseeds.features(labels_image, turned(image, orientation)).table.equals(table)
    one, other = (dseeds.preview(labels_image, i, size=64) for i in (image, turned(image, orientation)))
    assert one.tobytes() == other.tobytes()


def ome(translation, *, units=("millimeter",) * 3):
    attributes = ome_image_attributes(spacing=(2, 0.5, 0.5), name="a", translation=translation, units=units)
    group = zarr.create_group({}, attributes={"ome": attributes})
    group.create_array("0", data=np.ones((4, 5, 6), "u1"))
    return group


def test_positions_of_ome_zarr():
    first = ome((30, -20, 10))
    assert open_image([first, ome((30000, -20000, 10000), units=("micrometer",) * 3)][:1]).channels == 1
    assert open_image([first, ome((30, -20, 10))]).channels == 2
    with pytest.raises(ValueError, match="the first voxels are 5 mm apart"):
        open_image([first, ome((30, -20, 15))])
    # Beside an affine, OME-Zarr without one says too little.
    assert open_image([first, nibabel.Nifti1Image(np.ones((6, 5, 4), "u1"), np.diag([0.5, 0.5, 2, 1]))]).channels == 2
    with pytest.raises(ValueError, match=r"voxels of 2 x 0\.5 x 0\.5 mm .* of 1 x 0\.5 x 0\.5 mm"):
        open_image([first, nibabel.Nifti1Image(np.ones((6, 5, 4), "u1"), np.diag([0.5, 0.5, 1, 1]))])


def test_labels_of_a_channel_that_was_turned_know_their_image(tmp_path):
    reference = nibabel.Nifti1Image(np.arange(960, dtype="i2").reshape(12, 10, 8), PLAIN)
    nibabel.save(reference, tmp_path / "a.nii")
    nibabel.save(turned(reference, np.array([[0, -1], [2, 1], [1, 1]])), tmp_path / "b.nii")
    pair = [tmp_path / "a.nii", tmp_path / "b.nii"]
    dseeds.segment(pair, tmp_path / "labels.zarr", step=4)
    labels = zarr.open_array(tmp_path / "labels.zarr/0")[:]
    data = np.asarray(reference.dataobj).T
    np.testing.assert_array_equal(labels, dseeds.supervoxels(np.stack([data, data]), step=4, channel_axis=0))
    assert dseeds.preview(tmp_path / "labels.zarr", size=64, channel=1).mode == "RGBA"
