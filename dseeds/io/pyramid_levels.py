"""The levels of multiscale images: which there are, how large their voxels are and where these lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dseeds.core.geometry import Triple, triple
from dseeds.io.ome_metadata import Resolution

# A pyramid ends with a level of no more voxels along any axis. Axes of no more than the second are halved no further
# while others are: of slices that lie far apart, there would be only pixels left.
LARGE, SMALL = 256, 64


@dataclass(frozen=True)
class PyramidLevel:
    """A coarser level to come.

    Attributes
    ----------
    shape : tuple of int
        Its voxels along (z, y, x).
    factors : tuple of int
        How many voxels of the level before, along (z, y, x), one of its voxels is made of.
    """

    shape: Triple
    factors: Triple


def choose_levels(shape: Triple, spacing: Sequence[float] | None = None) -> tuple[PyramidLevel, ...]:
    """Choose the levels of an image that has none: halved until no axis is longer than 256 voxels.

    Axes along which voxels are longer than along the finest one, by more than a factor of sqrt(2), wait until the
    others have come near them, and axes of up to 64 voxels are left as they are.

    Parameters
    ----------
    shape : tuple of int
        Voxels along (z, y, x).
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in any unit. Default: cubes.

    Examples
    --------
    >>> [level.shape for level in choose_levels((200, 1025, 1025), (4.0, 1.0, 1.0))]
    [(200, 513, 513), (200, 257, 257), (100, 129, 129)]
    """
    found: list[PyramidLevel] = []
    sizes = list(spacing or (1.0, 1.0, 1.0))
    while max(shape) > LARGE:
        finest = min(size for size, n in zip(sizes, shape, strict=True) if n > SMALL)
        factors = triple(
            2 if n > SMALL and size <= math.sqrt(2) * finest else 1 for size, n in zip(sizes, shape, strict=True)
        )
        sizes = [size * f for size, f in zip(sizes, factors, strict=True)]
        shape = triple(-(-n // f) for n, f in zip(shape, factors, strict=True))
        found.append(PyramidLevel(shape, factors))
    return tuple(found)


def match_levels(shape: Triple, coarser: Sequence[tuple[Triple, Sequence[float]]]) -> tuple[PyramidLevel, ...]:
    """Choose the levels of labels as those of their image are.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the labels along (z, y, x).
    coarser : sequence
        For each coarser level of the image its voxels along (z, y, x) and how long they are, in voxels of the labels.
        Ratios between levels are rounded to whole numbers. Where the image has left out the last block because it was
        not whole, the labels do.

    Examples
    --------
    >>> match_levels((9, 30, 31), [((9, 15, 15), (1.0, 2.0, 2.0)), ((5, 8, 8), (2.0, 4.0, 4.0))])
    (PyramidLevel(shape=(9, 15, 15), factors=(1, 2, 2)), PyramidLevel(shape=(5, 8, 8), factors=(2, 2, 2)))
    """
    found: list[PyramidLevel] = []
    last: Sequence[float] = (1.0, 1.0, 1.0)
    for theirs, sizes in coarser:
        ratios = (max(1, round(size / before)) for size, before in zip(sizes, last, strict=True))
        factors = triple(min(f, n) for f, n in zip(ratios, shape, strict=True))
        shape = triple(m if m == n // f else -(-n // f) for m, n, f in zip(theirs, shape, factors, strict=True))
        found.append(PyramidLevel(shape, factors))
        last = sizes
    return tuple(found)


def extend_levels(shape: Triple, levels: Sequence[PyramidLevel], count: int) -> tuple[PyramidLevel, ...]:
    """Add levels of halves to those of an image of some shape, until there are so many: labels need as many as it has.

    Examples
    --------
    >>> extend_levels((1, 40, 40), [PyramidLevel((1, 20, 20), (1, 2, 2))], 2)
    (PyramidLevel(shape=(1, 20, 20), factors=(1, 2, 2)), PyramidLevel(shape=(1, 10, 10), factors=(1, 2, 2)))
    """
    found = list(levels)
    while len(found) < count:
        before = found[-1].shape if found else shape
        found.append(PyramidLevel(triple(-(-n // 2) for n in before), triple(min(2, n) for n in before)))
    return tuple(found)


def compute_resolutions(levels: Sequence[PyramidLevel], method: str) -> tuple[Resolution, ...]:
    """Tell how large the voxels of coarser levels are, and where the first ones lie.

    The centre of a block of f voxels lies (f - 1) / 2 voxels behind the centre of its first one, and it is there that
    the block's mean and mode belong; what was taken of the first voxel stays where it was.

    Examples
    --------
    >>> levels = PyramidLevel((50, 25, 25), (1, 2, 2)), PyramidLevel((25, 13, 13), (2, 2, 2))
    >>> resolutions(levels, "mode")[1]
    Resolution(scale=(2.0, 4.0, 4.0), offset=(0.5, 1.5, 1.5))
    >>> resolutions(levels, "nearest")[1]
    Resolution(scale=(2.0, 4.0, 4.0), offset=(0.0, 0.0, 0.0))
    """
    found, scale = [], (1, 1, 1)
    for level in levels:
        scale = triple(s * f for s, f in zip(scale, level.factors, strict=True))
        z, y, x = (0.0 if method == "nearest" else (s - 1) / 2 for s in scale)
        found.append(Resolution((float(scale[0]), float(scale[1]), float(scale[2])), (z, y, x)))
    return tuple(found)
