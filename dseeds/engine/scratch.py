"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from dseeds.core.geometry import Box, Regions, triple
from dseeds.engine.phases import NUMBER, PARTS, QUANTISE, Phase, sweep_phase
from dseeds.seeds import statistics_exchange
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.schedule import schedule
from dseeds.storage.location import Location, open_location
from dseeds.storage.object_store import describe_store_error
from dseeds.storage.zarr_arrays import UNIT_CHUNK, WIDE, Layout, fetch_array, read_array, region_units, write_array

HISTOGRAM_CHUNK = 16
CELL_CHUNK = 8
# Ids whose entries in a table are read at once, and such blocks in a shard: the ids of a region come in many runs.
ID_BLOCK, TABLE_SHARD = 1024, 256
# Scratch is read many times and soon gone: what is quick to decode is better than what is small.
FAST_CODEC = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")
FAST_BIT_CODEC = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")


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
        return tuple(read_array(self.address, source_name(c), box_from_slices(box)) for c in range(len(self.types)))


@dataclass(frozen=True)
class ImportedMask:
    """A mask that was copied into scratch, as it is: at its own resolution."""

    address: str

    def read(self, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """Read a box (z, y, x) of the mask's own voxels."""
        return fetch_array(self.address, "mask", box_from_slices(box)).astype(np.bool_)


def box_from_slices(slices: tuple[slice, slice, slice]) -> Box:
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
    def place(self) -> Location:
        """Where they lie."""
        return open_location(self.address)

    @cached_property
    def layouts(self) -> dict[str, tuple[Phase, Layout]]:
        """All arrays that a run may need: what phase writes them, and how they are cut."""
        lattice, rounds = self.regions.lattice, schedule(self.regions.lattice, self.channels)
        cells, counts = self.regions.cells, self.regions.counts
        grids = lattice.grids
        units = [region_units(self.regions, grid) for grid in grids]
        of_voxels = Layout.cut(lattice.shape, np.uint8, units[-1], UNIT_CHUNK, FAST_BIT_CODEC)
        found = {bins_name(channel): (QUANTISE, of_voxels) for channel in range(self.channels)}
        for level, grid in enumerate(grids[:-2]):
            shape = (*grid.shape, 32 * self.channels)
            layout = Layout.cut(shape, histogram_dtype(grid), (*units[level], shape[3]), HISTOGRAM_CHUNK, FAST_CODEC)
            found[histograms_name(level)] = QUANTISE, layout
        shell = statistics_exchange.shell_length(cells)
        for turn, round_ in enumerate(rounds):
            sweep, level, width = sweep_phase(rounds, turn), round_.level, round_.bins
            found[codes_name(turn)] = (
                sweep,
                Layout.cut(grids[level].shape, np.uint8, units[level], UNIT_CHUNK, FAST_CODEC),
            )
            of_cells = Layout.cut((*lattice.cells, width), np.uint32, (*cells, width), CELL_CHUNK)
            found[statistics_name(turn)] = Phase("merge", turn) if turn else QUANTISE, of_cells
            if turn > 0:
                before = sweep_phase(rounds, turn - 1)
                found[core_name(turn)] = before, of_cells
                found[shells_name(turn)] = (
                    before,
                    Layout.cut((*counts, shell, width), np.uint32, (1, 1, 1, shell, width), 1),
                )
        found["parts"] = PARTS, Layout.cut(lattice.cells, np.uint32, cells, CELL_CHUNK)
        found["offsets"] = PARTS, Layout.cut(lattice.cells, np.uint64, cells, CELL_CHUNK)
        found["numbers"] = NUMBER, Layout.cut(lattice.shape, lattice.label_dtype, units[-1], UNIT_CHUNK)
        return found

    def layout(self, name: str) -> Layout:
        """Tell how an array is cut."""
        return self.layouts[name][1]

    def create(self, layouts: Mapping[str, Layout]) -> None:
        """Create arrays, empty."""
        with describe_store_error(self.address):
            for name, layout in layouts.items():
                layout.create(self.place.zarr(name))

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an array's first three axes; `Damage` if it is not all there and as it was written."""
        return read_array(self.address, name, box)

    def write(self, name: str, box: Box, values: NDArray[Any]) -> None:
        """Write a box of an array's first three axes, of whole shards, as one task's own."""
        write_array(self.address, name, box, values)

    def remove(self, name: str) -> None:
        """Remove an array's values."""
        # What describes it stays: a task that is done again may have to write it.
        self.place.clear(f"{name}/c")


def table_layout(ids: int) -> Layout:
    """Cut a table with an entry for each id from 0 to `ids`, shape (blocks, 1, 1, `ID_BLOCK`)."""
    blocks = ids // ID_BLOCK + 1
    shard = min(blocks, TABLE_SHARD)
    return Layout((blocks, 1, 1, ID_BLOCK), np.dtype(np.uint64), (shard, 1, 1, ID_BLOCK), (1, 1, 1, ID_BLOCK), WIDE)


def source_name(channel: int) -> str:
    """Name the copy of a channel of a volume that workers cannot read."""
    return f"source-{channel}"


def bins_name(channel: int) -> str:
    """Name the bins of a channel, uint8, shape (z, y, x)."""
    return f"bins-{channel}"


def digits_name(turn: int) -> str:
    """Name the counts of a pass of the search for the intensity windows, shape (z, y, x, rows, 65536) in regions."""
    return f"digits-{turn}"


def histograms_name(level: int) -> str:
    """Name the block histograms of a level that is not one of the two finest, shape (z, y, x, 32 a channel)."""
    return f"histograms-{level}"


def codes_name(turn: int) -> str:
    """Name the label codes that a round leaves, uint8, shape (z, y, x) in units."""
    return f"codes-{turn:02}"


def statistics_name(turn: int) -> str:
    """Name the merged statistics that a round begins with, uint32, shape (z, y, x, bins) in cells."""
    return f"statistics-{turn:02}"


def core_name(turn: int) -> str:
    """Name the regions' own part of the statistics that a round will begin with."""
    return f"core-{turn:02}"


def shells_name(turn: int) -> str:
    """Name the regions' part in their neighbours' statistics, shape (z, y, x, shell, bins) in regions."""
    return f"shells-{turn:02}"
