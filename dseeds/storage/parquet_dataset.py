"""A folder that holds tables of supervoxels, such as their features and region adjacency graph, as Parquet files.

A note that is written last makes the folder complete. Files that this program did not write are never touched.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dseeds.storage.location import LocalLocation, Location
from dseeds.storage.ownership import MARKER, SCRATCH, check_folder, check_overwrite, remove_marker

TABLE, EDGES, COUNTS = "table.parquet", "edges.parquet", "counts.parquet"
# The folder for parts that are to replace others.
_STAGED = f"{SCRATCH}/staged"
_PART = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True)
class DatasetKind:
    """A kind of folder, named like the command that writes it, and the tables in it."""

    name: str
    tables: tuple[str, ...]

    @property
    def note(self) -> str:
        """The name of the file that makes a folder complete."""
        return f"dseeds-{self.name}.json"


FEATURES = DatasetKind("features", (TABLE, EDGES))
VOTES = DatasetKind("vote", (TABLE, COUNTS))
POOLS = DatasetKind("pool", (TABLE,))
TEXTURES = DatasetKind("textures", (TABLE,))
KINDS = (FEATURES, VOTES, POOLS, TEXTURES)


@dataclass(frozen=True)
class Dataset:
    """A folder of tables, each stored in numbered parts.

    `run` is the run that writes the folder, as in its marker; it is empty for a folder that is only read.
    """

    location: Location
    kind: DatasetKind = FEATURES
    run: str = ""

    @property
    def address(self) -> str:
        """The folder's path or URL."""
        return self.location.address

    @property
    def scratch(self) -> Location:
        """The location of intermediate data while the folder is written."""
        return self.location.at(SCRATCH)

    def note(self) -> dict[str, Any]:
        """Return the note of a complete folder; raise a FileNotFoundError if there is none."""
        content = self.location.read(self.kind.note)
        if content is None:
            raise FileNotFoundError(
                f"{self.address} holds no tables of dseeds {self.kind.name}, or not all of them: run that command."
            )
        return dict(json.loads(content))

    def check(self, overwrite: bool) -> None:
        """Raise a FileExistsError or FileNotFoundError unless the folder may be written."""
        check_folder(self.location, self.kind.name)
        names = list(self.location.names())
        if not names:
            return
        stored = stored_kind(self.location, names)
        stranger = next((name for name in names if not _is_our_name(name, stored or self.kind)), None)
        if stored is None:
            stranger = stranger or names[0]
        elif stored != self.kind:
            check_overwrite(self.address, overwrite, is_ours=False, kind=f"the output of dseeds {self.kind.name}")
        check_overwrite(self.address, overwrite or MARKER in names, is_ours=True, stranger=stranger)

    def begin(self) -> Dataset:
        """Replace an older dataset by an incomplete one of a new run, and return it for writing."""
        run = uuid.uuid4().hex
        self.location.write(MARKER, json.dumps({"run": run, "kind": self.kind.name}).encode())
        self._clear()
        return replace(self, run=run)

    def check_own(self) -> None:
        """Raise RuntimeError if the folder is complete, or another run writes it."""
        if not self._is_own():
            raise RuntimeError(f"{self.address} is no longer this run's to write to.")

    def _is_own(self) -> bool:
        return bool(self.run) and json.loads(self.location.read(MARKER) or b"{}").get("run") == self.run

    def publish(self, note: Mapping[str, Any]) -> None:
        """Write the note that makes the folder complete."""
        self.check_own()
        self.location.clear(SCRATCH)
        self.location.write(self.kind.note, json.dumps(note, indent=2).encode())
        self.location.delete([MARKER])

    def abandon(self) -> None:
        """Remove what this run has written, unless another run writes the folder by now."""
        if not self._is_own():
            return
        self._clear()
        remove_marker(self.location)

    def _clear(self) -> None:
        # The note goes first: without it, the folder does not pass for complete.
        self.location.delete([self.kind.note])
        for name in (*self.kind.tables, SCRATCH):
            self.location.clear(name)

    def write(self, name: str, part: int, table: pa.Table) -> None:
        """Write a part of a table."""
        self.check_own()
        self.location.write(f"{name}/part-{part:05}.parquet", _encode(table))

    def parts(self, name: str) -> list[int]:
        """Return the numbers of a table's parts, sorted."""
        matches = (_PART.fullmatch(key.rpartition("/")[2]) for key in self.location.names(name))
        return sorted(int(match[1]) for match in matches if match)

    def read(self, name: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some or all columns of a part of a table."""
        with self.open(name, part) as file:
            return file.read(columns=None if columns is None else list(columns))

    def open(self, name: str, part: int) -> pq.ParquetFile:
        """Open a part of a table; a remote part is read whole, a local one as needed."""
        key = f"{name}/part-{part:05}.parquet"
        if isinstance(self.location, LocalLocation) and (path := self.location.path / key).is_file():
            return pq.ParquetFile(path)
        content = self.location.read(key)
        if content is None:
            raise FileNotFoundError(
                f"{self.address} lacks part {part} of its {name}: make it again with dseeds {self.kind.name}."
            )
        return pq.ParquetFile(BytesIO(content))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all parts of a table; raise FileNotFoundError if the folder is incomplete."""
        self.note()
        return pa.concat_tables(self.read(name, part, columns) for part in self.parts(name))

    def read_rows(
        self,
        labels: NDArray[np.int64],
        columns: Sequence[str],
        ends: Sequence[tuple[int, int]],
        *,
        missing_ok: bool = False,
    ) -> pa.Table:
        """Read the labels and some columns of the feature table for sorted labels, which it has unless `missing_ok`.

        `ends` are the first and the last label of each part of the table.
        """
        columns = ["label", *columns]
        empty = self.read(TABLE, 0, columns).slice(0, 0)
        return pa.concat_tables([empty, *self._rows_by_part(labels, columns, ends, missing_ok)]).combine_chunks()

    def _rows_by_part(
        self, labels: NDArray[np.int64], columns: Sequence[str], ends: Sequence[tuple[int, int]], missing_ok: bool
    ) -> Iterator[pa.Table]:
        for part, (first, last) in enumerate(ends):
            lo, hi = np.searchsorted(labels, first), np.searchsorted(labels, last, side="right")
            if lo == hi:
                continue
            table = self.read(TABLE, part, columns)
            stored, wanted = table["label"].to_numpy(), labels[lo:hi]
            if missing_ok:
                wanted = wanted[np.isin(wanted, stored)]
            yield table.take(pa.array(np.searchsorted(stored, wanted)))

    def begin_update(self) -> Dataset:
        """Begin an update of a complete dataset, which stays as it is until the update is published."""
        self.location.clear(SCRATCH)
        return replace(self, run=uuid.uuid4().hex)

    def stage(self, name: str, part: int, table: pa.Table) -> None:
        """Write a part that is to replace one, or to be added, when the update is published."""
        self.location.write(f"{_STAGED}/{name}/part-{part:05}.parquet", _encode(table))

    def publish_update(self, note: Mapping[str, Any]) -> None:
        """Put the staged parts and a note into their places."""
        document = {"run": self.run, "kind": self.kind.name, "note": note}
        self.location.write(MARKER, json.dumps(document).encode())
        self.finish_update()

    def move_staged(self, key: str) -> None:
        """Put a staged part into its place, and keep it until all are in theirs."""
        content = self.location.read(key)
        assert content is not None
        self.location.write(key.removeprefix(f"{_STAGED}/"), content)

    def finish_update(self) -> None:
        """Complete an update that was interrupted while it was published, if there is one."""
        marker = json.loads(self.location.read(MARKER) or b"{}")
        if "note" not in marker:
            return
        self.location.delete([self.kind.note])
        # What is no longer staged has its place already.
        for key in sorted(self.location.names(_STAGED)):
            self.move_staged(key)
        self.location.clear(SCRATCH)
        self.location.write(self.kind.note, json.dumps(marker["note"], indent=2).encode())
        self.location.delete([MARKER])


def _encode(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def stored_kind(location: Location, names: Collection[str]) -> DatasetKind | None:
    """Return the kind of a folder, complete or not, with files of these names; None if it is none of ours."""
    for kind in KINDS:
        if kind.note in names:
            return kind
    if MARKER not in names:
        return None
    with suppress(ValueError, AttributeError):
        name = json.loads(location.read(MARKER) or b"{}").get("kind")
        return next((kind for kind in KINDS if kind.name == name), FEATURES)
    return FEATURES


def _is_our_name(name: str, kind: DatasetKind) -> bool:
    first, _, rest = name.partition("/")
    if first in kind.tables:
        return _PART.fullmatch(rest) is not None
    return first == SCRATCH or name in (kind.note, MARKER)
