"""`edit`: supervoxels are merged and split by hand, with a log, and their features follow."""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dseeds.core.checks import check_threads
from dseeds.core.geometry import Box, triple
from dseeds.engine.run_directory import hold_labels
from dseeds.io import Image, open_image
from dseeds.io.editable_labels import ArrayLabels, EditableLabels, EditState, GroupLabels
from dseeds.io.labels import align_image
from dseeds.measure.edits import (
    LabelSurvey,
    PlannedEdit,
    change_piece,
    grow_from_seeds,
    plan_merge,
    plan_split,
    plan_undo,
    survey_labels,
    take_parts,
)
from dseeds.measure.label_hash import LabelHash, hash_change
from dseeds.storage.edit_log import UNMOVED, EditRecord
from dseeds.storage.label_group import EDITING, own_attribute
from dseeds.storage.location import Location, open_location

if TYPE_CHECKING:
    from dseeds.measure.features import Features
    from dseeds.storage.parquet_dataset import Dataset


class EditTarget(Protocol):
    """What is edited."""

    @contextmanager
    def hold(self) -> Iterator[EditableLabels]:
        """Hold the labels as they are now, so that nobody else changes them meanwhile."""

    def read(self) -> EditableLabels:
        """Return the labels as they are now."""


@dataclass(frozen=True)
class ArrayTarget(EditTarget):
    """A copy of an array."""

    labels: ArrayLabels

    @contextmanager
    def hold(self) -> Iterator[EditableLabels]:
        """Return the array, which only this process has."""
        yield self.labels

    def read(self) -> EditableLabels:
        """Return the array."""
        return self.labels


@dataclass(frozen=True)
class GroupTarget(EditTarget):
    """Labels that a run has written; other processes may edit them between two edits."""

    location: Location
    run: str

    @contextmanager
    def hold(self) -> Iterator[EditableLabels]:
        """Hold the group by its lease; raise a FileExistsError if another process holds it."""
        with hold_labels(self.location) as lease:
            yield self._open(lease.confirm)

    def read(self) -> EditableLabels:
        """Open the group anew; raise a ValueError if another run has written it since."""
        return self._open(lambda: None)

    def _open(self, confirm: Callable[[], None]) -> GroupLabels:
        labels = GroupLabels(self.location, confirm)
        if labels.run != self.run:
            raise ValueError(f"{self.location.address} was replaced by other labels: open them with dseeds.edit.")
        return labels


def edit(
    labels: Any, *, features: str | os.PathLike[str] | Features | None = None, threads: int | None = None
) -> Edits:
    """Open supervoxels to merge and to split chosen ones, without a change of any other id or voxel.

    Labels of a group are edited in place: voxels, pyramid, and a log by which every edit can be undone. An edit that
    was interrupted is completed first.

    Parameters
    ----------
    labels : path, URL or ndarray
        Labels that `segment` wrote as OME-Zarr, or integers along (z, y, x), of which a copy is edited.
    features : path, URL or Features, optional
        The features of these labels, which say where each supervoxel lies. Without them, each edit reads all labels to
        find those that it takes.
    threads : int, optional
        Threads of this process that read labels. Default: one per core.

    Returns
    -------
    Edits
        To merge, split and undo.

    Raises
    ------
    FileExistsError
        If another process is working on the labels, or their run is kept.
    FileNotFoundError
        If there are no labels.
    ValueError
        If the labels are unfinished, are no output of `segment`, have coarser levels, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> edits = dseeds.edit(np.array([[[1, 1, 2, 2, 2, 3]]]))
    >>> edits.merge([1, 2]).after
    (1,)
    >>> edits.split(1, seeds=[[(0, 0, 0)], [(0, 0, 4)]]).after
    (1, 4)
    >>> edits.labels
    array([[[1, 1, 1, 4, 4, 3]]])
    >>> record = edits.undo()
    >>> edits.labels, [record.kind for record in edits.log]
    (array([[[1, 1, 1, 1, 1, 3]]]), ['merge', 'split', 'undo'])
    """
    if isinstance(labels, str | os.PathLike):
        location = open_location(labels)
        target: EditTarget = GroupTarget(location, GroupLabels(location).run)
    else:
        target = ArrayTarget(ArrayLabels(labels))
    edits = Edits(target, features, check_threads(threads))
    if target.read().state.editing:
        with edits._hold():
            pass
    return edits


class Edits:
    """Supervoxels that are edited; `edit` opens them.

    Attributes
    ----------
    labels : ndarray or str
        The edited copy of an array, read-only, or the address of a group.
    log : list of EditRecord
        The edits of the labels, including those of earlier sessions.

    Examples
    --------
    >>> edits = edit(np.array([[[1, 2, 2, 2]]]))
    >>> edits.split(2, parts=np.array([[[0, 0, 1, 1]]], bool)).after
    (2, 3)
    >>> edits
    Edits(3 supervoxels, 1 edits)
    """

    def __init__(self, target: EditTarget, features: str | os.PathLike[str] | Features | None, threads: int) -> None:
        self._target, self._features, self._threads = target, features, threads

    def __repr__(self) -> str:
        state = self._target.read().state
        return f"Edits({state.supervoxels} supervoxels, {state.edits} edits)"

    @property
    def labels(self) -> NDArray[Any] | str:
        """The edited copy of an array, read-only, or the address of a group."""
        if isinstance(self._target, GroupTarget):
            return self._target.location.address
        assert isinstance(self._target, ArrayTarget)
        view = self._target.labels.array.view()
        view.flags.writeable = False
        return view

    @property
    def log(self) -> list[EditRecord]:
        """The edits of the labels, including those of earlier sessions."""
        labels = self._target.read()
        return [labels.log.require(number) for number in range(1, labels.state.edits + 1)]

    def merge(self, labels: Sequence[int], *, apart: bool = False) -> EditRecord:
        """Merge supervoxels into the one with the smallest label, which keeps it.

        Parameters
        ----------
        labels : sequence of int
            Two or more supervoxels.
        apart : bool, default False
            Allow supervoxels that are not joined by voxel faces, so that the result is not one connected region.

        Returns
        -------
        EditRecord
            What was done.

        Raises
        ------
        FileExistsError
            If another process is working on the labels.
        ValueError
            If a supervoxel does not exist, or they are not joined and not allowed to be `apart`.
        """
        chosen = sorted({operator.index(label) for label in labels})
        if len(chosen) < 2:
            raise ValueError(f"a merge takes two or more supervoxels, got {list(labels)!r}: name those to join.")
        with self._hold() as opened:
            survey = self._survey(opened, chosen)
            return _carry_out(opened, plan_merge(opened, survey, apart=apart))

    def split(
        self,
        label: int,
        *,
        seeds: Any = None,
        parts: Any = None,
        image: Any = None,
        pieces: bool = False,
        volume: int | None = None,
        level: int | None = None,
        channel_axis: int | str | None = None,
    ) -> EditRecord:
        """Split a supervoxel into parts: the first keeps the label, the others get new ones that were never used.

        Parameters
        ----------
        label : int
            The supervoxel.
        seeds : sequence of points, or source, optional
            Where parts grow from: a list of points (z, y, x) for each part, or a single point; or classes on the grid
            of the labels, an array or anything that `segment` takes as a source, of which 0 is none and the lowest in
            the supervoxel the first part. Every voxel goes to the part whose seed is nearest by steps across faces
            within the supervoxel, of several to the first one.
        parts : source, optional
            Instead of seeds: the parts, drawn by hand, as values on the grid of the labels. The lowest value in the
            supervoxel is the first part; of a mask, what it leaves out.
        image : source or list of sources, optional
            Let parts that grow from seeds meet where intensities change: a step from a voxel to the next costs 1, and
            as much more as their bins differ, of 64 between the lowest and the highest intensity in the supervoxel, in
            the channel where they differ most.
        pieces : bool, default False
            Make each piece of a part that is not connected a part of its own. Otherwise such a part is refused.
        volume, level, channel_axis : optional
            Of the image, as for `features`.

        Returns
        -------
        EditRecord
            What was done; its `after` has the labels of the parts, in their order.

        Raises
        ------
        FileExistsError
            If another process is working on the labels.
        ValueError
            If the supervoxel does not exist, a point lies outside it, there are fewer than two parts, or one of them is
            not connected.
        """
        if (seeds is None) == (parts is None):
            raise ValueError("a split needs either seeds or parts: pass one of them.")
        if parts is not None and image is not None:
            raise ValueError("parts are taken as they are drawn, so a split takes an image only with seeds.")
        with self._hold() as opened:
            [box], own = self._survey(opened, [operator.index(label)]).boxes, int(label)
            if parts is not None:
                numbers = take_parts(opened, own, box, parts, pieces=pieces)
            else:
                where = {"volume": volume, "level": level or 0, "channel_axis": channel_axis}
                measured = None if image is None else _open_aligned(image, opened, **where)
                numbers = grow_from_seeds(opened, own, box, seeds, image=measured, pieces=pieces)
            return _carry_out(opened, plan_split(opened, own, box, numbers))

    def undo(self) -> EditRecord:
        """Undo the last edit that is not undone yet, also one of an earlier session.

        Returns
        -------
        EditRecord
            The undoing, which is an edit as well; its `undoes` is the number of the edit that it takes back.

        Raises
        ------
        FileExistsError
            If another process is working on the labels.
        ValueError
            If there is nothing to undo.
        """
        with self._hold() as opened:
            state = opened.state
            last = opened.log.last_done(state.edits)
            if last is None:
                raise ValueError("there is no edit that could be undone.")
            before = UNMOVED if last.number == 1 else opened.log.require(last.number - 1).moved
            undone = LabelHash.of_text(last.moved) - LabelHash.of_text(before)
            moved = LabelHash.of_text(state.moved) - undone
            record = replace(plan_undo(state, last), moved=moved.to_text())
            # Nothing is begun that could not be finished.
            for _ in _changed_pieces(opened, record):
                pass
            opened.log.discard(record.number)
            opened.log.write(record)
            opened.set_state(replace(state, editing=record.number))
            _complete(opened)
            return record

    def update_features(
        self,
        features: str | os.PathLike[str] | Features | None = None,
        image: Any = None,
        *,
        volume: int | None = None,
        level: int | None = None,
        channel_axis: int | str | None = None,
    ) -> Features:
        """Bring features up to date: rows and edges of the supervoxels that changed are measured again, no others.

        The tables are then those that `features` would measure anew, in every bit.

        Parameters
        ----------
        features : path, URL or Features, optional
            The features of the labels before some of the edits. A folder is updated in place. Default: those that the
            edits were opened with.
        image : source or list of sources, optional
            The image that they were measured from, if they were.
        volume, level, channel_axis : optional
            Of the image, as for `features`.

        Returns
        -------
        Features
            The updated features.

        Raises
        ------
        FileNotFoundError
            If the folder or the image does not exist.
        ValueError
            If the features are those of other labels, or the image is not the one that they were measured from.

        Examples
        --------
        >>> import dseeds
        >>> labels, image = np.array([[[1, 1, 2, 2, 3]]]), np.array([[[10, 20, 50, 60, 90]]], np.uint8)
        >>> edits = edit(labels)
        >>> before = dseeds.features(labels, image, window=(0, 100))
        >>> record = edits.merge([1, 2])
        >>> edits.update_features(before, image).table["intensity_mean"].to_pylist()
        [35.0, 90.0]
        """
        # Here, not above: Arrow takes its time to import.
        from dseeds.measure.feature_updates import records_since, update_tables
        from dseeds.measure.features import Features

        chosen = self._features if features is None else features
        if chosen is None:
            raise ValueError("there are no features to update: pass their folder.")
        with self._hold() as opened, open_features(chosen) as dataset:
            dataset.finish_update()
            records = records_since(dataset, opened)
            where = {"volume": volume, "level": level or 0, "channel_axis": channel_axis}
            measured = None if image is None else _open_aligned(image, opened, **where)
            update_tables(dataset, opened, measured, records, threads=self._threads)
            in_memory = isinstance(chosen, Features) and chosen.address is None
            result = Features.of(dataset, None if in_memory else dataset.address)
        if features is None and in_memory:
            self._features = result
        return result

    @contextmanager
    def _hold(self) -> Iterator[EditableLabels]:
        """Hold the labels for an edit, after completing one that was interrupted."""
        with self._target.hold() as opened, _resumable(self._target):
            if opened.state.editing:
                _complete(opened)
            yield opened

    def _survey(self, opened: EditableLabels, chosen: Sequence[int]) -> LabelSurvey:
        """Survey labels, where the features say that they are if there are any."""
        most = min(int(np.iinfo(opened.source.dtype).max), 2**63 - 1)
        for label in chosen:
            if not 1 <= label <= most:
                raise ValueError(f"there is no supervoxel {label}: name one that the labels have.")
        if self._features is None:
            return survey_labels(opened.source, chosen, threads=self._threads)
        from dseeds.measure.feature_updates import check_counts, find_places, records_since

        with open_features(self._features) as dataset:
            dataset.finish_update()
            places = find_places(dataset, records_since(dataset, opened), chosen)
            boxes: Mapping[int, Box] = {label: places.boxes.get(label, Box((0, 0, 0), (0, 0, 0))) for label in chosen}
            survey = survey_labels(opened.source, chosen, boxes, threads=self._threads)
            check_counts(dataset, places.counts, dict(zip(sorted(chosen), survey.counts, strict=True)))
            return survey


def _open_aligned(image: Any, labels: EditableLabels, **where: Any) -> Image:
    """Open an image on the grid of labels."""
    return align_image(open_image(image, planes=True, **where), labels.source)


@contextmanager
def _resumable(target: EditTarget) -> Iterator[None]:
    """Add the command that completes an edit to an error that interrupts it."""
    try:
        yield
    except BaseException as error:
        # A store that cannot be reached is the error already.
        with suppress(OSError):
            if isinstance(target, GroupTarget) and own_attribute(target.location).get(EDITING):
                error.add_note(f"resume with: dseeds edit {target.location.address} log")
        raise


@contextmanager
def open_features(features: str | os.PathLike[str] | Features) -> Iterator[Dataset]:
    """Open features in their folder, or in a temporary one if they are in memory."""
    from dseeds.storage.parquet_dataset import FEATURES, Dataset

    if isinstance(features, str | os.PathLike):
        yield Dataset(open_location(features), FEATURES)
    elif features.address is not None:
        yield Dataset(open_location(features.address), FEATURES)
    else:
        with tempfile.TemporaryDirectory(prefix="dseeds-") as folder:
            dataset = Dataset(open_location(Path(folder, FEATURES.name)), FEATURES)
            features.copy_to(dataset)
            yield dataset


def _carry_out(labels: EditableLabels, planned: PlannedEdit) -> EditRecord:
    """Log a planned edit, then change the labels."""
    state, log, number = labels.state, labels.log, planned.record.number
    log.discard(number)
    boxes, moved, shape = [], LabelHash.of_text(state.moved), triple(labels.source.shape)
    for piece, (box, codes) in enumerate(planned.pieces):
        log.write_piece(number, piece, codes)
        boxes.append(box)
        moved += hash_change(planned.record.moves, codes, box, shape)
    record = replace(planned.record, pieces=tuple(boxes), moved=moved.to_text())
    log.write(record)
    labels.set_state(replace(state, editing=number))
    _complete(labels)
    return record


def _complete(labels: EditableLabels) -> None:
    """Change the labels as the record of the unfinished edit says, which may have been done in part."""
    state = labels.state
    record = labels.log.require(state.editing)
    for box, values in _changed_pieces(labels, record):
        labels.write(box, values)
    labels.finish(record.pieces)
    count = state.supervoxels + record.net
    labels.set_state(EditState(count, record.largest, record.number, moved=record.moved))


def _changed_pieces(labels: EditableLabels, record: EditRecord) -> Iterator[tuple[Box, NDArray[Any]]]:
    """Yield the boxes of an edit with the labels that it gives them; raise a ValueError if that cannot be told."""
    # Its own pieces, or those of the edit that it undoes.
    number = record.undoes or record.number
    for piece, box in enumerate(record.pieces):
        codes = labels.log.read_piece(number, piece, box)
        yield box, change_piece(labels.source.read(box.slices), codes, record)
