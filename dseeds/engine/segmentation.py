"""The segmentation of a volume: in this process where it fits in memory, else on Dask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dseeds.core.progress import Progress
from dseeds.engine.in_process import run_in_process
from dseeds.engine.in_process_model import runs_in_process
from dseeds.engine.outcome import Outcome
from dseeds.engine.run import RunOptions
from dseeds.engine.run_directory import is_unfinished
from dseeds.engine.validation import prepare_run
from dseeds.parallel.resources import Resources


def run_segmentation(
    source: Any,
    target: str | Path,
    options: RunOptions,
    resources: Resources,
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_scratch: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Check the options, cut the volume and publish the labels; see `dseeds.segment`."""
    run, capacity = prepare_run(source, target, options, resources.capacity, overwrite=overwrite, resume=resume)
    if not keep_scratch and not (resume and is_unfinished(run)) and runs_in_process(run, resources):
        return run_in_process(run, memory=resources.memory, progress=progress)
    # Here, not above: Dask takes its time to import.
    from dseeds.engine.driver import run_on_dask

    return run_on_dask(run, capacity, resources.client, resume=resume, keep_scratch=keep_scratch, progress=progress)
