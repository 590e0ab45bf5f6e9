"""The stored levels of an OME-Zarr image: one volume, coarser and coarser.

`dseeds.io.pyramid_levels` plans the levels that are to be written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dseeds.io.formats.ome_zarr import ZarrSource
from dseeds.io.ome_metadata import Resolution
from dseeds.io.source import Source


@dataclass(frozen=True, kw_only=True)
class ResolutionLevel(Resolution):
    """A stored level to read from; `scale` and `offset` are in voxels of the finest level, and need not be whole."""

    source: Source

    def indices(self, axis: int, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the voxels at positions along an axis; the first or the last one beyond the ends.

        >>> from dseeds.io import ArraySource
        >>> source = ArraySource(np.zeros((3, 3, 3)))
        >>> level = ResolutionLevel(source=source, scale=(2.0, 2.0, 2.0), offset=(0.5, 0.5, 0.5))
        >>> level.indices(0, np.arange(7.0)).tolist()
        [0, 0, 1, 1, 2, 2, 2]
        """
        indices = np.floor((positions - self.offset[axis]) / self.scale[axis] + 0.5)
        return np.clip(indices, 0, self.source.shape[axis] - 1).astype(np.int64)

    def positions(self, axis: int, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the positions of the centres of voxels along an axis, see `offset`."""
        return np.asarray(indices * self.scale[axis] + self.offset[axis], np.float64)


def read_resolution_levels(source: Source) -> tuple[ResolutionLevel, ...]:
    """Open all levels of a volume, itself first, then the coarser ones in the order of the metadata.

    Levels that cannot be opened are left out. A level without a position in the metadata has the field of view of the
    first one. Only OME-Zarr images have more than one level.
    """
    levels = [ResolutionLevel(source=source)]
    if isinstance(source, ZarrSource):
        coarser = (_measure_level(source, level) for level in source.coarser_levels() if level is not None)
        levels += [level for level in coarser if min(level.scale) >= 1]
    return tuple(levels)


def _measure_level(finest: ZarrSource, source: ZarrSource) -> ResolutionLevel:
    scale = finest.factors_of(source)
    full, frame = finest.frame, source.frame
    if full is None or frame is None:
        offset = (np.array(scale) - 1) / 2
    else:
        offset = np.subtract(frame.translation, full.translation) / full.spacing
    z, y, x = offset.tolist()
    return ResolutionLevel(source=source, scale=scale, offset=(z, y, x))
