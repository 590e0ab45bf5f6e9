"""The messages of regions: what is published is read back, and what is damaged or another's is noticed."""

import pickle
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseeds.core.geometry import Box
from dseeds.engine import messages
from dseeds.engine.messages import MessageDamaged, MessageLog, Part
from dseeds.engine.phases import QUANTISE, Phase
from dseeds.storage.zarr_arrays import ByteCounter, byte_counter

PHASE = Phase("sweep-blocks", 4)
# What came of a region so far.
TRAIL, STILL = "ammsrm", "ammsrs"
NAMES = ("bins", "counts", "codes", "histograms-0")


@st.composite
def parts(draw):
    shape = (*draw(st.tuples(*[st.integers(0, 5)] * 3)), *draw(st.sampled_from([(), (3,)])))
    dtype = draw(st.sampled_from(["uint8", "uint32", "uint64"]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, draw(st.sampled_from([1, 100])), shape, dtype)
    # Parts are cut out of larger arrays, so they need not be contiguous.
    return Part(draw(st.tuples(*[st.integers(0, 9)] * 3)), values[:, ::-1] if draw(st.booleans()) else values)


pieces = st.dictionaries(st.sampled_from(NAMES), parts(), max_size=3)
contents = st.dictionaries(st.integers(0, 10**9), pieces, max_size=6)


def assert_same(piece, expected):
    assert list(piece) == list(expected)
    for name, (lo, values) in expected.items():
        assert piece[name].lo == lo
        assert piece[name].values.dtype == values.dtype
        np.testing.assert_array_equal(piece[name].values, values)


def message(readers=5):
    """A message of some hundred bytes with pieces of several sizes."""
    chance = np.random.default_rng(0)
    return {
        reader: {"codes": Part((reader, 0, 3), chance.integers(0, 27, (reader + 1, 2, 4), np.uint8))}
        for reader in range(readers)
    }


@pytest.fixture
def log(tmp_path):
    return MessageLog(str(tmp_path), "0123")


def file_of(log, phase=PHASE, number=7, outcome=TRAIL):
    return Path(log.address, "messages", str(phase), f"{number}-{outcome}")


def read(log, reader, phase=PHASE, number=7):
    return log.read(phase, number, TRAIL, reader)


@settings(max_examples=50)
@given(contents, st.integers(0, 10**6), st.sampled_from([16, 100, messages.HEAD_BYTES]))
def test_every_reader_gets_its_piece(contents, number, head):
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # Whatever is read at first, the rest is read after it.
        patch.setattr(messages, "HEAD_BYTES", head)
        log = MessageLog(folder, "0123")
        log.publish(PHASE, number, TRAIL, contents)
        for reader, piece in contents.items():
            assert_same(read(log, reader, number=number), piece)
        assert read(log, max(contents, default=0) + 1, number=number) is None
        assert log.trails(PHASE) == {number: TRAIL}


def test_what_is_read_and_written_is_counted(log):
    counter, content = ByteCounter(), message()
    token = byte_counter.set(counter)
    try:
        log.publish(PHASE, 7, TRAIL, content)
        read(log, 2)
    finally:
        byte_counter.reset(token)
    assert counter.written == sum(part.values.nbytes for piece in content.values() for part in piece.values())
    assert counter.read == content[2]["codes"].values.nbytes


def test_every_flipped_bit_is_noticed(log):
    """By the reader whom it concerns; others read what was published."""
    content = message()
    log.publish(PHASE, 7, TRAIL, content)
    path = file_of(log)
    sound = path.read_bytes()
    assert log.is_intact(PHASE, 7, TRAIL)
    assert not log.is_intact(PHASE, 8, TRAIL)
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert damaged_readers(log, content), position
        assert not log.is_intact(PHASE, 7, TRAIL), position


def test_every_cut_is_noticed(log):
    content = message()
    log.publish(PHASE, 7, TRAIL, content)
    path = file_of(log)
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert damaged_readers(log, content), length
        assert not log.is_intact(PHASE, 7, TRAIL), length
    path.unlink()
    with pytest.raises(MessageDamaged, match="it is missing"):
        read(log, 0)


def damaged_readers(log, content):
    return [reader for reader, piece in content.items() if not is_sound(log, reader, piece)]


def is_sound(log, reader, expected):
    try:
        piece = read(log, reader)
    except MessageDamaged:
        return False
    assert_same(piece, expected)
    return True


def test_the_message_of_another_is_refused(log):
    """A file that lies where it does not belong."""
    log.publish(PHASE, 7, TRAIL, message())
    others = [
        (MessageLog(log.address, "4567"), PHASE, 7),
        (log, Phase("sweep-blocks", 5), 7),
        (log, QUANTISE, 7),
        (log, PHASE, 8),
    ]
    for other, phase, number in others:
        path = file_of(other, phase, number)
        path.parent.mkdir(exist_ok=True)
        if path != file_of(log):
            shutil.copy(file_of(log), path)
        with pytest.raises(
            MessageDamaged, match=f"region {number} after {phase} is damaged: it is that of 0123 sweep-04 7"
        ):
            read(other, 0, phase, number)


def test_a_damage_travels_between_processes():
    damage = pickle.loads(pickle.dumps(MessageDamaged([(PHASE, 7)], "it is missing")))
    assert (damage.tasks, damage.reason) == ([(PHASE, 7)], "it is missing")
    assert str(damage) == "the message of region 7 after sweep-04 is damaged: it is missing"


def test_a_large_piece_in_an_object_store_takes_one_request(log, monkeypatch):
    """And its bytes are counted, though other threads read them."""
    monkeypatch.setattr(messages, "is_remote", lambda address: True)
    chance = np.random.default_rng(0)
    sizes = [200, 20_000, 200_000, 200_000, 200_000]
    pieces = {
        reader: {"bins": Part((0, 0, 0), chance.integers(0, 255, (n, 1, 1), "u1"))} for reader, n in enumerate(sizes)
    }
    for number in range(20):
        log.publish(PHASE, number, TRAIL, pieces)
    requests, read_part = [], type(log.place).read_part

    def counted(self, key, begin, end):
        requests.append(key)
        return read_part(self, key, begin, end)

    monkeypatch.setattr(type(log.place), "read_part", counted)
    for reader, size in enumerate(sizes):
        requests.clear()
        counter = ByteCounter()
        token = byte_counter.set(counter)
        found = list(log.read_pieces([(PHASE, number, TRAIL) for number in range(20)], reader, [size] * 20))
        byte_counter.reset(token)
        assert len(requests) == 20
        assert counter.read == 20 * size
        for piece in found:
            assert_same(piece, pieces[reader])


def test_the_messages_of_a_phase_are_listed_and_removed(log):
    """Files that a process left half-written, or that the system keeps for itself, are no messages."""
    later = Phase("sweep-blocks", 5)
    for phase, number, trail in ((PHASE, 3, TRAIL), (PHASE, 12, STILL), (later, 3, TRAIL + "s")):
        log.publish(phase, number, trail, {})
    for name in (f".{'0' * 32}.partial", ".nfs000000001", "5-am", "5-ammsrx"):
        file_of(log).with_name(name).write_bytes(b"?")
    assert log.trails(PHASE) == {3: TRAIL, 12: STILL}
    log.remove(PHASE)
    assert log.trails(PHASE) == {}
    assert log.trails(later) == {3: TRAIL + "s"}
    assert log.exists(later, 3, TRAIL + "s")
    assert not log.exists(later, 3, TRAIL + "m")
    assert not log.exists(PHASE, 3, TRAIL)


@given(st.tuples(*[st.integers(0, 6)] * 3), st.tuples(*[st.integers(1, 6)] * 3))
def test_parts_are_cropped_to_boxes(lo, extent):
    part = Part((2, 3, 1), np.arange(4 * 3 * 5).reshape(4, 3, 5))
    box = Box(lo, tuple(a + n for a, n in zip(lo, extent, strict=True)))
    whole = np.full((12, 12, 12), -1)
    whole[part.box.slices] = part.values
    cropped, inside = part.crop(box), whole[box.slices]
    if cropped is None:
        assert (inside == -1).all()
    else:
        np.testing.assert_array_equal(cropped.values, whole[cropped.box.slices])
        assert cropped.values.size == (inside != -1).sum()
