"""Labels of one byte during the rounds, and global labels after them (steps 2, 3 and 6).

A unit's owner, the cell that its supervoxel grew from, is the unit's home cell or one of its 26 neighbours. So the
owner's place modulo 4 along each axis identifies it, with two bits an axis: ``16 (z & 3) + 4 (y & 3) + (x & 3)``. Such
a label means the same in every window, and labels near each other can be compared directly: owners of neighbouring
units differ by at most 3 cells along an axis. They can differ by 4 only across a cell that is one unit long, and then
both are out of reach for the unit between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.layout import WindowGeometry, new_window, pack_box
from dseeds.seeds.kernels.simd import NOTHING

# Added to any cell's number, this is negative.
OUT_OF_REACH = -(1 << 31)


@jit
def home_label(cell_z: int, cell_y: int, cell_x: int) -> int:
    """Return the label of a cell's own units."""
    return ((cell_z & 3) << 4) | ((cell_y & 3) << 2) | (cell_x & 3)


@jit
def _seed(homes: AxisArrays, labels: NDArray[np.uint8]) -> None:
    for z in range(len(homes[0])):
        for y in range(len(homes[1])):
            for x in range(len(homes[2])):
                label = home_label(homes[0][z], homes[1][y], homes[2][x])
                labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = label


def seed_labels(homes: AxisArrays) -> NDArray[np.uint8]:
    """Return a window in which every unit has the label of its home cell, given per axis."""
    labels = new_window([len(cells) for cells in homes], NOTHING)
    _seed(homes, labels)
    return labels


@jit
def _refine(coarse: NDArray[np.uint8], parents: AxisArrays, labels: NDArray[np.uint8]) -> None:
    for z in range(len(parents[0])):
        for y in range(len(parents[1])):
            fine = labels[z + 1, y + 1]
            # Rows with the same parents are equal, and copying is much faster.
            if y > 0 and parents[1][y] == parents[1][y - 1]:
                fine[:] = labels[z + 1, y]
            elif z > 0 and parents[0][z] == parents[0][z - 1]:
                fine[:] = labels[z, y + 1]
            else:
                row = coarse[parents[0][z] + 1, parents[1][y] + 1]
                for x in range(len(parents[2])):
                    parent = parents[2][x] + 1
                    fine[(x + 1) & 1, (x + 1) >> 1] = row[parent & 1, parent >> 1]


def refine_labels(coarse: NDArray[np.uint8], parents: AxisArrays) -> NDArray[np.uint8]:
    """Return a window of finer units with the labels of the coarser units that contain them.

    `parents` holds per axis the index of each finer unit's coarser unit, in windows without their padding.
    """
    labels = new_window([len(units) for units in parents], NOTHING)
    _refine(coarse, parents, labels)
    return labels


def pack_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a window of labels of shape (z, y, x)."""
    window = new_window(labels.shape, NOTHING)
    pack_box(labels, (0, 0, 0), window)
    return window


@jit
def owner_offsets(cells: Triple) -> NDArray[np.int32]:
    """Tabulate the offset from a home cell's number to the owner's, in a numbered box of cells: int32 (64 * 64,).

    The index is ``64 * home label + label``; `OUT_OF_REACH` means that no owner within reach has that label.
    """
    offsets = np.full(64 * 64, OUT_OF_REACH, np.int32)
    for own in range(64):
        for dz in range(-1, 2):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    label = home_label((own >> 4) + dz, ((own >> 2) & 3) + dy, (own & 3) + dx)
                    offsets[64 * own + label] = (dz * cells[1] + dy) * cells[2] + dx
    return offsets


class OwnerLookup(NamedTuple):
    """The tables that turn a label of a window into the number of its owner within the window's cells.

    `offsets` are `owner_offsets`. `homes`, uint64 (x,), and `numbers`, int64 (x,), hold the contributions of x to 64
    times the home label and to the home cell's number.
    """

    offsets: NDArray[np.int32]
    homes: NDArray[np.uint64]
    numbers: NDArray[np.int64]


@jit
def owner_lookup(geometry: WindowGeometry) -> OwnerLookup:
    """Prepare the lookup of owners in a window."""
    cells = geometry.homes[2]
    homes, numbers = np.empty(len(cells), np.uint64), np.empty(len(cells), np.int64)
    for x in range(len(cells)):
        homes[x] = 64 * home_label(0, 0, cells[x])
        numbers[x] = cells[x] - geometry.first_cell[2]
    return OwnerLookup(owner_offsets(geometry.cells), homes, numbers)


@jit
def row_home(z: int, y: int, geometry: WindowGeometry) -> tuple[np.uint64, int]:
    """Return the contributions of a row's z and y to 64 times the home label, and to the home cell's number."""
    cell_z, cell_y = geometry.homes[0][z], geometry.homes[1][y]
    row = (cell_z - geometry.first_cell[0]) * geometry.cells[1] + cell_y - geometry.first_cell[1]
    return np.uint64(64 * home_label(cell_z, cell_y, 0)), row * geometry.cells[2]


@jit
def owner_number(owners: OwnerLookup, home: tuple[np.uint64, int], x: int, label: int) -> int:
    """Return the number of the owner that a label means at place x of a row; negative if out of reach."""
    return home[1] + owners.numbers[x] + owners.offsets[home[0] + owners.homes[x] + np.uint64(label)]


@jit
def write_global_labels(labels: NDArray[np.uint8], homes: AxisArrays, cells: Triple, out: NDArray[Any]) -> None:
    """Turn a window's labels into global ones, 1 + the owner's number, and `NOTHING` into 0.

    `homes` holds per axis the global cell of each unit, `cells` is the number of all cells along (z, y, x), and `out`,
    unsigned int (z, y, x), receives the labels.
    """
    offsets = owner_offsets(cells)
    for z in range(len(homes[0])):
        for y in range(len(homes[1])):
            first = (homes[0][z] * cells[1] + homes[1][y]) * cells[2] + 1
            own_row = home_label(homes[0][z], homes[1][y], 0)
            row, window_row = out[z, y], labels[z + 1, y + 1]
            for x in range(len(homes[2])):
                cell = homes[2][x]
                own = np.uint64(64 * (own_row + (cell & 3)))
                label = window_row[(x + 1) & 1, (x + 1) >> 1]
                row[x] = first + cell + offsets[own + np.uint64(label)] if label != NOTHING else 0
