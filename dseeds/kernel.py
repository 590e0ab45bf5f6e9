"""The Numba loops: block sweep, voxel sweep, statistics, connectivity table.

Conventions of every loop here:

- `labels` is int32, a window that is padded by one unit on each side, axes (z, y, x). A label is the number of a cell
  local to the window; -1 is "nothing there" (outside the volume or the window).
- A voxel's value is its bin, uint8 in 0..63, padded like the labels. A block's value is its histogram over 32 bins.
- The 18 neighbours of a unit are numbered in the order of `NEIGHBOURS`; the six that share a face are `FACES`.
- All scores are integers, so that a tie is a tie on every machine; see `scores`.

Nothing here knows of Dask, Zarr or the volume's size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from dseeds.lattice import Triple

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile a kernel: without the GIL, and never cached on disk, where many workers would race for the files."""
    return cast(Function, njit(nogil=True)(function))


# Ascending offsets (z, y, x) with one or two non-zero entries: the faces come as -z, -y, -x, +x, +y, +z,
# which is the order in which candidates are tried.
NEIGHBOURS = tuple(
    (z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if 1 <= abs(z) + abs(y) + abs(x) <= 2
)
FACES = tuple(k for k, offset in enumerate(NEIGHBOURS) if sum(map(abs, offset)) == 1)
F0, F1, F2, F3, F4, F5 = FACES
BINS = 64
BLOCK_BINS = 32
BATCH = 128
# The label code of a unit that belongs to its own cell.
OWN = 14
# A score's unit: block scores count 1/32768 of a full histogram intersection, voxel scores 1/512 of a log unit.
BLOCK_UNIT = 1 << 15
VOXEL_UNIT = 1 << 9
# A block weighs at most 8 times the rest of its supervoxel, in units of 2^-12: so its product with a share fits 32
# bits.
MOST_RATIO = 8 << 12


def _count_zeros(instruction: str) -> Any:
    @intrinsic
    def count(typingctx: Any, word: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], context.get_constant(types.boolean, True))

        return types.uint64(types.uint64), codegen

    return count


# The zero bits below a word's lowest set bit, and those above its highest.
trailing_zeros = _count_zeros("cttz")
leading_zeros = _count_zeros("ctlz")


@jit
def _connectivity(adjacent: NDArray[np.uint32], faces: np.uint32, table: NDArray[np.uint64]) -> None:
    for mask in range(1 << 18):
        wanted = np.uint32(mask) & faces
        if wanted == 0:
            continue
        reached = wanted & (~wanted + np.uint32(1))
        grown = np.uint32(0)
        while grown != reached:
            grown = reached
            for k in range(18):
                if (grown >> np.uint32(k)) & np.uint32(1):
                    reached |= adjacent[k] & np.uint32(mask)
        if wanted & ~reached == 0:
            table[mask >> 6] |= np.uint64(1) << np.uint64(mask & 63)


@cache
def connectivity_table() -> NDArray[np.uint64]:
    """Tabulate which units may leave their supervoxel without cutting it.

    Returns
    -------
    ndarray of uint64, shape (4096,)
        Bit m of the 2^18 bits is set where, with the neighbours in the bit mask m carrying the unit's label, those
        that share a face with it exist and are joined to each other by face steps among the neighbours in m.
    """
    adjacent = np.zeros(18, np.uint32)
    for a, here in enumerate(NEIGHBOURS):
        for b, there in enumerate(NEIGHBOURS):
            if sum(abs(i - j) for i, j in zip(here, there, strict=True)) == 1:
                adjacent[a] |= np.uint32(1 << b)
    table = np.zeros(4096, np.uint64)
    _connectivity(adjacent, np.uint32(sum(1 << f for f in FACES)), table)
    return table


@jit
def seed(
    labels: NDArray[np.int32],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
) -> None:
    """Give every unit of a padded window the label of its own cell, and the padding -1."""
    labels[:] = -1
    for z in range(len(cell_z)):
        for y in range(len(cell_y)):
            base = (cell_z[z] * cells[1] + cell_y[y]) * cells[2]
            for x in range(len(cell_x)):
                labels[z + 1, y + 1, x + 1] = base + cell_x[x]


@jit
def refine(
    coarse: NDArray[np.int32],
    parent_z: NDArray[np.int64],
    parent_y: NDArray[np.int64],
    parent_x: NDArray[np.int64],
    labels: NDArray[np.int32],
) -> None:
    """Hand the labels of coarser units to the finer units within them; both windows are padded."""
    labels[:] = -1
    for z in range(len(parent_z)):
        for y in range(len(parent_y)):
            for x in range(len(parent_x)):
                labels[z + 1, y + 1, x + 1] = coarse[parent_z[z] + 1, parent_y[y] + 1, parent_x[x] + 1]


@jit
def _owner_offsets(cells: Triple) -> NDArray[np.int64]:
    """Give for every label code how far the owner's number is from that of the unit's own cell."""
    offsets = np.zeros(28, np.int64)
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                offsets[OWN + 9 * dz + 3 * dy + dx] = (dz * cells[1] + dy) * cells[2] + dx
    return offsets


@jit
def decode(
    codes: NDArray[np.uint8],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
    labels: NDArray[np.int32],
) -> None:
    """Turn label codes, 14 + 9 dz + 3 dy + dx for an owner that many cells away, into padded local labels."""
    labels[:] = -1
    owners = _owner_offsets(cells)
    for z in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            row = (cell_z[z] * cells[1] + cell_y[y]) * cells[2]
            for x in range(codes.shape[2]):
                labels[z + 1, y + 1, x + 1] = row + cell_x[x] + owners[codes[z, y, x]]


@jit
def encode(
    labels: NDArray[np.int32],
    core: tuple[Triple, Triple],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
    codes: NDArray[np.uint8],
) -> None:
    """Turn the labels in a box of a padded window into codes: the owner's cell relative to the unit's own."""
    places = np.empty(cells[0] * cells[1] * cells[2], np.int64)
    for owner_z in range(cells[0]):
        for owner_y in range(cells[1]):
            for owner_x in range(cells[2]):
                places[(owner_z * cells[1] + owner_y) * cells[2] + owner_x] = 9 * owner_z + 3 * owner_y + owner_x
    for z in range(core[0][0], core[1][0]):
        for y in range(core[0][1], core[1][1]):
            for x in range(core[0][2], core[1][2]):
                place = places[labels[z + 1, y + 1, x + 1]]
                here = 9 * cell_z[z] + 3 * cell_y[y] + cell_x[x]
                codes[z - core[0][0], y - core[0][1], x - core[0][2]] = OWN + place - here


@jit
def unpad(labels: NDArray[np.int32]) -> None:
    """Move a padded window's labels, plus one, to the front of its memory, where they lie without padding."""
    flat = labels.reshape(-1)
    n = 0
    for z in range(1, labels.shape[0] - 1):
        for y in range(1, labels.shape[1] - 1):
            for x in range(1, labels.shape[2] - 1):
                flat[n] = labels[z, y, x] + np.int32(1)
                n += 1


@jit
def mark_boundaries(labels: NDArray[np.int32], open_units: NDArray[np.uint64]) -> None:
    """Set the bits of the units that have a face neighbour of another label; clear all others."""
    open_units[:] = 0
    differs = np.zeros(64 * open_units.shape[2], np.uint8)
    eights = differs.view(np.uint64)
    x0, x1 = 1, labels.shape[2] - 1
    marks = differs[x0:x1]
    for z in range(1, labels.shape[0] - 1):
        for y in range(1, labels.shape[1] - 1):
            own = labels[z, y, x0:x1]
            above, below = labels[z - 1, y, x0:x1], labels[z + 1, y, x0:x1]
            before, behind = labels[z, y - 1, x0:x1], labels[z, y + 1, x0:x1]
            left, right = labels[z, y, x0 - 1 : x1 - 1], labels[z, y, x0 + 1 : x1 + 1]
            for x in range(len(marks)):
                # Bitwise, for this vectorises. -1 differs as well, and costs one idle visit at the volume's border.
                other = (above[x] ^ own[x]) | (below[x] ^ own[x]) | (before[x] ^ own[x])
                other |= (behind[x] ^ own[x]) | (left[x] ^ own[x]) | (right[x] ^ own[x])
                marks[x] = np.uint8(other != 0)
            for word in range(open_units.shape[2]):
                bits = np.uint64(0)
                for k in range(8):
                    # Eight bytes of 0 or 1 times this number have their bits side by side in the topmost byte.
                    byte = (eights[8 * word + k] * np.uint64(0x0102040810204080)) >> np.uint64(56)
                    bits |= byte << np.uint64(8 * k)
                open_units[z, y, word] = bits


@jit
def _neighbour_offsets(rows: int, columns: int) -> NDArray[np.uint64]:
    """Give the 18 neighbours' distances in memory; negative ones wrap around, as unsigned sums do."""
    offsets = np.empty(len(NEIGHBOURS), np.uint64)
    for k, (z, y, x) in enumerate(NEIGHBOURS):
        offsets[k] = np.uint64(np.int64((z * rows + y) * columns + x))
    return offsets


@jit
def _open_neighbours(open_units: NDArray[np.uint64], z: int, y: int, x: int) -> None:
    """Set the bits of a unit's 18 neighbours: one or two in each of nine rows, or three."""
    one = np.uint64(1)
    word, bit = x >> 6, one << np.uint64(x & 63)
    left, left_bit = (x - 1) >> 6, one << np.uint64((x - 1) & 63)
    right, right_bit = (x + 1) >> 6, one << np.uint64((x + 1) & 63)
    for dz in range(-1, 2):
        for dy in range(-1, 2):
            if dz != 0 or dy != 0:
                open_units[z + dz, y + dy, word] |= bit
            if dz == 0 or dy == 0:
                open_units[z + dz, y + dy, left] |= left_bit
                open_units[z + dz, y + dy, right] |= right_bit


@jit
def _within_reach(owner: int, cell_z: int, cell_y: int, cell_x: int, cells: Triple) -> bool:
    """Tell whether an owner's cell is a unit's own cell or one of its 26 neighbours."""
    owner_z, owner_yx = divmod(owner, cells[1] * cells[2])
    owner_y, owner_x = divmod(owner_yx, cells[2])
    return abs(owner_z - cell_z) <= 1 and abs(owner_y - cell_y) <= 1 and abs(owner_x - cell_x) <= 1


@jit
def sweep_voxels(
    bins: NDArray[np.uint8],
    labels: NDArray[np.int32],
    open_units: NDArray[np.uint64],
    table: NDArray[np.int16],
    edge: NDArray[np.int16],
    simple: NDArray[np.uint64],
    sweeps: int,
    core: tuple[Triple, Triple],
    origin: Triple,
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
) -> int:
    """Move voxels between supervoxels for one round, in place.

    Parameters
    ----------
    bins, labels : ndarray, shape (z + 2, y + 2, x + 2)
        The window.
    open_units : ndarray of uint64, shape (z + 2, y + 2, words)
        A bit per voxel: to be looked at. A voxel whose neighbours have not changed since its last visit would stay as
        it is, for the scores are frozen; so its bit is off.
    table : ndarray of int16, shape (cells * 64,)
        The score of a bin in a supervoxel.
    edge : ndarray of int16, shape (64 * 64,)
        The score of a neighbour of the same label, by the two bins.
    simple : ndarray of uint64
        From `connectivity_table`.
    sweeps : int
        Sweeps in this round.
    core : pair of (z, y, x)
        The box, in the window without its padding, that has to be right at the end. Each colour needs one voxel less
        around it than the colour before.
    origin : (z, y, x)
        The global coordinates of the window's first voxel.
    cell_z, cell_y, cell_x : ndarray of int64
        Per axis the local cell of each voxel of the window.
    cells : (z, y, x)
        The extent of the box of local cells.

    Returns
    -------
    int
        How many moves were made.
    """
    nz, ny, nx = labels.shape[0] - 2, labels.shape[1] - 2, labels.shape[2] - 2
    sy = np.uint64(nx + 2)
    sz = np.uint64((ny + 2) * (nx + 2))
    offsets = _neighbour_offsets(ny + 2, nx + 2)
    flat_labels, flat_bins = labels.reshape(-1), bins.reshape(-1)
    # Voxels of one colour do not see each other, so they are looked at in batches, with the batch as the inner axis.
    queue = np.empty((ny * nx + 3) // 2, np.uint64)
    near = np.empty((18, BATCH), np.int32)
    gain = np.empty((18, BATCH), np.int32)
    score = np.empty((7, BATCH), np.int32)
    who = np.empty((7, BATCH), np.int32)
    highest = np.empty(BATCH, np.int32)
    one = np.uint64(1)
    moves = 0
    steps = 4 * sweeps
    for step in range(steps):
        colour = step & 3
        spare = steps - 1 - step
        z0, z1 = max(0, core[0][0] - spare), min(nz, core[1][0] + spare)
        y0, y1 = max(0, core[0][1] - spare), min(ny, core[1][1] + spare)
        x0, x1 = max(0, core[0][2] - spare) + 1, min(nx, core[1][2] + spare) + 1
        for z in range(z0, z1):
            length = 0
            # Along y, every other row has this colour's second parity.
            first = y0 + ((y0 + origin[1] + z + origin[0] + (colour >> 1)) & 1)
            for y in range(first, y1, 2):
                row = np.uint64(((z + 1) * (ny + 2) + y + 1) * (nx + 2))
                parity = np.uint64((colour + y + origin[1] + origin[2] - 1) & 1)
                pattern = np.uint64(0x5555555555555555) << parity
                for word in range(x0 >> 6, ((x1 - 1) >> 6) + 1):
                    todo = open_units[z + 1, y + 1, word] & pattern
                    if todo == 0:
                        continue
                    # Along x, only the bits of [x0, x1).
                    if word == x0 >> 6:
                        todo &= ~np.uint64(0) << np.uint64(x0 & 63)
                    if word == x1 >> 6:
                        todo &= (one << np.uint64(x1 & 63)) - one
                    open_units[z + 1, y + 1, word] &= ~todo
                    while todo != 0:
                        p = row + np.uint64(word << 6) + trailing_zeros(todo)
                        todo &= todo - one
                        own = flat_labels[p]
                        queue[length] = p
                        other = (flat_labels[p - sz] ^ own) | (flat_labels[p + sz] ^ own)
                        other |= (flat_labels[p - sy] ^ own) | (flat_labels[p + sy] ^ own)
                        other |= (flat_labels[p - one] ^ own) | (flat_labels[p + one] ^ own)
                        length += np.int64(other != 0)
            for start in range(0, length, BATCH):
                batch = min(BATCH, length - start)
                for i in range(batch):
                    p = queue[start + i]
                    value = np.uint64(flat_bins[p])
                    pair = value << np.uint64(6)
                    for k in range(18):
                        u = p + offsets[k]
                        near[k, i] = flat_labels[u]
                        gain[k, i] = edge[pair + np.uint64(flat_bins[u])]
                    # The own label first, then those of the six faces.
                    who[0, i] = flat_labels[p]
                    score[0, i] = table[(np.uint64(flat_labels[p]) << np.uint64(6)) + value]
                    for f in range(6):
                        other = near[FACES[f], i]
                        score[f + 1, i] = table[(np.uint64(max(other, 0)) << np.uint64(6)) + value]
                for f in range(6):
                    who[f + 1] = near[FACES[f]]
                for c in range(7):
                    label, total = who[c], score[c]
                    for i in range(batch):
                        own, gained = label[i], total[i]
                        for k in range(18):
                            gained += gain[k, i] if near[k, i] == own else np.int32(0)
                        total[i] = gained
                for i in range(batch):
                    highest[i] = score[1, i]
                    for c in range(2, 7):
                        highest[i] = max(highest[i], score[c, i])
                for i in range(batch):
                    if highest[i] <= score[0, i]:
                        continue
                    own = who[0, i]
                    mask = np.uint64(0)
                    for k in range(18):
                        mask |= np.uint64(near[k, i] == own) << np.uint64(k)
                    if (simple[mask >> np.uint64(6)] >> (mask & np.uint64(63))) & one == 0:
                        continue
                    p = queue[start + i]
                    rest = np.int64(p) - (z + 1) * (ny + 2) * (nx + 2)
                    yy, xx = divmod(rest, nx + 2)
                    best = own
                    top = score[0, i]
                    for c in range(1, 7):
                        other = who[c, i]
                        if other < 0 or score[c, i] <= top:
                            continue
                        if not _within_reach(other, cell_z[z], cell_y[yy - 1], cell_x[xx - 1], cells):
                            continue
                        best = other
                        top = score[c, i]
                    if best == own:
                        continue
                    flat_labels[p] = best
                    moves += 1
                    _open_neighbours(open_units, z + 1, yy, xx)
    return moves


@jit
def count_voxels(
    bins: NDArray[np.uint8],
    labels: NDArray[np.int32],
    core: tuple[Triple, Triple],
    counts: NDArray[np.uint32],
) -> None:
    """Add the bins of the voxels in a box of a padded window to the histograms of their supervoxels."""
    for z in range(core[0][0] + 1, core[1][0] + 1):
        for y in range(core[0][1] + 1, core[1][1] + 1):
            for x in range(core[0][2] + 1, core[1][2] + 1):
                counts[labels[z, y, x], bins[z, y, x]] += np.uint32(1)


@jit
def block_histograms(
    bins: NDArray[np.uint8],
    block_z: NDArray[np.int64],
    block_y: NDArray[np.int64],
    block_x: NDArray[np.int64],
    histograms: NDArray[Any],
) -> None:
    """Add voxels (unpadded bins of 64) to the 32-bin histograms, shape (z, y, x, 32), of the blocks they lie in."""
    for z in range(bins.shape[0]):
        for y in range(bins.shape[1]):
            for x in range(bins.shape[2]):
                histograms[block_z[z], block_y[y], block_x[x], bins[z, y, x] >> 1] += 1


@jit
def coarsen_histograms(
    finer: NDArray[Any],
    parent_z: NDArray[np.int64],
    parent_y: NDArray[np.int64],
    parent_x: NDArray[np.int64],
    histograms: NDArray[Any],
) -> None:
    """Add the histograms of finer blocks to those of the coarser blocks they lie in."""
    # The number of bins is not a constant to the compiler, here and below: it would unroll instead of vectorise.
    bins = finer.shape[3]
    for z in range(finer.shape[0]):
        for y in range(finer.shape[1]):
            for x in range(finer.shape[2]):
                for j in range(bins):
                    histograms[parent_z[z], parent_y[y], parent_x[x], j] += finer[z, y, x, j]


@jit
def count_blocks(
    histograms: NDArray[Any],
    labels: NDArray[np.int32],
    core: tuple[Triple, Triple],
    counts: NDArray[np.uint32],
) -> None:
    """Add the histograms of the blocks in a box of a padded window to those of their supervoxels."""
    bins = histograms.shape[3]
    for z in range(core[0][0], core[1][0]):
        for y in range(core[0][1], core[1][1]):
            for x in range(core[0][2], core[1][2]):
                own = labels[z + 1, y + 1, x + 1]
                for j in range(bins):
                    counts[own, j] += histograms[z, y, x, j]


@jit
def sweep_blocks(
    histograms: NDArray[Any],
    labels: NDArray[np.int32],
    open_units: NDArray[np.uint64],
    share: NDArray[np.int32],
    size: NDArray[np.int64],
    handicap: NDArray[np.int32],
    smooth: NDArray[np.int32],
    neighbour_gain: int,
    simple: NDArray[np.uint64],
    sweeps: int,
    core: tuple[Triple, Triple],
    origin: Triple,
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
) -> int:
    """Move blocks between supervoxels for one round, in place.

    The parameters are those of `sweep_voxels`, but for these.

    Parameters
    ----------
    histograms : ndarray of unsigned int, shape (z, y, x, 32)
        The window's block histograms, without padding.
    share : ndarray of int32, shape (cells, 32)
        The supervoxels' smoothed histograms as shares of their size, in block units.
    size : ndarray of int64, shape (cells,)
        The supervoxels' sizes in voxels.
    handicap : ndarray of int32, shape (cells,)
        What a supervoxel's size costs it.
    smooth : ndarray of int32, shape (7,)
        The smoothing over bins, sum 256.
    neighbour_gain : int
        The score of one neighbour of the same label.
    """
    nz, ny, nx = labels.shape[0] - 2, labels.shape[1] - 2, labels.shape[2] - 2
    offsets = _neighbour_offsets(ny + 2, nx + 2)
    before = labels.copy().reshape(-1)
    flat_labels = labels.reshape(-1)
    queue = np.empty((ny * nx + 3) // 2, np.uint64)
    queue_y = np.empty(len(queue), np.int32)
    queue_x = np.empty(len(queue), np.int32)
    near = np.empty((18, BATCH), np.int32)
    who = np.empty((7, BATCH), np.int32)
    score = np.empty((7, BATCH), np.int32)
    padded = np.zeros((BATCH, BLOCK_BINS + 6), np.int32)
    mine = np.zeros((BATCH, BLOCK_BINS), np.int32)
    total = np.zeros(BATCH, np.int64)
    bins = share.shape[1]
    one = np.uint64(1)
    moves = 0
    steps = 4 * sweeps
    for step in range(steps):
        colour = step & 3
        spare = steps - 1 - step
        z0, z1 = max(0, core[0][0] - spare), min(nz, core[1][0] + spare)
        y0, y1 = max(0, core[0][1] - spare), min(ny, core[1][1] + spare)
        x0, x1 = max(0, core[0][2] - spare), min(nx, core[1][2] + spare)
        for z in range(z0, z1):
            length = 0
            first_y = y0 + ((y0 + origin[1] + z + origin[0] + (colour >> 1)) & 1)
            for y in range(first_y, y1, 2):
                row = np.uint64(((z + 1) * (ny + 2) + y + 1) * (nx + 2))
                first_x = x0 + ((x0 + origin[2] + y + origin[1] + colour) & 1)
                for x in range(first_x + 1, x1 + 1, 2):
                    word, bit = x >> 6, one << np.uint64(x & 63)
                    if open_units[z + 1, y + 1, word] & bit == 0:
                        continue
                    open_units[z + 1, y + 1, word] &= ~bit
                    p = row + np.uint64(x)
                    own = flat_labels[p]
                    mask = np.uint64(0)
                    for k in range(18):
                        mask |= np.uint64(flat_labels[p + offsets[k]] == own) << np.uint64(k)
                    queue[length], queue_y[length], queue_x[length] = p, y + 1, x
                    length += np.int64((simple[mask >> np.uint64(6)] >> (mask & np.uint64(63))) & one)
            for start in range(0, length, BATCH):
                batch = min(BATCH, length - start)
                for i in range(batch):
                    p = queue[start + i]
                    for k in range(18):
                        near[k, i] = flat_labels[p + offsets[k]]
                    who[0, i] = flat_labels[p]
                    for f in range(6):
                        who[f + 1, i] = near[FACES[f], i]
                    yy, xx = np.int64(queue_y[start + i]), np.int64(queue_x[start + i])
                    t = np.int32(0)
                    for j in range(bins):
                        h = np.int32(histograms[z, yy - 1, xx - 1, j])
                        padded[i, j + 3] = h
                        t = np.int32(t + h)
                    total[i] = t
                for c in range(7):
                    for i in range(batch):
                        score[c, i] = 0
                        for k in range(18):
                            score[c, i] += np.int32(neighbour_gain) if near[k, i] == who[c, i] else np.int32(0)
                for i in range(batch):
                    row_in, row_out = padded[i], mine[i]
                    scale = np.float32(BLOCK_UNIT / 256.0) / np.float32(total[i])
                    for j in range(BLOCK_BINS):
                        h = np.int32(0)
                        for k in range(7):
                            h += smooth[k] * row_in[j + k]
                        row_out[j] = np.int32(np.float32(h) * scale)
                for i in range(batch):
                    p = queue[start + i]
                    yy, xx = np.int64(queue_y[start + i]), np.int64(queue_x[start + i])
                    begun = before[p]
                    own = who[0, i]
                    best = own
                    top = np.int32(0)
                    for c in range(7):
                        other = who[c, i]
                        if c > 0 and (other < 0 or other in (own, best)):
                            continue
                        s = np.int32(score[c, i] - handicap[other])
                        if other == begun:
                            # The block's part of its own supervoxel's sum is taken out.
                            others = max(np.int64(1), size[begun] - total[i])
                            ratio = np.int32(min(np.int64(MOST_RATIO), (total[i] << 12) // others))
                            for j in range(bins):
                                spread = np.int32((share[other, j] - mine[i, j]) * ratio)
                                rest = np.int32(share[other, j] + (spread >> 12))
                                s = np.int32(s + min(rest, mine[i, j]))
                        else:
                            for j in range(bins):
                                s = np.int32(s + min(share[other, j], mine[i, j]))
                        if c == 0:
                            top = s
                            continue
                        if s <= top:
                            continue
                        if not _within_reach(other, cell_z[z], cell_y[yy - 1], cell_x[xx - 1], cells):
                            continue
                        best = other
                        top = s
                    if best == own:
                        continue
                    flat_labels[p] = best
                    moves += 1
                    _open_neighbours(open_units, z + 1, yy, xx)
    return moves


@jit
def number(
    codes: NDArray[np.uint8],
    cell_z: NDArray[np.int64],
    cell_y: NDArray[np.int64],
    cell_x: NDArray[np.int64],
    cells: Triple,
    labels: NDArray[Any],
) -> None:
    """Turn label codes into global labels, 1 + the owner's number, with global cells."""
    owners = _owner_offsets(cells)
    for z in range(codes.shape[0]):
        for y in range(codes.shape[1]):
            row = (cell_z[z] * cells[1] + cell_y[y]) * cells[2] + 1
            for x in range(codes.shape[2]):
                labels[z, y, x] = row + cell_x[x] + owners[codes[z, y, x]]
