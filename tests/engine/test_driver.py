"""The driver: how many tasks of each stage it announces."""

import nibabel
import numpy as np
import pytest

from dseeds.engine import batch, driver
from dseeds.engine.job_array import Share
from tests.support.batches import init, reopen, status
from tests.support.runs import as_zarr, noise


def expected_totals(plan):
    """Count the tasks that remain by stage, from the phases that are listed."""
    totals = {}
    for phase in status(plan)["phases"]:
        name, _, turn = phase["name"].partition("-")
        if name == "sweep":
            name += "-voxels" if int(turn) >= 9 else "-blocks"
        totals[name] = totals.get(name, 0) + (phase["tasks"] if phase["done"] < phase["tasks"] else 0)
    return {name: count for name, count in totals.items() if count}


@pytest.mark.parametrize("options", [{}, {"min_size": 4, "mask": "auto"}])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_totals_are_those_of_the_phases_to_come(tmp_path, options, dtype):
    """NaN may act as a mask, so the tasks that one makes necessary are announced too."""
    source = as_zarr(tmp_path / "image.zarr", noise((12, 12, 24), dtype=dtype), 8)
    plan = init(source, tmp_path / "labels.zarr", step=4, region=12, **options)
    for _ in range(3):
        run = reopen(plan)
        # What is done in all regions is closed first.
        state, expected = batch._advance(run)[0], expected_totals(plan)
        totals = driver._task_totals(run, state)
        assert {name: totals[name] for name in expected} == expected
        assert totals["import"] == totals["export"] == 0
        # What is done is not begun again, and parts are only needed with a mask.
        others = {name for name, count in totals.items() if count} - expected.keys() - {"pyramid", "contrast"}
        assert others <= {"window", "histogram", "quantise", "parts"}
        batch.run_step(run, Share(0, 1))


def test_slabs_and_imports_are_counted(tmp_path):
    nibabel.save(nibabel.Nifti1Image(noise((12, 12, 24), dtype="int16").T, np.eye(4)), tmp_path / "image.nii.gz")
    plan = init(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz", step=4, region=12)
    run = reopen(plan)
    totals = driver._task_totals(run, run.state())
    assert totals["import"] == totals["export"] == 1
