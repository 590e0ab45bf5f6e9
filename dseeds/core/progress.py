"""The protocol by which long operations report their progress."""

from __future__ import annotations

from typing import Protocol

# How long no task may end before it is said why.
STALL_SECONDS = 60.0


class Progress(Protocol):
    """An observer of a run; all calls come from the thread that called `segment`."""

    def dashboard(self, link: str) -> None:
        """Receive the address of a local cluster's dashboard."""

    def begin(self, stage: str, total: int) -> None:
        """Begin a stage of `total` tasks."""

    def advance(self, stage: str) -> None:
        """Count one more finished task of a stage."""

    def end(self, stage: str) -> None:
        """End a stage."""
