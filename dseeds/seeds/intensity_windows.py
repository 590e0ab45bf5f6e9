"""Step 1: intensity windows, percentiles, bins and weights of the channels, as the user gives them."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

# Percentiles are in millionths of the voxels.
MILLION = 1_000_000
DEFAULT_PERCENTILES = 5_000, 995_000
# Level and width in Hounsfield units, as in https://radiopaedia.org/articles/windowing-ct but for the abdomen's level:
# that is the one of soft tissue in the OHIF viewer.
PRESETS = {"abdomen": (40.0, 400.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0), "lung": (-600.0, 1500.0)}

# The low and high end of a window.
Limits: TypeAlias = tuple[float, float]


def read_window(window: Any) -> Limits | None:
    """Read an intensity window given by the user.

    Parameters
    ----------
    window : None, str or pair of float
        None for percentiles of the image. Low and high, as two numbers or ``"LOW:HIGH"``; or ``"LEVEL,WIDTH"``, as in
        radiology; or, for CT in Hounsfield units, ``"abdomen"`` (level 40, width 400), ``"bone"`` (400, 1800),
        ``"brain"`` (40, 80) or ``"lung"`` (-600, 1500), see https://radiopaedia.org/articles/windowing-ct.

    Returns
    -------
    tuple of float, or None
        Low and high.

    Raises
    ------
    ValueError
        If it is anything else.

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
        A window as for `read_window`, for all channels; or a sequence with one for each channel; or a string of them
        with semicolons in between, where an empty part stands for None.
    channels : int
        The number of channels.

    Returns
    -------
    tuple
        Low and high of each channel, or None.

    Raises
    ------
    ValueError
        If one of them is invalid, or their number is neither 1 nor that of the channels.

    Examples
    --------
    >>> read_windows((0, 100), 2)
    ((0.0, 100.0), (0.0, 100.0))
    >>> read_windows("abdomen;;0:100", 3)
    ((-160.0, 240.0), None, (0.0, 100.0))
    """
    parts: list[Any] = [window]
    if isinstance(window, str):
        parts = [part.strip() or None for part in window.split(";")]
    elif np.iterable(window) and not all(isinstance(part, Real) for part in window):
        parts = list(window)
    windows = [read_window(part) for part in parts]
    if len(windows) not in (1, channels):
        raise ValueError(
            f"window is given for {len(windows)} channels, but the image has {channels}: give one for all channels, or "
            "one for each."
        )
    return tuple(windows * channels if len(windows) == 1 else windows)


def check_percentiles(percentiles: Any = (0.5, 99.5)) -> tuple[int, int]:
    """Check the percentiles given by the user as the ends of the intensity windows.

    Parameters
    ----------
    percentiles : pair of float, or str
        Low and high, from 0 to 100, with at most four decimals; or a string of both with a comma in between.

    Returns
    -------
    tuple of int
        In millionths of the voxels.

    Raises
    ------
    ValueError
        If they are anything else.

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
    """Check the weights of the channels given by the user.

    Parameters
    ----------
    weights : None or sequence of float
        One for each channel, above 0; None for equal weights.
    channels : int
        The number of channels.

    Returns
    -------
    tuple of int
        Integers in the same proportions, rounded to a 64th of the largest and at least that.

    Raises
    ------
    ValueError
        If they are not positive, finite numbers, one for each channel.

    Examples
    --------
    >>> check_weights((1, 0.5, 1), 3), check_weights(None, 2), check_weights((3, 3), 2)
    ((2, 1, 2), (1, 1), (1, 1))
    """
    if weights is None:
        return (1,) * channels
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != channels or not all(math.isfinite(weight) and weight > 0 for weight in numbers):
        raise ValueError(
            f"weights must be positive numbers, one for each channel of the image, which has {channels}, "
            f"got {weights!r}."
        )
    whole = [max(1, round(64 * (weight / max(numbers)))) for weight in numbers]
    return tuple(weight // math.gcd(*whole) for weight in whole)


def check_bins(bins: Any) -> str:
    """Check the kind of bins given by the user.

    Raises
    ------
    ValueError
        If it is neither ``"linear"``, equal widths, nor ``"equalised"``, about equally many voxels.
    """
    if bins not in ("linear", "equalised"):
        raise ValueError(f"bins must be 'linear' or 'equalised', got {bins!r}.")
    return str(bins)
