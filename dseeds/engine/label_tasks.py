"""The tasks of a region that turn the codes of the last round into labels: one id per supervoxel of the whole volume.

Without a mask, a supervoxel's id is that of its cell. A mask may split it into parts, each of which is a supervoxel of
its own: the parts of each cell are counted, and numbered in the order of the cells. If small supervoxels are joined to
neighbours, or all to those of coarser levels, these numbers are stored, the region adjacency graph is built from them,
and a table maps each number to its label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.engine.job import Job, Rested
from dseeds.engine.scratch import bins_name, codes_name, table_name
from dseeds.seeds.contact_graph import ContactGraph, build_contact_graph
from dseeds.seeds.kernels.label_codes import pack_labels, seed_labels, write_global_labels
from dseeds.seeds.kernels.layout import unpack_box
from dseeds.seeds.kernels.mask_components import count_components, number_components
from dseeds.seeds.kernels.simd import NOTHING
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.storage.zarr_arrays import ScratchCorrupted, count_bytes


def count_parts(job: Job, number: int, _turn: int, rested: Rested) -> str:
    """Write the number of parts into which the mask splits each of a region's supervoxels."""
    region = job.regions.box(number)
    window = region.grow(1, within=job.lattice.cells)
    box = job.lattice.grids[-1].units_of(window)
    counts = count_components(_codes(job, box, rested), job.lattice.grids[-1].homes_of(box), region)
    job.store.write("parts", region, counts)
    return "counted"


def number_region(job: Job, number: int, _turn: int, rested: Rested) -> str:
    """Write the numbers of a region's voxels: their ids before any supervoxels are joined."""
    job.store.write("numbers", job.voxel_box(number), _numbers(job, number, rested))
    return "numbered"


def write_graph(job: Job, number: int, _turn: int, _rested: Rested) -> str:
    """Write a region's part of the region adjacency graph."""
    box = job.voxel_box(number)
    # A face between two regions is counted by the lower one.
    window = box.grow(1, within=job.shape)
    window = Box(box.lo, window.hi)
    values = np.stack([job.store.read(bins_name(channel), box) for channel in range(job.channels)])
    graph = build_contact_graph(job.read_units("numbers", window), box.relative_to(box.lo), values)
    content = graph.to_bytes()
    job.store.place.write(f"graph/{number}", content)
    count_bytes(written=len(content))
    return "tabulated"


def read_graph(job: Job, number: int) -> ContactGraph:
    """Read a region's part of the region adjacency graph; raise `ScratchCorrupted` if it is missing or damaged."""
    content = job.store.place.read(f"graph/{number}")
    try:
        if content is None:
            raise ValueError("it is missing")
        graph = ContactGraph.from_bytes(content)
    except ValueError as error:
        raise ScratchCorrupted("graph", job.regions.around(number, 0), str(error)) from error
    count_bytes(read=len(content))
    return graph


def label_region(job: Job, number: int, _turn: int, rested: Rested) -> str:
    """Write a region's labels on all levels."""
    box = job.voxel_box(number)
    if not job.has_joins:
        job.labels[0].write(box, _numbers(job, number, rested))
        return "labelled"
    labels: NDArray[Any] = job.store.read("numbers", box)
    for level, target in enumerate(job.labels):
        labels = job.look_up(table_name(level), labels)
        target.write(box, labels)
    return "labelled"


def _numbers(job: Job, number: int, rested: Rested) -> NDArray[Any]:
    """Return the number of each voxel of a region."""
    grid, box = job.lattice.grids[-1], job.voxel_box(number)
    out = np.empty(box.shape, job.lattice.label_dtype)
    if not job.masked:
        homes = grid.homes_of(box)
        write_global_labels(pack_labels(_codes(job, box, rested)), homes, job.lattice.cells, out)
        return out
    # Owners lie in the cells around a region, and their supervoxels reach one cell further.
    owners = job.regions.box(number).grow(1, within=job.lattice.cells)
    window = grid.units_of(owners.grow(1, within=job.lattice.cells))
    offsets = job.read_cells("offsets", owners)
    number_components(
        _codes(job, window, rested), grid.homes_of(window), owners, offsets, box.relative_to(window.lo), out
    )
    return out


def _codes(job: Job, box: Box, rested: Rested) -> NDArray[np.uint8]:
    """Read the codes after the last round in a box of voxels; without rounds, each cell has its own voxels."""
    if job.schedule:
        return job.read_units(codes_name(len(job.schedule) - 1), box, fill=NOTHING, rested=rested)
    out = np.empty(box.shape, np.uint8)
    unpack_box(seed_labels(job.lattice.grids[-1].homes_of(box)), (0, 0, 0), out)
    if job.masked:
        out[job.read_units(bins_name(0), box, fill=MASKED) == MASKED] = NOTHING
    return out
