"""The states that stay in memory between tasks: each is given to one task at a time, and all fit their room."""

from types import SimpleNamespace

import pytest

from dseeds.engine.residents import Residents

ROOM = 100


def state(number, turn=0, nbytes=10):
    return SimpleNamespace(number=number, turn=turn, nbytes=nbytes)


@pytest.fixture
def residents():
    return Residents()


def test_a_state_is_taken_once(residents):
    kept = state(3)
    assert residents.keep("run", kept, ROOM)
    assert residents.take("another", 3, 0) is None
    assert residents.take("run", 4, 0) is None
    assert residents.take("run", 3, 0) is kept
    assert residents.take("run", 3, 0) is None


def test_states_that_do_not_fit_are_not_kept(residents):
    assert all(residents.keep("run", state(number), ROOM) for number in range(10))
    assert not residents.keep("run", state(10), ROOM)
    assert not residents.keep("run", state(11), 0)
    residents.take("run", 0, 0)
    assert residents.has_room("run", state(10), ROOM)
    assert residents.keep("run", state(10), ROOM)
    # It would take the place of the one that is there.
    assert residents.has_room("run", state(10, turn=1), ROOM)
    assert not residents.has_room("run", state(11), ROOM)


def test_states_that_take_more_memory_than_there_is_are_given_up(residents):
    """Half as many are kept from then on, until the run ends; those of another run stay."""
    for number in range(6):
        residents.keep("run", state(number), ROOM)
    residents.keep("another", state(6), ROOM)
    assert (residents.give_up("run"), residents.give_up("run")) == (60, 0)
    assert residents.take("run", 0, 0) is None
    assert [residents.keep("run", state(number), ROOM) for number in range(4)] == [True, True, True, False]
    assert residents.keep("another", state(7), ROOM)
    residents.release("run")
    assert all(residents.keep("run", state(number), ROOM) for number in range(5))


def test_an_older_state_does_not_replace_a_newer_one(residents):
    """Of a task that was repeated elsewhere."""
    newer = state(3, turn=5)
    assert residents.keep("run", newer, ROOM)
    assert residents.keep("run", state(3, turn=4), ROOM)
    assert residents.take("run", 3, 4) is None
    assert residents.take("run", 3, 5) is newer


def test_an_older_state_than_is_wanted_is_dropped(residents):
    residents.keep("run", state(3, turn=5), ROOM)
    assert residents.take("run", 3, 6) is None
    assert residents.take("run", 3, 5) is None


def test_states_wait_as_long_as_there_is_room(residents):
    """A region far along z may wait for many tasks of the others."""
    waiting = state(99)
    residents.keep("run", waiting, ROOM)
    for turn in range(1000):
        assert residents.keep("run", state(0, turn), ROOM)
        residents.take("run", 0, turn)
    assert residents.take("run", 99, 0) is waiting


def test_states_that_others_have_taken_over_make_room(residents):
    for number in range(10):
        residents.keep("run", state(number), ROOM)
    tries = 0
    while not residents.keep("run", state(10), ROOM):
        tries += 1
        assert tries < 1000
    assert tries >= 4 * 10


def test_images_make_room_for_states_alone(residents):
    """A state that is lost has to be computed again, an image only to be read."""
    images = [state(number, turn=-2) for number in range(10)]
    assert all(residents.keep("run", image, ROOM) for image in images)
    assert not residents.keep("run", state(10, turn=-2), ROOM)
    assert residents.keep("run", state(10), ROOM)
    # The last image went; a region's own is no longer needed.
    assert residents.take_image("run", 9) is None
    assert residents.keep("run", state(0), ROOM)
    assert [residents.take_image("run", number) for number in range(1, 9)] == images[1:9]


def test_the_states_of_a_run_are_released(residents):
    residents.keep("run", state(1), ROOM)
    residents.keep("another", state(1), ROOM)
    residents.release("run")
    assert residents.take("run", 1, 0) is None
    assert residents.take("another", 1, 0) is not None
