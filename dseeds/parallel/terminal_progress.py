"""The progress of a run in a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text
from typing_extensions import override

from dseeds.core import formatting
from dseeds.core.progress import Progress

# Between lines of progress where there is no terminal.
LINE_SECONDS = 60


class TerminalProgress(Progress):
    """Progress as bars on a terminal; elsewhere as a line when a stage ends, and at least once a minute while it runs.

    Rates are averages over the whole stage, because a single task can take longer than any shorter period.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Column(describe_rate),
            _Column(describe_time_left),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not self._is_live,
        )
        self._ids: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    @override
    def dashboard(self, link: str) -> None:
        self._console.print(f"Dask dashboard: {link}", highlight=False, soft_wrap=True)

    @override
    def begin(self, stage: str, total: int) -> None:
        self._ids[stage] = self.bars.add_task(stage, total=total)

    @override
    def advance(self, stage: str) -> None:
        self.bars.advance(self._ids[stage])
        if time.monotonic() - self._last_line > LINE_SECONDS:
            self._print_line(stage)

    @override
    def end(self, stage: str) -> None:
        self._print_line(stage)

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage_callback(self, stage: str) -> Callable[[int, int], None]:
        """Return a callback that shows a single stage from its counts ``(done, total)``."""

        def update(done: int, total: int) -> None:
            if stage not in self._ids:
                self.begin(stage, total)
            if done:
                self.advance(stage)
            if done == total:
                self.end(stage)

        return update

    def _print_line(self, stage: str) -> None:
        if self._is_live:
            return
        self._last_line = time.monotonic()
        task = self.bars.tasks[self._ids[stage]]
        parts = [f"{stage}: {task.completed:.0f} of {task.total:.0f}", describe_rate(task), describe_time_left(task)]
        self._console.print(", ".join(filter(None, parts)), highlight=False, soft_wrap=True)


class _Column(ProgressColumn):
    max_refresh = 0.5

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    @override
    def render(self, task: Task) -> Text:
        return Text(self._text(task), style="progress.remaining", justify="right")


def describe_rate(task: Task) -> str:
    """Return the rate of a stage; nothing while none of its tasks has finished."""
    seconds = _elapsed(task)
    return formatting.format_rate(task.completed, seconds) if task.completed and seconds else ""


def describe_time_left(task: Task) -> str:
    """Return the estimated time left of a stage, or the time that it took."""
    seconds = _elapsed(task)
    if task.finished:
        return f"done in {formatting.format_clock(seconds)}"
    if not task.completed:
        return ""
    return f"{formatting.format_clock(seconds * (task.remaining or 0) / task.completed)} left"


def _elapsed(task: Task) -> float:
    return task.finished_time or task.elapsed or 0.0
