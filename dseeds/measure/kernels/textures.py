"""Co-occurrence of grey levels in supervoxels: pairs of neighbouring voxels, counted by their bins.

The neighbours of a voxel are the 26 that touch it at least at a corner, so there are 13 directions. A pair counts if
both voxels belong to one supervoxel. All counts are integers, which add up over regions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit

# Bins are numbered in six bits; a supervoxel's number is above them.
BIN_BITS = 6
LEVELS = 1 << BIN_BITS
# The code of a row that holds a supervoxel's voxels instead of pairs, and the number of codes of a channel.
VOXELS, CODES = LEVELS * LEVELS, 2 * LEVELS * LEVELS
# The numbers that a code has room for.
MOST_NUMBERS = 1 << (31 - BIN_BITS)
FIRST_ROWS = 1 << 12
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
    flat = codes.reshape(-1)
    strides = np.empty(13, np.int64)
    d = 0
    for dz in range(2):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if dz > 0 or dy > 0 or (dy == 0 and dx > 0):
                    strides[d] = (dz * ny + dy) * nx + dx
                    d += 1
    starts, begins, lengths = _group_runs(codes, count)
    table, touched = np.zeros(LEVELS * LEVELS, np.int64), np.empty(LEVELS * LEVELS, np.int64)
    rows, used = np.empty((FIRST_ROWS, 3), np.int64), 0
    for number in range(count):
        cells, base = 0, number << BIN_BITS
        for run in range(starts[number], starts[number + 1]):
            for k in range(begins[run], begins[run] + lengths[run]):
                line = (np.int64(flat[k]) - base) << BIN_BITS
                for d in range(13):
                    other = np.int64(flat[k + strides[d]]) - base
                    if other < 0 or other >= LEVELS:
                        continue
                    cell = line + other
                    if table[cell] == 0:
                        touched[cells] = cell
                        cells += 1
                    table[cell] += 1
        while used + cells > len(rows):
            more = np.empty((2 * len(rows), 3), np.int64)
            more[:used] = rows[:used]
            rows = more
        for t in range(cells):
            cell = touched[t]
            one, two = cell >> BIN_BITS, cell & (LEVELS - 1)
            turned = (two << BIN_BITS) + one
            pairs = table[cell]
            if turned != cell:
                pairs += table[turned]
            # Both orders of the bins are one row.
            table[cell] = table[turned] = 0
            if pairs > 0:
                rows[used, 0], rows[used, 1], rows[used, 2] = number, min(cell, turned), pairs
                used += 1
    return rows[:used]


@jit
def _group_runs(codes: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs of voxels along x, supervoxel by supervoxel, without the voxels on the sides of the array.

    Returns where the runs of each of `count` supervoxels start, int64 (count + 1,), and for each run the position of
    its first voxel and its number of voxels.
    """
    nz, ny, nx = codes.shape
    flat = codes.reshape(-1)
    starts = np.zeros(count + 1, np.int64)
    begins, lengths = np.empty(0, np.int64), np.empty(0, np.int64)
    # First the runs are counted, then entered.
    for entering in (False, True):
        for z in range(1, nz - 1):
            for y in range(1, ny - 1):
                k, end = (z * ny + y) * nx + 1, (z * ny + y) * nx + nx - 1
                while k < end:
                    number, begin = flat[k] >> BIN_BITS, k
                    while k < end and flat[k] >> BIN_BITS == number:
                        k += 1
                    if number < 0:
                        continue
                    if entering:
                        begins[starts[number]], lengths[starts[number]] = begin, k - begin
                    starts[number] += 1
        if not entering:
            total = 0
            for number in range(count):
                runs = starts[number]
                starts[number] = total
                total += runs
            begins, lengths = np.empty(total, np.int64), np.empty(total, np.int64)
    # Each start has moved to the end of its runs, where the next ones start.
    for number in range(count, 0, -1):
        starts[number] = starts[number - 1]
    starts[0] = 0
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
