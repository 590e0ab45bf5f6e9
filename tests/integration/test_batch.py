"""A run as an array of batch jobs: in any order, several at once, twice, killed, and turn about with Dask."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dseeds import segment, supervoxels
from dseeds.cli import main
from dseeds.cli.errors import NOT_YET
from dseeds.core.geometry import Lattice
from dseeds.engine import batch, run_directory
from dseeds.engine.batch import NotYet, Share, share_of
from dseeds.engine.phases import LABEL
from dseeds.engine.publishing import SourceChanged
from dseeds.engine.run import SUFFIX, RunOptions
from dseeds.engine.source_import import IMPORT
from dseeds.seeds.cell_size import choose_step
from dseeds.storage.label_group import remove_target
from tests.support.batches import IMAGE
from tests.support.runs import (
    as_zarr,
    cuts,
    interrupt,
    labels_in,
    mostly_constant,
    noise,
    sizes,
    snapshot,
    voxels,
    when,
)

SLURM = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("COUNT", "MIN", "MAX", "STEP"))
ARRAY_VARIABLES = {name for names in batch.ARRAYS for name in names if name and not name.isdecimal()}


@pytest.fixture
def start(environment):
    """Start jobs, as processes in groups of their own, which are gone in the end."""
    started = []

    def start(*arguments, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "dseeds", *map(str, arguments)],
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def call(start):
    """Run a command to its end: its exit code, its output and what it says of errors."""

    def call(*arguments, **variables):
        process = start(*arguments, **variables)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return call


@pytest.fixture
def client(clients):
    return clients[1]


# Eight regions, and few rounds; or many.
ASKED = {"step": 3, "region": (12, 12, 24)}
LONG = {**ASKED, "step": 4}
MEMORY = 1 << 30


@pytest.fixture(scope="module")
def expected():
    return supervoxels(IMAGE, step=3)


@pytest.fixture
def source(tmp_path):
    return as_zarr(tmp_path / "image.zarr", IMAGE, 16)


@pytest.fixture
def plan(tmp_path, source):
    """A run that has been begun."""
    return init(source, tmp_path / "labels.zarr")


def init(source, target, **options):
    asked = {**ASKED, **options}
    overwrite = asked.pop("overwrite", False)
    return batch.begin_batch(source, target, RunOptions(**asked), MEMORY, overwrite=overwrite).folder.address


def again(plan):
    """A run as the next job finds it."""
    return batch.open_batch_run(plan)


def step_all(plan, count=2, end=None):
    """Do all phases, or those before one, job by job."""
    while (current := status(plan)["current"]) not in (None, end):
        for index in range(count):
            batch.run_step(again(plan), Share(index, count), phase=current)


def status(plan):
    return batch.run_status(batch.open_batch_run(plan, with_source=False))


def nifti_labels(path):
    return np.asarray(nibabel.load(path).dataobj).T


def assert_only_labels(folder, *others):
    assert sorted(path.name for path in Path(folder).iterdir()) == sorted(("labels.zarr", *others))


# In this process.


def step_in_any_order(plan, chance, count):
    """Do all phases: each job in any order, some twice, some that come too early or too late."""
    while (current := status(plan)["current"]) is not None:
        phases = [phase["name"] for phase in status(plan)["phases"]]
        jobs = [*range(count), chance.randrange(count)]
        chance.shuffle(jobs)
        for index in jobs:
            share = Share(index, count)
            if chance.random() < 0.1:
                with suppress(NotYet):
                    batch.run_step(again(plan), share, phase=chance.choice(phases))
            batch.run_step(again(plan), share, phase=current)


@st.composite
def small_runs(draw):
    longest = draw(st.sampled_from([3, 12, 25, 30]))
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    size = draw(sizes(shape))
    region = draw(st.none() | cuts(Lattice(shape, choose_step(shape, **size))))
    image, window = draw(voxels(shape))
    return image, {**size, "window": window}, region


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example((np.full((8, 9, 10), 7, np.uint8), {"step": 4}, (4, 8, 8)), 2, 0)
@example((np.zeros((1, 1, 1), np.float32), {"step": 2}, None), 3, 0)
@given(small_runs(), st.integers(1, 4), st.integers(0, 2**32))
def test_any_order_gives_the_labels_of_the_whole(run, count, seed):
    check_any_order(*run, count, seed)


@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mostly_constant(), st.sampled_from([12, (5, 40, 9)]), st.integers(1, 4), st.integers(0, 2**32))
def test_any_order_where_much_rests(case, region, count, seed):
    check_any_order(*case, region, count, seed)


def check_any_order(image, asked, region, count, seed):
    with TemporaryDirectory() as folder:
        source = as_zarr(f"{folder}/image.zarr", image, 16)
        asked = {"n_segments": None, **asked}
        plan = init(source, f"{folder}/labels.zarr", **{"step": None, **asked}, region=region)
        step_in_any_order(plan, random.Random(seed), count)
        course = batch.finalize_run(again(plan))
        found = labels_in(f"{folder}/labels.zarr")
        np.testing.assert_array_equal(found, supervoxels(image, **asked))
        assert course.supervoxels == found.max()
        assert_only_labels(folder, "image.zarr")


def test_a_phase_that_turns_out_not_to_be_is_done(tmp_path):
    """In a constant image there are no rounds; whoever counted on them may still call them."""
    plan = init(
        as_zarr(tmp_path / "image.zarr", np.full((8, 8, 16), 3, "u1"), 8), tmp_path / "labels.zarr", step=4, region=8
    )
    planned = [phase["name"] for phase in status(plan)["phases"]]
    assert "sweep-03" in planned
    for phase in planned:
        batch.run_step(again(plan), Share(0, 1), phase=phase)
    assert status(plan)["complete"]
    assert [phase["name"] for phase in status(plan)["phases"]] == ["window-00", "quantise", "label"]
    batch.finalize_run(again(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(np.full((8, 8, 16), 3), step=4))


@pytest.mark.parametrize(("ending", "elsewhere"), [(".zarr", False), (".nii.gz", True)])
def test_nifti_and_a_scratch_folder(tmp_path, expected, ending, elsewhere):
    source, target = tmp_path / "image.nii.gz", tmp_path / "out" / f"labels{ending}"
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.diag([1, 2, 3, 1])), source)
    target.parent.mkdir()
    (tmp_path / "fast").mkdir()
    before = snapshot(tmp_path)
    plan = init(source, target, scratch=str(tmp_path / "fast") if elsewhere else None)
    step_all(plan)
    if elsewhere:
        (scratch,) = (tmp_path / "fast").iterdir()
        assert scratch.name.startswith(target.name + SUFFIX)
    # Nothing but the target, the run's folder and the scratch is written to.
    mine = (f"out/{target.name}", f"fast/{target.name}{SUFFIX}")
    assert {path: held for path, held in snapshot(tmp_path).items() if not path.startswith(mine)} == before
    batch.finalize_run(again(plan))
    found = labels_in(target) if ending == ".zarr" else nifti_labels(target)
    np.testing.assert_array_equal(found, expected)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert list((tmp_path / "fast").iterdir()) == []
    if ending != ".zarr":
        np.testing.assert_array_equal(nibabel.load(target).affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize(("stage", "overwrite"), [("quantise", False), ("sweep-blocks", True), ("label", True)])
def test_dask_begins_jobs_go_on_dask_goes_on_jobs_end(tmp_path, client, source, stage, overwrite):
    target = tmp_path / "labels.zarr"
    if overwrite:
        segment(source, target, step=8, client=client)
    progress = when("advance", stage, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(source, target, **LONG, client=client, progress=progress, overwrite=overwrite)
    plan = str(target) + SUFFIX
    if stage != "label":
        step_all(plan, end="sweep-03")
        batch.run_step(again(plan), Share(1, 3))
        progress = when("advance", "sweep-voxels", 4, interrupt)
        with pytest.raises(KeyboardInterrupt):
            segment(source, target, resume=True, client=client, progress=progress)
        assert progress.happened
    step_all(plan)
    batch.finalize_run(again(plan))
    np.testing.assert_array_equal(labels_in(target), supervoxels(IMAGE, step=4))
    assert_only_labels(tmp_path, "image.zarr")


@pytest.mark.parametrize("end", ["window-00", "merge-05", "label", None])
def test_jobs_begin_and_dask_ends(tmp_path, client, source, end):
    plan = init(source, tmp_path / "labels.zarr", **LONG)
    step_all(plan, end=end)
    if end is not None:
        batch.run_step(again(plan), Share(0, 3))
    report = segment(source, tmp_path / "labels.zarr", resume=True, client=client)
    assert report.resumed
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(IMAGE, step=4))
    assert_only_labels(tmp_path, "image.zarr")


def test_an_init_that_was_killed_can_be_gone_on_with(tmp_path, source, plan, expected):
    """What it had not made yet, jobs make."""
    run = again(plan)
    shutil.rmtree(run.scratch)
    remove_target(run.target.location)
    assert not run.target.path.exists()
    step_all(plan)
    batch.finalize_run(again(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)


def test_an_import_that_was_killed_is_waited_for(tmp_path):
    nibabel.save(nibabel.Nifti1Image(IMAGE.T, np.eye(4)), tmp_path / "image.nii.gz")
    plan = init(tmp_path / "image.nii.gz", tmp_path / "labels.zarr")
    journal = again(plan).job().journal
    journal.unmark(IMPORT, journal.marks(IMPORT))
    with pytest.raises(NotYet, match="--overwrite"):
        batch.run_step(again(plan), Share(0, 1))


def test_scratch_that_is_damaged_is_mended(tmp_path, plan, expected):
    step_all(plan, end="sweep-02")
    run = again(plan)
    damaged = [path for name in ("codes-01", "statistics-02", "bins-0") for path in scratch_files(run, name)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    step_all(plan)
    damaged = list(scratch_files(again(plan), "codes-03"))
    for path in damaged:
        path.unlink()
    next((tmp_path / "labels.zarr" / "0" / "c").rglob("*[0-9]/*[0-9]/*[0-9]")).unlink()
    batch.finalize_run(again(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)


def scratch_files(run, name):
    found = [path for path in Path(run.scratch, name, "c").rglob("*") if path.is_file()]
    assert found
    return found


def test_a_region_that_fails_is_told_and_can_be_tried_alone(tmp_path, plan, source, capsys):
    chunk = next(path for path in (source / "c").rglob("*") if path.is_file())
    content, status_before = chunk.read_bytes(), chunk.stat()
    chunk.write_bytes(b"no chunk")
    assert main(["step", plan, "--index", "0", "--count", "1"]) == 1
    failed, advice = capsys.readouterr().err.splitlines()
    found = status(plan)["failure"]
    assert failed.startswith(f"error: window-00 of region {found['region']} failed 3 times (")
    assert advice.startswith("try that region alone with: dseeds debug-region ")
    assert main(advice.partition(": dseeds ")[2].split()) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["status", plan]) == 0
    assert f"window-00 of region {found['region']} has failed: " in capsys.readouterr().out
    chunk.write_bytes(content)
    os.utime(chunk, ns=(status_before.st_atime_ns, status_before.st_mtime_ns))
    assert main(advice.partition(": dseeds ")[2].split()) == 0
    assert capsys.readouterr().out.startswith(f"window-00 of region {found['region']}: counted, ")
    assert status(plan)["failure"] is None
    step_all(plan)
    batch.finalize_run(again(plan))


@pytest.mark.parametrize(
    ("phase", "region", "says"),
    [
        ("window-00", -1, "regions go from 0 to 7"),
        ("window-00", 8, "regions go from 0 to 7"),
        ("swoop", 0, "the phases are window-00, quantise"),
        ("sweep-03", 0, "the run is at window-00; what sweep-03 reads is not there"),
    ],
)
def test_a_region_that_cannot_be_tried_alone(plan, phase, region, says):
    with pytest.raises(ValueError, match=says):
        batch.debug_region_task(again(plan), phase, region)


# Beginning, looking, and ending.


def test_status_as_a_table_and_as_json(plan, source, tmp_path, capsys):
    step_all(plan, end="sweep-00")
    batch.run_step(again(plan), Share(0, 3))
    # Neither the source nor its place is needed.
    source.rename(tmp_path / "gone")
    before = snapshot(tmp_path)
    assert main(["status", plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == str(tmp_path / "labels.zarr")
    assert found["source"] == str(source)
    assert found["phases"][:4] == [
        {"name": "window-00", "done": 8, "tasks": 8},
        {"name": "quantise", "done": 8, "tasks": 8},
        {"name": "sweep-00", "done": 3, "tasks": 8},
        {"name": "merge-01", "done": 0, "tasks": 8},
    ]
    assert (found["current"], found["complete"], found["failure"]) == ("sweep-00", False, None)
    # The target's name does as well.
    assert main(["status", str(tmp_path / "labels.zarr")]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert ["sweep-00", "3", "8"] in [line.replace("│", " ").split() for line in told.out.splitlines()]
    assert told.out.splitlines()[-1] == "at sweep-00"
    assert snapshot(tmp_path) == before
    (tmp_path / "gone").rename(source)
    step_all(plan)
    assert main(["status", plan]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all is done: dseeds finalize publishes"


def test_status_of_a_run_whose_source_was_in_memory(tmp_path, client):
    progress = when("advance", "merge", 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        segment(IMAGE, tmp_path / "labels.zarr", **ASKED, client=client, progress=progress)
    assert status(tmp_path / "labels.zarr")["current"] == "merge-01"
    with pytest.raises(ValueError, match="was in the memory of the process that started it"):
        again(tmp_path / "labels.zarr")


def test_init_says_where_the_run_is(tmp_path, source, capsys):
    assert main(["init", str(source), str(tmp_path / "labels.zarr"), "--step", "3", "--region", "12,12,24"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path}/labels.zarr{SUFFIX}\n"
    assert told.err == "10 phases of 8 regions\n"
    arguments = ["init", str(source), str(tmp_path / "labels.zarr"), "--step", "4", "--overwrite", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == f"{tmp_path}/labels.zarr{SUFFIX}"
    assert found["phases"][0] == {"name": "window-00", "done": 0, "tasks": 1}


def test_what_cannot_begin_leaves_everything_as_it_was(tmp_path, source, plan):
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("mine")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    before = snapshot(tmp_path)
    for error, says, from_, to, overwrite in (
        (ValueError, "as a path or URL", IMAGE, "new.zarr", False),
        (FileExistsError, "not written by dseeds", source, "mine.zarr", True),
        (FileExistsError, "unfinished run", source, "labels.zarr", False),
        (FileNotFoundError, "does not exist", tmp_path / "no.zarr", "new.zarr", False),
        (ValueError, "broken.nii.gz", tmp_path / "broken.nii.gz", "new.zarr", False),
    ):
        with pytest.raises(error, match=says):
            init(from_, tmp_path / to, overwrite=overwrite)
        assert snapshot(tmp_path) == before
    with pytest.raises(FileNotFoundError, match="there is no unfinished run"):
        again(tmp_path / "new.zarr")


def test_beginning_anew(tmp_path, source, plan, expected):
    step_all(plan)
    batch.finalize_run(again(plan))
    with pytest.raises(FileExistsError, match="--overwrite"):
        init(source, tmp_path / "labels.zarr")
    # The older output goes, then the unfinished run.
    for step in (8, 3):
        plan = init(source, tmp_path / "labels.zarr", overwrite=True, step=step)
        batch.run_step(again(plan), Share(0, 2))
    step_all(plan)
    batch.finalize_run(again(plan))
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")


def test_a_job_of_a_run_that_is_no_more_leaves_nothing(tmp_path, source, plan, expected):
    """It was thought dead, others did its share and published; it comes back, and ends."""
    step_all(plan, end="label")
    late = again(plan)
    course = late.state()
    step_all(plan)
    batch.finalize_run(again(plan))
    before = snapshot(tmp_path)
    assert batch.run_step(late, Share(0, 1), wait=True) == {"phase": None, "done": 0}
    batch._run_region(late, course, LABEL, 3)
    course.job.journal.mark(LABEL, 3, "labelled")
    run_directory.remove_leftovers(late)
    assert snapshot(tmp_path) == before
    assert_only_labels(tmp_path, "image.zarr")


def test_finalize_too_early_twice_and_with_what_is_kept(tmp_path, source, plan, expected, capsys):
    with pytest.raises(NotYet, match="8 regions of window-00"):
        batch.finalize_run(again(plan))
    step_all(plan, end="label")
    batch.run_step(again(plan), Share(0, 3))
    with pytest.raises(NotYet, match="5 regions of label"):
        batch.finalize_run(again(plan))
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "labels.zarr", mode="r")
    step_all(plan)
    assert main(["finalize", plan, "--keep-scratch"]) == 0
    assert capsys.readouterr().out == f"{expected.max()} supervoxels: {tmp_path}/labels.zarr\n"
    assert_only_labels(tmp_path, "image.zarr", f"labels.zarr{SUFFIX}")
    published = snapshot(tmp_path / "labels.zarr")
    # Jobs that come late find nothing to do, and take nothing away.
    assert batch.run_step(again(plan), Share(0, 2)) == {"phase": "label", "done": 0}
    assert main(["finalize", plan, "--quiet"]) == 0
    assert snapshot(tmp_path / "labels.zarr") == published
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")
    assert main(["finalize", plan]) == 1
    assert "there is no unfinished run" in capsys.readouterr().err


def test_a_source_that_has_changed_is_not_published(plan, source, tmp_path):
    step_all(plan)
    zarr.open_array(source, mode="r+")[0, 0, 0] = 999
    with pytest.raises(SourceChanged):
        batch.finalize_run(again(plan))
    with pytest.raises(FileNotFoundError):
        zarr.open_group(tmp_path / "labels.zarr", mode="r")


def test_nothing_finite(tmp_path, capsys):
    source = as_zarr(tmp_path / "image.zarr", np.full((8, 8, 8), np.nan), 8)
    plan = init(source, tmp_path / "labels.zarr", region=8)
    code = [main(["step", plan, "--index", "0", "--count", "1"]) for _ in range(2)]
    assert code == [0, 1]
    assert "finite" in capsys.readouterr().err
    assert main(["status", plan]) == 0
    np.testing.assert_array_equal(zarr.open_array(source)[:], np.nan)


# Which job of the array.


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ({"SLURM_ARRAY_TASK_ID": "0", **dict(zip(SLURM, "4031", strict=True))}, (0, 4)),
        ({"SLURM_ARRAY_TASK_ID": "9", **dict(zip(SLURM, ("5", "1", "9", "2"), strict=True))}, (4, 5)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, (2, 10)),
        ({"SGE_TASK_ID": "4", "SGE_TASK_FIRST": "2", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}, (2, 4)),
        ({"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "8", "LSB_JOBINDEX_STEP": "1"}, (3, 8)),
        ({"BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "2"}, (1, 2)),
        ({"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "1"}, (0, 1)),
        # A job that is in no array says so in its own way, and what lies around it counts.
        ({"SGE_TASK_ID": "undefined", "BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "2"}, (1, 2)),
        ({"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0", "BATCH_TASK_INDEX": "1", "BATCH_TASK_COUNT": "2"}, (1, 2)),
    ],
)
def test_batch_systems_say_which_job_this_is(said, share):
    assert share_of(said) == Share(*share)
    # What is given counts more.
    assert share_of(said, 3, 7) == Share(3, 7)


@pytest.mark.parametrize("name", ["PBS_ARRAY_INDEX", "PBS_ARRAYID", "JOB_COMPLETION_INDEX"])
def test_batch_systems_that_do_not_say_how_many(name):
    with pytest.raises(ValueError, match="--count"):
        share_of({name: "4"})
    assert share_of({name: "4"}, count=4) == Share(0, 4)
    assert share_of({name: "3"}, count=4) == Share(3, 4)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"SGE_TASK_ID": "undefined", "SGE_TASK_FIRST": "undefined"},
        {"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0", "LSB_JOBINDEX_STEP": "0"},
        {"SLURM_ARRAY_TASK_ID": ""},
    ],
)
def test_where_there_is_no_array_it_has_to_be_said(said):
    with pytest.raises(ValueError, match="neither --index nor any of SLURM_ARRAY_TASK_ID"):
        share_of(said)
    with pytest.raises(ValueError, match="--count"):
        share_of(said, index=0)


@pytest.mark.parametrize(("index", "count"), [(-1, 3), (3, 3), (0, 0), (0, -2)])
def test_shares_that_cannot_be(index, count):
    with pytest.raises(ValueError, match="index"):
        share_of({}, index, count)


def test_a_part_of_an_array_that_is_sent_again():
    """`sbatch --array=3,7,8`: how many jobs there were has to be said, and then each does what it did before."""
    part = {"SLURM_ARRAY_TASK_ID": "7", **dict(zip(SLURM, "3381", strict=True))}
    with pytest.raises(ValueError, match="--count"):
        share_of(part)
    assert share_of(part, count=10) == share_of({**part, **dict(zip(SLURM, ("10", "0", "9", "1"), strict=True))})


@given(first=st.integers(0, 9), count=st.integers(1, 20), apart=st.integers(1, 4), regions=st.integers(0, 60))
def test_every_region_is_done_by_exactly_one_job(first, count, apart, regions):
    last = first + apart * (count - 1)
    bounds = dict(zip(SLURM, map(str, (count, first, last, apart)), strict=True))
    shares = [share_of({"SLURM_ARRAY_TASK_ID": str(n), **bounds}) for n in range(first, last + 1, apart)]
    assert sorted(number for share in shares for number in share.of(list(range(regions)))) == list(range(regions))
    shares = [share_of({"PBS_ARRAY_INDEX": str(n)}, count=count) for n in range(first, first + count)]
    assert sorted(number for share in shares for number in share.of(list(range(regions)))) == list(range(regions))


# Real processes.


@pytest.mark.slow
def test_phase_by_phase_in_any_order_several_at_once_twice_and_killed(call, start, tmp_path, source):
    chance = random.Random(0)
    code, out, _ = call("init", source, tmp_path / "labels.zarr", "--step", 3, "--region", "12,12,24")
    assert code == 0
    plan = out.strip()
    before = snapshot(tmp_path / "image.zarr")
    for number, phase in enumerate([phase["name"] for phase in status(plan)["phases"]]):
        jobs = [0, 1, chance.randrange(2)][: 2 + number % 2]
        chance.shuffle(jobs)
        started = [start("step", plan, "--phase", phase, "--index", index, "--count", 2) for index in jobs]
        if number % 3 == 0:
            time.sleep(chance.uniform(0.5, 2))
            os.kill(started[0].pid, signal.SIGKILL)
            started.append(start("step", plan, "--phase", phase, "--index", jobs[0], "--count", 2))
        for process in started:
            _, err = process.communicate(timeout=120)
            assert process.returncode in ((0, -signal.SIGKILL) if process is started[0] else (0,)), err
    assert call("finalize", plan)[0] == 0
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), supervoxels(IMAGE, step=3))
    assert_only_labels(tmp_path, "image.zarr")
    assert snapshot(tmp_path / "image.zarr") == before


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".zarr", ".nii.gz"])
def test_jobs_that_wait_and_one_that_is_killed_and_not_started_again(start, tmp_path, ending):
    image = noise((40, 40, 48), dtype="int16")
    if ending == ".zarr":
        source = as_zarr(tmp_path / "image.zarr", image, 16)
    else:
        source = tmp_path / "image.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.T, np.eye(4)), source)
    target = tmp_path / "out" / f"labels{ending}"
    target.parent.mkdir()
    plan = init(source, target, step=4, region=(20, 20, 16))
    variables = {"SLURM_ARRAY_TASK_COUNT": "3"}
    jobs = [start("step", plan, "--wait", "--patience", 4, SLURM_ARRAY_TASK_ID=str(n), **variables) for n in range(3)]
    # Some way into the rounds.
    until(lambda: status(plan)["current"] > "sweep-02")
    os.kill(jobs[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    said = [job.communicate(timeout=200) for job in jobs]
    # There were some twenty phases to come: it is waited for in vain only once.
    assert time.monotonic() - killed < 60
    assert [job.returncode for job in jobs] == [0, -signal.SIGKILL, 0], said
    assert said[0][0].startswith("label: ")
    batch.finalize_run(again(plan))
    found = labels_in(target) if ending == ".zarr" else nifti_labels(target)
    np.testing.assert_array_equal(found, supervoxels(image, step=4))
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def until(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_that_waits_ends_when_the_run_is_published(start, tmp_path, plan, expected):
    """It finds nothing left of the run, and leaves nothing."""
    step_all(plan, end="label")
    for index in range(6):
        batch.run_step(again(plan), Share(index, 8))
    waiting = start("step", plan, "--wait", "--index", 6, "--count", 8)
    # When it has done its own region, it waits for the others.
    while len(again(plan).state().job.journal.marks(LABEL)) < 7:
        time.sleep(0.1)
        assert waiting.poll() is None
    batch.run_step(again(plan), Share(7, 8))
    batch.finalize_run(again(plan))
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert out in ("label: 1 regions done by this job\n", "published: 1 regions done by this job\n")
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")


def test_exit_codes_and_sentences(tmp_path, plan, capsys, monkeypatch):
    for name in ARRAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        code, said = main([str(argument) for argument in arguments]), capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return code, said.err.removeprefix("error: ").rstrip()

    first = ("--index", 0, "--count", 2)
    left = "sweep-01 begins when all phases before it are done: 8 regions are left of window-00"
    assert call("step", plan, "--phase", "sweep-01", *first) == (NOT_YET, left)
    assert call("finalize", plan)[0] == NOT_YET
    code, said = call("step", plan, "--phase", "swoop", *first)
    assert code == 1
    assert said.startswith("there is no phase swoop: the phases are window-00, ")
    assert "neither --index nor any of SLURM_ARRAY_TASK_ID" in call("step", plan)[1]
    assert "not both" in call("step", plan, "--wait", "--phase", "quantise", *first)[1]
    other = f"{tmp_path}/other.zarr"
    assert call("step", other, *first) == (1, f"there is no unfinished run at {other}{SUFFIX}")


def test_a_mask_small_ones_and_levels_by_jobs(tmp_path):
    """Their phases too are done in any order, and what is damaged in their tables is made again."""
    image = noise((24, 20, 40))
    image[2:9, :, 11:13] = np.nan
    mask = as_zarr(tmp_path / "mask.zarr", noise(image.shape, 4) > -60, 8)
    zarr.open_array(mask)[:, :, :8] = False
    asked = {"step": 4, "min_size": 20, "levels": 2}
    labels, parents = supervoxels(image, mask=zarr.open_array(mask)[:], **asked)
    source = as_zarr(tmp_path / "image.zarr", image, 8)
    plan = init(source, tmp_path / "labels.zarr", mask=mask, region=8, **asked)
    assert {"mask", "parts", "number", "graph"} <= {phase["name"] for phase in status(plan)["phases"]}
    with pytest.raises(NotYet, match="parts begins when"):
        batch.run_step(again(plan), Share(0, 1), phase="parts")
    step_in_any_order(plan, random.Random(0), 3)
    for name in ("table-0", "table-1", "offsets"):
        for path in scratch_files(again(plan), name):
            path.write_bytes(path.read_bytes()[:-5])
    course = batch.finalize_run(again(plan))
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][:], labels)
    assert course.counts == [labels.max(), *(table.max() for table in parents)]
    for name, table in zip(("2x", "4x"), parents, strict=True):
        np.testing.assert_array_equal(group[f"{name}/parents"][:], table)
        labels = table[labels]
        np.testing.assert_array_equal(group[f"{name}/0"][:], labels)


def test_jobs_of_an_image_that_may_hold_nan(tmp_path):
    """Whoever calls the phases that init lists comes to the end, whether there is a NaN or not."""
    for number, hole in enumerate([(), np.s_[3:5, 2:9, 4:30]]):
        image = noise((8, 12, 40))
        image[hole or slice(0)] = np.nan
        plan = init(
            as_zarr(tmp_path / f"{number}.zarr", image, 8), tmp_path / f"labels-{number}.zarr", step=4, region=8
        )
        for phase in status(plan)["phases"]:
            batch.run_step(again(plan), Share(0, 1), phase=phase["name"])
        batch.finalize_run(again(plan))
        np.testing.assert_array_equal(labels_in(tmp_path / f"labels-{number}.zarr"), supervoxels(image, step=4))
