"""Memory layout of a window of units, for all steps.

A window is padded by one unit on each side, and every row along x stores its even units before its odd ones: shape
(z + 2, y + 2, 2, half a row). Units of one colour are every other unit of a row, so they are contiguous here, and so
are their neighbours in any direction. Plain loads therefore fill a vector register with `LANES` units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Triple, Window
from dseeds.core.jit import jit

# Bytes in a vector register of most machines.
LANES = 32
# Ascending offsets (z, y, x) with one or two non-zero entries: the faces come as -z, -y, -x, +x, +y, +z,
# which is the order in which candidates are tried.
NEIGHBOURS = tuple(
    (z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if 1 <= abs(z) + abs(y) + abs(x) <= 2
)
FACES = tuple(k for k, offset in enumerate(NEIGHBOURS) if sum(map(abs, offset)) == 1)
_OFFSETS = np.array(NEIGHBOURS)


class WindowGeometry(NamedTuple):
    """The position of a window, as kernels take it; all triples are (z, y, x).

    - `core_lo`, `core_hi`: the box that has to be exact at the end of a round, in units of the window without its
      padding.
    - `origin`: the global coordinates of the window's first unit.
    - `homes`: per axis the global cell of each unit of the window.
    - `first_cell`, `cells`: the box of cells that have statistics, as its first cell and its extent.
    """

    core_lo: Triple
    core_hi: Triple
    origin: Triple
    homes: AxisArrays
    first_cell: Triple
    cells: Triple


def window_geometry(window: Window) -> WindowGeometry:
    """Describe a window to the kernels."""
    core = window.core.relative_to(window.box.lo)
    homes = window.grid.homes_of(window.box)
    return WindowGeometry(core.lo, core.hi, window.box.lo, homes, window.cells.lo, window.cells.shape)


class Turn(NamedTuple):
    """The part of a round that a kernel does in one call: one colour in a range of planes.

    `colour` is from 0 to 3, see `row_of_colour`; `margin` is the distance from the core up to which units still affect
    it. Marks reach one plane beyond `begin` and `end`.
    """

    colour: int
    margin: int
    begin: int
    end: int


class DistanceCosts(NamedTuple):
    """The cost of a unit's distance from the centre of its owner's cell; empty if distance is free.

    Each axis has an array, int32 (units, 4), by the unit and by the owner's place modulo 4. The three costs add up.
    """

    z: NDArray[np.int32]
    y: NDArray[np.int32]
    x: NDArray[np.int32]


@jit
def add_row_costs(costs: DistanceCosts, z: int, y: int, out: NDArray[np.int32]) -> None:
    """Add up the costs along z and y in a row, by the owner's places modulo 4: 4 (z & 3) + (y & 3)."""
    if len(costs.z) > 0:
        for owner in range(16):
            out[owner] = costs.z[z, owner >> 2] + costs.y[y, owner & 3]


def new_window(shape: Sequence[int], fill: int, channels: int | None = None) -> NDArray[np.uint8]:
    """Allocate a window of bytes for units of a shape (z, y, x), or one window for each channel.

    The shape is ([channels,] z + 2, y + 2, 2, half). The memory goes on behind the last unit, so that a vector may
    begin at any unit.
    """
    nz, ny, nx = shape
    layout = (*(() if channels is None else (channels,)), nz + 2, ny + 2, 2, (nx + 3) // 2)
    size = math.prod(layout)
    return np.full(size + LANES, fill, np.uint8)[:size].reshape(layout)


# A loop over both halves of a row compiles to shuffles, which is three times as fast as a loop for each half.
@jit
def _split_row(row: NDArray[np.uint8], first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
    """Write the units of a row by turns to two halves."""
    pairs = len(row) >> 1
    for i in range(pairs):
        first[i] = row[2 * i]
        second[i] = row[2 * i + 1]
    if len(row) & 1:
        first[pairs] = row[2 * pairs]


@jit
def _join_row(first: NDArray[np.uint8], second: NDArray[np.uint8], row: NDArray[np.uint8]) -> None:
    """Read the units of a row by turns from two halves."""
    pairs = len(row) >> 1
    for i in range(pairs):
        row[2 * i] = first[i]
        row[2 * i + 1] = second[i]
    if len(row) & 1:
        row[2 * pairs] = first[pairs]


@jit
def pack_box(values: NDArray[np.uint8], lo: Triple, window: NDArray[np.uint8]) -> None:
    """Write a box of units, whose unpadded coordinates begin at `lo`, from `values` into a window."""
    # The padding is unit 0.
    a, b = lo[2] + 1, lo[2] + 2
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            halves = window[lo[0] + z + 1, lo[1] + y + 1]
            _split_row(values[z, y], halves[a & 1, a >> 1 :], halves[b & 1, b >> 1 :])


@jit
def unpack_box(window: NDArray[np.uint8], lo: Triple, values: NDArray[np.uint8]) -> None:
    """Read a box of units, whose unpadded coordinates begin at `lo`, from a window into `values`."""
    a, b = lo[2] + 1, lo[2] + 2
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            halves = window[lo[0] + z + 1, lo[1] + y + 1]
            _join_row(halves[a & 1, a >> 1 :], halves[b & 1, b >> 1 :], values[z, y])


@jit
def neighbour_distances(window: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the distances in memory to the 18 neighbours, for even and odd units of a padded row: uint64 (2, 18).

    Negative distances wrap around, as unsigned sums do.
    """
    half = window.shape[3]
    row, plane = 2 * half, 2 * half * window.shape[1]
    distances = np.empty((2, 18), np.uint64)
    for parity in range(2):
        for k in range(18):
            z, y, x = _OFFSETS[k]
            along = 0
            if x != 0:
                # Into the other half of the row, where neighbours two units apart are adjacent.
                along = half + (x - 1) // 2 if parity == 0 else (x + 1) // 2 - half
            distances[parity, k] = np.uint64(np.int64(z * plane + y * row + along))
    return distances


@jit
def in_core(z: int, y: int, x: int, geometry: WindowGeometry) -> bool:
    """Return whether a unit, in unpadded coordinates of the window, lies in the core."""
    lo, hi = geometry.core_lo, geometry.core_hi
    return lo[0] <= z < hi[0] and lo[1] <= y < hi[1] and lo[2] <= x < hi[2]


@jit
def rows_of_turn(geometry: WindowGeometry, turn: Turn) -> tuple[int, int]:
    """Return the first row along y that a turn visits in each of its planes, and the end."""
    ny = len(geometry.homes[1])
    return max(0, geometry.core_lo[1] - turn.margin), min(ny, geometry.core_hi[1] + turn.margin)


@jit
def row_of_colour(z: int, y: int, geometry: WindowGeometry, turn: Turn) -> tuple[int, int, int]:
    """Return where the units of a turn's colour lie in a row, given in the window without its padding.

    Units have one of four colours, the parities of x + y and of y + z in global coordinates; a row holds two. Returns
    the half of the padded row that has the colour, and the range of its units in that half, empty if the row has none.
    """
    global_z, global_y = z + geometry.origin[0], y + geometry.origin[1]
    if (global_y + global_z + (turn.colour >> 1)) & 1:
        return 0, 0, 0
    parity = (turn.colour + global_y + geometry.origin[2] + 1) & 1
    x0 = max(0, geometry.core_lo[2] - turn.margin)
    x1 = min(len(geometry.homes[2]), geometry.core_hi[2] + turn.margin)
    return parity, (x0 + 2 - parity) >> 1, ((x1 - parity) >> 1) + 1
