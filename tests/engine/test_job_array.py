"""The share of a batch job: which regions it does, from the variables of its batch system."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dseeds.engine.job_array import Share, share_of

SLURM = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("COUNT", "MIN", "MAX", "STEP"))


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
    with pytest.raises(ValueError, match="given neither by --index nor any of SLURM_ARRAY_TASK_ID"):
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
