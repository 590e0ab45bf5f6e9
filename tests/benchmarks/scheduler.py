"""Time and memory of a task apart from its kernel: ``python tests/benchmarks/scheduler.py``.

The tasks of very many regions only write their markers, on a local cluster with the scheduler and the client in this
process. Everything else is real: the run's state, the journal, the bounded submission of tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from distributed import Client, LocalCluster, WorkerPlugin

from dseeds.core.progress import Progress
from dseeds.engine import tasks
from dseeds.engine.dask_runner import StageRunner
from dseeds.engine.driver import run_phase
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.io import open_image
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location

CELL = 16


class EmptyTasks(WorkerPlugin):
    """A worker plug-in that makes tasks do nothing."""

    name = "empty-tasks"

    def setup(self, worker: Any) -> None:
        """Replace the functions of the tasks in the worker's process."""
        tasks._TASKS.update(dict.fromkeys(tasks._TASKS, empty_task))


def empty_task(_job: Job, _number: int, _turn: int, _inputs: Any) -> str:
    """Return the outcome of a region in which nothing moved."""
    return "all"


def measure(folder: Path, regions: int, workers: int) -> dict[str, float]:
    """Run about ``regions`` regions through the two phases of a constant volume; return time and memory."""
    side = round(regions ** (1 / 3))
    shape = (side * CELL,) * 3
    # An array without stored chunks.
    image = zarr.create_array(folder / "image", shape=shape, dtype=np.uint8, chunks=(CELL,) * 3)
    address = str(folder)
    labels = (LabelGroup(open_location(address)),)
    job = Job(open_image(image), shape, (CELL,) * 3, (1, 1, 1), address, Journal(address, "run"), labels)
    state = RunState(job, WindowSearch([np.dtype(np.uint8)], [(0.0, 0.0)]), ImageQuery())
    process, samples = psutil.Process(), []
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(EmptyTasks())
        totals = {str(phase): len(job.regions) for phase in state.phases}
        runner = StageRunner(totals, Sampler(lambda: samples.append(process.memory_info().rss)), client=client)
        start = time.perf_counter()
        while (phase := state.current) is not None:
            state.close(phase, run_phase(state, phase, runner, repair=None))
        seconds = time.perf_counter() - start
    count = 2 * len(job.regions)
    return {
        "regions": len(job.regions),
        "tasks": count,
        "milliseconds_per_task": 1000 * seconds / count,
        # The first tenth has the one-time allocations.
        "growth_bytes": max(samples) - samples[len(samples) // 10],
        "peak_bytes": max(samples),
    }


class Sampler(Progress):
    """A progress that takes a sample after every hundredth task."""

    def __init__(self, sample: Callable[[], None]) -> None:
        self.sample, self.count = sample, 0

    def advance(self, stage: str) -> None:
        self.count += 1
        if self.count % 100 == 0:
            self.sample()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments.regions, arguments.workers), indent=2))


if __name__ == "__main__":
    main()
