"""Step 1: histograms of grey levels, from which Otsu's threshold and equalised bins follow.

Counts are integer sums over voxels, and all that follows from them is integer arithmetic: the results depend neither on
the cut of the image nor on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import LARGEST_EXACT, native_values
from dseeds.core.jit import jit
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.voxels import BINS
from dseeds.seeds.order_statistics import COPY_BYTES

# The limits of a window of integers, beyond all that have 64 bits.
WIDEST = 1 << 65
# Parts of equal width into which a window is cut to count intensities.
GREY_LEVELS = 4096


@jit
def _in_parts(values: NDArray[Any], lo: float, hi: float, parts: int, out: NDArray[Any]) -> int:
    # Halved if the width of a float64 window would overflow.
    unit = 1.0 if np.isfinite(hi - lo) else 0.5
    width = unit * hi - unit * lo
    last = parts - 1 if lo < hi else 0
    missing = 0
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                value = np.float64(values[z, y, x])
                out[z, y, x] = 0
                if value >= hi:
                    out[z, y, x] = last
                elif value > lo:
                    out[z, y, x] = out.dtype.type(min(parts - 1.0, (unit * value - unit * lo) / width * parts))
                elif value != value:
                    out[z, y, x] = parts
                    missing += 1
    return missing


@jit
def _in_exact_parts(values: NDArray[Any], base: Any, shift: float, width: float, parts: int, out: NDArray[Any]) -> int:
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                # Of 64 bits, as the difference to the base is.
                above = np.float64(np.uint64(values[z, y, x]) - np.uint64(base)) if values[z, y, x] > base else 0.0
                place = (above + shift) / width * parts
                out[z, y, x] = out.dtype.type(max(0.0, min(parts - 1.0, place)))
    return 0


def quantise_range(values: NDArray[Any], window: Limits, parts: int, out: NDArray[Any]) -> int:
    """Cut a window into equal parts, a power of two, and write the number of each intensity's part into `out`.

    Values outside the window, including infinities, are in the first or the last part; if its ends are equal, all
    values are in the first. NaN becomes `parts`. Returns the number of NaN values.

    Of integers that float64 does not hold, what is subtracted from them is an integer too.
    """
    native, (low, high) = native_values(values), window
    # A window that is much wider than all integers does not resolve them anyway.
    if native.dtype.kind in "iu" and low < high and LARGEST_EXACT < max(-low, high) < WIDEST:
        limits = np.iinfo(native.dtype)
        base = min(max(int(low), int(limits.min)), int(limits.max))
        return _in_exact_parts(native, native.dtype.type(base), float(base - low), float(high - low), parts, out)
    return _in_parts(native, float(low), float(high), parts, out)


def slab_planes(values: Sequence[NDArray[Any]]) -> Iterator[slice]:
    """Yield slices of the z axis of channels that are thin enough to copy."""
    depth = len(values[0])
    thickness = max(1, COPY_BYTES * depth // max(1, sum(channel.nbytes for channel in values)))
    for begin in range(0, depth, thickness):
        yield slice(begin, begin + thickness)


@jit
def _count_levels(levels: NDArray[np.uint16], inside: NDArray[np.bool_], counts: NDArray[np.int64]) -> None:
    for z in range(levels.shape[1]):
        for y in range(levels.shape[2]):
            for x in range(levels.shape[3]):
                counted = inside.size == 0 or inside[z, y, x]
                for c in range(levels.shape[0]):
                    counted &= levels[c, z, y, x] < GREY_LEVELS
                if counted:
                    for c in range(levels.shape[0]):
                        counts[c, levels[c, z, y, x]] += 1


def count_grey_levels(
    values: Sequence[NDArray[Any]], windows: Sequence[Limits], inside: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Count the voxels of each of 4096 grey levels of equal width over the window: int64 (channels, 4096).

    Counts of any cut add up. Values outside the window belong to the first or the last level. Voxels outside the mask,
    and voxels that are NaN in any channel, do not count.
    """
    counts = np.zeros((len(values), GREY_LEVELS), np.int64)
    no_mask = np.zeros((0, 0, 0), bool)
    for part in slab_planes(values):
        levels = np.empty((len(values), *values[0][part].shape), np.uint16)
        for channel, window, out in zip(values, windows, levels, strict=True):
            quantise_range(channel[part], window, GREY_LEVELS, out)
        _count_levels(levels, no_mask if inside is None else np.ascontiguousarray(inside[part], bool), counts)
    return counts


def otsu_threshold(counts: NDArray[np.int64]) -> int:
    """Return the grey level that separates background from foreground with the largest variance between the two.

    It is the last level of the background, the lowest of equally good ones; -1 if fewer than two levels occur, so that
    everything is foreground. All arithmetic is in integers, so that the result is the same everywhere.

    N. Otsu, A threshold selection method from gray-level histograms, IEEE Transactions on Systems, Man, and Cybernetics
    9(1), 62-66, 1979.

    >>> otsu_threshold(np.array([0, 5, 3, 0, 0, 2, 6]))
    2
    """
    voxels = counts.tolist()
    total, mass = sum(voxels), sum(level * count for level, count in enumerate(voxels))
    threshold, most, share = -1, 0, 1
    below = mass_below = 0
    for level, count in enumerate(voxels):
        below += count
        mass_below += level * count
        # The variance times the cube of the total is their quotient.
        spread, parts = (mass_below * total - mass * below) ** 2, below * (total - below)
        if parts and spread * share > most * parts:
            threshold, most, share = level, spread, parts
    return threshold


def foreground_thresholds(counts: NDArray[np.int64], channels: int) -> tuple[int, ...]:
    """Return the threshold of each channel of an image; what follows these in the counts has no foreground."""
    return tuple(otsu_threshold(c) if k < channels else GREY_LEVELS for k, c in enumerate(counts))


def equalised_tables(counts: NDArray[np.int64], channels: int) -> list[NDArray[np.uint8]]:
    """Return the bin of each grey level of each channel of an image.

    Bins of what follows these channels in the counts have equal widths.
    """
    linear = (np.arange(GREY_LEVELS) // (GREY_LEVELS // BINS)).astype(np.uint8)
    return [equalised_bins(c) if k < channels else linear for k, c in enumerate(counts)]


def equalised_bins(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Assign grey levels to 64 bins that hold about equally many voxels, in ascending order.

    A bin without its last level holds at most a 64th of the voxels. The first level that occurs is in the first bin,
    and the last of several is in the last bin.

    >>> equalised_bins(np.array([50, 0, 25, 25, 20])).tolist()
    [0, 32, 32, 48, 63]
    """
    below = np.cumsum(counts) - counts
    # The number of voxels below the last level that occurs.
    most = max(1, int(below[counts > 0].max(initial=0)))
    bins: NDArray[np.uint8] = np.minimum(BINS - 1, BINS * below // most).astype(np.uint8)
    return bins
