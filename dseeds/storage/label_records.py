"""Integer rows sorted by label, which regions write and which are merged label by label, in any number.

Each region writes a file of its own, in batches that can be read separately. A reader of a range of labels fetches only
the batches that contain some of them, so that no process ever holds more than one range.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.storage.location import Location

# Rows in a batch, and the approximate number of rows in a range.
BATCH, RANGE = 512, 1 << 16
# The most bytes of a batch, and of a range, where rows are long.
BATCH_BYTES, RANGE_BYTES = 1 << 20, 1 << 26
# The columns of an index, which has a row for each batch: its first and last label, its number of rows, its first byte
# and the one after its last, and its checksum.
FIRST, LAST, ROWS, BEGIN, END, CHECKSUM = range(6)
BatchIndex: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class LabelRecords:
    """Rows of one kind in a folder, one file for each region. The first of `width` columns is the label."""

    location: Location
    width: int

    def write(self, number: int, rows: NDArray[np.int64]) -> BatchIndex:
        """Write the rows of a region, sorted by label, and return their index."""
        index, pieces, begin = [], [], 0
        length = max(1, min(BATCH, BATCH_BYTES // (8 * self.width)))
        for first in range(0, len(rows), length):
            batch = rows[first : first + length]
            # Values of one column resemble each other, so they compress better side by side.
            content = np.ascontiguousarray(batch.T).tobytes()
            piece = pa.compress(content, codec="zstd", asbytes=True)
            pieces.append(piece)
            index.append((batch[0, 0], batch[-1, 0], len(batch), begin, begin + len(piece), zlib.crc32(content)))
            begin += len(piece)
        if pieces:
            self.location.write(str(number), b"".join(pieces))
        return np.array(index, np.int64).reshape(-1, 6)

    def read(self, part: LabelRange) -> NDArray[np.int64]:
        """Read a range from all regions, sorted by label; raise an OSError if a file is missing or damaged."""
        batches = [np.zeros((0, self.width), np.int64)]
        for number, index in part.batches:
            content = self.location.read_part(str(number), int(index[0, BEGIN]), int(index[-1, END]))
            for entry in index:
                piece = content[entry[BEGIN] - index[0, BEGIN] : entry[END] - index[0, BEGIN]]
                rows = self._decode(piece, entry)
                batches.append(rows[(rows[:, 0] >= part.lo) & (rows[:, 0] < part.hi)])
        rows = np.concatenate(batches)
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def _decode(self, piece: bytes, entry: BatchIndex) -> NDArray[np.int64]:
        size = int(entry[ROWS]) * self.width * 8
        try:
            content = pa.decompress(piece, size, codec="zstd", asbytes=True)
        except OSError:
            content = b""
        if zlib.crc32(content) != entry[CHECKSUM]:
            raise OSError(f"{self.location.address}, scratch of this run, is damaged: run it again.")
        return np.frombuffer(content, np.int64).reshape(self.width, -1).T


@dataclass(frozen=True)
class LabelRange:
    """The labels from `lo` up to `hi`, and for each region the entries of its index that contain some of them."""

    lo: int
    hi: int
    batches: tuple[tuple[int, BatchIndex], ...]


def label_ranges(indices: dict[int, BatchIndex], rows: int = RANGE) -> Iterator[LabelRange]:
    """Yield consecutive ranges that cover all labels, given the index of each region.

    A range has at most `rows` rows, except where a single label or the overlap of batches exceeds them.
    """
    if not indices:
        return
    numbers = np.concatenate([np.full(len(index), number) for number, index in sorted(indices.items())])
    table = np.concatenate([index for _, index in sorted(indices.items())])
    for lo, hi in _cut_labels(table, rows):
        overlapping = np.flatnonzero((table[:, FIRST] < hi) & (table[:, LAST] >= lo))
        cuts = np.flatnonzero(np.diff(numbers[overlapping])) + 1
        groups = np.split(overlapping, cuts)
        yield LabelRange(lo, hi, tuple((int(numbers[group[0]]), table[group]) for group in groups))


def _cut_labels(table: BatchIndex, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of ranges, which begin where batches begin."""
    order = np.argsort(table[:, FIRST], kind="stable")
    firsts, counts = table[order, FIRST], np.cumsum(table[order, ROWS])
    lo, done, last = int(firsts[0]), 0, int(table[:, LAST].max())
    for first, count in zip(firsts[1:], counts[:-1], strict=True):
        if count - done >= rows and first > lo:
            yield lo, int(first)
            lo, done = int(first), int(count)
    yield lo, last + 1
