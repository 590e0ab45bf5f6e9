"""`dseeds segment`: segment a volume into supervoxels."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.errors import print_advice
from dseeds.cli.options import KeepScratchOption, MemoryOption, WorkersOption, output_option, work_option
from dseeds.cli.output import OutputOptions
from dseeds.cli.run_arguments import RunArguments
from dseeds.cli.tables import print_volumes

EXAMPLES = (
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window abdomen",
    "dseeds segment brain.ome.zarr --into-image --level 1 --step 16",
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB",
    "dseeds segment t1.nii.gz t2.nii.gz flair.nii.gz labels.nii.gz --mask brain.nii.gz --min-size 20",
    "dseeds segment 'scans/*.nii.gz' --into labels --step 8mm --resume",
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786",
    "dseeds segment s3://lab/embryo.zarr s3://lab/labels.zarr --scratch s3://fast/tmp --resume",
)


def segment_command(
    run: RunArguments,
    cluster: ClusterOptions,
    output: OutputOptions,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    keep_scratch: KeepScratchOption = False,
    resume: Annotated[
        bool,
        work_option(
            "--resume",
            help="Resume the unfinished run of this target, if there is one. Options not given are taken from it.",
        ),
    ] = False,
    into: Annotated[
        str | None,
        output_option(
            metavar="DIR",
            help="Segment every SOURCE on its own, and write its labels into this folder: as NAME.nii.gz if it is "
            "NIfTI, else as NAME.zarr. A SOURCE may be a pattern in quotes, such as 'scans/**/*.nii.gz', and --mask an "
            "address with {name}. With --resume, volumes whose labels exist are skipped.",
        ),
    ] = None,
    name_folders: Annotated[
        int | None,
        output_option(
            "--name-folders",
            metavar="N",
            help="With --into, begin the names of labels with those of the N folders that their SOURCE lies in.",
            show_default="0",
        ),
    ] = None,
    html: Annotated[
        str | None,
        output_option(
            metavar="FILE",
            help="Also write a report of the run as an HTML page, see dseeds report. This reads all labels.",
        ),
    ] = None,
) -> None:
    """Segment a volume into supervoxels: in this process if it fits in memory, else out of core on a Dask cluster.

    The labels are the same, bit for bit, with any number of workers and any amount of memory. With --into, many volumes
    are segmented, several at a time.
    """
    if into is not None:
        excluded = {
            "--scheduler": cluster.scheduler,
            "--workers": workers,
            "--scratch": run.scratch,
            "--region": run.region,
            "--keep-scratch": keep_scratch,
            "--html": html,
            "--into-image": run.into_image,
            "--label-name": run.label_name,
        }
        for name, value in excluded.items():
            if value:
                raise typer.BadParameter("cannot be combined with --into", param_hint=f"'{name}'")
        _segment_many(run, into, output, memory, resume, name_folders or 0)
        return
    if name_folders is not None:
        raise typer.BadParameter("needs --into", param_hint="'--name-folders'")
    source, target = run.source_and_target()
    try:
        with cluster.connect(workers) as client, output.progress() as progress:
            from dseeds.api.segment import segment

            report = segment(
                source,
                target,
                **vars(run.run_options()),
                memory=memory,
                workers=workers,
                client=client,
                overwrite=run.overwrite,
                resume=resume,
                keep_scratch=keep_scratch,
                progress=progress,
                html=html,
            )
    except KeyboardInterrupt as stop:
        # Typer replaces this exception by one without notes.
        print_advice(stop)
        raise
    output.print_result(report.to_json(), partial(print, report))


def _segment_many(
    run: RunArguments, folder: str, output: OutputOptions, memory: str | None, resume: bool, name_folders: int
) -> None:
    """Segment many volumes, print a table of them, and exit with an error if any failed."""
    from dseeds.api.segment_many import VolumeResult, segment_many

    sources, options = run.sources(), run.run_options().given()
    mask = options.pop("mask", None)
    with output.progress() as progress:
        progress.begin("volumes", len(sources))

        def show(result: VolumeResult) -> None:
            if result.error is not None:
                progress.print(f"{result.source}: {result.error}")
            for note in result.report.notes if result.report is not None else ():
                progress.print(f"{result.source}: note: {note}")
            progress.advance("volumes")

        results = segment_many(
            sources,
            folder,
            name_folders=name_folders,
            mask=mask,
            memory=memory,
            overwrite=run.overwrite,
            resume=resume,
            on_result=show,
            **options,
        )
        progress.end("volumes")
    document = json.dumps([result.to_dict() for result in results], indent=2)
    output.print_result(document, partial(print_volumes, results))
    if failed := sum(result.error is not None for result in results):
        raise ValueError(f"{failed} of {len(results)} volumes failed")
