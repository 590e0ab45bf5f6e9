"""The hash of labels, a sum over voxels that is the same however they are cut, stored or typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Triple, triple
from dseeds.measure.kernels.identity import hash_labels
from dseeds.storage.edit_log import Move

# Hashes are numbers modulo this one.
MODULUS = 1 << 64
# Voxels along each axis of the boxes that are compared if the labels are not read whole.
SAMPLE = 32


class LabelHash(NamedTuple):
    """The hash of labels, or of a part of them, and what of it is due to the boxes of `sample_boxes`."""

    total: int = 0
    sample: int = 0

    @classmethod
    def of_text(cls, text: str) -> LabelHash:
        """Return the hash that `to_text` has written.

        >>> LabelHash.of_text(LabelHash(3, 16).to_text())
        LabelHash(total=3, sample=16)
        """
        return cls(int(text[:16], 16), int(text[16:], 16))

    def to_text(self) -> str:
        """Return both numbers as 16 hexadecimal digits each."""
        return f"{self.total:016x}{self.sample:016x}"

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


def hash_change(moves: Sequence[Move], codes: NDArray[Any], box: Box, shape: Triple) -> LabelHash:
    """Return by how much the hash changes in a box of an edit, whose codes there are those of its moves."""
    before, after = (
        hash_box(np.array([0, *(move[end] for move in moves)], np.int64)[codes], box.lo, box, shape) for end in range(2)
    )
    return after - before
