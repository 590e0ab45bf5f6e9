"""Step 3: the schedule of rounds, and their halos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dseeds.core.geometry import Lattice
from dseeds.seeds.kernels.flood import LEVELS, POSITION
from dseeds.seeds.kernels.simd import BLOCK_BINS
from dseeds.seeds.kernels.voxels import BINS

COLOURS = 4
# Rounds of blocks, divided among their levels; coarser levels get the remainder.
BLOCK_ROUNDS = 9
# The score of a block's neighbour, in thousandths of a full histogram intersection: at the first level, and after it.
BLOCK_GAINS = 50, 25
VOXEL_SWEEPS = 3
# The weight of a voxel's neighbours in each round: from smooth to sharp, and a little smoother at the end. It is
# constant within a round, so that a voxel whose neighbours have not changed needs no second visit.
VOXEL_WEIGHTS = ((60, 100), (20, 100), (10, 100), (20, 100))
# The kind of boundary map that is one of its own, as the last channel of the bins; others are made from the image.
OWN_MAP = "map"
# The sweeps of a flood after which the next level opens, and those of one round out of core.
SWEEPS_PER_LEVEL, FLOOD_SWEEPS = 6, 13

# Rounds from one checkpoint to the next.
CHECKPOINT_ROUNDS = 3


@dataclass(frozen=True)
class Round:
    """One or more sweeps of one level, an index into `Lattice.grids`, with frozen statistics.

    The weight of voxels' neighbours is a fraction; it is None for blocks.
    """

    level: int
    sweeps: int
    weight: tuple[int, int] | None = None
    channels: int = 1

    @property
    def halo(self) -> int:
        """The number of units around a region on which its result depends."""
        return COLOURS * self.sweeps + self.rim

    @property
    def window_halo(self) -> int:
        """The halo of a region's window: even, so that blocks of two voxels and voxels can share a window."""
        return self.halo + self.halo % 2

    @property
    def rim(self) -> int:
        """The number of units around a region that have to be exact as well: a block that moves marks its neighbours.

        For voxels it is 0, because all are due when a round begins.
        """
        return int(self.weight is None)

    @property
    def bins(self) -> int:
        """The number of bins of the statistics in this round."""
        return self.channels * (BLOCK_BINS if self.weight is None else BINS)

    @property
    def changes_statistics(self) -> bool:
        """Whether units that move change the statistics."""
        return True


@dataclass(frozen=True)
class FloodRound(Round):
    """Sweeps of a flood of a boundary map, of which each reaches one voxel far.

    `first` is the number of the first sweep; rounds in which every level is open are equal, except for the last.
    """

    first: int = 1
    is_last: bool = False

    @property
    def halo(self) -> int:
        """The number of voxels around a region on which its result depends.

        It is one for each sweep, and one more for the levels of a gradient.
        """
        return self.sweeps + 1

    @property
    def bins(self) -> int:
        """The number of columns of the table of seeds, which stands in for the statistics."""
        return POSITION + self.channels

    @property
    def changes_statistics(self) -> bool:
        """Whether voxels that take labels change the seeds: they do not."""
        return False

    def highest(self, number: int) -> int:
        """Return the highest level that is open in a sweep."""
        return min((number - 1) // SWEEPS_PER_LEVEL, LEVELS - 1)


def flood_schedule(lattice: Lattice, channels: int = 1) -> tuple[FloodRound, ...]:
    """Return the rounds of a flood, in order.

    Once all levels are open, every sweep labels at least the voxels beside labelled ones of the same cell, so the flood
    ends when it may have crossed the largest cell from corner to corner.

    Examples
    --------
    >>> [round.first for round in flood_schedule(Lattice((16, 16, 16), (4, 4, 4)))]
    [1, 14, 27, 40, 53, 66]
    """
    levels = len(lattice.grids) - 1
    all_open = SWEEPS_PER_LEVEL * (LEVELS - 1) + 1
    crossing = sum(int(np.bincount(cells).max()) - 1 for cells in lattice.grids[-1].cells)
    count = max(1, -(-(all_open - 1 + crossing) // FLOOD_SWEEPS))
    return tuple(
        FloodRound(levels, FLOOD_SWEEPS, (0, 1), channels, min(1 + turn * FLOOD_SWEEPS, all_open), turn == count - 1)
        for turn in range(count)
    )


def schedule(lattice: Lattice, channels: int = 1, boundaries: str | None = None) -> tuple[Round, ...]:
    """Return the rounds of a run, in order: those of a flood if there is a boundary map, of the given kind.

    A map of its own is one of the channels.

    Examples
    --------
    >>> [round.level for round in schedule(Lattice((64, 64, 64), (16, 16, 16)))]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    """
    if boundaries is not None:
        return flood_schedule(lattice, channels - (boundaries == OWN_MAP))
    levels = len(lattice.grids) - 1
    share, remainder = divmod(BLOCK_ROUNDS, levels) if levels else (0, 0)
    block_levels = [level for level in range(levels) for _ in range(max(1, share + (level < remainder)))]
    return (
        *(Round(level, 1, None, channels) for level in block_levels),
        *(Round(levels, VOXEL_SWEEPS, weight, channels) for weight in VOXEL_WEIGHTS),
    )


def may_rest(rounds: tuple[Round, ...], turn: int) -> bool:
    """Return whether a round can be skipped where nothing has moved since the start of the round two before it.

    Nothing can move in it: an equal round, on the same labels and statistics and with at least as many units due, moved
    nothing. The result would be that of the previous round: the same labels, no unit due, and no change in the
    statistics. So the previous round has to be of the same level, and the next round must not need other statistics.
    """
    if turn < 2 or rounds[turn - 2].level != rounds[turn].level:
        return False
    same = rounds[turn] in rounds[turn - 2 : turn]
    return same and (turn + 1 == len(rounds) or rounds[turn + 1].bins == rounds[turn].bins)


def keeps_checkpoint(rounds: tuple[Round, ...], turn: int) -> bool:
    """Return whether the state after a round is stored in any case: after every third round.

    So two rounds at most are repeated in a region that was lost with its worker, after the last round too.
    """
    return (len(rounds) - 1 - turn) % CHECKPOINT_ROUNDS == CHECKPOINT_ROUNDS - 1


def first_replayed(rounds: tuple[Round, ...], turn: int) -> int:
    """Return the first round whose messages are needed once a round is done everywhere: the last checkpoint but one.

    The last checkpoint may turn out to be damaged.
    """
    checkpoints = [t for t in range(turn + 1) if keeps_checkpoint(rounds, t)]
    return checkpoints[-2] if len(checkpoints) > 1 else 0
