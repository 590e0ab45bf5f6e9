"""Files and groups with several images: which one an address names, or a sentence that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dseeds.io.source import shorten


def choose_image(where: str, images: Sequence[tuple[str, str]], chosen: str | None) -> int:
    """Return the number of the image to read, of images with a name and a description.

    Raises a ValueError that lists them if there are several of which none was chosen, or not the one that was.

    >>> choose_image("a.tif", [("one", "3 x 4"), ("two", "")], "two")
    1
    >>> choose_image("a.tif", [("one", "3 x 4"), ("two", "")], None)
    Traceback (most recent call last):
    ValueError: a.tif holds 2 images: 0 'one' (3 x 4), 1 'two'; pass a.tif:0 for the first of them, and so on, ...
    """
    if chosen is None and len(images) == 1:
        return 0
    listed = ", ".join(
        f"{number} {shorten(repr(name), 60)}{f' ({description})' if description else ''}"
        for number, (name, description) in enumerate(images)
    )
    listed = f"{len(images)} image{'s' * (len(images) > 1)}: {shorten(listed, 800)}"
    if chosen is None:
        raise ValueError(f"{where} holds {listed}; pass {where}:0 for the first of them, and so on, or its name")
    named = [number for number, (name, _) in enumerate(images) if name == chosen]
    # ASCII only, for int() reads the digits of all scripts.
    if re.fullmatch("[0-9]{1,9}", chosen) and int(chosen) < len(images):
        return int(chosen)
    if len(named) > 1:
        raise ValueError(f"{where} has several images of the name {shorten(chosen, 60)!r} ({listed}): pass a number")
    if not named:
        raise ValueError(f"{where} has no image {shorten(chosen, 60)!r}: it holds {listed}")
    return named[0]
