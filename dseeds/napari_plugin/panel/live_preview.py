"""The live preview: what is in view is cut in a thread whenever the view, the layers or the settings have changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from dseeds.napari_plugin.layer_choice import LayerChoice, plane_of
from dseeds.napari_plugin.panel.background import make_timer, start_thread
from dseeds.napari_plugin.panel.chosen_windows import ChosenWindows
from dseeds.napari_plugin.panel.layers import PREVIEW, ShownLayers
from dseeds.napari_plugin.panel.widgets import PanelWidgets
from dseeds.napari_plugin.visible import Crop, CropLabels, choose_crop, cut_crop, visible_box

# Milliseconds for which nothing must change before a preview begins.
PATIENCE = 150


@dataclass(frozen=True)
class PreviewRequest:
    """What a preview shows: of two that are equal, one is enough."""

    image: tuple[Any, ...]
    further: tuple[Any, ...]
    crop: Crop
    window: tuple[tuple[float, float] | None, ...]
    compactness: float


class LivePreview:
    """The preview of what is in view, of the selected layers with the settings of the panel.

    Parameters
    ----------
    panel : PanelWidgets
        The settings; shows how near the preview is to the result as status.
    layers : ShownLayers
        Shows the preview.
    windows : ChosenWindows
        The intensity windows, which are chosen first.
    """

    def __init__(self, panel: PanelWidgets, layers: ShownLayers, windows: ChosenWindows) -> None:
        self._panel, self._layers, self._windows = panel, layers, windows
        self.is_running = False
        self._last_request: PreviewRequest | None = None
        self._timer = make_timer(panel, PATIENCE, self._start)
        self._timer.setSingleShot(True)
        self._connect()

    def _connect(self) -> None:
        panel, viewer = self._panel, self._panel.viewer
        for box in (
            panel.step_box,
            panel.compactness_box,
            panel.window_box,
            panel.preview_box,
            panel.mask_box,
            panel.boundaries_box,
        ):
            box.changed.connect(self._request)
        camera, dims = viewer.scene.camera, viewer.dims
        for event in (camera.events.zoom, camera.events.center, dims.events.point, dims.events.order):
            event.connect(self._request)
        viewer.layers.selection.events.changed.connect(self._follow_selection)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to come unless something changes."""
        return not (self.is_running or self._timer.isActive() or self._windows.pending)

    def _request(self, *_: Any) -> None:
        if self._panel.preview_box.value:
            self._timer.start()
        elif self._layers.find(PREVIEW) is not None:
            self._layers.remove(PREVIEW)
            self._last_request = None

    def _follow_selection(self, *_: Any) -> None:
        # Napari changes the selection while it removes a layer, when none other may be removed.
        if self._panel.preview_box.value:
            self._timer.start()

    def _start(self) -> None:
        # Another one follows when the one that runs has ended.
        if self.is_running or not self._panel.preview_box.value:
            return
        with self._panel.showing_errors():
            choice = self._panel.read_choice()
            if self._windows.text_of(choice) is None:
                self._windows.choose(choice, self._request)
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
            self.is_running, self._last_request = True, request
            start_thread(work, partial(self._end, request), self._fail)

    def _read_request(self, choice: LayerChoice) -> PreviewRequest:
        layer = choice.first
        factors = layer.downsample_factors[layer.data_level][-3:] if layer.multiscale else (1.0, 1.0, 1.0)
        plane = plane_of(self._panel.viewer.dims, layer)
        visible = visible_box(layer.corner_pixels[:, -3:], factors, dict(plane), choice.shape)
        crop = choose_crop(choice.lattice(self._panel.step_box.value), visible)
        further = tuple(layer.unique_id for layer in (choice.mask, choice.boundaries) if layer is not None)
        return PreviewRequest(choice.key, further, crop, self._windows.read(choice), self._panel.compactness_box.value)

    def _end(self, request: PreviewRequest, preview: CropLabels) -> None:
        self.is_running = False
        if not self._panel.preview_box.value:
            return
        with self._panel.showing_errors():
            choice = self._panel.read_choice()
            if self._windows.text_of(choice) is None or self._read_request(choice) != request:
                # What is shown by now is something else: this preview is dropped.
                self._start()
                return
            self._layers.show_preview(choice.first, preview)
            self._panel.status_label.value = f"Preview: {describe_kind(request.crop, choice)}."

    def _fail(self, error: BaseException) -> None:
        self.is_running = False
        self._panel.status_label.value = str(error)


def describe_kind(crop: Crop, choice: LayerChoice) -> str:
    """Return how near a preview is to the result, and how many supervoxels that has."""
    count = f"{crop.lattice.size} supervoxels in all"
    if crop.is_exact and choice.has_one_dtype:
        return f"as the result will be. {count}"
    if choice.boundaries is not None and not crop.is_exact:
        return f"a rough one, with the boundaries' range in what is in view. {count}"
    return f"nearly as the result will be (cut with {crop.margin} cells around it). {count}"
