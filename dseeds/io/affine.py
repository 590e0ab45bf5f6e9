"""The position of a volume in space: affines from voxels (x, y, z) to millimetres, as in NIfTI.

The axes of space point to the right, to the front and upwards (RAS+). OME-NGFF 0.5 has neither rotations nor reversed
axes, so OME-Zarr images of this program keep their affine in an attribute of their own.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dseeds.core.formatting import format_spacing
from dseeds.io.ome_metadata import Frame
from dseeds.io.source import NiftiForms, Shape, Spacing

# The entries of the attribute ``dseeds`` of a group.
_AFFINE = "affine"
_FORMS = "nifti"
# How far a corner may be from that of another affine to be in the same place, in voxels.
_SAME_CORNER = 0.1
# How far two sizes of the same voxels may differ, as a fraction.
_SAME_SIZE = 1e-3
# The cosine of the angle between axes at right angles, with the rounding of float32.
_RIGHT_ANGLE = 1e-4


def is_affine(affine: np.ndarray) -> bool:
    """Return whether a matrix is an affine of space that can be inverted."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not (affine[3] == (0, 0, 0, 1)).all():
        return False
    volume = np.linalg.det(affine[:3, :3])
    return bool(np.isfinite(volume) and volume != 0)


def has_shear(affine: np.ndarray) -> bool:
    """Return whether the axes of an affine are not at right angles, as those of slices from a tilted gantry.

    >>> has_shear(np.diag([-0.5, 0.5, 2.0, 1.0]))
    False
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _RIGHT_ANGLE)


def voxel_sizes(affine: np.ndarray) -> Spacing:
    """Return the size of a voxel along z, y, x in millimetres."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def with_spacing(affine: np.ndarray | None, spacing: Sequence[float] | None) -> np.ndarray | None:
    """Return an affine with the same axes and origin for voxels of another size; itself if they have that size.

    >>> with_spacing(np.diag([-0.5, 0.5, 2.0, 1.0]), (3.0, 1.0, 1.0)).diagonal().tolist()
    [-1.0, 1.0, 3.0, 1.0]
    """
    if affine is None or spacing is None or np.allclose(voxel_sizes(affine), spacing, rtol=_SAME_SIZE, atol=0):
        return affine
    scaled = affine.copy()
    scaled[:3, :3] *= np.divide(spacing, voxel_sizes(affine))[::-1]
    return scaled


def affine_attributes(affine: np.ndarray | None, forms: NiftiForms | None = None) -> dict[str, Any]:
    """Return the part of a group's attribute ``dseeds`` that stores an affine and the forms of NIfTI; may be empty."""
    if affine is None:
        return {}
    attributes: dict[str, Any] = {_AFFINE: np.asarray(affine, np.float64).tolist()}
    if forms is not None:
        codes = {"qform_code": forms.qform_code, "sform_code": forms.sform_code}
        matrix = {} if forms.qform is None else {"qform": np.asarray(forms.qform, np.float64).tolist()}
        attributes[_FORMS] = {**codes, **matrix}
    return attributes


def affine_from_attributes(attribute: Any) -> np.ndarray | None:
    """Read an affine back; None if it is missing or makes no sense."""
    if not isinstance(attribute, Mapping):
        return None
    return _read_matrix(attribute, _AFFINE)


def forms_from_attributes(attribute: Any) -> NiftiForms | None:
    """Read the forms of NIfTI back; None if they are missing or make no sense."""
    try:
        forms = attribute[_FORMS]
        codes = operator.index(forms["qform_code"]), operator.index(forms["sform_code"])
    except (LookupError, TypeError):
        return None
    # NIfTI keeps codes in 16 bits.
    return NiftiForms(*codes, _read_matrix(forms, "qform")) if 0 <= min(codes) <= max(codes) < 1 << 15 else None


def _read_matrix(attribute: Mapping[str, Any], name: str) -> np.ndarray | None:
    try:
        affine = np.array(attribute[name], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return affine if is_affine(affine) else None


def describe_forms(affine: np.ndarray | None, forms: NiftiForms | None, shape: Shape) -> tuple[str, ...]:
    """Return a note if a volume of a shape (z, y, x) lies elsewhere by the qform than by the affine; else nothing.

    A qform of code 0 has only sizes of voxels to compare.
    """
    if affine is None or forms is None or forms.qform is None:
        return ()
    if forms.qform_code == 0:
        return describe_sizes(voxel_sizes(forms.qform), affine, "pixdim, ")
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[::-1]), [1]))).T
    distance = float(np.abs((np.linalg.solve(affine, forms.qform) - np.eye(4)) @ corners).max())
    if distance <= _SAME_CORNER:
        return ()
    return (
        f"its qform and sform differ (a corner is {distance:.3g} voxels away): the sform is taken, as by nibabel; "
        f"programs that are based on ITK may take the other",
    )


def describe_sizes(spacing: Spacing, affine: np.ndarray, field: str = "") -> tuple[str, ...]:
    """Return a note if voxels of sizes along z, y, x, which a header has in a `field`, contradict an affine."""
    if has_sizes(affine, spacing):
        return ()
    return (
        f"its voxel sizes ({field}{format_spacing(spacing)} along z, y, x) contradict its affine "
        f"({format_spacing(voxel_sizes(affine))}): the affine is taken",
    )


def has_sizes(affine: np.ndarray, spacing: Spacing) -> bool:
    """Return whether voxels of an affine have sizes along z, y, x; sheared slices may be measured at right angles."""
    if np.allclose(spacing, voxel_sizes(affine), rtol=_SAME_SIZE, atol=0):
        return True
    return has_shear(affine) and math.isclose(math.prod(spacing), abs(np.linalg.det(affine)), rel_tol=_SAME_SIZE)


def translation(affine: np.ndarray | None) -> Spacing | None:
    """Return the position of the first voxel's centre along z, y, x; None unless the axes are those of space.

    >>> translation(np.array([[0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 2.0, 30], [0, 0, 0, 1]]))
    (30.0, -20.0, 10.0)
    """
    if affine is None or not (np.diag(affine)[:3] > 0).all() or np.count_nonzero(affine[:3, :3]) > 3:
        return None
    x, y, z = (float(along) for along in affine[:3, 3])
    return z, y, x


def frame_matrix(frame: Frame) -> np.ndarray | None:
    """Return the affine of a frame, from voxels (x, y, z) to millimetres; None unless all units are lengths.

    >>> frame_matrix(Frame((2.0, 0.5, 0.5), (30.0, -20.0, 10.0), ("millimeter",) * 3))[:3].tolist()
    [[0.5, 0.0, 0.0, 10.0], [0.0, 0.5, 0.0, -20.0], [0.0, 0.0, 2.0, 30.0]]
    """
    spacing = frame.spacing_in_mm
    if spacing is None:
        return None
    matrix = np.diag([*spacing[::-1], 1.0])
    matrix[:3, 3] = np.multiply(frame.translation, np.divide(spacing, frame.spacing))[::-1]
    return matrix


def from_lps(direction: np.ndarray, spacing: Spacing, origin: np.ndarray) -> np.ndarray | None:
    """Return the affine of an image of ITK, where x and y point to the left and to the back (LPS); None if singular.

    `direction`, (3, 3), has the directions of x, y and z as its columns; `spacing` is along z, y, x, and `origin` is
    the position of the first voxel's centre, both in millimetres.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction) * spacing[::-1]
    affine[:3, 3] = origin
    affine[:2] = 0 - affine[:2]
    return affine if is_affine(affine) else None


def to_lps(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return direction and origin for ITK; see `from_lps`."""
    lps = affine.copy()
    lps[:2] = 0 - lps[:2]
    return lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0), lps[:3, 3]
