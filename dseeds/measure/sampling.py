"""Labels and an image around single supervoxels: read where they are, in each process anew, and resampled."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import inherits
from dseeds.core.geometry import Box, Triple, triple
from dseeds.io import ArraySource, Image, Source, ZarrSource
from dseeds.io.labels import read_labels
from dseeds.measure.lookup import HeldValues, open_values
from dseeds.measure.pooling import channel_dtype
from dseeds.storage.location import is_remote

# Chunks that a process keeps, in bytes for each source; larger ones than the second number are not kept.
CACHE_BYTES, LARGEST_BLOCK = 1 << 28, 1 << 26


class Rows(NamedTuple):
    """Some columns of a table: labels, int64 (n,), ascending; and float64 (n, columns)."""

    labels: NDArray[np.int64]
    values: NDArray[np.float64]


def read_columns(table: Any, names: Sequence[str], labels: Source, *, whole: bool) -> Rows:
    """Return columns of a table of these labels; raise a ValueError if it is of others, or lacks numbers in a row."""
    columns = [open_values(table, name) for name in names]
    if columns[0].origin is not None:
        columns[0].origin.check_labels(labels, whole=whole)
    held = [column for column in columns if isinstance(column, HeldValues)]
    if len(held) < len(columns):
        raise ValueError("the table has more than 16 million rows: pass a part of it.")
    ids = held[0].labels
    if not len(ids) or any(not np.array_equal(column.labels, ids) for column in held):
        raise ValueError(f"the table must have a number in the columns {', '.join(names)} of every row.")
    return Rows(ids, np.column_stack([column.values for column in held]).astype(np.float64))


class VolumeReader:
    """Labels and an image on the same grid, of which boxes are read.

    Each process opens the sources anew and keeps the chunks that it read last, so that boxes that lie close to each
    other share them. A reader pickles without either, and serves forks and threads.
    """

    def __init__(self, labels: Source, image: Image) -> None:
        self.labels, self.image = labels, image
        self.dtype = channel_dtype(image.dtypes)
        self._opened: tuple[int, list[_BlockCache]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return triple(self.labels.shape)

    def read(self, box: Box) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the labels (z, y, x) and the image (channels, z, y, x) in a box."""
        first, *parts = self._caches()
        values = ArraySource(first.read(box), self.labels.name)
        labels = read_labels(values, Box((0, 0, 0), box.shape), narrow=True)
        channels = [part.read(box).reshape(-1, *box.shape) for part in parts]
        return labels, np.concatenate([channel.astype(self.dtype) for channel in channels])

    def _caches(self) -> list[_BlockCache]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), [_BlockCache(_open_anew(one)) for one in (self.labels, *self.image.parts)]
        return self._opened[1]


def _open_anew(source: Source) -> Source:
    """Return a source that shares no connection, file or lock with that of another process."""
    if source.path is not None and is_remote(source.path) and inherits("obstore"):
        raise ValueError(
            f"{source.path} is in an object store, whose connections do not survive a fork: use processes that are "
            'spawned, such as multiprocessing_context="spawn".'
        )
    if source.readable_by_workers:
        anew: Source = pickle.loads(pickle.dumps(source))
        return anew
    if source.kind == "array" or isinstance(source, ZarrSource):
        return source
    # It can only be read from end to end.
    whole = source.read((slice(None), slice(None), slice(None)))
    return ArraySource(whole, source.name) if source.channels is None else _ChannelArray(whole, source.name)


class _ChannelArray(ArraySource):
    """Channels (c, z, y, x) in memory."""

    def read(self, box: Any) -> NDArray[Any]:
        return np.asarray(self.array[(slice(None), *box)])


class _BlockCache:
    """A source that is read in whole chunks, of which the last ones are kept."""

    def __init__(self, source: Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self._blocks: OrderedDict[Triple, NDArray[Any]] = OrderedDict()
        self._size = 0

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box, (z, y, x) or (c, z, y, x)."""
        source, chunk = self._source, self._source.chunks
        if chunk is None or prod(chunk) * source.dtype.itemsize * (source.channels or 1) > LARGEST_BLOCK:
            return source.read(box.slices)
        sides = [range(a // c, -(-b // c)) for a, b, c in zip(box.lo, box.hi, chunk, strict=True)]
        indices = [triple(index) for index in itertools.product(*sides)]
        with self._lock:
            blocks = {index: self._blocks[index] for index in indices if index in self._blocks}
        blocks |= self._fetch([index for index in indices if index not in blocks], triple(chunk))
        front = () if source.channels is None else (source.channels,)
        values = np.empty((*front, *box.shape), source.dtype)
        for index, block in blocks.items():
            whole = self._box_of(Box(index, triple(i + 1 for i in index)), triple(chunk))
            part = box.intersection(whole)
            values[..., *part.relative_to(box.lo).slices] = block[..., *part.relative_to(whole.lo).slices]
        self._keep(blocks)
        return values

    def _box_of(self, blocks: Box, chunk: Triple) -> Box:
        """Return the voxels of a box of blocks."""
        lo = triple(i * c for i, c in zip(blocks.lo, chunk, strict=True))
        return Box(lo, triple(min(i * c, n) for i, c, n in zip(blocks.hi, chunk, self._source.shape, strict=True)))

    def _fetch(self, indices: list[Triple], chunk: Triple) -> dict[Triple, NDArray[Any]]:
        """Read blocks at once, since stores serve several requests in the time of one."""
        if not indices:
            return {}
        lo, hi = (triple(pick(axis) for axis in zip(*indices, strict=True)) for pick in (min, max))
        around = self._box_of(Box(lo, triple(i + 1 for i in hi)), chunk)
        values, blocks = self._source.read(around.slices), {}
        for index in indices:
            part = self._box_of(Box(index, triple(i + 1 for i in index)), chunk).relative_to(around.lo)
            blocks[index] = values[..., *part.slices].copy()
        return blocks

    def _keep(self, blocks: dict[Triple, NDArray[Any]]) -> None:
        with self._lock:
            for index, block in blocks.items():
                if index not in self._blocks:
                    self._size += block.nbytes
                self._blocks[index] = block
                self._blocks.move_to_end(index)
            while self._size > CACHE_BYTES:
                self._size -= self._blocks.popitem(last=False)[1].nbytes


def interpolate(values: NDArray[Any], points: Sequence[NDArray[np.float64]]) -> NDArray[Any]:
    """Return values (channels, z, y, x) at the points of a grid, by trilinear interpolation.

    `points` are the coordinates of the grid along z, y and x, in voxels; values beyond the first and the last voxel are
    those of these.

    >>> interpolate(np.array([[[[0.0, 4.0, 6.0]]]]), [np.zeros(1), np.zeros(1), np.array([-1.0, 0.25, 1.5])]).tolist()
    [[[[0.0, 1.0, 5.0]]]]
    """
    result = values.astype(np.float64)
    for axis, places in enumerate(points, 1):
        last = values.shape[axis] - 1
        inner = np.clip(places, 0, last)
        low = np.floor(inner).astype(np.int64)
        share = (inner - low).reshape(-1, *[1] * (3 - axis))
        # What has no share must not matter, even if it is NaN.
        high = np.where(inner > low, np.minimum(low + 1, last), low)
        result = np.take(result, low, axis) * (1 - share) + np.take(result, high, axis) * share
    return result.astype(values.dtype)
