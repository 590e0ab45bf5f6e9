"""`supervoxels` of a Dask array: the image is cut out of core when the first chunk of labels is computed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.delayed import delayed
from distributed import Client, get_worker
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from dseeds.api.options import SupervoxelOptions
from dseeds.api.segment import segment
from dseeds.core.checks import check_threads
from dseeds.core.duck_arrays import is_dask_array
from dseeds.core.forks import ForkSafeLock
from dseeds.core.geometry import check_shape
from dseeds.io import ArraySource, Image, Source, open_boundary_map, open_mask
from dseeds.io.formats.dask_array import BlockFolder, DaskSource, open_dask_array, store_dask_array
from dseeds.io.source import SourceQuery
from dseeds.parallel.capacity import parse_memory
from dseeds.parallel.clients import thread_given_back
from dseeds.parallel.local_cluster import worker_threads
from dseeds.seeds.binning import check_dtype
from dseeds.seeds.schedule import OWN_MAP
from dseeds.storage.location import is_remote, open_location

# The share of the machine's memory for a cluster within this process, which is the user's own.
MACHINE_SHARE = 0.5


def lazy_supervoxels(image: da.Array, options: SupervoxelOptions) -> da.Array:
    """Cut a Dask array into supervoxels lazily; see `dseeds.supervoxels`.

    The labels, uint32 (uint64 beyond 2^32 cells of the lattice), have the image's chunks. Errors that depend on the
    intensities are raised when the labels are computed; chunks of unknown sizes and `levels` are refused.
    """
    if options.levels:
        raise ValueError(
            "levels of supervoxels cannot be lazy: write them with segment(), whose target has a table for each, "
            "or compute the image first."
        )
    sources = open_dask_array(image, SourceQuery(channel_axis=options.channel_axis, purpose="image"))
    for source in sources:
        check_dtype(source.dtype)
    lattice = options.lattice(check_shape(sources[0].shape))
    # Refused now rather than when the labels are computed.
    settings = options.settings(len(sources))
    check_threads(options.threads)
    if options.memory is not None:
        parse_memory(options.memory)
    if options.scratch is not None and not is_remote(options.scratch) and not Path(options.scratch).is_dir():
        raise FileNotFoundError(f"the scratch folder {options.scratch} does not exist.")
    mask = options.mask
    if options.given_mask is not None:
        mask = _in_dask(open_mask(options.given_mask, Image(sources)).source, mask)
    boundaries = options.boundaries
    if settings.boundaries == OWN_MAP:
        [part] = open_boundary_map(boundaries, Image(sources)).parts
        boundaries = _in_dask(part, boundaries)
    channels = [source.array for source in sources]
    token, dtype = uuid.uuid4().hex, lattice.label_dtype
    address = delayed(LazyCut(channels, mask, boundaries, options), pure=False)(dask_key_name=f"supervoxels-{token}")
    labels: da.Array = da.map_blocks(
        read_block,
        chunks=channels[0].chunks,
        dtype=dtype,
        meta=np.empty((0, 0, 0), dtype),
        address=address,
        label_dtype=dtype,
        name=f"labels-{token}",
    )
    return labels


def _in_dask(source: Source, given: Any) -> Any:
    """Return what is in memory or of Dask as a Dask array, and anything else as it was given."""
    return da.asarray(source.array) if isinstance(source, ArraySource | DaskSource) else given


class LazyCut:
    """A cut of an image into labels in a folder of its own, which happens once.

    It is called within a Dask task and returns the address of the labels. Its arrays are not dependencies of the task,
    so that computing more chunks later does not compute the image again. The mask and the boundary map are Dask arrays,
    or anything else that `segment` takes.
    """

    def __init__(self, channels: list[da.Array], mask: Any, boundaries: Any, options: SupervoxelOptions) -> None:
        self.channels, self.inputs = channels, {"mask": mask, "boundaries": boundaries}
        self.options = replace(options, mask=None, boundaries=None)
        self.folder = BlockFolder.new(options.scratch)
        self._lock = ForkSafeLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=ForkSafeLock())

    def __call__(self) -> str:
        """Cut the image unless that is done, and return the address of the labels."""
        folder = open_location(self.folder.address)
        with self._lock:
            attempt = folder.read("done")
            if attempt is None:
                # Every attempt has a name of its own: one that was given up elsewhere may still be running.
                attempt = uuid.uuid4().hex.encode()
                self._cut(f"{folder.address}/{attempt.decode()}")
                folder.write("done", attempt)
        return f"{folder.address}/{attempt.decode()}/labels.zarr"

    def _cut(self, address: str) -> None:
        arrays = {f"channel-{number}": channel for number, channel in enumerate(self.channels)}
        arrays.update((name, value) for name, value in self.inputs.items() if is_dask_array(value))
        if not is_remote(address):
            Path(address).mkdir(parents=True)
        options = self.options
        with borrowed_client(options.threads) as (client, scheduler, memory):
            stored = store_dask_array(arrays, f"{address}/source", **scheduler)
            inputs = {name: stored.pop(name, value) for name, value in self.inputs.items()}
            segment(
                list(stored.values()),
                f"{address}/labels.zarr",
                step=options.step,
                n_segments=options.n_segments,
                spacing=options.spacing,
                window=options.window,
                percentiles=options.percentiles,
                bins=options.bins,
                compactness=options.compactness,
                min_size=options.min_size,
                weights=options.weights,
                memory=options.memory or memory,
                client=client,
                **inputs,
            )
        open_location(address).clear("source")


@contextmanager
def borrowed_client(threads: int | None) -> Iterator[tuple[Client, dict[str, Any], int | None]]:
    """Yield the client of the cluster that runs this task, or of a cluster within this process.

    With it come the scheduler for other graphs, as arguments of `dask.compute`, and the memory of a worker in bytes if
    it has no limit. In this process the scheduler is Dask's threads, because graphs for them need not pickle.
    """
    try:
        worker = get_worker()
    except ValueError:
        count = check_threads(threads)
        with worker_threads(count) as client:
            yield client, {"scheduler": "threads", "num_workers": count}, int(MACHINE_SHARE * MEMORY_LIMIT)
        return
    # A client of its own: that of the worker would become the current client of the worker's process.
    with (
        Client(worker.scheduler.address, security=worker.security, set_as_default=False) as client,
        client.as_current(),
        thread_given_back(client),
    ):
        yield client, {"scheduler": client}, None


def read_block(address: str, label_dtype: np.dtype[Any], block_info: Any = None) -> NDArray[Any]:
    """Read the labels of a block."""
    location = block_info[None]["array-location"]
    labels = zarr.open_array(open_location(address).zarr("0"), mode="r")
    # A number of supervoxels inside a mask may need a lattice of more cells than it has supervoxels.
    return np.asarray(labels[tuple(slice(begin, end) for begin, end in location)], label_dtype)
