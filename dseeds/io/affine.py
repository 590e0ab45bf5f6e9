"""Where a volume lies: affines from voxels (x, y, z) to millimetres, as NIfTI has them.

Their axes point to the right, to the front and upwards. OME-NGFF 0.5 knows neither rotations nor axes that are turned
round, so an image that this program writes in OME-Zarr bears its affine in an attribute of our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dseeds.io.source import Spacing

# The entry of the attribute ``dseeds`` of a group.
AFFINE = "affine"
# How far the sizes of voxels may differ that a group tells in two ways.
_TOLERANCE = 1e-3


def is_affine(affine: np.ndarray) -> bool:
    """Tell whether a matrix is an affine in space, and can be turned round.

    >>> is_affine(np.eye(4)), is_affine(np.zeros((4, 4)))
    (True, False)
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not (affine[3] == (0, 0, 0, 1)).all():
        return False
    volume = np.linalg.det(affine[:3, :3])
    return bool(np.isfinite(volume) and volume != 0)


def voxel_sizes(affine: np.ndarray) -> Spacing:
    """Give the size of a voxel along z, y, x in millimetres.

    >>> voxel_sizes(np.diag([-0.5, 0.5, 2.0, 1.0]))
    (2.0, 0.5, 0.5)
    """
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def with_spacing(affine: np.ndarray | None, spacing: Sequence[float] | None) -> np.ndarray | None:
    """Give an affine that has its axes and its origin, and voxels of another size; itself where they have that size.

    >>> with_spacing(np.diag([-0.5, 0.5, 2.0, 1.0]), (3.0, 1.0, 1.0)).diagonal().tolist()
    [-1.0, 1.0, 3.0, 1.0]
    """
    if affine is None or spacing is None or np.allclose(voxel_sizes(affine), spacing, rtol=_TOLERANCE, atol=0):
        return affine
    found = affine.copy()
    found[:3, :3] *= np.divide(spacing, voxel_sizes(affine))[::-1]
    return found


def affine_attributes(affine: np.ndarray | None) -> dict[str, Any]:
    """Give what a group's attribute ``dseeds`` says of an affine: nothing if there is none."""
    return {} if affine is None else {AFFINE: np.asarray(affine, np.float64).tolist()}


def affine_from_attributes(attribute: Any) -> np.ndarray | None:
    """Read an affine back; None where there is none, or nonsense."""
    if not isinstance(attribute, Mapping):
        return None
    try:
        affine = np.array(attribute[AFFINE], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return affine if is_affine(affine) else None


def translation(affine: np.ndarray | None) -> Spacing | None:
    """Give where the first voxel's centre lies along z, y, x, if the axes are those of space; None if they are not.

    >>> translation(np.array([[0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 2.0, 30], [0, 0, 0, 1]]))
    (30.0, -20.0, 10.0)
    """
    if affine is None or not (np.diag(affine)[:3] > 0).all() or np.count_nonzero(affine[:3, :3]) > 3:
        return None
    x, y, z = (float(along) for along in affine[:3, 3])
    return z, y, x


def from_lps(direction: np.ndarray, spacing: Spacing, origin: np.ndarray) -> np.ndarray | None:
    """Give the affine of an image of ITK's, whose axes point to the left and to the back; None if there is none.

    Parameters
    ----------
    direction : ndarray, (3, 3)
        The directions of x, y and z as its columns.
    spacing : tuple of float
        The size of a voxel along z, y, x in millimetres.
    origin : ndarray, (3,)
        The place of the first voxel's centre in millimetres.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction) * spacing[::-1]
    affine[:3, 3] = origin
    affine[:2] = 0 - affine[:2]
    return affine if is_affine(affine) else None


def to_lps(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give direction and origin as ITK has them; see `from_lps`."""
    turned = affine.copy()
    turned[:2] = 0 - turned[:2]
    return turned[:3, :3] / np.linalg.norm(turned[:3, :3], axis=0), turned[:3, 3]
