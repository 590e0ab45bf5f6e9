"""Labels as input: opened from any format, checked, read as integers, and tiled for tasks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import Box, Triple, triple
from dseeds.core.lazy_module import LazyModule
from dseeds.io import ArraySource, Image, Source, ZarrSource
from dseeds.io.alignment import Grid3D, align
from dseeds.io.open import open_voxels
from dseeds.io.source import SourceQuery
from dseeds.storage.label_group import ATTRIBUTE, EDITING, EDITS
from dseeds.storage.location import Location
from dseeds.storage.slabs import slab_layout, slab_thickness
from dseeds.storage.zarr_arrays import write_array

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

# The lengths of tiles to choose from, in voxels.
TILING_EXTENTS = (256, 192, 128, 96, 64, 32)
# The memory of a task, in bytes, by default.
TASK_BYTES = 1 << 29


def open_labels(source: Any) -> Source:
    """Open labels of any origin: everything that `dseeds.io.open_source` takes, booleans, and planes.

    Raise a ValueError also if an edit of them is unfinished.
    """
    [labels] = open_voxels(source, SourceQuery(purpose="labels", planes=True))
    check_no_edit(labels)
    return labels


def check_no_edit(labels: Source) -> None:
    """Raise a ValueError if an edit of stored labels is unfinished, so that they are neither old nor new."""
    if not isinstance(labels, ZarrSource) or labels.group is None:
        return
    attribute: Any = labels.group.attrs.get(ATTRIBUTE)
    if isinstance(attribute, dict) and attribute.get(EDITING):
        address = labels.multiscale.where if labels.multiscale else labels.name
        raise ValueError(
            f"edit {attribute[EDITING]} of {address} is unfinished: wait if it is at work, or complete it with dseeds "
            f"edit {address} log."
        )


def check_still_unedited(labels: Source) -> None:
    """Raise a ValueError if stored labels were edited after they were opened, so that what was read is of no moment."""
    if not isinstance(labels, ZarrSource) or labels.group is None:
        return
    now = zarr.open_group(labels.group.store, path=labels.group.path, mode="r")
    attributes: list[Any] = [group.attrs.get(ATTRIBUTE) for group in (labels.group, now)]
    states = [
        [attribute.get(key) for key in (EDITS, EDITING)] if isinstance(attribute, dict) else None
        for attribute in attributes
    ]
    if states[0] != states[1]:
        raise ValueError(f"{labels.name} was edited while it was read, which makes the result useless: start again.")


def label_attributes(labels: Source) -> dict[str, Any]:
    """Return this program's attribute of a label image, which describes how it was made; empty if there is none."""
    if not isinstance(labels, ZarrSource):
        return {}
    try:
        group = labels.group
        if group is None:
            group = zarr.open_group(labels.array.store, path=labels.array.path.rpartition("/")[0], mode="r")
        attribute: Any = group.attrs[ATTRIBUTE]
        return dict(attribute)
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def label_parameters(labels: Source) -> dict[str, Any]:
    """Return the parameters with which this program made labels; empty if unknown."""
    try:
        return dict(label_attributes(labels)["parameters"])
    except (KeyError, TypeError, ValueError):
        return {}


def align_sources(labels: Source, others: Mapping[str, Source]) -> dict[str, Source]:
    """Return sources, by their names, on the grid of labels; see `dseeds.io.alignment.align`."""
    return {name: _align(source, name, labels) for name, source in others.items()}


def align_image(image: Image, labels: Source, *, coarser: bool = False) -> Image:
    """Return an image on the grid of its labels, or on a coarser one; see `dseeds.io.alignment.align`."""
    return Image(tuple(_align(part, "image", labels, coarser=coarser) for part in image.parts))


def _align(source: Source, name: str, labels: Source, *, coarser: bool = False) -> Source:
    grid = Grid3D.of(labels, "labels")
    if source.path is not None and source.path in recorded_paths(labels):
        # The labels may have been made with a spacing that corrects that of their image.
        grid = grid._replace(spacing=None, affine=None, frame=None)
    return align(source, name, grid, coarser=coarser)


def recorded_paths(labels: Source) -> list[str]:
    """Return the paths of the image that labels record as their source."""
    source: Any = label_attributes(labels).get("source", {})
    try:
        return [str(part["path"]) for part in source.get("channels", [source]) if "path" in part]
    except (AttributeError, TypeError):
        return []


def materialise(source: Source, scratch: Location, name: str, *, anywhere: bool) -> Source:
    """Return a source that tasks can read: itself, or a copy in scratch if it can only be read from end to end.

    The copy's name begins with `name`; `anywhere` tells whether tasks run in other processes.
    """
    if source.readable_by_workers or (isinstance(source, ArraySource) and not anywhere):
        return source
    # A unique name, since each process caches open arrays by name.
    name = f"{name}-{uuid.uuid4().hex}"
    layout = slab_layout(source.shape, source.dtype)
    layout.create(scratch.zarr(name))
    for begin, slab in source.slabs(slab_thickness(source.shape, source.dtype.itemsize)):
        box = Box((begin, 0, 0), (begin + len(slab), *source.shape[1:]))
        write_array(scratch, name, box, slab.astype(layout.dtype, copy=False))
    return open_labels(f"{scratch.address}/{name}")


def materialise_image(image: Image, scratch: Location, *, anywhere: bool) -> Image:
    """Return an image that tasks can read; see `materialise`."""
    parts = enumerate(image.parts)
    return Image(tuple(materialise(part, scratch, f"image-{i}", anywhere=anywhere) for i, part in parts))


def read_labels(source: Source, box: Box, name: str = "labels", *, narrow: bool = False) -> NDArray[Any]:
    """Read labels as int64 or, if `narrow`, integers of up to 32 bits as uint32.

    Raises a ValueError, which calls them `name`, unless all are whole numbers from 0 to 2^63 - 1.
    """
    values = source.read(box.slices)
    if values.dtype.kind == "f":
        # NIfTI files often hold labels as floats.
        integers = values.astype(np.int64, copy=False) if np.isfinite(values).all() else None
        if integers is None or not np.array_equal(integers, values):
            raise ValueError(f"{name} must be integers, but {source.name} holds others, or NaN.")
        values = integers
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high >= 2**63:
        raise ValueError(f"{name} must be from 0 to 2^63 - 1, but {source.name} holds {low if low < 0 else high}.")
    # Floats of 32 bits can be larger than integers of 32 bits.
    fits = source.dtype.kind != "f" and source.dtype.itemsize <= 4
    return np.ascontiguousarray(values, np.uint32 if narrow and fits else np.int64)


def choose_tiling(
    shape: Triple, chunks: Triple | None, voxel_bytes: float, task_bytes: int = TASK_BYTES, region: Triple | None = None
) -> Triple:
    """Choose the voxels along (z, y, x) of a task: the given `region`, or whole chunks that fit its memory."""
    if region is not None:
        return triple(min(r, n) for r, n in zip(region, shape, strict=True))
    tile: Triple = shape
    for extent in TILING_EXTENTS:
        # Whole chunks, since tasks that share a chunk would read it twice.
        tile = triple(min(n, c * max(1, extent // c)) for n, c in zip(shape, chunks or (1, 1, 1), strict=True))
        if prod(tile) * voxel_bytes <= task_bytes:
            break
    return tile
