"""What regions exchange: for each round, the window of a region, and what of its neighbours' results it needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from dseeds.core.forks import cached_property
from dseeds.core.geometry import AxisArrays, Box, Lattice, Regions, Window, triple
from dseeds.seeds.block_histograms import histogram_dtype
from dseeds.seeds.kernels.simd import BLOCK_BINS
from dseeds.seeds.schedule import Round

# What a message consists of, besides histograms.
BINS, COUNTS, CODES = "bins", "counts", "codes"
COUNT_DTYPE = np.dtype(np.uint32)


def histograms_name(level: int) -> str:
    """Return the name of the histograms of a level's blocks in a message."""
    return f"histograms-{level}"


class Extract(NamedTuple):
    """A box of an array of units, voxels or cells, and the bytes of each of these."""

    name: str
    box: Box
    itemsize: int

    @property
    def nbytes(self) -> int:
        """The bytes of the box."""
        return self.box.size * self.itemsize


@dataclass(frozen=True, eq=False)
class Exchange:
    """The geometry of what regions exchange. Turns count rounds; -1 is quantising."""

    regions: Regions
    schedule: tuple[Round, ...]
    channels: int = 1
    # The cells around a region whose codes its labels depend on.
    label_reach: int = 0
    _windows: dict[tuple[int, int], Window] = field(default_factory=dict, repr=False)

    @property
    def lattice(self) -> Lattice:
        """The lattice."""
        return self.regions.lattice

    def window(self, number: int, turn: int) -> Window:
        """Return the window of a region in a round."""
        key = number, turn
        # Other threads may clear it at any moment.
        window = self._windows.get(key)
        if window is None:
            # Only few regions are handled by one process at a time.
            if len(self._windows) > 4096:
                self._windows.clear()
            round_ = self.schedule[turn]
            grid = self.lattice.grids[round_.level]
            window = Window.around(self.lattice, grid, self.regions.box(number), round_.window_halo)
            self._windows[key] = window
        return window

    def voxels(self, number: int) -> Box:
        """Return the voxels of a region."""
        return self.lattice.grids[-1].units_of(self.regions.box(number))

    def binned_voxels(self, number: int) -> Box:
        """Return the voxels whose bins a region holds: those of its windows in the rounds of the two finest levels."""
        box, grids = self.voxels(number), self.lattice.grids
        if not self.schedule:
            return self.labelled_voxels(number)
        for turn in self._first_turns():
            if self.schedule[turn].level >= len(grids) - 2:
                window = self.window(number, turn)
                box = box.bounding(window.grid.voxels_of(window.box))
        return box

    def histogram_turns(self) -> dict[int, int]:
        """Return the first round of each level whose blocks have stored histograms, by level."""
        finest = len(self.lattice.grids) - 3
        return {self.schedule[turn].level: turn for turn in self._first_turns() if self.schedule[turn].level <= finest}

    def histogram_levels(self, from_turn: int) -> list[int]:
        """Return the levels whose stored histograms the rounds from a given one on need."""
        if from_turn >= len(self.schedule) or self.schedule[from_turn].weight is not None:
            return []
        return [level for level in self.histogram_turns() if level >= self.schedule[from_turn].level]

    def _first_turns(self) -> Iterator[int]:
        """Yield the first round of each level."""
        for turn, round_ in enumerate(self.schedule):
            if turn == 0 or self.schedule[turn - 1].level != round_.level:
                yield turn

    def is_refined(self, turn: int) -> bool:
        """Return whether a round is the first one of its level after one of coarser blocks."""
        return 0 < turn < len(self.schedule) and self.schedule[turn - 1].level != self.schedule[turn].level

    def parents(self, number: int, turn: int) -> AxisArrays:
        """Return, per axis, the block of the round before that each unit of a region's window lies in."""
        window, coarser = self.window(number, turn), self.lattice.grids[self.schedule[turn - 1].level]
        return window.grid.parents(coarser, window.box)

    def wanted_units(self, number: int, turn: int) -> Box | None:
        """Return the units of a round whose codes a region needs after it; None if it needs only its own."""
        if turn + 1 == len(self.schedule):
            return self.labelled_voxels(number) if self.label_reach else None
        if self.is_refined(turn + 1):
            return box_of_parents(self.parents(number, turn + 1))
        box = self.window(number, turn + 1).box
        refined = next((later for later in range(turn + 2, len(self.schedule)) if self.is_refined(later)), None)
        if refined is None:
            return box
        # Of a region that rests until then, this is the last message. Blocks of the last cell, which is shorter, may
        # be so short that the next level's window reaches further.
        return box.bounding(box_of_parents(self.parents(number, refined)))

    # What messages consist of

    def published(self, number: int, reader: int, turn: int) -> Iterator[Extract]:
        """Yield what a region publishes for another after a round, or after quantising as turn -1."""
        for name, own, needed, itemsize in self._exchanged(number, reader, turn):
            if own.overlaps(needed):
                yield Extract(name, own.intersection(needed), itemsize)

    def _exchanged(self, number: int, reader: int, turn: int) -> Iterator[tuple[str, Box, Box, int]]:
        """Yield the arrays that regions exchange after a round: what a region has of each, and what another needs."""
        cells = self.regions.box(number)
        if turn < 0:
            yield BINS, self.voxels(number), self.binned_voxels(reader), self.channels
            for level, first in self.histogram_turns().items():
                own, window = self.window(number, first), self.window(reader, first)
                yield histograms_name(level), own.core, window.box, self._histogram_bytes(window)
        else:
            # Units at the edge of a region may have moved to the cells around it.
            cells = cells.grow(1, within=self.lattice.cells)
            if wanted := self.wanted_units(reader, turn):
                yield CODES, self.window(number, turn).core, wanted, 1
        if turn + 1 < len(self.schedule) and (turn < 0 or self.schedule[turn].changes_statistics):
            yield COUNTS, cells, self.window(reader, turn + 1).cells, self._cell_bytes(turn + 1)

    def checkpoint(self, number: int, turn: int) -> Iterator[Extract]:
        """Yield what a region publishes for itself after a round, to begin again from there if its state is lost."""
        yield Extract(CODES, self.window(number, turn).core, 1)
        if turn + 1 < len(self.schedule):
            yield Extract(COUNTS, self.window(number, turn + 1).cells, self._cell_bytes(turn + 1))

    def held(self, number: int) -> Iterator[Extract]:
        """Yield the bins and histograms of a region's windows, which are stored where states find no room."""
        yield Extract(BINS, self.binned_voxels(number), self.channels)
        for level, turn in self.histogram_turns().items():
            window = self.window(number, turn)
            yield Extract(histograms_name(level), window.box, self._histogram_bytes(window))

    def published_bytes(self, turn: int, number: int | None = None) -> Counter[str]:
        """Return the bytes that all regions publish for others after a round, or that one region does, by array."""
        published = partial(self.published, turn=turn)
        return self.total_bytes(published, self.reach(turn + 1), number) - self.total_bytes(published, 0, number)

    def total_bytes(
        self, extracts: Callable[[int, int], Iterable[Extract]], reach: int = 0, number: int | None = None
    ) -> Counter[str]:
        """Return the bytes of what each region, or one, has for each region within a distance, with itself, by array.

        The extent of a box along an axis depends on the indices of the two regions along that axis alone, so the sum
        over all pairs is a product of sums.
        """
        itemsizes: dict[str, int] = {}
        extents = [Counter[str]() for _ in range(3)]
        for axis in range(3):
            line = self.line(axis)
            for i in range(len(line)) if number is None else [self.regions.index(number)[axis]]:
                for other in line[max(0, i - reach) : i + reach + 1]:
                    for name, box, itemsize in extracts(line[i], other):
                        itemsizes[name] = itemsize
                        extents[axis][name] += box.shape[axis]
        sizes = {name: itemsize * math.prod(sums[name] for sums in extents) for name, itemsize in itemsizes.items()}
        return Counter(sizes)

    def line(self, axis: int) -> list[int]:
        """Return the regions along an axis, from the first region of all."""
        indices = range(self.regions.counts[axis])
        return [self.regions.number(triple(i if a == axis else 0 for a in range(3))) for i in indices]

    def _histogram_bytes(self, window: Window) -> int:
        """Return the bytes of a block's histograms in a window."""
        return BLOCK_BINS * self.channels * histogram_dtype(window.grid).itemsize

    def _cell_bytes(self, turn: int) -> int:
        """Return the bytes of a cell's statistics in a round."""
        return self.schedule[turn].bins * COUNT_DTYPE.itemsize

    def labelled_voxels(self, number: int) -> Box:
        """Return the voxels whose codes the labels of a region depend on."""
        cells = self.regions.box(number).grow(self.label_reach, within=self.lattice.cells)
        return self.lattice.grids[-1].units_of(cells)

    def reach(self, turn: int) -> int:
        """Return the distance, in regions, within which other regions affect a region in a round.

        What moves in it depends on the units of its window and on the statistics of their cells and the cells around
        these, to which units one cell further contribute. The labels come after the last round.
        """
        return self._reaches[min(max(turn, 0), len(self.schedule))]

    @cached_property
    def _reaches(self) -> list[int]:
        """The reach of each round, and of the labels."""
        reaches = [*map(self._round_reach, range(len(self.schedule))), self._distance([self.label_reach] * 3)]
        # In the beginning, regions exchange what all rounds need.
        reaches[0] = max(reaches)
        return reaches

    @property
    def farthest(self) -> int:
        """The distance, in regions, within which other regions affect a region at all."""
        return self.reach(0)

    def _round_reach(self, turn: int) -> int:
        round_ = self.schedule[turn]
        parts = self.lattice.grids[round_.level].parts
        return self._distance([-(-round_.window_halo // p) + 2 for p in parts])

    def _distance(self, cells: list[int]) -> int:
        return max(-(-n // k) for n, k in zip(cells, self.regions.cells, strict=True))

    def neighbours(self, number: int, turn: int) -> list[int]:
        """Return the other regions that affect a region in a round, ascending."""
        return [other for other in self.regions.within(number, self.reach(turn)) if other != number]


def label_reach(*, masked: bool, has_joins: bool) -> int:
    """Return the cells around a region whose codes its labels depend on.

    A mask makes parts of supervoxels, which are counted in the cells around; joining needs what touches a region.
    """
    return (3 if has_joins else 2) if masked else int(has_joins)


def box_of_parents(parents: AxisArrays) -> Box:
    """Return the bounding box of the units' parents."""
    return Box(triple([p[0] for p in parents]), triple([p[-1] + 1 for p in parents]))
