"""What the tests of batch runs share: an image, and all steps of a run in this process."""

from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np

from dseeds.engine import batch
from dseeds.engine.batch import NotYet
from dseeds.engine.job_array import Share
from dseeds.engine.run import RunOptions
from tests.support.runs import noise

IMAGE = noise((20, 24, 40), dtype="int16")
# Eight regions; the first has few rounds, the second many.
ASKED = {"step": 3, "region": (12, 12, 24)}
LONG = {**ASKED, "step": 4}
MEMORY = 1 << 30


def init(source, target, **options):
    """Begin a batch run and return the address of its run folder."""
    parameters = {**ASKED, **options}
    overwrite = parameters.pop("overwrite", False)
    return batch.begin_batch(source, target, RunOptions(**parameters), MEMORY, overwrite=overwrite).folder.address


def reopen(plan):
    """Open a run as the next job does."""
    return batch.open_batch_run(plan)


def status(plan):
    return batch.run_status(batch.open_batch_run(plan, with_source=False))


def step_all(plan, count=2, end=None):
    """Do all phases, or those before `end`, one job after the other."""
    while (current := status(plan)["current"]) not in (None, end):
        for index in range(count):
            batch.run_step(reopen(plan), Share(index, count), phase=current)


def step_in_any_order(plan, random, count):
    """Do all phases with jobs in any order, some of them twice, some too early or too late."""
    while (current := status(plan)["current"]) is not None:
        phases = [phase["name"] for phase in status(plan)["phases"]]
        jobs = [*range(count), random.randrange(count)]
        random.shuffle(jobs)
        for index in jobs:
            share = Share(index, count)
            if random.random() < 0.1:
                with suppress(NotYet):
                    batch.run_step(reopen(plan), share, phase=random.choice(phases))
            batch.run_step(reopen(plan), share, phase=current)


def nifti_labels(path):
    return np.asarray(nibabel.load(path).dataobj).T


def assert_only_labels(folder, *others):
    assert sorted(path.name for path in Path(folder).iterdir()) == sorted(("labels.zarr", *others))


def scratch_files(run, name):
    """Return the chunk files of an array in the scratch of a run."""
    files = [path for path in Path(run.scratch, name, "c").rglob("*") if path.is_file()]
    assert files
    return files


def messages(run, *phases):
    """Return the messages of the regions after some phases."""
    files = [path for phase in phases for path in Path(run.scratch, "messages", phase).iterdir()]
    assert files
    return files
