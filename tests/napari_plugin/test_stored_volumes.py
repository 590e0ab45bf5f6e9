"""Arrays whose Zarr is read in place: only if both hold the same voxels, whatever has been done to the array."""

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.io import ome_image_attributes, open_image, open_source
from dseeds.napari_plugin.stored_volumes import choose_source, find_stored_volume

SHAPE = (6, 6, 6)
CHANGES = {
    "none": lambda array: array,
    "reversed": lambda array: array[::-1],
    "turned": lambda array: array.transpose(2, 1, 0),
    "part": lambda array: array[1:],
    "sum": lambda array: array + 1,
    "rolled": lambda array: da.roll(array, 1, axis=0),
}


def stored_array(folder, leading):
    values = np.random.default_rng(len(leading)).integers(0, 200, (*leading, *SHAPE), np.uint8)
    return zarr.create_array(folder, data=values, chunks=(*[1] * len(leading), 3, 3, 3))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    shapes = [(), (1,), (3,), (1, 3), (3, 1), (2, 3)]
    return [(shape, stored_array(folder / f"{number}.zarr", shape)) for number, shape in enumerate(shapes)]


@settings(max_examples=40)
@given(st.data())
def test_only_the_same_voxels_are_read_in_place(arrays, data):
    leading, node = data.draw(st.sampled_from(arrays))
    array = da.from_zarr(data.draw(st.sampled_from([node, str(node.store.root)])))
    index = [data.draw(st.integers(0, n - 1)) for n in leading]
    # At once, or one axis and then the others, as napari splits channels.
    for axis in [] if not index else data.draw(st.sampled_from([[], *([axis] for axis in range(len(index)))])):
        array = array[(slice(None),) * axis + (index.pop(axis),)]
    array = array[tuple(index)]
    change = data.draw(st.sampled_from(sorted(CHANGES)))
    array = CHANGES[change](array)
    stored = find_stored_volume(array)
    assert (stored is not None) == (change == "none" and sum(n > 1 for n in leading) < 2)
    if stored is not None:
        voxels = open_source(stored.address, volume=stored.number).read((slice(None),) * 3)
        assert np.array_equal(voxels, array.compute())


def test_axes_in_another_order_are_copied(tmp_path):
    # A cube: shapes do not tell that axes are turned.
    group = zarr.create_group(tmp_path / "image.zarr")
    attributes = ome_image_attributes(spacing=(1.0, 1.0, 1.0), name="image")
    attributes["multiscales"][0]["axes"] = attributes["multiscales"][0]["axes"][::-1]
    group.attrs["ome"] = attributes
    node = group.create_array("0", data=np.arange(216, dtype=np.uint8).reshape(SHAPE))
    array = da.from_zarr(node)
    assert not np.array_equal(open_source(tmp_path / "image.zarr").read((slice(None),) * 3), array.compute())
    assert find_stored_volume(array) is None
    assert find_stored_volume(node) is None
    assert choose_source([array]).image is array


def test_all_channels_of_an_array_are_read_together(arrays):
    for leading in [(3,), (1, 3), (3, 1)]:
        node = dict(arrays)[leading]
        index = [(k, 0) if leading == (3, 1) else (0, k) if leading == (1, 3) else (k,) for k in range(3)]
        channels = [da.from_zarr(node)[one] for one in index]
        source = choose_source(channels)
        image = open_image(source.image, channel_axis=source.channel_axis)
        assert isinstance(source.image, str)
        for expected, values in zip(channels, image.read((slice(None),) * 3), strict=True):
            assert np.array_equal(values, expected.compute())
        # Not all of them, or in another order.
        for some in (channels[:2], channels[::-1]):
            assert all(one is other for one, other in zip(choose_source(some).image, some, strict=True))


def test_arrays_in_memory_are_not_addresses():
    node = zarr.create_array({}, shape=SHAPE, dtype="u1")
    assert find_stored_volume(da.from_zarr(node)) is None
    assert find_stored_volume(np.zeros(SHAPE)) is None
    assert find_stored_volume(da.zeros(SHAPE)) is None


def test_a_copy_without_room_is_refused(tmp_path):
    huge = da.zeros((1 << 20, 1 << 20, 1 << 10)) + 1
    with dask.config.set({"temporary-directory": str(tmp_path)}), pytest.raises(ValueError, match="have to be copied"):
        choose_source([huge])
