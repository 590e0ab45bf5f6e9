"""`paint`: the values of supervoxels as a volume, lazily or out of core.

Each region's labels are read and looked up in the table, and the values written, independently of other regions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dseeds._version import __version__
from dseeds.core.checks import check_threads, read_extents
from dseeds.core.dtypes import INTEGER_DTYPES, NUMERIC_DTYPES
from dseeds.core.geometry import Box, Tiling, Triple, triple
from dseeds.core.progress import Progress
from dseeds.io import ArraySource, Source, check_nifti_target, frame_of, ome_image_attributes, write_nifti
from dseeds.io.affine import affine_attributes
from dseeds.io.formats.dask_array import DaskSource
from dseeds.io.formats.file_writer import remove_partial
from dseeds.io.formats.nifti import is_nifti
from dseeds.io.labels import TASK_BYTES, check_still_unedited, choose_tiling, materialise, open_labels, read_labels
from dseeds.io.source import shorten
from dseeds.measure.identity import finest_level
from dseeds.measure.kernels.painting import paint_voxels
from dseeds.measure.label_hash import LabelHash, hash_box
from dseeds.measure.lookup import LookupTable, open_values
from dseeds.parallel.capacity import local_capacity, parse_memory
from dseeds.parallel.clients import open_client
from dseeds.parallel.executor import Executor, open_executor
from dseeds.storage.label_group import (
    ATTRIBUTE,
    LabelGroup,
    check_target,
    check_written_by,
    publish_labels,
    unfinished_target,
)
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.ownership import SCRATCH, check_apart
from dseeds.storage.slabs import slab_thickness
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, Layout

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike

# Memory of a task per voxel beside the values: labels as they are read, and as the kernels take them.
LABEL_BYTES = 16
# Voxels along each axis of a shard if the labels have no shards.
SHARD = 256


@dataclass(frozen=True)
class Painted:
    """A volume that was painted.

    Attributes
    ----------
    target : str
        The path or URL of the volume.
    column, dtype : str
        The column of the table, and the dtype of the volume.
    fill : int or float
        The value of voxels whose label has no value.
    voxels : int
        The number of voxels.
    without_value : int
        The number of voxels whose label is not 0 and has no value.
    categories : tuple of str
        The names of the values 1, 2 and so on, if these number categories; OME-Zarr has them in its metadata, too.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(paint(np.array([[[1, 2]]]), {1: 0.25}, f"{folder}/values.zarr").without_value)
    1
    """

    target: str
    column: str
    dtype: str
    fill: int | float
    voxels: int
    without_value: int
    categories: tuple[str, ...] = ()

    def __str__(self) -> str:
        missing = f"; {self.without_value} without a value are {self.fill}" if self.without_value else ""
        names = "; from 1: " + shorten(", ".join(self.categories), 200) if self.categories else ""
        return f"{self.column} as {self.dtype} in {self.voxels} voxels{missing}{names}: {self.target}"

    def to_json(self) -> str:
        """Return all fields as JSON."""
        return json.dumps({**asdict(self), "fill": _as_json(self.fill)}, indent=2)


@dataclass(frozen=True, eq=False)
class PaintJob:
    """A volume that is painted when it is read; `fill` is the value of voxels whose label has no value."""

    labels: Source
    values: LookupTable
    fill: int | float

    ndim = 3

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return self.labels.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the voxels."""
        return self.values.dtype

    def read(self, box: Box) -> tuple[NDArray[Any], int]:
        """Paint the voxels in a box, and count those whose label is not 0 and has no value."""
        return self.paint(read_labels(self.labels, box))

    def paint(self, labels: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """Paint labels, uint32 or int64, and count those that are not 0 and have no value."""
        painted = np.empty(labels.shape, self.dtype)
        return painted, paint_voxels(labels, *self.values.select(labels), self.fill, painted)

    def hash(self, labels: NDArray[Any], box: Box) -> LabelHash:
        """Return the hash of the labels in a box; nothing is computed for a table that does not know its labels."""
        return LabelHash() if self.values.origin is None else hash_box(labels, box.lo, box, self.shape)

    def check_hash(self, sums: LabelHash) -> None:
        """Raise a ValueError if the hash of all labels is not that of the labels that the table was made from."""
        # A coarser level has been compared by its full resolution.
        if self.values.origin is not None and finest_level(self.labels) is self.labels:
            self.values.origin.check_hash(self.labels, sums)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """Paint the voxels that an index along (z, y, x) selects: Dask passes integers, slices and lists."""
        axes = ((np.arange(n) if np.ndim(i) else range(n), i) for i, n in zip(index, self.shape, strict=True))
        selections: list[Any] = [axis[i] for axis, i in axes]
        ranges = [range(side, side + 1) if isinstance(side, int) else side for side in selections]
        box = Box(triple(min(r, default=0) for r in ranges), triple(max(r, default=-1) + 1 for r in ranges))
        painted = self.read(box)[0]
        # One axis after the other, since NumPy moves axes if integers and lists are combined; the last axis first.
        for axis, side in reversed(list(enumerate(selections))):
            part = slice(None, None, side.step) if isinstance(side, range) else side - box.lo[axis]
            painted = painted[(slice(None),) * axis + (part,)]
        return painted


def paint(
    labels: Any,
    table: Any,
    target: str | Path | None = None,
    *,
    column: str | None = None,
    label_column: str = "label",
    fill: float | None = None,
    dtype: DTypeLike | None = None,
    as_labels: bool = False,
    region: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    workers: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Paint every voxel with the value of its supervoxel: a column of a table becomes a volume, lazily or out of core.

    Parameters
    ----------
    labels : source
        The supervoxels, axes (z, y, x), labels from 0 to 2^63 - 1: an array, or what `segment` takes as a source. An
        array of two axes is one plane, and so is what is painted.
    table : path, URL, `Features`, pandas, polars or Arrow table, AnnData, Series, vector or dict
        The result of `features`, or its folder; a file that ends in ``.parquet``, ``.csv`` or ``.tsv`` (also ``.gz``),
        or a folder of Parquet; a table in memory, such as a dict of columns, or an AnnData matrix with its `obs`; or,
        without `column`, a dict of label to value, a Series of pandas, whose index are the labels, or a vector by
        label: an array, a list or a Series of polars whose item i is the value of label i, such as the parents that
        `supervoxels` returns. Rows may come in any order. A table that was made by dseeds is refused for other labels
        than its own.
    target : path or URL, optional
        The new volume: an OME-Zarr group, or ``.nii`` or ``.nii.gz`` if the labels are NIfTI. Default: a lazy array.
    column : str, optional
        The column with the values: numbers, booleans or categories. Required for tables. Categories that are not
        numbers are numbered from 1, in their order, so that 0 remains what has none; OME-Zarr and the result have their
        names.
    label_column : str, default "label"
        The column with the labels; in pandas it may be the index.
    fill : int or float, optional
        The value of voxels whose label has no value: it has no row, or the value is missing or NaN. This also applies
        to label 0, which is masked out, unless the table has a row for it. Default: 0 for integers, NaN for floats.
    dtype : dtype, optional
        The dtype of the volume: integers of up to 64 bits, float32 or float64. Default: that of floats as they are; for
        integers the first of uint8, int16, uint16, int32, uint32, int64 and uint64 that holds them all; uint8 for
        booleans.
    as_labels : bool, default False
        Record in the target that its voxels are labels, such as segments, not intensities.
    region : int or sequence of int, optional
        Voxels along (z, y, x) of one task, rounded up to whole shards. Default: what fits the memory.
    memory : int or str, optional
        Memory of a task, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads of this process that share the work, if there are no workers. Default: one per core.
    workers : int, optional
        Worker processes of a local cluster to start. Default: none.
    client : distributed.Client, cluster, str or Path, optional
        The cluster to use, as for `segment`. Default: Dask's current client, if there are neither `threads` nor
        `workers`.
    overwrite : bool, default False
        Replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Follows the tasks.

    Returns
    -------
    dask.array.Array, shape (z, y, x)
        Without a target; in chunks like those of the labels. Slices read and paint only their own voxels.
    Painted
        With a target.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If the labels, the table or the target's folder do not exist.
    TypeError
        If `table` is not a table.
    ValueError
        If the labels are not integers from 0, the table lacks a column, has a label twice or values that are not
        numbers, it was made from other labels, or a parameter is out of range.

    Notes
    -----
    Chunks and shards are those of the labels, if they have any. Of a table with more than 16 million rows in Parquet
    parts sorted by label, as `features` writes them, a task reads only the parts that contain its labels. The two
    columns of any other table are held in memory by every process, 16 bytes a row. NIfTI is written by this process
    alone, from end to end. A lazy array of a compressed NIfTI file decompresses it again for every block.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[[1, 1, 2, 0]]])
    >>> paint(labels, {1: 0.25, 2: 0.75}).compute()
    array([[[0.25, 0.25, 0.75,  nan]]])
    >>> table = {"label": [2, 1], "segment": [7, 300]}
    >>> paint(labels, table, column="segment").compute()
    array([[[300, 300,   7,   0]]], dtype=int16)
    """
    source = open_labels(labels)
    job = _make_job(source, open_values(table, column, label_column), fill, dtype, as_labels)
    extents = read_extents("region", region)
    task_bytes = parse_memory(memory) if memory is not None else TASK_BYTES
    meta = np.empty((0, 0, 0), job.dtype)
    if job.values.origin is not None:
        job.values.origin.check_labels(source, whole=target is None)
    if target is None:
        if isinstance(source, DaskSource):
            painted = da.map_blocks(paint_block, source.array, job.values, job.fill, dtype=job.dtype, meta=meta)
        else:
            planes = slab_thickness(source.shape, source.dtype.itemsize)
            painted = da.from_array(job, source.chunks or (planes, *source.shape[1:]), name=False, meta=meta)
        # Labels of one plane are painted as one.
        return painted[0] if getattr(labels, "ndim", 3) == 2 else painted
    if workers is not None and client is not None:
        raise ValueError("workers are for this machine, and cannot go with a client.")
    count = check_threads(threads)
    local = local_capacity(workers, None) if workers is not None else None
    check_apart(str(target), source.path, str(table) if isinstance(table, str | Path) else None)
    name = column or "value"
    if is_nifti(str(target)):
        missing = _paint_nifti(job, labels, str(target), as_labels, overwrite, progress)
    else:
        check_target(open_location(target), overwrite)
        layout = _choose_layout(source, job.dtype, task_bytes)
        tiling = _tile_shards(layout, task_bytes, extents)
        with (
            open_client(client, may_use_current=threads is None and workers is None) as connected,
            open_executor(count, connected, local, progress) as executor,
        ):
            missing = _paint_zarr(job, str(target), name, layout, tiling, executor, as_labels, overwrite)
    return Painted(str(target), name, job.dtype.name, job.fill, prod(source.shape), missing, job.values.categories)


def paint_block(labels: NDArray[Any], values: LookupTable, fill: float) -> NDArray[Any]:
    """Paint a block of labels."""
    return PaintJob(ArraySource(labels, "labels"), values, fill).read(Box((0, 0, 0), triple(labels.shape)))[0]


def paint_region(job: PaintJob, out: LabelGroup, tiling: Tiling, number: int) -> tuple[int, LabelHash]:
    """Paint a region, write it, and return how many of its voxels have labels without a value, and its hash."""
    box = tiling.box(number)
    labels = read_labels(job.labels, box)
    painted, missing = job.paint(labels)
    out.write(box, painted)
    return missing, job.hash(labels, box)


def _paint_zarr(
    job: PaintJob,
    target: str,
    name: str,
    layout: Layout,
    tiling: Tiling,
    executor: Executor,
    as_labels: bool,
    overwrite: bool,
) -> int:
    """Paint all regions into a new OME-Zarr group; if this fails, nothing is left of it."""
    place, labels = open_location(target), job.labels
    with unfinished_target(place, overwrite) as run:
        out = LabelGroup(place, run=run)
        out.create(layout)
        copy = materialise(labels, place.at(SCRATCH), "labels", anywhere=executor.client is not None)
        shared: Any = replace(job, labels=copy)
        if executor.client:
            # Each worker gets the table once, not with every task.
            shared = executor.client.scatter(shared, broadcast=True, hash=False)
        calls = ((shared, out, tiling, number) for number in range(len(tiling)))
        missing, sums = 0, LabelHash()
        for count, part in executor.map_unordered("paint", paint_region, calls, len(tiling)):
            missing, sums = missing + count, sums + part
        check_still_unedited(labels)
        job.check_hash(sums)
        check_written_by(place, run)
        place.clear(SCRATCH)
        record: dict[str, Any] = {"painted": name, "run": run, "labels": labels.name, "fill": _as_json(job.fill)}
        names = dict(enumerate(job.values.categories, 1))
        if names:
            record["categories"] = names
        title = f"{name} of {labels.name}"
        ome = ome_image_attributes(**vars(frame_of(labels)), name=title, labels=as_labels, names=names)
        record |= affine_attributes(labels.affine, labels.forms)
        publish_labels(place, {ATTRIBUTE: {**record, "version": __version__}, "ome": ome})
    return missing


def _paint_nifti(
    job: PaintJob, given: Any, target: str, as_labels: bool, overwrite: bool, progress: Progress | None
) -> int:
    """Paint slab by slab into a new NIfTI file with the labels' position in space."""
    source, path = job.labels, Path(target)
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: NIfTI is written to local files; name one, or a .zarr.")
    if source.kind != "nifti":
        raise ValueError(f"{path.name} would be NIfTI, but the labels are not: name a target such as values.zarr.")
    check_nifti_target(path, overwrite)
    planes, missing, sums = slab_thickness(source.shape, job.dtype.itemsize), 0, LabelHash()

    def slabs() -> Iterator[tuple[int, NDArray[Any]]]:
        nonlocal missing, sums
        for begin, slab in source.slabs(planes):
            labels = read_labels(ArraySource(slab, source.name), Box((0, 0, 0), triple(slab.shape)))
            painted, count = job.paint(labels)
            missing += count
            sums += job.hash(labels, Box((begin, 0, 0), (begin + len(slab), *source.shape[1:])))
            yield begin, painted
            if progress:
                progress.advance("paint")
        # Here, since the file is published as soon as it has all slabs.
        check_still_unedited(source)
        job.check_hash(sums)

    if progress:
        progress.begin("paint", len(range(0, source.shape[0], planes)))
    remove_partial(path)
    write_nifti(path, slabs(), given, source.shape, dtype=job.dtype, labels=as_labels, overwrite=overwrite)
    if progress:
        progress.end("paint")
    return missing


def _choose_layout(source: Source, dtype: np.dtype[Any], task_bytes: int) -> Layout:
    """Return the labels' chunks and shards, or standard ones if there are none or a shard exceeds a task's memory."""
    chunk, shard = source.chunks, source.shards or source.chunks
    if chunk is None or shard is None or prod(shard) * (LABEL_BYTES + dtype.itemsize) > task_bytes:
        shard = triple(min(n, SHARD) for n in source.shape)
        return Layout.cut(source.shape, dtype, shard, UNIT_CHUNK, checked=False)
    return Layout(source.shape, dtype, shard, chunk, ZSTD_CODEC, checked=False)


def _tile_shards(layout: Layout, task_bytes: int, region: Triple | None) -> Tiling:
    """Cut the volume into regions of whole shards, so that no two tasks write to one file."""
    shape, shard = triple(layout.shape), triple(layout.shard)
    if region is not None:
        region = triple(-(-r // s) * s for r, s in zip(region, shard, strict=True))
    return Tiling(shape, choose_tiling(shape, shard, LABEL_BYTES + layout.dtype.itemsize, task_bytes, region))


def _make_job(labels: Source, values: LookupTable, fill: Any, dtype: DTypeLike | None, as_labels: bool) -> PaintJob:
    """Return the job with the dtype and the fill of its values."""
    stored = values.dtype if dtype is None else _check_dtype(dtype)
    if fill is None:
        fill = float("nan") if stored.kind == "f" else 0
    if stored.kind != "f":
        if not isfinite(fill) or int(fill) != fill:
            raise ValueError(
                f"fill is {fill}, which an integer dtype cannot hold: pass dtype= (--dtype) as float32 or float64."
            )
        fill = int(fill)
        stored = _first_holding(values, fill, INTEGER_DTYPES if dtype is None else (stored.name,))
    low = min(fill, values.extremes[0])
    if as_labels and (stored.kind == "f" or low < 0):
        found = f"are {stored}" if stored.kind == "f" else f"include {low}"
        raise ValueError(f"as_labels (--as-labels) is for integers from 0, but the values {found}: leave it out.")
    return PaintJob(labels, values.astype(stored), fill)


def _first_holding(values: LookupTable, fill: int, names: Sequence[str]) -> np.dtype[Any]:
    """Return the first of several integer dtypes that holds all values and the fill."""
    if values.dtype.kind == "f":
        raise ValueError(f"the values are not integers, so round them before they are stored as {names[0]}.")
    low, high = min(fill, values.extremes[0]), max(fill, values.extremes[1])
    for name in names:
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    raise ValueError(f"the values and the fill are from {low} to {high}, which {names[-1]} does not hold.")


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    with suppress(TypeError):
        if np.dtype(dtype).name in NUMERIC_DTYPES:
            return np.dtype(np.dtype(dtype).name)
    raise ValueError(f"dtype must be one of {', '.join(NUMERIC_DTYPES)}, got {dtype!r}.")


def _as_json(number: float) -> float | str:
    # JSON has neither NaN nor infinity.
    return number if isfinite(number) else str(number)
