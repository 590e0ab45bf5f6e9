"""The state of a region between rounds, and how a round leads to the next: pure functions of a job and its messages.

A state is a cache: what it holds follows from the source and the messages, so a state that is lost is made again, from
the last checkpoint and the messages after it, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from dseeds.core.geometry import AxisArrays, Box, Window, per_axis
from dseeds.engine.exchange import BINS, CODES, COUNT_DTYPE, COUNTS, box_of_parents, histograms_name
from dseeds.engine.history import ALL, MOVED, NOTHING_INSIDE, STILL, History
from dseeds.engine.job import Job
from dseeds.engine.messages import MessageDamaged, Part, Piece
from dseeds.engine.phases import HELD, turn_phase
from dseeds.seeds import rounds
from dseeds.seeds.binning import quantise_box
from dseeds.seeds.block_histograms import hide_outside, histogram_dtype, stored_histograms
from dseeds.seeds.flood import begin_flood, flood_window, seed_table
from dseeds.seeds.kernels.label_codes import refine_labels, seed_labels
from dseeds.seeds.kernels.layout import new_window, pack_box, unpack_box
from dseeds.seeds.kernels.simd import NOTHING, OPEN
from dseeds.seeds.kernels.voxels import MASKED
from dseeds.seeds.schedule import FloodRound

_T = TypeVar("_T")

# The bit of a unit's code that marks its block as open: its neighbourhood has changed since it was last visited.
OPEN_BIT = 128


@dataclass(frozen=True)
class RegionImage:
    """The intensities of a region's voxels, channel by channel, and which lie inside the mask; None without a mask."""

    number: int
    values: tuple[NDArray[Any], ...]
    inside: NDArray[np.bool_] | None
    # Before quantising, which is turn -1.
    turn: ClassVar[int] = -2

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in memory."""
        return sum(array.nbytes for array in (*self.values, self.inside) if array is not None)


@dataclass
class RegionState:
    """The state of a region after a round, turn -1 being quantising, in windows of `kernels.layout`.

    The halos of the bins and histograms hold what its neighbours published if it `has_halo`. Those of the labels and
    marks mean nothing between rounds.
    """

    number: int
    # Of each channel, and by level those that blocks still need.
    bins: NDArray[np.uint8]
    histograms: dict[int, NDArray[Any]]
    # Of the cells of the next round's window: without what the neighbours have contributed since the round before.
    counts: NDArray[np.uint32] | None
    turn: int = -1
    has_halo: bool = False
    # Whether its bins and histograms are in the log.
    is_stored: bool = False
    # The labels of the last round's units, and after one of blocks those due for a visit.
    labels: NDArray[np.uint8] | None = None
    marks: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in memory."""
        arrays = [self.bins, *self.histograms.values(), self.counts, self.labels, self.marks]
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True)
class RoundResult:
    """What a round leads to, besides the state of the region."""

    outcome: str
    # What the region contributes to the next round's statistics; None after the last.
    contribution: Part | None


def read_region(job: Job, number: int) -> RegionImage:
    """Read the intensities and the mask of a region."""
    box = job.voxel_box(number)
    return RegionImage(number, job.read_image(box), job.read_mask(box))


def quantise_region(
    job: Job,
    number: int,
    *,
    from_turn: int = 0,
    image: RegionImage | None = None,
    counts: NDArray[np.int64] | None = None,
) -> tuple[RegionState | None, str]:
    """Return the state of a region before the first round, without halos, and how much of it lies inside the mask.

    `from_turn` is the first round that it is needed for. The image is read unless it is given. Without a voxel inside
    the mask, there is no state. The voxels in each bin are added to `counts`.
    """
    exchange, box = job.exchange, job.voxel_box(number)
    image = image or read_region(job, number)
    values = np.empty((job.channels, *box.shape), np.uint8)
    extent = quantise_box(
        image.values,
        job.windows,
        values,
        inside=image.inside,
        knees=job.knees,
        tables=job.tables,
        thresholds=job.thresholds,
        counts=counts,
    )
    # Frees its memory.
    del image
    if extent == NOTHING_INSIDE:
        return None, extent
    held = exchange.binned_voxels(number)
    bins = new_window(held.shape, MASKED, channels=job.channels)
    for channel, window in zip(values, bins, strict=True):
        pack_box(channel, box.relative_to(held.lo).lo, window)
    state = RegionState(number, bins, {}, None)
    if from_turn < len(job.schedule) and (from_turn == 0 or job.schedule[from_turn].weight is None):
        coarsest = _add_histograms(job, state, _packed(values), job.schedule[from_turn].level)
        if from_turn == 0:
            _begin_counts(job, state, coarsest, extent)
    return state, extent


def _add_histograms(job: Job, state: RegionState, values: NDArray[np.uint8], first_level: int) -> NDArray[Any]:
    """Add the histograms of a region's blocks from a level on, and return the values of its coarsest units."""
    exchange, grids = job.exchange, job.lattice.grids
    turns = exchange.histogram_turns()
    coarsest: NDArray[Any] = values
    for level, coarsest in stored_histograms(job.lattice, values, job.regions.box(state.number), first_level):
        window = exchange.window(state.number, turns[level])
        held = np.zeros((*window.box.shape, coarsest.shape[3]), histogram_dtype(grids[level]))
        held[window.core.relative_to(window.box.lo).slices] = coarsest
        state.histograms[level] = held
    return coarsest


def _begin_counts(job: Job, state: RegionState, values: NDArray[Any], extent: str) -> None:
    """Add the statistics of a region's cells to its state, when each has its own voxels; or the seeds of a flood."""
    first, region = job.schedule[0], job.regions.box(state.number)
    window = Window.around(job.lattice, job.lattice.grids[first.level], region, 0)
    if isinstance(first, FloodRound):
        counts = seed_table(job.boundary_map, job.lattice, window, values)
    else:
        labels = seed_labels(window.grid.homes_of(window.box))
        if extent != ALL:
            hide_outside(first.level, job.lattice, window.box, values, labels)
        counts = rounds.count_statistics(first, job.lattice, window, values, labels)
    own = counts.reshape(*window.cells.shape, first.bins)[region.relative_to(window.cells.lo).slices]
    cells = job.exchange.window(state.number, 0).cells
    state.counts = np.zeros((*cells.shape, first.bins), COUNT_DTYPE)
    state.counts[region.relative_to(cells.lo).slices] = own


def _packed(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    windows = new_window(values.shape[1:], 0, channels=len(values))
    for channel, window in zip(values, windows, strict=True):
        pack_box(channel, (0, 0, 0), window)
    return windows


def begin_pieces(job: Job, state: RegionState) -> dict[int, Piece]:
    """Return what a region publishes after quantising: its bins, histograms and statistics, cut for each neighbour."""
    exchange, number = job.exchange, state.number
    held = {
        histograms_name(level): Part(exchange.window(number, turn).box.lo, state.histograms[level])
        for level, turn in exchange.histogram_turns().items()
    }
    if state.counts is not None:
        held[COUNTS] = Part(exchange.window(number, 0).cells.lo, state.counts)

    def cut(name: str, box: Box) -> Part | None:
        if name == BINS:
            # The first three axes of a part are those of space.
            return Part(box.lo, np.moveaxis(_bins_in(job, state, box), 0, 3))
        return held[name].crop(box)

    return _cut_for_neighbours(job, number, -1, cut)


def _cut_for_neighbours(job: Job, number: int, turn: int, cut: Callable[[str, Box], Part | None]) -> dict[int, Piece]:
    """Return the pieces of a message after a round; `cut` returns a box of one of its arrays."""
    pieces: dict[int, Piece] = {}
    for reader in job.exchange.neighbours(number, turn + 1):
        piece = {name: _given(cut(name, box)) for name, box, _ in job.exchange.published(number, reader, turn)}
        if piece:
            pieces[reader] = piece
    return pieces


def _bins_in(job: Job, state: RegionState, box: Box) -> NDArray[np.uint8]:
    """Return the bins of a box of voxels, shape (channels, z, y, x)."""
    lo = box.relative_to(job.exchange.binned_voxels(state.number).lo).lo
    values = np.empty((job.channels, *box.shape), np.uint8)
    for channel, window in zip(values, state.bins, strict=True):
        unpack_box(window, lo, channel)
    return values


def region_bins(job: Job, state: RegionState) -> NDArray[np.uint8]:
    """Return the bins of a region's voxels, shape (channels, z, y, x)."""
    return _bins_in(job, state, job.voxel_box(state.number))


def add_halo(job: Job, state: RegionState, history: History) -> None:
    """Complete a region's bins, histograms and first statistics with what its neighbours published of theirs."""
    exchange, number = job.exchange, state.number
    held, turns = exchange.binned_voxels(number), exchange.histogram_turns()
    for _, piece in _pieces(job, number, history, -1, exchange.neighbours(number, 0)):
        if part := piece.get(BINS):
            lo = part.box.relative_to(held.lo).lo
            for channel, window in zip(np.moveaxis(part.values, 3, 0), state.bins, strict=True):
                pack_box(np.ascontiguousarray(channel), lo, window)
        for level, histograms in state.histograms.items():
            if part := piece.get(histograms_name(level)):
                origin = exchange.window(number, turns[level]).box.lo
                histograms[part.box.relative_to(origin).slices] = part.values
        if state.turn < 0 and (part := piece.get(COUNTS)) and state.counts is not None:
            state.counts[part.box.relative_to(exchange.window(number, 0).cells.lo).slices] += part.values
    state.has_halo = True


def advance(job: Job, state: RegionState, turn: int, history: History) -> RoundResult:
    """Do a round in a region, and make its state that after the round."""
    if not state.has_halo:
        add_halo(job, state, history)
    round_, window = job.schedule[turn], job.exchange.window(state.number, turn)
    counts = _take_counts(job, state, turn, window)
    begins_level = _enter_neighbours(job, state, turn, window, counts, history)
    if isinstance(round_, FloodRound):
        return _flood(job, state, round_, window, counts)
    values = _values(job, state, round_.level, window.box)
    if begins_level and history.is_masked:
        hide_outside(round_.level, job.lattice, window.box, values, _given(state.labels))
    moves, change = rounds.sweep_window(
        round_,
        job.lattice,
        window,
        values,
        _given(state.labels),
        _given(state.marks),
        counts.reshape(-1, round_.bins),
        compactness=job.compactness,
        weights=job.weights,
    )
    state.turn = turn
    if round_.weight is not None:
        state.marks = None
    if turn + 1 == len(job.schedule) or job.schedule[turn + 1].level != round_.level:
        state.histograms.pop(round_.level, None)
    contribution = _next_counts(job, state, window, counts, change.reshape(counts.shape), is_masked=history.is_masked)
    return RoundResult(MOVED if moves else STILL, contribution)


def _flood(job: Job, state: RegionState, round_: FloodRound, window: Window, seeds: NDArray[np.uint32]) -> RoundResult:
    """Do the sweeps of a round of a flood in a region."""
    table, labels = seeds.reshape(-1, round_.bins), _given(state.labels)
    if state.turn < 0:
        begin_flood(job.boundary_map, window, state.bins, labels, table)
    taken = flood_window(round_, job.boundary_map, job.lattice, window, state.bins, labels, table)
    state.turn += 1
    # Seeds stay as they are.
    state.counts = seeds if state.turn + 1 < len(job.schedule) else None
    return RoundResult(MOVED if taken else STILL, None)


def _take_counts(job: Job, state: RegionState, turn: int, window: Window) -> NDArray[np.uint32]:
    """Return the statistics of a window's cells, still without what its neighbours contributed last."""
    held, counts = job.exchange.window(state.number, state.turn + 1).cells, _given(state.counts)
    state.counts = None
    if held == window.cells:
        return counts
    return np.ascontiguousarray(counts[window.cells.relative_to(held.lo).slices])


def _enter_neighbours(
    job: Job, state: RegionState, turn: int, window: Window, counts: NDArray[np.uint32], history: History
) -> bool:
    """Write what the neighbours have published into the halos and the statistics; return whether a level begins."""
    is_first, is_refined = turn == 0, job.exchange.is_refined(turn)
    wanted = window.box
    if is_first:
        state.labels = seed_labels(window.grid.homes_of(window.box))
    elif is_refined:
        state.labels, wanted, parents = _blocks_of(job, state, turn)
    is_voxels = job.schedule[turn].weight is not None
    # All voxels are due in every round, but in a flood those without a label.
    if (is_first or is_refined or is_voxels) and not isinstance(job.schedule[turn], FloodRound):
        state.marks = new_window(window.box.shape, OPEN)
    neighbours = [] if is_first else job.exchange.neighbours(state.number, turn)
    has_marks = not is_voxels and not is_refined
    for last, piece in _pieces(job, state.number, history, turn - 1, neighbours):
        part = piece.get(CODES)
        if part and (part := part.crop(wanted)):
            lo = part.box.relative_to(wanted.lo).lo
            pack_box(part.values % OPEN_BIT, lo, _given(state.labels))
            if has_marks:
                pack_box(part.values // OPEN_BIT, lo, _given(state.marks))
        # A region that rested contributes nothing.
        if last == turn - 1 and (part := piece.get(COUNTS)) and (part := part.crop(window.cells)):
            counts[part.box.relative_to(window.cells.lo).slices] += part.values
    if is_refined:
        state.labels = refine_labels(_given(state.labels), parents)
    return is_first or is_refined


def _blocks_of(job: Job, state: RegionState, turn: int) -> tuple[NDArray[np.uint8], Box, AxisArrays]:
    """Return the labels of the blocks that the units of a round's window lie in, as far as they are the region's own.

    The other results are the box of these blocks, and per axis the index in it of each unit's block.
    """
    parents, before = job.exchange.parents(state.number, turn), job.exchange.window(state.number, turn - 1)
    box = box_of_parents(parents)
    labels = new_window(box.shape, NOTHING)
    pack_box(_unpacked(_given(state.labels), before.core, before), before.core.relative_to(box.lo).lo, labels)
    return labels, box, per_axis(p - p[0] for p in parents)


def _pieces(job: Job, reader: int, history: History, turn: int, numbers: list[int]) -> Iterator[tuple[int, Piece]]:
    """Yield what other regions published for a reader in the last round up to `turn` that they did, with that round.

    Raises `MessageDamaged` at the end if any is damaged.
    """
    damages: list[MessageDamaged] = []
    inside = [number for number in numbers if not history.is_outside(number)]
    turns = [history.last_turn(number, turn + 1) for number in inside]
    last = list(zip(inside, turns, strict=True))
    messages = [(turn_phase(job.schedule, t), number, history.trail(t, number)) for number, t in last]
    sizes = [sum(extract.nbytes for extract in job.exchange.published(number, reader, t)) for number, t in last]
    for t, piece in zip(turns, job.messages.read_pieces(messages, reader, sizes), strict=True):
        if isinstance(piece, MessageDamaged):
            damages.append(piece)
        elif piece is not None:
            yield t, piece
    if damages:
        raise MessageDamaged([task for damage in damages for task in damage.tasks], damages[0].reason) from damages[0]


def _values(job: Job, state: RegionState, level: int, box: Box) -> NDArray[Any]:
    """Return the values of a box of units as `dseeds.seeds.rounds.sweep_window` needs them."""
    grids = job.lattice.grids
    if level < len(grids) - 2:
        return state.histograms[level]
    voxels, held = grids[level].voxels_of(box), job.exchange.binned_voxels(state.number)
    if voxels == held:
        return state.bins
    return _packed(_bins_in(job, state, voxels))


def _next_counts(
    job: Job,
    state: RegionState,
    window: Window,
    counts: NDArray[np.uint32],
    change: NDArray[np.uint32],
    *,
    is_masked: bool,
) -> Part | None:
    """Prepare the statistics for the next round, and return what the region contributes to those of its neighbours."""
    turn = state.turn
    if turn + 1 == len(job.schedule):
        state.counts = None
        return None
    region, following = job.regions.box(state.number), job.schedule[turn + 1]
    rim = region.grow(1, within=job.lattice.cells)
    cells = job.exchange.window(state.number, turn + 1).cells
    if following.bins == job.schedule[turn].bins:
        counts += change
        state.counts = np.ascontiguousarray(counts[cells.relative_to(window.cells.lo).slices])
        return Part(rim.lo, change[rim.relative_to(window.cells.lo).slices])
    # Blocks have coarser bins than voxels, so these are counted anew.
    state.counts = _count_voxels(job, state, turn + 1, is_masked).reshape(*cells.shape, following.bins)
    return Part(rim.lo, state.counts[rim.relative_to(cells.lo).slices].copy())


def _count_voxels(job: Job, state: RegionState, turn: int, is_masked: bool) -> NDArray[np.uint32]:
    """Count the bins of a region's voxels in the cells of the next round's window, each with the label of its block."""
    window = job.exchange.window(state.number, turn)
    blocks, _, parents = _blocks_of(job, state, turn)
    labels, values = refine_labels(blocks, parents), _values(job, state, job.schedule[turn].level, window.box)
    if is_masked:
        hide_outside(job.schedule[turn].level, job.lattice, window.box, values, labels)
    return rounds.count_statistics(job.schedule[turn], job.lattice, window, values, labels)


def _codes(job: Job, state: RegionState, box: Box) -> Part:
    """Return the codes of a box of a region's units: their labels and, of blocks, their marks."""
    window = job.exchange.window(state.number, state.turn)
    codes = _unpacked(_given(state.labels), box, window)
    if job.schedule[state.turn].weight is None:
        codes |= OPEN_BIT * (_unpacked(_given(state.marks), box, window) & OPEN)
    return Part(box.lo, codes)


def _unpacked(units: NDArray[np.uint8], box: Box, window: Window) -> NDArray[np.uint8]:
    """Return a box of the units of a window."""
    out = np.empty(box.shape, np.uint8)
    unpack_box(units, box.relative_to(window.box.lo).lo, out)
    return out


def round_pieces(job: Job, state: RegionState, result: RoundResult, *, with_checkpoint: bool) -> dict[int, Piece]:
    """Return what a region publishes after a round: for each neighbour the codes and contributions that it needs."""
    exchange, turn = job.exchange, state.turn

    def cut(name: str, box: Box) -> Part | None:
        return _codes(job, state, box) if name == CODES else _given(result.contribution).crop(box)

    pieces = _cut_for_neighbours(job, state.number, turn, cut)
    if with_checkpoint:
        pieces[state.number] = {CODES: _codes(job, state, exchange.window(state.number, turn).core)}
        if state.counts is not None:
            pieces[state.number][COUNTS] = Part(exchange.window(state.number, turn + 1).cells.lo, state.counts)
    return pieces


def region_codes(job: Job, state: RegionState, box: Box, history: History) -> Part:
    """Return the codes after the last round in a box of voxels, those around the region from its neighbours."""
    codes = np.full(box.shape, NOTHING, np.uint8)
    turn = len(job.schedule) - 1
    window = job.exchange.window(state.number, turn)
    codes[window.core.relative_to(box.lo).slices] = _unpacked(_given(state.labels), window.core, window)
    if box != window.core:
        for _, piece in _pieces(job, state.number, history, turn, job.exchange.neighbours(state.number, turn + 1)):
            if (part := piece.get(CODES)) and (part := part.crop(box)):
                codes[part.box.relative_to(box.lo).slices] = part.values
    return Part(box.lo, codes)


def store_bins(job: Job, state: RegionState) -> None:
    """Store the bins and histograms of a state that will be dropped, unless the log has them already.

    To load them is much faster than to read the image, to quantise it, and to ask all neighbours for the halos again.
    """
    if not state.is_stored:
        held = {BINS: state.bins, **{histograms_name(level): values for level, values in state.histograms.items()}}
        piece = {name: Part((0, 0, 0), values) for name, values in held.items()}
        job.messages.publish(HELD, state.number, BINS, {state.number: piece})


def _load_bins(job: Job, number: int, from_turn: int) -> RegionState | None:
    """Return the state of a region that `store_bins` has stored, for a round; None if it cannot be loaded."""
    levels = job.exchange.histogram_levels(from_turn)
    # Where it is missing or damaged, the image is read again.
    with suppress(MessageDamaged):
        piece = job.messages.read(HELD, number, BINS, number) or {}
        if all(histograms_name(level) in piece for level in levels):
            bins = new_window(job.exchange.binned_voxels(number).shape, MASKED, channels=job.channels)
            bins[:] = piece[BINS].values
            histograms = {level: piece[histograms_name(level)].values for level in levels}
            return RegionState(number, bins, histograms, None, has_halo=True, is_stored=True)
    return None


def load_state(job: Job, number: int, turn: int, history: History, state: RegionState | None = None) -> RegionState:
    """Return the state of a region after a round: the one that is given, else from the last checkpoint and messages.

    Raises `MessageDamaged` if a message that is needed for this is damaged.
    """
    if state is None or state.turn != turn:
        state = _last_checkpoint(job, number, turn, history)
    for following in range(state.turn + 1, turn + 1):
        if history.outcome(following, number) in (MOVED, STILL):
            advance(job, state, following, _until(history, following))
    return state


def _until(history: History, turn: int) -> History:
    """Return what was known before a round."""
    return History(history.numbers, history.codes[: (turn + 1) * len(history.numbers)])


def _last_checkpoint(job: Job, number: int, turn: int, history: History) -> RegionState:
    """Return the last state of a region up to a round that can be read; at the worst, that before the first round."""
    while turn >= 0:
        piece = None
        if history.outcome(turn, number) in (MOVED, STILL):
            # What is damaged is passed over: an older checkpoint will do.
            with suppress(MessageDamaged):
                piece = job.messages.read(turn_phase(job.schedule, turn), number, history.trail(turn, number), number)
        if piece is not None:
            return _restore(job, number, turn, piece)
        turn -= 1
    state, _ = quantise_region(job, number)
    return _given(state)


def _restore(job: Job, number: int, turn: int, piece: Piece) -> RegionState:
    """Return the state that a checkpoint describes."""
    state = _load_bins(job, number, turn + 1) or _given(quantise_region(job, number, from_turn=turn + 1)[0])
    window, codes = job.exchange.window(number, turn), piece[CODES].values
    state.turn = turn
    state.counts = piece[COUNTS].values if COUNTS in piece else None
    lo = window.core.relative_to(window.box.lo).lo
    state.labels = new_window(window.box.shape, NOTHING)
    pack_box(codes % OPEN_BIT, lo, state.labels)
    if job.schedule[turn].weight is None:
        state.marks = new_window(window.box.shape, OPEN)
        pack_box(codes // OPEN_BIT, lo, state.marks)
    return state


def _given(value: _T | None) -> _T:
    """Return a value that cannot be None here."""
    assert value is not None
    return value
