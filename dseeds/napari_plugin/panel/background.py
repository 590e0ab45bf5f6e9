"""Work in threads, so that the window stays responsive: one piece at a time, with its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.qt.threading import create_worker
from napari.utils import cancelable_progress
from qtpy.QtCore import QTimer  # type: ignore[attr-defined, unused-ignore]

from dseeds.napari_plugin.cut_progress import CutProgress
from dseeds.napari_plugin.panel.widgets import PanelWidgets

# Milliseconds between two looks at the progress of a cut.
LOOK = 100


def start_thread(work: Callable[[], Any], end: Callable[[Any], None], fail: Callable[[BaseException], None]) -> None:
    """Do work in a thread of napari, and call one of two functions in the thread of the window."""
    create_worker(work, _connect={"returned": end, "errored": fail})


def make_timer(panel: PanelWidgets, milliseconds: int, action: Callable[[], None]) -> QTimer:
    """Return a timer that does something in the thread of the window, after it is started and until it is stopped."""
    timer = QTimer(panel.native)
    timer.setInterval(milliseconds)
    timer.timeout.connect(action)
    return timer


class BackgroundWork:
    """Work that the panel waits for, one piece at a time: a cut, which can be cancelled, a propagation and so on.

    Parameters
    ----------
    panel : PanelWidgets
        Shows what is going on as status.
    update : callable
        Is called whenever work begins, ends or is cancelled.
    """

    def __init__(self, panel: PanelWidgets, update: Callable[[], None]) -> None:
        self._panel, self._update = panel, update
        self.is_busy = False
        self.progress: CutProgress | None = None
        self._bar: cancelable_progress | None = None
        self._timer = make_timer(panel, LOOK, self._show_progress)

    def run(
        self,
        note: str,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        progress: CutProgress | None = None,
    ) -> None:
        """Do work in a thread, then something in the window; one at a time. With progress it can be cancelled."""
        if self.is_busy:
            return
        self.is_busy, self._panel.status_label.value, self.progress = True, note, progress
        if progress is not None:
            self._bar = cancelable_progress(total=0, desc=note)
            self._timer.start()
        self._update()

        def end(result: Any) -> None:
            self._end()
            with self._panel.showing_errors():
                then(result)
            self._update()

        def fail(error: BaseException) -> None:
            self._end()
            self._panel.status_label.value = str(error)
            self._update()

        start_thread(work, end, fail)

    def cancel(self) -> None:
        """Have a cut end with its next task."""
        if self.progress is not None:
            self.progress.cancel()
            self._panel.status_label.value = "Cancelling: the cut ends with its next task ..."
            self._update()

    def _end(self) -> None:
        self.is_busy, self.progress = False, None
        self._timer.stop()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_progress(self) -> None:
        """Show how far a cut has come; a thread may not touch the window itself."""
        progress, bar = self.progress, self._bar
        if progress is None or bar is None:
            return
        # The button beside napari's bar.
        if bar.is_canceled and not progress.is_cancelled:
            self.cancel()
        stage, count, total = progress.state()
        if not stage or progress.is_cancelled:
            return
        if bar.total != total:
            bar.total = total
        bar.set_description(f"Cutting: {stage}")
        bar.update(count - bar.n)
        self._panel.status_label.value = f"Cutting: {stage}, {count} of {total}."
