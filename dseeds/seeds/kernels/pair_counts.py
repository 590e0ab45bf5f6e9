"""How many voxels two volumes have in common: a count for each pair of a label and a value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit
from dseeds.seeds.kernels.contacts import FIRST_SLOTS, double_table, find_slot


def count_pairs(labels: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a row (label, value, voxels) for each pair that occurs, int64 (pairs, 3), sorted by both.

    `labels` and `values` have one shape (z, y, x) and are not negative; voxels of label 0 are left out.

    Examples
    --------
    >>> count_pairs(np.array([[[7, 7, 0, 5]]]), np.array([[[0, 2, 2, 2]]])).tolist()
    [[5, 2, 1], [7, 0, 1], [7, 2, 1]]
    """
    keys, counts = _count_runs(np.ascontiguousarray(labels), np.ascontiguousarray(values))
    used = keys[:, 0] != 0
    rows = np.column_stack([keys[used], counts[used]])
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


@jit
def _count_runs(labels: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a table as in `dseeds.seeds.kernels.contacts`, whose keys are pairs of a label and a value."""
    nz, ny, nx = labels.shape
    keys, counts = np.zeros((FIRST_SLOTS, 2), np.int64), np.zeros((FIRST_SLOTS, 1), np.int64)
    used = 0
    for z in range(nz):
        for y in range(ny):
            # The most that a row can add.
            while 2 * (used + nx) > len(keys):
                keys, counts = double_table(keys, counts)
            x = 0
            while x < nx:
                label, value, first = labels[z, y, x], values[z, y, x], x
                while x < nx and labels[z, y, x] == label and values[z, y, x] == value:
                    x += 1
                if label == 0:
                    continue
                slot = find_slot(keys, label, value)
                if keys[slot, 0] == 0:
                    keys[slot, 0], keys[slot, 1] = label, value
                    used += 1
                counts[slot, 0] += x - first
    return keys, counts
