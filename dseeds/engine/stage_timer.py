"""The stages of a run: their progress, and what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from dseeds.core.progress import Progress
from dseeds.engine.report import StageReport, TaskResult
from dseeds.storage.zarr_arrays import ByteCounter, byte_counter


@dataclass
class StageTimer:
    """Reports the progress of stages and measures their time."""

    # The number of tasks of each stage to come.
    totals: dict[str, int]
    progress: Progress | None = None
    _reports: dict[str, StageReport] = field(default_factory=dict, init=False)
    _ended: set[str] = field(default_factory=set, init=False)

    @contextmanager
    def timed(self, stage: str) -> Iterator[Callable[..., None]]:
        """Measure a piece of a stage, and yield a function that counts one of its tasks as done."""
        self._begin(stage)

        def advance(result: TaskResult | None = None) -> None:
            self._reports[stage] = self._reports[stage].with_task(result)
            if self.progress:
                self.progress.advance(stage)

        # The bytes of this process itself: tasks count their own.
        counter, start = ByteCounter(), time.perf_counter()
        token = byte_counter.set(counter)
        try:
            yield advance
        finally:
            byte_counter.reset(token)
            self._add(stage, seconds=time.perf_counter() - start, read=counter.read, written=counter.written)
        self._end(stage)

    def count(self, stage: str, result: TaskResult, seconds: float) -> None:
        """Count a task of a stage that overlaps with others as done, and what the stage takes of the time."""
        self._begin(stage)
        self._reports[stage] = self._reports[stage].with_task(result)
        self._add(stage, seconds=seconds)
        if self.progress:
            self.progress.advance(stage)
        self._end(stage)

    def _begin(self, stage: str) -> None:
        if stage not in self._reports:
            self._reports[stage] = StageReport(stage)
            if self.progress:
                self.progress.begin(stage, self.totals[stage])

    def _end(self, stage: str) -> None:
        report = self._reports[stage]
        # The last piece of a stage may have nothing to do.
        if self.progress and report.tasks + report.skipped >= self.totals[stage] and stage not in self._ended:
            self._ended.add(stage)
            self.progress.end(stage)

    def skip(self, stage: str, tasks: int) -> None:
        """Count tasks of a stage as done that are not needed."""
        with self.timed(stage):
            self._add(stage, skipped=tasks)
            for _ in range(tasks if self.progress else 0):
                self.progress.advance(stage)  # type: ignore[union-attr]

    def _add(self, stage: str, **amounts: float) -> None:
        """Add to the report of a stage."""
        report = self._reports[stage]
        self._reports[stage] = replace(report, **{name: getattr(report, name) + more for name, more in amounts.items()})

    def reports(self) -> tuple[StageReport, ...]:
        """Return the reports of the stages so far."""
        return tuple(replace(report, seconds=round(report.seconds, 4)) for report in self._reports.values())
