"""The progress of a run in a notebook."""

from __future__ import annotations

import html
import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from typing_extensions import override

from dseeds.core.html import format_markup_table
from dseeds.core.progress import Progress
from dseeds.parallel.terminal_progress import TerminalProgress, describe_rate, describe_time_left

# Between two updates: each of them travels to a browser.
UPDATE_SECONDS = 0.25


def is_in_notebook() -> bool:
    """Return whether this is the main thread of a notebook's kernel, whose output appears below the running cell."""
    if "IPython" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return False
    return hasattr(sys.modules["IPython"].get_ipython(), "kernel")


@contextmanager
def default_progress(progress: Progress | None) -> Iterator[Progress | None]:
    """Yield `progress` or, if it is None in a notebook, a display there that is removed at the end."""
    if progress is not None or not is_in_notebook():
        yield progress
        return
    display = NotebookProgress()
    yield display
    # After an error the display stays, to show how far the run came.
    display.clear()


class NotebookProgress(TerminalProgress):
    """Progress below a notebook's cell: a bar for each stage, and a link to the dashboard.

    It needs no widgets: each update replaces the HTML of the one before.
    """

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__(Console(file=io.StringIO(), force_jupyter=False))
        self._link = ""
        self._last_update = 0.0
        self._handle: Any = display(self, display_id=True)

    @override
    def dashboard(self, link: str) -> None:
        address = html.escape(link)
        self._link = f'<p>Dask dashboard: <a href="{address}" target="_blank">{address}</a></p>'
        self._update()

    @override
    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        self._update()

    @override
    def advance(self, stage: str) -> None:
        super().advance(stage)
        if time.monotonic() - self._last_update > UPDATE_SECONDS:
            self._update()

    @override
    def end(self, stage: str) -> None:
        super().end(stage)
        self._update()

    def clear(self) -> None:
        """Remove the display."""
        from IPython.display import HTML

        self._handle.update(HTML(""))

    def _repr_html_(self) -> str:
        rows = []
        for task in self.bars.tasks:
            bar = f'<progress value="{task.completed:.0f}" max="{task.total:.0f}"></progress>'
            count = f"{task.completed:.0f} of {task.total:.0f}"
            rows.append((html.escape(task.description), bar, count, describe_rate(task), describe_time_left(task)))
        return self._link + format_markup_table(rows)

    def _update(self) -> None:
        self._last_update = time.monotonic()
        self._handle.update(self)
