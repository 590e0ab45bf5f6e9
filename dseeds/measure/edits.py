"""Edits of labels: which voxels a merge or a split changes, and the change itself, box by box.

Nothing here depends on how labels are stored or cut: an edit is a set of moves of voxels from a label to another, and
parts grow within the supervoxel alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.core.dtypes import native_values
from dseeds.core.geometry import Box, Tiling, triple
from dseeds.io import Image
from dseeds.io.editable_labels import EditableLabels, EditState
from dseeds.io.labels import align_sources, choose_tiling, open_labels, read_labels
from dseeds.io.source import Source
from dseeds.measure.kernels.regrowth import (
    EXTENT_WIDTH,
    HIGHEST,
    LOWEST,
    VOXELS,
    grow_by_contrast,
    grow_parts,
    number_pieces,
    survey_chosen,
)
from dseeds.parallel.executor import Executor
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.intensity_windows import exact_number
from dseeds.seeds.kernels.hierarchy import group_components
from dseeds.storage.edit_log import EditKind, EditRecord, Move

# Bytes of a voxel while labels are surveyed.
SURVEY_BYTES = 16
# The most voxels in the box of a supervoxel that is split, which is done in memory.
MOST_VOXELS = 1 << 28

Codes = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class LabelSurvey:
    """Where some labels lie.

    `chosen` holds the labels, sorted; `counts` and `boxes` the number of voxels and the bounding box of each; and
    `contacts` the pairs of positions in `chosen`, the lower one first, of labels that share a face.
    """

    chosen: NDArray[Any]
    counts: tuple[int, ...]
    boxes: tuple[Box, ...]
    contacts: frozenset[tuple[int, int]]

    def is_connected(self) -> bool:
        """Return whether all labels are joined by contacts."""
        pairs = np.array(sorted(self.contacts), np.int64).reshape(-1, 2)
        return not group_components(np.zeros(len(self.chosen), np.int64), pairs).any()


@dataclass(frozen=True)
class PlannedEdit:
    """An edit that was not begun: its record, and the boxes to change with their codes (`dseeds.storage.edit_log`)."""

    record: EditRecord
    pieces: Iterable[tuple[Box, Codes]]


def bound_within(tile: Box, boxes: Iterable[Box]) -> Box | None:
    """Return the bounding box of what lies of boxes in a tile; None if nothing does."""
    parts = [box.intersection(tile) for box in boxes if box.overlaps(tile)]
    return reduce(Box.bounding, parts) if parts else None


def survey_labels(
    source: Source, chosen: Sequence[int], places: Mapping[int, Box] | None = None, *, threads: int = 1
) -> LabelSurvey:
    """Survey labels, each within its box in `places` or anywhere; raise a ValueError if one is missing."""
    ids = np.array(sorted(chosen)).astype(source.dtype.newbyteorder("="))
    tiling = Tiling(source.shape, choose_tiling(source.shape, source.chunks, SURVEY_BYTES))
    whole = Box((0, 0, 0), source.shape)
    boxes = [whole] if places is None else [places[label] for label in sorted(chosen)]
    parts = [part for number in range(len(tiling)) if (part := bound_within(tiling.box(number), boxes))]
    extents = np.zeros((len(ids), EXTENT_WIDTH), np.int64)
    contacts: set[tuple[int, int]] = set()
    calls = ((source, ids, part) for part in parts)
    for own, pairs in Executor(threads).map_unordered("survey", _survey_box, calls, len(parts)):
        _add_extents(extents, own)
        contacts.update(pairs)
    missing = ids[extents[:, VOXELS] == 0]
    if missing.size:
        raise ValueError(f"there is no supervoxel {missing[0]}: name one that the labels have.")
    corners = ((row[LOWEST:HIGHEST], row[HIGHEST:] + 1) for row in extents)
    bounds = tuple(Box(triple(lo), triple(hi)) for lo, hi in corners)
    return LabelSurvey(ids, tuple(extents[:, VOXELS].tolist()), bounds, frozenset(contacts))


def _survey_box(source: Source, ids: NDArray[Any], box: Box) -> tuple[NDArray[np.int64], set[tuple[int, int]]]:
    """Return the extents of labels in a box, and their contacts with the voxels above each."""
    window = Box(box.lo, box.grow(1, within=source.shape).hi) if len(ids) > 1 else box
    extents = np.zeros((len(ids), EXTENT_WIDTH), np.int64)
    codes = np.zeros(window.shape, np.uint32)
    survey_chosen(_read(source, window), ids, box.shape, box.lo, codes, extents)
    pairs: set[tuple[int, int]] = set()
    if len(ids) > 1 and codes.any():
        for axis in range(3):
            lower, upper = (np.moveaxis(codes, axis, 0)[side] for side in (np.s_[:-1], np.s_[1:]))
            touching = (lower != upper) & (lower > 0) & (upper > 0)
            ends = np.sort(np.stack([lower[touching], upper[touching]], axis=1).astype(np.int64) - 1, axis=1)
            pairs.update((int(a), int(b)) for a, b in np.unique(ends, axis=0))
    return extents, pairs


def _read(source: Source, box: Box) -> NDArray[Any]:
    values = source.read(box.slices)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _add_extents(total: NDArray[np.int64], own: NDArray[np.int64]) -> None:
    """Add the extents of labels in a box to those in other boxes."""
    here, there = own[:, VOXELS] > 0, total[:, VOXELS] > 0
    low, high = slice(LOWEST, HIGHEST), slice(HIGHEST, EXTENT_WIDTH)
    both = here & there
    total[both, low] = np.minimum(total[both, low], own[both, low])
    total[both, high] = np.maximum(total[both, high], own[both, high])
    total[here & ~there] = own[here & ~there]
    total[both, VOXELS] += own[both, VOXELS]


def plan_merge(labels: EditableLabels, survey: LabelSurvey, *, apart: bool = False) -> PlannedEdit:
    """Plan to give the voxels of labels to the smallest of them.

    Raise a ValueError unless they are connected, or may be `apart`.
    """
    ids = [int(label) for label in survey.chosen]
    if not apart and not survey.is_connected():
        raise ValueError(
            f"supervoxels {', '.join(map(str, ids))} are not joined by faces, so they would not be one connected "
            f"region: merge others, or allow it with apart=True (--apart)."
        )
    moves = [Move(label, ids[0], count) for label, count in zip(ids[1:], survey.counts[1:], strict=True)]
    record = _describe(labels.state, "merge", ids, ids[:1], moves, survey.boxes[1:])
    return PlannedEdit(record, _merge_pieces(labels, survey))


def _merge_pieces(labels: EditableLabels, survey: LabelSurvey) -> Iterator[tuple[Box, Codes]]:
    for box in labels.split_boxes(survey.boxes[1:]):
        codes = np.zeros(box.shape, np.uint32)
        extents = np.zeros((len(survey.chosen), EXTENT_WIDTH), np.int64)
        survey_chosen(_read(labels.source, box), survey.chosen, box.shape, box.lo, codes, extents)
        # The first label keeps its voxels.
        codes -= codes > 0
        yield from _trim(box, codes.astype(np.min_scalar_type(len(survey.chosen))))


def _trim(box: Box, codes: Codes) -> Iterator[tuple[Box, Codes]]:
    """Yield the smallest box with all voxels that change, and their codes, if there are any."""
    if not codes.any():
        return
    ends = [np.flatnonzero(codes.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    inner = Box(triple(lo for lo, _ in ends), triple(hi + 1 for _, hi in ends))
    origin = triple(-a for a in box.lo)
    yield inner.relative_to(origin), codes[inner.slices]


def _describe(
    state: EditState,
    kind: EditKind,
    before: Sequence[int],
    after: Sequence[int],
    moves: Sequence[Move],
    boxes: Sequence[Box],
) -> EditRecord:
    return EditRecord(
        number=state.edits + 1,
        kind=kind,
        before=tuple(before),
        after=tuple(after),
        box=reduce(Box.bounding, boxes),
        voxels=sum(move.voxels for move in moves),
        moves=tuple(moves),
        largest=max(state.largest, *after),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        pieces=(),
    )


def plan_undo(state: EditState, undone: EditRecord) -> EditRecord:
    """Return the record of an edit that takes another back."""
    moves = [Move(move.target, move.source, move.voxels) for move in undone.moves]
    record = _describe(state, "undo", undone.after, undone.before, moves, [undone.box])
    return replace(record, pieces=undone.pieces, undoes=undone.number)


def plan_split(labels: EditableLabels, label: int, box: Box, parts: NDArray[np.int32]) -> PlannedEdit:
    """Plan to give all but the first part of a supervoxel new labels.

    `parts`, int32, in its `box`, holds the numbers of the parts from 1, and -1 elsewhere. Raise a ValueError if the
    type of the labels has no more of them.
    """
    state, counts = labels.state, np.bincount(parts[parts > 0])[1:].tolist()
    after = [label, *range(state.largest + 1, state.largest + len(counts))]
    most = min(int(np.iinfo(labels.source.dtype).max), 2**63 - 1)
    if after[-1] > most:
        raise ValueError(
            f"labels of type {labels.source.dtype} end at {most}, and {state.largest} has been used: convert them to a "
            f"wider type to split any."
        )
    moves = [Move(label, new, count) for new, count in zip(after[1:], counts[1:], strict=True)]
    codes = np.maximum(parts - 1, 0).astype(np.min_scalar_type(len(counts)))
    record = _describe(state, "split", [label], after, moves, [trimmed for trimmed, _ in _trim(box, codes)])
    pieces = (piece for one in labels.split_boxes([box]) for piece in _trim(one, codes[one.relative_to(box.lo).slices]))
    return PlannedEdit(record, pieces)


def change_piece(values: NDArray[Any], codes: Codes, record: EditRecord) -> NDArray[Any]:
    """Return labels in a box after an edit, whose codes there are those of its moves.

    They may be changed already, in part or in whole. Raise a ValueError if any voxel has neither its old nor its new
    label.
    """
    old, new = (
        np.array([0, *labels]).astype(values.dtype)[codes]
        for labels in ([move.source for move in record.moves], [move.target for move in record.moves])
    )
    changes = codes > 0
    if ((values != old) & (values != new) & changes).any():
        raise ValueError(
            f"voxels of edit {record.number} have labels that neither it nor an edit before it gave them: another "
            f"program has changed them, so restore them from a copy."
        )
    return np.where(changes, new, values)


def grow_from_seeds(
    labels: EditableLabels, label: int, box: Box, seeds: Any, *, image: Image | None = None, pieces: bool = False
) -> NDArray[np.int32]:
    """Return the parts that grow from seeds within the box of a supervoxel, see `plan_split`.

    `seeds` are lists of points (z, y, x), one for each part, or a source of classes, 0 for none. With an `image` on the
    labels' grid, steps cost more where it changes. Raise a ValueError if a seed is not in the supervoxel, or a part
    would not be connected; with `pieces`, its pieces are parts themselves.
    """
    inside = _inside(labels, label, box)
    if isinstance(seeds, list | tuple):
        parts, names = _place_points(labels.source, label, box, inside, seeds)
    else:
        classes = _read_beside(labels.source, seeds, "seeds", box)
        parts, names = _number_classes(np.where(inside, classes, 0), skipped=0)
    _check_count(label, names, "seeds of at least two parts lie")
    padded = np.pad(np.where(inside, parts, -1).astype(np.int32), 1, constant_values=-1)
    if image is None:
        unreached = grow_parts(padded)
    else:
        margins = ((0, 0), (1, 1), (1, 1), (1, 1))
        unreached = grow_by_contrast(padded, np.pad(_contrast_bins(image, box, inside), margins))
    if unreached:
        raise ValueError(
            f"supervoxel {label} is not connected: no seed reaches {unreached} of its voxels, so put seeds on each "
            f"piece."
        )
    return _separate(label, padded, names, pieces)


def take_parts(labels: EditableLabels, label: int, box: Box, given: Any, *, pieces: bool = False) -> NDArray[np.int32]:
    """Return the parts that values of a source make of a supervoxel, see `plan_split`; the lowest value comes first.

    Raise a ValueError if the values do not differ, or a part is not connected; with `pieces`, its pieces are parts
    themselves.
    """
    inside = _inside(labels, label, box)
    values = _read_beside(labels.source, given, "parts", box)
    numbers, names = _number_classes(np.where(inside, values, -1), skipped=-1)
    padded = np.pad(np.where(inside, numbers, -1).astype(np.int32), 1, constant_values=-1)
    if not pieces:
        _check_count(label, names, "values of at least two parts lie")
    return _separate(label, padded, names, pieces)


def _contrast_bins(image: Image, box: Box, inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the bins of intensities in a box, of which there are 64 from the lowest to the highest one inside."""
    channels = [native_values(channel) for channel in image.read(box.slices)]
    bins = np.empty((len(channels), *box.shape), np.uint8)
    for channel, out in zip(channels, bins, strict=True):
        known = channel[inside & np.isfinite(channel)]
        limits = (exact_number(known.min()), exact_number(known.max())) if known.size else (0.0, 0.0)
        quantise_box([channel], [limits], out[None])
    return bins


def _inside(labels: EditableLabels, label: int, box: Box) -> NDArray[np.bool_]:
    if box.size > MOST_VOXELS:
        raise ValueError(
            f"the bounding box of supervoxel {label} has {box.size} voxels, and {MOST_VOXELS} can be split at most: "
            f"cut smaller supervoxels (--step)."
        )
    inside: NDArray[np.bool_] = labels.source.read(box.slices) == label
    return inside


def _read_beside(source: Source, other: Any, name: str, box: Box) -> NDArray[np.int64]:
    """Return the values of seeds or parts on the grid of labels in a box."""
    aligned = align_sources(source, {name: open_labels(other)})[name]
    return read_labels(aligned, box, name).astype(np.int64, copy=False)


def _number_classes(values: NDArray[np.int64], skipped: int) -> tuple[NDArray[np.int32], list[str]]:
    """Return the numbers of classes from 1, in their order, 0 for one that is skipped, and the names of the others."""
    classes = np.unique(values)
    classes = classes[classes != skipped]
    numbers = np.searchsorted(classes, values).astype(np.int32) + 1
    return np.where(values == skipped, 0, numbers).astype(np.int32), [str(one) for one in classes]


def _place_points(
    source: Source, label: int, box: Box, inside: NDArray[np.bool_], seeds: Sequence[Any]
) -> tuple[NDArray[np.int32], list[str]]:
    """Return the numbers of parts at their points, else 0, and the names of the parts."""
    parts = np.zeros(box.shape, np.int32)
    for number, points in enumerate(seeds, 1):
        places = np.atleast_2d(np.asarray(points))
        if places.dtype.kind not in "iu" or places.ndim != 2 or places.shape[1] != 3 or not len(places):
            raise ValueError(f"the seeds of part {number} must be points (z, y, x) of whole numbers, got {points!r}.")
        for point in map(triple, places):
            if any(not 0 <= place < n for place, n in zip(point, source.shape, strict=True)):
                raise ValueError(f"the seed {point} of part {number} is outside the labels of shape {source.shape}.")
            index = tuple(place - a for place, a in zip(point, box.lo, strict=True))
            if not Box(point, triple(p + 1 for p in point)).overlaps(box) or not inside[index]:
                other = source.read(Box(point, triple(p + 1 for p in point)).slices).item()
                raise ValueError(
                    f"the seed {point} of part {number} lies in supervoxel {other}, not in {label}: place it there."
                )
            if parts[index] not in (0, number):
                raise ValueError(
                    f"the seed {point} belongs to parts {parts[index]} and {number}: leave out one of them."
                )
            parts[index] = number
    return parts, [str(number) for number in range(1, len(seeds) + 1)]


def _check_count(label: int, names: Sequence[str], needed: str) -> None:
    if len(names) < 2:
        seeded = f"only that of {names[0]}" if names else "none"
        raise ValueError(f"supervoxel {label} is split only where {needed} in it, but there is {seeded}: add more.")


def _separate(label: int, padded: NDArray[np.int32], names: Sequence[str], pieces: bool) -> NDArray[np.int32]:
    """Return parts without their margin, each of which is connected; if `pieces`, of what is not, each piece."""
    numbers, counts = number_pieces(padded, len(names))
    for name, count in zip(names, counts.tolist(), strict=True):
        if count > 1 and not pieces:
            raise ValueError(
                f"part {name} of supervoxel {label} would be in {count} pieces: draw it in one, or make each piece a "
                f"part with pieces=True (--pieces)."
            )
    if counts.sum() < 2:
        raise ValueError(f"supervoxel {label} is one part in one piece: draw two, to split it.")
    offsets = np.cumsum([0, *counts])
    parts = np.where(padded > 0, offsets[np.maximum(padded, 1) - 1] + numbers, -1).astype(np.int32)
    return parts[1:-1, 1:-1, 1:-1]
