"""Time of votes, pooling and textures against a voxel round: ``python tests/benchmarks/analysis.py [--size 256]``.

One thread, CPU time, the fastest of several runs. A round is the mean of the voxel rounds of `supervoxels` on the same
volume. Pooling is split into what it takes once for all channels, and for each channel, of float16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from features import voxel_round

from dseeds.core.geometry import Box, triple
from dseeds.measure.kernels.numbering import find_lines, find_runs, number_labels
from dseeds.measure.pooling import pool_rows
from dseeds.measure.textures import count_textures
from dseeds.phantom import phantom
from dseeds.seeds.kernels.pair_counts import count_pairs

FACTOR = 4


def best_cpu(function: Callable[[], Any], repeats: int) -> float:
    """Return the CPU seconds of the fastest of several calls, after one that compiles."""
    function()
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        function()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--step", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    image, truth = phantom((arguments.size,) * 3)
    sweep, labels = voxel_round(image, arguments.step, arguments.repeats, time.thread_time)
    labels, truth = labels.astype(np.int64), truth.astype(np.int64)
    names, sizes, numbers = number_labels(labels)
    channel = image.astype(np.float16)
    coarse = np.ascontiguousarray(channel[::FACTOR, ::FACTOR, ::FACTOR])
    factors = (FACTOR, FACTOR, FACTOR)
    runs, coarse_runs = find_lines(numbers), find_runs(numbers, len(names), (0, 0, 0), factors)
    work = {
        "voxel round": None,
        "votes": partial(count_pairs, labels, truth),
        "pooling, once": lambda: find_lines(number_labels(labels)[2]),
        "pooling, each channel": partial(pool_rows, names, sizes, runs, [channel]),
        f"pooling at 1/{FACTOR}, once": lambda: find_runs(number_labels(labels)[2], len(names), (0, 0, 0), factors),
        f"pooling at 1/{FACTOR}, each channel": partial(pool_rows, names, sizes, coarse_runs, [coarse]),
        "textures": partial(count_textures, labels, [image], Box((0, 0, 0), triple(image.shape)), [(0.0, 1000.0)]),
    }
    print(f"{'':<30}{'ns per voxel':>14}{'rounds':>8}")
    for name, function in work.items():
        seconds = sweep if function is None else best_cpu(function, arguments.repeats)
        print(f"{name:<30}{seconds * 1e9 / image.size:>14.2f}{seconds / sweep:>8.2f}")


if __name__ == "__main__":
    main()
