"""Axes by their names: which are z, y and x, and which hold channels or volumes, in all formats that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from dseeds.core.geometry import AXES
from dseeds.io.source import (
    SourceQuery,
    resolve_channel_axis,
    select_named_volume,
    select_volume,
    shorten,
)

# The axes of an array that are z, y and x; an array of planes, or of one plane, lacks one of them.
SpaceAxes: TypeAlias = tuple[int | None, int | None, int | None]

_SYNONYMS = {
    "z": ("z", "depth", "slice", "slices", "plane", "planes", "pln", "zspace"),
    "y": ("y", "height", "row", "rows", "yspace"),
    "x": ("x", "width", "col", "cols", "column", "columns", "xspace"),
    "c": ("c", "channel", "channels", "band", "bands", "vector_dimension"),
    "t": ("t", "time", "times", "timepoint", "timepoints", "frame", "frames"),
}
_MEANINGS = {name: meaning for meaning, names in _SYNONYMS.items() for name in names}


@dataclass(frozen=True)
class Selection:
    """How a volume is selected from an array.

    `index` has whole axes for z, y, x and channels, and a number for every other axis; `space` is None if z, y and x
    are in this order.
    """

    index: tuple[int | slice, ...]
    channel_axis: int | None
    space: SpaceAxes | None = None


def axis_meaning(name: str) -> str | None:
    """Return z, y, x, c (channels) or t (time) for the name of an axis in either case; None for any other.

    >>> axis_meaning("Channel"), axis_meaning("row"), axis_meaning("phase")
    ('c', 'y', None)
    """
    return _MEANINGS.get(name.strip().lower())


def find_space(names: Sequence[str], sizes: Sequence[int], where: str) -> SpaceAxes:
    """Find z, y and x by the names of axes, in any order; a plane lacks one of them.

    If none of the three is named, they are the last three axes that are neither channels nor time; if two are, a single
    other axis is the third.

    >>> find_space(["x", "c", "y", "z"], [5, 2, 6, 7], "the array")
    (3, 2, 0)
    >>> find_space(["", "", ""], [5, 6, 7], "the array"), find_space(["y", "x", "c"], [6, 7, 3], "the array")
    ((0, 1, 2), (None, 0, 1))
    """
    meanings = [axis_meaning(name) for name in names]
    named = [n for n, meaning in enumerate(meanings) if meaning in AXES]
    others = [n for n, meaning in enumerate(meanings) if meaning is None]
    longer = [n for n in others if sizes[n] > 1]
    if len({meanings[n] for n in named}) == len(named):
        if not named and len(others) >= 2:
            z, y, x = (None, None, *others)[-3:]
            return z, y, x
        if len(named) == 2 and len(longer) == 1:
            meanings[longer[0]] = next(axis for axis in AXES if axis not in meanings)
            named += longer
        if len(named) == 3 or (len(named) == 2 and not longer):
            z, y, x = (meanings.index(axis) if axis in meanings else None for axis in AXES)
            return z, y, x
    raise ValueError(
        f"{where} has the axes {shorten(', '.join(name or 'without a name' for name in names))}: "
        f"supervoxels need z, y and x, or two of them, once"
    )


def select_axes(names: Sequence[str] | None, shape: Sequence[int], query: SourceQuery, where: str) -> Selection:
    """Select the volume in an array, by the names of its axes if there are any; two axes of space are one plane.

    >>> select_axes(["y", "x", "c"], (40, 50, 3), SourceQuery(purpose="image", channel_axis="c"), "a").space
    (None, 0, 1)
    """
    if names is None or not any(names):
        return _select_by_position(shape, query, where)
    space = find_space(names, shape, where)
    unique = _unique_names(names)
    if isinstance(query.channel_axis, str) and query.channel_axis in names:
        query = replace(query, channel_axis=list(names).index(query.channel_axis))
    index, channels = select_named_volume(unique, shape, [n for n in space if n is not None], query, where)
    return Selection(index, channels, None if space == tuple(sorted(n for n in space if n is not None)) else space)


def _select_by_position(shape: Sequence[int], query: SourceQuery, where: str) -> Selection:
    channels = resolve_channel_axis(shape, query.channel_axis, where)
    space = [axis for axis in range(len(shape)) if axis != channels]
    if len(space) != 2:
        return Selection(*select_volume(shape, query, where))
    names = ["y" if axis == space[0] else "x" if axis == space[1] else "c" for axis in range(len(shape))]
    return Selection(*select_named_volume(names, shape, space, query, where), (None, space[0], space[1]))


def _unique_names(names: Sequence[str]) -> list[str]:
    """Return c for channels and t for time, and a name of its own for every other axis."""
    short = [
        meaning if (meaning := axis_meaning(name)) in ("c", "t") else name or f"axis {n}"
        for n, name in enumerate(names)
    ]
    return [name if short.count(name) == 1 else f"{name} (axis {n})" for n, name in enumerate(short)]
