"""Zarr arrays and OME-Zarr images in; what their metadata mean is said in `dseeds.io.ome_metadata`.

No program that lies in a file is run: zarr opens no array of numbers that is coded with pickle, and no other array is
read. Paths in OME metadata stay within their group; links in the file system are followed, wherever they lead.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

from dseeds.io.affine import affine_from_attributes
from dseeds.io.ome_metadata import MILLIMETRES, Frame, Multiscale, SpaceAxes, read_multiscale
from dseeds.io.source import (
    IndexBox,
    Shape,
    Source,
    SourceQuery,
    Spacing,
    choose_volume,
    hash_voxels,
    is_zarr,
    require_channels,
    require_intensities,
    require_volume,
    resolve_address,
    resolve_channel_axis,
    select_volume,
    shorten,
    slab_ranges,
    summarise_error,
    with_all_channels,
)
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.object_store import PrefixStore, describe_store_error, list_objects, url_of

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
    name
        See `Source`. An OME-Zarr image is called as its group.
    channel_axis : int, optional
        Which axis of the array has the channels, if any.
    space : tuple of int or None, optional
        Which axes of the array are z, y and x. Default: as they come.
    multiscale : Multiscale, optional
        What is said of the image, if the array is one of an OME-Zarr image.
    level : int
        Which of its arrays this is.
    group : zarr.Group, optional
        The image. It does not pickle along.
    affine
        See `Source`. What this program has noted in the group.
    """

    array: zarr.Array
    index: tuple[int | slice, ...]
    name: str
    channel_axis: int | None = None
    space: SpaceAxes | None = None
    multiscale: Multiscale | None = None
    level: int = 0
    group: zarr.Group | None = None
    affine: np.ndarray | None = None
    kind: Literal["zarr"] = "zarr"

    def __getstate__(self) -> dict[str, Any]:
        # Tasks have no use for it, and its attributes may be long.
        return {**vars(self), "group": None}

    @property
    def frame(self) -> Frame | None:
        """Where the voxels lie in the space of an OME-Zarr image, None where nothing is said."""
        return None if self.multiscale is None else self.multiscale.frames[self.level]

    @property
    def spacing(self) -> Spacing | None:
        """See `Source.spacing`."""
        return None if self.frame is None else self.frame.spacing_in_mm

    @property
    def labelled(self) -> bool:
        """See `Source.labelled`."""
        return self.multiscale is not None and self.multiscale.labels

    @property
    def coarser(self) -> list[tuple[Shape, Spacing]]:
        """The coarser levels of an OME-Zarr image, as far as they are there: voxels along z, y, x, and their sizes.

        Sizes are in voxels of this level.
        """
        found = []
        for number in range(self.level + 1, len(self.multiscale.paths) if self.multiscale else 0):
            try:
                level = self.at_level(number)
            except (ValueError, IndexError):
                break
            found.append((level.shape, self.factors_of(level)))
        return found

    def factors_of(self, level: ZarrSource) -> Spacing:
        """Tell how long a voxel of another level is along z, y, x, in voxels of this one."""
        if self.frame is None or level.frame is None:
            z, y, x = (n / m for n, m in zip(self.shape, level.shape, strict=True))
        else:
            z, y, x = (b / a for a, b in zip(self.frame.spacing, level.frame.spacing, strict=True))
        return z, y, x

    def at_level(self, number: int) -> ZarrSource:
        """Open another level of the same OME-Zarr image; `ValueError` if it is not there, or is no such thing."""
        if self.multiscale is None or self.group is None:
            raise ValueError(f"{self.name} has one level only.")
        array = _member(self.group, self.multiscale.paths[number], self.multiscale.where)
        if array.ndim != self.array.ndim or min(array.shape) < 1:
            raise ValueError(f"level {number} of {self.multiscale.where} is not cut as the others are.")
        return replace(self, array=array, level=number, affine=None)

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
                taken
                if isinstance(taken, int)
                else "channels"
                if axis == self.channel_axis
                else _SPACE[self._zyx.index(axis)]
                for axis, taken in enumerate(self.index)
            ],
            "shape": list(self.shape),
            "dtype": self.dtype.str,
        }
        if not self.readable_by_workers:
            return {**common, "digest": hash_voxels(self.slabs(self.chunks[0]))}
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

    def read(self, box: IndexBox) -> np.ndarray:
        """See `Source.read`."""
        index = list(self.index)
        for axis, side in zip(self._zyx, box, strict=True):
            if axis is not None:
                index[axis] = side
        try:
            with describe_store_error(_address(self.array)):
                values = np.asarray(self.array[tuple(index)])
        except _DAMAGED as error:
            corner = ", ".join(str(side.start or 0) for side in box)
            raise ValueError(
                f"{_address(self.array)} cannot be read from voxel ({corner}) on ({summarise_error(error)}): "
                f"a chunk is damaged, so copy or write the array again"
            ) from error
        return self._turned(values)

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`. A `thickness` of whole chunks reads each chunk once."""
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.read((slice(z0, z1), slice(None), slice(None)))

    def _turned(self, values: np.ndarray) -> np.ndarray:
        """Bring the axes that an index has left into the order (c, z, y, x), with those that are missing."""
        kept = [axis for axis, taken in enumerate(self.index) if isinstance(taken, slice)]
        first = [] if self.channel_axis is None else [self.channel_axis]
        turned = values.transpose([kept.index(axis) for axis in (*first, *self._zyx) if axis is not None])
        return np.expand_dims(turned, [len(first) + n for n, axis in enumerate(self._zyx) if axis is None])

    def _along_zyx(self, sizes: Sequence[int]) -> Shape:
        z, y, x = (1 if axis is None else int(sizes[axis]) for axis in self._zyx)
        return z, y, x

    @property
    def _zyx(self) -> SpaceAxes:
        """Which axes of the array are z, y and x."""
        if self.space is not None:
            return self.space
        z, y, x = (n for n, taken in enumerate(self.index) if isinstance(taken, slice) and n != self.channel_axis)
        return z, y, x


def frame_of(source: Source) -> Frame:
    """Tell where the voxels of a source of any format lie, without the orientation that NIfTI and DICOM have."""
    if isinstance(source, ZarrSource) and source.frame is not None:
        return source.frame
    return Frame() if source.spacing is None else Frame(source.spacing, units=MILLIMETRES)


def open_zarr(address: Path | str, wanted: SourceQuery) -> ZarrSource:
    """Open what lies at a path or URL; errors as `dseeds.io.open_source` words them."""
    return open_zarr_node(_node(address), wanted)


def multiscale_of(source: Any) -> Multiscale | None:
    """Read what the metadata of an OME-Zarr image say, or of that which an array is a level of; None for all else.

    Parameters
    ----------
    source : path, URL, zarr.Array or zarr.Group
        What may be one.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, ValueError
        As `dseeds.io.open_source`, where it is Zarr.
    """
    if isinstance(source, str | os.PathLike):
        address = resolve_address(str(os.fspath(source)))
        if isinstance(address, Path) and not is_zarr(address):
            return None
        source = _node(address)
    if not isinstance(source, zarr.Array | zarr.Group):
        return None
    node = _anywhere(source)
    if isinstance(node, zarr.Group):
        return read_multiscale(node.attrs.asdict(), _address(node))
    around = _image_around(node, _address(node))
    return around[1] if around else None


def _node(address: Path | str) -> zarr.Array | zarr.Group:
    """Open a group or an array."""
    place = open_location(address) if is_remote(address) else None
    try:
        return zarr.open(place.zarr() if place else address, mode="r")
    except (ConnectionError, PermissionError):
        raise
    except GroupNotFoundError:
        # Which cannot be sent from a worker, not even as the context of another error.
        pass
    except Exception as error:  # damaged metadata can raise anything
        raise ValueError(
            f"{address} cannot be opened as Zarr ({summarise_error(error)}): "
            f"check its address, and its metadata for damage or a version other than 2 and 3"
        ) from error
    if place:
        # Zarr does not tell a bucket that is missing from one that is empty.
        place.read("zarr.json")
    if isinstance(address, str):
        raise FileNotFoundError(f"{address} does not exist, or holds neither Zarr array nor group")
    raise ValueError(
        f"{address} is a folder without Zarr metadata (zarr.json, .zarray or .zgroup): "
        f"pass the folder of a Zarr array, of an OME-Zarr image or of a series of DICOM or TIFF, or name a file"
    )


def open_zarr_node(node: zarr.Array | zarr.Group, wanted: SourceQuery) -> ZarrSource:
    """Open a Zarr array or an OME-Zarr image group; errors as `dseeds.io.open_source` words them."""
    node = _anywhere(node)
    where = _address(node)
    name = where.rpartition("/")[2]
    if isinstance(node, zarr.Array):
        around = _image_around(node, where)
        if around:
            return _open_level(node, *around, f"{around[1].where.rpartition('/')[2]}/{name}", wanted)
        if wanted.level:
            raise ValueError(f"{where} is a Zarr array, which has no levels: leave out level= (--level)")
        _require_readable(node, node.shape, where, wanted)
        index, channels = select_volume(node.shape, wanted, where)
        return ZarrSource(node, index, name, channels)
    image = read_multiscale(node.attrs.asdict(), where)
    count = len(image.paths)
    if not 0 <= wanted.level < count:
        raise ValueError(f"{where} has no level {wanted.level}: it has {count}, numbered from 0")
    array = _member(node, image.paths[wanted.level], where)
    return _open_level(array, node, image, wanted.level, name, wanted)


def _open_level(
    array: zarr.Array, group: zarr.Group, image: Multiscale, level: int, name: str, wanted: SourceQuery
) -> ZarrSource:
    """Open one of the arrays of an OME-Zarr image."""
    where = image.where
    if image.labels:
        require_intensities(where, wanted)
    if wanted.level not in (0, level):
        raise ValueError(f"{where}/{image.paths[level]} is level {level} of an image: leave out level= (--level)")
    if len(image.axes) != array.ndim:
        raise ValueError(f"{where} names {len(image.axes)} axes for an array of {array.ndim}: correct its OME metadata")
    # Of a single slice the third axis is not said.
    _require_readable(array, (1,) * (None in image.space) + array.shape, where, wanted)
    channels = _channel_axis(image, array.shape, wanted)
    space = {axis for axis in image.space if axis is not None}
    extra = {axis: array.shape[n] for n, axis in enumerate(image.axes) if n not in space and n != channels}
    chosen = dict(zip(extra, choose_volume(extra, wanted, where), strict=True))
    index = tuple(chosen.get(axis, slice(None)) for axis in image.axes)
    return _of_image(array, index, name, channels, group, image, level)


def reopen_zarr(address: str, index: tuple[int | slice, ...], channel_axis: int | None) -> ZarrSource:
    """Open an array as it was opened when its identity was noted; errors as `dseeds.io.open_source` words them."""
    node = _anywhere(_node(resolve_address(address)))
    if not isinstance(node, zarr.Array) or node.ndim != len(index):
        raise ValueError(f"{address} is no longer the array of {len(index)} axes that it was")
    around = _image_around(node, address)
    if around is None:
        return ZarrSource(node, index, address.rpartition("/")[2], channel_axis)
    name = around[1].where.rpartition("/")[2]
    return _of_image(node, index, name, channel_axis, *around)


def _of_image(
    array: zarr.Array,
    index: tuple[int | slice, ...],
    name: str,
    channel_axis: int | None,
    group: zarr.Group,
    image: Multiscale,
    level: int,
) -> ZarrSource:
    affine = affine_from_attributes(group.attrs.get("dseeds"))
    if affine is not None and level:
        affine = _level_affine(affine, image.frames[0], image.frames[level])
    return ZarrSource(array, index, name, channel_axis, image.space, image, level, group, affine)


def _level_affine(affine: np.ndarray, full: Frame | None, level: Frame | None) -> np.ndarray | None:
    """Give the affine of a level of an image from that of its full resolution."""
    if full is None or level is None:
        return None
    steps = np.eye(4)
    np.fill_diagonal(steps[:3], np.divide(level.spacing, full.spacing)[::-1])
    steps[:3, 3] = (np.subtract(level.translation, full.translation) / full.spacing)[::-1]
    found: np.ndarray = affine @ steps
    return found


def _image_around(array: zarr.Array, where: str) -> tuple[zarr.Group, Multiscale, int] | None:
    """Find the OME-Zarr image, one or two steps up, that an array is a level of."""
    # Not any version: each that is looked for is a request.
    version = array.metadata.zarr_format
    for depth in (1, 2):
        # What is there may be anything, and cannot keep the array from being read.
        with suppress(Exception):
            above, *inner = where.rsplit("/", depth)
            store: Any = above
            path = ""
            if array.path.count("/") + bool(array.path) >= depth:
                store, path = array.store, "/".join(array.path.split("/")[:-depth])
            elif is_remote(above):
                store = open_location(above).zarr()
            group = zarr.open_group(store, path=path, mode="r", zarr_format=version)
            image = read_multiscale(group.attrs.asdict(), above)
            if len(image.axes) == array.ndim:
                return group, image, image.paths.index("/".join(inner))
    return None


def _channel_axis(image: Multiscale, shape: Sequence[int], wanted: SourceQuery) -> int | None:
    wanted = with_all_channels(wanted, image.axes, shape, {axis for axis in image.space if axis is not None})
    number, axes, where = wanted.channel_axis, image.axes, image.where
    if isinstance(number, str):
        if number not in axes:
            raise ValueError(
                f"{where} has no axis {shorten(number, 40)!r} for channels: its axes are {shorten(', '.join(axes))}"
            )
        number = axes.index(number)
    number = resolve_channel_axis(shape, replace(wanted, channel_axis=number), where)
    if number is None:
        return None
    if number in image.space:
        raise ValueError(
            f"{where} has {axes[number]} as its axis {number}, which cannot be that of channels: "
            f"pass channel_axis= (--channel-axis) as another, or leave it out"
        )
    require_channels(shape[number], where)
    return number


def _member(group: zarr.Group, path: str, where: str) -> zarr.Array:
    name = shorten(repr(path), 80)
    # Both kinds of slashes and Windows' drives: what is refused here is refused everywhere.
    if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
        raise ValueError(f"{where} names the array {name}, which would lie outside of it: correct its OME metadata")
    try:
        array = group[path]
    except (ConnectionError, PermissionError):
        raise
    except Exception as error:  # damaged metadata can raise anything
        raise ValueError(
            f"{where} names the array {name}, which cannot be opened ({summarise_error(error)}): copy it again"
        ) from error
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{where} names {name} as one of its levels, which is a group: it must be an array")
    return array


def _require_readable(array: zarr.Array, shape: Sequence[int], where: str, wanted: SourceQuery) -> None:
    """Refuse what is no volume, or is cut so that zarr would fail, never end or read other voxels than those asked."""
    require_volume(shape, np.dtype(array.dtype), where, wanted)
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
    for key, size, tag in list_objects(store, path):
        name = key.removeprefix(f"{path}/") if path else key
        if all(folder == "c" or folder.isdecimal() for folder in name.split("/")[:-1]):
            yield name, size, tag


def _unwrapped(store: Store) -> Store:
    while isinstance(store, WrapperStore):
        store = store._store
    return store
