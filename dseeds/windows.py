"""The intensity window: which intensities are told apart.

The window's percentiles are exact order statistics, found digit by digit: each pass over the image counts one 16-bit
digit of the values' order-preserving bit patterns, and the counts of any cut of the image simply add up. So the
window does not depend on the chunking, and takes one pass for 8 and 16 bits, two for 32, four for 64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.compilation import jit

DIGIT_BITS = 16
# Per mille of the voxels below the window and, from the other end, above it.
PER_MILLE = 5
SLAB_BYTES = 16 << 20


class NothingFinite(ValueError):
    """The image holds no finite value."""

    def __init__(self) -> None:
        super().__init__("the image holds no finite value, so there is nothing to cut into supervoxels.")


def check_window(window: Sequence[float]) -> tuple[float, float]:
    """Check an intensity window given by the user.

    Raises
    ------
    ValueError
        If it is not two finite numbers, the first below the second.
    """
    try:
        lo, hi = (float(v) for v in window)
    except (TypeError, ValueError):
        lo, hi = math.nan, math.nan
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"window must be two finite intensities (low, high) with low < high, got {window!r}.")
    return lo, hi


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array contiguous and in the machine's byte order, float16 as float32; copied only where needed."""
    return np.ascontiguousarray(array, dtype=plain_dtype(array.dtype))


def plain_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Give a dtype that Numba knows and that holds the same values."""
    native = dtype.newbyteorder("=")
    return np.dtype(np.float32) if native == np.float16 else native


@jit
def _count_digits(
    bits: NDArray[Any],
    sign: np.uint64,
    infinity: np.uint64,
    shift: np.uint64,
    prefixes: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    for raw in bits:
        key = np.uint64(raw)
        if infinity != 0:
            if (key & ~sign) >= infinity:
                continue
            # Negative floats are ordered backwards.
            key = (~key & (sign | (sign - np.uint64(1)))) if key & sign else key | sign
        else:
            key ^= sign
        for j in range(len(prefixes)):
            if (key >> shift) >> np.uint64(DIGIT_BITS) == prefixes[j]:
                counts[j, (key >> shift) & np.uint64(0xFFFF)] += 1


@dataclass
class OrderStatistics:
    """Minimum, window and maximum of an image's finite values, found in passes over it.

    Feed `counts` of every part of the image, summed, to `narrow`, until `done`; then ask for `window`.

    Examples
    --------
    >>> image = np.arange(1001, dtype=np.int32)
    >>> search = OrderStatistics(image.dtype)
    >>> while not search.done:
    ...     search.narrow(search.counts(image))
    >>> search.window()
    (5.0, 995.0)
    """

    dtype: np.dtype[Any]
    prefixes: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = ()
    shift: int = field(init=False)
    which: tuple[int, ...] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        self.dtype = plain_dtype(self.dtype)
        self.shift = max(0, 8 * self.dtype.itemsize - DIGIT_BITS)

    @property
    def passes(self) -> int:
        """How many passes over the image the search takes."""
        return max(1, 8 * self.dtype.itemsize // DIGIT_BITS)

    @property
    def done(self) -> bool:
        """Whether every digit is known."""
        return self.shift < 0

    def counts(self, part: NDArray[Any]) -> NDArray[np.int64]:
        """Count the current digit in a part of the image of any shape and memory order.

        Returns
        -------
        ndarray of int64, shape (prefixes, 65536)
        """
        counts = np.zeros((len(self.prefixes), 1 << DIGIT_BITS), np.int64)
        sign, infinity = _sign(self.dtype), _infinity(self.dtype)
        prefixes = np.array(self.prefixes, np.uint64)
        for slab in _slabs(part):
            bits = plain(slab).reshape(-1).view(f"u{self.dtype.itemsize}")
            _count_digits(bits, sign, infinity, np.uint64(self.shift), prefixes, counts)
        return counts

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Take the next digit of each of the four values from the counts of the whole image.

        Raises
        ------
        ValueError
            If there is no finite value.
        """
        if not self.ranks:
            last = int(counts.sum()) - 1
            if last < 0:
                raise NothingFinite
            self.ranks = (0, last * PER_MILLE // 1000, last - last * PER_MILLE // 1000, last)
        found, ranks = [], []
        for j, rank in zip(self.which, self.ranks, strict=True):
            below = np.cumsum(counts[j])
            digit = int(np.searchsorted(below, rank, side="right"))
            found.append((self.prefixes[j] << DIGIT_BITS) | digit)
            ranks.append(rank - int(below[digit] - counts[j, digit]))
        self.prefixes = tuple(sorted(set(found)))
        self.which = tuple(self.prefixes.index(key) for key in found)
        self.ranks = tuple(ranks)
        self.shift -= DIGIT_BITS

    def state(self) -> dict[str, Any]:
        """Give what has been found so far as plain values."""
        return {name: getattr(self, name) for name in ("prefixes", "ranks", "shift", "which")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another search has come to."""
        self.prefixes, self.ranks, self.which = (tuple(state[name]) for name in ("prefixes", "ranks", "which"))
        self.shift = state["shift"]

    def window(self) -> tuple[float, float]:
        """Give the values at 0.5 % and 99.5 %; where these are equal, the least and the greatest."""
        least, low, high, greatest = (self._value(self.prefixes[j]) for j in self.which)
        return (low, high) if low < high else (least, greatest)

    def _value(self, key: int) -> float:
        sign = int(_sign(self.dtype))
        if self.dtype.kind == "f":
            key = key & ~sign if key & sign else ~key & (2 * sign - 1)
        else:
            key ^= sign
        return float(np.array(key, np.uint64).astype(f"u{self.dtype.itemsize}").view(self.dtype))


def _sign(dtype: np.dtype[Any]) -> np.uint64:
    return np.uint64(0 if dtype.kind == "u" else 1 << (8 * dtype.itemsize - 1))


def _infinity(dtype: np.dtype[Any]) -> np.uint64:
    return np.uint64(np.array(np.inf, dtype).view(f"u{dtype.itemsize}")) if dtype.kind == "f" else np.uint64(0)


def _slabs(part: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut an array along its slowest axis in memory, so that a copy stays small whatever the memory order."""
    part = part.transpose(sorted(range(part.ndim), key=lambda axis: -abs(part.strides[axis])))
    thickness = max(1, SLAB_BYTES * len(part) // max(1, part.nbytes)) if part.ndim else 1
    for begin in range(0, len(part), thickness):
        yield part[begin : begin + thickness]


def intensity_window(image: NDArray[Any]) -> tuple[float, float]:
    """Find the default intensity window of an image in memory: its percentiles 0.5 and 99.5.

    Parameters
    ----------
    image : ndarray
        Any shape, integer or float.

    Returns
    -------
    tuple of float
        Low and high; equal for a constant image.

    Raises
    ------
    ValueError
        If there is no finite value.
    """
    search = OrderStatistics(image.dtype)
    while not search.done:
        search.narrow(search.counts(image))
    return search.window()
