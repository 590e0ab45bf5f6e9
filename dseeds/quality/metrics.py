"""Quality of supervoxels: how well they fit a true segmentation and the image, and what they look like.

The formulas, on what was counted of supervoxels. What ranges of labels count adds up: integers, and sums of floats that
do not depend on the order of their terms. Label 0 means "masked out", and no figure counts such voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import WIDTH, totals
from dseeds.core.geometry import AXES, Lattice, Triple, triple
from dseeds.quality.kernels import CHANGES, PAIRS, add_numbers, combine_sums

Rows = NDArray[np.int64]
# Columns of what is counted of true segments; of `Tally.sums` the rows.
SEGMENT, TRUE, ASSIGNED, COMMON, MET = range(5)
QUOTIENTS, BETWEEN, DEVIATION = range(3)


@dataclass(frozen=True)
class Tally:
    """What is counted of some supervoxels, and adds up over them.

    Attributes
    ----------
    components : int
        Their 6-connected components.
    disconnected : int
        How many have more than one.
    right, leaked : int
        Voxels that count for `achievable_segmentation_accuracy` and `undersegmentation_error`.
    sizes : ndarray of int64, shape (n, 2)
        Numbers of voxels, ascending, each with how many supervoxels are that large.
    segments : ndarray of int64, shape (m, 5)
        For each true segment that they meet, ascending: its label, the voxels that it has, those that the supervoxels
        assigned to it have, the voxels in common, and those of all supervoxels that meet it.
    sums : ndarray of int64, shape (3, WIDTH)
        Sums, see `kernel.exact`: of ``(|P| / faces)^3``; of the square of a supervoxel's deviations by its voxels; and
        of its deviations.
    """

    components: int
    disconnected: int
    right: int
    leaked: int
    sizes: Rows
    segments: Rows
    sums: Rows

    @property
    def supervoxels(self) -> int:
        """How many supervoxels there are."""
        return int(self.sizes[:, 1].sum())

    @property
    def voxels(self) -> int:
        """How many voxels they have."""
        return int((self.sizes[:, 0] * self.sizes[:, 1]).sum())


def count_supervoxels(sizes: Rows, inner: Rows, components: Rows, deviations: Rows, overlaps: Rows) -> Tally:
    """Count what is known of some supervoxels.

    Parameters
    ----------
    sizes, inner, components : ndarray of int64, shape (supervoxels,)
        Their voxels, the pairs of these that touch, and their 6-connected components.
    deviations : ndarray of int64, shape (supervoxels, WIDTH)
        The sums of how far their intensities are from a centre, see `kernel.exact`.
    overlaps : ndarray of int64, shape (pairs, 3)
        See `assign`.
    """
    sums = np.zeros((3, WIDTH), np.int64)
    quotients = sizes / (6 * sizes - 2 * inner)
    # A power would be as exact as the machine's library is.
    add_numbers(quotients * quotients * quotients, sums, QUOTIENTS)
    deviation = totals(deviations, 0)
    add_numbers(deviation * deviation / sizes, sums, BETWEEN)
    sums[DEVIATION] = combine_sums(deviations, np.zeros(len(sizes), np.int64), 1)
    right, leaked, segments = assign(overlaps)
    return Tally(
        components=int(components.sum()),
        disconnected=int(np.count_nonzero(components > 1)),
        right=right,
        leaked=leaked,
        sizes=np.stack(np.unique(sizes, return_counts=True), axis=1),
        segments=segments,
        sums=sums,
    )


def assign(overlaps: Rows) -> tuple[int, int, Rows]:
    """Assign some supervoxels to true segments, and count how they fit.

    Each goes to the segment, background included, with which it shares most voxels, of equals the one with the lowest
    label.

    Parameters
    ----------
    overlaps : ndarray of int64, shape (pairs, 3)
        For each pair with a voxel in common the supervoxel's label, that of the true segment and the voxels; sorted.

    Returns
    -------
    right, leaked : int
    segments : ndarray of int64, shape (m, 5)
        See `Tally`.

    Examples
    --------
    >>> right, leaked, segments = assign(np.array([[1, 0, 1], [1, 3, 2], [2, 0, 1], [2, 3, 1]]))
    >>> right, leaked, segments.tolist()
    (3, 4, [[0, 2, 2, 1, 5], [3, 3, 3, 2, 5]])
    """
    labels, segments, common = overlaps.T
    starts = np.unique(labels, return_index=True)[1]
    sizes = np.repeat(np.add.reduceat(common, starts), np.diff(starts, append=len(labels))) if len(labels) else common
    # Sorting within the supervoxels leaves their first rows where they are.
    best = np.zeros(len(labels), np.int64)
    best[np.lexsort((segments, -common, labels))[starts]] = 1
    rows = np.stack([segments, common, best * sizes, best * common, sizes], axis=1)
    return int((best * common).sum()), int(np.minimum(common, sizes - common).sum()), _grouped(rows)


def add_up(tallies: Sequence[Tally]) -> Tally:
    """Add up what was counted of several sets of supervoxels."""
    return Tally(
        components=sum(tally.components for tally in tallies),
        disconnected=sum(tally.disconnected for tally in tallies),
        right=sum(tally.right for tally in tallies),
        leaked=sum(tally.leaked for tally in tallies),
        sizes=_grouped(np.concatenate([tally.sizes for tally in tallies])),
        segments=_grouped(np.concatenate([tally.segments for tally in tallies])),
        sums=combine_sums(np.concatenate([tally.sums for tally in tallies]), np.tile(np.arange(3), len(tallies)), 3),
    )


def _grouped(rows: Rows) -> Rows:
    """Add up rows with the same first column."""
    keys, places = np.unique(rows[:, 0], return_inverse=True)
    sums = np.zeros((len(keys), rows.shape[1]), np.int64)
    np.add.at(sums, places, rows)
    sums[:, 0] = keys
    return sums


def achievable_dice(tally: Tally) -> dict[int, float]:
    """Dice of each structure in the best segmentation that a choice per supervoxel allows.

    Every supervoxel takes the true label, background included, with which it shares most voxels (of equals the lowest);
    then each structure is compared with the truth: ``2 |A and B| / (|A| + |B|)``. Zhao, Jiang, Hollon, "Extending SEEDS
    to a Supervoxel Algorithm for Medical Image Analysis", arXiv 2502.02409, 2025.

    Returns
    -------
    dict of int to float
        True label to Dice, 0 to 1 (best), without the background.

    Raises
    ------
    ValueError
        If no labelled voxel belongs to a structure.
    """
    structures = tally.segments[tally.segments[:, SEGMENT] != 0]
    if not len(structures):
        raise ValueError("truth has no structure: it is 0, background, at every labelled voxel.")
    dice = 2 * structures[:, COMMON] / (structures[:, TRUE] + structures[:, ASSIGNED])
    return dict(zip(structures[:, SEGMENT].tolist(), dice.tolist(), strict=True))


def achievable_segmentation_accuracy(tally: Tally) -> float:
    """Share of the voxels that are right if every supervoxel takes the true label that it overlaps most.

    ``1/N * sum over P of max over S of |P and S|``, P the supervoxels, S the true segments, the background included:
    Liu, Tuzel, Ramalingam, Chellappa, "Entropy Rate Superpixel Segmentation", CVPR 2011.

    Returns
    -------
    float
        More than 0, at most 1 (best).
    """
    return tally.right / tally.voxels


def undersegmentation_error(tally: Tally) -> float:
    """How much the supervoxels leak over the borders of the true segments, as Neubert and Protzel count it.

    ``1/N * sum over S of sum over P that meet S of min(|P and S|, |P without S|)``, P the supervoxels, S the true
    segments, the background included: Neubert, Protzel, "Superpixel Benchmark and Comparison", Forum Bildverarbeitung
    2012.

    Returns
    -------
    float
        0 (best) to 1.
    """
    return tally.leaked / tally.voxels


def undersegmentation_error_levinshtein(tally: Tally) -> float:
    """How much larger than a true segment all supervoxels are that meet it, as Levinshtein and others count it.

    ``1/|S| * sum over S of (sum over P that meet S of |P| - |S|) / |S|``: Levinshtein, Stere, Kutulakos, Fleet,
    Dickinson, Siddiqi, "TurboPixels: Fast Superpixels Using Geometric Flows", PAMI 2009. The true segments S are all of
    them, the background included, as in Stutz, Hermans, Leibe, "Superpixels: An Evaluation of the State-of-the-Art",
    CVIU 2018. Every segment counts the same, so small structures decide; a supervoxel counts in full, however little of
    it leaks.

    Returns
    -------
    float
        0 (best) or more.
    """
    true, met = tally.segments[:, TRUE], tally.segments[:, MET]
    return math.fsum((met - true) / true) / len(true)


def boundary_recall(wanted: int, found: int) -> float:
    """Share of the true boundary voxels that have a supervoxel boundary nearby.

    A boundary voxel has a face neighbour of another label; the border of the volume is no boundary, nor is that of the
    mask. After Martin, Fowlkes, Malik, "Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and
    Texture Cues", PAMI 2004.

    Parameters
    ----------
    wanted, found : int
        True boundary voxels, and those with a boundary of labels nearby.

    Returns
    -------
    float
        0 to 1 (best); 1 where the truth has no boundary.
    """
    return found / wanted if wanted else 1.0


def explained_variation(tally: Tally, squares: float) -> float:
    """Share of the image's variance that remains when every supervoxel is painted with its mean.

    ``sum over P of |P| (mean of P - mean)^2``, divided by ``sum over voxels of (x - mean)^2``: Moore, Prince, Warrell,
    Mohammed, Jones, "Superpixel Lattices", CVPR 2008.

    Parameters
    ----------
    tally : Tally
        All that is known of all supervoxels.
    squares : float
        Sum over all voxels of the squares of their deviations, from a centre close to the mean.

    Returns
    -------
    float
        0 to 1 (best); 1 for a constant image, of which nothing is lost.
    """
    between, deviation = totals(tally.sums[[BETWEEN, DEVIATION]], 0).tolist()
    rest = deviation * deviation / tally.voxels
    return min(max((between - rest) / (squares - rest), 0.0), 1.0) if squares > rest else 1.0


def compactness(tally: Tally) -> float:
    """Mean isoperimetric quotient of the supervoxels, weighted by their size.

    The quotient is ``36 pi V^2 / A^3``, V the number of voxels, A that of the voxel faces towards another label, the
    mask or the outside of the volume. A smooth ball has 1; but as voxel faces are counted, the highest is that of a
    cube, ``pi / 6 = 0.524``. Voxels count as cubes whatever their spacing. The 3D form of Schick, Fischer,
    Stiefelhagen, "Measuring and Evaluating the Compactness of Superpixels", ICPR 2012.

    Returns
    -------
    float
        More than 0, at most pi / 6.
    """
    # V times the quotient is 36 pi (V / A)^3.
    return 36 * math.pi * float(totals(tally.sums, 0)[QUOTIENTS]) / tally.voxels


def size_statistics(sizes: Rows) -> dict[str, float]:
    """Least, mean, median and greatest of some sizes, and their standard deviation.

    Parameters
    ----------
    sizes : ndarray of int64, shape (n, 2)
        Sizes, ascending, each with how often it occurs.

    Examples
    --------
    >>> size_statistics(np.array([[1, 1], [4, 2], [7, 1]]))["size_std"]
    2.1213203435596424
    """
    # Python's integers do not overflow.
    values, counts = (column.tolist() for column in sizes.T)
    number = sum(counts)
    total = sum(value * count for value, count in zip(values, counts, strict=True))
    squares = sum(value * value * count for value, count in zip(values, counts, strict=True))
    middle = np.searchsorted(np.cumsum(counts), [(number - 1) // 2, number // 2], side="right")
    return {
        "size_min": values[0],
        "size_mean": total / number,
        "size_median": (values[middle[0]] + values[middle[1]]) / 2,
        "size_max": values[-1],
        "size_std": math.sqrt((number * squares - total * total) / (number * number)),
    }


def size_histogram(sizes: Rows, bins: int) -> dict[str, list[int]]:
    """Count the supervoxels in bins of equal width; the last one takes the largest hundredth too.

    Parameters
    ----------
    sizes : ndarray of int64, shape (n, 2)
        Sizes, ascending, each with how often it occurs.
    bins : int
        How many bins, or as many as there are sizes from the smallest to the largest.

    Returns
    -------
    dict
        ``edges``, the smallest size of each bin, and after them the largest of all; and ``counts``.

    Examples
    --------
    >>> size_histogram(np.array([[1, 3], [2, 1], [9, 1]]), 3)
    {'edges': [1, 4, 7, 9], 'counts': [4, 0, 1]}
    """
    values, counts = (column.tolist() for column in sizes.T)
    total = np.cumsum(counts)
    low, high = values[0], values[int(np.searchsorted(total, -(-99 * int(total[-1]) // 100)))]
    bins = min(bins, high - low + 1)
    edges = [low + (high + 1 - low) * i // bins for i in range(bins)]
    places = np.searchsorted(edges, values, side="right") - 1
    found = [sum(counts[i] for i in np.flatnonzero(places == place).tolist()) for place in range(bins)]
    return {"edges": [*edges, values[-1]], "counts": found}


def seam_excess(planes: Sequence[Rows], chunks: Triple, step: Triple | None = None) -> dict[str, Any]:
    """How many more boundaries there are on the planes of a grid of chunks than elsewhere.

    Where a volume was cut into chunks and these were segmented on their own, their planes are boundaries from end to
    end: seams. A plane lies between two voxels; its density is the share of the faces between labelled voxels there
    whose two sides have different labels. Were seams as dense as other planes of their axis, ``expected = sum over
    seams of faces * density of the others`` faces would be boundaries; the excess is ``boundaries / expected - 1``.

    Supervoxels that grew from a lattice of seeds have more boundaries on the planes of the lattice by nature, and
    chunks end there as a rule. So where the `step` is known, planes are compared with others at the same place in their
    cells.

    Parameters
    ----------
    planes : sequence of three ndarray of int64, shape (planes, 2)
        Along each axis the planes from that between the first two voxels on: faces between labelled voxels, and those
        of them that are boundaries.
    chunks : tuple of int
        Voxels of a chunk along (z, y, x).
    step : tuple of int, optional
        Voxels of a cell of the lattice along (z, y, x).

    Returns
    -------
    dict
        ``seam_excess``, of all seams, and ``seam_excess_per_axis``: 0 means no seams; None where there is no seam, or
        nothing to compare it with.

    Examples
    --------
    >>> planes = [np.zeros((0, 2), int), np.zeros((0, 2), int), np.array([[8, 2], [8, 6], [8, 2]])]
    >>> seam_excess(planes, chunks=(2, 2, 2))
    {'seam_excess': 2.0, 'seam_excess_per_axis': {'z': None, 'y': None, 'x': 2.0}}
    """
    lattice = None if step is None else Lattice(triple(len(rows) + 1 for rows in planes), step)
    found = np.zeros((3, 2))
    for axis, rows in enumerate(planes):
        begins = np.arange(1, len(rows) + 1)
        # Where in its cell a plane lies; without a lattice, all places are alike.
        place = np.zeros(len(rows), np.int64) if lattice is None else begins - _cell_edges(lattice, axis)[begins]
        seams = begins % chunks[axis] == 0
        for one in np.unique(place[seams]):
            others = rows[~seams & (place == one)].sum(axis=0)
            if others[PAIRS]:
                own = rows[seams & (place == one)].sum(axis=0)
                found[axis] += own[CHANGES], own[PAIRS] * others[CHANGES] / others[PAIRS]

    def excess(changes: float, expected: float) -> float | None:
        return float(changes / expected) - 1 if expected else None

    each = {axis: excess(*pair) for axis, pair in zip(AXES, found, strict=True)}
    return {"seam_excess": excess(*found.sum(axis=0)), "seam_excess_per_axis": each}


def _cell_edges(lattice: Lattice, axis: int) -> NDArray[np.int64]:
    """Give for each voxel along an axis where its cell begins."""
    found: NDArray[np.int64] = lattice.grids[-1].cells[axis] * lattice.step[axis]
    return found
