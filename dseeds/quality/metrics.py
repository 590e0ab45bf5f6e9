"""The figures of quality of supervoxels: their formulas and sources.

They are computed from a `Tally`, which adds up over ranges of labels: integers, and sums of floats that do not depend
on the order of their terms (`dseeds.core.exact_sum`). Voxels of label 0 are masked out and count in no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import WIDTH, totals
from dseeds.quality.kernels import add_numbers, combine_sums

Rows = NDArray[np.int64]
# The columns of `Tally.segments`, and the rows of `Tally.sums`.
SEGMENT, TRUE, ASSIGNED, COMMON, OVERLAPPING = range(5)
QUOTIENTS, BETWEEN, DEVIATION = range(3)


@dataclass(frozen=True)
class Tally:
    """The counts of a set of supervoxels.

    Attributes
    ----------
    components, disconnected : int
        6-connected components, and supervoxels that have more than one.
    correct, leaked : int
        The voxels that `achievable_segmentation_accuracy` and `undersegmentation_error` count.
    sizes : ndarray of int64, shape (n, 2)
        Numbers of voxels, ascending, and how many supervoxels have each.
    segments : ndarray of int64, shape (m, 5)
        For each true segment that overlaps the supervoxels, ascending: its label; the voxels that it has, that the
        supervoxels assigned to it have, that both have, and that all supervoxels that overlap it have.
    sums : ndarray of int64, shape (3, WIDTH)
        The exact sums of ``(|P| / faces)^3``; of the squared sum of a supervoxel's deviations, divided by its voxels;
        and of the deviations.
    """

    components: int
    disconnected: int
    correct: int
    leaked: int
    sizes: Rows
    segments: Rows
    sums: Rows

    @property
    def supervoxels(self) -> int:
        """The number of supervoxels."""
        return int(self.sizes[:, 1].sum())

    @property
    def voxels(self) -> int:
        """The number of their voxels."""
        return int((self.sizes[:, 0] * self.sizes[:, 1]).sum())


def count_supervoxels(sizes: Rows, inner: Rows, components: Rows, deviations: Rows, overlaps: Rows) -> Tally:
    """Return the counts of a set of supervoxels.

    Parameters
    ----------
    sizes, inner, components : ndarray of int64, shape (supervoxels,)
        Their voxels, the pairs of these that touch, and their 6-connected components.
    deviations : ndarray of int64, shape (supervoxels, WIDTH)
        The exact sums of their intensities' deviations from a centre.
    overlaps : ndarray of int64, shape (pairs, 3)
        See `assign`.
    """
    sums = np.zeros((3, WIDTH), np.int64)
    quotients = sizes / (6 * sizes - 2 * inner)
    # Multiplied, since the rounding of a power depends on the machine's library.
    add_numbers(quotients * quotients * quotients, sums, QUOTIENTS)
    deviation = totals(deviations, 0)
    add_numbers(deviation * deviation / sizes, sums, BETWEEN)
    sums[DEVIATION] = combine_sums(deviations, np.zeros(len(sizes), np.int64), 1)
    correct, leaked, segments = assign(overlaps)
    return Tally(
        components=int(components.sum()),
        disconnected=int(np.count_nonzero(components > 1)),
        correct=correct,
        leaked=leaked,
        sizes=np.stack(np.unique(sizes, return_counts=True), axis=1),
        segments=segments,
        sums=sums,
    )


def assign(overlaps: Rows) -> tuple[int, int, Rows]:
    """Assign each supervoxel to the true segment with which it shares most voxels, and count how they fit.

    The background is a segment too. Of segments with equally many voxels, the one with the lowest label is chosen.
    Returns the `correct`, `leaked` and `segments` of a `Tally`.

    Parameters
    ----------
    overlaps : ndarray of int64, shape (pairs, 3)
        The label of a supervoxel, that of a true segment and their common voxels, if any; sorted.

    Examples
    --------
    >>> correct, leaked, segments = assign(np.array([[1, 0, 1], [1, 3, 2], [2, 0, 1], [2, 3, 1]]))
    >>> correct, leaked, segments.tolist()
    (3, 4, [[0, 2, 2, 1, 5], [3, 3, 3, 2, 5]])
    """
    labels, segments, common = overlaps.T
    starts = np.unique(labels, return_index=True)[1]
    sizes = np.repeat(np.add.reduceat(common, starts), np.diff(starts, append=len(labels))) if len(labels) else common
    # Sorting within the supervoxels does not move their first rows.
    best = np.zeros(len(labels), np.int64)
    best[np.lexsort((segments, -common, labels))[starts]] = 1
    rows = np.stack([segments, common, best * sizes, best * common, sizes], axis=1)
    return int((best * common).sum()), int(np.minimum(common, sizes - common).sum()), _sum_by_key(rows)


def add_up(tallies: Sequence[Tally]) -> Tally:
    """Return the counts of several sets of supervoxels together."""
    return Tally(
        components=sum(tally.components for tally in tallies),
        disconnected=sum(tally.disconnected for tally in tallies),
        correct=sum(tally.correct for tally in tallies),
        leaked=sum(tally.leaked for tally in tallies),
        sizes=_sum_by_key(np.concatenate([tally.sizes for tally in tallies])),
        segments=_sum_by_key(np.concatenate([tally.segments for tally in tallies])),
        sums=combine_sums(np.concatenate([tally.sums for tally in tallies]), np.tile(np.arange(3), len(tallies)), 3),
    )


def _sum_by_key(rows: Rows) -> Rows:
    """Add up rows with the same first column."""
    keys, places = np.unique(rows[:, 0], return_inverse=True)
    sums = np.zeros((len(keys), rows.shape[1]), np.int64)
    np.add.at(sums, places, rows)
    sums[:, 0] = keys
    return sums


def achievable_dice(tally: Tally) -> dict[int, float]:
    """Return the Dice of each structure, 0 to 1 (best), in the best segmentation made of whole supervoxels.

    Each supervoxel is assigned to a true label, see `assign`. Then each structure, the background left out, is compared
    with the truth: ``2 |A and B| / (|A| + |B|)``. Zhao, Jiang, Hollon, "Extending SEEDS to a Supervoxel Algorithm for
    Medical Image Analysis", arXiv 2502.02409, 2025. Raises a ValueError if no labelled voxel belongs to a structure.
    """
    structures = tally.segments[tally.segments[:, SEGMENT] != 0]
    if not len(structures):
        raise ValueError("truth has no structure: it is 0, background, at every labelled voxel.")
    dice = 2 * structures[:, COMMON] / (structures[:, TRUE] + structures[:, ASSIGNED])
    return dict(zip(structures[:, SEGMENT].tolist(), dice.tolist(), strict=True))


def achievable_segmentation_accuracy(tally: Tally) -> float:
    """Return the share of correct voxels, 0 to 1 (best), if each supervoxel gets the true label that it overlaps most.

    ``1/N * sum over P of max over S of |P and S|``, P the supervoxels, S the true segments, the background included:
    Liu, Tuzel, Ramalingam, Chellappa, "Entropy Rate Superpixel Segmentation", CVPR 2011.
    """
    return tally.correct / tally.voxels


def undersegmentation_error(tally: Tally) -> float:
    """Return how much supervoxels leak over the borders of true segments, 0 (best) to 1, after Neubert and Protzel.

    ``1/N * sum over S of sum over P that overlap S of min(|P and S|, |P without S|)``, P the supervoxels, S the true
    segments, the background included: Neubert, Protzel, "Superpixel Benchmark and Comparison", Forum Bildverarbeitung
    2012.
    """
    return tally.leaked / tally.voxels


def undersegmentation_error_levinshtein(tally: Tally) -> float:
    """Return by how much the supervoxels that overlap a true segment exceed it, 0 (best) or more, after Levinshtein.

    ``1/|S| * sum over S of (sum over P that overlap S of |P| - |S|) / |S|``: Levinshtein, Stere, Kutulakos, Fleet,
    Dickinson, Siddiqi, "TurboPixels: Fast Superpixels Using Geometric Flows", PAMI 2009. The true segments S include
    the background, as in Stutz, Hermans, Leibe, "Superpixels: An Evaluation of the State-of-the-Art", CVIU 2018. Every
    segment has the same weight, so small structures decide; a supervoxel counts in full, however little of it leaks.
    """
    true, overlapping = tally.segments[:, TRUE], tally.segments[:, OVERLAPPING]
    return math.fsum((overlapping - true) / true) / len(true)


def boundary_recall(total: int, recalled: int) -> float:
    """Return the share of true boundary voxels with a supervoxel boundary nearby, 0 to 1 (best); 1 if there are none.

    A boundary voxel has a face neighbour of another label; the borders of the volume and of the mask are no boundaries.
    After Martin, Fowlkes, Malik, "Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and
    Texture Cues", PAMI 2004.
    """
    return recalled / total if total else 1.0


def explained_variation(tally: Tally, squares: float) -> float:
    """Return the share of the image's variance that remains if each supervoxel has its mean, 0 to 1 (best).

    ``sum over P of |P| (mean of P - mean)^2``, divided by ``sum over voxels of (x - mean)^2``; 1 for a constant image.
    `squares` is the sum of the squared deviations of all voxels from a centre close to the mean. Moore, Prince,
    Warrell, Mohammed, Jones, "Superpixel Lattices", CVPR 2008.
    """
    between, deviation = totals(tally.sums[[BETWEEN, DEVIATION]], 0).tolist()
    rest = deviation * deviation / tally.voxels
    return min(max((between - rest) / (squares - rest), 0.0), 1.0) if squares > rest else 1.0


def compactness(tally: Tally) -> float:
    """Return the mean isoperimetric quotient of supervoxels, weighted by their size: more than 0, at most pi / 6.

    The quotient is ``36 pi V^2 / A^3``, V the number of voxels, A that of the voxel faces towards another label, the
    mask or the outside of the volume. A smooth ball has 1; but as voxel faces are counted, the highest is that of a
    cube, ``pi / 6 = 0.524``. Voxels count as cubes whatever their spacing. The 3D form of Schick, Fischer,
    Stiefelhagen, "Measuring and Evaluating the Compactness of Superpixels", ICPR 2012.
    """
    # V times the quotient is 36 pi (V / A)^3.
    return 36 * math.pi * float(totals(tally.sums, 0)[QUOTIENTS]) / tally.voxels


def size_statistics(sizes: Rows) -> dict[str, float]:
    """Return the minimum, mean, median, maximum and standard deviation of sizes; see `Tally`.

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
    """Count supervoxels in bins of equal width, of which the last one takes the largest hundredth too.

    Returns at most as many bins as there are sizes from the smallest to the largest: ``edges``, the smallest size of
    each bin and after them the largest of all, and ``counts``.

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
    sums = [sum(counts[i] for i in np.flatnonzero(places == place).tolist()) for place in range(bins)]
    return {"edges": [*edges, values[-1]], "counts": sums}
