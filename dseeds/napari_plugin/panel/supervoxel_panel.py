"""The panel in napari's window: what is in view is previewed, cut, annotated and propagated, in threads."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseeds.core.geometry import Triple
from dseeds.io.labels import open_labels
from dseeds.napari_plugin.annotation import AnnotationFolder, AnnotationSession, FolderSettings
from dseeds.napari_plugin.cut_progress import CutProgress
from dseeds.napari_plugin.layer_choice import LayerChoice, placement_of, spacing_of
from dseeds.napari_plugin.panel.annotator import Annotator
from dseeds.napari_plugin.panel.background import BackgroundWork
from dseeds.napari_plugin.panel.chosen_windows import ChosenWindows
from dseeds.napari_plugin.panel.layers import ShownLayers
from dseeds.napari_plugin.panel.live_preview import LivePreview
from dseeds.napari_plugin.panel.widgets import CANCEL, CUT, PanelWidgets
from dseeds.napari_plugin.visible import describe_windows
from dseeds.seeds.intensity_windows import read_windows

if TYPE_CHECKING:
    import napari


class SupervoxelPanel(PanelWidgets):
    """Cut the selected layer into supervoxels, give some of them classes, and propagate these to all.

    Parameters
    ----------
    napari_viewer : napari.Viewer
        The window's viewer.
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__(napari_viewer)
        layers = ShownLayers(napari_viewer)
        self.work = BackgroundWork(self, self._update_buttons)
        self.windows = ChosenWindows(self)
        self.preview = LivePreview(self, layers, self.windows)
        self.annotator = Annotator(self, layers, self.work, self._update_buttons)
        self._connect()
        self._update_buttons()

    def _connect(self) -> None:
        for button, action in (
            (self.cut_button, self._cut_or_cancel),
            (self.open_button, self._open),
            (self.save_button, self._save),
        ):
            button.changed.connect(action)
        events = self.viewer.layers.events
        for event in (events.inserted, events.removed, events.renamed):
            event.connect(self.offer_layers)

    @property
    def session(self) -> AnnotationSession | None:
        """The annotations of the supervoxels that are shown; None if there are none."""
        return self.annotator.session

    def _update_buttons(self) -> None:
        session, is_busy, progress = self.session, self.work.is_busy, self.work.progress
        has_session = session is not None
        has_classes = session is not None and bool(session.state.classes)
        for button, is_enabled in (
            (self.open_button, True),
            (self.undo_button, has_session),
            (self.redo_button, has_session),
            (self.propagate_button, has_classes),
            (self.suggest_button, has_classes),
            (self.save_button, has_classes),
        ):
            button.enabled = is_enabled and not is_busy
        self.cut_button.text = CUT if progress is None else CANCEL
        self.cut_button.enabled = not is_busy if progress is None else not progress.is_cancelled

    def _folder(self) -> AnnotationFolder:
        path = self.folder_box.value
        # An empty line is the current folder.
        if not isinstance(path, Path) or path == Path():
            raise ValueError("Choose a folder for the supervoxels.")
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist: create the folder, or choose another one.")
        return AnnotationFolder(path)

    def _cut_or_cancel(self, *_: Any) -> None:
        if self.work.progress is not None:
            self.work.cancel()
            return
        with self.showing_errors():
            folder, choice = self._folder(), self.read_choice()
            settings = {
                "step": choice.lattice(self.step_box.value).step,
                "compactness": self.compactness_box.value,
                "spacing": spacing_of(choice.first),
                "memory": self.memory_box.value.strip() or None,
                **choice.further(),
            }
            text = self.windows.text_of(choice)
            if text is not None:
                self.windows.read(choice)
            progress = CutProgress()
            place = placement_of(choice.first)
            self.work.run(
                "Cutting ...",
                partial(cut_choice, folder, choice, text, settings, progress),
                partial(self._end_cut, folder, choice.key, place),
                progress,
            )

    def _end_cut(
        self, folder: AnnotationFolder, key: Any, place: dict[str, Any], result: tuple[str, AnnotationSession]
    ) -> None:
        text, session = result
        self.windows.keep(key, text)
        self.annotator.begin(folder, place, session)

    def _open(self, *_: Any) -> None:
        with self.showing_errors():
            folder = self._folder()
            self.work.run("Opening ...", partial(open_folder, folder), partial(self._end_open, folder))

    def _end_open(
        self, folder: AnnotationFolder, result: tuple[AnnotationSession, Triple, tuple[float, float, float] | None]
    ) -> None:
        session, shape, spacing = result
        place: dict[str, Any] = {"scale": spacing or (1.0, 1.0, 1.0)}
        # The labels of an image that is selected lie where it lies.
        with suppress(ValueError):
            choice = self.read_choice()
            place = placement_of(choice.first) if choice.shape == shape else place
        self.annotator.begin(folder, place, session)

    def _save(self, *_: Any) -> None:
        session, folder = self.session, self.annotator.folder
        if session is not None and folder is not None:
            self.work.run("Saving ...", partial(folder.save, session), lambda _: self._end_save(folder))

    def _end_save(self, folder: AnnotationFolder) -> None:
        self.annotator.show_answer()
        self.status_label.value = f"Saved {folder.table.name} and {folder.classes.name} in {folder.path}."


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
