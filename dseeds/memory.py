"""`supervoxels`: the run in memory, one window as large as the volume."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dseeds import rounds
from dseeds.kernel.labels import global_labels, refine, seeds
from dseeds.kernel.lanes import OPEN
from dseeds.kernel.layout import padded
from dseeds.kernel.voxels import MASKED
from dseeds.lattice import Box, Grid, Lattice, Window, check_shape
from dseeds.quantise import check_dtype, quantise_window
from dseeds.scores import check_compactness
from dseeds.steps import Step, choose_step
from dseeds.windows import NothingFinite, intensity_window, read_window


def supervoxels(
    image: ArrayLike,
    *,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    compactness: float = 0.0,
    threads: int | None = None,
) -> NDArray[np.uint32]:
    """Cut a volume in memory into 3D SEEDS supervoxels.

    Every supervoxel is one 6-connected region, and is named by the cell of a regular lattice that it grew from.
    `segment` gives the same labels, bit for bit, for volumes of any size.

    Parameters
    ----------
    image : array_like, shape (z, y, x)
        The intensities, of any integer or float dtype and memory order. NaN counts as the lowest intensity.
    step : int, str or sequence of int, default 16
        The size of a cell in voxels: one number for all axes or one for each of (z, y, x), at least 2; or a length
        such as ``"12mm"``, which needs `spacing`. One that is longer than the volume makes one cell along that axis.
    n_segments : int, optional
        The number of supervoxels to come close to, instead of `step`, with cells as isotropic as that allows.
    spacing : sequence of float, optional
        The size of a voxel along (z, y, x) in millimetres. With it, `n_segments`, a single number as `step` and a
        length give cells that are isotropic in millimetres.
    window : (float, float), optional
        The intensities between which differences count, for example (-150, 250) for soft tissue in CT. Default: from
        the percentile 0.5 to the percentile 99.5.
    compactness : float, default 0
        From 0, where supervoxels follow the image alone, to 30, where they are all but the lattice's cells: what it
        costs a voxel to lie one step away from its cell's centre, in units of log-likelihood. Sensible: 0.1 to 3.
    threads : int, optional
        How many threads share the work; the labels are the same. Default: one per core.

    Returns
    -------
    ndarray of uint32, shape (z, y, x)
        Labels 1..N in the order of the lattice's cells.

    Raises
    ------
    TypeError
        If the image is neither integer nor float.
    ValueError
        If the image has not three axes, is empty or holds no finite value, or a parameter is out of range.

    Notes
    -----
    SEEDS: M. Van den Bergh et al., "SEEDS: Superpixels extracted via energy-driven sampling", IJCV 111 (2015); in 3D:
    C. Zhao, C. Jiang, T. Hollon, arXiv:2502.02409. Here, statistics are frozen in rounds and units move in four
    colours, so that the answer does not depend on the order of the work.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> image = np.zeros((16, 16, 16), np.uint8)
    >>> image[:, :, 6:] = 200
    >>> labels = dseeds.supervoxels(image, step=8)
    >>> labels.shape, labels.dtype, labels.max()
    ((16, 16, 16), dtype('uint32'), np.uint32(8))
    >>> labels[0, 0, 5], labels[0, 0, 6]
    (np.uint32(1), np.uint32(2))
    """
    image = np.asarray(image)
    check_dtype(image.dtype)
    compactness, threads = check_compactness(compactness), check_threads(threads)
    lattice = Lattice(
        check_shape(image.shape),
        choose_step(check_shape(image.shape), step=step, n_segments=n_segments, spacing=spacing),
    )
    if lattice.size >= 2**31:
        raise ValueError(
            f"{lattice.size} supervoxels are too many to number in memory; use segment() or a larger step."
        )
    limits = read_window(window) or intensity_window(image)
    bins = padded(lattice.shape, 0)
    if quantise_window([image], [limits], bins[None]) == "nothing":
        raise NothingFinite
    # Rounds know nothing of a mask yet.
    bins[bins == MASKED] = 0
    # A constant image leaves nothing to climb.
    labels = climb(
        lattice,
        bins,
        rounds.schedule(lattice) if limits[0] < limits[1] else (),
        compactness=compactness,
        threads=threads,
    )
    del bins
    out = np.empty(lattice.shape, np.uint32)
    global_labels(labels, *lattice.grids[-1].cells, lattice.cells, out)
    return out


def check_threads(threads: Any) -> int:
    """Check a number of threads given by the user; None is one per core.

    Raises
    ------
    ValueError
        If it is no whole number from 1.
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}.")
    return int(threads)


def climb(
    lattice: Lattice,
    bins: NDArray[np.uint8],
    schedule: tuple[rounds.Round, ...],
    *,
    compactness: float = 0.0,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Run all rounds on the whole volume.

    Parameters
    ----------
    lattice : Lattice
        The lattice.
    bins : ndarray of uint8
        The quantised volume, a window of `kernel.layout`.
    schedule : tuple of Round
        The rounds.
    compactness, threads
        As for `supervoxels`.

    Returns
    -------
    ndarray of uint8
        The labels, a window of `kernel.layout`.
    """
    everything = Box((0, 0, 0), lattice.cells)
    # What the rounds of each level look at: histograms, or for the two finest the bins.
    values: list[NDArray[Any]] = [bins] * len(lattice.grids)
    for level, histograms in rounds.stored_histograms(lattice, bins, everything):
        values[level] = histograms
    grid: Grid = lattice.grids[0] if schedule else lattice.grids[-1]
    labels = seeds(*grid.cells)
    counts = np.zeros((0, 0), np.uint32)
    for level, turns in itertools.groupby(schedule, key=lambda round_: round_.level):
        finer: Grid = lattice.grids[level]
        if finer is not grid:
            labels = refine(labels, *finer.parents(grid))
            grid = finer
        state = padded(grid.shape, OPEN)
        for round_ in turns:
            if round_.weight is not None:
                state[:] = OPEN
            window = Window.around(lattice, grid, everything, round_.halo)
            if counts.shape[1] != round_.bins:
                counts = rounds.count(round_, lattice, window, values[level], labels)
            _, change = rounds.sweep(
                round_, lattice, window, values[level], labels, state, counts, compactness=compactness, threads=threads
            )
            counts += change
        # Histograms that are no longer needed.
        values[level] = bins
    return labels
