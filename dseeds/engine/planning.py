"""The plan of a run: its regions, memory, disk space and time, before it starts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseeds.core.formatting import format_bytes, format_duration, format_mebibytes, format_shape
from dseeds.core.geometry import Triple, triple
from dseeds.core.html import format_table
from dseeds.engine.calibration import Trial, estimate_local_seconds
from dseeds.engine.in_process_model import allowed_bytes, local_stages, needed_bytes, runs_in_process
from dseeds.engine.io_model import IoModel, StagePlan
from dseeds.engine.memory_model import resident_bytes, task_bytes, worker_bytes
from dseeds.engine.report import RunDocument
from dseeds.engine.run import Run, RunOptions, chunk_shapes
from dseeds.engine.validation import prepare_run, task_shape
from dseeds.io.label_listing import resolve_target
from dseeds.parallel.capacity import Capacity
from dseeds.parallel.clients import open_client
from dseeds.parallel.machine import cpu_count
from dseeds.parallel.resources import Resources
from dseeds.seeds.cell_size import Step
from dseeds.storage.zarr_arrays import region_units

if TYPE_CHECKING:
    from dseeds.parallel.clients import ClientLike


@dataclass(frozen=True, repr=False)
class Plan(RunDocument):
    """The projected size and cost of a run.

    Attributes
    ----------
    target : str
        The path or URL of the labels.
    shape, step, cells : tuple of int
        The shapes of the volume, of a cell and of the lattice, (z, y, x).
    supervoxels : int
        The number of supervoxels; a mask and the joining of small ones change it.
    regions : int
        The number of regions.
    region_shape : tuple of int
        Voxels in a region, (z, y, x).
    rounds : int
        The number of rounds.
    workers, threads : int
        The number of workers, and of all their threads; 0 workers where the volume fits in the memory of this process.
    scratch : str
        The path or URL of intermediate data; empty where there are none.
    scratch_bytes : int
        The most that intermediate data take at any time. A copy of the source counts uncompressed, everything else
        compressed as noise would be; images that are not noise need about half.
    output_bytes : int
        The most that the labels take: their size if the image were noise.
    task_memory : int
        The projected peak memory of the largest task, or of this process, in bytes.
    worker_memory, worker_limit : int
        The memory that a worker, or this process, needs for its concurrent tasks, and that it may use, in bytes.
    seconds : float or None
        The time of the stages, without the start of workers and the compilation of kernels; None without calibration.
    stages : tuple of StagePlan
        The stages in the order in which they begin.
    resident_memory : int
        The memory of a worker that keeps the states of all its regions between rounds, in bytes; 0 without workers.
        If it may use less, states that do not fit are stored after each round and loaded again.
    spacing : tuple of float or None
        The size of a voxel along (z, y, x) in millimetres; None if unknown.

    Examples
    --------
    >>> import dseeds, numpy
    >>> dseeds.plan(numpy.zeros((64, 64, 64), "uint16"), "labels.zarr", step=16, calibrate=False).cells
    (4, 4, 4)
    """

    target: str
    shape: Triple
    step: Triple
    cells: Triple
    supervoxels: int
    regions: int
    region_shape: Triple
    rounds: int
    workers: int
    threads: int
    scratch: str
    scratch_bytes: int
    output_bytes: int
    task_memory: int
    worker_memory: int
    worker_limit: int
    seconds: float | None
    stages: tuple[StagePlan, ...]
    resident_memory: int = 0
    spacing: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.target}", *(f"{name}: {value}" for name, value in self._figures)]
        width = max(len(stage.name) for stage in self.stages)
        return "\n".join([*lines, *(stage.line(width) for stage in self.stages)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        stages = [(s.name, s.tasks, format_mebibytes(s.read), format_mebibytes(s.written)) for s in self.stages]
        figures = format_table([("target", self.target), *self._figures])
        table = format_table(stages, ("stage", "tasks", "MiB read", "MiB written"))
        return f"<p>{html.escape(self.title)}</p>{figures}{table}"

    @property
    def _figures(self) -> list[tuple[str, str]]:
        memory = f"{format_bytes(self.worker_memory)} needed, {format_bytes(self.worker_limit)} allowed"
        if not self.workers:
            return [
                ("lattice", f"{format_shape(self.cells)} cells, {self.rounds} rounds"),
                ("process", f"this one, with {self.threads} threads"),
                ("memory", memory),
                ("labels", f"up to {format_bytes(self.output_bytes)}"),
                ("time", "not estimated" if self.seconds is None else f"about {format_duration(self.seconds)}"),
            ]
        return [
            ("lattice", f"{format_shape(self.cells)} cells, {self.rounds} rounds"),
            ("regions", f"{self.regions} of {format_shape(self.region_shape)} voxels"),
            ("workers", f"{self.workers} with {self.threads} threads"),
            ("memory of a worker", memory),
            ("memory of a task", format_bytes(self.task_memory)),
            ("memory to keep all regions", self._residence),
            ("scratch", f"up to {format_bytes(self.scratch_bytes)} in {self.scratch}"),
            ("labels", f"up to {format_bytes(self.output_bytes)}"),
            ("time", "not estimated" if self.seconds is None else f"about {format_duration(self.seconds)}"),
        ]

    @property
    def _residence(self) -> str:
        """The memory that keeps all regions resident, and what is done without it."""
        needed = f"{format_bytes(self.resident_memory)} a worker"
        if self.resident_memory <= self.worker_limit:
            return f"{needed}, so they stay in memory"
        return f"{needed}; those that do not fit are stored after each round and loaded again"


def plan(
    source: Any,
    target: str | Path | None = None,
    *,
    into_image: bool | str = False,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    mask: Any = None,
    window: Any = None,
    percentiles: Sequence[float] | None = None,
    bins: str | None = None,
    compactness: float | None = None,
    min_size: int | None = None,
    levels: int | None = None,
    boundaries: Any = None,
    pyramid: str | None = None,
    features: bool | None = None,
    volume: int | None = None,
    level: int | None = None,
    channel_axis: int | str | None = None,
    weights: Sequence[float] | None = None,
    region: int | Sequence[int] | None = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    client: ClientLike | None = None,
    overwrite: bool = False,
    scratch: str | Path | None = None,
    calibrate: bool = True,
) -> Plan:
    """Return the plan of the run that `segment` would do with the same arguments, without writing anything.

    Parameters
    ----------
    source, target, into_image, step, n_segments, spacing, mask, window, percentiles, bins, compactness, min_size
        As for `segment`.
    levels, boundaries, pyramid, features, volume, level
        As for `segment`.
    channel_axis, weights, region, chunks, shards, memory, workers, client, overwrite, scratch
        As for `segment`.
    calibrate : bool, default True
        Estimate the time from a trial on a small part of the volume in this process, which takes some seconds.

    Returns
    -------
    Plan
        The projected size and cost of the run.

    Raises
    ------
    FileNotFoundError, FileExistsError, TypeError, ValueError
        As `segment`, except that disk space is not checked.

    Examples
    --------
    >>> import dseeds, numpy
    >>> plan = dseeds.plan(numpy.zeros((64, 64, 64), "uint16"), "labels.zarr", step=16, calibrate=False)
    >>> plan.supervoxels, plan.rounds
    (64, 13)
    """
    target = resolve_target(source, target, into_image)
    options = RunOptions(
        step=step,
        n_segments=n_segments,
        spacing=spacing,
        window=window,
        percentiles=percentiles,
        bins=bins,
        compactness=compactness,
        volume=volume,
        channel_axis=channel_axis,
        weights=weights,
        mask=mask,
        boundaries=boundaries,
        min_size=min_size,
        levels=levels,
        level=level,
        pyramid=pyramid,
        features=features,
        region=region,
        chunks=chunks,
        shards=shards,
        scratch=scratch,
    )
    with open_client(client, may_use_current=workers is None) as connected:
        resources = Resources(memory, workers, connected)
        run, capacity = prepare_run(source, target, options, resources.capacity, overwrite=overwrite)
    if runs_in_process(run, resources):
        threads = cpu_count()
        seconds = estimate_local_seconds(run, threads) if calibrate else None
        return build_local_plan(IoModel(run), threads, memory, seconds)
    return build_plan(run, capacity, Trial(run).estimate_seconds(capacity) if calibrate else None)


def build_local_plan(
    model: IoModel, threads: int, memory: int | str | None = None, seconds: float | None = None
) -> Plan:
    """Return the plan of a run in this process."""
    run, lattice, shape = model.run, model.lattice, model.job.shape
    needed = needed_bytes(run, threads)
    return Plan(
        target=run.target.address,
        shape=shape,
        step=run.spec.step,
        cells=lattice.cells,
        supervoxels=lattice.size,
        regions=1,
        region_shape=shape,
        rounds=len(model.rounds),
        workers=0,
        threads=threads,
        scratch="",
        scratch_bytes=0,
        output_bytes=model.output,
        task_memory=needed,
        worker_memory=needed,
        worker_limit=allowed_bytes(memory),
        seconds=seconds,
        stages=local_stages(model),
        spacing=model.run.spacing,
    )


def build_plan(run: Run, capacity: Capacity, seconds: float | None) -> Plan:
    """Return the plan of a run that has been checked."""
    model = IoModel(run, capacity.threads)
    job, lattice, regions = model.job, model.lattice, model.regions
    chunks = chunk_shapes(run.volume, triple(run.labels_layout.chunk))
    shape = task_shape(run.volume, run.spec.parameters)
    task = task_bytes(lattice, regions.cells, shape, chunks)
    return Plan(
        target=run.target.address,
        shape=job.shape,
        step=job.step,
        cells=lattice.cells,
        supervoxels=lattice.size,
        regions=len(regions),
        region_shape=region_units(regions, lattice.grids[-1]),
        rounds=len(model.rounds),
        workers=capacity.workers,
        threads=capacity.threads,
        scratch=run.scratch,
        scratch_bytes=model.scratch,
        output_bytes=model.output,
        task_memory=task,
        worker_memory=worker_bytes(task, capacity.threads_per_worker),
        worker_limit=capacity.memory,
        seconds=seconds,
        stages=model.stages,
        resident_memory=resident_bytes(lattice, regions.cells, shape, capacity, chunks),
        spacing=run.spacing,
    )
