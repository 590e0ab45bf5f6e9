"""The progress of the command line: bars on a terminal, lines without one."""

import io

import pytest
from rich.console import Console

from dseeds.parallel import terminal_progress


def follow(display, stage="sweep", total=4):
    with display.bars:
        display.begin(stage, total)
        for _ in range(total):
            display.advance(stage)
        display.end(stage)


def test_bars_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    follow(terminal_progress.TerminalProgress(console))
    shown = console.file.getvalue()
    assert all(part in shown for part in ("sweep", "━", "4/4", "done in 0:00:00"))


@pytest.mark.parametrize(("seconds", "lines"), [(60, 1), (-1, 5)])
def test_lines_without_a_terminal(monkeypatch, seconds, lines):
    monkeypatch.setattr(terminal_progress, "LINE_SECONDS", seconds)
    console = Console(file=io.StringIO(), width=20)
    follow(terminal_progress.TerminalProgress(console))
    shown = console.file.getvalue().splitlines()
    assert len(shown) == lines
    assert shown[-1].startswith("sweep: 4 of 4, ")
    assert shown[-1].endswith("done in 0:00:00")
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("completed", "seconds", "rate", "left"),
    [
        (0, 5, "", ""),
        (50, 10, "5.0/s", "0:00:10 left"),
        (5, 100, "3.0/min", "0:31:40 left"),
        (1, 360, "10.0/h", "9:54:00 left"),
    ],
)
def test_rates_are_readable(completed, seconds, rate, left):
    clock = iter([0.0, seconds])
    bars = terminal_progress.Bars(get_time=lambda: next(clock, seconds), disable=True)
    bars.add_task("sweep", total=100)
    (task,) = bars.tasks
    task.completed = completed
    assert (terminal_progress.describe_rate(task), terminal_progress.describe_time_left(task)) == (rate, left)
