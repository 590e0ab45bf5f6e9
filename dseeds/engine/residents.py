"""What stays of regions in the memory of this process between the tasks of a run: their images, then their states."""

from __future__ import annotations

from typing import Protocol, cast

from dseeds.core.forks import ForkSafeLock
from dseeds.engine.region_state import RegionImage, RegionState

# Where room is scarce, a state that has not been used for so many tasks, as a multiple of all states, is dropped: its
# region may have gone to another worker.
_IDLE = 16


class Resident(Protocol):
    """The image or the state of a region: a cache of what can be read or computed again."""

    @property
    def number(self) -> int:
        """The region."""

    @property
    def turn(self) -> int:
        """The round after which this is the state; less for an image."""

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in memory."""


class Residents:
    """Images and states by run and region. Only one task at a time has a region's: it takes it, and gives it back."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Resident] = {}
        self._last_use: dict[tuple[str, int], int] = {}
        # By run, the bytes that its residents may take at most, if they have taken more memory than there is.
        self._limits: dict[str, int] = {}
        self._clock = 0
        # Tasks of several threads.
        self._lock = ForkSafeLock()

    def take(self, run: str, number: int, turn: int) -> RegionState | None:
        """Return the state of a region after a round, which is no longer here then; None if it is not here.

        A newer state stays, and an older one is dropped.
        """
        return cast("RegionState | None", self._take(run, number, turn))

    def take_image(self, run: str, number: int) -> RegionImage | None:
        """Return the image of a region, which is no longer here then; None if it is not here."""
        return cast("RegionImage | None", self._take(run, number, RegionImage.turn))

    def _take(self, run: str, number: int, turn: int) -> Resident | None:
        with self._lock:
            held = self._held.get((run, number))
            if held is None or held.turn > turn:
                return None
            self._drop((run, number))
            return held if held.turn == turn else None

    def has_room(self, run: str, resident: Resident, room: int) -> bool:
        """Return whether all residents take at most `room` bytes with one more; others are dropped for it."""
        with self._lock:
            return self._makes_room((run, resident.number), resident, room)

    def keep(self, run: str, resident: Resident, room: int) -> bool:
        """Keep an image or a state if there is room for it, and return whether it, or a newer one, is kept."""
        key = run, resident.number
        with self._lock:
            self._clock += 1
            held = self._held.get(key)
            if held is not None and held.turn >= resident.turn:
                return True
            if not self._makes_room(key, resident, room):
                return False
            self._held[key], self._last_use[key] = resident, self._clock
            return True

    def _makes_room(self, key: tuple[str, int], resident: Resident, room: int) -> bool:
        if self._excess(key, resident, room) > 0:
            self._drop_idle()
        if resident.turn != RegionImage.turn:
            self._drop_images(self._excess(key, resident, room), key)
        return self._excess(key, resident, room) <= 0

    def _excess(self, key: tuple[str, int], resident: Resident, room: int) -> int:
        """Return the bytes that are missing to keep a resident in the place of an older one."""
        added = resident.nbytes - (self._held[key].nbytes if key in self._held else 0)
        excess = self._size() + added - room
        if key[0] in self._limits:
            excess = max(excess, self._size(key[0]) + added - self._limits[key[0]])
        return excess

    def _drop(self, key: tuple[str, int]) -> None:
        # In a child process one may be missing, if it was forked meanwhile.
        self._held.pop(key, None)
        self._last_use.pop(key, None)

    def _size(self, run: str | None = None) -> int:
        """Return the bytes of all residents, or of those of a run."""
        return sum(held.nbytes for key, held in self._held.items() if run in (None, key[0]))

    def _drop_idle(self) -> None:
        """Drop what probably belongs to other workers now."""
        earliest = self._clock - _IDLE * (len(self._last_use) + 4)
        for key in [key for key, use in self._last_use.items() if use < earliest]:
            self._drop(key)

    def _drop_images(self, excess: int, kept: tuple[str, int]) -> None:
        """Drop images of so many bytes, those of the last regions first: a state that is lost costs more."""
        for key in sorted((key for key, held in self._held.items() if held.turn == RegionImage.turn), reverse=True):
            if excess <= 0:
                return
            if key != kept:
                excess -= self._held[key].nbytes
                self._drop(key)

    def give_up(self, run: str) -> int:
        """Drop all that is held of a run, keep at most half as much of it from now on, and return the bytes dropped."""
        with self._lock:
            dropped = self._release(run)
            if dropped:
                self._limits[run] = dropped // 2
            return dropped

    def release(self, run: str) -> None:
        """Drop all that is held of a run that has ended."""
        with self._lock:
            self._release(run)
            self._limits.pop(run, None)

    def _release(self, run: str) -> int:
        keys = [key for key in self._held if key[0] == run]
        dropped = sum(self._held[key].nbytes for key in keys)
        for key in keys:
            self._drop(key)
        return dropped


residents = Residents()
