"""The results of tasks and stages, and the report of a run."""

from __future__ import annotations

import html
import json
import operator
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from itertools import repeat
from types import UnionType
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints

from dseeds.core.formatting import format_mebibytes, format_shape, format_spacing
from dseeds.core.geometry import Triple
from dseeds.core.html import format_table


class TaskResult(NamedTuple):
    """The result of a task: its region and outcome, see `dseeds.engine.tasks`, and what it took."""

    number: int
    outcome: str
    seconds: float
    # Bytes, uncompressed.
    read: int
    written: int
    # The peak resident memory of its process so far, in bytes.
    peak_memory: int


@dataclass(frozen=True)
class StageReport:
    """One stage of a run; all bytes are uncompressed."""

    # Also the name of its tasks on the Dask dashboard.
    name: str
    tasks: int = 0
    # Tasks that were not needed: where nothing could move, or where they were done before the run was resumed.
    skipped: int = 0
    # Tasks that failed and were tried again.
    retried: int = 0
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    # The peak resident memory, until the end of the stage, of the processes that did its tasks, in bytes.
    peak_memory: int = 0

    def with_task(self, result: TaskResult | None) -> StageReport:
        """Return the report with one more task."""
        if result is None:
            return replace(self, tasks=self.tasks + 1)
        return replace(
            self,
            tasks=self.tasks + 1,
            read=self.read + result.read,
            written=self.written + result.written,
            peak_memory=max(self.peak_memory, result.peak_memory),
        )

    def line(self, width: int) -> str:
        """Return a line of text, with the name padded to `width`."""
        traffic = format_traffic(self.read, self.written)
        return f"  {self.name:<{width}}  {self.tasks:>6} tasks  {self.seconds:8.2f} s  {traffic}"


class RunDocument:
    """The base of the dataclasses that describe a whole run: conversion to plain values and back."""

    supervoxels: int
    shape: Triple
    step: Triple
    spacing: tuple[float, float, float] | None

    @property
    def title(self) -> str:
        """The run in a line."""
        step, shape = format_shape(self.step), format_shape(self.shape)
        sizes = "" if self.spacing is None else f" of {format_spacing(self.spacing)}"
        return f"{self.supervoxels} supervoxels at step {step} in {shape} voxels (z, y, x){sizes}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_json(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore an object from the values of `to_dict`, or from their JSON.

        Raises
        ------
        TypeError, ValueError, LookupError, AttributeError
            If the values do not fit the fields.
        """
        return _convert(values, cls)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Report(RunDocument):
    """The report of a finished run.

    Attributes
    ----------
    target : str
        The path or URL of the labels.
    features : str or None
        The path or URL of the supervoxels' table and graph, if they were requested.
    shape, step, cells : tuple of int
        The shapes of the volume, of a cell and of the lattice, (z, y, x).
    windows : tuple of (float, float)
        The intensity window of each channel.
    supervoxels : int
        The number of supervoxels.
    coarser : tuple of int
        The number of supervoxels on each coarser level.
    regions : int
        The number of regions.
    skipped : int
        Tasks that were not needed: where nothing could move, or where they were done before the run was resumed.
    retried : int
        Tasks that failed and were tried again.
    resumed : bool
        Whether an unfinished run was resumed.
    region_shape : tuple of int
        Voxels in a region, (z, y, x).
    rounds : int
        Rounds done.
    workers : int
        Workers at the end; 0 for a run in this process.
    seconds : float
        The duration of the run.
    voxels_per_second : float
        The throughput of the whole run.
    peak_memory : dict of str to int
        The peak resident memory of each worker's process, or of this one, in bytes.
    stages : tuple of StageReport
        The stages in the order in which they began.
    compile_seconds : float
        The time that this process, or the worker of a local cluster with the most, spent on compiling kernels.
    notes : tuple of str
        What the user should know: which of two contradictory statements on the image's geometry counts, that bins have
        knees, that the windows leave hardly any contrast, or a mask by a threshold few voxels.
    spacing : tuple of float or None
        The size of a voxel along (z, y, x) in millimetres; None if unknown.
    knees : tuple of (float or None)
        The intensity that half of a channel's bins lie below, where a few voxels widen its window; else None.
    """

    target: str
    features: str | None
    shape: Triple
    step: Triple
    cells: Triple
    windows: tuple[tuple[float, float], ...]
    supervoxels: int
    coarser: tuple[int, ...]
    regions: int
    skipped: int
    retried: int
    resumed: bool
    region_shape: Triple
    rounds: int
    workers: int
    seconds: float
    voxels_per_second: float
    peak_memory: dict[str, int]
    stages: tuple[StageReport, ...]
    compile_seconds: float = 0.0
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float, float] | None = None
    knees: tuple[float | None, ...] = ()

    def _repr_html_(self) -> str:
        rows = [
            (s.name, f"{s.seconds:.2f}", s.tasks, s.skipped, s.retried, *map(format_mebibytes, (s.read, s.written)))
            for s in self.stages
        ]
        head = ("stage", "seconds", "tasks", "not needed", "tried again", "MiB read", "MiB written")
        return "".join(f"<p>{html.escape(line)}</p>" for line in self._headlines) + format_table(rows, head)

    @property
    def _headlines(self) -> list[str]:
        place = "in this process"
        if self.workers:
            place = f"regions of {format_shape(self.region_shape)}: {self.regions}, workers: {self.workers}"
        lines = [
            f"{self.title}: {self.target}",
            f"{self.seconds:.1f} s, {self.voxels_per_second / 1e6:.2f} Mvoxel/s, {self.rounds} rounds, {place}",
        ]
        lines += [f"{count} supervoxels at {2 << level} times the step" for level, count in enumerate(self.coarser)]
        lines += [f"table and graph: {self.features}"] if self.features else []
        if self.workers:
            lines.append(f"tasks tried again: {self.retried}, not needed: {self.skipped}, failed: 0")
        if self.compile_seconds:
            lines.append(f"of that, compiling kernels: {self.compile_seconds:.1f} s")
        if self.peak_memory:
            who = "of a worker" if self.workers else "of this process"
            lines.append(f"peak memory {who}: {format_mebibytes(max(self.peak_memory.values()))} MiB")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        width = max((len(stage.name) for stage in self.stages), default=0)
        return "\n".join([*self._headlines, *(stage.line(width) for stage in self.stages)])


def format_traffic(read: int, written: int) -> str:
    """Return the bytes that a stage reads and writes as part of a line."""
    return f"{format_mebibytes(read):>8} MiB read  {format_mebibytes(written):>8} MiB written"


def _convert(value: Any, kind: Any) -> Any:
    """Convert a JSON value to the type that a field is annotated with."""
    arguments = get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        # A report of an earlier version lacks what it did not measure.
        known = [field for field in fields(kind) if field.name in value or field.default is MISSING]
        return kind(**{field.name: _convert(value[field.name], hints[field.name]) for field in known})
    if get_origin(kind) is UnionType:
        return None if value is None else _convert(value, arguments[0])
    if get_origin(kind) is dict:
        return {_convert(key, arguments[0]): _convert(item, arguments[1]) for key, item in value.items()}
    if get_origin(kind) is tuple:
        kinds = repeat(arguments[0], len(value)) if arguments[-1] is ... else arguments
        return tuple(_convert(item, each) for item, each in zip(value, kinds, strict=True))
    if kind is str and not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return operator.index(value) if kind is int else kind(value)
