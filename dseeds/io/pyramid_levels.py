"""The levels of a pyramid that is to be written: how many, how large, and where their voxels lie.

`dseeds.io.resolution_levels` reads the levels that an image already has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dseeds.core.geometry import Box, Triple, triple
from dseeds.io.ome_metadata import Resolution

# The coarsest level is no longer than `TOP_EXTENT` along any axis. Axes of up to `THIN_EXTENT` are not halved while
# others are: a stack of slices that lie far apart would be reduced to a few pixels.
TOP_EXTENT, THIN_EXTENT = 256, 64


@dataclass(frozen=True)
class PyramidLevel:
    """A coarser level to write; one of its voxels is made of `factors` voxels of the level before it."""

    shape: Triple
    factors: Triple

    def coarsen(self, box: Box) -> Box:
        """Return the voxels of this level that begin in a box of the level before it, which consists of whole blocks.

        >>> PyramidLevel((2, 4, 5), (1, 2, 2)).coarsen(Box((0, 2, 4), (1, 8, 9)))
        Box(lo=(0, 1, 2), hi=(1, 4, 5))
        """
        lo = triple([begin // f for begin, f in zip(box.lo, self.factors, strict=True)])
        hi = triple([min(-(-end // f), n) for end, f, n in zip(box.hi, self.factors, self.shape, strict=True)])
        return Box(lo, hi)


def choose_levels(shape: Triple, spacing: Sequence[float] | None = None) -> tuple[PyramidLevel, ...]:
    """Choose the levels of an image that has none: halve until no axis is longer than 256 voxels.

    Axes along which voxels are longer than along the finest one, by more than a factor of sqrt(2), wait until the
    others come close, and axes of up to 64 voxels are not halved. Shape and spacing are along (z, y, x), the latter in
    any unit; by default voxels are cubes.

    >>> [level.shape for level in choose_levels((200, 1025, 1025), (4.0, 1.0, 1.0))]
    [(200, 513, 513), (200, 257, 257), (100, 129, 129)]
    """
    levels: list[PyramidLevel] = []
    sizes = list(spacing or (1.0, 1.0, 1.0))
    while max(shape) > TOP_EXTENT:
        finest = min(size for size, n in zip(sizes, shape, strict=True) if n > THIN_EXTENT)
        factors = triple(
            2 if n > THIN_EXTENT and size <= math.sqrt(2) * finest else 1 for size, n in zip(sizes, shape, strict=True)
        )
        sizes = [size * f for size, f in zip(sizes, factors, strict=True)]
        shape = _coarsen(shape, factors)
        levels.append(PyramidLevel(shape, factors))
    return tuple(levels)


def match_levels(shape: Triple, coarser: Sequence[tuple[Triple, Sequence[float]]]) -> tuple[PyramidLevel, ...]:
    """Choose the levels of labels of a shape (z, y, x) to match the coarser levels of their image.

    The latter are given by their shapes and the sizes of their voxels, in voxels of the labels. Ratios between levels
    are rounded to whole numbers. If the image leaves out a last block that is not whole, so do the labels.

    >>> match_levels((9, 30, 31), [((9, 15, 15), (1.0, 2.0, 2.0)), ((5, 8, 8), (2.0, 4.0, 4.0))])
    (PyramidLevel(shape=(9, 15, 15), factors=(1, 2, 2)), PyramidLevel(shape=(5, 8, 8), factors=(2, 2, 2)))
    """
    levels: list[PyramidLevel] = []
    last: Sequence[float] = (1.0, 1.0, 1.0)
    for image_shape, sizes in coarser:
        ratios = (max(1, round(size / before)) for size, before in zip(sizes, last, strict=True))
        factors = triple(min(f, n) for f, n in zip(ratios, shape, strict=True))
        shape = triple(m if m == n // f else -(-n // f) for m, n, f in zip(image_shape, shape, factors, strict=True))
        levels.append(PyramidLevel(shape, factors))
        last = sizes
    return tuple(levels)


def extend_levels(shape: Triple, levels: Sequence[PyramidLevel], count: int) -> tuple[PyramidLevel, ...]:
    """Halve the last level of an image of a shape until it has `count` levels: its labels need the same number.

    >>> extend_levels((1, 40, 40), [PyramidLevel((1, 20, 20), (1, 2, 2))], 2)
    (PyramidLevel(shape=(1, 20, 20), factors=(1, 2, 2)), PyramidLevel(shape=(1, 10, 10), factors=(1, 2, 2)))
    """
    extended = list(levels)
    while len(extended) < count:
        before = extended[-1].shape if extended else shape
        extended.append(PyramidLevel(_coarsen(before, (2, 2, 2)), triple(min(2, n) for n in before)))
    return tuple(extended)


def compute_resolutions(levels: Sequence[PyramidLevel], method: str) -> tuple[Resolution, ...]:
    """Return the sizes of the voxels of coarser levels, and the positions of the first ones.

    The centre of a block of f voxels lies (f - 1) / 2 voxels behind the centre of its first one. This is the position
    of the block's mean or mode; a value that is copied from the first voxel keeps that voxel's position.

    >>> levels = PyramidLevel((50, 25, 25), (1, 2, 2)), PyramidLevel((25, 13, 13), (2, 2, 2))
    >>> compute_resolutions(levels, "mode")[1]
    Resolution(scale=(2.0, 4.0, 4.0), offset=(0.5, 1.5, 1.5))
    >>> compute_resolutions(levels, "nearest")[1]
    Resolution(scale=(2.0, 4.0, 4.0), offset=(0.0, 0.0, 0.0))
    """
    resolutions, scale = [], (1, 1, 1)
    for level in levels:
        scale = triple(s * f for s, f in zip(scale, level.factors, strict=True))
        z, y, x = (0.0 if method == "nearest" else (s - 1) / 2 for s in scale)
        resolutions.append(Resolution((float(scale[0]), float(scale[1]), float(scale[2])), (z, y, x)))
    return tuple(resolutions)


def _coarsen(shape: Triple, factors: Triple) -> Triple:
    return triple(-(-n // f) for n, f in zip(shape, factors, strict=True))
