"""Zarr arrays and OME-Zarr images in; the metadata of an OME-Zarr label image out.

No program that lies in a file is run: zarr opens no array of numbers that is coded with pickle, and no other array is
read. Paths in OME metadata stay within their group; links in the file system are followed, wherever they lead.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

from dseeds.io.bucket import PrefixStore, listed, url_of, worded
from dseeds.io.place import is_remote, open_place
from dseeds.io.source import (
    Box,
    Shape,
    Spacing,
    Wanted,
    channel_number,
    channels_first,
    digest,
    plain_index,
    reason,
    refuse_labels,
    require_channels,
    require_volume,
    shortened,
    slab_ranges,
    spacing_in_mm,
    volume_index,
)

# How many make a millimetre: units of length in OME-NGFF's names, and short forms met in the wild.
_PER_MM = {
    **dict.fromkeys(("picometer", "pm"), 1e9),
    "angstrom": 1e7,
    **dict.fromkeys(("nanometer", "nm"), 1e6),
    **dict.fromkeys(("micrometer", "micron", "um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m"), 1e3),
    **dict.fromkeys(("millimeter", "mm"), 1.0),
    **dict.fromkeys(("centimeter", "cm"), 1e-1),
    "decimeter": 1e-2,
    **dict.fromkeys(("meter", "m"), 1e-3),
    "inch": 1 / 25.4,
}
_SPACE = ("z", "y", "x")
_METADATA = re.compile(r"zarr\.json|\.z\w+")
# What codecs raise on bytes that are not theirs. Other errors of the system are not the data's fault.
_DAMAGED = (ArithmeticError, EOFError, LookupError, RuntimeError, TypeError, ValueError, gzip.BadGzipFile, zlib.error)
# Zarr divides by the length of a chunk in floating point, which is wrong beyond this.
_LONGEST = 2**53


@dataclass(frozen=True, eq=False)
class ZarrSource:
    """A volume in a Zarr array.

    Parameters
    ----------
    array : zarr.Array
        The array, of any number of axes.
    index : tuple of int or slice
        Selects the volume in it: whole axes for z, y, x and channels, a number for every other.
    name, spacing
        See `Source`. An OME-Zarr image is called as its group.
    channel_axis : int, optional
        Which axis of the array has the channels, if any.
    """

    array: zarr.Array
    index: tuple[int | slice, ...]
    name: str
    spacing: Spacing | None = None
    channel_axis: int | None = None
    kind: Literal["zarr"] = "zarr"
    affine: None = None

    @property
    def shape(self) -> Shape:
        """See `Source.shape`."""
        return self._along_zyx(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        """See `Source.dtype`."""
        return np.dtype(self.array.dtype)

    @property
    def channels(self) -> int | None:
        """See `Source.channels`."""
        return None if self.channel_axis is None else int(self.array.shape[self.channel_axis])

    @property
    def chunks(self) -> Shape:
        """See `Source.chunks`. Where chunks lie in shards, the smaller are meant."""
        return self._along_zyx(self.array.chunks)

    @property
    def shards(self) -> Shape | None:
        """See `Source.shards`."""
        return None if self.array.shards is None else self._along_zyx(self.array.shards)

    @property
    def path(self) -> str | None:
        """See `Source.path`."""
        return _address(self.array) if self.readable_by_workers else None

    @property
    def readable_by_workers(self) -> bool:
        """See `Source.readable_by_workers`. True unless the store is this process's memory."""
        return not _in_this_process(self.array)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `Source.identity`. It follows the metadata and, but for http, the sizes and dates of chunks."""
        common = {
            "kind": self.kind,
            "index": [
                taken if isinstance(taken, int) else "channels" if axis == self.channel_axis else None
                for axis, taken in enumerate(self.index)
            ],
            "shape": list(self.shape),
            "dtype": self.dtype.str,
        }
        if not self.readable_by_workers:
            return {**common, "digest": digest(self.slabs(self.chunks[0]))}
        # Attributes are notes in the margin: who adds one has not changed the voxels.
        stored = {key: value for key, value in self.array.metadata.to_dict().items() if key != "attributes"}
        text = json.dumps(stored, sort_keys=True, default=str)
        return {
            **common,
            "path": _address(self.array),
            "metadata": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "chunks": _state(self.array),
        }

    def reopened(self) -> ZarrSource:
        """See `Source.reopened`."""
        if not self.readable_by_workers:
            return self
        return replace(self, array=zarr.open_array(self.array.store_path, mode="r"))

    def read(self, box: Box) -> np.ndarray:
        """See `Source.read`."""
        index = list(self.index)
        for axis, side in zip(self._zyx, box, strict=True):
            index[axis] = side
        try:
            with worded(_address(self.array)):
                values = np.asarray(self.array[tuple(index)])
        except _DAMAGED as error:
            corner = ", ".join(str(side.start or 0) for side in box)
            raise ValueError(
                f"{_address(self.array)} cannot be read from voxel ({corner}) on ({reason(error)}): "
                f"a chunk is damaged, so copy or write the array again"
            ) from error
        return values if self.channel_axis is None else channels_first(values, self.index, self.channel_axis)

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`. A `thickness` of whole chunks reads each chunk once."""
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.read((slice(z0, z1), slice(None), slice(None)))

    def _along_zyx(self, sizes: Sequence[int]) -> Shape:
        z, y, x = (int(sizes[axis]) for axis in self._zyx)
        return z, y, x

    @property
    def _zyx(self) -> list[int]:
        """Which axes of the array are z, y and x."""
        return [axis for axis, taken in enumerate(self.index) if isinstance(taken, slice) and axis != self.channel_axis]


def open_zarr(address: Path | str, wanted: Wanted) -> ZarrSource:
    """Open what lies at a path or URL; errors as `dseeds.io.open_source` words them."""
    place = open_place(address) if is_remote(address) else None
    try:
        node = zarr.open(place.zarr() if place else address, mode="r")
    except (ConnectionError, PermissionError):
        raise
    except GroupNotFoundError:
        # Which cannot be sent from a worker, not even as the context of another error.
        node = None
    except Exception as error:  # damaged metadata can raise anything
        raise ValueError(
            f"{address} cannot be opened as Zarr ({reason(error)}): "
            f"check its address, and its metadata for damage or a version other than 2 and 3"
        ) from error
    if node is not None:
        return open_zarr_node(node, wanted)
    if place:
        # Zarr does not tell a bucket that is missing from one that is empty.
        place.read("zarr.json")
    if isinstance(address, str):
        raise FileNotFoundError(f"{address} does not exist, or holds neither Zarr array nor group")
    raise ValueError(
        f"{address} is a folder without Zarr metadata (zarr.json, .zarray or .zgroup): "
        f"pass the folder of a Zarr array or OME-Zarr image"
    )


def open_zarr_node(node: zarr.Array | zarr.Group, wanted: Wanted) -> ZarrSource:
    """Open a Zarr array or an OME-Zarr image group; errors as `dseeds.io.open_source` words them."""
    node = _anywhere(node)
    where = _address(node)
    name = where.rpartition("/")[2]
    if isinstance(node, zarr.Array):
        _require_readable(node, where, wanted)
        index, channels = plain_index(node.shape, wanted, where)
        return ZarrSource(node, index, name, channel_axis=channels)
    image = _full_resolution(node.attrs.asdict(), where, wanted)
    array = _member(node, image.path, where)
    _require_readable(array, where, wanted)
    index, channels = _index(image.axes, array.shape, wanted, where)
    return ZarrSource(array, index, name, image.spacing, channels)


def ome_image_attributes(
    *, spacing: Spacing | None, name: str, path: str = "0", labels: bool = False
) -> dict[str, Any]:
    """Describe a Zarr v3 group as an OME-Zarr image (OME-NGFF 0.5) of one resolution.

    Parameters
    ----------
    spacing : tuple of float or None
        Size of a voxel along z, y, x in millimetres; None for a scale of 1 without a unit.
    name : str
        What people call it.
    path : str
        Of the array (z, y, x) within the group.
    labels : bool
        Whether it is a label image.

    Returns
    -------
    dict
        For the group's attribute ``ome``.

    Examples
    --------
    >>> ome = ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="ct.nii.gz")
    >>> ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 0.5, 0.5]}]
    """
    unit = {} if spacing is None else {"unit": "millimeter"}
    scale = [1.0, 1.0, 1.0] if spacing is None else [float(size) for size in spacing]
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
                "datasets": [{"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
            }
        ],
        # No "colors": an empty list is not allowed, and viewers have colours of their own for labels.
        **({"image-label": {"version": "0.5"}} if labels else {}),
    }


def ome_label_attributes(*, spacing: Spacing | None, source: str, path: str = "0") -> dict[str, Any]:
    """Describe the supervoxels of an image as an OME-Zarr label image; see `ome_image_attributes`."""
    return ome_image_attributes(spacing=spacing, name=f"supervoxels of {source}", path=path, labels=True)


class _Image(NamedTuple):
    path: str
    axes: list[str]
    spacing: Spacing | None


def _full_resolution(attributes: Mapping[str, Any], where: str, wanted: Wanted) -> _Image:
    ome = attributes.get("ome", attributes)
    if not isinstance(ome, Mapping) or "multiscales" not in ome:
        raise ValueError(
            f"{where} is a Zarr group without an OME-Zarr image (no 'multiscales' in its attributes): "
            f"pass an array inside it, as {where}/NAME"
        )
    if "image-label" in ome:
        refuse_labels(where, wanted)
    try:
        image = ome["multiscales"][0]
        dataset = image["datasets"][0]
        # Version 0.3 lists names only; before that there were always five axes.
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in image.get("axes", "tczyx")]
        names = [str(axis["name"]).lower() for axis in axes]
        return _Image(str(dataset["path"]), names, _spacing(names, axes, (dataset, image)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has OME metadata that cannot be read ({reason(error)}): "
            f"correct 'multiscales' in its attributes, or pass an array inside it"
        ) from error


def _spacing(
    names: list[str], axes: Sequence[Mapping[str, Any]], scaled: Sequence[Mapping[str, Any]]
) -> Spacing | None:
    """Multiply the scales of the dataset and of the whole pyramid, both of which may be given."""
    space = [place for place, name in enumerate(names) if name in _SPACE]
    found = [
        [float(step["scale"][place]) for place in space]
        for level in scaled
        for step in level.get("coordinateTransformations", ())
        if step["type"] == "scale"
    ]
    if not found:
        return None
    sizes = [math.prod(along) for along in zip(*found, strict=True)]
    return spacing_in_mm(sizes, [_PER_MM.get(axes[place].get("unit", "")) for place in space])


def _index(
    axes: Sequence[str], shape: Sequence[int], wanted: Wanted, where: str
) -> tuple[tuple[int | slice, ...], int | None]:
    if len(axes) != len(shape):
        raise ValueError(f"{where} names {len(axes)} axes for an array of {len(shape)}: correct its OME metadata")
    if tuple(axis for axis in axes if axis in _SPACE) != _SPACE:
        named = shortened(", ".join(axes))
        raise ValueError(f"{where} has the axes {named}: supervoxels need z, y and x, in this order")
    channels = _channel_axis(axes, shape, wanted, where)
    extra = {axis: shape[n] for n, axis in enumerate(axes) if axis not in _SPACE and n != channels}
    chosen = dict(zip(extra, volume_index(extra, wanted, where), strict=True))
    return tuple(chosen.get(axis, slice(None)) for axis in axes), channels


def _channel_axis(axes: Sequence[str], shape: Sequence[int], wanted: Wanted, where: str) -> int | None:
    number = wanted.channel_axis
    if isinstance(number, str):
        if number not in axes:
            raise ValueError(
                f"{where} has no axis {shortened(number, 40)!r} for channels: its axes are {shortened(', '.join(axes))}"
            )
        number = axes.index(number)
    number = channel_number(shape, replace(wanted, channel_axis=number), where)
    if number is None:
        return None
    if axes[number] in _SPACE:
        raise ValueError(
            f"{where} has {axes[number]} as its axis {number}, which cannot be that of channels: "
            f"pass channel_axis= (--channel-axis) as another, or leave it out"
        )
    require_channels(shape[number], where)
    return number


def _member(group: zarr.Group, path: str, where: str) -> zarr.Array:
    name = shortened(repr(path), 80)
    # Both kinds of slashes and Windows' drives: what is refused here is refused everywhere.
    if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
        raise ValueError(f"{where} names the array {name}, which would lie outside of it: correct its OME metadata")
    try:
        array = group[path]
    except (ConnectionError, PermissionError):
        raise
    except Exception as error:  # damaged metadata can raise anything
        raise ValueError(
            f"{where} names the array {name}, which cannot be opened ({reason(error)}): copy it again"
        ) from error
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{where} names {name} as its full resolution, which is a group: it must be an array")
    return array


def _require_readable(array: zarr.Array, where: str, wanted: Wanted) -> None:
    """Refuse what is no volume, or is cut so that zarr would fail, never end or read other voxels than those asked."""
    require_volume(array.shape, np.dtype(array.dtype), where, wanted)
    if max(array.shape) > _LONGEST:
        raise ValueError(
            f"{where} has shape {array.shape}: an axis is longer than {_LONGEST} voxels, "
            f"so check its metadata for damage"
        )
    if min(array.chunks) < 1:
        raise ValueError(f"{where} has chunks of shape {array.chunks}: an axis is empty, so write the array again")


def _anywhere(node: zarr.Array | zarr.Group) -> zarr.Array | zarr.Group:
    """Reopen a local node by its absolute path: workers may stand in another folder."""
    store = node.store
    if type(store) is not LocalStore or store.root.is_absolute():
        return node
    return zarr.open(LocalStore(store.root.absolute(), read_only=True), path=node.path, mode="r")


def _in_this_process(node: zarr.Array | zarr.Group) -> bool:
    """Whether no other process can see where the node lies."""
    store = _unwrapped(node.store)
    if isinstance(store, FsspecStore):
        return "memory" in np.atleast_1d(store.fs.protocol)
    if isinstance(store, ObjectStore):
        return type(store.store).__name__ == "MemoryStore"
    return isinstance(store, MemoryStore)


def _address(node: zarr.Array | zarr.Group) -> str:
    """Where a node lies, the same however it was opened."""
    store = _unwrapped(node.store)
    if isinstance(store, LocalStore):
        return str((store.root / node.path).absolute())
    if isinstance(store, FsspecStore):
        return str(store.fs.unstrip_protocol(f"{store.path}/{node.path}".rstrip("/")))
    if isinstance(store, ObjectStore) and not isinstance(store, PrefixStore):
        return url_of(store.store, node.path) or str(node.store_path)
    return "the zarr array" if isinstance(store, MemoryStore) else str(node.store_path)


def _state(array: zarr.Array) -> str | None:
    """Hash the names, sizes and dates of an array's stored chunks, in whatever order; None where there are no dates."""
    store, together = _unwrapped(array.store), 0
    stored: Iterable[tuple[Any, ...]]
    if isinstance(store, LocalStore):
        stored = _files(store.root / array.path, "")
    elif isinstance(store, ObjectStore):
        stored = _objects(store.store, array.path)
    else:
        return None
    for name, *state in stored:
        if not _METADATA.fullmatch(name.rpartition("/")[2]):
            text = repr((name, *state)).encode()
            together ^= int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
    return f"{together:032x}"


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """List the files that may be chunks: a folder of another name may be anything, such as labels."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                if entry.name == "c" or entry.name.isdecimal():
                    yield from _files(Path(entry.path), f"{name}/")
            else:
                status = entry.stat()
                yield name, status.st_size, status.st_mtime_ns


def _objects(store: Any, path: str) -> Iterator[tuple[str, int, str]]:
    """List the objects that may be chunks, as `_files` does."""
    for key, size, tag in listed(store, path):
        name = key.removeprefix(f"{path}/") if path else key
        if all(folder == "c" or folder.isdecimal() for folder in name.split("/")[:-1]):
            yield name, size, tag


def _unwrapped(store: Store) -> Store:
    while isinstance(store, WrapperStore):
        store = store._store
    return store
