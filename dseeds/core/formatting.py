"""TODO."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """Write a number of bytes.

    >>> format_bytes(3 << 20), format_bytes(5 << 30)
    ('3.0 MiB', '5.0 GiB')
    """
    return f"{size / 2**20:.1f} MiB" if size < 1 << 30 else f"{size / 2**30:.1f} GiB"


def format_duration(seconds: float) -> str:
    """Write a time.

    >>> format_duration(3.21), format_duration(200), format_duration(80000)
    ('3 s', '3.3 min', '22.2 h')
    """
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
