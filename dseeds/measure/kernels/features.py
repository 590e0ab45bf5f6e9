"""The integer counts of supervoxels and their contacts, which add up over regions.

A supervoxel's row holds its label; its size; the sums, minima and maxima of its voxels' z, y and x; and the number of
pairs of its own voxels that touch along z, y and x. Then for each channel: how many intensities were measured; the sums
of their units and of the units' squares, each split into a part above 24 bits and one below; the sums of the
intensities without units and of their squares, in the format of `dseeds.core.exact_sum` and relative to the pivot; the
lowest and the highest intensity, as the bits of a float64; and the histogram.

A contact's row holds the two labels, the lower one first, and the number of voxel faces along z, y and x. Then for each
channel: at how many faces the step in intensity was measured; the sums of the steps in units along z, y and x, and that
of the units on both sides; and the sums of the steps without units, per unit of length, and of the means of both sides,
relative to the pivot, in the format of `dseeds.core.exact_sum`.

Intensities are rounded to units, which add up as integers. Those too far from the window to have a unit are added up as
they are. Which of the two applies depends on the intensity alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import BITS, WIDTH, add_number, add_sum
from dseeds.core.geometry import Triple
from dseeds.core.jit import inlined_jit, jit
from dseeds.seeds.kernels.contacts import hash_pair
from dseeds.seeds.kernels.voxels import BINS

# Columns of a supervoxel's row, after its label; CHANNELS is where the channels begin.
SIZE, COORDINATE_SUMS, BOX_MIN, BOX_MAX, INNER_FACES, CHANNELS = 1, 2, 5, 8, 11, 14
# Columns within a channel, and their number.
MEASURED, UNIT_SUM, UNIT_SQUARES, FAR_SUM, FAR_SQUARES = 0, 1, 3, 5, 5 + WIDTH
MINIMUM = FAR_SQUARES + WIDTH
MAXIMUM, BIN_COUNTS = MINIMUM + 1, MINIMUM + 2
CHANNEL_WIDTH = BIN_COUNTS + BINS
# The same for a contact's row, after its two labels.
FACES, STEP_CHANNELS = 2, 5
STEPS_MEASURED, STEP_SUMS, SIDES_SUM, FAR_STEP_SUM = 0, 1, 4, 5
FAR_MEAN_SUM = FAR_STEP_SUM + WIDTH
STEP_CHANNEL_WIDTH = FAR_MEAN_SUM + WIDTH
# Bounds on units and on the length of a run of voxels: the squares of a run's units add up within 63 bits.
UNIT_BOUND, LONGEST_RUN = 1 << 27, 1 << 9
NO_UNIT = -(1 << 31)
# Rows allocated at first, a power of two.
INITIAL_ROWS = 1024
LARGEST_FLOAT = np.finfo(np.float64).max


class FlatWindow(NamedTuple):
    """A window of labels and intensities as flat arrays, channel after channel.

    Positions in them are uint64, because Numba checks the sign of signed indices at each access. `values` is empty if
    all intensities are whole units. At the `pivots` the units are 0; `lengths` and `strides` are the distances between
    neighbouring voxels along z, y and x, in space and in the arrays; `size` is the number of voxels.
    """

    labels: NDArray[Any]
    units: NDArray[np.int32]
    bins: NDArray[np.uint8]
    values: NDArray[np.float64]
    pivots: NDArray[np.float64]
    lengths: NDArray[np.float64]
    strides: NDArray[np.uint64]
    size: np.uint64


class RowTable(NamedTuple):
    """Rows in the order in which they were met, which keeps those of neighbours together, and a hash table of them.

    `floats` is the same memory as `rows`. `slots` holds numbers of rows, from 1, and 0 where free, with open
    addressing.
    """

    rows: NDArray[np.int64]
    floats: NDArray[np.float64]
    slots: NDArray[np.int32]


@jit
def in_units(image: NDArray[Any], pivot: float, scale: float, units: NDArray[np.int32]) -> None:
    """Round intensities to units, `scale` of them per unit of intensity above the pivot.

    Intensities that are too far from the pivot, or not numbers, get `NO_UNIT`.
    """
    for z in range(units.shape[0]):
        for y in range(units.shape[1]):
            for x in range(units.shape[2]):
                value = (np.float64(image[z, y, x]) - pivot) * scale
                near = -UNIT_BOUND < value < UNIT_BOUND
                units[z, y, x] = np.int32(np.rint(value)) if near else NO_UNIT


@jit
def accumulate_features(
    labels: NDArray[Any],
    shape: Triple,
    origin: Triple,
    images: NDArray[np.float64],
    units: NDArray[np.int32],
    pivots: NDArray[np.float64],
    bins: NDArray[np.uint8],
    lengths: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the voxels of a region, and the faces between them and on their sides towards higher z, y and x.

    `labels` (z, y, x), 0 where masked out, and `images`, `units` and `bins` (channels, z, y, x) are a window: the
    region of the given `shape`, whose first voxel in the volume is `origin`, and, along each axis on which the volume
    continues, one more voxel at the upper end. Voxels with a bin of `BINS` or more are not measured. `images` has size
    0 if all intensities are whole units, see `in_units`; `pivots` and `lengths` are those of `FlatWindow`.

    Returns the rows of the supervoxels and of the contacts, in any order.
    """
    _, ny, nx = labels.shape
    window = FlatWindow(
        labels.reshape(-1),
        units.reshape(-1),
        bins.reshape(-1),
        images.reshape(-1),
        pivots,
        lengths,
        np.array([ny * nx, nx, 1]).astype(np.uint64),
        np.uint64(labels.size),
    )
    voxels = _allocate_table(INITIAL_ROWS, CHANNELS + len(units) * CHANNEL_WIDTH)
    contacts = _allocate_table(INITIAL_ROWS, STEP_CHANNELS + len(units) * STEP_CHANNEL_WIDTH)
    counts, previous = (0, 0), np.zeros((3, nx), np.int64)
    for z in range(shape[0]):
        for y in range(shape[1]):
            # A line of voxels adds at most this many rows.
            if counts[0] + shape[2] > len(voxels.rows):
                voxels = _enlarge_table(voxels, 1, counts[0], shape[2])
            if counts[1] + 3 * shape[2] > len(contacts.rows):
                contacts = _enlarge_table(contacts, 2, counts[1], 3 * shape[2])
            counts = _add_line(window, labels.shape, shape[2], origin, z, y, voxels, contacts, counts, previous)
    return voxels.rows[: counts[0]], contacts.rows[: counts[1]]


@jit
def _allocate_table(size: int, columns: int) -> RowTable:
    rows = np.zeros((size, columns), np.int64)
    return RowTable(rows, rows.view(np.float64), np.zeros(2 * size, np.int32))


@jit
def _enlarge_table(table: RowTable, keys: int, count: int, more: int) -> RowTable:
    """Return a table with room for more rows, whose first one or two columns are their keys."""
    size = len(table.rows)
    while count + more > size:
        size *= 2
    larger = _allocate_table(size, table.rows.shape[1])
    larger.rows[:count] = table.rows[:count]
    for i in range(count):
        second = larger.rows[i, 1] if keys == 2 else 0
        larger.slots[_find_slot(larger, keys, larger.rows[i, 0], second)] = i + 1
    return larger


@inlined_jit
def _find_slot(table: RowTable, keys: int, first: int, second: int) -> int:
    """Return the slot of the row with one or two keys, or a free slot for it."""
    rows, slots = table.rows, table.slots
    slot = hash_pair(first, second) & (len(slots) - 1)
    while slots[slot] != 0 and (
        rows[slots[slot] - 1, 0] != first or (keys == 2 and rows[slots[slot] - 1, 1] != second)
    ):
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@inlined_jit
def _add_line(
    window: FlatWindow,
    window_shape: Triple,
    length: int,
    origin: Triple,
    z: int,
    y: int,
    voxels: RowTable,
    contacts: RowTable,
    counts: tuple[int, int],
    previous: NDArray[np.int64],
) -> tuple[int, int]:
    """Add a line of voxels along x, run by run of equal labels, and return how many rows the two tables have now.

    `previous`, of shape (3, x), holds the row of the contact met last at each place of a line, along z, y and x.
    """
    (nz, ny, nx), (count, contact_count) = window_shape, counts
    line = np.uint64((z * ny + y) * nx)
    end, last = line, line + np.uint64(length)
    while end < last:
        begin, label = end, np.int64(window.labels[end])
        end = _find_run_end(window.labels, begin, min(last, begin + np.uint64(LONGEST_RUN)))
        if label == 0:
            continue
        i, count = _find_supervoxel(voxels, count, label, len(window.pivots))
        x = origin[2] + np.int64(begin - line)
        _add_extent(voxels.rows, i, origin[0] + z, origin[1] + y, x, np.int64(end - begin))
        for c in range(len(window.pivots)):
            _add_intensities(voxels, i, window, c, begin, end)
        # Not in a loop over the axes, which would be slower by a twentieth.
        if z + 1 < nz:
            contact_count = _add_faces(window, 0, line, begin, end, voxels, i, contacts, contact_count, previous)
        if y + 1 < ny:
            contact_count = _add_faces(window, 1, line, begin, end, voxels, i, contacts, contact_count, previous)
        if end < line + np.uint64(nx):
            first = end - np.uint64(1)
            contact_count = _add_faces(window, 2, line, first, end, voxels, i, contacts, contact_count, previous)
    return count, contact_count


@inlined_jit
def _find_run_end(labels: NDArray[Any], begin: int, limit: int) -> int:
    """Return the position after the last voxel of a run of equal labels."""
    end, label = begin, labels[begin]
    while end < limit and labels[end] == label:
        end += np.uint64(1)
    return end


@inlined_jit
def _find_supervoxel(voxels: RowTable, count: int, label: int, channels: int) -> tuple[int, int]:
    """Return the number of a label's row, which is added if it is new, and how many rows there are now."""
    rows, floats, slots = voxels.rows, voxels.floats, voxels.slots
    slot = _find_slot(voxels, 1, label, 0)
    if slots[slot] == 0:
        rows[count, 0] = label
        for axis in range(3):
            rows[count, BOX_MIN + axis] = np.iinfo(np.int64).max
        for c in range(channels):
            floats[count, CHANNELS + c * CHANNEL_WIDTH + MINIMUM] = np.inf
            floats[count, CHANNELS + c * CHANNEL_WIDTH + MAXIMUM] = -np.inf
        count += 1
        slots[slot] = count
    return np.int64(slots[slot]) - 1, count


@inlined_jit
def _find_contact(contacts: RowTable, count: int, low: int, high: int) -> tuple[int, int]:
    """Return the number of a contact's row, which is added if it is new, and how many rows there are now."""
    slot = _find_slot(contacts, 2, low, high)
    if contacts.slots[slot] == 0:
        contacts.rows[count, 0], contacts.rows[count, 1] = low, high
        count += 1
        contacts.slots[slot] = count
    return np.int64(contacts.slots[slot]) - 1, count


@inlined_jit
def _add_extent(rows: NDArray[np.int64], i: int, z: int, y: int, x: int, length: int) -> None:
    """Add the size and the place of a run of voxels."""
    rows[i, SIZE] += length
    rows[i, COORDINATE_SUMS] += length * z
    rows[i, COORDINATE_SUMS + 1] += length * y
    rows[i, COORDINATE_SUMS + 2] += length * (2 * x + length - 1) // 2
    rows[i, BOX_MIN] = min(rows[i, BOX_MIN], z)
    rows[i, BOX_MIN + 1] = min(rows[i, BOX_MIN + 1], y)
    rows[i, BOX_MIN + 2] = min(rows[i, BOX_MIN + 2], x)
    rows[i, BOX_MAX] = max(rows[i, BOX_MAX], z)
    rows[i, BOX_MAX + 1] = max(rows[i, BOX_MAX + 1], y)
    rows[i, BOX_MAX + 2] = max(rows[i, BOX_MAX + 2], x + length - 1)
    rows[i, INNER_FACES + 2] += length - 1


@inlined_jit
def _add_intensities(voxels: RowTable, i: int, window: FlatWindow, channel: int, begin: int, end: int) -> None:
    """Add a channel's intensities in a run of voxels."""
    rows, floats, column = voxels.rows, voxels.floats, CHANNELS + channel * CHANNEL_WIDTH
    values, pivot, offset = window.values, window.pivots[channel], np.uint64(channel) * window.size
    real, histogram = len(values) > 0, np.uint64(column + BIN_COUNTS)
    measured, total, squares = 0, np.int64(0), np.int64(0)
    least, most = np.int64(UNIT_BOUND), np.int64(-UNIT_BOUND)
    low, high = floats[i, column + MINIMUM], floats[i, column + MAXIMUM]
    for k in range(offset + begin, offset + end):
        unit, bin_ = np.int64(window.units[k]), np.uint64(window.bins[k])
        if bin_ >= np.uint64(BINS):
            continue
        rows[i, histogram + bin_] += 1
        if unit != NO_UNIT:
            measured += 1
            total += unit
            squares += unit * unit
            least, most = min(least, unit), max(most, unit)
            if real:
                low = values[k] if values[k] < low else low
                high = values[k] if values[k] > high else high
        elif math.isfinite(values[k]):
            measured += 1
            low, high = min(low, values[k]), max(high, values[k])
            far = max(-LARGEST_FLOAT, min(LARGEST_FLOAT, values[k] - pivot))
            add_number(rows, i, column + FAR_SUM, far)
            add_number(rows, i, column + FAR_SQUARES, min(LARGEST_FLOAT, far * far))
    if not real and measured:
        low, high = min(low, pivot + np.float64(least)), max(high, pivot + np.float64(most))
    floats[i, column + MINIMUM], floats[i, column + MAXIMUM] = low, high
    rows[i, column + MEASURED] += measured
    rows[i, column + UNIT_SUM] += total >> BITS
    rows[i, column + UNIT_SUM + 1] += total & ((1 << BITS) - 1)
    rows[i, column + UNIT_SQUARES] += squares >> BITS
    rows[i, column + UNIT_SQUARES + 1] += squares & ((1 << BITS) - 1)


@inlined_jit
def _add_faces(
    window: FlatWindow,
    axis: int,
    line: int,
    first: int,
    end: int,
    voxels: RowTable,
    i: int,
    contacts: RowTable,
    count: int,
    previous: NDArray[np.int64],
) -> int:
    """Add the faces of a run of voxels towards higher indices on an axis, and return how many contacts there are now.

    Along x, `first` is the last voxel of the run, the only one with another voxel behind its face.
    """
    rows, labels, stride, k = voxels.rows, window.labels, window.strides[axis], first
    label = rows[i, 0]
    while k < end:
        begin, other = k, np.int64(labels[k + stride])
        k = _find_run_end(labels, k + stride, end + stride) - stride
        if other == label:
            rows[i, INNER_FACES + axis] += np.int64(k - begin)
        elif other != 0:
            low, high = min(label, other), max(label, other)
            # Usually the contact is the one met here in the line before.
            j = previous[axis, begin - line]
            if contacts.rows[j, 0] != low or contacts.rows[j, 1] != high:
                j, count = _find_contact(contacts, count, low, high)
                previous[axis, begin - line] = j
            contacts.rows[j, FACES + axis] += np.int64(k - begin)
            for c in range(len(window.pivots)):
                _add_steps(contacts.rows, j, window, c, axis, begin, k)
    return count


@inlined_jit
def _add_steps(
    contacts: NDArray[np.int64], j: int, window: FlatWindow, channel: int, axis: int, begin: int, end: int
) -> None:
    """Add a channel's steps in intensity from a stretch of voxels to their neighbours."""
    units, values, stride, offset = window.units, window.values, window.strides[axis], np.uint64(channel) * window.size
    column, measured, total, sides = STEP_CHANNELS + channel * STEP_CHANNEL_WIDTH, 0, np.int64(0), np.int64(0)
    for k in range(offset + begin, offset + end):
        here, there = np.int64(units[k]), np.int64(units[k + stride])
        if here != NO_UNIT and there != NO_UNIT:
            total += abs(here - there)
            sides += here + there
            measured += 1
            continue
        step = abs(values[k] - values[k + stride]) / window.lengths[axis]
        if math.isfinite(step):
            add_number(contacts, j, column + FAR_STEP_SUM, step)
            mean = (values[k] / 2 + values[k + stride] / 2) - window.pivots[channel]
            add_number(contacts, j, column + FAR_MEAN_SUM, max(-LARGEST_FLOAT, min(LARGEST_FLOAT, mean)))
            measured += 1
    contacts[j, column + STEPS_MEASURED] += measured
    contacts[j, column + STEP_SUMS + axis] += total
    contacts[j, column + SIDES_SUM] += sides


@jit
def combine_voxels(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up consecutive rows of supervoxels with the same label."""
    out, used = rows.copy(), 0
    floats, more = out.view(np.float64), rows.view(np.float64)
    for j in range(len(rows)):
        i = used - 1
        if used == 0 or out[i, 0] != rows[j, 0]:
            out[used] = rows[j]
            used += 1
            continue
        for column in range(SIZE, BOX_MIN):
            out[i, column] += rows[j, column]
        for column in range(BOX_MIN, BOX_MAX):
            out[i, column] = min(out[i, column], rows[j, column])
        for column in range(BOX_MAX, INNER_FACES):
            out[i, column] = max(out[i, column], rows[j, column])
        for column in range(INNER_FACES, CHANNELS):
            out[i, column] += rows[j, column]
        for begin in range(CHANNELS, rows.shape[1], CHANNEL_WIDTH):
            for column in range(begin + MEASURED, begin + FAR_SUM):
                out[i, column] += rows[j, column]
            add_sum(out, i, begin + FAR_SUM, rows, j)
            add_sum(out, i, begin + FAR_SQUARES, rows, j)
            floats[i, begin + MINIMUM] = min(floats[i, begin + MINIMUM], more[j, begin + MINIMUM])
            floats[i, begin + MAXIMUM] = max(floats[i, begin + MAXIMUM], more[j, begin + MAXIMUM])
            for column in range(begin + BIN_COUNTS, begin + CHANNEL_WIDTH):
                out[i, column] += rows[j, column]
    return out[:used]


@jit
def combine_contacts(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up consecutive rows of contacts with the same labels."""
    out, used = rows.copy(), 0
    for j in range(len(rows)):
        i = used - 1
        if used == 0 or out[i, 0] != rows[j, 0] or out[i, 1] != rows[j, 1]:
            out[used] = rows[j]
            used += 1
            continue
        for column in range(FACES, STEP_CHANNELS):
            out[i, column] += rows[j, column]
        for begin in range(STEP_CHANNELS, rows.shape[1], STEP_CHANNEL_WIDTH):
            for column in range(begin, begin + FAR_STEP_SUM):
                out[i, column] += rows[j, column]
            add_sum(out, i, begin + FAR_STEP_SUM, rows, j)
            add_sum(out, i, begin + FAR_MEAN_SUM, rows, j)
    return out[:used]
