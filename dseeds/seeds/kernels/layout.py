"""How a window of units lies in memory.

A window is padded by one unit on each side, and every row along x keeps its even units before its odd ones: shape
(z + 2, y + 2, 2, half a row). Units of one colour are every other one of a row, so here they lie side by side, and
so do their neighbours in any direction. A whole vector of units, `LANES` of them, is looked at with plain loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
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
    """Where a window lies, as kernels take it; all triples are (z, y, x).

    Attributes
    ----------
    core_lo, core_hi : tuple of int
        The box, in units of the window without its padding, that has to be right at the end of a round.
    origin : tuple of int
        The global coordinates of the window's first unit.
    cell_z, cell_y, cell_x : ndarray of int64
        Per axis the global cell of each unit of the window.
    first_cell, cells : tuple of int
        The box of cells that the statistics are of: its first cell and its extent.
    """

    core_lo: Triple
    core_hi: Triple
    origin: Triple
    cell_z: NDArray[np.int64]
    cell_y: NDArray[np.int64]
    cell_x: NDArray[np.int64]
    first_cell: Triple
    cells: Triple


class Costs(NamedTuple):
    """What it costs units to be far from the centre of the cell that their supervoxel grew from; empty for nothing.

    Attributes
    ----------
    z, y, x : ndarray of int32, shape (units, 4)
        Along an axis, by the unit and by the cell's place modulo 4; they add up.
    """

    z: NDArray[np.int32]
    y: NDArray[np.int32]
    x: NDArray[np.int32]


@jit
def cost_of_row(costs: Costs, z: int, y: int, out: NDArray[np.int32]) -> None:
    """Add up what z and y cost in a row, by the cell's place modulo 4 along both, 4 (z & 3) + (y & 3)."""
    if len(costs.z) > 0:
        for part in range(16):
            out[part] = costs.z[z, part >> 2] + costs.y[y, part & 3]


def new_window(shape: Sequence[int], fill: int, channels: int | None = None) -> NDArray[np.uint8]:
    """Make a window of bytes for units of a shape (z, y, x), or one for each of a number of channels.

    Returns
    -------
    ndarray of uint8, shape (z + 2, y + 2, 2, half) or (channels, z + 2, y + 2, 2, half)
        A vector may begin at any of its units: behind it the memory goes on far enough.
    """
    nz, ny, nx = shape
    layout = (*(() if channels is None else (channels,)), nz + 2, ny + 2, 2, (nx + 3) // 2)
    size = math.prod(layout)
    return np.full(size + LANES, fill, np.uint8)[:size].reshape(layout)


@jit
def pack_planes(values: NDArray[np.uint8], begin: int, window: NDArray[np.uint8]) -> None:
    """Put planes of units, shape (z, y, x), into a window, from its plane `begin` without the padding."""
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            even, odd = window[z + begin + 1, y + 1]
            row = values[z, y]
            # The padding is unit 0, so the first unit is odd.
            for i in range((len(row) + 1) // 2):
                odd[i] = row[2 * i]
            for i in range(len(row) // 2):
                even[i + 1] = row[2 * i + 1]


@jit
def unpack_box(window: NDArray[np.uint8], lo: Triple, values: NDArray[np.uint8]) -> None:
    """Take a box of units that begins at `lo`, without the padding, out of a window."""
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                unit = lo[2] + x + 1
                values[z, y, x] = window[lo[0] + z + 1, lo[1] + y + 1, unit & 1, unit >> 1]


@jit
def neighbour_distances(window: NDArray[Any]) -> NDArray[np.uint64]:
    """Tell how far away in memory a unit's 18 neighbours are.

    Returns
    -------
    ndarray of uint64, shape (2, 18)
        For even and for odd units of a padded row. Negative distances wrap around, as unsigned sums do.
    """
    half = window.shape[3]
    row, plane = 2 * half, 2 * half * window.shape[1]
    distances = np.empty((2, 18), np.uint64)
    for parity in range(2):
        for k in range(18):
            z, y, x = _OFFSETS[k]
            along = 0
            if x != 0:
                # Into the other half of the row; two neighbours that differ by two units are one place apart there.
                along = half + (x - 1) // 2 if parity == 0 else (x + 1) // 2 - half
            distances[parity, k] = np.uint64(np.int64(z * plane + y * row + along))
    return distances


@jit
def in_core(z: int, y: int, x: int, place: WindowGeometry) -> bool:
    """Tell whether a unit of the window, without its padding, lies in the core."""
    lo, hi = place.core_lo, place.core_hi
    return lo[0] <= z < hi[0] and lo[1] <= y < hi[1] and lo[2] <= x < hi[2]


@jit
def row_of_colour(z: int, y: int, colour: int, place: WindowGeometry, spare: int, nx: int) -> tuple[int, int, int]:
    """Find the units of a colour in a row.

    Units have one of four colours, the parities of x + y and of y + z in global coordinates; a row holds two.

    Parameters
    ----------
    z, y : int
        The row, in the window without its padding.
    colour : int
        From 0 to 3.
    place : Place
        The window.
    spare : int
        How far around the core units still matter.
    nx : int
        Units of a row.

    Returns
    -------
    parity : int
        Which half of the padded row has the colour.
    begin, end : int
        Where in that half its units are; empty where the row has none.
    """
    global_z, global_y = z + place.origin[0], y + place.origin[1]
    if (global_y + global_z + (colour >> 1)) & 1:
        return 0, 0, 0
    parity = (colour + global_y + place.origin[2] + 1) & 1
    x0, x1 = max(0, place.core_lo[2] - spare), min(nx, place.core_hi[2] + spare)
    return parity, (x0 + 2 - parity) >> 1, ((x1 - parity) >> 1) + 1
