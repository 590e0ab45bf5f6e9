"""Boundary maps: volumes that are high where supervoxels end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dseeds.io.alignment import align
from dseeds.io.image import Image, open_image


def open_boundary_map(source: object, image: Image) -> Image:
    """Open a boundary map for an image.

    Parameters
    ----------
    source : source
        What `dseeds.io.open_source` takes, of integers, floats or, in memory, booleans. It has the image's shape and
        position in space; axes that are swapped or reversed are turned.
    image : Image
        The image.

    Returns
    -------
    Image
        The map, an image of one channel.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, TypeError
        As `dseeds.io.open_source`.
    ValueError
        If the map cannot be read, has several channels or another shape than the image, lies at another position, or
        is named by a word that is neither a kind of map nor a path.

    Examples
    --------
    >>> image = open_image(np.zeros((1, 2, 4), "uint8"))
    >>> open_boundary_map(np.ones((1, 2, 4), bool), image).dtypes
    (dtype('uint8'),)
    """
    if isinstance(source, str) and source.isidentifier() and not Path(source).exists():
        raise ValueError(f'boundaries is {source!r}: choose "image", "dark" or "gradient", or pass a map.')
    values = np.asarray(source) if isinstance(source, list | tuple) else source
    if isinstance(values, np.ndarray) and values.dtype.kind == "b":
        values = values.view(np.uint8)
    opened = open_image(values)
    if opened.channels != 1:
        raise ValueError(f"the boundary map has {opened.channels} channels, but a map is of one: pass one of them.")
    [part] = opened.parts
    return Image(
        (align(part, "the boundary map" if part.path is None else f"the boundary map {part.path}", image.grid),)
    )
