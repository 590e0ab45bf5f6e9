"""A column of a table as values by label: read from whatever a table comes in, and looked up for a window of labels.

Tables of few rows are held in memory. Of more, in Parquet parts that follow each other by label as `features` writes
them, a window reads the parts that it has labels of.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray
from pyarrow import csv

from dseeds.io.source import shorten, summarise_error
from dseeds.measure.kernels.painting import distinct
from dseeds.storage.location import LocalLocation, Location, open_location
from dseeds.storage.ownership import MARKER
from dseeds.storage.parquet_dataset import NOTE, TABLE, Dataset

# Rows that are held in memory whatever they come in: 16 bytes each.
HELD = 1 << 24
# Parts that a process keeps of those that it has read, of some 65536 rows each.
KEPT = 128
SEPARATORS = {".csv": ",", ".tsv": "\t", ".csv.gz": ",", ".tsv.gz": "\t"}
PARQUET = (".parquet", ".pq")

# Labels and their values; with them, where something was read, which of these are not missing.
Rows = tuple[NDArray[np.int64], NDArray[Any]]
Read = tuple[NDArray[np.int64], NDArray[Any], NDArray[np.bool_]]


class LookupTable(Protocol):
    """Values by label."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    @property
    def extremes(self) -> tuple[Any, Any]:
        """The least and the greatest value."""

    def astype(self, dtype: DTypeLike) -> LookupTable:
        """Give the same values, of another dtype."""

    def of(self, labels: NDArray[Any]) -> Rows:
        """Give labels, sorted, and their values: at least those that occur in a window and have one."""


@dataclass(frozen=True, eq=False)
class HeldValues:
    """Values in memory.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        Sorted, each once.
    values : ndarray, shape (n,)
        Of a real dtype.
    """

    labels: NDArray[np.int64]
    values: NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `LookupTable.dtype`."""
        return self.values.dtype

    @property
    def extremes(self) -> tuple[Any, Any]:
        """See `LookupTable.extremes`."""
        return (self.values.min().item(), self.values.max().item()) if self.values.size else (0, 0)

    def astype(self, dtype: DTypeLike) -> HeldValues:
        """See `LookupTable.astype`."""
        return replace(self, values=_cast(self.values, dtype))

    def of(self, labels: NDArray[Any]) -> Rows:
        """See `LookupTable.of`."""
        return self.labels, self.values


@dataclass(frozen=True, eq=False)
class PartedValues:
    """Values in the parts of a table, which follow each other by label.

    Attributes
    ----------
    parts : tuple of Part
        The parts.
    ends : ndarray of int64, shape (parts, 2)
        The first and the last label of each.
    dtype : dtype
        Of the values.
    extremes : tuple
        The least and the greatest value.
    """

    parts: tuple[TablePart, ...]
    ends: NDArray[np.int64]
    dtype: np.dtype[Any]
    extremes: tuple[Any, Any]

    def astype(self, dtype: DTypeLike) -> PartedValues:
        """See `LookupTable.astype`."""
        return replace(self, dtype=np.dtype(dtype))

    def of(self, labels: NDArray[Any]) -> Rows:
        """See `LookupTable.of`."""
        wanted = np.unique(distinct(labels.reshape(-1)))
        found = [self._of(part, wanted[lo:hi]) for part, lo, hi in self._cut(wanted)]
        nothing = np.empty(0, np.int64), np.empty(0, self.dtype)
        keys, values = zip(*found, strict=True) if found else ((), ())
        return np.concatenate([nothing[0], *keys]), np.concatenate([nothing[1], *values])

    def _cut(self, wanted: NDArray[np.int64]) -> Iterator[tuple[TablePart, int, int]]:
        """Find the parts that have any of some labels, and which."""
        begins = np.searchsorted(wanted, self.ends[:, 0])
        ends = np.searchsorted(wanted, self.ends[:, 1], side="right")
        for number in np.flatnonzero(begins < ends):
            yield self.parts[number], int(begins[number]), int(ends[number])

    def _of(self, part: TablePart, wanted: NDArray[np.int64]) -> Rows:
        labels, values = _kept(part)
        rows = np.searchsorted(labels, wanted)
        rows = np.unique(rows[rows < len(labels)])
        return labels[rows], _cast(values[rows], self.dtype)


@dataclass(frozen=True)
class TablePart:
    """A file with rows of a table.

    Attributes
    ----------
    place : Place
        Where it lies.
    key : str
        Its name there.
    label, column : str
        The columns that are read.
    opened : str
        What tells it from a file of the same name that was opened earlier, and is remembered.
    """

    place: Location
    key: str
    label: str
    column: str
    opened: str

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.place.address}/{self.key}"

    def read(self) -> Read:
        """Read labels, values, and which of these are not missing, as they lie there.

        Raises
        ------
        FileNotFoundError
            If it is gone.
        ValueError
            If it cannot be read, has no such columns, or they hold something else than numbers.
        """
        try:
            table = self._parquet() if self.key.lower().endswith(PARQUET) else self._separated()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{self.name} cannot be read as a table ({summarise_error(error)}): write it again."
            ) from error
        return _read(table, self.label, self.column, self.name)

    def _parquet(self) -> pa.Table:
        with pq.ParquetFile(self._file()) as file:
            names = _columns(file.schema_arrow.names, self.label, self.column, self.name)
            return file.read(columns=names, use_threads=False)

    def _separated(self) -> pa.Table:
        compression = "gzip" if self.key.lower().endswith(".gz") else None
        ending = next(ending for ending in SEPARATORS if self.key.lower().endswith(ending))
        split = csv.ParseOptions(delimiter=SEPARATORS[ending])
        with pa.input_stream(self._file(), compression=compression) as stream:
            names = _columns(csv.open_csv(stream, parse_options=split).schema.names, self.label, self.column, self.name)
        # Arrow takes the type from the first rows, of which all may be whole by chance.
        for types in ({}, {self.column: pa.float64()}):
            wanted = csv.ConvertOptions(include_columns=names, column_types=types)
            with pa.input_stream(self._file(), compression=compression) as stream:
                try:
                    return csv.read_csv(stream, parse_options=split, convert_options=wanted)
                except pa.ArrowInvalid:
                    if types:
                        raise
        raise AssertionError("the loop returns or raises")

    def _file(self) -> Any:
        # Of a file on this machine no more is read than the columns.
        if isinstance(self.place, LocalLocation):
            return str(self.place.path / self.key)
        content = self.place.read(self.key)
        if content is None:
            raise FileNotFoundError(f"{self.name} does not exist")
        return BytesIO(content)


@lru_cache(maxsize=KEPT)
def _kept(part: TablePart) -> Rows:
    """Read a part, or remember it: neighbouring regions have labels of the same ones."""
    labels, values, known = part.read()
    return labels[known], values[known]


def open_values(table: Any, column: str | None, label: str = "label") -> LookupTable:
    """Open a column of a table as values by label.

    Parameters
    ----------
    table, column, label_column
        See `dseeds.paint`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the table has no such columns or no rows, if they hold no numbers, or a label has several rows.
    TypeError
        If it is no table.

    Examples
    --------
    >>> open_values({7: 70.5, 3: None, 2: 1}, None).of(np.array([7]))
    (array([2, 7]), array([ 1. , 70.5]))
    """
    if isinstance(table, Mapping) and column is None:
        table, column = {label: list(table.keys()), "value": list(table.values())}, "value"
    if column is None:
        raise ValueError("the table has columns: say with column= (--column) which one holds the values.")
    # Features have an address, or a table in memory.
    address = table if isinstance(table, str | os.PathLike) else getattr(table, "address", None)
    if address is not None:
        opened = uuid.uuid4().hex
        return _opened([TablePart(place, key, label, column, opened) for place, key in _files(str(os.fspath(address)))])
    return _held([_read(_arrow(getattr(table, "table", table), label, column), label, column, "the table")])


def _files(address: str) -> Iterator[tuple[Location, str]]:
    """List the files of a table: itself, the Parquet in a folder, or the parts of a folder of features."""
    place = open_location(address)
    names = sorted(place.names(), key=lambda name: (len(name), name))
    if {NOTE, MARKER} & set(names):
        # An unfinished one is refused.
        Dataset(open_location(address)).note()
        names = [name for name in names if name.startswith(f"{TABLE}/")]
    found = [name for name in names if name.lower().endswith(PARQUET)]
    if names and not found:
        raise ValueError(f"{address} is a folder without Parquet files: name one that has some, or a file.")
    if found:
        yield from ((place, name) for name in found)
        return
    parent, _, key = place.address.rpartition("/")
    if not key.lower().endswith((*PARQUET, *SEPARATORS)):
        exists = not isinstance(place, LocalLocation) or place.path.exists()
        wanted = "name a folder of features, or a file that ends in .parquet, .csv or .tsv"
        raise (ValueError if exists else FileNotFoundError)(f"{address} is no table that there is: {wanted}.")
    if isinstance(place, LocalLocation) and not place.path.is_file():
        raise FileNotFoundError(f"{address} does not exist")
    yield open_location(parent or "/"), key


def _opened(parts: Sequence[TablePart]) -> LookupTable:
    held, rows = [], 0
    for part in parts:
        held.append(part.read())
        rows += len(held[-1][0])
        if rows > HELD:
            held.clear()
            return _parted(parts) or _held([part.read() for part in parts])
    return _held(held)


def _parted(parts: Sequence[TablePart]) -> PartedValues | None:
    """Look through parts that follow each other by label; None if they do not."""
    ends: list[tuple[int, int]] = []
    extremes, dtypes, found = [], [], []
    for part in parts:
        labels, values, known = part.read()
        if not len(labels):
            continue
        if (labels[1:] <= labels[:-1]).any() or (ends and ends[-1][1] >= labels[0]):
            return None
        found.append(part)
        ends.append((int(labels[0]), int(labels[-1])))
        dtypes.append(values.dtype)
        if known.any():
            extremes += [values[known].min().item(), values[known].max().item()]
    span = min(extremes, default=0), max(extremes, default=0)
    return PartedValues(tuple(found), np.array(ends, np.int64), np.result_type(*dtypes), span)


def _held(pieces: Sequence[Read]) -> HeldValues:
    labels, values, known = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    if not len(labels):
        raise ValueError("the table has no rows.")
    order = np.argsort(labels, kind="stable")
    labels, values, known = labels[order], values[order], known[order]
    twice = np.flatnonzero(labels[1:] == labels[:-1])
    if len(twice):
        raise ValueError(f"the table has more than one row for label {labels[twice[0]]}: keep one for each label.")
    return HeldValues(labels[known], values[known])


def _arrow(table: Any, label: str, column: str) -> pa.Table:
    """Make an Arrow table of two columns of a table in memory."""
    if hasattr(table, "reset_index"):
        # pandas, where labels are often the index.
        table = table.reset_index() if label in table.index.names and label not in table.columns else table
        return pa.Table.from_pandas(table[_columns(list(table.columns), label, column, "the table")])
    if isinstance(table, Mapping):
        names = _columns(list(table), label, column, "the table")
        return pa.table({name: _array(table[name], name) for name in names})
    if not hasattr(table, "__arrow_c_stream__") and not isinstance(table, pa.RecordBatch):
        raise TypeError(
            f"a table is a path or URL, features, a pandas, polars or Arrow table, or a dict, "
            f"not {type(table).__module__}.{type(table).__qualname__}"
        )
    found = pa.table(table)
    return found.select(_columns(found.column_names, label, column, "the table"))


def _array(items: Any, name: str) -> pa.Array:
    try:
        return pa.array(items)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"the table holds more than numbers of 64 bits in its column {name!r}: {error}") from error


def _columns(names: Sequence[Any], label: str, column: str, where: str) -> list[str]:
    """Check that a table has two columns, once each."""
    for name in (label, column):
        if list(names).count(name) != 1:
            there = shorten(", ".join(map(str, names)), 600)
            many = "no" if name not in names else "more than one"
            raise ValueError(f"{where} has {many} column {name!r}: its columns are {there}.")
    return list(dict.fromkeys((label, column)))


def _read(table: pa.Table, label: str, column: str, where: str) -> Read:
    """Take labels and values out of an Arrow table, and which values are not missing."""
    if not len(table):
        # Its columns have no types.
        return np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.bool_)
    labels, values = table[label], table[column]
    if not (pa.types.is_integer(labels.type) or pa.types.is_floating(labels.type)) or labels.null_count:
        held = "missing labels" if labels.null_count else f"values of type {labels.type}"
        raise ValueError(f"{where} has {held} in its column {label!r}: there must be an integer in every row.")
    try:
        ids = labels.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        ids = np.array([-1])
    if ids.size and ids.min() < 0:
        raise ValueError(f"{where} has labels in its column {label!r} that are not integers from 0 to 2^63 - 1.")
    kind = values.type
    if pa.types.is_boolean(kind) or kind == pa.float16():
        values = values.cast(pa.uint8() if pa.types.is_boolean(kind) else pa.float32())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(
            f"{where} has values of type {kind} in its column {column!r}: name one of numbers or truth values, or "
            f"number what they stand for."
        )
    known = np.asarray(values.is_valid())
    numbers = values.fill_null(0).to_numpy()
    return ids, numbers, known & ~np.isnan(numbers) if numbers.dtype.kind == "f" else known


def _cast(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    # Who asks for fewer digits knows that they do not reach as far.
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)
