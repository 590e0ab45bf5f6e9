"""Kernels that reduce blocks of voxels to single voxels of a coarser level."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit


@jit
def take_modes(values: NDArray[Any], factors: Triple, out: NDArray[Any]) -> None:
    """Write the most frequent label of each block of `factors` voxels; of several equally frequent ones the smallest.

    Blocks at the upper ends may be incomplete. Voxels beyond the blocks of `out`, of the same dtype, are left out.

    >>> labels, out = np.array([[[7, 7, 3, 7, 5, 2]]]), np.zeros((1, 1, 2), np.int64)
    >>> take_modes(labels, (1, 1, 4), out)
    >>> out
    array([[[7, 2]]])
    """
    dz, dy, dx = factors
    block = np.empty(dz * dy * dx, values.dtype)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                first, count, mixed = values[z * dz, y * dy, x * dx], 0, False
                for k in range(z * dz, min(z * dz + dz, values.shape[0])):
                    for j in range(y * dy, min(y * dy + dy, values.shape[1])):
                        for i in range(x * dx, min(x * dx + dx, values.shape[2])):
                            block[count] = values[k, j, i]
                            mixed |= block[count] != first
                            count += 1
                # Most blocks lie within one supervoxel.
                out[z, y, x] = _mode(block, count) if mixed else first


@jit
def _mode(block: NDArray[Any], count: int) -> Any:
    """Sort the first `count` labels of a block in place, and return the label of the longest run."""
    for end in range(1, count):
        label, i = block[end], end
        while i > 0 and block[i - 1] > label:
            block[i] = block[i - 1]
            i -= 1
        block[i] = label
    best, longest, begin = block[0], 0, 0
    for end in range(1, count + 1):
        if end == count or block[end] != block[begin]:
            # Of equally long runs the first has the smallest label.
            if end - begin > longest:
                best, longest = block[begin], end - begin
            begin = end
    return best


def take_means(values: NDArray[Any], factors: Triple, out: NDArray[Any]) -> None:
    """Write the mean of each block of `factors` voxels, of the same dtype; blocks are those of `take_modes`.

    Means of integers are exact, and rounded to the nearest integer, halves to the even one. Floats are summed along x,
    y and z, in this order, in 64 bits, without those that are NaN; where all are, the mean is NaN.

    >>> values, out = np.array([[[1, 2, 3, 4, -7]]], np.int16), np.zeros((1, 1, 3), np.int16)
    >>> take_means(values, (1, 1, 2), out)
    >>> out
    array([[[ 2,  4, -7]]], dtype=int16)
    """
    if values.dtype.kind == "f":
        _mean_floats(values, factors, out)
    else:
        wide = np.uint64 if values.dtype == np.uint64 else np.int64
        _mean_integers(values, factors, np.array([0, 1, 2], wide), out)


@jit
def _mean_integers(values: NDArray[Any], factors: Triple, digits: NDArray[Any], out: NDArray[Any]) -> None:
    dz, dy, dx = factors
    # All integers have the same type of 64 bits, since Numba converts int64 and uint64 together to floats.
    zero, one, two = digits
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                depth = min(dz, values.shape[0] - z * dz)
                height = min(dy, values.shape[1] - y * dy)
                width = min(dx, values.shape[2] - x * dx)
                count = digits.dtype.type(depth * height * width)
                # Quotients and remainders are summed separately: the sum of a block may need more than 64 bits.
                mean, rest = zero, zero
                for k in range(z * dz, z * dz + depth):
                    for j in range(y * dy, y * dy + height):
                        for i in range(x * dx, x * dx + width):
                            value = zero + values[k, j, i]
                            mean += value // count
                            rest += value % count
                mean += rest // count
                rest %= count
                # Halves go to the even neighbour.
                if rest > count - rest or (rest == count - rest and mean % two == one):
                    mean += one
                out[z, y, x] = mean


@jit
def _mean_floats(values: NDArray[Any], factors: Triple, out: NDArray[Any]) -> None:
    dz, dy, dx = factors
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                total, count = 0.0, 0
                for k in range(z * dz, min(z * dz + dz, values.shape[0])):
                    for j in range(y * dy, min(y * dy + dy, values.shape[1])):
                        for i in range(x * dx, min(x * dx + dx, values.shape[2])):
                            if values[k, j, i] == values[k, j, i]:
                                total += values[k, j, i]
                                count += 1
                out[z, y, x] = total / count if count else np.nan
