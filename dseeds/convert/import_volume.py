"""Import of images and labels of any format as OME-Zarr, out of core, with their position in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.convert.slab_reader import ConversionReport, SlabReader, combine_channels
from dseeds.core.checks import check_threads, read_extents
from dseeds.core.dtypes import NUMERIC_DTYPES
from dseeds.core.formatting import format_shape
from dseeds.core.geometry import AXES, Tiling, Triple, check_spacing, triple
from dseeds.core.progress import Progress
from dseeds.io import Frame, Image, Spacing, ome_image_attributes
from dseeds.io.affine import affine_attributes, translation, with_spacing
from dseeds.io.image import common_dtype
from dseeds.io.ome_metadata import MILLIMETRES, Resolution
from dseeds.io.pyramid import build_pyramid
from dseeds.io.pyramid_levels import choose_levels
from dseeds.io.source import IndexBox, SourceQuery
from dseeds.parallel.executor import Executor
from dseeds.storage.label_group import ATTRIBUTE, check_written_by, publish_labels, unfinished_target
from dseeds.storage.location import Location, open_location
from dseeds.storage.object_store import describe_store_error
from dseeds.storage.ownership import check_apart
from dseeds.storage.zarr_arrays import UNIT_CHUNK, ZSTD_CODEC, open_arrays, open_codec, sync_shards

IMPORT_STAGE = "import"
# Voxels along an axis of a shard.
IMPORT_SHARD = 256


@dataclass(frozen=True, kw_only=True)
class ImportReport(ConversionReport):
    """A report of an import. Chunks and shards are in voxels along (z, y, x); `levels` counts the resolutions."""

    chunks: Triple
    shards: Triple
    levels: int

    def __str__(self) -> str:
        content = "labels" if self.labels else f"{self.channels} channels" if self.channels else "an image"
        levels = f"{self.levels} resolution{'' if self.levels == 1 else 's'}"
        return self.with_notes(f"{content} of {format_shape(self.shape)} voxels, {self.dtype}, {levels}: {self.target}")


@dataclass(frozen=True)
class _Output:
    """The array that an image is imported to, in an unfinished group that the run owns."""

    location: Location
    run: str
    dtype: np.dtype

    def create(self, reader: SlabReader, axes: str, chunks: Triple, shards: Triple) -> None:
        """Create the array, with one channel per chunk."""
        channel = (1,) * (len(axes) - 3)
        zarr.create_array(
            self.location.zarr("0"),
            shape=(*(reader.image.channels * n for n in channel), *reader.image.shape),
            dtype=self.dtype,
            chunks=(*channel, *chunks),
            shards=(*channel, *shards),
            compressors=open_codec(ZSTD_CODEC),
            fill_value=0,
            dimension_names=("c", *AXES)[1 - len(channel) :],
            zarr_format=3,
        )

    def write(self, box: IndexBox, values: NDArray[Any]) -> None:
        """Write all channels of a box (z, y, x) of whole shards; RuntimeError if another run owns the group."""
        check_written_by(self.location, self.run)
        with describe_store_error(self.location.address):
            array = open_arrays(self.location, "0", self.run)[1]
            index = (*(slice(0, n) for n in array.shape[:-3]), *box)
            array[index] = values
        sync_shards(self.location, "0", index, self.run)

    def copy(self, reader: SlabReader, box: IndexBox) -> None:
        self.write(box, combine_channels(reader.image.read(box), self.dtype))


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
        Anything that `dseeds.io.open_source` takes. Several sources of the same shape and position each contribute
        channels.
    target : path or URL
        A new OME-Zarr group.
    volume : int, optional
        Which volume of a 4D image, from 0.
    channel_axis : int or str, optional
        The axis of the channels, see `dseeds.io.open_image`; 0 makes channels of all volumes of a 4D NIfTI file.
        Default: the axis ``c`` of OME-Zarr and TIFF, and the colours of other formats.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: the source's.
    labels : bool, optional
        Whether the voxels are labels. Default: as the source states.
    chunks, shards : int or sequence of int, optional
        Voxels along (z, y, x) of a chunk, and of a shard, which is a file of whole chunks. Default: 64 and 256; fewer
        planes if the source can only be read from top to bottom and the memory does not hold that many.
    pyramid : bool, default True
        Whether to write coarser resolutions, too: by the mean for images, by the most frequent label for labels.
    memory : int or str, optional
        Memory for voxels, in bytes or as a text such as ``"512MiB"``, the default.
    threads : int, optional
        Number of threads. Default: one per core.
    overwrite : bool, default False
        Whether to replace an older output of this program; nothing else is ever replaced.
    progress : Progress, optional
        Receives the progress of each stage.

    Returns
    -------
    ImportReport

    Raises
    ------
    FileExistsError
        If the target exists, and was not written by this program or `overwrite` is not set.
    FileNotFoundError
        If the source or the target's parent folder does not exist.
    ValueError
        If the source cannot be read, a parameter is out of range, or a package is missing.

    Notes
    -----
    The array's axes are (z, y, x), or (c, z, y, x) for several channels, which are stored in a common type; it is
    compressed like labels. OME-NGFF 0.5 has the size and the position of voxels, but no orientation: the affine from
    voxels (x, y, z) to millimetres, as in NIfTI, is kept in the group's attribute ``dseeds``, where `segment` and
    `export_volume` find it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = import_volume(np.zeros((30, 40, 50), "uint16"), f"{folder}/a.zarr", spacing=(2.0, 0.5, 0.5))
    >>> report.shape, report.chunks, report.spacing
    ((30, 40, 50), (30, 40, 50), (2.0, 0.5, 0.5))
    """
    reader = SlabReader.open(source, SourceQuery(volume, channel_axis, "copy"), memory, progress)
    image = reader.image
    labelled = image.labelled if labels is None else labels
    given_spacing = None if spacing is None else check_spacing(spacing)
    dtype = _storage_dtype(image.dtypes, labelled)
    threads = check_threads(threads)
    chunk_shape, shard_shape = _cut_array(reader, read_extents("chunks", chunks), read_extents("shards", shards))
    # Each thread holds a shard.
    threads = min(threads, max(1, reader.memory // (prod(shard_shape) * reader.voxel_bytes)))
    check_apart(str(target), *image.paths)
    axes = "zyx" if image.channels == 1 else "czyx"
    affine = with_spacing(image.affine, given_spacing)
    forms = image.forms and image.forms.mapped(lambda form: with_spacing(form, given_spacing))
    frame, size = _frame(image, given_spacing, affine), given_spacing or image.spacing
    location = open_location(target)
    with unfinished_target(location, overwrite) as run:
        output, executor = _Output(location, run, dtype), Executor(threads, progress=progress)
        output.create(reader, axes, chunk_shape, shard_shape)
        _copy(reader, output, shard_shape, executor)
        levels: tuple[Resolution, ...] = ()
        if pyramid and (coarser := choose_levels(triple(image.shape), size or frame.spacing)):
            method = "mode" if labelled else "mean"
            levels = build_pyramid(location.address, method, coarser, executor=executor, run=run)
        ome = ome_image_attributes(**vars(frame), name=image.name, levels=levels, axes=axes, labels=labelled)
        attributes = {"imported": image.name, "run": run, **affine_attributes(affine, forms), "version": __version__}
        if image.path is not None:
            attributes["source"] = image.identity
        check_written_by(location, run)
        publish_labels(location, {ATTRIBUTE: attributes, "ome": ome})
    return ImportReport(
        target=str(target),
        shape=triple(image.shape),
        channels=image.channels if image.channels > 1 else None,
        dtype=dtype.name,
        spacing=size,
        labels=labelled,
        notes=image.notes,
        chunks=chunk_shape,
        shards=shard_shape,
        levels=1 + len(levels),
    )


def _frame(image: Image, spacing: Spacing | None, affine: np.ndarray | None) -> Frame:
    """Return the position of the voxels: as an OME-Zarr image states it, or as far as the affine gives it."""
    frame = image.frame if spacing is None else Frame(spacing, units=MILLIMETRES)
    origin = translation(affine)
    if origin is None or any(frame.translation):
        return frame
    return replace(frame, translation=origin)


def _copy(reader: SlabReader, output: _Output, shards: Triple, executor: Executor) -> None:
    """Copy the image in boxes, or in slabs if it can only be read from top to bottom."""
    shape = triple(reader.image.shape)
    if reader.image.readable_by_workers:
        tiling = Tiling(shape, shards)
        calls = ((output, reader, tiling.box(number).slices) for number in range(len(tiling)))
        for _ in executor.map_unordered(IMPORT_STAGE, _Output.copy, calls, len(tiling)):
            pass
        return
    columns = Tiling((1, *shape[1:]), (1, *shards[1:]))
    silent = replace(executor, progress=None)
    for begin, slab in reader.slabs(IMPORT_STAGE, output.dtype, shards[0]):
        depth = slice(begin, begin + slab.shape[-3])
        boxes = (columns.box(number).slices[1:] for number in range(len(columns)))
        parts = ((output, (depth, *box), slab[(..., *box)]) for box in boxes)
        for _ in silent.map_unordered(IMPORT_STAGE, _Output.write, parts, len(columns)):
            pass


def _cut_array(reader: SlabReader, chunks: Triple | None, shards: Triple | None) -> tuple[Triple, Triple]:
    """Return the extents of chunks and shards, which are chosen here unless the user gives them."""
    image, shape = reader.image, triple(reader.image.shape)
    max_planes = IMPORT_SHARD if image.readable_by_workers else reader.planes
    if chunks is None:
        chunks = triple(min(n, UNIT_CHUNK) for n in shards or (max_planes, UNIT_CHUNK, UNIT_CHUNK))
    if shards is None:
        side = IMPORT_SHARD
        while side > UNIT_CHUNK and image.readable_by_workers and side**3 * reader.voxel_bytes > reader.memory:
            side //= 2
        extents = (min(side, max_planes), side, side)
        shards = triple(max(s // c, 1) * c for s, c in zip(extents, chunks, strict=True))
    if any(s % c for s, c in zip(shards, chunks, strict=True)):
        raise ValueError(f"shards of {shards} voxels (z, y, x) are not made up of chunks of {chunks}: use multiples.")
    # Neither is longer than the image, and shards still consist of whole chunks.
    chunks, full = triple(min(c, n) for c, n in zip(chunks, shape, strict=True)), shards
    shards = triple(
        n if s >= n and c == n else min(s, -(-n // c) * c) for s, c, n in zip(full, chunks, shape, strict=True)
    )
    if min(shards[0], shape[0]) > max_planes and not image.readable_by_workers:
        raise ValueError(
            f"{shards[0]} planes of {image.name} do not fit the memory, which holds {max_planes}: "
            f"allow more (memory=, --memory), or make shards and chunks shallower"
        )
    return chunks, shards


def _storage_dtype(dtypes: Sequence[np.dtype], labelled: bool) -> np.dtype:
    dtype = common_dtype(dtypes)
    if labelled and dtype.kind == "f":
        # NIfTI files often hold labels as floats.
        return np.dtype(np.int32)
    if dtype.name not in (*NUMERIC_DTYPES, "float16"):
        raise ValueError(f"voxels of type {dtype} cannot be stored: convert them to float64 or integers of 64 bits.")
    return dtype
