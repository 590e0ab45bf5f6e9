"""Planes through a volume of any size, read from the level of its pyramid that is as fine as the pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Triple, triple
from dseeds.io import ArraySource, Source, ZarrSource
from dseeds.io.resolution_levels import ResolutionLevel, read_resolution_levels
from dseeds.storage.slabs import slab_thickness

# The planes: what they are called, and which of (superior, anterior, right) leads across, down and to the right.
PLANES = (("axial", 0, 1, 2), ("coronal", 1, 0, 2), ("sagittal", 2, 0, 1))
LETTERS = "SAR"
# A level is fine enough if its voxels are no longer than so many pixels.
COARSEST = math.sqrt(2)
# Voxels along an axis that are read at once, and more only where chunks are longer.
TILE = 512


@dataclass(frozen=True)
class Orientation:
    """How a volume is turned to be looked at: the head is up, the patient's front is up or left, the right is left.

    Attributes
    ----------
    axes : tuple of int
        Which of the volume's axes (z, y, x) leads to the head, to the front and to the right, or back.
    flips : tuple of bool
        For each of (z, y, x), whether it is seen from its end.
    known : bool
        Whether that is known. If not, planes are seen as they are stored, the first row at the top.
    """

    axes: Triple = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    known: bool = False

    @classmethod
    def of(cls, affine: NDArray[Any] | None) -> Orientation:
        """Take it from an affine that leads from (x, y, z) to (right, anterior, superior).

        >>> import numpy as np
        >>> Orientation.of(np.diag([-1.0, -1.0, 1.0, 1.0]))
        Orientation(axes=(0, 1, 2), flips=(True, False, False), known=True)
        """
        if affine is None:
            return cls()
        found = nibabel.io_orientation(affine)
        leads = {int(towards): 2 - axis for axis, (towards, _) in enumerate(found)}
        z, y, x = (bool(direction > 0) for _, direction in found[::-1])
        return cls((leads[2], leads[1], leads[0]), (z, y, x), True)


@dataclass(frozen=True)
class View:
    """What is looked at: a box of a volume, and how large it is shown.

    Attributes
    ----------
    lo, hi : tuple of float
        The box, in voxels along (z, y, x).
    spacing : tuple of float
        Size of a voxel along (z, y, x).
    pixel : float
        Size of a pixel, in the same unit.
    """

    lo: tuple[float, float, float]
    hi: tuple[float, float, float]
    spacing: tuple[float, float, float]
    pixel: float

    @classmethod
    def whole(cls, shape: Triple, spacing: tuple[float, float, float], size: int) -> View:
        """Look at all of a volume, the longest side of which takes so many pixels or a little less."""
        longest = max(n * s for n, s in zip(shape, spacing, strict=True))
        pixel = longest / size
        # Whole pixels for a voxel, where it has several: it is seen if some have more than others.
        zoom = min(spacing) / pixel
        return cls((0.0, 0.0, 0.0), _floats(shape), spacing, min(spacing) / math.floor(zoom) if zoom >= 3 else pixel)

    def closer(self, at: Triple) -> View:
        """Look twice as closely at what lies around a voxel; short sides are seen whole."""
        longest = max((b - a) * s for a, b, s in zip(self.lo, self.hi, self.spacing, strict=True))
        lo, hi = [], []
        for a, b, size, voxel in zip(self.lo, self.hi, self.spacing, at, strict=True):
            side = min(b - a, longest / 2 / size)
            begin = min(max(voxel + 0.5 - side / 2, a), b - side)
            lo.append(begin)
            hi.append(begin + side)
        return View(_floats(lo), _floats(hi), self.spacing, self.pixel / 2)

    def pixels(self, axis: int) -> int:
        """Count the pixels along an axis."""
        return max(1, round((self.hi[axis] - self.lo[axis]) * self.spacing[axis] / self.pixel))

    def positions(self, axis: int) -> NDArray[np.float64]:
        """Give where the pixels along an axis have their middles, in voxels from the middle of the first voxel."""
        count = self.pixels(axis)
        middles = (np.arange(count) + 0.5) * ((self.hi[axis] - self.lo[axis]) / count)
        return np.asarray(self.lo[axis] + middles - 0.5, np.float64)


class Volume:
    """A volume of which planes through one voxel are read.

    Parameters
    ----------
    source : Source
        The volume.
    at : tuple of int
        The voxel (z, y, x) that the planes go through.
    channel : int
        Which channel of the source.
    """

    def __init__(self, source: Source, at: Triple, channel: int = 0) -> None:
        self.levels = read_resolution_levels(source)
        self._at, self._channel = at, channel

    def level(self, view: View) -> ResolutionLevel:
        """Choose the coarsest level that shows what the pixels of a view can show."""
        enough = [max(COARSEST * view.pixel, size) * (1 + 1e-9) for size in view.spacing]
        fine = [
            level
            for level in self.levels
            if all(f * s <= limit for f, s, limit in zip(level.factor, view.spacing, enough, strict=True))
        ]
        return max(fine, key=lambda level: math.prod(level.factor), default=self.levels[0])

    def plane(
        self,
        level: ResolutionLevel,
        axis: int,
        rows: tuple[int, NDArray[np.int64]],
        columns: tuple[int, NDArray[np.int64]],
    ) -> NDArray[Any]:
        """Read the plane across an axis at some voxels of a level.

        Parameters
        ----------
        level : Level
            One of the volume's levels.
        axis : int
            Of (z, y, x), the one that the plane lies across.
        rows, columns : (int, ndarray of int64)
            The two other axes, and the voxels along them, ascending.

        Returns
        -------
        ndarray, shape (rows, columns)
        """
        (down, at_rows), (right, at_columns) = rows, columns
        if not isinstance(level.source, ArraySource | ZarrSource):
            plane = self._planes[axis]
            return (plane if down < right else plane.T)[np.ix_(at_rows, at_columns)]
        depth = int(level.indices(axis, np.array([float(self._at[axis])]))[0])
        out = np.empty((len(at_rows), len(at_columns)), level.source.dtype)
        for some_rows in _tiles(level.source, down, at_rows):
            for some_columns in _tiles(level.source, right, at_columns):
                r, c = at_rows[some_rows], at_columns[some_columns]
                box = [slice(depth, depth + 1)] * 3
                box[down], box[right] = slice(int(r[0]), int(r[-1]) + 1), slice(int(c[0]), int(c[-1]) + 1)
                found = self._chosen(level.source.read((box[0], box[1], box[2]))).squeeze(axis)
                found = found if down < right else found.T
                out[some_rows, some_columns] = found[np.ix_(r - r[0], c - c[0])]
        return out

    @cached_property
    def _planes(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The three planes of a volume that can only be read from end to end, which is done once."""
        source, (z, y, x) = self.levels[0].source, self._at
        values = source.dtype.itemsize * (source.channels or 1)
        axial, coronal, sagittal = [], [], []
        for begin, slab in source.slabs(slab_thickness(source.shape, values)):
            volume = self._chosen(slab)
            if begin <= z < begin + len(volume):
                axial.append(volume[z - begin].copy())
            coronal.append(volume[:, y].copy())
            sagittal.append(volume[:, :, x].copy())
        return axial[0], np.concatenate(coronal), np.concatenate(sagittal)

    def _chosen(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[self._channel] if values.ndim > 3 else values


@dataclass(frozen=True)
class Section:
    """A plane of labels and an image, as it is looked at.

    Attributes
    ----------
    name : str
        What it is called.
    axis, down, right : int
        Which of (z, y, x) it lies across, and which lead down and to the right, or from there.
    labels : ndarray of int64, (rows, columns)
        The supervoxels; 0 is masked out.
    image : ndarray of float64, (rows, columns), or None
        The intensities, if there is an image.
    rows, columns : ndarray of int64
        For each pixel from top to bottom, and from left to right, which row and column it shows.
    towards : str
        The letters of the directions to the left and to the top: L, R, A, P, S, I; empty where they are not known.
    """

    name: str
    axis: int
    down: int
    right: int
    labels: NDArray[np.int64]
    image: NDArray[np.float64] | None
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    towards: str

    def shown(self, values: NDArray[Any]) -> NDArray[Any]:
        """Give a pixel for what is told of each row and column."""
        return values[np.ix_(self.rows, self.columns)]


def sections(
    labels: Volume, image: Volume | None, view: View, orientation: Orientation
) -> tuple[Section, Section, Section]:
    """Read the three planes through a voxel: axial, coronal and sagittal."""

    def section(name: str, *roles: int) -> Section:
        axis, down, right = (orientation.axes[role] for role in roles)
        level = labels.level(view)
        seen, pixels = {}, {}
        for side in (down, right):
            seen[side], pixels[side] = np.unique(level.indices(side, view.positions(side)), return_inverse=True)
            pixels[side] = pixels[side][::-1] if orientation.flips[side] else pixels[side]
        intensities = None
        if image is not None:
            other = image.level(view)
            there = {side: other.indices(side, level.positions(side, seen[side])) for side in (down, right)}
            intensities = image.plane(other, axis, (down, there[down]), (right, there[right])).astype(np.float64)
        return Section(
            name,
            axis,
            down,
            right,
            labels.plane(level, axis, (down, seen[down]), (right, seen[right])).astype(np.int64),
            intensities,
            pixels[down],
            pixels[right],
            LETTERS[roles[2]] + LETTERS[roles[1]] if orientation.known else "",
        )

    axial, coronal, sagittal = (section(*plane) for plane in PLANES)
    return axial, coronal, sagittal


def _tiles(source: Source, axis: int, indices: NDArray[np.int64]) -> Iterator[slice]:
    """Cut ascending voxels along an axis into runs that lie in the same chunks."""
    chunk = source.chunks[axis] if source.chunks else 1
    # Where chunks lie between those that are asked for, these are read one by one.
    sparse = len(indices) > 1 and indices[-1] - indices[0] > chunk * (len(indices) - 1)
    tile = indices // (chunk if sparse else chunk * max(1, TILE // chunk))
    starts = np.flatnonzero(np.diff(tile, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(indices)], strict=True):
        yield slice(int(begin), int(end))


def middle(shape: Triple) -> Triple:
    """Give the voxel in the middle."""
    return triple(n // 2 for n in shape)


def _floats(values: Any) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x
