"""The part of a volume that is in view, and a preview of its supervoxels on the lattice of the whole volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.api.supervoxels import supervoxels
from dseeds.core.geometry import Box, Lattice, Triple, triple

# The most voxels that a preview cuts: one or two seconds on two cores. Volumes up to this size are cut whole.
MOST_VOXELS = 8 << 20
# Cells around the visible ones that are cut as well. Fewer change more voxels than a preview may, see docs/how_to.
LEAST_MARGIN = 4


@dataclass(frozen=True)
class Crop:
    """The cells of a lattice that a preview shows, and those that it cuts: with a margin around them."""

    lattice: Lattice
    shown: Box
    cut: Box

    @property
    def is_exact(self) -> bool:
        """Whether the preview is the result: the whole volume is cut."""
        return self.cut.shape == self.lattice.cells

    @property
    def margin(self) -> int:
        """The fewest cells between what is shown and what is left out; as many as the volume has if all are cut."""
        gaps = [
            gap
            for lo, hi, cut_lo, cut_hi, n in zip(
                self.shown.lo, self.shown.hi, self.cut.lo, self.cut.hi, self.lattice.cells, strict=True
            )
            for gap in ([lo - cut_lo] if cut_lo else []) + ([cut_hi - hi] if cut_hi < n else [])
        ]
        return min(gaps, default=max(self.lattice.cells))

    def voxels(self, cells: Box) -> Box:
        """Return the voxels of a box of cells."""
        grid = self.lattice.grids[-1]
        return grid.units_of(cells)


@dataclass(frozen=True, eq=False)
class CropLabels:
    """A preview: the labels (z, y, x) of a box of voxels, with the numbers of the result if it has no mask."""

    box: Box
    labels: NDArray[np.uint32]


def choose_crop(lattice: Lattice, visible: Box, most_voxels: int = MOST_VOXELS) -> Crop:
    """Return what to cut for a preview of some visible voxels, of which only the middle is shown if there are too many.

    The margin is as wide as the number of voxels allows.

    >>> crop = choose_crop(Lattice((800, 800, 800), (8, 8, 8)), Box((400, 0, 0), (401, 200, 200)))
    >>> crop.shown, crop.margin, crop.is_exact
    (Box(lo=(50, 0, 0), hi=(51, 25, 25)), 7, False)
    >>> choose_crop(Lattice((80, 80, 80), (8, 8, 8)), Box((40, 0, 0), (41, 20, 20))).is_exact
    True
    """
    everything = Box((0, 0, 0), lattice.cells)
    shown = lattice.grids[-1].cells_of(visible)
    if math.prod(lattice.shape) <= most_voxels:
        return Crop(lattice, shown, everything)

    def fits(cells: Box) -> bool:
        return lattice.grids[-1].units_of(cells).size <= most_voxels

    cut = _add_margin(lattice, shown, LEAST_MARGIN)
    while not fits(cut) and shown.size > 1:
        shown = _shrink(shown)
        cut = _add_margin(lattice, shown, LEAST_MARGIN)
    margin = LEAST_MARGIN
    while fits(wider := _add_margin(lattice, shown, margin + 1)) and wider != cut:
        cut, margin = wider, margin + 1
    return Crop(lattice, shown, cut)


def _add_margin(lattice: Lattice, cells: Box, margin: int) -> Box:
    grown = cells.grow(margin, within=lattice.cells)
    # Units move in four colours, of which the lattice repeats every second unit: it begins at an even cell.
    return Box(triple(lo - lo % 2 for lo in grown.lo), grown.hi)


def _shrink(cells: Box) -> Box:
    """Return a box without a cell at both ends of its longest axis, or without the last of two."""
    axis = int(np.argmax(cells.shape))
    lo, hi = list(cells.lo), list(cells.hi)
    lo[axis] += cells.shape[axis] > 2
    hi[axis] -= 1
    return Box(triple(lo), triple(hi))


def cut_crop(
    channels: Sequence[Any], crop: Crop, *, window: Any, compactness: float, mask: Any = None, boundaries: Any = None
) -> CropLabels:
    """Read what a preview needs of an image's channels (z, y, x), cut it, and return the labels of what it shows.

    Mask and boundary map are arrays of the same shape.

    >>> image = np.zeros((16, 16, 16), np.uint8)
    >>> image[:, :, 6:] = 200
    >>> crop = choose_crop(Lattice((16, 16, 16), (8, 8, 8)), Box((9, 0, 0), (10, 16, 16)))
    >>> preview = cut_crop([image], crop, window=(0, 255), compactness=0)
    >>> preview.box
    Box(lo=(8, 0, 0), hi=(16, 16, 16))
    >>> bool((preview.labels == supervoxels(image, step=8, window=(0, 255))[8:]).all())
    True
    """
    read, shown = crop.voxels(crop.cut), crop.voxels(crop.shown)
    values = [np.asarray(channel[read.slices]) for channel in channels]
    inside, height = (None if array is None else np.asarray(array[read.slices]) for array in (mask, boundaries))
    labels = supervoxels(
        values[0] if len(values) == 1 else np.stack(values),
        step=crop.lattice.step,
        window=window,
        compactness=compactness,
        channel_axis=None if len(values) == 1 else 0,
        mask=inside,
        boundaries=height,
    )
    # Of all that is cut, for masked voxels change the numbering.
    if labels.min() > 0 and labels.max() == crop.cut.size:
        labels = _renumber(labels, crop)
    return CropLabels(shown, labels[shown.relative_to(read.lo).slices])


def _renumber(labels: NDArray[np.uint32], crop: Crop) -> NDArray[np.uint32]:
    """Return labels with the numbers that their cells have in the whole lattice."""
    within = np.unravel_index(np.arange(crop.cut.size), crop.cut.shape)
    cells = tuple(axis + lo for axis, lo in zip(within, crop.cut.lo, strict=True))
    numbers = np.ravel_multi_index(cells, crop.lattice.cells) + 1
    return np.append(0, numbers).astype(crop.lattice.label_dtype)[labels]


def choose_window(levels: Sequence[Any]) -> tuple[float, float]:
    """Return the percentiles 0.5 and 99.5 of the finest level of an image that a preview could hold.

    Of an image without such a level they are those of its middle.

    >>> choose_window([np.arange(1001.0).reshape(1, 1, 1001)])
    (5.0, 995.0)
    """
    level = next((level for level in levels if math.prod(level.shape) <= MOST_VOXELS), levels[-1])
    shape = triple(level.shape)
    side = int(MOST_VOXELS ** (1 / 3))
    lo = triple(max(0, (n - side) // 2) if math.prod(shape) > MOST_VOXELS else 0 for n in shape)
    hi = triple(min(n, a + side) if math.prod(shape) > MOST_VOXELS else n for a, n in zip(lo, shape, strict=True))
    values = np.asarray(level[Box(lo, hi).slices])
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("the layer holds no finite value in its middle: enter a window.")
    low, high = np.percentile(finite, (0.5, 99.5))
    return float(low), float(high)


def describe_windows(channels: Sequence[Sequence[Any]], names: Sequence[str]) -> str:
    """Choose the window of each channel, of which all levels are given, and return them as the user would write them.

    >>> describe_windows([[np.arange(1001.0).reshape(1, 1, 1001)]] * 2, ["one", "other"])
    '5.0:995.0;5.0:995.0'
    """
    windows = []
    for levels, name in zip(channels, names, strict=True):
        low, high = choose_window(levels)
        if low == high:
            raise ValueError(f"Most voxels of {name} are {low!r}: enter a window, LOW:HIGH.")
        windows.append(f"{low!r}:{high!r}")
    return ";".join(windows)


def visible_box(corners: NDArray[Any], factors: Sequence[float], plane: dict[int, int], shape: Triple) -> Box:
    """Return the voxels in view: the corners of a level's visible part, and the plane along axes that are not shown.

    `factors` say how many voxels of the image a voxel of the level is long.

    >>> visible_box(np.array([[0, 2, 0], [0, 5, 9]]), (1, 2, 2), {0: 7}, (10, 20, 16))
    Box(lo=(7, 4, 0), hi=(8, 12, 16))
    """
    lo, hi = [], []
    for axis, (first, last, factor, n) in enumerate(zip(*corners, factors, shape, strict=True)):
        index = min(max(plane.get(axis, 0), 0), n - 1)
        start = index if axis in plane else min(max(math.floor(first * factor), 0), n - 1)
        lo.append(start)
        hi.append(index + 1 if axis in plane else max(start + 1, min(n, math.ceil((last + 1) * factor))))
    return Box(triple(lo), triple(hi))
