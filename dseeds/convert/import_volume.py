"""`import_volume`: images of any format become OME-Zarr, out of core, and stay where they are in space."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.convert.slab_reader import SlabReader, combine_channels, lengths_in_mm
from dseeds.core.checks import check_threads, read_extents
from dseeds.core.dtypes import NUMERIC_DTYPES
from dseeds.core.geometry import AXES, Tiling, Triple, triple
from dseeds.core.progress import Progress
from dseeds.io import Frame, Image, Spacing, ome_image_attributes
from dseeds.io.affine import affine_attributes, translation, with_spacing
from dseeds.io.image import common_dtype, open_channels
from dseeds.io.labels import TASK_BYTES
from dseeds.io.ome_metadata import MILLIMETRES
from dseeds.io.pyramid import build_pyramid
from dseeds.io.pyramid_levels import choose_levels
from dseeds.io.source import SourceQuery
from dseeds.parallel.cluster import parse_memory
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import (
    ATTRIBUTE,
    begin_target,
    check_target,
    check_written_by,
    publish_labels,
    remove_target,
    written_by,
)
from dseeds.storage.location import Location, open_location
from dseeds.storage.object_store import describe_store_error
from dseeds.storage.ownership import check_apart
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, open_arrays, sync_shards

IMPORT_STAGE = "import"
# Voxels along an axis of a shard.
IMPORT_SHARD = 256


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes
    ----------
    target : str
        Where it is.
    shape, chunks, shards : tuple of int
        Voxels along (z, y, x) of the image, and of what is stored together.
    channels : int or None
        How many channels lie along a first axis; None where there is no such axis.
    dtype : str
        What voxels are stored as.
    spacing : tuple of float or None
        Size of a voxel along (z, y, x) in millimetres.
    levels : int
        How many resolutions there are.
    labels : bool
        Whether the voxels are labels.
    """

    target: str
    shape: Triple
    chunks: Triple
    shards: Triple
    channels: int | None
    dtype: str
    spacing: Spacing | None
    levels: int
    labels: bool

    def __str__(self) -> str:
        what = "labels" if self.labels else f"{self.channels} channels" if self.channels else "an image"
        levels = f"{self.levels} resolution{'' if self.levels == 1 else 's'}"
        return f"{what} of {' x '.join(map(str, self.shape))} voxels, {self.dtype}, {levels}: {self.target}"

    def to_json(self) -> str:
        """Give all of it as JSON."""
        return json.dumps(asdict(self), indent=2)


def import_volume(
    source: Any,
    target: str | Path,
    *,
    volume: int | None = None,
    channel_axis: int | str | None = None,
    spacing: Sequence[float] | None = None,
    labels: bool | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    pyramid: bool = True,
    memory: int | str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Write an image or labels of any format as OME-Zarr, out of core.

    Parameters
    ----------
    source : source or list of sources
        What `dseeds.io.open_source` takes; of several of one shape and place, each brings channels of its own.
    target : path or URL
        A new OME-Zarr group.
    volume : int, optional
        Which volume of a 4D image, from 0.
    channel_axis : int or str, optional
        The axis that channels lie along; see `dseeds.io.open_image`: 0 takes all volumes of a 4D NIfTI file as
        channels. Default: the axis ``c`` of OME-Zarr and TIFF, and the colours of the others.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: what the source says.
    labels : bool, optional
        Whether the voxels are labels. Default: as the source says.
    chunks, shards : int or sequence of int, optional
        Voxels along (z, y, x) of a chunk, and of a shard, which is a file of whole chunks. Default: 64 and 256, less
        along z where a source that can only be read from top to bottom has planes of which the memory holds fewer.
    pyramid : bool, default True
        Write coarser resolutions, too: means of an image, the most frequent of labels.
    memory : int or str, optional
        What may be held at once, such as ``"512MiB"``, the default.
    threads : int, optional
        Threads that share the work. Default: one per core.
    overwrite : bool, default False
        Replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Is told about slabs or regions.

    Returns
    -------
    Imported

    Raises
    ------
    FileExistsError
        If the target exists and is not to be, or must not be, overwritten.
    FileNotFoundError
        If the source or the target's folder does not exist.
    ValueError
        If the source cannot be read, a parameter is out of range, or a package is missing.

    Notes
    -----
    The array's axes are (z, y, x), or (c, z, y, x) of several channels, which get a type that holds them all; its codec
    is that of labels. OME-NGFF 0.5 knows the size of a voxel, and where the first one lies, but no orientation: the
    affine from voxels (x, y, z) to millimetres, as in NIfTI, is in the group's attribute ``dseeds``, where `segment`
    and `export_volume` find it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = import_volume(np.zeros((30, 40, 50), "uint16"), f"{folder}/a.zarr", spacing=(2.0, 0.5, 0.5))
    >>> found.shape, found.chunks, found.spacing
    ((30, 40, 50), (30, 40, 50), (2.0, 0.5, 0.5))
    """
    image = open_channels(source, SourceQuery(volume, channel_axis, "copy"))
    labelled = image.labelled if labels is None else labels
    given, dtype = lengths_in_mm(spacing), _dtype(image.dtypes, labelled)
    threads, place = check_threads(threads), open_location(target)
    reading = SlabReader(image, parse_memory(memory) if memory is not None else TASK_BYTES, progress)
    cut = _cut(reading, read_extents("chunks", chunks), read_extents("shards", shards))
    check_apart(str(target), *image.paths)
    check_target(place, overwrite)
    run = uuid.uuid4().hex[:16]
    begin_target(place, run, overwrite)
    try:
        axes = "zyx" if image.channels == 1 else "czyx"
        _create(place, (image.channels,) * (len(axes) - 3), image.shape, dtype, *cut)
        # Each holds a shard.
        fitting = max(1, reading.memory // (prod(cut[1]) * reading.voxel_bytes))
        crew = Executor(min(threads, fitting), progress=progress)
        _copy(reading, place, run, dtype, cut[1], crew)
        size = given or image.spacing
        affine = with_spacing(image.affine, given)
        frame = _frame(image, given, affine)
        wanted = choose_levels(triple(image.shape), size or frame.spacing) if pyramid else ()
        method = "mode" if labelled else "mean"
        levels = build_pyramid(place.address, method, wanted, crew=crew, run=run) if wanted else ()
        ome = ome_image_attributes(**vars(frame), name=image.name, levels=levels, axes=axes, labels=labelled)
        known = {"imported": image.name, "run": run, **affine_attributes(affine), "version": __version__}
        if image.path is not None:
            known["source"] = image.identity
        if written_by(place) != run:
            raise RuntimeError(f"{target} was taken over by another run, or taken away, before it was finished.")
        publish_labels(place, {ATTRIBUTE: known, "ome": ome})
    except BaseException:
        # Another one's is not ours to remove.
        if written_by(place) == run:
            remove_target(place)
        raise
    channels = image.channels if image.channels > 1 else None
    return ImportReport(str(target), triple(image.shape), *cut, channels, dtype.name, size, 1 + len(levels), labelled)


def _frame(image: Image, spacing: Spacing | None, affine: np.ndarray | None) -> Frame:
    """Tell where the voxels lie: an OME-Zarr image says it itself, of others the affine does, as far as it can."""
    frame = image.frame if spacing is None else Frame(spacing, units=MILLIMETRES)
    place = translation(affine)
    if place is None or any(frame.translation):
        return frame
    return replace(frame, translation=place)


def copy_box(reading: SlabReader, location: Location, run: str, dtype: np.dtype, box: tuple[slice, ...]) -> None:
    """Read a box (z, y, x) of whole shards and write it."""
    z, y, x = box
    write_box(location, run, box, combine_channels(reading.image.read((z, y, x)), dtype))


def write_box(location: Location, run: str, box: tuple[slice, ...], values: NDArray[Any]) -> None:
    """Write a box (z, y, x) of whole shards, all channels.

    Raises
    ------
    RuntimeError
        If the target is not the run's, or is no longer unfinished.
    """
    check_written_by(location, run)
    with describe_store_error(location.address):
        array = open_arrays(location, "0", run)[1]
        index = (*(slice(0, n) for n in array.shape[:-3]), *box)
        array[index] = values
    sync_shards(location, "0", index, run)


def _copy(reading: SlabReader, place: Location, run: str, dtype: np.dtype, shards: Triple, crew: Executor) -> None:
    """Copy region by region, or slab by slab where the source has to be read from top to bottom."""
    shape = triple(reading.image.shape)
    if reading.image.readable_by_workers:
        tiling = Tiling(shape, shards)
        calls = ((reading, place, run, dtype, tiling.box(number).slices) for number in range(len(tiling)))
        for _ in crew.each(IMPORT_STAGE, copy_box, calls, len(tiling)):
            pass
        return
    columns = Tiling((1, *shape[1:]), (1, *shards[1:]))
    quiet = replace(crew, progress=None)
    for begin, slab in reading.slabs(IMPORT_STAGE, dtype, shards[0]):
        along = slice(begin, begin + slab.shape[-3])
        boxes = (columns.box(number).slices[1:] for number in range(len(columns)))
        parts = ((place, run, (along, *box), slab[(..., *box)]) for box in boxes)
        for _ in quiet.each(IMPORT_STAGE, write_box, parts, len(columns)):
            pass


def _create(
    place: Location, channels: tuple[int, ...], shape: Triple, dtype: np.dtype, chunks: Triple, shards: Triple
) -> None:
    one = (1,) * len(channels)
    zarr.create_array(
        place.zarr("0"),
        shape=(*channels, *shape),
        dtype=dtype,
        chunks=(*one, *chunks),
        shards=(*one, *shards),
        compressors=ZSTD_CODEC,
        fill_value=0,
        dimension_names=("c", *AXES)[1 - len(channels) :],
        zarr_format=3,
    )


def _cut(reading: SlabReader, chunks: Triple | None, shards: Triple | None) -> tuple[Triple, Triple]:
    """Choose chunks and shards, or check those that are given."""
    image, shape = reading.image, triple(reading.image.shape)
    most = IMPORT_SHARD if image.readable_by_workers else reading.planes
    if chunks is None:
        chunks = triple(min(n, UNIT_CHUNK) for n in shards or (most, UNIT_CHUNK, UNIT_CHUNK))
    if shards is None:
        side = IMPORT_SHARD
        while side > UNIT_CHUNK and image.readable_by_workers and side**3 * reading.voxel_bytes > reading.memory:
            side //= 2
        deep = (min(side, most), side, side)
        shards = triple(max(s // c, 1) * c for s, c in zip(deep, chunks, strict=True))
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        raise ValueError(f"shards of {shards} voxels (z, y, x) are not made up of chunks of {chunks}: take multiples.")
    chunks, asked = triple(min(c, n) for c, n in zip(chunks, shape, strict=True)), shards
    shards = triple(
        n if s >= n and c == n else min(s, -(-n // c) * c) for s, c, n in zip(asked, chunks, shape, strict=True)
    )
    if min(shards[0], shape[0]) > most and not image.readable_by_workers:
        raise ValueError(
            f"{shards[0]} planes of {image.name} do not fit the memory, which holds {most}: "
            f"give more (memory=, --memory), or make shards and chunks shallower"
        )
    return chunks, shards


def _dtype(dtypes: Sequence[np.dtype], labelled: bool) -> np.dtype:
    found = common_dtype(dtypes)
    if labelled and found.kind == "f":
        # NIfTI files often hold labels as floats.
        return np.dtype(np.int32)
    if found.name not in (*NUMERIC_DTYPES, "float16"):
        raise ValueError(f"voxels of type {found} cannot be stored: convert them to float64 or integers of 64 bits.")
    return found
