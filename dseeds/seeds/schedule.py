"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from dseeds.core.geometry import Lattice
from dseeds.seeds.kernels.simd import BLOCK_BINS
from dseeds.seeds.kernels.voxels import BINS

COLOURS = 4
# Rounds of blocks, shared out among their levels: more to the coarser ones.
BLOCK_ROUNDS = 9
# What a block's neighbour counts, in thousandths of a full histogram intersection: at the first level, and after it.
BLOCK_GAINS = 50, 25
VOXEL_SWEEPS = 3
# The weight of a voxel's neighbours in each round: from smooth to sharp, and then smoothed a little. It is constant
# within a round, so that a voxel whose neighbours have not changed need not be looked at again.
VOXEL_WEIGHTS = ((60, 100), (20, 100), (10, 100), (20, 100))


@dataclass(frozen=True)
class Round:
    """One or more sweeps of one level with frozen statistics.

    Attributes
    ----------
    level : int
        Index into `Lattice.grids`.
    sweeps : int
        Sweeps before the statistics are taken anew.
    weight : tuple of int or None
        The neighbours' weight as a fraction, for voxels; None for blocks.
    channels : int, default 1
        Channels of the volume.
    """

    level: int
    sweeps: int
    weight: tuple[int, int] | None = None
    channels: int = 1

    @property
    def halo(self) -> int:
        """How many units around a region its outcome depends on."""
        return COLOURS * self.sweeps + self.rim

    @property
    def rim(self) -> int:
        """How many units around a region have to be right as well: next to a block that moves, one is to be looked at.

        Voxels are all looked at when a round begins.
        """
        return int(self.weight is None)

    @property
    def bins(self) -> int:
        """Bins of the statistics that this round needs."""
        return self.channels * (BLOCK_BINS if self.weight is None else BINS)


def schedule(lattice: Lattice, channels: int = 1) -> tuple[Round, ...]:
    """List the rounds of a run, in order.

    Examples
    --------
    >>> [round.level for round in schedule(Lattice((64, 64, 64), (16, 16, 16)))]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    """
    levels = len(lattice.grids) - 1
    each, more = divmod(BLOCK_ROUNDS, levels) if levels else (0, 0)
    turns = [level for level in range(levels) for _ in range(max(1, each + (level < more)))]
    return (
        *(Round(level, 1, None, channels) for level in turns),
        *(Round(levels, VOXEL_SWEEPS, weight, channels) for weight in VOXEL_WEIGHTS),
    )


def may_rest(rounds: tuple[Round, ...], turn: int) -> bool:
    """Tell whether a round can be left out where nothing has moved since the round two before it began.

    Nothing moves then: a round like it, on the same labels and statistics and with no fewer units to be looked at, has
    moved nothing. What this round would leave is what the round before it left: the same labels, with no unit still to
    be looked at, and no change of the statistics. So that one has to be of the same level, and the next round must not
    want other statistics.
    """
    if turn < 2 or rounds[turn - 2].level != rounds[turn].level:
        return False
    same = rounds[turn] in rounds[turn - 2 : turn]
    return same and (turn + 1 == len(rounds) or rounds[turn + 1].bins == rounds[turn].bins)
