"""The tables for labels that need all regions at once: the first number of each cell, and the label of each number.

The process that closes a phase writes them. It holds the counts of one layer of regions or, if supervoxels are joined,
a few bytes per supervoxel and the graph around the small ones; for coarser levels, the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.engine.job import Job
from dseeds.engine.label_tasks import read_graph
from dseeds.engine.scratch import ID_BLOCK, TABLE_SHARD, table_layout, table_name
from dseeds.seeds.contact_graph import ContactGraph, combine_graphs
from dseeds.seeds.hierarchy import coarser_level
from dseeds.seeds.min_size import join_small_supervoxels


def write_offsets(job: Job) -> int:
    """Write the number of parts of supervoxels before each cell's own, and return the number of all parts."""
    (nz, ny, nx), total = job.lattice.cells, 0
    for begin in range(0, nz, job.region[0]):
        layer = Box((begin, 0, 0), (min(begin + job.region[0], nz), ny, nx))
        counts = job.read_cells("parts", layer).astype(np.uint64)
        before = np.cumsum(counts.reshape(-1)).reshape(counts.shape) - counts + np.uint64(total)
        job.store.write("offsets", layer, before)
        total += int(counts.sum())
    if total > np.iinfo(job.lattice.label_dtype).max:
        raise ValueError(f"the mask splits the volume into {total} parts, which is too many: use a smoother mask.")
    return total


def write_tables(job: Job, count: int, regions: Sequence[int]) -> list[int]:
    """Write the tables that map each of `count` numbers to its label when supervoxels are joined.

    Reads the graph of these regions. Returns the number of supervoxels after joining, and on each coarser level.
    """

    def graphs() -> Iterator[ContactGraph]:
        return (read_graph(job, number) for number in regions)

    joined = join_small_supervoxels(count, graphs, job.min_size, job.weights)
    _write_table(job, 0, count, joined.relabel)
    counts = [joined.count]
    if len(job.labels) > 1:
        graph = combine_graphs(joined.relabel_graph(part) for part in graphs())
        cells = _cells(job, joined.kept_ids)
    for level in range(1, len(job.labels)):
        above = coarser_level(graph, cells, job.weights)
        _write_table(job, level, counts[-1], above.parents.__getitem__)
        graph, cells = above.graph, above.cells
        counts.append(len(cells))
    return counts


def read_table(job: Job, level: int, count: int) -> NDArray[np.uint64]:
    """Return the entries of a table for the ids from 0 to `count`."""
    blocks = table_layout(count).shape[0]
    entries = job.store.read(table_name(level), Box((0, 0, 0), (blocks, 1, 1))).reshape(-1)
    return entries[: count + 1]


def _cells(job: Job, ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return the cells of numbers, shape (ids, 3)."""
    numbers = ids.astype(np.int64) - 1
    if job.masked:
        # The offsets would not do: none are stored for regions outside the mask.
        parts = job.read_cells("parts", Box((0, 0, 0), job.lattice.cells))
        numbers = np.searchsorted(np.cumsum(parts, dtype=np.int64), numbers, side="right")
    return np.stack(np.unravel_index(numbers, job.lattice.cells), axis=1).astype(np.int64)


def _write_table(job: Job, level: int, count: int, entries_of: Callable[[NDArray[np.int64]], NDArray[Any]]) -> None:
    """Write a table with the entries of the ids from 0 to `count`."""
    layout = table_layout(count)
    job.store.create({table_name(level): layout})
    for begin in range(0, layout.shape[0], TABLE_SHARD):
        end = min(begin + TABLE_SHARD, layout.shape[0])
        ids = np.arange(begin * ID_BLOCK, end * ID_BLOCK)
        values = np.zeros(ids.shape, np.uint64)
        is_id = ids <= count
        values[is_id] = entries_of(ids[is_id])
        job.store.write(table_name(level), Box((begin, 0, 0), (end, 1, 1)), values.reshape(-1, 1, 1, ID_BLOCK))
