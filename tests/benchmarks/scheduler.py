"""Time and memory of a task apart from its work: ``python tests/benchmarks/scheduler.py``.

The tasks of very many regions only publish empty messages, on a local cluster with the scheduler and the client in this
process. Everything else is real: the state of the run, the pipeline, the journal, the bounded submission of tasks.

With ``--simulate`` there is no cluster, and tasks are done at once: what is left is what the driver itself does for a
task, in time of its processor, with as many workers as are asked for; also for each tenth of the tasks, to see whether
it grows.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from distributed import Client, LocalCluster, WorkerPlugin

from dseeds.core.progress import Progress
from dseeds.engine import driver, tasks
from dseeds.engine.dask_runner import StageRunner
from dseeds.engine.history import ALL, MOVED
from dseeds.engine.job import Job, RegionInput
from dseeds.engine.journal import Journal
from dseeds.engine.phases import LABEL, QUANTISE, Phase, RegionTask
from dseeds.engine.pipeline import PER_THREAD, Pipeline
from dseeds.engine.report import TaskResult
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.engine.stage_timer import StageTimer
from dseeds.io import open_image
from dseeds.seeds.order_statistics import WindowSearch
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location

# Cells of two voxels have no blocks, so there are only the rounds of voxels. A region affects only those around it.
STEP, CELLS = 2, 8


class EmptyTasks(WorkerPlugin):
    """A worker plug-in that makes tasks do nothing."""

    name = "empty-tasks"

    def setup(self, worker: Any) -> None:
        """Replace the functions of the tasks in the worker's process."""
        tasks._TASKS.update({stage: partial(empty_task, stage) for stage in tasks._TASKS})


def empty_task(stage: str, job: Job, number: int, turn: int, task_input: RegionInput) -> str:
    """Publish an empty message of a region in which something moved."""
    if stage == LABEL.stage:
        return "labelled"
    phase = Phase(stage, turn)
    outcome = ALL if phase == QUANTISE else MOVED
    trail = outcome[0] if turn < 0 else task_input.history.trail(turn - 1, number) + outcome[0]
    job.messages.publish(phase, number, trail, {})
    return outcome


def new_state(folder: Path, regions: int) -> RunState:
    """Return the state of a run of about ``regions`` regions that has just begun."""
    shape = (round(regions ** (1 / 3)) * CELLS * STEP,) * 3
    # An array without stored chunks.
    image = zarr.create_array(folder / "image", shape=shape, dtype=np.uint8, chunks=(CELLS * STEP,) * 3)
    address = str(folder)
    labels = (LabelGroup(open_location(address)),)
    job = Job(open_image(image), shape, (STEP,) * 3, (CELLS,) * 3, address, Journal(address, "run"), labels)
    return RunState(job, WindowSearch([np.dtype(np.uint8)], [(0.0, 1.0)]), ImageQuery())


def simulate(folder: Path, regions: int, workers: int) -> dict[str, Any]:
    """Take about ``regions`` regions through all their phases without a cluster; return time and memory."""
    state = new_state(folder, regions)
    pipeline = Pipeline(state, StageTimer({}), holders={})
    arguments = driver._arguments(state, pipeline.is_marked)
    total = len(state.job.regions) * sum(phase.publishes_messages or phase == LABEL for phase in state.phases)
    free, flying = dict.fromkeys(map(str, range(workers)), PER_THREAD), deque[tuple[RegionTask, str]]()
    done, sent, ticks, sizes = 0, 0, [time.process_time()], [psutil.Process().memory_info().rss]
    while True:
        for task, worker in pipeline.take(sum(free.values()), free):
            sent += len(pickle.dumps(arguments(task)[1:]))
            free[worker] -= 1
            flying.append((task, worker))
        if not flying:
            break
        task, worker = flying.popleft()
        phase, number = task
        outcome = "labelled" if phase == LABEL else ALL if phase == QUANTISE else MOVED
        pipeline.finish(task, TaskResult(number, outcome, 0.0, 0, 0, 0), worker)
        free[worker] += 1
        done += 1
        if done * 10 // total >= len(ticks):
            ticks.append(time.process_time())
            sizes.append(psutil.Process().memory_info().rss)
    assert done == total
    return {
        "regions": len(state.job.regions),
        "tasks": total,
        "milliseconds_per_task": round(1000 * (ticks[-1] - ticks[0]) / total, 3),
        "of_each_tenth": [round(10_000 * seconds / total, 3) for seconds in np.diff(ticks).tolist()],
        "sent_bytes_per_task": sent // total,
        "growth_bytes": max(sizes) - sizes[0],
        "peak_bytes": max(sizes),
    }


def measure(folder: Path, regions: int, workers: int) -> dict[str, float]:
    """Take about ``regions`` regions through all their phases; return time and memory."""
    state = new_state(folder, regions)
    job = state.job
    process, samples = psutil.Process(), []
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(EmptyTasks())
        phases = state.phases
        totals = {phase.stage: len(job.regions) * sum(p.stage == phase.stage for p in phases) for phase in phases}
        runner = StageRunner(totals, Sampler(lambda: samples.append(process.memory_info().rss)), client=client)
        start = time.perf_counter()
        pipeline = Pipeline(state, runner, holders={})
        runner.run(pipeline, driver._arguments(state, pipeline.is_marked), refuse_repair)
        seconds = time.perf_counter() - start
    count = sum(report.tasks for report in runner.reports())
    return {
        "regions": len(job.regions),
        "tasks": count,
        "milliseconds_per_task": 1000 * seconds / count,
        # The first tenth has the one-time allocations.
        "growth_bytes": max(samples) - samples[len(samples) // 10],
        "peak_bytes": max(samples),
    }


def refuse_repair(damage: Exception) -> None:
    """Raise the damage: there is none to repair here."""
    raise damage


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
    parser.add_argument("--simulate", action="store_true")
    arguments = parser.parse_args()
    run = simulate if arguments.simulate else measure
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), arguments.regions, arguments.workers), indent=2))


if __name__ == "__main__":
    main()
