"""Kernels that look up the values of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit


def paint_voxels(
    labels: NDArray[Any], keys: NDArray[np.int64], values: NDArray[Any], fill: Any, painted: NDArray[Any]
) -> int:
    """Write the value of each voxel's label, and return how many voxels have a label other than 0 that has no value.

    Parameters
    ----------
    labels : ndarray of uint32 or int64, C-contiguous
        Not negative, of any shape.
    keys, values : ndarray, shape (n,)
        The labels that have a value, int64, sorted and unique; and their values, of 1, 2, 4 or 8 bytes.
    fill : scalar
        The value of all other labels.
    painted : ndarray, C-contiguous
        The array to write to, with the shape of the labels and the dtype of the values.

    Examples
    --------
    >>> painted = np.empty(4, np.int16)
    >>> paint_voxels(np.array([7, 0, 5, 3]), np.array([3, 7]), np.array([30, 70], np.int16), np.int16(-1), painted)
    1
    >>> painted
    array([70, -1, -1, 30], dtype=int16)
    """
    # Values are only copied, so one kernel serves all dtypes of a size.
    bits = np.dtype(f"u{values.dtype.itemsize}")
    filled = np.asarray(fill, values.dtype).reshape(1).view(bits)[0]
    return int(_paint(labels.reshape(-1), keys, values.view(bits), filled, painted.reshape(-1).view(bits)))


@jit
def labels_of_runs(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the label of each run of equal labels: much fewer than voxels, though most occur several times."""
    count, previous = 0, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        count += label != previous
        previous = label
    firsts = np.empty(count, np.int64)
    count, previous = 0, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        if label != previous:
            firsts[count] = label
            count += 1
        previous = label
    return firsts


@jit
def _paint(
    labels: NDArray[Any], keys: NDArray[np.int64], values: NDArray[Any], fill: Any, painted: NDArray[Any]
) -> int:
    missing, unknown, value, previous = 0, 0, fill, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        # Most voxels have the label of their neighbour along x.
        if label != previous:
            previous = label
            row = _find(keys, label)
            if row >= 0:
                value, unknown = values[row], 0
            else:
                value, unknown = fill, int(label != 0)
        painted[i] = value
        missing += unknown
    return missing


@jit
def _find(keys: NDArray[np.int64], label: int) -> int:
    """Return the position of a label in a sorted array, or -1."""
    if keys.size == 0 or label < keys[0] or label > keys[-1]:
        return -1
    # Without gaps between the labels, this is the position already.
    low = label - keys[0]
    if low < keys.size and keys[low] == label:
        return low
    low, high = 0, min(low, keys.size)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low if low < keys.size and keys[low] == label else -1
