"""Kernels that edit supervoxels: where chosen ones lie, how parts of one grow from seeds, and in how many pieces."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit

# Columns of the extent of a label: its voxels, and the lowest and highest z, y and x.
VOXELS, LOWEST, HIGHEST, EXTENT_WIDTH = 0, 1, 4, 7


@jit
def survey_chosen(
    values: NDArray[Any],
    chosen: NDArray[Any],
    shape: Triple,
    origin: Triple,
    codes: NDArray[np.uint32],
    extents: NDArray[np.int64],
) -> None:
    """Write the position of each voxel's label among the `chosen` ones, from 1, or 0 for others, into `codes`.

    `values` (z, y, x) are a window, whose first voxel in the volume is `origin`; `chosen` labels are sorted and of the
    same dtype. The voxels within the window's first `shape` are added to `extents` (labels, EXTENT_WIDTH).
    """
    last, code = chosen[0], np.uint32(1)
    for z in range(values.shape[0]):
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                label = values[z, y, x]
                if label != last:
                    i = np.searchsorted(chosen, label)
                    is_chosen = i < len(chosen) and chosen[i] == label
                    last, code = label, np.uint32(i + 1) if is_chosen else np.uint32(0)
                codes[z, y, x] = code
                if code == 0 or z >= shape[0] or y >= shape[1] or x >= shape[2]:
                    continue
                row = extents[np.int64(code) - 1]
                for axis, place in enumerate((origin[0] + z, origin[1] + y, origin[2] + x)):
                    if row[VOXELS] == 0 or place < row[LOWEST + axis]:
                        row[LOWEST + axis] = place
                    if row[VOXELS] == 0 or place > row[HIGHEST + axis]:
                        row[HIGHEST + axis] = place
                row[VOXELS] += 1


@jit
def grow_parts(parts: NDArray[np.int32]) -> int:
    """Give each free voxel to the part with the nearest seed, by steps across faces; return how many none reaches.

    `parts` (z, y, x) holds the numbers of parts from 1 at their seeds, 0 where free and -1 elsewhere, as on all its
    sides. Of several parts that are equally near, the lowest number takes the voxel. Every voxel so joins one that was
    nearer: a part is as connected as its seeds.
    """
    flat = parts.reshape(-1)
    steps = np.array([parts.shape[1] * parts.shape[2], parts.shape[2], 1])
    seeds = np.flatnonzero(flat > 0)
    queue = np.empty(np.count_nonzero(flat >= 0), np.int64)
    # In the order of parts: all voxels at a distance then stand in the queue in this order, too.
    queue[: len(seeds)] = seeds[np.argsort(flat[seeds], kind="mergesort")]
    begin, end = 0, len(seeds)
    while begin < end:
        voxel = queue[begin]
        begin += 1
        for step in steps:
            for neighbour in (voxel - step, voxel + step):
                if flat[neighbour] == 0:
                    flat[neighbour] = flat[voxel]
                    queue[end] = neighbour
                    end += 1
    return len(queue) - end


@jit
def grow_by_contrast(parts: NDArray[np.int32], bins: NDArray[np.uint8]) -> int:
    """Give each free voxel to the part with the nearest seed, as `grow_parts`, but let steps cost what they differ by.

    `bins` (channels, z, y, x) are intensities in the places of `parts`. A step costs 1, and as much more as its two
    ends differ in the channel where they differ most. Every step costs something, so a voxel's part is final, also
    among equally near ones, once its distance is.
    """
    flat, channels = parts.reshape(-1), bins.reshape(len(bins), -1)
    steps = np.array([parts.shape[1] * parts.shape[2], parts.shape[2], 1])
    distances = np.full(len(flat), np.iinfo(np.int64).max)
    queue = [(np.int64(0), np.int64(voxel)) for voxel in np.flatnonzero(flat > 0)]
    for _, voxel in queue:
        distances[voxel] = 0
    while len(queue) > 0:
        distance, voxel = heapq.heappop(queue)
        if distance > distances[voxel]:
            continue
        for step in steps:
            for neighbour in (voxel - step, voxel + step):
                if flat[neighbour] < 0:
                    continue
                contrast = 0
                for c in range(len(channels)):
                    contrast = max(contrast, abs(np.int64(channels[c, voxel]) - np.int64(channels[c, neighbour])))
                farther = distance + 1 + contrast
                if farther < distances[neighbour]:
                    distances[neighbour], flat[neighbour] = farther, flat[voxel]
                    heapq.heappush(queue, (farther, neighbour))
                elif farther == distances[neighbour]:
                    flat[neighbour] = min(flat[neighbour], flat[voxel])
    return np.count_nonzero(flat == 0)


@jit
def number_pieces(parts: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return numbers for the 6-connected pieces of each of `count` parts, from 1, in the order of their first voxels.

    `parts` are as in `grow_parts`. Each voxel gets a number, 0 where there is no part; the second array tells how many
    pieces each part is in, from the first one.
    """
    flat, numbers = parts.reshape(-1), np.zeros(parts.shape, np.int32)
    places, counts = numbers.reshape(-1), np.zeros(count, np.int64)
    steps = np.array([parts.shape[1] * parts.shape[2], parts.shape[2], 1])
    queue = np.empty(np.count_nonzero(flat > 0), np.int64)
    for first in range(len(flat)):
        part = flat[first]
        if part <= 0 or places[first] != 0:
            continue
        counts[part - 1] += 1
        queue[0], places[first] = first, counts[part - 1]
        begin, end = 0, 1
        while begin < end:
            voxel = queue[begin]
            begin += 1
            for step in steps:
                for neighbour in (voxel - step, voxel + step):
                    if flat[neighbour] == part and places[neighbour] == 0:
                        places[neighbour] = places[first]
                        queue[end] = neighbour
                        end += 1
    return numbers, counts
