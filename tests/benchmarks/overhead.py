"""Overhead of the out-of-core run over its kernels, by round: ``python tests/benchmarks/overhead.py [SOURCE]``.

Workers have one thread each, and every second of a worker counts once: as kernel, as I/O with its codecs, as other work
of a task, or as idle, while the worker waits for the scheduler or for the last task of a stage. A round includes the
merge before it. All kernels are compiled before. The overhead is everything but the kernels, relative to the kernels.
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
from dseeds.engine import label_tasks, scratch, tasks
from dseeds.engine.dask_runner import StageRunner
from dseeds.engine.phases import Phase
from dseeds.phantom import phantom, write_phantom
from dseeds.seeds import block_histograms, rounds

KINDS = ("kernel", "io", "other")
COLUMNS = ("wall", *KINDS, "idle", "overhead")

Seconds = Counter[tuple[str, str]]

# Functions, in the modules where their callers look them up, and the kind of their time.
TIMED = (
    (rounds, "sweep_window", "kernel"),
    (rounds, "count_statistics", "kernel"),
    (block_histograms, "level_histograms", "kernel"),
    (block_histograms, "coarsen_level", "kernel"),
    (tasks, "quantise_box", "kernel"),
    (label_tasks, "write_global_labels", "kernel"),
    (scratch, "read_array", "io"),
    (scratch, "write_array", "io"),
)


class Clocks(WorkerPlugin):
    """A worker plug-in that times tasks, with their kernels, reads and writes, by round."""

    name = "clocks"

    def setup(self, worker: Any) -> None:
        """Wrap the timed functions in the worker's process."""
        worker.clocks = seconds = Counter()
        current = [""]

        def timed(function: Callable, kind: str) -> Callable:
            @wraps(function)
            def call(*args: Any, **options: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*args, **options)
                finally:
                    spent = time.perf_counter() - start
                    seconds[current[0], kind] += spent
                    seconds[current[0], "other"] -= spent

            return call

        def task(function: Callable) -> Callable:
            @wraps(function)
            def call(job: Any, phase: Phase, *args: Any) -> Any:
                current[0], start = key(phase), time.perf_counter()
                try:
                    return function(job, phase, *args)
                finally:
                    seconds[current[0], "other"] += time.perf_counter() - start

            return call

        for module, name, kind in TIMED:
            setattr(module, name, timed(getattr(module, name), kind))
        tasks.perform_task = task(tasks.perform_task)


def key(phase: Phase) -> str:
    """Return a round's number, or another stage's name."""
    return f"round {phase.turn:2}" if phase.stage.startswith(("sweep", "merge")) else phase.stage


@contextmanager
def timed_stages() -> Iterator[Counter[str]]:
    """Yield the wall seconds of every stage, as this process measures them."""
    seconds: Counter[str] = Counter()
    run = StageRunner.run

    def timed(self: StageRunner, phase: Phase, *args: Any, **options: Any) -> None:
        start = time.perf_counter()
        run(self, phase, *args, **options)
        seconds[key(phase)] += time.perf_counter() - start

    StageRunner.run = timed
    try:
        yield seconds
    finally:
        StageRunner.run = run


def measure(client: Client, source: Any, step: int, folder: str) -> tuple[dict[str, dict[str, float]], dseeds.Report]:
    """Run once; return the seconds of every round and every other stage."""
    client.run(lambda dask_worker: dask_worker.clocks.clear())
    with timed_stages() as walls:
        report = dseeds.segment(source, f"{folder}/labels.zarr", step=step, client=client, overwrite=True)
    busy: Seconds = sum(client.run(lambda dask_worker: dask_worker.clocks).values(), Counter())
    rows = {name: {"wall": wall, **{kind: busy[name, kind] for kind in KINDS}} for name, wall in walls.items()}
    for row in rows.values():
        row["idle"] = row["wall"] * report.workers - sum(row[kind] for kind in KINDS)
    names = [name for name in rows if name.startswith("round")]
    rows["all rounds"] = {column: sum(rows[name][column] for name in names) for column in COLUMNS[:-1]}
    for row in rows.values():
        row["overhead"] = row["wall"] * report.workers / max(row["kernel"], 1e-9) - 1
    return rows, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", help="a Zarr image, by default a phantom of --size")
    parser.add_argument("--size", type=int, default=768, help="voxels along each axis of the phantom")
    parser.add_argument("--step", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1GiB")
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
        Client(cluster) as client,
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
        rows, report = measure(client, source, arguments.step, folder)
    print(report)
    print(f"{'seconds':<16}" + "".join(f"{column:>10}" for column in COLUMNS))
    for name, row in rows.items():
        print(f"{name:<16}" + "".join(f"{row[column]:>10.2f}" for column in COLUMNS))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "report": report.to_dict()}, indent=2))


if __name__ == "__main__":
    main()
