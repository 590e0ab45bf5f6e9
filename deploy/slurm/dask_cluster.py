"""A run on a Dask cluster whose workers are SLURM jobs: dask_cluster.py SOURCE TARGET STEP.

It runs where it is started, as the scheduler and the client, and needs little; `pip install dask-jobqueue cryptography`
where dseeds is installed. Source, target and the folder where it is started must be seen by all nodes.
"""

import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

import dseeds
from dseeds.parallel.cluster import KEPT_BYTES

# What to edit: a job, how many of them, and where they may run.
JOBS = 10
CORES = 8
WORKER_GIB = 2
WALLTIME_MINUTES = 240
SITE = {"account": None, "queue": None, "interface": None}

# Of each process beside the worker's limit, for its nanny; and before the job's end, for the work at hand.
NANNY_GIB = 0.5
MARGIN_MINUTES = 15
STAGGER_MINUTES = 10


def cluster(folder: Path) -> SLURMCluster:
    """Describe the jobs: a worker of one thread on each core, which ends in good order before the job's time is up.

    Parameters
    ----------
    folder : Path
        Where the jobs write what they say, and Dask the certificates that it makes for this cluster alone; all nodes
        see it.
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
        job_script_prologue=[
            f"export MALLOC_TRIM_THRESHOLD_={KEPT_BYTES} MALLOC_MMAP_THRESHOLD_={KEPT_BYTES}",
            "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 BLOSC_NTHREADS=1",
        ],
        job_name="dseeds",
        log_directory=str(folder),
        # Of the node itself: workers spill there.
        local_directory="/tmp",
        shared_temp_directory=str(folder),
        security=True,
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        **SITE,
    )


def run(source: str, target: str, step: str) -> None:
    """Segment on the cluster, and go on with a run that has been interrupted."""
    with cluster(Path("dseeds-jobs").absolute()) as jobs:
        # Not `scale`: jobs that have ended are to be replaced by others.
        jobs.adapt(minimum_jobs=JOBS, maximum_jobs=JOBS)
        with jobs.get_client() as client:
            print(dseeds.segment(source, target, step=step, client=client, resume=True))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} SOURCE TARGET STEP")
    run(*sys.argv[1:])
