"""Sizes, times, rates and shapes as text for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

# Sizes of voxels below this, in millimetres, are written in micrometres.
_MICROSCOPIC = 0.1


def format_spacing(spacing: Sequence[float]) -> str:
    """Format the size of a voxel along each axis, in millimetres: as micrometres where all are below 0.1 mm.

    >>> format_spacing((2.0, 0.5, 0.5)), format_spacing((0.002, 0.00065, 0.00065))
    ('2 x 0.5 x 0.5 mm', '2 x 0.65 x 0.65 um')
    """
    per_unit, unit = (1e3, "um") if max(spacing) < _MICROSCOPIC else (1.0, "mm")
    return f"{' x '.join(f'{per_unit * size:.6g}' for size in spacing)} {unit}"


def format_length(length: float) -> str:
    """Format a length in millimetres, as micrometres below 0.1 mm.

    >>> format_length(12.5), format_length(0.0123)
    ('12.5 mm', '12.3 um')
    """
    return f"{1e3 * length:.3g} um" if 0 < length < _MICROSCOPIC else f"{length:.3g} mm"


def format_bytes(size: int) -> str:
    """Format a number of bytes.

    >>> format_bytes(3 << 20), format_bytes(5 << 30)
    ('3.0 MiB', '5.0 GiB')
    """
    return f"{size / 2**20:.1f} MiB" if size < 1 << 30 else f"{size / 2**30:.1f} GiB"


def format_mebibytes(size: int) -> str:
    """Format a number of bytes in MiB, without the unit, as tables need it.

    >>> format_mebibytes(5 << 30)
    '5120'
    """
    return f"{size / 2**20:.0f}"


def format_duration(seconds: float) -> str:
    """Format a time in the largest unit that fits.

    >>> format_duration(3.21), format_duration(200), format_duration(80000)
    ('3 s', '3.3 min', '22.2 h')
    """
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def format_clock(seconds: float) -> str:
    """Format a time as a clock does.

    >>> format_clock(3661.2)
    '1:01:01'
    """
    return str(timedelta(seconds=round(seconds)))


def format_rate(count: float, seconds: float) -> str:
    """Format a rate per the shortest unit of time in which at least one is done.

    >>> format_rate(50, 10), format_rate(1, 360)
    ('5.0/s', '10.0/h')
    """
    rate = count / seconds
    unit, length = next(((unit, n) for unit, n in (("s", 1), ("min", 60)) if rate * n >= 1), ("h", 3600))
    return f"{rate * length:.1f}/{unit}"


def format_shape(shape: Iterable[int]) -> str:
    """Format a shape.

    >>> format_shape((64, 512, 512))
    '64 x 512 x 512'
    """
    return " x ".join(map(str, shape))
