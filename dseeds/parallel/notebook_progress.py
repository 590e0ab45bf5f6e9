"""What notebooks show: tables, and the progress of a run while it lasts."""

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

from dseeds.core.html import format_markup_table
from dseeds.core.progress import Progress
from dseeds.parallel.terminal_progress import TerminalProgress, format_rate, format_time_left

# Between two pictures of the progress: every one travels to a browser.
EVERY_SECONDS = 0.25


def in_notebook() -> bool:
    """Tell whether this is a notebook's own thread, whose output is below the cell that it runs."""
    if "IPython" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return False
    return hasattr(sys.modules["IPython"].get_ipython(), "kernel")


@contextmanager
def default_progress(progress: Progress | None) -> Iterator[Progress | None]:
    """Lend the progress that is given or, in a notebook, one that is shown there and taken away at the end."""
    if progress is not None or not in_notebook():
        yield progress
        return
    shown = NotebookProgress()
    yield shown
    # Of what fails, it is left to see how far it came.
    shown.clear()


class NotebookProgress(TerminalProgress):
    """Shows progress below a notebook's cell: a bar for each stage, and a link to the dashboard.

    It is the `Progress` of a run, and needs no widgets: a picture takes the place of the one before it.
    """

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__(Console(file=io.StringIO(), force_jupyter=False))
        self._link = ""
        self._shown = 0.0
        self._handle: Any = display(self, display_id=True)

    def dashboard(self, link: str) -> None:
        """See `Progress.dashboard`."""
        address = html.escape(link)
        self._link = f'<p>Dask dashboard: <a href="{address}" target="_blank">{address}</a></p>'
        self._show()

    def begin(self, stage: str, total: int) -> None:
        """See `Progress.begin`."""
        super().begin(stage, total)
        self._show()

    def advance(self, stage: str) -> None:
        """See `Progress.advance`."""
        super().advance(stage)
        if time.monotonic() - self._shown > EVERY_SECONDS:
            self._show()

    def end(self, stage: str) -> None:
        """See `Progress.end`."""
        super().end(stage)
        self._show()

    def clear(self) -> None:
        """Take it away."""
        from IPython.display import HTML

        self._handle.update(HTML(""))

    def _repr_html_(self) -> str:
        rows = []
        for task in self.bars.tasks:
            bar = f'<progress value="{task.completed:.0f}" max="{task.total:.0f}"></progress>'
            done = f"{task.completed:.0f} of {task.total:.0f}"
            rows.append((html.escape(task.description), bar, done, format_rate(task), format_time_left(task)))
        return self._link + format_markup_table(rows)

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._handle.update(self)
