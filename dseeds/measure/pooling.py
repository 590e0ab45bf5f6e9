"""`pool`: means and standard deviations of any number of channels for each supervoxel, out of core.

Regions add up each channel, with sums that do not depend on how the volume is cut. The sums of a range of labels are
added up and converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from dseeds.core.checks import read_extents
from dseeds.core.dtypes import native_dtype
from dseeds.core.geometry import Box, Tiling, Triple, triple
from dseeds.core.optional import import_optional
from dseeds.core.progress import Progress
from dseeds.io import Image, Source
from dseeds.io.image import open_channels
from dseeds.io.labels import (
    TASK_BYTES,
    align_image,
    choose_tiling,
    materialise,
    materialise_image,
    open_labels,
    read_labels,
)
from dseeds.io.source import SourceQuery
from dseeds.measure.annotated_matrix import AnnotatedMatrix, read_lists
from dseeds.measure.identity import LabelIdentity, find_run
from dseeds.measure.kernels import pooling as kernel
from dseeds.measure.kernels.numbering import LabelRuns, find_lines, find_runs, number_labels
from dseeds.measure.label_hash import hash_box
from dseeds.measure.region_tables import (
    RegionRows,
    SupervoxelTables,
    begin_measurement,
    count_regions,
    publish_supervoxels,
)
from dseeds.parallel.capacity import parse_memory
from dseeds.storage.label_records import RANGE, RANGE_BYTES, LabelRange, LabelRecords, label_ranges
from dseeds.storage.parquet_dataset import POOLS, TABLE, Dataset

if TYPE_CHECKING:
    import xarray

    from dseeds.parallel.clients import ClientLike

STATISTICS = ("mean", "std", "min", "max")
MOST_CHANNELS = 1 << 14
# Memory of a task per voxel of the labels, beside them as they are read: as kernels take them, numbers and runs.
VOXEL_BYTES = 16


class Pooled(SupervoxelTables):
    """The channels of each supervoxel.

    Attributes
    ----------
    address : str or None
        The folder with the Parquet tables; None if they are only in memory.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label; see `pool`.

    Examples
    --------
    >>> pooled = pool(np.array([[[1, 1, 2]]]), np.array([[[[1, 2, 5]]], [[[0, 1, 7]]]]), channel_axis=0)
    >>> labels, matrix = pooled.to_numpy()
    >>> labels.tolist(), matrix.tolist()
    ([1, 2], [[1.5, 0.5], [5.0, 7.0]])
    """

    kind = POOLS

    @property
    def channels(self) -> int:
        """The number of channels."""
        schema = next(self._parts(TABLE)).schema
        return int(next(schema.field(name).type.list_size for name in STATISTICS if name in schema.names))

    def to_numpy(self, statistic: str = "mean") -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the labels, int64 (n,), and the matrix of a statistic, float32 or float64 (n, channels)."""
        table = self.table
        if statistic not in table.column_names:
            stored = ", ".join(name for name in table.column_names if name in STATISTICS)
            raise ValueError(f"{statistic!r} was not pooled: choose one of {stored}.")
        return table["label"].to_numpy(), read_lists(table, statistic)

    def to_xarray(self) -> xarray.Dataset:
        """Return a dataset with the statistics, dimensions (label, channel), indexed by label; it needs xarray."""
        module, table = import_optional("xarray", "A Dataset", "dseeds[xarray]"), self.table
        columns = {name: (("label", "channel"), self.to_numpy(name)[1]) for name in self._statistics(table)}
        sizes = ("label", table["num_pixels"].to_numpy())
        result: xarray.Dataset = module.Dataset(columns, {"label": table["label"].to_numpy(), "num_pixels": sizes})
        return result

    @override
    def _matrix(self, table: pa.Table) -> AnnotatedMatrix:
        values = {name: read_lists(table, name) for name in self._statistics(table)}
        first = next(iter(values))
        names = list(map(str, range(values[first].shape[1])))
        return AnnotatedMatrix(values.pop(first), names, values)

    @staticmethod
    def _statistics(table: pa.Table) -> list[str]:
        return [name for name in STATISTICS if name in table.column_names]


@dataclass(frozen=True)
class PoolJob:
    """What the tasks of pooling have in common.

    The image is coarser than the labels by `factors` along (z, y, x).
    """

    labels: Source
    image: Image
    tiling: Tiling
    dataset: Dataset
    factors: Triple
    statistics: tuple[str, ...]

    @property
    def records(self) -> LabelRecords:
        """The rows that regions have written; see `dseeds.measure.kernels.pooling`."""
        return LabelRecords(self.dataset.scratch.at("rows"), row_width(self.image.channels))


def pool(
    labels: Any,
    image: Any,
    target: str | Path | None = None,
    *,
    statistics: Sequence[str] = ("mean", "std"),
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Pooled:
    """Pool channels over supervoxels, out of core: the embeddings of a network become a vector for each supervoxel.

    Parameters
    ----------
    labels : source
        The supervoxels of any program, axes (z, y, x), labels from 1 to 2^63 - 1, 0 where masked out: an array, or what
        `segment` takes as a source.
    image : source or list of sources
        The channels, up to 16384, of real numbers of any type, float16 too: on the grid of the labels, or on a coarser
        one of the same field of view, whose voxels measure a whole number of theirs along each axis. An array of
        channels needs `channel_axis`.
    target : path or URL, optional
        A new folder for the Parquet table ``table.parquet``, a folder of parts. Default: it stays in memory.
    statistics : sequence of str, default ("mean", "std")
        What to compute: ``"mean"``, ``"std"``, of the population, ``"min"`` and ``"max"``.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.
    region, memory, threads, client, overwrite, progress : optional
        As for `features`.

    Returns
    -------
    Pooled
        With the table, and as NumPy, xarray or AnnData matrix; pandas, polars and Dask can also read the target.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If a source or the target's folder does not exist.
    ValueError
        If the labels are not integers from 0, the grids do not match, no voxel has a label, or a parameter is out of
        range.

    Notes
    -----
    Columns of the table:

    ``label``, ``num_pixels``
        The label, and its number of voxels.
    ``mean``, ``std``, ``min``, ``max``
        A list with the statistic of each channel, float32, or float64 if a channel has more than float32 holds. NaN and
        infinite values are left out; the statistic is NaN where a channel has no other. On a coarser grid, every voxel
        of the labels has the value of the coarser voxel that it lies in.

    Sums are those of `dseeds.core.exact_sum`: the same however the volume is cut, and exact to 72 bits below the first
    digit of the largest term; squares of float64 are first rounded to float64. A task holds all channels of its region,
    which is smaller the more there are.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 1, 1, 2, 2, 2, 2, 2]]])
    >>> embedding = np.array([[[[1, 3]]], [[[0.5, 0]]]], np.float16)  # two channels at a quarter of the resolution
    >>> pooled = dseeds.pool(labels, embedding, channel_axis=0)
    >>> pooled.table["mean"].to_pylist()
    [[1.0, 0.5], [2.5999999046325684, 0.10000000149011612]]
    """
    label_source = open_labels(labels)
    query = SourceQuery(volume, channel_axis, "image", level or 0, most_channels=MOST_CHANNELS)
    image = align_image(open_channels(image, query), label_source, coarser=True)
    shape, factors = label_source.shape, _grid_factors(label_source.shape, image.shape)
    chosen = _check_statistics(statistics)
    extents = read_extents("region", region)
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    # The channels as they are read, and one of them as the kernel takes it.
    voxel_bytes = VOXEL_BYTES + label_source.dtype.itemsize + (image.itemsize + 12) / prod(factors)
    chunks = label_source.chunks
    if image.chunks is not None and image.itemsize / prod(factors) > label_source.dtype.itemsize:
        chunks = triple(c * f for c, f in zip(image.chunks, factors, strict=True))
    tile = choose_tiling(shape, chunks, voxel_bytes, task_bytes, extents)
    with begin_measurement(target, POOLS, overwrite=overwrite, client=client, threads=threads, progress=progress) as (
        dataset,
        executor,
        anywhere,
    ):
        job = PoolJob(
            materialise(label_source, dataset.scratch, "labels", anywhere=anywhere),
            materialise_image(image, dataset.scratch, anywhere=anywhere),
            Tiling(shape, tile),
            dataset,
            factors,
            chosen,
        )
        [indices], sums = count_regions(executor, "pool", pool_region, job)
        rows = max(1, min(RANGE, RANGE_BYTES // (8 * job.records.width)))
        identity = LabelIdentity.of(shape, sums, find_run(label_source))
        names = {"labels": label_source.name, "image": image.name, "channels": image.channels}
        publish_supervoxels(executor, write_pooled, job, list(label_ranges(indices, rows)), names, identity)
        return Pooled.of(dataset, target)


def pool_region(job: PoolJob, number: int) -> RegionRows:
    """Add up the channels of a region, and write its rows to scratch."""
    box, factors = job.tiling.box(number), job.factors
    labels = read_labels(job.labels, box, narrow=True)
    part = hash_box(labels, box.lo, box, job.tiling.shape)
    names, sizes, numbers = number_labels(labels)
    del labels
    if not len(names):
        return RegionRows(number, (np.zeros((0, 6), np.int64),), part)
    lo = triple(a // f for a, f in zip(box.lo, factors, strict=True))
    window = Box(lo, triple(-(-b // f) for b, f in zip(box.hi, factors, strict=True)))
    if factors == (1, 1, 1):
        runs = find_lines(numbers)
    else:
        runs = find_runs(numbers, len(names), triple(a % f for a, f in zip(box.lo, factors, strict=True)), factors)
    del numbers
    rows = pool_rows(names, sizes, runs, job.image.read(window.slices))
    # A task of an abandoned run may arrive late.
    job.dataset.check_own()
    return RegionRows(number, (job.records.write(number, rows),), part)


def row_width(channels: int) -> int:
    """Return the number of columns of a row; see `dseeds.measure.kernels.pooling`."""
    return kernel.CHANNELS + channels * kernel.CHANNEL_WIDTH


def pool_rows(
    names: NDArray[np.int64], sizes: NDArray[np.int64], runs: LabelRuns, channels: Sequence[NDArray[Any]]
) -> NDArray[np.int64]:
    """Return the rows of a region's supervoxels, sorted by label, from their runs and the windows of channels."""
    rows = np.zeros((len(names), row_width(len(channels))), np.int64)
    rows[:, 0], rows[:, kernel.SIZE] = names, sizes
    for c, channel in enumerate(channels):
        begin = kernel.CHANNELS + c * kernel.CHANNEL_WIDTH
        rows.view(np.float64)[:, begin + kernel.SMALLEST : begin + kernel.CHANNEL_WIDTH] = np.inf, -np.inf
        values = np.ascontiguousarray(channel, channel_dtype([channel.dtype])).reshape(-1)
        kernel.pool_channel(values, runs, rows, begin)
    return rows[np.argsort(names)]


def channel_dtype(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return float32 if it holds every value of some dtypes, else float64.

    >>> channel_dtype([np.dtype("float16"), np.dtype("uint16")]), channel_dtype([np.dtype("int32")])
    (dtype('float32'), dtype('float64'))
    """
    return np.result_type(np.float32, *map(native_dtype, dtypes))


def write_pooled(job: PoolJob, number: int, part: LabelRange) -> tuple[int, int]:
    """Write the table of a range of labels, and return the number of its supervoxels."""
    table = build_pooled_table(kernel.combine_pools(job.records.read(part)), job.statistics, job.image.dtypes)
    job.dataset.write(TABLE, number, table)
    return number, len(table)


def build_pooled_table(rows: NDArray[np.int64], statistics: Sequence[str], dtypes: Sequence[np.dtype[Any]]) -> pa.Table:
    """Return the table of supervoxels, see `pool`, from their rows."""
    means, deviations = kernel.compute_means(rows)
    begins = kernel.CHANNELS + kernel.CHANNEL_WIDTH * np.arange(len(dtypes))
    matrices = {"mean": means, "std": deviations}
    for name, column in (("min", kernel.SMALLEST), ("max", kernel.LARGEST)):
        matrices[name] = rows[:, begins + column].view(np.float64)
        matrices[name][rows[:, begins + kernel.MEASURED] == 0] = np.nan
    columns: dict[str, Any] = {"label": rows[:, 0], "num_pixels": rows[:, kernel.SIZE]}
    for name in statistics:
        values = pa.array(matrices[name].astype(channel_dtype(dtypes)).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(values, len(dtypes))
    return pa.table(columns)


def _grid_factors(shape: Triple, image: Triple) -> Triple:
    """Return the voxels of the labels along (z, y, x) in a voxel of the image."""
    if any(n % m for n, m in zip(shape, image, strict=True)):
        raise ValueError(
            f"labels has shape {shape} and image {image}, along (z, y, x): the first must be whole multiples of the "
            f"second, so crop or resample one of them."
        )
    return triple(n // m for n, m in zip(shape, image, strict=True))


def _check_statistics(statistics: Sequence[str]) -> tuple[str, ...]:
    names = [statistics] if isinstance(statistics, str) else list(statistics)
    if not names or set(names) - set(STATISTICS):
        raise ValueError(f"statistics must be some of {', '.join(STATISTICS)}, not {', '.join(map(str, names))!r}.")
    return tuple(name for name in STATISTICS if name in names)
