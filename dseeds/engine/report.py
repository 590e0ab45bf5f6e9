"""What a run tells: its progress while it lasts, and a report at the end."""

from __future__ import annotations

import html
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

from dseeds.core.geometry import Triple, triple
from dseeds.core.html import format_table

T = TypeVar("T")


class TaskResult(NamedTuple):
    """What a task tells of itself.

    Attributes
    ----------
    number : int
        The region.
    outcome : str
        What the phase wants to know of it, as a word.
    seconds : float
        Time taken.
    read, written : int
        Bytes, as they are in memory.
    peak_memory : int
        The highest resident memory of its process so far, in bytes.
    """

    number: int
    outcome: str
    seconds: float
    read: int
    written: int
    peak_memory: int


@dataclass(frozen=True)
class StageReport:
    """One stage of a run.

    Attributes
    ----------
    name : str
        The stage; the tasks on the Dask dashboard bear the same name.
    tasks : int
        Tasks done.
    skipped : int
        Tasks that need not be done: where nothing can move, or where they were done before the run was gone on with.
    retried : int
        Tasks that failed and were tried again.
    seconds : float
        Time that passed in the stage.
    read, written : int
        Bytes that its tasks have read and written, as they are in memory.
    peak_memory : int
        The highest resident memory, until the stage's end, of a process that did one of its tasks, in bytes.
    """

    name: str
    tasks: int = 0
    skipped: int = 0
    retried: int = 0
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    peak_memory: int = 0

    def with_task(self, result: TaskResult | None) -> StageReport:
        """Count one more task."""
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
        """Say it in a line, the name as wide as is given."""
        return (
            f"  {self.name:<{width}}  {self.tasks:>6} tasks  {self.seconds:8.2f} s  "
            f"{self.read / 2**20:8.0f} MiB read  {self.written / 2**20:8.0f} MiB written"
        )


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    target : str
        Where the labels are.
    features : str or None
        Where the table and the graph of the supervoxels are, if they were wanted.
    shape, step, cells : tuple of int
        The volume, a cell and the lattice, (z, y, x).
    windows : tuple of (float, float)
        The intensity window of each channel.
    supervoxels : int
        How many there are.
    coarser : tuple of int
        How many there are on each coarser level.
    regions : int
        How many the volume was cut into.
    skipped, retried : int
        Tasks that need not be done, and tasks that failed and were tried again; see `StageReport`.
    resumed : bool
        Whether an unfinished run was gone on with.
    region_shape : tuple of int
        Voxels in a region, (z, y, x).
    rounds : int
        Rounds done.
    workers : int
        Workers at the end.
    seconds : float
        Time from start to end.
    voxels_per_second : float
        The throughput of the whole run.
    peak_memory : dict of str to int
        The highest resident memory of each worker's process in bytes.
    stages : tuple of StageReport
        In order of their beginning.
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

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Take a report back from what `to_dict` gives, or JSON has made of that; see `from_document`."""
        return from_plain_values(cls, values, StageReport)

    def to_json(self) -> str:
        """Give the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _repr_html_(self) -> str:
        rows = [(s.name, f"{s.seconds:.2f}", s.tasks, s.skipped, s.retried, *_mebibytes(s)) for s in self.stages]
        head = ("stage", "seconds", "tasks", "not needed", "tried again", "MiB read", "MiB written")
        return "".join(f"<p>{html.escape(line)}</p>" for line in self._headlines) + format_table(rows, head)

    @property
    def _headlines(self) -> list[str]:
        lines = [
            f"{self.supervoxels} supervoxels at step {_by(self.step)} in {_by(self.shape)} voxels (z, y, x): "
            f"{self.target}",
            f"{self.seconds:.1f} s, {self.voxels_per_second / 1e6:.2f} Mvoxel/s, {self.rounds} rounds, "
            f"regions of {_by(self.region_shape)}: {self.regions}, workers: {self.workers}",
        ]
        lines += [f"{count} supervoxels at {2 << level} times the step" for level, count in enumerate(self.coarser)]
        lines += [f"table and graph: {self.features}"] if self.features else []
        lines.append(f"tasks tried again: {self.retried}, not needed: {self.skipped}, failed: 0")
        if self.peak_memory:
            lines.append(f"peak memory of a worker: {max(self.peak_memory.values()) / 2**20:.0f} MiB")
        return lines

    def __str__(self) -> str:
        width = max((len(stage.name) for stage in self.stages), default=0)
        return "\n".join([*self._headlines, *(stage.line(width) for stage in self.stages)])


def from_plain_values(kind: type[T], values: Mapping[str, Any], stage: type) -> T:
    """Take a report or a plan back from plain values.

    Parameters
    ----------
    kind, stage : type
        The dataclass, and that of its stages.
    values : dict
        By the names of its fields.

    Raises
    ------
    TypeError, ValueError, LookupError, AttributeError
        If they are not what the fields hold.
    """
    read: dict[str, Callable[[Any], Any]] = {
        **_READ,
        f"tuple[{stage.__name__}, ...]": lambda found: tuple(from_plain_values(stage, one, stage) for one in found),
    }
    return kind(**{field.name: read[str(field.type)](values[field.name]) for field in fields(kind)})  # type: ignore[arg-type]


def _mebibytes(stage: StageReport) -> tuple[str, str]:
    return f"{stage.read / 2**20:.0f}", f"{stage.written / 2**20:.0f}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


# How what JSON knows becomes what fields are annotated with.
_READ: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "str | None": lambda value: None if value is None else _text(value),
    "bool": bool,
    "int": operator.index,
    "float": float,
    "float | None": lambda value: None if value is None else float(value),
    "Triple": triple,
    "tuple[int, ...]": lambda values: tuple(map(operator.index, values)),
    "tuple[tuple[float, float], ...]": lambda pairs: tuple((float(low), float(high)) for low, high in pairs),
    "dict[str, int]": lambda found: {_text(key): operator.index(value) for key, value in found.items()},
}


def _by(values: Triple) -> str:
    return " x ".join(str(v) for v in values)
