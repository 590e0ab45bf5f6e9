"""The journal of a run: small files beside the target that record which tasks are done.

A region's mark for a phase is written after its data. It is an empty file with the task's outcome in its name, so
reading marks only takes a listing. When all regions of a phase are marked, one record replaces the marks; it has a
checksum, because an error in it would change labels. All files lie under the run's identity, a hash of the parameters,
the source and the version, so that no run reads the files of another.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dseeds.engine.phases import Phase
from dseeds.storage.location import Location, open_location


@dataclass(frozen=True)
class Journal:
    """The marks and records of the run with the identity `run`, in its folder or prefix in a bucket."""

    address: str
    run: str

    @property
    def place(self) -> Location:
        """The location of the journal."""
        return open_location(self.address)

    def mark(self, phase: Phase, number: int, outcome: str) -> None:
        """Mark a region's task of a phase as done, with its outcome, a single word."""
        self.place.write(f"{self._folder(phase)}/{number}-{outcome}", b"")

    def marks(self, phase: Phase) -> dict[int, str]:
        """Return the outcomes of a phase's finished tasks by region."""
        names = (name.rpartition("/")[2].split("-") for name in self.place.names(self._folder(phase)))
        return {int(name[0]): name[1] for name in names if len(name) == 2}

    def unmark(self, phase: Phase, marks: dict[int, str]) -> None:
        """Remove marks."""
        self.place.delete(f"{self._folder(phase)}/{number}-{outcome}" for number, outcome in marks.items())

    def close(self, phase: Phase, record: dict[str, Any], marks: dict[int, str]) -> None:
        """Write the record of a finished phase, and remove the marks of its regions."""
        self.place.write(f"{self._folder(phase)}.json", seal(record))
        self.unmark(phase, marks)

    def record(self, phase: Phase) -> dict[str, Any] | None:
        """Return the record of a phase, None if it is not finished; raise a ValueError if it is damaged."""
        content = self.place.read(f"{self._folder(phase)}.json")
        try:
            return None if content is None else unseal(content)
        except ValueError as error:
            raise ValueError(
                f"{self.place.at(self._folder(phase)).address}.json is damaged, so the run cannot be resumed: start "
                f"again with overwrite=True (--overwrite)."
            ) from error

    def _folder(self, phase: Phase) -> str:
        return f"{self.run}/done/{phase}"


def seal(values: Mapping[str, Any]) -> bytes:
    """Encode values as JSON with a checksum.

    >>> unseal(seal({"turn": 3}))
    {'turn': 3}
    >>> unseal(seal({"turn": 3}).replace(b"3", b"4"))
    Traceback (most recent call last):
    ValueError: the checksum does not match
    """
    return json.dumps({**values, "checksum": _checksum(values)}, indent=2).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """Decode what `seal` encoded; raise a ValueError if the checksum does not match."""
    values = json.loads(content)
    if not isinstance(values, dict) or values.pop("checksum", None) != _checksum(values):
        raise ValueError("the checksum does not match")
    return values


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
