"""What is done of a run is written down in names, and read again as it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dseeds.core.geometry import Lattice
from dseeds.engine.journal import Journal
from dseeds.engine.phases import GRAPH, HISTOGRAM, LABEL, MASK, PARTS, QUANTISE, Phase, turn_phase
from dseeds.engine.tasks import _TASKS
from dseeds.seeds.schedule import schedule

ROUNDS = schedule(Lattice((64, 64, 64), (16, 16, 16)))
PHASES = [
    MASK,
    Phase("window", 0),
    Phase("window", 3),
    Phase("contrast", 2),
    HISTOGRAM,
    *(turn_phase(ROUNDS, turn) for turn in range(-1, len(ROUNDS))),
    PARTS,
    GRAPH,
    LABEL,
]
# All words that tasks say and do not publish with a message.
FOUND = ("inside", "outside", "counted", "tabulated", "labelled")


def test_phases_have_names_of_their_own_and_tasks():
    assert len({str(phase) for phase in PHASES}) == len(PHASES)
    assert {phase.stage for phase in PHASES} == set(_TASKS)


def test_rounds_follow_quantising():
    phases = [turn_phase(ROUNDS, turn) for turn in range(-1, len(ROUNDS))]
    assert phases[0] == QUANTISE
    assert not QUANTISE.is_round
    assert all(phase.is_round and phase.turn == turn for turn, phase in enumerate(phases[1:]))
    assert [phase.stage == "sweep-voxels" for phase in phases[1:]] == [round_.weight is not None for round_ in ROUNDS]


@given(st.dictionaries(st.integers(0, 10**9), st.sampled_from(FOUND), max_size=20), st.sampled_from(PHASES))
def test_marks_are_read_as_they_were_written(tmp_path_factory, marks, phase):
    folder = tmp_path_factory.mktemp("run")
    journal = Journal(str(folder), "0123")
    others = [other for other in PHASES if other != phase]
    for number, found in marks.items():
        journal.mark(phase, number, found)
        # A task that is done twice finds the same.
        journal.mark(phase, number, found)
    assert journal.marks(phase) == marks
    assert not any(journal.marks(other) for other in others)
    assert Journal(str(folder), "4567").marks(phase) == {}
    taken = dict(list(marks.items())[::2])
    journal.unmark(phase, taken)
    journal.unmark(phase, taken)
    assert journal.marks(phase) == {number: marks[number] for number in marks if number not in taken}


@pytest.mark.parametrize("record", [{}, {"swept": "AAA=", "moved": ""}, {"prefixes": [1, 2**63], "shift": -16}])
def test_a_record_takes_the_place_of_marks(tmp_path, record):
    journal, phase = Journal(str(tmp_path), "0123"), Phase("sweep-blocks", 3)
    assert journal.record(phase) is None
    marks = {7: "moved", 11: "still"}
    for number, found in marks.items():
        journal.mark(phase, number, found)
    journal.close(phase, record, marks)
    assert journal.record(phase) == record
    assert journal.marks(phase) == {}
    # Twice, by two who found the phase done.
    journal.close(phase, record, marks)
    assert journal.record(phase) == record
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["sweep-03.json"]


def test_what_is_not_a_mark_is_none(tmp_path):
    """Files that a process that died left half-written, or that the system keeps for itself."""
    journal = Journal(str(tmp_path), "0123")
    journal.mark(QUANTISE, 3, "finite")
    folder = tmp_path / "0123" / "done" / "quantise"
    for name in (f".{'0' * 32}.partial", ".nfs000000001", "README"):
        (folder / name).write_text(json.dumps("?"))
    assert journal.marks(QUANTISE) == {3: "finite"}
