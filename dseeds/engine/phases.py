"""The phases of a run: its stages one after the other, each round one of its own.

A phase is a task per region. A task reads what the phases before it left, so a phase begins when the one before it is
done in every region; whoever walks through them, a Dask cluster or an array of batch jobs, does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dseeds.seeds.schedule import Round

# Stages that come several times.
_TURNS = ("window", "sweep-blocks", "sweep-voxels", "merge")


@dataclass(frozen=True)
class Phase:
    """One stage, or one turn of a stage that comes several times.

    Attributes
    ----------
    stage : str
        The stage: the tasks on the Dask dashboard bear its name.
    turn : int
        Which round, or which pass of the search for the intensity windows.

    Examples
    --------
    >>> str(Phase("sweep-voxels", 9)), str(Phase("label"))
    ('sweep-09', 'label')
    """

    stage: str
    turn: int = 0

    def __str__(self) -> str:
        if self.stage in _TURNS:
            return f"{self.stage.partition('-')[0]}-{self.turn:02}"
        return self.stage


MASK, HISTOGRAM, QUANTISE = Phase("mask"), Phase("histogram"), Phase("quantise")
PARTS, NUMBER, GRAPH, LABEL = Phase("parts"), Phase("number"), Phase("graph"), Phase("label")


def window_phases(passes: int) -> list[Phase]:
    """List the passes of the search for the intensity windows."""
    return [Phase("window", turn) for turn in range(passes)]


def sweep_phase(rounds: Sequence[Round], turn: int) -> Phase:
    """Give the phase of a round."""
    return Phase("sweep-blocks" if rounds[turn].weight is None else "sweep-voxels", turn)


def round_phases(rounds: Sequence[Round]) -> list[Phase]:
    """List the rounds, each but the first after the merging of what the one before it changed.

    Examples
    --------
    >>> from dseeds.core.geometry import Lattice
    >>> from dseeds.seeds.schedule import schedule
    >>> [str(phase) for phase in climbing_phases(schedule(Lattice((4, 4, 4), (1, 1, 1))))]
    ['sweep-00', 'merge-01', 'sweep-01', 'merge-02', 'sweep-02', 'merge-03', 'sweep-03']
    """
    phases = []
    for turn in range(len(rounds)):
        if turn > 0:
            phases.append(Phase("merge", turn))
        phases.append(sweep_phase(rounds, turn))
    return phases
