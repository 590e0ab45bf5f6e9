"""`tokens`: each supervoxel's bounding box, resampled to one grid, as the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds._version import __version__
from dseeds.core.checks import check_threads
from dseeds.core.geometry import Box, Triple, triple
from dseeds.core.progress import Progress
from dseeds.io import open_image
from dseeds.io.labels import TASK_BYTES, align_image, check_still_unedited, open_labels
from dseeds.measure.columns import BOUNDING_BOX
from dseeds.measure.crops import read_size
from dseeds.measure.identity import LabelIdentity, TableOrigin, note_of
from dseeds.measure.lookup import open_values
from dseeds.measure.sampling import Rows, VolumeReader, interpolate, read_columns
from dseeds.parallel.executor import open_executor
from dseeds.storage.location import open_location
from dseeds.storage.ownership import check_apart
from dseeds.storage.token_group import LABELS, MASKS, TOKENS, VALUES, TokenGroup

# Tokens and bytes of a batch, which is a chunk of the target.
MOST_TOKENS, BATCH_BYTES = 1024, 1 << 24


@dataclass(frozen=True)
class Tokens:
    """The tokens of supervoxels, in a Zarr group or in memory.

    Attributes
    ----------
    address : str or None
        The group; None if the tokens are only in memory.
    labels : ndarray of int64, shape (n,)
        The supervoxels, in ascending order.
    values : ndarray or zarr.Array of float32 or float64, shape (n, channels, z, y, x)
        The intensities.
    masks : ndarray or zarr.Array of bool, shape (n, z, y, x)
        Which voxels are the supervoxel's.
    origin : TableOrigin or None
        The labels that the tokens are of.

    Examples
    --------
    >>> table = {"label": [4], **dict(zip(BOUNDING_BOX, [[0], [0], [1], [1], [1], [4]]))}
    >>> made = tokens(np.array([[[0, 4, 4, 0]]]), np.array([[[5, 6, 7, 8]]]), table, shape=(1, 1, 3))
    >>> made.labels, made.values.tolist(), made.masks.tolist()
    (array([4]), [[[[[6.0, 7.0, 8.0]]]]], [[[[True, True, False]]]])
    """

    address: str | None
    _arrays: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    _origin: TableOrigin | None = field(default=None, repr=False)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The supervoxels, in ascending order."""
        return np.asarray(self._open(LABELS)[:])

    @property
    def values(self) -> Any:
        """The intensities; of a group, as an array of Zarr that is read when it is indexed."""
        return self._open(VALUES)

    @property
    def masks(self) -> Any:
        """Which voxels are the supervoxel's; of a group, as an array of Zarr."""
        return self._open(MASKS)

    @property
    def origin(self) -> TableOrigin | None:
        """The labels that the tokens are of; None if the table did not know them."""
        if self.address is None:
            return self._origin
        identity = LabelIdentity.of_note(TokenGroup(open_location(self.address)).note())
        return None if identity is None else TableOrigin(identity, self.address)

    def _open(self, name: str) -> Any:
        return TokenGroup(open_location(self.address)).open(name) if self.address is not None else self._arrays[name]


@dataclass(frozen=True, eq=False)
class TokenJob:
    """What the tasks of tokens have in common: `batch` tokens are made at a time, into arrays of NumPy or Zarr."""

    reader: VolumeReader
    rows: Rows
    shape: Triple
    outside: float | None
    arrays: dict[str, Any]
    batch: int


def tokens(
    labels: Any,
    image: Any,
    table: Any,
    target: str | Path | None = None,
    *,
    shape: int | Sequence[int] = 8,
    outside: float | None = None,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Tokens:
    """Resample the bounding box of each supervoxel to one grid: an array with a token for each, for networks.

    Parameters
    ----------
    labels : source
        The supervoxels, axes (z, y, x): an array, or what `segment` takes as a source.
    image : source or list of sources
        The intensities on the same grid, as for `segment`.
    table : Features, path, URL or table
        The result of `features` on these labels, or any table with the columns ``label`` and ``bbox-0..5``, as `paint`
        takes it; with fewer rows, there are fewer tokens.
    target : path or URL, optional
        A new Zarr group with the arrays ``labels``, ``values`` and ``masks``. Default: they stay in memory.
    shape : int or sequence of int, default 8
        The grid of a token along (z, y, x).
    outside : float, optional
        The value of voxels that are not the supervoxel's. Default: their intensity.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.
    threads : int, optional
        Threads of this process. Default: one per core.
    overwrite : bool, default False
        Replace older tokens in the target; nothing else is ever replaced.
    progress : Progress, optional
        Follows the batches.

    Returns
    -------
    Tokens
        Labels, values and masks.

    Raises
    ------
    FileExistsError
        If the target exists and may not be overwritten.
    FileNotFoundError
        If a source, the table or the target's folder does not exist.
    ValueError
        If the table was made from other labels or lacks a column, shapes or positions differ, a bounding box is empty
        or larger than the memory of a task, or a parameter is out of range.

    Notes
    -----
    The grid divides the bounding box evenly: point i of n along an axis with the voxels a to b - 1 lies at ``a - 1/2 +
    (i + 1/2) (b - a) / n``. Intensities are interpolated trilinearly between the voxels of the box, without smoothing
    before; beyond the centres of the outermost voxels they are those of these. The mask is that of the voxel in which
    the point lies. Each token depends on its own supervoxel's box alone.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels, image = np.array([[[1, 1, 1, 1, 2, 2]]]), np.array([[[5, 6, 7, 8, 9, 9]]])
    >>> made = dseeds.tokens(labels, image, dseeds.features(labels), shape=(1, 1, 2))
    >>> made.values.tolist()
    [[[[[5.5, 7.5]]]], [[[[9.0, 9.0]]]]]
    """
    label_source = open_labels(labels)
    opened = open_image(image, volume=volume, channel_axis=channel_axis, level=level or 0, planes=True)
    opened = align_image(opened, label_source)
    grid = read_size(shape, np.ones(3), "shape")
    origin = open_values(table, BOUNDING_BOX[0]).origin
    rows = read_columns(table, BOUNDING_BOX, label_source, whole=True)
    reader = VolumeReader(label_source, opened)
    check_boxes(rows, reader)
    count, channels = len(rows.labels), opened.channels
    shapes = {VALUES: (count, channels, *grid), MASKS: (count, *grid)}
    dtypes = {VALUES: reader.dtype, MASKS: np.dtype(bool)}
    batch = max(1, min(MOST_TOKENS, BATCH_BYTES // (channels * prod(grid) * reader.dtype.itemsize)))
    number = check_threads(threads)
    if target is None:
        arrays = {name: np.empty(shapes[name], dtypes[name]) for name in shapes}
        run_batches(TokenJob(reader, rows, grid, outside, arrays, batch), number, progress)
        check_still_unedited(label_source)
        return Tokens(None, {LABELS: rows.labels, **arrays}, origin)
    check_apart(str(target), label_source.path, *opened.paths)
    group = TokenGroup(open_location(target))
    with group.unfinished(overwrite):
        group.create(LABELS, (count,), np.dtype(np.int64), count)[:] = rows.labels
        stored = {name: group.create(name, shapes[name], dtypes[name], batch) for name in shapes}
        run_batches(TokenJob(reader, rows, grid, outside, stored, batch), number, progress)
        names = {"labels": label_source.name, "image": opened.name}
        check_still_unedited(label_source)
        group.publish({TOKENS: count, **names, **note_of(origin), "version": __version__})
    return Tokens(group.location.address)


def check_boxes(rows: Rows, reader: VolumeReader) -> None:
    """Raise a ValueError unless all bounding boxes lie in the volume and fit into the memory of a task."""
    low, high = rows.values[:, :3], rows.values[:, 3:]
    wrong = np.flatnonzero(((low < 0) | (low >= high) | (high > np.array(reader.shape))).any(axis=1))
    if len(wrong):
        label = rows.labels[wrong[0]]
        raise ValueError(f"the bounding box of label {label} is not in the volume: is the table of these labels?")
    sizes = np.prod(high - low, axis=1) * (8 + reader.image.channels * reader.dtype.itemsize)
    if sizes.max() > TASK_BYTES:
        raise ValueError(
            f"the bounding box of label {rows.labels[int(sizes.argmax())]} has {sizes.max() / 2**20:.0f} MiB, more "
            f"than {TASK_BYTES >> 20}: leave its row out of the table, or take a coarser level."
        )


def run_batches(job: TokenJob, threads: int, progress: Progress | None) -> None:
    """Make all tokens, so many at a time."""
    begins = range(0, len(job.rows.labels), job.batch)
    with open_executor(threads, progress=progress) as executor:
        for _ in executor.map_unordered(TOKENS, make_batch, ((job, begin) for begin in begins), len(begins)):
            pass


def make_batch(job: TokenJob, begin: int) -> int:
    """Make the tokens of a batch, write them, and return its first number."""
    numbers = range(begin, min(begin + job.batch, len(job.rows.labels)))
    values, masks = zip(*(make_token(job, number) for number in numbers), strict=True)
    for name, parts in ((VALUES, values), (MASKS, masks)):
        job.arrays[name][begin : numbers.stop] = np.stack(parts)
    return begin


def make_token(job: TokenJob, number: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the values (channels, z, y, x) and the mask (z, y, x) of a supervoxel."""
    low, high = (triple(side) for side in np.split(job.rows.values[number], 2))
    labels, image = job.reader.read(Box(low, high))
    steps = [2 * np.arange(n) + 1 for n in job.shape]
    points = [step * extent / (2 * n) - 0.5 for step, extent, n in zip(steps, labels.shape, job.shape, strict=True)]
    voxels = [step * extent // (2 * n) for step, extent, n in zip(steps, labels.shape, job.shape, strict=True)]
    values, mask = interpolate(image, points), labels[np.ix_(*voxels)] == job.rows.labels[number]
    if job.outside is not None:
        values = np.where(mask, values, values.dtype.type(job.outside))
    return values, mask
