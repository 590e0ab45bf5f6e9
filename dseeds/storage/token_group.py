"""A Zarr group of tokens: arrays with an entry for each supervoxel, written in batches and published last."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.lazy_module import LazyModule
from dseeds.storage.location import Location
from dseeds.storage.ownership import MARKER, check_folder, check_overwrite, remove_marker

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

TOKENS = "tokens"
LABELS, VALUES, MASKS = ARRAYS = ("labels", "values", "masks")
_METADATA, _ATTRIBUTE = "zarr.json", "dseeds"
# The files of a group, also one that Zarr was writing when it was killed.
_OWN_NAME = re.compile(
    rf"{re.escape(MARKER)}|{re.escape(_METADATA)}|({'|'.join(ARRAYS)})/(zarr\.json|c(/\d+)+|.*\.partial)"
)


@dataclass(frozen=True)
class TokenGroup:
    """The arrays ``labels``, ``values`` and ``masks`` in a folder or prefix."""

    location: Location

    def check(self, overwrite: bool) -> None:
        """Raise an OSError unless a group may be written."""
        check_folder(self.location)
        names = list(self.location.names())
        if names:
            stranger = next((name for name in names if not _OWN_NAME.fullmatch(name)), None)
            check_overwrite(self.location.address, overwrite, is_ours=self._is_ours(), stranger=stranger)

    def _is_ours(self) -> bool:
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            unfinished = self.location.read(MARKER)
            if unfinished is not None:
                return bool(json.loads(unfinished)["kind"] == TOKENS)
            return isinstance(self.note()[TOKENS], int)
        return False

    def note(self) -> dict[str, Any]:
        """Return this program's attribute of a finished group; raise a FileNotFoundError if it is none."""
        content = self.location.read(_METADATA)
        if content is None or self.location.read(MARKER) is not None:
            raise FileNotFoundError(f"{self.location.address} holds no tokens, or not all of them: make them again.")
        return dict(json.loads(content)["attributes"][_ATTRIBUTE])

    @contextmanager
    def unfinished(self, overwrite: bool) -> Iterator[None]:
        """Begin a new group in place of an older one; if the block fails, nothing is left of it."""
        self.check(overwrite)
        run = uuid.uuid4().hex
        self.location.write(MARKER, json.dumps({"run": run, "kind": TOKENS}).encode())
        self._clear()
        try:
            yield
        except BaseException:
            self._abandon(run)
            raise

    def _abandon(self, run: str) -> None:
        """Remove what a run has written, unless another one writes the group by now."""
        if json.loads(self.location.read(MARKER) or b"{}").get("run") != run:
            return
        self._clear()
        remove_marker(self.location)

    def _clear(self) -> None:
        # The metadata goes first: without it, the folder does not pass for a group.
        self.location.delete([_METADATA])
        for name in ARRAYS:
            self.location.clear(name)

    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int) -> zarr.Array:
        """Create an array of chunks with so many entries."""
        chunks = (min(rows, shape[0]), *shape[1:])
        return zarr.create_array(self.location.zarr(name), shape=shape, chunks=chunks, dtype=dtype)

    def open(self, name: str) -> NDArray[Any] | zarr.Array:
        """Open an array of a finished group."""
        self.note()
        return zarr.open_array(self.location.zarr(name), mode="r")

    def publish(self, note: Mapping[str, Any]) -> None:
        """Write the metadata that make the folder a group."""
        document = {"zarr_format": 3, "node_type": "group", "attributes": {_ATTRIBUTE: dict(note)}}
        self.location.write(_METADATA, json.dumps(document, indent=2).encode())
        self.location.delete([MARKER])
