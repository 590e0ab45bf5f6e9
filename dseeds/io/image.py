"""Images: one volume, or several channels of one shape, which may be stored in different places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dseeds.core.forks import cached_property
from dseeds.io.affine import frame_matrix
from dseeds.io.alignment import Grid3D, align
from dseeds.io.formats.ome_zarr import ZarrSource, frame_of
from dseeds.io.ome_metadata import Frame
from dseeds.io.open import open_voxels
from dseeds.io.source import IndexBox, Kind, NiftiForms, Shape, Source, SourceQuery, Spacing, require_channels


@dataclass(frozen=True, eq=False)
class Image:
    """An image of one or several channels that can be read, axes (z, y, x). Every image pickles.

    Attributes
    ----------
    parts : tuple of Source
        The sources of the channels. Channels that are stored together are one part, and are read at once.

    Examples
    --------
    >>> from dseeds.io import ArraySource
    >>> image = Image((ArraySource(np.zeros((3, 4, 5), "u1")), ArraySource(np.zeros((3, 4, 5), "f4"))))
    >>> image.channels, image.shape, image.itemsize
    (2, (3, 4, 5), 5)
    """

    parts: tuple[Source, ...]

    @property
    def name(self) -> str:
        """The first file's name, and the number of further files, for people."""
        more = len(dict.fromkeys(part.path for part in self.parts)) - 1
        return f"{self.parts[0].name} and {more} more" if more else self.parts[0].name

    @property
    def kind(self) -> Kind:
        """The format of the first channel."""
        return self.parts[0].kind

    @property
    def path(self) -> str | None:
        """The path or URL of the first channel; None in memory."""
        return self.parts[0].path

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths or URLs of all channels that are not in memory."""
        return tuple(dict.fromkeys(part.path for part in self.parts if part.path is not None))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.dtypes)

    @property
    def dtypes(self) -> tuple[np.dtype, ...]:
        """The type of each channel's voxels; see `Source.dtype`."""
        return tuple(part.dtype for part in self.parts for _ in range(part.channels or 1))

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel in all channels."""
        return sum(dtype.itemsize for dtype in self.dtypes)

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""
        return self.parts[0].shape

    @property
    def spacing(self) -> Spacing | None:
        """Size of a voxel along z, y, x in millimetres, from the first channel that has it; None if unknown."""
        return next((part.spacing for part in self.parts if part.spacing is not None), None)

    @property
    def frame(self) -> Frame:
        """Position and size of the voxels, from the first channel that has them."""
        return next((frame for frame in map(frame_of, self.parts) if frame != Frame()), Frame())

    @property
    def affine(self) -> np.ndarray | None:
        """The affine of the first channel that has one; see `Source.affine`."""
        return next((part.affine for part in self.parts if part.affine is not None), None)

    @property
    def forms(self) -> NiftiForms | None:
        """How the file that the affine is from states it in NIfTI; see `Source.forms`."""
        return next((part.forms for part in self.parts if part.affine is not None), None)

    @property
    def position(self) -> np.ndarray | None:
        """The affine, or else one for a translation of OME-Zarr, whose axes are taken for those of space."""
        frame = self.frame
        return self.affine if self.affine is not None or not any(frame.translation) else frame_matrix(frame)

    @property
    def labelled(self) -> bool:
        """Whether any channel says that its voxels are labels."""
        return any(part.labelled for part in self.parts)

    @property
    def chunks(self) -> Shape | None:
        """The chunks of the part with the largest ones, in bytes; see `Source.chunks`."""
        return self._coarsest.chunks

    @property
    def shards(self) -> Shape | None:
        """The shards of the same part as the `chunks`."""
        return self._coarsest.shards

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all channels; see `Source.notes`."""
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes))

    @property
    def readable_by_workers(self) -> bool:
        """Whether all channels are; see `Source.readable_by_workers`."""
        return all(part.readable_by_workers for part in self.parts)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity of its only source, or those of all; see `Source.identity`."""
        if len(self.parts) == 1:
            return self.parts[0].identity
        return {"kind": self.kind, "shape": list(self.shape), "channels": [part.identity for part in self.parts]}

    @property
    def grid(self) -> Grid3D:
        """What is known about the voxels' number, size and position."""
        frames = (part.frame for part in self.parts if isinstance(part, ZarrSource))
        return Grid3D("the image", self.shape, self.spacing, self.affine, next(frames, None))

    def reopened(self) -> Image:
        """Return the same image as it is now."""
        return Image(tuple(part.reopened() for part in self.parts))

    def read(self, box: IndexBox) -> tuple[np.ndarray, ...]:
        """Read the voxels in a box (z, y, x): an array for each channel; see `Source.read`."""
        return _channels([part.read(box) for part in self.parts])

    def slabs(self, thickness: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Read the image once from top to bottom: an array for each channel; see `Source.slabs`."""
        for slabs in zip(*(part.slabs(thickness) for part in self.parts), strict=True):
            yield slabs[0][0], _channels([values for _, values in slabs])

    @property
    def _coarsest(self) -> Source:
        return max(self.parts, key=lambda part: np.prod(part.shards or part.chunks or (1,)) * part.dtype.itemsize)


def open_image(
    source: object,
    *,
    volume: int | None = None,
    channel_axis: int | str | None = None,
    level: int = 0,
    planes: bool = False,
) -> Image:
    """Open an image of one or several channels.

    Parameters
    ----------
    source : source or list of sources
        What `dseeds.io.open_source` takes, without labels. Several sources add their channels, no more than 16, which
        have the same shape and position in space. NIfTI and DICOM with colours (RGB) have three channels.
    volume, level : int, optional
        See `dseeds.io.open_source`; they apply to each of several sources.
    channel_axis : int or str, optional
        The axis of channels, in an array with the axes (..., t, z, y, x); those of NIfTI are reversed to this order, so
        that 0 takes all volumes of a 4D file as channels. In an OME-Zarr image also its name, such as ``"c"``.

    planes : bool, default False
        Whether an array of two axes, beside that of channels, is a volume of one plane, as it is in a file.

    Returns
    -------
    Image

    Raises
    ------
    FileNotFoundError, PermissionError, ConnectionError, TypeError
        As `dseeds.io.open_source`.
    ValueError
        If an image cannot be read, holds labels or anything other than real numbers, or several volumes without
        `volume` or `channel_axis`; if there are more than 16 channels; or if they differ in shape, in the size of
        their voxels or in position.

    Examples
    --------
    >>> colours = np.zeros((30, 40, 50, 3), "uint8")
    >>> image = open_image(colours, channel_axis=-1)
    >>> image.shape, image.channels, image.itemsize
    ((30, 40, 50), 3, 3)
    >>> open_image([colours[..., 0], colours[..., 1]]).channels
    2
    """
    return open_channels(source, SourceQuery(volume, channel_axis, "image", level, planes))


def open_channels(source: object, query: SourceQuery) -> Image:
    """Open what `open_image` takes, for the purpose of a query."""
    sources = source if isinstance(source, list | tuple) else [source]
    if not sources:
        raise ValueError("the list of sources is empty: name one for each channel")
    parts: list[Source] = []
    firsts: list[tuple[int, Source]] = []
    for one in sources:
        # The channels of one source lie in one place.
        group = list(open_voxels(one, query))
        # Each of those before, for the first may know less of its position.
        for number, other in firsts:
            reference = Grid3D.of(other, _describe(other, number))
            group = [align(part, _describe(part, len(parts) + i), reference) for i, part in enumerate(group)]
        firsts.append((len(parts), group[0]))
        parts += group
    require_channels(Image(tuple(parts)).channels, Image(tuple(parts)).name, query.most_channels)
    return Image(tuple(parts))


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Return a type that holds the voxels of all channels, in this machine's byte order; booleans become bytes.

    Raises a ValueError if integers of 64 bits would become floats.

    >>> common_dtype([np.dtype("uint8"), np.dtype(">i2")])
    dtype('int16')
    """
    plain = [np.dtype("u1") if dtype.kind == "b" else dtype.newbyteorder("=") for dtype in dtypes]
    common = np.result_type(*plain)
    if any(dtype.kind in "iu" and dtype.itemsize == 8 and common.kind == "f" for dtype in plain):
        listed = ", ".join(dict.fromkeys(str(dtype) for dtype in plain))
        raise ValueError(f"the channels are of types that have none in common ({listed}): convert one of them")
    return common


def _describe(part: Source, number: int) -> str:
    return part.path or f"{part.name} (channel {number})"


def _channels(parts: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(channel for values in parts for channel in (values if values.ndim > 3 else (values,)))
