"""Time and memory of a task besides its kernel: ``python tests/benchmarks/scheduler.py``.

A run of very many regions whose tasks do nothing but mark themselves as done, on a local cluster with the scheduler and
the client in this process. Everything else is real: the course, the journal, the bounded stream of tasks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from distributed import Client, LocalCluster, WorkerPlugin

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


class Trivial(WorkerPlugin):
    """A worker plug-in that makes tasks do nothing."""

    name = "trivial"

    def setup(self, worker: Any) -> None:
        """Replace the functions of the tasks."""
        tasks._TASKS.update(dict.fromkeys(tasks._TASKS, nothing))


def nothing(_job: Job, _number: int, _turn: int, _known: Any) -> str:
    """Behave like a region without a move."""
    return "all"


def measure(folder: Path, regions: int, workers: int) -> dict[str, float]:
    """Run a number of regions through the two phases of a constant volume; return seconds and bytes."""
    side = round(regions ** (1 / 3))
    shape = (side * CELL,) * 3
    # No chunk is stored.
    image = zarr.create_array(folder / "image", shape=shape, dtype=np.uint8, chunks=(CELL,) * 3)
    address = str(folder)
    labels = (LabelGroup(open_location(address)),)
    job = Job(open_image(image), shape, (CELL,) * 3, (1, 1, 1), address, Journal(address, "run"), labels)
    course = RunState(job, WindowSearch([np.dtype(np.uint8)], [(0.0, 0.0)]), ImageQuery())
    process, seen = psutil.Process(), []
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(Trivial())
        totals = {str(phase): len(job.regions) for phase in course.phases}
        run = StageRunner(client, totals, Watch(lambda: seen.append(process.memory_info().rss)))
        start = time.perf_counter()
        while (phase := course.current) is not None:
            course.close(phase, run_phase(course, phase, run, repair=None))
        seconds = time.perf_counter() - start
    tasks = 2 * len(job.regions)
    # One-time allocations are over after a tenth.
    return {
        "regions": len(job.regions),
        "tasks": tasks,
        "milliseconds_per_task": 1000 * seconds / tasks,
        "growth_bytes": max(seen) - seen[len(seen) // 10],
        "peak_bytes": max(seen),
    }


class Watch:
    """A progress that samples after every hundredth task."""

    def __init__(self, look: Any) -> None:
        self.look, self.count = look, 0

    def dashboard(self, link: str) -> None:
        """See `Progress`."""

    def begin(self, stage: str, total: int) -> None:
        """See `Progress`."""

    def advance(self, stage: str) -> None:
        """See `Progress`."""
        self.count += 1
        if self.count % 100 == 0:
            self.look()

    def end(self, stage: str) -> None:
        """See `Progress`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), arguments.regions, arguments.workers), indent=2))


if __name__ == "__main__":
    main()
