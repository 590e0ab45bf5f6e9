"""Which labels a table was made from: a hash of their voxels, by which it is refused for other labels.

The hash does not depend on how the labels are cut, stored or typed; see `dseeds.measure.kernels.identity`. Regions are
hashed where they are read anyway. Where reading all labels would take longer than what they are needed for, three small
boxes of them are compared, or the run and the number of edits that labels of this program record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dseeds.core.geometry import Box, Triple, triple
from dseeds.io import ArraySource, Source, ZarrSource
from dseeds.io.labels import label_attributes, read_labels
from dseeds.measure.label_hash import MODULUS, LabelHash, hash_box, sample_boxes
from dseeds.storage.edit_log import UNMOVED
from dseeds.storage.label_group import EDITS, MOVED
from dseeds.storage.parquet_dataset import FEATURES, TABLE, Dataset, DatasetKind
from dseeds.storage.slabs import slab_thickness

# The key of an identity in the notes of folders and in the metadata of files.
IDENTITY = "identity"


class LabelRun(NamedTuple):
    """The run of this program that wrote labels, None if unknown; how often they were edited since, and what moved.

    The runs of two outputs are equal if their labels were. What edits changed is told by the hash, see
    `dseeds.storage.edit_log.EditRecord`.
    """

    run: str | None = None
    edits: int = 0
    moved: str = UNMOVED


UNKNOWN = LabelRun()


@dataclass(frozen=True)
class LabelIdentity:
    """Labels that a table was made from, by their voxels alone: two are equal if shape and hash are.

    Attributes
    ----------
    shape : tuple of int
        Voxels along (z, y, x).
    total, sample : str
        The two numbers of `LabelHash`, as 16 hexadecimal digits.
    written : LabelRun
        The run that wrote the labels.

    Examples
    --------
    >>> import numpy as np
    >>> one, other = (identify(ArraySource(np.full((2, 3, 4), 7, dtype))) for dtype in ("uint8", "int64"))
    >>> one.is_same(other), one.is_same(identify(ArraySource(np.full((4, 3, 2), 7))))
    (True, False)
    """

    shape: Triple
    total: str
    sample: str
    written: LabelRun = UNKNOWN

    @classmethod
    def of(cls, shape: Triple, sums: LabelHash, written: LabelRun = UNKNOWN) -> LabelIdentity:
        """Return the identity of labels of a shape (z, y, x) and a hash."""
        return cls(shape, f"{sums.total:016x}", f"{sums.sample:016x}", written)

    @classmethod
    def of_note(cls, note: Mapping[str, Any]) -> LabelIdentity | None:
        """Return the identity in the note of a folder, or in the metadata of a file; None if it has none."""
        try:
            entry = dict(note[IDENTITY])
            written = LabelRun(entry["run"] and str(entry["run"]), int(entry["edits"]), str(entry["moved"]))
            return cls(triple(entry["shape"]), str(entry["total"]), str(entry["sample"]), written)
        except (KeyError, TypeError, ValueError):
            return None

    def to_note(self) -> dict[str, Any]:
        """Return the entry of a note, which can be written as JSON."""
        entry = {"shape": self.shape, "total": self.total, "sample": self.sample}
        return {IDENTITY: {**entry, **self.written._asdict()}}

    def after(self, edits: int, moved: str) -> LabelIdentity:
        """Return the identity after so many edits in all, and what these moved in all."""
        change = LabelHash.of_text(moved) - LabelHash.of_text(self.written.moved)
        sums = LabelHash.of_text(self.total + self.sample) + change
        return LabelIdentity.of(self.shape, sums, LabelRun(self.written.run, edits, moved))

    def is_same(self, other: LabelIdentity) -> bool:
        """Return whether both are of the same voxels."""
        return (self.shape, self.total) == (other.shape, other.total)


@dataclass(frozen=True)
class TableOrigin:
    """The labels that a table was made from, the table's name, and what its owner should do if it is of others."""

    identity: LabelIdentity
    name: str = "the table"
    remedy: str = "make it again from a table of these labels"
    # What to do if the labels were edited since.
    update: str = "make it again"

    @classmethod
    def of_kind(cls, identity: LabelIdentity, kind: DatasetKind, name: str | None = None) -> TableOrigin:
        """Return the origin of tables of a kind, in the folder of a name or in memory."""
        rows = f"its rows alone, {'.table' if name is None else TABLE}, are taken for any labels"
        name, update = name or f"the result of dseeds {kind.name}", f"run dseeds {kind.name} again"
        if kind == FEATURES:
            update = "bring it up to date with dseeds edit and its action update, or " + update
        return cls(identity, name, f"run dseeds {kind.name} on these; {rows}", update)

    @classmethod
    def of_file(cls, note: Mapping[str, Any], address: str) -> TableOrigin | None:
        """Return the origin in the note of a table's file; None if it records none."""
        identity = LabelIdentity.of_note(note)
        return None if identity is None else cls(identity, _last_part(address))

    def check_hash(self, labels: Source, sums: LabelHash) -> None:
        """Raise a ValueError unless labels that were read whole are those of the table."""
        if not self.identity.is_same(LabelIdentity.of(triple(labels.shape), sums)):
            raise self._refusal(labels)

    def check_labels(self, labels: Source, *, whole: bool) -> None:
        """Raise a ValueError if labels are not those of the table, as far as can be told at once.

        With `whole`, labels in memory, and files that can only be read from end to end, are read whole. Of other
        labels, but those that Dask computes, the boxes of `sample_boxes` are compared.
        """
        labels = finest_level(labels)
        shape, written = triple(labels.shape), find_run(labels)
        if shape != self.identity.shape:
            raise ValueError(
                f"{self.name} was made from labels of shape {self.identity.shape} (z, y, x), and {_name(labels)} has "
                f"shape {shape}: {self.remedy}."
            )
        if written.run is not None and written.run == self.identity.written.run:
            if written.moved != self.identity.written.moved:
                raise ValueError(f"{_name(labels)} was edited after {self.name} was made from it: {self.update}.")
            return
        if labels.kind == "array" and not isinstance(labels, ArraySource):
            # Dask would compute it.
            return
        at_random = labels.readable_by_workers or isinstance(labels, ZarrSource)
        if whole and not at_random:
            self.check_hash(labels, hash_source(labels))
        elif at_random or isinstance(labels, ArraySource):
            boxes = ((read_labels(labels, box, narrow=True), box.lo, box, shape) for box in sample_boxes(shape))
            sample = sum(hash_box(*box).total for box in boxes) % MODULUS
            if f"{sample:016x}" != self.identity.sample:
                raise self._refusal(labels)

    def _refusal(self, labels: Source) -> ValueError:
        return ValueError(f"{self.name} was made from other labels than {_name(labels)}: {self.remedy}.")


def folder_origin(dataset: Dataset) -> TableOrigin | None:
    """Return the origin of the tables in a complete folder; None if they were made before it was recorded."""
    identity = LabelIdentity.of_note(dataset.note())
    return None if identity is None else TableOrigin.of_kind(identity, dataset.kind, _last_part(dataset.address))


def _last_part(address: str) -> str:
    return address.rstrip("/").rpartition("/")[2]


def _name(labels: Source) -> str:
    return "the array" if labels.kind == "array" else labels.name


def note_of(origin: TableOrigin | None) -> dict[str, Any]:
    """Return what the file of a table records of the labels that it was made from."""
    return {} if origin is None else origin.identity.to_note()


def check_same_labels(first: TableOrigin | None, second: TableOrigin | None) -> None:
    """Raise a ValueError if two tables are known to be of different labels."""
    if first is not None and second is not None and not first.identity.is_same(second.identity):
        raise ValueError(
            f"{first.name} and {second.name} were made from different labels, or from labels that were edited in "
            f"between: make both from the same."
        )


def hash_source(labels: Source) -> LabelHash:
    """Return the hash of labels, which are read once from end to end."""
    shape, sums = triple(labels.shape), LabelHash()
    for begin, slab in labels.slabs(slab_thickness(shape, 8)):
        part = ArraySource(slab, labels.name)
        values = read_labels(part, Box((0, 0, 0), triple(slab.shape)), narrow=True)
        box = Box((begin, 0, 0), (begin + len(slab), *shape[1:]))
        sums += hash_box(values, box.lo, box, shape)
    return sums


def identify(labels: Source) -> LabelIdentity:
    """Return the identity of labels, which are read once from end to end."""
    return LabelIdentity.of(triple(labels.shape), hash_source(labels), find_run(labels))


def find_run(labels: Source) -> LabelRun:
    """Return the run that wrote labels, and how often they were edited since, as they record it themselves."""
    attributes = label_attributes(labels)
    run, edits, moved = attributes.get("run"), attributes.get(EDITS, 0), attributes.get(MOVED, UNMOVED)
    is_known = isinstance(run, str) and isinstance(edits, int) and isinstance(moved, str)
    return LabelRun(run, edits, moved) if is_known else UNKNOWN


def finest_level(labels: Source) -> Source:
    """Return the full resolution of labels that are a coarser level of an OME-Zarr image, and all others as they are.

    A table of supervoxels serves every level of their pyramid.
    """
    if isinstance(labels, ZarrSource) and labels.level > 0 and labels.group is not None:
        return labels.at_level(0)
    return labels
