"""Zarr arrays in scratch and in outputs: layouts, reading and writing, and detection of damage.

Every array is cut so that a region consists of whole shards: two tasks that write to one file would corrupt it
silently. Chunks within a shard are small, so that halos can be read cheaply.

Each phase writes to arrays of its own, and nothing in scratch ever changes: a task that runs twice, or that was
presumed dead and comes back, writes the same data again. Zeros are written too, and all chunks have checksums, so that
missing, torn or corrupt data is noticed when it is read.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dseeds.core.geometry import Box, Grid, Regions, Triple, triple
from dseeds.core.lazy_module import LazyModule
from dseeds.storage.location import LocalLocation, Location
from dseeds.storage.object_store import describe_store_error

if TYPE_CHECKING:
    import zarr
    import zarr.codecs
else:
    zarr = LazyModule("zarr")

# Voxels along an axis of a chunk: larger ones waste more when a halo is read, and each chunk has its own overhead.
UNIT_CHUNK = 64
# The compression of arrays, by name: for what is kept, and for what is read many times and soon removed.
Codec = Literal["zstd", "lz4", "lz4-bits"]
ZSTD_CODEC: Codec = "zstd"
_CODECS: dict[Codec, dict[str, Any]] = {
    "zstd": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle"},
    "lz4": {"cname": "lz4", "clevel": 1, "shuffle": "noshuffle"},
    "lz4-bits": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"},
}
# Exceptions that codecs raise on corrupt bytes. OSError is not among them: it says nothing about the data.
DECODING_ERRORS = (ValueError, RuntimeError, EOFError, LookupError, TypeError)


class ScratchCorrupted(Exception):
    """Data in scratch are missing, torn or corrupt, in a box of an array's first three axes."""

    def __init__(self, name: str, box: Box, reason: str) -> None:
        super().__init__(name, box, reason)
        self.name, self.box = name, box

    def __str__(self) -> str:
        return f"{self.args[0]} in scratch is damaged: {self.args[2]}"


@dataclass
class ByteCounter:
    """Bytes that a task has read and written, uncompressed."""

    read: int = 0
    written: int = 0


byte_counter: ContextVar[ByteCounter | None] = ContextVar("byte_counter", default=None)


def count_bytes(*, read: int = 0, written: int = 0) -> None:
    """Add to the bytes that the current task has read and written."""
    counter = byte_counter.get()
    if counter is not None:
        counter.read += read
        counter.written += written


def chunk_length(extent: int, target: int) -> int:
    """Return the divisor of a region's extent that is closest, as a ratio, to the target length of a chunk.

    >>> chunk_length(256, 64), chunk_length(250, 64), chunk_length(67, 64)
    (64, 50, 67)
    """
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / target)))


def region_units(regions: Regions, grid: Grid) -> Triple:
    """Return the extent of a full region in the units of a grid."""
    return triple([k * p for k, p in zip(regions.cells, grid.parts, strict=True)])


@dataclass(frozen=True)
class Layout:
    """The shape, chunking and compression of an array. If `checked`, its chunks have checksums.

    The first three axes are cut like regions, further ones not at all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    codec: Codec
    checked: bool = True

    @classmethod
    def cut(
        cls,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        shard: tuple[int, ...],
        chunk_extent: int,
        codec: Codec = ZSTD_CODEC,
        *,
        checked: bool = True,
    ) -> Layout:
        """Cut shards into chunks of about this many voxels along each of the first three axes."""
        chunk = tuple(chunk_length(n, chunk_extent) for n in shard[:3]) + shard[3:]
        return cls(shape, np.dtype(dtype), shard, chunk, codec, checked)

    @property
    def nbytes(self) -> int:
        """Bytes of the array, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def create(self, store: Any, **options: Any) -> None:
        """Create the array in Zarr v3, empty, unless it exists."""
        codec = open_codec(self.codec)
        with suppress(zarr.errors.ContainsArrayError):
            zarr.create_array(
                store,
                shape=self.shape,
                dtype=self.dtype,
                chunks=self.chunk,
                shards=self.shard if self.shard != self.chunk else None,
                compressors=[codec, zarr.codecs.Crc32cCodec()] if self.checked else codec,
                fill_value=0,
                zarr_format=3,
                **options,
            )


def open_codec(codec: Codec) -> Any:
    """Return the codec of Zarr for a kind of compression."""
    return zarr.codecs.BloscCodec(**_CODECS[codec])


def check_whole_shards(array: zarr.Array, box: Box) -> None:
    """Raise RuntimeError unless a box of an array's first three axes consists of whole shards."""
    lengths = array.shards or array.chunks
    for begin, end, n, length in zip(box.lo, box.hi, array.shape, lengths, strict=False):
        if begin % length or (end % length and end != n):
            raise RuntimeError(f"{box} is not made up of whole shards of {lengths[:3]}.")


def shard_keys(array: zarr.Array, index: Sequence[slice]) -> Iterator[str]:
    """Yield the keys, relative to the array, of the shards that intersect an index of its first axes."""
    lengths = array.shards or array.chunks
    ranges = [range(side.start // n, -(-side.stop // n)) for side, n in zip(index, lengths, strict=False)]
    for position in itertools.product(*ranges):
        yield array.metadata.encode_chunk_key((*position, *(0,) * (array.ndim - len(position))))


def split_by_shard(array: zarr.Array, box: Box) -> Iterator[Box]:
    """Yield the parts of a box of an array's first three axes that lie in one shard each."""
    lengths = (array.shards or array.chunks)[:3]
    ranges = [range(a // n, -(-h // n)) for a, h, n in zip(box.lo, box.hi, lengths, strict=True)]
    for position in itertools.product(*ranges):
        lo = triple([i * n for i, n in zip(position, lengths, strict=True)])
        yield box.intersection(Box(lo, triple([a + n for a, n in zip(lo, lengths, strict=True)])))


def bound_by_shard(array: zarr.Array, boxes: Iterable[Box]) -> Iterator[Box]:
    """Yield for each shard of an array the bounding box of its parts of boxes, which may be empty or overlap."""
    lengths = (array.shards or array.chunks)[:3]
    bounds: dict[Triple, Box] = {}
    for box in boxes:
        for part in split_by_shard(array, box):
            if min(part.shape) > 0:
                place = triple([a // n for a, n in zip(part.lo, lengths, strict=True)])
                bounds[place] = part.bounding(bounds.get(place, part))
    yield from bounds.values()


@lru_cache(maxsize=256)
def open_arrays(location: Location, name: str, run: str | None) -> tuple[zarr.Array, zarr.Array]:
    """Open an array for reading, and for writing. Cached, since a run never creates two arrays of one name."""
    # Here, not above: Zarr takes its time to import.
    from dseeds.storage.complete_store import CompleteStore

    path = location.zarr(name)
    store = zarr.storage.LocalStore(path) if isinstance(path, Path) else path
    for zarr_format in (3, 2):
        # Without the format's version, zarr would send a request for each version.
        with suppress(zarr.errors.ArrayNotFoundError):
            writable = zarr.open_array(store, mode="r+", zarr_format=zarr_format)
            break
    else:
        # Zarr's own exception cannot be pickled, so a worker could not send it.
        raise FileNotFoundError(
            f"the array {name} of a run is gone from {location.address}: start again with overwrite=True (--overwrite)."
        )
    writable = writable.with_config({"write_empty_chunks": True})
    readable = zarr.Array.from_dict(zarr.storage.StorePath(CompleteStore(store)), writable.metadata.to_dict())
    return readable, writable


def read_array(
    location: Location, name: str, box: Box, run: str | None = None, *, counted: bool = True
) -> NDArray[Any]:
    """Read a box of an array's first three axes, and count its bytes if `counted`.

    `run` is the run that created the array, if the location is not one of that run alone. ScratchCorrupted is raised if
    data are missing or differ from what was written.
    """
    with describe_store_error(location.address):
        array, _ = open_arrays(location, name, run)
        try:
            values = np.asarray(array[box.slices])
        except DECODING_ERRORS as error:
            raise ScratchCorrupted(name, box, str(error)) from error
    if counted:
        count_bytes(read=values.nbytes)
    return values


def write_array(location: Location, name: str, box: Box, values: NDArray[Any], run: str | None = None) -> None:
    """Write a box of an array's first three axes; raise a RuntimeError unless it consists of whole shards.

    No other task may write to these shards.
    """
    with describe_store_error(location.address):
        _, array = open_arrays(location, name, run)
        check_whole_shards(array, box)
        try:
            array[box.slices] = values
        except DECODING_ERRORS:
            # Zarr reads a shard at the volume's end before it writes it, and that one may be torn.
            location.delete(f"{name}/{key}" for key in shard_keys(array, box.slices))
            array[box.slices] = values
    count_bytes(written=values.nbytes)


def sync_shards(location: Location, name: str, index: Sequence[slice], run: str = "") -> None:
    """Flush shards at an index of an array's first axes to disk, so that they survive a crash of the machine."""
    if not isinstance(location, LocalLocation):
        return
    _, array = open_arrays(location, name, run)
    folders = set()
    for key in shard_keys(array, index):
        path = location.path / name / key
        folders.add(path.parent)
        _sync(path)
    for folder in folders:
        _sync(folder)


def _sync(path: Path) -> None:
    # On Windows, a folder cannot be opened.
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
