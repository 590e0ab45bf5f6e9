"""`dseeds map`: paint values of supervoxels onto their voxels."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import (
    LabelsArgument,
    OverwriteOption,
    TaskOptions,
    output_option,
    work_option,
)
from dseeds.cli.output import OutputOptions

TABLE = "Table"
EXAMPLES = (
    "dseeds map labels.zarr labels.features mean.zarr --column intensity_mean",
    "dseeds map labels.nii.gz predictions.csv tumour.nii.gz --column probability --fill 0 --dtype float32",
    "dseeds map labels.zarr segments.parquet organs.zarr --column segment --as-labels --workers 8",
)


def map_command(
    labels: LabelsArgument,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="The values: a folder written by dseeds features, a file with the suffix .parquet, .csv or .tsv, or a "
            "folder of Parquet files, with one row per label in any order.",
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="Where to write the volume: a new OME-Zarr group, or .nii or .nii.gz if the labels are NIfTI.",
        ),
    ],
    column: Annotated[
        str, typer.Option(metavar="NAME", help="The column of numbers or booleans to paint.", rich_help_panel=TABLE)
    ],
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    label_column: Annotated[
        str, typer.Option("--label-column", metavar="NAME", help="The column of labels.", rich_help_panel=TABLE)
    ] = "label",
    fill: Annotated[
        float | None,
        output_option(
            metavar="NUMBER",
            help="Value of voxels outside the mask, and of those whose label has no row or a missing value.",
            show_default="0, or NaN for floats",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        output_option(
            metavar="TYPE",
            help="Data type of the stored values, such as uint8, int16 or float32.",
            show_default="the column's own for floats, else the narrowest that holds all values",
        ),
    ] = None,
    as_labels: Annotated[
        bool,
        output_option("--as-labels", help="Declare the target as labels, such as segments, and not as intensities."),
    ] = False,
    workers: Annotated[
        int | None,
        work_option(metavar="N", help="Worker processes on this machine, instead of threads.", show_default="none"),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Paint each voxel with the value of its supervoxel: a table column becomes a volume, out of core."""
    with cluster.connect(workers) as client, output.progress() as progress:
        from dseeds.measure.painting import paint

        summary = paint(
            labels,
            table,
            target,
            column=column,
            label_column=label_column,
            fill=fill,
            dtype=dtype,
            as_labels=as_labels,
            **vars(tasks),
            workers=workers,
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    output.print_result(summary.to_json(), partial(print, summary))
