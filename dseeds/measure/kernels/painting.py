"""Every voxel gets the value of its label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.jit import jit


def paint_voxels(
    labels: NDArray[Any], keys: NDArray[np.int64], values: NDArray[Any], fill: Any, painted: NDArray[Any]
) -> int:
    """Write for each voxel the value of its label.

    Parameters
    ----------
    labels : ndarray of uint32 or int64, C-contiguous
        Of any shape; nothing is negative.
    keys : ndarray of int64, shape (n,)
        Labels that have a value, sorted, each once.
    values : ndarray, shape (n,)
        Their values, of 1, 2, 4 or 8 bytes.
    fill : scalar
        What all other labels get, of the same dtype.
    painted : ndarray, C-contiguous
        What is written to, shaped as the labels and of the values' dtype.

    Returns
    -------
    int
        How many voxels have a label other than 0 that has no value.

    Examples
    --------
    >>> painted = np.empty(4, np.int16)
    >>> paint_voxels(np.array([7, 0, 5, 3]), np.array([3, 7]), np.array([30, 70], np.int16), np.int16(-1), painted)
    1
    >>> painted
    array([70, -1, -1, 30], dtype=int16)
    """
    # Values are moved, never computed with: by their width alone, so few kernels are compiled.
    bits = np.dtype(f"u{values.dtype.itemsize}")
    filled = np.asarray(fill, values.dtype).reshape(1).view(bits)[0]
    return int(_paint(labels.reshape(-1), keys, values.view(bits), filled, painted.reshape(-1).view(bits)))


@jit
def distinct(labels: NDArray[Any]) -> NDArray[np.int64]:
    """List the labels in a flat array where they change: most of them many times, but seldom as often as voxels."""
    count, previous = 0, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        count += label != previous
        previous = label
    found = np.empty(count, np.int64)
    count, previous = 0, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        if label != previous:
            found[count] = label
            count += 1
        previous = label
    return found


@jit
def _paint(
    labels: NDArray[Any], keys: NDArray[np.int64], values: NDArray[Any], fill: Any, painted: NDArray[Any]
) -> int:
    missing, unknown, value, previous = 0, 0, fill, np.int64(-1)
    for i in range(labels.size):
        label = np.int64(labels[i])
        # Along x most voxels have their neighbour's label.
        if label != previous:
            previous = label
            place = _find(keys, label)
            if place >= 0:
                value, unknown = values[place], 0
            else:
                value, unknown = fill, int(label != 0)
        painted[i] = value
        missing += unknown
    return missing


@jit
def _find(keys: NDArray[np.int64], label: int) -> int:
    """Find a label in a sorted array; -1 where it is not."""
    if keys.size == 0 or label < keys[0] or label > keys[-1]:
        return -1
    # Labels that follow each other without gaps are found at once.
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
