"""The price of working out of core: ``segment`` on two Dask workers against ``supervoxels`` with as many threads.

Both cut the same phantom in the same run, best of several; workers have been started and have loaded their kernels. The
object store is one on loopback, in this process:

    .venv/bin/python tests/benchmarks/out_of_core.py
    .venv/bin/python tests/benchmarks/out_of_core.py --cases step-8 --repeats 1
    .venv/bin/python tests/benchmarks/out_of_core.py --divide 8     # small volumes, to try it
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr
from distributed import Client, LocalCluster, WorkerPlugin

import dseeds
from dseeds.benchmark.timing import best_time
from dseeds.engine.messages import FOLDER
from dseeds.phantom import phantom
from dseeds.storage.location import LocalLocation, RemoteLocation, open_location

sys.path.append(str(Path(__file__).parents[2]))

from tests.support.faulty_store import environment, moto, s3

WORKERS = 2
# What Python, its libraries and the kernels take in a worker.
OWN_BYTES = 350 << 20
# The most bytes that messages may take for each voxel, compressed, read and written.
MESSAGE_BYTES = 2.0


@dataclass(frozen=True)
class Case:
    """A volume to cut, the memory of each worker beyond that of Python, and how long the run may and should take."""

    shape: tuple[int, int, int]
    step: int
    memory: int
    # In times of the run in memory.
    most: float
    aim: float
    pyramid: str = "none"
    boundaries: str | None = None
    # Whether scratch and target are in an object store.
    is_remote: bool = False


LARGE, SHAPE = 4 << 30, (512, 512, 512)
RESIDENT = Case(SHAPE, 16, LARGE, most=1.4, aim=1.15)
CASES = {
    "resident": RESIDENT,
    "step-8": Case(SHAPE, 8, LARGE, most=1.5, aim=1.2),
    # Room for the states of a third of the regions.
    "third": Case((768, 768, 768), 16, 512 << 20, most=2.5, aim=1.6),
    "tall": Case((8192, 256, 256), 16, 512 << 20, most=1.8, aim=1.4),
    "pyramid": replace(RESIDENT, most=1.4 * 1.15, aim=1.15 * 1.08, pyramid="mode"),
    "boundaries": replace(RESIDENT, most=1.5, aim=1.2, boundaries="gradient"),
    "s3": replace(RESIDENT, most=3.0, aim=2.0, is_remote=True),
}


class MessageBytes(WorkerPlugin):
    """A worker plug-in that counts the bytes of messages that are written and read, compressed."""

    name = "message-bytes"

    def setup(self, worker: Any) -> None:
        """Wrap the functions that write and read in the worker's process."""
        worker.message_bytes = 0

        def counted(function: Callable, size: Callable[..., int]) -> Callable:
            @wraps(function)
            def call(self: Any, *args: Any, **options: Any) -> Any:
                result = function(self, *args, **options)
                if FOLDER in self.address:
                    worker.message_bytes += size(result, *args)
                return result

            return call

        for kind in (LocalLocation, RemoteLocation):
            kind.write = counted(kind.write, lambda _, key, data: len(data))
            kind.read_part = counted(kind.read_part, lambda data, *_: len(data))


def save_phantom(folder: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Make a phantom, several times one another along the axes if it is larger than 512 voxels, and save it as Zarr."""
    path = f"{folder}/{'-'.join(map(str, shape))}.zarr"
    part, _ = phantom(tuple(min(n, 512) for n in shape))
    image = np.tile(part, [-(-n // k) for n, k in zip(shape, part.shape, strict=True)])[tuple(map(slice, shape))]
    image = np.ascontiguousarray(image)
    zarr.create_array(path, data=image, chunks=(64, 64, 64), overwrite=True)
    return image, path


@contextmanager
def output_folder(is_remote: bool, folder: str) -> Iterator[str]:
    """Yield the address for a run's outputs: a folder, or a new bucket of a store that all processes find."""
    if not is_remote:
        yield folder
        return
    with moto() as url, patch.dict(os.environ, environment(url)):
        name = f"bucket-{uuid.uuid4().hex}"
        s3(url).create_bucket(Bucket=name)
        yield f"s3://{name}"


@contextmanager
def workers(memory: int) -> Iterator[Client]:
    """Yield a client of a local cluster whose workers have so much memory beyond that of Python."""
    with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            memory_limit=OWN_BYTES + memory,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(MessageBytes())
        yield client


def run_out_of_core(case: Case, source: str, target: str, client: Client, repeats: int) -> tuple[float, float]:
    """Cut a volume out of core several times; return the seconds, and the bytes of messages for each voxel."""
    reports = []

    def cut() -> None:
        options = {"step": case.step, "pyramid": case.pyramid, "boundaries": case.boundaries}
        reports.append(dseeds.segment(source, target, client=client, overwrite=True, **options))

    client.run(lambda dask_worker: setattr(dask_worker, "message_bytes", 0))
    seconds = best_time(cut, repeats)
    print(min(reports, key=lambda report: report.seconds))
    total = sum(client.run(lambda dask_worker: dask_worker.message_bytes).values())
    return seconds, total / repeats / math.prod(case.shape)


def measure(case: Case, folder: str, repeats: int) -> dict[str, Any]:
    """Cut a volume in memory and out of core, compare all voxels, and return the figures."""
    image, source = save_phantom(folder, case.shape)
    small = image[:96, :96, :96].copy()
    cut = partial(dseeds.supervoxels, step=case.step, boundaries=case.boundaries, threads=WORKERS)
    cut(small)
    expected = cut(image)
    in_memory = best_time(partial(cut, image), repeats)
    del image
    with output_folder(case.is_remote, folder) as outputs, workers(case.memory) as client:
        options = {"step": case.step, "region": 32, "boundaries": case.boundaries}
        dseeds.segment(small, f"{outputs}/small.zarr", client=client, overwrite=True, **options)
        target = f"{outputs}/labels.zarr"
        out_of_core, message_bytes = run_out_of_core(case, source, target, client, repeats)
        labels = zarr.open_array(open_location(target).zarr("0"), mode="r")[:]
    ratio, differing = out_of_core / in_memory, int((labels != expected).sum())
    return {
        "in memory, s": round(in_memory, 2),
        "out of core, s": round(out_of_core, 2),
        "ratio": round(ratio, 2),
        "must be": round(case.most, 2),
        "aim": round(case.aim, 2),
        "message bytes per voxel": round(message_bytes, 2),
        "differing voxels": differing,
        "met": ratio <= case.most and message_bytes <= MESSAGE_BYTES and not differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--divide", type=int, default=1, help="divide the lengths of all volumes by this number")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    figures = {}
    for name in arguments.cases:
        z, y, x = (n // arguments.divide for n in CASES[name].shape)
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(replace(CASES[name], shape=(z, y, x)), folder, arguments.repeats)
        print(name, json.dumps(figures[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
