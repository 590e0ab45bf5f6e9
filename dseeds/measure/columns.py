"""The columns of the tables: numbers computed from the integer counts of supervoxels and contacts.

Everything is counted in integers (`dseeds.measure.kernels.features`) and converted here, once and in a fixed order, so
that tables are bit-identical however the volume was cut. Columns are named as in scikit-image's `regionprops_table`
where it has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.dtypes import native_values
from dseeds.core.exact_sum import BITS, totals
from dseeds.core.geometry import Box, Triple
from dseeds.measure.kernels import features as rows_of
from dseeds.measure.kernels.features import in_units
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.voxels import BINS

PERCENTILES = (5, 25, 50, 75, 95)

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """How voxels lie in space, and which intensities are told apart.

    Attributes
    ----------
    spacing : tuple of float
        Size of a voxel along (z, y, x) in millimetres; 1 where that is not known.
    affine : tuple of tuple of float
        The first three rows of the matrix that takes a voxel (x, y, z, 1) to its place (x, y, z) in millimetres.
    windows : tuple of (float, float)
        The intensity window of each channel, over which the bins of histograms are equally wide.
    whole : bool
        Whether intensities are integers of up to 16 bits.
    """

    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    windows: tuple[Limits, ...]
    whole: bool

    @property
    def pivots(self) -> Floats:
        """What is taken off each channel's intensities before they are added up."""
        # All that integers of 16 bits can be is near enough to have units, wherever their window is.
        lows = [min(max(round(low), -(1 << 15)), (1 << 16) - 1) if self.whole else low for low, _ in self.windows]
        return np.array(lows, np.float64)

    @property
    def scales(self) -> Floats:
        """Units for each channel's intensities, see `kernel.measures`: at least 2^24 of them over the window."""
        return np.array([1.0 if self.whole else _scale(high - low) for low, high in self.windows])

    @property
    def faces(self) -> tuple[float, float, float]:
        """The area of a voxel's faces along (z, y, x)."""
        z, y, x = self.spacing
        return y * x, z * x, z * y

    def named(self, name: str, channel: int) -> str:
        """Name a channel's column: with its number, if there are several."""
        return name if len(self.windows) == 1 else f"{name}-{channel}"


def are_whole(dtypes: Iterable[np.dtype[Any]]) -> bool:
    """Tell whether all channels are integers of up to 16 bits, which are their own units."""
    return all(dtype.kind in "iu" and dtype.itemsize <= 2 for dtype in dtypes)


def supervoxel_counts(
    labels: NDArray[Any], channels: Sequence[NDArray[Any]], box: Box, space: Space
) -> tuple[Rows, Rows]:
    """Count what a region has of each supervoxel and each contact.

    Parameters
    ----------
    labels : ndarray of uint32 or int64, shape (z, y, x)
        A window: the region and, where the volume goes on, one voxel more towards higher z, y and x.
    channels : sequence of ndarray, shape (z, y, x)
        The intensities of the window.
    box : Box
        The region's place in the volume.
    space : Space
        How the voxels lie, and which intensities are told apart.

    Returns
    -------
    voxels, contacts : ndarray of int64
        Rows, sorted by their labels; see `kernel.measures`.
    """
    bins = np.empty((len(channels), *labels.shape), np.uint8)
    for channel, window, out in zip(channels, space.windows, bins, strict=True):
        # One by one: what a channel has does not depend on where another has NaN.
        quantise_box([channel], [window], out[None])
    units = np.empty(bins.shape, np.int32)
    for c, channel in enumerate(channels):
        in_units(native_values(channel), space.pivots[c], space.scales[c], units[c])
    # Of integers, units tell all.
    reals = np.empty((len(channels), 0, 0, 0))
    if not space.whole:
        reals = np.stack([channel.astype(np.float64) for channel in channels])
    voxels, contacts = rows_of.accumulate_features(
        labels, box.shape, box.lo, reals, units, space.pivots, bins, np.array(space.spacing)
    )
    return voxels[np.argsort(voxels[:, 0])], sorted_rows(contacts)


def sorted_rows(contacts: Rows) -> Rows:
    """Sort the rows of contacts by both labels."""
    return contacts[np.lexsort((contacts[:, 1], contacts[:, 0]))]


def feature_table(rows: Rows, space: Space, shape: Triple) -> pa.Table:
    """Give the table of supervoxels.

    Parameters
    ----------
    rows : ndarray of int64
        The supervoxels' rows, see `kernel.measures`.
    space : Space
        Where they lie.
    shape : tuple of int
        Of the volume, (z, y, x).

    Returns
    -------
    pyarrow.Table
        See `dseeds.features`.
    """
    size = rows[:, rows_of.SIZE]
    area = size * math.prod(space.spacing)
    outer = 2 * (size[:, None] - rows[:, rows_of.INNER : rows_of.CHANNELS])
    surface = _weighted(outer, space.faces)
    columns = {"label": rows[:, 0], "num_pixels": size, "area": area, **dict(_places(rows, space))}
    columns["surface_area"] = surface
    # The isoperimetric quotient, as in `metrics.compactness`.
    columns["compactness"] = 36 * np.pi * (area / surface) * (area / surface) / surface
    low, high = rows[:, rows_of.LEAST : rows_of.MOST], rows[:, rows_of.MOST : rows_of.INNER]
    columns["border"] = ((low == 0) | (high == np.array(shape) - 1)).any(axis=1)
    for channel in range(len(space.windows)):
        begin = rows_of.CHANNELS + channel * rows_of.CHANNEL
        part = rows[:, begin : begin + rows_of.CHANNEL]
        columns |= {space.named(name, channel): values for name, values in _intensities(part, channel, space)}
    return pa.table(columns)


def _places(rows: Rows, space: Space) -> Iterator[tuple[str, NDArray]]:
    """Give where supervoxels lie, in voxels along (z, y, x) and in millimetres along (x, y, z)."""
    centroid = rows[:, rows_of.SUMS : rows_of.LEAST] / rows[:, rows_of.SIZE, None]
    low, high = rows[:, rows_of.LEAST : rows_of.MOST], rows[:, rows_of.MOST : rows_of.INNER] + 1
    for axis in range(3):
        yield f"centroid-{axis}", centroid[:, axis]
    for axis, values in enumerate([*low.T, *high.T]):
        yield f"bbox-{axis}", values
    # A voxel's centre lies at its index, its faces half a voxel to both sides.
    corners = []
    for axis, row in enumerate(space.affine):
        yield f"centroid_world-{axis}", _weighted(centroid[:, ::-1], row[:3]) + row[3]
        ends = [(low[:, ::-1] - 0.5) * row[:3], (high[:, ::-1] - 0.5) * row[:3]]
        corners.append([pick(*ends) for pick in (np.minimum, np.maximum)])
    for end in range(2):
        for axis, row in enumerate(space.affine):
            yield f"bbox_world-{3 * end + axis}", _weighted(corners[axis][end], (1, 1, 1)) + row[3]


def _intensities(part: Rows, channel: int, space: Space) -> Iterator[tuple[str, NDArray | pa.Array]]:
    """Give the figures of a channel's intensities; NaN where none was measured."""
    measured = part[:, rows_of.MEASURED].astype(np.float64)
    nothing = measured == 0
    measured[nothing] = np.nan
    scale = space.scales[channel]
    mean = (_integers(part, rows_of.SUM) / scale + totals(part, rows_of.FAR)) / measured
    # Beyond 1e154 there are no squares.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (_integers(part, rows_of.SQUARES) / scale / scale + totals(part, rows_of.FAR_SQUARES)) / measured
        spread = np.sqrt(np.maximum(squares - mean * mean, 0))
    low = np.ascontiguousarray(part[:, rows_of.LOW]).view(np.float64)
    high = np.ascontiguousarray(part[:, rows_of.HIGH]).view(np.float64)
    low[nothing] = high[nothing] = np.nan
    # What units are rounded to may lie beyond all intensities.
    yield "intensity_mean", np.clip(mean + space.pivots[channel], low, high)
    yield "intensity_std", spread
    yield "intensity_min", low
    yield "intensity_max", high
    histogram = part[:, rows_of.HISTOGRAM :]
    for percentile in PERCENTILES:
        found = _percentile(histogram, percentile, space.windows[channel])
        yield f"intensity_percentile_{percentile}", np.clip(found, low, high)
    yield "histogram", pa.FixedSizeListArray.from_arrays(pa.array(histogram.reshape(-1)), BINS)


def _percentile(histogram: Rows, percentile: int, window: Limits) -> Floats:
    """Find where so many in a hundred voxels lie below, with those of a bin spread evenly over it."""
    counts = np.cumsum(histogram, axis=1)
    wanted = counts[:, -1] * percentile / 100
    rows = np.arange(len(counts))
    bin_ = np.minimum((counts < wanted[:, None]).sum(axis=1), BINS - 1)
    own = histogram[rows, bin_]
    before = counts[rows, bin_] - own
    inside = np.divide(wanted - before, own, out=np.full(len(rows), np.nan), where=own > 0)
    found: Floats = window[0] + (bin_ + inside) / BINS * (window[1] - window[0])
    return found


def edge_table(rows: Rows, ends: pa.Table, space: Space) -> pa.Table:
    """Give the edges of the region adjacency graph.

    Parameters
    ----------
    rows : ndarray of int64
        The contacts' rows, see `kernel.measures`.
    ends : pyarrow.Table
        Of all supervoxels that touch there, sorted by label: label, means and histograms.
    space : Space
        Where they lie.

    Returns
    -------
    pyarrow.Table
        See `dseeds.features`.
    """
    faces = rows[:, rows_of.FACES : rows_of.STEPS]
    columns = {"source": rows[:, 0], "target": rows[:, 1], "num_faces": faces.sum(axis=1)}
    columns["area"] = _weighted(faces, space.faces)
    place = np.searchsorted(ends["label"].to_numpy(), rows[:, :2])
    for channel in range(len(space.windows)):
        mean = ends[space.named("intensity_mean", channel)].to_numpy()[place]
        steps = rows[:, rows_of.STEPS + channel * rows_of.STEP_CHANNEL :][:, : rows_of.STEP_CHANNEL]
        columns[space.named("intensity_difference", channel)] = np.abs(mean[:, 0] - mean[:, 1])
        columns[space.named("intensity_gradient", channel)] = _gradient(steps, space, space.scales[channel])
        histogram = ends[space.named("histogram", channel)].combine_chunks().flatten().to_numpy().reshape(-1, BINS)
        columns[space.named("histogram_distance", channel)] = histogram_distance(histogram, place)
    return pa.table(columns)


def _gradient(steps: Rows, space: Space, scale: float) -> Floats:
    """Average the steps in intensity across a contact, per millimetre."""
    measured = steps[:, rows_of.STEPS_MEASURED]
    inverses = [1 / (scale * length) for length in space.spacing]
    total = _weighted(steps[:, rows_of.STEP : rows_of.FAR_STEP], inverses) + totals(steps, rows_of.FAR_STEP)
    found: Floats = np.divide(total, measured, out=np.full(len(steps), np.nan), where=measured > 0)
    return found


def histogram_distance(histograms: NDArray[np.int64], pairs: NDArray[np.int64]) -> Floats:
    """Tell how far pairs of histograms are apart: ``1 - sum over bins of min(g / |g|, h / |h|)``.

    This is one less their intersection, and the total variation distance of the two distributions: M. J. Swain,
    D. H. Ballard, "Color Indexing", IJCV 7, 1991.

    Parameters
    ----------
    histograms : ndarray of int64, shape (n, bins)
        The counts.
    pairs : ndarray of int64, shape (m, 2)
        Which to compare.

    Returns
    -------
    ndarray of float64, shape (m,)
        0 (alike) to 1; NaN where one counts nothing.

    Examples
    --------
    >>> histogram_distance(np.array([[2, 2, 0], [0, 1, 1]]), np.array([[0, 1], [0, 0]])).tolist()
    [0.5, 0.0]
    """
    sizes = histograms.sum(axis=1).astype(np.float64)
    sizes[sizes == 0] = np.nan
    common = np.zeros(len(pairs))
    # Bin after bin, for the sum's order to be one.
    for column in histograms.T:
        share = column / sizes
        common += np.minimum(share[pairs[:, 0]], share[pairs[:, 1]])
    return np.clip(1 - common, 0, 1)


def _scale(width: float) -> float:
    """Give the power of two that makes a window's width 2^24 to 2^25; the largest where it has none."""
    return math.ldexp(1.0, max(-1000, min(1000, 25 - math.frexp(width)[1])) if width > 0 else 1000)


def _integers(rows: Rows, at: int) -> Floats:
    """Give sums that are stored as a part above some bits and one below, of which the latter may have grown."""
    above, below = rows[:, at], rows[:, at + 1]
    return (above + (below >> BITS)) * float(1 << BITS) + (below & ((1 << BITS) - 1))


def _weighted(values: NDArray, weights: Sequence[float]) -> Floats:
    """Add up three columns with weights, from the first to the last."""
    found: Floats = values[:, 0] * weights[0] + values[:, 1] * weights[1] + values[:, 2] * weights[2]
    return found
