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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
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

from dseeds import merge
from dseeds.io.bucket import worded
from dseeds.io.place import Place, is_remote, open_place
from dseeds.lattice import Box, Grid, Regions, Triple, triple
from dseeds.phases import NUMBER, PARTS, QUANTISE, Phase, sweep_phase
from dseeds.rounds import histogram_dtype, schedule

# Chunks per axis, in voxels, in blocks with their histograms and in cells: what a halo read wastes against what every
# chunk costs.
UNIT_CHUNK = 64
HISTOGRAM_CHUNK = 16
CELL_CHUNK = 8
# Ids whose entries in a table are read at once, and such blocks in a shard: the ids of a region come in many runs.
ID_BLOCK, TABLE_SHARD = 1024, 256
# Scratch is read many times and soon gone: what is quick to decode is better than what is small.
QUICK = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")
QUICK_BITS = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")
WIDE = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
# What codecs raise on bytes that are not theirs. Errors of the system are not the data's fault.
DAMAGED = (ValueError, RuntimeError, EOFError, LookupError, TypeError)


class Damage(Exception):
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
class Traffic:
    """Bytes that a task has read and written, as they are in memory."""

    read: int = 0
    written: int = 0


traffic: ContextVar[Traffic | None] = ContextVar("traffic", default=None)


def tally(*, read: int = 0, written: int = 0) -> None:
    """Add to what the task at work has read and written."""
    current = traffic.get()
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
    where = open_place(address).zarr(name)
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


def read(address: str, name: str, box: Box, run: str | None = None) -> NDArray[Any]:
    """Do as `fetch`, and count it."""
    values = fetch(address, name, box, run)
    tally(read=values.nbytes)
    return values


def fetch(address: str, name: str, box: Box, run: str | None = None) -> NDArray[Any]:
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
    with worded(address):
        array, _ = opened_arrays(address, name, run)
        try:
            values = np.asarray(array[box.slices])
        except DAMAGED as error:
            raise Damage(name, box, str(error)) from error
    return values


def write(address: str, name: str, box: Box, values: NDArray[Any], run: str | None = None) -> None:
    """Write a box of an array's first three axes, as one task's own.

    Raises
    ------
    RuntimeError
        If the box is not made up of whole shards.
    """
    with worded(address):
        _, array = opened_arrays(address, name, run)
        check_whole_shards(array, box)
        try:
            array[box.slices] = values
        except DAMAGED:
            # At the volume's end zarr reads a shard before it writes it, which may have been torn.
            open_place(address).delete(f"{name}/{key}" for key in shard_keys(array, box.slices))
            array[box.slices] = values
    tally(written=values.nbytes)


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


@dataclass(frozen=True)
class ImportedImage:
    """A volume that was copied into scratch, channel by channel.

    Attributes
    ----------
    address : str
        The scratch.
    types : tuple of str
        The names of the channels' dtypes.
    """

    address: str
    types: tuple[str, ...]

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Types of the voxels, channel by channel."""
        return tuple(map(np.dtype, self.types))

    def read(self, box: tuple[slice, slice, slice]) -> tuple[NDArray[Any], ...]:
        """Read the voxels in a box (z, y, x), channel by channel."""
        return tuple(read(self.address, source(c), box_of(box)) for c in range(len(self.types)))


@dataclass(frozen=True)
class ImportedMask:
    """A mask that was copied into scratch, as it is: at its own resolution."""

    address: str

    def read(self, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """Read a box (z, y, x) of the mask's own voxels."""
        return fetch(self.address, "mask", box_of(box)).astype(np.bool_)


def box_of(slices: tuple[slice, slice, slice]) -> Box:
    """Turn an index along (z, y, x) into a box."""
    return Box(triple(side.start for side in slices), triple(side.stop for side in slices))


@dataclass(frozen=True)
class Scratch:
    """The arrays that tasks hand to each other.

    Attributes
    ----------
    address : str
        A folder or a prefix in a bucket, of its own.
    regions : Regions
        The regions, which every array is cut by.
    channels : int
        Channels of the volume.
    """

    address: str
    regions: Regions
    channels: int = 1

    @property
    def place(self) -> Place:
        """Where they lie."""
        return open_place(self.address)

    @cached_property
    def layouts(self) -> dict[str, tuple[Phase, Layout]]:
        """All arrays that a run may need: what phase writes them, and how they are cut."""
        lattice, rounds = self.regions.lattice, schedule(self.regions.lattice, self.channels)
        cells, counts = self.regions.cells, self.regions.counts
        grids = lattice.grids
        units = [region_units(self.regions, grid) for grid in grids]
        of_voxels = Layout.cut(lattice.shape, np.uint8, units[-1], UNIT_CHUNK, QUICK_BITS)
        found = {bins(channel): (QUANTISE, of_voxels) for channel in range(self.channels)}
        for level, grid in enumerate(grids[:-2]):
            shape = (*grid.shape, 32 * self.channels)
            layout = Layout.cut(shape, histogram_dtype(grid), (*units[level], shape[3]), HISTOGRAM_CHUNK, QUICK)
            found[histograms(level)] = QUANTISE, layout
        shell = merge.shell_length(cells)
        for turn, round_ in enumerate(rounds):
            sweep, level, width = sweep_phase(rounds, turn), round_.level, round_.bins
            found[codes(turn)] = sweep, Layout.cut(grids[level].shape, np.uint8, units[level], UNIT_CHUNK, QUICK)
            of_cells = Layout.cut((*lattice.cells, width), np.uint32, (*cells, width), CELL_CHUNK)
            found[statistics(turn)] = Phase("merge", turn) if turn else QUANTISE, of_cells
            if turn > 0:
                before = sweep_phase(rounds, turn - 1)
                found[core(turn)] = before, of_cells
                found[shells(turn)] = before, Layout.cut((*counts, shell, width), np.uint32, (1, 1, 1, shell, width), 1)
        found["parts"] = PARTS, Layout.cut(lattice.cells, np.uint32, cells, CELL_CHUNK)
        found["offsets"] = PARTS, Layout.cut(lattice.cells, np.uint64, cells, CELL_CHUNK)
        found["numbers"] = NUMBER, Layout.cut(lattice.shape, lattice.label_dtype, units[-1], UNIT_CHUNK)
        return found

    def layout(self, name: str) -> Layout:
        """Tell how an array is cut."""
        return self.layouts[name][1]

    def create(self, layouts: Mapping[str, Layout]) -> None:
        """Create arrays, empty."""
        with worded(self.address):
            for name, layout in layouts.items():
                layout.create(self.place.zarr(name))

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an array's first three axes; `Damage` if it is not all there and as it was written."""
        return read(self.address, name, box)

    def write(self, name: str, box: Box, values: NDArray[Any]) -> None:
        """Write a box of an array's first three axes, of whole shards, as one task's own."""
        write(self.address, name, box, values)

    def remove(self, name: str) -> None:
        """Remove an array's values."""
        # What describes it stays: a task that is done again may have to write it.
        self.place.clear(f"{name}/c")


def table_layout(ids: int) -> Layout:
    """Cut a table with an entry for each id from 0 to `ids`, shape (blocks, 1, 1, `ID_BLOCK`)."""
    blocks = ids // ID_BLOCK + 1
    shard = min(blocks, TABLE_SHARD)
    return Layout((blocks, 1, 1, ID_BLOCK), np.dtype(np.uint64), (shard, 1, 1, ID_BLOCK), (1, 1, 1, ID_BLOCK), WIDE)


def source(channel: int) -> str:
    """Name the copy of a channel of a volume that workers cannot read."""
    return f"source-{channel}"


def bins(channel: int) -> str:
    """Name the bins of a channel, uint8, shape (z, y, x)."""
    return f"bins-{channel}"


def digits(turn: int) -> str:
    """Name the counts of a pass of the search for the intensity windows, shape (z, y, x, rows, 65536) in regions."""
    return f"digits-{turn}"


def histograms(level: int) -> str:
    """Name the block histograms of a level that is not one of the two finest, shape (z, y, x, 32 a channel)."""
    return f"histograms-{level}"


def codes(turn: int) -> str:
    """Name the label codes that a round leaves, uint8, shape (z, y, x) in units."""
    return f"codes-{turn:02}"


def statistics(turn: int) -> str:
    """Name the merged statistics that a round begins with, uint32, shape (z, y, x, bins) in cells."""
    return f"statistics-{turn:02}"


def core(turn: int) -> str:
    """Name the regions' own part of the statistics that a round will begin with."""
    return f"core-{turn:02}"


def shells(turn: int) -> str:
    """Name the regions' part in their neighbours' statistics, shape (z, y, x, shell, bins) in regions."""
    return f"shells-{turn:02}"
