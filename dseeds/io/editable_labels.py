"""Labels that can be edited: an array in memory, or a group that this program wrote, with its pyramid."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from dseeds.core.dtypes import unmask
from dseeds.core.geometry import Box
from dseeds.io.formats.ome_zarr import ZarrSource
from dseeds.io.open import open_voxels
from dseeds.io.pyramid import update_pyramid
from dseeds.io.pyramid_levels import PyramidLevel, compute_resolutions, match_levels
from dseeds.io.source import ArraySource, Source, SourceQuery
from dseeds.storage.edit_log import UNMOVED, EditLog, FilesInMemory
from dseeds.storage.label_group import (
    EDITING,
    EDITS,
    MOVED,
    has_metadata,
    own_attribute,
    parents_name,
    update_own_attribute,
)
from dseeds.storage.location import Location
from dseeds.storage.ownership import MARKER
from dseeds.storage.zarr_arrays import bound_by_shard, open_arrays, sync_shards

# Among this program's attributes, the largest label that was ever used, once labels were edited.
LARGEST = "largest_label"
# How far the position of a level may be from that of a method, in voxels of the full resolution.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class EditState:
    """The numbers of supervoxels, of the largest label ever used, of edits, and of an edit that is unfinished, or 0.

    `moved` is what the edits have moved, as in the record of the last one.
    """

    supervoxels: int
    largest: int
    edits: int = 0
    editing: int = 0
    moved: str = UNMOVED


class EditableLabels(Protocol):
    """Labels, axes (z, y, x), with the log of their edits."""

    source: Source
    log: EditLog

    @property
    def state(self) -> EditState:
        """What is known of the labels and their edits."""

    def set_state(self, state: EditState) -> None:
        """Store what is known of the labels and their edits, at once."""

    def split_boxes(self, boxes: Sequence[Box]) -> Iterable[Box]:
        """Return disjoint boxes that cover boxes and are written one at a time."""

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Replace the labels in one of the boxes of `split_boxes`."""

    def finish(self, boxes: Sequence[Box]) -> None:
        """Bring what depends on the labels in boxes up to date."""


class ArrayLabels(EditableLabels):
    """A copy of labels in an array."""

    def __init__(self, labels: Any) -> None:
        array = np.array(unmask(labels, is_image=False))
        if array.dtype.kind not in "iu" or array.ndim not in (2, 3) or 0 in array.shape:
            raise ValueError(
                f"an array of labels to edit holds integers along (z, y, x), but this one has the shape {array.shape} "
                f"and the type {array.dtype}: convert it."
            )
        if array.min() < 0:
            raise ValueError(f"labels must be from 0, but the array holds {array.min()}: renumber it.")
        self.array = array
        self.source = ArraySource(array if array.ndim == 3 else array[np.newaxis])
        self.log = EditLog(FilesInMemory())
        ids = np.unique(array)
        self._state = EditState(int(np.count_nonzero(ids)), int(ids[-1]))

    @property
    @override
    def state(self) -> EditState:
        return self._state

    @override
    def set_state(self, state: EditState) -> None:
        self._state = state

    @override
    def split_boxes(self, boxes: Sequence[Box]) -> Iterable[Box]:
        return [reduce(Box.bounding, boxes)]

    @override
    def write(self, box: Box, values: NDArray[Any]) -> None:
        array: NDArray[Any] = self.source.array
        array[box.slices] = values

    @override
    def finish(self, boxes: Sequence[Box]) -> None:
        pass


class GroupLabels(EditableLabels):
    """The labels of a group of OME-Zarr that `dseeds.segment` wrote, edited in place.

    `confirm` is called before every step, and raises an error if the labels are no longer this process's to change.
    """

    def __init__(self, location: Location, confirm: Callable[[], None] = lambda: None) -> None:
        self._confirm = confirm
        self._attribute = _require_labels(location)
        self.location = location
        [source] = open_voxels(location.address, SourceQuery(purpose="labels"))
        assert isinstance(source, ZarrSource)
        self.source = source
        self.log = EditLog(location.at(EDITS))
        self._method, self._levels = _read_pyramid(source)
        # Each process caches the arrays that it opens, by such a name.
        self._name = uuid.uuid4().hex

    @property
    def run(self) -> str:
        """The run that wrote the labels."""
        return str(self._attribute.get("run"))

    @property
    @override
    def state(self) -> EditState:
        attribute = own_attribute(self.location)
        count = int(attribute["supervoxels"])
        # A run numbers its supervoxels from 1.
        largest = int(attribute.get(LARGEST, count))
        edits, editing = (int(attribute.get(key, 0)) for key in (EDITS, EDITING))
        return EditState(count, largest, edits, editing, str(attribute.get(MOVED, UNMOVED)))

    @override
    def set_state(self, state: EditState) -> None:
        self._confirm()
        entries = {"supervoxels": state.supervoxels, LARGEST: state.largest, EDITS: state.edits, MOVED: state.moved}
        update_own_attribute(self.location, {**entries, EDITING: state.editing or None})

    @override
    def split_boxes(self, boxes: Sequence[Box]) -> Iterable[Box]:
        return bound_by_shard(self._array, boxes)

    @override
    def write(self, box: Box, values: NDArray[Any]) -> None:
        self._confirm()
        self._array[box.slices] = values
        sync_shards(self.location, "0", box.slices, self._name)

    @override
    def finish(self, boxes: Sequence[Box]) -> None:
        self._confirm()
        update_pyramid(self.location.address, self._method, self._levels, boxes)

    @property
    def _array(self) -> Any:
        _, writable = open_arrays(self.location, "0", self._name)
        return writable


def _require_labels(location: Location) -> dict[str, Any]:
    """Return this program's attribute of labels at a location; raise an error unless they can be edited."""
    address = location.address
    if location.read(MARKER) is not None:
        raise ValueError(f"{address} is unfinished: finish its run with dseeds segment --resume, then edit.")
    if not has_metadata(location):
        raise FileNotFoundError(f"{address} is no Zarr group: name labels that dseeds segment wrote as OME-Zarr.")
    attribute = own_attribute(location)
    if not isinstance(attribute.get("supervoxels"), int) or isinstance(attribute["supervoxels"], bool):
        raise ValueError(
            f"{address} was not written by dseeds segment, so it is not edited in place: pass its labels as an array."
        )
    if has_metadata(location.at(parents_name(1).partition("/")[0])):
        raise ValueError(
            f"{address} has coarser levels of supervoxels, which an edit would contradict: edit labels that were made "
            f"without levels (--levels)."
        )
    return attribute


def _read_pyramid(source: ZarrSource) -> tuple[str, tuple[PyramidLevel, ...]]:
    """Return the method and the levels of the pyramid of labels; raise a ValueError if they are not one of ours."""
    multiscale = source.multiscale
    assert multiscale is not None
    levels = match_levels(source.shape, source.coarser)
    stored = [level and level.shape for level in source.coarser_levels()]
    if [level.shape for level in levels] != stored:
        raise ValueError(
            f"the pyramid of {multiscale.where} has levels that dseeds did not write, or lacks some, so it cannot be "
            f"kept up to date: write the labels again."
        )
    frames = [frame for frame in multiscale.frames if frame is not None]
    first = frames[0]
    places = [
        [(a - b) / length for a, b, length in zip(frame.translation, first.translation, first.spacing, strict=True)]
        for frame in frames[1:]
    ]
    for method in ("mode", "nearest"):
        offsets = [resolution.offset for resolution in compute_resolutions(levels, method)]
        if len(places) == len(offsets) and np.allclose(places, offsets, atol=TOLERANCE):
            return method, levels
    raise ValueError(
        f"the levels of {multiscale.where} lie where neither of the methods mode and nearest puts them: write the "
        f"labels again."
    )
