"""The outcome of a run."""

from __future__ import annotations

from dataclasses import dataclass

from dseeds.engine.planning import Plan
from dseeds.engine.report import Report
from dseeds.engine.run import Run


@dataclass(frozen=True)
class Outcome:
    """A finished run, what it was expected to take, and what it took."""

    run: Run
    plan: Plan
    report: Report
