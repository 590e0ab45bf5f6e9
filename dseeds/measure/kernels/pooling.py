"""Sums of channels per supervoxel, which do not depend on how a volume is cut.

A supervoxel's row holds its label and its number of voxels. Then for each channel: how many of its voxels have a finite
value; the sums of these values and of their squares, in the format of `dseeds.core.exact_sum`; and the smallest and the
largest of them, as the bits of a float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import BASE, BITS, DIGITS, INVERSES, LIMITS, LOWEST, WIDTH, add_sum, raise_place
from dseeds.core.jit import inlined_jit, jit
from dseeds.measure.kernels.numbering import LabelRuns

# Columns of a row, and those within a channel.
SIZE, CHANNELS = 1, 2
MEASURED, SUM, SQUARES = 0, 1, 1 + WIDTH
SMALLEST = SQUARES + WIDTH
LARGEST = SMALLEST + 1
CHANNEL_WIDTH = LARGEST + 1
LARGEST_FLOAT = np.finfo(np.float64).max
# Splits a float64 into two halves, the products of which are exact.
SPLITTER = float((1 << 27) + 1)


@jit
def pool_channel(values: NDArray[Any], runs: LabelRuns, rows: NDArray[np.int64], begin: int) -> None:
    """Add a channel to the rows of supervoxels; its columns begin at `begin`.

    `values`, float32 or float64, is the channel's window, flat. NaN and infinite values are left out.
    """
    floats = rows.view(np.float64)
    for k in range(len(runs.numbers)):
        i, weight, first = np.int64(runs.numbers[k]), np.int64(runs.weights[k]), np.int64(runs.begins[k])
        measured, least, most = 0, floats[i, begin + SMALLEST], floats[i, begin + LARGEST]
        # The digits of both sums; each is a whole number below 2^53.
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
        place, square_place = rows[i, begin + SUM], rows[i, begin + SQUARES]
        for v in range(first, first + np.int64(runs.lengths[k])):
            # -0.0 becomes 0.0, so that extremes do not depend on which of them comes first.
            value = np.float64(values[v]) + 0.0
            size = abs(value)
            if not size <= LARGEST_FLOAT:
                continue
            square = min(value * value, LARGEST_FLOAT)
            if size >= LIMITS[place] or square >= LIMITS[square_place]:
                _add_digits(rows, i, begin + SUM, weight, a0, a1, a2, a3)
                _add_digits(rows, i, begin + SQUARES, weight, b0, b1, b2, b3)
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
                place = _find_place(rows, i, begin + SUM, size)
                square_place = _find_place(rows, i, begin + SQUARES, square)
            measured += 1
            least = value if value < least else least
            most = value if value > most else most
            rest = value * INVERSES[place]
            digit = np.trunc(rest)
            a0 += digit
            rest = (rest - digit) * BASE
            digit = np.trunc(rest)
            a1 += digit
            rest = (rest - digit) * BASE
            digit = np.trunc(rest)
            a2 += digit
            a3 += np.trunc((rest - digit) * BASE)
            rest = square * INVERSES[square_place]
            digit = np.trunc(rest)
            b0 += digit
            rest = (rest - digit) * BASE
            digit = np.trunc(rest)
            b1 += digit
            rest = (rest - digit) * BASE
            digit = np.trunc(rest)
            b2 += digit
            b3 += np.trunc((rest - digit) * BASE)
        rows[i, begin + MEASURED] += weight * measured
        floats[i, begin + SMALLEST], floats[i, begin + LARGEST] = least, most
        _add_digits(rows, i, begin + SUM, weight, a0, a1, a2, a3)
        _add_digits(rows, i, begin + SQUARES, weight, b0, b1, b2, b3)


@inlined_jit
def _add_digits(
    rows: NDArray[np.int64], i: int, begin: int, weight: int, d0: float, d1: float, d2: float, d3: float
) -> None:
    rows[i, begin + 1] += weight * np.int64(d0)
    rows[i, begin + 2] += weight * np.int64(d1)
    rows[i, begin + 3] += weight * np.int64(d2)
    rows[i, begin + 4] += weight * np.int64(d3)


@jit
def _find_place(rows: NDArray[np.int64], i: int, begin: int, size: float) -> int:
    """Make room in a sum for a number of a size, and return the place of the sum's first digit."""
    place = rows[i, begin]
    while size >= LIMITS[place]:
        place += 1
    if place > rows[i, begin]:
        raise_place(rows, i, begin, place)
    return place


@jit
def combine_pools(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up consecutive rows with the same label."""
    out, used = rows.copy(), 0
    floats, more = out.view(np.float64), rows.view(np.float64)
    for j in range(len(rows)):
        i = used - 1
        if used == 0 or out[i, 0] != rows[j, 0]:
            out[used] = rows[j]
            used += 1
            continue
        out[i, SIZE] += rows[j, SIZE]
        for begin in range(CHANNELS, rows.shape[1], CHANNEL_WIDTH):
            out[i, begin + MEASURED] += rows[j, begin + MEASURED]
            add_sum(out, i, begin + SUM, rows, j)
            add_sum(out, i, begin + SQUARES, rows, j)
            floats[i, begin + SMALLEST] = min(floats[i, begin + SMALLEST], more[j, begin + SMALLEST])
            floats[i, begin + LARGEST] = max(floats[i, begin + LARGEST], more[j, begin + LARGEST])
    return out[:used]


@jit
def compute_means(rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means and standard deviations of channels, float64 (rows, channels); NaN where none is finite.

    Sums and their products are taken as pairs of floats of twice the precision, so that little is lost where the
    deviation is far smaller than the mean. Equal values deviate by 0, though squares of float64 are rounded.
    """
    floats = rows.view(np.float64)
    channels = (rows.shape[1] - CHANNELS) // CHANNEL_WIDTH
    means, deviations = np.full((len(rows), channels), np.nan), np.full((len(rows), channels), np.nan)
    for i in range(len(rows)):
        for c in range(channels):
            begin = CHANNELS + c * CHANNEL_WIDTH
            count = np.float64(rows[i, begin + MEASURED])
            if count == 0:
                continue
            high, low, scale = _read_sum(rows, i, begin + SUM)
            square, square_low, square_scale = _read_sum(rows, i, begin + SQUARES)
            # Divided in two steps, with the remainder of the first.
            quotient = high / count
            product, rest = _multiply(quotient, count)
            mean = quotient + ((high - product) - rest + low) / count
            means[i, c] = math.ldexp(mean, scale)
            if floats[i, begin + SMALLEST] == floats[i, begin + LARGEST]:
                deviations[i, c] = 0.0
                continue
            # count * squares - sum^2, in the scale of sum^2.
            square = math.ldexp(square, square_scale - 2 * scale)
            square_low = math.ldexp(square_low, square_scale - 2 * scale)
            one, one_low = _multiply(square, count)
            two, two_low = _multiply(high, high)
            difference = (one - two) + ((one_low + square_low * count) - (two_low + 2 * high * low))
            deviations[i, c] = math.ldexp(math.sqrt(max(difference, 0.0)) / count, scale)
    return means, deviations


@jit
def _read_sum(rows: NDArray[np.int64], i: int, begin: int) -> tuple[float, float, int]:
    """Return a sum as two floats, the second of which has what the first cannot hold, times a power of two."""
    mask, carry = (1 << BITS) - 1, 0
    pair = np.zeros(DIGITS // 2 + 1)
    for digit in range(DIGITS - 1, -1, -1):
        value = rows[i, begin + 1 + digit] + carry
        carry = value >> BITS
        # Two digits are exact in a float.
        pair[1 + digit // 2] += np.float64(value & mask) * (BASE if digit % 2 == 0 else 1.0)
    # The first digit has the sign, and at most 40 bits.
    pair[0] = np.float64(carry)
    squared = BASE * BASE
    high, low = _add(pair[0] * squared, pair[1])
    high, rest = _add(high * squared, pair[2])
    low = low * squared + rest
    high, low = _add(high, low)
    return high, low, BITS * (LOWEST + int(rows[i, begin]) + 1 - DIGITS)


@inlined_jit
def _add(one: float, two: float) -> tuple[float, float]:
    """Return the sum of two floats and its rounding error; Knuth, TAOCP 2, 4.2.2."""
    total = one + two
    part = total - one
    return total, (one - (total - part)) + (two - part)


@inlined_jit
def _multiply(one: float, two: float) -> tuple[float, float]:
    """Return the product of two floats and its rounding error; Dekker, Numerische Mathematik 18, 1971."""
    product = one * two
    scaled = one * SPLITTER
    one_high = scaled - (scaled - one)
    scaled = two * SPLITTER
    two_high = scaled - (scaled - two)
    one_low, two_low = one - one_high, two - two_high
    error = ((one_high * two_high - product) + one_high * two_low + one_low * two_high) + one_low * two_low
    return product, error
