"""The counts behind the figures of quality, out of core.

Each region writes rows of integers for its labels (`dseeds.storage.label_records`), and each range of labels adds them
up. The sums do not depend on how the volume is cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import above_origin
from dseeds.core.exact_sum import WIDTH
from dseeds.core.forks import cached_property
from dseeds.core.geometry import Box, Tiling, Triple
from dseeds.io import Source
from dseeds.io.labels import read_labels
from dseeds.quality import kernels as kernel
from dseeds.quality.metrics import Rows, Tally, count_supervoxels
from dseeds.seeds.kernels.pair_counts import count_pairs
from dseeds.storage.label_records import BatchIndex, LabelRange, LabelRecords
from dseeds.storage.location import open_location

# The kind of a row, in its second column. After it, a supervoxel has its voxels, the pairs of these that touch, its
# components and the sum of its deviations; an overlap, a true segment and the common voxels; a link, a patch on the
# border between two regions and a component that touches it.
SUPERVOXEL, OVERLAP, LINK = range(3)
SIZE, INNER, COMPONENTS, DEVIATIONS = 2, 3, 4, 5
COLUMNS = DEVIATIONS + WIDTH
# Makes three voxels of 0.1 mm fit in 0.3 mm.
ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class QualityJob:
    """What the tasks of an evaluation have in common.

    A boundary may be off by `reach`, in voxels along (z, y, x), but no further than `distance`, in millimetres, if
    there is one; `spacing` is 1 where it does not matter. Intensities are measured from `origin`: 0, unless they are
    integers that float64 does not hold. `centre` and `scale` are half of their mean, and half of the range.
    """

    labels: Source
    truth: Source | None
    image: Source | None
    tiling: Tiling
    scratch: str
    reach: Triple
    distance: float | None
    spacing: tuple[float, float, float]
    origin: int = 0
    centre: float = 0.0
    scale: float = 0.0

    @property
    def records(self) -> LabelRecords:
        """The rows that regions have written."""
        return LabelRecords(open_location(self.scratch).at("rows"), COLUMNS)

    @cached_property
    def nearby(self) -> NDArray[np.int64]:
        """Positions (n, 3) within the tolerance, relative to a voxel, the nearest first."""
        axes = [np.arange(-r, r + 1) for r in self.reach]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        squares = ((offsets * np.array(self.spacing)) ** 2).sum(axis=1)
        order = np.argsort(squares, kind="stable")
        if self.distance is not None:
            order = order[squares[order] <= self.distance**2 * ROUNDING]
        return np.ascontiguousarray(offsets[order])


@dataclass(frozen=True)
class RegionCounts:
    """The counts of a region that do not belong to a label, and the index of its rows.

    `planes`, int64 (3, n, 2), is that of `dseeds.quality.kernels.count_faces`; `boundaries` counts true boundary voxels
    and those with a boundary of labels nearby; `squares`, int64 (1, WIDTH), is the exact sum of squared deviations.
    """

    box: Box
    index: BatchIndex
    planes: Rows
    boundaries: tuple[int, int]
    squares: Rows


def add_region(job: QualityJob, number: int) -> tuple[Rows, int, int, float, float]:
    """Add up a region's intensities where there are labels; see `dseeds.quality.kernels.add_intensities`."""
    box, sums = job.tiling.box(number), np.zeros((1, WIDTH), np.int64)
    labels = read_labels(job.labels, box)
    if not labels.any():
        return sums, 0, 0, math.inf, -math.inf
    return sums, *kernel.add_intensities(labels, _intensities(job, box), sums)


def lowest_integer(job: QualityJob, number: int) -> int | None:
    """Return the lowest of a region's intensities where there are labels, which are integers; None without labels."""
    assert job.image is not None
    box = job.tiling.box(number)
    values = job.image.read(box.slices)[read_labels(job.labels, box) != 0]
    return int(values.min()) if values.size else None


def count_quality_region(job: QualityJob, number: int) -> tuple[int, RegionCounts | None]:
    """Count a region, and write the rows of its labels to scratch."""
    box = job.tiling.box(number)
    # The voxels around the box on which its counts depend.
    window = box.grow(1 if job.truth is None else 1 + max(job.reach), within=job.tiling.shape)
    labels = read_labels(job.labels, window)
    inside = box.relative_to(window.lo)
    nodes, owners = kernel.find_components(labels, inside.lo, box.shape)
    if not len(owners):
        return number, None
    names, numbers, components = np.unique(owners, return_inverse=True, return_counts=True)
    counts, deviations = np.zeros((len(names), 2), np.int64), np.zeros((len(names), WIDTH), np.int64)
    planes = kernel.count_faces(labels, inside.lo, numbers, nodes, counts)
    boundaries, squares, overlaps = (0, 0), np.zeros((1, WIDTH), np.int64), np.zeros((0, 3), np.int64)
    if job.truth is not None:
        truth = read_labels(job.truth, window, "truth")
        overlaps = count_pairs(labels[inside.slices], truth[inside.slices])
        boundaries = kernel.recall_boundaries(labels, truth, inside.lo, box.shape, job.nearby)
    if job.image is not None and job.scale:
        image = _intensities(job, box)
        kernel.add_deviations(image, job.centre, job.scale, numbers, nodes, deviations, squares)
    rows = np.concatenate(
        [
            _rows(SUPERVOXEL, names, counts, components, deviations),
            _rows(OVERLAP, overlaps),
            *(_rows(LINK, links) for links in _links(job, number, labels, inside, nodes)),
        ]
    )
    index = job.records.write(number, rows[np.argsort(rows[:, 0], kind="stable")])
    return number, RegionCounts(box, index, planes, boundaries, squares)


def _rows(kind: int, first: Rows, *more: Rows) -> Rows:
    """Return rows of one kind; `first` begins with the labels."""
    values = np.column_stack([first, *more])
    rows = np.zeros((len(values), COLUMNS), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 2 : 1 + values.shape[1]] = values[:, 0], kind, values[:, 1:]
    return rows


def _links(job: QualityJob, number: int, labels: NDArray[Any], inside: Box, nodes: NDArray[np.int32]) -> Iterator[Rows]:
    """Yield for each side of a region the links between components and the patches of labels that continue there.

    A patch is identified by the number of the first voxel above it, times three, plus the axis, in both regions alike.
    """
    box = job.tiling.box(number)
    for axis, end in itertools.product(range(3), range(2)):
        begin, above = box.bounds[end][axis], inside.bounds[end][axis]
        if begin in (0, job.tiling.shape[axis]):
            continue
        around = [side for other, side in enumerate(inside.slices) if other != axis]
        planes = np.moveaxis(labels, axis, 0)[above - 1 : above + 1]
        below, beyond = (plane[tuple(around)] for plane in planes)
        contact = np.where(below == beyond, below, 0)
        first = kernel.find_patches(contact)
        components = np.moveaxis(nodes, axis, 0)[-1 if end else 0][tuple(first.T)]
        voxels = np.insert(first, axis, 0, axis=1) + np.array(box.lo)
        voxels[:, axis] = begin
        patches = 3 * np.ravel_multi_index(tuple(voxels.T), job.tiling.shape) + axis
        names = contact[tuple(first.T)].astype(np.int64)
        yield np.column_stack([names, patches, components.astype(np.int64) + (number << 32)])


def count_part(job: QualityJob, part: LabelRange) -> Tally:
    """Add up the rows of a range of labels."""
    rows = job.records.read(part)
    own, overlaps, links = (rows[rows[:, 1] == kind] for kind in (SUPERVOXEL, OVERLAP, LINK))
    labels, places = np.unique(own[:, 0], return_inverse=True)
    counts = np.zeros((len(labels), 3), np.int64)
    np.add.at(counts, places, own[:, SIZE:DEVIATIONS])
    deviations = kernel.combine_sums(np.ascontiguousarray(own[:, DEVIATIONS:]), places, len(labels))
    links = links[np.lexsort((links[:, 2], links[:, 0]))]
    pairs = np.column_stack([np.searchsorted(labels, links[:, 0]), links[:, 2]])
    merges = kernel.count_merges(pairs, np.unique(links[:, 3], return_inverse=True)[1], len(labels))
    overlaps = overlaps[np.lexsort((overlaps[:, 2], overlaps[:, 0]))][:, [0, 2, 3]]
    if len(overlaps):
        starts = np.flatnonzero(np.any(np.diff(overlaps[:, :2], axis=0, prepend=-1), axis=1))
        overlaps = np.column_stack([overlaps[starts, :2], np.add.reduceat(overlaps[:, 2], starts)])
    return count_supervoxels(counts[:, 0], counts[:, 1], counts[:, 2] - merges, deviations, overlaps)


def _intensities(job: QualityJob, box: Box) -> NDArray[np.float64]:
    assert job.image is not None
    return np.ascontiguousarray(above_origin(job.image.read(box.slices), job.origin), np.float64)
