"""Dask arrays as sources: computed block by block into a folder that lasts as long as they are read."""

from __future__ import annotations

import math
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from dask import config
from dask.base import compute, get_scheduler

from dseeds.io.formats.ome_zarr import open_zarr
from dseeds.io.source import (
    IndexBox,
    Shape,
    Source,
    SourceQuery,
    Spacing,
    move_channels_first,
    require_volume,
    select_volume,
)
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import UNIT_CHUNK, Layout

# Folders that other processes have been told of.
_SHIPPED: set[BlockFolder] = set()


class BlockFolder:
    """A folder, or prefix in an object store, that is removed when nobody in this process needs it any more.

    A process that it is sent to may need it for longer than anyone here knows: then it stays until this one ends.

    Parameters
    ----------
    address : str
        A path or URL.
    own : bool
        Whether it is this process's to remove.
    """

    def __init__(self, address: str, own: bool = True) -> None:
        self.address, self._own = address, own
        if own:
            weakref.finalize(self, _remove, address)

    @classmethod
    def new(cls, within: Any = None) -> BlockFolder:
        """Name a folder in another one; by default Dask's ``temporary-directory``, or else the machine's own."""
        within = within or config.get("temporary-directory", None) or tempfile.gettempdir()
        return cls(open_location(within).at(f"dseeds-{uuid.uuid4().hex}").address)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._own:
            _SHIPPED.add(self)
        return BlockFolder, (self.address, False)


def _remove(address: str) -> None:
    # Where a process ends, nobody is there to be told.
    with suppress(Exception):
        open_location(address).clear()


class DaskSource:
    """A volume that Dask computes; see `Source`.

    Parameters
    ----------
    array : dask.array.Array, shape (z, y, x)
        The voxels.
    spacing : tuple of float, optional
        See `Source`.
    """

    name = "array"
    kind: Literal["array"] = "array"
    affine = path = channels = chunks = shards = None
    labelled = False
    # A graph that is computed wherever somebody reads would be computed many times.
    readable_by_workers = False

    def __init__(self, array: da.Array, spacing: Spacing | None = None) -> None:
        self.array, self.spacing = array, spacing
        # Of this moment: a run's own workers, which come later, are not meant for it.
        self._scheduler = get_scheduler(collections=[array])

    @property
    def shape(self) -> Shape:
        """See `Source.shape`."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype:
        """See `Source.dtype`."""
        dtype: np.dtype = self.array.dtype
        return dtype

    @property
    def identity(self) -> dict[str, Any]:
        """See `Source.identity`. Dask's name of the array, which tells graphs apart but not what files they read."""
        return {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype.str, "name": self.array.name}

    def reopened(self) -> DaskSource:
        """See `Source.reopened`."""
        return self

    def read(self, box: IndexBox) -> np.ndarray:
        """See `Source.read`. It computes the box and no more."""
        return np.asarray(self.array[box].compute(scheduler=self._scheduler))

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`. Every block is computed once, before the first slab."""
        return self._stored[1].slabs(thickness)

    @cached_property
    def _stored(self) -> tuple[BlockFolder, Source]:
        folder = BlockFolder.new()
        addresses = store_dask_array({"array": self.array}, folder.address, self._scheduler)
        return folder, open_zarr(addresses["array"], SourceQuery(purpose="mask"))


def open_dask_array(array: da.Array, wanted: SourceQuery, spacing: Spacing | None = None) -> tuple[DaskSource, ...]:
    """Open a Dask array as `dseeds.io.open_source` opens arrays. Nothing is computed.

    >>> [one.shape for one in open_dask_array(da.zeros((4, 5, 6, 2)), SourceQuery(channel_axis=-1))]
    [(4, 5, 6), (4, 5, 6)]
    """
    where = "the mask" if wanted.purpose == "mask" else "the array"
    if any(math.isnan(n) for n in array.shape):
        raise ValueError(f"{where} has chunks of unknown sizes: find them out with its compute_chunk_sizes()")
    require_volume(array.shape, array.dtype, where, wanted)
    index, channels = select_volume(array.shape, wanted, where)
    found = array[index]
    if channels is None:
        return (DaskSource(found, spacing),)
    return tuple(DaskSource(channel, spacing) for channel in move_channels_first(found, index, channels))


def store_dask_array(
    arrays: Mapping[str, da.Array], address: str, scheduler: Any = None, **more: Any
) -> dict[str, str]:
    """Compute arrays together, and store them block by block; no more is held than what is at work.

    Parameters
    ----------
    arrays : dict of str to dask.array.Array, shape (z, y, x)
        The arrays by name.
    address : str
        The folder or prefix for the Zarr arrays.
    scheduler, more : object
        What `dask.compute` takes.

    Returns
    -------
    dict of str to str
        The address of each array.
    """
    place = open_location(address)
    regular: list[Any] = []
    targets: list[Any] = []
    for name, array in arrays.items():
        # A shard is a block, so that no two tasks write to one file.
        block = tuple(max(lengths) for lengths in array.chunks)
        Layout.cut(array.shape, array.dtype.newbyteorder("="), block, UNIT_CHUNK, checked=False).create(
            place.zarr(name)
        )
        regular.append(array.rechunk(block))
        targets.append(zarr.open_array(place.zarr(name), mode="r+"))
    compute(da.store(regular, targets, lock=False, compute=False), scheduler=scheduler, **more)
    return {name: f"{place.address}/{name}" for name in arrays}
