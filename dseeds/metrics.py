"""Quality of supervoxels: how well they fit a true segmentation and the image, and what they look like.

All arrays have the axes (z, y, x). Label 0 means "masked out": no figure counts such voxels, so a volume is
measured where it was segmented and nowhere else. Overlaps are counted in integers.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dseeds.compilation import jit

__all__ = [
    "Overlap",
    "achievable_dice",
    "achievable_segmentation_accuracy",
    "boundary_recall",
    "compactness",
    "component_counts",
    "evaluate",
    "explained_variation",
    "overlap",
    "undersegmentation_error",
]

# Sorting and float copies go by pieces of this many voxels: of a whole volume they would take gigabytes.
PIECE = 1 << 20


def evaluate(
    labels: ArrayLike, truth: ArrayLike, *, image: ArrayLike | None = None, tolerance: int = 1
) -> dict[str, Any]:
    """Measure supervoxels against a true segmentation and, if given, against the image.

    Parameters
    ----------
    labels : array_like of integers, shape (z, y, x)
        The supervoxels. Ids need not be consecutive; 0 is masked out and left out of every figure.
    truth : array_like of integers, shape (z, y, x)
        The true segmentation. 0 is background, all else are structures.
    image : array_like of numbers, shape (z, y, x), optional
        The intensities. Without them there is no ``explained_variation``.
    tolerance : int, default 1
        How far, in voxels, a boundary may be off in ``boundary_recall``.

    Returns
    -------
    dict
        Plain Python numbers, ready for JSON:

        ``achievable_dice``, ``achievable_dice_per_structure``
            See `achievable_dice`: the mean over the structures, and one figure for each.
        ``achievable_segmentation_accuracy``, ``undersegmentation_error``, ``boundary_recall``
            See the functions of these names.
        ``explained_variation``
            See `explained_variation`. Only with `image`.
        ``compactness``
            See `compactness`.
        ``supervoxels``
            How many there are.
        ``components_per_label``, ``disconnected``
            Mean number of 6-connected components, and how many supervoxels have more than one.
        ``size_min``, ``size_median``, ``size_max``
            Sizes in voxels.

    Raises
    ------
    ValueError
        If the arrays aren't volumes of one shape, labels or truth aren't integers of at least 0, no voxel has
        a label, no labelled voxel is in a structure, the image isn't finite real numbers at the labelled
        voxels, or `tolerance` isn't a whole number of at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.zeros((4, 4, 4), int)
    >>> truth[:, :, 2:] = 7
    >>> labels = 1 + np.arange(64).reshape(4, 4, 4) // 32
    >>> figures = evaluate(labels, truth)
    >>> figures["supervoxels"], figures["achievable_segmentation_accuracy"]
    (2, 0.5)
    >>> evaluate(truth + 1, truth)["achievable_dice_per_structure"]
    {7: 1.0}
    """
    # Small ids make each of the calls below cheap, and no figure depends on the ids.
    _, compact = _supervoxels(labels)
    table = overlap(compact, truth)
    dice = achievable_dice(table)
    figures: dict[str, Any] = {
        "achievable_dice": float(np.mean(list(dice.values()))),
        "achievable_dice_per_structure": dice,
        "achievable_segmentation_accuracy": achievable_segmentation_accuracy(table),
        "undersegmentation_error": undersegmentation_error(table),
        "boundary_recall": boundary_recall(compact, truth, tolerance=tolerance),
    }
    if image is not None:
        figures["explained_variation"] = explained_variation(compact, image)
    components = component_counts(compact)
    return figures | {
        "compactness": compactness(compact),
        "supervoxels": components.size,
        "components_per_label": float(components.mean()),
        "disconnected": int(np.count_nonzero(components > 1)),
        "size_min": int(table.sizes.min()),
        "size_median": float(np.median(table.sizes)),
        "size_max": int(table.sizes.max()),
    }


@dataclass(frozen=True)
class Overlap:
    """How many voxels each supervoxel shares with each truth label: a row per pair, sorted.

    Attributes
    ----------
    labels, truth : ndarray of uint64, shape (rows,)
        The supervoxel's id and the truth label.
    counts : ndarray of int64, shape (rows,)
        The voxels that have both.
    """

    labels: NDArray[np.uint64]
    truth: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each supervoxel."""
        return np.unique(self.labels, return_index=True)[1]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The voxels of each supervoxel, in the order of the ids."""
        return np.add.reduceat(self.counts, self.starts)

    @property
    def best(self) -> NDArray[np.int64]:
        """The row of each supervoxel's largest overlap, of equal ones that with the smallest truth label."""
        # Sorting within the supervoxels leaves their first rows where they are.
        return np.lexsort((self.truth, -self.counts, self.labels))[self.starts]


def overlap(labels: ArrayLike, truth: ArrayLike) -> Overlap:
    """Count the voxels that each supervoxel shares with each truth label.

    Parameters
    ----------
    labels, truth : array_like of integers, shape (z, y, x)
        The supervoxels, 0 masked out; and the true segmentation, 0 background.

    Returns
    -------
    Overlap
        A row for each pair with a voxel in common.

    Raises
    ------
    ValueError
        If the arrays aren't volumes of one shape with integers of at least 0, or no voxel has a label.

    Examples
    --------
    >>> table = overlap([[[5, 5, 9, 0]]], [[[0, 1, 1, 1]]])
    >>> table.labels.tolist(), table.truth.tolist(), table.counts.tolist()
    ([5, 5, 9], [0, 1, 1], [1, 1, 1])
    """
    label_ids, compact = _supervoxels(labels)
    truth_ids, truth_compact = _compact(_on_grid("truth", _integers("truth", truth), compact))
    keys, counts = [], []
    for own, true in _pieces(compact, truth_compact):
        inside = own != 0
        pair = own[inside].astype(np.int64) * truth_ids.size + true[inside]
        piece_keys, piece_counts = np.unique(pair, return_counts=True)
        keys.append(piece_keys)
        counts.append(piece_counts)
    rows, row = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.zeros(rows.size, np.int64)
    np.add.at(total, row, np.concatenate(counts))
    return Overlap(label_ids[rows // truth_ids.size], truth_ids[rows % truth_ids.size], total)


def achievable_dice(table: Overlap) -> dict[int, float]:
    """Dice of each structure in the best segmentation that a choice per supervoxel allows.

    Every supervoxel takes the truth label, background included, with which it shares most voxels (of equals
    the smallest); then each structure is compared with the truth: ``2 |A and B| / (|A| + |B|)``. Zhao, Jiang,
    Hollon, "Extending SEEDS to a Supervoxel Algorithm for Medical Image Analysis", arXiv 2502.02409, 2025.

    Parameters
    ----------
    table : Overlap
        From `overlap`.

    Returns
    -------
    dict of int to float
        Truth label to Dice, 0 to 1 (best), without the background.

    Raises
    ------
    ValueError
        If no labelled voxel belongs to a structure.

    Examples
    --------
    >>> achievable_dice(overlap([[[1, 1, 1, 2, 2]]], [[[0, 3, 3, 3, 0]]]))
    {3: 0.6666666666666666}
    """
    structures, row = np.unique(table.truth, return_inverse=True)
    true, assigned, common = np.zeros((3, structures.size), np.int64)
    best = table.best
    np.add.at(true, row, table.counts)
    np.add.at(assigned, row[best], table.sizes)
    np.add.at(common, row[best], table.counts[best])
    dice = 2 * common / (true + assigned)
    found = {int(structure): float(figure) for structure, figure in zip(structures, dice, strict=True) if structure}
    if not found:
        raise ValueError("truth has no structure: it is 0, background, at every labelled voxel.")
    return found


def achievable_segmentation_accuracy(table: Overlap) -> float:
    """Share of the voxels that are right if every supervoxel takes the truth label that it overlaps most.

    ``1/N * sum over P of max over S of |P and S|``, P the supervoxels, S the true segments, the background
    included: Liu, Tuzel, Ramalingam, Chellappa, "Entropy Rate Superpixel Segmentation", CVPR 2011.

    Parameters
    ----------
    table : Overlap
        From `overlap`.

    Returns
    -------
    float
        More than 0, at most 1 (best).

    Examples
    --------
    >>> achievable_segmentation_accuracy(overlap([[[1, 1, 1, 2, 2]]], [[[0, 3, 3, 3, 0]]]))
    0.6
    """
    return float(table.counts[table.best].sum() / table.counts.sum())


def undersegmentation_error(table: Overlap) -> float:
    """How much the supervoxels leak over the borders of the true segments.

    ``1/N * sum over S of sum over P that meet S of min(|P and S|, |P without S|)``, P the supervoxels, S the
    true segments, the background included: Neubert, Protzel, "Superpixel Benchmark and Comparison", Forum
    Bildverarbeitung 2012.

    Parameters
    ----------
    table : Overlap
        From `overlap`.

    Returns
    -------
    float
        0 (best) to 1.

    Examples
    --------
    >>> undersegmentation_error(overlap([[[1, 1, 1, 2, 2]]], [[[0, 3, 3, 3, 0]]]))
    0.8
    """
    rows = np.diff(table.starts, append=table.counts.size)
    outside = np.repeat(table.sizes, rows) - table.counts
    return float(np.minimum(table.counts, outside).sum() / table.counts.sum())


def boundary_recall(labels: ArrayLike, truth: ArrayLike, *, tolerance: int = 1) -> float:
    """Share of the true boundary voxels that have a supervoxel boundary nearby.

    A boundary voxel has a face neighbour of another label; the border of the volume is no boundary, nor is
    that of the mask. "Nearby" is within `tolerance` voxels along every axis (Chebyshev distance). After
    Martin, Fowlkes, Malik, "Learning to Detect Natural Image Boundaries Using Local Brightness, Color, and
    Texture Cues", PAMI 2004.

    Parameters
    ----------
    labels, truth : array_like of integers, shape (z, y, x)
        The supervoxels, 0 masked out; and the true segmentation, 0 background.
    tolerance : int, default 1
        In voxels, 0 or more.

    Returns
    -------
    float
        0 to 1 (best); 1 where the truth has no boundary.

    Raises
    ------
    ValueError
        If the arrays aren't volumes of one shape with integers of at least 0, no voxel has a label, or
        `tolerance` isn't a whole number of at least 0.

    Examples
    --------
    >>> boundary_recall([[[1, 1, 1, 2, 2, 2]]], [[[0, 0, 4, 4, 4, 4]]], tolerance=0)
    0.5
    """
    try:
        reach = operator.index(tolerance)
    except TypeError:
        reach = -1
    if reach < 0:
        raise ValueError(f"tolerance must be a whole number of voxels, 0 or more, not {tolerance!r}.")
    _, compact = _supervoxels(labels)
    inside = compact != 0
    wanted = _boundary(_on_grid("truth", _integers("truth", truth), compact), inside)
    found = _dilated(_boundary(compact, inside), reach)
    count = np.count_nonzero(wanted)
    return float(np.count_nonzero(wanted & found) / count) if count else 1.0


def explained_variation(labels: ArrayLike, image: ArrayLike) -> float:
    """Share of the image's variance that remains when every supervoxel is painted with its mean.

    ``sum over P of |P| (mean of P - mean)^2``, divided by ``sum over voxels of (x - mean)^2``: Moore, Prince,
    Warrell, Mohammed, Jones, "Superpixel Lattices", CVPR 2008.

    Parameters
    ----------
    labels : array_like of integers, shape (z, y, x)
        The supervoxels, 0 masked out.
    image : array_like of numbers, shape (z, y, x)
        The intensities; under the mask they may be anything.

    Returns
    -------
    float
        0 to 1 (best); 1 for a constant image, of which nothing is lost.

    Raises
    ------
    ValueError
        If the arrays aren't volumes of one shape, labels aren't integers of at least 0, no voxel has a label,
        or the image isn't finite real numbers at the labelled voxels.

    Examples
    --------
    >>> round(explained_variation([[[1, 1, 2, 2]]], [[[0, 2, 4, 6]]]), 3)
    0.8
    """
    ids, compact = _supervoxels(labels)
    values = _on_grid("image", np.asarray(image), compact)
    if values.dtype.kind not in "buif":
        raise ValueError(f"image must be real numbers, not {values.dtype}.")
    size, total, low, high = 0, 0.0, np.inf, -np.inf
    for own, x in _intensities(compact, values):
        size += own.size
        total += float(x.sum())
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    if low == high:
        return 1.0
    # Deviations in units of the range: their squares neither overflow nor vanish.
    sizes, sums = np.zeros(ids.size, np.int64), np.zeros(ids.size)
    squares = 0.0
    for own, x in _intensities(compact, values):
        deviation = (x - total / size) / (high - low)
        sizes += np.bincount(own, minlength=ids.size)
        sums += np.bincount(own, weights=deviation, minlength=ids.size)
        squares += float(np.square(deviation).sum())
    # The mean is rounded, so the deviations don't quite add up to 0.
    rest = sums.sum() ** 2 / size
    between = (sums**2 / np.maximum(sizes, 1)).sum() - rest
    return float(np.clip(between / (squares - rest), 0.0, 1.0))


def compactness(labels: ArrayLike) -> float:
    """Mean isoperimetric quotient of the supervoxels, weighted by their size.

    The quotient is ``36 pi V^2 / A^3``, V the number of voxels, A that of the voxel faces towards another
    label, the mask or the outside of the volume. A smooth ball has 1; but as voxel faces are counted, the
    highest is that of a cube, ``pi / 6 = 0.524``. Voxels count as cubes whatever their spacing. The 3D form
    of Schick, Fischer, Stiefelhagen, "Measuring and Evaluating the Compactness of Superpixels", ICPR 2012.

    Parameters
    ----------
    labels : array_like of integers, shape (z, y, x)
        The supervoxels, 0 masked out.

    Returns
    -------
    float
        More than 0, at most pi / 6.

    Raises
    ------
    ValueError
        If labels aren't a volume of integers of at least 0, or no voxel has a label.

    Examples
    --------
    >>> round(compactness([[[1, 2, 3]]]), 3)
    0.524
    """
    ids, compact = _supervoxels(labels)
    sizes, faces = _sizes_and_faces(compact, ids.size)
    present = sizes > 0
    # V times the quotient is 36 pi (V / A)^3.
    return float(36 * np.pi * ((sizes[present] / faces[present]) ** 3).sum() / sizes.sum())


def component_counts(labels: ArrayLike) -> NDArray[np.int64]:
    """Count the 6-connected components of each supervoxel.

    Parameters
    ----------
    labels : array_like of integers, shape (z, y, x)
        The supervoxels, 0 masked out.

    Returns
    -------
    ndarray of int64, shape (supervoxels,)
        In the order of the ids.

    Raises
    ------
    ValueError
        If labels aren't a volume of integers of at least 0, or no voxel has a label.

    Examples
    --------
    >>> component_counts([[[4, 9, 4, 4]]])
    array([2, 1])
    """
    ids, compact = _supervoxels(labels)
    parents = np.arange(compact.size, dtype=np.int32 if compact.size < 2**31 else np.int64)
    counts = _count_components(compact, parents, ids.size)
    return counts[counts > 0]


def _integers(name: str, array: ArrayLike) -> NDArray[Any]:
    """Check that an array can be labels."""
    volume = np.asarray(array)
    if volume.ndim != 3:
        raise ValueError(f"{name} must have the three axes (z, y, x), not {volume.ndim}.")
    if volume.dtype.kind == "f" and np.isfinite(volume).all() and np.array_equal(volume, np.trunc(volume)):
        # NIfTI files often hold labels as floats.
        volume = volume.astype(np.int64)
    if volume.dtype.kind not in "bui":
        raise ValueError(f"{name} must be integers, not {volume.dtype}.")
    if volume.dtype.kind == "i" and volume.size and volume.min() < 0:
        raise ValueError(f"{name} must not be negative, but its smallest value is {volume.min()}.")
    return volume


def _on_grid(name: str, volume: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Check that an array lies on the labels' grid."""
    if volume.shape != labels.shape:
        raise ValueError(f"{name} has the shape {volume.shape}, but labels {labels.shape}: they must be the same.")
    return volume


def _supervoxels(labels: ArrayLike) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Check labels and make their ids small; see `_compact`."""
    ids, compact = _compact(_integers("labels", labels))
    if not compact.any():
        raise ValueError("labels has no supervoxel: every voxel is 0, masked out.")
    return ids, compact


def _compact(volume: NDArray[Any]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Replace the ids by small numbers in the same order, 0 by 0; return the ids by number, and the numbers.

    Ids that are small already are kept, so not every number need occur.
    """
    largest = int(volume.max()) if volume.size else 0
    if largest <= min(volume.size, 2**31 - 2):
        return np.arange(largest + 1, dtype=np.uint64), np.ascontiguousarray(volume, np.int32)
    found = [np.unique(piece) for (piece,) in _pieces(volume)]
    ids = np.unique(np.concatenate([np.zeros(1, np.uint64), *(piece.astype(np.uint64) for piece in found)]))
    numbers = np.empty(volume.shape, np.int32 if ids.size < 2**31 else np.int64)
    for number, piece in _pieces(numbers, volume):
        number[:] = np.searchsorted(ids, piece.astype(np.uint64))
    return ids, numbers


def _pieces(*volumes: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Cut volumes of one shape into pieces of the flattened volume."""
    flat = [volume.reshape(-1) for volume in volumes]
    for start in range(0, flat[0].size, PIECE):
        yield tuple(volume[start : start + PIECE] for volume in flat)


def _intensities(labels: NDArray[Any], image: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
    """Labels and intensities of the labelled voxels, piece by piece."""
    for own, values in _pieces(labels, image):
        inside = own != 0
        if inside.any():
            x = values[inside].astype(np.float64)
            if not np.isfinite(x).all():
                raise ValueError("image has NaN or infinite values at labelled voxels: mask them out with label 0.")
            yield own[inside], x


def _boundary(volume: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with a face neighbour of another value, both inside."""
    boundary = np.zeros(volume.shape, bool)
    for axis in range(volume.ndim):
        # Views with the axis in front: a write to them is a write to the volume.
        value, valid, edge = (np.moveaxis(array, axis, 0) for array in (volume, inside, boundary))
        differs = (value[1:] != value[:-1]) & valid[1:] & valid[:-1]
        edge[1:] |= differs
        edge[:-1] |= differs
    return boundary


def _dilated(voxels: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Voxels within a Chebyshev distance of the given ones: a cube, so one axis after the other."""
    for axis in range(voxels.ndim):
        grown = voxels.copy()
        before, after = np.moveaxis(voxels, axis, 0), np.moveaxis(grown, axis, 0)
        for shift in range(1, min(reach, voxels.shape[axis] - 1) + 1):
            after[shift:] |= before[:-shift]
            after[:-shift] |= before[shift:]
        voxels = grown
    return voxels


@jit
def _sizes_and_faces(labels: NDArray[Any], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Voxels and exposed faces of each label below n; none for label 0."""
    sizes, faces = np.zeros(n, np.int64), np.zeros(n, np.int64)
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                own = labels[z, y, x]
                if own == 0:
                    continue
                sizes[own] += 1
                faces[own] += 6
                # A face within the label is met once, from its lower side, and takes a face from both voxels.
                if z + 1 < nz and labels[z + 1, y, x] == own:
                    faces[own] -= 2
                if y + 1 < ny and labels[z, y + 1, x] == own:
                    faces[own] -= 2
                if x + 1 < nx and labels[z, y, x + 1] == own:
                    faces[own] -= 2
    return sizes, faces


@jit
def _count_components(labels: NDArray[Any], parents: NDArray[Any], n: int) -> NDArray[np.int64]:
    """6-connected components of each label below n, none for label 0; parents: each voxel its own root."""
    counts = np.zeros(n, np.int64)
    nz, ny, nx = labels.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                own = labels[z, y, x]
                if own == 0:
                    continue
                # A voxel starts as a component of its own, and each union takes one away.
                counts[own] += 1
                voxel = (z * ny + y) * nx + x
                if z > 0 and labels[z - 1, y, x] == own:
                    counts[own] -= _unite(parents, voxel, voxel - ny * nx)
                if y > 0 and labels[z, y - 1, x] == own:
                    counts[own] -= _unite(parents, voxel, voxel - nx)
                if x > 0 and labels[z, y, x - 1] == own:
                    counts[own] -= _unite(parents, voxel, voxel - 1)
    return counts


@jit
def _unite(parents: NDArray[Any], a: int, b: int) -> int:
    """Join the trees of two voxels; 1 if they were apart, else 0."""
    a, b = _root(parents, a), _root(parents, b)
    # The earlier voxel becomes the root: in raster order it has, as a rule, the larger tree.
    parents[max(a, b)] = min(a, b)
    return 1 if a != b else 0


@jit
def _root(parents: NDArray[Any], voxel: int) -> int:
    """Find a voxel's tree, halving the path to its root."""
    while parents[voxel] != voxel:
        parents[voxel] = parents[parents[voxel]]
        voxel = parents[voxel]
    return voxel
