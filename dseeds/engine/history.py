"""What a task knows of the regions around its own: what came of each of them in the rounds so far."""

from __future__ import annotations

from dataclasses import dataclass

# The outcomes of quantising and of rounds; the first stands for a task that is not done yet.
NOT_DONE = ""
# How much of the region lies inside the mask.
ALL, PART, NOTHING_INSIDE = "all", "part", "nothing"
# Whether units moved in the region's window, and a round in which none could move.
MOVED, STILL, RESTED = "moved", "still", "rested"
OUTCOMES = (NOT_DONE, ALL, PART, NOTHING_INSIDE, MOVED, STILL, RESTED)
OUTCOME_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
# The letter of each code in a trail: what came of a region in quantising and in the rounds so far.
_LETTERS = "".join(outcome[:1] or "-" for outcome in OUTCOMES)


def spell_trail(codes: bytes) -> str:
    """Return the letters of outcomes.

    >>> spell_trail(bytes([OUTCOME_CODES[outcome] for outcome in (ALL, MOVED, RESTED, STILL)]))
    'amrs'
    """
    return "".join(_LETTERS[code] for code in codes)


def read_trail(trail: str) -> bytes:
    """Return the codes of outcomes, from their letters; raise a ValueError if there is another letter.

    >>> OUTCOMES[read_trail("amrs")[-1]]
    'still'
    """
    return bytes(map(_LETTERS.index, trail))


@dataclass(frozen=True)
class History:
    """The outcomes of a region and of those around it. It travels with every task, so it is packed."""

    numbers: tuple[int, ...]
    # The code of each outcome, region by region, for quantising and each round so far.
    codes: bytes

    def outcome(self, turn: int, number: int) -> str:
        """Return what came of a region in a round, or in quantising, which is turn -1."""
        return OUTCOMES[self.codes[(turn + 1) * len(self.numbers) + self.numbers.index(number)]]

    def trail(self, turn: int, number: int) -> str:
        """Return what came of a region in quantising and in all rounds up to one, a letter each."""
        place, count = self.numbers.index(number), len(self.numbers)
        return spell_trail(self.codes[place : (turn + 2) * count : count])

    @property
    def turns(self) -> int:
        """The number of rounds so far."""
        return len(self.codes) // len(self.numbers) - 1

    def last_turn(self, number: int, before: int | None = None) -> int:
        """Return the last round, before a given one, in which a region was swept; -1 if there is none."""
        turn = (self.turns if before is None else before) - 1
        while turn >= 0 and self.outcome(turn, number) == RESTED:
            turn -= 1
        return turn

    def is_outside(self, number: int) -> bool:
        """Return whether no voxel of a region lies inside the mask, so that it publishes nothing."""
        return self.outcome(-1, number) == NOTHING_INSIDE

    @property
    def is_masked(self) -> bool:
        """Whether any voxel of these regions lies outside the mask."""
        return any(code != OUTCOME_CODES[ALL] for code in self.codes[: len(self.numbers)])
