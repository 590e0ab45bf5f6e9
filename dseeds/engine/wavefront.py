"""How far regions are apart while a run goes through a volume, and which of their messages may still be needed.

A region does a round when those within its reach have done the one before. So when a region has done a round, all
regions that may read its messages have come almost as far. What they no longer need can be removed at once, without
asking how far they are.
"""

from __future__ import annotations

from dseeds.engine.exchange import Exchange
from dseeds.engine.history import RESTED
from dseeds.seeds.schedule import first_replayed, keeps_checkpoint

# Regions that are begun ahead of those that the slowest region needs, so that no thread waits, for each task in flight.
BEGUN_PER_PLACE = 2


def wave_depth(exchange: Exchange) -> int:
    """Return how many layers of regions ahead along z have to be begun, at most, so that a region can be finished."""
    return sum(exchange.reach(turn) for turn in range(len(exchange.schedule)))


def layers_ahead(exchange: Exchange, places: int) -> int:
    """Return how many layers ahead of the lowest one that is not finished may be begun, for so many tasks in flight."""
    per_layer = exchange.regions.counts[1] * exchange.regions.counts[2]
    return wave_depth(exchange) + -(-BEGUN_PER_PLACE * places // per_layer)


def is_tall(exchange: Exchange) -> bool:
    """Return whether most of a volume lies before or behind the layers in work, so that finished regions are tidied up.

    It does not depend on the workers, which may change, and is never so where labels need all regions to be done.
    """
    in_work = wave_depth(exchange) + 1 + needed_within(exchange)
    return exchange.label_reach == 0 and 2 * exchange.regions.counts[0] >= 3 * in_work


def has_checkpoint(exchange: Exchange, turn: int) -> bool:
    """Return whether the message after a round has a checkpoint in any case; after the last one it has in tall volumes.

    Those of regions that will rest, and those whose state finds no room in memory, have one besides.
    """
    is_last = turn + 1 == len(exchange.schedule)
    return keeps_checkpoint(exchange.schedule, turn) or (is_last and is_tall(exchange))


def needed_within(exchange: Exchange) -> int:
    """Return the distance, in regions, within which a region's messages may be needed.

    By its readers, and by the readers of those if theirs have to be made again.
    """
    return 2 * exchange.farthest


def settled_turn(exchange: Exchange, turn: int) -> int:
    """Return a round that all regions have done that may need a region's messages, when it has done a given round."""
    distance = needed_within(exchange)
    while distance > 0 and turn >= 0:
        distance -= exchange.reach(turn)
        turn -= 1
    return turn if distance <= 0 else -2


def first_needed(exchange: Exchange, turn: int) -> int:
    """Return the first round whose messages may be needed when a region has done one; see `first_replayed`."""
    return first_replayed(exchange.schedule, settled_turn(exchange, turn))


def needed_turns(exchange: Exchange, trail: str) -> list[int]:
    """Return the rounds, and -1 for quantising, whose messages of a region may be needed, given what came of it so far.

    Instead of those of rounds in which it rested, those before are read.
    """
    letters = trail[1:]
    swept = [turn for turn, letter in enumerate(letters) if letter != RESTED[0]]
    first = first_needed(exchange, len(letters) - 1)
    checkpoints = [
        turn
        for turn in swept
        if turn <= first and (keeps_checkpoint(exchange.schedule, turn) or letters[turn + 1 : turn + 2] == RESTED[0])
    ]
    return [-1, *(turn for turn in swept if turn >= max(checkpoints, default=0))]


def obsolete_turns(exchange: Exchange, trail: str) -> list[int]:
    """Return the rounds whose messages a region's last round has made obsolete."""
    before = trail[:-1].rstrip(RESTED[0])
    return sorted(set(needed_turns(exchange, before)) - set(needed_turns(exchange, trail)))
