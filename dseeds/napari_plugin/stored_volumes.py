"""The stored volumes behind layers: what a layer shows of a Zarr array is cut from that array, without a copy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import zarr
from dask import config

from dseeds.core.duck_arrays import is_dask_array
from dseeds.core.formatting import format_bytes
from dseeds.io.formats.ome_zarr import open_zarr_node
from dseeds.io.source import SourceQuery, resolve_address


@dataclass(frozen=True)
class StoredVolume:
    """A volume (z, y, x) in a Zarr array that other processes can read.

    `number` is the volume's along `axis`, the array's only further axis that is longer than 1; `count` is how many
    there are along it. Without such an axis, `number` and `axis` are None.
    """

    address: str
    number: int | None = None
    axis: int | None = None
    count: int = 1


@dataclass(frozen=True)
class CutSource:
    """The image to cut as `dseeds.segment` takes it, with the options that select its volume or its channels."""

    image: Any
    volume: int | None = None
    channel_axis: int | None = None


def find_stored_volume(array: Any) -> StoredVolume | None:
    """Return where an array (z, y, x) is stored; None unless it is certain that both hold the same voxels.

    A Dask array is the stored one if Dask would give the same name to the array that it reads, or to a volume of it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> image = zarr.create_array(f"{folder.name}/image.zarr", shape=(2, 8, 8, 8), dtype="uint8")
    >>> lazy = da.from_zarr(image)
    >>> find_stored_volume(lazy[1]).number, find_stored_volume(lazy[1] + 1)
    (1, None)
    >>> folder.cleanup()
    """
    node = array if isinstance(array, zarr.Array) else _read_array(array)
    if node is None or node.ndim < 3:
        return None
    if array is node:
        return _open_volume(node, (), None) if node.ndim == 3 else None
    # Dask derives names from names: blocks, of which there may be many, have no part in them.
    bare = da.Array({}, da.from_zarr(node).name, tuple((n,) for n in node.shape), dtype=node.dtype)
    for index, axis in _volume_indices(node.shape[:-3]):
        if array.name in _names_of(bare, index):
            return _open_volume(node, index, axis)
    return None


def _read_array(array: Any) -> zarr.Array | None:
    """Return the only Zarr array that a Dask array reads; None if there is none."""
    if not is_dask_array(array):
        return None
    # What a layer of the graph holds by itself is data; blocks that are computed are not looked at.
    single = [layer for layer in array.dask.layers.values() if len(layer) == 1]
    values = [getattr(value, "value", value) for layer in single for value in dict(layer).values()]
    nodes = [value for value in values if isinstance(value, zarr.Array)]
    return nodes[0] if len(nodes) == 1 else None


def _volume_indices(leading: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """Yield the indices of volumes along an array's leading axes, each with the axis that is longer than 1."""
    long = [axis for axis, n in enumerate(leading) if n > 1]
    if not long:
        yield (0,) * len(leading), None
    elif len(long) == 1:
        [axis] = long
        for number in range(leading[axis]):
            yield tuple(number if other == axis else 0 for other in range(len(leading))), axis


def _names_of(whole: da.Array, index: tuple[int, ...]) -> set[str]:
    """Return the names of the Dask arrays that select a volume: at once, or one axis and then all others."""
    if not index:
        return {whole.name}
    names = {whole[index].name}
    for axis, number in enumerate(index):
        part = whole[(slice(None),) * axis + (number,)]
        others = index[:axis] + index[axis + 1 :]
        names.add(part[others].name if others else part.name)
    return names


def _open_volume(node: zarr.Array, index: tuple[int, ...], axis: int | None) -> StoredVolume | None:
    """Return the address of a volume; None if dseeds would read others, or other axes, from there."""
    number = None if axis is None else index[axis]
    try:
        source = open_zarr_node(node, SourceQuery(volume=number))
    except ValueError:
        return None
    selection, space = (*index, *[slice(None)] * 3), tuple(range(node.ndim - 3, node.ndim))
    if source.path is None or source.index != selection or source.space not in (None, space):
        return None
    return StoredVolume(str(resolve_address(source.path)), number, axis, 1 if axis is None else node.shape[axis])


def choose_source(channels: Sequence[Any]) -> CutSource:
    """Return what to cut of the channels (z, y, x) of an image: what is stored is read in place.

    All channels of one array, in their order, are read together; of some of them, and of other Dask arrays, a copy is
    made by `dseeds.segment`. Raise a ValueError if there is no room for it.

    >>> computed = da.zeros((4, 4, 4)) + 1
    >>> choose_source([computed]).image is computed
    True
    """
    stored = [find_stored_volume(channel) for channel in channels]
    first = stored[0]
    if len(channels) == 1:
        if first is not None:
            return CutSource(first.address, first.number)
    elif first is not None and first.axis is not None:
        every = [StoredVolume(first.address, number, first.axis, first.count) for number in range(first.count)]
        if stored == every:
            return CutSource(first.address, channel_axis=first.axis)
    parts = [
        channel if place is None or place.number is not None else place.address
        for channel, place in zip(channels, stored, strict=True)
    ]
    _check_room([part for part in parts if is_dask_array(part)])
    return CutSource(parts[0] if len(parts) == 1 else parts)


def _check_room(arrays: Sequence[Any]) -> None:
    folder = config.get("temporary-directory", None) or tempfile.gettempdir()
    size = sum(array.nbytes for array in arrays)
    if not size or "://" in str(folder):
        return
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"the layer is computed, so that {format_bytes(size)} have to be copied to {folder}, where "
            f"{format_bytes(free)} are free: open the layer from a Zarr, or set Dask's temporary-directory."
        )


def stored_or_array(array: Any) -> Any:
    """Return the address of a stored volume that is alone in its array, or else the array: as mask or boundary map."""
    stored = find_stored_volume(array)
    return array if stored is None or stored.number is not None else stored.address
