"""The state of a run: a replay of its records gives the same state, and scratch holds what is needed and no more."""

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dseeds.engine.history import ALL, MOVED, NOTHING_INSIDE, PART, RESTED, STILL
from dseeds.engine.messages import Part
from dseeds.engine.phases import LABEL, QUANTISE, Phase, turn_phase
from dseeds.engine.run_state import ImageQuery
from dseeds.engine.scratch import digits_name
from dseeds.engine.tasks import perform_task
from dseeds.seeds.order_statistics import NoFiniteValues
from dseeds.seeds.schedule import keeps_checkpoint
from tests.support.intensities import intensity_window
from tests.support.regions import job_in, replayed_state, rests, within

WORDS = {"quantise": ALL, "label": "labelled", "window": "counted"}


@contextmanager
def new_state(*arguments, query=None, **options):
    with TemporaryDirectory() as folder:
        yield replayed_state(job_in(folder, *arguments, **options), query=query)


def summary(run_state):
    turns, regions = range(-1, len(run_state.job.schedule)), range(len(run_state.job.regions))
    return (
        run_state.done,
        run_state.phases,
        run_state.job.windows,
        run_state.job.masked,
        run_state.search,
        [[run_state.outcome(turn, number) for number in regions] for turn in turns],
    )


def walk(run_state, chance, moving, inside=1.0):
    """Go through all phases as if tasks were done, with random regions that move; yield at each before it is closed."""
    while (phase := run_state.current) is not None:
        yield phase
        marks = dict.fromkeys(run_state.regions(phase), WORDS.get(phase.stage))
        if phase.is_round:
            marks = {n: MOVED if chance.random() < moving else STILL for n in marks}
        elif phase == QUANTISE and inside < 1:
            marks = {n: PART if n == 0 or chance.random() < inside else NOTHING_INSIDE for n in marks}
        run_state.close(phase, marks)
        if phase.stage == "sweep-voxels" and run_state.query.may_be_masked and run_state.current.stage == "parts":
            # What comes then needs codes.
            return


shapes = st.tuples(st.integers(4, 6), st.integers(4, 10), st.integers(30, 70))
cuts = st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 1, 3), (9, 9, 1)])
steps = st.sampled_from([(4, 4, 4), (8, 8, 8), (3, 8, 5)])
cases = st.tuples(shapes, steps, cuts)
moving = st.sampled_from([0, 0.02, 0.3, 1])
masked = st.sampled_from([1, 0.5])
LONG = ((4, 4, 160), (4, 4, 4), (1, 1, 1))


def query_of(inside):
    return ImageQuery(may_be_masked=inside < 1)


@settings(max_examples=8)
@given(cases, moving, masked, st.integers(0, 2**32))
@example(LONG, 0.02, 1, 0)
def test_replayed_it_is_the_same(case, share, inside, seed):
    with new_state(*case, query=query_of(inside)) as run_state:
        for phase in walk(run_state, np.random.default_rng(seed), share, inside):
            again = replayed_state(run_state.job, query=run_state.query)
            assert summary(again) == summary(run_state)
            assert again.current == phase
            assert again.regions(phase) == run_state.regions(phase)


@settings(max_examples=8)
@given(cases, moving, st.integers(0, 2**32))
@example(LONG, 0.02, 0)
def test_who_rests_and_what_it_published_last(case, share, seed):
    """By definition: a region works unless nothing within reach has moved in the last two rounds."""
    with new_state(*case) as run_state:
        job, last, rounds = run_state.job, {}, len(run_state.job.schedule)
        numbers = range(len(job.regions))
        for phase in walk(run_state, np.random.default_rng(seed), share):
            turn = rounds if phase == LABEL else phase.turn
            if phase.is_round:
                resting = {n for n in numbers if rests(job, turn, n, lambda t, n: run_state.outcome(t, n) == MOVED)}
                assert run_state.regions(phase) == [n for n in numbers if n not in resting]
                assert {n for n in numbers if run_state.rests(turn, n)} == resting
            if phase != QUANTISE:
                for number in {0, len(numbers) // 2, len(numbers) - 1}:
                    history = run_state.task_input(phase, number).history
                    assert history.turns == turn
                    assert {n: history.last_turn(n) for n in history.numbers if last.get(n, -1) != -1} == {
                        n: last[n] for n in history.numbers if n in last
                    }
                    # All that the task may read of.
                    assert set(within(job, number, turn)) <= set(history.numbers)
            if phase.is_round:
                last |= dict.fromkeys(run_state.regions(phase), turn)


@settings(max_examples=8)
@given(cases, moving, masked, st.integers(0, 2**32))
@example(LONG, 0.02, 1, 0)
@example(LONG, 0.3, 0.5, 1)
def test_messages_are_kept_as_long_as_they_are_needed_and_no_longer(case, share, inside, seed):
    """Those since the last checkpoint but one, the last ones of regions that rest, and those of quantising."""
    with new_state(*case, query=query_of(inside)) as run_state:
        job = run_state.job
        published, before = set(), None
        for phase in walk(run_state, np.random.default_rng(seed), share, inside):
            job = run_state.job
            held = {(path.parent.name, int(path.name.partition("-")[0])) for path in messages_in(job)}
            if before is not None and (before == QUANTISE or before.is_round):
                assert held == needed(run_state, published, before.turn if before.is_round else -1)
            if not (phase == QUANTISE or phase.is_round):
                break
            for number in run_state.regions(phase):
                trail = run_state.trail(phase.turn - 1, number) + ("a" if phase == QUANTISE else "s")
                job.messages.publish(phase, number, trail, {})
                published.add((phase.turn, number))
            before = phase


def messages_in(job):
    return [path for path in Path(job.scratch, "messages").glob("*/*") if not path.name.startswith(".")]


def needed(run_state, published, done):
    """By definition, those from which all states can be made again, from each of the two last checkpoints."""
    job, rounds = run_state.job, run_state.job.schedule
    checkpoints = [turn for turn in range(done + 1) if keeps_checkpoint(rounds, turn)]
    first = checkpoints[-2] if len(checkpoints) > 1 else 0
    kept = {(turn, number) for turn, number in published if turn < 0 or turn >= first}
    for number in range(len(job.regions)):
        turns = [turn for turn, n in published if n == number and 0 <= turn <= first]
        if turns and not job.is_outside(number):
            kept.add((max(turns), number))
    return {(str(turn_phase(rounds, turn)), number) for turn, number in kept}


@settings(max_examples=20)
@given(st.lists(st.sampled_from([MOVED, STILL, RESTED]), min_size=0, max_size=8), st.integers(1, 5), st.data())
def test_histories_say_what_was_noted(outcomes, regions, data):
    """A history travels packed, with the outcomes of the regions around."""
    with new_state((4, 4, 4 * regions), region=(1, 1, 1)) as run_state:
        noted = {(-1, number): data.draw(st.sampled_from([ALL, PART, NOTHING_INSIDE])) for number in range(regions)}
        for turn, _ in enumerate(outcomes):
            for number in range(regions):
                noted[turn, number] = data.draw(st.sampled_from(outcomes))
        for (turn, number), outcome in noted.items():
            run_state.note(turn_phase(run_state.job.schedule, turn), {number: outcome})
        phase = turn_phase(run_state.job.schedule, len(outcomes))
        history = run_state.task_input(phase, 0).history
        assert history.turns == len(outcomes)
        for number in history.numbers:
            said = [history.outcome(turn, number) for turn in range(-1, len(outcomes))]
            assert said == [noted[turn, number] for turn in range(-1, len(outcomes))]
            swept = [turn for turn in range(len(outcomes)) if noted[turn, number] != RESTED]
            assert history.last_turn(number) == max(swept, default=-1)
            assert history.is_outside(number) == (noted[-1, number] == NOTHING_INSIDE)
        assert history.is_masked == any(noted[-1, number] != ALL for number in history.numbers)


def test_tasks_that_have_published_are_marked():
    """Messages are marks, so that a run that was interrupted is resumed from a listing."""
    with new_state((8, 8, 40)) as run_state:
        job, phase = run_state.job, turn_phase(run_state.job.schedule, 0)
        job.messages.publish(phase, 1, "am", {0: {"codes": Part((0, 0, 0), np.zeros((1, 2, 3), np.uint8))}})
        job.messages.publish(phase, 2, "as", {})
        assert run_state.marks(phase) == {1: MOVED, 2: STILL}
        assert run_state.are_done(0, [1, 2])
        assert not run_state.are_done(0, [0, 1])


# The window, and images without one.


def found_by(image, folder, region=(2, 2, 2)):
    """The run_state of a run whose window has been found, all its tasks done."""
    job = job_in(folder, image.shape, region=region, image=image)
    run_state = replayed_state(job, None)
    job.store.create(run_state.layouts)
    while run_state.current.is_search:
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
        assert run_state.phases == [phase for phase in run_state.planned if phase.stage != "contrast"]
        assert replayed_state(run_state.job, None).job.windows == run_state.job.windows
        # Counts are wanted no more when all is quantised.
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), ALL))
        assert list(Path(folder, "scratch").glob("digits-*/c")) == []
        assert Path(folder, "scratch", digits_name(0), "zarr.json").exists()


@pytest.mark.parametrize(("dtype", "passes"), [("u2", 0), ("i4", 2), ("f8", 4)])
def test_further_passes_where_both_percentiles_are_one_value(dtype, passes):
    image = np.full((8, 16, 16), 7, dtype)
    image[2, 3, 4:7] = 9, 11, 120
    with TemporaryDirectory() as folder:
        run_state = found_by(image, folder)
        assert run_state.job.windows == (intensity_window(image),)
        assert sum(phase.stage == "contrast" for phase in run_state.phases) == passes
        assert run_state.possible == run_state.planned == run_state.phases
        assert replayed_state(run_state.job, None).job.windows == run_state.job.windows


def test_a_constant_image_has_no_rounds():
    with TemporaryDirectory() as folder:
        run_state = found_by(np.full((8, 8, 8), 3, np.uint8), folder)
        assert run_state.phases == [Phase("window"), QUANTISE, LABEL]
        assert set(run_state.phases) < set(run_state.planned)
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), ALL))
        assert run_state.current == LABEL
        assert run_state.task_input(LABEL, 0).history.turns == 0


def test_nothing_finite_is_noticed():
    with TemporaryDirectory() as folder, pytest.raises(NoFiniteValues):
        found_by(np.full((8, 8, 8), np.nan), folder)
    with new_state((8, 8, 8)) as run_state, pytest.raises(NoFiniteValues):
        run_state.close(QUANTISE, dict.fromkeys(run_state.regions(QUANTISE), NOTHING_INSIDE))


def test_many_regions_in_a_record():
    """A bit for each, packed."""
    with new_state((4, 400, 400), region=(1, 1, 1)) as run_state:
        chance = np.random.default_rng(0)
        numbers = sorted(chance.choice(10_000, 300, replace=False).tolist())
        text = run_state._pack(numbers)
        assert np.flatnonzero(run_state._unpack(text)).tolist() == numbers
        assert len(text) < 10_000 // 8 * 4 // 3
