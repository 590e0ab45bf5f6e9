"""Batch jobs as real processes: several at once, killed, waiting for each other."""

import os
import random
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest

from dseeds import supervoxels
from dseeds.engine import batch
from dseeds.engine.job_array import Share
from dseeds.engine.phases import LABEL
from tests.support.batches import (
    IMAGE,
    assert_only_labels,
    init,
    nifti_labels,
    reopen,
    status,
    step_all,
)
from tests.support.runs import (
    as_zarr,
    labels_in,
    noise,
    snapshot,
)
from tests.support.waiting import SECONDS, wait_until


@pytest.fixture
def start(environment):
    """Start jobs in process groups of their own, and kill them in the end."""
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
        process.communicate(timeout=SECONDS)


@pytest.fixture
def call(start):
    """Run a command to its end; return exit code, standard output and standard error."""

    def call(*arguments, **variables):
        process = start(*arguments, **variables)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return call


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
        if number % 3:
            # In this process, where it is faster.
            for index in jobs:
                batch.run_step(reopen(plan), Share(index, 2), phase=phase)
            continue
        started = [start("step", plan, "--phase", phase, "--index", index, "--count", 2) for index in jobs]
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
    jobs = [start("step", plan, "--wait", "--patience", 6, SLURM_ARRAY_TASK_ID=str(n), **variables) for n in range(3)]
    # Until some rounds are done.
    wait_until(lambda: status(plan)["current"] > "sweep-02")
    os.kill(jobs[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    output = [job.communicate(timeout=200) for job in jobs]
    # Some twenty phases were left, but the others wait for the killed job only once.
    assert time.monotonic() - killed < 100
    assert [job.returncode for job in jobs] == [0, -signal.SIGKILL, 0], output
    assert output[0][0].startswith("label: ")
    batch.finalize_run(reopen(plan))
    result = labels_in(target) if ending == ".zarr" else nifti_labels(target)
    np.testing.assert_array_equal(result, supervoxels(image, step=4))
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_job_that_waits_ends_when_the_run_is_published(start, tmp_path, plan, expected):
    """The run's folder is gone then, and the job must not create it again."""
    step_all(plan, end="label")
    for index in range(6):
        batch.run_step(reopen(plan), Share(index, 8))
    waiting = start("step", plan, "--wait", "--index", 6, "--count", 8)
    # After its own region it waits for the others.
    wait_until(lambda: len(reopen(plan).state().job.journal.marks(LABEL)) >= 7, waiting)
    batch.run_step(reopen(plan), Share(7, 8))
    batch.finalize_run(reopen(plan))
    out, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 0, err
    assert out in ("label: 1 regions done by this job\n", "published: 1 regions done by this job\n")
    np.testing.assert_array_equal(labels_in(tmp_path / "labels.zarr"), expected)
    assert_only_labels(tmp_path, "image.zarr")
