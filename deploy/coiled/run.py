"""A run on machines that Coiled starts and stops: run.py SOURCE TARGET STEP.

Source and target are addresses in an object store, which Coiled forwards your credentials for. Coiled speaks TLS
between all of Dask's processes, with certificates of its own, and installs on the machines what is installed here.
"""

import sys

from coiled import Cluster

import dseeds
from dseeds.parallel.cluster import KEPT_BYTES

MACHINES = 8
# Of each machine; its threads share the memory.
CORES = 2
MEMORY = "8 GiB"


def run(source: str, target: str, step: str) -> None:
    """Segment on a cluster that goes when this ends, and go on with a run that has been interrupted."""
    with (
        Cluster(
            name="dseeds",
            n_workers=MACHINES,
            worker_cpu=CORES,
            worker_memory=MEMORY,
            # A worker that is not restarted takes its machine along, and is replaced by no other.
            worker_options={
                "nthreads": CORES,
                "lifetime": "4 hours",
                "lifetime_stagger": "30 minutes",
                "lifetime_restart": True,
            },
            environ={
                "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
                "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
                "OMP_NUM_THREADS": "1",
            },
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
