"""Labels of a region as numbers from 0, and as runs on the grids of channels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.contacts import FIRST_SLOTS, double_table, find_slot

# Runs for which there is room at first.
FIRST_RUNS = 1 << 14


class LabelRuns(NamedTuple):
    """Stretches along x of voxels of a channel's grid, each of one supervoxel.

    Each run has the number of its supervoxel; its first voxel, as a position in the flat window; its number of voxels;
    and how often each of these counts. All are int32 (runs,).
    """

    numbers: NDArray[np.int32]
    begins: NDArray[np.int32]
    lengths: NDArray[np.int32]
    weights: NDArray[np.int32]


@jit
def number_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return the labels of a box in the order of their first voxels, their sizes, and their numbers in this order.

    `labels` (z, y, x) are not negative; the numbers, int32 (z, y, x), are -1 for label 0.
    """
    nz, ny, nx = labels.shape
    numbers = np.empty((nz, ny, nx), np.int32)
    keys, values = np.zeros((FIRST_SLOTS, 2), np.int64), np.zeros((FIRST_SLOTS, 2), np.int64)
    used = 0
    for z in range(nz):
        for y in range(ny):
            # The most that a row can add.
            while 2 * (used + nx) > len(keys):
                keys, values = double_table(keys, values)
            x = 0
            while x < nx:
                label, begin = np.int64(labels[z, y, x]), x
                number = np.int32(-1)
                if label != 0:
                    slot = find_slot(keys, label, 0)
                    if keys[slot, 0] == 0:
                        keys[slot, 0], values[slot, 0] = label, used
                        used += 1
                    number = np.int32(values[slot, 0])
                while x < nx and np.int64(labels[z, y, x]) == label:
                    numbers[z, y, x] = number
                    x += 1
                if label != 0:
                    values[slot, 1] += x - begin
    names, sizes = np.empty(used, np.int64), np.empty(used, np.int64)
    for slot in range(len(keys)):
        if keys[slot, 0] != 0:
            names[values[slot, 0]], sizes[values[slot, 0]] = keys[slot, 0], values[slot, 1]
    return names, sizes, numbers


@jit
def count_numbers(numbers: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return the voxels of each of `count` labels in a part of their numbers, see `number_labels`."""
    sizes = np.zeros(count + 1, np.int64)
    for z in range(numbers.shape[0]):
        for y in range(numbers.shape[1]):
            row, x = numbers[z, y], 0
            while x < len(row):
                begin, number = x, row[x]
                while x < len(row) and row[x] == number:
                    x += 1
                sizes[number + 1] += x - begin
    return sizes[1:]


@jit
def find_runs(numbers: NDArray[np.int32], count: int, origin: Triple, factors: Triple) -> LabelRuns:
    """Return the runs of a box on a grid that is coarser by whole factors along (z, y, x).

    `numbers` (z, y, x) are those of `count` labels, see `number_labels`. The window has all coarser voxels that the box
    touches; `origin` is the first voxel of the box, relative to the first of the window.
    """
    (nz, ny, nx), (fz, fy, fx), (oz, oy, ox) = numbers.shape, factors, origin
    height, width = -(-(oy + ny) // fy), -(-(ox + nx) // fx)
    # The run that each supervoxel had last.
    last = np.full(count, -1, np.int64)
    runs, used = _allocate_runs(FIRST_RUNS), 0
    for z in range(-(-(oz + nz) // fz)):
        z_begin, z_end = max(0, z * fz - oz), min(nz, (z + 1) * fz - oz)
        for y in range(height):
            y_begin, y_end, line = max(0, y * fy - oy), min(ny, (y + 1) * fy - oy), used
            while used + nx * fy * fz > len(runs.numbers):
                runs = _double_runs(runs)
            for x in range(width):
                first, x_end = used, min(nx, (x + 1) * fx - ox)
                for zz in range(z_begin, z_end):
                    for yy in range(y_begin, y_end):
                        for xx in range(max(0, x * fx - ox), x_end):
                            number = numbers[zz, yy, xx]
                            if number < 0:
                                continue
                            if last[number] >= first:
                                runs.weights[last[number]] += 1
                                continue
                            last[number] = used
                            runs.numbers[used], runs.begins[used] = number, (z * height + y) * width + x
                            runs.lengths[used], runs.weights[used] = 1, 1
                            used += 1
                # Where the run before goes on, there is one.
                if used == first + 1 and first > line and _continues(runs, first):
                    runs.lengths[first - 1] += 1
                    last[runs.numbers[first]] = first - 1
                    used = first
    return LabelRuns(runs.numbers[:used], runs.begins[:used], runs.lengths[:used], runs.weights[:used])


@jit
def find_lines(numbers: NDArray[np.int32]) -> LabelRuns:
    """Return the runs of a box on its own grid, see `find_runs`, which takes longer."""
    flat, (_, _, nx) = numbers.reshape(-1), numbers.shape
    runs, used, k = _allocate_runs(FIRST_RUNS), 0, 0
    for end in range(nx, flat.size + 1, nx):
        while used + nx > len(runs.numbers):
            runs = _double_runs(runs)
        while k < end:
            number, begin = flat[k], k
            while k < end and flat[k] == number:
                k += 1
            if number >= 0:
                runs.numbers[used], runs.begins[used] = number, begin
                runs.lengths[used], runs.weights[used] = k - begin, 1
                used += 1
    return LabelRuns(runs.numbers[:used], runs.begins[:used], runs.lengths[:used], runs.weights[:used])


@jit
def _continues(runs: LabelRuns, run: int) -> bool:
    """Return whether a run of one voxel continues the one before it."""
    before = run - 1
    return (
        runs.numbers[before] == runs.numbers[run]
        and runs.weights[before] == runs.weights[run]
        and runs.begins[before] + runs.lengths[before] == runs.begins[run]
    )


@jit
def _allocate_runs(size: int) -> LabelRuns:
    return LabelRuns(
        np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    )


@jit
def _double_runs(runs: LabelRuns) -> LabelRuns:
    more, size = _allocate_runs(2 * len(runs.numbers)), len(runs.numbers)
    more.numbers[:size], more.begins[:size] = runs.numbers, runs.begins
    more.lengths[:size], more.weights[:size] = runs.lengths, runs.weights
    return more
