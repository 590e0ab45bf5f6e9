"""Step 4: the units that may leave their supervoxel without cutting it."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.layout import FACES, NEIGHBOURS


@jit
def _tabulate(adjacent: NDArray[np.uint32], faces: np.uint32, table: NDArray[np.uint64]) -> None:
    for mask in range(1 << 18):
        targets = np.uint32(mask) & faces
        if targets == 0:
            continue
        reached = targets & (~targets + np.uint32(1))
        previous = np.uint32(0)
        while previous != reached:
            previous = reached
            for k in range(18):
                if (previous >> np.uint32(k)) & np.uint32(1):
                    reached |= adjacent[k] & np.uint32(mask)
        if targets & ~reached == 0:
            table[mask >> 6] |= np.uint64(1) << np.uint64(mask & 63)


@cache
def connectivity_table() -> NDArray[np.uint64]:
    """Tabulate the neighbourhoods in which a unit may leave its supervoxel without cutting it: uint64 (4096,).

    Of 2^18 bits, bit m is set if a unit may leave whose neighbours in the bit mask m carry its label: some share a face
    with it, and those are joined to each other by face steps among the neighbours in m.
    """
    adjacent = np.zeros(18, np.uint32)
    for a, here in enumerate(NEIGHBOURS):
        for b, there in enumerate(NEIGHBOURS):
            if sum(abs(i - j) for i, j in zip(here, there, strict=True)) == 1:
                adjacent[a] |= np.uint32(1 << b)
    table = np.zeros(4096, np.uint64)
    _tabulate(adjacent, np.uint32(sum(1 << f for f in FACES)), table)
    return table


@jit
def may_leave(same: np.uint64, simple: NDArray[np.uint64]) -> bool:
    """Look up a unit's neighbours of its own label, as a bit mask, in the table."""
    return (simple[same >> np.uint64(6)] >> (same & np.uint64(63))) & np.uint64(1) != 0
