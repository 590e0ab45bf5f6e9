"""The journal of a run: small files that say what is done, beside the target, and outlive everything.

A mark per region and phase is written after the region's data; it is an empty file whose name says it all, so that
reading marks is listing names. When all regions of a phase are marked, one record takes their place, with a checksum of
its own: a wrong word in it would be a wrong answer. All lies under the run's identity, a hash of the parameters, the
source and the version, so that nothing is ever mistaken for something of another run.
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
    """What is done of one run.

    Attributes
    ----------
    address : str
        The run's folder, or its prefix in a bucket.
    run : str
        The run's identity.
    """

    address: str
    run: str

    @property
    def place(self) -> Location:
        """Where it lies."""
        return open_location(self.address)

    def mark(self, phase: Phase, number: int, found: str) -> None:
        """Note that a region's task of a phase is done, and what it found, a word."""
        self.place.write(f"{self._folder(phase)}/{number}-{found}", b"")

    def marks(self, phase: Phase) -> dict[int, str]:
        """Give what the tasks of a phase that are done have found, by region."""
        names = (name.rpartition("/")[2].split("-") for name in self.place.names(self._folder(phase)))
        return {int(number): found for number, found in (name for name in names if len(name) == 2)}

    def unmark(self, phase: Phase, marks: dict[int, str]) -> None:
        """Take marks back."""
        self.place.delete(f"{self._folder(phase)}/{number}-{found}" for number, found in marks.items())

    def close(self, phase: Phase, record: dict[str, Any], marks: dict[int, str]) -> None:
        """Note that a phase is done, and what it found; the marks of its regions are wanted no more."""
        self.place.write(f"{self._folder(phase)}.json", seal(record))
        self.unmark(phase, marks)

    def record(self, phase: Phase) -> dict[str, Any] | None:
        """Give what a phase found; None if it is not done.

        Raises
        ------
        ValueError
            If the record is damaged.
        """
        content = self.place.read(f"{self._folder(phase)}.json")
        try:
            return None if content is None else unseal(content)
        except ValueError as error:
            raise ValueError(
                f"{self.place.at(self._folder(phase)).address}.json is damaged, without which the run cannot be gone "
                f"on with: begin anew with overwrite=True (--overwrite)."
            ) from error

    def _folder(self, phase: Phase) -> str:
        return f"{self.run}/done/{phase}"


def seal(values: Mapping[str, Any]) -> bytes:
    """Write values as JSON, with their checksum.

    Examples
    --------
    >>> unseal(seal({"turn": 3}))
    {'turn': 3}
    >>> unseal(seal({"turn": 3}).replace(b"3", b"4"))
    Traceback (most recent call last):
    ValueError: the checksum is another
    """
    return json.dumps({**values, "checksum": _checksum(values)}, indent=2).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """Read what `seal` wrote.

    Raises
    ------
    ValueError
        If it is not as it was written.
    """
    values = json.loads(content)
    if not isinstance(values, dict) or values.pop("checksum", None) != _checksum(values):
        raise ValueError("the checksum is another")
    return values


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
