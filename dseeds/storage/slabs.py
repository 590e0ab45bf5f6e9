"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np

from dseeds.core.geometry import Triple
from dseeds.storage.zarr_arrays import UNIT_CHUNK, Layout

# A slab of a source that workers cannot read themselves.
SLAB_BYTES = 64 << 20


def source_layout(shape: Triple, dtype: np.dtype[Any]) -> Layout:
    """Cut the copy of a channel or a mask that only this process can read into slabs."""
    shard = (thickness(shape, dtype.itemsize), *(min(n, 4 * UNIT_CHUNK) for n in shape[1:]))
    return Layout.cut(shape, dtype.newbyteorder("="), shard, UNIT_CHUNK)


def thickness(shape: Triple, itemsize: int) -> int:
    """Choose how many planes of values of so many bytes this process holds at once."""
    return min(UNIT_CHUNK, max(1, SLAB_BYTES // (shape[1] * shape[2] * itemsize)))
