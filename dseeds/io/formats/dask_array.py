"""Dask arrays in: computed block by block into a folder that lasts as long as they are read."""

from __future__ import annotations

import math
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import dask.array as da
import numpy as np
import zarr
from dask import config
from dask.array.utils import meta_from_array
from dask.base import compute, get_scheduler
from typing_extensions import override

from dseeds.core.dtypes import unmask, unmasked_dtype
from dseeds.core.forks import cached_property
from dseeds.core.geometry import triple
from dseeds.io.formats.ome_zarr import open_zarr
from dseeds.io.source import IndexBox, Shape, Source, SourceQuery, Spacing, UnchunkedSource, name_array, split_channels
from dseeds.storage.location import open_location
from dseeds.storage.zarr_arrays import UNIT_CHUNK, Layout

# Folders that other processes know of, kept until this process ends.
_SHARED: set[BlockFolder] = set()


class BlockFolder:
    """A folder, or prefix in an object store, that is removed once this process no longer refers to it.

    Once sent to another process, whose `own` it is not, it stays until this process ends.
    """

    def __init__(self, address: str, own: bool = True) -> None:
        self.address, self._own = address, own
        if own:
            weakref.finalize(self, _remove, address)

    @classmethod
    def new(cls, within: Any = None) -> BlockFolder:
        """Name a new folder within another; by default in Dask's ``temporary-directory``, or else the system's."""
        within = within or config.get("temporary-directory", None) or tempfile.gettempdir()
        return cls(open_location(within).at(f"dseeds-{uuid.uuid4().hex}").address)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._own:
            _SHARED.add(self)
        return BlockFolder, (self.address, False)


def _remove(address: str) -> None:
    # An error while the process ends would reach no caller.
    with suppress(Exception):
        open_location(address).clear()


class DaskSource(UnchunkedSource):
    """A volume that Dask computes from an array (z, y, x): each process that read it would compute the graph again."""

    name = "array"
    kind: Literal["array"] = "array"
    shape: Shape
    dtype: np.dtype
    spacing: Spacing | None
    affine = path = channels = None
    labelled = False

    def __init__(self, array: da.Array, spacing: Spacing | None = None) -> None:
        self.array, self.spacing = array, spacing
        self.shape, self.dtype = triple(array.shape), array.dtype
        # The current one, not the cluster that a run starts later for its own tasks.
        self._scheduler = get_scheduler(collections=[array])

    @property
    @override
    def identity(self) -> dict[str, Any]:
        # Dask's name tells graphs apart, but not the contents of the files that they read.
        return {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype.str, "name": self.array.name}

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        return np.asarray(self.array[box].compute(scheduler=self._scheduler))

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        # Every block is computed once, before the first slab.
        return self._stored[1].slabs(thickness)

    @cached_property
    def _stored(self) -> tuple[BlockFolder, Source]:
        folder = BlockFolder.new()
        addresses = store_dask_array({"array": self.array}, folder.address, self._scheduler)
        return folder, open_zarr(addresses["array"], SourceQuery(purpose="mask"))


def open_dask_array(array: da.Array, query: SourceQuery, spacing: Spacing | None = None) -> tuple[DaskSource, ...]:
    """Open a Dask array as `dseeds.io.open_source` opens arrays. Nothing is computed."""
    if any(math.isnan(n) for n in array.shape):
        raise ValueError(
            f"{name_array(query)} has chunks of unknown sizes: compute them with its method compute_chunk_sizes()"
        )
    return tuple(DaskSource(channel, spacing) for channel in split_channels(_plain_blocks(array, query), query))


def _plain_blocks(array: da.Array, query: SourceQuery) -> da.Array:
    """Return an array whose blocks are plain and what the array declares, see `dseeds.core.dtypes.unmask`."""
    is_masked = isinstance(meta_from_array(array), np.ma.MaskedArray)
    dtype = unmasked_dtype(array.dtype) if is_masked and query.is_image else array.dtype
    plain: da.Array = da.map_blocks(
        _plain_block,
        array,
        declared=array.dtype,
        chunks_along=array.chunks,
        is_masked=is_masked,
        is_image=query.is_image,
        dtype=dtype,
        meta=np.empty((0,) * array.ndim, dtype),
    )
    return plain


def _plain_block(
    block: Any,
    declared: np.dtype,
    chunks_along: tuple[tuple[int, ...], ...],
    is_masked: bool,
    is_image: bool,
    block_id: tuple[int, ...] = (),
) -> np.ndarray:
    """Return a block without its mask; raise a ValueError if it is not what its array declares."""
    values = np.asanyarray(block)
    shape = tuple(lengths[number] for lengths, number in zip(chunks_along, block_id, strict=True))
    if values.dtype.newbyteorder("=") != declared.newbyteorder("=") or values.shape != shape:
        raise ValueError(
            f"the Dask array declares {declared} and a shape of {shape} for its block {block_id}, which holds "
            f"{values.dtype} and has {values.shape}: declare what its function returns with dtype=, chunks= and meta="
        )
    if isinstance(values, np.ma.MaskedArray) and not is_masked:
        raise ValueError(
            f"the Dask array declares plain blocks, but its block {block_id} is masked: declare it with "
            "meta=numpy.ma.array(...), or pass the voxels inside as mask="
        )
    plain = unmask(values, is_image=is_image)
    return plain.astype(unmasked_dtype(declared)) if is_masked and is_image else plain


def store_dask_array(
    arrays: Mapping[str, da.Array], address: str, scheduler: Any = None, **more: Any
) -> dict[str, str]:
    """Compute arrays (z, y, x) together, store each by its name in a folder or prefix, as Zarr, and return addresses.

    Only the blocks in progress are in memory. `scheduler` and `more` are passed on to `dask.compute`.
    """
    location = open_location(address)
    regular: list[Any] = []
    targets: list[Any] = []
    for name, array in arrays.items():
        # A shard is a block, so that no two tasks write to the same file.
        block = tuple(max(lengths) for lengths in array.chunks)
        layout = Layout.cut(array.shape, array.dtype.newbyteorder("="), block, UNIT_CHUNK, checked=False)
        layout.create(location.zarr(name))
        regular.append(array.rechunk(block))
        targets.append(zarr.open_array(location.zarr(name), mode="r+"))
    compute(da.store(regular, targets, lock=False, compute=False), scheduler=scheduler, **more)
    return {name: f"{location.address}/{name}" for name in arrays}
