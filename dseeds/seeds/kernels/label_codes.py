"""Labels of one byte, and what they mean.

A unit's owner, the cell that its supervoxel grew from, is the unit's own cell or one of its 26 neighbours. So along
each axis the owner's place modulo 4 tells which cell it is: two bits an axis, ``16 (z & 3) + 4 (y & 3) + (x & 3)``.
Such a label means the same in every window, and two labels near each other can be compared as they are: owners of
units that are neighbours differ by at most 3 cells along an axis, and where they can differ by 4, across a cell that
is one unit long, both are out of reach for the unit between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.layout import WindowGeometry, new_window, pack_planes
from dseeds.seeds.kernels.simd import NOTHING

# No cell has a number as low as its own plus this.
OUT_OF_REACH = -(1 << 31)


@jit
def home_label(cell_z: int, cell_y: int, cell_x: int) -> int:
    """Give the label of a cell's own units."""
    return ((cell_z & 3) << 4) | ((cell_y & 3) << 2) | (cell_x & 3)


@jit
def _seed(
    cell_z: NDArray[np.int64], cell_y: NDArray[np.int64], cell_x: NDArray[np.int64], labels: NDArray[np.uint8]
) -> None:
    for z in range(len(cell_z)):
        for y in range(len(cell_y)):
            for x in range(len(cell_x)):
                labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = home_label(cell_z[z], cell_y[y], cell_x[x])


def seed_labels(cell_z: NDArray[np.int64], cell_y: NDArray[np.int64], cell_x: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Make a window in which every unit has the label of its own cell, which is given per axis."""
    labels = new_window((len(cell_z), len(cell_y), len(cell_x)), NOTHING)
    _seed(cell_z, cell_y, cell_x, labels)
    return labels


@jit
def _refine(
    coarse: NDArray[np.uint8],
    parent_z: NDArray[np.int64],
    parent_y: NDArray[np.int64],
    parent_x: NDArray[np.int64],
    labels: NDArray[np.uint8],
) -> None:
    for z in range(len(parent_z)):
        for y in range(len(parent_y)):
            row = coarse[parent_z[z] + 1, parent_y[y] + 1]
            for x in range(len(parent_x)):
                parent = parent_x[x] + 1
                labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = row[parent & 1, parent >> 1]


def refine_labels(
    coarse: NDArray[np.uint8],
    parent_z: NDArray[np.int64],
    parent_y: NDArray[np.int64],
    parent_x: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Make a window of the finer units that lie in the coarser units of another, and hand the labels down.

    Per axis is given in which coarser unit each finer one lies, in the windows without their padding.
    """
    labels = new_window((len(parent_z), len(parent_y), len(parent_x)), NOTHING)
    _refine(coarse, parent_z, parent_y, parent_x, labels)
    return labels


def pack_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make a window of labels, shape (z, y, x)."""
    window = new_window(labels.shape, NOTHING)
    pack_planes(labels, 0, window)
    return window


@jit
def owner_offsets(cells: Triple) -> NDArray[np.int32]:
    """Tell by a unit's home label and its label how far the owner's number is from that of the unit's own cell.

    Parameters
    ----------
    cells : tuple of int
        The extent (z, y, x) of the box of cells that are numbered.

    Returns
    -------
    ndarray of int32, shape (64 * 64,)
        Index ``64 * home + label``; `OUT_OF_REACH` where no owner within reach has that label.
    """
    distances = np.full(64 * 64, OUT_OF_REACH, np.int32)
    for own in range(64):
        for dz in range(-1, 2):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    label = home_label((own >> 4) + dz, ((own >> 2) & 3) + dy, (own & 3) + dx)
                    distances[64 * own + label] = (dz * cells[1] + dy) * cells[2] + dx
    return distances


@jit
def homes_and_numbers(place: WindowGeometry) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Tell along x what a unit's own cell adds to those of its row, see `home_and_number`.

    Returns
    -------
    home : ndarray of uint64, shape (x,)
        To 64 times the home label.
    number : ndarray of int64, shape (x,)
        To the cell's number within the window's cells.
    """
    home_x = np.empty(len(place.cell_x), np.uint64)
    number_x = np.empty(len(place.cell_x), np.int64)
    for x in range(len(place.cell_x)):
        home_x[x] = 64 * home_label(0, 0, place.cell_x[x])
        number_x[x] = place.cell_x[x] - place.first_cell[2]
    return home_x, number_x


@jit
def home_and_number(z: int, y: int, place: WindowGeometry) -> tuple[np.uint64, int]:
    """Give 64 times the home label, and the number within the window's cells, of a row's cell at the least x."""
    row = (place.cell_z[z] - place.first_cell[0]) * place.cells[1] + place.cell_y[y] - place.first_cell[1]
    return np.uint64(64 * home_label(place.cell_z[z], place.cell_y[y], 0)), row * place.cells[2]


@jit
def write_global_labels(
    labels: NDArray[np.uint8],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
    out: NDArray[Any],
) -> None:
    """Turn a window's labels into global ones, 1 + the owner's number, and `NOTHING` into 0.

    Parameters
    ----------
    labels : ndarray of uint8
        The window.
    cell_z, cell_y, cell_x : ndarray of int64
        Per axis the global cell of each unit.
    cells : tuple of int
        All cells along (z, y, x).
    out : ndarray of unsigned int, shape (z, y, x)
        Is filled.
    """
    distances = owner_offsets(cells)
    for z in range(len(cell_z)):
        for y in range(len(cell_y)):
            first = (cell_z[z] * cells[1] + cell_y[y]) * cells[2] + 1
            own_row = home_label(cell_z[z], cell_y[y], 0)
            row, window_row = out[z, y], labels[z + 1, y + 1]
            for x in range(len(cell_x)):
                own = np.uint64(64 * (own_row + (cell_x[x] & 3)))
                label = window_row[(x + 1) & 1, (x + 1) >> 1]
                row[x] = first + cell_x[x] + distances[own + np.uint64(label)] if label != NOTHING else 0
