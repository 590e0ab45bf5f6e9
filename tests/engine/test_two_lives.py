"""Two lives of a region: a worker that is thought dead goes on, while its region is done again elsewhere.

Nothing keeps the first one from writing. What the second publishes is the same, whatever each has in its memory.
"""

from contextlib import suppress
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.engine import messages, tasks
from dseeds.engine.residents import Residents
from dseeds.engine.tasks import perform_task
from dseeds.storage.zarr_arrays import ScratchCorrupted
from tests.support.regions import job_in, replayed_state
from tests.support.runs import noise

PLENTY = 1 << 30
WINDOW = (-300.0, 300.0)


def pieces_of(job, phase, number, trail):
    """Return the bytes of each piece of a message, by reader."""
    content = job.messages.place.read(messages._name(phase, number, trail))
    size = messages._index_size(content)
    index = messages._decode_index(content[:size], f"{job.messages.run} {phase} {number}")
    return {int(entry["reader"]): content[size + int(entry["begin"]) :][: int(entry["length"])] for entry in index}


def live(state, phase, number, residents, room, patch):
    """Do a task in a life of its own; return its outcome and what it has published."""
    patch.setattr(tasks, "residents", residents)
    given = state.task_input(phase, number)._replace(room=room)
    outcome = perform_task(state.job, phase, number, given).outcome
    return outcome, pieces_of(state.job, phase, number, state.trail(phase.turn - 1, number) + outcome[0])


@settings(max_examples=2)
@given(st.sampled_from([((16, 16, 32), (4, 4, 4)), ((12, 8, 48), (2, 4, 6))]), st.integers(0, 2**32))
def test_both_publish_the_same(case, seed):
    (shape, step), chance = case, np.random.default_rng(seed)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        state = replayed_state(job_in(folder, shape, step, (2, 2, 4), image=noise(shape, seed % 7)), WINDOW)
        state.job.store.create(state.layouts)
        first, done, lacks_checkpoint = Residents(), [], False
        while (phase := state.current).publishes_messages:
            marks = {}
            for number in state.regions(phase):
                outcome, pieces = live(state, phase, number, first, PLENTY, patch)
                # With nothing in memory, and no room for anything.
                again, others = live(state, phase, number, Residents(), 0, patch)
                assert again == outcome
                assert others.keys() - pieces.keys() <= {number}
                assert pieces == {reader: others[reader] for reader in pieces}
                lacks_checkpoint |= number not in pieces
                marks[number] = outcome
                done.append((phase, number, pieces))
            # One that wakes up rounds later finds that what it needs is gone, or writes what was there.
            for late, number, pieces in (done[chance.integers(len(done))] for _ in range(2)):
                with suppress(ScratchCorrupted):
                    _, others = live(state, late, number, Residents(), 0, patch)
                    assert pieces == {reader: others[reader] for reader in pieces}
            state.close(phase, marks)
        assert lacks_checkpoint
