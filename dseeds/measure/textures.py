"""`textures`: features of the co-occurrence of grey levels for each supervoxel, out of core.

Regions count pairs of neighbouring bins, in integers. The counts of a range of labels are added up and converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dseeds.core.checks import read_extents
from dseeds.core.geometry import Box, Tiling
from dseeds.core.progress import Progress
from dseeds.io import Image, Source, open_image
from dseeds.io.labels import (
    TASK_BYTES,
    align_image,
    choose_tiling,
    materialise,
    materialise_image,
    open_labels,
    read_labels,
)
from dseeds.measure.identity import LabelIdentity, find_run
from dseeds.measure.kernels import textures as kernel
from dseeds.measure.kernels.numbering import count_numbers, number_labels
from dseeds.measure.label_hash import LabelHash, hash_box
from dseeds.measure.region_tables import (
    RegionRows,
    SupervoxelTables,
    begin_measurement,
    count_regions,
    publish_supervoxels,
)
from dseeds.measure.votes import add_up_pairs
from dseeds.measure.windows import begin_search, search_windows
from dseeds.parallel.capacity import parse_memory
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.intensity_windows import Limits
from dseeds.storage.label_records import LabelRange, LabelRecords, label_ranges
from dseeds.storage.parquet_dataset import TABLE, TEXTURES, Dataset

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike

COLUMNS = ("contrast", "homogeneity", "energy", "entropy")
# Memory of a task per voxel beside the volumes as they are read: labels, numbers, codes, a channel's bins, and runs.
VOXEL_BYTES = 24


class Textures(SupervoxelTables):
    """The textures of supervoxels.

    Attributes
    ----------
    address : str or None
        The folder with the Parquet tables; None if they are only in memory.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label; see `textures`.

    Examples
    --------
    >>> measured = textures(np.array([[[1, 1, 2]]]), np.array([[[0, 63, 5]]]), window=(0, 64))
    >>> measured.table["contrast"].to_pylist()
    [3969.0, nan]
    """

    kind = TEXTURES


@dataclass(frozen=True)
class TextureJob:
    """What the tasks of textures have in common."""

    labels: Source
    image: Image
    tiling: Tiling
    dataset: Dataset
    windows: tuple[Limits, ...] = ()

    @property
    def records(self) -> LabelRecords:
        """The rows (label, code, count) that regions have written."""
        return LabelRecords(self.dataset.scratch.at("rows"), 3)


def textures(
    labels: Any,
    image: Any,
    target: str | Path | None = None,
    *,
    window: Any = None,
    percentiles: Sequence[float] | None = None,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Textures:
    """Measure the texture of supervoxels by the co-occurrence of their grey levels (GLCM), out of core.

    Parameters
    ----------
    labels : source
        The supervoxels of any program, axes (z, y, x), labels from 1 to 2^63 - 1, 0 where masked out: an array, or what
        `segment` takes as a source.
    image : source or list of sources
        The intensities on the same grid, as for `segment`.
    target : path or URL, optional
        A new folder for the Parquet table ``table.parquet``, a folder of parts. Default: it stays in memory.
    window, percentiles : optional
        The intensities between which there are 64 grey levels of equal width, as for `features`.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.
    region, memory, threads, client, overwrite, progress : optional
        As for `features`.

    Returns
    -------
    Textures
        With the table; pandas, polars and Dask can also read the target.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If a source or the target's folder does not exist.
    ValueError
        If the labels are not integers from 0, shapes or positions differ, no voxel has a label, or a parameter is out
        of range.

    Notes
    -----
    The matrix of a supervoxel counts the pairs of neighbouring voxels that both belong to it, in all 13 directions at a
    distance of one voxel, by their grey levels; it is symmetric and divided by its sum, ``P``. So there is one matrix
    for all directions ("3D, merged" of the Image Biomarker Standardisation Initiative). Voxels that are NaN have no
    pairs; intensities beyond the window have its first or its last level. All counts are integers, the same however the
    volume is cut.

    Columns of the table, those of textures named as in scikit-image's `graycoprops`; with several channels, those after
    the first two end in the channel's number, as in ``contrast-0``:

    ``label``, ``num_pixels``
        The label, and its number of voxels.
    ``num_pairs``
        The number of pairs.
    ``contrast``
        ``sum of P (i - j)^2``.
    ``homogeneity``
        ``sum of P / (1 + (i - j)^2)``.
    ``energy``
        ``sqrt(sum of P^2)``.
    ``entropy``
        ``-sum of P ln(P)``.

    R. M. Haralick, K. Shanmugam, I. Dinstein, "Textural Features for Image Classification", IEEE Transactions on
    Systems, Man, and Cybernetics 3, 1973. NaN where a supervoxel has no pairs.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 1, 1, 2, 2]]])
    >>> image = np.array([[[10, 10, 12, 30, 30]]], np.uint8)
    >>> measured = dseeds.textures(labels, image, window=(0, 64))
    >>> measured.table.select(["num_pairs", "contrast", "energy"]).to_pydict()
    {'num_pairs': [2, 1], 'contrast': [2.0, 0.0], 'energy': [0.6123724356957945, 1.0]}
    """
    label_source = open_labels(labels)
    image = open_image(image, volume=volume, channel_axis=channel_axis, level=level or 0)
    image, shape = align_image(image, label_source), label_source.shape
    extents = read_extents("region", region)
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    search = begin_search(label_source, image, window, percentiles)
    tile = choose_tiling(
        shape, label_source.chunks, VOXEL_BYTES + label_source.dtype.itemsize + image.itemsize, task_bytes, extents
    )
    with begin_measurement(
        target, TEXTURES, overwrite=overwrite, client=client, threads=threads, progress=progress
    ) as (dataset, executor, anywhere):
        job = TextureJob(
            materialise(label_source, dataset.scratch, "labels", anywhere=anywhere),
            materialise_image(image, dataset.scratch, anywhere=anywhere),
            Tiling(shape, tile),
            dataset,
        )
        job = replace(job, windows=search_windows(job, search, executor))
        [indices], sums = count_regions(executor, "count", count_texture_region, job)
        identity = LabelIdentity.of(shape, sums, find_run(label_source))
        names = {"labels": label_source.name, "image": image.name, "windows": job.windows}
        publish_supervoxels(executor, write_textures, job, list(label_ranges(indices)), names, identity)
        return Textures.of(dataset, target)


def count_texture_region(job: TextureJob, number: int) -> RegionRows:
    """Count the pairs of grey levels in a region, and write them to scratch."""
    box = job.tiling.box(number)
    # The neighbours of its voxels.
    window = box.grow(1, within=job.tiling.shape)
    labels = read_labels(job.labels, window, narrow=True)
    rows, part = np.zeros((0, 3), np.int64), LabelHash()
    if labels[box.relative_to(window.lo).slices].any():
        part = hash_box(labels, window.lo, box, job.tiling.shape)
        rows = count_textures(labels, job.image.read(window.slices), box.relative_to(window.lo), job.windows)
    # A task of an abandoned run may arrive late.
    job.dataset.check_own()
    return RegionRows(number, (job.records.write(number, rows),), part)


def count_textures(
    labels: NDArray[Any], channels: Sequence[NDArray[Any]], box: Box, windows: Sequence[Limits]
) -> NDArray[np.int64]:
    """Return the rows (label, code, count) of a box in a window of labels and channels (z, y, x), sorted by label.

    For each channel, codes are those of `dseeds.measure.kernels.textures`; its first one is CODES times its number.
    """
    names, _, numbers = number_labels(labels)
    if len(names) >= kernel.MOST_NUMBERS or labels.size > kernel.MOST_VOXELS:
        raise ValueError(
            f"a region has {len(names)} supervoxels and {labels.size} voxels: pass a smaller region= (--region)."
        )
    sizes = count_numbers(numbers[box.slices], len(names))
    inside = np.flatnonzero(sizes)
    parts = [np.column_stack([names[inside], np.full(len(inside), kernel.VOXELS), sizes[inside]])]
    for c, (channel, limits) in enumerate(zip(channels, windows, strict=True)):
        bins = np.empty(labels.shape, np.uint8)
        quantise_box([np.ascontiguousarray(channel)], [limits], bins[None])
        # One more voxel on all sides, also where the volume ends.
        begin = [1 - a for a in box.lo]
        codes = np.full([n + 2 for n in box.shape], -1, np.int32)
        kernel.encode_levels(numbers, bins, (begin[0], begin[1], begin[2]), codes)
        rows = kernel.count_cooccurrences(codes, len(names))
        parts.append(np.column_stack([names[rows[:, 0]], rows[:, 1] + c * kernel.CODES, rows[:, 2]]))
    rows = np.concatenate(parts)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def write_textures(job: TextureJob, number: int, part: LabelRange) -> tuple[int, int]:
    """Write the table of a range of labels, and return the number of its supervoxels."""
    table = build_texture_table(add_up_pairs(job.records.read(part)), job.image.channels)
    job.dataset.write(TABLE, number, table)
    return number, len(table)


def build_texture_table(rows: NDArray[np.int64], channels: int) -> pa.Table:
    """Return the table of supervoxels, see `textures`, from sorted rows (label, code, count)."""
    voxels = rows[rows[:, 1] == kernel.VOXELS]
    columns: dict[str, Any] = {"label": voxels[:, 0], "num_pixels": voxels[:, 2]}
    for c in range(channels):
        codes = rows[:, 1] - c * kernel.CODES
        own = rows[(codes >= 0) & (codes < kernel.VOXELS)] - (0, c * kernel.CODES, 0)
        starts = np.append(np.searchsorted(own[:, 0], voxels[:, 0]), len(own))
        pairs, values = kernel.compute_textures(np.ascontiguousarray(own[:, 1:]), starts)
        suffix = "" if channels == 1 else f"-{c}"
        columns[f"num_pairs{suffix}"] = pairs
        columns |= {f"{name}{suffix}": values[:, k] for k, name in enumerate(COLUMNS)}
    return pa.table(columns)
