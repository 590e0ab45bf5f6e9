"""The counts of a region for the figures of quality, in integers and in sums that do not depend on the order of terms.

Kernels work on a box, the region, in a window of labels (z, y, x) that are 0 where masked out. `lo` is the box's first
voxel in the window, `shape` its shape. The labels outside the box only tell what touches the region, and which
boundaries are near. Sums of floats have the format of `dseeds.core.exact_sum`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import WIDTH, add_number, add_sum
from dseeds.core.geometry import Triple
from dseeds.core.jit import jit
from dseeds.seeds.kernels.mask_components import unite_roots

# Columns of a plane between voxels: the pairs of labelled voxels on its two sides, and how many of these differ.
PAIRS, CHANGES = range(2)


@jit
def find_components(labels: NDArray[Any], lo: Triple, shape: Triple) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the 6-connected components of each label within a box.

    Returns
    -------
    nodes : ndarray of int32, shape (z, y, x)
        The component of each voxel of the box, numbered from 0 in the order of their first voxels; -1 for label 0.
    owners : ndarray of int64, shape (components,)
        The label of each component.
    """
    nz, ny, nx = shape
    nodes = np.empty(shape, np.int32)
    parents = nodes.reshape(-1)
    count = 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                own = labels[lo[0] + z, lo[1] + y, lo[2] + x]
                voxel = (z * ny + y) * nx + x
                if own == 0:
                    parents[voxel] = -1
                    continue
                left = x > 0 and labels[lo[0] + z, lo[1] + y, lo[2] + x - 1] == own
                if left:
                    parents[voxel] = parents[voxel - 1]
                else:
                    parents[voxel] = voxel
                    count += 1
                # Where four voxels in a square have one label, three of its sides connect them all.
                above = y > 0 and labels[lo[0] + z, lo[1] + y - 1, lo[2] + x] == own
                if above and not (left and labels[lo[0] + z, lo[1] + y - 1, lo[2] + x - 1] == own):
                    count -= unite_roots(parents, voxel, voxel - nx)
                if (
                    z > 0
                    and labels[lo[0] + z - 1, lo[1] + y, lo[2] + x] == own
                    and not (left and labels[lo[0] + z - 1, lo[1] + y, lo[2] + x - 1] == own)
                    and not (above and labels[lo[0] + z - 1, lo[1] + y - 1, lo[2] + x] == own)
                ):
                    count -= unite_roots(parents, voxel, voxel - ny * nx)
    owners, used = np.empty(count, np.int64), 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                voxel = (z * ny + y) * nx + x
                if parents[voxel] == voxel:
                    parents[voxel] = used
                    owners[used] = labels[lo[0] + z, lo[1] + y, lo[2] + x]
                    used += 1
                elif parents[voxel] >= 0:
                    # Parents come earlier, so this one has its number already.
                    parents[voxel] = parents[parents[voxel]]
    return nodes, owners


@jit
def find_patches(contact: NDArray[Any]) -> NDArray[np.int64]:
    """Return row and column of the first face of each 4-connected patch of one label, int64 (patches, 2).

    `contact` is the plane between two regions, with the label where both sides have the same, and 0 elsewhere.
    """
    height, width = contact.shape
    parents = np.empty(height * width, np.int32)
    count = 0
    for i in range(height):
        for j in range(width):
            face, own = i * width + j, contact[i, j]
            parents[face] = face
            if own == 0:
                continue
            count += 1
            if j > 0 and contact[i, j - 1] == own:
                count -= unite_roots(parents, face, face - 1)
            if i > 0 and contact[i - 1, j] == own:
                count -= unite_roots(parents, face, face - width)
    patches, used = np.empty((count, 2), np.int64), 0
    for i in range(height):
        for j in range(width):
            if contact[i, j] != 0 and parents[i * width + j] == i * width + j:
                patches[used, 0], patches[used, 1] = i, j
                used += 1
    return patches


@jit
def count_merges(rows: NDArray[np.int64], nodes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each of `count` labels how many of its components merge because they touch the same patch.

    The links between patches and components are sorted: `rows`, int64 (links, 2), has the numbers of the label and the
    patch, `nodes`, int64 (links,), the component, which belongs to one label only.
    """
    parents, merges = np.arange(len(rows)), np.zeros(count, np.int64)
    for k in range(1, len(rows)):
        if rows[k, 0] == rows[k - 1, 0] and rows[k, 1] == rows[k - 1, 1]:
            merges[rows[k, 0]] += unite_roots(parents, nodes[k], nodes[k - 1])
    return merges


@jit
def count_faces(
    labels: NDArray[Any], lo: Triple, numbers: NDArray[np.int64], nodes: NDArray[np.int32], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the voxels of a box, and the faces on their sides towards higher z, y and x.

    Parameters
    ----------
    labels, lo
        The window, and the first voxel of the box.
    numbers : ndarray of int64, shape (components,)
        The number of each component's label, from 0.
    nodes : ndarray of int32, shape (z, y, x)
        The component of each voxel of the box, see `find_components`.
    counts : ndarray of int64, shape (labels, 2)
        Each label's voxels, and the pairs of them that touch, are added here.

    Returns
    -------
    ndarray of int64, shape (3, longest side of the box, 2)
        For each axis and each voxel of the box along it, the `PAIRS` and `CHANGES` of the plane above that voxel.
    """
    nz, ny, nx = nodes.shape
    planes = np.zeros((3, max(nz, ny, nx), 2), np.int64)
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                if nodes[z, y, x] < 0:
                    continue
                number = numbers[nodes[z, y, x]]
                own = labels[lo[0] + z, lo[1] + y, lo[2] + x]
                inner = 0
                if lo[0] + z + 1 < labels.shape[0]:
                    other = labels[lo[0] + z + 1, lo[1] + y, lo[2] + x]
                    planes[0, z, PAIRS] += other != 0
                    planes[0, z, CHANGES] += other != 0 and other != own
                    inner += other == own
                if lo[1] + y + 1 < labels.shape[1]:
                    other = labels[lo[0] + z, lo[1] + y + 1, lo[2] + x]
                    planes[1, y, PAIRS] += other != 0
                    planes[1, y, CHANGES] += other != 0 and other != own
                    inner += other == own
                if lo[2] + x + 1 < labels.shape[2]:
                    other = labels[lo[0] + z, lo[1] + y, lo[2] + x + 1]
                    planes[2, x, PAIRS] += other != 0
                    planes[2, x, CHANGES] += other != 0 and other != own
                    inner += other == own
                counts[number, 0] += 1
                counts[number, 1] += inner
    return planes


@jit
def recall_boundaries(
    labels: NDArray[Any], truth: NDArray[Any], lo: Triple, shape: Triple, offsets: NDArray[np.int64]
) -> tuple[int, int]:
    """Return the number of true boundary voxels of a box, and of those with a boundary of labels nearby.

    `offsets`, int64 (n, 3), are the positions (z, y, x) nearby, relative to a voxel, the nearest first.
    """
    total, recalled = 0, 0
    for z in range(lo[0], lo[0] + shape[0]):
        for y in range(lo[1], lo[1] + shape[1]):
            for x in range(lo[2], lo[2] + shape[2]):
                if labels[z, y, x] == 0 or not _is_boundary(truth, labels, z, y, x):
                    continue
                total += 1
                for k in range(len(offsets)):
                    oz, oy, ox = z + offsets[k, 0], y + offsets[k, 1], x + offsets[k, 2]
                    if (
                        0 <= oz < labels.shape[0]
                        and 0 <= oy < labels.shape[1]
                        and 0 <= ox < labels.shape[2]
                        and labels[oz, oy, ox] != 0
                        and _is_boundary(labels, labels, oz, oy, ox)
                    ):
                        recalled += 1
                        break
    return total, recalled


@jit
def _is_boundary(volume: NDArray[Any], labels: NDArray[Any], z: int, y: int, x: int) -> bool:
    """Return whether a voxel has a labelled face neighbour of another value."""
    own = volume[z, y, x]
    nz, ny, nx = volume.shape
    return (
        (x > 0 and volume[z, y, x - 1] != own and labels[z, y, x - 1] != 0)
        or (x + 1 < nx and volume[z, y, x + 1] != own and labels[z, y, x + 1] != 0)
        or (y > 0 and volume[z, y - 1, x] != own and labels[z, y - 1, x] != 0)
        or (y + 1 < ny and volume[z, y + 1, x] != own and labels[z, y + 1, x] != 0)
        or (z > 0 and volume[z - 1, y, x] != own and labels[z - 1, y, x] != 0)
        or (z + 1 < nz and volume[z + 1, y, x] != own and labels[z + 1, y, x] != 0)
    )


@jit
def add_intensities(
    labels: NDArray[Any], image: NDArray[np.float64], sums: NDArray[np.int64]
) -> tuple[int, int, float, float]:
    """Add the intensities of labelled voxels to the sum in `sums`, int64 (1, WIDTH).

    Returns the number of labelled voxels, the number of those with NaN or an infinite value, and the lowest and the
    highest finite intensity.
    """
    size, infinite, low, high = 0, 0, math.inf, -math.inf
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if labels[z, y, x] == 0:
                    continue
                number = image[z, y, x]
                size += 1
                if not math.isfinite(number):
                    infinite += 1
                    continue
                low, high = min(low, number), max(high, number)
                add_number(sums, 0, 0, number)
    return size, infinite, low, high


@jit
def add_deviations(
    image: NDArray[np.float64],
    centre: float,
    scale: float,
    numbers: NDArray[np.int64],
    nodes: NDArray[np.int32],
    sums: NDArray[np.int64],
    squares: NDArray[np.int64],
) -> None:
    """Add the deviations of a box's intensities from a centre, and their squares, to sums; see `count_faces`.

    Parameters
    ----------
    centre, scale : float
        The deviation is half of an intensity minus `centre`, divided by `scale`, so that no intensity overflows.
    sums, squares : ndarray of int64, shapes (labels, WIDTH) and (1, WIDTH)
        The sums to add to: the deviations of each label, and all squares.
    """
    for z in range(nodes.shape[0]):
        for y in range(nodes.shape[1]):
            for x in range(nodes.shape[2]):
                if nodes[z, y, x] >= 0:
                    deviation = (0.5 * image[z, y, x] - centre) / scale
                    add_number(sums, numbers[nodes[z, y, x]], 0, deviation)
                    add_number(squares, 0, 0, deviation * deviation)


@jit
def add_numbers(numbers: NDArray[np.float64], sums: NDArray[np.int64], i: int) -> None:
    """Add numbers to the sum in row `i`."""
    for k in range(len(numbers)):
        add_number(sums, i, 0, numbers[k])


@jit
def combine_sums(rows: NDArray[np.int64], places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` sums, to each of which the rows at its place were added."""
    sums = np.zeros((count, WIDTH), np.int64)
    for k in range(len(rows)):
        add_sum(sums, places[k], 0, rows, k)
    return sums
