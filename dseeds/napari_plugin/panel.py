"""The panel in napari's window: what is in view is previewed, cut, annotated and propagated, in threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, Container, FileEdit, FloatSpinBox, Label, LineEdit, PushButton, SpinBox
from napari.layers import Image as ImageLayer
from napari.qt.threading import create_worker
from qtpy.QtCore import QTimer  # type: ignore[attr-defined, unused-ignore]

from dseeds.core.geometry import Lattice, triple
from dseeds.io.labels import open_labels
from dseeds.measure.painting import paint
from dseeds.napari_plugin.annotation import AnnotationFolder, AnnotationSession, scribbled_labels
from dseeds.napari_plugin.visible import Crop, CropLabels, choose_crop, choose_window, cut_crop, visible_box
from dseeds.seeds.cell_size import DEFAULT_STEP, choose_step
from dseeds.seeds.intensity_windows import read_windows
from dseeds.viz.viewers import OPACITY, level_arrays

if TYPE_CHECKING:
    import napari

PREVIEW, LABELS, GIVEN, ANSWER, PROBABILITY, UNCERTAINTY = (
    "preview of supervoxels",
    "supervoxels",
    "annotations",
    "classes",
    "probability",
    "uncertainty",
)
# Where a layer of the panel's says which of these it is: others may have the same names.
OWN = "dseeds"
# Milliseconds for which nothing must change before a preview begins.
PATIENCE = 150


@dataclass(frozen=True)
class PreviewRequest:
    """What a preview shows: of two that are equal, one is enough."""

    layer: str
    crop: Crop
    window: tuple[float, float] | None
    compactness: float


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
        self._levels: list[Any] = []
        self._saved_in: AnnotationFolder | None = None
        self._place: dict[str, Any] = {}
        self._is_busy = self._is_previewing = False
        self._last_request: PreviewRequest | None = None
        self._windows: dict[Any, str] = {}
        self._make_widgets()
        super().__init__(widgets=self._rows, labels=True)
        self._timer = QTimer(self.native)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PATIENCE)
        self._timer.timeout.connect(self._start_preview)
        self._connect_viewer()
        self._update_buttons()

    def _make_widgets(self) -> None:
        self.step_box = SpinBox(value=DEFAULT_STEP, min=2, max=340, label="step", tooltip="voxels of a cell's side")
        self.compactness_box = FloatSpinBox(value=0.0, min=0.0, max=30.0, step=0.1, label="compactness")
        self.window_box = LineEdit(label="window", tooltip="LOW:HIGH, or abdomen, lung, bone or brain")
        self.preview_box = CheckBox(text="live preview", value=False)
        self.folder_box = FileEdit(mode=FileDialogMode.EXISTING_DIRECTORY, label="folder")
        self.cut_button = PushButton(text="Cut the selected layer")
        self.open_button = PushButton(text="Open the folder")
        self.annotate_box = CheckBox(text="annotate: click or scribble", value=False)
        self.class_box = SpinBox(value=1, min=0, max=255, label="class", tooltip="0 removes a class")
        self.live_box = CheckBox(text="propagate after each scribble", value=False)
        self.propagate_button = PushButton(text="Propagate")
        self.undo_button, self.redo_button = PushButton(text="Undo"), PushButton(text="Redo")
        self.save_button = PushButton(text="Save classes and table")
        self.status_label = Label(value="Select an image layer.")
        buttons = Container(widgets=[self.undo_button, self.redo_button], layout="horizontal", labels=False)
        buttons.margins = (0, 0, 0, 0)
        self._rows = [
            self.step_box,
            self.compactness_box,
            self.window_box,
            self.preview_box,
            self.folder_box,
            self.cut_button,
            self.open_button,
            self.class_box,
            self.annotate_box,
            self.live_box,
            self.propagate_button,
            buttons,
            self.save_button,
            self.status_label,
        ]
        self.status_label.native.setWordWrap(True)
        # Room for three lines, so that nothing moves when they come and go.
        self.status_label.min_height = 60

    def _connect_viewer(self) -> None:
        for box in (self.step_box, self.compactness_box, self.window_box, self.preview_box):
            box.changed.connect(self._request_preview)
        for button, action in (
            (self.cut_button, self._cut),
            (self.open_button, self._open),
            (self.propagate_button, self._propagate),
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
        self.viewer.layers.selection.events.active.connect(self._request_preview)

    # The selected layer

    def _image_layer(self) -> Any:
        """Return the selected image layer, or None."""
        layer = self.viewer.layers.selection.active
        return layer if isinstance(layer, ImageLayer) and not layer.rgb and OWN not in layer.metadata else None

    def _own_layer(self, name: str) -> Any:
        """Return a layer of the panel's, or None."""
        return next((layer for layer in self.viewer.layers if layer.metadata.get(OWN) == name), None)

    def _remove_own(self, *names: str) -> None:
        for layer in filter(None, map(self._own_layer, names)):
            self.viewer.layers.remove(layer)

    def _volume(self, layer: Any) -> list[Any]:
        """Return the levels of a layer (z, y, x), the finest first."""
        if layer is None:
            raise ValueError("Select an image layer, of one channel.")
        levels = list(layer.data) if layer.multiscale else [layer.data]
        if layer.ndim != 3 or self.viewer.dims.ndim != 3:
            raise ValueError(f"{layer.name} has {layer.ndim} axes: show a volume of three axes (z, y, x) alone.")
        return levels

    def _window(self, layer: Any) -> tuple[float, float] | None:
        """Return the intensity window, which preview and result share."""
        key, text = layer.unique_id, self.window_box.value.strip()
        # That of another layer is not the user's choice.
        if not text or text in {window for other, window in self._windows.items() if other != key}:
            if key not in self._windows:
                low, high = map(float, choose_window(self._volume(layer)))
                if low == high:
                    raise ValueError(f"Most voxels of {layer.name} are {low!r}: enter a window, LOW:HIGH.")
                self._windows[key] = f"{low!r}:{high!r}"
            # Shown, so that it can be changed; blocked, since it changes nothing.
            with self.window_box.changed.blocked():
                self.window_box.value = self._windows[key]
        return read_windows(self.window_box.value, 1)[0]

    def _lattice(self, layer: Any) -> Lattice:
        shape = triple(self._volume(layer)[0].shape)
        return Lattice(shape, choose_step(shape, step=self.step_box.value, spacing=tuple(map(float, layer.scale))))

    # The preview

    def _request_preview(self, *_: Any) -> None:
        if self.preview_box.value:
            self._timer.start()
        elif self._own_layer(PREVIEW) is not None:
            self._remove_own(PREVIEW)
            self._last_request = None

    def _start_preview(self) -> None:
        layer = self._image_layer()
        # Another one follows when the one that runs has ended.
        if self._is_previewing or layer is None or not self.preview_box.value:
            return
        with self._showing_errors():
            request = self._read_request(layer)
            if request == self._last_request:
                return
            self._is_previewing, self._last_request = True, request
            image = self._volume(layer)[0]
            work = partial(cut_crop, image, request.crop, window=request.window, compactness=request.compactness)
            start_thread(work, partial(self._end_preview, request), self._fail_preview)

    def _read_request(self, layer: Any) -> PreviewRequest:
        shape = triple(self._volume(layer)[0].shape)
        point = layer.world_to_data(self.viewer.dims.point)
        displayed = self.viewer.dims.displayed
        plane = {axis: round(float(point[axis])) for axis in range(3) if axis not in displayed}
        factors = layer.downsample_factors[layer.data_level] if layer.multiscale else (1.0, 1.0, 1.0)
        crop = choose_crop(self._lattice(layer), visible_box(layer.corner_pixels, factors, plane, shape))
        return PreviewRequest(layer.name, crop, self._window(layer), self.compactness_box.value)

    def _end_preview(self, request: PreviewRequest, preview: CropLabels) -> None:
        self._is_previewing = False
        layer = self._image_layer()
        if layer is None or not self.preview_box.value:
            return
        with self._showing_errors():
            if self._read_request(layer) != request:
                # What is shown by now is something else: this preview is dropped.
                self._start_preview()
                return
            self._show_preview(layer, preview)
            crop = request.crop
            kind = (
                "as the result will be"
                if crop.is_exact
                else f"nearly as the result will be (cut with {crop.margin} cells around it)"
            )
            self.status_label.value = f"Preview: {kind}. {crop.lattice.size} supervoxels in all."

    def _show_preview(self, layer: Any, preview: CropLabels) -> None:
        scale = np.asarray(layer.scale)
        place = np.asarray(layer.translate) + scale * preview.box.lo
        shown = self._own_layer(PREVIEW)
        if shown is not None:
            shown.data, shown.translate = preview.labels, place
            return
        place_of = {"scale": scale, "translate": place, "metadata": {OWN: PREVIEW}}
        added = self.viewer.add_labels(preview.labels, name=PREVIEW, **place_of)
        added.contour = 1
        added.opacity = 1
        self.viewer.layers.selection.active = layer

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

    def _cut(self, *_: Any) -> None:
        with self._showing_errors():
            layer, folder = self._image_layer(), self._folder()
            image, lattice = self._volume(layer)[0], self._lattice(layer)
            self._run(
                "Cutting ...",
                partial(
                    folder.cut,
                    image,
                    step=lattice.step,
                    window=self._window(layer),
                    compactness=self.compactness_box.value,
                    spacing=tuple(map(float, layer.scale)),
                ),
                partial(self._show_session, folder, np.asarray(layer.scale), np.asarray(layer.translate)),
            )

    def _open(self, *_: Any) -> None:
        with self._showing_errors():
            folder, layer = self._folder(), self._image_layer()
            spacing = open_labels(folder.labels).spacing if folder.labels.exists() else None
            scale = np.asarray(spacing or (1.0, 1.0, 1.0))
            place = np.zeros(3) if layer is None else np.asarray(layer.translate)
            self._run("Opening ...", folder.open, partial(self._show_session, folder, scale, place))

    def _show_session(self, folder: AnnotationFolder, scale: Any, place: Any, session: AnnotationSession) -> None:
        self.session, self._levels = session, level_arrays(open_labels(folder.labels))
        self._saved_in, self._place = folder, {"scale": scale, "translate": place}
        self.preview_box.value = False
        self._remove_own(LABELS, GIVEN, ANSWER, PROBABILITY, UNCERTAINTY)
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
        state = self.session.state
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
        return [paint(level, table, column=column) for level in self._levels]

    def _show(self, name: str, levels: Sequence[da.Array], *, is_labels: bool) -> None:
        is_multiscale = len(levels) > 1
        data: Any = list(levels) if is_multiscale else levels[0]
        shown = self._own_layer(name)
        if shown is not None:
            shown.data = data
            return
        selected = self.viewer.layers.selection.active
        options: dict[str, Any] = {"name": name, "multiscale": is_multiscale, "metadata": {OWN: name}, **self._place}
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
        self.viewer.layers.selection.active = selected

    # Work in threads

    def _run(self, note: str, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Do work in a thread, then something in the window; one at a time."""
        if self._is_busy:
            return
        self._is_busy, self.status_label.value = True, note
        self._update_buttons()

        def end(result: Any) -> None:
            self._is_busy = False
            with self._showing_errors():
                then(result)
            self._update_buttons()

        def fail(error: BaseException) -> None:
            self._is_busy, self.status_label.value = False, str(error)
            self._update_buttons()

        start_thread(work, end, fail)

    def _update_buttons(self) -> None:
        has_session = self.session is not None
        has_classes = self.session is not None and bool(self.session.state.classes)
        for button, is_enabled in (
            (self.cut_button, True),
            (self.open_button, True),
            (self.undo_button, has_session),
            (self.redo_button, has_session),
            (self.propagate_button, has_classes),
            (self.save_button, has_classes),
        ):
            button.enabled = is_enabled and not self._is_busy

    @contextmanager
    def _showing_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, TypeError) as error:
            self.status_label.value = str(error)


def start_thread(work: Callable[[], Any], end: Callable[[Any], None], fail: Callable[[BaseException], None]) -> None:
    """Do work in a thread of napari, and call one of two functions in the thread of the window."""
    create_worker(work, _connect={"returned": end, "errored": fail})
