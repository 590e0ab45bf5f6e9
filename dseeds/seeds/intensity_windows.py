"""Step 1: intensity windows, percentiles, bins and weights of the channels, as the user gives them."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np

from dseeds.core.dtypes import LARGEST_EXACT

# Percentiles are in millionths of the voxels.
MILLION = 1_000_000
DEFAULT_PERCENTILES = 5_000, 995_000
# Level and width in Hounsfield units, as in https://radiopaedia.org/articles/windowing-ct but for the abdomen's level:
# that is the one of soft tissue in the OHIF viewer.
PRESETS = {"abdomen": (40.0, 400.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0), "lung": (-600.0, 1500.0)}

# Equally wide, but with a knee where a few intensities lie far off; equally wide; equally full.
KINDS_OF_BINS = "auto", "linear", "equalised"

# The low and high end of a window: floats, or integers that float64 does not hold.
Limits: TypeAlias = tuple[float, float]


def read_window(window: Any) -> Limits | None:
    """Read an intensity window given by the user, as in `dseeds.supervoxels`; None stays None.

    Raise a ValueError unless it is (low, high), ``"LOW:HIGH"``, ``"LEVEL,WIDTH"`` as in radiology, or one of `PRESETS`.

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


def exact_number(number: Any) -> float:
    """Return a number as a float, but an integer that float64 may not hold as it is.

    >>> exact_number(7), exact_number(2**60 + 1)
    (7.0, 1152921504606846977)
    """
    real = float(number)
    return int(number) if isinstance(number, Integral) and abs(real) >= LARGEST_EXACT else real


def _read_number(text: str) -> float:
    try:
        return exact_number(int(text))
    except ValueError:
        return float(text)


def _limits(window: Any) -> Limits:
    if not isinstance(window, str):
        low, high = (exact_number(end) for end in window)
        return low, high
    name = window.strip().lower()
    if name in PRESETS or "," in name:
        level, width = PRESETS.get(name) or map(float, name.split(","))
        return level - width / 2, level + width / 2
    low, high = map(_read_number, name.split(":"))
    return low, high


def read_windows(window: Any, channels: int) -> tuple[Limits | None, ...]:
    """Read the intensity windows of an image's channels; None stays None.

    They are a single window for all channels; or a sequence with one for each channel; or a string of them with
    semicolons in between, where an empty part stands for None. Raise a ValueError if one of them is invalid, or their
    number is neither 1 nor that of the channels.

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


def check_percentiles(percentiles: Any) -> tuple[int, int]:
    """Return the percentiles that the user gave as the ends of windows, in millionths of the voxels.

    Raise a ValueError unless they are low and high, from 0 to 100, with at most four decimals; or a string of both with
    a comma in between.

    >>> check_percentiles((0.5, 99.5)), check_percentiles("1,99")
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
    """Return the weights of the channels as integers in the same proportions; None means equal weights.

    They are rounded to a 64th of the largest and at least that. Raise a ValueError unless they are positive, finite
    numbers, one for each channel.

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
    """Return a kind of bins: ``"linear"``, of equal widths, ``"equalised"``, of about equal counts, or ``"auto"``.

    Raise a ValueError if it is something else.
    """
    if bins not in KINDS_OF_BINS:
        raise ValueError(f"bins must be one of {', '.join(KINDS_OF_BINS)}, got {bins!r}.")
    return str(bins)
