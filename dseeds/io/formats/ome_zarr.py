"""Zarr arrays and OME-Zarr images in; `dseeds.io.ome_metadata` reads the metadata of the latter.

Stored data cannot run code: zarr opens no array of numbers that is encoded with pickle, and other arrays are refused.
Paths in OME metadata stay within their group. Links in the file system are followed wherever they lead.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from dseeds.core.forks import cached_property
from dseeds.core.geometry import AXES
from dseeds.core.lazy_module import LazyModule
from dseeds.io.affine import affine_from_attributes, describe_forms, forms_from_attributes
from dseeds.io.axes import SpaceAxes, select_axes
from dseeds.io.formats.ome_collection import find_image_group
from dseeds.io.formats.zarr_node import (
    hash_chunks,
    is_in_process_memory,
    node_address,
    open_node,
    with_absolute_path,
)
from dseeds.io.ome_metadata import MILLIMETRES, Frame, Multiscale, read_multiscale
from dseeds.io.source import (
    IndexBox,
    IndexedSource,
    NiftiForms,
    Shape,
    Source,
    SourceQuery,
    Spacing,
    hash_voxels,
    is_zarr,
    require_intensities,
    require_volume,
    resolve_address,
    select_named_volume,
    shorten,
    summarise_error,
)
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.object_store import describe_store_error

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# What codecs raise on damaged bytes. Other errors of the operating system are not due to the data.
_CODEC_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    gzip.BadGzipFile,
    zlib.error,
)
# Zarr divides by the length of a chunk in floating point, which is wrong for longer axes.
_LONGEST_AXIS = 2**53
_GROUP_AND_IMAGE = re.compile(r"(\w[\w+.-]*:.*\.zarr(?:/[^:]*)?):([^/:]+)")


@dataclass(frozen=True, eq=False)
class ZarrSource(IndexedSource):
    """A volume in a Zarr array; `open_source` opens it.

    Attributes
    ----------
    array : zarr.Array
        The array, of any number of axes.
    index : tuple of int or slice
        Selects the volume in the array: whole axes for z, y, x and channels, a number for every other axis.
    name, kind
        See `Source`. An OME-Zarr image has the name of its group.
    channel_axis : int or None
        The array's axis of channels.
    space : tuple of int or None
        The array's axes z, y and x; None if they are in this order.
    multiscale : Multiscale or None
        The metadata of the image, if the array is a level of an OME-Zarr image.
    level : int
        The number of this level; 0 is the full resolution.
    group : zarr.Group or None
        The image's group, which is not pickled.
    affine : ndarray or None
    forms : NiftiForms or None
        See `Source`; from this program's attribute of the group.

    Examples
    --------
    >>> from dseeds.io import open_source
    >>> source = open_source(zarr.create_array({}, shape=(2, 30, 40, 50), chunks=(1, 8, 8, 8), dtype="u1"), volume=1)
    >>> source.index[0], source.shape, source.chunks
    (1, (30, 40, 50), (8, 8, 8))
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
    forms: NiftiForms | None = None
    kind: Literal["zarr"] = "zarr"

    def __getstate__(self) -> dict[str, Any]:
        # Tasks do not need the group, whose attributes may be long.
        return {**vars(self), "group": None}

    @property
    def frame(self) -> Frame | None:
        """Position and size of the voxels in the space of an OME-Zarr image; None if unknown."""
        return None if self.multiscale is None else self.multiscale.frames[self.level]

    @property
    @override
    def spacing(self) -> Spacing | None:
        return None if self.frame is None else self.frame.spacing_in_mm

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """A note on a qform of NIfTI, from which the image was imported, that differs from the affine."""
        return describe_forms(self.affine, self.forms, self.shape)

    @property
    @override
    def labelled(self) -> bool:
        return self.multiscale is not None and self.multiscale.labels

    @property
    def coarser(self) -> list[tuple[Shape, Spacing]]:
        """Shapes of the coarser levels, up to the first that cannot be opened, and the sizes of their voxels.

        Sizes are in voxels of this level; axes are (z, y, x).
        """
        levels = []
        for level in self.coarser_levels():
            if level is None:
                break
            levels.append((level.shape, self.factors_of(level)))
        return levels

    def coarser_levels(self) -> Iterator[ZarrSource | None]:
        """Open the coarser levels of an OME-Zarr image one after the other; None for one that cannot be opened."""
        for number in range(self.level + 1, len(self.multiscale.paths) if self.multiscale else 0):
            try:
                yield self.at_level(number)
            except (ValueError, IndexError):
                yield None

    def factors_of(self, level: ZarrSource) -> Spacing:
        """Return the size of another level's voxels along z, y, x, in voxels of this level."""
        if self.frame is None or level.frame is None:
            z, y, x = (n / m for n, m in zip(self.shape, level.shape, strict=True))
        else:
            z, y, x = (b / a for a, b in zip(self.frame.spacing, level.frame.spacing, strict=True))
        return z, y, x

    def at_level(self, number: int) -> ZarrSource:
        """Open another level of the same OME-Zarr image; raise a ValueError if it is missing or has other axes."""
        if self.multiscale is None or self.group is None:
            raise ValueError(f"{self.name} has one level only.")
        array = _open_member(self.group, self.multiscale.paths[number], self.multiscale.where)
        if array.ndim != self.array.ndim or min(array.shape) < 1:
            raise ValueError(
                f"level {number} of {self.multiscale.where} is empty, or does not have the axes of the others."
            )
        return replace(self, array=array, level=number, affine=None, forms=None)

    @property
    @override
    def stored(self) -> zarr.Array:
        return self.array

    @property
    @override
    def chunks(self) -> Shape:
        return self._along_zyx(self.array.chunks)

    @property
    @override
    def shards(self) -> Shape | None:
        return None if self.array.shards is None else self._along_zyx(self.array.shards)

    @property
    @override
    def path(self) -> str | None:
        return node_address(self.array) if self.readable_by_workers else None

    @property
    @override
    def readable_by_workers(self) -> bool:
        return not is_in_process_memory(self.array)

    @cached_property
    @override
    def identity(self) -> dict[str, Any]:
        description = {
            "kind": self.kind,
            "index": [
                taken
                if isinstance(taken, int)
                else "channels"
                if axis == self.channel_axis
                else AXES[self._zyx.index(axis)]
                for axis, taken in enumerate(self.index)
            ],
            "shape": list(self.shape),
            # Zarr returns another byte order from an array that has just been created than from the same one reopened.
            "dtype": self.dtype.newbyteorder("=").str,
        }
        if not self.readable_by_workers:
            return {**description, "digest": hash_voxels(self.slabs(self.chunks[0]))}
        # Attributes are left out, for they do not change the voxels.
        metadata = {key: value for key, value in self.array.metadata.to_dict().items() if key != "attributes"}
        text = json.dumps(metadata, sort_keys=True, default=str)
        return {
            **description,
            "path": node_address(self.array),
            "metadata": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "chunks": hash_chunks(self.array),
        }

    @override
    def reopened(self) -> ZarrSource:
        if not self.readable_by_workers:
            return self
        return replace(self, array=zarr.open_array(self.array.store_path, mode="r"))

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        index = list(self.index)
        for axis, side in zip(self._zyx, box, strict=True):
            if axis is not None:
                index[axis] = side
        try:
            with describe_store_error(node_address(self.array)):
                values = np.asarray(self.array[tuple(index)])
        except _CODEC_ERRORS as error:
            corner = ", ".join(str(side.start or 0) for side in box)
            raise ValueError(
                f"{node_address(self.array)} cannot be read from voxel ({corner}) on ({summarise_error(error)}): "
                f"a chunk is damaged, so copy or write the array again"
            ) from error
        return self._to_czyx(values)


def frame_of(source: Source) -> Frame:
    """Return position and size of the voxels of a source of any format, without the orientation of NIfTI and DICOM.

    Parameters
    ----------
    source : Source
        The source.

    Returns
    -------
    Frame
        In the units of an OME-Zarr image, else in millimetres; a spacing of 1 without units if nothing is known.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> frame_of(ArraySource(np.zeros((3, 4, 5)), spacing=(2.0, 0.5, 0.5))).spacing
    (2.0, 0.5, 0.5)
    """
    if isinstance(source, ZarrSource) and source.frame is not None:
        return source.frame
    return Frame() if source.spacing is None else Frame(source.spacing, units=MILLIMETRES)


def multiscale_of(source: Any) -> Multiscale | None:
    """Read the metadata of an OME-Zarr image, or of the image that an array is a level of; None for all else.

    Parameters
    ----------
    source : path, URL, zarr.Array or zarr.Group
        What may be an image.

    Returns
    -------
    Multiscale or None

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, ValueError
        As `dseeds.io.open_source`, for sources that are Zarr.

    Examples
    --------
    >>> from dseeds.io import ome_image_attributes
    >>> group = zarr.create_group({}, attributes={"ome": ome_image_attributes(spacing=(2.0, 0.5, 0.5), name="ct")})
    >>> multiscale_of(group).frames[0].spacing
    (2.0, 0.5, 0.5)
    """
    chosen = None
    if isinstance(source, str | os.PathLike):
        address, chosen = split_group(resolve_address(str(os.fspath(source))))
        if isinstance(address, Path) and not is_zarr(address):
            return None
        source = open_node(address)
    if not isinstance(source, zarr.Array | zarr.Group):
        return None
    node = with_absolute_path(source)
    if isinstance(node, zarr.Group):
        group, where = find_image_group(node, node_address(node))
        return read_multiscale(group.attrs.asdict(), where, chosen)
    level = _find_image(node, node_address(node))
    return level.image if level else None


def split_group(address: Path | str) -> tuple[Path | str, str | None]:
    """Split an address into that of a group and the number or name of an image in it; None without either.

    >>> split_group("s3://bucket/a.zarr:1"), split_group("s3://bucket/a.zarr")
    (('s3://bucket/a.zarr', '1'), ('s3://bucket/a.zarr', None))
    """
    if isinstance(address, str):
        match = _GROUP_AND_IMAGE.fullmatch(address)
        return (match[1], match[2]) if match else (address, None)
    group, _, chosen = str(address).rpartition(":")
    return (Path(group), chosen) if group and not address.exists() and is_zarr(Path(group)) else (address, None)


def is_zarr_image(path: Path) -> bool:
    """Return whether a path names a Zarr array or group, or an image in a group."""
    return is_zarr(path) or split_group(path)[1] is not None


def open_zarr(address: Path | str, query: SourceQuery) -> ZarrSource:
    """Open a Zarr array or an OME-Zarr image at a path or URL; raises as `dseeds.io.open_source`."""
    address, chosen = split_group(address)
    return open_zarr_node(open_node(address), query, chosen)


def open_zarr_node(node: zarr.Array | zarr.Group, query: SourceQuery, chosen: str | None = None) -> ZarrSource:
    """Open a Zarr array or the group of an OME-Zarr image; raises as `dseeds.io.open_source`.

    One of several images in the group is `chosen` by its number or name.
    """
    node = with_absolute_path(node)
    where = node_address(node)
    name = _last_part(where)
    if isinstance(node, zarr.Group):
        node, where = find_image_group(node, where)
        _require_image(node, where)
        image = read_multiscale(node.attrs.asdict(), where, chosen)
        count = len(image.paths)
        if not 0 <= query.level < count:
            raise ValueError(f"{where} has no level {query.level}: it has {count}, numbered from 0")
        array = _open_member(node, image.paths[query.level], where)
        return _open_level(array, _ImageLevel(node, image, query.level), name, query)
    if chosen is not None:
        raise ValueError(f"{where} is a Zarr array, not a group of images: leave out :{shorten(chosen, 60)} (--image)")
    level = _find_image(node, where)
    if level:
        return _open_level(node, level, f"{_last_part(level.image.where)}/{name}", query)
    if query.level:
        raise ValueError(f"{where} is a Zarr array, which has no levels: leave out level= (--level)")
    _require_readable(node, node.shape, where, query, planes=True)
    selection = select_axes(array_axes(node, where), node.shape, query, where)
    return ZarrSource(node, selection.index, name, selection.channel_axis, selection.space)


def reopen_zarr(address: str, index: Sequence[int | str]) -> ZarrSource:
    """Open an array by the index of its identity; raises as `dseeds.io.open_source`."""
    node = with_absolute_path(open_node(resolve_address(address)))
    if not isinstance(node, zarr.Array) or node.ndim != len(index):
        raise ValueError(f"{address} is no longer the array of {len(index)} axes that it was")
    selection = tuple(taken if isinstance(taken, int) else slice(None) for taken in index)
    channel_axis = index.index("channels") if "channels" in index else None
    level = _find_image(node, address)
    if level is None:
        z, y, x = (index.index(axis) if axis in index else None for axis in AXES)
        return ZarrSource(node, selection, _last_part(address), channel_axis, (z, y, x))
    return level.source(node, selection, _last_part(level.image.where), channel_axis)


def array_axes(array: zarr.Array, where: str) -> list[str] | None:
    """Return the names of a plain array's axes, as Zarr v3 has them or xarray adds them in v2; None without any."""
    names = getattr(array.metadata, "dimension_names", None)
    attributes: Any = array.metadata.attributes
    if not names and isinstance(attributes, Mapping):
        names = attributes.get("_ARRAY_DIMENSIONS")
    if not isinstance(names, list | tuple):
        return None
    if len(names) != array.ndim:
        raise ValueError(
            f"{where} names {len(names)} axes in _ARRAY_DIMENSIONS for an array of {array.ndim}: correct or remove "
            f"this attribute"
        )
    return [name if isinstance(name, str) else "" for name in names]


def _require_image(group: zarr.Group, where: str) -> None:
    """Raise a ValueError that lists the arrays in a group without images."""
    attributes = group.attrs.asdict()
    if "multiscales" in attributes or "ome" in attributes:
        return
    names: list[str] = []
    # Not all stores can list, and what they list may be anything.
    with suppress(Exception):
        names = sorted(group.array_keys())
    if names:
        raise ValueError(
            f"{where} is a Zarr group without an OME-Zarr image (no 'multiscales' in its attributes): pass one of its "
            f"arrays ({shorten(', '.join(names), 500)}), such as {where}/{names[0]}"
        )


class _ImageLevel(NamedTuple):
    """A level of an OME-Zarr image."""

    group: zarr.Group
    image: Multiscale
    number: int

    def source(
        self, array: zarr.Array, index: tuple[int | slice, ...], name: str, channel_axis: int | None
    ) -> ZarrSource:
        """Return the source of a volume in the level's array."""
        attribute = self.group.attrs.get("dseeds")
        affine, forms = affine_from_attributes(attribute), forms_from_attributes(attribute)
        if affine is None:
            forms, placed = None, self.image.affines[self.number] if self.image.affines else None
        else:
            forms, placed = forms and forms.mapped(self._place), self._place(affine)
        return ZarrSource(
            array, index, name, channel_axis, self.image.space, self.image, self.number, self.group, placed, forms
        )

    def _place(self, affine: np.ndarray) -> np.ndarray | None:
        """Return the level's affine, which follows from that of the full resolution."""
        if not self.number:
            return affine
        full, level = self.image.frames[0], self.image.frames[self.number]
        if full is None or level is None:
            return None
        steps = np.eye(4)
        np.fill_diagonal(steps[:3], np.divide(level.spacing, full.spacing)[::-1])
        steps[:3, 3] = (np.subtract(level.translation, full.translation) / full.spacing)[::-1]
        return np.asarray(affine @ steps)


def _open_level(array: zarr.Array, level: _ImageLevel, name: str, query: SourceQuery) -> ZarrSource:
    """Open the volume that a query selects in a level of an OME-Zarr image."""
    image, where = level.image, level.image.where
    if image.labels:
        require_intensities(where, query)
    if query.level not in (0, level.number):
        raise ValueError(
            f"{where}/{image.paths[level.number]} is level {level.number} of an image: leave out level= (--level)"
        )
    if len(image.axes) != array.ndim:
        raise ValueError(f"{where} names {len(image.axes)} axes for an array of {array.ndim}: correct its OME metadata")
    # An image of one slice does not have the third axis.
    _require_readable(array, (1,) * (None in image.space) + array.shape, where, query)
    space = [axis for axis in image.space if axis is not None]
    index, channels = select_named_volume(image.axes, array.shape, space, query, where)
    return level.source(array, index, name, channels)


def _find_image(array: zarr.Array, where: str) -> _ImageLevel | None:
    """Find the OME-Zarr image, one or two steps up, that an array is a level of."""
    # Only this version, for each that is tried is a request.
    version = array.metadata.zarr_format
    for depth in (1, 2):
        # Anything may be stored there, and must not keep the array from being read.
        with suppress(Exception):
            above, *inner = where.rsplit("/", depth)
            store: Any = above
            path = ""
            if array.path.count("/") + bool(array.path) >= depth:
                store, path = array.store, "/".join(array.path.split("/")[:-depth])
            elif is_remote(above):
                store = open_location(above).zarr()
            group = zarr.open_group(store, path=path, mode="r", zarr_format=version)
            level = _find_level(group, above, "/".join(inner))
            if len(level.image.axes) == array.ndim:
                return level
    return None


def _find_level(group: zarr.Group, where: str, path: str) -> _ImageLevel:
    """Find the level that is stored at a path among those of the images in a group; raise an error if there is none."""
    attributes = group.attrs.asdict()
    ome: Any = attributes.get("ome", attributes)
    images = [read_multiscale(attributes, where, str(number)) for number in range(len(ome["multiscales"]))]
    image = next(image for image in images if path in image.paths)
    return _ImageLevel(group, image, image.paths.index(path))


def _open_member(group: zarr.Group, path: str, where: str) -> zarr.Array:
    """Open an array of a group; refuse paths that lead out of it."""
    name = shorten(repr(path), 80)
    # Both kinds of slashes and Windows' drives, so that the same paths are refused on all systems.
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


def _require_readable(
    array: zarr.Array, shape: Sequence[int], where: str, query: SourceQuery, *, planes: bool = False
) -> None:
    """Raise a ValueError for what is no volume, or is cut so that zarr would fail, hang or read other voxels."""
    require_volume(shape, np.dtype(array.dtype), where, query, planes=planes)
    if max(array.shape) > _LONGEST_AXIS:
        raise ValueError(
            f"{where} has shape {array.shape}: an axis is longer than {_LONGEST_AXIS} voxels, "
            f"so check its metadata for damage"
        )
    if min(array.chunks) < 1:
        raise ValueError(f"{where} has chunks of shape {array.chunks}: an axis is empty, so write the array again")


def _last_part(address: str) -> str:
    return address.rpartition("/")[2]
