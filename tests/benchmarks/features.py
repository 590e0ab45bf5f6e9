"""Time of table and graph against a voxel round: ``python tests/benchmarks/features.py [--size 160] [--repeats 5]``.

One thread, the best of several, nanoseconds per voxel: a round is the mean of the voxel rounds of `supervoxels` on the
same volume; table and graph are the quantising, the measuring, and putting what was measured together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import dseeds
from dseeds.core.geometry import Box, triple
from dseeds.measure.columns import Space, are_small_integers, count_features
from dseeds.measure.kernels.features import combine_contacts, combine_voxels
from dseeds.phantom import phantom
from dseeds.seeds import rounds
from dseeds.seeds.schedule import Round


def best(repeats: int, function: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls, after a first one."""
    function()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def voxel_round(image: np.ndarray, step: int, repeats: int) -> tuple[float, np.ndarray]:
    """Return the mean seconds of a voxel round, the fastest of several repeats of each, and the labels."""
    took: list[float] = []
    sweep = rounds.sweep_window

    def timed(round_: Round, *arguments: object, **more: object) -> object:
        start = time.perf_counter()
        done = sweep(round_, *arguments, **more)
        if round_.weight is not None:
            took.append(time.perf_counter() - start)
        return done

    rounds.sweep_window = timed
    try:
        for _ in range(1 + repeats):
            labels = dseeds.supervoxels(image, step=step, threads=1)
    finally:
        rounds.sweep_window = sweep
    each = np.reshape(took, (1 + repeats, -1))
    return float(each.min(axis=0).mean()), labels


def tabulate(labels: np.ndarray, image: np.ndarray, space: Space) -> None:
    """Compute table and graph of a region, without reading and writing."""
    voxels, contacts = count_features(labels, [image], Box((0, 0, 0), triple(labels.shape)), space)
    combine_voxels(voxels)
    combine_contacts(contacts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    image, _ = phantom((asked.size,) * 3)
    print(f"{'dtype':<10}{'step':>5}{'round':>8}{'table and graph':>17}{'ratio':>7}   (ns per voxel)")
    for dtype in (np.uint16, np.float32):
        volume = image.astype(dtype)
        space = Space((1.0, 1.0, 1.0), (), ((0.0, 1000.0),), are_small_integers([volume.dtype]))
        for step in (8, 16, 32):
            seconds, labels = voxel_round(volume, step, asked.repeats)
            ours = best(asked.repeats, partial(tabulate, labels, volume, space))
            each = [took * 1e9 / image.size for took in (seconds, ours)]
            print(f"{np.dtype(dtype).name:<10}{step:>5}{each[0]:>8.1f}{each[1]:>17.1f}{ours / seconds:>7.2f}")


if __name__ == "__main__":
    main()
