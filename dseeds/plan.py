"""How large a region may be: the memory of a task, before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from dask.utils import parse_bytes

from dseeds.cluster import READ_AT_ONCE, Capacity
from dseeds.lattice import Box, Lattice, Regions, Triple, Window, triple
from dseeds.rounds import histogram_dtype, schedule
from dseeds.store import UNIT_CHUNK

# What a worker holds before its first task: the interpreter, the libraries, the compiled kernels.
WORKER_BYTES = 350 << 20
# The share of a worker's memory that tasks are planned for; Dask pauses a worker at 80 %.
SHARE = 0.75
# Longer regions waste less on halos, shorter ones spread better; in voxels along an axis.
EXTENTS = (512, 448, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2)
SPREAD_EXTENT = 128
REGIONS_PER_WORKER = 4


def task_bytes(lattice: Lattice, cells: Triple, itemsize: int, chunks: Triple | None = None) -> int:
    """Project the peak memory of the largest task.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    cells : tuple of int
        Cells per region along (z, y, x).
    itemsize : int
        Bytes per voxel of the source.
    chunks : tuple of int, optional
        The source's chunks along (z, y, x), which are decoded whole.

    Returns
    -------
    int
        Bytes, without those of the worker itself.
    """
    regions = Regions(lattice, cells)
    # The regions of an axis differ in their halos at its ends, and the last ones in their length.
    telling = [sorted({0, min(1, n - 1), max(0, n - 2), n - 1}) for n in regions.counts]
    boxes = [regions.box_at(triple(index)) for index in itertools.product(*telling)]
    return max(_region_bytes(regions, box, itemsize, chunks) for box in boxes)


def _region_bytes(regions: Regions, region: Box, itemsize: int, chunks: Triple | None) -> int:
    lattice = regions.lattice
    voxels = lattice.grids[-1]
    box = voxels.of_cells(region)
    label = lattice.label_dtype.itemsize
    decoded = 0
    if chunks is not None:
        touched = math.prod(-(-n // c) + 1 for n, c in zip(box.shape, chunks, strict=True))
        decoded = min(READ_AT_ONCE, touched) * math.prod(map(min, chunks, lattice.shape)) * itemsize
    shell = math.prod(n + 2 for n in region.shape) * 64 * 4
    merging = 30 * (shell - region.size * 64 * 4) + region.size * 64 * 4 * 3
    # The source as read and as decoded, bins and the histograms of the finest blocks; labels and their codes.
    peaks = [box.size * (2 * itemsize + 2 + 4) + decoded, box.size * (2 + 4 * label), merging]
    for round_ in {(r.level, r.halo, r.bins): r for r in schedule(lattice)}.values():
        grid = lattice.grids[round_.level]
        window = Window.around(lattice, grid, region, round_.halo)
        # Labels as read, without their marks, as a window; the window of states; the core's codes, twice.
        units = window.box.size * (1 + 1 + 1 + 1) + window.core.size * 2
        if round_.level < len(lattice.grids) - 2:
            # Histograms as decoded and as read.
            values = window.box.size * 32 * histogram_dtype(grid).itemsize * 2
        else:
            # Bins as read, as a window.
            values = grid.voxels_of(window.box).size * 2
        if round_.weight is None:
            # At the end of the block rounds the region's voxels are counted: bins as read and as a window, labels.
            values = max(values, box.size * 3)
        # Statistics as read, as decoded, their table, their change by one thread and by all; this split.
        statistics = window.cells.size * 64 * (4 + 4 + 2 + 4 + 4) + shell * 3
        peaks.append(units + values + statistics)
    return max(peaks)


def choose_region(
    lattice: Lattice,
    itemsize: int,
    has: Capacity,
    *,
    region: int | Sequence[int] | None = None,
    chunks: Triple | None = None,
) -> Triple:
    """Choose the cells per region: as many as the workers' memory allows, but enough regions for all workers.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    itemsize : int
        Bytes per voxel of the source.
    has : Capacity
        What the workers can take.
    region : int or sequence of int, optional
        The user's choice in voxels, along all axes or along (z, y, x); rounded up to whole cells.
    chunks : tuple of int, optional
        The source's chunks along (z, y, x).

    Returns
    -------
    tuple of int
        Cells per region along (z, y, x).

    Raises
    ------
    ValueError
        If `region` is not positive, or it, or even the smallest region, does not fit the memory.
    """
    if region is None:
        candidates = [_cells(lattice, extent) for extent in EXTENTS]
    else:
        numbers: Any = region
        extents = list(numbers) if isinstance(numbers, Iterable) else [numbers] * 3
        if len(extents) != 3 or not all(_is_whole(n) and n >= 1 for n in extents):
            raise ValueError(f"region must be a number of voxels, or three of them for (z, y, x), got {region!r}.")
        pairs = zip(lattice.cells, extents, lattice.step, strict=True)
        candidates = [triple([min(n, -(-int(e) // s)) for n, e, s in pairs])]
    needed, fitting = 0, None
    for cells in candidates:
        needed = worker_bytes(task_bytes(lattice, cells, itemsize, chunks), has.threads_per_worker)
        spread = len(Regions(lattice, cells)) >= REGIONS_PER_WORKER * has.threads
        small = max(k * s for k, s in zip(cells, lattice.step, strict=True)) <= SPREAD_EXTENT
        fitting = cells if needed <= has.memory else None
        if fitting and (spread or small):
            break
    if fitting:
        return fitting
    shape = " x ".join(str(k * s) for k, s in zip(candidates[-1], lattice.step, strict=True))
    raise ValueError(
        f"regions of {shape} voxels (z, y, x) need workers of {_mib(needed)}, but these have {_mib(has.memory)}: "
        f"give each more memory (--memory), if need be with fewer of them (--workers), or take "
        f"{'a smaller step' if region is None else 'smaller regions'}; chunks of the source count too."
    )


def worker_bytes(task: int, threads: int) -> int:
    """Project the memory that a worker needs for a task of so many bytes in each of its threads."""
    return int((WORKER_BYTES + task * threads) / SHARE)


def memory_bytes(memory: int | str) -> int:
    """Read an amount of memory.

    Raises
    ------
    ValueError
        If it is no positive number of bytes.

    Examples
    --------
    >>> memory_bytes("2GiB")
    2147483648
    """
    try:
        number = int(memory) if _is_whole(memory) else int(parse_bytes(memory)) * bool(memory)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        number = 0
    if number <= 0:
        raise ValueError(f"memory must be a number of bytes such as 2GiB, got {memory!r}.")
    return number


def _cells(lattice: Lattice, extent: int) -> Triple:
    """Give cells per region for an extent in voxels: whole chunks of about 64 voxels, and not more than there are."""
    counts = []
    for n, s in zip(lattice.cells, lattice.step, strict=True):
        chunk = min(n, max(1, round(min(UNIT_CHUNK, extent) / s)))
        counts.append(min(chunk * max(1, extent // (chunk * s)), n))
    return triple(counts)


def _is_whole(number: Any) -> bool:
    return isinstance(number, Real) and float(number).is_integer()


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
