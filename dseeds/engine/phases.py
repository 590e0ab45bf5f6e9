"""The phases of a run: its stages in order, with a phase for each round.

A phase is one task per region. Tasks of most phases need what the phase before it found in the whole volume; those of
quantising and of the rounds need only what the regions around them have published, so they need not wait for the rest.
Dask clusters and arrays of batch jobs go through the same phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dseeds.seeds.schedule import Round

# Stages that occur several times.
_TURNS = ("window", "contrast", "sweep-blocks", "sweep-voxels")


@dataclass(frozen=True)
class Phase:
    """A stage, or one turn of a stage that occurs several times: a round, or a pass of the search for the windows.

    Further passes, where both percentiles are one value, are a stage of their own, as few images need them.

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

    @property
    def is_round(self) -> bool:
        """Whether this is a round."""
        return self.stage.startswith("sweep")

    @property
    def is_search(self) -> bool:
        """Whether this is a pass of the search for the windows."""
        return self.stage in ("window", "contrast")

    @property
    def publishes_messages(self) -> bool:
        """Whether its tasks publish messages, which are also their marks: quantising, and each round."""
        return self.is_round or self == QUANTISE


# A region's task of a phase.
RegionTask = tuple[Phase, int]

# Quantising is the turn before the first round.
MASK, HISTOGRAM, QUANTISE = Phase("mask"), Phase("histogram"), Phase("quantise", -1)
# Not a phase: the place of states' bins in the log, where states find no room in memory.
HELD = Phase("held")
PARTS, GRAPH, LABEL = Phase("parts"), Phase("graph"), Phase("label")


def turn_phase(rounds: Sequence[Round], turn: int) -> Phase:
    """Return the phase of a round; quantising comes before the first, as turn -1.

    >>> from dseeds.core.geometry import Lattice
    >>> from dseeds.seeds.schedule import schedule
    >>> [str(turn_phase(schedule(Lattice((4, 4, 4), (1, 1, 1))), turn)) for turn in range(-1, 4)]
    ['quantise', 'sweep-00', 'sweep-01', 'sweep-02', 'sweep-03']
    """
    if turn < 0:
        return QUANTISE
    return Phase("sweep-blocks" if rounds[turn].weight is None else "sweep-voxels", turn)
