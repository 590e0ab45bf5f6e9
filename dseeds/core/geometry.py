"""Geometry: the lattice of cells, the units of each level, regions and windows.

This is the vocabulary of the whole package; docs/algorithm.md defines the terms under "Terms".

- `Box`: a half-open box of voxels, units or cells.
- `Lattice`: the regular grid of cells; each cell seeds one supervoxel.
- `Grid`: the units of one level, blocks or voxels, that make up the cells.
- `Regions`: the volume cut into boxes of whole cells, one for each task of a run.
- `Window`: a region with its halo at one level, and the cells of all owners there.
- `Tiling`: the volume cut into boxes of voxels, for work that needs no cells.

Everything here is global and pure: the cell of a voxel, the edges of a block and the colour of a unit depend only on
the volume's shape and the step, never on how the volume is cut. Axes are (z, y, x) throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsInt

import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import cached_property

Triple = tuple[int, int, int]
AxisArrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
AXES = ("z", "y", "x")
# The most voxels in a block, so that the sums of its smoothed histogram fit 32 bits.
LARGEST_BLOCK = 1 << 24


@dataclass(frozen=True)
class Box:
    """A half-open box ``lo <= index < hi`` of units, voxels or cells, axes (z, y, x).

    >>> Box((0, 4, 4), (4, 8, 8)).grow(2, within=(10, 9, 9))
    Box(lo=(0, 2, 2), hi=(6, 9, 9))
    """

    lo: Triple
    hi: Triple

    # Regions exchange many small boxes, so these methods spell out the axes.

    @property
    def shape(self) -> Triple:
        """The extent along (z, y, x)."""
        (z, y, x), (z_end, y_end, x_end) = self.lo, self.hi
        return z_end - z, y_end - y, x_end - x

    @property
    def size(self) -> int:
        """The number of items in the box."""
        return math.prod(self.shape)

    @property
    def bounds(self) -> tuple[Triple, Triple]:
        """The box as (lo, hi), for kernels."""
        return self.lo, self.hi

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of an array, axes (z, y, x)."""
        z, y, x = (slice(a, h) for a, h in zip(self.lo, self.hi, strict=True))
        return z, y, x

    def grow(self, by: int, within: Triple) -> Box:
        """Return the box extended by `by` on every side, clipped to an array of shape `within`."""
        (z, y, x), (z_end, y_end, x_end), (nz, ny, nx) = self.lo, self.hi, within
        lo = max(0, z - by), max(0, y - by), max(0, x - by)
        return Box(lo, (min(nz, z_end + by), min(ny, y_end + by), min(nx, x_end + by)))

    def intersection(self, other: Box) -> Box:
        """Return the intersection of two boxes; meaningless if they are disjoint."""
        (z, y, x), (z_other, y_other, x_other) = self.lo, other.lo
        lo = max(z, z_other), max(y, y_other), max(x, x_other)
        (z, y, x), (z_other, y_other, x_other) = self.hi, other.hi
        return Box(lo, (min(z, z_other), min(y, y_other), min(x, x_other)))

    def overlaps(self, other: Box) -> bool:
        """Return whether two boxes have an item in common."""
        (z, y, x), (z_end, y_end, x_end) = self.lo, self.hi
        (z_other, y_other, x_other), (z_last, y_last, x_last) = other.lo, other.hi
        return (
            max(z, z_other) < min(z_end, z_last)
            and max(y, y_other) < min(y_end, y_last)
            and max(x, x_other) < min(x_end, x_last)
        )

    def bounding(self, other: Box) -> Box:
        """Return the bounding box of two boxes."""
        (z, y, x), (z_other, y_other, x_other) = self.lo, other.lo
        lo = min(z, z_other), min(y, y_other), min(x, x_other)
        (z, y, x), (z_other, y_other, x_other) = self.hi, other.hi
        return Box(lo, (max(z, z_other), max(y, y_other), max(x, x_other)))

    def relative_to(self, origin: Triple) -> Box:
        """Return the box in coordinates relative to `origin`."""
        (z, y, x), (z_end, y_end, x_end), (z_origin, y_origin, x_origin) = self.lo, self.hi, origin
        return Box(
            (z - z_origin, y - y_origin, x - x_origin),
            (z_end - z_origin, y_end - y_origin, x_end - x_origin),
        )


def per_axis(arrays: Iterable[NDArray[np.int64]]) -> AxisArrays:
    """Return arrays as a tuple (z, y, x)."""
    z, y, x = arrays
    return z, y, x


def triple(values: Iterable[SupportsInt]) -> Triple:
    """Return numbers as a tuple (z, y, x) of plain integers."""
    z, y, x = values
    return int(z), int(y), int(x)


@dataclass(frozen=True, eq=False)
class Grid:
    """The units of one level: blocks, or single voxels.

    Per axis, `edges` holds the first voxel of each unit, followed by the length of the axis, and `cells` the home cell
    of each unit. `parts` is the number of units in a cell along (z, y, x): the step for the grid of voxels.
    """

    parts: Triple
    edges: AxisArrays
    cells: AxisArrays

    @property
    def shape(self) -> Triple:
        """The number of units along (z, y, x)."""
        return triple(len(c) for c in self.cells)

    @cached_property
    def largest(self) -> int:
        """The number of voxels in the largest unit."""
        return math.prod(int(np.diff(e).max()) for e in self.edges)

    def units_of(self, box: Box) -> Box:
        """Return the box of units that make up a box of cells."""
        lo = triple(np.searchsorted(c, a) for c, a in zip(self.cells, box.lo, strict=True))
        hi = triple(np.searchsorted(c, h) for c, h in zip(self.cells, box.hi, strict=True))
        return Box(lo, hi)

    def cells_of(self, box: Box) -> Box:
        """Return the box of cells that a box of units touches."""
        lo = triple(c[a] for c, a in zip(self.cells, box.lo, strict=True))
        hi = triple(c[h - 1] + 1 for c, h in zip(self.cells, box.hi, strict=True))
        return Box(lo, hi)

    def voxels_of(self, box: Box) -> Box:
        """Return the box of voxels that a box of units covers."""
        lo = triple(e[a] for e, a in zip(self.edges, box.lo, strict=True))
        hi = triple(e[h] for e, h in zip(self.edges, box.hi, strict=True))
        return Box(lo, hi)

    def edges_of(self, box: Box) -> AxisArrays:
        """Return per axis the first voxel of each unit in a box and the end of the last, relative to the box."""
        return per_axis(e[a : h + 1] - e[a] for e, a, h in zip(self.edges, box.lo, box.hi, strict=True))

    def homes_of(self, box: Box) -> AxisArrays:
        """Return per axis the home cell of each unit in a box."""
        return per_axis(c[a:h] for c, a, h in zip(self.cells, box.lo, box.hi, strict=True))

    def parents(self, coarser: Grid, box: Box | None = None) -> AxisArrays:
        """Return per axis the unit of a coarser grid that contains each unit of a box, by default of the grid."""
        box = box or Box((0, 0, 0), self.shape)
        return per_axis(
            np.searchsorted(coarse, fine[a:h], side="right") - 1
            for coarse, fine, a, h in zip(coarser.edges, self.edges, box.lo, box.hi, strict=True)
        )


@dataclass(frozen=True)
class Lattice:
    """The global regular grid of cells, of `step` voxels; each cell seeds one supervoxel.

    A remainder of less than half a step at the end of an axis is merged into the cell before it. A step longer than its
    axis is shortened to the axis: one cell.

    >>> lattice = Lattice((129, 100, 3), (8, 16, 8))
    >>> lattice.cells
    (16, 6, 1)
    >>> [grid.parts for grid in lattice.grids]
    [(2, 2, 1), (4, 4, 1), (4, 8, 1), (8, 16, 3)]
    """

    shape: Triple
    step: Triple

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", triple(min(s, n) for s, n in zip(self.step, self.shape, strict=True)))
        if any(grid.largest > LARGEST_BLOCK for grid in self.grids[:-1]):
            raise ValueError(f"cells of {self.step} voxels (z, y, x) are too large: use a step of at most about 340.")

    @cached_property
    def cells(self) -> Triple:
        """The number of cells along (z, y, x)."""
        return triple((2 * n + s) // (2 * s) for n, s in zip(self.shape, self.step, strict=True))

    @property
    def size(self) -> int:
        """The number of cells, and so of supervoxels without a mask."""
        return math.prod(self.cells)

    @property
    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest of uint32 and uint64 that holds every label."""
        return np.dtype(np.uint32 if self.size < 2**32 else np.uint64)

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The units of all levels, from the coarsest blocks to single voxels.

        Every level halves the axes whose blocks stay at least 2 voxels long, and leaves the others.
        """
        grids: list[Grid] = []
        parts = (1, 1, 1)
        while True:
            finer = triple(2 * p if s // (2 * p) >= 2 else p for p, s in zip(parts, self.step, strict=True))
            if finer == parts:
                return (*grids, self._voxels())
            parts = finer
            grids.append(self._blocks(parts))

    def _blocks(self, parts: Triple) -> Grid:
        edges, cells = [], []
        for n, s, count, p in zip(self.shape, self.step, self.cells, parts, strict=True):
            starts = np.arange(count) * s
            lengths = np.diff(starts, append=n)
            offsets = np.arange(p) * lengths[:, None] // p
            edges.append(np.append(starts[:, None] + offsets, n))
            cells.append(np.repeat(np.arange(count), p))
        return Grid(parts, per_axis(edges), per_axis(cells))

    def _voxels(self) -> Grid:
        return Grid(
            self.step,
            per_axis(np.arange(n + 1) for n in self.shape),
            per_axis(
                np.minimum(np.arange(n) // s, count - 1)
                for n, s, count in zip(self.shape, self.step, self.cells, strict=True)
            ),
        )


@dataclass(frozen=True)
class Window:
    """A region's units with their halo, and the cells that can own them.

    `core`, the region, and `box`, the region and its halo, are in the grid's units. `cells` are the home cells of `box`
    and their 26 neighbours, which include every owner of a unit in `box`.
    """

    grid: Grid
    core: Box
    box: Box
    cells: Box

    @classmethod
    def around(cls, lattice: Lattice, grid: Grid, region: Box, halo: int) -> Window:
        """Return the window of a region (a box of cells) with a halo of so many units."""
        core = grid.units_of(region)
        box = core.grow(halo, within=grid.shape)
        return cls(grid, core, box, grid.cells_of(box).grow(1, within=lattice.cells))


@dataclass(frozen=True)
class Regions:
    """The volume cut into boxes of `cells` whole cells, one for each task; the last along an axis may have fewer."""

    lattice: Lattice
    cells: Triple

    @cached_property
    def counts(self) -> Triple:
        """The number of regions along (z, y, x)."""
        return triple(-(-n // k) for n, k in zip(self.lattice.cells, self.cells, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def index(self, number: int) -> Triple:
        """Return the index (z, y, x) of a region."""
        _, ny, nx = self.counts
        if not 0 <= number < len(self):
            raise ValueError(f"there is no region {number}: they are 0 to {len(self) - 1}")
        layer, x = divmod(number, nx)
        return layer // ny, layer % ny, x

    def number(self, index: Triple) -> int:
        """Return the number of the region at an index (z, y, x)."""
        (z, y, x), (_, ny, nx) = index, self.counts
        return (z * ny + y) * nx + x

    def box(self, number: int) -> Box:
        """Return a region's cells."""
        return self.box_at(self.index(number))

    def box_at(self, index: Triple) -> Box:
        """Return the cells of the region at an index (z, y, x)."""
        (i, j, k), (z, y, x), (nz, ny, nx) = index, self.cells, self.lattice.cells
        return Box((i * z, j * y, k * x), (min(nz, i * z + z), min(ny, j * y + y), min(nx, k * x + x)))

    def around(self, number: int, reach: int) -> Box:
        """Return the box of the regions within a distance of a region, in regions."""
        index = self.index(number)
        return Box(index, triple(i + 1 for i in index)).grow(reach, within=self.counts)

    def within(self, number: int, reach: int) -> list[int]:
        """Return the numbers of the regions within a distance of a region, with itself, ascending."""
        return self.numbers(self.around(number, reach))

    def touching(self, cells: Box) -> list[int]:
        """Return the numbers of the regions with cells in a box, ascending."""
        lo = triple(a // k for a, k in zip(cells.lo, self.cells, strict=True))
        hi = triple(-(-h // k) for h, k in zip(cells.hi, self.cells, strict=True))
        return self.numbers(Box(lo, hi))

    def numbers(self, box: Box) -> list[int]:
        """Return the numbers of the regions in a box of regions, ascending."""
        # A driver asks this many times for each task, so it is spelt out.
        _, ny, nx = self.counts
        z, y, x = map(range, box.lo, box.hi)
        return [(k * ny + j) * nx + i for k, j, i in itertools.product(z, y, x)]


def check_shape(shape: tuple[int, ...]) -> Triple:
    """Return a volume's shape; raise a ValueError unless it has three axes (z, y, x), none of them empty."""
    if len(shape) != 3:
        advice = (
            "add an axis of length 1 for a single slice"
            if len(shape) < 3
            else "choose one volume of it, such as image[0], or pass channel_axis"
        )
        raise ValueError(f"supervoxels need a volume with axes (z, y, x), but its shape is {tuple(shape)}: {advice}.")
    if 0 in shape:
        raise ValueError(f"the volume is empty: its shape (z, y, x) is {tuple(shape)}.")
    return triple(shape)


def check_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return a voxel spacing as floats; raise a ValueError unless it is three finite positive numbers."""
    try:
        z, y, x = (float(v) for v in spacing)
    except (TypeError, ValueError):
        z = y = x = math.nan
    # From the size of an atom to that of a mountain.
    if not all(1e-9 < v < 1e9 for v in (z, y, x)):
        raise ValueError(f"spacing must be three positive numbers (z, y, x) in millimetres, got {spacing!r}.")
    return z, y, x


@dataclass(frozen=True)
class Tiling:
    """A volume cut into regions: boxes of voxels, of which the last along an axis may be smaller.

    >>> tiling = Tiling((10, 10, 10), (8, 10, 5))
    >>> len(tiling), tiling.box(3)
    (4, Box(lo=(8, 0, 5), hi=(10, 10, 10)))
    """

    shape: Triple
    region: Triple

    @property
    def counts(self) -> Triple:
        """The number of regions along (z, y, x)."""
        return triple(-(-n // r) for n, r in zip(self.shape, self.region, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, number: int) -> Box:
        """Return a region's voxels."""
        lo = [int(i) * r for i, r in zip(np.unravel_index(number, self.counts), self.region, strict=True)]
        return Box(triple(lo), triple(min(a + r, n) for a, r, n in zip(lo, self.region, self.shape, strict=True)))

    def above(self, number: int) -> Box:
        """Return a region's voxels and one more towards higher z, y and x, as far as the volume extends."""
        box = self.box(number)
        return Box(box.lo, box.grow(1, within=self.shape).hi)
