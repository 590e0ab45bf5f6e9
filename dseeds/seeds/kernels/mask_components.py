"""Step 6: the 6-connected components into which a mask cuts supervoxels.

A supervoxel grows from one cell and cannot cut itself, but under a mask it may begin in several components, or be cut
by the mask when one of its blocks is refined to voxels. Each component becomes a supervoxel of its own. The components
of one owner are ordered by the raster order of their first voxels, which is the same in every window that contains
them whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Box, Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.simd import NOTHING

# Voxels in a window that 32 bits can count.
COUNTABLE_VOXELS = 1 << 31


def count_components(codes: NDArray[np.uint8], homes: AxisArrays, cells: Box) -> NDArray[np.uint32]:
    """Return the number of components of each cell's supervoxel, uint32 in the shape of `cells`: 0 without a voxel.

    `codes`, uint8 (z, y, x), are the labels of a window of voxels, see `label_codes`, at least those in `cells` and in
    the cells around them; `homes` holds per axis the global cell of each voxel of the window.
    """
    counts = np.zeros(cells.shape, np.uint32)
    _number(codes, _linked_components(codes), homes, cells.bounds, counts)
    return counts


def number_components(
    codes: NDArray[np.uint8],
    homes: AxisArrays,
    cells: Box,
    offsets: NDArray[np.uint64],
    core: Box,
    out: NDArray[Any],
) -> None:
    """Label every voxel with the number of its component; components of one supervoxel have consecutive numbers.

    `cells` include every owner of a voxel of the core, and `offsets`, uint64 in their shape, hold the number of
    components that precede those of each cell's supervoxel. `core` is the box of voxels to number, within the window.
    `out`, uint32 or uint64 in its shape, receives numbers from 1, and 0 where a voxel is masked out. See
    `count_components`.
    """
    numbers = _linked_components(codes)
    _number(codes, numbers, homes, cells.bounds, np.zeros(cells.shape, np.uint32))
    _label(codes, numbers, homes, cells.lo, offsets, core.lo, out)


def find_large_components(codes: NDArray[np.uint8], least: float) -> NDArray[np.int64]:
    """Return the first voxels, by their places in raster order, of the components of at least so many voxels.

    `codes`, uint8 (z, y, x), are labels of a volume, see `label_codes`.
    """
    roots = _linked_components(codes)
    while ((shorter := roots[roots]) != roots).any():
        roots = shorter
    sizes = np.bincount(roots[codes.reshape(-1) != NOTHING], minlength=1)
    return np.flatnonzero(sizes >= max(1.0, least))


def _linked_components(codes: NDArray[np.uint8]) -> NDArray[Any]:
    """Link every voxel of a window to an earlier one of its component, and the first voxel to itself."""
    parents = np.arange(codes.size, dtype=np.int32 if codes.size < COUNTABLE_VOXELS else np.int64)
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
                # If the voxel to the left has the same neighbour, the two are linked already.
                if y > 0 and above[x] == code and not (left and above[x - 1] == code):
                    unite_roots(parents, voxel, voxel - nx)
                if z > 0 and below[x] == code and not (left and below[x - 1] == code):
                    unite_roots(parents, voxel, voxel - ny * nx)


@jit
def unite_roots(parents: NDArray[Any], a: int, b: int) -> int:
    """Link two items' roots, so that the lower one is the root of both; return 1 if they differed, else 0."""
    a, b = find_root(parents, a), find_root(parents, b)
    parents[max(a, b)] = min(a, b)
    return int(a != b)


@jit
def find_root(parents: NDArray[Any], item: int) -> int:
    """Return the end of an item's links, and shorten them."""
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item


@jit
def _owner(code: int, homes: AxisArrays, z: int, y: int, x: int) -> Triple:
    """Return the cell that owns a voxel with a label."""
    cell_z, cell_y, cell_x = homes[0][z], homes[1][y], homes[2][x]
    return (
        cell_z + (((code >> 4) - cell_z + 1) & 3) - 1,
        cell_y + (((code >> 2) - cell_y + 1) & 3) - 1,
        cell_x + ((code - cell_x + 1) & 3) - 1,
    )


@jit
def _number(
    codes: NDArray[np.uint8],
    parents: NDArray[Any],
    homes: AxisArrays,
    cells: tuple[Triple, Triple],
    counts: NDArray[np.uint32],
) -> None:
    """Count the components of the owners in a box of cells, and replace every voxel's link by -1 - its number."""
    lo, hi = cells
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
                    # Links lead to earlier voxels, which have their number already.
                    parents[voxel] = parents[parent]
                    continue
                oz, oy, ox = _owner(code, homes, z, y, x)
                number = 0
                if lo[0] <= oz < hi[0] and lo[1] <= oy < hi[1] and lo[2] <= ox < hi[2]:
                    number = np.int64(counts[oz - lo[0], oy - lo[1], ox - lo[2]])
                    counts[oz - lo[0], oy - lo[1], ox - lo[2]] += np.uint32(1)
                parents[voxel] = -1 - number


@jit
def _label(
    codes: NDArray[np.uint8],
    numbers: NDArray[Any],
    homes: AxisArrays,
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
                    oz, oy, ox = _owner(code, homes, z, y, x)
                    offset = offsets[oz - first_cell[0], oy - first_cell[1], ox - first_cell[2]]
                    label = offset + np.uint64(-np.int64(numbers[(z * ny + y) * nx + x]))
                out[z - lo[0], y - lo[1], x - lo[2]] = label
