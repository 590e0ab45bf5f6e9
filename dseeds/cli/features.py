"""`dseeds features`: measure supervoxels and their contacts."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import (
    ChannelAxisOption,
    ImageOption,
    LabelsArgument,
    LevelOption,
    OverwriteOption,
    PercentilesOption,
    SpacingOption,
    TaskOptions,
    VolumeOption,
    WindowOption,
    choose_images,
    one_or_several,
)
from dseeds.cli.output import OutputOptions, choose_folder, folder_option

EXAMPLES = (
    "dseeds features labels.zarr embryo.zarr",
    "dseeds features labels.zarr",
    "dseeds features labels.nii.gz ct.nii.gz -o organs.features --window abdomen",
    "dseeds features labels.zarr t1.nii.gz t2.nii.gz -o labels.features --scheduler tcp://10.0.0.1:8786",
)


def features_command(
    labels: LabelsArgument,
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    image: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="The image on the same grid; several images are taken as channels. Without one, there are sizes, "
            "places, shapes and contacts.",
        ),
    ] = None,
    folder: Annotated[str | None, folder_option(".features")] = None,
    spacing: SpacingOption = None,
    window: WindowOption = None,
    percentiles: PercentilesOption = None,
    chosen_image: ImageOption = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    channel_axis: ChannelAxisOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure supervoxels: a feature table and the region adjacency graph, in Parquet, out of core.

    The table holds each supervoxel's size, position, shape and intensities, the graph each contact's area and contrast.
    Sums are exact, so no number depends on how the volume is divided into regions.
    """
    from dseeds.measure.features import features

    address = choose_folder(labels, folder, ".features")
    with cluster.connect() as client, output.progress() as progress:
        measured = features(
            labels,
            one_or_several(choose_images(image, chosen_image)) if image else None,
            address,
            spacing=spacing,
            window=window,
            percentiles=percentiles,
            volume=volume,
            level=level,
            channel_axis=channel_axis,
            **vars(tasks),
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    summary = {"target": measured.address, "supervoxels": measured.supervoxels, "contacts": measured.contacts}
    line = f"{measured.supervoxels} supervoxels, {measured.contacts} contacts: {measured.address}"
    output.print_result(json.dumps(summary, indent=2), partial(print, line))
