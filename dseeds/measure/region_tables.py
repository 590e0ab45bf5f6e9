"""Tables of supervoxels that are counted region by region, and added up one range of labels after the other.

A region writes rows of integers, sorted by label. The rows of a range of labels, from all regions, become a part of
each table. So no number depends on how the volume is cut, and no task holds more than a region or a range.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import pyarrow as pa

from dseeds._version import __version__
from dseeds.core.checks import check_threads
from dseeds.core.geometry import Tiling
from dseeds.core.progress import Progress
from dseeds.io import Source
from dseeds.io.labels import check_still_unedited
from dseeds.measure.annotated_matrix import AnnotatedMatrix
from dseeds.measure.identity import LabelIdentity, TableOrigin, folder_origin
from dseeds.measure.label_hash import LabelHash
from dseeds.parallel.clients import open_client
from dseeds.parallel.executor import Executor, open_executor
from dseeds.storage.label_records import BatchIndex, LabelRange
from dseeds.storage.location import open_location
from dseeds.storage.parquet_dataset import TABLE, Dataset, DatasetKind

if TYPE_CHECKING:
    import anndata

    from dseeds.parallel.clients import ClientLike


@dataclass(frozen=True)
class SupervoxelTables:
    """Tables of supervoxels, in a folder or in memory.

    Attributes
    ----------
    address : str or None
        The folder with the Parquet tables; None if they are only in memory.
    table : pyarrow.Table
        A row for each supervoxel, sorted by label.
    """

    address: str | None
    _tables: tuple[pa.Table, ...] | None = field(default=None, repr=False)
    # The note of tables in memory.
    _kept: dict[str, Any] | None = field(default=None, repr=False)

    kind: ClassVar[DatasetKind]

    @classmethod
    def of(cls, dataset: Dataset, target: str | Path | None) -> Self:
        """Return the tables of a complete dataset, which are read into memory if there is no target."""
        if target is not None:
            return cls(dataset.address)
        return cls(None, tuple(map(dataset.read_table, cls.kind.tables)), dataset.note())

    @property
    def table(self) -> pa.Table:
        """The table of supervoxels, read whole."""
        return self._read(TABLE)

    @property
    def supervoxels(self) -> int:
        """The number of supervoxels."""
        return self._count("supervoxels", TABLE)

    @property
    def origin(self) -> TableOrigin | None:
        """The labels that the tables were made from; None if they were made before this was recorded."""
        if self.address is not None:
            return folder_origin(Dataset(open_location(self.address), self.kind))
        identity = LabelIdentity.of_note(self._kept or {})
        return None if identity is None else TableOrigin.of_kind(identity, self.kind)

    def to_anndata(self, region: str = "labels") -> anndata.AnnData:
        """Return the table as an AnnData matrix, for scanpy, squidpy and as a table of SpatialData.

        Parameters
        ----------
        region : str, default "labels"
            The name that the labels have, or will have, as an element of a SpatialData object.

        Returns
        -------
        anndata.AnnData
            A row for each supervoxel, named by its label. The columns of `X` are those of the table that are numbers,
            float64; for the result of `pool`, the channels of its first statistic, the others being layers. `obs` has
            the columns ``label`` and ``num_pixels``, positions, and SpatialData's keys ``region`` and ``instance_id``.
            Histograms are in `obsm`. With features, ``obsm["spatial"]`` are the centroids (x, y, z) in mm, and the
            graph is in `obsp`: ``spatial_connectivities`` and ``spatial_distances`` as squidpy names them, the distance
            being that of the centroids in mm, and ``contact_area`` in mm^2.

        Raises
        ------
        ImportError
            If anndata is not installed.
        """
        table = self.table
        return self._matrix(table).to_anndata(table, region, self._edges(), self.origin)

    def _matrix(self, table: pa.Table) -> AnnotatedMatrix:
        return AnnotatedMatrix.of(table)

    def _edges(self) -> pa.Table | None:
        """Return the edges of the graph, if there is one."""
        return None

    def _read(self, name: str) -> pa.Table:
        if self.address is None:
            assert self._tables is not None
            return self._tables[self.kind.tables.index(name)]
        return Dataset(open_location(self.address), self.kind).read_table(name)

    def _parts(self, name: str) -> Iterator[pa.Table]:
        """Read a table part by part, so that it may be larger than memory."""
        if self.address is None:
            yield self._read(name)
            return
        dataset = Dataset(open_location(self.address), self.kind)
        dataset.note()
        for part in dataset.parts(name):
            yield dataset.read(name, part)

    def _count(self, item: str, name: str) -> int:
        """Return a number that the note of a folder states, which is that of the rows of a table."""
        return int(self._read(name).num_rows) if self.address is None else int(self._note()[item])

    def copy_to(self, dataset: Dataset) -> None:
        """Write tables in memory to a new dataset; raise a ValueError if they do not know what they were made from."""
        if self._kept is None:
            raise ValueError("these tables do not say what they were made from: make them again.")
        begun = dataset.begin()
        for name in self.kind.tables:
            begun.write(name, 0, self._read(name))
        begun.publish(self._kept)

    def _note(self) -> dict[str, Any]:
        assert self.address is not None
        return Dataset(open_location(self.address), self.kind).note()


class RegionJob(Protocol):
    """What the tasks of a measurement have in common."""

    @property
    def labels(self) -> Source:
        """The supervoxels."""

    @property
    def tiling(self) -> Tiling:
        """The regions."""

    @property
    def dataset(self) -> Dataset:
        """The tables."""


class RegionRows(NamedTuple):
    """What the task of a region returns: the region, an index for each kind of rows, and the hash of its labels."""

    number: int
    indices: tuple[BatchIndex, ...]
    part: LabelHash


class Measurement(NamedTuple):
    """What a measurement writes to, and what runs its tasks."""

    dataset: Dataset
    executor: Executor
    # Whether tasks run in other processes, maybe on other machines.
    anywhere: bool


@contextmanager
def begin_measurement(
    target: str | Path | None,
    kind: DatasetKind,
    *,
    overwrite: bool,
    client: ClientLike | None,
    threads: int | None,
    progress: Progress | None,
) -> Iterator[Measurement]:
    """Begin a dataset at a target, or in a temporary folder; if the block fails, nothing is left of it."""
    if target is None and client is not None:
        raise ValueError("a cluster needs target=, a folder or URL that all its workers see.")
    with ExitStack() as stack:
        may_use_current = target is not None and threads is None
        if target is None:
            target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dseeds-")), kind.name)
        unwritten = Dataset(open_location(target), kind)
        unwritten.check(overwrite)
        connected = stack.enter_context(open_client(client, may_use_current=may_use_current))
        executor = stack.enter_context(open_executor(check_threads(threads), connected, progress=progress))
        dataset = unwritten.begin()
        try:
            yield Measurement(dataset, executor, connected is not None)
        except BaseException:
            dataset.abandon()
            raise


def count_regions(
    executor: Executor, stage: str, function: Callable[..., RegionRows], job: RegionJob
) -> tuple[list[dict[int, BatchIndex]], LabelHash]:
    """Call a function with the job and each region's number.

    Returns the indices of the rows that it has written, for each kind of rows by region, and the hash of the labels.
    """
    regions = [(job, number) for number in range(len(job.tiling))]
    results: list[dict[int, BatchIndex]] = []
    sums = LabelHash()
    for number, indices, part in executor.map_unordered(stage, function, regions, len(regions)):
        results, sums = results or [{} for _ in indices], sums + part
        for batches, index in zip(results, indices, strict=True):
            if len(index):
                batches[number] = index
    if not results[0]:
        raise ValueError("labels has no supervoxel: every voxel is 0, masked out.")
    return results, sums


def write_parts(executor: Executor, stage: str, function: Callable[..., Any], job: Any, parts: Sequence[Any]) -> list:
    """Call a function with the job, the number of each part and the part, and return the results in their order.

    The function returns the part's number and its result.
    """
    calls = ((job, number, part) for number, part in enumerate(parts))
    results = dict(executor.map_unordered(stage, function, calls, len(parts)))
    return [results[number] for number in range(len(parts))]


def publish_supervoxels(
    executor: Executor,
    function: Callable[..., tuple[int, int]],
    job: RegionJob,
    parts: Sequence[LabelRange],
    names: Mapping[str, Any],
    identity: LabelIdentity,
) -> None:
    """Write the tables of all ranges of labels, and publish them with the `names` of what they were made from.

    The function returns the part's number and the number of its supervoxels.
    """
    sizes = write_parts(executor, "table", function, job, parts)
    check_still_unedited(job.labels)
    job.dataset.publish({"supervoxels": sum(sizes), **names, **identity.to_note(), "version": __version__})
