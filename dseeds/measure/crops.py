"""`crops`: the image around each supervoxel at a fixed size, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from dseeds.core.checks import is_whole_number
from dseeds.core.geometry import Box, Triple, check_spacing, triple
from dseeds.io import open_image
from dseeds.io.labels import align_image, open_labels
from dseeds.measure.columns import CENTROID
from dseeds.measure.sampling import VolumeReader, interpolate, read_columns
from dseeds.seeds.cell_size import millimetres

MOST_VOXELS = 1 << 28


class SupervoxelCrop(NamedTuple):
    """The image around a supervoxel, or around several ones, with one more axis in front.

    Attributes
    ----------
    image : ndarray of float32 or float64, shape (channels, z, y, x)
        The intensities.
    mask : ndarray of bool, shape (z, y, x)
        Which voxels are the supervoxel's.
    inside : ndarray of bool, shape (z, y, x)
        Which voxels lie in the volume; the others have the value `fill`.
    label : int or ndarray of int64
        The supervoxel.

    Examples
    --------
    >>> table = {"label": [4], "centroid-0": [0], "centroid-1": [0], "centroid-2": [1]}
    >>> crop = crops(np.full((1, 1, 3), 4), np.array([[[5, 6, 7]]]), table, size=3)[0]
    >>> crop.label, crop.image[0, 1, 1].tolist(), crop.inside[:, 1, 1].tolist()
    (4, [5.0, 6.0, 7.0], [False, True, False])
    """

    image: NDArray[Any]
    mask: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    label: Any


class Crops(Sequence[SupervoxelCrop]):
    """The crops around supervoxels, which are read when they are asked for: a data set for PyTorch's `DataLoader`.

    It pickles, and may be used in forked and spawned processes and in threads: each process opens the sources anew.

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        The supervoxels, in ascending order.
    size : tuple of int
        The voxels of a crop along (z, y, x).

    Examples
    --------
    >>> from dseeds.measure.features import features
    >>> labels, image = np.array([[[1, 1, 1, 2, 2]]]), np.array([[[5, 6, 7, 8, 9]]])
    >>> around = crops(labels, image, features(labels), size=(1, 1, 3))
    >>> len(around), around[1].image.tolist(), around[1].mask.tolist()
    (2, [[[[8.0, 9.0, 0.0]]]], [[[True, True, False]]])
    >>> [batch.label.tolist() for batch in around.batches(64)]
    [[1, 2]]
    """

    def __init__(
        self,
        reader: VolumeReader,
        labels: NDArray[np.int64],
        centroids: NDArray[np.float64],
        size: Triple,
        ratio: NDArray[np.float64] | None,
        fill: float,
    ) -> None:
        self.labels, self.size = labels, size
        self._reader, self._centroids, self._ratio, self._fill = reader, centroids, ratio, fill

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: SupportsIndex | slice) -> SupervoxelCrop:  # type: ignore[override]
        """Return the crop around a supervoxel by its position in `labels`."""
        if isinstance(number, slice):
            raise TypeError("crops are read one at a time, or by batches: index them by a number.")
        position = range(len(self))[number]
        points = self._points(position)
        shape = self._reader.shape
        within = [(p > -0.5) & (p < n - 0.5) for p, n in zip(points, shape, strict=True)]
        inside = within[0][:, None, None] & within[1][:, None] & within[2]
        window = Box(
            triple(max(0, np.floor(p[0])) for p in points),
            triple(min(n, np.ceil(p[-1]) + 1) for p, n in zip(points, shape, strict=True)),
        )
        labels, image = self._reader.read(window)
        local = [p - a for p, a in zip(points, window.lo, strict=True)]
        nearest = [np.clip(np.floor(p + 0.5), 0, n - 1).astype(int) for p, n in zip(local, labels.shape, strict=True)]
        if self._ratio is None:
            sampled = image[:, nearest[0][:, None, None], nearest[1][:, None], nearest[2]]
        else:
            sampled = interpolate(image, local)
        label = int(self.labels[position])
        mask = inside & (labels[np.ix_(*nearest)] == label)
        return SupervoxelCrop(np.where(inside, sampled, image.dtype.type(self._fill)), mask, inside, label)

    def __getitems__(self, numbers: Sequence[int]) -> list[SupervoxelCrop]:
        """Return several crops, as PyTorch asks for those of a batch."""
        return [self[number] for number in numbers]

    def batches(self, size: int, order: Sequence[int] | None = None) -> Iterator[SupervoxelCrop]:
        """Return the crops stacked, so many at a time, in ascending order of labels or in another `order` of positions.

        Supervoxels with consecutive labels of dseeds are neighbours, and read the same chunks.
        """
        if isinstance(size, bool) or not is_whole_number(size) or size < 1:
            raise ValueError(f"a batch must have a whole number of at least 1 crops, got {size!r}.")
        positions = range(len(self)) if order is None else order
        starts = range(0, len(positions), size)
        return (stack_crops([self[i] for i in positions[begin : begin + size]]) for begin in starts)

    def _points(self, position: int) -> list[NDArray[np.float64]]:
        """Return the coordinates of a crop's voxels along z, y and x, in voxels of the volume."""
        centre = self._centroids[position]
        if self._ratio is None:
            starts = np.floor(centre + 0.5) - [n // 2 for n in self.size]
            return [start + np.arange(n) for start, n in zip(starts, self.size, strict=True)]
        triples = zip(centre, self._ratio, self.size, strict=True)
        return [c + (np.arange(n) - (n - 1) / 2) * ratio for c, ratio, n in triples]


def stack_crops(items: Sequence[SupervoxelCrop]) -> SupervoxelCrop:
    """Return crops as one, with one more axis in front."""
    image, mask, inside, labels = zip(*items, strict=True)
    return SupervoxelCrop(np.stack(image), np.stack(mask), np.stack(inside), np.array(labels, np.int64))


def crops(
    labels: Any,
    image: Any,
    table: Any,
    size: int | Sequence[int] | str = 32,
    *,
    resolution: float | Sequence[float] | None = None,
    spacing: Sequence[float] | None = None,
    fill: float = 0.0,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
) -> Crops:
    """Return the image around the centroid of each supervoxel, as a data set whose items are read when asked for.

    Parameters
    ----------
    labels : source
        The supervoxels, axes (z, y, x): an array, or what `segment` takes as a source.
    image : source or list of sources
        The intensities on the same grid, as for `segment`.
    table : Features, path, URL or table
        The result of `features` on these labels, or any table with the columns ``label`` and ``centroid-0..2``, as
        `paint` takes it; with fewer rows, there are fewer crops.
    size : int, sequence of int or str, default 32
        The voxels of a crop along (z, y, x), or a length such as ``"20mm"``.
    resolution : float or sequence of float, optional
        Resample to voxels of this size along (z, y, x) in millimetres, one number for all axes: the image by trilinear
        interpolation, without smoothing before, the mask by the nearest voxel. Default: voxels remain as they are.
    spacing : sequence of float, optional
        Size of a voxel along (z, y, x) in millimetres. Default: that of the image, else that of the labels.
    fill : float, default 0
        The intensity of voxels beyond the volume.
    volume, level, channel_axis : optional
        Of the image, as for `segment`.

    Returns
    -------
    Crops
        A sequence of `SupervoxelCrop`. Without `resolution`, the voxel at the centroid is number ``size // 2`` along
        each axis; with it, the centroid is in the middle.

    Raises
    ------
    FileNotFoundError
        If a source or the table does not exist.
    ValueError
        If the table was made from other labels or lacks a column, shapes or positions differ, lengths are asked for and
        no spacing is known, or a parameter is out of range.

    Notes
    -----
    A crop reads only the chunks that it needs, and each process keeps the last ones, 256 MiB of each source. Files that
    can only be read from end to end, such as compressed NIfTI, are read into the memory of each process. What is in an
    object store is read by spawned processes, and refused by forked ones, which would wait for ever.

    Examples
    --------
    >>> import numpy as np
    >>> import dseeds
    >>> labels, image = np.array([[[1, 1, 1, 2, 2]]]), np.array([[[5, 6, 7, 8, 9]]])
    >>> around = dseeds.crops(labels, image, dseeds.features(labels), size=(1, 1, 5), fill=-1)
    >>> around[0].image.tolist()
    [[[[-1.0, 5.0, 6.0, 7.0, 8.0]]]]
    """
    label_source = open_labels(labels)
    opened = open_image(image, volume=volume, channel_axis=channel_axis, level=level or 0, planes=True)
    opened = align_image(opened, label_source)
    known = opened.spacing or label_source.spacing if spacing is None else check_spacing(spacing)
    if known is None and (resolution is not None or isinstance(size, str)):
        raise ValueError("the size of the voxels is unknown: pass spacing=, along (z, y, x) in millimetres.")
    own = np.array(known or (1, 1, 1), np.float64)
    grid = own if resolution is None else _read_resolution(resolution)
    extents = read_size(size, grid)
    rows = read_columns(table, CENTROID, label_source, whole=True)
    shape = triple(label_source.shape)
    beyond = np.flatnonzero(((rows.values < 0) | (rows.values > np.array(shape) - 1)).any(axis=1))
    if len(beyond):
        label = rows.labels[beyond[0]]
        raise ValueError(f"the centroid of label {label} is not in the volume: is the table of these labels?")
    reader = VolumeReader(label_source, opened)
    return Crops(reader, rows.labels, rows.values, extents, None if resolution is None else grid / own, float(fill))


def _read_resolution(resolution: float | Sequence[float]) -> NDArray[np.float64]:
    numbers: Any = resolution
    return np.array(check_spacing([numbers] * 3 if np.ndim(numbers) == 0 else numbers), np.float64)


def read_size(size: int | Sequence[int] | str, spacing: NDArray[np.float64], name: str = "size") -> Triple:
    """Return the voxels along (z, y, x) of a size that `crops` takes, under the name of its parameter.

    >>> read_size("20mm", np.array([5.0, 0.8, 0.8]))
    (4, 25, 25)
    """
    numbers: Any = size
    if isinstance(size, str):
        length = millimetres(size)
        if length is None:
            raise ValueError(f"size must be voxels such as 32, or a length such as '20mm', got {size!r}.")
        numbers = [max(1, round(length / one)) for one in spacing]
    numbers = [numbers] * 3 if np.ndim(numbers) == 0 else list(numbers)
    if len(numbers) != 3 or any(isinstance(n, bool) or not is_whole_number(n) or n < 1 for n in numbers):
        raise ValueError(
            f"{name} must be a whole number of voxels from 1, or three of them for (z, y, x), got {size!r}."
        )
    if np.prod([float(n) for n in numbers]) > MOST_VOXELS:
        raise ValueError(f"a crop of {size!r} has more than {MOST_VOXELS} voxels: choose a smaller one.")
    return triple(numbers)
