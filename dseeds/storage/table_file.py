"""Tables in single Parquet files, written atomically and recognised by the metadata of their schema."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dseeds.storage.location import LocalLocation, Location, open_parent
from dseeds.storage.ownership import check_file

_METADATA_KEY = b"dseeds"


def check_table_file(address: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise unless a table may be written; see `dseeds.storage.ownership.check_file`."""
    check_file(address, overwrite, _is_our_table, "table")


def _is_our_table(location: Location, name: str) -> bool:
    if isinstance(location, LocalLocation) and ((path := location.path / name).is_symlink() or path.is_dir()):
        return False
    content = location.read(name)
    if content is None:
        raise FileNotFoundError(name)
    return _kind(content) is not None


def write_table_file(
    address: str | os.PathLike[str], table: pa.Table, kind: str, note: Mapping[str, Any] | None = None
) -> None:
    """Write a table of some kind, with a note in its metadata. Call `check_table_file` first."""
    sink = pa.BufferOutputStream()
    metadata = {_METADATA_KEY: json.dumps({"kind": kind, **(note or {})})}
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    location, name = open_parent(address)
    location.write(name, sink.getvalue().to_pybytes())


def read_table_file(address: str | os.PathLike[str], kind: str) -> pa.Table:
    """Read a table; raise a FileNotFoundError if it does not exist, a ValueError if it is of another kind."""
    location, name = open_parent(address)
    content = location.read(name)
    if content is None:
        raise FileNotFoundError(f"{address} does not exist.")
    if _kind(content) != kind:
        raise ValueError(f"{address} is not a {kind} written by dseeds.")
    return pq.read_table(pa.BufferReader(content))


def read_note(schema: pa.Schema) -> dict[str, Any]:
    """Return the note in the metadata of a table that this program wrote; empty for any other table."""
    try:
        return dict(json.loads((schema.metadata or {})[_METADATA_KEY]))
    except (ValueError, KeyError, TypeError):
        return {}


def _kind(content: bytes) -> str | None:
    """Return the kind of a table that this program wrote, or None for any other file."""
    try:
        return str(read_note(pq.read_schema(pa.BufferReader(content)))["kind"])
    except (pa.ArrowException, KeyError):
        return None
