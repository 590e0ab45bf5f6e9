"""The 6-connected parts into which a mask cuts supervoxels.

A supervoxel grows from one cell and cannot cut itself, but under a mask it may begin in several parts, or be cut by the
mask where a block of it is refined to voxels. Each part becomes a supervoxel of its own. Parts of one owner are told
apart by the raster order of their first voxels, which is the same in every window that holds them whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.simd import NOTHING

# Voxels in a window that 32 bits can count.
FEW = 1 << 31


def count_components(
    codes: NDArray[np.uint8],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    wanted: Box,
) -> NDArray[np.uint32]:
    """Count the parts of supervoxels.

    Parameters
    ----------
    codes : ndarray of uint8, shape (z, y, x)
        The labels of a window of voxels, see `kernel.labels`: at least those in the wanted cells and in the cells
        around them.
    cell_z, cell_y, cell_x : ndarray of int64
        Per axis the global cell of each voxel of the window.
    wanted : Box
        The cells whose supervoxels are counted.

    Returns
    -------
    ndarray of uint32, shape of `wanted`
        How many parts each cell's supervoxel has: none, where it has no voxel.
    """
    counts = np.zeros(wanted.shape, np.uint32)
    _number(codes, _parts(codes), cell_z, cell_y, cell_x, wanted.bounds, counts)
    return counts


def number_components(
    codes: NDArray[np.uint8],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    wanted: Box,
    offsets: NDArray[np.uint64],
    core: Box,
    out: NDArray[Any],
) -> None:
    """Give every voxel the number of its part: those of one supervoxel follow each other.

    Parameters
    ----------
    codes, cell_z, cell_y, cell_x
        The window, as for `part_counts`.
    wanted : Box
        Cells, among them every owner of a voxel of the core.
    offsets : ndarray of uint64, shape of `wanted`
        How many parts are numbered before those of each cell's supervoxel.
    core : Box
        The voxels to number, within the window.
    out : ndarray of uint32 or uint64, shape of `core`
        Is filled: numbers from 1, and 0 where a voxel is masked out.
    """
    numbers = _parts(codes)
    _number(codes, numbers, cell_z, cell_y, cell_x, wanted.bounds, np.zeros(wanted.shape, np.uint32))
    _label(codes, numbers, cell_z, cell_y, cell_x, wanted.lo, offsets, core.lo, out)


def _parts(codes: NDArray[np.uint8]) -> NDArray[Any]:
    """Link every voxel of a window to an earlier one of its part; the first voxel to itself."""
    parents = np.arange(codes.size, dtype=np.int32 if codes.size < FEW else np.int64)
    _link(codes, parents)
    return parents


@jit
def _link(codes: NDArray[np.uint8], parents: NDArray[Any]) -> None:
    nz, ny, nx = codes.shape
    for z in range(nz):
        for y in range(ny):
            row = codes[z, y]
            above, below = codes[z, max(0, y - 1)], codes[max(0, z - 1), y]
            first = (z * ny + y) * nx
            for x in range(nx):
                code = row[x]
                if code == NOTHING:
                    continue
                left = x > 0 and row[x - 1] == code
                voxel = first + x
                if left:
                    parents[voxel] = parents[voxel - 1]
                # Where the voxel to the left has the same neighbour, the two are linked already.
                if y > 0 and above[x] == code and not (left and above[x - 1] == code):
                    unite_roots(parents, voxel, voxel - nx)
                if z > 0 and below[x] == code and not (left and below[x - 1] == code):
                    unite_roots(parents, voxel, voxel - ny * nx)


@jit
def unite_roots(parents: NDArray[Any], a: int, b: int) -> int:
    """Link two items' roots, so that the lower one is the root of both; 1 if they had two, else 0."""
    a, b = find_root(parents, a), find_root(parents, b)
    parents[max(a, b)] = min(a, b)
    return int(a != b)


@jit
def find_root(parents: NDArray[Any], item: int) -> int:
    """Find the end of an item's links, and shorten them."""
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item


@jit
def _owner(code: int, cell: int, shift: int) -> int:
    """Give the owner's cell along one axis."""
    return cell + (((code >> shift) - cell + 1) & 3) - 1


@jit
def _number(
    codes: NDArray[np.uint8],
    parents: NDArray[Any],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    wanted: tuple[Triple, Triple],
    counts: NDArray[np.uint32],
) -> None:
    """Count the parts of the wanted owners, and replace every voxel's link by -1 less its part's number."""
    lo, hi = wanted
    nz, ny, nx = codes.shape
    for z in range(nz):
        for y in range(ny):
            first = (z * ny + y) * nx
            for x in range(nx):
                voxel = first + x
                code = np.int64(codes[z, y, x])
                parent = parents[voxel]
                if code == NOTHING:
                    continue
                if parent != voxel:
                    # Links lead to earlier voxels, and those have their number.
                    parents[voxel] = parents[parent]
                    continue
                oz, oy, ox = _owner(code, cell_z[z], 4), _owner(code, cell_y[y], 2), _owner(code, cell_x[x], 0)
                number = 0
                if lo[0] <= oz < hi[0] and lo[1] <= oy < hi[1] and lo[2] <= ox < hi[2]:
                    number = np.int64(counts[oz - lo[0], oy - lo[1], ox - lo[2]])
                    counts[oz - lo[0], oy - lo[1], ox - lo[2]] += np.uint32(1)
                parents[voxel] = -1 - number


@jit
def _label(
    codes: NDArray[np.uint8],
    numbers: NDArray[Any],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    first_cell: Triple,
    offsets: NDArray[np.uint64],
    lo: Triple,
    out: NDArray[Any],
) -> None:
    _, ny, nx = codes.shape
    for z in range(lo[0], lo[0] + out.shape[0]):
        for y in range(lo[1], lo[1] + out.shape[1]):
            for x in range(lo[2], lo[2] + out.shape[2]):
                code = np.int64(codes[z, y, x])
                label = np.uint64(0)
                if code != NOTHING:
                    oz, oy, ox = _owner(code, cell_z[z], 4), _owner(code, cell_y[y], 2), _owner(code, cell_x[x], 0)
                    offset = offsets[oz - first_cell[0], oy - first_cell[1], ox - first_cell[2]]
                    label = offset + np.uint64(-np.int64(numbers[(z * ny + y) * nx + x]))
                out[z - lo[0], y - lo[1], x - lo[2]] = label
