"""What a run tells: its progress while it lasts, and a report at the end."""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dseeds.lattice import Triple, triple

if TYPE_CHECKING:
    from dseeds.stages import Result


T = TypeVar("T")


class Progress(Protocol):
    """Whoever wants to follow a run; all calls come from the thread that called `segment`."""

    def dashboard(self, link: str) -> None:
        """Tell where the dashboard of a local cluster is."""

    def begin(self, stage: str, total: int) -> None:
        """Tell that a stage begins, and how many tasks it has."""

    def advance(self, stage: str) -> None:
        """Tell that one task of a stage is done."""

    def end(self, stage: str) -> None:
        """Tell that a stage is done."""


def peak_memory() -> int:
    """Give the highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: after an exec it still knows the parent's peak.
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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

    def with_task(self, result: Result | None) -> StageReport:
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
        """Take a report back from what `to_dict` gives, or JSON has made of that; see `revived`."""
        return revived(cls, values, StageReport)

    def to_json(self) -> str:
        """Give the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def _repr_html_(self) -> str:
        from dseeds.page import report_fragment

        return report_fragment(self)

    def __str__(self) -> str:
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
        width = max((len(stage.name) for stage in self.stages), default=0)
        lines += [stage.line(width) for stage in self.stages]
        return "\n".join(lines)


def revived(kind: type[T], values: Mapping[str, Any], stage: type) -> T:
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
        f"tuple[{stage.__name__}, ...]": lambda found: tuple(revived(stage, one, stage) for one in found),
    }
    return kind(**{field.name: read[str(field.type)](values[field.name]) for field in fields(kind)})  # type: ignore[arg-type]


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
