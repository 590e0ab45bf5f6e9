"""The layers of napari's window: those that the user has selected to cut, and those that the panel shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from numpy.typing import NDArray

from dseeds.io.labels import open_labels
from dseeds.io.resolution_levels import read_resolution_levels
from dseeds.measure.painting import paint
from dseeds.napari_plugin.annotation import AnnotationFolder, AnnotationState
from dseeds.napari_plugin.layer_choice import LayerChoice, placement_of
from dseeds.napari_plugin.visible import CropLabels
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


def list_image_layers(viewer: napari.Viewer) -> list[Any]:
    """Return the user's image layers."""
    return [layer for layer in viewer.layers if isinstance(layer, ImageLayer) and OWN not in layer.metadata]


def list_label_layers(viewer: napari.Viewer) -> list[Any]:
    """Return the user's layers of labels."""
    return [layer for layer in viewer.layers if isinstance(layer, LabelsLayer) and OWN not in layer.metadata]


def choose_selected(viewer: napari.Viewer, mask: Any, boundaries: Any) -> LayerChoice:
    """Return the selected image layers, with mask and boundaries; raise a ValueError if they cannot be cut."""
    layers = [layer for layer in list_image_layers(viewer) if layer in viewer.layers.selection]
    # A map that is selected as well is no channel.
    layers = [layer for layer in layers if layer is not boundaries] or layers
    return LayerChoice(layers, mask, boundaries)


class ShownLayers:
    """The layers that the panel shows: a preview, or supervoxels with what is painted on them.

    Parameters
    ----------
    viewer : napari.Viewer
        The window's viewer.
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        # The resolution levels of the supervoxels, as arrays and by their paths.
        self.levels: list[Any] = []
        self._painted_levels: list[Any] = []
        self._place: dict[str, Any] = {}

    def find(self, name: str) -> Any:
        """Return a layer of the panel's, or None."""
        return next((layer for layer in self.viewer.layers if layer.metadata.get(OWN) == name), None)

    def remove(self, *names: str) -> None:
        """Remove those of the panel's layers that there are."""
        for layer in filter(None, map(self.find, names)):
            self.viewer.layers.remove(layer)

    def show_preview(self, layer: Any, preview: CropLabels) -> None:
        """Show a preview where the layer that it was cut from lies."""
        place = placement_of(layer, preview.box.lo)
        shown = self.find(PREVIEW)
        if shown is not None:
            shown.data = preview.labels
            for name, value in place.items():
                setattr(shown, name, value)
            return
        with self._keeping_selection():
            added = self.viewer.add_labels(preview.labels, name=PREVIEW, metadata={OWN: PREVIEW}, **place)
        added.contour = 1
        added.opacity = 1

    def read_levels(self, folder: AnnotationFolder, place: dict[str, Any]) -> None:
        """Open the supervoxels of a folder, which lie at a place and which all but a preview is painted on."""
        labels = open_labels(folder.labels)
        levels = level_arrays(labels)
        # Painted from these, a plane of a chunk is painted alone.
        self._painted_levels = [level.source.path for level in read_resolution_levels(labels)]
        self.levels, self._place = levels, place

    def show_supervoxels(self) -> None:
        """Show the contours of the supervoxels, without what was painted on others."""
        self.remove(LABELS, GIVEN, ANSWER, PROBABILITY, UNCERTAINTY, SUGGESTION)
        self._show(LABELS, self.levels, is_labels=True)
        self.find(LABELS).contour = 1

    def show_state(self, state: AnnotationState, name: int) -> None:
        """Show annotations, classes and the probability of one; voxels are painted when they come into view."""
        self._show(GIVEN, self._paint(dict(state.classes) or {1: 0}, None), is_labels=True)
        if state.answer is None:
            self.remove(ANSWER, PROBABILITY, UNCERTAINTY)
            return
        column = f"probability-{name}"
        self._show(ANSWER, self._paint(state.answer, "class"), is_labels=True)
        self._show(UNCERTAINTY, self._paint(state.answer, "uncertainty"), is_labels=False)
        has_column = column in state.answer.table.column_names
        # Kept, so that it stays visible or hidden: a class that nothing was given has no probability anywhere.
        painted = self._paint(state.answer, column) if has_column else self._paint({1: np.nan}, None)
        self._show(PROBABILITY, painted, is_labels=False)

    def show_suggestion(self, label: int) -> None:
        """Show a supervoxel in another colour than those of contours."""
        self._show(SUGGESTION, self._paint({label: 1}, None), is_labels=True)
        shown = self.find(SUGGESTION)
        shown.contour, shown.opacity, shown.colormap = 3, 1.0, {1: "yellow", None: "transparent"}

    def move_to(self, place: NDArray[np.float64]) -> None:
        """Have a place (z, y, x) in the space of the viewer in the middle of the view."""
        dims = self.viewer.dims
        shift = dims.ndim - 3
        hidden = [axis for axis in range(shift, dims.ndim) if axis not in dims.displayed]
        if hidden:
            dims.set_point(hidden, [float(place[axis - shift]) for axis in hidden])
        centre = tuple(float(place[axis - shift]) for axis in dims.displayed)
        self.viewer.scene.camera.center = (0.0, *centre) if len(centre) == 2 else centre

    def _paint(self, table: Any, column: str | None) -> list[da.Array]:
        # Coarser levels are no labels that a table was made from: that they belong together is checked when they open.
        table = getattr(table, "table", table)
        return [paint(level, table, column=column) for level in self._painted_levels]

    def _show(self, name: str, levels: Sequence[da.Array], *, is_labels: bool) -> None:
        is_multiscale = len(levels) > 1
        data: Any = list(levels) if is_multiscale else levels[0]
        shown = self.find(name)
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
