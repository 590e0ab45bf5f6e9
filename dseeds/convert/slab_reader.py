"""Images that are read from end to end, to be written as something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Tiling, Triple
from dseeds.core.progress import Progress
from dseeds.io import Image, Spacing
from dseeds.io.source import IndexBox

# Planes of whole chunks of most sources.
DEFAULT_SLAB_PLANES = 64
# Where a slab begins, and its voxels: (z, y, x) or (c, z, y, x).
PositionedSlab: TypeAlias = tuple[int, NDArray[Any]]


@dataclass(frozen=True)
class SlabReader:
    """An image that is read from end to end, all channels in one array, whatever it comes from.

    Attributes
    ----------
    image : Image
        What is read.
    memory : int
        Bytes that may be held at once.
    progress : Progress or None
        Who follows.
    """

    image: Image
    memory: int
    progress: Progress | None

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in all channels, as they are read and as they are written."""
        return 2 * sum(max(dtype.itemsize, 4) for dtype in self.image.dtypes)

    @property
    def planes(self) -> int:
        """Planes that may be held at once."""
        return max(1, self.memory // (self.image.shape[1] * self.image.shape[2] * self.voxel_bytes))

    def slabs(self, stage: str, dtype: np.dtype | None = None, planes: int | None = None) -> Iterator[PositionedSlab]:
        """Read the image from top to bottom, all channels in one array if there are several; of a type if one is given.

        Raises
        ------
        ValueError
            If the type does not hold what is read.
        """
        depth, deep = self.image.shape[0], (self.image.chunks or (DEFAULT_SLAB_PLANES,))[0]
        # Those that are asked for are what is written together.
        planes = planes or self.planes // deep * deep or self.planes
        if self.progress:
            self.progress.begin(stage, len(range(0, depth, planes)))
        for begin, channels in self.image.slabs(planes):
            yield begin, combine_channels(channels, dtype)
            if self.progress:
                self.progress.advance(stage)
        if self.progress:
            self.progress.end(stage)

    def boxes(self, stage: str, size: Triple, dtype: np.dtype) -> Iterator[tuple[IndexBox, NDArray[Any]]]:
        """Read the image box by box, or in slabs as deep as a box where it has to be read from top to bottom."""
        y, x = self.image.shape[1:]
        if not self.image.readable_by_workers:
            for begin, slab in self.slabs(stage, dtype, size[0]):
                yield (slice(begin, begin + slab.shape[-3]), slice(0, y), slice(0, x)), slab
            return
        tiling = Tiling(self.image.shape, size)
        if self.progress:
            self.progress.begin(stage, len(tiling))
        for number in range(len(tiling)):
            box = tiling.box(number).slices
            yield box, combine_channels(self.image.read(box), dtype)
            if self.progress:
                self.progress.advance(stage)
        if self.progress:
            self.progress.end(stage)


def combine_channels(channels: Sequence[NDArray[Any]], dtype: np.dtype | None) -> NDArray[Any]:
    """Put the channels of a box into one array, if there are several, of a type if one is given.

    Raises
    ------
    ValueError
        If integers are wanted that do not hold the values.

    Examples
    --------
    >>> together([np.array([[[1.0]]]), np.array([[[300.0]]])], np.dtype("uint16")).tolist()
    [[[[1]]], [[[300]]]]
    """
    values = channels[0] if len(channels) == 1 else np.stack(channels)
    if dtype is None or values.dtype == dtype:
        return values
    if dtype.kind in "iu" and values.size:
        if values.dtype.kind == "f" and not has_whole_numbers(values):
            raise ValueError(f"the voxels are not whole numbers, which {dtype} does not hold: name another dtype.")
        low, high, bounds = int(values.min()), int(values.max()), np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise ValueError(f"the voxels are from {low} to {high}, which {dtype} does not hold: name another dtype.")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def has_whole_numbers(values: NDArray[Any]) -> bool:
    """Tell whether all values are whole numbers."""
    return bool(np.isfinite(values).all() and (values == np.floor(values)).all())


def lengths_in_mm(spacing: Sequence[float] | None) -> Spacing | None:
    """Check a size of voxels along (z, y, x); `ValueError` if it is none."""
    if spacing is None:
        return None
    found = tuple(float(size) for size in spacing)
    if len(found) != 3 or not all(0 < size < float("inf") for size in found):
        raise ValueError(f"spacing must be three positive lengths in mm (z, y, x), not {spacing}.")
    return found[0], found[1], found[2]
