"""Draw the picture of the README: ``python docs/picture.py``."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dseeds
from dseeds.phantom import phantom

SIDE, STEP = 256, 14
# The index of the plane across each of (z, y, x).
PLANES = (150, 120, 130)
# Pixels per voxel along each axis, and between two panels.
ZOOM, GAP = 3, 12
AMBER = np.array([255, 178, 26])
PALETTE_COLOURS = 48


def gray(plane: NDArray) -> NDArray[np.uint8]:
    """Return a plane as shades of gray, enlarged; axes (rows, columns, RGB)."""
    shades = 255 * np.clip(plane / 2600, 0, 1) ** 0.9
    return np.kron(shades, np.ones((ZOOM, ZOOM)))[..., None].repeat(3, axis=-1).astype(np.uint8)


def contours(labels: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return the mask of the pixels on either side of a boundary, enlarged."""
    large = labels.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    result = np.zeros(large.shape, bool)
    for axis in (0, 1):
        differs = np.diff(large.astype(np.int64), axis=axis) != 0
        result |= np.pad(differs, [(0, 1) if a == axis else (0, 0) for a in (0, 1)])
        result |= np.pad(differs, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    return result


def row(volume: NDArray, labels: NDArray[np.uint32] | None = None) -> NDArray[np.uint8]:
    """Return the three planes side by side, with the contours of any labels."""
    panels = []
    for axis, index in enumerate(PLANES):
        panel = gray(volume.take(index, axis))
        if labels is not None:
            edges = contours(labels.take(index, axis))
            panel[edges] = 0.2 * panel[edges] + 0.8 * AMBER
        panels += [panel, np.full((len(panel), GAP, 3), 255, np.uint8)]
    return np.concatenate(panels[:-1], axis=1)


def main() -> None:
    """Draw the picture and save it next to this script."""
    image, _ = phantom((SIDE, SIDE, SIDE))
    labels = dseeds.supervoxels(image, step=STEP)
    sums = np.bincount(labels.ravel(), image.ravel())
    means = (sums / np.maximum(1, np.bincount(labels.ravel())))[labels]
    top = row(image, labels)
    picture = np.concatenate([top, np.full((GAP, top.shape[1], 3), 255, np.uint8), row(means)])
    palette = Image.fromarray(picture).quantize(PALETTE_COLOURS, dither=Image.Dither.NONE)
    palette.save(Path(__file__).with_name("supervoxels.png"), optimize=True)


if __name__ == "__main__":
    main()
