"""Supervoxels that stop at boundaries: a boundary map is flooded, level by level, from one seed in each cell.

Nothing is summed over supervoxels and no label ever changes, so a flood needs only the voxels around a window, one for
each sweep. See docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Lattice, Triple, Window, per_axis, triple
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.flood import (
    BRIGHT,
    CELL_UNIT,
    DARK,
    GRADIENT,
    MAP,
    POSITION,
    BoundaryMap,
    FloodSweep,
    count_unlabelled,
    find_seeds,
    settle,
    start_flood,
    sweep_flood,
)
from dseeds.seeds.kernels.layout import WindowGeometry, new_window, window_geometry
from dseeds.seeds.kernels.simd import NOTHING
from dseeds.seeds.schedule import OWN_MAP, FloodRound, flood_schedule

# The kinds of boundary maps, and what the kernels call them.
KINDS = {OWN_MAP: MAP, "image": BRIGHT, "dark": DARK, "gradient": GRADIENT}
# Those that are made from the image.
DERIVED_KINDS = tuple(kind for kind in KINDS if kind != OWN_MAP)
# Planes that a sweep does in one go.
WAVE = 16


class ConstantMap(ValueError):
    """A boundary map shows no boundary."""


def check_boundaries(boundaries: Any, compactness: float) -> str | None:
    """Return the kind of a boundary map, a key of `KINDS`; None stays None.

    Raise a ValueError if supervoxels are to be compact as well.
    """
    if boundaries is None:
        return None
    if compactness:
        raise ValueError(
            f"compactness is {compactness}, but supervoxels that stop at boundaries have none: leave out compactness "
            "or boundaries."
        )
    return boundaries if isinstance(boundaries, str) and boundaries in DERIVED_KINDS else OWN_MAP


def check_map_window(limits: Limits) -> None:
    """Raise a `ConstantMap` if the percentiles of a boundary map leave nothing of it."""
    low, high = limits
    if not low < high:
        raise ConstantMap(
            f"the boundary map is {low:g} everywhere, or everywhere inside the mask, so it shows no boundary: pass "
            "another map."
        )


def boundary_map(kind: str, weights: Sequence[int]) -> BoundaryMap:
    """Describe a boundary map to the kernels."""
    return BoundaryMap(KINDS[kind], np.array(weights, np.int64))


def seed_table(
    boundaries: BoundaryMap, lattice: Lattice, window: Window, bins: NDArray[np.uint8]
) -> NDArray[np.uint32]:
    """Return the seeds of ``window.cells``, uint32 (cells, 3 + channels): zeros for cells outside the core.

    The core is made of whole cells, and `bins` are a window for each channel.
    """
    seeds = np.zeros((*window.cells.shape, POSITION + len(boundaries.weights)), np.uint32)
    own = window.grid.cells_of(window.core)
    edges = per_axis(
        np.searchsorted(cells, np.arange(lo, hi + 1)) - origin
        for cells, lo, hi, origin in zip(window.grid.cells, own.lo, own.hi, window.box.lo, strict=True)
    )
    table = np.zeros((*own.shape, seeds.shape[3]), np.uint32)
    find_seeds(bins, boundaries, edges, window.box.lo, _distance_units(lattice), table)
    seeds[own.relative_to(window.cells.lo).slices] = table
    return seeds.reshape(-1, seeds.shape[3])


def begin_flood(
    boundaries: BoundaryMap,
    window: Window,
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    seeds: NDArray[np.uint32],
) -> None:
    """Write the levels of the voxels of a window, and the labels of its seeds, into a window of labels."""
    start_flood(bins, boundaries, window_geometry(window), seeds, labels)


def flood_window(
    round_: FloodRound,
    boundaries: BoundaryMap,
    lattice: Lattice,
    window: Window,
    bins: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    seeds: NDArray[np.uint32],
    *,
    threads: int = 1,
) -> int:
    """Do the sweeps of a round on one window, in place, and return the number of voxels that took a label.

    Labels are exact in the window's core, and do not depend on the number of threads. `bins` and `labels` are windows
    of `kernels.layout`, the latter begun by `begin_flood`; `seeds` are those of the window's cells.
    """
    geometry = window_geometry(window)
    remaining = np.zeros(window.box.shape[:2], np.int32)
    count_unlabelled(labels, remaining)
    units = _distance_units(lattice)
    kernel = partial(sweep_flood, bins, labels, remaining, seeds, boundaries, units, geometry)
    taken = 0
    with ThreadPoolExecutor(threads) as pool:
        for sweep in _sweeps(round_, geometry, WAVE if threads == 1 else lattice.shape[0]):
            taken += sum(pool.map(kernel, _shares(sweep, threads))) if threads > 1 else kernel(sweep)
    settle(labels, geometry, round_.is_last)
    return taken


def _distance_units(lattice: Lattice) -> Triple:
    """Return the costs of a squared distance of one voxel along each axis: cells count as cubes."""
    return triple(CELL_UNIT // s**2 for s in lattice.step)


def _sweeps(round_: FloodRound, geometry: WindowGeometry, thickness: int) -> Iterator[FloodSweep]:
    """Yield the sweeps of a round, a few planes each, so that all sweeps use the planes in the cache.

    A sweep of a plane comes after the sweep before it at the planes on both sides, so each follows one plane behind.
    """
    nz = len(geometry.homes[0])
    for first in range(0, nz + round_.sweeps, thickness):
        for k in range(round_.sweeps):
            margin = round_.sweeps - 1 - k
            begin = max(0, geometry.core_lo[0] - margin, first - k)
            end = min(nz, geometry.core_hi[0] + margin, first + thickness - k)
            if begin < end:
                number = round_.first + k
                yield FloodSweep(number, round_.highest(number), margin, begin, end)


def _shares(sweep: FloodSweep, count: int) -> list[FloodSweep]:
    """Share the planes of a sweep among threads."""
    cuts = [sweep.begin + (sweep.end - sweep.begin) * k // count for k in range(count + 1)]
    return [sweep._replace(begin=begin, end=end) for begin, end in pairwise(cuts)]


def flood_volume(
    boundaries: BoundaryMap,
    lattice: Lattice,
    bins: NDArray[np.uint8],
    *,
    threads: int = 1,
    on_round: Callable[[], object] = lambda: None,
) -> NDArray[np.uint8]:
    """Flood a volume in memory, and return the label codes, a window of `kernels.layout`; so is each channel's bins.

    `on_round` is called after every round.
    """
    window = Window.around(lattice, lattice.grids[-1], Box((0, 0, 0), lattice.cells), 0)
    labels = new_window(lattice.shape, NOTHING)
    seeds = seed_table(boundaries, lattice, window, bins)
    begin_flood(boundaries, window, bins, labels, seeds)
    for round_ in flood_schedule(lattice, len(boundaries.weights)):
        flood_window(round_, boundaries, lattice, window, bins, labels, seeds, threads=threads)
        on_round()
    return labels
