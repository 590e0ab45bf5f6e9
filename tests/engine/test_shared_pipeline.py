"""Jobs that share a pipeline, without processes: each knows only what it did itself and what others have published."""

from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dseeds.engine import batch
from dseeds.engine.history import ALL, MOVED, STILL
from dseeds.engine.job_array import Share
from dseeds.engine.phases import LABEL, QUANTISE
from dseeds.engine.pipeline import Pipeline
from dseeds.engine.stage_timer import StageTimer
from tests.support.regions import job_in, replayed_state, rests


class Array:
    """What has become of all regions, whichever job did it."""

    def __init__(self, job, count, share, seed):
        self.job, self.share, self.seed = replayed_state(job).job, share, seed
        self.outcomes, self.done = {}, []
        self.jobs = [JobOfArray(self, Share(index, count)) for index in range(count)]

    def outcome(self, turn, number):
        """The same whoever does it."""
        if turn < 0:
            return ALL
        return MOVED if np.random.default_rng([self.seed, turn, number]).random() < self.share else STILL

    def is_settled(self, turn, number):
        if (turn, number) in self.outcomes:
            return True
        return rests(self.job, turn, number, lambda t, n: self.outcomes.get((t, n)) == MOVED)

    def run(self, chance, jobs, most=10**6):
        """Let jobs work and look around in any order, until none can go on."""
        idle = set()
        while len(idle) < len(jobs) and len(self.done) < most:
            job = jobs[chance.integers(len(jobs))]
            if (chance.random() < 0.8 and job.work()) or job.look():
                idle.clear()
            elif not job.work():
                idle.add(job)
            else:
                idle.clear()

    def assert_complete(self):
        numbers = range(len(self.job.regions))
        turns = range(-1, len(self.job.schedule))
        assert all(self.is_settled(turn, number) for turn in turns for number in numbers)
        assert {number for phase, number in self.done if phase == LABEL} == set(numbers)


class JobOfArray:
    def __init__(self, array, share):
        self.array, self.share = array, share
        self.state = replayed_state(array.job)
        self.waiting = batch._Waiting(share, float("inf"), set())
        self.listings = 0
        listed = self.state.take_messages

        def take_messages():
            self.listings += 1
            listed()

        self.state.take_messages = take_messages
        self.pipeline = Pipeline(
            self.state,
            StageTimer({}),
            holders={},
            share=share.of(range(len(array.job.regions))),
            publish_rest=partial(batch._publish_rest, self.state),
        )

    def work(self):
        """Do the next task, and return whether there was one."""
        task = batch._take_task(self.pipeline, self.waiting)
        if task is None:
            return False
        phase, number = task
        job, array = self.state.job, self.array
        turn = len(job.schedule) if phase == LABEL else phase.turn
        for other in job.regions.within(number, job.exchange.reach(turn)) if turn >= 0 else ():
            assert array.is_settled(turn - 1, other), (phase, number, other)
        outcome = "labelled" if phase == LABEL else array.outcome(turn, number)
        if phase == LABEL:
            job.journal.mark(phase, number, outcome)
        else:
            job.messages.publish(phase, number, self.state.trail(turn - 1, number) + outcome[0], {})
        array.outcomes[turn, number] = outcome
        array.done.append(task)
        self.pipeline.finish(task, batch.TaskResult(number, outcome, 0.0, 0, 0, 0), batch.SELF)
        return True

    def look(self):
        return batch._look_around(self.state, self.pipeline, self.waiting)


@contextmanager
def new_job(*case):
    with TemporaryDirectory() as folder:
        yield job_in(folder, *case)


shapes = st.tuples(st.integers(4, 12), st.integers(4, 20), st.integers(30, 60))
cases = st.tuples(shapes, st.sampled_from([(4, 4, 4), (8, 8, 8), (3, 8, 5)]), st.sampled_from([(2, 2, 2), (4, 1, 3)]))
moving, seeds = st.sampled_from([0.02, 0.3, 1]), st.integers(0, 2**32)
LONG = ((4, 4, 120), (4, 4, 4), (1, 1, 2))


@settings(max_examples=5)
@given(cases, st.integers(1, 5), moving, seeds)
@example(LONG, 3, 0.02, 0)
def test_jobs_wait_for_their_neighbours(case, count, share, seed):
    """Each does its regions, each once, when what it needs is there; nothing is listed while it has work."""
    with new_job(*case) as job:
        array = Array(job, count, share, seed)
        array.run(np.random.default_rng(seed), array.jobs)
        array.assert_complete()
        assert len(set(array.done)) == len(array.done)
        for done in array.jobs:
            assert done.pipeline.is_done
        for working in array.jobs[: len(job.regions)]:
            assert working.listings > 1 or count == 1


@settings(max_examples=4)
@given(cases, st.integers(2, 4), moving, seeds)
@example(LONG, 3, 0.02, 0)
def test_others_take_over_the_regions_of_a_job_that_is_gone(case, count, share, seed):
    with new_job(*case) as job:
        chance = np.random.default_rng(seed)
        array = Array(job, count, share, seed)
        array.run(chance, array.jobs, most=int(chance.integers(10 * len(job.regions))))
        gone, *left = array.jobs
        array.run(chance, left)
        for adopting in left:
            adopting.pipeline.observe_all()
            if not adopting.pipeline.is_done:
                stalled = list(adopting.pipeline.stalled())
                assert stalled
                assert {gone.share.owner(number) for number in stalled} == {gone.share.index}
            adopting.pipeline.adopt(gone.share.of(range(len(job.regions))))
        array.run(chance, left)
        array.assert_complete()


@settings(max_examples=4)
@given(cases, st.integers(1, 3), st.integers(1, 4), moving, seeds)
def test_an_array_of_another_number_of_jobs_goes_on(case, before, count, share, seed):
    """And does nothing again, except what was under way."""
    with new_job(*case) as job:
        chance = np.random.default_rng(seed)
        first = Array(job, before, share, seed)
        first.run(chance, first.jobs, most=int(chance.integers(15 * len(job.regions))))
        second = Array(job, count, share, seed)
        second.outcomes, second.done = dict(first.outcomes), list(first.done)
        second.run(chance, second.jobs)
        second.assert_complete()
        assert len(set(second.done)) == len(second.done)


def test_a_job_that_does_not_come_is_named(capsys, monkeypatch):
    """Only one of whose regions nothing has been heard for long, not those that wait for it themselves."""
    now = 0.0
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: now))
    waiting = batch._Waiting(Share(0, 4), 10.0, set())
    waiting.begin()
    now = 6.0
    waiting.hear([1, 5])
    phases = {2: QUANTISE, 5: QUANTISE, 6: QUANTISE}
    now = 9.0
    assert waiting.give_up(phases) == set()
    now = 12.0
    assert waiting.give_up({2: QUANTISE, 5: QUANTISE}) == {2}
    now = 16.5
    assert waiting.give_up(phases) == {1}
    assert waiting.give_up(phases) == set()
    assert waiting.absent == {1, 2}
    assert capsys.readouterr().err.splitlines() == [
        f"Job {job} of 4 has not done quantise of region {region} for 10 s: this job takes over its regions."
        for job, region in ((2, 2), (1, 5))
    ]


def test_the_wait_grows(monkeypatch):
    times, pauses = iter([0.0, 0.0, 5.0, 1000.0]), []
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=pauses.append))
    waiting = batch._Waiting(Share(0, 1), 10.0, set())
    waiting.begin()
    for _ in range(3):
        waiting.pause()
    assert pauses == [batch.POLL_SECONDS[0], 0.5, batch.POLL_SECONDS[1]]
