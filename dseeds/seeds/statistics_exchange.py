"""Step 5: the statistics of supervoxels that straddle regions are added up.

A supervoxel never leaves its cell and the 26 around it. So a region's voxels contribute to the statistics of the
region's own cells, its *core*, and of a *shell* of one cell around it, in up to 26 pieces, each addressed to one
neighbour. Merging a region adds to its core the pieces that its neighbours addressed to it: sums of integers, exact
and independent of order.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Regions, Triple, triple

OFFSETS: tuple[Triple, ...] = tuple(
    (z, y, x) for z, y, x in itertools.product((-1, 0, 1), repeat=3) if (z, y, x) != (0, 0, 0)
)


def _piece_shape(offset: Triple, cells: Triple) -> Triple:
    return triple([1 if d else k for d, k in zip(offset, cells, strict=True)])


def _slots(cells: Triple) -> dict[Triple, slice]:
    """Return the place of every piece in the shell of a region of so many cells."""
    slots, begin = {}, 0
    for offset in OFFSETS:
        size = math.prod(_piece_shape(offset, cells))
        slots[offset] = slice(begin, begin + size)
        begin += size
    return slots


def shell_length(cells: Triple) -> int:
    """Return the number of cells in the shell of a region of so many cells.

    >>> shell_length((2, 2, 2)) == 4**3 - 2**3
    True
    """
    return math.prod(k + 2 for k in cells) - math.prod(cells)


def split_statistics(
    counts: NDArray[np.uint32], cells: Box, region: Box, regions: Regions
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Split a region's statistics into its core, uint32 (z, y, x, bins), and its shell, (shell_length, bins).

    `counts`, uint32 (cells, bins), are statistics over the region's voxels alone, for a box of cells: the region and at
    least one cell around it, as far as the lattice extends. The shell is listed piece by piece; it is zero outside the
    lattice.
    """
    bins = counts.shape[-1]
    local = counts.reshape(*cells.shape, bins)
    shell = np.zeros((shell_length(regions.cells), bins), np.uint32)
    slots = _slots(regions.cells)
    for offset in OFFSETS:
        lo = triple([(a - 1, a, h)[d + 1] for d, a, h in zip(offset, region.lo, region.hi, strict=True)])
        piece = Box(lo, triple([a + n for a, n in zip(lo, _piece_shape(offset, region.shape), strict=True)]))
        if min(piece.lo) < 0 or any(h > n for h, n in zip(piece.hi, regions.lattice.cells, strict=True)):
            continue
        values = local[piece.relative_to(cells.lo).slices].reshape(-1, bins)
        shell[slots[offset].start : slots[offset].start + len(values)] = values
    return local[region.relative_to(cells.lo).slices], shell


def join_statistics(
    core: NDArray[np.uint32], shells: NDArray[Any], origin: Triple, number: int, regions: Regions
) -> None:
    """Add the pieces of the neighbours' shells to a region's core, in place.

    `core` is from `split_statistics`. `shells`, uint32 (z, y, x, shell_length, bins), are those of a box of regions, at
    least the region and its neighbours; `origin` is the index (z, y, x) of the box's first region.
    """
    slots = _slots(regions.cells)
    here = regions.index(number)
    for neighbour in regions.within(number, 1):
        there = regions.index(neighbour)
        # Seen from the neighbour, this region lies at `offset`.
        offset = triple([h - t for h, t in zip(here, there, strict=True)])
        if neighbour == number:
            continue
        shape = _piece_shape(offset, triple(core.shape[:3]))
        begin = slots[offset].start
        index = triple([t - o for t, o in zip(there, origin, strict=True)])
        piece = shells[index][begin : begin + math.prod(shape)].reshape(*shape, -1)
        faces = tuple({1: slice(0, 1), 0: slice(None), -1: slice(-1, None)}[d] for d in offset)
        core[faces] += piece
