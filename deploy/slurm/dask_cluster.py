"""Segment a volume on a Dask cluster whose workers are SLURM jobs: dask_cluster.py SOURCE TARGET STEP.

This process is the scheduler and the client, and needs few resources. Run `pip install dask-jobqueue cryptography` in
the environment of dseeds. All nodes must see the source, the target and the working folder.
"""

import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

import dseeds

# To edit: the number and size of jobs, and where they may run.
JOBS = 10
CORES = 8
WORKER_GIB = 2
WALLTIME_MINUTES = 240
SITE = {"account": None, "queue": None, "interface": None}

# The memory of a worker's nanny, in addition to the worker's limit.
NANNY_GIB = 0.5
# Workers stop this long before the job's time limit, so that they can finish their tasks.
MARGIN_MINUTES = 15
STAGGER_MINUTES = 10


def create_cluster(folder: Path) -> SLURMCluster:
    """Return a cluster of jobs with one single-threaded worker per core, which stops before the job's time limit.

    Parameters
    ----------
    folder : Path
        The folder for the output of the jobs and for the certificates that Dask creates for this cluster alone; all
        nodes must see it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lifetime = WALLTIME_MINUTES - MARGIN_MINUTES - STAGGER_MINUTES
    return SLURMCluster(
        cores=CORES,
        processes=CORES,
        memory=f"{CORES * WORKER_GIB}GiB",
        job_mem=f"{int(CORES * (WORKER_GIB + NANNY_GIB) * 1024)}M",
        walltime=f"{WALLTIME_MINUTES // 60:02d}:{WALLTIME_MINUTES % 60:02d}:00",
        worker_extra_args=["--lifetime", f"{lifetime}m", "--lifetime-stagger", f"{STAGGER_MINUTES}m", "--no-dashboard"],
        job_script_prologue=["export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 BLOSC_NTHREADS=1"],
        job_name="dseeds",
        log_directory=str(folder),
        # On the node's own disk, because workers spill there.
        local_directory="/tmp",
        shared_temp_directory=str(folder),
        security=True,
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **SITE,
    )


def run(source: str, target: str, step: str) -> None:
    """Segment a volume, or resume an interrupted run, on the cluster."""
    with create_cluster(Path("dseeds-jobs").absolute()) as jobs:
        # Unlike `scale`, `adapt` replaces jobs that have ended.
        jobs.adapt(minimum_jobs=JOBS, maximum_jobs=JOBS)
        with jobs.get_client() as client:
            print(dseeds.segment(source, target, step=step, client=client, resume=True))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} SOURCE TARGET STEP")
    run(*sys.argv[1:])
