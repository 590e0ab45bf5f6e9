"""`dseeds features`: supervoxels and their contacts are measured."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dseeds.cli.cluster import client_at
from dseeds.cli.options import (
    OUTPUT,
    AsJson,
    ChannelAxis,
    Level,
    Overwrite,
    Percentiles,
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
    Window,
    channel_axis_of,
    lengths,
    numbers,
    one_or_several,
)
from dseeds.cli.progress import following

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds features labels.zarr embryo.zarr\n\n"
    "dseeds features labels.nii.gz ct.nii.gz -o organs.features --window abdomen\n\n"
    "dseeds features labels.zarr t1.nii.gz t2.nii.gz -o labels.features --scheduler tcp://10.0.0.1:8786"
)


def features(
    labels: Annotated[
        str,
        typer.Argument(metavar="LABELS", help="The supervoxels, in any format that segment reads; 0 is masked out."),
    ],
    image: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="The image on the same grid; or several, each a channel.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="A new folder for the table and the graph.",
            show_default="beside the labels, with the ending .features",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    spacing: Spacing = None,
    window: Window = None,
    percentiles: Percentiles = None,
    volume: Volume = None,
    level: Level = None,
    channel_axis: ChannelAxis = None,
    region: Region = None,
    memory: TaskMemory = None,
    threads: Threads = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure supervoxels: a table and the graph of which touch, in Parquet, out of core.

    Each supervoxel's size, place, shape and intensities, and each contact's area and contrast, with exact sums: no
    number depends on how the volume is cut.
    """
    from dseeds.engine.run import features_beside
    from dseeds.measure.features import features as measure
    from dseeds.storage.location import open_location

    address = open_location(labels).address
    if output is None and ".zarr/" in address:
        raise typer.BadParameter(
            f"beside {labels} is inside of another Zarr group; say where the features go", param_hint="'--output'"
        )
    target = output or features_beside(address)
    with client_at(scheduler, tls_ca_file, tls_cert, tls_key) as client, following(quiet) as progress:
        found = measure(
            labels,
            one_or_several(image),
            target,
            spacing=numbers("--spacing", spacing, float),
            window=window,
            percentiles=numbers("--percentiles", percentiles, float),
            volume=volume,
            level=level,
            channel_axis=channel_axis_of(channel_axis),
            region=lengths("--region", region),
            memory=memory,
            threads=threads,
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    told = {"target": found.address, "supervoxels": found.supervoxels, "contacts": found.contacts}
    if as_json:
        print(json.dumps(told, indent=2))
    elif not quiet:
        print(f"{found.supervoxels} supervoxels, {found.contacts} contacts: {found.address}")
