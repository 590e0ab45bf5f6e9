"""Levels, into which a channel's window is cut, how often each occurs, and what follows from that.

Counts of levels are sums over voxels in whole numbers, and so is all that is made of them: no cut of the image and no
machine makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import native_values
from dseeds.core.jit import jit
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.voxels import BINS
from dseeds.seeds.order_statistics import COPY_BYTES

# Parts of equal width that a window has where intensities are counted.
GREY_LEVELS = 4096


@jit
def _in_parts(values: NDArray[Any], lo: float, hi: float, parts: int, out: NDArray[Any]) -> int:
    # Halved where the widest float64 windows would overflow.
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


def quantise_range(values: NDArray[Any], window: Limits, parts: int, out: NDArray[Any]) -> int:
    """Find out in which of the window's parts of equal width the intensities are.

    Parameters
    ----------
    values : ndarray, shape (z, y, x)
        A channel.
    window : tuple of float
        Low and high. What is outside, infinities included, is in the first or the last part; where low and high are
        equal, everything is in the first.
    parts : int
        How many there are, a power of two.
    out : ndarray, shape (z, y, x)
        Is filled, where a value is NaN with `parts`; may be a view.

    Returns
    -------
    int
        How many values are NaN.
    """
    return _in_parts(native_values(values), *window, parts, out)


def slab_planes(values: Sequence[NDArray[Any]]) -> Iterator[slice]:
    """Cut the z axis of channels, so that copies of a part of all of them stay small."""
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
    """Count how often each level occurs: 4096 of equal width over the window. Counts of any cut add up.

    Parameters
    ----------
    values : sequence of ndarray, shape (z, y, x)
        The channels.
    windows : sequence of tuple of float
        Of each channel; what is outside is of the first or the last level.
    inside : ndarray of bool, shape (z, y, x), optional
        Which voxels count; all if not given. Those that are NaN in any channel never count.

    Returns
    -------
    ndarray of int64, shape (channels, 4096)
    """
    counts = np.zeros((len(values), GREY_LEVELS), np.int64)
    nowhere = np.zeros((0, 0, 0), bool)
    for part in slab_planes(values):
        levels = np.empty((len(values), *values[0][part].shape), np.uint16)
        for channel, window, out in zip(values, windows, levels, strict=True):
            quantise_range(channel[part], window, GREY_LEVELS, out)
        _count_levels(levels, nowhere if inside is None else np.ascontiguousarray(inside[part], bool), counts)
    return counts


def otsu_threshold(counts: NDArray[np.int64]) -> int:
    """Find the level that tells background from foreground best: the variance between the two is the largest.

    N. Otsu, A threshold selection method from gray-level histograms, IEEE Transactions on Systems, Man, and
    Cybernetics 9(1), 62-66, 1979. All numbers are whole ones, so that the answer is the same everywhere.

    Parameters
    ----------
    counts : ndarray of int64
        How often each level occurs.

    Returns
    -------
    int
        The last level of the background, the lowest one where several are equally good; -1 where no more than one
        level occurs, so that everything is foreground.

    Examples
    --------
    >>> otsu(np.array([0, 5, 3, 0, 0, 2, 6]))
    2
    """
    occurs = counts.tolist()
    total, mass = sum(occurs), sum(level * count for level, count in enumerate(occurs))
    threshold, most, share = -1, 0, 1
    below = mass_below = 0
    for level, count in enumerate(occurs):
        below += count
        mass_below += level * count
        # The variance times the cube of the total is their quotient.
        spread, parts = (mass_below * total - mass * below) ** 2, below * (total - below)
        if parts and spread * share > most * parts:
            threshold, most, share = level, spread, parts
    return threshold


def equalised_bins(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Deal levels out to 64 bins, so that these hold about equally many voxels.

    A bin but for its last level holds no more than a 64th of the voxels. The first level that occurs is in the first
    bin, and the last one, of several, in the last bin.

    Parameters
    ----------
    counts : ndarray of int64
        How often each level occurs.

    Returns
    -------
    ndarray of uint8
        The bin of each level, never falling.

    Examples
    --------
    >>> equalised(np.array([50, 0, 25, 25, 20])).tolist()
    [0, 32, 32, 48, 63]
    """
    below = np.cumsum(counts) - counts
    # Of those below the last level that occurs.
    most = max(1, int(below[counts > 0].max(initial=0)))
    bins: NDArray[np.uint8] = np.minimum(BINS - 1, BINS * below // most).astype(np.uint8)
    return bins
