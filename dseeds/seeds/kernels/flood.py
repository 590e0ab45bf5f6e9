"""Boundary maps: the seeds of a flood, and its sweeps.

During a flood, the byte of a voxel is its label, see `label_codes`, or `NOTHING`; or `UNLABELLED` plus the level of the
boundary map there. A label that was taken in this sweep or the one before has the bit `TAKEN`, and another bit that
tells even sweeps from odd ones, so that a sweep can leave alone what it has itself written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Triple
from dseeds.core.jit import inlined_jit, jit
from dseeds.seeds.kernels.label_codes import home_label, owner_lookup, row_home
from dseeds.seeds.kernels.layout import FACES, LANES, NEIGHBOURS, WindowGeometry, neighbour_distances
from dseeds.seeds.kernels.simd import NOTHING, TAKEN, flood_lanes, trailing_zeros
from dseeds.seeds.kernels.voxels import BINS, MASKED

# The levels of a boundary map, low inside and high on boundaries.
LEVELS = 12
UNLABELLED = NOTHING + 1
# The bit that marks the labels of odd sweeps, and the bits of a label.
_ODD, _LABEL = 64, 63
# The kinds of boundary maps: the last channel of the bins, or what is derived from the bins of the image.
MAP, BRIGHT, DARK, GRADIENT = range(4)
# A difference across two voxels of so many bins, and more, is the highest level of a gradient.
STEEPEST = 32
# Keys by which labels are compared: the squared length of a cell's edge, one bin, one more face with the label, and one
# level of the lowest of these faces.
CELL_UNIT, BIN_UNIT, FACE_UNIT, LEVEL_UNIT = 1 << 24, 1 << 19, 1 << 22, 3 << 21
_FACE_STEPS = tuple(NEIGHBOURS[k] for k in FACES)
# Columns of the table of seeds before those of the channels: the position (z, y, x) in the volume.
POSITION = 3


class BoundaryMap(NamedTuple):
    """How the levels of a boundary map follow from the bins: its kind, and the weights of the image's channels."""

    kind: int
    weights: NDArray[np.int64]


class FloodSweep(NamedTuple):
    """A sweep in a range of planes: its number, the highest open level, and how far from the core it still matters."""

    number: int
    highest: int
    margin: int
    begin: int
    end: int


@inlined_jit
def _bin(bins: NDArray[np.uint8], channel: int, z: int, y: int, x: int) -> int:
    return np.int64(bins[channel, z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1])


@jit
def _difference(bins: NDArray[np.uint8], channel: int, one: Triple, other: Triple) -> int:
    """Return the difference between the bins of two voxels, 0 if one of them is masked out."""
    a, b = _bin(bins, channel, one[0], one[1], one[2]), _bin(bins, channel, other[0], other[1], other[2])
    return 0 if a == MASKED or b == MASKED else abs(a - b)


@jit
def _level(bins: NDArray[np.uint8], boundaries: BoundaryMap, at: Triple, lo: Triple, hi: Triple) -> int:
    """Return the level of a voxel; for a gradient from the voxels in a box. The voxel is not masked out."""
    z, y, x = at
    weights = boundaries.weights
    if boundaries.kind == MAP:
        return _bin(bins, len(weights), z, y, x) * LEVELS // BINS
    total = weights.sum()
    if boundaries.kind == GRADIENT:
        steepest = 0
        for axis in range(3):
            dz, dy, dx = int(axis == 0), int(axis == 1), int(axis == 2)
            before = max(lo[0], z - dz), max(lo[1], y - dy), max(lo[2], x - dx)
            after = min(hi[0] - 1, z + dz), min(hi[1] - 1, y + dy), min(hi[2] - 1, x + dx)
            change = 0
            for c in range(len(weights)):
                change += weights[c] * _difference(bins, c, before, after)
            steepest = max(steepest, change)
        return min(LEVELS - 1, steepest * LEVELS // (total * STEEPEST))
    mean = 0
    for c in range(len(weights)):
        mean += weights[c] * _bin(bins, c, z, y, x)
    mean //= total
    return (BINS - 1 - mean if boundaries.kind == DARK else mean) * LEVELS // BINS


@jit
def find_seeds(
    bins: NDArray[np.uint8],
    boundaries: BoundaryMap,
    edges: AxisArrays,
    origin: Triple,
    units: Triple,
    seeds: NDArray[np.uint32],
) -> None:
    """Find the seed of each of a box of cells: the lowest voxel near the cell's centre.

    `edges` holds per axis where the cells begin and the last one ends, in voxels of the window, which begins at
    `origin`; `units` are the costs of a squared distance of one voxel along each axis. `seeds`, shape (z, y, x,
    3 + channels), receives each seed's position in the volume, and the mean bins around it. It stays 0 for a cell
    without a voxel in the mask.
    """
    edge_z, edge_y, edge_x = edges
    for cell_z in range(len(edge_z) - 1):
        for cell_y in range(len(edge_y) - 1):
            for cell_x in range(len(edge_x) - 1):
                lo = edge_z[cell_z], edge_y[cell_y], edge_x[cell_x]
                hi = edge_z[cell_z + 1], edge_y[cell_y + 1], edge_x[cell_x + 1]
                seed = _lowest_voxel(bins, boundaries, lo, hi, units, True)
                if seed[0] < 0:
                    seed = _lowest_voxel(bins, boundaries, lo, hi, units, False)
                if seed[0] >= 0:
                    _describe_seed(bins, seed, lo, hi, origin, seeds[cell_z, cell_y, cell_x])


@jit
def _lowest_voxel(
    bins: NDArray[np.uint8], boundaries: BoundaryMap, lo: Triple, hi: Triple, units: Triple, is_near: bool
) -> Triple:
    """Return the voxel of the lowest level in a cell, or in its middle, and of these the nearest to its centre."""
    cz, cy, cx = (lo[0] + hi[0]) // 2, (lo[1] + hi[1]) // 2, (lo[2] + hi[2]) // 2
    rz, ry, rx = hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]
    if is_near:
        rz, ry, rx = 3 * rz // 8, 3 * ry // 8, 3 * rx // 8
    best, lowest, nearest = (np.int64(-1), np.int64(-1), np.int64(-1)), LEVELS, 0
    for z in range(max(lo[0], cz - rz), min(hi[0], cz + rz + 1)):
        for y in range(max(lo[1], cy - ry), min(hi[1], cy + ry + 1)):
            for x in range(max(lo[2], cx - rx), min(hi[2], cx + rx + 1)):
                if _bin(bins, 0, z, y, x) == MASKED:
                    continue
                level = _level(bins, boundaries, (z, y, x), lo, hi)
                distance = (z - cz) ** 2 * units[0] + (y - cy) ** 2 * units[1] + (x - cx) ** 2 * units[2]
                if level < lowest or (level == lowest and distance < nearest):
                    best, lowest, nearest = (z, y, x), level, distance
    return best


@jit
def _describe_seed(
    bins: NDArray[np.uint8], seed: Triple, lo: Triple, hi: Triple, origin: Triple, out: NDArray[np.uint32]
) -> None:
    """Write the position of a seed, and the mean bins of the voxels of its cell that touch it."""
    for axis in range(POSITION):
        out[axis] = seed[axis] + origin[axis]
    for c in range(len(out) - POSITION):
        total = count = 0
        for z in range(max(lo[0], seed[0] - 1), min(hi[0], seed[0] + 2)):
            for y in range(max(lo[1], seed[1] - 1), min(hi[1], seed[1] + 2)):
                for x in range(max(lo[2], seed[2] - 1), min(hi[2], seed[2] + 2)):
                    bin_ = _bin(bins, c, z, y, x)
                    if bin_ != MASKED:
                        total += bin_
                        count += 1
        out[POSITION + c] = total // count


@jit
def start_flood(
    bins: NDArray[np.uint8],
    boundaries: BoundaryMap,
    geometry: WindowGeometry,
    seeds: NDArray[np.uint32],
    labels: NDArray[np.uint8],
) -> None:
    """Write the levels of a window's voxels, and the labels of the seeds in it; `seeds` are those of its cells."""
    hi = len(geometry.homes[0]), len(geometry.homes[1]), len(geometry.homes[2])
    for z in range(hi[0]):
        for y in range(hi[1]):
            for x in range(hi[2]):
                byte = NOTHING
                if _bin(bins, 0, z, y, x) != MASKED:
                    byte = UNLABELLED + _level(bins, boundaries, (z, y, x), (0, 0, 0), hi)
                labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = byte
    for number in range(len(seeds)):
        z = np.int64(seeds[number, 0]) - geometry.origin[0]
        y = np.int64(seeds[number, 1]) - geometry.origin[1]
        x = np.int64(seeds[number, 2]) - geometry.origin[2]
        if not (0 <= z < hi[0] and 0 <= y < hi[1] and 0 <= x < hi[2]):
            continue
        cell = geometry.homes[0][z], geometry.homes[1][y], geometry.homes[2][x]
        row = (cell[0] - geometry.first_cell[0]) * geometry.cells[1] + cell[1] - geometry.first_cell[1]
        # A cell without a seed has that of the volume's first voxel.
        if row * geometry.cells[2] + cell[2] - geometry.first_cell[2] == number:
            byte = labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1]
            if byte != NOTHING:
                labels[z + 1, y + 1, (x + 1) & 1, (x + 1) >> 1] = home_label(cell[0], cell[1], cell[2])


@jit
def count_unlabelled(labels: NDArray[np.uint8], counts: NDArray[np.int32]) -> None:
    """Count the voxels without a label in each row of a window, int32 (z, y)."""
    for z in range(counts.shape[0]):
        for y in range(counts.shape[1]):
            count = 0
            for half in labels[z + 1, y + 1]:
                for byte in half:
                    count += byte >= UNLABELLED
            counts[z, y] = count


@jit
def sweep_flood(
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    remaining: NDArray[np.int32],
    seeds: NDArray[np.uint32],
    boundaries: BoundaryMap,
    units: Triple,
    geometry: WindowGeometry,
    sweep: FloodSweep,
) -> int:
    """Label the voxels of open levels beside voxels that had a label before the sweep; return their number.

    - `bins`, `labels`: windows, the latter as `start_flood` and earlier sweeps left it.
    - `remaining`, int32 (z, y): the voxels of each row without a label or with a `TAKEN` one.
    - `seeds`: of the cells of the window, from `find_seeds`; `units` are those of `find_seeds`.
    """
    flat = labels.reshape(-1)
    distances = neighbour_distances(labels)
    offsets, home_x, number_x = owner_lookup(geometry)
    around = np.zeros(6, np.uint8)
    shape = len(geometry.homes[0]), len(geometry.homes[1]), len(geometry.homes[2])
    ny, nx = shape[1], shape[2]
    begin_y, end_y = max(0, geometry.core_lo[1] - sweep.margin), min(ny, geometry.core_hi[1] + sweep.margin)
    begin_x, end_x = max(0, geometry.core_lo[2] - sweep.margin), min(nx, geometry.core_hi[2] + sweep.margin)
    mark = TAKEN + _ODD * (sweep.number & 1)
    # A byte is a label from before the sweep if it is below 64, or has the mark of the sweep before; that is, if this
    # bit is clear after an addition.
    offset, bit = (np.uint8(0), np.uint8(64)) if sweep.number & 1 else (np.uint8(64), np.uint8(128))
    one, every, highest = np.uint64(1), np.uint64(LANES), np.uint8(sweep.highest)
    origin, taken = geometry.origin, 0
    for z in range(sweep.begin, sweep.end):
        for y in range(begin_y, end_y):
            if remaining[z, y] == 0:
                continue
            has_home, home_row, number_row = False, np.uint64(0), np.int64(0)
            for parity in range(2):
                # Indexing counts references, so it is not done for every few voxels.
                beside = distances[parity]
                row = (((z + 1) * labels.shape[1] + y + 1) * 2 + parity) * labels.shape[3]
                begin, end = (begin_x + 2 - parity) >> 1, ((end_x - parity) >> 1) + 1
                for i in range(begin, end, LANES):
                    first = np.uint64(row + i)
                    lanes: np.uint64 = flood_lanes(flat, first, beside, highest, offset, bit)
                    if lanes == 0:
                        continue
                    if not has_home:
                        has_home = True
                        home_row, number_row = row_home(z, y, geometry)
                    within = (one << np.uint64(min(LANES, end - i))) - one
                    old, due = (lanes >> every) & within, lanes & within
                    while old != 0:
                        voxel = first + trailing_zeros(old)
                        old &= old - one
                        flat[voxel] &= np.uint8(_LABEL)
                        remaining[z, y] -= 1
                    while due != 0:
                        lane = trailing_zeros(due)
                        due &= due - one
                        x = 2 * (i + np.int64(lane)) + parity - 1
                        for f in range(6):
                            byte = flat[first + lane + beside[FACES[f]]]
                            around[f] = byte & np.uint8(_LABEL) if ((byte + offset) & bit) == 0 else np.uint8(NOTHING)
                        home, number = home_row + home_x[x], number_row + number_x[x]
                        place = z + origin[0], y + origin[1], x + origin[2]
                        best = _best_label(
                            around, home, number, offsets, bins, seeds, boundaries, units, place, (z, y, x), shape
                        )
                        if best >= 0:
                            flat[first + lane] = np.uint8(mark | best)
                            taken += 1
    return taken


@inlined_jit
def _best_label(
    around: NDArray[np.uint8],
    home: np.uint64,
    number: int,
    offsets: NDArray[np.int32],
    bins: NDArray[np.uint8],
    seeds: NDArray[np.uint32],
    boundaries: BoundaryMap,
    units: Triple,
    place: Triple,
    at: Triple,
    shape: Triple,
) -> int:
    """Return the best label, see `_key`, of those at a voxel's faces; -1 if none is in reach."""
    best, least, nearest_owner, is_compared = -1, np.int64(0), np.int64(0), False
    for f in range(6):
        label = np.int64(around[f])
        if label == NOTHING:
            continue
        owner = number + offsets[home + np.uint64(label)]
        if owner < 0 or label == best:
            continue
        if best < 0:
            best, nearest_owner = label, owner
            continue
        # Most voxels have one label around them, whose key is not needed.
        if not is_compared:
            is_compared = True
            least = _key(around, best, bins, seeds[nearest_owner], boundaries, units, place, at, shape)
        key = _key(around, label, bins, seeds[owner], boundaries, units, place, at, shape)
        if key < least or (key == least and owner < nearest_owner):
            best, least, nearest_owner = label, key, owner
    return best


@jit
def _key(
    around: NDArray[np.uint8],
    label: int,
    bins: NDArray[np.uint8],
    seed: NDArray[np.uint32],
    boundaries: BoundaryMap,
    units: Triple,
    place: Triple,
    at: Triple,
    shape: Triple,
) -> int:
    """Return how badly a label at a voxel's faces fits the voxel.

    It grows with the distance from the seed, the difference from the bins around it, and the level of the lowest face
    neighbour with the label, where the seed counts as level 0; it falls with the number of these neighbours.
    """
    weights = boundaries.weights
    far_z, far_y, far_x = np.int64(seed[0]) - place[0], np.int64(seed[1]) - place[1], np.int64(seed[2]) - place[2]
    key = far_z**2 * units[0] + far_y**2 * units[1] + far_x**2 * units[2]
    difference = np.int64(0)
    for c in range(len(weights)):
        difference += weights[c] * abs(_bin(bins, c, at[0], at[1], at[2]) - np.int64(seed[POSITION + c]))
    key += BIN_UNIT * difference // weights.sum()
    is_beside_seed = abs(far_z) + abs(far_y) + abs(far_x) == 1
    lowest = 0 if is_beside_seed else LEVELS
    for f in range(6):
        if around[f] != label:
            continue
        key -= FACE_UNIT
        if lowest > 0:
            dz, dy, dx = _FACE_STEPS[f]
            face = at[0] + dz, at[1] + dy, at[2] + dx
            lowest = min(lowest, _level(bins, boundaries, face, (0, 0, 0), shape))
    return key + LEVEL_UNIT * lowest


@jit
def settle(labels: NDArray[np.uint8], geometry: WindowGeometry, is_last: bool) -> None:
    """Remove the marks of the last sweep; after the flood, voxels that it has not reached get their home's label.

    Under a mask, a flood does not reach voxels that the mask cuts off from all seeds around.
    """
    for z in range(geometry.core_lo[0], geometry.core_hi[0]):
        for y in range(geometry.core_lo[1], geometry.core_hi[1]):
            row = labels[z + 1, y + 1]
            for x in range(geometry.core_lo[2], geometry.core_hi[2]):
                byte = row[(x + 1) & 1, (x + 1) >> 1]
                if byte >= TAKEN:
                    row[(x + 1) & 1, (x + 1) >> 1] = byte & _LABEL
                elif is_last and byte >= UNLABELLED:
                    home = geometry.homes[0][z], geometry.homes[1][y], geometry.homes[2][x]
                    row[(x + 1) & 1, (x + 1) >> 1] = home_label(home[0], home[1], home[2])
