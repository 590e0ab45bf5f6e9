"""Speed of the run in memory, one thread, against the peers: ``python tests/benchmarks/speed.py [--json FILE]``.

All are timed in the same run, best of three, without the first run, which compiles. The figure is Mvoxel/s; beside it
the ratio to scikit-image's SLIC, and for dseeds the peak of the process' memory beyond the image in bytes per voxel.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from cases import Case, methods

from dseeds.cluster import peak_memory
from dseeds.phantom import phantom

BEST_OF = 3
COMPARED = ("dseeds", "SLIC 0.1", "SimpleITK SLIC 30")


def volume(size: int, step: int) -> Case:
    image, truth = phantom((size,) * 3)
    return Case(f"phantom {size}", step, image, truth, (0.0, 3000.0))


def throughput(name: str, case: Case, best_of: int) -> float:
    """Measure a method in Mvoxel/s."""
    method = methods()[name]
    if name == "dseeds":
        method(Case("warm", case.step, case.image[:32, :32, :32], case.truth[:32, :32, :32], case.window))
    times = []
    for _ in range(best_of):
        start = time.perf_counter()
        method(case)
        times.append(time.perf_counter() - start)
    return case.image.size / min(times) / 1e6


def _bytes_per_voxel(size: int, step: int) -> float:
    case = volume(size, step)
    small = Case("warm", step, case.image[:48, :48, :48].copy(), case.truth[:1], case.window)
    run = methods()["dseeds"]
    run(small)
    del small
    before = peak_memory()
    resident = _resident()
    run(case)
    after = peak_memory()
    return (after - resident) / case.image.size if after > before else float("nan")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--sizes", default="160,256", help="voxels along each axis of the phantoms")
    parser.add_argument("--steps", default="8,16,32")
    arguments = parser.parse_args()
    names = [name for name in COMPARED if name in methods()]
    rows = []
    print(f"{'volume':<14}{'step':>5}" + "".join(f"{name:>20}" for name in names) + f"{'ratio':>8}{'bytes/voxel':>13}")
    for size in map(int, arguments.sizes.split(",")):
        for step in map(int, arguments.steps.split(",")):
            case = volume(size, step)
            # The peers take long: once where they take more than some ten seconds.
            found = {name: throughput(name, case, BEST_OF if size <= 160 or name == "dseeds" else 1) for name in names}
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory = pool.apply(_bytes_per_voxel, (size, step))
            ratio = found["dseeds"] / found.get("SLIC 0.1", np.nan)
            rows.append({"volume": case.name, "step": step, **found, "ratio": ratio, "bytes_per_voxel": memory})
            print(
                f"{case.name:<14}{step:>5}"
                + "".join(f"{found[name]:>20.2f}" for name in names)
                + f"{ratio:>8.1f}{memory:>13.1f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
