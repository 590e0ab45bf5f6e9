"""Step 1: intensities as bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.dtypes import native_values
from dseeds.core.jit import jit
from dseeds.seeds.contrast import count_bins
from dseeds.seeds.histograms import GREY_LEVELS, quantise_range, slab_planes
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.layout import pack_box
from dseeds.seeds.kernels.voxels import BINS, MASKED


# NumPy's indexing would first convert the levels to 64 bits.
@jit
def _look_up(levels: NDArray[np.uint16], table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for z in range(levels.shape[0]):
        for y in range(levels.shape[1]):
            for x in range(levels.shape[2]):
                out[z, y, x] = table[levels[z, y, x]]


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Raise a TypeError unless a dtype is an integer or a float of at most 64 bits."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise TypeError(
            f"supervoxels need integer or float intensities of at most 64 bits, but the image is {dtype}: convert it "
            "first, to uint8 if it is bool, else to float64."
        )


def quantise_box(
    values: Sequence[NDArray[Any]],
    windows: Sequence[Limits],
    bins: NDArray[np.uint8],
    *,
    inside: NDArray[np.bool_] | None = None,
    knees: Sequence[float | None] | None = None,
    tables: Sequence[NDArray[np.uint8]] | None = None,
    thresholds: Sequence[int] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> str:
    """Quantise intensities to 64 bins over each channel's window, into `bins`, uint8 (channels, z, y, x).

    Channels have any integer or float dtype and memory order, and `bins` may be a view. Values outside the window,
    including infinities, go to the first or the last bin; a constant channel has equal limits and goes to bin 0. A
    voxel is masked in every channel if it is not inside, if it is NaN in any channel, or if it is background in all
    channels.

    Bins have equal widths by default. With a knee, half of a channel's bins are equally wide below it, and half above;
    `knees` are None for the other channels. `tables`, uint8 (4096,), are the bins of each channel's grey levels, from
    `equalised_bins`. `thresholds` are the last grey levels of each channel's background, from `otsu_threshold`; by
    default, there is no background. The voxels in each bin are added to `counts`, see
    `dseeds.seeds.contrast.count_bins`. Returns the part of the voxels that are not masked: ``"all"``, ``"part"`` or
    ``"nothing"``.

    >>> bins = np.empty((1, 1, 1, 4), np.uint8)
    >>> quantise_box([np.array([[[-5, 0, 50, np.nan]]])], [(0, 100)], bins)
    'part'
    >>> bins.tolist()
    [[[[0, 0, 32, 64]]]]
    """
    # The only masked voxels are then those that are NaN.
    only_nan = len(values) == 1 and inside is None and thresholds is None
    remaining = 0
    for part in slab_planes(values):
        slab = bins[:, part]
        missing = 0
        kept: Any = thresholds is None
        for c, (channel, window, out) in enumerate(zip(values, windows, slab, strict=True)):
            levels = np.empty(out.shape if tables or thresholds else 0, np.uint16)
            if tables or thresholds:
                missing += quantise_range(channel[part], window, GREY_LEVELS, levels)
            if tables:
                _look_up(levels, np.append(tables[c], np.uint8(MASKED)), out)
            else:
                missing += _quantise_channel(channel[part], window, knees[c] if knees else None, out)
            if thresholds:
                kept = kept | (levels > thresholds[c])
        if only_nan:
            remaining += slab.size - missing
        else:
            for out in slab:
                kept = kept & (out != MASKED)
            if inside is not None:
                kept = kept & inside[part]
            # `MASKED` is above all bins, and this is much faster than an assignment by mask.
            np.maximum(slab, ~kept * np.uint8(MASKED), out=slab)
            remaining += int(np.count_nonzero(kept))
        if counts is not None:
            count_bins(slab, counts)
    return "nothing" if remaining == 0 else "all" if remaining == bins[0].size else "part"


def _quantise_channel(values: NDArray[Any], window: Limits, knee: float | None, out: NDArray[np.uint8]) -> int:
    """Write the bins of a channel, of equal widths on each side of a knee, and return the number of NaN values."""
    if knee is None:
        return quantise_range(values, window, BINS, out)
    (low, high), missing = window, 0
    above = np.empty(out.shape[1:], np.uint8)[None]
    for z in range(len(values)):
        # A plane at a time, which stays in the cache.
        plane = native_values(values[z : z + 1])
        missing += quantise_range(plane, (low, knee), BINS // 2, out[z : z + 1])
        quantise_range(plane, (knee, high), BINS // 2, above)
        # A knee is one of the values.
        _join_halves(plane, plane.dtype.type(knee), above, out[z : z + 1])
    return missing


@jit
def _join_halves(values: NDArray[Any], knee: Any, above: NDArray[np.uint8], bins: NDArray[np.uint8]) -> None:
    """Replace the bins of a plane by those of the upper half where values are there, and by `MASKED` at NaN."""
    for y in range(bins.shape[1]):
        for x in range(bins.shape[2]):
            if values[0, y, x] >= knee:
                bins[0, y, x] = BINS // 2 + above[0, y, x]
            elif bins[0, y, x] == BINS // 2:
                bins[0, y, x] = MASKED


def quantise_window(
    values: Sequence[NDArray[Any]],
    windows: Sequence[Limits],
    bins: NDArray[np.uint8],
    *,
    inside: NDArray[np.bool_] | None = None,
    knees: Sequence[float | None] | None = None,
    tables: Sequence[NDArray[np.uint8]] | None = None,
    thresholds: Sequence[int] | None = None,
    counts: NDArray[np.int64] | None = None,
) -> str:
    """Quantise like `quantise_box`, into windows of `kernels.layout`, shape (channels, z + 2, ...)."""
    parts = set()
    for part in slab_planes(values):
        channels = [channel[part] for channel in values]
        slab = np.empty((len(channels), *channels[0].shape), np.uint8)
        mask = None if inside is None else inside[part]
        parts.add(
            quantise_box(
                channels,
                windows,
                slab,
                inside=mask,
                knees=knees,
                tables=tables,
                thresholds=thresholds,
                counts=counts,
            )
        )
        for planes, window in zip(slab, bins, strict=True):
            pack_box(planes, (part.start, 0, 0), window)
    return parts.pop() if len(parts) == 1 else "part"
