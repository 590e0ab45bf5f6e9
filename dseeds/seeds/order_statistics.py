"""Step 1: exact percentiles, from which the intensity windows follow.

Percentiles are order statistics, searched digit by digit: each pass over the image counts one 16-bit digit of the
values' order-preserving bit patterns, and the counts of any cut of the image add up. So a window does not depend on the
chunks. It takes one pass for 8 and 16 bits, two for 32, four for 64.

Where both percentiles are one value, as in a sparse image with an even background, the window comes from all other
values: it holds them without their extremes, such as hot pixels. This takes as many further passes, and none for up to
16 bits.

Where a few values, such as hot pixels or the brightest of all cells, widen the window so much that nearly all others
lie close to one end, bins get a knee: half of them lie on each side of it. It is a percentile of the same passes.
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
from dseeds.seeds.intensity_windows import DEFAULT_PERCENTILES, MILLION, Limits, exact_number

DIGIT_BITS = 16
# A knee has at most so many millionths of the values on one side, and on the other side all others, in less than one of
# so many parts of the window.
KNEE, KNEE_PARTS = 50_000, 6
# Those that are searched for: the minimum, the ends of the window, the knees between them, the maximum.
MOST_STATISTICS = 6
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
            # There are two zeros, which are one value.
            if key == sign:
                key = np.uint64(0)
            # Negative floats are ordered backwards.
            key = (~key & (sign | (sign - np.uint64(1)))) if key & sign else key | sign
        else:
            key ^= sign
        for j in range(len(prefixes)):
            if (key >> shift) >> np.uint64(DIGIT_BITS) == prefixes[j]:
                counts[j, (key >> shift) & np.uint64(0xFFFF)] += 1
                break


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
    # Whether a knee is searched for.
    has_knee: bool = False
    prefixes: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = ()
    shift: int = field(init=False)
    which: tuple[int, ...] = ()
    total: int = 0
    # Where both percentiles are one value: the minimum, this value and the maximum. The search goes on for the
    # quartiles of all other values.
    common: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.dtype = native_dtype(self.dtype)
        self.which = (0,) * self._statistics
        self._begin()

    @property
    def _statistics(self) -> int:
        """The number of order statistics."""
        return MOST_STATISTICS if self.has_knee else MOST_STATISTICS - 2

    def _begin(self) -> None:
        self.shift = max(0, 8 * self.dtype.itemsize - DIGIT_BITS)

    @property
    def passes(self) -> int:
        """The number of passes over the image, unless further ones are needed."""
        return max(1, 8 * self.dtype.itemsize // DIGIT_BITS)

    @property
    def most_passes(self) -> int:
        """The largest number of passes over the image: one counts all that there is to know of up to 16 bits."""
        return self.passes if self.passes == 1 else 2 * self.passes

    @property
    def known_passes(self) -> int:
        """The number of passes, as far as it is known."""
        return self.most_passes if self.common else self.passes

    @property
    def done(self) -> bool:
        """Whether every digit is known."""
        return self.shift < 0

    def rows(self, turn: int) -> int:
        """Return the most rows that a pass counts: one for all values at first, then one for each order statistic."""
        return 0 if turn >= self.most_passes else 1 if turn == 0 else self._statistics

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
        """Derive the next digit of each value from the counts of the whole image.

        Raise `NoFiniteValues` if there is no finite value.
        """
        if not self.ranks:
            self.total = int(counts.sum())
            if not self.total:
                raise NoFiniteValues
            self.ranks = self._first_ranks()
        keys, ranks, equal = [], [], []
        for j, rank in zip(self.which, self.ranks, strict=True):
            below = np.cumsum(counts[j])
            digit = int(np.searchsorted(below, rank, side="right"))
            keys.append((self.prefixes[j] << DIGIT_BITS) | digit)
            ranks.append(rank - int(below[digit] - counts[j, digit]))
            equal.append(int(counts[j, digit]))
        self.prefixes = tuple(sorted(set(keys)))
        self.which = tuple(self.prefixes.index(key) for key in keys)
        self.ranks = tuple(ranks)
        self.shift -= DIGIT_BITS
        if self.done and not self.common:
            self._look_beyond(keys, equal[1], counts)

    def _first_ranks(self) -> tuple[int, ...]:
        last, (low, high) = self.total - 1, self.percentiles
        ends = last * low // MILLION, last - last * (MILLION - high) // MILLION
        if not self.has_knee:
            return 0, *ends, last
        few = last * KNEE // MILLION
        return 0, ends[0], few, last - few, ends[1], last

    def _look_beyond(self, keys: list[int], equal: int, counts: NDArray[np.int64]) -> None:
        """Begin the search for the quartiles of all values but one, if both percentiles are this and there are others.

        So many values are `equal` to it; `counts` are those of the last pass.
        """
        minimum, low, *_, high, maximum = keys
        if low != high or minimum == maximum:
            return
        # The rank among equal values is what remains of a rank when every digit is known.
        below, last = self._first_ranks()[1] - self.ranks[1], self.total - equal - 1
        self.common = minimum, low, maximum
        quartiles = last // 4, last - last // 4
        self.ranks = tuple(rank if rank < below else rank + equal for rank in quartiles)
        self.prefixes, self.which = (0,), (0, 0)
        self._begin()
        if self.most_passes == 1:
            # The only digit has been counted.
            self.narrow(counts)

    def state(self) -> dict[str, Any]:
        """Return the state of the search as plain values."""
        return {name: getattr(self, name) for name in (*_SEQUENCES, "shift", "total")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another search."""
        self.prefixes, self.ranks, self.which, self.common = (tuple(state[name]) for name in _SEQUENCES)
        self.shift, self.total = state["shift"], state["total"]

    def window(self) -> Limits:
        """Return the values at the percentiles; if these are one value, an interval with most of the others.

        That is limited by their quartiles, moved outwards by 1.5 times the distance between these, and by the
        minimum and the maximum: J. W. Tukey, Exploratory Data Analysis, Addison-Wesley, 1977.
        """
        if not self.common:
            _, low, *_, high, _ = self._values()
            return exact_number(low), exact_number(high)
        minimum, common, maximum = map(self._value, self.common)
        lower, upper = (self._value(self.prefixes[j]) for j in self.which)
        width: Any = upper - lower
        reach = 3 * width // 2 if isinstance(width, int) else 1.5 * width
        low = min(common, max(minimum, lower - reach))
        high = max(common, min(maximum, upper + reach))
        return exact_number(low), exact_number(high)

    def knee(self) -> float | None:
        """Return the value that halves of the bins lie below and above, if nearly all values are close to an end."""
        if self.common or not self.has_knee:
            return None
        _, low, lower, upper, high, _ = self._values()
        for knee, distance in ((lower, high - lower), (upper, upper - low)):
            # A window of floats may be wider than they can tell.
            if low < knee < high and KNEE_PARTS * distance < high - low < np.inf:
                return exact_number(knee)
        return None

    def _values(self) -> list[Any]:
        return [self._value(self.prefixes[j]) for j in self.which]

    def _value(self, key: int) -> Any:
        """Return the value with a bit pattern, an int or a float."""
        sign = int(_sign(self.dtype))
        if self.dtype.kind == "f":
            key = key & ~sign if key & sign else ~key & (2 * sign - 1)
        else:
            key ^= sign
        return np.array(key, np.uint64).astype(f"u{self.dtype.itemsize}").view(self.dtype).item()


_SEQUENCES = ("prefixes", "ranks", "which", "common")


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
    # Whether a knee of the bins is searched for in each of the channels without a window.
    has_knees: bool = False
    _searches: dict[int, OrderStatistics] = field(init=False)

    def __post_init__(self) -> None:
        self._searches = {
            channel: OrderStatistics(dtype, self.percentiles, self.has_knees)
            for channel, (dtype, window) in enumerate(zip(self.dtypes, self.fixed, strict=True))
            if window is None
        }

    @property
    def passes(self) -> int:
        """The number of passes over the image, unless further ones are needed; 0 if there is nothing to search."""
        return max((search.passes for search in self._searches.values()), default=0)

    @property
    def further_passes(self) -> int:
        """The number of further passes, as far as it is known."""
        return max((search.known_passes for search in self._searches.values()), default=0) - self.passes

    @property
    def most_further_passes(self) -> int:
        """The largest number of further passes."""
        return max((search.most_passes for search in self._searches.values()), default=0) - self.passes

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

    def finish(self, values: Sequence[NDArray[Any]], inside: NDArray[np.bool_] | None = None) -> None:
        """Search an image that is in memory as a whole."""
        while not self.done:
            self.narrow(self.count(values, inside))

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

    def knees(self) -> tuple[float | None, ...]:
        """Return the knee of each channel's bins, or None where they are equally wide; see `OrderStatistics.knee`."""
        return tuple(
            None if window is not None else self._searches[channel].knee() for channel, window in enumerate(self.fixed)
        )


def find_windows(
    values: Sequence[NDArray[Any]],
    fixed: Sequence[Limits | None],
    percentiles: tuple[int, int] = DEFAULT_PERCENTILES,
    inside: NDArray[np.bool_] | None = None,
) -> tuple[Limits, ...]:
    """Return the windows of an image in memory; see `WindowSearch`."""
    search = WindowSearch([channel.dtype for channel in values], fixed, percentiles)
    search.finish(values, inside)
    return search.windows()
