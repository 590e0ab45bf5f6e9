"""What is measured of supervoxels and of their contacts: a row of integers for each, which add up over regions.

A supervoxel's row has its label; its size and the sums of its voxels' z, y and x; the least and the greatest z, y and
x; and how many pairs of its own voxels touch along z, y and x. Then for each channel: how many intensities were
measured; the sums of their units and of the units' squares, both as a part above 24 bits and one below; the sums of the
intensities that have no units, and of their squares, as `kernel.exact` has them, with the pivot taken off; the least
and the greatest intensity, as the bits of a float64; and how many are in each bin.

A contact's row has the two labels, the lower one first, and the voxel faces along z, y and x. Then for each channel: at
how many faces the step in intensity was measured, the sums of the steps in units along z, y and x, and that of the
steps that have no units, as `kernel.exact` has it, per unit of length.

Units are what intensities are rounded to, so that they can be added up as integers. What is too far from the window to
be one is added up as it is; which of the two depends on the intensity alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import BITS, WIDTH, add_number, add_sum
from dseeds.core.geometry import Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.contacts import hash_pair
from dseeds.seeds.kernels.voxels import BINS

# Where in a supervoxel's row is what.
SIZE, SUMS, LEAST, MOST, INNER, CHANNELS = 1, 2, 5, 8, 11, 14
# Where in a channel's part of it, and how long that is.
MEASURED, SUM, SQUARES, FAR, FAR_SQUARES = 0, 1, 3, 5, 5 + WIDTH
LOW = FAR_SQUARES + WIDTH
HIGH, HISTOGRAM = LOW + 1, LOW + 2
CHANNEL = HISTOGRAM + BINS
# The same of a contact's row.
FACES, STEPS = 2, 5
STEPS_MEASURED, STEP, FAR_STEP = 0, 1, 4
STEP_CHANNEL = FAR_STEP + WIDTH
# Units are less than this, and runs no longer, so that the squares of a run's units add up in 63 bits; and what stands
# for none.
LARGEST_UNIT, LONGEST = 1 << 27, 1 << 9
NO_UNIT = -(1 << 31)
# Rows at first, a power of two.
ROWS = 1024
LARGEST = np.finfo(np.float64).max


@jit
def in_units(image: NDArray[Any], pivot: float, scale: float, units: NDArray[np.int32]) -> None:
    """Round intensities to units: so many for each above the pivot; `NO_UNIT` for what is too far, or no number."""
    for z in range(units.shape[0]):
        for y in range(units.shape[1]):
            for x in range(units.shape[2]):
                value = (np.float64(image[z, y, x]) - pivot) * scale
                near = -LARGEST_UNIT < value < LARGEST_UNIT
                units[z, y, x] = np.int32(np.rint(value)) if near else NO_UNIT


@jit
def accumulate_features(
    labels: NDArray[Any],
    shape: Triple,
    origin: Triple,
    images: NDArray[np.float64],
    units: NDArray[np.int32],
    pivots: NDArray[np.float64],
    bins: NDArray[np.uint8],
    lengths: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Measure the voxels of a region, and the faces between them and at their sides towards higher z, y and x.

    Parameters
    ----------
    labels : ndarray of uint32 or int64, shape (z, y, x)
        A window of labels, 0 where masked out: the region and, along each axis where the volume goes on, one voxel more
        at the upper end.
    shape : tuple of int
        Of the region.
    origin : tuple of int
        The region's first voxel (z, y, x) in the volume.
    images : ndarray of float64, shape (channels, z, y, x)
        The intensities of the window; of no size if they are integers, and all have units of 1.
    units : ndarray of int32, shape (channels, z, y, x)
        The intensities in units, see `in_units`.
    pivots : ndarray of float64, shape (channels,)
        What was taken off each channel's intensities.
    bins : ndarray of uint8, shape (channels, z, y, x)
        The window's quantised voxels; those from `BINS` on are not measured.
    lengths : ndarray of float64, shape (3,)
        From a voxel to the next along z, y and x.

    Returns
    -------
    voxels : ndarray of int64, shape (supervoxels, CHANNELS + channels * CHANNEL)
        The supervoxels' rows, in any order.
    contacts : ndarray of int64, shape (contacts, STEPS + channels * STEP_CHANNEL)
        The contacts' rows, in any order.
    """
    channels, empty = len(units), np.array([np.inf, -np.inf]).view(np.int64)
    # Rows lie in the order in which they are met, which keeps those of neighbours together.
    found, rows = np.zeros(2 * ROWS, np.int32), np.zeros((ROWS, CHANNELS + channels * CHANNEL), np.int64)
    touching, steps = np.zeros(2 * ROWS, np.int32), np.zeros((ROWS, STEPS + channels * STEP_CHANNEL), np.int64)
    limits, cells = rows.view(np.float64), rows.reshape(-1)
    count, contacts, real = 0, 0, images.size > 0
    # Flat, and with indices that have no sign: others would be looked at for it each time.
    ids, levels, bins, values = labels.reshape(-1), units.reshape(-1), bins.reshape(-1), images.reshape(-1)
    nz, ny, nx = labels.shape
    before = np.zeros((3, nx), np.int64)
    for z in range(shape[0]):
        for y in range(shape[1]):
            # A row of voxels adds at most this many.
            while count + shape[2] > len(rows):
                found, rows = _doubled(found, rows, count, 1)
                limits, cells = rows.view(np.float64), rows.reshape(-1)
            while contacts + 3 * shape[2] > len(steps):
                touching, steps = _doubled(touching, steps, contacts, 2)
            row = np.uint64((z * ny + y) * nx)
            last = row + np.uint64(shape[2])
            end = row
            while end < last:
                first, label = end, np.int64(ids[end])
                limit = min(last, first + np.uint64(LONGEST))
                while end < limit and ids[end] == label:
                    end += np.uint64(1)
                if label == 0:
                    continue
                place = hash_pair(label, 0) & (len(found) - 1)
                while found[place] != 0 and rows[found[place] - 1, 0] != label:
                    place = (place + 1) & (len(found) - 1)
                i = np.int64(found[place]) - 1
                if i < 0:
                    i = count
                    count += 1
                    found[place] = count
                    rows[i, 0] = label
                    for axis in range(3):
                        rows[i, LEAST + axis] = np.iinfo(np.int64).max
                    for c in range(channels):
                        rows[i, CHANNELS + c * CHANNEL + LOW] = empty[0]
                        rows[i, CHANNELS + c * CHANNEL + HIGH] = empty[1]
                length, x = np.int64(end - first), origin[2] + np.int64(first - row)
                rows[i, SIZE] += length
                rows[i, SUMS] += length * (origin[0] + z)
                rows[i, SUMS + 1] += length * (origin[1] + y)
                rows[i, SUMS + 2] += length * (2 * x + length - 1) // 2
                rows[i, LEAST] = min(rows[i, LEAST], origin[0] + z)
                rows[i, LEAST + 1] = min(rows[i, LEAST + 1], origin[1] + y)
                rows[i, LEAST + 2] = min(rows[i, LEAST + 2], x)
                rows[i, MOST] = max(rows[i, MOST], origin[0] + z)
                rows[i, MOST + 1] = max(rows[i, MOST + 1], origin[1] + y)
                rows[i, MOST + 2] = max(rows[i, MOST + 2], x + length - 1)
                rows[i, INNER + 2] += length - 1
                for c in range(channels):
                    begin, offset = CHANNELS + c * CHANNEL, np.uint64(c * nz * ny * nx)
                    measured, total, squares = 0, np.int64(0), np.int64(0)
                    least, most = np.int64(LARGEST_UNIT), np.int64(-LARGEST_UNIT)
                    low, high = limits[i, begin + LOW], limits[i, begin + HIGH]
                    histogram = np.uint64(i * rows.shape[1] + begin + HISTOGRAM)
                    for k in range(offset + first, offset + end):
                        unit, bin_ = np.int64(levels[k]), np.uint64(bins[k])
                        if bin_ < np.uint64(BINS) and unit != NO_UNIT:
                            measured += 1
                            cells[histogram + bin_] += 1
                            total += unit
                            squares += unit * unit
                            least, most = min(least, unit), max(most, unit)
                            if real:
                                low = values[k] if values[k] < low else low
                                high = values[k] if values[k] > high else high
                        elif bin_ < np.uint64(BINS):
                            cells[histogram + bin_] += 1
                            if math.isfinite(values[k]):
                                measured += 1
                                low, high = min(low, values[k]), max(high, values[k])
                                far = max(-LARGEST, min(LARGEST, values[k] - pivots[c]))
                                add_number(rows, i, begin + FAR, far)
                                add_number(rows, i, begin + FAR_SQUARES, min(LARGEST, far * far))
                    if not real and measured:
                        low, high = min(low, pivots[c] + np.float64(least)), max(high, pivots[c] + np.float64(most))
                    rows[i, begin + MEASURED] += measured
                    rows[i, begin + SUM] += total >> BITS
                    rows[i, begin + SUM + 1] += total & ((1 << BITS) - 1)
                    rows[i, begin + SQUARES] += squares >> BITS
                    rows[i, begin + SQUARES + 1] += squares & ((1 << BITS) - 1)
                    limits[i, begin + LOW], limits[i, begin + HIGH] = low, high
                for axis in range(3):
                    # The voxels on the other sides of the run's faces; along x there is one, behind its end.
                    at_end = z + 1 == nz if axis == 0 else y + 1 == ny if axis == 1 else end == row + np.uint64(nx)
                    if at_end:
                        continue
                    apart = np.uint64(ny * nx if axis == 0 else nx if axis == 1 else 1)
                    k = end - np.uint64(1) if axis == 2 else first
                    while k < end:
                        start, other = k, np.int64(ids[k + apart])
                        while k < end and ids[k + apart] == other:
                            k += np.uint64(1)
                        faces = np.int64(k - start)
                        if other == label:
                            rows[i, INNER + axis] += faces
                            continue
                        if other == 0:
                            continue
                        low, high = min(label, other), max(label, other)
                        # As a rule it is the contact that was met here in the row before.
                        j = before[axis, start - row]
                        if steps[j, 0] != low or steps[j, 1] != high:
                            place = hash_pair(low, high) & (len(touching) - 1)
                            while touching[place] != 0 and (
                                steps[touching[place] - 1, 0] != low or steps[touching[place] - 1, 1] != high
                            ):
                                place = (place + 1) & (len(touching) - 1)
                            j = np.int64(touching[place]) - 1
                            before[axis, start - row] = j
                        if j < 0:
                            j = contacts
                            before[axis, start - row] = j
                            contacts += 1
                            touching[place] = contacts
                            steps[j, 0], steps[j, 1] = low, high
                        steps[j, FACES + axis] += faces
                        for c in range(channels):
                            begin, offset = STEPS + c * STEP_CHANNEL, np.uint64(c * nz * ny * nx)
                            measured, total = 0, np.int64(0)
                            for at in range(offset + start, offset + k):
                                here, there = np.int64(levels[at]), np.int64(levels[at + apart])
                                if here != NO_UNIT and there != NO_UNIT:
                                    total += abs(here - there)
                                    measured += 1
                                    continue
                                size = abs(values[at] - values[at + apart]) / lengths[axis]
                                if math.isfinite(size):
                                    add_number(steps, j, begin + FAR_STEP, size)
                                    measured += 1
                            steps[j, begin + STEPS_MEASURED] += measured
                            steps[j, begin + STEP + axis] += total
    return rows[:count], steps[:contacts]


@jit
def _doubled(
    table: NDArray[np.int32], rows: NDArray[np.int64], count: int, keys: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Make room for twice as many rows, which begin with one or two keys."""
    more = np.zeros((2 * rows.shape[0], rows.shape[1]), np.int64)
    more[:count] = rows[:count]
    table = np.zeros(2 * len(table), np.int32)
    for i in range(count):
        place = hash_pair(rows[i, 0], rows[i, 1] if keys == 2 else 0) & (len(table) - 1)
        while table[place] != 0:
            place = (place + 1) & (len(table) - 1)
        table[place] = i + 1
    return table, more


@jit
def combine_voxels(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up rows of supervoxels that follow each other and have the same label."""
    out, used = rows.copy(), 0
    limits, more = out.view(np.float64), rows.view(np.float64)
    for j in range(len(rows)):
        i = used - 1
        if used == 0 or out[i, 0] != rows[j, 0]:
            out[used] = rows[j]
            used += 1
            continue
        for k in range(SIZE, LEAST):
            out[i, k] += rows[j, k]
        for k in range(LEAST, MOST):
            out[i, k] = min(out[i, k], rows[j, k])
        for k in range(MOST, INNER):
            out[i, k] = max(out[i, k], rows[j, k])
        for k in range(INNER, CHANNELS):
            out[i, k] += rows[j, k]
        for begin in range(CHANNELS, rows.shape[1], CHANNEL):
            out[i, begin + MEASURED] += rows[j, begin + MEASURED]
            for k in range(begin + SUM, begin + FAR):
                out[i, k] += rows[j, k]
            add_sum(out, i, begin + FAR, rows, j)
            add_sum(out, i, begin + FAR_SQUARES, rows, j)
            limits[i, begin + LOW] = min(limits[i, begin + LOW], more[j, begin + LOW])
            limits[i, begin + HIGH] = max(limits[i, begin + HIGH], more[j, begin + HIGH])
            for k in range(begin + HISTOGRAM, begin + CHANNEL):
                out[i, k] += rows[j, k]
    return out[:used]


@jit
def combine_contacts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up rows of contacts that follow each other and have the same labels."""
    out, used = rows.copy(), 0
    for j in range(len(rows)):
        i = used - 1
        if used == 0 or out[i, 0] != rows[j, 0] or out[i, 1] != rows[j, 1]:
            out[used] = rows[j]
            used += 1
            continue
        for k in range(FACES, STEPS):
            out[i, k] += rows[j, k]
        for begin in range(STEPS, rows.shape[1], STEP_CHANNEL):
            for k in range(begin, begin + FAR_STEP):
                out[i, k] += rows[j, k]
            add_sum(out, i, begin + FAR_STEP, rows, j)
    return out[:used]
