"""A folder with the table and the graph of supervoxels in Parquet: how it is begun, written, read and published.

What makes it complete is a note that is written last; what is not this program's is never touched.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dseeds.storage.location import LocalLocation, Location, is_remote, open_location

NOTE, MARKER = "dseeds-features.json", "dseeds-incomplete.json"
TABLE, EDGES, SCRATCH = "table.parquet", "edges.parquet", "scratch"
_PART = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True)
class Dataset:
    """The folder.

    Attributes
    ----------
    address : str
        A path, or the URL of a prefix in a bucket.
    run : str
        Who writes it, as its marker says; nobody by default.
    """

    address: str
    run: str = ""

    @property
    def place(self) -> Location:
        """Where it lies."""
        return open_location(self.address)

    @property
    def scratch(self) -> Location:
        """Where intermediate data lie while it is written."""
        return self.place.at(SCRATCH)

    def note(self) -> dict[str, Any]:
        """Give what was noted of it when it was complete.

        Raises
        ------
        FileNotFoundError
            If there is no such folder, or it is incomplete.
        """
        content = self.place.read(NOTE)
        if content is None:
            raise FileNotFoundError(
                f"{self.address} holds no features of supervoxels, or not all of them: make them with dseeds features."
            )
        return dict(json.loads(content))

    def check(self, overwrite: bool) -> None:
        """Refuse a folder that would lose something.

        Raises
        ------
        FileExistsError
            If it exists and is not to be overwritten, or holds what is not this program's.
        FileNotFoundError
            If the folder that it is to lie in does not exist.
        """
        if not is_remote(self.address):
            path = Path(self.place.address)
            if not path.parent.is_dir():
                raise FileNotFoundError(f"the folder {path.parent} for the features does not exist.")
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise FileExistsError(f"{self.address} exists and was not written by dseeds; it is not overwritten.")
        names = list(self.place.names())
        if not names:
            return
        stranger = next((name for name in names if not _is_ours(name)), None)
        if stranger or not {NOTE, MARKER} & set(names):
            raise FileExistsError(
                f"{self.address} holds {stranger or names[0]}, which dseeds did not write; it is not overwritten."
            )
        if not overwrite and MARKER not in names:
            raise FileExistsError(
                f"{self.address} exists; choose another folder, or overwrite it with overwrite=True (--overwrite)."
            )

    def begin(self) -> Dataset:
        """Remove what is there of ours, mark the folder as incomplete, and give it to write to."""
        run = uuid.uuid4().hex
        self.place.write(MARKER, json.dumps({"run": run}).encode())
        self.place.delete([NOTE])
        for name in (TABLE, EDGES, SCRATCH):
            self.place.clear(name)
        return replace(self, run=run)

    def check_own(self) -> None:
        """Check that nobody else writes it by now, and that it is not finished or abandoned.

        Raises
        ------
        RuntimeError
            If it is so.
        """
        if not self._is_own():
            raise RuntimeError(f"{self.address} is no longer this run's to write to.")

    def _is_own(self) -> bool:
        return bool(self.run) and json.loads(self.place.read(MARKER) or b"{}").get("run") == self.run

    def publish(self, note: Mapping[str, Any]) -> None:
        """Note that all is written."""
        self.check_own()
        self.place.clear(SCRATCH)
        self.place.write(NOTE, json.dumps(note, indent=2).encode())
        self.place.delete([MARKER])

    def abandon(self) -> None:
        """Remove what was written of a folder that is incomplete, unless another run writes it by now."""
        if not self._is_own():
            return
        # Cut short while it was published, it has a note by now.
        self.place.delete([NOTE])
        for name in (TABLE, EDGES, SCRATCH):
            self.place.clear(name)
        self.place.delete([MARKER])
        if not is_remote(self.address):
            path = Path(self.place.address)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def write(self, name: str, part: int, table: pa.Table) -> None:
        """Write a part of a table."""
        self.check_own()
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.place.write(f"{name}/part-{part:05}.parquet", buffer.getvalue())

    def parts(self, name: str) -> list[int]:
        """List the parts of a table."""
        found = (_PART.fullmatch(key.rpartition("/")[2]) for key in self.place.names(name))
        return sorted(int(match[1]) for match in found if match)

    def read(self, name: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some columns of a part of a table."""
        with self.open(name, part) as file:
            return file.read(columns=None if columns is None else list(columns))

    def open(self, name: str, part: int) -> pq.ParquetFile:
        """Open a part of a table; where it lies on this machine, no more is read than what is asked of it."""
        place, key = self.place, f"{name}/part-{part:05}.parquet"
        if isinstance(place, LocalLocation) and (place.path / key).is_file():
            return pq.ParquetFile(place.path / key)
        content = place.read(key)
        if content is None:
            raise FileNotFoundError(
                f"{self.address} has lost a part of its {name}: make it again with dseeds features."
            )
        return pq.ParquetFile(BytesIO(content))

    def whole(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table whole; `FileNotFoundError` if not all of it is there."""
        self.note()
        return pa.concat_tables(self.read(name, part, columns) for part in self.parts(name))

    def rows_of(self, labels: NDArray[np.int64], columns: Sequence[str], ends: Sequence[tuple[int, int]]) -> pa.Table:
        """Read the rows of supervoxels.

        Parameters
        ----------
        labels : ndarray of int64
            Their labels, sorted.
        columns : sequence of str
            Which columns, beside the label.
        ends : sequence of (int, int)
            For each part of the table its first and its last label.
        """
        nothing = self.read(TABLE, 0, ["label", *columns]).slice(0, 0)
        return pa.concat_tables([nothing, *self._rows_of(labels, ["label", *columns], ends)]).combine_chunks()

    def _rows_of(
        self, labels: NDArray[np.int64], columns: Sequence[str], ends: Sequence[tuple[int, int]]
    ) -> Iterator[pa.Table]:
        for part, (first, last) in enumerate(ends):
            lo, hi = np.searchsorted(labels, first), np.searchsorted(labels, last, side="right")
            if lo == hi:
                continue
            table = self.read(TABLE, part, columns)
            place = np.searchsorted(table["label"].to_numpy(), labels[lo:hi])
            yield table.take(pa.array(place))


def _is_ours(name: str) -> bool:
    first, _, rest = name.partition("/")
    if first in (TABLE, EDGES):
        return _PART.fullmatch(rest) is not None
    return first == SCRATCH or name in (NOTE, MARKER)
