"""Classes of supervoxels given by hand: scribbles, undo, propagation, and the folder that keeps all of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dseeds.api.segment import segment
from dseeds.core.geometry import Box, Triple, triple
from dseeds.core.progress import Progress
from dseeds.engine.run import LAYOUT_OPTIONS, ResolvedTarget
from dseeds.engine.run_directory import RunMismatch, read_spec
from dseeds.io.labels import open_labels
from dseeds.measure.columns import BOUNDING_BOX, CENTROID
from dseeds.measure.identity import TableOrigin
from dseeds.measure.painting import paint
from dseeds.measure.propagation import CLASSES, Propagated, RandomWalker
from dseeds.measure.region_graph import AdjacencyGraph, load_graph
from dseeds.napari_plugin.stored_volumes import choose_source, stored_or_array
from dseeds.storage.table_file import check_table_file, read_note, read_table_file

# Bytes of probabilities that undo keeps; of states before these, only the annotations are kept.
UNDO_BYTES = 1 << 28


@dataclass(frozen=True)
class AnnotationState:
    """The classes given by hand, and the answer that is shown with them; it may be that of an earlier state."""

    classes: Mapping[int, int] = field(default_factory=dict)
    answer: Propagated | None = None
    is_current: bool = False


class AnnotationSession:
    """Annotations of the supervoxels of a graph, which can be undone and propagated.

    Undo restores annotations and answer exactly as they were; of states so old that their answers would take more than
    a quarter of a GiB, it restores the annotations alone.

    Examples
    --------
    >>> graph = AdjacencyGraph(np.arange(1, 5), np.array([[0, 1], [1, 2], [2, 3]]), {}, {"area": np.ones(3)})
    >>> session = AnnotationSession(graph)
    >>> session.annotate([1], 1), session.annotate([3, 4], 2)
    (1, 2)
    >>> session.propagate().assigned
    array([1, 1, 2, 2])
    >>> session.annotate([3], 0), session.state.classes, session.state.is_current
    (1, {1: 1, 4: 2}, False)
    >>> session.undo(), session.state.classes, session.state.is_current
    (True, {1: 1, 3: 2, 4: 2}, True)
    """

    def __init__(
        self, features: str | os.PathLike[str] | AdjacencyGraph, classes: Mapping[int, int] | None = None
    ) -> None:
        self._walker = RandomWalker(features)
        self._past: list[AnnotationState] = []
        self._future: list[AnnotationState] = []
        self.state = AnnotationState(dict(classes or {}))

    @property
    def graph(self) -> AdjacencyGraph:
        """The supervoxels and their contacts."""
        return self._walker.graph

    def annotate(self, labels: Iterable[int], name: int) -> int:
        """Give supervoxels a class, or none if it is 0; 0 is no supervoxel. Return how many of them changed.

        All of them are one step of undo; without any change there is none.
        """
        if name < 0:
            raise ValueError(f"a class must be 0, which removes it, or greater, not {name}.")
        wanted = np.unique(np.asarray(list(labels), np.int64))
        wanted = wanted[wanted != 0]
        unknown = wanted[~np.isin(wanted, self.graph.labels)]
        if len(unknown):
            raise ValueError(f"{unknown[0]} is no supervoxel of this graph: are both of the same labels?")
        before = self.state.classes
        changed = [label for label in wanted.tolist() if before.get(label, 0) != name]
        if changed:
            classes = dict(before) | dict.fromkeys(changed, name)
            self._past.append(self.state)
            self._future.clear()
            kept = {label: value for label, value in classes.items() if value}
            self.state = replace(self.state, classes=kept, is_current=False)
            self._forget_answers()
        return len(changed)

    def undo(self) -> bool:
        """Return to the state before the last annotation; False if there is none."""
        return self._step(self._past, self._future)

    def redo(self) -> bool:
        """Return to the state before the last undo; False if there is none."""
        return self._step(self._future, self._past)

    def _step(self, source: list[AnnotationState], other: list[AnnotationState]) -> bool:
        if not source:
            return False
        other.append(self.state)
        self.state = source.pop()
        return True

    def propagate(self) -> Propagated:
        """Return the classes of all supervoxels and their probabilities, for the annotations as they are now.

        While this runs in a thread, annotations may go on: the answer is kept only if they have not changed.
        """
        asked = self.state
        if asked.is_current and asked.answer is not None:
            return asked.answer
        answer = self._walker.propagate(dict(asked.classes))
        if self.state is asked:
            self.state = replace(asked, answer=answer, is_current=True)
        return answer

    def _forget_answers(self) -> None:
        """Drop the answers of states that are too old for the memory they take."""
        size, seen = 0, set()
        for number in reversed(range(len(self._past))):
            answer = self._past[number].answer
            if answer is not None and id(answer) not in seen:
                seen.add(id(answer))
                size += answer.probabilities.nbytes
            if size > UNDO_BYTES:
                self._past[number] = replace(self._past[number], answer=None, is_current=False)


@dataclass(frozen=True)
class FolderSettings:
    """The settings of a cut, under the names of the parameters of `dseeds.segment`."""

    step: Triple
    window: Any
    compactness: float
    spacing: Sequence[float]
    mask: Any = None
    boundaries: Any = None
    memory: str | None = None


@dataclass(frozen=True)
class AnnotationFolder:
    """The folder of a volume's supervoxels, their features, and the classes given to them."""

    path: Path

    @property
    def labels(self) -> Path:
        """The supervoxels, OME-Zarr."""
        return self.path / "supervoxels.zarr"

    @property
    def features(self) -> Path:
        """Their table and graph."""
        return self.path / "supervoxels.features"

    @property
    def table(self) -> Path:
        """The classes and probabilities of all supervoxels, Parquet."""
        return self.path / "classes.parquet"

    @property
    def classes(self) -> Path:
        """The classes of all voxels, OME-Zarr."""
        return self.path / "classes.zarr"

    def cut(
        self, channels: Sequence[Any], settings: FolderSettings, progress: Progress | None = None
    ) -> AnnotationSession:
        """Cut an image of some channels into supervoxels, in this process or on local workers; return a new session.

        A cut that was cancelled or killed is resumed. A ValueError is raised if it was begun with other settings.
        """
        if self.table.exists() or self.classes.exists():
            raise FileExistsError(
                f"{self.path} holds classes of other supervoxels: choose another folder, or open this one."
            )
        source = choose_source(channels)
        options = vars(settings) | {
            "mask": stored_or_array(settings.mask),
            "boundaries": stored_or_array(settings.boundaries),
            "volume": source.volume,
            "channel_axis": source.channel_axis,
        }
        try:
            self._check_unfinished({name for name, value in options.items() if value is not None})
            segment(source.image, self.labels, **options, features=True, resume=True, progress=progress)
        except RunMismatch as error:
            raise ValueError(
                f"{self.path} holds an unfinished cut of another image, with other settings or by another version: "
                "choose the same to finish it, or choose another folder."
            ) from error
        return AnnotationSession(self.features)

    def _check_unfinished(self, given: set[str]) -> None:
        """Raise a `RunMismatch` if an unfinished cut has options that are not given: they would be taken from it."""
        earlier = read_spec(ResolvedTarget.at(self.labels).run_folder)
        if earlier is None:
            return
        before = set(earlier.options.given()) - LAYOUT_OPTIONS
        for name in ("mask", "boundaries"):
            before |= {name} if getattr(earlier.parameters, name) is not None else set()
        if before - given:
            raise RunMismatch(f"the unfinished run has {', '.join(sorted(before - given))}.")

    def open(self) -> AnnotationSession:
        """Return a session of supervoxels that are in the folder, with the annotations that were saved."""
        if not self.labels.exists() or not self.features.exists():
            raise FileNotFoundError(
                f"{self.path} does not hold {self.labels.name} and {self.features.name}: cut a layer into it first."
            )
        classes: dict[int, int] = {}
        origin = None
        if self.table.exists():
            table = read_table_file(self.table, CLASSES)
            origin = TableOrigin.of_file(read_note(table.schema), str(self.table))
            given = table.filter(table["annotated"])
            classes = dict(zip(given["label"].to_pylist(), given["class"].to_pylist(), strict=True))
        session = AnnotationSession(self.features, classes)
        own = session.graph.origin
        if origin is not None and own is not None and not origin.identity.is_same(own.identity):
            raise ValueError(
                f"{self.table.name} has the classes of other labels than {self.labels.name} has, or had before it was "
                "edited: take the edits back, or move the file away and annotate again."
            )
        if own is not None:
            own.check_labels(open_labels(self.labels), whole=False)
        return session

    def locate(self, labels: NDArray[np.int64]) -> list[Triple]:
        """Return a voxel of each of some supervoxels: the one that is nearest to the centroid."""
        graph = load_graph(self.features, columns=[*CENTROID, *BOUNDING_BOX], edge_columns=[])
        rows = np.searchsorted(graph.labels, labels)
        centroids, corners = (
            np.stack([graph.nodes[name][rows] for name in names], axis=1) for names in (CENTROID, BOUNDING_BOX)
        )
        source, voxels = open_labels(self.labels), []
        for label, centroid, corner in zip(labels, centroids, corners, strict=True):
            lo, hi = corner[:3], corner[3:]
            inside = np.argwhere(source.read(Box(triple(lo), triple(hi)).slices) == label) + lo
            voxels.append(triple(inside[np.square(inside - centroid).sum(axis=1).argmin()]))
        return voxels

    def save(self, session: AnnotationSession) -> None:
        """Propagate, and write the classes as a table and as a volume, in place of those saved before."""
        check_table_file(self.table, overwrite=True)
        answer = session.propagate()
        paint(self.labels, answer, self.classes, column="class", as_labels=True, overwrite=True)
        answer.save(self.table, overwrite=True)


def scribbled_labels(labels: Any, points: ArrayLike) -> NDArray[np.int64]:
    """Return the supervoxels on straight lines from point to point, in voxels; what lies outside the volume is none.

    Only the bounding box of the points is read.

    >>> labels = np.arange(1, 13).reshape(1, 3, 4)
    >>> scribbled_labels(labels, [(0, 0, 0), (0, 2, 2), (0, 2, 9)])
    array([ 1,  6, 11, 12])
    """
    corners = np.asarray(points, np.float64)
    pieces = [corners[:1]]
    for start, end in itertools.pairwise(corners):
        count = int(np.ceil(np.abs(end - start).max())) + 1
        pieces.append(np.linspace(start, end, count))
    voxels = np.unique(np.floor(np.concatenate(pieces) + 0.5).astype(np.int64), axis=0)
    voxels = voxels[((voxels >= 0) & (voxels < labels.shape)).all(axis=1)]
    if not len(voxels):
        return np.zeros(0, np.int64)
    box = Box(triple(voxels.min(axis=0)), triple(voxels.max(axis=0) + 1))
    values = np.asarray(labels[box.slices])
    return np.unique(values[tuple((voxels - box.lo).T)]).astype(np.int64)
