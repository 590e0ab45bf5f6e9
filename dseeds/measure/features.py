"""`features`: the table of supervoxels and their region adjacency graph, out of core.

Regions count what they have of each supervoxel and each contact, in integers. Then, range of labels by range of labels,
the counts are added up and turned into columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from distributed import Client
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.core.checks import check_threads, read_extents
from dseeds.core.dtypes import native_dtype
from dseeds.core.geometry import Tiling, check_spacing
from dseeds.core.progress import Progress
from dseeds.io import Image, Source, open_image
from dseeds.io.labels import (
    TASK_BYTES,
    check_same_shape,
    choose_tiling,
    label_parameters,
    materialise,
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
from dseeds.measure.kernels import features as kernel
from dseeds.measure.kernels.features import combine_contacts, combine_voxels
from dseeds.parallel.cluster import parse_memory
from dseeds.parallel.executor import Executor, open_executor
from dseeds.seeds.intensity_windows import Limits, check_percentiles, read_windows
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.storage.label_records import RANGE, BatchIndex, LabelRange, LabelRecords, label_ranges
from dseeds.storage.location import Location, open_location
from dseeds.storage.parquet_dataset import EDGES, TABLE, Dataset


@dataclass(frozen=True)
class Features:
    """The table of supervoxels and their region adjacency graph.

    Attributes
    ----------
    address : str or None
        The folder that has them in Parquet; None where they are in memory alone.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label; see `features`.
    edges : pyarrow.Table
        A row for each pair of supervoxels that touch, sorted; see `features`.
    """

    address: str | None
    _tables: tuple[pa.Table, pa.Table] | None = field(default=None, repr=False)

    @property
    def table(self) -> pa.Table:
        """Read the table of supervoxels, whole."""
        return self._read(0)

    @property
    def edges(self) -> pa.Table:
        """Read the edges of the graph, whole."""
        return self._read(1)

    @property
    def supervoxels(self) -> int:
        """How many supervoxels there are."""
        return self._count("supervoxels", 0)

    @property
    def contacts(self) -> int:
        """How many pairs of supervoxels touch."""
        return self._count("contacts", 1)

    def _read(self, which: int) -> pa.Table:
        if self.address is None:
            assert self._tables is not None
            return self._tables[which]
        return Dataset(open_location(self.address)).read_table((TABLE, EDGES)[which])

    def _count(self, name: str, which: int) -> int:
        if self.address is None:
            return int(self._read(which).num_rows)
        return int(Dataset(open_location(self.address)).note()[name])


@dataclass(frozen=True)
class FeatureJob:
    """What every task needs to know.

    Attributes
    ----------
    labels : Source
        The supervoxels.
    image : Image
        The intensities.
    tiling : Tiling
        The regions.
    space : Space
        How voxels lie, and which intensities are told apart.
    dataset : Dataset
        Where everything goes.
    """

    labels: Source
    image: Image
    tiling: Tiling
    space: Space
    dataset: Dataset

    @property
    def voxels(self) -> LabelRecords:
        """What regions say of supervoxels."""
        return LabelRecords(self.dataset.scratch.at("voxels"), kernel.CHANNELS + self.channels * kernel.CHANNEL_WIDTH)

    @property
    def contacts(self) -> LabelRecords:
        """What regions say of contacts."""
        return LabelRecords(
            self.dataset.scratch.at("contacts"), kernel.STEP_CHANNELS + self.channels * kernel.STEP_CHANNEL_WIDTH
        )

    @property
    def channels(self) -> int:
        """How many channels the image has."""
        return self.image.channels


def features(
    labels: Any,
    image: Any,
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
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Features:
    """Measure supervoxels and their contacts: a table and the region adjacency graph, out of core.

    Everything is added up exactly, in integers: no number depends on how the volume is cut, or on who does the work.
    Intensities other than integers of up to 16 bits are rounded before, to 2^-24 of their window's width or less.

    Parameters
    ----------
    labels : source
        The supervoxels, axes (z, y, x), ids from 1 to 2^63 - 1, 0 where masked out: of this program or any other; an
        array, or what `segment` takes as a source.
    image : source or list of sources
        The intensities on the same grid, as for `segment`.
    target : path or URL, optional
        A new folder for the tables in Parquet, ``table.parquet`` and ``edges.parquet``, each a folder of parts.
        Default: they are in memory alone.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: what the image says, or else the labels; or else 1.
    window, percentiles : optional
        The intensities between which histograms have their 64 bins, as for `segment`. Default: those that the labels
        were made with, if they say so; else the percentiles of the intensities where there are labels.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.
    region : int or sequence of int, optional
        Voxels along (z, y, x) that one task works on. Default: what the memory allows.
    memory : int or str, optional
        What a task may hold, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads of this process that share the work, if there is no client. Default: one per core.
    client : distributed.Client, optional
        The cluster to use, whose workers all see the target, which must be given then.
    overwrite : bool, default False
        Replace older features in the target; nothing else is ever replaced.
    progress : Progress, optional
        Is told about stages and tasks.

    Returns
    -------
    Features
        With the table and the edges, which pandas, polars and Dask can read in the target too.

    Raises
    ------
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten.
    FileNotFoundError
        If a source or the target's folder does not exist.
    ValueError
        If labels are no labels, shapes differ, or a parameter is out of range.

    Notes
    -----
    Columns of the table, named as in scikit-image's `regionprops_table` where it has them; with several channels those
    of intensities have the channel's number behind them, as in ``intensity_mean-0``:

    ``label``, ``num_pixels``, ``area``
        The id; the size in voxels and in mm^3.
    ``centroid-0..2``, ``bbox-0..5``
        In voxels along (z, y, x); boxes are half open.
    ``centroid_world-0..2``, ``bbox_world-0..5``
        In mm along the image's (x, y, z), by its affine if it has one, else by the spacing alone.
    ``surface_area``, ``compactness``, ``border``
        The area of the voxel faces towards other labels, the mask and the outside, in mm^2; the isoperimetric quotient
        ``36 pi V^2 / A^3``; and whether it touches the border of the volume.
    ``intensity_mean``, ``intensity_std``, ``intensity_min``, ``intensity_max``
        Of the intensities that are finite.
    ``intensity_percentile_5``, ``_25``, ``_50``, ``_75``, ``_95``
        From the histogram, within the least and the greatest.
    ``histogram``
        The voxels in each of 64 bins of equal width over the window; what lies outside is in the first and the last.

    Columns of the edges:

    ``source``, ``target``
        The two labels, the lower one first.
    ``num_faces``, ``area``
        The contact in voxel faces and in mm^2.
    ``intensity_difference``
        Between the means of the two.
    ``intensity_gradient``
        The mean step in intensity across the faces of the contact, per mm.
    ``histogram_distance``
        ``1 - sum over bins of min(g / |g|, h / |h|)``, from 0, alike, to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels = np.array([[[1, 1, 2, 2]]])
    >>> image = np.array([[[10, 20, 50, 50]]], np.uint8)
    >>> found = dseeds.features(labels, image, window=(0, 64))
    >>> found.table["intensity_mean"].to_pylist(), found.table["centroid-2"].to_pylist()
    ([15.0, 50.0], [0.5, 2.5])
    >>> found.edges.select(["source", "target", "num_faces", "intensity_gradient"]).to_pylist()
    [{'source': 1, 'target': 2, 'num_faces': 1, 'intensity_gradient': 30.0}]
    """
    if target is None and client is not None:
        raise ValueError("a cluster needs target=, a folder or URL that all its workers see.")
    found = open_labels(labels)
    pictures = open_image(image, volume=volume, channel_axis=channel_axis, level=level or 0)
    shape = check_same_shape(image=pictures, labels=found)
    size = read_extents("region", region)
    task = parse_memory(memory) if memory is not None else TASK_BYTES
    wanted = _windows(found, pictures, window, percentiles)
    given = check_spacing(spacing) if spacing is not None else pictures.spacing or found.spacing
    affine = pictures.affine if pictures.affine is not None else found.affine
    with ExitStack() as stack:
        if target is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dseeds-"))
        begun = Dataset(open_location(Path(folder, "features") if target is None else target))
        begun.check(overwrite)
        crew = stack.enter_context(open_executor(check_threads(threads), client, progress=progress))
        dataset = begun.begin()
        try:
            survey = FeatureJob(
                materialise(found, dataset.scratch, "labels", anywhere=client is not None),
                _landed_image(pictures, dataset.scratch, anywhere=client is not None),
                Tiling(shape, choose_tiling(shape, found.chunks, voxel_bytes(pictures), task, size)),
                space_of(pictures, affine, given, ((0.0, 1.0),) * pictures.channels),
                dataset,
            )
            survey = replace(survey, space=replace(survey.space, windows=_found(survey, wanted, crew)))
            measure_features(survey, crew, {"labels": found.name, "image": pictures.name})
        except BaseException:
            dataset.abandon()
            raise
        written = Features(dataset.address)
        return written if target is not None else Features(None, (written.table, written.edges))


def measure_features(survey: FeatureJob, crew: Executor, names: Mapping[str, str]) -> None:
    """Measure all regions, put the tables together, and publish them, with a note of what they are of."""
    regions = [(survey, number) for number in range(len(survey.tiling))]
    indices: tuple[dict[int, BatchIndex], dict[int, BatchIndex]] = {}, {}
    for number, *found in crew.map_unordered("measure", measure_feature_region, regions, len(regions)):
        for kind, index in zip(indices, found, strict=True):
            if len(index):
                kind[number] = index
    ranges = list(label_ranges(indices[0]))
    if not ranges:
        raise ValueError("labels has no supervoxel: every voxel is 0, masked out.")
    tables = ((survey, number, part) for number, part in enumerate(ranges))
    counted = dict(crew.map_unordered("table", write_table, tables, len(ranges)))
    ends = [counted[number][1:] for number in range(len(ranges))]
    # Where nothing touches, there is a table without rows.
    touching = list(label_ranges(indices[1])) or [LabelRange(1, 1, ())]
    edges = ((survey, number, part, ends) for number, part in enumerate(touching))
    contacts = sum(crew.map_unordered("edges", write_edges, edges, len(touching)))
    survey.dataset.publish(
        {
            "supervoxels": sum(rows for rows, *_ in counted.values()),
            "contacts": contacts,
            **names,
            "spacing": survey.space.spacing,
            "windows": survey.space.windows,
            "version": __version__,
        }
    )


def measure_feature_region(survey: FeatureJob, number: int) -> tuple[int, BatchIndex, BatchIndex]:
    """Measure a region, and leave the rows of its supervoxels and contacts in scratch."""
    box, window = survey.tiling.box(number), survey.tiling.above(number)
    labels = read_labels(survey.labels, window, narrow=True)
    if not labels.any():
        nothing = np.zeros((0, 6), np.int64)
        return number, nothing, nothing
    voxels, contacts = count_features(labels, survey.image.read(window.slices), box, survey.space)
    # A task of a run that was given up may come late.
    survey.dataset.check_own()
    return number, survey.voxels.write(number, voxels), survey.contacts.write(number, contacts)


def write_table(survey: FeatureJob, number: int, part: LabelRange) -> tuple[int, tuple[int, int, int]]:
    """Write the table of a range of labels; tell how many there are, and the first and the last."""
    rows = combine_voxels(survey.voxels.read(part))
    table = build_feature_table(rows, survey.space, survey.tiling.shape)
    survey.dataset.write(TABLE, number, table)
    return number, (len(rows), int(rows[0, 0]), int(rows[-1, 0]))


def write_edges(survey: FeatureJob, number: int, part: LabelRange, ends: list[tuple[int, int]]) -> int:
    """Write the edges whose lower labels are in a range; tell how many there are."""
    rows = combine_contacts(sort_contacts(survey.contacts.read(part)))
    columns = [
        survey.space.column_name(name, c) for c in range(survey.channels) for name in ("intensity_mean", "histogram")
    ]
    tables = []
    # In pieces, for a background may touch millions of others, and each brings its histogram.
    for begin in range(0, max(len(rows), 1), RANGE):
        piece = rows[begin : begin + RANGE]
        touching = survey.dataset.read_rows(np.unique(piece[:, :2]), columns, ends)
        tables.append(build_edge_table(piece, touching, survey.space))
    survey.dataset.write(EDGES, number, pa.concat_tables(tables))
    return len(rows)


def voxel_bytes(image: Image) -> float:
    """Tell what a task holds for each voxel: labels as they are read and as kernels know them, intensities, bins."""
    real = 0 if are_small_integers(image.dtypes) else 12
    return 16 + 2 * image.itemsize + image.channels * (6 + real)


def space_of(
    image: Image, affine: NDArray[Any] | None, spacing: Sequence[float] | None, windows: tuple[Limits, ...]
) -> Space:
    """Tell how an image's voxels lie in space, as far as is known, and which of its intensities are told apart."""
    z, y, x = spacing if spacing is not None else (1.0, 1.0, 1.0)
    rows = np.diag([x, y, z, 1.0]) if affine is None else np.asarray(affine, np.float64)
    return Space(
        (float(z), float(y), float(x)),
        tuple(tuple(float(entry) for entry in row) for row in rows[:3]),
        windows,
        are_small_integers(image.dtypes),
    )


def _windows(labels: Source, image: Image, window: Any, percentiles: Sequence[float] | None) -> WindowSearch:
    """Tell which intensity windows are wanted, or how to search for them."""
    given = read_windows(window, image.channels)
    if window is None and percentiles is None:
        given = _noted_windows(labels, image.channels) or given
    return WindowSearch(tuple(map(native_dtype, image.dtypes)), given, check_percentiles(percentiles or (0.5, 99.5)))


def _noted_windows(labels: Source, channels: int) -> tuple[Limits, ...] | None:
    """Give the windows that labels of this program were made with, as far as they say."""
    try:
        found = tuple((float(low), float(high)) for low, high in label_parameters(labels)["windows"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if len(found) == channels else None


def _found(survey: FeatureJob, search: WindowSearch, crew: Executor) -> tuple[Limits, ...]:
    """Search for the windows where there are labels."""
    count = len(survey.tiling)
    try:
        while not search.done:
            calls = ((survey, number, search) for number in range(count))
            search.narrow(sum(crew.map_unordered("window", count_region, calls, count), np.zeros(1, np.int64)))
        return search.windows()
    except NoFiniteValues:
        raise ValueError("labels has no supervoxel with a finite intensity: is it another image's?") from None


def count_region(survey: FeatureJob, number: int, search: WindowSearch) -> NDArray[np.int64]:
    """Count the digits that the search for windows is at, where there are labels."""
    box = survey.tiling.box(number)
    return search.count(survey.image.read(box.slices), read_labels(survey.labels, box) != 0)


def _landed_image(image: Image, scratch: Location, *, anywhere: bool) -> Image:
    """Copy the channels into scratch that tasks cannot read."""
    return Image(
        tuple(materialise(part, scratch, f"image-{i}", anywhere=anywhere) for i, part in enumerate(image.parts))
    )
