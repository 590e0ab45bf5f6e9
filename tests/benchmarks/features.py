"""Time of table and graph against a voxel round: ``python tests/benchmarks/features.py [--size 160] [--repeats 5]``.

One thread, the fastest of several runs, nanoseconds per voxel. A round is the mean of the voxel rounds of `supervoxels`
on the same volume; table and graph include quantising, counting and combining the counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import dseeds
from dseeds.benchmark.timing import best_time
from dseeds.core.geometry import Box, triple
from dseeds.measure.columns import Space, are_small_integers, count_features
from dseeds.measure.kernels.features import combine_contacts, combine_voxels
from dseeds.phantom import phantom
from dseeds.seeds import rounds
from dseeds.seeds.schedule import Round


def voxel_round(
    image: np.ndarray, step: int, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, np.ndarray]:
    """Return the mean seconds of a voxel round, the fastest of several repeats of each, and the labels."""
    seconds: list[float] = []
    sweep = rounds.sweep_window

    def timed(round_: Round, *arguments: object, **options: object) -> object:
        start = clock()
        result = sweep(round_, *arguments, **options)
        if round_.weight is not None:
            seconds.append(clock() - start)
        return result

    rounds.sweep_window = timed
    try:
        for _ in range(1 + repeats):
            labels = dseeds.supervoxels(image, step=step, threads=1)
    finally:
        rounds.sweep_window = sweep
    by_run = np.reshape(seconds, (1 + repeats, -1))
    return float(by_run.min(axis=0).mean()), labels


def tabulate(labels: np.ndarray, image: np.ndarray, space: Space) -> None:
    """Compute table and graph of a region, without reading and writing."""
    voxels, contacts = count_features(labels, [image], Box((0, 0, 0), triple(labels.shape)), space)
    combine_voxels(voxels)
    combine_contacts(contacts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    image, _ = phantom((arguments.size,) * 3)
    print(f"{'dtype':<10}{'step':>5}{'round':>8}{'table and graph':>17}{'ratio':>7}   (ns per voxel)")
    for dtype in (np.uint16, np.float32):
        volume = image.astype(dtype)
        space = Space((1.0, 1.0, 1.0), (), ((0.0, 1000.0),), are_small_integers([volume.dtype]))
        for step in (8, 16, 32):
            sweep, labels = voxel_round(volume, step, arguments.repeats)
            # Compile the kernels.
            tabulate(labels, volume, space)
            features = best_time(partial(tabulate, labels, volume, space), arguments.repeats)
            sweep_ns, features_ns = (seconds * 1e9 / image.size for seconds in (sweep, features))
            print(f"{np.dtype(dtype).name:<10}{step:>5}{sweep_ns:>8.1f}{features_ns:>17.1f}{features / sweep:>7.2f}")


if __name__ == "__main__":
    main()
