"""Where the voxels inside a mask lie, block by block: how many cells of a lattice they touch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Lattice, Triple

# Blocks along an axis: fewer voxels than that are blocks of their own, so that cells are counted exactly.
MOST_BLOCKS = 128
# If a number of supervoxels inside a mask is given, how many times smaller than their mean the smallest may be.
SMALLEST_PART = 10


@dataclass(frozen=True, eq=False)
class MaskBlocks:
    """Blocks of voxels around those inside a mask; `filled` (z, y, x) says which hold any.

    `edges` are the first voxels of the blocks along each axis, and the end of the last one. Of the volume's voxels,
    `inside` are inside the mask.
    """

    shape: Triple
    edges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    filled: NDArray[np.bool_]
    inside: int

    @classmethod
    def of(
        cls, slabs: Callable[[], Iterable[tuple[int, NDArray[np.bool_]]]], own: Triple, factors: Triple, shape: Triple
    ) -> MaskBlocks | None:
        """Return the blocks of a mask, read twice in slabs of its `own` resolution; None if all or nothing is inside.

        Its voxels measure `factors` voxels of the volume along (z, y, x); those of the last one are what remains.
        """
        touched = [np.zeros(n, np.bool_) for n in own]
        count = 0
        for begin, slab in slabs():
            touched[0][begin : begin + len(slab)] |= slab.any(axis=(1, 2))
            touched[1] |= slab.any(axis=(0, 2))
            touched[2] |= slab.any(axis=(0, 1))
            count += int(np.count_nonzero(slab))
        # A mask that leaves nothing out gives the labels of none.
        if count in (0, math.prod(own)):
            return None
        bounds = [(int(np.flatnonzero(axis)[0]), int(np.flatnonzero(axis)[-1]) + 1) for axis in touched]
        cuts = [np.arange(lo, hi, -(-(hi - lo) // MOST_BLOCKS)) for lo, hi in bounds]
        filled = np.zeros([len(cut) for cut in cuts], np.bool_)
        (_, (y0, y1), (x0, x1)) = bounds
        for begin, slab in slabs():
            planes = np.logical_or.reduceat(slab[:, y0:y1, x0:x1], cuts[2] - x0, axis=2)
            planes = np.logical_or.reduceat(planes, cuts[1] - y0, axis=1)
            for z, plane in enumerate(planes, begin):
                if bounds[0][0] <= z < bounds[0][1]:
                    filled[np.searchsorted(cuts[0], z, side="right") - 1] |= plane
        along = zip((np.append(cut, hi) for cut, (_, hi) in zip(cuts, bounds, strict=True)), own, strict=True)
        edges = [np.where(ends == m, n, ends * f) for (ends, m), n, f in zip(along, shape, factors, strict=True)]
        inside = min(count * math.prod(factors), math.prod(shape))
        return cls(shape, (edges[0], edges[1], edges[2]), filled, inside)

    def least_voxels(self, n_segments: int) -> int:
        """Return the size of the smallest supervoxel that counts, if so many are wanted inside."""
        return self.inside // (SMALLEST_PART * n_segments)

    def cells_along(self, axis: int, step: Triple) -> NDArray[np.int64] | None:
        """Return the cells of the blocks' middles along an axis, by number; None if a block is longer than a cell."""
        lattice, edges = Lattice(self.shape, step), self.edges[axis]
        if np.diff(edges).max() > lattice.step[axis]:
            return None
        cells: NDArray[np.int64] = (edges[:-1] + edges[1:] - 1) // 2 // lattice.step[axis]
        return np.minimum(cells, lattice.cells[axis] - 1)

    def count_cells(self, step: Triple) -> int:
        """Return how many cells of the lattice with a step have voxels inside: exactly, if blocks are voxels.

        A block longer than a voxel belongs to the cell of its middle; one that is longer than a cell counts as several.

        >>> five = np.arange(6).reshape(1, 1, 6) < 5
        >>> blocks = MaskBlocks.of(lambda: [(0, five)], (1, 1, 6), (1, 1, 1), (1, 1, 6))
        >>> blocks.count_cells((1, 1, 2)), blocks.count_cells((1, 1, 3))
        (3, 2)
        """
        filled, several = self.filled, 1.0
        for axis, edges in enumerate(self.edges):
            cells = self.cells_along(axis, step)
            if cells is None:
                several *= int(np.diff(edges).max()) / step[axis]
                continue
            filled = np.logical_or.reduceat(filled, np.flatnonzero(np.diff(cells, prepend=-1)), axis=axis)
        return max(1, round(int(np.count_nonzero(filled)) * several))
