"""The tasks of a region that turn the codes of the last round into labels: one id per supervoxel of the whole volume.

Without a mask, a supervoxel's id is that of its cell. A mask may split it into parts, each of which is a supervoxel of
its own: the parts of each cell are counted, and numbered in the order of the cells. If small supervoxels are joined to
neighbours, or all to those of coarser levels, the region adjacency graph is built from these numbers, and a table maps
each number to its label.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box
from dseeds.engine.job import Job, RegionInput
from dseeds.engine.messages import Part
from dseeds.engine.region_state import RegionState, add_halo, load_state, quantise_region, region_bins, region_codes
from dseeds.engine.residents import residents
from dseeds.engine.scratch import table_name
from dseeds.io.pyramid import reduce_voxels
from dseeds.seeds.contact_graph import ContactGraph, build_contact_graph
from dseeds.seeds.kernels.label_codes import pack_labels, seed_labels, write_global_labels
from dseeds.seeds.kernels.layout import unpack_box
from dseeds.seeds.kernels.mask_components import count_components, number_components
from dseeds.seeds.kernels.simd import NOTHING
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.zarr_arrays import ScratchCorrupted, count_bytes


def count_parts(job: Job, number: int, _turn: int, task_input: RegionInput) -> str:
    """Write the number of parts into which the mask splits each of a region's supervoxels."""
    codes = _load_codes(job, number, task_input)
    region = job.regions.box(number)
    grid = job.lattice.grids[-1]
    box = grid.units_of(region.grow(1, within=job.lattice.cells))
    counts = count_components(_cropped(codes, box), grid.homes_of(box), region)
    job.store.write("parts", region, counts)
    return "counted"


def write_graph(job: Job, number: int, _turn: int, task_input: RegionInput) -> str:
    """Write a region's part of the region adjacency graph."""
    box = job.voxel_box(number)
    codes, values = _load_codes_and_bins(job, number, task_input)
    # A face between two regions is counted by the lower one.
    window = Box(box.lo, box.grow(1, within=job.shape).hi)
    # Without a boundary map of its own.
    channels = values[: len(job.weights)]
    graph = build_contact_graph(_numbers(job, codes, window), box.relative_to(box.lo), channels)
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


def label_region(job: Job, number: int, _turn: int, task_input: RegionInput) -> str:
    """Write a region's labels on all levels."""
    box = job.voxel_box(number)
    codes = _load_codes(job, number, task_input, is_last=True)
    labels = _numbers(job, codes, box)
    for level in range(len(job.labels)):
        if job.has_joins:
            labels = job.look_up(table_name(level), labels)
        _write_labels(job, level, box, labels)
    return "labelled"


def _write_labels(job: Job, level: int, box: Box, labels: NDArray[Any]) -> None:
    """Write a region's labels on a level, and the first levels of their pyramid."""
    for number, (target, own) in enumerate(_targets(job, level, box)):
        if number:
            finer, labels = labels, np.empty(own.shape, labels.dtype)
            reduce_voxels(finer, job.pyramid[number - 1].factors, job.pyramid_method, labels)
        target.write(own, labels)


def has_labels(job: Job, number: int) -> bool:
    """Return whether a region's labels on all levels, and those of their pyramids, exist and can be read."""
    levels, box = range(len(job.labels)), job.voxel_box(number)
    return all(target.is_complete(own) for level in levels for target, own in _targets(job, level, box))


def _targets(job: Job, level: int, box: Box) -> Iterator[tuple[LabelGroup, Box]]:
    """Yield the arrays into which a region writes its labels on a level, the finest first, and its box in each."""
    yield job.labels[level], box
    for number, coarser in enumerate(job.pyramid, 1):
        box = coarser.coarsen(box)
        # The last block may be left out where it is not whole.
        if not box.size:
            return
        yield job.labels[level].coarser(number), box


@contextmanager
def _held_state(
    job: Job, number: int, task_input: RegionInput, *, is_last: bool = False
) -> Iterator[RegionState | None]:
    """Yield the state of a region after the last round, and keep it for the next task if there is one.

    Where neither rounds nor a mask have changed anything, there is no state.
    """
    history = task_input.history
    last = history.last_turn(number) if job.schedule else -1
    state = residents.take(job.key, number, last)
    if job.schedule:
        state = load_state(job, number, last, history, state)
    elif job.masked:
        if state is None:
            state, _ = quantise_region(job, number)
        assert state is not None
        if not state.has_halo:
            add_halo(job, state, history)
    yield state
    if state is not None and not is_last:
        residents.keep(job.key, state, task_input.room)


def _load_codes(job: Job, number: int, task_input: RegionInput, *, is_last: bool = False) -> Part:
    """Return the codes around a region, without holding on to its state."""
    with _held_state(job, number, task_input, is_last=is_last) as state:
        return _codes_around(job, state, number, task_input)


def _load_codes_and_bins(job: Job, number: int, task_input: RegionInput) -> tuple[Part, NDArray[np.uint8]]:
    """Return the codes around a region and the bins of its voxels, without holding on to its state."""
    with _held_state(job, number, task_input) as state:
        codes = _codes_around(job, state, number, task_input)
        binned = state or quantise_region(job, number, from_turn=len(job.schedule))[0]
        assert binned is not None
        return codes, region_bins(job, binned)


def _codes_around(job: Job, state: RegionState | None, number: int, task_input: RegionInput) -> Part:
    """Return the codes after the last round that a region's labels depend on; without rounds, those of the cells."""
    box = job.exchange.labelled_voxels(number) if job.exchange.label_reach else job.voxel_box(number)
    if state is not None and job.schedule:
        return region_codes(job, state, box, task_input.history)
    codes = np.empty(box.shape, np.uint8)
    unpack_box(seed_labels(job.lattice.grids[-1].homes_of(box)), (0, 0, 0), codes)
    if state is not None and job.masked:
        bins = np.empty(box.shape, np.uint8)
        unpack_box(state.bins[0], (0, 0, 0), bins)
        codes[bins == MASKED] = NOTHING
    return Part(box.lo, codes)


def _cropped(codes: Part, box: Box) -> NDArray[np.uint8]:
    return np.ascontiguousarray(codes.values[box.relative_to(codes.lo).slices])


def _numbers(job: Job, codes: Part, box: Box) -> NDArray[Any]:
    """Return the numbers of a box of voxels: their ids before any supervoxels are joined."""
    grid, cells = job.lattice.grids[-1], job.lattice.cells
    out = np.empty(box.shape, job.lattice.label_dtype)
    if not job.masked:
        write_global_labels(pack_labels(_cropped(codes, box)), grid.homes_of(box), cells, out)
        return out
    # Owners lie in the cells around, and their supervoxels reach one cell further.
    owners = grid.cells_of(box).grow(1, within=cells)
    window = grid.units_of(owners.grow(1, within=cells))
    offsets = job.read_cells("offsets", owners)
    number_components(_cropped(codes, window), grid.homes_of(window), owners, offsets, box.relative_to(window.lo), out)
    return out
