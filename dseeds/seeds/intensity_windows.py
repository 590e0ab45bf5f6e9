"""Which intensities are told apart: what the user asks for, and the search for each channel's window.

A window's percentiles are exact order statistics, found digit by digit: each pass over the image counts one 16-bit
digit of the values' order-preserving bit patterns, and the counts of any cut of the image simply add up. So the
window does not depend on the chunking, and takes one pass for 8 and 16 bits, two for 32, four for 64.
"""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

# Percentiles are given in millionths of the voxels.
MILLION = 1_000_000
DEFAULT_PERCENTILES = 5_000, 995_000
# Level and width in Hounsfield units, as in https://radiopaedia.org/articles/windowing-ct but for the abdomen's level:
# that is the one of soft tissue in the OHIF viewer.
PRESETS = {"abdomen": (40.0, 400.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0), "lung": (-600.0, 1500.0)}

# Low and high.
Limits: TypeAlias = tuple[float, float]


# What the user asks for.


def read_window(window: Any) -> Limits | None:
    """Read the intensity window that the user asks for.

    Parameters
    ----------
    window : None, str or pair of float
        None for percentiles of the image. Low and high, as two numbers or ``"LOW:HIGH"``; or ``"LEVEL,WIDTH"``, the
        middle and the extent; or, of CT in Hounsfield units, ``"abdomen"`` (level 40, width 400), ``"bone"``
        (400, 1800), ``"brain"`` (40, 80) or ``"lung"`` (-600, 1500). These are the usual ones of radiology, see
        https://radiopaedia.org/articles/windowing-ct.

    Returns
    -------
    tuple of float, or None
        Low and high.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> read_window("abdomen"), read_window("40,400"), read_window("-160:240"), read_window((-160, 240))
    ((-160.0, 240.0), (-160.0, 240.0), (-160.0, 240.0), (-160.0, 240.0))
    """
    if window is None:
        return None
    try:
        low, high = _limits(window)
    except (TypeError, ValueError, OverflowError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"window must be two finite intensities (low, high) with low < high, got {window!r}; as text 'LOW:HIGH', "
            f"'LEVEL,WIDTH' with a width above 0, or one of {', '.join(PRESETS)}."
        )
    return low, high


def _limits(window: Any) -> Limits:
    if not isinstance(window, str):
        low, high = (float(end) for end in window)
        return low, high
    name = window.strip().lower()
    if name in PRESETS or "," in name:
        level, width = PRESETS.get(name) or map(float, name.split(","))
        return level - width / 2, level + width / 2
    low, high = map(float, name.split(":"))
    return low, high


def read_windows(window: Any, channels: int) -> tuple[Limits | None, ...]:
    """Read the intensity windows of an image's channels.

    Parameters
    ----------
    window : None, str, pair of float, or sequence of these
        One as `read_window` takes it, for all channels; or a sequence with one for each; or a string with a semicolon
        between those of the channels, where nothing stands for None.
    channels : int
        How many there are.

    Returns
    -------
    tuple
        For each channel low and high, or None.

    Raises
    ------
    ValueError
        If one of them cannot be read, or there are more or fewer than channels.

    Examples
    --------
    >>> read_windows((0, 100), 2)
    ((0.0, 100.0), (0.0, 100.0))
    >>> read_windows("abdomen;;0:100", 3)
    ((-160.0, 240.0), None, (0.0, 100.0))
    """
    each: list[Any] = [window]
    if isinstance(window, str):
        each = [part.strip() or None for part in window.split(";")]
    elif np.iterable(window) and not all(isinstance(part, Real) for part in window):
        each = list(window)
    found = [read_window(part) for part in each]
    if len(found) not in (1, channels):
        raise ValueError(
            f"window is given for {len(found)} channels, but the image has {channels}: give one for all channels, or "
            "one for each."
        )
    return tuple(found * channels if len(found) == 1 else found)


def check_percentiles(percentiles: Any = (0.5, 99.5)) -> tuple[int, int]:
    """Check the percentiles between which the user wants to tell differences.

    Parameters
    ----------
    percentiles : pair of float, or str
        Low and high, from 0 to 100, with at most four decimals; or a string of both with a comma between them.

    Returns
    -------
    tuple of int
        In millionths of the voxels.

    Raises
    ------
    ValueError
        If they are nothing of the kind.

    Examples
    --------
    >>> check_percentiles(), check_percentiles("1,99")
    ((5000, 995000), (10000, 990000))
    """
    try:
        low, high = (
            Decimal(str(end)) for end in (percentiles.split(",") if isinstance(percentiles, str) else percentiles)
        )
        exact = 0 <= low < high <= 100 and all(end == round(end, 4) for end in (low, high))
    except (TypeError, ValueError, ArithmeticError):
        exact = False
    if not exact:
        raise ValueError(
            "percentiles must be two numbers (low, high) with at most four decimals, 0 <= low < high <= 100, "
            f"got {percentiles!r}."
        )
    return int(low * 10_000), int(high * 10_000)


def check_weights(weights: Any, channels: int) -> tuple[int, ...]:
    """Check how much the channels count, given by the user.

    Parameters
    ----------
    weights : None or sequence of float
        One for each channel, above 0; None for the same of all.
    channels : int
        How many there are.

    Returns
    -------
    tuple of int
        Whole numbers in the same relation, to a 64th of the largest; none counts for less than that.

    Raises
    ------
    ValueError
        If they are no positive, finite numbers, or more or fewer than channels.

    Examples
    --------
    >>> check_weights((1, 0.5, 1), 3), check_weights(None, 2), check_weights((3, 3), 2)
    ((2, 1, 2), (1, 1), (1, 1))
    """
    if weights is None:
        return (1,) * channels
    try:
        given = [float(weight) for weight in weights]
    except (TypeError, ValueError, OverflowError):
        given = []
    if len(given) != channels or not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise ValueError(
            f"weights must be positive numbers, one for each channel of the image, which has {channels}, "
            f"got {weights!r}."
        )
    whole = [max(1, round(64 * (weight / max(given)))) for weight in given]
    return tuple(weight // math.gcd(*whole) for weight in whole)


def check_bins(bins: Any) -> str:
    """Check what bins the user asks for.

    Raises
    ------
    ValueError
        If it is neither ``"linear"``, of equal widths, nor ``"equalised"``, holding about equally many voxels.
    """
    if bins not in ("linear", "equalised"):
        raise ValueError(f"bins must be 'linear' or 'equalised', got {bins!r}.")
    return str(bins)
