"""`supervoxels`, the public function: it hands each kind of array to the code for it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dseeds.api.options import SupervoxelOptions
from dseeds.core.checks import check_threads
from dseeds.core.dtypes import unmask
from dseeds.core.duck_arrays import is_dask_array, is_data_array, is_itk_image, is_nibabel_image, unmasked_voxels
from dseeds.core.geometry import Box, check_shape
from dseeds.seeds.binning import check_dtype
from dseeds.seeds.cell_size import Step
from dseeds.seeds.contrast import ContrastWarning, describe_contrast
from dseeds.seeds.in_memory import LabelArray, cut_in_memory
from dseeds.seeds.schedule import OWN_MAP

if TYPE_CHECKING:
    from dseeds.io import Image, Mask


class _Options(TypedDict, total=False):
    step: Step | None
    n_segments: int | None
    spacing: Sequence[float] | None
    mask: Any
    window: Any
    percentiles: Sequence[float] | str
    bins: str
    compactness: float
    min_size: int | None
    boundaries: Any
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
    bins: str = "auto",
    compactness: float = 0.0,
    min_size: int | None = None,
    levels: int = 0,
    boundaries: Any = None,
    channel_axis: int | None = None,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> Any:
    """Cut a volume in memory, or a Dask array of any size, into 3D SEEDS supervoxels.

    Every supervoxel is one 6-connected region, and its label is the number of the lattice cell that it grew from.
    `segment` gives the same labels, bit for bit, for volumes of any size.

    Parameters
    ----------
    image : array_like, dask.array.Array, xarray.DataArray, nibabel or SimpleITK image, shape (z, y, x)
        The intensities, of any integer or float dtype and memory order. NaN counts as outside the mask, and so does
        what is masked in a masked array. The labels of a Dask array are lazy; those of a `DataArray` have its
        dimensions and coordinates. Images of nibabel, whose axes (x, y, z) are reversed, and of SimpleITK have a
        spacing, and labels as an array. Further axes of length 1 are left out. See Notes.
    step : int, str or sequence of int, default 16
        The size of a cell in voxels: one number for all axes or one for each of (z, y, x), at least 2; or a length
        such as ``"12mm"``, which needs `spacing`. A step longer than the volume makes one cell along that axis.
    n_segments : int, optional
        The approximate number of supervoxels, instead of `step`, with cells as isotropic as that allows. With a mask it
        is the number inside, and with a masked array that in what is not masked, but not with ``"auto"`` and NaN, which
        are not known before; parts of a mask that touch nothing else may come on top.
    spacing : sequence of float, optional
        The size of a voxel along (z, y, x) in millimetres. With it, `n_segments`, a single number as `step` and a
        length give cells that are isotropic in millimetres.
    mask : array_like, path or ``"auto"``, optional
        The voxels to cut: those where the mask is neither 0 nor NaN. All others get the label 0. The mask has
        the image's shape, or covers its field of view with voxels that are larger by a whole factor along each axis.
        ``"auto"`` selects all voxels brighter than the
        background by Otsu's threshold in any channel, as far as the window resolves them; holes stay holes.
    window : (float, float), str or sequence of these, optional
        The intensity window, outside of which differences do not count: (low, high); ``"LOW:HIGH"``;
        ``"LEVEL,WIDTH"``; or for CT ``"abdomen"``, ``"lung"``, ``"bone"`` or ``"brain"``. One for all channels, or one
        for each, of which some may be None. Default: the interval between the `percentiles` or, if these are one value,
        between most of the others, without extremes such as hot pixels.
    percentiles : (float, float), default (0.5, 99.5)
        Exact percentiles of the values inside the mask.
    bins : ``"auto"``, ``"linear"`` or ``"equalised"``, default ``"auto"``
        Whether the 64 intensity bins have equal widths or hold equally many voxels. ``"auto"`` is ``"linear"``, but
        where 95 % of the values take less than a sixth of a window that comes from `percentiles`, at one end of it,
        half of the bins are for them: a few hot pixels, or the brightest of all cells, do not hide the rest. With
        `boundaries` and with ``mask="auto"``, it is ``"linear"``.
    compactness : float, default 0
        From 0, where supervoxels follow the image alone, to 30, where they are nearly the cells of the lattice: the
        cost of a voxel one step away from its cell's centre, in units of log-likelihood. Useful values: 0.1 to 3.
    min_size : int, optional
        Supervoxels of fewer voxels are joined to their most similar neighbour, if they have one. Default: 0, but a
        tenth of the mean size with `n_segments` and a mask, which cuts cells into pieces that would come on top of it.
    levels : int, default 0
        The number of coarser levels of supervoxels, each of about twice the step of the level before it. Their
        supervoxels are unions of supervoxels of the level before.
    boundaries : array_like, path, ``"image"``, ``"dark"`` or ``"gradient"``, optional
        Cut along boundaries such as membranes instead of differences in intensity. A map of the image's shape, of any
        integer or float dtype, high on boundaries: a stain, or the probabilities of a network. Its range between the
        `percentiles` counts, and its NaN as outside the mask. Or a map made from the image: ``"image"`` for bright
        boundaries, ``"dark"`` for dark ones, ``"gradient"`` for steep changes. Leaves no choice of `compactness`.
    channel_axis : int, optional
        The axis of channels, of which there may be up to 16. Default: the image has none.
    weights : sequence of float, optional
        The weight of each channel. Default: all the same.
    threads : int, optional
        The number of threads; the labels are the same. Default: one per core.
    memory : int or str, optional
        For a Dask array: the memory of a worker, such as ``"2GiB"``. Default: its limit or, without a cluster, half of
        the machine's memory.
    scratch : path or URL, optional
        For a Dask array: a folder that all workers can reach, for the image and its labels. Default: Dask's
        ``temporary-directory``, or else the machine's folder for temporary files.

    Returns
    -------
    labels : ndarray of uint32, shape (z, y, x)
        Labels 1..N in the order of the lattice's cells; 0 where masked out, and nowhere else. For a Dask array, a Dask
        array with the same chunks.
    parents : list of ndarray of uint32, shape (labels + 1,)
        Only with `levels`: for each level, the parent of each supervoxel of the level before it; 0 for label 0.
        ``parents[0][labels]`` are the labels at twice the step.

    Raises
    ------
    TypeError
        If the image is neither integer nor float.
    ValueError
        If the image does not have three axes, is empty or holds no finite value, or a parameter is out of range.

    Warns
    -----
    ContrastWarning
        If more than 99 % of the voxels share one of the 64 bins, so that there is hardly any contrast, if a few voxels
        at the upper end of the window leave nearly all others in its lowest sixteenth, or if a mask ``"auto"`` leaves
        fewer than a thousandth of the voxels; it is a `UserWarning`.

    Notes
    -----
    SEEDS: M. Van den Bergh et al., "SEEDS: Superpixels extracted via energy-driven sampling", IJCV 111 (2015); in 3D:
    C. Zhao, Y. Jiang, T. Hollon, arXiv:2502.02409. Here, statistics are frozen in rounds and units move in four
    colours, so that the result does not depend on the order of the work.

    A mask can cut a supervoxel into several components; each of them is then a supervoxel of its own.

    A Dask array is not computed before its labels are. Then the image is stored chunk by chunk in `scratch` and cut
    out of core in the same way as by `segment`, on the cluster that computes the labels or else by threads of this
    process; the copy of the image is removed. Chunks of labels are read on demand, also later: the work is done once.
    The stored labels are removed when no array in this process depends on them any more; or, once the graph was sent
    to a cluster, which may keep it for longer, when this process ends. `levels` need an image in memory.

    The dimensions z, y and x of a `DataArray` are recognised in any order, and a dimension called c, channel or band
    holds channels. Evenly spaced coordinates with ``units`` such as ``"um"`` provide the spacing for lengths and
    `n_segments`.

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
        boundaries=boundaries,
        channel_axis=channel_axis,
        weights=weights,
        threads=threads,
        memory=memory,
        scratch=scratch,
    )
    if is_data_array(image):
        # Here, not above: xarray is optional.
        from dseeds.api.labelled import labelled_supervoxels

        return labelled_supervoxels(image, options, _cut)
    return _cut(image, options)


def _cut(image: Any, options: SupervoxelOptions) -> Any:
    """Cut a Dask array or an array in memory."""
    if options.n_segments is not None and options.mask is None:
        options = replace(options, mask=unmasked_voxels(image, options.channel_axis))
    if is_dask_array(image):
        # Here, not above: Dask takes its time to import.
        from dseeds.api.lazy import lazy_supervoxels

        return lazy_supervoxels(image, options)
    if options.memory is not None or options.scratch is not None:
        raise ValueError("memory and scratch are for Dask arrays: leave them out for an image in memory.")
    values, opened = _channels(image, options.channel_axis)
    for channel in values:
        check_dtype(channel.dtype)
    shape = check_shape(values[0].shape)
    mask = _open_mask(options.given_mask, values[0], opened)
    blocks = options.counted_blocks(mask)
    lattice = options.lattice(shape, blocks, None if opened is None else opened.spacing)
    if lattice.size >= 2**31:
        raise ValueError(
            f"{lattice.size} supervoxels are too many to number in memory; use segment() or a larger step."
        )
    settings, threads = options.settings(len(values), blocks), check_threads(options.threads)
    inside = None if mask is None else mask.read(Box((0, 0, 0), shape).slices)
    if settings.boundaries == OWN_MAP:
        values = (*values, _read_map(options.boundaries, values[0], opened))
    result = cut_in_memory(values, lattice, settings, inside=inside, threads=threads)
    has_threshold, has_map = result.found.thresholds is not None, settings.boundaries == OWN_MAP
    for note in describe_contrast(
        result.found.windows, result.counts, math.prod(shape), has_threshold=has_threshold, has_map=has_map
    ):
        warnings.warn(note, ContrastWarning, stacklevel=3)
    return (result.labels, result.parents) if settings.levels else result.labels


def _channels(image: Any, axis: int | str | None) -> tuple[tuple[NDArray[Any], ...], Image | None]:
    """Return an image's channels, (z, y, x) each, and the image itself if it has a place in space."""
    if isinstance(image, str | os.PathLike):
        raise TypeError(f"an image is an array, not an address: use segment for {os.fspath(image)}, or read it first.")
    has_place = is_nibabel_image(image) or is_itk_image(image)
    if not has_place:
        image = unmask(np.asanyarray(image), is_image=True)
        check_dtype(image.dtype)
        if axis is None:
            return (_without_short_axes(image),), None
    # Here, not above: the modules that read files take their time to import.
    from dseeds.io import open_image

    opened = open_image(image, channel_axis=axis)
    return opened.read((slice(None), slice(None), slice(None))), opened if has_place else None


def _without_short_axes(image: NDArray[Any]) -> NDArray[Any]:
    """Return an array of more than three axes without those of length 1, trailing ones first, as files are read."""
    while image.ndim > 3 and image.shape[-1] == 1:
        image = image[..., 0]
    while image.ndim > 3 and image.shape[0] == 1:
        image = image[0]
    return image


def _open_mask(mask: Any, values: NDArray[Any], opened: Image | None) -> Mask | None:
    """Open the mask of an image that has the shape of an array; None if everything is inside."""
    if mask is None:
        return None
    from dseeds.io import open_mask

    return open_mask(mask, _placed(values, opened))


def _read_map(boundaries: Any, values: NDArray[Any], opened: Image | None) -> NDArray[Any]:
    """Return the values of a boundary map of an image that has the shape of an array."""
    from dseeds.io import open_boundary_map

    opened_map = open_boundary_map(boundaries, _placed(values, opened))
    check_dtype(opened_map.dtypes[0])
    return opened_map.read((slice(None), slice(None), slice(None)))[0]


def _placed(values: NDArray[Any], opened: Image | None) -> Image:
    """Return an image in its place, or an array as an image that has none."""
    from dseeds.io import ArraySource, Image

    return Image((ArraySource(values),)) if opened is None else opened
