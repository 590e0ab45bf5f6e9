"""The log of edits of labels: what each changed, so that it can be completed after a crash, and undone.

An edit has a record, and a piece for each box that it changes: an array of codes, 0 where nothing changes, else the
number of one of the record's moves from a label to another. Pieces are written before the record, so that an edit with
a record is known completely.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, triple

RECORD = "edit.json"
# What no edits have moved.
UNMOVED = f"{0:032x}"
EditKind: TypeAlias = Literal["merge", "split", "undo"]


class Move(NamedTuple):
    """Voxels that an edit moves from a label to another, and their number."""

    source: int
    target: int
    voxels: int


@dataclass(frozen=True)
class EditRecord:
    """What an edit did.

    Attributes
    ----------
    number : int
        Its number, from 1. Undoing an edit is an edit as well.
    kind : {"merge", "split", "undo"}
        What was done.
    before, after : tuple of int
        The labels that it took, and those that it left in their place.
    box : Box
        The bounding box of the voxels that changed, half open, axes (z, y, x).
    voxels : int
        The number of voxels that changed.
    moves : tuple of Move
        From which label to which other, and how many voxels each.
    largest : int
        The largest label that was ever used, up to this edit.
    time : str
        When it was done, in UTC, as in ISO 8601.
    version : str
        The version of dseeds.
    pieces : tuple of Box
        The boxes that the changed voxels lie in, none of which overlap.
    undoes : int or None
        The number of the edit that it undid.
    moved : str
        By how much this edit and all before it changed the hash of the labels, as text of
        `dseeds.measure.label_hash.LabelHash`.

    Examples
    --------
    >>> import dseeds
    >>> edits = dseeds.edit(np.array([[[1, 2, 2, 3]]]))
    >>> record = edits.merge([2, 3])
    >>> record.kind, record.before, record.after, record.voxels
    ('merge', (2, 3), (2,), 1)
    """

    number: int
    kind: EditKind
    before: tuple[int, ...]
    after: tuple[int, ...]
    box: Box
    voxels: int
    moves: tuple[Move, ...]
    largest: int
    time: str
    version: str
    pieces: tuple[Box, ...] = field(repr=False)
    undoes: int | None = None
    moved: str = field(default=UNMOVED, repr=False)

    @property
    def net(self) -> int:
        """How many supervoxels more there are after the edit."""
        return len(self.after) - len(self.before)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "undoes" or value is not None}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> EditRecord:
        """Return the record that `to_dict` has described."""
        return cls(
            **{
                **document,
                "before": tuple(document["before"]),
                "after": tuple(document["after"]),
                "box": _read_box(document["box"]),
                "moves": tuple(Move(*move) for move in document["moves"]),
                "pieces": tuple(map(_read_box, document["pieces"])),
            }
        )


class EditFiles(Protocol):
    """Where records and pieces are kept, each under a key: a location, or memory."""

    def read(self, key: str) -> bytes | None:
        """Read a file; return None if it does not exist."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace a file atomically."""

    def clear(self, prefix: str = "") -> None:
        """Remove everything in a folder."""


class FilesInMemory(dict[str, bytes]):
    """Records and pieces in the memory of this process."""

    def read(self, key: str) -> bytes | None:
        """Return the contents of a file; None if it does not exist."""
        return self.get(key)

    def write(self, key: str, data: bytes) -> None:
        """Keep the contents of a file."""
        self[key] = data

    def clear(self, prefix: str = "") -> None:
        """Forget everything in a folder."""
        for key in [key for key in self if key.startswith(f"{prefix}/")]:
            del self[key]


@dataclass(frozen=True)
class EditLog:
    """The records and pieces of edits."""

    files: EditFiles

    def read(self, number: int) -> EditRecord | None:
        """Return the record of an edit; None if it was not written."""
        content = self.files.read(f"{number:06}/{RECORD}")
        return None if content is None else EditRecord.from_dict(json.loads(content))

    def require(self, number: int) -> EditRecord:
        """Return the record of an edit; raise a ValueError if it is missing."""
        record = self.read(number)
        if record is None:
            raise ValueError(
                f"the record of edit {number} is missing: it was removed, so edits cannot be told any more."
            )
        return record

    def write(self, record: EditRecord) -> None:
        """Write the record of an edit, whose pieces are written."""
        self.files.write(f"{record.number:06}/{RECORD}", json.dumps(record.to_dict()).encode())

    def discard(self, number: int) -> None:
        """Remove what is left of an edit that never began."""
        self.files.clear(f"{number:06}")

    def write_piece(self, number: int, piece: int, codes: NDArray[np.unsignedinteger]) -> None:
        """Write the codes of the voxels in a box that an edit changes."""
        header = np.dtype(codes.dtype).itemsize.to_bytes(1, "little")
        self.files.write(f"{number:06}/{piece}", header + zlib.compress(np.ascontiguousarray(codes).data, 1))

    def read_piece(self, number: int, piece: int, box: Box) -> NDArray[np.unsignedinteger]:
        """Return the codes of the voxels in a box; raise a ValueError if they are missing or damaged."""
        content = self.files.read(f"{number:06}/{piece}") or b""
        try:
            codes = np.frombuffer(zlib.decompress(content[1:]), f"u{content[0]}")
            return codes.reshape(box.shape)
        except (zlib.error, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"the record of edit {number} is damaged: it can be neither completed nor undone."
            ) from error

    def last_done(self, count: int) -> EditRecord | None:
        """Return the last of the first `count` edits that is neither undone nor an undoing; None if there is none."""
        undone: set[int] = set()
        for number in range(count, 0, -1):
            record = self.require(number)
            if record.undoes is not None:
                undone.add(record.undoes)
            elif number not in undone:
                return record
        return None


def _read_box(corners: Any) -> Box:
    lo, hi = (corners["lo"], corners["hi"])
    return Box(triple(lo), triple(hi))
