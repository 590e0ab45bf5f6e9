"""ETPS, coarse-to-fine topologically preserving segmentation, in 3D: a peer that no package offers.

After the rule that is published in J. Yao, M. Boben, S. Fidler, R. Urtasun, Real-time coarse-to-fine topologically
preserving segmentation, CVPR 2015, which is for 2D images. Superpixels start as the cells of a lattice. Blocks at
boundaries, of half a cell, then of a quarter and so on to single voxels, pass to the neighbouring superpixel with the
lowest energy: squared differences from its mean intensity and position, and the length of boundaries. No block passes
that would cut its superpixel, or leave less than a quarter of its size. Here, voxels are neighbours as in a cube of 27.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Lattice, Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.connectivity import connectivity_table, may_leave
from dseeds.seeds.kernels.layout import NEIGHBOURS

_AROUND = np.array([(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if z or y or x])
_CUBE = len(_AROUND)
_OFFSETS = np.array(NEIGHBOURS)
_FACES = np.array([offset for offset in NEIGHBOURS if np.abs(offset).sum() == 1])
# Visits of a block, on average, after which a level ends even if blocks still pass back and forth.
_MOST_VISITS = 20


def cut_etps(
    scaled: NDArray[np.float32], lattice: Lattice, *, compactness: float, boundary: float
) -> NDArray[np.int32]:
    """Cut a volume of whole cells into supervoxels from 1, one for each cell.

    Parameters
    ----------
    scaled : ndarray of float32, shape (z, y, x) or (channels, z, y, x)
        The intensities, from 0 to 1.
    lattice : Lattice
        The cells.
    compactness : float
        The weight of squared distances in cells, against squared intensities.
    boundary : float
        The weight of a voxel all of whose neighbours are in other supervoxels, against squared intensities.
    """
    channels = scaled.reshape(-1, *lattice.shape).astype(np.float64)
    cells = np.arange(lattice.size, dtype=np.int32).reshape(lattice.cells)
    edges = [np.arange(0, n, s) for n, s in zip(lattice.shape, lattice.step, strict=True)]
    labels = cells
    while any(len(starts) < n for starts, n in zip(edges, lattice.shape, strict=True)):
        finer = [_halve(starts, n) for starts, n in zip(edges, lattice.shape, strict=True)]
        for axis, (coarse, fine) in enumerate(zip(edges, finer, strict=True)):
            labels = labels.take(np.searchsorted(coarse, fine, side="right") - 1, axis)
        edges = finer
        labels = _settle_level(labels, channels, edges, lattice, compactness, boundary)
    return labels + np.int32(1)


def _halve(starts: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return the starts of blocks along an axis of n voxels, each cut in two.

    >>> _halve(np.array([0, 3]), 4).tolist()
    [0, 1, 3]
    """
    return np.unique(np.concatenate([starts, (starts + np.append(starts[1:], n)) // 2]))


def _settle_level(
    labels: NDArray[np.int32],
    channels: NDArray[np.float64],
    edges: Sequence[NDArray[np.intp]],
    lattice: Lattice,
    compactness: float,
    boundary: float,
) -> NDArray[np.int32]:
    """Return the labels of blocks, which begin at `edges`, after blocks at boundaries have passed to neighbours."""
    lengths = [np.diff(starts, append=n) for starts, n in zip(edges, lattice.shape, strict=True)]
    sizes = reduce(np.multiply.outer, lengths).astype(np.float64)
    # Positions in cells: intensities and positions are then features alike, once they are scaled.
    middles = [(a + (b - 1) / 2) / s for a, b, s in zip(edges, lengths, lattice.step, strict=True)]
    positions = np.stack(np.meshgrid(*middles, indexing="ij")) * np.sqrt(compactness)
    means = np.stack([_block_sums(channel, edges) / sizes for channel in channels])
    features = np.ascontiguousarray(np.moveaxis(np.concatenate([means, positions]), 0, -1))
    # A block's share of the boundary grows with its surface.
    surfaces = boundary / _CUBE * np.cbrt(sizes) ** 2
    blocks = _Blocks(np.pad(labels, 1, constant_values=-1), sizes, surfaces, features)
    sums = _Sums(np.zeros(lattice.size), np.zeros((lattice.size, features.shape[-1])))
    _pass_blocks(blocks, sums, prod(lattice.step) / 4, connectivity_table())
    return blocks.labels[1:-1, 1:-1, 1:-1].copy()


def _block_sums(values: NDArray[np.float64], edges: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
    for axis, starts in enumerate(edges):
        values = np.add.reduceat(values, starts, axis)
    return values


class _Blocks(NamedTuple):
    """The blocks of a level: labels, with a margin of -1; voxels; weights of boundaries; intensities and positions."""

    labels: NDArray[np.int32]
    sizes: NDArray[np.float64]
    surfaces: NDArray[np.float64]
    features: NDArray[np.float64]


class _Sums(NamedTuple):
    """The voxels of each supervoxel, and the sums of their intensities and positions."""

    sizes: NDArray[np.float64]
    features: NDArray[np.float64]


@jit
def _pass_blocks(blocks: _Blocks, sums: _Sums, least: float, simple: NDArray[np.uint64]) -> None:
    """Let blocks pass until none has a better label, or leaves a supervoxel with fewer than `least` voxels."""
    labels, sizes = blocks.labels, blocks.sizes
    for z, y, x in np.ndindex(sizes.shape):
        _add(blocks, sums, (z, y, x), labels[z + 1, y + 1, x + 1], 1)
    # A ring of blocks to look at.
    queue, is_queued = np.arange(sizes.size), np.ones(sizes.size, np.bool_)
    first, waiting = 0, sizes.size
    for _ in range(_MOST_VISITS * sizes.size):
        if waiting == 0:
            break
        item = queue[first]
        first, waiting = (first + 1) % sizes.size, waiting - 1
        is_queued[item] = False
        row, x = divmod(item, sizes.shape[2])
        z, y = divmod(row, sizes.shape[1])
        own, best = labels[z + 1, y + 1, x + 1], _best_label(blocks, sums, (z, y, x))
        if best == own or sums.sizes[own] - sizes[z, y, x] < least or not _is_simple(labels, (z, y, x), simple):
            continue
        labels[z + 1, y + 1, x + 1] = best
        _add(blocks, sums, (z, y, x), own, -1)
        _add(blocks, sums, (z, y, x), best, 1)
        for dz, dy, dx in _AROUND:
            if labels[z + dz + 1, y + dy + 1, x + dx + 1] >= 0:
                other = ((z + dz) * sizes.shape[1] + y + dy) * sizes.shape[2] + x + dx
                if not is_queued[other]:
                    is_queued[other] = True
                    queue[(first + waiting) % sizes.size] = other
                    waiting += 1


@jit
def _add(blocks: _Blocks, sums: _Sums, at: Triple, label: int, sign: int) -> None:
    sums.sizes[label] += sign * blocks.sizes[at]
    for f in range(sums.features.shape[1]):
        sums.features[label, f] += sign * blocks.sizes[at] * blocks.features[at][f]


@jit
def _best_label(blocks: _Blocks, sums: _Sums, at: Triple) -> int:
    """Return the label with the lowest energy for a block, its own or that of a face neighbour."""
    z, y, x = at
    best: int = blocks.labels[z + 1, y + 1, x + 1]
    lowest = _energy(blocks, sums, at, best)
    for dz, dy, dx in _FACES:
        label = blocks.labels[z + dz + 1, y + dy + 1, x + dx + 1]
        if label >= 0 and label != best:
            energy = _energy(blocks, sums, at, label)
            if energy < lowest:
                best, lowest = label, energy
    return best


@jit
def _energy(blocks: _Blocks, sums: _Sums, at: Triple, label: int) -> float:
    """Return the energy of a block with a label: of its distance to the means, and of its neighbours with others."""
    z, y, x = at
    distance = 0.0
    for f in range(sums.features.shape[1]):
        difference = blocks.features[z, y, x, f] - sums.features[label, f] / sums.sizes[label]
        distance += difference * difference
    others = 0
    for dz, dy, dx in _AROUND:
        neighbour = blocks.labels[z + dz + 1, y + dy + 1, x + dx + 1]
        others += neighbour >= 0 and neighbour != label
    energy: float = blocks.sizes[z, y, x] * distance + blocks.surfaces[z, y, x] * others
    return energy


@jit
def _is_simple(labels: NDArray[np.int32], at: Triple, simple: NDArray[np.uint64]) -> bool:
    """Return whether a block may leave its label without cutting it."""
    z, y, x = at
    own, same = labels[z + 1, y + 1, x + 1], np.uint64(0)
    for k in range(len(_OFFSETS)):
        dz, dy, dx = _OFFSETS[k]
        if labels[z + dz + 1, y + dy + 1, x + dx + 1] == own:
            same |= np.uint64(1) << np.uint64(k)
    return may_leave(same, simple)
