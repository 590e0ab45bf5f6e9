"""The outcome of a run, and its report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

from dseeds.engine.planning import Plan
from dseeds.engine.report import Report
from dseeds.engine.run import Run
from dseeds.engine.run_state import RunState
from dseeds.engine.stage_timer import StageTimer
from dseeds.seeds.contrast import describe_knees
from dseeds.storage.zarr_arrays import region_units


@dataclass(frozen=True)
class Outcome:
    """A finished run, what it was expected to take, and what it took."""

    run: Run
    plan: Plan
    report: Report

    @property
    def contrast_notes(self) -> tuple[str, ...]:
        """The notes of the report on a want of contrast, without those on how the image is read and on its bins."""
        return self.report.notes[
            len(self.run.image.notes) + len(describe_knees(self.report.windows, self.report.knees)) :
        ]


def describe_run(run: Run, state: RunState) -> tuple[str, ...]:
    """Return what the user should know of how the image is read, of its bins and of its contrast."""
    return (*run.image.notes, *describe_knees(state.job.image_windows, state.job.image_knees), *state.notes)


def report_run(
    run: Run,
    state: RunState,
    stages: StageTimer,
    started: float,
    *,
    workers: int,
    peaks: dict[str, int],
    compiled: float,
    is_resumed: bool = False,
) -> Report:
    """Return the report of a run so far; without workers, the volume is one region."""
    seconds = time.perf_counter() - started
    job, reports = state.job, stages.reports()
    return Report(
        target=run.target.address,
        features=run.features,
        shape=job.shape,
        step=job.step,
        cells=job.lattice.cells,
        windows=job.image_windows,
        knees=job.image_knees,
        supervoxels=state.supervoxels,
        coarser=tuple(state.counts[1:]),
        regions=len(job.regions) if workers else 1,
        skipped=sum(report.skipped for report in reports),
        retried=sum(report.retried for report in reports),
        resumed=is_resumed,
        region_shape=region_units(job.regions, job.lattice.grids[-1]) if workers else job.shape,
        rounds=len(job.schedule),
        workers=workers,
        seconds=round(seconds, 4),
        voxels_per_second=round(prod(job.shape) / seconds, 1),
        peak_memory=peaks,
        stages=reports,
        compile_seconds=round(compiled, 4),
        notes=describe_run(run, state),
        spacing=run.spacing,
    )
