"""Arrays of batch jobs: which job this is, from the environment variables of batch systems, and its share of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The environment variables of batch systems: the index of this job, the number of jobs, the first and the last index,
# and the step between indices. A number stands for the value of a variable that does not exist.
ARRAYS = (
    (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
    ),
    ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE", "", "", ""),
    # PBS Pro and OpenPBS, and Torque.
    ("PBS_ARRAY_INDEX", "", "", "", ""),
    ("PBS_ARRAYID", "", "", "", ""),
    ("SGE_TASK_ID", "", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    # LSF, where 0 is no array.
    ("LSB_JOBINDEX", "", "1", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
    # Google Batch, Cloud Run and Kubernetes.
    ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT", "", "", ""),
    ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT", "", "", ""),
    ("JOB_COMPLETION_INDEX", "", "", "", ""),
)


@dataclass(frozen=True)
class Share:
    """The share of one job of an array: every `count`-th region, from the `index`-th on, which counts from 0.

    A region has the same job in every phase, so that the job finds the region's state in its memory.

    >>> Share(1, 3).of([10, 12, 13, 14])
    [10, 13]
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"index {self.index} is not in an array of {self.count} jobs, which are counted from 0: see --index "
                f"and --count."
            )

    def of(self, regions: Iterable[int]) -> list[int]:
        """Return the share of a phase's regions."""
        return [number for number in regions if self.owner(number) == self.index]

    def owner(self, number: int) -> int:
        """Return the index of the job that a region belongs to."""
        return number % self.count


def share_of(environment: Mapping[str, str], index: int | None = None, count: int | None = None) -> Share:
    """Return the share of this job, from `index` and `count` or else from the environment.

    Array indices may start anywhere, as they are taken modulo the number of jobs. With `count`, a job has the same
    share in whatever part of the array it is submitted again. Raises a ValueError if indices are left out in between.

    >>> slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "16"}
    >>> share_of(slurm), share_of(slurm, count=5)
    (Share(index=7, count=16), Share(index=2, count=5))
    """
    if index is None:
        array = _read_array(environment)
        index, step = array.index, 1
        if count is None:
            count, step = array.job_count(), max(1, array.step)
        index = index // step % max(1, count)
    elif count is None:
        raise ValueError(f"the number of jobs in the array of job {index} is not known: give it with --count.")
    return Share(index, count)


@dataclass(frozen=True)
class _JobArray:
    """The variables of a batch system, in the order of `ARRAYS`; -1 for those that are not set."""

    index: int
    count: int
    first: int
    last: int
    step: int

    def job_count(self) -> int:
        """Return the number of jobs; raise a ValueError if the variables are incomplete or contradict each other."""
        count = self.count
        if min(self.first, self.last) >= 0:
            count = (self.last - self.first) // max(1, self.step) + 1
        if count < 0 or self.count not in (-1, count):
            raise ValueError("the number of jobs in the whole array is not known: give it with --count.")
        return count


def _read_array(environment: Mapping[str, str]) -> _JobArray:
    for names in ARRAYS:
        texts = [name if name.isdecimal() else environment.get(name, "") for name in names]
        array = _JobArray(*(int(text) if text.isdecimal() else -1 for text in texts))
        if array.index >= 0 and not (names[2].isdecimal() and array.index < array.first):
            return array
    variables = ", ".join(names[0] for names in ARRAYS)
    raise ValueError(f"the index of this job is given neither by --index nor any of {variables}.")
