"""TODO."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from dseeds._version import __version__
from dseeds.api.options import SupervoxelOptions
from dseeds.core.checks import check_threads
from dseeds.core.duck_arrays import is_dask_array, is_data_array
from dseeds.core.geometry import Box, Lattice, Triple, check_shape
from dseeds.io.formats.data_array import extract_array, read_spacing, wrap_like
from dseeds.io.source import Spacing
from dseeds.seeds.binning import check_dtype, quantise_window
from dseeds.seeds.cell_size import Step, choose_step, millimetres
from dseeds.seeds.contact_graph import ContactGraph, build_contact_graph
from dseeds.seeds.hierarchy import check_levels, coarser_level
from dseeds.seeds.histograms import count_grey_levels, equalised_bins, otsu_threshold
from dseeds.seeds.in_memory import LabelArray, run_rounds
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_windows
from dseeds.seeds.kernels.label_codes import write_global_labels
from dseeds.seeds.kernels.layout import new_window, unpack_box
from dseeds.seeds.kernels.mask_components import count_components, number_components
from dseeds.seeds.min_size import check_min_size, join_small_supervoxels
from dseeds.seeds.order_statistics import NoFiniteValues, find_windows
from dseeds.seeds.schedule import schedule
from dseeds.seeds.scores import check_compactness


class _Options(TypedDict, total=False):
    step: Step | None
    n_segments: int | None
    spacing: Sequence[float] | None
    mask: Any
    window: Any
    percentiles: Sequence[float] | str
    bins: str
    compactness: float
    min_size: int
    channel_axis: int | None
    weights: Sequence[float] | None
    threads: int | None
    memory: int | str | None
    scratch: str | os.PathLike[str] | None


@overload
def supervoxels(  # type: ignore[overload-overlap]
    image: ArrayLike, *, levels: Literal[0] = 0, **options: Unpack[_Options]
) -> LabelArray: ...
@overload
def supervoxels(
    image: ArrayLike, *, levels: int, **options: Unpack[_Options]
) -> tuple[LabelArray, list[LabelArray]]: ...


def supervoxels(
    image: ArrayLike,
    *,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    mask: Any = None,
    window: Any = None,
    percentiles: Sequence[float] | str = (0.5, 99.5),
    bins: str = "linear",
    compactness: float = 0.0,
    min_size: int = 0,
    levels: int = 0,
    channel_axis: int | None = None,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> Any:
    """Cut a volume in memory, or a Dask array of any size, into 3D SEEDS supervoxels.

    Every supervoxel is one 6-connected region, and is named by the cell of a regular lattice that it grew from.
    `segment` gives the same labels, bit for bit, for volumes of any size.

    Parameters
    ----------
    image : array_like, dask.array.Array or xarray.DataArray, shape (z, y, x)
        The intensities, of any integer or float dtype and memory order. NaN counts as outside the mask. The labels of a
        Dask array are lazy, those of a `DataArray` have its dimensions and coordinates; see Notes.
    step : int, str or sequence of int, default 16
        The size of a cell in voxels: one number for all axes or one for each of (z, y, x), at least 2; or a length
        such as ``"12mm"``, which needs `spacing`. One that is longer than the volume makes one cell along that axis.
    n_segments : int, optional
        The number of supervoxels to come close to, instead of `step`, with cells as isotropic as that allows.
    spacing : sequence of float, optional
        The size of a voxel along (z, y, x) in millimetres. With it, `n_segments`, a single number as `step` and a
        length give cells that are isotropic in millimetres.
    mask : array_like, path or ``"auto"``, optional
        Which voxels are to be cut: those where it is neither 0 nor NaN. Others get the label 0. It may be coarser than
        the image, if it covers the same field of view. ``"auto"`` takes what is brighter than the background by Otsu's
        threshold, in any channel, as far as the window tells them apart; holes stay holes.
    window : (float, float), str or sequence of these, optional
        The intensities between which differences count: (low, high); ``"LOW:HIGH"``; ``"LEVEL,WIDTH"``; or for CT
        ``"abdomen"``, ``"lung"``, ``"bone"`` or ``"brain"``. One for all channels, or one for each, of which some may
        be None. Default: from one of the `percentiles` to the other.
    percentiles : (float, float), default (0.5, 99.5)
        Of the values inside the mask, exact.
    bins : ``"linear"`` or ``"equalised"``
        Whether the 64 bins that intensities are told apart by are equally wide or hold equally many voxels.
    compactness : float, default 0
        From 0, where supervoxels follow the image alone, to 30, where they are all but the lattice's cells: what it
        costs a voxel to lie one step away from its cell's centre, in units of log-likelihood. Sensible: 0.1 to 3.
    min_size : int, default 0
        Supervoxels of fewer voxels are joined to the neighbour that is most like them, if they have one.
    levels : int, default 0
        How many coarser levels of supervoxels to make, each of about twice the step of the one before it, whose
        supervoxels are unions of those of the one before it.
    channel_axis : int, optional
        The axis of channels, up to 16, of an image that has any.
    weights : sequence of float, optional
        How much each channel counts. Default: all the same.
    threads : int, optional
        How many threads share the work; the labels are the same. Default: one per core.
    memory : int or str, optional
        Of a Dask array: what a worker may use, such as ``"2GiB"``. Default: its limit or, without a cluster, half of
        the machine's memory.
    scratch : path or URL, optional
        Of a Dask array: a folder that all workers see, for the image and its labels. Default: Dask's
        ``temporary-directory``, or else the machine's own for temporary files.

    Returns
    -------
    labels : ndarray of uint32, shape (z, y, x)
        Labels 1..N in the order of the lattice's cells; 0 where masked out, and nowhere else. Of a Dask array, one in
        the same chunks.
    parents : list of ndarray of uint32, shape (labels + 1,)
        With `levels` alone: for each level, which of its supervoxels each one of the level before it is part of; 0 for
        label 0. ``parents[0][labels]`` are the labels at twice the step.

    Raises
    ------
    TypeError
        If the image is neither integer nor float.
    ValueError
        If the image has not three axes, is empty or holds no finite value, or a parameter is out of range.

    Notes
    -----
    SEEDS: M. Van den Bergh et al., "SEEDS: Superpixels extracted via energy-driven sampling", IJCV 111 (2015); in 3D:
    C. Zhao, Y. Jiang, T. Hollon, arXiv:2502.02409. Here, statistics are frozen in rounds and units move in four
    colours, so that the answer does not depend on the order of the work.

    A mask can cut a supervoxel into several parts; each of them is then a supervoxel of its own.

    Of a Dask array nothing is computed before labels are. Then the image is stored chunk by chunk in `scratch`, cut out
    of core by what `segment` does, on the cluster that computes the labels or else by threads of this process, and its
    copy removed; chunks of labels are read as they are asked for, also later: the work is done once. The stored labels
    are removed when no array in this process depends on them any more; once a cluster has got the graph, which may keep
    it for longer, when this process ends. `levels` are for images in memory.

    Of a `DataArray`, dimensions called z, y and x are taken as such in any order, and one called c, channel or band has
    channels. Even coordinates with ``units`` such as ``"um"`` are a spacing that serves lengths and `n_segments`.

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
    >>> bright = dseeds.supervoxels(image, step=8, mask=image > 100)
    >>> bright[0, 0, 5], bright[0, 0, 6], bright.max()
    (np.uint32(0), np.uint32(1), np.uint32(8))
    """
    options = SupervoxelOptions(
        step=step,
        n_segments=n_segments,
        spacing=spacing,
        mask=mask,
        window=window,
        percentiles=percentiles,
        bins=bins,
        compactness=compactness,
        min_size=min_size,
        levels=levels,
        channel_axis=channel_axis,
        weights=weights,
        threads=threads,
        memory=memory,
        scratch=scratch,
    )
    if is_data_array(image):
        return _labelled_supervoxels(image, options)
    if is_dask_array(image):
        from dseeds.api.lazy import lazy_supervoxels

        return lazy_supervoxels(image, options)
    if memory is not None or scratch is not None:
        raise ValueError("memory and scratch are for Dask arrays: what is in memory is cut there.")
    values = _channels(np.asarray(image), channel_axis)
    for channel in values:
        check_dtype(channel.dtype)
    shape = check_shape(values[0].shape)
    lattice = Lattice(shape, choose_step(shape, step=step, n_segments=n_segments, spacing=spacing))
    if lattice.size >= 2**31:
        raise ValueError(
            f"{lattice.size} supervoxels are too many to number in memory; use segment() or a larger step."
        )
    compactness, threads = check_compactness(compactness), check_threads(threads)
    min_size, levels = check_min_size(min_size), check_levels(levels)
    importance = check_weights(weights, len(values))
    quantised, windows, masked = _quantised(values, mask, window, percentiles, bins)
    # A constant image leaves nothing to climb.
    rounds = schedule(lattice, len(values)) if any(lo < hi for lo, hi in windows) else ()
    codes = run_rounds(
        lattice, quantised, rounds, compactness=compactness, threads=threads, weights=importance, masked=masked
    )
    joins = min_size > 1 or levels > 0
    plain = np.stack([_plain(one, shape) for one in quantised]) if joins else None
    del quantised
    labels, cells = _numbered(lattice, codes, masked)
    if plain is None:
        return labels
    graph = build_contact_graph(labels, Box((0, 0, 0), shape), plain)
    joined = join_small_supervoxels(len(cells), lambda: [graph], min_size, importance)
    labels, graph, cells = joined.relabel(labels), joined.relabel_graph(graph), cells[joined.kept_ids - 1]
    if not levels:
        return labels
    return labels, list(_parents(graph, cells, levels, importance))


def _channels(image: NDArray[Any], axis: int | None) -> tuple[NDArray[Any], ...]:
    """List an image's channels."""
    if axis is None:
        return (image,)
    check_dtype(image.dtype)
    # Here, not above: what reads files takes its time to be imported.
    from dseeds.io import open_image

    return open_image(image, channel_axis=axis).read((slice(None), slice(None), slice(None)))


def _quantised(
    values: Sequence[NDArray[Any]], mask: Any, window: Any, percentiles: Any, bins: str
) -> tuple[NDArray[np.uint8], tuple[tuple[float, float], ...], bool]:
    """Turn the channels into bins, and tell their windows and whether any voxel is masked out."""
    shape, equalises, finds = values[0].shape, check_bins(bins) == "equalised", isinstance(mask, str) and mask == "auto"
    inside = None
    if mask is not None and not finds:
        from dseeds.io import ArraySource, Image, open_mask

        z, y, x = (slice(0, n) for n in shape)
        inside = open_mask(
            np.asarray(mask) if isinstance(mask, list | tuple) else mask, Image((ArraySource(values[0]),))
        ).read((z, y, x))
    windows = find_windows(values, read_windows(window, len(values)), check_percentiles(percentiles), inside)
    tables = thresholds = None
    if equalises or finds:
        counts = count_grey_levels(values, windows, inside)
        tables = [equalised_bins(one) for one in counts] if equalises else None
        thresholds = [otsu_threshold(one) for one in counts] if finds else None
    out = new_window(shape, 0, channels=len(values))
    found = quantise_window(values, windows, out, inside=inside, tables=tables, thresholds=thresholds)
    if found == "nothing":
        raise NoFiniteValues
    return out, windows, found == "part"


def _numbered(lattice: Lattice, codes: NDArray[np.uint8], masked: bool) -> tuple[LabelArray, NDArray[np.int64]]:
    """Turn label codes into labels, and tell the cell of each label."""
    out = np.empty(lattice.shape, np.uint32)
    homes = lattice.grids[-1].cells
    everything = Box((0, 0, 0), lattice.cells)
    counts = np.ones(lattice.cells, np.uint32)
    if masked:
        plain = _plain(codes, lattice.shape)
        counts = count_components(plain, homes, everything)
        offsets = (np.cumsum(counts).reshape(counts.shape) - counts).astype(np.uint64)
        number_components(plain, homes, everything, offsets, Box((0, 0, 0), lattice.shape), out)
    else:
        write_global_labels(codes, homes, lattice.cells, out)
    cells = np.repeat(np.arange(lattice.size), counts.reshape(-1))
    return out, np.stack(np.unravel_index(cells, lattice.cells), axis=1)


def _parents(
    graph: ContactGraph, cells: NDArray[np.int64], levels: int, weights: tuple[int, ...]
) -> Iterator[LabelArray]:
    for _ in range(levels):
        above = coarser_level(graph, cells, weights)
        yield above.parents.astype(np.uint32)
        graph, cells = above.graph, above.cells


def _plain(window: NDArray[np.uint8], shape: Triple) -> NDArray[np.uint8]:
    """Take all of a window out of its layout."""
    out = np.empty(shape, np.uint8)
    unpack_box(window, (0, 0, 0), out)
    return out


# What is noted of how labels came about.
NOTED = ("step", "n_segments", "spacing", "window", "percentiles", "bins", "compactness", "min_size", "weights")


def _labelled_supervoxels(image: xr.DataArray, options: SupervoxelOptions) -> Any:
    """Cut a `DataArray` into supervoxels: labels with its dimensions and coordinates.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `dseeds.supervoxels`, and if a length is given as the step and the coordinates have no spacing.
    """
    data, space, has_channels = extract_array(image, options.channel_axis)
    notes = {name: value for name, value in vars(options).items() if name in NOTED and value is not None}
    spacing = options.spacing
    if spacing is None:
        spacing = _spacing_for(image, space, options.step, options.n_segments)
    options = replace(options, channel_axis=0 if has_channels else None, spacing=spacing)
    result: Any = supervoxels(data, **vars(options))
    labels, *parents = result if options.levels else (result,)
    labels = wrap_like(image, space, labels, "supervoxels", long_name="supervoxels", dseeds=__version__, **notes)
    return (labels, *parents) if options.levels else labels


def _spacing_for(image: xr.DataArray, space: tuple[str, ...], step: Any, n_segments: Any) -> Spacing | None:
    """Give the spacing where it is wanted, for lengths and numbers of supervoxels: a step in voxels is what it is."""
    length = isinstance(step, str) and millimetres(step) is not None
    if not length and n_segments is None:
        return None
    spacing = read_spacing(image, space)
    if not isinstance(spacing, str):
        return spacing
    if length:
        raise ValueError(f"step {step!r} needs the voxels' size, but {spacing}: give spacing=(z, y, x) in millimetres.")
    return None
