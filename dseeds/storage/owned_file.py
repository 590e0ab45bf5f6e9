"""Pictures and pages in single files, which carry a mark by which this program recognises them."""

from __future__ import annotations

from pathlib import Path

from dseeds.storage.location import open_parent
from dseeds.storage.ownership import check_file

# Near the beginning of each file.
MARK = "made by dseeds"
_HEAD = 4096


def check_own_file(address: str | Path, overwrite: bool) -> None:
    """Raise unless a picture or page may be written; see `dseeds.storage.ownership.check_file`."""
    check_file(address, overwrite, lambda location, name: MARK.encode() in location.read_part(name, 0, _HEAD))


def write_own_file(address: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    location, name = open_parent(address)
    location.write(name, content)
