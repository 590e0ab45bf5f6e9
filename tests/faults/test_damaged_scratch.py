"""Damaged scratch, records and labels are detected and computed again, or refused with a clear error."""

import numpy as np
import pytest

from dseeds import segment, supervoxels
from dseeds.engine import run_directory
from dseeds.engine.repair import BeyondRepair, Repairer
from dseeds.storage.location import open_location
from tests.support.faults import (
    ASKED,
    DAMAGES,
    FLOATS,
    IMAGE,
    as_nifti,
    assert_labels,
    damage,
    empty,
    flip,
    identity_folder,
    interrupt_run,
    remove,
    resume_run,
    run_folder,
    truncate,
    zero,
)
from tests.support.runs import (
    assert_no_image,
    assert_sentence,
    snapshot,
    when,
)

pytestmark = pytest.mark.faults


def shards(target, name):
    """Return the files of an array in scratch, or the messages after a phase."""
    folder = identity_folder(target) / "scratch"
    array = folder / name / "c"
    files = (array if array.is_dir() else folder / name).rglob("*")
    # Tasks that are under way have files with a leading dot, which they rename at the end.
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


@pytest.fixture
def mended(monkeypatch):
    """What damage was detected in: the names of arrays, or of messages after a phase."""
    names = []

    def noting(self, damage):
        tasks = getattr(damage, "tasks", None)
        names.extend([damage.name] if tasks is None else [f"messages/{phase}" for phase, _ in tasks])
        return repair(self, damage)

    repair = Repairer.repair
    monkeypatch.setattr(Repairer, "repair", noting)
    return names


@pytest.mark.parametrize(
    ("name", "stage", "number"),
    [
        # It is read once, so before any task of the first pass.
        ("source-0", "window", None),
        ("digits-0", "window", 4),
        ("digits-1", "window", 8),
        ("labels", "label", 4),
    ],
)
def test_damaged_scratch_is_noticed_and_made_again(tmp_path, out, client, mended, name, stage, number):
    """All four shards of an array are damaged, each in another way, after all are written."""
    source = as_nifti(tmp_path / "image.nii", FLOATS)
    target = out / ("labels.nii.gz" if name == "labels" else "labels.zarr")

    def harm():
        files = shards(target, name)
        # The source is stored in slabs, not in regions.
        assert len(files) == (1 if name == "source-0" else 4)
        damage(files)

    progress = when("begin" if number is None else "advance", stage, number, harm)
    segment(source, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert name in mended
    assert_labels(target, supervoxels(FLOATS, step=8))


@pytest.mark.parametrize("turn", [-1, 0, 3, 4, 8, 9, 11])
def test_damaged_messages_are_noticed_and_published_again(out, client, mended, turn):
    """All messages after a round are damaged, each in another way, before the first of them is read."""
    target, phase = out / "labels.zarr", "quantise" if turn < 0 else f"sweep-{turn:02}"
    stage = "quantise" if turn < 0 else "sweep-blocks" if turn < 9 else "sweep-voxels"
    harmed = []

    def harm():
        # Those that exist: regions do not wait for all others.
        harmed.extend(shards(target, f"messages/{phase}"))
        damage(harmed)

    first = 1 if turn < 0 else 4 * (turn % 9) + 1
    progress = when("advance", stage, first, harm)
    segment(IMAGE, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert not harmed or f"messages/{phase}" in mended
    assert_labels(target)


@pytest.mark.parametrize("harm", [remove, truncate, flip])
def test_damaged_bins_of_states_without_room(out, client, monkeypatch, mended, harm):
    """Bins that are stored because states find no room are a cache: the image is read again."""
    monkeypatch.setattr("dseeds.engine.driver.resident_room", lambda *_: 0)

    def break_bins():
        files = shards(out / "labels.zarr", "messages/held")
        assert files
        for file in files:
            harm(file)

    progress = when("advance", "sweep-blocks", 9, break_bins)
    segment(IMAGE, out / "labels.zarr", client=client, progress=progress, **ASKED)
    assert progress.happened
    assert not mended
    assert_labels(out / "labels.zarr", supervoxels(IMAGE, step=8))


def test_messages_of_others_are_not_taken(out, client, mended):
    """That of an earlier run with other parameters, of another region, or of the round before, all of them sound."""
    stale, target = out / "stale.zarr", out / "labels.zarr"
    interrupt_run(stale, client, "sweep-voxels", 1, window=(-50, 50))
    happened = []

    def harm():
        # Those that exist: regions do not wait for all others.
        files = shards(target, "messages/sweep-07")
        others = [*shards(stale, "messages/sweep-07")[:1], files[-1], *shards(target, "messages/sweep-06")[2:]]
        for path, other in zip(files, others, strict=False):
            happened.append(path.write_bytes(other.read_bytes()))

    progress = when("advance", "sweep-blocks", 4 * 7 + 3, harm)
    segment(IMAGE, target, client=client, progress=progress, **ASKED)
    assert len(happened) >= 2
    assert mended.count("messages/sweep-07") >= 2
    remove(run_folder(stale))
    assert_labels(target)


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_copy_of_the_source(tmp_path, out, client, mended, harm):
    source, target = as_nifti(tmp_path / "image.nii"), out / "labels.zarr"
    progress = when("begin", "window", None, lambda: harm(shards(target, "source-0")[0]))
    segment(source, target, client=client, progress=progress, **ASKED)
    assert progress.happened
    assert mended[0] == "source-0"
    assert_labels(target)


@pytest.mark.parametrize("stage", ["window", "quantise", "sweep-blocks", "sweep-voxels"])
@pytest.mark.parametrize("first", [0, 1])
def test_scratch_damaged_before_the_run_is_resumed(out, client, stage, first):
    """A message of many rounds, and a shard of arrays; the inputs that could restore it may be lost, too."""
    target = out / "labels.zarr"
    interrupt_run(target, client, stage, 4)
    scratch = identity_folder(target) / "scratch"
    folders = [*scratch.glob("*/c"), *scratch.glob("messages/*")]
    names = sorted(str(path.relative_to(scratch)).removesuffix("/c") for path in folders)
    damage([path for name in names[first::2] for path in shards(target, name)[1:2]])
    try:
        resume_run(target, client)
    except BeyondRepair as error:
        assert_beyond_repair(error, target, client)


def assert_beyond_repair(error, target, client):
    """Check the error of a run that cannot be repaired, and that a new run works."""
    assert_sentence(error)
    assert "start again" in str(error)
    assert not hasattr(error, "__notes__")
    assert_no_image(target)
    segment(IMAGE, target, overwrite=True, client=client, **ASKED)
    assert_labels(target)


@pytest.mark.parametrize("turn", [2, 6, 10])
def test_messages_of_two_rounds_damaged(out, client, mended, turn):
    """And with them the checkpoints."""
    target = out / "labels.zarr"
    stage, number = ("sweep-blocks", 4 * (turn + 1)) if turn < 9 else ("sweep-voxels", 4 * (turn - 8))

    def harm():
        damage(shards(target, f"messages/sweep-{turn:02}"))
        damage(shards(target, f"messages/sweep-{turn - 1:02}"))

    progress = when("advance", stage, number, harm)
    try:
        segment(IMAGE, target, client=client, progress=progress, **ASKED)
        assert_labels(target)
    except BeyondRepair as error:
        assert_beyond_repair(error, target, client)
    assert progress.happened


def test_messages_of_regions_that_rest_damaged(out, client):
    """The last messages of resting regions were published rounds ago."""
    image = np.zeros((16, 16, 160))
    image[:, :, :12] = np.random.default_rng(0).normal(3, 1, (16, 16, 12))
    target = out / "labels.zarr"
    parameters = {**ASKED, "window": (0, 6), "client": client}

    def harm():
        for folder in (identity_folder(target) / "scratch" / "messages").iterdir():
            for path in shards(target, f"messages/{folder.name}")[-1:]:
                flip(path)

    progress = when("begin", "label", None, harm)
    try:
        segment(image, target, progress=progress, **parameters)
    except BeyondRepair as error:
        assert_sentence(error)
        segment(image, target, overwrite=True, **parameters)
    assert progress.happened
    assert_labels(target, supervoxels(image, step=8, window=(0, 6)))


@pytest.mark.parametrize("harm", [truncate, remove, zero, empty])
def test_labels_damaged_before_the_run_is_resumed(out, client, harm):
    """Label chunks in the target carry no checksums, because other readers would not understand them."""
    target = out / "labels.zarr"
    interrupt_run(target, client, "label", 4)
    harm(target / "0" / "c" / "0" / "0" / "2")
    resume_run(target, client)


@pytest.mark.parametrize("what", ["run.json", "quantise.json", "sweep-03.json", "window-00.json"])
def test_damaged_records_are_refused(out, client, what):
    target = out / "labels.zarr"
    interrupt_run(target, client)
    path = next(run_folder(target).rglob(what))
    before, sound = snapshot(out), path.read_bytes()
    for harm in (flip, truncate, zero, empty):
        harm(path)
        with pytest.raises(ValueError, match=f"{what} is damaged") as caught:
            segment(IMAGE, target, resume=True, client=client)
        assert_sentence(caught.value)
        path.write_bytes(sound)
        assert snapshot(out) == before
    resume_run(target, client)


@pytest.mark.parametrize("harm", [truncate, remove, zero, empty])
def test_a_damaged_failure_record_does_not_matter(out, client, harm):
    """The record is for people; nothing depends on it."""
    target = out / "labels.zarr"
    interrupt_run(target, client)
    path = run_folder(target) / "failure.json"
    path.write_text('{"phase": "sweep-02", "region": 1}')
    harm(path)
    assert run_directory.read_failure(open_location(run_folder(target))) is None
    resume_run(target, client)


def test_one_letter_of_a_record_is_another(out, client):
    """A record that still parses is not trusted: another window would give other labels."""
    target = out / "labels.zarr"
    interrupt_run(target, client)
    path = next(run_folder(target).rglob("window-00.json"))
    sound = path.read_bytes()
    for place in [n for n, letter in enumerate(sound) if chr(letter).isdecimal()]:
        digit = str((int(chr(sound[place])) + 1) % 10).encode()
        path.write_bytes(sound[:place] + digit + sound[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            segment(IMAGE, target, resume=True, client=client)
    path.write_bytes(sound)
    resume_run(target, client)
