"""The hash of labels that tables are known by: a sum over voxels, which adds up over regions.

A voxel at position p, counted through the whole volume with axes (z, y, x), adds ``mix(label) * (mix(p + 1 + K) - mix(p
+ K))`` modulo 2^64. Along a run of equal labels all terms but two cancel, so that only the ends of runs cost anything.
Voxels of label 0 add 0. `mix`, a bijection of 64-bit integers, is the finaliser of SplitMix64: G. L. Steele, D. Lea,
C. H. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import inlined_jit, jit

# Position 0 would not be mixed otherwise.
OFFSET = np.uint64(0x9E3779B97F4A7C15)


@jit
def hash_labels(labels: NDArray[Any], lo: Triple, extent: Triple, origin: Triple, volume: Triple) -> int:
    """Return the sum of the hashes of a box's voxels, uint64.

    `labels`, uint32 or int64, C-contiguous, are a window (z, y, x) in which the box of an `extent` begins at `lo`. In
    the volume, whose shape is `volume`, the box begins at `origin`.
    """
    total = np.uint64(0)
    for z in range(extent[0]):
        for y in range(extent[1]):
            line = labels[lo[0] + z, lo[1] + y, lo[2] : lo[2] + extent[2]]
            begin = ((origin[0] + z) * volume[1] + origin[1] + y) * volume[2] + origin[2]
            total += _hash_line(line, np.uint64(begin))
    return total


@inlined_jit
def _hash_line(line: NDArray[Any], begin: int) -> int:
    """Return the sum of the hashes of a line of voxels along x, whose first one is at position `begin`."""
    total, previous, factor = np.uint64(0), np.int64(0), np.uint64(0)
    for x in range(line.size):
        label = np.int64(line[x])
        if label != previous:
            other = _mix(np.uint64(label))
            total += (factor - other) * _mix(begin + np.uint64(x) + OFFSET)
            previous, factor = label, other
    return total + factor * _mix(begin + np.uint64(line.size) + OFFSET)


@inlined_jit
def _mix(number: int) -> int:
    """Return a uint64 in which every bit of another one takes part; 0 for 0."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
