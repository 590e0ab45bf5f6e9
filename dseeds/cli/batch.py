"""`dseeds init`, `step`, `status`, `finalize`, `debug-region`: a run as an array of batch jobs, without a scheduler."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dseeds.cli import errors
from dseeds.cli.options import (
    WORK,
    AsJson,
    Bins,
    ChannelAxis,
    Chunks,
    Compactness,
    Features,
    IntoImage,
    KeepScratch,
    LabelName,
    Level,
    Levels,
    Mask,
    MinSize,
    Overwrite,
    Percentiles,
    Pyramid,
    Quiet,
    Region,
    Scratch,
    Segments,
    Shards,
    Sources,
    Spacing,
    Step,
    Target,
    Volume,
    Weights,
    Window,
    asked,
    places,
)
from dseeds.core.formatting import format_bytes

INIT_EXAMPLES = (
    "[bold]Example[/bold]\n\n"
    "dseeds init embryo.zarr labels.zarr --step 16 --memory 4GiB\n\n"
    "sbatch --array=0-99 --wrap 'dseeds step labels.zarr.dseeds --wait'\n\n"
    "dseeds finalize labels.zarr.dseeds"
)
STEP_EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds step labels.zarr.dseeds --wait    # in an array job: all phases\n\n"
    "dseeds step labels.zarr.dseeds --phase sweep-03 --index 7 --count 100"
)
STATUS_EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds status labels.zarr.dseeds\n\n"
    "dseeds status labels.zarr.dseeds --json | jq -r '.phases[].name'"
)
FINALIZE_EXAMPLES = "[bold]Example[/bold]\n\ndseeds finalize labels.zarr.dseeds"
DEBUG_EXAMPLES = "[bold]Example[/bold]\n\ndseeds debug-region labels.zarr.dseeds --phase sweep-03 --region 17"

Plan = Annotated[
    str, typer.Argument(metavar="PLAN", help="The run's folder, as init says, such as labels.zarr.dseeds.")
]
Phase = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which phase, as status lists them.", show_default="the next")
]


def init(
    context: typer.Context,
    source: Sources = None,
    target: Target = None,
    step: Step = None,
    n_segments: Segments = None,
    spacing: Spacing = None,
    mask: Mask = None,
    window: Window = None,
    percentiles: Percentiles = None,
    bins: Bins = None,
    compactness: Compactness = None,
    min_size: MinSize = None,
    levels: Levels = None,
    pyramid: Pyramid = None,
    features: Features = False,
    volume: Volume = None,
    level: Level = None,
    channel_axis: ChannelAxis = None,
    weights: Weights = None,
    region: Region = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What one job may use, such as 4GiB.", rich_help_panel=WORK)
    ] = "2GiB",
    scratch: Scratch = None,
    chunks: Chunks = None,
    shards: Shards = None,
    into_image: IntoImage = False,
    label_name: LabelName = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Begin a run of batch jobs: check everything, write it down, and say which phases there are.

    Then all jobs of an array run `dseeds step`, for each phase or, with --wait, once; `dseeds finalize` publishes.
    """
    from dseeds.engine import batch
    from dseeds.engine.run import RunOptions
    from dseeds.parallel.cluster import parse_memory

    sources, place = places(source, target, into_image, label_name)
    run = batch.begin_batch(sources, place, RunOptions(**asked(context)), parse_memory(memory), overwrite=overwrite)
    found = {"plan": run.folder.address, **batch.run_status(run)}
    if as_json:
        print(json.dumps(found, indent=2))
    elif not quiet:
        print(run.folder.address)
        Console(stderr=True).print(f"{len(found['phases'])} phases of {found['phases'][0]['tasks']} regions")


def step(
    plan: Plan,
    phase: Phase = None,
    index: Annotated[
        int | None,
        typer.Option(metavar="I", help="Which job of the array this is, from 0.", show_default="what the system says"),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many jobs there are.", show_default="what the system says"),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the other jobs and go on with the next phase, to the last one.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="With --wait: take over what others leave, when nothing gets done so long."
        ),
    ] = 300,
    quiet: Quiet = False,
) -> None:
    """Do a job's share of a phase. It can be repeated, killed and done in any order.

    The environment of SLURM, AWS Batch, PBS, SGE, LSF, Google Batch, Cloud Run and Kubernetes says which job this is;
    PBS and Kubernetes do not say of how many: tell with --count. To send a part of an array once more, tell that too.
    Exit code 75 says that other jobs have to do their share of an earlier phase first.
    """
    from dseeds.engine import batch

    share = batch.share_of(os.environ, index, count)
    found = batch.run_step(batch.open_batch_run(plan), share, phase=phase, wait=wait, patience=patience)
    if not quiet:
        print(f"{found['phase'] or 'published'}: {found['done']} regions done by this job")


def status(plan: Plan, as_json: AsJson = False) -> None:
    """Say how far a run is, of batch jobs or any other."""
    from dseeds.engine import batch

    found = batch.run_status(batch.open_batch_run(plan, with_source=False))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("phase", "done", "regions")
    for entry in found["phases"]:
        table.add_row(entry["name"], str(entry["done"]), str(entry["tasks"]))
    console = Console()
    console.print(table)
    if found["failure"]:
        console.print(_failed(found["failure"]), highlight=False, soft_wrap=True)
    console.print("all is done: dseeds finalize publishes" if found["complete"] else f"at {found['current']}")


def _failed(failure: dict[str, Any]) -> str:
    return f"{failure['phase']} of region {failure['region']} has failed: {failure['reason']}"


def finalize(plan: Plan, keep_scratch: KeepScratch = False, quiet: Quiet = False) -> None:
    """Publish the labels when all phases are done, and remove what is known of the run."""
    from dseeds.engine import batch

    run = batch.open_batch_run(plan)
    course = batch.finalize_run(run, keep_scratch=keep_scratch)
    if not quiet:
        print(f"{course.supervoxels} supervoxels: {run.target}")


def debug_region(
    plan: Plan,
    phase: Annotated[str, typer.Option(metavar="NAME", help="Which phase, as status lists them.")],
    region: Annotated[int, typer.Option(metavar="N", help="Which region, from 0.")],
) -> None:
    """Do one region's task alone, in this process, and show where its error comes from."""
    from dseeds.engine import batch

    try:
        result = batch.debug_region_task(batch.open_batch_run(plan), phase, region)
    except Exception as error:
        Console(stderr=True).print_exception()
        # What is no sentence has been shown already.
        if errors.sentence(error) is None:
            raise typer.Exit(errors.FAILED) from None
        raise
    print(
        f"{phase} of region {region}: {result.outcome}, {result.seconds:.2f} s, {result.read} bytes read, "
        f"{result.written} written, {format_bytes(result.peak_memory)} at the peak"
    )
