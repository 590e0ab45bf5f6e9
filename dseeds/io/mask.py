"""Masks: which voxels of an image take part."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import nibabel
import numpy as np
from numpy.typing import NDArray

from dseeds.io.image import Image
from dseeds.io.open import open_voxels
from dseeds.io.source import IndexBox, Shape, Source, SourceQuery

# How far a corner of the mask may be from the image's, in voxels of the mask: half of one, but for rounding.
_ASTRAY = 0.501


class Reader(Protocol):
    """Whatever boxes of a mask can be read from."""

    def read(self, box: IndexBox) -> np.ndarray:
        """Read the voxels in a box (z, y, x) of the mask's own."""


@dataclass(frozen=True)
class ResampledMask:
    """A mask that may be coarser than its image, at the image's resolution. It pickles if its reader does.

    Parameters
    ----------
    reader : Reader
        Of the mask's own voxels, in which 0 and NaN are outside, and all else inside.
    own, shape : tuple of int
        The mask's own shape and the image's, along z, y, x.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> mask = ResampledMask(ArraySource(np.array([[[0, 1, 0]]])), (1, 1, 3), (1, 1, 7))
    >>> mask.read((slice(0, 1), slice(0, 1), slice(0, 7))).astype(int)
    array([[[0, 0, 1, 1, 1, 0, 0]]])
    """

    reader: Reader
    own: Shape
    shape: Shape

    def read(self, box: IndexBox) -> NDArray[np.bool_]:
        """Tell which voxels in a box (z, y, x) of the image are inside."""
        along = [_own(side, n, m) for side, n, m in zip(box, self.shape, self.own, strict=True)]
        z, y, x = (slice(int(places[0]), int(places[-1]) + 1) for places in along)
        values = inside(self.reader.read((z, y, x)))
        if self.own == self.shape:
            return values
        return values[np.ix_(*(places - places[0] for places in along))]


@dataclass(frozen=True, eq=False)
class Mask:
    """Which voxels of an image take part, at its resolution. Every mask pickles.

    Parameters
    ----------
    source : Source
        The mask's own voxels; its shape may be smaller than the image's.
    shape : tuple of int
        The image's, along z, y, x.
    """

    source: Source
    shape: Shape

    @property
    def own(self) -> Shape:
        """The mask's own shape along z, y, x."""
        return self.source.shape

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return self.source.name

    @property
    def path(self) -> str | None:
        """See `Source.path`."""
        return self.source.path

    @property
    def readable_by_workers(self) -> bool:
        """See `Source.readable_by_workers`. If not, copy the `slabs` to where they can, and read it `through` that."""
        return self.source.readable_by_workers

    @property
    def identity(self) -> dict[str, Any]:
        """See `Source.identity`."""
        return self.source.identity

    def reopened(self) -> Mask:
        """See `Source.reopened`."""
        return Mask(self.source.reopened(), self.shape)

    def read(self, box: IndexBox) -> NDArray[np.bool_]:
        """Tell which voxels in a box (z, y, x) of the image are inside."""
        return self.through(self.source).read(box)

    def slabs(self, thickness: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Read the mask's own voxels once, from top to bottom; see `Source.slabs`."""
        for z0, values in self.source.slabs(thickness):
            yield z0, inside(values)

    def through(self, reader: Reader) -> ResampledMask:
        """Give the same mask, read from a copy of its own voxels."""
        return ResampledMask(reader, self.own, self.shape)


def open_mask(mask: object, image: Image) -> Mask:
    """Open a mask for an image: voxels that are neither 0 nor NaN are inside.

    Parameters
    ----------
    mask : source
        What `dseeds.io.open_source` takes, truth values and labels too. It covers what the image covers, in as many
        voxels or fewer: voxel i of n is inside if voxel ``(2 i + 1) m // (2 n)`` of the mask's m is.
    image : Image
        The image.

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, TypeError
        As `dseeds.io.open_source`.
    ValueError
        If the mask cannot be read, is finer than the image, or lies elsewhere as far as both say where.

    Examples
    --------
    >>> from dseeds.io import open_image
    >>> image = open_image(np.zeros((4, 6, 6)))
    >>> mask = open_mask(np.ones((2, 3, 6), bool), image)
    >>> mask.read((slice(1, 3), slice(0, 6), slice(0, 2))).shape
    (2, 6, 2)
    """
    [source] = open_voxels(mask, SourceQuery(purpose="mask"))
    where = f"the mask {source.path or source.name}"
    if any(m > n for m, n in zip(source.shape, image.shape, strict=True)):
        raise ValueError(
            f"{where} has shape {source.shape} and the image has shape {image.shape}: "
            f"a mask may be coarser than the image but not finer, so resample it"
        )
    if source.affine is not None and image.affine is not None:
        _require_same_place(where, source.affine, source.shape, image.affine, image.shape)
    return Mask(source, image.shape)


def inside(values: np.ndarray) -> NDArray[np.bool_]:
    """Tell which values of a mask are inside: those that are neither 0 nor NaN.

    >>> inside(np.array([0, 2, -1, np.nan]))
    array([False,  True,  True, False])
    """
    return np.asarray((values != 0) & (values == values))


def _own(side: slice, length: int, own: int) -> NDArray[np.int64]:
    """Give the places in the mask of the voxels that a side of a box spans.

    >>> _own(slice(0, 7), 7, 3)
    array([0, 0, 1, 1, 1, 2, 2])
    """
    start, stop, _ = side.indices(length)
    return (2 * np.arange(start, stop) + 1) * own // (2 * length)


def _require_same_place(where: str, mask: np.ndarray, own: Shape, image: np.ndarray, shape: Shape) -> None:
    """Refuse a mask whose corners are not the image's."""
    away = np.abs(np.linalg.solve(mask[:3, :3], _corners(image, shape) - _corners(mask, own))).max()
    if away <= _ASTRAY:
        return
    axes = ["".join(map(str, nibabel.aff2axcodes(affine))) for affine in (mask, image)]
    if axes[0] != axes[1]:
        raise ValueError(
            f"{where} has axes (x, y, z) that point to {axes[0]} and the image's point to {axes[1]}: "
            f"resample the mask to the image's voxels"
        )
    raise ValueError(
        f"{where} does not cover what the image covers, a corner is {away:.3g} of its voxels away: "
        f"resample the mask to the image's field of view"
    )


def _corners(affine: np.ndarray, shape: Shape) -> np.ndarray:
    """Give where the outermost voxels' outer corners lie, (3, 8)."""
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape[::-1])))).T
    return np.asarray(affine[:3, :3] @ corners + affine[:3, 3:])
