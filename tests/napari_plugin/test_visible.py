"""The part of a volume that is in view, and how near its preview is to the result."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dseeds
from dseeds.core.geometry import Box, Lattice
from dseeds.napari_plugin.visible import LEAST_MARGIN, choose_crop, choose_window, cut_crop
from dseeds.phantom import phantom

STEP, WINDOW = 6, (-200.0, 300.0)


@pytest.fixture(scope="module")
def volume():
    image, _ = phantom((96, 96, 120))
    return image, dseeds.supervoxels(image, step=STEP, window=WINDOW, compactness=1.0)


class Recorder:
    """An array that remembers what is read of it."""

    def __init__(self, array):
        self.array, self.voxels = array, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.voxels += part.size
        return part


def preview(image, visible, **options):
    crop = choose_crop(Lattice(image.array.shape, (STEP,) * 3), visible, **options)
    return crop, cut_crop([image], crop, window=WINDOW, compactness=1.0)


def test_a_small_volume_is_previewed_exactly(volume):
    image, expected = volume
    crop, part = preview(Recorder(image), Box((40, 10, 10), (41, 50, 60)))
    assert crop.is_exact
    assert np.array_equal(part.labels, expected[part.box.slices])


def test_a_large_volume_is_read_in_part_and_nearly_exact(volume):
    image, expected = volume
    recorder = Recorder(image)
    crop, part = preview(recorder, Box((40, 30, 40), (41, 60, 70)), most_voxels=image.size // 3)
    assert not crop.is_exact
    assert crop.margin >= LEAST_MARGIN
    assert recorder.voxels <= image.size // 3
    # Equal numbers, so that colours stay while the view moves.
    assert (part.labels != expected[part.box.slices]).mean() < 0.02


def test_masked_voxels_stay_outside(volume):
    image = volume[0].astype(np.float32)
    image[:, :20] = np.nan
    _, part = preview(Recorder(image), Box((40, 0, 0), (41, 96, 120)))
    assert (part.labels == 0).mean() == pytest.approx(20 / 96)


sides = st.integers(1, 400)


@given(st.tuples(sides, sides, sides), st.integers(2, 20), st.integers(10**4, 10**6), st.data())
def test_crops_lie_around_what_is_visible(shape, step, most_voxels, data):
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    hi = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lo, shape, strict=True))
    lattice = Lattice(shape, (step,) * 3)
    crop = choose_crop(lattice, Box(lo, hi), most_voxels)
    everything, cells = Box((0, 0, 0), lattice.cells), lattice.grids[-1].cells_of(Box(lo, hi))
    assert crop.cut.intersection(everything) == crop.cut
    assert crop.shown.intersection(cells) == crop.shown
    assert crop.cut.intersection(crop.shown) == crop.shown
    assert crop.shown.size > 0
    assert crop.is_exact or crop.margin >= LEAST_MARGIN
    assert crop.shown.size == 1 or crop.voxels(crop.cut).size <= most_voxels or crop.is_exact


def test_the_window_comes_from_a_level_that_fits():
    levels = [np.zeros((1024, 1024, 64), np.uint8), np.full((256, 256, 16), 7, np.uint8)]
    assert choose_window(levels) == (7, 7)
    assert choose_window(levels[:1]) == (0, 0)
