"""The arrays in scratch that the tasks of a run hand to each other: their names, layouts and writers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Regions, triple
from dseeds.engine.phases import NUMBER, PARTS, QUANTISE, Phase, sweep_phase
from dseeds.seeds import statistics_exchange
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.schedule import schedule
from dseeds.storage.location import Location, open_location
from dseeds.storage.object_store import describe_store_error
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, Codec, Layout, read_array, region_units, write_array

HISTOGRAM_CHUNK = 16
CELL_CHUNK = 8
# Ids in a block of a table, and blocks in a shard. A task reads only the blocks with its region's ids.
ID_BLOCK, TABLE_SHARD = 1024, 256
# Scratch is read many times and soon removed, so decoding speed counts for more than size.
FAST_CODEC: Codec = "lz4"
FAST_BIT_CODEC: Codec = "lz4-bits"


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


class ScratchArray(NamedTuple):
    """An array in scratch: the phase that writes it, and its layout."""

    writer: Phase
    layout: Layout


@dataclass(frozen=True)
class Scratch:
    """The arrays of a run in scratch, in a folder or a prefix in a bucket of its own; all are cut along regions."""

    address: str
    regions: Regions
    channels: int = 1

    @property
    def place(self) -> Location:
        """The location of the arrays."""
        return open_location(self.address)

    @cached_property
    def layouts(self) -> dict[str, ScratchArray]:
        """All arrays that a run may need and whose layout follows from the lattice, by name."""
        lattice, cells = self.regions.lattice, self.regions.cells
        grids = lattice.grids
        units = [region_units(self.regions, grid) for grid in grids]
        bins = Layout.cut(lattice.shape, np.uint8, units[-1], UNIT_CHUNK, FAST_BIT_CODEC)
        arrays = {bins_name(channel): ScratchArray(QUANTISE, bins) for channel in range(self.channels)}
        for level, grid in enumerate(grids[:-2]):
            shape = (*grid.shape, 32 * self.channels)
            layout = Layout.cut(shape, histogram_dtype(grid), (*units[level], shape[3]), HISTOGRAM_CHUNK, FAST_CODEC)
            arrays[histograms_name(level)] = ScratchArray(QUANTISE, layout)
        arrays |= self._round_arrays()
        parts = Layout.cut(lattice.cells, np.uint32, cells, CELL_CHUNK)
        offsets = Layout.cut(lattice.cells, np.uint64, cells, CELL_CHUNK)
        numbers = Layout.cut(lattice.shape, lattice.label_dtype, units[-1], UNIT_CHUNK)
        return {
            **arrays,
            "parts": ScratchArray(PARTS, parts),
            "offsets": ScratchArray(PARTS, offsets),
            "numbers": ScratchArray(NUMBER, numbers),
        }

    def _round_arrays(self) -> dict[str, ScratchArray]:
        """Return the arrays of label codes and statistics."""
        lattice, cells = self.regions.lattice, self.regions.cells
        rounds = schedule(lattice, self.channels)
        shell = statistics_exchange.shell_length(cells)
        arrays = {}
        for turn, round_ in enumerate(rounds):
            grid, width = lattice.grids[round_.level], round_.bins
            codes = Layout.cut(grid.shape, np.uint8, region_units(self.regions, grid), UNIT_CHUNK, FAST_CODEC)
            statistics = Layout.cut((*lattice.cells, width), np.uint32, (*cells, width), CELL_CHUNK)
            arrays[codes_name(turn)] = ScratchArray(sweep_phase(rounds, turn), codes)
            arrays[statistics_name(turn)] = ScratchArray(Phase("merge", turn) if turn else QUANTISE, statistics)
            if turn > 0:
                writer = sweep_phase(rounds, turn - 1)
                shells = Layout.cut((*self.regions.counts, shell, width), np.uint32, (1, 1, 1, shell, width), 1)
                arrays[core_name(turn)] = ScratchArray(writer, statistics)
                arrays[shells_name(turn)] = ScratchArray(writer, shells)
        return arrays

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

    >>> parse_name("codes-03"), parse_name("numbers")
    (('codes', 3), ('numbers', 0))
    """
    kind, _, index = name.partition("-")
    return kind, int(index or 0)


def source_name(channel: int) -> str:
    """Return the name of the copy of a channel of a volume that workers cannot read."""
    return f"source-{channel}"


def bins_name(channel: int) -> str:
    """Return the name of the bins of a channel, uint8, shape (z, y, x)."""
    return f"bins-{channel}"


def digits_name(turn: int) -> str:
    """Return the name of a window search pass's counts, shape (z, y, x, rows, 65536) with (z, y, x) in regions."""
    return f"digits-{turn}"


def histograms_name(level: int) -> str:
    """Return the name of the block histograms of a level but the two finest, shape (z, y, x, 32 a channel)."""
    return f"histograms-{level}"


def codes_name(turn: int) -> str:
    """Return the name of the label codes after a round, uint8, shape (z, y, x) in units."""
    return f"codes-{turn:02}"


def statistics_name(turn: int) -> str:
    """Return the name of the merged statistics before a round, uint32, shape (z, y, x, bins) in cells."""
    return f"statistics-{turn:02}"


def core_name(turn: int) -> str:
    """Return the name of the regions' contributions to their own statistics before a round."""
    return f"core-{turn:02}"


def shells_name(turn: int) -> str:
    """Return the name of the regions' contributions to their neighbours' statistics before a round.

    The shape is (z, y, x, shell, bins) with (z, y, x) in regions.
    """
    return f"shells-{turn:02}"


def table_name(level: int) -> str:
    """Return the name of the table from the ids of the level before (first: the numbers) to those of a level."""
    return f"table-{level}"
