"""The progress of a run, shown in a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

# Between lines of progress where there is no terminal.
LINE_SECONDS = 60


class TerminalProgress:
    """Shows progress: on a terminal bars while the run lasts, elsewhere a line when a stage is done, or once a minute.

    It is the `Progress` of a run. Rates are averages since the stage began, for a task can take longer than any window.

    Parameters
    ----------
    console : rich.console.Console
        Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lively = console.is_terminal and not console.is_dumb_terminal
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Column(format_rate),
            _Column(format_time_left),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not self._lively,
        )
        self._ids: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def dashboard(self, link: str) -> None:
        """See `Progress.dashboard`."""
        self._console.print(f"Dask dashboard: {link}", highlight=False, soft_wrap=True)

    def begin(self, stage: str, total: int) -> None:
        """See `Progress.begin`."""
        self._ids[stage] = self.bars.add_task(stage, total=total)

    def advance(self, stage: str) -> None:
        """See `Progress.advance`."""
        self.bars.advance(self._ids[stage])
        if time.monotonic() - self._last_line > LINE_SECONDS:
            self._line(stage)

    def end(self, stage: str) -> None:
        """See `Progress.end`."""
        self._line(stage)

    def counting(self, stage: str) -> Callable[[int, int], None]:
        """Lend what follows a single stage as ``(done, total)``."""

        def follow(done: int, total: int) -> None:
            if stage not in self._ids:
                self.begin(stage, total)
            if done:
                self.advance(stage)
            if done == total:
                self.end(stage)

        return follow

    def _line(self, stage: str) -> None:
        if self._lively:
            return
        self._last_line = time.monotonic()
        task = self.bars.tasks[self._ids[stage]]
        parts = [f"{stage}: {task.completed:.0f} of {task.total:.0f}", format_rate(task), format_time_left(task)]
        self._console.print(", ".join(part for part in parts if part), highlight=False, soft_wrap=True)


class _Column(ProgressColumn):
    max_refresh = 0.5

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task), style="progress.remaining", justify="right")


def _seconds(task: Task) -> float:
    return task.finished_time or task.elapsed or 0.0


def format_rate(task: Task) -> str:
    """Say how fast a stage is, in the unit that makes a readable number."""
    if not (task.completed and _seconds(task)):
        return ""
    rate = task.completed / _seconds(task)
    unit, per_second = next(((u, s) for u, s in (("s", 1), ("min", 60)) if rate * s >= 1), ("h", 3600))
    return f"{rate * per_second:.1f}/{unit}"


def format_time_left(task: Task) -> str:
    """Say how long a stage will take, or has taken."""
    if task.finished:
        return f"done in {_clock(_seconds(task))}"
    if not task.completed:
        return ""
    return f"{_clock(_seconds(task) * (task.remaining or 0) / task.completed)} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
