"""The messages of regions: what a region publishes after quantising and after each round.

A message is one object that is written whole and never changes. It has a piece for each neighbour and, as a checkpoint,
one for the region itself; each piece is a few compressed arrays with checksums. A reader fetches only its own piece.
Messages are also the log from which the state of a region that was lost is made again. Their names say what came of the
round and of those before it, so that a listing shows which tasks are done, even if older messages have been removed.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.core.geometry import Box, Triple, triple
from dseeds.engine.exchange import BINS
from dseeds.engine.phases import Phase, RegionTask
from dseeds.storage.location import Location, is_remote, open_location
from dseeds.storage.zarr_arrays import ScratchCorrupted, count_bytes

FOLDER = "messages"
# The bytes that are read at first: the index and, of most messages, the small pieces, which come first.
HEAD_BYTES = 1 << 15
# Of a large piece in an object store, so many times its size are read at first, at most so many bytes: all that come
# before it, compressed, are hardly more, and take less time than another request.
HEAD_PIECES, LONGEST_HEAD_BYTES = 5, 1 << 22
# The pieces that are read at a time from an object store, which takes its time to answer.
PIECES_AT_ONCE = 8
# The length of the title, the number of pieces, the checksum of title and index, and that of these three numbers:
# damage must not make a reader ask for gigabytes.
_PREFIX = struct.Struct("<IIII")
# The name of a message: the region, and its trail.
_NAME = re.compile(r"(\d+)-([apn][msr]*)")
# A piece in the index; it begins so many bytes after the index.
_ENTRY = np.dtype([("reader", "<i8"), ("begin", "<u8"), ("length", "<u8"), ("checksum", "<u4")])


class Part(NamedTuple):
    """A box of an array, whose first three axes are units, voxels or cells."""

    lo: Triple
    values: NDArray[Any]

    @property
    def box(self) -> Box:
        """The box."""
        (z, y, x), shape = self.lo, self.values.shape
        return Box((z, y, x), (z + shape[0], y + shape[1], x + shape[2]))

    def crop(self, box: Box) -> Part | None:
        """Return the part of this box that lies in another; None if there is none."""
        own = self.box
        if own == box:
            return self
        if not own.overlaps(box):
            return None
        common = own.intersection(box)
        return Part(common.lo, self.values[common.relative_to(self.lo).slices])


# The arrays of a piece by name.
Piece = dict[str, Part]
_Read = TypeVar("_Read")


class MessageDamaged(ScratchCorrupted):
    """The messages of regions after phases are missing, torn or corrupt."""

    def __init__(self, tasks: Sequence[RegionTask], reason: str) -> None:
        super().__init__(FOLDER, Box((0, 0, 0), (1, 1, 1)), reason)
        self.args = tasks, reason
        # The tasks that publish them.
        self.tasks, self.reason = tasks, reason

    def __str__(self) -> str:
        phase, number = self.tasks[0]
        return f"the message of region {number} after {phase} is damaged: {self.reason}"


@dataclass(frozen=True)
class MessageLog:
    """The messages of the run with the identity `run`, in its scratch."""

    address: str
    run: str

    @cached_property
    def place(self) -> Location:
        """The location of the messages."""
        return open_location(self.address).at(FOLDER)

    def publish(self, phase: Phase, number: int, trail: str, pieces: Mapping[int, Piece]) -> None:
        """Write the message of a region after a phase, with a piece for each reader; see `History.trail`.

        With a checkpoint it is flushed to the disk, as older messages are removed once there are newer checkpoints.
        """
        content = encode_message(f"{self.run} {phase} {number}", pieces)
        self.place.write(_name(phase, number, trail), content, durable=number in pieces)
        count_bytes(written=sum(part.values.nbytes for piece in pieces.values() for part in piece.values()))

    def read_pieces(
        self, messages: Sequence[tuple[Phase, int, str]], reader: int, sizes: Sequence[int]
    ) -> Iterator[Piece | MessageDamaged | None]:
        """Yield the pieces of messages for a reader as `read` returns them, or the error that it raises.

        The sizes are those of the pieces, uncompressed.
        """

        def read(message: tuple[Phase, int, str], size: int) -> Piece | MessageDamaged | None:
            try:
                return self._read(*message, reader, size)
            except MessageDamaged as damage:
                return damage

        if not is_remote(self.address):
            yield from map(_counted, map(read, messages, sizes))
            return
        with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
            # Few at a time, so that few are in memory.
            for begin in range(0, len(messages), PIECES_AT_ONCE):
                few = slice(begin, begin + PIECES_AT_ONCE)
                yield from map(_counted, pool.map(read, messages[few], sizes[few]))

    def read(self, phase: Phase, number: int, trail: str, reader: int) -> Piece | None:
        """Read the piece of a message for a reader, None if it has none; raise `MessageDamaged` if it is damaged."""
        return _counted(self._read(phase, number, trail, reader))

    def _read(self, phase: Phase, number: int, trail: str, reader: int, size: int = 0) -> Piece | None:
        name, place = _name(phase, number, trail), self.place
        first = max(HEAD_BYTES, min(HEAD_PIECES * size, LONGEST_HEAD_BYTES) if is_remote(self.address) else 0)
        try:
            head = place.read_part(name, 0, first)
            start = _index_size(head)
            if start > len(head):
                head = place.read_part(name, 0, start)
            entry = _find_entry(_decode_index(head[:start], f"{self.run} {phase} {number}"), reader)
            if entry is None:
                return None
            begin = start + int(entry["begin"])
            end = begin + int(entry["length"])
            content = head[begin:end] if end <= len(head) else place.read_part(name, begin, end)
            if len(content) < end - begin or zlib.crc32(content) != entry["checksum"]:
                raise ValueError("the checksum does not match")
            return _decode_piece(content)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise MessageDamaged([(phase, number)], reason) from error

    def exists(self, phase: Phase, number: int, trail: str) -> bool:
        """Return whether a region has published a message."""
        try:
            return bool(self.place.read_part(_name(phase, number, trail), 0, 1))
        except FileNotFoundError:
            return False

    def is_intact(self, phase: Phase, number: int, trail: str) -> bool:
        """Return whether a message can be read whole."""
        content = self.place.read(_name(phase, number, trail))
        try:
            if content is None:
                return False
            size = _index_size(content)
            index = _decode_index(content[:size], f"{self.run} {phase} {number}")
            pieces = (content[size + int(entry["begin"]) :][: int(entry["length"])] for entry in index)
            return all(zlib.crc32(piece) == entry["checksum"] for piece, entry in zip(pieces, index, strict=True))
        except ValueError:
            return False

    def trails(self, phase: Phase) -> dict[int, str]:
        """Return what came of each region that has published its message after a phase so far, from a listing."""
        return {number: trail for number, trail, _ in self._listed(phase)}

    def remove(self, phase: Phase, kept: Collection[int] = ()) -> None:
        """Remove all messages after a phase, except those of some regions."""
        if not kept:
            self.place.clear(str(phase))
            return
        self.place.delete([name for number, _, name in self._listed(phase) if number not in kept])

    def discard(self, messages: Iterable[tuple[Phase, int, str]]) -> None:
        """Remove messages, each of a phase and a region with its trail, whether or not they exist."""
        # What cannot be removed now is removed with the run.
        with suppress(OSError):
            self.place.delete([_name(*message) for message in messages])

    def _listed(self, phase: Phase) -> Iterator[tuple[int, str, str]]:
        """Yield the region, the trail and the name of each message after a phase."""
        for name in self.place.names(str(phase)):
            match = _NAME.fullmatch(name.rpartition("/")[2])
            # Of quantising, which is turn -1, there is one letter.
            if match and len(match[2]) == phase.turn + 2:
                yield int(match[1]), match[2], name


def encode_message(title: str, pieces: Mapping[int, Piece]) -> bytes:
    """Encode a message with a title that says whose it is."""
    contents = {reader: _encode_piece(piece) for reader, piece in pieces.items()}
    index = np.zeros(len(contents), _ENTRY)
    begin = 0
    # Small pieces first, as they are read together with the index.
    order = sorted(contents, key=lambda reader: len(contents[reader]))
    for entry, reader in zip(index, order, strict=True):
        content = contents[reader]
        entry["reader"], entry["begin"], entry["length"] = reader, begin, len(content)
        entry["checksum"] = zlib.crc32(content)
        begin += len(content)
    text = title.encode()
    table = text + np.sort(index, order="reader").tobytes()
    numbers = _PREFIX.pack(len(text), len(index), zlib.crc32(table), 0)[:-4]
    prefix = numbers + zlib.crc32(numbers).to_bytes(4, "little")
    return b"".join([prefix, table, *(contents[reader] for reader in order)])


def _counted(piece: _Read) -> _Read:
    """Return what was read, and count its bytes in the thread of the task."""
    if isinstance(piece, dict):
        count_bytes(read=sum(part.values.nbytes for part in piece.values()))
    return piece


def _index_size(head: bytes) -> int:
    """Return the bytes of the index of a message, from its beginning."""
    if len(head) < _PREFIX.size:
        raise ValueError("it is cut short")
    title, count, _, checksum = _PREFIX.unpack_from(head)
    if zlib.crc32(head[: _PREFIX.size - 4]) != checksum:
        raise ValueError("the checksum does not match")
    return int(_PREFIX.size + title + count * _ENTRY.itemsize)


def _decode_index(head: bytes, title: str) -> NDArray[Any]:
    """Return the index of a message, by reader."""
    length, _, checksum, _ = _PREFIX.unpack_from(head)
    table = head[_PREFIX.size :]
    if zlib.crc32(table) != checksum:
        raise ValueError("the checksum does not match")
    if table[:length] != title.encode():
        raise ValueError(f"it is that of {table[:length].decode()}")
    return np.frombuffer(table, _ENTRY, offset=length)


def _find_entry(index: NDArray[Any], reader: int) -> NDArray[Any] | None:
    """Return the entry of a reader in the index of a message; None if there is none."""
    place = int(np.searchsorted(index["reader"], reader))
    return index[place] if place < len(index) and index["reader"][place] == reader else None


def _encode_piece(piece: Piece) -> bytes:
    """Encode the parts of a piece, each after a description of it."""
    contents, described = [], []
    for name, part in piece.items():
        values = np.ascontiguousarray(part.values)
        content = _codec(name, values.itemsize).encode(values) if values.nbytes else b""
        described.append((name, part.lo, values.dtype.str, values.shape, len(content)))
        contents.append(content)
    text = json.dumps(described).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *contents])


def _decode_piece(content: bytes) -> Piece:
    begin = 4 + int.from_bytes(content[:4], "little")
    piece = {}
    for name, lo, dtype, shape, length in json.loads(content[4:begin]):
        values = np.empty(shape, dtype)
        if values.nbytes:
            _codec(name, values.itemsize).decode(content[begin : begin + length], values)
        piece[name] = Part(triple(lo), values)
        begin += length
    return piece


@lru_cache
def _codec(name: str, itemsize: int) -> Blosc:
    """Return the codec of an array: messages are read once and soon removed, so speed counts for more than size."""
    shuffle = Blosc.BITSHUFFLE if name == BINS else Blosc.NOSHUFFLE if itemsize == 1 else Blosc.SHUFFLE
    return Blosc(cname="lz4", clevel=1, shuffle=shuffle)


def _name(phase: Phase, number: int, trail: str) -> str:
    return f"{phase}/{number}-{trail}"
