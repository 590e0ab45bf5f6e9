"""The progress of a cut, between the thread that cuts and the window, which may cancel it."""

from __future__ import annotations

import threading

CANCELLED = (
    "Cancelled. Of a volume larger than memory what is done is kept: cut again with the same settings to go on. Any "
    "other begins anew."
)


class CutCancelled(Exception):
    """A cut was cancelled in the window."""


class CutProgress:
    """A `Progress` that the window reads from time to time; the next task that ends raises `CutCancelled` if it must.

    Examples
    --------
    >>> progress = CutProgress()
    >>> progress.begin("read", 2)
    >>> progress.advance("read")
    >>> progress.state()
    ('read', 1, 2)
    >>> progress.cancel()
    >>> progress.advance("read")
    Traceback (most recent call last):
    dseeds.napari_plugin.cut_progress.CutCancelled: Cancelled. Of a volume larger than memory what is done is kept: ...
    """

    def __init__(self) -> None:
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        self._totals: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._stage = ""

    def dashboard(self, link: str) -> None:
        """Ignore the address of a local cluster's dashboard."""

    def begin(self, stage: str, total: int) -> None:
        """Begin a stage of `total` tasks."""
        with self._lock:
            self._stage, self._totals[stage] = stage, total
            self._counts.setdefault(stage, 0)

    def advance(self, stage: str) -> None:
        """Count one more finished task of a stage; raise `CutCancelled` after `cancel`."""
        with self._lock:
            self._stage = stage
            self._counts[stage] = self._counts.get(stage, 0) + 1
        if self._cancelled.is_set():
            raise CutCancelled(CANCELLED)

    def end(self, stage: str) -> None:
        """End a stage; stages may overlap."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the cut ends with its next task."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Have the cut end with its next task."""
        self._cancelled.set()

    def state(self) -> tuple[str, int, int]:
        """Return the stage that has moved last, its finished tasks and all of its tasks."""
        with self._lock:
            return self._stage, self._counts.get(self._stage, 0), self._totals.get(self._stage, 0)
