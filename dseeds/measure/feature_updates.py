"""Features after edits: the rows of the supervoxels that changed, and their edges, measured again in their boxes alone.

Edits move voxels among the supervoxels that they name, so all other rows stay as they are, and so do the edges between
two of these. Counts are integers, so what is measured again is what a measurement of the whole volume would find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.core.geometry import Box, Tiling, triple
from dseeds.io import Image, Source
from dseeds.io.editable_labels import EditableLabels
from dseeds.io.labels import TASK_BYTES, choose_tiling, read_labels
from dseeds.measure.annotated_matrix import read_lists
from dseeds.measure.columns import (
    BOUNDING_BOX,
    CountRows,
    Space,
    are_small_integers,
    build_edge_table,
    build_feature_table,
    count_features,
    sort_contacts,
)
from dseeds.measure.edits import bound_within
from dseeds.measure.features import voxel_bytes
from dseeds.measure.identity import LabelIdentity, TableOrigin, find_run
from dseeds.measure.kernels import features as kernel
from dseeds.measure.kernels.features import combine_contacts, combine_voxels
from dseeds.parallel.executor import Executor
from dseeds.storage.edit_log import UNMOVED, EditRecord
from dseeds.storage.label_records import RANGE
from dseeds.storage.parquet_dataset import EDGES, TABLE, Dataset

# What the note of features says after an update as before; of the product of a run, they are no longer.
_KEPT = ("labels", "spacing", "affine", "windows")
_MEASURE_AGAIN = "measure them again with dseeds features"


@dataclass(frozen=True)
class LabelPlaces:
    """Labels after edits, as features before them and the log tell: how many voxels each has, and a box around them."""

    counts: dict[int, int]
    boxes: dict[int, Box]


@dataclass(frozen=True)
class UpdateJob:
    """What the tasks of an update have in common: `changed` are the sorted labels whose rows are measured again."""

    labels: Source
    image: Image | None
    space: Space
    changed: NDArray[np.int64]


def records_since(dataset: Dataset, labels: EditableLabels) -> list[EditRecord]:
    """Return the edits of labels since their features were measured.

    Raise a FileNotFoundError if the folder is incomplete, or a ValueError if the features are those of other labels.
    """
    note, name, count = dataset.note(), labels.source.name, labels.state.edits
    if note.get("labels") != name:
        raise ValueError(f"{dataset.address} has the features of {note.get('labels')}, not of {name}: name others.")
    run, measured, moved = _read_identity(dataset, note).written
    last = labels.log.read(measured) if 0 < measured <= count else None
    is_ours = run in (None, find_run(labels.source).run) and moved == (UNMOVED if last is None else last.moved)
    if measured > count or not is_ours:
        raise ValueError(
            f"the features in {dataset.address} were measured after {measured} edits of labels that were replaced by "
            f"{name}, which has {count}: {_MEASURE_AGAIN}."
        )
    return [labels.log.require(number) for number in range(measured + 1, count + 1)]


def _read_identity(dataset: Dataset, note: Mapping[str, Any]) -> LabelIdentity:
    """Return what features record of the labels that they were measured from."""
    identity = LabelIdentity.of_note(note)
    if identity is None or "affine" not in note:
        raise ValueError(f"{dataset.address} was written by an older version: {_MEASURE_AGAIN}.")
    return identity


def find_places(dataset: Dataset, records: Sequence[EditRecord], chosen: Sequence[int]) -> LabelPlaces:
    """Return where labels are after edits, whose records begin where the features in a folder end."""
    ids = np.array(sorted(set(chosen)), np.int64)
    rows = dataset.read_rows(ids, ["num_pixels", *BOUNDING_BOX], part_ends(dataset, TABLE, "label"), missing_ok=True)
    counts, boxes = dict.fromkeys(ids.tolist(), 0), {}
    for row in rows.to_pylist():
        corners = [row[name] for name in BOUNDING_BOX]
        counts[row["label"]] = row["num_pixels"]
        boxes[row["label"]] = Box(triple(corners[:3]), triple(corners[3:]))
    for record in records:
        for move in record.moves:
            if move.source in counts:
                counts[move.source] -= move.voxels
            if move.target in counts:
                counts[move.target] += move.voxels
                boxes[move.target] = record.box.bounding(boxes.get(move.target, record.box))
    return LabelPlaces(counts, {label: box for label, box in boxes.items() if counts[label] > 0})


def part_ends(dataset: Dataset, name: str, column: str) -> list[tuple[int, int]]:
    """Return the lowest and the highest value of a sorted column in each part of a table; (1, 0) in an empty one."""
    ends = []
    for part in dataset.parts(name):
        with dataset.open(name, part) as file:
            index = file.schema_arrow.names.index(column)
            # The footer of a part has them, so its rows need not be read.
            groups = [file.metadata.row_group(i).column(index).statistics for i in range(file.num_row_groups)]
            bounds = [(group.min, group.max) for group in groups if group is not None and group.has_min_max]
            if len(bounds) < len(groups):
                values = file.read([column])[column].to_numpy()
                bounds = [(int(values[0]), int(values[-1]))] if len(values) else []
        ends.append((bounds[0][0], bounds[-1][1]) if bounds else (1, 0))
    return ends


def check_counts(dataset: Dataset, expected: Mapping[int, int], counts: Mapping[int, int]) -> None:
    """Raise a ValueError unless supervoxels have as many voxels as their features and edits say."""
    for label, count in expected.items():
        if counts.get(label, 0) != count:
            raise ValueError(
                f"supervoxel {label} has {counts.get(label, 0)} voxels, but {count} by the features in "
                f"{dataset.address} and the edits since: the features are of other labels, so {_MEASURE_AGAIN}."
            )


def update_tables(
    dataset: Dataset, edited: EditableLabels, image: Image | None, records: Sequence[EditRecord], *, threads: int
) -> None:
    """Bring the features of labels up to date with edits, whose records begin where the features end.

    Raise a ValueError unless the features, after the edits, are those of the labels as they are, and of the image.
    """
    note, labels, state = dataset.note(), edited.source, edited.state
    space = _read_space(dataset, note, image)
    identity = _read_identity(dataset, note).after(state.edits, state.moved)
    name = None if labels.kind == "array" else dataset.address
    TableOrigin.of_kind(identity, dataset.kind, name).check_labels(labels, whole=True)
    if not records:
        return
    changed = np.array(sorted({label for record in records for label in (*record.before, *record.after)}), np.int64)
    places = find_places(dataset, records, changed.tolist())
    job = UpdateJob(labels, image, space, changed)
    voxels, contacts = _count(job, list(places.boxes.values()), threads)
    check_counts(dataset, places.counts, dict(voxels[:, : kernel.SIZE + 1].tolist()))
    table = build_feature_table(voxels, space, labels.shape)
    ends = part_ends(dataset, TABLE, "label")
    table = table.cast(dataset.read(TABLE, 0).schema)
    _check_image(dataset, changed, ends, table)
    edges = _measure_edges(dataset, job, contacts, table, ends)
    update = dataset.begin_update()
    rows = _stage(update, TABLE, ["label"], changed, changed, table, ends)
    touched = np.unique(np.concatenate([changed, contacts[:, :2].ravel()]))
    edge_ends = part_ends(dataset, EDGES, "source")
    edges_more = _stage(update, EDGES, ["source", "target"], changed, touched, edges, edge_ends)
    totals = {"supervoxels": note["supervoxels"] + rows, "contacts": note["contacts"] + edges_more}
    kept = {key: note[key] for key in (*_KEPT, *(() if image is None else ("image",)))}
    update.publish_update({**totals, **kept, **identity.to_note(), "version": __version__})


def _read_space(dataset: Dataset, note: Mapping[str, Any], image: Image | None) -> Space:
    """Return the space that features were measured in; raise a ValueError if they were not measured from the image."""
    name = None if image is None else image.name
    if note.get("image") != name:
        raise ValueError(
            f"the features in {dataset.address} were measured {_from_image(note.get('image'))}, but the update is "
            f"{_from_image(name)}: pass the same."
        )
    windows = tuple((low, high) for low, high in note["windows"])
    if image is not None and image.channels != len(windows):
        raise ValueError(
            f"the features in {dataset.address} have {len(windows)} channels, but {image.name} has {image.channels}: "
            f"pass the same image."
        )
    z, y, x = note["spacing"]
    affine = tuple(tuple(float(entry) for entry in row) for row in note["affine"])
    return Space((z, y, x), affine, windows, image is None or are_small_integers(image.dtypes))


def _from_image(name: str | None) -> str:
    return "without an image" if name is None else f"from the image {name}"


def _count(job: UpdateJob, boxes: Sequence[Box], threads: int) -> tuple[CountRows, CountRows]:
    """Return the rows of the changed supervoxels, which lie in boxes, and of their contacts."""
    shape = job.labels.shape
    tiling = Tiling(shape, choose_tiling(shape, job.labels.chunks, voxel_bytes(job.image), TASK_BYTES))
    # A contact is counted with the lower one of its two voxels.
    around = [box.grow(1, within=shape) for box in boxes]
    parts = [part for number in range(len(tiling)) if (part := bound_within(tiling.box(number), around))]
    channels = 0 if job.image is None else job.image.channels
    voxels = [np.zeros((0, kernel.CHANNELS + channels * kernel.CHANNEL_WIDTH), np.int64)]
    contacts = [np.zeros((0, kernel.STEP_CHANNELS + channels * kernel.STEP_CHANNEL_WIDTH), np.int64)]
    calls = ((job, part) for part in parts)
    for rows, pairs in Executor(threads).map_unordered("update", _count_box, calls, len(parts)):
        voxels.append(rows)
        contacts.append(pairs)
    rows = np.concatenate(voxels)
    return combine_voxels(rows[np.argsort(rows[:, 0])]), combine_contacts(sort_contacts(np.concatenate(contacts)))


def _count_box(job: UpdateJob, box: Box) -> tuple[CountRows, CountRows]:
    window = Box(box.lo, box.grow(1, within=job.labels.shape).hi)
    values = () if job.image is None else job.image.read(window.slices)
    voxels, contacts = count_features(read_labels(job.labels, window, narrow=True), values, box, job.space)
    return voxels[np.isin(voxels[:, 0], job.changed)], contacts[np.isin(contacts[:, :2], job.changed).any(axis=1)]


def _check_image(
    dataset: Dataset, changed: NDArray[np.int64], ends: Sequence[tuple[int, int]], table: pa.Table
) -> None:
    """Raise a ValueError unless the intensities of all changed voxels together are those that were measured before."""
    columns = [name for name in table.column_names if name.startswith("histogram")]
    before = dataset.read_rows(changed, columns, ends, missing_ok=True)
    for name in columns:
        one, other = (read_lists(rows, name).sum(axis=0) for rows in (before, table))
        if not np.array_equal(one, other):
            raise ValueError(
                f"the features in {dataset.address} were measured from other intensities than those of the image now: "
                f"pass the same image, or {_MEASURE_AGAIN}."
            )


def _measure_edges(
    dataset: Dataset, job: UpdateJob, contacts: CountRows, table: pa.Table, ends: Sequence[tuple[int, int]]
) -> pa.Table:
    """Return the edges of the changed supervoxels, with each other and with those that the features have."""
    space = job.space
    channels = range(len(space.windows))
    columns = [name for c in channels for name in (space.mean_name(c), space.column_name("histogram", c))]
    tables = [dataset.read(EDGES, 0).slice(0, 0)]
    for begin in range(0, len(contacts), RANGE):
        piece = contacts[begin : begin + RANGE]
        touching = np.unique(piece[:, :2])
        others = dataset.read_rows(touching[~np.isin(touching, job.changed)], columns, ends)
        own = table.select(["label", *columns])
        rows = pa.concat_tables([others, own.cast(others.schema)]).sort_by("label").combine_chunks()
        tables.append(build_edge_table(piece, rows, space).cast(tables[0].schema))
    return pa.concat_tables(tables)


def _stage(
    update: Dataset,
    name: str,
    keys: Sequence[str],
    changed: NDArray[np.int64],
    touched: NDArray[np.int64],
    new: pa.Table,
    ends: Sequence[tuple[int, int]],
) -> int:
    """Stage the parts of a table with new rows in the place of those of changed labels, and return how many more.

    The first key of all rows that are replaced is one of the `touched` labels.
    """
    more, firsts = 0, new[keys[0]].to_numpy()
    for part, (lo, hi) in enumerate(_ranges(ends)):
        if not ((touched >= lo) & (touched < hi)).any():
            continue
        old = update.read(name, part)
        stays = ~np.any([np.isin(old[key].to_numpy(), changed) for key in keys], axis=0)
        rows = new.filter(pa.array((firsts >= lo) & (firsts < hi)))
        table = pa.concat_tables([old.filter(pa.array(stays)), rows])
        table = table.take(pc.sort_indices(table, [(key, "ascending") for key in keys])).combine_chunks()
        more += len(table) - len(old)
        # Only the last part grows by new labels.
        pieces = range(0, max(len(table), 1), 2 * RANGE) if part == len(ends) - 1 else [0]
        for number, begin in enumerate(pieces, part):
            update.stage(name, number, table.slice(begin, 2 * RANGE) if len(pieces) > 1 else table)
    return more


def _ranges(ends: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of all labels, one for each part, of which none takes what another holds."""
    begins = [2**63]
    for first, last in reversed(ends[1:]):
        # An empty part takes nothing.
        begins.append(first if first <= last else begins[-1])
    begins.append(0)
    yield from pairwise(reversed(begins))
