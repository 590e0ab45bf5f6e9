"""The arrays in scratch that the tasks of a run hand to each other: their names, layouts and writers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.core.geometry import Box, Regions, triple
from dseeds.storage.location import Location, open_location
from dseeds.storage.object_store import describe_store_error
from dseeds.storage.zarr_arrays import ZSTD_CODEC, Layout, read_array, write_array

CELL_CHUNK = 8
# Ids in a block of a table, and blocks in a shard. A task reads only the blocks with its region's ids.
ID_BLOCK, TABLE_SHARD = 1024, 256
# The voxels in each bin, shape (z, y, x, channels, 64) with (z, y, x) in regions; see `dseeds.seeds.contrast`.
BIN_COUNTS = "bincounts"


@dataclass(frozen=True)
class ImportedImage:
    """A volume that was copied into scratch, channel by channel."""

    address: str
    channels: int

    def read(self, box: tuple[slice, slice, slice]) -> tuple[NDArray[Any], ...]:
        """Read the voxels in a box (z, y, x), channel by channel."""
        place = open_location(self.address)
        return tuple(read_array(place, source_name(c), box_from_slices(box)) for c in range(self.channels))


@dataclass(frozen=True)
class ImportedMask:
    """A mask that was copied into scratch at its own resolution."""

    address: str

    def read(self, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """Read a box (z, y, x) of the mask's own voxels."""
        return read_array(open_location(self.address), "mask", box_from_slices(box), counted=False).astype(np.bool_)


def box_from_slices(slices: tuple[slice, slice, slice]) -> Box:
    """Return the box of an index along (z, y, x)."""
    return Box(triple(side.start for side in slices), triple(side.stop for side in slices))


@dataclass(frozen=True)
class Scratch:
    """The arrays of a run in scratch, in a folder or a prefix in a bucket of its own; all are cut along regions."""

    address: str
    regions: Regions

    @property
    def place(self) -> Location:
        """The location of the arrays."""
        return open_location(self.address)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """The arrays that a mask makes necessary, by name: the parts of supervoxels in each cell, and before it."""
        cells, region = self.regions.lattice.cells, self.regions.cells
        return {
            "parts": Layout.cut(cells, np.uint32, region, CELL_CHUNK),
            "offsets": Layout.cut(cells, np.uint64, region, CELL_CHUNK),
        }

    def create(self, layouts: Mapping[str, Layout]) -> None:
        """Create arrays, empty."""
        with describe_store_error(self.address):
            for name, layout in layouts.items():
                layout.create(self.place.zarr(name))

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an array's first three axes; `ScratchCorrupted` if it is incomplete or damaged."""
        return read_array(self.place, name, box)

    def write(self, name: str, box: Box, values: NDArray[Any]) -> None:
        """Write a box of an array's first three axes: whole shards, which no other task writes."""
        write_array(self.place, name, box, values)

    def remove(self, name: str) -> None:
        """Remove an array's values."""
        # Its metadata stays: a task that is repeated may have to write it.
        self.place.clear(f"{name}/c")


def table_layout(ids: int) -> Layout:
    """Return the layout of a table with an entry for each id from 0 to `ids`, shape (blocks, 1, 1, `ID_BLOCK`)."""
    blocks = ids // ID_BLOCK + 1
    shard = min(blocks, TABLE_SHARD)
    return Layout(
        (blocks, 1, 1, ID_BLOCK), np.dtype(np.uint64), (shard, 1, 1, ID_BLOCK), (1, 1, 1, ID_BLOCK), ZSTD_CODEC
    )


def parse_name(name: str) -> tuple[str, int]:
    """Split the name of an array into its kind and its channel, level or turn, which is 0 if it has none.

    >>> parse_name("digits-1"), parse_name("parts")
    (('digits', 1), ('parts', 0))
    """
    kind, _, index = name.partition("-")
    return kind, int(index or 0)


def source_name(channel: int) -> str:
    """Return the name of the copy of a channel of a volume that workers cannot read."""
    return f"source-{channel}"


def digits_name(turn: int) -> str:
    """Return the name of a window search pass's counts, shape (z, y, x, rows, 65536) with (z, y, x) in regions."""
    return f"digits-{turn}"


def table_name(level: int) -> str:
    """Return the name of the table from the ids of the level before (first: the numbers) to those of a level."""
    return f"table-{level}"
