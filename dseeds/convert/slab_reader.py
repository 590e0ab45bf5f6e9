"""Parts that imports and exports share: reading a volume from end to end within a memory limit, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Tiling, Triple
from dseeds.core.progress import Progress
from dseeds.io import Image, Spacing
from dseeds.io.image import open_channels
from dseeds.io.labels import TASK_BYTES
from dseeds.io.source import IndexBox, SourceQuery
from dseeds.parallel.capacity import parse_memory

_T = TypeVar("_T")

# Planes that are a multiple of most sources' chunks.
DEFAULT_SLAB_PLANES = 64
# The first plane of a slab, and its voxels: (z, y, x) or (c, z, y, x).
PositionedSlab: TypeAlias = tuple[int, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """A report of an import or export.

    The shape is in voxels along (z, y, x), the spacing in millimetres. `channels` counts those along a further axis; it
    is None if there is no such axis. `notes` say where the source contradicts itself, or what the target cannot hold.
    """

    target: str
    shape: Triple
    channels: int | None
    dtype: str
    spacing: Spacing | None
    labels: bool
    notes: tuple[str, ...] = ()

    def with_notes(self, line: str) -> str:
        """Return a line and the notes below it."""
        return "\n".join([line, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class SlabReader:
    """An image that is read from end to end, with all channels in one array and at most `memory` bytes held."""

    image: Image
    memory: int
    progress: Progress | None

    @classmethod
    def open(
        cls, source: object, query: SourceQuery, memory: int | str | None, progress: Progress | None
    ) -> SlabReader:
        """Open a source. `memory` is in bytes or a text such as ``"512MiB"``."""
        limit = TASK_BYTES if memory is None else parse_memory(memory)
        return cls(open_channels(source, query), limit, progress)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in all channels, held twice: as read and as written."""
        return 2 * sum(max(dtype.itemsize, 4) for dtype in self.image.dtypes)

    @property
    def planes(self) -> int:
        """Planes that may be held at once."""
        return max(1, self.memory // (self.image.shape[1] * self.image.shape[2] * self.voxel_bytes))

    def slabs(self, stage: str, dtype: np.dtype | None = None, planes: int | None = None) -> Iterator[PositionedSlab]:
        """Yield the image from top to bottom, converted to a type if one is given; see `combine_channels`.

        Slabs have as many whole chunks as the memory holds, unless the number of planes is given.
        """
        chunk = (self.image.chunks or (DEFAULT_SLAB_PLANES,))[0]
        planes = planes or self.planes // chunk * chunk or self.planes
        slabs = ((begin, combine_channels(channels, dtype)) for begin, channels in self.image.slabs(planes))
        yield from self._track(stage, len(range(0, self.image.shape[0], planes)), slabs)

    def boxes(self, stage: str, size: Triple, dtype: np.dtype) -> Iterator[tuple[IndexBox, NDArray[Any]]]:
        """Yield the image box by box, or in slabs as deep as a box if it can only be read from top to bottom."""
        y, x = self.image.shape[1:]
        if not self.image.readable_by_workers:
            for begin, slab in self.slabs(stage, dtype, size[0]):
                yield (slice(begin, begin + slab.shape[-3]), slice(0, y), slice(0, x)), slab
            return
        tiling = Tiling(self.image.shape, size)
        indices = (tiling.box(number).slices for number in range(len(tiling)))
        boxes = ((index, combine_channels(self.image.read(index), dtype)) for index in indices)
        yield from self._track(stage, len(tiling), boxes)

    def _track(self, stage: str, total: int, items: Iterable[_T]) -> Iterator[_T]:
        """Yield items, and report each to the progress once it has been used."""
        if self.progress:
            self.progress.begin(stage, total)
        for item in items:
            yield item
            if self.progress:
                self.progress.advance(stage)
        if self.progress:
            self.progress.end(stage)


def combine_channels(channels: Sequence[NDArray[Any]], dtype: np.dtype | None) -> NDArray[Any]:
    """Return the channels of a box as one array; raise a ValueError if an integer type does not hold a value.

    >>> combine_channels([np.array([[[1.0]]]), np.array([[[300.0]]])], np.dtype("uint16")).tolist()
    [[[[1]]], [[[300]]]]
    """
    values = channels[0] if len(channels) == 1 else np.stack(channels)
    if dtype is None or values.dtype == dtype:
        return values
    if dtype.kind in "iu" and values.size:
        if values.dtype.kind == "f" and not has_whole_numbers(values):
            raise ValueError(f"the voxels are not whole numbers, which {dtype} does not hold: name another dtype.")
        low, high, bounds = int(values.min()), int(values.max()), np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise ValueError(f"the voxels are from {low} to {high}, which {dtype} does not hold: name another dtype.")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def has_whole_numbers(values: NDArray[Any]) -> bool:
    """Return whether all values are whole numbers."""
    return bool(np.isfinite(values).all() and (values == np.floor(values)).all())
