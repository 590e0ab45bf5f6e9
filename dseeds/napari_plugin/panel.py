"""The panel in napari's window: what is in view is previewed, cut, annotated and propagated, in threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, Label, LineEdit, PushButton, SpinBox
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.qt.threading import create_worker
from napari.utils import cancelable_progress
from numpy.typing import NDArray
from qtpy.QtCore import QTimer  # type: ignore[attr-defined, unused-ignore]

from dseeds.core.geometry import Triple
from dseeds.io.labels import open_labels
from dseeds.io.resolution_levels import read_resolution_levels
from dseeds.measure.painting import paint
from dseeds.measure.propagation import Propagated
from dseeds.napari_plugin.annotation import (
    AnnotationFolder,
    AnnotationSession,
    AnnotationState,
    FolderSettings,
    scribbled_labels,
)
from dseeds.napari_plugin.cut_progress import CutProgress
from dseeds.napari_plugin.layer_choice import LayerChoice, placement_of, plane_of, spacing_of
from dseeds.napari_plugin.visible import Crop, CropLabels, choose_crop, cut_crop, describe_windows, visible_box
from dseeds.seeds.cell_size import DEFAULT_STEP
from dseeds.seeds.intensity_windows import read_windows
from dseeds.viz.viewers import OPACITY, level_arrays

if TYPE_CHECKING:
    import napari

PREVIEW, LABELS, GIVEN, ANSWER, PROBABILITY, UNCERTAINTY, SUGGESTION = (
    "preview of supervoxels",
    "supervoxels",
    "annotations",
    "classes",
    "probability",
    "uncertainty",
    "suggestion",
)
# Where a layer of the panel's says which of these it is: others may have the same names.
OWN = "dseeds"
# Milliseconds for which nothing must change before a preview begins.
PATIENCE = 150
CUT, CANCEL = "Cut the selected layers", "Cancel"
# Milliseconds between two looks at the progress of a cut.
LOOK = 100
# Supervoxels that are suggested at once; the next ones take account of the answers to these.
SUGGESTED = 10


@dataclass(frozen=True)
class PreviewRequest:
    """What a preview shows: of two that are equal, one is enough."""

    image: tuple[Any, ...]
    further: tuple[Any, ...]
    crop: Crop
    window: tuple[tuple[float, float] | None, ...]
    compactness: float


@dataclass
class Suggestions:
    """The supervoxels to annotate next for an answer, with a voxel of each; those that were shown are removed."""

    answer: Propagated
    left: list[tuple[int, Triple]] = field(default_factory=list)


class SupervoxelPanel(Container):
    """Cut the selected layer into supervoxels, give some of them classes, and propagate these to all.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The window's viewer.
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        self.viewer = napari_viewer
        self.session: AnnotationSession | None = None
        # The resolution levels of the supervoxels, as arrays and by their paths.
        self._levels: list[Any] = []
        self._painted_levels: list[Any] = []
        self._saved_in: AnnotationFolder | None = None
        self._place: dict[str, Any] = {}
        self._is_busy = self._is_previewing = False
        self._last_request: PreviewRequest | None = None
        # By choice of layers the windows that were chosen for it, and the choices whose windows are being chosen.
        self._windows: dict[Any, str] = {}
        self._pending_windows: set[Any] = set()
        self._suggestions: Suggestions | None = None
        self._shown_state: AnnotationState | None = None
        self._progress: CutProgress | None = None
        self._bar: cancelable_progress | None = None
        self._make_widgets()
        super().__init__(widgets=self._rows, labels=True)
        self._timer = self._make_timer(PATIENCE, self._start_preview)
        self._timer.setSingleShot(True)
        self._look_timer = self._make_timer(LOOK, self._show_progress)
        self._connect_viewer()
        self._update_buttons()

    def _make_timer(self, milliseconds: int, action: Callable[[], None]) -> QTimer:
        timer = QTimer(self.native)
        timer.setInterval(milliseconds)
        timer.timeout.connect(action)
        return timer

    def _make_widgets(self) -> None:
        self.step_box = SpinBox(value=DEFAULT_STEP, min=2, max=340, label="step", tooltip="voxels of a cell's side")
        self.compactness_box = FloatSpinBox(value=0.0, min=0.0, max=30.0, step=0.1, label="compactness")
        self.window_box = LineEdit(
            label="window", tooltip="LOW:HIGH, or abdomen, lung, bone or brain; of several channels with ; in between"
        )
        self.mask_box = self._make_layer_box("mask", LabelsLayer, "labels, of which 0 is outside")
        self.boundaries_box = self._make_layer_box("boundaries", ImageLayer, "a map that is high where supervoxels end")
        self.preview_box = CheckBox(text="live preview", value=False)
        self.folder_box = FileEdit(mode=FileDialogMode.EXISTING_DIRECTORY, label="folder")
        self.memory_box = LineEdit(
            label="memory", tooltip="such as 2GiB, of this process or of each worker; empty: what is free"
        )
        self.cut_button = PushButton(text=CUT)
        self.open_button = PushButton(text="Open the folder")
        self.annotate_box = CheckBox(text="annotate: click or scribble", value=False)
        self.class_box = SpinBox(value=1, min=0, max=255, label="class", tooltip="0 removes a class")
        self.live_box = CheckBox(text="propagate after each scribble", value=False)
        self.propagate_button = PushButton(text="Propagate")
        self.undo_button, self.redo_button = PushButton(text="Undo"), PushButton(text="Redo")
        self.suggest_button = PushButton(text="Suggest", tooltip="go to the supervoxel whose class would help most")
        self.save_button = PushButton(text="Save classes and table")
        self.status_label = Label(value="Select an image layer.")
        buttons = self._make_line(self.undo_button, self.redo_button)
        self._rows = [
            self.step_box,
            self.compactness_box,
            self.window_box,
            self.mask_box,
            self.boundaries_box,
            self.preview_box,
            self.folder_box,
            self.memory_box,
            self.cut_button,
            self.open_button,
            self.class_box,
            self.annotate_box,
            self.live_box,
            self._make_line(self.propagate_button, self.suggest_button),
            buttons,
            self.save_button,
            self.status_label,
        ]
        self.status_label.native.setWordWrap(True)
        # Room for three lines, so that nothing moves when they come and go.
        self.status_label.min_height = 60

    def _make_layer_box(self, label: str, kind: Any, tooltip: str) -> ComboBox:
        def choices(_: Any) -> list[tuple[str, Any]]:
            return [(layer.name, layer) for layer in self.viewer.layers if self._is_chosen(layer, kind)]

        return ComboBox(label=label, choices=choices, nullable=True, value=None, tooltip=tooltip)

    @staticmethod
    def _make_line(*buttons: PushButton) -> Container:
        line = Container(widgets=list(buttons), layout="horizontal", labels=False)
        line.margins = (0, 0, 0, 0)
        return line

    def _connect_viewer(self) -> None:
        for box in (
            self.step_box,
            self.compactness_box,
            self.window_box,
            self.preview_box,
            self.mask_box,
            self.boundaries_box,
        ):
            box.changed.connect(self._request_preview)
        for button, action in (
            (self.cut_button, self._cut_or_cancel),
            (self.open_button, self._open),
            (self.propagate_button, self._propagate),
            (self.suggest_button, self._suggest),
            (self.undo_button, self._undo),
            (self.redo_button, self._redo),
            (self.save_button, self._save),
        ):
            button.changed.connect(action)
        self.class_box.changed.connect(self._show_answer)
        self.viewer.mouse_drag_callbacks.append(self._scribble)
        camera, dims = self.viewer.scene.camera, self.viewer.dims
        for event in (camera.events.zoom, camera.events.center, dims.events.point, dims.events.order):
            event.connect(self._request_preview)
        layers = self.viewer.layers
        layers.selection.events.changed.connect(self._follow_selection)
        for event in (layers.events.inserted, layers.events.removed, layers.events.renamed):
            event.connect(self._reset_choices)

    def _reset_choices(self, _: Any) -> None:
        for box in (self.mask_box, self.boundaries_box):
            box.reset_choices()

    # The selected layers

    @staticmethod
    def _is_chosen(layer: Any, kind: Any) -> bool:
        """Return whether a layer is of a kind, and the user's."""
        return isinstance(layer, kind) and OWN not in layer.metadata

    def _choice(self) -> LayerChoice:
        """Return the selected image layers, with mask and boundaries; raise a ValueError if they cannot be cut."""
        boundaries = self.boundaries_box.value
        layers = [
            layer
            for layer in self.viewer.layers
            if layer in self.viewer.layers.selection and self._is_chosen(layer, ImageLayer)
        ]
        # A map that is selected as well is no channel.
        layers = [layer for layer in layers if layer is not boundaries] or layers
        return LayerChoice(layers, self.mask_box.value, boundaries)

    def _own_layer(self, name: str) -> Any:
        """Return a layer of the panel's, or None."""
        return next((layer for layer in self.viewer.layers if layer.metadata.get(OWN) == name), None)

    def _remove_own(self, *names: str) -> None:
        for layer in filter(None, map(self._own_layer, names)):
            self.viewer.layers.remove(layer)

    def _window_text(self, choice: LayerChoice) -> str | None:
        """Return the window of a choice, which preview and result share; None if it has yet to be chosen."""
        text = self.window_box.value.strip()
        # That of other layers is not the user's choice.
        if not text or text in {window for other, window in self._windows.items() if other != choice.key}:
            return self._windows.get(choice.key)
        return text

    def _read_windows(self, choice: LayerChoice) -> tuple[tuple[float, float] | None, ...]:
        """Return the windows of a choice that are known, and show them in the box."""
        text = self._window_text(choice)
        assert text is not None
        # Shown, so that it can be changed; blocked, since it changes nothing.
        with self.window_box.changed.blocked():
            self.window_box.value = text
        return read_windows(text, len(choice.channels))

    def _choose_window(self, choice: LayerChoice) -> None:
        """Choose the window of a choice in a thread, then ask for a preview: of whatever is selected by then."""
        if choice.key in self._pending_windows:
            return
        self._pending_windows.add(choice.key)
        self.status_label.value = f"Reading the intensities of {choice.name} ..."

        def end(text: str) -> None:
            self._pending_windows.discard(choice.key)
            self._windows[choice.key] = text
            self._request_preview()

        def fail(error: BaseException) -> None:
            self._pending_windows.discard(choice.key)
            with self._showing_errors():
                # Of other layers, it is no longer of interest.
                if self._choice().key == choice.key:
                    self.status_label.value = str(error)

        start_thread(partial(describe_windows, choice.channels, choice.channel_names), end, fail)

    # The preview

    def _request_preview(self, *_: Any) -> None:
        if self.preview_box.value:
            self._timer.start()
        elif self._own_layer(PREVIEW) is not None:
            self._remove_own(PREVIEW)
            self._last_request = None

    def _follow_selection(self, *_: Any) -> None:
        # Napari changes the selection while it removes a layer, when none other may be removed.
        if self.preview_box.value:
            self._timer.start()

    def _start_preview(self) -> None:
        # Another one follows when the one that runs has ended.
        if self._is_previewing or not self.preview_box.value:
            return
        with self._showing_errors():
            choice = self._choice()
            if self._window_text(choice) is None:
                self._choose_window(choice)
                return
            request = self._read_request(choice)
            if request == self._last_request:
                return
            work = partial(
                cut_crop,
                [levels[0] for levels in choice.channels],
                request.crop,
                window=request.window,
                compactness=request.compactness,
                **choice.further(),
            )
            self._is_previewing, self._last_request = True, request
            start_thread(work, partial(self._end_preview, request), self._fail_preview)

    def _read_request(self, choice: LayerChoice) -> PreviewRequest:
        layer = choice.first
        factors = layer.downsample_factors[layer.data_level][-3:] if layer.multiscale else (1.0, 1.0, 1.0)
        plane = plane_of(self.viewer.dims, layer)
        visible = visible_box(layer.corner_pixels[:, -3:], factors, dict(plane), choice.shape)
        crop = choose_crop(choice.lattice(self.step_box.value), visible)
        further = tuple(layer.unique_id for layer in (choice.mask, choice.boundaries) if layer is not None)
        return PreviewRequest(choice.key, further, crop, self._read_windows(choice), self.compactness_box.value)

    def _end_preview(self, request: PreviewRequest, preview: CropLabels) -> None:
        self._is_previewing = False
        if not self.preview_box.value:
            return
        with self._showing_errors():
            choice = self._choice()
            if self._window_text(choice) is None or self._read_request(choice) != request:
                # What is shown by now is something else: this preview is dropped.
                self._start_preview()
                return
            self._show_preview(choice.first, preview)
            self.status_label.value = f"Preview: {describe_kind(request.crop, choice)}."

    def _show_preview(self, layer: Any, preview: CropLabels) -> None:
        place = placement_of(layer, preview.box.lo)
        shown = self._own_layer(PREVIEW)
        if shown is not None:
            shown.data = preview.labels
            for name, value in place.items():
                setattr(shown, name, value)
            return
        with self._keeping_selection():
            added = self.viewer.add_labels(preview.labels, name=PREVIEW, metadata={OWN: PREVIEW}, **place)
        added.contour = 1
        added.opacity = 1

    @contextmanager
    def _keeping_selection(self) -> Iterator[None]:
        """Select the layers again that were selected before one was added."""
        selection = self.viewer.layers.selection
        before, active = set(selection), selection.active
        yield
        selection.intersection_update(before)
        selection.update(before & set(self.viewer.layers))
        if active in self.viewer.layers and len(before) == 1:
            selection.active = active

    def _fail_preview(self, error: BaseException) -> None:
        self._is_previewing = False
        self.status_label.value = str(error)

    # Cut, open, save

    def _folder(self) -> AnnotationFolder:
        path = self.folder_box.value
        # An empty line is the current folder.
        if not isinstance(path, Path) or path == Path():
            raise ValueError("Choose a folder for the supervoxels.")
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist: create the folder, or choose another one.")
        return AnnotationFolder(path)

    def _cut_or_cancel(self, *_: Any) -> None:
        if self._progress is not None:
            self._progress.cancel()
            self.status_label.value = "Cancelling: the cut ends with its next task ..."
            self._update_buttons()
            return
        with self._showing_errors():
            folder, choice = self._folder(), self._choice()
            settings = {
                "step": choice.lattice(self.step_box.value).step,
                "compactness": self.compactness_box.value,
                "spacing": spacing_of(choice.first),
                "memory": self.memory_box.value.strip() or None,
                **choice.further(),
            }
            text = self._window_text(choice)
            if text is not None:
                self._read_windows(choice)
            progress = CutProgress()
            place = placement_of(choice.first)
            self._run(
                "Cutting ...",
                partial(cut_choice, folder, choice, text, settings, progress),
                partial(self._end_cut, folder, choice.key, place),
                progress,
            )

    def _end_cut(
        self, folder: AnnotationFolder, key: Any, place: dict[str, Any], result: tuple[str, AnnotationSession]
    ) -> None:
        text, session = result
        with self.window_box.changed.blocked():
            self._windows[key] = self.window_box.value = text
        self._show_session(folder, place, session)

    def _open(self, *_: Any) -> None:
        with self._showing_errors():
            folder = self._folder()
            self._run("Opening ...", partial(open_folder, folder), partial(self._end_open, folder))

    def _end_open(
        self, folder: AnnotationFolder, result: tuple[AnnotationSession, Triple, tuple[float, float, float] | None]
    ) -> None:
        session, shape, spacing = result
        place: dict[str, Any] = {"scale": spacing or (1.0, 1.0, 1.0)}
        # The labels of an image that is selected lie where it lies.
        with suppress(ValueError):
            choice = self._choice()
            place = placement_of(choice.first) if choice.shape == shape else place
        self._show_session(folder, place, session)

    def _show_session(self, folder: AnnotationFolder, place: dict[str, Any], session: AnnotationSession) -> None:
        labels = open_labels(folder.labels)
        self.session, self._levels = session, level_arrays(labels)
        # Painted from these, a plane of a chunk is painted alone.
        self._painted_levels = [level.source.path for level in read_resolution_levels(labels)]
        self._saved_in, self._place, self._suggestions = folder, place, None
        self.preview_box.value = False
        self._remove_own(LABELS, GIVEN, ANSWER, PROBABILITY, UNCERTAINTY, SUGGESTION)
        self._show(LABELS, self._levels, is_labels=True)
        self._own_layer(LABELS).contour = 1
        self._show_answer()
        self.annotate_box.value = True
        self.status_label.value = f"{len(session.graph.labels)} supervoxels in {folder.path}: click on some."

    def _save(self, *_: Any) -> None:
        session, folder = self.session, self._saved_in
        if session is not None and folder is not None:
            self._run("Saving ...", partial(folder.save, session), lambda _: self._end_save(folder))

    def _end_save(self, folder: AnnotationFolder) -> None:
        self._show_answer()
        self.status_label.value = f"Saved {folder.table.name} and {folder.classes.name} in {folder.path}."

    # Annotate

    def _scribble(self, viewer: Any, event: Any) -> Generator[None, None, None]:
        """Annotate the supervoxels under a click or a stroke of the left button."""
        if not self.annotate_box.value or self.session is None or self._is_busy or event.button != 1 or event.modifiers:
            return
        if self._own_layer(LABELS) is None or viewer.dims.ndisplay != 2:
            self.status_label.value = f"Show the layer {LABELS} in 2D to annotate: in 3D no voxel is certain."
            return
        camera, path = self.viewer.scene.camera, [tuple(event.position)]
        can_pan, camera.mouse_pan = camera.mouse_pan, False
        try:
            yield
            while event.type == "mouse_move":
                path.append(tuple(event.position))
                yield
        finally:
            camera.mouse_pan = can_pan
        event.handled = True
        with self._showing_errors():
            layer = self._own_layer(LABELS)
            points = [layer.world_to_data(position) for position in path]
            self._annotate(scribbled_labels(self._levels[0], points))

    def _annotate(self, labels: Any) -> None:
        assert self.session is not None
        count = self.session.annotate(labels, self.class_box.value)
        self.status_label.value = f"{count} supervoxels changed; {len(self.session.state.classes)} have a class."
        self._show_answer()
        if count and self.live_box.value and self.session.state.classes:
            self._propagate()

    def _propagate(self, *_: Any) -> None:
        if self.session is not None:
            self._run("Propagating ...", self.session.propagate, lambda _: self._end_propagation())

    def _end_propagation(self) -> None:
        self.status_label.value = "Propagated. Annotate what is wrong, and propagate again."
        self._show_answer()

    def _suggest(self, *_: Any) -> None:
        """Go to the next supervoxel that is suggested, after propagating what has been annotated since."""
        session, folder = self.session, self._saved_in
        if session is None or folder is None:
            return
        suggestions = self._suggestions
        is_current = suggestions is not None and session.state.is_current and suggestions.answer is session.state.answer
        if suggestions is not None and is_current and suggestions.left:
            self._show_suggestion(suggestions)
            return
        self._run("Looking for what to annotate ...", partial(suggest_voxels, session, folder), self._show_suggestion)

    def _show_suggestion(self, suggestions: Suggestions) -> None:
        assert self.session is not None
        self._suggestions = suggestions
        # Every layer that is shown anew reads its plane again.
        if self._shown_state is not self.session.state:
            self._show_answer()
        if not suggestions.left:
            self.status_label.value = "There is nothing to suggest: all classes are certain."
            return
        label, voxel = suggestions.left.pop(0)
        layer = self._own_layer(LABELS)
        if layer is None:
            self.status_label.value = f"Supervoxel {label} at {voxel}: the layer {LABELS} that shows it was removed."
            return
        self._move_to(np.asarray(layer.data_to_world(voxel))[-3:])
        self._show(SUGGESTION, self._paint({label: 1}, None), is_labels=True)
        shown = self._own_layer(SUGGESTION)
        shown.contour, shown.opacity, shown.colormap = 3, 1.0, {1: "yellow", None: "transparent"}
        row = int(np.searchsorted(suggestions.answer.labels, label))
        uncertainty = float(suggestions.answer.uncertainty[row])
        self.status_label.value = (
            f"Supervoxel {label} would help most, with an uncertainty of {uncertainty:.2f}: annotate it, or press "
            "Suggest for another."
        )

    def _move_to(self, place: NDArray[np.float64]) -> None:
        """Have a place (z, y, x) in the space of the viewer in the middle of the view."""
        dims = self.viewer.dims
        shift = dims.ndim - 3
        hidden = [axis for axis in range(shift, dims.ndim) if axis not in dims.displayed]
        if hidden:
            dims.set_point(hidden, [float(place[axis - shift]) for axis in hidden])
        centre = tuple(float(place[axis - shift]) for axis in dims.displayed)
        self.viewer.scene.camera.center = (0.0, *centre) if len(centre) == 2 else centre

    def _undo(self, *_: Any) -> None:
        if self.session is not None and not self._is_busy:
            self.status_label.value = "Undone." if self.session.undo() else "There is nothing to undo."
            self._show_answer()

    def _redo(self, *_: Any) -> None:
        if self.session is not None and not self._is_busy:
            self.status_label.value = "Done again." if self.session.redo() else "There is nothing to redo."
            self._show_answer()

    # The layers of a session

    def _show_answer(self, *_: Any) -> None:
        """Show annotations, classes and probabilities; voxels are painted when they come into view."""
        if self.session is None:
            return
        state = self._shown_state = self.session.state
        self._show(GIVEN, self._paint(dict(state.classes) or {1: 0}, None), is_labels=True)
        if state.answer is not None:
            name = f"probability-{self.class_box.value}"
            self._show(ANSWER, self._paint(state.answer, "class"), is_labels=True)
            self._show(UNCERTAINTY, self._paint(state.answer, "uncertainty"), is_labels=False)
            has_column = name in state.answer.table.column_names
            # Kept, so that it stays visible or hidden: a class that nothing was given has no probability anywhere.
            painted = self._paint(state.answer, name) if has_column else self._paint({1: np.nan}, None)
            self._show(PROBABILITY, painted, is_labels=False)
        else:
            self._remove_own(ANSWER, PROBABILITY, UNCERTAINTY)
        self._update_buttons()

    def _paint(self, table: Any, column: str | None) -> list[da.Array]:
        # Coarser levels are no labels that a table was made from: that they belong together is checked when they open.
        table = getattr(table, "table", table)
        return [paint(level, table, column=column) for level in self._painted_levels]

    def _show(self, name: str, levels: Sequence[da.Array], *, is_labels: bool) -> None:
        is_multiscale = len(levels) > 1
        data: Any = list(levels) if is_multiscale else levels[0]
        shown = self._own_layer(name)
        if shown is not None:
            shown.data = data
            return
        options: dict[str, Any] = {"name": name, "multiscale": is_multiscale, "metadata": {OWN: name}, **self._place}
        # What is painted changes with every answer, and would fill the memory that napari keeps for what it has shown.
        options["cache"] = name == LABELS
        with self._keeping_selection():
            if is_labels:
                self.viewer.add_labels(data, opacity=1.0 if name == LABELS else OPACITY, **options)
            else:
                self.viewer.add_image(
                    data,
                    contrast_limits=(0.0, 1.0),
                    colormap="viridis",
                    opacity=0.5,
                    visible=False,
                    projection_mode="none",
                    **options,
                )

    # Work in threads

    def _run(
        self,
        note: str,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        progress: CutProgress | None = None,
    ) -> None:
        """Do work in a thread, then something in the window; one at a time. With progress it can be cancelled."""
        if self._is_busy:
            return
        self._is_busy, self.status_label.value, self._progress = True, note, progress
        if progress is not None:
            self._bar = cancelable_progress(total=0, desc=note)
            self._look_timer.start()
        self._update_buttons()

        def end(result: Any) -> None:
            self._end_work()
            with self._showing_errors():
                then(result)
            self._update_buttons()

        def fail(error: BaseException) -> None:
            self._end_work()
            self.status_label.value = str(error)
            self._update_buttons()

        start_thread(work, end, fail)

    def _end_work(self) -> None:
        self._is_busy, self._progress = False, None
        self._look_timer.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_progress(self) -> None:
        """Show how far a cut has come; a thread may not touch the window itself."""
        progress, bar = self._progress, self._bar
        if progress is None or bar is None:
            return
        # The button beside napari's bar.
        if bar.is_canceled and not progress.is_cancelled:
            self._cut_or_cancel()
        stage, count, total = progress.state()
        if not stage or progress.is_cancelled:
            return
        if bar.total != total:
            bar.total = total
        bar.set_description(f"Cutting: {stage}")
        bar.update(count - bar.n)
        self.status_label.value = f"Cutting: {stage}, {count} of {total}."

    def _update_buttons(self) -> None:
        has_session = self.session is not None
        has_classes = self.session is not None and bool(self.session.state.classes)
        for button, is_enabled in (
            (self.open_button, True),
            (self.undo_button, has_session),
            (self.redo_button, has_session),
            (self.propagate_button, has_classes),
            (self.suggest_button, has_classes),
            (self.save_button, has_classes),
        ):
            button.enabled = is_enabled and not self._is_busy
        progress = self._progress
        self.cut_button.text = CUT if progress is None else CANCEL
        self.cut_button.enabled = not self._is_busy if progress is None else not progress.is_cancelled

    @contextmanager
    def _showing_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, TypeError) as error:
            self.status_label.value = str(error)


def describe_kind(crop: Crop, choice: LayerChoice) -> str:
    """Return how near a preview is to the result, and how many supervoxels that has."""
    count = f"{crop.lattice.size} supervoxels in all"
    if crop.is_exact and choice.has_one_dtype:
        return f"as the result will be. {count}"
    if choice.boundaries is not None and not crop.is_exact:
        return f"a rough one, with the boundaries' range in what is in view. {count}"
    return f"nearly as the result will be (cut with {crop.margin} cells around it). {count}"


def cut_choice(
    folder: AnnotationFolder, choice: LayerChoice, window: str | None, settings: dict[str, Any], progress: CutProgress
) -> tuple[str, AnnotationSession]:
    """Cut the layers of a choice into a folder, after choosing their window if there is none, and return both."""
    text = describe_windows(choice.channels, choice.channel_names) if window is None else window
    windows = read_windows(text, len(choice.channels))
    session = folder.cut(
        [levels[0] for levels in choice.channels], FolderSettings(window=windows, **settings), progress
    )
    return text, session


def open_folder(folder: AnnotationFolder) -> tuple[AnnotationSession, Triple, tuple[float, float, float] | None]:
    """Open the session of a folder, with the shape and the spacing of its labels."""
    session, labels = folder.open(), open_labels(folder.labels)
    return session, labels.shape, labels.spacing


def suggest_voxels(session: AnnotationSession, folder: AnnotationFolder) -> Suggestions:
    """Propagate, and return the supervoxels to annotate next."""
    answer = session.propagate()
    labels = answer.suggest(SUGGESTED)
    return Suggestions(answer, list(zip(labels.tolist(), folder.locate(labels), strict=True)))


def start_thread(work: Callable[[], Any], end: Callable[[Any], None], fail: Callable[[BaseException], None]) -> None:
    """Do work in a thread of napari, and call one of two functions in the thread of the window."""
    create_worker(work, _connect={"returned": end, "errored": fail})
