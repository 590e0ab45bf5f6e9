"""Overhead of the out-of-core run over its kernels, by round: ``python tests/benchmarks/overhead.py [SOURCE]``.

Workers have one thread each, and every second of a worker counts once: as kernel, as reading or writing messages, as
reading the source or writing the labels, as other work of a task, or as idle, from the end of the task before to the
begin of a task. All kernels are compiled before. The overhead is everything but the kernels, relative to the kernels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import zarr
from distributed import Client, LocalCluster, WorkerPlugin

import dseeds
from dseeds.engine import label_tasks, region_state, tasks
from dseeds.engine.dask_runner import StageRunner
from dseeds.engine.job import Job
from dseeds.engine.messages import MessageLog
from dseeds.engine.phases import Phase
from dseeds.phantom import phantom, write_phantom
from dseeds.seeds import block_histograms, rounds
from dseeds.storage.label_group import LabelGroup

KINDS = ("kernel", "read", "write", "volumes", "other", "idle")
COLUMNS = (*KINDS, "overhead")
ALL = "all tasks"

Seconds = Counter[tuple[str, str]]

# Functions, where their callers look them up, and the kind of their time. None of them calls another one.
TIMED: tuple[tuple[Any, str, str], ...] = (
    (rounds, "sweep_window", "kernel"),
    (rounds, "count_statistics", "kernel"),
    (block_histograms, "level_histograms", "kernel"),
    (block_histograms, "coarsen_level", "kernel"),
    (region_state, "quantise_box", "kernel"),
    (label_tasks, "write_global_labels", "kernel"),
    (MessageLog, "_read", "read"),
    (MessageLog, "publish", "write"),
    (Job, "read_image", "volumes"),
    (LabelGroup, "write", "volumes"),
)


class Clocks(WorkerPlugin):
    """A worker plug-in that times tasks, with their kernels, messages and volumes, by round."""

    name = "clocks"

    def setup(self, worker: Any) -> None:
        """Wrap the timed functions in the worker's process."""
        worker.clocks = seconds = Counter()
        current = ""
        ended = float("inf")

        def timed(function: Callable, kind: str) -> Callable:
            @wraps(function)
            def call(*args: Any, **options: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*args, **options)
                finally:
                    spent = time.perf_counter() - start
                    seconds[current, kind] += spent
                    seconds[current, "other"] -= spent

            return call

        def task(function: Callable) -> Callable:
            @wraps(function)
            def call(job: Any, phase: Phase, *args: Any) -> Any:
                nonlocal current, ended
                current, start = key(phase), time.perf_counter()
                # Before the first task of a run, its volume is opened.
                seconds[current, "idle"] += max(0.0, start - ended) if seconds else 0.0
                try:
                    return function(job, phase, *args)
                finally:
                    ended = time.perf_counter()
                    seconds[current, "other"] += ended - start

            return call

        for owner, name, kind in TIMED:
            setattr(owner, name, timed(getattr(owner, name), kind))
        tasks.perform_task = task(tasks.perform_task)


def key(phase: Phase) -> str:
    """Return a round's number, or another stage's name."""
    return f"round {phase.turn:2}" if phase.is_round else phase.stage


@contextmanager
def timed_stages() -> Iterator[list[float]]:
    """Yield a list to which the wall seconds of all tasks are added, as this process measures them."""
    seconds: list[float] = []
    run = StageRunner.run

    def timed(self: StageRunner, *args: Any) -> None:
        start = time.perf_counter()
        run(self, *args)
        seconds.append(time.perf_counter() - start)

    StageRunner.run = timed
    try:
        yield seconds
    finally:
        StageRunner.run = run


def measure(client: Client, source: Any, step: int, folder: str) -> tuple[dict[str, Any], dseeds.Report]:
    """Run once; return the wall seconds of all tasks, and what the workers did in every round and other stage."""
    client.run(lambda dask_worker: dask_worker.clocks.clear())
    with timed_stages() as walls:
        report = dseeds.segment(source, f"{folder}/labels.zarr", step=step, client=client, overwrite=True)
    busy: Seconds = sum(client.run(lambda dask_worker: dask_worker.clocks).values(), Counter())
    names = dict.fromkeys(name for name, _ in busy)
    rows = {name: {kind: busy[name, kind] for kind in KINDS} for name in sorted(names, key=order)}
    rows[ALL] = {kind: sum(row[kind] for row in rows.values()) for kind in KINDS}
    # Also what passed before the first and after the last task of a worker.
    rows[ALL]["idle"] = sum(walls) * report.workers - sum(rows[ALL][kind] for kind in KINDS if kind != "idle")
    for row in rows.values():
        # Stages without kernels have none.
        row["overhead"] = sum(row[kind] for kind in KINDS) / row["kernel"] - 1 if row["kernel"] else 0.0
    return {"wall": sum(walls), "rows": rows}, report


def order(name: str) -> tuple[int, str]:
    """Return the place of a stage or round in a table."""
    return {"window": 0, "quantise": 1, "label": 3}.get(name, 2), name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", help="a Zarr image, by default a phantom of --size")
    parser.add_argument("--size", type=int, default=768, help="voxels along each axis of the phantom")
    parser.add_argument("--step", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="4GiB", help="of each worker")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=arguments.workers,
            threads_per_worker=1,
            memory_limit=arguments.memory,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        source = arguments.source
        if source is None:
            source = f"{folder}/phantom.zarr"
            write_phantom(source, shape=(arguments.size,) * 3)
        client.register_plugin(Clocks())
        small, _ = phantom((64,) * 3)
        # Many small regions, so that every worker compiles its kernels for this dtype.
        node = zarr.open(source, mode="r")
        image = node["0"] if isinstance(node, zarr.Group) else node
        dseeds.segment(
            small.astype(image.dtype), f"{folder}/small.zarr", step=arguments.step, region=arguments.step, client=client
        )
        figures, report = measure(client, source, arguments.step, folder)
    print(report)
    print(f"{'seconds':<16}" + "".join(f"{column:>10}" for column in COLUMNS))
    for name, row in figures["rows"].items():
        print(f"{name:<16}" + "".join(f"{row[column]:>10.2f}" for column in COLUMNS))
    print(f"{figures['wall']:.2f} s for all tasks on {report.workers} workers")
    if arguments.json:
        arguments.json.write_text(json.dumps({**figures, "report": report.to_dict()}, indent=2))


if __name__ == "__main__":
    main()
