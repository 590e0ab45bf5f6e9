"""The progress that a command shows on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from dseeds.parallel.terminal_progress import TerminalProgress


@contextmanager
def following(quiet: bool) -> Iterator[TerminalProgress]:
    """Lend a display for as long as the work takes."""
    from dseeds.parallel.terminal_progress import TerminalProgress

    display = TerminalProgress(Console(stderr=True, quiet=quiet))
    with display.bars:
        yield display
