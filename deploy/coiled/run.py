"""Segment a volume on machines that Coiled starts and stops: run.py SOURCE TARGET STEP.

Source and target are addresses in an object store, for which Coiled forwards your credentials. Coiled uses TLS between
all of Dask's processes, with certificates of its own, and installs the local environment's packages on the machines.
"""

import sys

from coiled import Cluster

import dseeds

MACHINES = 8
# Per machine; its threads share the memory.
CORES = 2
MEMORY = "8 GiB"


def run(source: str, target: str, step: str) -> None:
    """Segment a volume, or resume an interrupted run, on a cluster that is stopped afterwards."""
    with (
        Cluster(
            name="dseeds",
            n_workers=MACHINES,
            worker_cpu=CORES,
            worker_memory=MEMORY,
            # If a worker were not restarted, its machine would stop with it and not be replaced.
            worker_options={
                "nthreads": CORES,
                "lifetime": "4 hours",
                "lifetime_stagger": "30 minutes",
                "lifetime_restart": True,
            },
            environ={"OMP_NUM_THREADS": "1"},
            spot_policy="spot_with_fallback",
            idle_timeout="20 minutes",
        ) as cluster,
        cluster.get_client() as client,
    ):
        print(dseeds.segment(source, target, step=step, client=client, resume=True))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} SOURCE TARGET STEP")
    run(*sys.argv[1:])
