"""Volumes that are gone through region by region, by threads of this process or by the workers of a Dask cluster.

What is asked of labels of any origin goes this way: tables, graphs and figures of quality. Regions here are boxes of
voxels, as large as the memory allows; no result depends on how they are cut.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import zarr
from distributed import Client, as_completed
from numpy.typing import NDArray

from dseeds.cluster import Capacity, connect
from dseeds.io import ArraySource, Image, Source, ZarrSource
from dseeds.io.place import Place
from dseeds.io.source import Wanted, opened
from dseeds.lattice import Box, Triple, triple
from dseeds.report import Progress
from dseeds.run import source_layout, thickness
from dseeds.store import write
from dseeds.target import ATTRIBUTE

# Tasks in flight for each thread, and how often Dask tries one again.
IN_FLIGHT, RETRIES = 4, 2
# Lengths of regions in voxels that are considered, and bytes that a task may hold if nobody says.
EXTENTS = (256, 192, 128, 96, 64, 32)
TASK_BYTES = 1 << 29


@dataclass(frozen=True)
class Tiling:
    """A volume cut into regions.

    Attributes
    ----------
    shape, region : tuple of int
        Voxels of the volume and of a region along (z, y, x); at the volume's ends, regions may be smaller.

    Examples
    --------
    >>> tiling = Tiling((10, 10, 10), (8, 10, 5))
    >>> len(tiling), tiling.box(3)
    (4, Box(lo=(8, 0, 5), hi=(10, 10, 10)))
    """

    shape: Triple
    region: Triple

    @property
    def counts(self) -> Triple:
        """Regions along (z, y, x)."""
        return triple(-(-n // r) for n, r in zip(self.shape, self.region, strict=True))

    def __len__(self) -> int:
        return prod(self.counts)

    def box(self, number: int) -> Box:
        """Give a region's voxels."""
        lo = [int(i) * r for i, r in zip(np.unravel_index(number, self.counts), self.region, strict=True)]
        return Box(triple(lo), triple(min(a + r, n) for a, r, n in zip(lo, self.region, self.shape, strict=True)))

    def above(self, number: int) -> Box:
        """Give a region's voxels and the next ones towards higher z, y and x, where there are any."""
        box = self.box(number)
        return Box(box.lo, box.grow(1, within=self.shape).hi)


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes
    ----------
    threads : int
        Threads of this process; 0 for a cluster's workers.
    client : Client or None
        The cluster.
    progress : Progress or None
        Who follows.
    """

    threads: int
    client: Client | None = None
    progress: Progress | None = None

    def each(
        self, stage: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], total: int
    ) -> Iterator[Any]:
        """Call a function with each of some arguments, and give what comes of it, in any order.

        Parameters
        ----------
        stage : str
            What this is called on the dashboard and in the progress.
        function : callable
            What pickles, and may be called again.
        calls : iterable of tuple
            The arguments.
        total : int
            How many calls there are.
        """
        if self.progress:
            self.progress.begin(stage, total)
        for result in (
            self._on_cluster(stage, function, iter(calls)) if self.client else self._here(function, iter(calls))
        ):
            if self.progress:
                self.progress.advance(stage)
            yield result
        if self.progress:
            self.progress.end(stage)

    def _here(self, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        with ThreadPoolExecutor(self.threads) as pool:
            running = {pool.submit(function, *call) for call in itertools.islice(calls, 2 * self.threads)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= {pool.submit(function, *call) for call in itertools.islice(calls, len(done))}
                    for future in done:
                        yield future.result()
            finally:
                for future in running:
                    future.cancel()

    def _on_cluster(self, stage: str, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        assert self.client is not None
        # An address would be another client's too, which has other results by that name.
        numbers, own = itertools.count(), uuid.uuid4().hex

        def submit(call: tuple[Any, ...]) -> Any:
            key = f"{stage}-{own}-{next(numbers)}"
            return self.client.submit(function, *call, key=key, pure=False, retries=RETRIES)  # type: ignore[union-attr]

        bound = IN_FLIGHT * max(1, sum(self.client.nthreads().values()))
        running = as_completed([submit(call) for call in itertools.islice(calls, bound)])
        try:
            for future in running:
                result = future.result()
                for call in itertools.islice(calls, 1):
                    running.add(submit(call))
                yield result
        finally:
            self.client.cancel(list(running.futures), force=True)


@contextmanager
def hire(
    threads: int, client: Client | None = None, local: Capacity | None = None, progress: Progress | None = None
) -> Iterator[Crew]:
    """Lend who does the work: the client's cluster, a local one that is closed at the end, or this process' threads."""
    if client is None and local is None:
        yield Crew(threads, None, progress)
        return
    with ExitStack() as stack:
        yield Crew(0, stack.enter_context(connect(client, local or Capacity(1, 1, 0, 1), progress)), progress)


def open_labels(source: Any, *, volume: int | None = None) -> Source:
    """Open labels of any origin: whatever `dseeds.io.open_source` takes, and truth values."""
    [found] = opened(source, Wanted(volume, purpose="mask"))
    return found


def noted(labels: Source) -> dict[str, Any]:
    """Give what labels of this program say of how they came about, as far as they do."""
    if not isinstance(labels, ZarrSource):
        return {}
    try:
        group = zarr.open_group(labels.array.store, path=labels.array.path.rpartition("/")[0], mode="r")
        found: Any = group.attrs[ATTRIBUTE]
        return dict(found)
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def noted_parameters(labels: Source) -> dict[str, Any]:
    """Give the parameters that labels of this program were made with, as far as they say."""
    try:
        return dict(noted(labels)["parameters"])
    except (KeyError, TypeError, ValueError):
        return {}


def check_same_shape(**sources: Source | Image) -> Triple:
    """Check that what belongs together has one shape, and give it.

    Raises
    ------
    ValueError
        If it has not.
    """
    (first, one), *others = sources.items()
    for name, other in others:
        if other.shape != one.shape:
            raise ValueError(
                f"{name} has the shape {other.shape}, but {first} {one.shape}, along (z, y, x): they must be the same, "
                f"so resample one of them."
            )
    return one.shape


def landed(source: Source, scratch: Place, name: str, *, anywhere: bool) -> Source:
    """Give a source that tasks can read: itself, or a copy in scratch where it can only be read from end to end.

    Parameters
    ----------
    source : Source
        The source.
    scratch : Place
        Where copies go.
    name : str
        What to call the copy.
    anywhere : bool
        Whether tasks are in other processes.
    """
    if source.readable_by_workers or (isinstance(source, ArraySource) and not anywhere):
        return source
    # Arrays are opened once in a process: another one has another name.
    name = f"{name}-{uuid.uuid4().hex}"
    layout = source_layout(source.shape, source.dtype)
    layout.create(scratch.zarr(name))
    for begin, slab in source.slabs(thickness(source.shape, source.dtype.itemsize)):
        box = Box((begin, 0, 0), (begin + len(slab), *source.shape[1:]))
        write(scratch.address, name, box, slab.astype(layout.dtype, copy=False))
    [copy] = opened(f"{scratch.address}/{name}", Wanted(purpose="mask"))
    return copy


def read_labels(source: Source, box: Box, name: str = "labels", *, narrow: bool = False) -> NDArray[Any]:
    """Read labels as int64 or, if `narrow`, as uint32 where they are integers of no more bits.

    Raises
    ------
    ValueError
        If they are no whole numbers from 0 to 2^63 - 1.
    """
    values = source.read(box.slices)
    if values.dtype.kind == "f":
        # NIfTI files often hold labels as floats.
        whole = values.astype(np.int64, copy=False) if np.isfinite(values).all() else None
        if whole is None or not np.array_equal(whole, values):
            raise ValueError(f"{name} must be integers, but {source.name} holds others, or NaN.")
        values = whole
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high >= 2**63:
        raise ValueError(f"{name} must be from 0 to 2^63 - 1, but {source.name} holds {low if low < 0 else high}.")
    # Floats of 32 bits can be larger than integers of 32 bits.
    fits = source.dtype.kind != "f" and source.dtype.itemsize <= 4
    return np.ascontiguousarray(values, np.uint32 if narrow and fits else np.int64)


def choose_region(
    shape: Triple, chunks: Triple | None, voxel_bytes: float, task_bytes: int = TASK_BYTES, region: Triple | None = None
) -> Triple:
    """Choose how many voxels along (z, y, x) a task works on: what is given, or whole chunks that fit its memory."""
    if region is not None:
        return triple(min(r, n) for r, n in zip(region, shape, strict=True))
    found: Triple = shape
    for extent in EXTENTS:
        # Whole chunks, for others' parts would be read again.
        found = triple(min(n, c * max(1, extent // c)) for n, c in zip(shape, chunks or (1, 1, 1), strict=True))
        if prod(found) * voxel_bytes <= task_bytes:
            break
    return found
