"""The pipeline of rounds, without Dask: tasks are done in a random order, by workers that come and go."""

from contextlib import contextmanager
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dseeds.engine.history import ALL, MOVED, NOTHING_INSIDE, PART, RESTED, STILL
from dseeds.engine.messages import MessageLog
from dseeds.engine.phases import HELD, LABEL, QUANTISE
from dseeds.engine.pipeline import DISCARDED, Pipeline, balance_holders
from dseeds.engine.report import TaskResult
from dseeds.engine.run_state import ImageQuery
from dseeds.engine.stage_timer import StageTimer
from dseeds.engine.wavefront import first_needed, is_tall, layers_ahead, obsolete_turns
from dseeds.seeds.schedule import keeps_checkpoint
from tests.support.regions import job_in, replayed_state, rests


class Simulation:
    """Workers that do the tasks of a pipeline in a random order, with random outcomes."""

    def __init__(self, state, workers, chance, moving=0.3, inside=1.0, *, is_logged=False):
        self.state, self.job, self.chance, self.is_logged = state, state.job, chance, is_logged
        self.moving, self.inside = moving, inside
        self.places = dict(workers)
        self.flying = {}
        # The outcomes of the tasks that are done, by turn and region.
        self.outcomes = {}
        self.done = []
        totals = dict.fromkeys([phase.stage for phase in state.planned], 0)
        for phase in state.phases:
            totals[phase.stage] += len(self.job.regions) * (phase not in state.done)
        self.stages = StageTimer(totals)
        self.pipeline = Pipeline(state, self.stages, {})

    def turn(self, phase):
        return -1 if phase == QUANTISE else len(self.job.schedule) if phase == LABEL else phase.turn

    def submit(self, count=1000):
        """Let the workers take tasks as long as they have places."""
        free = self.places.copy()
        for worker in self.flying.values():
            if worker in free:
                free[worker] -= 1
        taken = self.pipeline.take(count, free)
        assert len(taken) <= count
        for task, worker in taken:
            free[worker] -= 1
            assert free[worker] >= 0
            assert task not in self.flying
            assert task not in self.done
            self.assert_ready(*task)
            self.flying[task] = worker
        return taken

    def assert_ready(self, phase, number):
        """What a task reads has been published, unless there was nothing to do."""
        turn, job = self.turn(phase), self.job
        for other in job.regions.within(number, job.exchange.reach(turn)) if turn >= 0 else ():
            assert self.is_settled(turn - 1, other), (phase, number, other)

    def is_settled(self, turn, number):
        """Whether a region has done a round, lies outside the mask, or rests, each by definition."""
        if (turn, number) in self.outcomes or self.outcomes.get((-1, number)) == NOTHING_INSIDE:
            return True
        return rests(self.job, turn, number, lambda t, n: self.outcomes.get((t, n)) == MOVED)

    def finish(self):
        """One of the tasks is done; if its worker is gone, by another."""
        tasks = sorted(self.flying, key=str)
        task = tasks[self.chance.integers(len(tasks))]
        worker = self.flying.pop(task)
        if worker not in self.places:
            worker = str(self.chance.choice(sorted(self.places)))
        phase, number = task
        outcome = self.outcome(phase)
        if self.is_logged and phase != LABEL:
            trail = self.state.trail(self.turn(phase) - 1, number) + outcome[0]
            self.job.messages.publish(phase, number, trail, {})
            obsolete = obsolete_turns(self.state.job.exchange, trail) if phase != QUANTISE else []
            self.job.messages.discard((self.pipeline.phase(u), number, trail[: u + 2]) for u in obsolete)
        elif self.is_logged:
            self.job.journal.mark(phase, number, outcome)
        self.outcomes[self.turn(phase), number] = outcome
        self.done.append(task)
        result = TaskResult(number, outcome, 0.0, 0, 0, 0)
        self.stages.count(phase.stage, result, 0.0)
        self.pipeline.finish(task, result, worker)

    def outcome(self, phase):
        if phase == LABEL:
            return "labelled"
        if phase == QUANTISE:
            if self.chance.random() > self.inside:
                return NOTHING_INSIDE
            return ALL if self.inside == 1 else PART
        return MOVED if self.chance.random() < self.moving else STILL

    def run(self, most=10**6):
        self.submit()
        while self.flying and len(self.done) < most:
            self.finish()
            self.submit()

    def assert_complete(self):
        """Every task was done once or was not needed, and the phases are closed."""
        job, turns = self.job, range(-1, len(self.job.schedule))
        assert len(set(self.done)) == len(self.done)
        assert all(self.is_settled(turn, number) for turn in turns for number in range(len(job.regions)))
        assert self.state.current == (LABEL if self.pipeline.has_labels else self.state.phases[len(turns)])
        for report in self.stages.reports():
            assert report.tasks + report.skipped == self.stages.totals[report.name]
        if self.pipeline.has_labels:
            assert {n for phase, n in self.done if phase == LABEL} == set(range(len(job.regions)))


class Log:
    """Messages without files: of which turn and region there are some."""

    def __init__(self, monkeypatch):
        self.held, self.most = {}, 0
        for name in ("publish", "discard", "remove", "trails"):
            monkeypatch.setattr(MessageLog, name, (lambda call: lambda _, *given: call(*given))(getattr(self, name)))

    def publish(self, phase, number, trail, _):
        self.held[phase.turn, number] = trail

    def discard(self, messages):
        for phase, number, trail in messages:
            if phase == HELD:
                continue
            assert self.held.pop((phase.turn, number), trail) == trail

    def remove(self, phase, kept=()):
        self.held = {key: trail for key, trail in self.held.items() if key[0] != phase.turn or key[1] in kept}

    def trails(self, phase):
        return {number: trail for (turn, number), trail in self.held.items() if turn == phase.turn}


@pytest.fixture
def log(monkeypatch):
    return Log(monkeypatch)


def needs(simulation, number, turn, lost=1):
    """Return the messages from which a task of a region is done if its state and its last checkpoints are lost."""
    job, rounds = simulation.job, simulation.job.schedule

    def swept(other, before):
        return [t for t in range(before) if (t, other) in simulation.outcomes]

    checkpoints = [t for t in range(turn) if keeps_checkpoint(rounds, t)]
    first = checkpoints[-1 - lost] if len(checkpoints) > lost else -1
    # If it rested then, that of the round before, which has a checkpoint for this reason.
    own = swept(number, first + 1)[-1:]
    needed = {(t, number) for t in own}
    # With the bins and the first statistics of its neighbours, all rounds after the checkpoint are done once more.
    needed |= {(-1, other) for other in job.regions.within(number, job.exchange.farthest)}
    for following in {*swept(number, turn), turn} - set(range(first + 1)) - {0, len(rounds)}:
        for other in job.regions.within(number, job.exchange.reach(following)):
            needed |= {(t, other) for t in swept(other, following)[-1:]}
    # Others may not have been published yet.
    return needed & simulation.outcomes.keys()


def assert_can_be_made_again(simulation, held, numbers):
    """Nothing has been removed that a region needs, or one of those around it to publish its last message again."""
    job, rounds = simulation.job, simulation.job.schedule
    for number in numbers:
        turns = [t for t in range(-1, len(rounds)) if (t, number) in simulation.outcomes]
        if not turns:
            continue
        is_labelled = (len(rounds), number) in simulation.outcomes
        if is_labelled and turns[-1] == len(rounds) - 1 and is_tall(job.exchange):
            # Its labels are made of its last message.
            assert (turns[-1], number) in held
            continue
        following = next((t for t in range(len(rounds)) if not simulation.is_settled(t, number)), len(rounds))
        missing = needs(simulation, number, following) - held.keys()
        assert not missing, (number, following, missing)
        if following in (0, len(rounds)):
            continue
        for other in job.regions.within(number, job.exchange.reach(following)):
            # Of one at rest, the message is older, and so is what it was made from.
            if (following - 1, other) in simulation.outcomes:
                missing = needs(simulation, other, following - 1, lost=0) - held.keys()
                assert not missing, (number, following, other, missing)


@contextmanager
def new_state(*case, query=None):
    with TemporaryDirectory() as folder:
        yield replayed_state(job_in(folder, *case), query=query or ImageQuery())


WORKERS = {"a": 2, "b": 3}
shapes = st.tuples(st.integers(4, 12), st.integers(4, 20), st.integers(30, 60))
cases = st.tuples(shapes, st.sampled_from([(4, 4, 4), (8, 8, 8), (3, 8, 5)]), st.sampled_from([(2, 2, 2), (4, 1, 3)]))
moving, seeds = st.sampled_from([0, 0.02, 0.3, 1]), st.integers(0, 2**32)


@settings(max_examples=12)
@given(cases, moving, seeds)
@example(((4, 4, 200), (4, 4, 4), (1, 1, 2)), 0.02, 0)
def test_every_task_is_done_once_its_inputs_are(case, share, seed):
    with new_state(*case) as state:
        simulation = Simulation(state, WORKERS, np.random.default_rng(seed), share)
        simulation.run()
        simulation.assert_complete()
        if share == 1:
            assert len(simulation.done) == len(state.job.regions) * (len(state.job.schedule) + 2)


def test_regions_rest_where_nothing_moves():
    with new_state((4, 4, 200), (4, 4, 4), (1, 1, 2)) as state:
        simulation = Simulation(state, WORKERS, np.random.default_rng(0), 0.01)
        simulation.run()
        skipped = sum(report.skipped for report in simulation.stages.reports())
        assert skipped > len(state.job.regions)
        assert skipped == sum(
            state.outcome(turn, number) == RESTED
            for turn in range(len(state.job.schedule))
            for number in range(len(state.job.regions))
        )


@settings(max_examples=8)
@given(cases, moving, seeds, st.sampled_from([0.1, 0.5, 0.9]))
def test_regions_outside_the_mask_have_nothing_to_do(case, share, seed, inside):
    with new_state(*case, query=ImageQuery(mask=False, may_be_masked=True)) as state:
        chance = np.random.default_rng(seed)
        simulation = Simulation(state, WORKERS, chance, share, inside)
        # One at least is inside.
        simulation.outcome = lambda phase, given=simulation.outcome: (
            PART if phase == QUANTISE and not simulation.done else given(phase)
        )
        simulation.run()
        simulation.assert_complete()
        outside = {n for (turn, n), outcome in simulation.outcomes.items() if outcome == NOTHING_INSIDE}
        assert {n for phase, n in simulation.done if phase != QUANTISE}.isdisjoint(outside)
        assert outside == set(np.flatnonzero(state.job.outside_regions).tolist())


@settings(max_examples=12)
@given(cases, moving, seeds)
def test_workers_vanish_and_come(case, share, seed):
    with new_state(*case) as state:
        chance = np.random.default_rng(seed)
        simulation = Simulation(state, WORKERS, chance, share)
        simulation.submit()
        while simulation.flying:
            if chance.random() < 0.1:
                simulation.places[f"w{len(simulation.done)}"] = int(chance.integers(1, 3))
            if chance.random() < 0.1 and len(simulation.places) > 1:
                del simulation.places[str(chance.choice(sorted(simulation.places)))]
            simulation.finish()
            simulation.submit()
        simulation.assert_complete()


def test_workers_keep_their_regions():
    """A region's next task is done where its state is."""
    with new_state((8, 16, 64), (4, 4, 4), (2, 2, 2)) as state:
        simulation = Simulation(state, WORKERS, np.random.default_rng(0), 1)
        holders = {}
        simulation.submit()
        while simulation.flying:
            for (_, number), worker in simulation.flying.items():
                assert holders.setdefault(number, worker) == worker
            simulation.finish()
            simulation.submit()
        assert set(holders.values()) == set(WORKERS)


@settings(max_examples=6)
@given(cases, moving, seeds)
def test_a_run_that_was_interrupted_is_resumed(case, share, seed):
    """Messages and marks are all that is left of it: nothing that is done is done again."""
    with new_state(*case) as state:
        chance = np.random.default_rng(seed)
        first = Simulation(state, WORKERS, chance, share, is_logged=True)
        first.run(most=int(chance.integers(1, 15 * len(state.job.regions))))
        again = Simulation(replayed_state(state.job), WORKERS, chance, share)
        again.outcomes = dict(first.outcomes)
        # Labels are checked.
        again.done = [task for task in first.done if task[0] != LABEL]
        assert all(again.pipeline.is_marked(task) for task in first.done if task[0] == LABEL)
        again.run()
        again.assert_complete()


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases, moving, seeds)
@example(((4, 4, 200), (4, 4, 4), (1, 1, 2)), 0.02, 0)
@example(((640, 8, 8), (4, 4, 4), (2, 2, 2)), 1, 0)
@example(((640, 8, 8), (4, 4, 4), (2, 2, 2)), 0.2, 0)
@example(((4, 8, 64), (2, 2, 2), (2, 2, 2)), 0.1, 0)
def test_what_may_be_needed_is_kept(log, case, share, seed):
    log.held.clear()
    with new_state(*case) as state:
        chance = np.random.default_rng(seed)
        simulation = Simulation(state, WORKERS, chance, share, is_logged=True)
        simulation.submit()
        while simulation.flying:
            simulation.finish()
            simulation.submit()
            if chance.random() < 0.05:
                assert_can_be_made_again(simulation, log.held, chance.choice(len(state.job.regions), 4).tolist())
        simulation.assert_complete()
        assert_can_be_made_again(simulation, log.held, range(len(state.job.regions)))


@pytest.mark.parametrize("workers", [{"a": 2}, {"a": 2, "b": 2}, dict.fromkeys("abcd", 2)])
@pytest.mark.parametrize("across", [1, 2])
def test_a_tall_volume_is_done_in_a_wave(log, workers, across):
    """However tall it is, only so many layers of regions are in work that a region can be finished.

    Those behind them have only their last messages.
    """
    layers, spread, older = 80, 0, 0
    with new_state((layers * 8, across * 8, 8), (4, 4, 4), (2, 2, 2)) as state:
        job = state.job
        assert job.regions.counts == (layers, across, 1)
        assert is_tall(job.exchange)
        simulation = Simulation(state, workers, np.random.default_rng(0), 1, is_logged=True)
        begun, labelled = set(), set()
        simulation.submit()
        while simulation.flying:
            begun |= {number for _, number in simulation.flying}
            simulation.finish()
            labelled |= {number for phase, number in simulation.done[-1:] if phase == LABEL}
            in_work = [job.regions.index(number)[0] for number in begun - labelled]
            spread = max(spread, max(in_work, default=0) - min(in_work, default=0) + 1)
            if len(simulation.done) % 50 == 0:
                older = max(older, sum(turn < len(job.schedule) - 1 for turn, _ in log.held))
            simulation.submit()
        simulation.assert_complete()
        needed = sum(job.exchange.reach(turn) for turn in range(len(job.schedule)))
        assert needed < spread <= needed + -(-4 * sum(workers.values()) // across) + 1 < layers
        assert spread <= layers_ahead(job.exchange, sum(workers.values())) + 1
        kept = max(turn - first_needed(job.exchange, turn - 1) + 1 for turn in range(len(job.schedule)))
        assert older <= (spread + 2 * job.exchange.farthest) * across * (1 + kept) + DISCARDED
        assert older < len(job.regions) * len(job.schedule) / 2


def test_a_worker_begins_with_no_more_than_its_share_of_the_images():
    holders = dict.fromkeys(range(7), "fast") | {7: "slow"}
    balance_holders(holders, {"fast": 1, "slow": 1})
    assert holders == dict.fromkeys(range(4), "fast") | {7: "slow"}
    balance_holders(holders, {"slow": 1})
    assert holders == {7: "slow"}
    balance_holders(holders, {})
    assert holders == {}
