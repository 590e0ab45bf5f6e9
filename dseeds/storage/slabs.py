"""Slabs: runs of planes in which a source is copied that only this process can read, from top to bottom."""

from __future__ import annotations

from typing import Any

import numpy as np

from dseeds.core.geometry import Triple
from dseeds.storage.zarr_arrays import UNIT_CHUNK, Layout

SOURCE_SLAB_BYTES = 64 << 20


def slab_layout(shape: Triple, dtype: np.dtype[Any]) -> Layout:
    """Return the layout of a copy of a channel or a mask, in which each slab consists of whole shards."""
    shard = (slab_thickness(shape, dtype.itemsize), *(min(n, 4 * UNIT_CHUNK) for n in shape[1:]))
    return Layout.cut(shape, dtype.newbyteorder("="), shard, UNIT_CHUNK)


def slab_thickness(shape: Triple, itemsize: int) -> int:
    """Return the number of planes in a slab of a volume whose voxels have this many bytes."""
    return min(UNIT_CHUNK, max(1, SOURCE_SLAB_BYTES // (shape[1] * shape[2] * itemsize)))
