"""The intensity window of each choice of layers, which preview and result share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dseeds.napari_plugin.layer_choice import LayerChoice
from dseeds.napari_plugin.panel.background import start_thread
from dseeds.napari_plugin.panel.widgets import PanelWidgets
from dseeds.napari_plugin.visible import describe_windows
from dseeds.seeds.intensity_windows import read_windows


class ChosenWindows:
    """The windows that were chosen for choices of layers, and the one that the user has typed.

    Parameters
    ----------
    panel : PanelWidgets
        Shows the window of what is selected in its box.
    """

    def __init__(self, panel: PanelWidgets) -> None:
        self._panel = panel
        # By choice of layers the windows that were chosen for it, and the choices whose windows are being chosen.
        self._texts: dict[Any, str] = {}
        self.pending: set[Any] = set()

    def text_of(self, choice: LayerChoice) -> str | None:
        """Return the window of a choice, which preview and result share; None if it has yet to be chosen."""
        text: str = self._panel.window_box.value.strip()
        # That of other layers is not the user's choice.
        if not text or text in {window for other, window in self._texts.items() if other != choice.key}:
            return self._texts.get(choice.key)
        return text

    def read(self, choice: LayerChoice) -> tuple[tuple[float, float] | None, ...]:
        """Return the windows of a choice that are known, and show them in the box."""
        text = self.text_of(choice)
        assert text is not None
        self._show(text)
        return read_windows(text, len(choice.channels))

    def keep(self, key: Any, text: str) -> None:
        """Keep the window that a choice was cut with, and show it in the box."""
        self._texts[key] = text
        self._show(text)

    def _show(self, text: str) -> None:
        # Shown, so that it can be changed; blocked, since it changes nothing.
        with self._panel.window_box.changed.blocked():
            self._panel.window_box.value = text

    def choose(self, choice: LayerChoice, then: Callable[[], None]) -> None:
        """Choose the window of a choice in a thread, then do something, whatever is selected by then."""
        if choice.key in self.pending:
            return
        self.pending.add(choice.key)
        self._panel.status_label.value = f"Reading the intensities of {choice.name} ..."

        def end(text: str) -> None:
            self.pending.discard(choice.key)
            self._texts[choice.key] = text
            then()

        def fail(error: BaseException) -> None:
            self.pending.discard(choice.key)
            with self._panel.showing_errors():
                # Of other layers, it is no longer of interest.
                if self._panel.read_choice().key == choice.key:
                    self._panel.status_label.value = str(error)

        start_thread(partial(describe_windows, choice.channels, choice.channel_names), end, fail)
