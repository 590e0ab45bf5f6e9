"""Rows of integers by label that regions leave, and that are put together label by label, in any number.

A region's rows are sorted by their label and lie in a file of its own, in batches that can be read alone. Who puts
them together reads, for a range of labels, the batches that have some of them: so nobody ever holds more than a range.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.storage.location import Location, open_location

# Rows in a batch, and in a range about.
BATCH, RANGE = 512, 1 << 16
# Of an index, which has a row for each batch: the first and the last label, rows, where it lies, and its checksum.
FIRST, LAST, ROWS, BEGIN, END, CHECKSUM = range(6)
Index = NDArray[np.int64]


@dataclass(frozen=True)
class LabelRecords:
    """Rows of one kind, left by regions.

    Attributes
    ----------
    address : str
        The folder or bucket's prefix that they lie in.
    name : str
        The kind.
    width : int
        Columns of a row, of which the first is its label.
    """

    address: str
    name: str
    width: int

    @property
    def place(self) -> Location:
        """Where they lie."""
        return open_location(self.address).at(self.name)

    def write(self, number: int, rows: NDArray[np.int64]) -> Index:
        """Write a region's rows, sorted by label, and give their index."""
        index, pieces, begin = [], [], 0
        for first in range(0, len(rows), BATCH):
            batch = rows[first : first + BATCH]
            # Column by column, neighbours are alike.
            content = np.ascontiguousarray(batch.T).tobytes()
            piece = pa.compress(content, codec="zstd", asbytes=True)
            pieces.append(piece)
            index.append((batch[0, 0], batch[-1, 0], len(batch), begin, begin + len(piece), zlib.crc32(content)))
            begin += len(piece)
        if pieces:
            self.place.write(str(number), b"".join(pieces))
        return np.array(index, np.int64).reshape(-1, 6)

    def read(self, part: LabelRange) -> NDArray[np.int64]:
        """Read the rows of a range of labels from all regions, sorted by label.

        Raises
        ------
        OSError
            If a file is missing or damaged.
        """
        found = [np.zeros((0, self.width), np.int64)]
        for number, index in part.batches:
            content = self.place.read_part(str(number), int(index[0, BEGIN]), int(index[-1, END]))
            for batch in index:
                piece = content[batch[BEGIN] - index[0, BEGIN] : batch[END] - index[0, BEGIN]]
                rows = self._decoded(piece, batch)
                found.append(rows[(rows[:, 0] >= part.lo) & (rows[:, 0] < part.hi)])
        rows = np.concatenate(found)
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def _decoded(self, piece: bytes, batch: Index) -> NDArray[np.int64]:
        size = int(batch[ROWS]) * self.width * 8
        try:
            content = pa.decompress(piece, size, codec="zstd", asbytes=True)
        except OSError:
            content = b""
        if zlib.crc32(content) != batch[CHECKSUM]:
            raise OSError(f"{self.place.address} is damaged, which is scratch of this run: run it again.")
        return np.frombuffer(content, np.int64).reshape(self.width, -1).T


@dataclass(frozen=True)
class LabelRange:
    """A range of labels, and where their rows are.

    Attributes
    ----------
    lo, hi : int
        The first label, and the first one after the range.
    batches : tuple of (int, Index)
        For regions that have some, the part of their index that tells of them.
    """

    lo: int
    hi: int
    batches: tuple[tuple[int, Index], ...]


def label_ranges(indices: dict[int, Index], rows: int = RANGE) -> Iterator[LabelRange]:
    """Cut all labels into ranges of about so many rows, in order.

    Parameters
    ----------
    indices : dict of int to Index
        The regions' indices.
    rows : int
        How many rows a range has at the most, unless a single label has more, or batches are wide.
    """
    if not indices:
        return
    numbers = np.concatenate([np.full(len(index), number) for number, index in sorted(indices.items())])
    table = np.concatenate([index for _, index in sorted(indices.items())])
    for lo, hi in _ranges(table, rows):
        inside = np.flatnonzero((table[:, FIRST] < hi) & (table[:, LAST] >= lo))
        cuts = np.flatnonzero(np.diff(numbers[inside])) + 1
        groups: Sequence[NDArray[np.int64]] = np.split(inside, cuts)
        yield LabelRange(lo, hi, tuple((int(numbers[group[0]]), table[group]) for group in groups))


def _ranges(table: Index, rows: int) -> Iterator[tuple[int, int]]:
    """Choose where ranges begin and end: where batches begin."""
    order = np.argsort(table[:, FIRST], kind="stable")
    firsts, counts = table[order, FIRST], np.cumsum(table[order, ROWS])
    lo, done, last = int(firsts[0]), 0, int(table[:, LAST].max())
    for first, count in zip(firsts[1:], counts[:-1], strict=True):
        if count - done >= rows and first > lo:
            yield lo, int(first)
            lo, done = int(first), int(count)
    yield lo, last + 1
