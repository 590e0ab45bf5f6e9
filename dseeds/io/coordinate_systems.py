"""The transformations of OME-NGFF 0.6 (RFC-5): from the voxels of an array to a coordinate system with named axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dseeds.io.axes import SpaceAxes
from dseeds.io.source import Spacing, shorten

# The directions of an axis with an anatomical orientation (RFC-4), along the axes of NIfTI: right, front, up.
_DIRECTIONS = {
    "left-to-right": (0, 1),
    "right-to-left": (0, -1),
    "posterior-to-anterior": (1, 1),
    "anterior-to-posterior": (1, -1),
    "inferior-to-superior": (2, 1),
    "superior-to-inferior": (2, -1),
}


class NoAffine(ValueError):
    """A transformation is not linear, or not one that is read."""


@dataclass(frozen=True)
class PlacedArray:
    """The position of an array's voxels (z, y, x), in the units of its coordinate system.

    `matrix`, (3, 4), leads from voxels (z, y, x) to the axes z, y, x of the system; `directions` say which way these
    point, if the metadata do.
    """

    matrix: np.ndarray
    directions: tuple[tuple[int, int], ...] | None

    @property
    def spacing(self) -> Spacing:
        """The size of a voxel."""
        z, y, x = (float(size) for size in np.linalg.norm(self.matrix[:, :3], axis=0))
        return z, y, x

    @property
    def translation(self) -> Spacing:
        """The position of the first voxel's centre."""
        z, y, x = (float(along) for along in self.matrix[:, 3])
        return z, y, x

    def affine(self, per_mm: float) -> np.ndarray | None:
        """Return the affine from voxels (x, y, z) to millimetres, as in NIfTI; None if spacing and translation do."""
        linear = self.matrix[:, :3]
        is_plain = np.count_nonzero(linear) == 3 and bool((np.diag(linear) > 0).all())
        if is_plain and self.directions is None:
            return None
        affine = np.eye(4)
        for row, (axis, sign) in enumerate(self.directions or ((2, 1), (1, 1), (0, 1))):
            affine[axis] = np.array([*self.matrix[row, 2::-1], self.matrix[row, 3]]) * sign / per_mm
        return affine


@dataclass(frozen=True)
class SystemTransformations:
    """The axes of an array's coordinate system, and the matrix, (n + 1, n + 1), from its voxels to it."""

    axes: Sequence[Mapping[str, Any]]
    matrix: np.ndarray

    @classmethod
    def of(cls, image: Mapping[str, Any], dataset: Mapping[str, Any], where: str) -> SystemTransformations:
        """Read those of an array: its own, and after them the only one of the image, if there is one."""
        systems = {str(system["name"]): system["axes"] for system in image["coordinateSystems"]}
        steps = list(dataset.get("coordinateTransformations", ()))
        further = list(image.get("coordinateTransformations", ()))
        if not steps:
            raise NoAffine(f"{where} does not say where an array lies: correct its OME metadata")
        if len(steps) > 1 or len(further) > 1:
            raise NoAffine(
                f"{where} places an array in {max(len(steps), len(further))} coordinate systems: one is read, so leave "
                f"the others out of its OME metadata"
            )
        if any(_system_name(step.get("input")) != _system_name(steps[0]["output"]) for step in further):
            raise NoAffine(
                f"{where} has a transformation that does not follow that of its arrays: correct its OME metadata, or "
                f"leave the transformation out"
            )
        steps += further
        axes = systems[_system_name(steps[-1]["output"])]
        matrix = np.eye(len(axes) + 1)
        for step in steps:
            matrix = _matrix(step, len(axes), where) @ matrix
        return cls(axes, matrix)

    def place(self, space: SpaceAxes) -> PlacedArray | None:
        """Return the position of the voxels along z, y and x; None if it makes no sense."""
        present = [n for n in space if n is not None]
        others = [n for n in range(len(self.axes)) if n not in present]
        if np.any(self.matrix[np.ix_(present, others)]) or not np.isfinite(self.matrix).all():
            return None
        inner = self.matrix[np.ix_(present, [*present, len(self.axes)])]
        if abs(np.linalg.det(inner[:, :-1])) == 0:
            return None
        matrix = np.zeros((3, 4))
        known = [row for row, n in enumerate(space) if n is not None]
        matrix[np.ix_(known, [*known, 3])] = inner
        for row, n in enumerate(space):
            if n is None:
                # A single slice is taken to be as thick as its pixels are wide.
                matrix[row, row] = float(np.linalg.norm(inner[:, :-1], axis=0).min())
        return PlacedArray(matrix, self._directions(space))

    def _directions(self, space: SpaceAxes) -> tuple[tuple[int, int], ...] | None:
        found = []
        for n in space:
            orientation = None if n is None else self.axes[n].get("orientation")
            value = orientation.get("value") if isinstance(orientation, Mapping) else orientation
            found.append(_DIRECTIONS.get(str(value)))
        known = [direction for direction in found if direction is not None]
        return tuple(known) if len({axis for axis, _ in known}) == 3 else None


def _system_name(place: Any) -> str:
    """Return the name of a coordinate system, which drafts of version 0.6 write as a text."""
    return str(place["name"] if isinstance(place, Mapping) else place)


def _matrix(step: Mapping[str, Any], count: int, where: str) -> np.ndarray:
    """Return the matrix, (count + 1, count + 1), of one transformation.

    >>> _matrix({"type": "scale", "scale": [2, 3]}, 2, "a.zarr").diagonal().tolist()
    [2.0, 3.0, 1.0]
    """
    matrix, kind = np.eye(count + 1), str(step["type"])
    if kind == "sequence":
        for inner in step["transformations"]:
            matrix = _matrix(inner, count, where) @ matrix
    elif kind == "scale":
        matrix[:count, :count] = np.diag(_numbers(step, kind, (count,)))
    elif kind == "translation":
        matrix[:count, count] = _numbers(step, kind, (count,))
    elif kind == "rotation":
        matrix[:count, :count] = _numbers(step, kind, (count, count))
    elif kind == "affine":
        matrix[:count] = _numbers(step, kind, (count, count + 1))
    elif kind != "identity":
        raise NoAffine(
            f"{where} has a transformation of type {shorten(kind, 40)!r}, which is not read: resample the image to a "
            f"grid that scale, translation, rotation or affine describe"
        )
    return matrix


def _numbers(step: Mapping[str, Any], kind: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.array(step[kind], np.float64)
    if values.size == math.prod(shape):
        values = values.reshape(shape)
    if values.shape != shape:
        raise ValueError(f"a {kind} does not fit the number of axes")
    return values
