"""Zarr scratch: which arrays there are, how they are cut, and how what is damaged is noticed.

Every array is cut so that a region is a whole number of shards: then no two tasks ever write to one file, which would
corrupt it silently. Within a shard, chunks are small enough for the reading of halos.

What a phase leaves lies in arrays of its own, so that nothing in scratch ever changes: a task that is done twice, or
that was believed dead and comes back, writes what is there already. Everything is written, zeros too, and with a
checksum: what is missing, torn or rotten is noticed when it is read, and the phase that wrote it is known.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.errors import ArrayNotFoundError, ContainsArrayError
from zarr.storage import LocalStore, StorePath, WrapperStore

from dseeds.core.geometry import Box, Grid, Regions, Triple, triple
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.object_store import describe_store_error

# Chunks per axis, in voxels, in blocks with their histograms and in cells: what a halo read wastes against what every
# chunk costs.
UNIT_CHUNK = 64
WIDE = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
# What codecs raise on bytes that are not theirs. Errors of the system are not the data's fault.
DAMAGED = (ValueError, RuntimeError, EOFError, LookupError, TypeError)


class ScratchCorrupted(Exception):
    """Something in scratch is missing, torn or rotten.

    Attributes
    ----------
    name : str
        The array.
    box : Box
        What was to be read of it, along its first three axes.
    """

    def __init__(self, name: str, box: Box, reason: str) -> None:
        super().__init__(name, box, reason)
        self.name, self.box = name, box

    def __str__(self) -> str:
        return f"{self.args[0]} in scratch is damaged: {self.args[2]}"


@dataclass
class ByteCounter:
    """Bytes that a task has read and written, as they are in memory."""

    read: int = 0
    written: int = 0


byte_counter: ContextVar[ByteCounter | None] = ContextVar("traffic", default=None)


def count_bytes(*, read: int = 0, written: int = 0) -> None:
    """Add to what the task at work has read and written."""
    current = byte_counter.get()
    if current is not None:
        current.read += read
        current.written += written


def chunk_length(extent: int, wanted: int) -> int:
    """Find the divisor of a region's extent that comes closest to the wanted length of a chunk.

    Examples
    --------
    >>> chunk_length(256, 64), chunk_length(250, 64), chunk_length(67, 64)
    (64, 50, 67)
    """
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))


def region_units(regions: Regions, grid: Grid) -> Triple:
    """Give the extent of a full region in a grid's units."""
    return triple([k * p for k, p in zip(regions.cells, grid.parts, strict=True)])


@dataclass(frozen=True)
class Layout:
    """How an array is cut and coded.

    Attributes
    ----------
    shape, shard, chunk : tuple of int
        The first three axes are cut as regions are, others not at all.
    dtype : dtype
        Of its values.
    codec : codec
        Compresses its chunks.
    checked : bool
        Whether chunks get a checksum.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    codec: BytesBytesCodec
    checked: bool = True

    @classmethod
    def cut(
        cls,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        shard: tuple[int, ...],
        wanted: int,
        codec: BytesBytesCodec = WIDE,
        *,
        checked: bool = True,
    ) -> Layout:
        """Cut shards into chunks of about the wanted length."""
        chunk = tuple(chunk_length(n, wanted) for n in shard[:3]) + shard[3:]
        return cls(shape, np.dtype(dtype), shard, chunk, codec, checked)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def create(self, where: Any, **more: Any) -> None:
        """Create the array in Zarr v3, empty, unless it is there already."""
        try:
            zarr.create_array(
                where,
                shape=self.shape,
                dtype=self.dtype,
                chunks=self.chunk,
                shards=self.shard if self.shard != self.chunk else None,
                compressors=[self.codec, Crc32cCodec()] if self.checked else self.codec,
                fill_value=0,
                zarr_format=3,
                **more,
            )
        except ContainsArrayError:
            return


def check_whole_shards(array: zarr.Array, box: Box) -> None:
    """Assert that a box of an array's first three axes is made up of whole shards.

    Raises
    ------
    RuntimeError
        If it is not.
    """
    cut = array.shards or array.chunks
    for begin, end, n, length in zip(box.lo, box.hi, array.shape, cut, strict=False):
        if begin % length or (end % length and end != n):
            raise RuntimeError(f"{box} is not made up of whole shards of {cut[:3]}.")


def shard_keys(array: zarr.Array, index: Sequence[slice]) -> Iterator[str]:
    """List the keys of the shards that an index of an array's first axes touches, relative to the array."""
    cut = array.shards or array.chunks
    ranges = [range(side.start // c, -(-side.stop // c)) for side, c in zip(index, cut, strict=False)]
    for place in itertools.product(*ranges):
        yield array.metadata.encode_chunk_key((*place, *(0,) * (array.ndim - len(place))))


class Complete(WrapperStore[Store]):
    """A store in which every chunk that is asked for has to be there: zarr takes what is missing or empty for zeros."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See `Store.get`."""
        value = await super().get(key, prototype, byte_range)
        if key.startswith("c/") and not value:
            raise LookupError(f"{key} is missing or empty")
        return value


@lru_cache(maxsize=256)
def opened_arrays(address: str, name: str, run: str | None) -> tuple[zarr.Array, zarr.Array]:
    """Open an array to be read, and to be written; once in a process, for a run never makes two arrays of one name."""
    where = open_location(address).zarr(name)
    store = LocalStore(where) if isinstance(where, Path) else where
    # Without a version to look for, zarr would look for all, with a request for each.
    try:
        writable = zarr.open_array(store, mode="r+", zarr_format=3).with_config({"write_empty_chunks": True})
    except ArrayNotFoundError:
        # Zarr's own error cannot be sent from a worker.
        raise FileNotFoundError(
            f"the array {name} of a run is gone from {address}: begin anew with overwrite=True (--overwrite)."
        ) from None
    readable = zarr.Array.from_dict(StorePath(Complete(store)), writable.metadata.to_dict())
    return readable, writable


def read_array(address: str, name: str, box: Box, run: str | None = None) -> NDArray[Any]:
    """Do as `fetch_array`, and count it."""
    values = fetch_array(address, name, box, run)
    count_bytes(read=values.nbytes)
    return values


def fetch_array(address: str, name: str, box: Box, run: str | None = None) -> NDArray[Any]:
    """Read a box of an array's first three axes.

    Parameters
    ----------
    address, name : str
        The place, and the array in it.
    box : Box
        What to read.
    run : str, optional
        The run that made the array, where the address does not tell.

    Raises
    ------
    Damage
        If it is not all there and as it was written.
    """
    with describe_store_error(address):
        array, _ = opened_arrays(address, name, run)
        try:
            values = np.asarray(array[box.slices])
        except DAMAGED as error:
            raise ScratchCorrupted(name, box, str(error)) from error
    return values


def write_array(address: str, name: str, box: Box, values: NDArray[Any], run: str | None = None) -> None:
    """Write a box of an array's first three axes, as one task's own.

    Raises
    ------
    RuntimeError
        If the box is not made up of whole shards.
    """
    with describe_store_error(address):
        _, array = opened_arrays(address, name, run)
        check_whole_shards(array, box)
        try:
            array[box.slices] = values
        except DAMAGED:
            # At the volume's end zarr reads a shard before it writes it, which may have been torn.
            open_location(address).delete(f"{name}/{key}" for key in shard_keys(array, box.slices))
            array[box.slices] = values
    count_bytes(written=values.nbytes)


def settle(address: str, name: str, index: Sequence[slice], run: str = "") -> None:
    """Have the disk keep what was written at an index of an array's first axes, whatever happens to the machine."""
    if is_remote(address):
        return
    _, array = opened_arrays(address, name, run)
    folders = set()
    for key in shard_keys(array, index):
        path = Path(address, name, key)
        folders.add(path.parent)
        _sync(path)
    for folder in folders:
        _sync(folder)


def _sync(path: Path) -> None:
    # Windows keeps no folder open.
    with suppress(PermissionError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
