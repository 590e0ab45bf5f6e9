"""The counts behind the quality figures, out of core.

Each region writes rows of integers for its labels (`dseeds.storage.label_records`), and each range of labels adds
them up. The sums do not depend on how the volume is cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.exact_sum import WIDTH
from dseeds.core.geometry import Box, Tiling, Triple
from dseeds.io import Source
from dseeds.io.labels import read_labels
from dseeds.quality import kernels as kernel
from dseeds.quality.metrics import Rows, Tally, count_supervoxels
from dseeds.storage.label_records import BatchIndex, LabelRange, LabelRecords
from dseeds.storage.location import open_location

# What a row tells of its label, in its second column: voxels, pairs of these that touch, components and the sum of
# deviations; or a true segment and the voxels in common; or a patch of the border between two regions and the component
# that touches it there.
SUPERVOXEL, OVERLAP, LINK = range(3)
SIZE, INNER, COMPONENTS, DEVIATIONS = 2, 3, 4, 5
COLUMNS = DEVIATIONS + WIDTH
# So that three voxels of 0.1 mm are 0.3 mm.
ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class QualityJob:
    """What every task needs to know.

    Attributes
    ----------
    labels : Source
        The supervoxels.
    truth, image : Source or None
        The true segmentation and the intensities, if they are given.
    tiling : Tiling
        The regions.
    scratch : str
        Where rows go.
    reach : tuple of int
        How far off a boundary may be along (z, y, x), in voxels.
    distance : float or None
        How far off it may be at all, in millimetres; None for no limit but the reach.
    spacing : tuple of float
        Size of a voxel along (z, y, x) in millimetres; 1 where that does not matter.
    centre, scale : float
        Half of the intensities' mean, and half of their range.
    """

    labels: Source
    truth: Source | None
    image: Source | None
    tiling: Tiling
    scratch: str
    reach: Triple
    distance: float | None
    spacing: tuple[float, float, float]
    centre: float = 0.0
    scale: float = 0.0

    @property
    def records(self) -> LabelRecords:
        """What regions say of labels."""
        return LabelRecords(open_location(self.scratch).at("rows"), COLUMNS)

    @cached_property
    def nearby(self) -> NDArray[np.int64]:
        """Whatever is within the tolerance of a voxel, the nearest first: shape (n, 3)."""
        axes = [np.arange(-r, r + 1) for r in self.reach]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        squares = ((offsets * np.array(self.spacing)) ** 2).sum(axis=1)
        order = np.argsort(squares, kind="stable")
        if self.distance is not None:
            order = order[squares[order] <= self.distance**2 * ROUNDING]
        return np.ascontiguousarray(offsets[order])

    def window(self, box: Box) -> Box:
        """Give a region's voxels and those around it that its figures depend on."""
        return box.grow(1 if self.truth is None else 1 + max(self.reach), within=self.tiling.shape)


@dataclass(frozen=True)
class RegionCounts:
    """What a region tells at once.

    Attributes
    ----------
    box : Box
        The region.
    index : BatchIndex
        Of the rows that it has left.
    planes : ndarray of int64, shape (3, n, 2)
        See `kernel.evaluation.count_faces`.
    boundaries : tuple of (int, int)
        True boundary voxels, and those with a boundary of labels nearby.
    squares : ndarray of int64, shape (1, WIDTH)
        The sum of the squares of deviations.
    """

    box: Box
    index: BatchIndex
    planes: Rows
    boundaries: tuple[int, int]
    squares: Rows


def add_region(survey: QualityJob, number: int) -> tuple[Rows, int, int, float, float]:
    """Add up a region's intensities where there are labels."""
    box, sums = survey.tiling.box(number), np.zeros((1, WIDTH), np.int64)
    labels = read_labels(survey.labels, box)
    if not labels.any():
        return sums, 0, 0, math.inf, -math.inf
    return sums, *kernel.add_intensities(labels, _intensities(survey, box), sums)


def count_quality_region(survey: QualityJob, number: int) -> tuple[int, RegionCounts | None]:
    """Measure a region, and leave the rows of its labels in scratch."""
    box = survey.tiling.box(number)
    window = survey.window(box)
    labels = read_labels(survey.labels, window)
    inside = box.relative_to(window.lo)
    nodes, owners = kernel.find_components(labels, inside.lo, box.shape)
    if not len(owners):
        return number, None
    names, numbers, components = np.unique(owners, return_inverse=True, return_counts=True)
    counts, deviations = np.zeros((len(names), 2), np.int64), np.zeros((len(names), WIDTH), np.int64)
    planes = kernel.count_faces(labels, inside.lo, numbers, nodes, counts)
    boundaries, squares, overlaps = (0, 0), np.zeros((1, WIDTH), np.int64), np.zeros((0, 3), np.int64)
    if survey.truth is not None:
        truth = read_labels(survey.truth, window, "truth")
        keys, common = kernel.count_overlaps(truth, inside.lo, numbers, nodes)
        there = keys[:, 0] != 0
        overlaps = np.column_stack([names[keys[there, 0] - 1], keys[there, 1], common[there]])
        boundaries = kernel.recall_boundaries(labels, truth, inside.lo, box.shape, survey.nearby)
    if survey.image is not None and survey.scale:
        image = _intensities(survey, box)
        kernel.add_deviations(image, survey.centre, survey.scale, numbers, nodes, deviations, squares)
    rows = np.concatenate(
        [
            _rows(SUPERVOXEL, names, counts, components, deviations),
            _rows(OVERLAP, overlaps),
            *(_rows(LINK, links) for links in _links(survey, number, labels, inside, nodes)),
        ]
    )
    index = survey.records.write(number, rows[np.argsort(rows[:, 0], kind="stable")])
    return number, RegionCounts(box, index, planes, boundaries, squares)


def _rows(kind: int, first: Rows, *more: Rows) -> Rows:
    """Make rows of one kind; `first` begins with the labels."""
    values = np.column_stack([first, *more])
    rows = np.zeros((len(values), COLUMNS), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 2 : 1 + values.shape[1]] = values[:, 0], kind, values[:, 1:]
    return rows


def _links(
    survey: QualityJob, number: int, labels: NDArray[Any], inside: Box, nodes: NDArray[np.int32]
) -> Iterator[Rows]:
    """Tell for each side of a region which components touch which patches of labels that go on there.

    A patch bears the number of the first voxel above it, times three, and the axis; so both regions call it the same.
    """
    box = survey.tiling.box(number)
    for axis, end in itertools.product(range(3), range(2)):
        begin, above = box.bounds[end][axis], inside.bounds[end][axis]
        if begin in (0, survey.tiling.shape[axis]):
            continue
        around = [side for other, side in enumerate(inside.slices) if other != axis]
        planes = np.moveaxis(labels, axis, 0)[above - 1 : above + 1]
        below, beyond = (plane[tuple(around)] for plane in planes)
        contact = np.where(below == beyond, below, 0)
        first = kernel.find_patches(contact)
        components = np.moveaxis(nodes, axis, 0)[-1 if end else 0][tuple(first.T)]
        voxels = np.insert(first, axis, 0, axis=1) + np.array(box.lo)
        voxels[:, axis] = begin
        patches = 3 * np.ravel_multi_index(tuple(voxels.T), survey.tiling.shape) + axis
        names = contact[tuple(first.T)].astype(np.int64)
        yield np.column_stack([names, patches, components.astype(np.int64) + (number << 32)])


def count_part(survey: QualityJob, part: LabelRange) -> Tally:
    """Count a range of labels."""
    rows = survey.records.read(part)
    own, overlaps, links = (rows[rows[:, 1] == kind] for kind in (SUPERVOXEL, OVERLAP, LINK))
    names, places = np.unique(own[:, 0], return_inverse=True)
    counts = np.zeros((len(names), 3), np.int64)
    np.add.at(counts, places, own[:, SIZE:DEVIATIONS])
    deviations = kernel.combine_sums(np.ascontiguousarray(own[:, DEVIATIONS:]), places, len(names))
    merges = np.zeros(len(names), np.int64)
    links = links[np.lexsort((links[:, 2], links[:, 0]))]
    pairs = np.column_stack([np.searchsorted(names, links[:, 0]), links[:, 2]])
    kernel.count_merges(pairs, np.unique(links[:, 3], return_inverse=True)[1], merges)
    overlaps = overlaps[np.lexsort((overlaps[:, 2], overlaps[:, 0]))][:, [0, 2, 3]]
    if len(overlaps):
        starts = np.flatnonzero(np.any(np.diff(overlaps[:, :2], axis=0, prepend=-1), axis=1))
        overlaps = np.column_stack([overlaps[starts, :2], np.add.reduceat(overlaps[:, 2], starts)])
    return count_supervoxels(counts[:, 0], counts[:, 1], counts[:, 2] - merges, deviations, overlaps)


def _intensities(survey: QualityJob, box: Box) -> NDArray[np.float64]:
    assert survey.image is not None
    return np.ascontiguousarray(survey.image.read(box.slices), np.float64)
