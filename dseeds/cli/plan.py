"""`dseeds plan`: predict what a run will take."""

from __future__ import annotations

from typing import Annotated

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import MemoryOption, WorkersOption, work_option
from dseeds.cli.output import JsonOption
from dseeds.cli.run_arguments import RunArguments

EXAMPLES = (
    "dseeds plan embryo.zarr labels.zarr --step 16 --workers 4 --memory 2GiB",
    "dseeds plan embryo.zarr labels.zarr --no-calibrate --json | jq .scratch_bytes",
)


def plan_command(
    run: RunArguments,
    cluster: ClusterOptions,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    calibrate: Annotated[
        bool,
        work_option(
            "--calibrate/--no-calibrate",
            help="Estimate the time from a trial on a small part of the volume, which takes some seconds.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Predict what `segment` will take with the same options: tasks, memory, disk space and time.

    Nothing is written.
    """
    source, target = run.source_and_target()
    with cluster.connect(workers) as client:
        from dseeds.engine.planning import plan

        prediction = plan(
            source,
            target,
            **vars(run.run_options()),
            memory=memory,
            workers=workers,
            client=client,
            overwrite=run.overwrite,
            calibrate=calibrate,
        )
    print(prediction.to_json() if as_json else prediction)
