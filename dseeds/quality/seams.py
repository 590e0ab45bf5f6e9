"""Seams with places: the planes of a grid of chunks with most boundaries too many, and where on them these are.

A first pass over the volume counts the faces of every plane (`dseeds.quality.kernels.count_faces`). Only the worst
planes are read again, to count the faces of each chunk on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AXES, Box, Lattice, Triple, triple
from dseeds.io.labels import read_labels
from dseeds.parallel.executor import Executor
from dseeds.quality.counting import QualityJob
from dseeds.quality.kernels import CHANGES, PAIRS
from dseeds.quality.metrics import Rows

# Planes that are listed.
MOST_SEAMS = 5


@dataclass(frozen=True)
class SeamPlane:
    """A plane of a grid of chunks, between the voxel at `position` along an axis and the one before it.

    `pairs` and `changes` are those of `dseeds.quality.kernels.count_faces`, and `density` is the share of changes on
    the planes that it is compared with.
    """

    axis: int
    position: int
    pairs: int
    changes: int
    density: float

    @property
    def surplus(self) -> float:
        """How many more boundaries there are than expected."""
        return self.changes - self.pairs * self.density


def compare_seams(
    planes: Sequence[Rows], chunks: Triple, step: Triple | None
) -> Iterator[tuple[int, NDArray[np.int64], Rows]]:
    """Yield the planes of chunks in groups of those that are compared with the same other planes.

    See `seam_excess` for the parameters. Yields the axis, the positions of the planes of chunks, and the `PAIRS` and
    `CHANGES` of the other planes together, if they have any pairs.
    """
    lattice = None if step is None else Lattice(triple(len(rows) + 1 for rows in planes), step)
    for axis, rows in enumerate(planes):
        positions = np.arange(1, len(rows) + 1)
        offsets = np.zeros(len(rows), np.int64)
        if lattice is not None:
            offsets = positions - lattice.grids[-1].cells[axis][positions] * lattice.step[axis]
        seams = positions % chunks[axis] == 0
        for offset in np.unique(offsets[seams]):
            others = rows[~seams & (offsets == offset)].sum(axis=0)
            if others[PAIRS]:
                yield axis, positions[seams & (offsets == offset)], others


def seam_excess(planes: Sequence[Rows], chunks: Triple, step: Triple | None = None) -> dict[str, Any]:
    """Return how many more boundaries there are on the planes of a grid of chunks than elsewhere.

    Where chunks of a volume were segmented on their own, boundaries cover their planes: seams. A plane lies between two
    voxels; its density is the share of its faces between labelled voxels whose two sides have different labels. If
    seams were as dense as other planes of their axis, ``expected = sum over seams of faces * density of the others``
    faces would be boundaries; the excess is ``boundaries / expected - 1``.

    Supervoxels that grew from a lattice of seeds have more boundaries on the planes of the lattice anyway, and chunks
    usually end there. So if the `step` is known, planes are compared with others at the same place in their cells.

    Parameters
    ----------
    planes : sequence of three ndarray of int64, shape (planes, 2)
        For each axis the `PAIRS` and `CHANGES` of its planes, from that between the first two voxels on.
    chunks, step : tuple of int
        Voxels along (z, y, x) of a chunk, and of a cell of the lattice.

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
    # The boundaries and their expected number, for each axis.
    sums = np.zeros((3, 2))
    for axis, positions, others in compare_seams(planes, chunks, step):
        own = planes[axis][positions - 1].sum(axis=0)
        sums[axis] += own[CHANGES], own[PAIRS] * others[CHANGES] / others[PAIRS]

    def excess(changes: float, expected: float) -> float | None:
        return float(changes / expected) - 1 if expected else None

    per_axis = {axis: excess(*pair) for axis, pair in zip(AXES, sums, strict=True)}
    return {"seam_excess": excess(*sums.sum(axis=0)), "seam_excess_per_axis": per_axis}


def find_worst_planes(planes: Sequence[Rows], chunks: Triple, step: Triple | None = None) -> list[SeamPlane]:
    """Return the planes of chunks with most boundaries more than expected, the worst first; see `seam_excess`.

    Examples
    --------
    >>> planes = [np.zeros((0, 2), int), np.zeros((0, 2), int), np.array([[8, 2], [8, 6], [8, 2]])]
    >>> find_worst_planes(planes, chunks=(2, 2, 2))
    [SeamPlane(axis=2, position=2, pairs=8, changes=6, density=0.25)]
    """
    seams = [
        SeamPlane(axis, position, int(rows[PAIRS]), int(rows[CHANGES]), float(others[CHANGES] / others[PAIRS]))
        for axis, positions, others in compare_seams(planes, chunks, step)
        for position, rows in zip(positions.tolist(), planes[axis][positions - 1], strict=True)
    ]
    worst = sorted(seams, key=lambda seam: (-seam.surplus, seam.axis, seam.position))
    return [seam for seam in worst[:MOST_SEAMS] if seam.surplus > 0]


def locate_seams(job: QualityJob, seams: Sequence[SeamPlane], chunks: Triple, executor: Executor) -> list[dict]:
    """Return for each plane its figures and the place of its worst chunk; see ``worst_seams`` of `dseeds.evaluate`."""
    calls = [
        (job, number, which, seam, chunks)
        for which, seam in enumerate(seams)
        for number in range(len(job.tiling))
        if job.tiling.box(number).lo[seam.axis] <= seam.position < job.tiling.box(number).hi[seam.axis]
    ]
    faces: list[dict[tuple[int, int], Rows]] = [{} for _ in seams]
    for which, counts in executor.map_unordered("seams", count_chunk_faces, calls, len(calls)):
        for face, numbers in counts.items():
            faces[which][face] = faces[which].get(face, 0) + numbers
    return [_describe(seam, counts) for seam, counts in zip(seams, faces, strict=True)]


def count_chunk_faces(
    job: QualityJob, number: int, which: int, seam: SeamPlane, chunks: Triple
) -> tuple[int, dict[tuple[int, int], Rows]]:
    """Count the faces of a plane in a region, chunk by chunk.

    Returns the number of the plane, and for each chunk, by its place along the other two axes, int64 (4,): pairs,
    changes, and the sums of the changes' positions along the other two axes.
    """
    box = job.tiling.box(number)
    lo, hi = list(box.lo), list(box.hi)
    lo[seam.axis], hi[seam.axis] = seam.position - 1, seam.position + 1
    below, above = np.moveaxis(read_labels(job.labels, Box(triple(lo), triple(hi))), seam.axis, 0)
    pairs = (below != 0) & (above != 0)
    changes = pairs & (below != above)
    others = [axis for axis in range(3) if axis != seam.axis]
    rows, columns = (np.arange(lo[axis], hi[axis]) for axis in others)
    values = np.stack([pairs, changes, changes * rows[:, None], changes * columns], dtype=np.int64)
    for axis, positions in enumerate((rows, columns), start=1):
        starts = np.flatnonzero(np.diff(positions // chunks[others[axis - 1]], prepend=-1))
        values = np.add.reduceat(values, starts, axis=axis)
    first = [positions[0] // chunks[axis] for axis, positions in zip(others, (rows, columns), strict=True)]
    counts = {(int(first[0]) + i, int(first[1]) + j): values[:, i, j] for i, j in np.ndindex(values.shape[1:])}
    return which, counts


def _describe(seam: SeamPlane, faces: dict[tuple[int, int], Rows]) -> dict[str, Any]:
    """Return the figures of a plane and of the chunk on it with most boundaries more than expected."""
    worst = min(faces, key=lambda face: (faces[face][PAIRS] * seam.density - faces[face][CHANGES], face))
    pairs, changes, *sums = faces[worst].tolist()
    at = [total // changes for total in sums]
    at.insert(seam.axis, seam.position)

    def excess(changes: int, pairs: int) -> float | None:
        return changes / (pairs * seam.density) - 1 if seam.density else None

    return {
        "axis": AXES[seam.axis],
        "plane": seam.position,
        "excess": excess(seam.changes, seam.pairs),
        "at": at,
        "excess_there": excess(changes, pairs),
    }
