"""The state of a run: a replay of its records gives the same state, and scratch holds what is needed and no more."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Window
from dseeds.engine.job import Job
from dseeds.engine.journal import Journal
from dseeds.engine.phases import LABEL, QUANTISE, Phase
from dseeds.engine.run_state import ImageQuery, RunState
from dseeds.engine.scratch import bins_name, codes_name, core_name, digits_name, shells_name, statistics_name
from dseeds.engine.tasks import perform_task
from dseeds.io import ArraySource, Image
from dseeds.seeds.order_statistics import NoFiniteValues, WindowSearch
from dseeds.seeds.schedule import may_rest
from dseeds.storage.label_group import LabelGroup
from dseeds.storage.location import open_location
from tests.support.intensities import intensity_window

WORDS = {"quantise": "all", "label": "labelled", "merge": "merged", "window": "counted"}
WINDOW = (0.0, 1.0)


def job_in(folder, shape, step=(4, 4, 4), region=(2, 2, 2), image=None):
    return Job(
        Image((ArraySource(np.broadcast_to(np.uint16(1), shape) if image is None else image),)),
        shape,
        step,
        region,
        f"{folder}/scratch",
        Journal(str(folder), "0123"),
        (LabelGroup(open_location(f"{folder}/labels")),),
    )


def replayed_state(job, window=WINDOW):
    run_state = RunState(job, WindowSearch(job.source.dtypes, [window]), ImageQuery())
    run_state.replay()
    return run_state


@contextmanager
def new_state(*arguments, **options):
    with TemporaryDirectory() as folder:
        yield replayed_state(job_in(folder, *arguments, **options))


def summary(run_state):
    return (
        run_state.done,
        run_state.phases,
        run_state.job.windows,
        run_state.search,
        [flags.tolist() for flags in run_state._swept],
        [flags.tolist() for flags in run_state._moved],
    )


def walk(run_state, chance, moving):
    """Go through all phases as if tasks were done, with random regions that move; yield at each before it is closed."""
    while (phase := run_state.current) is not None:
        yield phase
        if phase.stage.startswith("sweep"):
            marks = {n: "moved" if chance.random() < moving else "still" for n in run_state.regions(phase)}
        else:
            marks = dict.fromkeys(run_state.regions(phase), WORDS[phase.stage])
        run_state.close(phase, marks)


shapes = st.tuples(st.integers(4, 6), st.integers(4, 10), st.integers(30, 70))
cuts = st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 1, 3), (9, 9, 1)])
steps = st.sampled_from([(4, 4, 4), (8, 8, 8), (3, 8, 5)])
cases = st.tuples(shapes, steps, cuts)
moving = st.sampled_from([0, 0.02, 0.3, 1])


@settings(max_examples=8)
@given(cases, moving, st.integers(0, 2**32))
def test_replayed_it_is_the_same(case, share, seed):
    with new_state(*case) as run_state:
        for phase in walk(run_state, np.random.default_rng(seed), share):
            again = replayed_state(run_state.job)
            assert summary(again) == summary(run_state)
            assert again.current == phase
            assert again.regions(phase) == run_state.regions(phase)
        assert replayed_state(run_state.job).current is None


@settings(max_examples=8)
@given(cases, moving, st.integers(0, 2**32))
def test_who_rests_and_what_it_wrote_last(case, share, seed):
    """By definition: a region works unless nothing within reach has moved in the last two rounds."""
    with new_state(*case) as run_state:
        job, moved, last = run_state.job, [], {}
        for phase in walk(run_state, np.random.default_rng(seed), share):
            turn = len(job.schedule) if phase == LABEL else phase.turn
            if phase.stage == "merge" or phase == LABEL:
                moved.append(run_state._moved[-1])
                last.update(dict.fromkeys(np.flatnonzero(run_state._swept[-1]).tolist(), turn - 1))
            if phase.stage.startswith("sweep"):
                assert run_state.regions(phase) == [n for n in range(len(job.regions)) if works(job, turn, n, moved)]
            if phase != QUANTISE:
                for number in {0, len(job.regions) // 2, len(job.regions) - 1}:
                    near = within(job, number, turn) if turn else []
                    assert run_state.task_input(phase, number) == {n: last[n] for n in near if last[n] != turn - 1}


def works(job, turn, number, moved):
    if not may_rest(job.schedule, turn):
        return True
    return any(moved[turn - 1][n] or moved[turn - 2][n] for n in within(job, number, turn))


def within(job, number, turn):
    """Regions that are as near as anything matters, counted in regions along the axis where that is most."""
    round_ = job.schedule[min(turn, len(job.schedule) - 1)]
    reach = 0
    for parts, extent in zip(job.lattice.grids[round_.level].parts, job.region, strict=True):
        # The window reaches so many cells further than the region; the statistics around it follow units two away.
        cells = -(-round_.halo // parts) + 2
        reach = max(reach, -(-cells // extent))
    indices = np.array([job.regions.index(n) for n in range(len(job.regions))])
    return np.flatnonzero(abs(indices - indices[number]).max(axis=1) <= reach).tolist()


@settings(max_examples=8)
@given(cases, moving, st.integers(0, 2**32))
def test_scratch_holds_what_is_needed_and_no_more(case, share, seed):
    """What the phase to come reads, and what doing the last one again would read; and that does not grow."""
    with new_state(*case) as run_state:
        job, before = run_state.job, RunState(run_state.job, run_state.search)
        for phase in walk(run_state, np.random.default_rng(seed), share):
            held = {(path.parts[-3], int(path.name)) for path in Path(job.scratch).glob("*/c/*")}
            for followed, reader in ((run_state, phase), *((before, last) for last in run_state.done[-1:])):
                for number in followed.regions(reader):
                    missing = read_by(followed, reader, number) - held
                    assert not missing, (reader, number)
            kept = {name for name, _ in held}
            assert sum(name.startswith("statistics") for name in kept) <= 2
            assert sum(name.startswith(("core", "shells")) for name in kept) <= 4
            if phase.stage.startswith("sweep") and phase.turn > 1:
                # Of rounds before the last two, what regions that rest go on from: of one level.
                level = job.schedule[phase.turn - 2].level
                allowed = [n for n, round_ in enumerate(job.schedule) if round_.level == level and share < 1]
                older = {codes_name(turn) for turn in range(phase.turn - 2)}
                assert older & kept <= {codes_name(turn) for turn in allowed}
            for number in run_state.regions(phase):
                for name in written(job, phase):
                    path = Path(job.scratch) / name / "c" / str(number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
            before = replayed_state(job)


def written(job, phase):
    """The arrays of whose values a task writes its region's part."""
    turn = phase.turn
    if phase == QUANTISE:
        return [bins_name(0), statistics_name(0)]
    if phase.stage == "merge":
        return [statistics_name(turn)]
    if phase.stage.startswith("sweep"):
        return [
            codes_name(turn),
            *([core_name(turn + 1), shells_name(turn + 1)] if turn + 1 < len(job.schedule) else []),
        ]
    return []


def read_by(run_state, phase, number):
    """Which regions' parts of which arrays a task reads."""
    job, turn, rounds = run_state.job, phase.turn, run_state.job.schedule
    if phase == QUANTISE:
        return set()
    rested = run_state.task_input(phase, number)
    if phase == LABEL:
        return {(codes_name(rested.get(number, len(rounds) - 1)), number)}
    if phase.stage == "merge":
        found = {(shells_name(turn), n) for n in job.regions.within(number, 1) if n not in rested}
        if number not in rested:
            found.add((core_name(turn), number))
        if rounds[turn - 1].bins == rounds[turn].bins:
            found.add((statistics_name(turn - 1), number))
        return found
    grid = job.lattice.grids[rounds[turn].level]
    window = Window.around(job.lattice, grid, job.regions.box(number), rounds[turn].halo)
    near = job.regions.touching(grid.cells_of(window.box))
    found = {(bins_name(0), n) for n in near} | {(statistics_name(turn), n) for n in job.regions.touching(window.cells)}
    return found | ({(codes_name(rested.get(n, turn - 1)), n) for n in near} if turn else set())


# The window, and images without one.


def found_by(image, folder, region=(2, 2, 2)):
    """The run_state of a run whose window has been found, all its tasks done."""
    job = job_in(folder, image.shape, region=region, image=image)
    run_state = replayed_state(job, None)
    job.store.create(run_state.layouts)
    while run_state.current.stage == "window":
        phase = run_state.current
        assert summary(replayed_state(job, None)) == summary(run_state)
        for number in run_state.regions(phase):
            perform_task(run_state.job, phase, number, run_state.task_input(phase, number))
        run_state.close(phase, job.journal.marks(phase))
    return run_state


@settings(max_examples=8)
@given(
    st.sampled_from(["u1", "i2", "<f4", "f8", ">u8"]),
    st.sampled_from([(8, 8, 8), (5, 9, 70)]),
    st.integers(0, 2**32),
)
def test_the_window_is_that_of_the_whole(dtype, shape, seed):
    image = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    with TemporaryDirectory() as folder:
        run_state = found_by(image, folder)
        assert run_state.job.windows == (intensity_window(image),)
        assert run_state.phases == run_state.planned
        assert replayed_state(run_state.job, None).job.windows == run_state.job.windows
        # Counts are wanted no more when all is quantised.
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), "all"))
        assert list(Path(folder, "scratch").glob("digits-*/c")) == []
        assert Path(folder, "scratch", digits_name(0), "zarr.json").exists()


def test_a_constant_image_has_no_rounds():
    with TemporaryDirectory() as folder:
        run_state = found_by(np.full((8, 8, 8), 3, np.uint8), folder)
        assert run_state.phases == [Phase("window"), QUANTISE, LABEL]
        assert set(run_state.phases) < set(run_state.planned)
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), "all"))
        assert run_state.current == LABEL
        assert run_state.task_input(LABEL, 0) == {}


def test_nothing_finite_is_noticed():
    with TemporaryDirectory() as folder, pytest.raises(NoFiniteValues):
        found_by(np.full((8, 8, 8), np.nan), folder)
    with new_state((8, 8, 8)) as run_state, pytest.raises(NoFiniteValues):
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), "nothing"))


def test_many_regions_in_a_record():
    """A bit for each, packed."""
    with new_state((4, 400, 400), region=(1, 1, 1)) as run_state:
        chance = np.random.default_rng(0)
        numbers = sorted(chance.choice(10_000, 300, replace=False).tolist())
        text = run_state._pack(numbers)
        assert np.flatnonzero(run_state._unpack(text)).tolist() == numbers
        assert len(text) < 10_000 // 8 * 4 // 3
