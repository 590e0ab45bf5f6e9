"""`vote`: the classes of annotated voxels, counted for each supervoxel, out of core.

Regions count the voxels that a supervoxel and a class have in common. The counts of a range of labels are added up and
decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dseeds.core.checks import read_extents
from dseeds.core.geometry import Tiling
from dseeds.core.progress import Progress
from dseeds.io import Source
from dseeds.io.labels import TASK_BYTES, align_sources, choose_tiling, materialise, open_labels, read_labels
from dseeds.measure.identity import LabelIdentity, find_run
from dseeds.measure.label_hash import LabelHash, hash_box
from dseeds.measure.region_tables import (
    RegionRows,
    SupervoxelTables,
    begin_measurement,
    count_regions,
    publish_supervoxels,
)
from dseeds.parallel.capacity import parse_memory
from dseeds.seeds.kernels.pair_counts import count_pairs
from dseeds.storage.label_records import LabelRange, LabelRecords, label_ranges
from dseeds.storage.parquet_dataset import COUNTS, TABLE, VOTES, Dataset

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike

# Memory of a task per voxel beside the volumes as they are read: labels and classes as kernels take them, and tables.
VOXEL_BYTES = 24


class Votes(SupervoxelTables):
    """The classes that annotated voxels give supervoxels.

    Attributes
    ----------
    address : str or None
        The folder with the Parquet tables; None if they are only in memory.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label; see `vote`.
    counts : pyarrow.Table
        A row for each supervoxel and class with common voxels, sorted by both; see `vote`.
    conflicts : pyarrow.Table
        The rows of supervoxels with votes for several classes, the least pure first.

    Examples
    --------
    >>> votes = vote(np.array([[[1, 1, 1, 2]]]), np.array([[[0, 5, 7, 7]]]))
    >>> votes.supervoxels, votes.conflicts["label"].to_pylist()
    (2, [1])
    """

    kind = VOTES

    @property
    def counts(self) -> pa.Table:
        """The votes of each supervoxel for each class, read whole."""
        return self._read(COUNTS)

    @property
    def annotated(self) -> int:
        """The number of supervoxels with votes."""
        return self._count_from(1)

    @property
    def contested(self) -> int:
        """The number of conflicts, supervoxels with votes for several classes."""
        return self._count_from(2)

    def _count_from(self, classes: int) -> int:
        return sum(int(np.count_nonzero(part["num_classes"].to_numpy() >= classes)) for part in self._parts(TABLE))

    def counts_of(self, labels: Sequence[int]) -> dict[int, dict[int, int]]:
        """Return the votes of some supervoxels, by label and class."""
        votes: dict[int, dict[int, int]] = {label: {} for label in labels}
        for part in self._parts(COUNTS):
            rows = part.filter(pc.field("label").isin(labels))
            for row in rows.to_pylist():
                votes[row["label"]][row["class"]] = row["num_pixels"]
        return votes

    @property
    def conflicts(self) -> pa.Table:
        """The rows of supervoxels with votes for several classes, the least pure first."""
        rows = pa.concat_tables(part.filter(pc.field("num_classes") > 1) for part in self._parts(TABLE))
        return rows.sort_by([("purity", "ascending"), ("label", "ascending")])


@dataclass(frozen=True)
class VoteJob:
    """What the tasks of a vote have in common. Voxels of the class `ignore` have no vote."""

    labels: Source
    annotation: Source
    tiling: Tiling
    dataset: Dataset
    ignore: int | None

    @property
    def records(self) -> LabelRecords:
        """The rows (label, class, voxels) that regions have written."""
        return LabelRecords(self.dataset.scratch.at("rows"), 3)


def vote(
    labels: Any,
    annotation: Any,
    target: str | Path | None = None,
    *,
    ignore: int | None = 0,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Votes:
    """Assign each supervoxel the class of most of its annotated voxels, out of core: scribbles or a full segmentation.

    Parameters
    ----------
    labels : source
        The supervoxels of any program, axes (z, y, x), labels from 1 to 2^63 - 1, 0 where masked out: an array, or what
        `segment` takes as a source.
    annotation : source
        The classes on the same grid, whole numbers from 0 to 2^63 - 1.
    target : path or URL, optional
        A new folder for the Parquet tables ``table.parquet`` and ``counts.parquet``, each a folder of parts.
        Default: they stay in memory.
    ignore : int or None, default 0
        The class of voxels without annotation, which have no vote. None if every voxel is annotated; 0, often the
        background, is then a class like any other.
    region, memory, threads, client, overwrite, progress : optional
        As for `features`.

    Returns
    -------
    Votes
        With the table, the counts and the conflicts. `paint` takes it as a table, and so brings the votes back to the
        voxels; pandas, polars and Dask can also read the target.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If a source or the target's folder does not exist.
    ValueError
        If labels or classes are not integers from 0, shapes or positions differ, no voxel has a label, or a parameter
        is out of range.

    Notes
    -----
    All numbers are counts of voxels or quotients of two, the same however the volume is cut.

    Columns of the table:

    ``label``, ``num_pixels``, ``num_annotated``
        The label, and its voxels: all, and those with a vote.
    ``majority``, ``num_majority``
        The class with most votes, of several the smallest, and its votes. Without any vote, the class is `ignore`.
    ``purity``
        The share of the votes that the majority has: 1 without conflict; NaN without votes.
    ``coverage``
        The share of the voxels that have a vote.
    ``num_classes``
        The number of classes with votes; more than one is a conflict.

    Columns of the counts, which have no rows for `ignore`: ``label``, ``class`` and ``num_pixels``, the votes.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 1, 1, 2, 2, 3]]])
    >>> scribbles = np.array([[[4, 4, 9, 0, 9, 0]]])
    >>> votes = dseeds.vote(labels, scribbles)
    >>> votes.table.select(["majority", "coverage", "num_classes"]).to_pydict()
    {'majority': [4, 9, 0], 'coverage': [1.0, 0.5, 0.0], 'num_classes': [2, 1, 0]}
    >>> votes.counts.to_pydict()
    {'label': [1, 1, 2], 'class': [4, 9, 9], 'num_pixels': [2, 1, 1]}
    >>> dseeds.paint(labels, votes, column="majority").compute()
    array([[[4, 4, 4, 9, 9, 0]]], dtype=uint8)
    """
    label_source = open_labels(labels)
    sources = align_sources(label_source, {"annotation": open_labels(annotation)})
    if ignore is not None and (isinstance(ignore, bool) or int(ignore) != ignore or ignore < 0):
        raise ValueError(f"ignore is {ignore!r}, but classes are whole numbers from 0: pass one of them, or None.")
    extents = read_extents("region", region)
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    voxel_bytes = VOXEL_BYTES + label_source.dtype.itemsize + sources["annotation"].dtype.itemsize
    tile = choose_tiling(label_source.shape, label_source.chunks, voxel_bytes, task_bytes, extents)
    with begin_measurement(target, VOTES, overwrite=overwrite, client=client, threads=threads, progress=progress) as (
        dataset,
        executor,
        anywhere,
    ):
        copies = {
            name: materialise(source, dataset.scratch, name, anywhere=anywhere)
            for name, source in {"labels": label_source, **sources}.items()
        }
        job = VoteJob(**copies, tiling=Tiling(label_source.shape, tile), dataset=dataset, ignore=ignore)
        [indices], sums = count_regions(executor, "count", count_vote_region, job)
        identity = LabelIdentity.of(label_source.shape, sums, find_run(label_source))
        names = {"labels": label_source.name, "annotation": sources["annotation"].name, "ignore": ignore}
        publish_supervoxels(executor, write_votes, job, list(label_ranges(indices)), names, identity)
        return Votes.of(dataset, target)


def count_vote_region(job: VoteJob, number: int) -> RegionRows:
    """Count the pairs of labels and classes in a region, and write them to scratch."""
    box = job.tiling.box(number)
    labels = read_labels(job.labels, box)
    rows, part = np.zeros((0, 3), np.int64), LabelHash()
    if labels.any():
        part = hash_box(labels, box.lo, box, job.tiling.shape)
        rows = count_pairs(labels, read_labels(job.annotation, box, "annotation"))
    # A task of an abandoned run may arrive late.
    job.dataset.check_own()
    return RegionRows(number, (job.records.write(number, rows),), part)


def write_votes(job: VoteJob, number: int, part: LabelRange) -> tuple[int, int]:
    """Write the tables of a range of labels, and return the number of its supervoxels."""
    table, counts = build_vote_tables(add_up_pairs(job.records.read(part)), job.ignore)
    job.dataset.write(TABLE, number, table)
    job.dataset.write(COUNTS, number, counts)
    return number, len(table)


def add_up_pairs(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows of counts (label, value, voxels), sorted by both, in which each pair occurs once.

    >>> add_up_pairs(np.array([[1, 7, 2], [1, 0, 1], [1, 7, 3]])).tolist()
    [[1, 0, 1], [1, 7, 5]]
    """
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    starts = np.flatnonzero(np.any(np.diff(rows[:, :2], axis=0, prepend=-1), axis=1))
    return np.column_stack([rows[starts, :2], np.add.reduceat(rows[:, 2], starts)])


def build_vote_tables(pairs: NDArray[np.int64], ignore: int | None) -> tuple[pa.Table, pa.Table]:
    """Return the table of supervoxels and the counts, see `vote`, from sorted rows (label, class, voxels)."""
    labels, places = np.unique(pairs[:, 0], return_inverse=True)
    size = np.bincount(places, pairs[:, 2], len(labels)).astype(np.int64)
    has_vote = np.ones(len(pairs), bool) if ignore is None else pairs[:, 1] != ignore
    pairs, places = pairs[has_vote], places[has_vote]
    classes = np.bincount(places, minlength=len(labels))
    annotated = np.bincount(places, pairs[:, 2], len(labels)).astype(np.int64)
    # The last one of each supervoxel: most votes, and of those the smallest class.
    order = np.lexsort((-pairs[:, 1], pairs[:, 2], places))
    best = order[np.cumsum(classes)[classes > 0] - 1]
    majority, votes = np.full(len(labels), ignore or 0, np.int64), np.zeros(len(labels), np.int64)
    majority[classes > 0], votes[classes > 0] = pairs[best, 1], pairs[best, 2]
    purity = np.divide(votes, annotated, out=np.full(len(labels), np.nan), where=annotated > 0)
    table = {
        "label": labels,
        "num_pixels": size,
        "num_annotated": annotated,
        "majority": majority,
        "num_majority": votes,
        "purity": purity,
        "coverage": annotated / size,
        "num_classes": classes,
    }
    return pa.table(table), pa.table(dict(zip(("label", "class", "num_pixels"), pairs.T, strict=True)))
