"""The hash of labels, a sum over voxels that is the same however they are cut, stored or typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Triple, triple
from dseeds.measure.kernels.identity import hash_labels
from dseeds.storage.edit_log import EditLog, EditRecord

# Hashes are numbers modulo this one.
MODULUS = 1 << 64
# Voxels along each axis of the boxes that are compared if the labels are not read whole.
SAMPLE = 32


class LabelHash(NamedTuple):
    """The hash of labels, or of a part of them, and what of it is due to the boxes of `sample_boxes`."""

    total: int = 0
    sample: int = 0

    def __add__(self, other: tuple[Any, ...]) -> LabelHash:
        """Return the hash of two parts together."""
        return LabelHash(*((a + b) % MODULUS for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: LabelHash) -> LabelHash:
        """Return the hash without that of a part."""
        return LabelHash(*((a - b) % MODULUS for a, b in zip(self, other, strict=True)))


def sample_boxes(shape: Triple) -> Iterable[Box]:
    """Return three small boxes of a volume of a shape (z, y, x), which lie on its diagonal.

    >>> [box.lo for box in sample_boxes((400, 40, 4))]
    [(84, 0, 0), (184, 4, 0), (284, 8, 0)]
    """
    for quarter in (1, 2, 3):
        lo = triple(min(max(0, n * quarter // 4 - SAMPLE // 2), max(0, n - SAMPLE)) for n in shape)
        yield Box(lo, triple(min(n, a + SAMPLE) for n, a in zip(shape, lo, strict=True)))


def hash_box(labels: NDArray[Any], lo: Triple, box: Box, shape: Triple) -> LabelHash:
    """Return the hash of a box of a volume of a shape (z, y, x).

    `labels`, uint32 or int64, C-contiguous, are a window (z, y, x) that begins at `lo` and contains the box.
    """

    def add_up(part: Box) -> int:
        return int(hash_labels(labels, part.relative_to(lo).lo, part.shape, part.lo, shape)) % MODULUS

    parts = (box.intersection(sample) for sample in sample_boxes(shape) if box.overlaps(sample))
    return LabelHash(add_up(box), sum(map(add_up, parts)) % MODULUS)


def hash_moves(log: EditLog, records: Sequence[EditRecord], shape: Triple) -> LabelHash:
    """Return by how much edits change the hash of labels of a shape (z, y, x)."""
    sums = LabelHash()
    for record in records:
        old, new = ([0, *(move[end] for move in record.moves)] for end in range(2))
        for piece, box in enumerate(record.pieces):
            codes = log.read_piece(record.undoes or record.number, piece, box)
            before, after = (hash_box(np.array(ids, np.int64)[codes], box.lo, box, shape) for ids in (old, new))
            sums += after - before
    return sums
