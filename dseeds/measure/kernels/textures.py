"""Co-occurrence of grey levels in supervoxels: pairs of neighbouring voxels, counted by their bins.

The neighbours of a voxel are the 26 that touch it at least at a corner, so there are 13 directions. A pair counts if
both voxels belong to one supervoxel. All counts are integers, which add up over regions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import inlined_jit, jit

# Bins are numbered in six bits; a supervoxel's number is above them.
BIN_BITS = 6
LEVELS = 1 << BIN_BITS
# The code of a row that holds a supervoxel's voxels instead of pairs, and the number of codes of a channel.
VOXELS, CODES = LEVELS * LEVELS, 2 * LEVELS * LEVELS
# The numbers that a code has room for.
MOST_NUMBERS = 1 << (31 - BIN_BITS)
FIRST_ROWS = 1 << 12
# The voxels of a region for which counts of 32 bits suffice.
MOST_VOXELS = (1 << 32) // 13
CONTRAST, HOMOGENEITY, ENERGY, ENTROPY = range(4)
# 1 / (1 + d^2) for each difference of two bins.
_CLOSENESS = 1 / (1 + np.arange(LEVELS) ** 2)


@jit
def encode_levels(numbers: NDArray[np.int32], bins: NDArray[np.uint8], at: Triple, codes: NDArray[np.int32]) -> None:
    """Write numbers of supervoxels and bins as codes, number * LEVELS + bin, the first at the position `at`.

    Where the number is negative or the bin is not below LEVELS, nothing is written.
    """
    nz, ny, nx = numbers.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if numbers[z, y, x] >= 0 and bins[z, y, x] < LEVELS:
                    code = (numbers[z, y, x] << BIN_BITS) + np.int32(bins[z, y, x])
                    codes[at[0] + z, at[1] + y, at[2] + x] = code


@jit
def count_cooccurrences(codes: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Count the pairs of neighbouring bins in each of `count` supervoxels of a region.

    `codes` (z, y, x) are those of `encode_levels`, -1 elsewhere: the region, and around it one more voxel on all sides.
    A pair belongs to the region of the voxel that comes first.

    Returns rows, int64 (n, 3), in the order of the supervoxels: the number, the lower bin * LEVELS + the higher one,
    and the pairs.
    """
    _, ny, nx = codes.shape
    flat = codes.reshape(-1).view(np.uint32)
    strides = np.empty(13, np.uint64)
    d = 0
    for dz in range(2):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if dz > 0 or dy > 0 or (dy == 0 and dx > 0):
                    strides[d] = np.uint64((dz * ny + dy) * nx + dx)
                    d += 1
    starts, begins, lengths = _group_runs(codes, count)
    table = np.zeros((LEVELS, LEVELS), np.uint32)
    rows, used = np.empty((FIRST_ROWS, 3), np.int64), 0
    for number in range(count):
        if used + table.size > len(rows):
            more = np.empty((2 * len(rows), 3), np.int64)
            more[:used] = rows[:used]
            rows = more
        base, levels = np.uint32(number << BIN_BITS), np.uint64(0)
        for run in range(starts[number], starts[number + 1]):
            begin = np.uint64(begins[run])
            levels |= _count_run(flat, begin, begin + np.uint64(lengths[run]), strides, base, table)
        used = _take_rows(table, levels, number, rows, used)
    return rows[:used]


@inlined_jit
def _count_run(
    flat: NDArray[np.uint32], begin: int, end: int, strides: NDArray[np.uint64], base: int, table: NDArray[np.uint32]
) -> int:
    """Count the pairs of a run of voxels of the supervoxel whose codes begin at `base`; return its bins as bits."""
    levels = np.uint64(0)
    for k in range(begin, end):
        level = np.uint64(flat[k] - base)
        levels |= np.uint64(1) << level
        for d in range(13):
            # The codes of other supervoxels, and -1, are beyond all levels.
            other = flat[k + strides[d]] - base
            if other < np.uint32(LEVELS):
                table[level, np.uint64(other)] += np.uint32(1)
    return levels


@jit
def _take_rows(table: NDArray[np.uint32], levels: int, number: int, rows: NDArray[np.int64], used: int) -> int:
    """Move the counts of a supervoxel from the table to rows, both orders of two bins to one; return the rows used.

    Only the lines of the table whose bits are set in `levels` hold counts.
    """
    for one in range(LEVELS):
        if (levels >> np.uint64(one)) & np.uint64(1):
            for two in range(one):
                if table[one, two]:
                    table[two, one] += table[one, two]
                    table[one, two] = 0
                    levels |= np.uint64(1) << np.uint64(two)
    for one in range(LEVELS):
        if (levels >> np.uint64(one)) & np.uint64(1):
            for two in range(one, LEVELS):
                if table[one, two]:
                    rows[used, 0], rows[used, 1], rows[used, 2] = number, (one << BIN_BITS) + two, table[one, two]
                    table[one, two] = 0
                    used += 1
    return used


@jit
def _group_runs(codes: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs of voxels along x, supervoxel by supervoxel, without the voxels on the sides of the array.

    Returns where the runs of each of `count` supervoxels start, int64 (count + 1,), and for each run the position of
    its first voxel and its number of voxels.
    """
    nz, ny, nx = codes.shape
    flat = codes.reshape(-1)
    runs, found = np.empty((FIRST_ROWS, 3), np.int64), 0
    starts = np.zeros(count + 1, np.int64)
    for z in range(1, nz - 1):
        for y in range(1, ny - 1):
            if found + nx > len(runs):
                more = np.empty((2 * len(runs) + nx, 3), np.int64)
                more[:found] = runs[:found]
                runs = more
            k, end = np.uint64((z * ny + y) * nx + 1), np.uint64((z * ny + y) * nx + nx - 1)
            while k < end:
                number, begin = flat[k] >> BIN_BITS, k
                while k < end and flat[k] >> BIN_BITS == number:
                    k += np.uint64(1)
                if number >= 0:
                    runs[found, 0], runs[found, 1], runs[found, 2] = number, begin, k - begin
                    found += 1
                    starts[number + 1] += 1
    starts = np.cumsum(starts)
    begins, lengths, ends = np.empty(found, np.int64), np.empty(found, np.int64), starts.copy()
    for number, begin, length in runs[:found]:
        begins[ends[number]], lengths[ends[number]] = begin, length
        ends[number] += 1
    return starts, begins, lengths


@jit
def compute_textures(
    rows: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the number of pairs of supervoxels, int64 (n,), and their textures, float64 (n, 4); NaN without pairs.

    `rows` (m, 2) hold the bins and the pairs, see `count_cooccurrences`, sorted; those of a supervoxel are from its
    start on to the next, `starts` (n + 1,). Textures are the contrast, the homogeneity, the energy and the entropy of
    the symmetric matrix of co-occurrence.
    """
    count = len(starts) - 1
    numbers, textures = np.zeros(count, np.int64), np.full((count, 4), np.nan)
    for i in range(count):
        total = 0
        for k in range(starts[i], starts[i + 1]):
            total += rows[k, 1]
        numbers[i] = total
        if total == 0:
            continue
        contrast, homogeneity, squares, entropy = 0, 0.0, 0.0, 0.0
        for k in range(starts[i], starts[i + 1]):
            low, high = rows[k, 0] >> BIN_BITS, rows[k, 0] & (LEVELS - 1)
            contrast += rows[k, 1] * (high - low) ** 2
            homogeneity += np.float64(rows[k, 1]) * _CLOSENESS[high - low]
            # Two equal entries of the matrix, or one on its diagonal.
            entries = 1.0 if low == high else 2.0
            probability = np.float64(rows[k, 1]) / np.float64(total) / entries
            squares += entries * probability * probability
            entropy -= entries * probability * math.log(probability)
        textures[i, CONTRAST] = np.float64(contrast) / np.float64(total)
        textures[i, HOMOGENEITY] = homogeneity / np.float64(total)
        textures[i, ENERGY] = math.sqrt(squares)
        textures[i, ENTROPY] = entropy
    return numbers, textures
