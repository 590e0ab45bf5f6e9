"""What a run tells: its progress while it lasts, and a report at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dseeds.lattice import Triple


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


@dataclass(frozen=True)
class StageReport:
    """One stage of a run.

    Attributes
    ----------
    name : str
        The stage; the tasks on the Dask dashboard bear the same name.
    tasks : int
        Tasks done.
    seconds : float
        Time that passed in the stage.
    """

    name: str
    tasks: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    target : str
        Where the labels are.
    shape, step, cells : tuple of int
        The volume, a cell and the lattice, (z, y, x).
    window : tuple of float
        The intensity window.
    supervoxels : int
        How many there are.
    regions : int
        How many the volume was cut into.
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
    shape: Triple
    step: Triple
    cells: Triple
    window: tuple[float, float]
    supervoxels: int
    regions: int
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

    def to_json(self) -> str:
        """Give the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        lines = [
            f"{self.supervoxels} supervoxels at step {_by(self.step)} in {_by(self.shape)} voxels (z, y, x): "
            f"{self.target}",
            f"{self.seconds:.1f} s, {self.voxels_per_second / 1e6:.2f} Mvoxel/s, {self.rounds} rounds, "
            f"regions of {_by(self.region_shape)}: {self.regions}, workers: {self.workers}",
        ]
        if self.peak_memory:
            lines.append(f"peak memory of a worker: {max(self.peak_memory.values()) / 2**20:.0f} MiB")
        width = max((len(stage.name) for stage in self.stages), default=0)
        lines += [f"  {s.name:<{width}}  {s.tasks:>6} tasks  {s.seconds:8.2f} s" for s in self.stages]
        return "\n".join(lines)


def _by(values: Triple) -> str:
    return " x ".join(str(v) for v in values)
