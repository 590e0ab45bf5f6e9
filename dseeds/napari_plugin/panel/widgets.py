"""What is seen of the panel: boxes and buttons, their rows, and the line of status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit, FloatSpinBox, Label, LineEdit, PushButton, SpinBox

from dseeds.napari_plugin.layer_choice import LayerChoice
from dseeds.napari_plugin.panel.layers import choose_selected, list_image_layers, list_label_layers
from dseeds.seeds.cell_size import DEFAULT_STEP

if TYPE_CHECKING:
    import napari

CUT, CANCEL = "Cut the selected layers", "Cancel"


class PanelWidgets(Container):
    """The boxes and buttons of the panel; what they do is connected to them elsewhere.

    Parameters
    ----------
    viewer : napari.Viewer
        The window's viewer, of which layers are offered as mask and boundaries.
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        self._make_cut_widgets()
        self._make_annotation_widgets()
        self.status_label = Label(value="Select an image layer.")
        super().__init__(widgets=self._arrange_rows(), labels=True)
        self.status_label.native.setWordWrap(True)
        # Room for three lines, so that nothing moves when they come and go.
        self.status_label.min_height = 60

    def _make_cut_widgets(self) -> None:
        self.step_box = SpinBox(value=DEFAULT_STEP, min=2, max=340, label="step", tooltip="voxels of a cell's side")
        self.compactness_box = FloatSpinBox(value=0.0, min=0.0, max=30.0, step=0.1, label="compactness")
        self.window_box = LineEdit(
            label="window", tooltip="LOW:HIGH, or abdomen, lung, bone or brain; of several channels with ; in between"
        )
        self.mask_box = self._make_layer_box("mask", list_label_layers, "labels, of which 0 is outside")
        self.boundaries_box = self._make_layer_box(
            "boundaries", list_image_layers, "a map that is high where supervoxels end"
        )
        self.preview_box = CheckBox(text="live preview", value=False)
        self.folder_box = FileEdit(mode=FileDialogMode.EXISTING_DIRECTORY, label="folder")
        self.memory_box = LineEdit(
            label="memory", tooltip="such as 2GiB, of this process or of each worker; empty: what is free"
        )
        self.cut_button = PushButton(text=CUT)
        self.open_button = PushButton(text="Open the folder")

    def _make_annotation_widgets(self) -> None:
        self.annotate_box = CheckBox(text="annotate: click or scribble", value=False)
        self.class_box = SpinBox(value=1, min=0, max=255, label="class", tooltip="0 removes a class")
        self.live_box = CheckBox(text="propagate after each scribble", value=False)
        self.propagate_button = PushButton(text="Propagate")
        self.undo_button, self.redo_button = PushButton(text="Undo"), PushButton(text="Redo")
        self.suggest_button = PushButton(text="Suggest", tooltip="go to the supervoxel whose class would help most")
        self.save_button = PushButton(text="Save classes and table")

    def _make_layer_box(self, label: str, list_layers: Callable[[Any], list[Any]], tooltip: str) -> ComboBox:
        def choices(_: Any) -> list[tuple[str, Any]]:
            return [(layer.name, layer) for layer in list_layers(self.viewer)]

        return ComboBox(label=label, choices=choices, nullable=True, value=None, tooltip=tooltip)

    def _arrange_rows(self) -> list[Any]:
        return [
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
            self._make_line(self.undo_button, self.redo_button),
            self.save_button,
            self.status_label,
        ]

    @staticmethod
    def _make_line(*buttons: PushButton) -> Container:
        line = Container(widgets=list(buttons), layout="horizontal", labels=False)
        line.margins = (0, 0, 0, 0)
        return line

    def offer_layers(self, *_: Any) -> None:
        """Offer the layers that there are now as mask and boundaries."""
        for box in (self.mask_box, self.boundaries_box):
            box.reset_choices()

    def read_choice(self) -> LayerChoice:
        """Return the selected image layers, with mask and boundaries; raise a ValueError if they cannot be cut."""
        return choose_selected(self.viewer, self.mask_box.value, self.boundaries_box.value)

    @contextmanager
    def showing_errors(self) -> Iterator[None]:
        """Show what the user can mend as status."""
        try:
            yield
        except (ValueError, OSError, TypeError) as error:
            self.status_label.value = str(error)
