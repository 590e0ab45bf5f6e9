"""Tables of ours in single Parquet files: written whole or not at all, and known again by what their schema notes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dseeds.storage.location import Location, is_remote, open_location

# The key in a schema's metadata.
NOTE = b"dseeds"


def check_table_file(address: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse to write a table where something would be lost.

    Parameters
    ----------
    address : str or path
        The file, or its URL in an object store.
    overwrite : bool
        Whether an older table of ours may be replaced.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be overwritten, or is not this program's.
    FileNotFoundError
        If the folder that it is to lie in does not exist.
    """
    if not is_remote(address):
        path = Path(address)
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder {path.absolute().parent} for the table does not exist.")
        if path.is_symlink() or path.is_dir():
            raise FileExistsError(f"{path} is a folder or a link; it is not overwritten.")
    place, name = _split(address)
    content = place.read(name)
    if content is None:
        return
    if _kind(content) is None:
        raise FileExistsError(f"{address} exists and was not written by dseeds; it is not overwritten.")
    if not overwrite:
        raise FileExistsError(f"{address} exists; choose another, or overwrite it with overwrite=True (--overwrite).")


def write_table_file(address: str | os.PathLike[str], table: pa.Table, kind: str) -> None:
    """Write a table of some kind; see `check_table_file`, which is to be asked before."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({NOTE: json.dumps({"kind": kind})}), sink, compression="zstd")
    place, name = _split(address)
    place.write(name, sink.getvalue().to_pybytes())


def read_table_file(address: str | os.PathLike[str], kind: str) -> pa.Table:
    """Read a table of some kind.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no table of that kind.
    """
    place, name = _split(address)
    content = place.read(name)
    if content is None:
        raise FileNotFoundError(f"{address} does not exist.")
    if _kind(content) != kind:
        raise ValueError(f"{address} is no {kind} written by dseeds.")
    return pq.read_table(pa.BufferReader(content))


def _split(address: str | os.PathLike[str]) -> tuple[Location, str]:
    """Give the place that a file lies in, and its name there."""
    if is_remote(address):
        folder, _, name = os.fspath(address).rpartition("/")
        return open_location(folder), name
    path = Path(address).absolute()
    return open_location(path.parent), path.name


def _kind(content: bytes) -> str | None:
    """Tell what kind of table a file's content is; None if it is none of ours."""
    try:
        noted = json.loads((pq.read_schema(pa.BufferReader(content)).metadata or {})[NOTE])
        return str(noted["kind"])
    except (pa.ArrowException, ValueError, KeyError, TypeError):
        return None
