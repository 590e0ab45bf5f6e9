"""A job: what every task of a run is told, and how tasks read what the phases before theirs left."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Box, Grid, Lattice, Regions, Triple, per_axis, triple
from dseeds.engine.journal import Journal
from dseeds.engine.scratch import ID_BLOCK, ImportedImage, Scratch, codes_name
from dseeds.io import Image, Mask, ResampledMask
from dseeds.seeds.schedule import Round, schedule
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.zarr_arrays import count_bytes

# For the regions around one that rested in the round before: the last round in which each wrote its codes.
Rested = Mapping[int, int]


@dataclass(frozen=True)
class Job:
    """Everything that a task needs to know.

    Attributes
    ----------
    source : Image or ImportedImage
        The volume; readable by workers.
    shape, step : tuple of int
        The lattice, (z, y, x).
    region : tuple of int
        Cells per region, (z, y, x).
    scratch : str
        The folder or bucket's prefix for the arrays that tasks hand to each other.
    journal : Journal
        Where tasks note that they are done.
    labels : tuple of Labels
        Where the labels go, and after them those of each coarser level.
    windows : tuple of (float, float)
        The intensity window of each channel; equal numbers for a constant one.
    compactness : float
        See `supervoxels`.
    weights : tuple of int
        Of the channels.
    mask : Mask, Stretched or None
        Which voxels are to be cut.
    tables : tuple of ndarray of uint8, shape (4096,), or None
        For each channel, which of 64 bins each level of intensity is; None where bins are equally wide.
    thresholds : tuple of int or None
        For each channel, the level that the background goes up to; None where there is none.
    outside : bytes or None
        Which regions have no voxel inside the mask, see `pack_flags`; None where that is not known, or all have.
    masked : bool
        Whether any voxel lies outside the mask.
    min_size : int
        Voxels that a supervoxel has at least, if it can be joined to another.
    """

    source: Image | ImportedImage
    shape: Triple
    step: Triple
    region: Triple
    scratch: str
    journal: Journal
    labels: tuple[LabelGroup, ...]
    windows: tuple[tuple[float, float], ...] = ()
    compactness: float = 0.0
    weights: tuple[int, ...] = (1,)
    mask: Mask | ResampledMask | None = None
    tables: tuple[NDArray[np.uint8], ...] | None = field(default=None, compare=False)
    thresholds: tuple[int, ...] | None = None
    outside: bytes | None = None
    masked: bool = False
    min_size: int = 0

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached, which grows with the volume and would travel with every task.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def channels(self) -> int:
        """How many channels the volume has."""
        return len(self.weights)

    @property
    def has_joins(self) -> bool:
        """Whether supervoxels are joined to others at the end: small ones to their neighbours, all to coarser ones."""
        return self.min_size > 1 or len(self.labels) > 1

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice."""
        return Lattice(self.shape, self.step)

    @cached_property
    def regions(self) -> Regions:
        """The regions."""
        return Regions(self.lattice, self.region)

    @cached_property
    def store(self) -> Scratch:
        """The arrays in scratch."""
        return Scratch(self.scratch, self.regions, self.channels)

    @cached_property
    def schedule(self) -> tuple[Round, ...]:
        """The rounds; none for a constant image, which leaves nothing to climb."""
        if all(lo >= hi for lo, hi in self.windows):
            return ()
        return schedule(self.lattice, self.channels)

    def grid_of(self, name: str) -> Grid:
        """Give the grid in whose units an array of units, blocks or voxels, is stored."""
        kind, _, number = name.partition("-")
        if kind == "histograms":
            return self.lattice.grids[int(number)]
        return self.lattice.grids[self.schedule[int(number)].level if kind == "codes" else -1]

    def voxel_box(self, number: int) -> Box:
        """Give a region's voxels."""
        return self.lattice.grids[-1].units_of(self.regions.box(number))

    @cached_property
    def outside_regions(self) -> NDArray[np.bool_]:
        """Which regions have no voxel inside the mask, as far as is known: nothing is stored of them."""
        count = len(self.regions)
        return np.zeros(count, np.bool_) if self.outside is None else unpack_flags(self.outside, count)

    def is_outside(self, number: int) -> bool:
        """Tell whether a region has no voxel inside the mask."""
        return self.outside is not None and bool(self.outside_regions[number])

    # What the phases before left

    def read_image(self, box: Box) -> tuple[NDArray[Any], ...]:
        """Read the volume in a box of voxels, channel by channel."""
        values = self.source.read(box.slices)
        # Scratch counts for itself.
        if not isinstance(self.source, ImportedImage):
            count_bytes(read=sum(channel.nbytes for channel in values))
        return values

    def read_mask(self, box: Box) -> NDArray[np.bool_] | None:
        """Read which voxels of a box the mask leaves; None where there is no mask."""
        if self.mask is None:
            return None
        inside = self.mask.read(box.slices)
        count_bytes(read=inside.nbytes)
        return inside

    def read_units(self, name: str, box: Box, *, fill: int = 0, rested: Rested | None = None) -> NDArray[Any]:
        """Read a box of units of an array of blocks or voxels; `fill` where regions lie outside the mask.

        Label codes of regions that rested since are read where they left them.
        """
        grid = self.grid_of(name)
        return self._gathered(name, box, grid.cells_of(box), grid.units_of, fill, rested or {})

    def read_cells(self, name: str, box: Box) -> NDArray[Any]:
        """Read a box of an array of cells; zeros where regions lie outside the mask."""
        return self._gathered(name, box, box, lambda cells: cells, 0, {})

    def _gathered(
        self, name: str, box: Box, cells: Box, units_of: Callable[[Box], Box], fill: int, rested: Rested
    ) -> NDArray[Any]:
        """Read a box that touches some cells, region by region where these are not all to be read from one array."""
        numbers = self.regions.touching(cells)
        if not rested and not any(map(self.is_outside, numbers)):
            return self.store.read(name, box)
        out = self._filled(name, box, fill)
        for number in itertools.filterfalse(self.is_outside, numbers):
            piece = box.intersection(units_of(self.regions.box(number)))
            there = codes_name(rested[number]) if number in rested else name
            out[piece.relative_to(box.lo).slices] = self.store.read(there, piece)
        return out

    def read_pieces(self, name: str, box: Box, rested: Rested) -> NDArray[Any]:
        """Read a box of an array that has one piece per region; zeros where regions rested, or lie outside the mask."""
        numbers = self.regions.numbers(box)
        silent = {number for number in numbers if number in rested or self.is_outside(number)}
        if not silent:
            return self.store.read(name, box)
        out = self._filled(name, box, 0)
        for number in numbers:
            if number not in silent:
                one = self.regions.around(number, 0)
                out[one.relative_to(box.lo).slices] = self.store.read(name, one)
        return out

    def look_up(self, name: str, ids: NDArray[Any]) -> NDArray[Any]:
        """Look ids up in a table that has an entry for each; only what is asked for is read.

        Returns
        -------
        ndarray
            Of the shape and dtype of `ids`.
        """
        wanted = np.zeros(int(ids.max()) // ID_BLOCK + 1, np.bool_)
        for plane in ids:
            wanted[plane.astype(np.int64) // ID_BLOCK] = True
        numbers = [int(number) for number in np.flatnonzero(wanted)]
        place = np.zeros(len(wanted), np.int64)
        place[numbers] = np.arange(len(numbers))
        table = np.concatenate([self.store.read(name, Box((n, 0, 0), (n + 1, 1, 1))).reshape(-1) for n in numbers])
        out = np.empty(ids.shape, ids.dtype)
        for plane, wanted_ids in zip(out, ids, strict=True):
            where = wanted_ids.astype(np.int64)
            plane[:] = table[place[where // ID_BLOCK] * ID_BLOCK + where % ID_BLOCK]
        return out

    def _filled(self, name: str, box: Box, fill: int) -> NDArray[Any]:
        # Labels on their way to NIfTI are cut in their own way, but are of the same kind as numbers.
        layout = self.store.layout("numbers" if name == "labels" else name)
        return np.full((*box.shape, *layout.shape[3:]), fill, layout.dtype)


def pack_flags(flags: NDArray[np.bool_]) -> bytes:
    """Write flags in few bytes, for they travel with every task.

    >>> unpack_flags(pack_flags(np.array([True, False, True])), 3)
    array([ True, False,  True])
    """
    return zlib.compress(np.packbits(flags).tobytes())


def unpack_flags(packed: bytes, count: int) -> NDArray[np.bool_]:
    """Read so many flags that `pack_flags` wrote."""
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count).astype(np.bool_)


def parents_in(grid: Grid, coarser: Grid, box: Box) -> AxisArrays:
    """Return, per axis, the unit of a coarser grid that each unit of a box lies in."""
    return per_axis(p[a:h] for p, a, h in zip(grid.parents(coarser), box.lo, box.hi, strict=True))


def box_of_parents(parents: AxisArrays) -> Box:
    """Return the bounding box of the units' parents."""
    return Box(triple([p[0] for p in parents]), triple([p[-1] + 1 for p in parents]))
