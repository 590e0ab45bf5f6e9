"""`supervoxels` of a Dask array: cut out of core when labels are asked for, which are read chunk by chunk."""

from __future__ import annotations

import threading
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
from distributed import Client, LocalCluster, get_worker, worker_client
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from dseeds.api.options import SupervoxelOptions
from dseeds.api.segment import segment
from dseeds.core.checks import check_threads
from dseeds.core.duck_arrays import is_dask_array
from dseeds.core.geometry import Lattice, Triple, check_shape
from dseeds.engine.validation import is_auto
from dseeds.io import ArraySource, Image, open_mask
from dseeds.io.formats.dask_array import BlockFolder, DaskSource, open_dask_array, store_dask_array
from dseeds.io.source import SourceQuery
from dseeds.parallel.cluster import parse_memory
from dseeds.seeds.binning import check_dtype
from dseeds.seeds.cell_size import choose_step
from dseeds.seeds.intensity_windows import check_bins, check_percentiles, check_weights, read_windows
from dseeds.seeds.min_size import check_min_size
from dseeds.seeds.scores import check_compactness
from dseeds.storage.location import is_remote, open_location

# Who does the work where no cluster does may use so much of the machine's memory: the process is the user's own.
MACHINE_SHARE = 0.5


def lazy_supervoxels(image: da.Array, options: SupervoxelOptions) -> da.Array:
    """Cut a Dask array into supervoxels when they are asked for; see `dseeds.supervoxels`.

    Returns
    -------
    dask.array.Array, shape (z, y, x)
        The labels, uint32 (uint64 beyond 2^32 cells of the lattice), in the image's chunks.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `dseeds.supervoxels`, but for what only the intensities can tell; and if chunks have unknown sizes, or levels
        are wanted.
    """
    if options.levels:
        raise ValueError(
            "levels of supervoxels cannot be lazy: write them with segment(), whose target has a table for each, "
            "or compute the image before."
        )
    sources = open_dask_array(image, SourceQuery(channel_axis=options.channel_axis, purpose="image"))
    for source in sources:
        check_dtype(source.dtype)
    shape = check_shape(sources[0].shape)
    lattice = _checked(shape, len(sources), options)
    mask = options.mask
    if mask is not None and not is_auto(mask):
        found = open_mask(np.asarray(mask) if isinstance(mask, list | tuple) else mask, Image(sources)).source
        if isinstance(found, ArraySource | DaskSource):
            mask = da.asarray(found.array)
    channels = [source.array for source in sources]
    token, dtype = uuid.uuid4().hex, lattice.label_dtype
    where = delayed(Work(channels, mask, options), pure=False)(dask_key_name=f"supervoxels-{token}")
    meta = np.empty((0, 0, 0), dtype)
    labels: da.Array = da.map_blocks(
        read_block, chunks=channels[0].chunks, dtype=dtype, meta=meta, where=where, name=f"labels-{token}"
    )
    return labels


def _checked(shape: Triple, channels: int, options: SupervoxelOptions) -> Lattice:
    """Refuse at once what would be refused once the image is there, and give the lattice."""
    read_windows(options.window, channels)
    check_percentiles(options.percentiles)
    check_bins(options.bins)
    check_compactness(options.compactness)
    check_min_size(options.min_size)
    check_weights(options.weights, channels)
    check_threads(options.threads)
    if options.memory is not None:
        parse_memory(options.memory)
    scratch = options.scratch
    if scratch is not None and not is_remote(scratch) and not Path(scratch).is_dir():
        raise FileNotFoundError(f"the scratch folder {scratch} does not exist.")
    step = choose_step(shape, step=options.step, n_segments=options.n_segments, spacing=options.spacing)
    return Lattice(shape, step)


class Work:
    """What turns an image into labels in a folder of its own, once, whoever asks for it first.

    It is called within a task of Dask, and gives the address of the labels. Its arrays are its own affair, not the
    task's dependencies: what asks again later must not compute the image again.

    Parameters
    ----------
    channels : sequence of dask.array.Array, shape (z, y, x)
        The image.
    mask : object
        A Dask array, or whatever else a mask may be.
    options : SupervoxelOptions
        The options of `dseeds.supervoxels`.
    """

    def __init__(self, channels: list[da.Array], mask: Any, options: SupervoxelOptions) -> None:
        self.channels, self.mask, self.options = channels, mask, replace(options, mask=None)
        self.folder = BlockFolder.new(options.scratch)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __call__(self) -> str:
        """Cut the image, unless that is done, and give the address of the labels."""
        place = open_location(self.folder.address)
        with self._lock:
            done = place.read("done")
            if done is None:
                # A name for every try: one that was given up elsewhere may still be at work.
                done = uuid.uuid4().hex.encode()
                self._cut(f"{place.address}/{done.decode()}")
                place.write("done", done)
        return f"{place.address}/{done.decode()}/labels.zarr"

    def _cut(self, address: str) -> None:
        arrays = {f"channel-{number}": channel for number, channel in enumerate(self.channels)}
        if is_dask_array(self.mask):
            arrays["mask"] = self.mask
        if not is_remote(address):
            Path(address).mkdir(parents=True)
        options = self.options
        with borrowed_client(options.threads) as (client, scheduler, memory):
            stored = store_dask_array(arrays, f"{address}/source", **scheduler)
            mask = stored.pop("mask", self.mask)
            segment(
                list(stored.values()),
                f"{address}/labels.zarr",
                step=options.step,
                n_segments=options.n_segments,
                spacing=options.spacing,
                mask=mask,
                window=options.window,
                percentiles=options.percentiles,
                bins=options.bins,
                compactness=options.compactness,
                min_size=options.min_size,
                weights=options.weights,
                memory=options.memory or memory,
                client=client,
            )
        open_location(address).clear("source")


@contextmanager
def borrowed_client(threads: int | None) -> Iterator[tuple[Client, dict[str, Any], int | None]]:
    """Lend the client of the cluster whose task this is, or of one within this process.

    Yields
    ------
    client : distributed.Client
        The client.
    scheduler : dict
        Where to compute other things, for `dask.compute`. In this process that is Dask's own threads, for what they
        compute need not pickle.
    memory : int or None
        What a worker may use in bytes, where it has no limit.
    """
    try:
        get_worker()
    except ValueError:
        number = check_threads(threads)
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=number,
            processes=False,
            # A limit would be held against all that the user has in memory.
            memory_limit=0,
            # What is nobody else's is nobody else's to look at.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        )
        with cluster, Client(cluster, set_as_default=False) as client, client.as_current():
            yield client, {"scheduler": "threads", "num_workers": number}, int(MACHINE_SHARE * MEMORY_LIMIT)
        return
    # The task gives its thread back meanwhile, so that one thread is enough for all.
    with worker_client() as client:
        yield client, {"scheduler": client}, None


def read_block(where: str, block_info: Any = None) -> NDArray[Any]:
    """Read the labels of a block."""
    location = block_info[None]["array-location"]
    labels = zarr.open_array(open_location(where).zarr("0"), mode="r")
    return np.asarray(labels[tuple(slice(begin, end) for begin, end in location)])
