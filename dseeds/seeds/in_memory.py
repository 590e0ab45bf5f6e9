"""All steps in memory, on one window as large as the volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Grid, Lattice, Triple, Window
from dseeds.seeds import rounds
from dseeds.seeds.binning import quantise_window
from dseeds.seeds.block_histograms import hide_outside, stored_histograms
from dseeds.seeds.contact_graph import ContactGraph, build_contact_graph
from dseeds.seeds.contrast import new_counts
from dseeds.seeds.flood import boundary_map, check_map_window, flood_volume
from dseeds.seeds.hierarchy import coarser_level
from dseeds.seeds.histograms import count_grey_levels, equalised_tables, foreground_thresholds
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.label_codes import refine_labels, seed_labels, write_global_labels
from dseeds.seeds.kernels.layout import new_window, unpack_box
from dseeds.seeds.kernels.mask_components import count_components, number_components
from dseeds.seeds.kernels.simd import OPEN
from dseeds.seeds.min_size import join_small_supervoxels
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.seeds.schedule import OWN_MAP, Round, schedule

LabelArray = NDArray[np.uint32]


@dataclass(frozen=True)
class CutSettings:
    """The checked parameters of a run.

    `windows` are None for the percentiles, which are in millionths of the voxels; `bins` are one of `KINDS_OF_BINS`;
    `auto_mask` is for a background masked out by Otsu's threshold. `boundaries` is a key of `flood.KINDS`; a map of its
    own follows the image's channels, without a window or weight. It is None for supervoxels that follow the intensities
    alone.
    """

    windows: tuple[Limits | None, ...]
    percentiles: tuple[int, int]
    bins: str
    auto_mask: bool
    weights: tuple[int, ...]
    compactness: float
    min_size: int
    levels: int
    boundaries: str | None = None

    def begin_search(self, dtypes: Sequence[np.dtype[Any]]) -> WindowSearch:
        """Return the search for the windows of channels of these dtypes, and for the knees of their bins.

        A flood takes the map's bins for its levels, which have equal widths. A mask by a threshold leaves out those
        many that a knee is for.
        """
        has_knees = self.bins == "auto" and self.boundaries is None and not self.auto_mask
        return WindowSearch(dtypes, self.windows, self.percentiles, has_knees)


class Found(NamedTuple):
    """What was found of the intensities of each channel."""

    windows: tuple[Limits, ...]
    # The knees of bins, see `OrderStatistics.knee`.
    knees: tuple[float | None, ...]
    # The highest grey level of the background, if that is masked out.
    thresholds: tuple[int, ...] | None


class CutResult(NamedTuple):
    """The supervoxels of a volume in memory: labels 1..N, and 0 where masked out.

    For each coarser level, `parents` holds the parent of each supervoxel of the level before it, shape (labels + 1,); 0
    for label 0.
    """

    labels: LabelArray
    parents: list[LabelArray]
    found: Found
    # The voxels in each bin, see `dseeds.seeds.contrast`.
    counts: NDArray[np.int64]


def cut_in_memory(
    values: Sequence[NDArray[Any]],
    lattice: Lattice,
    settings: CutSettings,
    *,
    inside: NDArray[np.bool_] | None = None,
    threads: int = 1,
    on_round: Callable[[], object] = lambda: None,
) -> CutResult:
    """Cut a volume into supervoxels; raise `NoFiniteValues` if no voxel remains.

    The channels have any integer or float dtype and memory order, and the lattice fewer than 2^31 cells. The mask,
    `inside`, is True where a voxel belongs to the image. The labels do not depend on the number of threads. `on_round`
    is called after every round.
    """
    counts = new_counts(len(values))
    bins, found, masked = _quantise(values, settings, inside, counts)
    # In a constant image no move improves anything.
    has_contrast = any(low < high for low, high in found.windows)
    if settings.boundaries is not None and has_contrast:
        boundaries = boundary_map(settings.boundaries, settings.weights)
        codes = flood_volume(boundaries, lattice, bins, threads=threads, on_round=on_round)
    else:
        codes = run_rounds(
            lattice,
            bins,
            schedule(lattice, len(values)) if has_contrast else (),
            compactness=settings.compactness,
            threads=threads,
            weights=settings.weights,
            masked=masked,
            on_round=on_round,
        )
    needs_graph = settings.min_size > 1 or settings.levels > 0
    channels = bins[: len(settings.weights)]
    unpacked = np.stack([_unpacked(window, lattice.shape) for window in channels]) if needs_graph else None
    del channels
    del bins
    labels, cells = _number(lattice, codes, masked)
    if unpacked is None:
        return CutResult(labels, [], found, counts)
    graph = build_contact_graph(labels, Box((0, 0, 0), lattice.shape), unpacked)
    joined = join_small_supervoxels(len(cells), lambda: [graph], settings.min_size, settings.weights)
    parents = _parents(joined.relabel_graph(graph), cells[joined.kept_ids - 1], settings)
    return CutResult(joined.relabel(labels), list(parents), found, counts)


def _quantise(
    values: Sequence[NDArray[Any]],
    settings: CutSettings,
    inside: NDArray[np.bool_] | None,
    bin_counts: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], Found, bool]:
    """Return the windows of bins, what was found of the intensities, and whether voxels are masked."""
    if inside is not None and not inside.any():
        raise NoFiniteValues
    search = settings.begin_search([channel.dtype for channel in values])
    search.finish(values, inside)
    windows = search.windows()
    if settings.boundaries == OWN_MAP:
        check_map_window(windows[-1])
    tables = thresholds = None
    if settings.bins == "equalised" or settings.auto_mask:
        counts = count_grey_levels(values, windows, inside)
        tables = equalised_tables(counts, len(settings.weights)) if settings.bins == "equalised" else None
        if settings.auto_mask:
            thresholds = foreground_thresholds(counts, len(settings.weights))
    bins = new_window(values[0].shape, 0, channels=len(values))
    remaining = quantise_window(
        values,
        windows,
        bins,
        inside=inside,
        knees=search.knees(),
        tables=tables,
        thresholds=thresholds,
        counts=bin_counts,
    )
    if remaining == "nothing":
        raise NoFiniteValues
    return bins, Found(windows, search.knees(), thresholds), remaining == "part"


def run_rounds(
    lattice: Lattice,
    bins: NDArray[np.uint8],
    schedule: tuple[Round, ...],
    *,
    compactness: float = 0.0,
    threads: int = 1,
    weights: Sequence[int] = (1,),
    masked: bool = False,
    on_round: Callable[[], object] = lambda: None,
) -> NDArray[np.uint8]:
    """Do all rounds on the whole volume, and return the label codes, a window of `kernels.layout`.

    `bins` is a window for each channel; `masked` says whether some bins are `MASKED`. See `rounds.sweep_window`.
    """
    everything = Box((0, 0, 0), lattice.cells)
    # The input of the rounds at each level: histograms, or bins for the two finest.
    values: list[NDArray[Any]] = [bins] * len(lattice.grids)
    for level, histograms in stored_histograms(lattice, bins, everything):
        values[level] = histograms
    level = 0 if schedule else len(lattice.grids) - 1
    grid: Grid = lattice.grids[level]
    labels = seed_labels(grid.cells)
    if masked:
        hide_outside(level, lattice, Box((0, 0, 0), grid.shape), values[level], labels)
    counts = np.zeros((0, 0), np.uint32)
    for level, rounds_of_level in itertools.groupby(schedule, key=lambda round_: round_.level):
        finer: Grid = lattice.grids[level]
        if finer is not grid:
            labels = refine_labels(labels, finer.parents(grid))
            grid = finer
            if masked:
                hide_outside(level, lattice, Box((0, 0, 0), grid.shape), values[level], labels)
        state = new_window(grid.shape, OPEN)
        for round_ in rounds_of_level:
            if round_.weight is not None:
                state[:] = OPEN
            window = Window.around(lattice, grid, everything, round_.halo)
            if counts.shape[1] != round_.bins:
                counts = rounds.count_statistics(round_, lattice, window, values[level], labels)
            _, change = rounds.sweep_window(
                round_,
                lattice,
                window,
                values[level],
                labels,
                state,
                counts,
                compactness=compactness,
                threads=threads,
                weights=weights,
            )
            counts += change
            on_round()
        # Frees the histograms.
        values[level] = bins
    return labels


def _number(lattice: Lattice, codes: NDArray[np.uint8], masked: bool) -> tuple[LabelArray, NDArray[np.int64]]:
    """Turn label codes into labels, and return them with the cell (z, y, x) of each label."""
    labels = np.empty(lattice.shape, np.uint32)
    homes = lattice.grids[-1].cells
    counts = np.ones(lattice.cells, np.uint32)
    if masked:
        everything, unpacked = Box((0, 0, 0), lattice.cells), _unpacked(codes, lattice.shape)
        counts = count_components(unpacked, homes, everything)
        offsets = (np.cumsum(counts).reshape(counts.shape) - counts).astype(np.uint64)
        number_components(unpacked, homes, everything, offsets, Box((0, 0, 0), lattice.shape), labels)
    else:
        write_global_labels(codes, homes, lattice.cells, labels)
    cells = np.repeat(np.arange(lattice.size), counts.reshape(-1))
    return labels, np.stack(np.unravel_index(cells, lattice.cells), axis=1)


def _parents(graph: ContactGraph, cells: NDArray[np.int64], settings: CutSettings) -> Iterator[LabelArray]:
    for _ in range(settings.levels):
        coarser = coarser_level(graph, cells, settings.weights)
        yield coarser.parents.astype(np.uint32)
        graph, cells = coarser.graph, coarser.cells


def _unpacked(window: NDArray[np.uint8], shape: Triple) -> NDArray[np.uint8]:
    """Return all units of a window as an array (z, y, x)."""
    units = np.empty(shape, np.uint8)
    unpack_box(window, (0, 0, 0), units)
    return units
