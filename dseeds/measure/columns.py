"""The columns of the feature tables, computed from the integer counts of supervoxels and contacts.

Everything is counted in integers (`dseeds.measure.kernels.features`) and converted to floats here, once and in a fixed
order, so that the tables are bit-identical however the volume was cut. Columns have the names of scikit-image's
`regionprops_table` where it has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.dtypes import above_origin, native_values
from dseeds.core.exact_sum import BITS, totals
from dseeds.core.geometry import Box, Triple
from dseeds.measure.kernels import features as kernel
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.intensity_windows import Limits
from dseeds.seeds.kernels.voxels import BINS

# The columns of a centroid and of a bounding box, in voxels along (z, y, x), and of a centroid in mm along (x, y, z).
CENTROID, CENTROID_WORLD = (tuple(f"{name}-{axis}" for axis in range(3)) for name in ("centroid", "centroid_world"))
BOUNDING_BOX = tuple(f"bbox-{end}" for end in range(6))
TABLE_PERCENTILES = (5, 25, 50, 75, 95)
# The mean above the window's low end, for integers that float64 does not hold.
ABOVE = "intensity_mean_above_window"

CountRows: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Space:
    """The position of an image's voxels in space, and the units of its intensities.

    `spacing` is the size of a voxel along (z, y, x) in millimetres, 1 if unknown; `affine` has the first three rows of
    the matrix that maps a voxel (x, y, z, 1) to its position (x, y, z) in millimetres; the bins of histograms divide
    the channels' intensity `windows` equally; and intensities are `whole` if they are integers of up to 16 bits.
    """

    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    windows: tuple[Limits, ...]
    whole: bool

    @property
    def origins(self) -> tuple[int, ...]:
        """What each channel's intensities are measured from: 0, unless they are integers that float64 does not hold."""
        return tuple(low if isinstance(low, int) else 0 for low, _ in self.windows)

    @property
    def pivots(self) -> Floats:
        """The values subtracted from each channel's intensities, above its origin, before they are added up."""
        # Within this range, every integer of 16 bits is close enough to the pivot to have a unit.
        lows = [min(max(round(low), -(1 << 15)), (1 << 16) - 1) if self.whole else low for low, _ in self.windows]
        return np.array([low - origin for low, origin in zip(lows, self.origins, strict=True)], np.float64)

    @property
    def scales(self) -> Floats:
        """Units per intensity for each channel, see `dseeds.measure.kernels.features`: at least 2^24 per window."""
        return np.array([1.0 if self.whole else _unit_scale(high - low) for low, high in self.windows])

    @property
    def face_areas(self) -> tuple[float, float, float]:
        """The area of a voxel's faces along (z, y, x)."""
        z, y, x = self.spacing
        return y * x, z * x, z * y

    def mean_name(self, channel: int) -> str:
        """Return the name of the column with a channel's means as precisely as they are known."""
        return self.column_name(ABOVE if self.origins[channel] else "intensity_mean", channel)

    def column_name(self, name: str, channel: int) -> str:
        """Return the name of a channel's column, which ends in the channel's number if there are several."""
        return name if len(self.windows) == 1 else f"{name}-{channel}"


def are_small_integers(dtypes: Iterable[np.dtype[Any]]) -> bool:
    """Return whether all channels are integers of up to 16 bits."""
    return all(dtype.kind in "iu" and dtype.itemsize <= 2 for dtype in dtypes)


def count_features(
    labels: NDArray[Any], channels: Sequence[NDArray[Any]], box: Box, space: Space
) -> tuple[CountRows, CountRows]:
    """Return the rows of a region's supervoxels and contacts, sorted by label; see `dseeds.measure.kernels.features`.

    `labels`, uint32 or int64, and each of `channels` are a window (z, y, x): the region in `box` and, where the volume
    continues, one more voxel towards higher z, y and x.
    """
    # The kernels index flat views, and images in memory may have any order.
    labels = np.ascontiguousarray(labels)
    channels = [native_values(channel) for channel in channels]
    bins = np.empty((len(channels), *labels.shape), np.uint8)
    for channel, window, out in zip(channels, space.windows, bins, strict=True):
        # One by one: NaN in one channel must not hide the voxel in another.
        quantise_box([channel], [window], out[None])
    channels = [above_origin(channel, origin) for channel, origin in zip(channels, space.origins, strict=True)]
    units = np.empty(bins.shape, np.int32)
    for c, channel in enumerate(channels):
        kernel.in_units(channel, space.pivots[c], space.scales[c], units[c])
    # Small integers can be recovered from their units.
    reals = np.empty((len(channels), 0, 0, 0))
    if not space.whole:
        reals = np.stack([channel.astype(np.float64) for channel in channels])
    voxels, contacts = kernel.accumulate_features(
        labels, box.shape, box.lo, reals, units, space.pivots, bins, np.array(space.spacing)
    )
    return voxels[np.argsort(voxels[:, 0])], sort_contacts(contacts)


def sort_contacts(contacts: CountRows) -> CountRows:
    """Return the rows of contacts sorted by both labels."""
    return contacts[np.lexsort((contacts[:, 1], contacts[:, 0]))]


def build_feature_table(rows: CountRows, space: Space, shape: Triple) -> pa.Table:
    """Return the table of supervoxels, see `dseeds.features`, from their rows in a volume of a shape (z, y, x)."""
    size = rows[:, kernel.SIZE]
    area = size * math.prod(space.spacing)
    outer = 2 * (size[:, None] - rows[:, kernel.INNER_FACES : kernel.CHANNELS])
    surface = _weighted_sum(outer, space.face_areas)
    columns = {"label": rows[:, 0], "num_pixels": size, "area": area, **dict(_position_columns(rows, space))}
    columns["surface_area"] = surface
    # The isoperimetric quotient, as in `dseeds.quality.metrics.compactness`.
    columns["compactness"] = 36 * np.pi * (area / surface) * (area / surface) / surface
    low, high = rows[:, kernel.BOX_MIN : kernel.BOX_MAX], rows[:, kernel.BOX_MAX : kernel.INNER_FACES]
    columns["border"] = ((low == 0) | (high == np.array(shape) - 1)).any(axis=1)
    for channel in range(len(space.windows)):
        begin = kernel.CHANNELS + channel * kernel.CHANNEL_WIDTH
        counts = rows[:, begin : begin + kernel.CHANNEL_WIDTH]
        for name, values in _intensity_columns(counts, channel, space):
            columns[space.column_name(name, channel)] = values
    return pa.table(columns)


def _position_columns(rows: CountRows, space: Space) -> Iterator[tuple[str, NDArray]]:
    """Yield the positions of supervoxels, in voxels along (z, y, x) and in millimetres along (x, y, z)."""
    centroid = rows[:, kernel.COORDINATE_SUMS : kernel.BOX_MIN] / rows[:, kernel.SIZE, None]
    low, high = rows[:, kernel.BOX_MIN : kernel.BOX_MAX], rows[:, kernel.BOX_MAX : kernel.INNER_FACES] + 1
    for axis in range(3):
        yield f"centroid-{axis}", centroid[:, axis]
    for axis, values in enumerate([*low.T, *high.T]):
        yield f"bbox-{axis}", values
    # A voxel's centre lies at its index, its faces half a voxel to either side.
    corners = []
    for axis, row in enumerate(space.affine):
        yield f"centroid_world-{axis}", _weighted_sum(centroid[:, ::-1], row[:3]) + row[3]
        ends = [(low[:, ::-1] - 0.5) * row[:3], (high[:, ::-1] - 0.5) * row[:3]]
        corners.append([pick(*ends) for pick in (np.minimum, np.maximum)])
    for end in range(2):
        for axis, row in enumerate(space.affine):
            yield f"bbox_world-{3 * end + axis}", _weighted_sum(corners[axis][end], (1, 1, 1)) + row[3]


def _intensity_columns(counts: CountRows, channel: int, space: Space) -> Iterator[tuple[str, NDArray | pa.Array]]:
    """Yield the statistics of a channel's intensities; NaN where none was measured."""
    measured = counts[:, kernel.MEASURED].astype(np.float64)
    empty = measured == 0
    measured[empty] = np.nan
    scale = space.scales[channel]
    mean = (_join_sum(counts, kernel.UNIT_SUM) / scale + totals(counts, kernel.FAR_SUM)) / measured
    # Squares of intensities beyond 1e154 overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = _join_sum(counts, kernel.UNIT_SQUARES) / scale / scale + totals(counts, kernel.FAR_SQUARES)
        deviation = np.sqrt(np.maximum(squares / measured - mean * mean, 0))
    low = np.ascontiguousarray(counts[:, kernel.MINIMUM]).view(np.float64)
    high = np.ascontiguousarray(counts[:, kernel.MAXIMUM]).view(np.float64)
    low[empty] = high[empty] = np.nan
    # Rounding to units may move the mean beyond all intensities.
    above, origin = np.clip(mean + space.pivots[channel], low, high), float(space.origins[channel])
    yield "intensity_mean", above + origin
    if origin:
        yield ABOVE, above
    yield "intensity_std", deviation
    yield "intensity_min", low + origin
    yield "intensity_max", high + origin
    histogram = counts[:, kernel.BIN_COUNTS :]
    for percentile in TABLE_PERCENTILES:
        window = space.windows[channel][0] - space.origins[channel], space.windows[channel][1] - space.origins[channel]
        values = _histogram_percentile(histogram, percentile, window)
        yield f"intensity_percentile_{percentile}", np.clip(values, low, high) + origin
    yield "histogram", pa.FixedSizeListArray.from_arrays(pa.array(histogram.reshape(-1)), BINS)


def _histogram_percentile(histogram: CountRows, percentile: int, window: Limits) -> Floats:
    """Return a percentile of each histogram, with the voxels of a bin spread evenly over it."""
    counts = np.cumsum(histogram, axis=1)
    rank = counts[:, -1] * percentile / 100
    rows = np.arange(len(counts))
    bin_ = np.minimum((counts < rank[:, None]).sum(axis=1), BINS - 1)
    own = histogram[rows, bin_]
    before = counts[rows, bin_] - own
    fraction = np.divide(rank - before, own, out=np.full(len(rows), np.nan), where=own > 0)
    values: Floats = window[0] + (bin_ + fraction) / BINS * (window[1] - window[0])
    return values


def build_edge_table(rows: CountRows, supervoxels: pa.Table, space: Space) -> pa.Table:
    """Return the edges of the region adjacency graph, see `dseeds.features`, from the rows of contacts.

    `supervoxels` has the labels, means and histograms of all supervoxels in these contacts, sorted by label.
    """
    faces = rows[:, kernel.FACES : kernel.STEP_CHANNELS]
    columns = {"source": rows[:, 0], "target": rows[:, 1], "num_faces": faces.sum(axis=1)}
    columns["area"] = _weighted_sum(faces, space.face_areas)
    pairs = np.searchsorted(supervoxels["label"].to_numpy(), rows[:, :2])
    for channel in range(len(space.windows)):
        mean = supervoxels[space.mean_name(channel)].to_numpy()[pairs]
        begin = kernel.STEP_CHANNELS + channel * kernel.STEP_CHANNEL_WIDTH
        steps = rows[:, begin : begin + kernel.STEP_CHANNEL_WIDTH]
        columns[space.column_name("intensity_mean", channel)] = _contact_means(steps, space, channel)
        columns[space.column_name("intensity_difference", channel)] = np.abs(mean[:, 0] - mean[:, 1])
        columns[space.column_name("intensity_gradient", channel)] = _gradient(steps, space, space.scales[channel])
        column = supervoxels[space.column_name("histogram", channel)].combine_chunks()
        histograms = column.flatten().to_numpy().reshape(-1, BINS)
        columns[space.column_name("histogram_distance", channel)] = histogram_distance(histograms, pairs)
    return pa.table(columns)


def _contact_means(steps: CountRows, space: Space, channel: int) -> Floats:
    """Return the mean intensity on both sides of each contact's faces."""
    measured = steps[:, kernel.STEPS_MEASURED].astype(np.float64)
    measured[measured == 0] = np.nan
    total = steps[:, kernel.SIDES_SUM] / 2 / space.scales[channel] + totals(steps, kernel.FAR_MEAN_SUM)
    means: Floats = total / measured + space.pivots[channel] + float(space.origins[channel])
    return means


def _gradient(steps: CountRows, space: Space, scale: float) -> Floats:
    """Return the mean step in intensity across each contact, per millimetre."""
    measured = steps[:, kernel.STEPS_MEASURED]
    inverses = [1 / (scale * length) for length in space.spacing]
    sums = steps[:, kernel.STEP_SUMS : kernel.SIDES_SUM]
    total = _weighted_sum(sums, inverses) + totals(steps, kernel.FAR_STEP_SUM)
    gradient: Floats = np.divide(total, measured, out=np.full(len(steps), np.nan), where=measured > 0)
    return gradient


def histogram_distance(histograms: NDArray[np.int64], pairs: NDArray[np.int64]) -> Floats:
    """Return the distances, float64 (m,), of pairs (m, 2) of histograms (n, bins): 0 (equal) to 1; NaN if one is empty.

    The distance is ``1 - sum over bins of min(g / |g|, h / |h|)``, 1 minus the intersection, and the total variation
    distance of the two distributions: M. J. Swain, D. H. Ballard, "Color Indexing", IJCV 7, 1991.

    Examples
    --------
    >>> histogram_distance(np.array([[2, 2, 0], [0, 1, 1]]), np.array([[0, 1], [0, 0]])).tolist()
    [0.5, 0.0]
    """
    sizes = histograms.sum(axis=1).astype(np.float64)
    sizes[sizes == 0] = np.nan
    common = np.zeros(len(pairs))
    # Bin after bin, so that the order of the sum is fixed.
    for column in histograms.T:
        share = column / sizes
        common += np.minimum(share[pairs[:, 0]], share[pairs[:, 1]])
    return np.clip(1 - common, 0, 1)


def _unit_scale(width: float) -> float:
    """Return the power of two that maps a window's width to 2^24 .. 2^25; the largest for a width of 0."""
    return math.ldexp(1.0, max(-1000, min(1000, 25 - math.frexp(width)[1])) if width > 0 else 1000)


def _join_sum(rows: CountRows, column: int) -> Floats:
    """Return sums stored in two columns: the part above `BITS` bits, and the rest, which may have outgrown them."""
    above, below = rows[:, column], rows[:, column + 1]
    return (above + (below >> BITS)) * float(1 << BITS) + (below & ((1 << BITS) - 1))


def _weighted_sum(values: NDArray, weights: Sequence[float]) -> Floats:
    """Return the weighted sum of three columns, added in their order."""
    total: Floats = values[:, 0] * weights[0] + values[:, 1] * weights[1] + values[:, 2] * weights[2]
    return total
