"""Step 1: exact percentiles, from which the intensity windows follow.

Percentiles are order statistics, searched digit by digit: each pass over the image counts one 16-bit digit of the
values' order-preserving bit patterns, and the counts of any cut of the image add up. So a window does not depend on the
chunks. It takes one pass for 8 and 16 bits, two for 32, four for 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import native_dtype, native_values
from dseeds.core.jit import jit
from dseeds.seeds.intensity_windows import DEFAULT_PERCENTILES, MILLION, Limits

DIGIT_BITS = 16
# The size of a slab that is copied to be contiguous.
COPY_BYTES = 16 << 20


class NoFiniteValues(ValueError):
    """The image, or one of its channels, holds no finite value."""

    def __init__(self, where: str = "the image") -> None:
        super().__init__(where)

    def __str__(self) -> str:
        return (
            f"{self.args[0]} holds no finite value, or none inside the mask where one is given, so there is nothing to "
            "cut into supervoxels."
        )


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
    """The search for the minimum, the window and the maximum of a channel's finite values.

    Pass the sum of `count` over all parts of the image to `narrow` until `done`; then call `window`.

    Examples
    --------
    >>> image = np.arange(1001, dtype=np.int32)
    >>> search = OrderStatistics(image.dtype)
    >>> while not search.done:
    ...     search.narrow(search.count(image))
    >>> search.window()
    (5.0, 995.0)
    """

    dtype: np.dtype[Any]
    percentiles: tuple[int, int] = DEFAULT_PERCENTILES
    prefixes: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = ()
    shift: int = field(init=False)
    which: tuple[int, ...] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        self.dtype = native_dtype(self.dtype)
        self.shift = max(0, 8 * self.dtype.itemsize - DIGIT_BITS)

    @property
    def passes(self) -> int:
        """The number of passes over the image."""
        return max(1, 8 * self.dtype.itemsize // DIGIT_BITS)

    @property
    def done(self) -> bool:
        """Whether every digit is known."""
        return self.shift < 0

    def rows(self, turn: int) -> int:
        """Return the most rows that a pass counts: one for all values at first, then one for each order statistic."""
        return 0 if turn >= self.passes else 1 if turn == 0 else 4

    def count(self, part: NDArray[Any], inside: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Count the current digit in a part of the image, or in its voxels inside a mask: int64 (prefixes, 65536).

        The part may have any shape and memory order.
        """
        counts = np.zeros((len(self.prefixes), 1 << DIGIT_BITS), np.int64)
        sign, infinity = _sign(self.dtype), _infinity(self.dtype)
        prefixes = np.array(self.prefixes, np.uint64)
        for slab in _slabs(part, inside):
            bits = native_values(slab).reshape(-1).view(f"u{self.dtype.itemsize}")
            _count_digits(bits, sign, infinity, np.uint64(self.shift), prefixes, counts)
        return counts

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Derive the next digit of each of the four values from the counts of the whole image.

        Raise `NoFiniteValues` if there is no finite value.
        """
        if not self.ranks:
            last = int(counts.sum()) - 1
            if last < 0:
                raise NoFiniteValues
            low, high = self.percentiles
            self.ranks = 0, last * low // MILLION, last - last * (MILLION - high) // MILLION, last
        keys, ranks = [], []
        for j, rank in zip(self.which, self.ranks, strict=True):
            below = np.cumsum(counts[j])
            digit = int(np.searchsorted(below, rank, side="right"))
            keys.append((self.prefixes[j] << DIGIT_BITS) | digit)
            ranks.append(rank - int(below[digit] - counts[j, digit]))
        self.prefixes = tuple(sorted(set(keys)))
        self.which = tuple(self.prefixes.index(key) for key in keys)
        self.ranks = tuple(ranks)
        self.shift -= DIGIT_BITS

    def state(self) -> dict[str, Any]:
        """Return the state of the search as plain values."""
        return {name: getattr(self, name) for name in ("prefixes", "ranks", "shift", "which")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another search."""
        self.prefixes, self.ranks, self.which = (tuple(state[name]) for name in ("prefixes", "ranks", "which"))
        self.shift = state["shift"]

    def window(self) -> Limits:
        """Return the values at the percentiles, or the minimum and maximum if these are equal."""
        minimum, low, high, maximum = (self._value(self.prefixes[j]) for j in self.which)
        return (low, high) if low < high else (minimum, maximum)

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


def _slabs(part: NDArray[Any], inside: NDArray[np.bool_] | None) -> Iterator[NDArray[Any]]:
    """Yield slabs of an array along its slowest axis in memory, so that copies stay small in any memory order."""
    order = sorted(range(part.ndim), key=lambda axis: -abs(part.strides[axis]))
    part = part.transpose(order)
    thickness = max(1, COPY_BYTES * len(part) // max(1, part.nbytes)) if part.ndim else 1
    for begin in range(0, len(part), thickness):
        slab = part[begin : begin + thickness]
        yield slab if inside is None else slab[inside.transpose(order)[begin : begin + thickness]]


@dataclass
class WindowSearch:
    """The search for the windows of the channels that have none, None in `fixed`, in shared passes.

    Pass the sum of `count` over all parts of the image to `narrow` until `done`; then call `windows`.

    >>> image = np.arange(1001, dtype=np.int32).reshape(7, 11, 13), np.zeros((7, 11, 13))
    >>> search = WindowSearch([channel.dtype for channel in image], [None, (0, 1)])
    >>> while not search.done:
    ...     search.narrow(search.count(image))
    >>> search.windows()
    ((5.0, 995.0), (0, 1))
    """

    dtypes: Sequence[np.dtype[Any]]
    fixed: Sequence[Limits | None]
    percentiles: tuple[int, int] = DEFAULT_PERCENTILES
    _searches: dict[int, OrderStatistics] = field(init=False)

    def __post_init__(self) -> None:
        self._searches = {
            channel: OrderStatistics(dtype, self.percentiles)
            for channel, (dtype, window) in enumerate(zip(self.dtypes, self.fixed, strict=True))
            if window is None
        }

    @property
    def passes(self) -> int:
        """The number of passes over the image; 0 if there is nothing to search."""
        return max((search.passes for search in self._searches.values()), default=0)

    @property
    def done(self) -> bool:
        """Whether every window is known."""
        return all(search.done for search in self._searches.values())

    def rows(self, turn: int) -> int:
        """Return the most rows that the counts of a pass have."""
        return sum(search.rows(turn) for search in self._searches.values())

    def count(self, values: Sequence[NDArray[Any]], inside: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Count the current digits in a part of the image: int64 (rows, 65536), one searched channel after another."""
        rows = [np.zeros((0, 1 << DIGIT_BITS), np.int64)]
        rows += [search.count(values[channel], inside) for channel, search in self._searching()]
        return np.concatenate(rows)

    def narrow(self, counts: NDArray[np.int64]) -> None:
        """Derive the next digits from the counts of the whole image; shallow copies of the search keep their state.

        Raise `NoFiniteValues` if a searched channel has no finite value that counts.
        """
        narrowed, begin = dict(self._searches), 0
        for channel, search in self._searching():
            rows = counts[begin : begin + len(search.prefixes)]
            if not rows.any():
                raise NoFiniteValues("the image" if len(self.dtypes) == 1 else f"channel {channel} of the image")
            narrowed[channel] = copy(search)
            narrowed[channel].narrow(rows)
            begin += len(rows)
        self._searches = narrowed

    def _searching(self) -> list[tuple[int, OrderStatistics]]:
        """Return the channels of the current pass."""
        return [(channel, search) for channel, search in self._searches.items() if not search.done]

    def state(self) -> dict[str, Any]:
        """Return the state of the search as plain values."""
        return {"searches": [search.state() for search in self._searches.values()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another search; shallow copies of this search keep their state."""
        self._searches = {channel: copy(search) for channel, search in self._searches.items()}
        for search, saved in zip(self._searches.values(), state["searches"], strict=True):
            search.restore(saved)

    def windows(self) -> tuple[Limits, ...]:
        """Return each channel's window; low and high of a constant channel are equal."""
        return tuple(window or self._searches[channel].window() for channel, window in enumerate(self.fixed))


def find_windows(
    values: Sequence[NDArray[Any]],
    fixed: Sequence[Limits | None],
    percentiles: tuple[int, int] = DEFAULT_PERCENTILES,
    inside: NDArray[np.bool_] | None = None,
) -> tuple[Limits, ...]:
    """Return the windows of an image in memory; see `WindowSearch`."""
    search = WindowSearch([channel.dtype for channel in values], fixed, percentiles)
    while not search.done:
        search.narrow(search.count(values, inside))
    return search.windows()
