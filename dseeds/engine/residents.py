"""The states of regions that stay in the memory of this process between the tasks of a run."""

from __future__ import annotations

import threading

from dseeds.engine.region_state import RegionState

# Where room is scarce, a state that has not been used for so many tasks, as a multiple of all states, is dropped: its
# region may have gone to another worker.
_IDLE = 16


class Residents:
    """States by run and region. Only one task at a time has a region's state: it takes it, and gives it back."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], RegionState] = {}
        self._used: dict[tuple[str, int], int] = {}
        self._clock = 0
        # Tasks of several threads.
        self._lock = threading.Lock()

    def take(self, run: str, number: int) -> RegionState | None:
        """Return the state of a region, which is no longer here then; None if it is not here."""
        with self._lock:
            self._used.pop((run, number), None)
            return self._states.pop((run, number), None)

    def keep(self, run: str, state: RegionState, room: int) -> bool:
        """Keep a state if all states take at most `room` bytes with it, and return whether it is kept."""
        key = run, state.number
        with self._lock:
            self._clock += 1
            newer = self._states.get(key)
            if newer is not None and newer.turn >= state.turn:
                return True
            if self._size + state.nbytes > room:
                self._drop_idle()
            if self._size + state.nbytes > room:
                return False
            self._states[key], self._used[key] = state, self._clock
            return True

    @property
    def _size(self) -> int:
        return sum(held.nbytes for held in self._states.values())

    def _drop_idle(self) -> None:
        """Drop states that probably belong to other workers now."""
        longest = _IDLE * (len(self._used) + 4)
        for key in [key for key, used in self._used.items() if used < self._clock - longest]:
            del self._states[key], self._used[key]

    def release(self, run: str) -> None:
        """Drop all states of a run."""
        with self._lock:
            for key in [key for key in self._states if key[0] == run]:
                del self._states[key], self._used[key]


residents = Residents()
