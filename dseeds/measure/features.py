"""`features`: the table of supervoxels and their region adjacency graph, out of core.

Regions count their share of each supervoxel and each contact, in integers. Then the counts are added up and converted
to columns, one range of labels after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from dseeds._version import __version__
from dseeds.core.checks import read_extents
from dseeds.core.geometry import Tiling, check_spacing
from dseeds.core.progress import Progress
from dseeds.io import Image, Source, open_image
from dseeds.io.labels import (
    TASK_BYTES,
    align_image,
    check_still_unedited,
    choose_tiling,
    materialise,
    materialise_image,
    open_labels,
    read_labels,
)
from dseeds.measure.columns import (
    Space,
    are_small_integers,
    build_edge_table,
    build_feature_table,
    count_features,
    sort_contacts,
)
from dseeds.measure.identity import LabelIdentity, LabelRun, find_run
from dseeds.measure.kernels import features as kernel
from dseeds.measure.kernels.features import combine_contacts, combine_voxels
from dseeds.measure.label_hash import LabelHash, hash_box
from dseeds.measure.region_tables import RegionRows, SupervoxelTables, begin_measurement, count_regions, write_parts
from dseeds.measure.windows import begin_search, search_windows
from dseeds.parallel.capacity import parse_memory
from dseeds.parallel.executor import Executor
from dseeds.seeds.intensity_windows import Limits
from dseeds.storage.label_records import RANGE, LabelRange, LabelRecords, label_ranges
from dseeds.storage.parquet_dataset import EDGES, FEATURES, TABLE, Dataset

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike


class Features(SupervoxelTables):
    """The table of supervoxels and their region adjacency graph.

    Attributes
    ----------
    address : str or None
        The folder with the Parquet tables; None if they are only in memory.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label; see `features`.
    edges : pyarrow.Table
        A row for each pair of supervoxels that touch, sorted; see `features`.

    Examples
    --------
    >>> measured = features(np.array([[[1, 1, 2]]]), np.array([[[5, 7, 9]]]))
    >>> measured.supervoxels, measured.contacts, measured.table["label"].to_pylist()
    (2, 1, [1, 2])
    """

    kind = FEATURES

    @property
    def edges(self) -> pa.Table:
        """The edges of the graph, read whole."""
        return self._read(EDGES)

    @override
    def _edges(self) -> pa.Table:
        return self.edges

    @property
    def contacts(self) -> int:
        """The number of pairs of supervoxels that touch."""
        return self._count("contacts", EDGES)


@dataclass(frozen=True)
class FeatureJob:
    """What the tasks of a measurement have in common."""

    labels: Source
    # None to measure places and shapes alone.
    image: Image | None
    tiling: Tiling
    space: Space
    dataset: Dataset

    @property
    def voxels(self) -> LabelRecords:
        """The rows of supervoxels that regions have written."""
        return LabelRecords(self.dataset.scratch.at("voxels"), kernel.CHANNELS + self.channels * kernel.CHANNEL_WIDTH)

    @property
    def contacts(self) -> LabelRecords:
        """The rows of contacts that regions have written."""
        return LabelRecords(
            self.dataset.scratch.at("contacts"), kernel.STEP_CHANNELS + self.channels * kernel.STEP_CHANNEL_WIDTH
        )

    @property
    def channels(self) -> int:
        """The number of channels of the image."""
        return 0 if self.image is None else self.image.channels


def features(
    labels: Any,
    image: Any = None,
    target: str | Path | None = None,
    *,
    spacing: Sequence[float] | None = None,
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
) -> Features:
    """Measure supervoxels and their contacts out of core, as a table and a region adjacency graph.

    Counts are added up exactly, in integers: no number depends on how the volume is cut or where the tasks run.
    Intensities other than integers of up to 16 bits are first rounded, to 2^-24 of their window's width or less.

    Parameters
    ----------
    labels : source
        The supervoxels of any program, axes (z, y, x), labels from 1 to 2^63 - 1, 0 where masked out: an array, or what
        `segment` takes as a source. An array of two axes is one plane, and so is its image.
    image : source or list of sources, optional
        The intensities on the same grid, as for `segment`. Without them there are sizes, places, shapes and contacts.
    target : path or URL, optional
        A new folder for the Parquet tables ``table.parquet`` and ``edges.parquet``, each a folder of parts.
        Default: they stay in memory.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: that of the image, else that of the labels, else 1.
    window, percentiles : optional
        The intensities between which histograms have their 64 bins, all of one width. Default: those stored in the
        labels, if they are an output of `segment`; else the percentiles of the intensities where there are labels.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.
    region : int or sequence of int, optional
        Voxels along (z, y, x) of one task. Default: what fits the memory.
    memory : int or str, optional
        Memory of a task, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads of this process that share the work, if there is no client. Default: one per core.
    client : distributed.Client, cluster, str or Path, optional
        The cluster to use, as for `segment`. It requires a target, which all its workers see. Default: Dask's current
        client, if there is a target and no `threads`.
    overwrite : bool, default False
        Replace older features in the target; nothing else is ever replaced.
    progress : Progress, optional
        Follows stages and tasks.

    Returns
    -------
    Features
        With the table and the edges; pandas, polars and Dask can also read them in the target.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If a source or the target's folder does not exist.
    ValueError
        If the labels are not integers from 0, shapes differ, or a parameter is out of range.

    Notes
    -----
    Columns of the table, named as in scikit-image's `regionprops_table` where it has them. Those of intensities need an
    image; with several channels they end in the channel's number, as in ``intensity_mean-0``:

    ``label``, ``num_pixels``, ``area``
        The label; the size in voxels and in mm^3.
    ``centroid-0..2``, ``bbox-0..5``
        In voxels along (z, y, x); boxes are half open.
    ``centroid_world-0..2``, ``bbox_world-0..5``
        In mm along the image's (x, y, z), by its affine if it has one, else by the spacing alone.
    ``surface_area``, ``compactness``, ``border``
        The area of the voxel faces towards other labels, the mask and the outside, in mm^2; the isoperimetric quotient
        ``36 pi V^2 / A^3``; and whether it touches the border of the volume.
    ``intensity_mean``, ``intensity_std``, ``intensity_min``, ``intensity_max``
        Of the finite intensities. Integers beyond 2^53 are rounded to float64 in the end: where the window's low end is
        one, ``intensity_mean_above_window`` is the mean above it, not rounded like this.
    ``intensity_percentile_5``, ``_25``, ``_50``, ``_75``, ``_95``
        From the histogram, but not below the minimum or above the maximum.
    ``histogram``
        The voxels in each of 64 bins of equal width over the window; what lies outside is in the first and the last.

    Columns of the edges:

    ``source``, ``target``
        The two labels, the lower one first.
    ``num_faces``, ``area``
        The contact in voxel faces and in mm^2.
    ``intensity_mean``
        Of the voxels on both sides of the contact's faces: that of a boundary map says how much of a boundary it is.
    ``intensity_difference``
        Between the means of the two.
    ``intensity_gradient``
        The mean step in intensity across the faces of the contact, per mm.
    ``histogram_distance``
        ``1 - sum over bins of min(g / |g|, h / |h|)``, from 0 (equal) to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 1, 2, 2]]])
    >>> image = np.array([[[10, 20, 50, 50]]], np.uint8)
    >>> features = dseeds.features(labels, image, window=(0, 64))
    >>> features.table["intensity_mean"].to_pylist(), features.table["centroid-2"].to_pylist()
    ([15.0, 50.0], [0.5, 2.5])
    >>> features.edges.select(["source", "target", "num_faces", "intensity_gradient"]).to_pylist()
    [{'source': 1, 'target': 2, 'num_faces': 1, 'intensity_gradient': 30.0}]
    """
    label_source = open_labels(labels)
    opened = None
    if image is not None:
        opened = open_image(image, volume=volume, channel_axis=channel_axis, level=level or 0, planes=True)
        opened = align_image(opened, label_source)
    elif (window, percentiles, volume, level, channel_axis) != (None,) * 5:
        raise ValueError("window, percentiles, volume, level and channel_axis are those of an image: pass one.")
    shape = label_source.shape
    extents = read_extents("region", region)
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    search = begin_search(label_source, opened, window, percentiles)
    known = label_source.spacing if opened is None else opened.spacing or label_source.spacing
    lengths = known if spacing is None else check_spacing(spacing)
    places = (label_source.affine,) if opened is None else (opened.affine, label_source.affine, opened.position)
    affine = next((one for one in places if one is not None), None)
    with begin_measurement(
        target, FEATURES, overwrite=overwrite, client=client, threads=threads, progress=progress
    ) as (dataset, executor, anywhere):
        job = FeatureJob(
            materialise(label_source, dataset.scratch, "labels", anywhere=anywhere),
            None if opened is None else materialise_image(opened, dataset.scratch, anywhere=anywhere),
            Tiling(shape, choose_tiling(shape, label_source.chunks, voxel_bytes(opened), task_bytes, extents)),
            space_of(opened, affine, lengths, ((0.0, 1.0),) * len(search.dtypes)),
            dataset,
        )
        job = replace(job, space=replace(job.space, windows=search_windows(job, search, executor)))
        names = {} if opened is None else {"image": opened.name}
        measure_features(job, executor, {"labels": label_source.name, **names}, find_run(label_source))
        return Features.of(dataset, target)


def measure_features(job: FeatureJob, executor: Executor, names: Mapping[str, str], written: LabelRun) -> None:
    """Measure all regions, build the tables, and publish them with the `names` of what they were made from.

    `written` is the run that wrote the labels, which need not be published yet.
    """
    (voxels, contacts), sums = count_regions(executor, "measure", measure_feature_region, job)
    counted = write_parts(executor, "table", write_table, job, list(label_ranges(voxels)))
    ends = [(first, last) for _, first, last in counted]
    # Without contacts, there is a table without rows.
    edge_ranges = list(label_ranges(contacts)) or [LabelRange(1, 1, ())]
    edges = ((job, number, part, ends) for number, part in enumerate(edge_ranges))
    edge_count = sum(executor.map_unordered("edges", write_edges, edges, len(edge_ranges)))
    check_still_unedited(job.labels)
    job.dataset.publish(
        {
            "supervoxels": sum(rows for rows, *_ in counted),
            "contacts": edge_count,
            **names,
            **LabelIdentity.of(job.tiling.shape, sums, written).to_note(),
            "spacing": job.space.spacing,
            "affine": job.space.affine,
            "windows": job.space.windows,
            "version": __version__,
        }
    )


def measure_feature_region(job: FeatureJob, number: int) -> RegionRows:
    """Measure a region, and write the rows of its supervoxels and contacts to scratch."""
    box, window = job.tiling.box(number), job.tiling.above(number)
    labels = read_labels(job.labels, window, narrow=True)
    if not labels.any():
        no_rows = np.zeros((0, 6), np.int64)
        return RegionRows(number, (no_rows, no_rows), LabelHash())
    part = hash_box(labels, window.lo, box, job.tiling.shape)
    values = () if job.image is None else job.image.read(window.slices)
    voxels, contacts = count_features(labels, values, box, job.space)
    # A task of an abandoned run may arrive late.
    job.dataset.check_own()
    return RegionRows(number, (job.voxels.write(number, voxels), job.contacts.write(number, contacts)), part)


def write_table(job: FeatureJob, number: int, part: LabelRange) -> tuple[int, tuple[int, int, int]]:
    """Write the table of a range of labels, and return the number of supervoxels, the first and the last label."""
    rows = combine_voxels(job.voxels.read(part))
    table = build_feature_table(rows, job.space, job.tiling.shape)
    job.dataset.write(TABLE, number, table)
    return number, (len(rows), int(rows[0, 0]), int(rows[-1, 0]))


def write_edges(job: FeatureJob, number: int, part: LabelRange, ends: list[tuple[int, int]]) -> int:
    """Write the edges whose lower labels are in a range, and return their number."""
    rows = combine_contacts(sort_contacts(job.contacts.read(part)))
    channels = range(job.channels)
    columns = [name for c in channels for name in (job.space.mean_name(c), job.space.column_name("histogram", c))]
    tables = []
    # In pieces, since a background may touch millions of supervoxels, each of which has a histogram.
    for begin in range(0, max(len(rows), 1), RANGE):
        piece = rows[begin : begin + RANGE]
        touching = job.dataset.read_rows(np.unique(piece[:, :2]), columns, ends)
        tables.append(build_edge_table(piece, touching, job.space))
    job.dataset.write(EDGES, number, pa.concat_tables(tables))
    return len(rows)


def voxel_bytes(image: Image | None) -> float:
    """Return the memory of a task per voxel: labels and intensities, as read and as kernels take them, and bins."""
    if image is None:
        return 16
    real = 0 if are_small_integers(image.dtypes) else 12
    return 16 + 2 * image.itemsize + image.channels * (6 + real)


def space_of(
    image: Image | None, affine: NDArray[Any] | None, spacing: Sequence[float] | None, windows: tuple[Limits, ...]
) -> Space:
    """Return the `Space` of an image, or of labels alone, with what is known of its position."""
    z, y, x = spacing if spacing is not None else (1.0, 1.0, 1.0)
    rows = np.diag([x, y, z, 1.0]) if affine is None else np.asarray(affine, np.float64)
    return Space(
        (float(z), float(y), float(x)),
        tuple(tuple(float(entry) for entry in row) for row in rows[:3]),
        windows,
        image is None or are_small_integers(image.dtypes),
    )
