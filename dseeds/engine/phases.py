"""The phases of a run: its stages in order, with a phase for each round.

A phase is one task per region. A task reads what earlier phases wrote, so a phase begins when the one before it is done
in every region. Dask clusters and arrays of batch jobs go through the same phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dseeds.seeds.schedule import Round

# Stages that occur several times.
_TURNS = ("window", "sweep-blocks", "sweep-voxels", "merge")


@dataclass(frozen=True)
class Phase:
    """A stage, or one turn of a stage that occurs several times: a round, or a pass of the search for the windows.

    >>> str(Phase("sweep-voxels", 9)), str(Phase("label"))
    ('sweep-09', 'label')
    """

    # Also the name of its tasks on the Dask dashboard.
    stage: str
    turn: int = 0

    def __str__(self) -> str:
        if self.stage in _TURNS:
            return f"{self.stage.partition('-')[0]}-{self.turn:02}"
        return self.stage


MASK, HISTOGRAM, QUANTISE = Phase("mask"), Phase("histogram"), Phase("quantise")
PARTS, NUMBER, GRAPH, LABEL = Phase("parts"), Phase("number"), Phase("graph"), Phase("label")


def sweep_phase(rounds: Sequence[Round], turn: int) -> Phase:
    """Return the phase of a round."""
    return Phase("sweep-blocks" if rounds[turn].weight is None else "sweep-voxels", turn)


def round_phases(rounds: Sequence[Round]) -> list[Phase]:
    """Return the phases of all rounds, with one that merges the changes to the statistics between two rounds.

    >>> from dseeds.core.geometry import Lattice
    >>> from dseeds.seeds.schedule import schedule
    >>> [str(phase) for phase in round_phases(schedule(Lattice((4, 4, 4), (1, 1, 1))))]
    ['sweep-00', 'merge-01', 'sweep-01', 'merge-02', 'sweep-02', 'merge-03', 'sweep-03']
    """
    phases = []
    for turn in range(len(rounds)):
        if turn > 0:
            phases.append(Phase("merge", turn))
        phases.append(sweep_phase(rounds, turn))
    return phases
