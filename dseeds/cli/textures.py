"""`dseeds textures`: the co-occurrence of grey levels in each supervoxel."""

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
    PercentilesOption,
    TaskOptions,
    VolumeOption,
    WindowOption,
    one_or_several,
)
from dseeds.cli.output import OutputOptions, choose_folder, folder_option

EXAMPLES = (
    "dseeds textures labels.zarr embryo.zarr",
    "dseeds textures labels.nii.gz ct.nii.gz -o organs.textures --window abdomen",
    "dseeds map labels.zarr labels.textures entropy.zarr --column entropy",
)


def textures_command(
    labels: LabelsArgument,
    image: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="The image on the same grid; several images are taken as channels."),
    ],
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    folder: Annotated[str | None, folder_option(".textures")] = None,
    window: WindowOption = None,
    percentiles: PercentilesOption = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    channel_axis: ChannelAxisOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure the texture of supervoxels: contrast, homogeneity, energy and entropy of the GLCM, out of core.

    Neighbouring voxels in 13 directions are counted by their 64 grey levels. Counts are integers, so no number depends
    on how the volume is divided into regions.
    """
    from dseeds.measure.textures import textures

    address = choose_folder(labels, folder, ".textures")
    with cluster.connect() as client, output.progress() as progress:
        measured = textures(
            labels,
            one_or_several(image),
            address,
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
    summary = {"target": measured.address, "supervoxels": measured.supervoxels}
    line = f"{measured.supervoxels} supervoxels: {measured.address}"
    output.print_result(json.dumps(summary, indent=2), partial(print, line))
