"""A column of a table as a lookup from label to value, for tables of any origin and size.

Tables of few rows are held in memory. A larger table in Parquet parts that are sorted by label, as `features` writes
them, stays on disk, and a window reads only the parts that contain its labels.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray
from pyarrow import csv
from pyarrow.compute import add

from dseeds.io.source import shorten, summarise_error
from dseeds.measure.annotated_matrix import anndata_origin, is_anndata
from dseeds.measure.identity import TableOrigin, folder_origin
from dseeds.measure.kernels.painting import labels_of_runs
from dseeds.storage.location import LocalLocation, Location, open_location, open_parent
from dseeds.storage.parquet_dataset import TABLE, Dataset, stored_kind
from dseeds.storage.table_file import read_note

# Tables of up to this many rows, of 16 bytes each, are held in memory.
MAX_HELD_ROWS = 1 << 24
# Parts that a process caches, of some 65536 rows each.
CACHED_PARTS = 128
SEPARATORS = {".csv": ",", ".tsv": "\t", ".csv.gz": ",", ".tsv.gz": "\t"}
PARQUET_ENDINGS = (".parquet", ".pq")


class ColumnPair(NamedTuple):
    """Two columns of a table, as they are stored: labels, values, and which values are not missing.

    `categories` are the names of the values from 1, if these number categories; `origin` are the labels that the table
    was made from, if its file records them.
    """

    labels: NDArray[np.int64]
    values: NDArray[Any]
    valid: NDArray[np.bool_]
    categories: tuple[str, ...] = ()
    origin: TableOrigin | None = None


class LookupTable(Protocol):
    """Values by label."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""

    @property
    def extremes(self) -> tuple[Any, Any]:
        """The smallest and the largest value."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the values from 1, if these number categories."""

    @property
    def origin(self) -> TableOrigin | None:
        """The labels that the table was made from; None if it does not know them, as those of other programs."""

    def astype(self, dtype: DTypeLike) -> LookupTable:
        """Return the same table with values of another dtype."""

    def select(self, labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return labels, sorted, and their values: at least those that occur in a window and have a value."""


@dataclass(frozen=True, eq=False)
class HeldValues:
    """Values in memory, for labels that are sorted and unique."""

    labels: NDArray[np.int64]
    values: NDArray[Any]
    categories: tuple[str, ...] = ()
    origin: TableOrigin | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def extremes(self) -> tuple[Any, Any]:
        """The smallest and the largest value."""
        return (self.values.min().item(), self.values.max().item()) if self.values.size else (0, 0)

    def astype(self, dtype: DTypeLike) -> HeldValues:
        """Return the same table with values of another dtype."""
        return replace(self, values=_cast(self.values, dtype))

    def select(self, labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return all labels and their values."""
        return self.labels, self.values


@dataclass(frozen=True, eq=False)
class PartedValues:
    """Values in the parts of a table that is sorted by label; `ends` (parts, 2) are their first and last labels."""

    parts: tuple[TablePart, ...]
    ends: NDArray[np.int64]
    dtype: np.dtype[Any]
    extremes: tuple[Any, Any]
    # Files do not number categories.
    categories: tuple[str, ...] = ()
    origin: TableOrigin | None = None

    def astype(self, dtype: DTypeLike) -> PartedValues:
        """Return the same table with values of another dtype."""
        return replace(self, dtype=np.dtype(dtype))

    def select(self, labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return labels of a window, sorted, and their values."""
        occurring = np.unique(labels_of_runs(labels.reshape(-1)))
        begins = np.searchsorted(occurring, self.ends[:, 0])
        stops = np.searchsorted(occurring, self.ends[:, 1], side="right")
        keys, values = [np.empty(0, np.int64)], [np.empty(0, self.dtype)]
        for number in np.flatnonzero(begins < stops):
            part = _read_cached(self.parts[number])
            rows = np.searchsorted(part.labels, occurring[begins[number] : stops[number]])
            rows = np.unique(rows[rows < len(part.labels)])
            keys.append(part.labels[rows])
            values.append(_cast(part.values[rows], self.dtype))
        return np.concatenate(keys), np.concatenate(values)


@dataclass(frozen=True)
class TablePart:
    """A file with rows of a table, and the names of the columns to read.

    The `token` distinguishes the file from one of the same name that was opened earlier and is cached.
    """

    location: Location
    key: str
    label: str
    column: str
    token: str

    @property
    def name(self) -> str:
        """The address of the file."""
        return f"{self.location.address}/{self.key}"

    def read(self) -> ColumnPair:
        """Read the columns; raise a ValueError if the file is no table, or lacks them, or they do not hold numbers."""
        try:
            table = self._read_parquet() if self.key.lower().endswith(PARQUET_ENDINGS) else self._read_csv()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{self.name} cannot be read as a table ({summarise_error(error)}): write it again."
            ) from error
        origin = TableOrigin.of_file(read_note(table.schema), self.name)
        return _extract_columns(table, self.label, self.column, self.name)._replace(origin=origin)

    def _read_parquet(self) -> pa.Table:
        with pq.ParquetFile(self._open()) as file:
            names = _check_columns(file.schema_arrow.names, self.label, self.column, self.name)
            return file.read(columns=names, use_threads=False)

    def _read_csv(self) -> pa.Table:
        name = self.key.lower()
        compression = "gzip" if name.endswith(".gz") else None
        parsing = csv.ParseOptions(delimiter=next(SEPARATORS[ending] for ending in SEPARATORS if name.endswith(ending)))
        with pa.input_stream(self._open(), compression=compression) as stream:
            names = csv.open_csv(stream, parse_options=parsing).schema.names
        names = _check_columns(names, self.label, self.column, self.name)

        def read(types: Mapping[str, pa.DataType]) -> pa.Table:
            conversion = csv.ConvertOptions(include_columns=names, column_types=types)
            with pa.input_stream(self._open(), compression=compression) as stream:
                return csv.read_csv(stream, parse_options=parsing, convert_options=conversion)

        try:
            return read({})
        except pa.ArrowInvalid:
            # Arrow infers the type from the first rows, which may be whole numbers by chance.
            return read({self.column: pa.float64()})

    def _open(self) -> Any:
        # Of a local file, only the columns are read.
        if isinstance(self.location, LocalLocation):
            return str(self.location.path / self.key)
        content = self.location.read(self.key)
        if content is None:
            raise FileNotFoundError(f"{self.name} does not exist")
        return BytesIO(content)


@lru_cache(maxsize=CACHED_PARTS)
def _read_cached(part: TablePart) -> HeldValues:
    """Read a part's rows with a value. Neighbouring regions often have labels of the same part."""
    labels, values, valid, *_ = part.read()
    return HeldValues(labels[valid], values[valid])


def open_values(table: Any, column: str | None, label: str = "label") -> LookupTable:
    """Open a column of a table as a lookup from label to value; see `dseeds.paint` for the parameters and errors.

    Examples
    --------
    >>> open_values({7: 70.5, 3: None, 2: 1}, None).select(np.array([7]))
    (array([2, 7]), array([ 1. , 70.5]))
    """
    if is_anndata(table):
        return replace(_open_table(table.obs, column, label), origin=anndata_origin(table))
    return _open_table(table, column, label)


def _open_table(table: Any, column: str | None, label: str) -> HeldValues | PartedValues:
    """Open a column of what is no AnnData matrix."""
    by_label = _read_by_label(table, column)
    if by_label is not None:
        label, column = "label", "value"
        return _hold([_extract_columns(by_label, label, column, "the table")])
    # Features have an address, or a table in memory.
    origin = origin_of(table)
    address = table if isinstance(table, str | os.PathLike) else getattr(table, "address", None)
    table = getattr(table, "table", table)
    if address is None and not _has_columns(table):
        raise TypeError(
            f"a table is a path or URL, features, a pandas, polars or Arrow table, a Series, a vector by label or a "
            f"dict, not {type(table).__module__}.{type(table).__qualname__}"
        )
    if column is None:
        raise ValueError("the table has columns: say with column= (--column) which one holds the values.")
    if address is None:
        columns = _to_arrow(table, label, column)
        return replace(_hold([_extract_columns(columns, label, column, "the table")]), origin=origin)
    return _open_files(str(os.fspath(address)), column, label)


def origin_of(table: Any) -> TableOrigin | None:
    """Return the origin of tables, graphs or classes of this program in memory; None for everything else."""
    origin = getattr(table, "origin", None)
    return origin if isinstance(origin, TableOrigin) else None


def _open_files(address: str, column: str, label: str) -> HeldValues | PartedValues:
    """Open a column of a table in files."""
    files, token = _list_files(address), uuid.uuid4().hex
    parts = [TablePart(location, key, label, column, token) for location, key in files]
    pairs, rows = [], 0
    for part in parts:
        pairs.append(part.read())
        rows += len(pairs[-1].labels)
        if rows > MAX_HELD_ROWS:
            pairs.clear()
            values = _scan_parts(parts) or _hold([part.read() for part in parts])
            return replace(values, origin=_read_origin(address, None))
    return replace(_hold(pairs), origin=_read_origin(address, pairs[0].origin))


def _read_origin(address: str, of_file: TableOrigin | None) -> TableOrigin | None:
    """Return the origin of a table in files: that of its folder, or else that of its first file."""
    location = open_location(address)
    kind = stored_kind(location, list(location.names()))
    return of_file if kind is None else folder_origin(Dataset(location, kind))


def _read_by_label(table: Any, column: str | None) -> pa.Table | None:
    """Return an Arrow table of what has values by label without being a table; None for everything else."""
    labels: Any
    values: Any = table
    if isinstance(table, Mapping) and column is None:
        labels, values = list(table.keys()), list(table.values())
    elif hasattr(table, "index") and hasattr(table, "to_frame") and not hasattr(table, "columns"):
        # A Series of pandas.
        labels = table.index.to_numpy()
    elif isinstance(table, list | tuple | pa.Array | pa.ChunkedArray) or _is_polars_series(table):
        labels = np.arange(len(table))
    elif hasattr(table, "__array__") and not _has_columns(table):
        values = np.asarray(table)
        if values.ndim != 1:
            raise ValueError(f"a vector of values by label has one axis, but this array has shape {values.shape}.")
        labels = np.arange(len(values))
    else:
        return None
    return pa.table({"label": _to_array(labels, "label"), "value": _to_array(values, "value")})


def _has_columns(table: Any) -> bool:
    """Return whether a value is a table in memory."""
    # The first of these is that of pandas: arrays of xarray have the other methods of its tables.
    is_table = hasattr(table, "iterrows") or hasattr(table, "__arrow_c_stream__")
    return is_table or isinstance(table, Mapping | pa.RecordBatch)


def _is_polars_series(table: Any) -> bool:
    return type(table).__module__.startswith("polars.") and type(table).__name__ == "Series"


def _list_files(address: str) -> Iterator[tuple[Location, str]]:
    """Yield the files of a table: the file itself, the Parquet files of a folder, or the parts of a measured table."""
    location = open_location(address)
    names = sorted(location.names(), key=lambda name: (len(name), name))
    if (kind := stored_kind(location, names)) is not None:
        # Raises if the folder is unfinished.
        Dataset(location, kind).note()
        names = [name for name in names if name.startswith(f"{TABLE}/")]
    parts = [name for name in names if name.lower().endswith(PARQUET_ENDINGS)]
    if parts:
        yield from ((location, name) for name in parts)
        return
    if names or (isinstance(location, LocalLocation) and location.path.is_dir()):
        raise ValueError(f"{address} is a folder without Parquet files: name one that has some, or a file.")
    is_missing = isinstance(location, LocalLocation) and not location.path.exists()
    if is_missing or not location.address.lower().endswith((*PARQUET_ENDINGS, *SEPARATORS)):
        raise (FileNotFoundError if is_missing else ValueError)(
            f"{address} {'does not exist' if is_missing else 'is not a table'}: name a folder of features, or a file "
            "that ends in .parquet, .csv or .tsv."
        )
    yield open_parent(address)


def _scan_parts(parts: Sequence[TablePart]) -> PartedValues | None:
    """Read through parts that are sorted by label, one at a time; return None if they are not."""
    ends: list[tuple[int, int]] = []
    extremes, dtypes, filled = [], [], []
    for part in parts:
        labels, values, valid, *_ = part.read()
        if not len(labels):
            continue
        if (labels[1:] <= labels[:-1]).any() or (ends and ends[-1][1] >= labels[0]):
            return None
        filled.append(part)
        ends.append((int(labels[0]), int(labels[-1])))
        dtypes.append(values.dtype)
        if valid.any():
            extremes += [values[valid].min().item(), values[valid].max().item()]
    span = min(extremes, default=0), max(extremes, default=0)
    return PartedValues(tuple(filled), np.array(ends, np.int64), np.result_type(*dtypes), span)


def _hold(pairs: Sequence[ColumnPair]) -> HeldValues:
    labels, values, valid = (np.concatenate(arrays) for arrays in zip(*(pair[:3] for pair in pairs), strict=True))
    if not len(labels):
        raise ValueError("the table has no rows.")
    order = np.argsort(labels, kind="stable")
    labels, values, valid = labels[order], values[order], valid[order]
    repeated = np.flatnonzero(labels[1:] == labels[:-1])
    if len(repeated):
        raise ValueError(f"the table has more than one row for label {labels[repeated[0]]}: keep one for each label.")
    return HeldValues(labels[valid], values[valid], pairs[0].categories)


def _to_arrow(table: Any, label: str, column: str) -> pa.Table:
    """Return two columns of a table in memory as an Arrow table."""
    if hasattr(table, "reset_index"):
        # In pandas, labels are often the index.
        table = table.reset_index() if label in table.index.names and label not in table.columns else table
        return pa.Table.from_pandas(table[_check_columns(list(table.columns), label, column, "the table")])
    if isinstance(table, Mapping):
        names = _check_columns(list(table), label, column, "the table")
        return pa.table({name: _to_array(table[name], name) for name in names})
    arrow = pa.table(table)
    return arrow.select(_check_columns(arrow.column_names, label, column, "the table"))


def _to_array(items: Any, name: str) -> Any:
    try:
        if isinstance(items, pa.ChunkedArray):
            return items
        return items.to_arrow() if _is_polars_series(items) else pa.array(items)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"the table holds more than numbers of 64 bits in its column {name!r}: {error}") from error


def _check_columns(names: Sequence[Any], label: str, column: str, where: str) -> list[str]:
    """Return the names of the columns to read; raise a ValueError unless a table has each of them once."""
    for name in (label, column):
        if list(names).count(name) != 1:
            listing = shorten(", ".join(map(str, names)), 600)
            count = "no" if name not in names else "more than one"
            raise ValueError(f"{where} has {count} column {name!r}: its columns are {listing}.")
    return list(dict.fromkeys((label, column)))


def is_numeric(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is an integer or a float."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _extract_columns(table: pa.Table, label: str, column: str, where: str) -> ColumnPair:
    """Check the two columns of an Arrow table, and return them as arrays."""
    if not len(table):
        # Empty columns may have no type.
        return ColumnPair(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.bool_))
    labels, values = table[label], table[column]
    if not is_numeric(labels.type) or labels.null_count:
        content = "missing labels" if labels.null_count else f"values of type {labels.type}"
        raise ValueError(f"{where} has {content} in its column {label!r}: there must be an integer in every row.")
    try:
        ids = labels.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        ids = np.array([-1])
    if ids.min() < 0:
        raise ValueError(f"{where} has labels in its column {label!r} that are not integers from 0 to 2^63 - 1.")
    categories: tuple[str, ...] = ()
    if pa.types.is_dictionary(values.type):
        values, categories = _number_categories(values, column, where)
    kind = values.type
    if pa.types.is_boolean(kind) or kind == pa.float16():
        values = values.cast(pa.uint8() if pa.types.is_boolean(kind) else pa.float32())
    elif not is_numeric(kind):
        raise ValueError(
            f"{where} has values of type {kind} in its column {column!r}: name a column of numbers, booleans or "
            f"categories, or number the values."
        )
    valid = np.asarray(values.is_valid())
    numbers = values.fill_null(0).to_numpy()
    valid = valid & ~np.isnan(numbers) if numbers.dtype.kind == "f" else valid
    return ColumnPair(ids, numbers, valid, categories)


def _number_categories(values: Any, column: str, where: str) -> tuple[Any, tuple[str, ...]]:
    """Return categories that are numbers as these; number all others from 1, in their order, and return their names."""
    if is_numeric(values.type.value_type) or pa.types.is_boolean(values.type.value_type):
        return values.cast(values.type.value_type), ()
    if where != "the table":
        # Each part of a table in files may number them in another way.
        raise ValueError(
            f"{where} has categories in its column {column!r}, which a file does not number: number the values, or "
            "read the table first."
        )
    unified = values.unify_dictionaries() if isinstance(values, pa.ChunkedArray) else values
    codes = unified.combine_chunks() if isinstance(unified, pa.ChunkedArray) else unified
    return add(codes.indices.cast(pa.int64()), 1), tuple(map(str, codes.dictionary.to_pylist()))


def _cast(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    # A float dtype that the user chose may have a smaller range.
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)
