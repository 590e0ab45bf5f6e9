"""`dseeds evaluate`: supervoxels are measured, against a true segmentation, the image, and as such."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dseeds.cli.cluster import client_at
from dseeds.cli.options import (
    CELLS,
    IMAGE,
    WORK,
    AsJson,
    Level,
    Quiet,
    Region,
    Scheduler,
    Spacing,
    TaskMemory,
    Threads,
    TlsCaFile,
    TlsCert,
    TlsKey,
    Volume,
    lengths,
    numbers,
)
from dseeds.cli.progress import following
from dseeds.cli.tables import print_figures

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds evaluate labels.zarr body.zarr/labels/organs --image body.zarr\n\n"
    "dseeds evaluate labels.nii.gz organs.nii.gz --tolerance 2mm --json\n\n"
    "dseeds evaluate others.zarr --chunks 128"
)


def evaluate(
    labels: Annotated[
        str,
        typer.Argument(metavar="LABELS", help="The supervoxels, in any format that segment reads; 0 is masked out."),
    ],
    truth: Annotated[
        str | None,
        typer.Argument(metavar="TRUTH", help="The true segmentation on the same grid; 0 is background."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="The intensities; with them comes the explained variation.", rich_help_panel=IMAGE
        ),
    ] = None,
    tolerance: Annotated[
        str,
        typer.Option(
            metavar="N|LENGTH",
            help="How far off a boundary may be for the boundary recall: voxels along every axis, or a length such as "
            "3mm.",
            rich_help_panel=CELLS,
        ),
    ] = "1",
    chunks: Annotated[
        str | None,
        typer.Option(
            metavar="N|Z,Y,X",
            help="Measure whether there are more boundaries on the planes of a grid of such chunks: seams.",
            rich_help_panel=CELLS,
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|Z,Y,X|LENGTH",
            help="Step of the lattice that the supervoxels grew from, for seams are compared with planes like them.",
            show_default="what the labels say, if dseeds made them",
            rich_help_panel=CELLS,
        ),
    ] = None,
    spacing: Spacing = None,
    volume: Volume = None,
    level: Level = None,
    region: Region = None,
    memory: TaskMemory = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    scratch: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder or URL for intermediate data, which all workers see: some 100 bytes for each supervoxel.",
            show_default="the machine's own for temporary files",
            rich_help_panel=WORK,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure supervoxels of any origin: against a true segmentation, against the image, and as such, out of core.

    All sums are exact, so that no figure depends on how the volume is cut.
    """
    from dseeds.quality.evaluation import evaluate as measure

    with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
        figures = measure(
            labels,
            truth,
            image=image,
            tolerance=tolerance,
            chunks=lengths("--chunks", chunks),
            step=step,
            spacing=numbers("--spacing", spacing, float),
            volume=volume,
            level=level,
            region=lengths("--region", region),
            memory=memory,
            threads=threads,
            client=client,
            scratch=scratch,
            progress=progress,
        )
    if as_json:
        print(json.dumps(figures, indent=2))
    elif not quiet:
        print_figures(figures)
