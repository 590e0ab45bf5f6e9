"""`dseeds pool`: means and standard deviations of channels for each supervoxel."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import (
    ChannelAxisOption,
    LabelsArgument,
    LevelOption,
    OverwriteOption,
    TaskOptions,
    VolumeOption,
    cells_option,
    complete_from,
    one_or_several,
)
from dseeds.cli.output import OutputOptions, choose_folder, folder_option

EXAMPLES = (
    "dseeds pool labels.zarr embeddings.zarr --channel-axis 0",
    "dseeds pool labels.nii.gz t1.nii.gz t2.nii.gz -o labels.pool --statistics mean,std,max",
)


def pool_command(
    labels: LabelsArgument,
    image: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="The channels, on the labels' grid or on one coarser by whole factors; several images are channels.",
        ),
    ],
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    statistics: Annotated[
        str,
        cells_option(
            metavar="NAME,...",
            help="What to compute: mean, std, min and max.",
            autocompletion=complete_from("mean", "std", "max", "mean,std", "mean,std,max"),
        ),
    ] = "mean,std",
    folder: Annotated[str | None, folder_option(".pool")] = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    channel_axis: ChannelAxisOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Pool any number of channels over supervoxels, such as embeddings of a network: a vector for each, out of core.

    The Parquet table has a list for each statistic, with a number for each channel. Sums are exact, so no number
    depends on how the volume is divided into regions.
    """
    from dseeds.measure.pooling import pool

    address = choose_folder(labels, folder, ".pool")
    with cluster.connect() as client, output.progress() as progress:
        pooled = pool(
            labels,
            one_or_several(image),
            address,
            statistics=statistics.split(","),
            volume=volume,
            level=level,
            channel_axis=channel_axis,
            **vars(tasks),
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    summary = {"target": pooled.address, "supervoxels": pooled.supervoxels, "channels": pooled.channels}
    line = f"{pooled.supervoxels} supervoxels, {pooled.channels} channels: {pooled.address}"
    output.print_result(json.dumps(summary, indent=2), partial(print, line))
