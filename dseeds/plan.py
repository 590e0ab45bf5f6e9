"""How large a region may be: the memory of a task, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dask.utils import parse_bytes

from dseeds.cluster import Capacity
from dseeds.lattice import Lattice, Regions, Triple, Window, triple
from dseeds.rounds import histogram_dtype, schedule
from dseeds.store import UNIT_CHUNK

# What a worker holds before its first task: the interpreter, the libraries, the compiled kernels.
WORKER_BYTES = 350 << 20
# The share of a worker's memory that tasks are planned for; Dask pauses a worker at 80 %.
SHARE = 0.6
# Longer regions waste less on halos, shorter ones spread better; in voxels along an axis.
EXTENTS = (512, 448, 384, 320, 256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2)
SPREAD_EXTENT = 128
REGIONS_PER_WORKER = 4


def task_bytes(lattice: Lattice, cells: Triple, itemsize: int) -> int:
    """Project the peak memory of the largest task.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    cells : tuple of int
        Cells per region along (z, y, x).
    itemsize : int
        Bytes per voxel of the source.

    Returns
    -------
    int
        Bytes, without those of the worker itself.
    """
    regions = Regions(lattice, cells)
    # A region in the middle has the widest halo.
    region = regions.box(int(len(regions) // 2))
    voxels = lattice.grids[-1]
    core = voxels.of_cells(region).size
    label = lattice.label_dtype.itemsize
    # The source as read and as decoded; bins and the histograms of the finest blocks.
    peaks = [core * (2 * itemsize + 2 + 4), core * (2 + 2 * label)]
    for round_ in {(r.level, r.halo, r.bins): r for r in schedule(lattice)}.values():
        grid = lattice.grids[round_.level]
        window = Window.around(lattice, grid, region, round_.halo)
        # Labels as read, as int32, a copy of these; bits; and what came from the round before.
        units = window.box.size * (1 + 4 + 4 + 1)
        if grid is voxels:
            values = window.box.size * 2
        else:
            values = window.box.size * 32 * histogram_dtype(grid).itemsize * 2
            if round_.level == len(lattice.grids) - 2:
                values += grid.voxels_of(window.box).size
            # At the end of the block rounds the region's voxels are counted.
            values = max(values, core * 8)
        # Statistics as read, as decoded, their table; those for the next round, split.
        statistics = window.cells.size * 64 * (4 + 4 + 4) + math.prod(n + 2 for n in cells) * 64 * 4 * 3
        merging = 30 * (math.prod(n + 2 for n in cells) - math.prod(cells)) * 64 * 4 + math.prod(cells) * 64 * 4 * 3
        peaks += [units + values + statistics, merging]
    return max(peaks)


def choose_region(
    lattice: Lattice, itemsize: int, has: Capacity, *, region: int | Sequence[int] | None = None
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
        extents = [region] * 3 if isinstance(region, int) else list(region)
        if len(extents) != 3 or any(int(n) != n or n < 1 for n in extents):
            raise ValueError(f"region must be a number of voxels, or three of them for (z, y, x), got {region!r}.")
        pairs = zip(lattice.cells, extents, lattice.step, strict=True)
        candidates = [triple([min(n, -(-int(e) // s)) for n, e, s in pairs])]
    needed = 0
    for cells in candidates:
        needed = worker_bytes(task_bytes(lattice, cells, itemsize), has.threads_per_worker)
        spread = len(Regions(lattice, cells)) >= REGIONS_PER_WORKER * has.threads
        small = max(k * s for k, s in zip(cells, lattice.step, strict=True)) <= SPREAD_EXTENT
        if needed <= has.memory and (spread or small or region is not None):
            return cells
    shape = " x ".join(str(k * s) for k, s in zip(candidates[-1], lattice.step, strict=True))
    raise ValueError(
        f"regions of {shape} voxels (z, y, x) need workers of {_mib(needed)}, but these have {_mib(has.memory)}: "
        f"give them more memory (--memory), or take {'a smaller step' if region is None else 'smaller regions'}."
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
        number = int(parse_bytes(memory))
    except (ValueError, KeyError, TypeError):
        number = 0
    if number <= 0:
        raise ValueError(f"memory must be a number of bytes such as 2GiB, got {memory!r}.")
    return number


def _cells(lattice: Lattice, extent: int) -> Triple:
    """Give cells per region for an extent in voxels: whole chunks of about 64 voxels, and not more than there are."""
    counts = []
    for n, s in zip(lattice.cells, lattice.step, strict=True):
        chunk = min(n, max(1, round(min(UNIT_CHUNK, extent) / s)))
        counts.append(min(chunk * max(1, extent // (chunk * s)), -(-n // chunk) * chunk))
    return triple(counts)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
