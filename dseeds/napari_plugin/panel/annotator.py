"""Annotating the supervoxels that are shown: clicks and strokes, propagation, suggestions, undo."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from dseeds.core.geometry import Triple
from dseeds.measure.propagation import Propagated
from dseeds.napari_plugin.annotation import AnnotationFolder, AnnotationSession, AnnotationState, scribbled_labels
from dseeds.napari_plugin.panel.background import BackgroundWork
from dseeds.napari_plugin.panel.layers import LABELS, ShownLayers
from dseeds.napari_plugin.panel.widgets import PanelWidgets

# Supervoxels that are suggested at once; the next ones take account of the answers to these.
SUGGESTED = 10


@dataclass
class Suggestions:
    """The supervoxels to annotate next for an answer, with a voxel of each; those that were shown are removed."""

    answer: Propagated
    left: list[tuple[int, Triple]] = field(default_factory=list)


class Annotator:
    """The annotations of the supervoxels of a folder, as they are given and shown in the window.

    Parameters
    ----------
    panel : PanelWidgets
        The class to give and the buttons; shows what was done as status.
    layers : ShownLayers
        Shows supervoxels, annotations and classes.
    work : BackgroundWork
        Propagates in a thread.
    update : callable
        Is called whenever annotations or classes have changed.
    """

    def __init__(
        self, panel: PanelWidgets, layers: ShownLayers, work: BackgroundWork, update: Callable[[], None]
    ) -> None:
        self._panel, self._layers, self._work, self._update = panel, layers, work, update
        self.session: AnnotationSession | None = None
        self.folder: AnnotationFolder | None = None
        self._suggestions: Suggestions | None = None
        self._shown_state: AnnotationState | None = None
        self._connect()

    def _connect(self) -> None:
        panel = self._panel
        for button, action in (
            (panel.propagate_button, self._propagate),
            (panel.suggest_button, self._suggest),
            (panel.undo_button, self._undo),
            (panel.redo_button, self._redo),
        ):
            button.changed.connect(action)
        panel.class_box.changed.connect(self.show_answer)
        panel.viewer.mouse_drag_callbacks.append(self._scribble)

    def begin(self, folder: AnnotationFolder, place: dict[str, Any], session: AnnotationSession) -> None:
        """Show the supervoxels of a folder at a place, and annotate them from now on."""
        self._layers.read_levels(folder, place)
        self.session, self.folder, self._suggestions = session, folder, None
        self._panel.preview_box.value = False
        self._layers.show_supervoxels()
        self.show_answer()
        self._panel.annotate_box.value = True
        self._panel.status_label.value = f"{len(session.graph.labels)} supervoxels in {folder.path}: click on some."

    def show_answer(self, *_: Any) -> None:
        """Show annotations, classes and probabilities as they are now."""
        if self.session is None:
            return
        self._shown_state = self.session.state
        self._layers.show_state(self.session.state, self._panel.class_box.value)
        self._update()

    # Clicks and strokes

    def _scribble(self, viewer: Any, event: Any) -> Generator[None, None, None]:
        """Annotate the supervoxels under a click or a stroke of the left button."""
        is_ready = self._panel.annotate_box.value and self.session is not None and not self._work.is_busy
        if not is_ready or event.button != 1 or event.modifiers:
            return
        if self._layers.find(LABELS) is None or viewer.dims.ndisplay != 2:
            self._panel.status_label.value = f"Show the layer {LABELS} in 2D to annotate: in 3D no voxel is certain."
            return
        camera, path = self._panel.viewer.scene.camera, [tuple(event.position)]
        can_pan, camera.mouse_pan = camera.mouse_pan, False
        try:
            yield
            while event.type == "mouse_move":
                path.append(tuple(event.position))
                yield
        finally:
            camera.mouse_pan = can_pan
        event.handled = True
        with self._panel.showing_errors():
            layer = self._layers.find(LABELS)
            points = [layer.world_to_data(position) for position in path]
            self._annotate(scribbled_labels(self._layers.levels[0], points))

    def _annotate(self, labels: Any) -> None:
        assert self.session is not None
        count = self.session.annotate(labels, self._panel.class_box.value)
        given = len(self.session.state.classes)
        self._panel.status_label.value = f"{count} supervoxels changed; {given} have a class."
        self.show_answer()
        if count and self._panel.live_box.value and self.session.state.classes:
            self._propagate()

    def _undo(self, *_: Any) -> None:
        if self.session is not None and not self._work.is_busy:
            self._panel.status_label.value = "Undone." if self.session.undo() else "There is nothing to undo."
            self.show_answer()

    def _redo(self, *_: Any) -> None:
        if self.session is not None and not self._work.is_busy:
            self._panel.status_label.value = "Done again." if self.session.redo() else "There is nothing to redo."
            self.show_answer()

    # Propagation and suggestions

    def _propagate(self, *_: Any) -> None:
        if self.session is not None:
            self._work.run("Propagating ...", self.session.propagate, lambda _: self._end_propagation())

    def _end_propagation(self) -> None:
        self._panel.status_label.value = "Propagated. Annotate what is wrong, and propagate again."
        self.show_answer()

    def _suggest(self, *_: Any) -> None:
        """Go to the next supervoxel that is suggested, after propagating what has been annotated since."""
        session, folder = self.session, self.folder
        if session is None or folder is None:
            return
        suggestions = self._suggestions
        is_current = suggestions is not None and session.state.is_current and suggestions.answer is session.state.answer
        if suggestions is not None and is_current and suggestions.left:
            self._show_suggestion(suggestions)
            return
        work = partial(suggest_voxels, session, folder)
        self._work.run("Looking for what to annotate ...", work, self._show_suggestion)

    def _show_suggestion(self, suggestions: Suggestions) -> None:
        assert self.session is not None
        self._suggestions = suggestions
        # Every layer that is shown anew reads its plane again.
        if self._shown_state is not self.session.state:
            self.show_answer()
        if not suggestions.left:
            self._panel.status_label.value = "There is nothing to suggest: all classes are certain."
            return
        label, voxel = suggestions.left.pop(0)
        layer = self._layers.find(LABELS)
        if layer is None:
            self._panel.status_label.value = (
                f"Supervoxel {label} at {voxel}: the layer {LABELS} that shows it was removed."
            )
            return
        self._layers.move_to(np.asarray(layer.data_to_world(voxel))[-3:])
        self._layers.show_suggestion(label)
        row = int(np.searchsorted(suggestions.answer.labels, label))
        uncertainty = float(suggestions.answer.uncertainty[row])
        self._panel.status_label.value = (
            f"Supervoxel {label} would help most, with an uncertainty of {uncertainty:.2f}: annotate it, or press "
            "Suggest for another."
        )


def suggest_voxels(session: AnnotationSession, folder: AnnotationFolder) -> Suggestions:
    """Propagate, and return the supervoxels to annotate next."""
    answer = session.propagate()
    labels = answer.suggest(SUGGESTED)
    return Suggestions(answer, list(zip(labels.tolist(), folder.locate(labels), strict=True)))
