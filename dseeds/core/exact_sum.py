"""Sums of floating-point numbers that do not depend on the order of their terms.

A number's bits are cut into digits of 24 bits, at places that are the same for all numbers, and digits of one place
are added up as integers. A sum keeps the place of the first digit of its largest term, and the digits there and at the
three places below; digits further down are dropped from every term alike. So a sum is exact to 72 bits below the first
digit of its largest term, and it is the same however its terms were grouped. A digit has room for 2^39 terms.

In the spirit of J. Demmel, H. D. Nguyen, "Parallel Reproducible Summation", IEEE Transactions on Computers 64, 2015.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit

BITS, DIGITS = 24, 4
# The columns of a sum in a row: the place of its first digit, counted from the lowest, and its digits.
WIDTH = 1 + DIGITS
BASE = float(1 << BITS)
# The lowest first digit: with three more digits below, it reaches the smallest float64.
LOWEST = -42
# The value of each digit's place, its inverse, and the size from which a number has a digit at the next place.
_UNITS = np.array([math.ldexp(1.0, BITS * (LOWEST + place)) for place in range(85)])
INVERSES = 1 / _UNITS
LIMITS = np.append(_UNITS[1:], np.inf)


@jit
def add_number(rows: NDArray[np.int64], i: int, begin: int, number: float) -> None:
    """Add a finite number to the sum that begins at `begin` in row `i`; all zeros are the empty sum."""
    place = rows[i, begin]
    if abs(number) >= LIMITS[place]:
        while abs(number) >= LIMITS[place]:
            place += 1
        raise_place(rows, i, begin, place)
    rest = number * INVERSES[place]
    for digit in range(begin + 1, begin + WIDTH):
        whole = np.int64(rest)
        rows[i, digit] += whole
        rest -= np.float64(whole)
        if rest == 0.0:
            return
        rest *= BASE


@jit
def add_sum(rows: NDArray[np.int64], i: int, begin: int, more: NDArray[np.int64], j: int) -> None:
    """Add the sum that begins at `begin` in row `j` of `more` to the one in row `i`."""
    if more[j, begin] > rows[i, begin]:
        raise_place(rows, i, begin, more[j, begin])
    below = rows[i, begin] - more[j, begin]
    for digit in range(begin + 1, begin + WIDTH - below):
        rows[i, digit + below] += more[j, digit]


@jit
def raise_place(rows: NDArray[np.int64], i: int, begin: int, place: int) -> None:
    """Make room for numbers whose first digit is at a higher place."""
    by = place - rows[i, begin]
    rows[i, begin] = place
    for digit in range(begin + DIGITS, begin, -1):
        rows[i, digit] = rows[i, digit - by] if digit - by > begin else 0


@jit
def totals(rows: NDArray[np.int64], begin: int) -> NDArray[np.float64]:
    """Return the sums that begin at column `begin` of each row, float64 (rows,).

    They depend on the values of the sums alone, not on the representation of their digits.
    """
    out = np.zeros(len(rows))
    mask = (1 << BITS) - 1
    digits = np.zeros(DIGITS + 2, np.int64)
    for i in range(len(rows)):
        carry = 0
        for digit in range(DIGITS - 1, -1, -1):
            value = rows[i, begin + 1 + digit] + carry
            digits[2 + digit] = value & mask
            carry = value >> BITS
        digits[1] = carry & mask
        # The first digit has the sign.
        digits[0] = carry >> BITS
        total = 0.0
        for digit in digits:
            total = total * BASE + np.float64(digit)
        out[i] = math.ldexp(total, BITS * (LOWEST + rows[i, begin] + 1 - DIGITS))
    return out
