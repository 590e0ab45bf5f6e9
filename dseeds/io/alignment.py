"""Whether two volumes lie in the same place; one whose axes are only swapped or reversed is turned, without resampling.

Everything that reads two volumes together, such as channels, a mask, labels or a true segmentation, is checked here.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import nibabel
import numpy as np
from typing_extensions import override

from dseeds.core.forks import cached_property
from dseeds.core.formatting import format_length, format_spacing
from dseeds.io.affine import frame_matrix, voxel_sizes
from dseeds.io.formats.ome_zarr import ZarrSource
from dseeds.io.ome_metadata import Frame
from dseeds.io.source import IndexBox, Kind, NiftiForms, Shape, Source, SourceBase, Spacing, slab_ranges

# How far a corner of a volume may be from that of another with as many voxels, in voxels: files round, or store text.
_SAME_GRID = 0.1
# The same for a coarser volume, whose voxels may be averages or picked ones: half a voxel, and rounding.
_SAME_FIELD = 0.501
# How far the sizes of voxels may differ, as a fraction, where nothing else is known.
_SAME_SIZE = 1e-3
# Angles below this, in degrees, are rounding.
_LEAST_ANGLE = 0.1

Axes: TypeAlias = tuple[int, int, int]
Flips: TypeAlias = tuple[bool, bool, bool]


class Grid3D(NamedTuple):
    """What is known about the voxels of a volume: their number, size and position. `name` is for messages."""

    name: str
    shape: Shape
    spacing: Spacing | None
    affine: np.ndarray | None
    frame: Frame | None

    @classmethod
    def of(cls, source: Source, name: str) -> Grid3D:
        """Return the grid of a source."""
        frame = source.frame if isinstance(source, ZarrSource) else None
        return cls(name, source.shape, source.spacing, source.affine, frame)


@dataclass(frozen=True, eq=False)
class TurnedSource(SourceBase):
    """A volume whose axes are swapped and reversed, so that they run as those of another.

    Attributes
    ----------
    source : Source
        The volume as it is stored.
    axes : tuple of int
        Its axes, numbered along (z, y, x), that become z, y and x.
    flips : tuple of bool
        Whether z, y and x are reversed.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> turned = TurnedSource(ArraySource(np.arange(6).reshape(1, 2, 3)), (0, 2, 1), (False, True, False))
    >>> turned.read((slice(0, 1), slice(0, 2), slice(0, 2))).tolist()
    [[[2, 5], [1, 4]]]
    """

    source: Source
    axes: Axes
    flips: Flips

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_unpacked"}

    @property
    @override
    def name(self) -> str:
        return self.source.name

    @property
    @override
    def kind(self) -> Kind:
        return self.source.kind

    @property
    @override
    def path(self) -> str | None:
        return self.source.path

    @property
    @override
    def shape(self) -> Shape:
        return self._turned(self.source.shape)

    @property
    @override
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    @override
    def spacing(self) -> Spacing | None:
        return None if self.source.spacing is None else self._turned(self.source.spacing)

    @property
    @override
    def channels(self) -> int | None:
        return self.source.channels

    @property
    @override
    def affine(self) -> np.ndarray | None:
        affine = self.source.affine
        return None if affine is None else turn_affine(affine, self.source.shape, self.axes, self.flips)

    @property
    def forms(self) -> NiftiForms | None:  # type: ignore[override]
        """The forms of the stored volume, turned."""
        forms = self.source.forms
        return forms and forms.mapped(lambda form: turn_affine(form, self.source.shape, self.axes, self.flips))

    @property
    @override
    def labelled(self) -> bool:
        return self.source.labelled

    @property
    @override
    def chunks(self) -> Shape | None:
        return None if self.source.chunks is None else self._turned(self.source.chunks)

    @property
    @override
    def shards(self) -> Shape | None:
        return None if self.source.shards is None else self._turned(self.source.shards)

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The notes of the stored volume."""
        return self.source.notes

    @property
    @override
    def readable_by_workers(self) -> bool:
        return self.source.readable_by_workers

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {**self.source.identity, "turned": [list(self.axes), list(self.flips)]}

    @override
    def reopened(self) -> TurnedSource:
        return replace(self, source=self.source.reopened())

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        own = [slice(None)] * 3
        for axis, flip, side, size in zip(self.axes, self.flips, box, self.shape, strict=True):
            begin, end, _ = side.indices(size)
            own[axis] = slice(size - end, size - begin) if flip else slice(begin, end)
        return self._turn_voxels(self.source.read((own[0], own[1], own[2])))

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        if self.readable_by_workers:
            yield from super().slabs(thickness)
        elif self.axes[0] == 0 and not self.flips[0]:
            for z0, slab in self.source.slabs(thickness):
                yield z0, self._turn_voxels(slab)
        else:
            for z0, z1 in slab_ranges(self.shape[0], thickness):
                yield z0, self._unpacked[..., z0:z1, :, :]

    @cached_property
    def _unpacked(self) -> np.ndarray:
        """The turned voxels of a source that can only be read from top to bottom, in a file without a name."""
        channels = () if self.channels is None else (self.channels,)
        with tempfile.TemporaryFile(prefix="dseeds-") as file:
            voxels = np.memmap(file, self.dtype, "w+", shape=(*channels, *self.source.shape))
        depth = 0
        for _, slab in self.source.slabs(64):
            voxels[..., depth : depth + slab.shape[-3], :, :] = slab
            depth += slab.shape[-3]
        return self._turn_voxels(voxels)

    def _turn_voxels(self, values: np.ndarray) -> np.ndarray:
        before = values.ndim - 3
        turned = values.transpose(*range(before), *(before + axis for axis in self.axes))
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[..., z, y, x]

    def _turned(self, along: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        return along[self.axes[0]], along[self.axes[1]], along[self.axes[2]]


def turn_affine(affine: np.ndarray, shape: Shape, axes: Axes, flips: Flips) -> np.ndarray:
    """Return the affine of a volume of an affine and a shape (z, y, x) after its axes were turned."""
    # From the turned voxel (x, y, z) to the stored one.
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[2 - old, 2 - new] = -1 if flip else 1
        turn[2 - old, 3] = shape[old] - 1 if flip else 0
    return np.asarray(affine @ turn)


def align(source: Source, name: str, reference: Grid3D, *, coarser: bool = False) -> Source:
    """Return a volume on the grid of a reference: as it is, or turned, but never resampled.

    What is not known of either is not compared. With `coarser`, fewer voxels may cover the same field of view: by a
    whole factor along each axis, see `coarsening_factors`.
    Raises a ValueError that states how the grids differ.
    """
    grid = Grid3D.of(source, name)
    matrices = _matrices(grid, reference)
    if matrices is None:
        _require_same_shape(grid, reference, coarser)
        _require_same_size(grid, reference, coarser)
        return source
    own, other = matrices
    axes, flips = _relative_orientation(own, other)
    is_turned = axes != (0, 1, 2) or any(flips)
    if is_turned:
        own = turn_affine(own, source.shape, axes, flips)
    turned = TurnedSource(source, axes, flips) if is_turned else source
    _require_same_shape(grid._replace(shape=turned.shape), reference, coarser)
    coarser = coarser and turned.shape != reference.shape
    distance = np.abs(
        np.linalg.solve(own[:3, :3], _corners(other, reference.shape) - _corners(own, turned.shape))
    ).max()
    is_size_equal = coarser or np.allclose(voxel_sizes(own), voxel_sizes(other), rtol=_SAME_SIZE, atol=0)
    if distance > (_SAME_FIELD if coarser else _SAME_GRID) or not is_size_equal:
        raise ValueError(_describe_difference(grid, reference, own, other, float(distance), coarser))
    return turned


def _matrices(grid: Grid3D, reference: Grid3D) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the affines of both volumes in one space; None if they are not known, or not of the same space."""
    if grid.affine is not None and reference.affine is not None:
        return grid.affine, reference.affine
    # OME-Zarr does not say which way its axes point, so that its positions say nothing beside an affine.
    if grid.affine is None and reference.affine is None and grid.frame is not None and reference.frame is not None:
        own, other = frame_matrix(grid.frame), frame_matrix(reference.frame)
        if own is not None and other is not None:
            return own, other
    return None


def _relative_orientation(own: np.ndarray, other: np.ndarray) -> tuple[Axes, Flips]:
    """Return the axes and flips, along (z, y, x), that bring a volume closest to the orientation of another."""
    relative = np.eye(4)
    # Without the sizes of voxels, for a coarser volume may have others.
    relative[:3, :3] = np.linalg.solve(_directions(other), _directions(own))
    orientation = nibabel.io_orientation(relative)
    axes, flips = [0, 0, 0], [False, False, False]
    for old, (new, sign) in enumerate(orientation):
        axes[2 - int(new)], flips[2 - int(new)] = 2 - old, bool(sign < 0)
    return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])


def _directions(affine: np.ndarray) -> np.ndarray:
    return np.asarray(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))


def _corners(affine: np.ndarray, shape: Shape) -> np.ndarray:
    """Return the positions of the volume's eight corners, (3, 8)."""
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape[::-1])))).T
    return np.asarray(affine[:3, :3] @ corners + affine[:3, 3:])


def coarsening_factors(shape: Shape, coarser: Shape) -> Shape | None:
    """Return how many voxels of a volume a voxel of a coarser one measures along (z, y, x); None unless all are whole.

    Blocks that are not whole at the end of an axis are either kept along all axes or left out along all of them.

    >>> coarsening_factors((40, 48, 57), (40, 24, 19)), coarsening_factors((5, 9, 9), (3, 5, 5))
    ((1, 2, 3), (2, 2, 2))
    >>> coarsening_factors((40, 48, 56), (39, 48, 56)) is None
    True
    """
    pairs = list(zip(shape, coarser, strict=True))
    if any(m > n for n, m in pairs):
        return None
    kept = [-(-n // m) for n, m in pairs]
    if all((m - 1) * f < n for f, (n, m) in zip(kept, pairs, strict=True)):
        return kept[0], kept[1], kept[2]
    left = [n // m for n, m in pairs]
    if all(n < (m + 1) * f for f, (n, m) in zip(left, pairs, strict=True)):
        return left[0], left[1], left[2]
    return None


def _require_same_shape(grid: Grid3D, reference: Grid3D, coarser: bool) -> None:
    if coarser and coarsening_factors(reference.shape, grid.shape) is None:
        raise ValueError(
            f"{grid.name} has shape {grid.shape} and {reference.name} has shape {reference.shape}: {grid.name} may be "
            f"coarser than {reference.name} but not finer, by one whole factor along each axis, so resample it"
        )
    if not coarser and grid.shape != reference.shape:
        raise ValueError(
            f"{grid.name} has the shape {grid.shape}, but {reference.name} has {reference.shape}, along (z, y, x): "
            f"they must be the same, so resample one of them"
        )


def _require_same_size(grid: Grid3D, reference: Grid3D, coarser: bool) -> None:
    sizes = (grid.spacing, reference.spacing)
    if coarser or sizes[0] is None or sizes[1] is None or np.allclose(sizes[0], sizes[1], rtol=_SAME_SIZE, atol=0):
        return
    raise ValueError(
        f"{reference.name} has voxels of {format_spacing(sizes[1])} and {grid.name} of {format_spacing(sizes[0])}: "
        f"they must agree, so resample or correct one of them"
    )


def _describe_difference(
    grid: Grid3D, reference: Grid3D, own: np.ndarray, other: np.ndarray, distance: float, coarser: bool
) -> str:
    """Return the message about volumes in different places, of which the first has been turned already."""
    cosines = np.clip(np.sum(_directions(own) * _directions(other), axis=0), -1, 1)
    angle = float(np.degrees(np.arccos(cosines.min())))
    sizes = voxel_sizes(own), voxel_sizes(other)
    if angle > _LEAST_ANGLE:
        difference = f"the axes differ by {angle:.3g} degrees"
    elif not coarser and not np.allclose(*sizes, rtol=_SAME_SIZE, atol=0):
        difference = f"the voxels measure {format_spacing(sizes[0])} and {format_spacing(sizes[1])}, along (z, y, x)"
    else:
        away = np.linalg.norm(own[:3, 3] - other[:3, 3])
        difference = f"the first voxels are {format_length(float(away))} apart"
    if coarser:
        return (
            f"{grid.name} does not cover what {reference.name} covers, a corner is {distance:.3g} of its voxels away "
            f"({difference}): resample the mask to the image's field of view"
        )
    return (
        f"{reference.name} and {grid.name} lie in different places or orientations ({difference}; a corner is "
        f"{distance:.3g} voxels away): they must agree, so resample or correct one of them"
    )
