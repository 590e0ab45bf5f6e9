"""Planes through a volume of any size, read from the resolution level that matches the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.core.geometry import Triple, triple
from dseeds.io import ArraySource, Source, ZarrSource
from dseeds.io.resolution_levels import ResolutionLevel, read_resolution_levels
from dseeds.storage.slabs import slab_thickness

# Name, and which of (superior, anterior, right) the plane lies across and which lead down and to the right of it.
PLANES = (("axial", 0, 1, 2), ("coronal", 1, 0, 2), ("sagittal", 2, 0, 1))
LETTERS = "SAR"
# The longest side of a voxel in pixels at which a level still counts as fine enough.
COARSEST = math.sqrt(2)
# Voxels along an axis that are read at once, unless a chunk is longer.
TILE_VOXELS = 512
AxisIndices = tuple[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Orientation:
    """How a volume is turned for viewing: head up, the patient's front up or left, the patient's right left.

    `axes` are the volume's axes (z, y, x) that lie along superior-inferior, anterior-posterior and right-left. `flips`
    says for each of (z, y, x) whether it is reversed for viewing. If the orientation is not known, planes are shown as
    they are stored, the first row at the top.
    """

    axes: Triple = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    known: bool = False

    @classmethod
    def of(cls, affine: NDArray[Any] | None) -> Orientation:
        """Return the orientation that follows from an affine from (x, y, z) to (right, anterior, superior).

        >>> import numpy as np
        >>> Orientation.of(np.diag([-1.0, -1.0, 1.0, 1.0]))
        Orientation(axes=(0, 1, 2), flips=(True, False, False), known=True)
        """
        if affine is None:
            return cls()
        orientations = nibabel.io_orientation(affine)
        axes = {int(direction): 2 - axis for axis, (direction, _) in enumerate(orientations)}
        z, y, x = (bool(sign > 0) for _, sign in orientations[::-1])
        return cls((axes[2], axes[1], axes[0]), (z, y, x), True)


@dataclass(frozen=True)
class View:
    """A box of a volume, in voxels, and the scale at which it is shown. `pixel` is in the unit of the spacing."""

    lo: tuple[float, float, float]
    hi: tuple[float, float, float]
    spacing: tuple[float, float, float]
    pixel: float

    @classmethod
    def whole(cls, shape: Triple, spacing: tuple[float, float, float], size: int) -> View:
        """Return a view of a whole volume whose longest side takes `size` pixels or slightly less."""
        longest = max(n * s for n, s in zip(shape, spacing, strict=True))
        pixel = longest / size
        # A voxel of several pixels takes a whole number of them: uneven voxels would be visible.
        zoom = min(spacing) / pixel
        return cls((0.0, 0.0, 0.0), _floats(shape), spacing, min(spacing) / math.floor(zoom) if zoom >= 3 else pixel)

    def closer(self, at: Triple) -> View:
        """Return a view around a voxel at twice the scale. Short sides stay whole."""
        longest = max((b - a) * s for a, b, s in zip(self.lo, self.hi, self.spacing, strict=True))
        lo, hi = [], []
        for a, b, size, voxel in zip(self.lo, self.hi, self.spacing, at, strict=True):
            side = min(b - a, longest / 2 / size)
            start = min(max(voxel + 0.5 - side / 2, a), b - side)
            lo.append(start)
            hi.append(start + side)
        return View(_floats(lo), _floats(hi), self.spacing, self.pixel / 2)

    def pixels(self, axis: int) -> int:
        """Return the number of pixels along an axis."""
        return max(1, round((self.hi[axis] - self.lo[axis]) * self.spacing[axis] / self.pixel))

    def positions(self, axis: int) -> NDArray[np.float64]:
        """Return the centres of the pixels along an axis, in voxels from the centre of the first voxel."""
        count = self.pixels(axis)
        centres = (np.arange(count) + 0.5) * ((self.hi[axis] - self.lo[axis]) / count)
        return np.asarray(self.lo[axis] + centres - 0.5, np.float64)


class PlaneReader:
    """Reads the planes of a channel of a volume that intersect in the voxel `at`."""

    def __init__(self, source: Source, at: Triple, channel: int = 0) -> None:
        self.levels = read_resolution_levels(source)
        self._at, self._channel = at, channel

    def choose_level(self, view: View) -> ResolutionLevel:
        """Return the coarsest level that is fine enough for the pixels of a view."""
        limits = [max(COARSEST * view.pixel, size) * (1 + 1e-9) for size in view.spacing]
        fine = [
            level
            for level in self.levels
            if all(f * s <= limit for f, s, limit in zip(level.scale, view.spacing, limits, strict=True))
        ]
        return max(fine, key=lambda level: math.prod(level.scale), default=self.levels[0])

    def read(self, level: ResolutionLevel, axis: int, rows: AxisIndices, columns: AxisIndices) -> NDArray[Any]:
        """Read the plane across an axis at some voxels of a level, in the shape (rows, columns).

        Rows and columns are each one of the two other axes, and the voxels along it, ascending.
        """
        (down, at_rows), (right, at_columns) = rows, columns
        if not isinstance(level.source, ArraySource | ZarrSource):
            plane = self._whole_planes[axis]
            return (plane if down < right else plane.T)[np.ix_(at_rows, at_columns)]
        depth = int(level.indices(axis, np.array([float(self._at[axis])]))[0])
        plane = np.empty((len(at_rows), len(at_columns)), level.source.dtype)
        for some_rows in _tiles(level.source, down, at_rows):
            for some_columns in _tiles(level.source, right, at_columns):
                r, c = at_rows[some_rows], at_columns[some_columns]
                box = [slice(depth, depth + 1)] * 3
                box[down], box[right] = slice(int(r[0]), int(r[-1]) + 1), slice(int(c[0]), int(c[-1]) + 1)
                tile = self._select_channel(level.source.read((box[0], box[1], box[2]))).squeeze(axis)
                plane[some_rows, some_columns] = (tile if down < right else tile.T)[np.ix_(r - r[0], c - c[0])]
        return plane

    @cached_property
    def _whole_planes(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The three planes of a volume without random access, collected in one pass over it."""
        source, (z, y, x) = self.levels[0].source, self._at
        itemsize = source.dtype.itemsize * (source.channels or 1)
        axial, coronal, sagittal = [], [], []
        for start, slab in source.slabs(slab_thickness(source.shape, itemsize)):
            volume = self._select_channel(slab)
            if start <= z < start + len(volume):
                axial.append(volume[z - start].copy())
            coronal.append(volume[:, y].copy())
            sagittal.append(volume[:, :, x].copy())
        return axial[0], np.concatenate(coronal), np.concatenate(sagittal)

    def _select_channel(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self._channel] if values.ndim > 3 else values


@dataclass(frozen=True)
class Section:
    """A plane of labels and of their image, in the shape (rows, columns).

    `axis` lies across the plane, `down` and `right` lie down and to the right of it, in either direction. `rows` holds
    the row that each pixel from top to bottom shows, `columns` the column that each pixel from left to right shows.
    `letters` are the directions to the left and to the top, of L, R, A, P, S, I; empty if unknown.
    """

    name: str
    axis: int
    down: int
    right: int
    labels: NDArray[np.int64]
    image: NDArray[np.float64] | None
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    letters: str

    def to_pixels(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of the pixels, given those of rows and columns."""
        return values[np.ix_(self.rows, self.columns)]


def read_sections(
    labels: PlaneReader, image: PlaneReader | None, view: View, orientation: Orientation
) -> tuple[Section, Section, Section]:
    """Read the axial, the coronal and the sagittal plane of a view."""

    def read_section(name: str, *directions: int) -> Section:
        axis, down, right = (orientation.axes[direction] for direction in directions)
        level = labels.choose_level(view)
        voxels, pixels = {}, {}
        for side in (down, right):
            voxels[side], pixels[side] = np.unique(level.indices(side, view.positions(side)), return_inverse=True)
            pixels[side] = pixels[side][::-1] if orientation.flips[side] else pixels[side]
        intensities = None
        if image is not None:
            image_level = image.choose_level(view)
            rows, columns = (
                (side, image_level.indices(side, level.positions(side, voxels[side]))) for side in (down, right)
            )
            intensities = image.read(image_level, axis, rows, columns).astype(np.float64)
        return Section(
            name,
            axis,
            down,
            right,
            labels.read(level, axis, (down, voxels[down]), (right, voxels[right])).astype(np.int64),
            intensities,
            pixels[down],
            pixels[right],
            LETTERS[directions[2]] + LETTERS[directions[1]] if orientation.known else "",
        )

    axial, coronal, sagittal = (read_section(*plane) for plane in PLANES)
    return axial, coronal, sagittal


def _tiles(source: Source, axis: int, indices: NDArray[np.int64]) -> Iterator[slice]:
    """Cut ascending voxels along an axis into runs that lie in the same chunks."""
    chunk = source.chunks[axis] if source.chunks else 1
    # If the voxels skip whole chunks, each chunk is read on its own.
    is_sparse = len(indices) > 1 and indices[-1] - indices[0] > chunk * (len(indices) - 1)
    tiles = indices // (chunk if is_sparse else chunk * max(1, TILE_VOXELS // chunk))
    starts = np.flatnonzero(np.diff(tiles, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
        yield slice(int(start), int(stop))


def middle_voxel(shape: Triple) -> Triple:
    """Return the voxel in the middle of a volume."""
    return triple(n // 2 for n in shape)


def _floats(values: Any) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x
