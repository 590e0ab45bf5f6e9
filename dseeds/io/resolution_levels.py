"""The levels of an OME-Zarr image: one volume, stored coarser and coarser."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dseeds.io.formats.ome_zarr import ZarrSource
from dseeds.io.source import Source

PerAxis: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class ResolutionLevel:
    """A volume as it is stored at one resolution.

    Attributes
    ----------
    source : Source
        Its voxels.
    factor : tuple of float
        Voxels of the finest level, along (z, y, x), that are as long as one of this level.
    offset : tuple of float
        Where the middle of its first voxel lies, counted in voxels of the finest level from the middle of its first.
    """

    source: Source
    factor: PerAxis = (1.0, 1.0, 1.0)
    offset: PerAxis = (0.0, 0.0, 0.0)

    def indices(self, axis: int, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Give the voxels that positions along an axis lie in; the first or the last one for those beyond.

        >>> from dseeds.io import ArraySource
        >>> level = ResolutionLevel(ArraySource(np.zeros((3, 3, 3))), factor=(2.0, 2.0, 2.0), offset=(0.5, 0.5, 0.5))
        >>> level.indices(0, np.arange(7.0)).tolist()
        [0, 0, 1, 1, 2, 2, 2]
        """
        found = np.floor((positions - self.offset[axis]) / self.factor[axis] + 0.5)
        return np.clip(found, 0, self.source.shape[axis] - 1).astype(np.int64)

    def positions(self, axis: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give where the middles of voxels lie along an axis, see `offset`."""
        return np.asarray(indices * self.factor[axis] + self.offset[axis], np.float64)


def read_resolution_levels(source: Source) -> tuple[ResolutionLevel, ...]:
    """Find at which resolutions a volume is stored, the one that is given first.

    Levels whose metadata say nothing of their places have the field of view of the first one.

    Parameters
    ----------
    source : Source
        The volume. All but OME-Zarr images have one level.

    Returns
    -------
    tuple of Level
        The coarser ones as they are listed; those that cannot be opened are left out.
    """
    found = [ResolutionLevel(source)]
    if isinstance(source, ZarrSource) and source.multiscale is not None:
        for number in range(source.level + 1, len(source.multiscale.paths)):
            with suppress(ValueError, IndexError):
                level = _level(source, source.at_level(number))
                if min(level.factor) >= 1:
                    found.append(level)
    return tuple(found)


def _level(finest: ZarrSource, source: ZarrSource) -> ResolutionLevel:
    factor = finest.factors_of(source)
    full, frame = finest.frame, source.frame
    if full is None or frame is None:
        offset = (np.array(factor) - 1) / 2
    else:
        offset = np.subtract(frame.translation, full.translation) / full.spacing
    z, y, x = offset.tolist()
    return ResolutionLevel(source, factor, (z, y, x))
