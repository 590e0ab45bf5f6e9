"""Step 3: the schedule of rounds, and their halos."""

from __future__ import annotations

from dataclasses import dataclass

from dseeds.core.geometry import Lattice
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


def schedule(lattice: Lattice, channels: int = 1) -> tuple[Round, ...]:
    """Return the rounds of a run, in order.

    Examples
    --------
    >>> [round.level for round in schedule(Lattice((64, 64, 64), (16, 16, 16)))]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    """
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
