"""The states of regions that stay in the memory of this process between the tasks of a run."""

from __future__ import annotations

from dseeds.core.forks import ForkSafeLock
from dseeds.engine.region_state import RegionState

# Where room is scarce, a state that has not been used for so many tasks, as a multiple of all states, is dropped: its
# region may have gone to another worker.
_IDLE = 16


class Residents:
    """States by run and region. Only one task at a time has a region's state: it takes it, and gives it back."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], RegionState] = {}
        self._last_use: dict[tuple[str, int], int] = {}
        self._clock = 0
        # Tasks of several threads.
        self._lock = ForkSafeLock()

    def take(self, run: str, number: int, turn: int) -> RegionState | None:
        """Return the state of a region after a round, which is no longer here then; None if it is not here.

        A newer state stays, and an older one is dropped.
        """
        with self._lock:
            held = self._states.get((run, number))
            if held is None or held.turn > turn:
                return None
            self._drop((run, number))
            return held if held.turn == turn else None

    def has_room(self, run: str, state: RegionState, room: int) -> bool:
        """Return whether all states take at most `room` bytes with one more; idle ones are dropped for it."""
        with self._lock:
            return self._makes_room((run, state.number), state, room)

    def keep(self, run: str, state: RegionState, room: int) -> bool:
        """Keep a state if there is room for it, and return whether it, or a newer one, is kept."""
        key = run, state.number
        with self._lock:
            self._clock += 1
            held = self._states.get(key)
            if held is not None and held.turn >= state.turn:
                return True
            if not self._makes_room(key, state, room):
                return False
            self._states[key], self._last_use[key] = state, self._clock
            return True

    def _makes_room(self, key: tuple[str, int], state: RegionState, room: int) -> bool:
        replaced = self._states[key].nbytes if key in self._states else 0
        needed = state.nbytes - replaced
        if self._size + needed > room:
            self._drop_idle()
        return self._size + needed <= room

    def _drop(self, key: tuple[str, int]) -> None:
        # In a child process one may be missing, if it was forked meanwhile.
        self._states.pop(key, None)
        self._last_use.pop(key, None)

    @property
    def _size(self) -> int:
        return sum(held.nbytes for held in self._states.values())

    def _drop_idle(self) -> None:
        """Drop states that probably belong to other workers now."""
        earliest = self._clock - _IDLE * (len(self._last_use) + 4)
        for key in [key for key, use in self._last_use.items() if use < earliest]:
            self._drop(key)

    def release(self, run: str) -> None:
        """Drop all states of a run."""
        with self._lock:
            for key in [key for key in self._states if key[0] == run]:
                self._drop(key)


residents = Residents()
