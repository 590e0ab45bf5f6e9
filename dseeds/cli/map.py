"""`dseeds map`: values of supervoxels return to their voxels."""

from __future__ import annotations

from typing import Annotated

import typer

from dseeds.cli.cluster import check_workers, client_at
from dseeds.cli.options import (
    OUTPUT,
    WORK,
    AsJson,
    Overwrite,
    Quiet,
    Region,
    Scheduler,
    TaskMemory,
    Threads,
    TlsCaFile,
    TlsCert,
    TlsKey,
    lengths,
)
from dseeds.cli.progress import following

TABLE = "Table"
EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds map labels.zarr labels.features mean.zarr --column intensity_mean\n\n"
    "dseeds map labels.nii.gz predictions.csv tumour.nii.gz --column probability --fill 0 --dtype float32\n\n"
    "dseeds map labels.zarr segments.parquet organs.zarr --column segment --as-labels --workers 8"
)


def map_(
    labels: Annotated[
        str,
        typer.Argument(
            metavar="LABELS", help="The supervoxels: a NIfTI file, or path or URL of a Zarr array or OME-Zarr image."
        ),
    ],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="What they are given: a folder made by dseeds features, a file that ends in .parquet, .csv or .tsv, "
            "or a folder of Parquet, with a row for each label in any order.",
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Where the values go: a new OME-Zarr group, or .nii or .nii.gz where the labels are NIfTI.",
        ),
    ],
    column: Annotated[
        str,
        typer.Option(metavar="NAME", help="The column of numbers or truth values to paint.", rich_help_panel=TABLE),
    ],
    label_column: Annotated[
        str, typer.Option("--label-column", metavar="NAME", help="The column of labels.", rich_help_panel=TABLE)
    ] = "label",
    fill: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="What voxels get whose label has no row or a missing value, and those that are masked out.",
            show_default="0, of floats NaN",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="What values are stored as, such as uint8, int16 or float32.",
            show_default="floats as they are, integers as narrow as they fit",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_labels: Annotated[
        bool,
        typer.Option(
            "--as-labels",
            help="Say in the target that its voxels are labels, such as segments, not intensities.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    region: Region = None,
    memory: TaskMemory = None,
    threads: Threads = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Worker processes on this machine, instead of threads.",
            show_default="none",
            rich_help_panel=WORK,
        ),
    ] = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Give every voxel the value of its supervoxel: a column of a table becomes a volume, out of core."""
    check_workers(workers, scheduler)

    from dseeds.measure.painting import paint

    with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
        painted = paint(
            labels,
            table,
            target,
            column=column,
            label_column=label_column,
            fill=fill,
            dtype=dtype,
            as_labels=as_labels,
            region=lengths("--region", region),
            memory=memory,
            threads=threads,
            workers=workers,
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print(painted.to_json())
    elif not quiet:
        print(painted)
