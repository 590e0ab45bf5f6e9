"""Speed in memory, in one thread, against the peers: ``python tests/benchmarks/speed.py [--json FILE]``.

All are timed in the same run, the fastest of three, without compilation and imports. A peer's ratio is its time divided
by that of dseeds; the ratio of several threads is the time of one thread divided by theirs. Memory is the peak of a
process of its own, without the image. dseeds with a boundary map, the magnitude of the gradient, stands beside the
watersheds of the same map.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

import dseeds
from dseeds.benchmark.cases import Case
from dseeds.benchmark.methods import Method, choose_methods
from dseeds.benchmark.timing import REPEATS, best_time
from dseeds.core.process import peak_memory
from dseeds.parallel.worker_settings import return_freed_memory
from dseeds.phantom import phantom
from dseeds.seeds.order_statistics import find_windows

PEERS = ("SLIC 0.1", "SimpleITK SLIC 30", "3D SEEDS 2")
FLOODS = ("dseeds boundaries", "watershed 3", "bioimage-cpp watershed")
WINDOW = (0.0, 3000.0)

Row = dict[str, Any]


def timed_phases(image: np.ndarray, step: int) -> dict[str, float]:
    """Run once in one thread; return the seconds of every phase."""
    start = time.perf_counter()
    window = find_windows([image], [None])[0]
    middle = time.perf_counter()
    dseeds.supervoxels(image, step=step, window=window, threads=1)
    return {"window": middle - start, "labels": time.perf_counter() - middle}


def bytes_per_voxel(file: Path, step: int) -> float:
    """Return the peak memory per voxel; call it in a process that has nothing but the image."""
    image = np.load(file)
    dseeds.supervoxels(image[:64, :64, :64].copy(), step=step, threads=1)
    # Reset the peak: compiling takes more memory than small volumes.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    dseeds.supervoxels(image, step=step, threads=1)
    return (peak_memory() - before) / image.size


def flood_case(image: np.ndarray, step: int) -> Case:
    """Return a case whose boundary map is a volume, in its own dtype as watersheds need it, with the seeds made."""
    case = Case(f"map {image.shape[0]}", (step,) * 3, image, None, (WINDOW,))
    case = replace(case, boundaries=case.relief)
    _ = case.relief, case.markers
    return case


def flood_bytes_per_voxel(file: Path, step: int, name: str) -> float:
    """Return the peak memory per voxel of a method that floods a map, without image, map and seeds."""
    image, [method] = np.load(file), choose_methods((name,))[0]
    case = flood_case(image, step)
    method.cut(flood_case(image[:64, :64, :64].copy(), step))
    # What the map took and gave back would hide what the method takes.
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    method.cut(case)
    return (peak_memory() - before) / image.size


def measure_floods(image: np.ndarray, step: int, threads: int | None) -> list[Row]:
    """Return the rows of dseeds with a boundary map and of watersheds; ratios are to the former."""
    case, methods = flood_case(image, step), choose_methods(FLOODS)[0]
    seconds = {method.name: best_time(lambda method=method: method.cut(case)) for method in methods}
    ours = seconds[FLOODS[0]]
    if threads:

        def cut() -> None:
            dseeds.supervoxels(image, step=step, window=WINDOW, boundaries=case.boundaries, threads=threads)

        seconds[f"  {threads} threads"] = best_time(cut)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.npy")
        np.save(file, image)
        for name, time_ in seconds.items():
            is_method = not name.startswith(" ")
            ratio = None if name == FLOODS[0] else time_ / ours if is_method else ours / time_
            memory = None
            if is_method:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    memory = pool.apply(flood_bytes_per_voxel, (file, step, name))
            speed = image.size / time_ / 1e6
            rows.append(
                {"volume": case.name, "step": step, "of": name, "speed": speed, "ratio": ratio, "memory": memory}
            )
    return rows


def measure(image: np.ndarray, step: int, threads: int | None, peers: list[Method]) -> list[Row]:
    """Return the rows of one size and step; ``of`` names the timed method, phase or threads."""
    name = f"phantom {image.shape[0]}"

    def row(of: str, seconds: float, ratio: float | None = None) -> Row:
        speed = image.size / seconds / 1e6
        return {"volume": name, "step": step, "of": of, "speed": speed, "ratio": ratio, "memory": None}

    timed_phases(image[:64, :64, :64], step)
    ours = best_time(lambda: dseeds.supervoxels(image, step=step, threads=1))
    phases = min((timed_phases(image, step) for _ in range(REPEATS)), key=lambda times: sum(times.values()))
    rows = [row("dseeds", ours), *(row(f"  {phase}", seconds) for phase, seconds in phases.items())]
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        file = Path(folder, "image.npy")
        np.save(file, image)
        rows[0]["memory"] = pool.apply(bytes_per_voxel, (file, step))
    if threads:
        seconds = best_time(lambda: dseeds.supervoxels(image, step=step, threads=threads))
        rows.append(row(f"  {threads} threads", seconds, ours / seconds))
    if peers:
        case = Case(name, (step,) * 3, image, None, (WINDOW,))
        # Scale the image before the timing.
        _ = case.scaled
        for peer in peers:
            seconds = best_time(lambda peer=peer: peer.cut(case))
            rows.append(row(peer.name, seconds, seconds / ours))
    return rows


def line(*words: Any) -> str:
    volume, step, of, *figures = ("" if w is None else f"{w:.2f}" if isinstance(w, float) else str(w) for w in words)
    return f"{volume:<13}{step:>5}  {of:<20}" + "".join(f"{figure:>14}" for figure in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--sizes", default="160,256,512", help="voxels along each axis of the phantoms")
    parser.add_argument("--steps", default="8,16,32")
    parser.add_argument("--threads", type=int, help="also time dseeds with this number of threads")
    parser.add_argument("--peers-up-to", type=int, default=256, metavar="SIZE", help="the largest size for the peers")
    arguments = parser.parse_args()
    peers = choose_methods(("dseeds", *PEERS))[0][1:]
    rows: list[Row] = []
    print(line("volume", "step", "", "Mvoxel/s", "ratio", "bytes/voxel"))
    for size in map(int, arguments.sizes.split(",")):
        image, _ = phantom((size,) * 3)
        for step in map(int, arguments.steps.split(",")):
            is_small = size <= arguments.peers_up_to
            new_rows = measure(image, step, arguments.threads, peers if is_small else [])
            new_rows += measure_floods(image, step, arguments.threads) if is_small else []
            for row in new_rows:
                print(line(*row.values()), flush=True)
            rows += new_rows
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
