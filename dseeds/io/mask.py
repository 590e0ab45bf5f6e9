"""Masks: the voxels of an image that take part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dseeds.core.mask_blocks import MaskBlocks
from dseeds.io.alignment import align, coarsening_factors
from dseeds.io.image import Image
from dseeds.io.open import open_voxels
from dseeds.io.source import IndexBox, Shape, Source, SourceQuery
from dseeds.storage.slabs import slab_thickness


class Reader(Protocol):
    """A reader of a mask's own voxels: 0 and NaN are outside, all others inside."""

    def read(self, box: IndexBox) -> np.ndarray:
        """Read the mask's voxels in a box (z, y, x), in its own resolution."""


@dataclass(frozen=True)
class ResampledMask:
    """A mask, which may be coarser than its image, in the image's resolution. It pickles if its reader does.

    Attributes
    ----------
    reader : Reader
        Reads the mask's own voxels; 0 and NaN are outside, all others inside.
    own, shape : tuple of int
        The mask's own shape and the image's, along z, y, x.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> mask = ResampledMask(ArraySource(np.array([[[0, 1, 0]]])), (1, 1, 3), (1, 1, 7))
    >>> mask.read((slice(0, 1), slice(0, 1), slice(0, 7))).astype(int)
    array([[[0, 0, 0, 1, 1, 1, 0]]])
    """

    reader: Reader
    own: Shape
    shape: Shape

    def read(self, box: IndexBox) -> NDArray[np.bool_]:
        """Return which voxels in a box (z, y, x) of the image are inside."""
        factors = coarsening_factors(self.shape, self.own)
        assert factors is not None
        along = [_mask_indices(side, n, m, f) for side, n, m, f in zip(box, self.shape, self.own, factors, strict=True)]
        z, y, x = (slice(int(indices[0]), int(indices[-1]) + 1) for indices in along)
        values = inside(self.reader.read((z, y, x)))
        if self.own == self.shape:
            return values
        return values[np.ix_(*(indices - indices[0] for indices in along))]


@dataclass(frozen=True, eq=False)
class Mask:
    """The voxels of an image that take part, in its resolution. Every mask pickles.

    Attributes
    ----------
    source : Source
        The mask's own voxels; its shape may be smaller than the image's.
    shape : tuple of int
        The image's shape along z, y, x.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> mask = Mask(ArraySource(np.array([[[0, 1]]])), (1, 1, 4))
    >>> mask.read((slice(0, 1), slice(0, 1), slice(1, 4))).astype(int)
    array([[[0, 1, 1]]])
    """

    source: Source
    shape: Shape

    @property
    def own(self) -> Shape:
        """The mask's own shape along z, y, x."""
        return self.source.shape

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def path(self) -> str | None:
        """The source's path or URL; None in memory."""
        return self.source.path

    @property
    def readable_by_workers(self) -> bool:
        """Whether workers can `read` it. If not, copy the `slabs`, and read the mask `through` the copy."""
        return self.source.readable_by_workers

    @property
    def identity(self) -> dict[str, Any]:
        """The source's identity."""
        return self.source.identity

    def reopened(self) -> Mask:
        """Return the same mask as it is now."""
        return Mask(self.source.reopened(), self.shape)

    def read(self, box: IndexBox) -> NDArray[np.bool_]:
        """Return which voxels in a box (z, y, x) of the image are inside."""
        return self.through(self.source).read(box)

    def slabs(self, thickness: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Read the mask once, in its own resolution, from top to bottom; see `Source.slabs`."""
        for z0, values in self.source.slabs(thickness):
            yield z0, inside(values)

    def blocks(self) -> MaskBlocks | None:
        """Return where the voxels inside lie, read twice from top to bottom; None if all are, or none."""
        factors = coarsening_factors(self.shape, self.own)
        assert factors is not None
        thickness = slab_thickness(self.own, self.source.dtype.itemsize)
        return MaskBlocks.of(lambda: self.slabs(thickness), self.own, factors, self.shape)

    def through(self, reader: Reader) -> ResampledMask:
        """Return the same mask, read from a copy of its own voxels."""
        return ResampledMask(reader, self.own, self.shape)


def open_mask(mask: object, image: Image) -> Mask:
    """Open a mask for an image: voxels that are neither 0 nor NaN are inside.

    Parameters
    ----------
    mask : source
        What `dseeds.io.open_source` takes, or booleans or labels; what is masked in a masked array is outside. It
        covers the same field of view as the image and has its shape, or is coarser by one whole factor f along each
        axis: voxel i is inside if voxel ``i // f`` of the mask is.
    image : Image
        The image.

    Returns
    -------
    Mask

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, TypeError
        As `dseeds.io.open_source`.
    ValueError
        If the mask cannot be read, has neither the image's shape nor one that is coarser by whole factors, or lies at
        another position in space.

    Examples
    --------
    >>> from dseeds.io import open_image
    >>> image = open_image(np.zeros((1, 2, 4), "uint8"))
    >>> open_mask(np.array([[[False, True]]]), image).read((slice(0, 1), slice(0, 1), slice(0, 4)))
    array([[[False, False,  True,  True]]])
    """
    [source] = open_voxels(mask, SourceQuery(purpose="mask"))
    aligned = align(source, f"the mask {source.path or source.name}", image.grid, coarser=True)
    return Mask(aligned, image.shape)


def inside(values: np.ndarray) -> NDArray[np.bool_]:
    """Return which values of a mask are inside: those that are neither 0 nor NaN."""
    return np.asarray((values != 0) & (values == values))


def _mask_indices(side: slice, length: int, own: int, factor: int) -> NDArray[np.int64]:
    """Return the mask's voxels, along an axis, in which the image's voxels along a side of a box lie."""
    start, stop, _ = side.indices(length)
    # A block that is not whole may have been left out: its voxels are those of the block before.
    return np.minimum(np.arange(start, stop) // factor, own - 1)
