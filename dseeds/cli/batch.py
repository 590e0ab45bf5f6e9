"""`dseeds init`, `step`, `status`, `finalize`, `debug-region`: a run as an array of batch jobs, without a scheduler."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dseeds.cli import errors
from dseeds.cli.options import KeepScratchOption, work_option
from dseeds.cli.output import JsonOption, OutputOptions, QuietOption
from dseeds.cli.run_arguments import RunArguments
from dseeds.core.formatting import format_bytes

INIT_EXAMPLES = (
    "dseeds init embryo.zarr labels.zarr --step 16 --memory 4GiB",
    "sbatch --array=0-99 --wrap 'dseeds step labels.zarr.dseeds --wait'",
    "dseeds finalize labels.zarr.dseeds",
)
STEP_EXAMPLES = (
    "dseeds step labels.zarr.dseeds --wait    # in an array job: all phases",
    "dseeds step labels.zarr.dseeds --phase sweep-03 --index 7 --count 100",
)
STATUS_EXAMPLES = (
    "dseeds status labels.zarr.dseeds",
    "dseeds status labels.zarr.dseeds --json | jq -r '.phases[].name'",
)
FINALIZE_EXAMPLES = ("dseeds finalize labels.zarr.dseeds",)
DEBUG_REGION_EXAMPLES = ("dseeds debug-region labels.zarr.dseeds --phase sweep-03 --region 17",)

PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="The run's folder, printed by init, such as labels.zarr.dseeds.")
]


def init_command(
    run: RunArguments,
    output: OutputOptions,
    memory: Annotated[str, work_option(metavar="SIZE", help="Memory of one job, such as 4GiB.")] = "2GiB",
) -> None:
    """Prepare a run of batch jobs: check everything, write the plan, and count the phases.

    Then run `dseeds step` in all jobs of an array, for each phase or, with --wait, once; `dseeds finalize` publishes.
    """
    from dseeds.engine import batch
    from dseeds.parallel.capacity import parse_memory

    source, target = run.source_and_target()
    prepared = batch.begin_batch(source, target, run.run_options(), parse_memory(memory), overwrite=run.overwrite)
    folder, status = prepared.folder.address, batch.run_status(prepared)

    def print_summary() -> None:
        print(folder)
        Console(stderr=True).print(f"{len(status['phases'])} phases of {status['phases'][0]['tasks']} regions")

    output.print_result(json.dumps({"plan": folder, **status}, indent=2), print_summary)


def step_command(
    plan: PlanArgument,
    phase: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the phase, see status.", show_default="the next phase")
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(metavar="I", help="Index of this job in the array, from 0.", show_default="from the batch system"),
    ] = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", help="Number of jobs in the array.", show_default="from the batch system")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Continue up to the last phase; regions wait for those of other jobs around."),
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="With --wait: take over the regions of a job without news of it for this many seconds.",
        ),
    ] = 300,
    quiet: QuietOption = False,
) -> None:
    """Do one job's share of a phase. Jobs can be repeated, killed and run in any order.

    The index is read from the environment of SLURM, AWS Batch, PBS, SGE, LSF, Google Batch, Cloud Run or Kubernetes.
    PBS and Kubernetes do not provide the number of jobs, so --count is required there. It is also required to resubmit
    a part of an array. Exit code 75 means that other jobs must finish an earlier phase first.
    """
    from dseeds.engine import batch
    from dseeds.engine.job_array import share_of

    share = share_of(os.environ, index, count)
    progress = batch.run_step(batch.open_batch_run(plan), share, phase=phase, wait=wait, patience=patience)
    if not quiet:
        print(f"{progress['phase'] or 'published'}: {progress['done']} regions done by this job")


def status_command(plan: PlanArgument, as_json: JsonOption = False) -> None:
    """Show the progress of a run, of batch jobs or on Dask."""
    from dseeds.engine import batch

    status = batch.run_status(batch.open_batch_run(plan, with_source=False))
    if as_json:
        print(json.dumps(status, indent=2))
        return
    table = Table("phase", "done", "regions")
    for phase in status["phases"]:
        table.add_row(phase["name"], str(phase["done"]), str(phase["tasks"]))
    console = Console()
    console.print(table)
    if failure := status["failure"]:
        line = f"{failure['phase']} of region {failure['region']} has failed: {failure['reason']}"
        console.print(line, highlight=False, soft_wrap=True)
    for note in status["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print("complete: publish with dseeds finalize" if status["complete"] else f"at {status['current']}")


def finalize_command(plan: PlanArgument, keep_scratch: KeepScratchOption = False, quiet: QuietOption = False) -> None:
    """Publish the labels after all phases, and remove the run's folder."""
    from dseeds.engine import batch
    from dseeds.engine.outcome import describe_run

    run = batch.open_batch_run(plan)
    state = batch.finalize_run(run, keep_scratch=keep_scratch)
    if not quiet:
        print(f"{state.supervoxels} supervoxels: {run.target.address}")
        for note in describe_run(run, state):
            print(f"note: {note}")


def debug_region_command(
    plan: PlanArgument,
    phase: Annotated[str, typer.Option(metavar="NAME", help="Name of the phase, see status.")],
    region: Annotated[int, typer.Option(metavar="N", help="Index of the region, from 0.")],
) -> None:
    """Run the task of one region in this process, and show the traceback of its error."""
    from dseeds.engine import batch

    try:
        result = batch.debug_region_task(batch.open_batch_run(plan), phase, region)
    except Exception as error:
        Console(stderr=True).print_exception()
        # Without a sentence, the error would show its traceback once more.
        if errors.describe_error(error) is None:
            raise typer.Exit(errors.FAILED) from None
        raise
    print(
        f"{phase} of region {region}: {result.outcome}, {result.seconds:.2f} s, {result.read} bytes read, "
        f"{result.written} written, {format_bytes(result.peak_memory)} at the peak"
    )
