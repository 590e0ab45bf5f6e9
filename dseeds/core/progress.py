"""TODO."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Whoever wants to follow a run; all calls come from the thread that called `segment`."""

    def dashboard(self, link: str) -> None:
        """Tell where the dashboard of a local cluster is."""

    def begin(self, stage: str, total: int) -> None:
        """Tell that a stage begins, and how many tasks it has."""

    def advance(self, stage: str) -> None:
        """Tell that one task of a stage is done."""

    def end(self, stage: str) -> None:
        """Tell that a stage is done."""
