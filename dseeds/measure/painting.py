"""`paint`: values of supervoxels return to their voxels, lazily or into a volume, out of core.

A region's labels are read, each is looked up in the table, and the region is written: nothing depends on another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
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
from dseeds.io.labels import TASK_BYTES, choose_tiling, materialise, open_labels, read_labels
from dseeds.measure.kernels.painting import paint_voxels
from dseeds.measure.lookup import LookupTable, open_values
from dseeds.parallel.cluster import local_capacity, parse_memory
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

# What a task holds for each voxel beside the values: labels as they are read and as kernels know them.
LABEL_BYTES = 16
# Voxels along an axis of a shard where the labels have none.
SHARD = 256


@dataclass(frozen=True)
class Painted:
    """What was painted.

    Attributes
    ----------
    target : str
        Where it is.
    column, dtype : str
        What was painted, and what it is stored as.
    fill : int or float
        What voxels have whose label has no value.
    voxels : int
        Voxels of the volume.
    without_value : int
        Voxels of labels other than 0 that have no value.
    """

    target: str
    column: str
    dtype: str
    fill: int | float
    voxels: int
    without_value: int

    def __str__(self) -> str:
        lost = f"; {self.without_value} of labels without a value, which are {self.fill}" if self.without_value else ""
        return f"{self.column} as {self.dtype} in {self.voxels} voxels{lost}: {self.target}"

    def to_json(self) -> str:
        """Give all of it as JSON."""
        return json.dumps({**asdict(self), "fill": _plain(self.fill)}, indent=2)


@dataclass(frozen=True, eq=False)
class PaintJob:
    """A volume that is painted where it is read.

    Attributes
    ----------
    labels : Source
        The supervoxels.
    values : Values
        What they are painted with, of the volume's dtype.
    fill : int or float
        What voxels are painted with whose label has no value.
    """

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
        """Of the voxels."""
        return self.values.dtype

    def read(self, box: Box) -> tuple[NDArray[Any], int]:
        """Paint the voxels in a box, and count those whose label, other than 0, has no value."""
        labels = read_labels(self.labels, box)
        painted = np.empty(labels.shape, self.dtype)
        return painted, paint_voxels(labels, *self.values.select(labels), self.fill, painted)

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        """Paint what an index along (z, y, x) selects, no more: Dask hands down numbers, slices and lists."""
        whole = ((np.arange(n) if np.ndim(i) else range(n), i) for i, n in zip(index, self.shape, strict=True))
        sides: list[Any] = [along[i] for along, i in whole]
        along = [range(side, side + 1) if isinstance(side, int) else side for side in sides]
        box = Box(triple(min(a, default=0) for a in along), triple(max(a, default=-1) + 1 for a in along))
        painted = self.read(box)[0]
        # Axis by axis from the last, for NumPy moves axes where numbers and lists come together.
        for axis, side in reversed(list(enumerate(sides))):
            if isinstance(side, range):
                pick: Any = slice(None, None, side.step)
            else:
                pick = side - box.lo[axis]
            painted = painted[(slice(None),) * axis + (pick,)]
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
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Give every voxel the value of its supervoxel: a column of a table becomes a volume, lazily or out of core.

    Parameters
    ----------
    labels : source
        The supervoxels, axes (z, y, x), ids from 0 to 2^63 - 1: an array, or what `segment` takes as a source.
    table : path, URL, `Features`, pandas, polars or Arrow table, or dict
        What `features` gives or has written; a file that ends in ``.parquet``, ``.csv`` or ``.tsv`` (also ``.gz``), or
        a folder of Parquet; a table in memory, such as a dict of columns; or, without `column`, a dict of label to
        value. Rows may come in any order.
    target : path or URL, optional
        Where the volume goes: a new OME-Zarr group, or ``.nii`` or ``.nii.gz`` where the labels are NIfTI. Default: it
        is painted when it is asked for.
    column : str, optional
        The column with the values: numbers or truth values. Only for a dict of label to value it is left out.
    label_column : str, default "label"
        The column with the labels; in pandas it may be the index.
    fill : int or float, optional
        What voxels get whose label has no value: it has no row, or the value is missing or NaN. That is so of label 0,
        which is masked out, unless the table has a row for it. Default: 0 for integers, NaN for floats.
    dtype : dtype, optional
        Of the volume: integers of up to 64 bits, float32 or float64. Default: that of floats as they are; of integers
        the first of uint8, int16, uint16, int32, uint32, int64 and uint64 that holds them all; uint8 for truth values.
    as_labels : bool, default False
        Say in the target that its voxels are labels, as those of segments are, not intensities.
    region : int or sequence of int, optional
        Voxels along (z, y, x) that one task works on, rounded up to whole shards. Default: what the memory allows.
    memory : int or str, optional
        What a task may hold, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads of this process that share the work, if there are no workers. Default: one per core.
    workers : int, optional
        Worker processes of a local cluster to start for it. Default: none.
    client : distributed.Client, optional
        The cluster to use.
    overwrite : bool, default False
        Replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Is told about tasks.

    Returns
    -------
    dask.array.Array, shape (z, y, x)
        Without a target; in chunks like those of the labels. A slice of it reads and paints no more than that.
    Painted
        With a target: what was painted.

    Raises
    ------
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten.
    FileNotFoundError
        If the labels, the table or the target's folder do not exist.
    TypeError
        If the table is none.
    ValueError
        If labels are no labels, the table lacks a column, has a label twice or no numbers, or a parameter is out of
        range.

    Notes
    -----
    Chunks and shards are those of the labels, if they have any. Of a table with more than 16 million rows in Parquet
    parts that follow each other by label, as `features` writes them, a task reads only those parts that its labels are
    in. The two columns of any other table are held in memory, 16 bytes a row, by every process. NIfTI is written by
    this process alone, from end to end. A lazy array of a compressed NIfTI file decompresses it anew for every block.

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
    painting = _painting(source, open_values(table, column, label_column), fill, dtype, as_labels)
    size, task = read_extents("region", region), parse_memory(memory) if memory is not None else TASK_BYTES
    meta = np.empty((0, 0, 0), painting.dtype)
    if target is None and isinstance(source, DaskSource):
        return da.map_blocks(paint_block, source.array, painting.values, painting.fill, dtype=painting.dtype, meta=meta)
    if target is None:
        return da.from_array(painting, _blocks(source), name=False, meta=meta)
    threads = check_threads(threads)
    if workers is not None and client is not None:
        raise ValueError("workers are for this machine, and cannot go with a client.")
    local = local_capacity(workers, None) if workers is not None else None
    check_apart(str(target), source.path, str(table) if isinstance(table, str | Path) else None)
    name = column or "value"
    if is_nifti(str(target)):
        lost = _paint_nifti(painting, labels, str(target), as_labels, overwrite, progress)
    else:
        check_target(open_location(target), overwrite)
        layout = _layout(source, painting.dtype, task)
        tiling = _tiling(layout, task, size)
        with open_executor(threads, client, local, progress) as crew:
            lost = _paint_zarr(painting, str(target), name, layout, tiling, crew, as_labels, overwrite)
    return Painted(str(target), name, painting.dtype.name, painting.fill, prod(source.shape), lost)


def paint_block(labels: NDArray[Any], values: LookupTable, fill: float) -> NDArray[Any]:
    """Paint a block of labels."""
    return PaintJob(ArraySource(labels, "labels"), values, fill).read(Box((0, 0, 0), triple(labels.shape)))[0]


def paint_region(painting: PaintJob, out: LabelGroup, tiling: Tiling, number: int) -> int:
    """Paint a region, write it, and tell how many of its voxels have labels without a value."""
    box = tiling.box(number)
    painted, lost = painting.read(box)
    out.write(box, painted)
    return lost


def _paint_zarr(
    painting: PaintJob,
    target: str,
    name: str,
    layout: Layout,
    tiling: Tiling,
    crew: Executor,
    as_labels: bool,
    overwrite: bool,
) -> int:
    """Paint all regions into a new OME-Zarr group, of which nothing is left if that fails."""
    place, labels = open_location(target), painting.labels
    with unfinished_target(place, overwrite) as run:
        out = LabelGroup(place, run=run)
        out.create(layout)
        copy = materialise(labels, place.at(SCRATCH), "labels", anywhere=crew.client is not None)
        shared: Any = replace(painting, labels=copy)
        if crew.client:
            # The table travels once to a worker, not with every task.
            shared = crew.client.scatter(shared, broadcast=True, hash=False)
        calls = ((shared, out, tiling, number) for number in range(len(tiling)))
        lost: int = sum(crew.map_unordered("paint", paint_region, calls, len(tiling)))
        check_written_by(place, run)
        place.clear(SCRATCH)
        known = {"painted": name, "run": run, "labels": labels.name, "fill": _plain(painting.fill)}
        ome = ome_image_attributes(**vars(frame_of(labels)), name=f"{name} of {labels.name}", labels=as_labels)
        publish_labels(
            place, {ATTRIBUTE: {**known, **affine_attributes(labels.affine), "version": __version__}, "ome": ome}
        )
    return lost


def _paint_nifti(
    painting: PaintJob, given: Any, target: str, as_labels: bool, overwrite: bool, progress: Progress | None
) -> int:
    """Paint slab by slab into a new NIfTI file, placed in space as the labels are."""
    source, path = painting.labels, Path(target)
    if is_remote(target):
        raise ValueError(f"{target} is not on this machine: NIfTI is written to local files; name one, or a .zarr.")
    if source.kind != "nifti":
        raise ValueError(f"{path.name} would be NIfTI, but the labels are not: name a target such as values.zarr.")
    check_nifti_target(path, overwrite)
    planes, lost = slab_thickness(source.shape, painting.dtype.itemsize), 0

    def slabs() -> Iterator[tuple[int, NDArray[Any]]]:
        nonlocal lost
        for begin, slab in source.slabs(planes):
            part = replace(painting, labels=ArraySource(slab, source.name))
            painted, without = part.read(Box((0, 0, 0), triple(slab.shape)))
            lost += without
            yield begin, painted
            if progress:
                progress.advance("paint")

    if progress:
        progress.begin("paint", len(range(0, source.shape[0], planes)))
    remove_partial(path)
    write_nifti(path, slabs(), given, source.shape, dtype=painting.dtype, labels=as_labels, overwrite=overwrite)
    if progress:
        progress.end("paint")
    return lost


def _blocks(source: Source) -> Triple:
    """Choose the chunks of a lazy volume: the labels', or planes where plane follows plane."""
    return source.chunks or (slab_thickness(source.shape, source.dtype.itemsize), *source.shape[1:])


def _layout(source: Source, dtype: np.dtype[Any], task: int) -> Layout:
    """Cut the volume as the labels are, if they are and a task can hold it."""
    chunk, shard = source.chunks, source.shards or source.chunks
    if chunk is None or shard is None or prod(shard) * (LABEL_BYTES + dtype.itemsize) > task:
        shard = triple(min(n, SHARD) for n in source.shape)
        return Layout.cut(source.shape, dtype, shard, UNIT_CHUNK, checked=False)
    return Layout(source.shape, dtype, shard, chunk, ZSTD_CODEC, checked=False)


def _tiling(layout: Layout, task: int, region: Triple | None) -> Tiling:
    """Cut the volume into regions of whole shards, so that no two tasks write to one file."""
    shape, shard = triple(layout.shape), triple(layout.shard)
    if region is not None:
        region = triple(-(-r // s) * s for r, s in zip(region, shard, strict=True))
    return Tiling(shape, choose_tiling(shape, shard, LABEL_BYTES + layout.dtype.itemsize, task, region))


def _painting(labels: Source, values: LookupTable, fill: Any, dtype: DTypeLike | None, as_labels: bool) -> PaintJob:
    """Choose what values are stored as, and what fills the rest."""
    stored = values.dtype if dtype is None else _named(dtype)
    if fill is None:
        fill = float("nan") if stored.kind == "f" else 0
    if stored.kind != "f":
        fill = _whole(fill)
        stored = _narrowest(values, fill, INTEGER_DTYPES if dtype is None else (stored.name,))
    if as_labels and (stored.kind == "f" or min(fill, values.extremes[0]) < 0):
        raise ValueError("as_labels (--as-labels) is for integers from 0: these are others.")
    return PaintJob(labels, values.astype(stored), fill)


def _whole(fill: float) -> int:
    if not isfinite(fill) or int(fill) != fill:
        raise ValueError(f"fill is {fill}, which integers cannot be: pass dtype= (--dtype) as float32 or float64.")
    return int(fill)


def _narrowest(values: LookupTable, fill: int, names: Sequence[str]) -> np.dtype[Any]:
    """Find the first of some integer dtypes that holds all values and the fill."""
    if values.dtype.kind == "f":
        raise ValueError(f"the values are not integers, so round them before they are stored as {names[0]}.")
    low, high = min(fill, values.extremes[0]), max(fill, values.extremes[1])
    for name in names:
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    raise ValueError(f"the values and the fill are from {low} to {high}, which {names[-1]} does not hold.")


def _named(dtype: DTypeLike) -> np.dtype[Any]:
    with suppress(TypeError):
        if np.dtype(dtype).name in NUMERIC_DTYPES:
            return np.dtype(np.dtype(dtype).name)
    raise ValueError(f"dtype must be one of {', '.join(NUMERIC_DTYPES)}, got {dtype!r}.")


def _plain(number: float) -> float | str:
    # JSON knows neither NaN nor infinity.
    return number if isfinite(number) else str(number)
