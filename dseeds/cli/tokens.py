"""`dseeds tokens`: supervoxels resampled to one grid, as the input of a network."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from dseeds.cli.options import (
    ChannelAxisOption,
    LabelsArgument,
    LevelOption,
    OverwriteOption,
    ThreadsOption,
    VolumeOption,
    VoxelCounts,
    cells_option,
    one_or_several,
    parse_voxel_counts,
)
from dseeds.cli.output import OutputOptions

EXAMPLES = (
    "dseeds features labels.zarr image.zarr && dseeds tokens labels.zarr labels.features tokens.zarr image.zarr",
    "dseeds tokens labels.zarr labels.features tokens.zarr t1.nii.gz t2.nii.gz --shape 4,8,8 --outside 0",
)


def tokens_command(
    labels: LabelsArgument,
    features: Annotated[
        str,
        typer.Argument(
            metavar="FEATURES",
            help="The supervoxels' features folder, or a table with the columns label and bbox-0..5.",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The Zarr group to write.")],
    image: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="The image on the labels' grid; several images are channels.")
    ],
    output: OutputOptions,
    shape: Annotated[
        VoxelCounts,
        cells_option(metavar="N|Z,Y,X", parser=parse_voxel_counts, help="Points of a token along each axis."),
    ] = "8",  # type: ignore[assignment]
    outside: Annotated[
        float | None,
        cells_option(
            metavar="VALUE", help="The value of voxels of other supervoxels.", show_default="their own intensity"
        ),
    ] = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    channel_axis: ChannelAxisOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Resample the bounding box of each supervoxel to one grid: an array with a token for each, for networks.

    The Zarr group has the arrays labels, values (token, channel, z, y, x), and masks of what is the supervoxel's own.
    """
    from dseeds.measure.tokens import tokens

    with output.progress() as progress:
        made = tokens(
            labels,
            one_or_several(image),
            features,
            target,
            shape=shape,
            outside=outside,
            volume=volume,
            level=level,
            channel_axis=channel_axis,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    extents = list(made.values.shape)
    line = f"{extents[0]} tokens, channels and points {' x '.join(map(str, extents[1:]))}: {made.address}"
    output.print_result(json.dumps({"target": made.address, "shape": extents}, indent=2), partial(print, line))
