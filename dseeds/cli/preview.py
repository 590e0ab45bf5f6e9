"""`dseeds preview`: a picture of supervoxels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from dseeds.cli import errors
from dseeds.cli.options import IMAGE, OUTPUT, ChannelAxis, Quiet, Spacing, Volume, channel_axis_of, numbers

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds preview labels.zarr\n\n"
    "dseeds preview labels.nii.gz ct.nii.gz --window abdomen --output slices.png\n\n"
    "dseeds preview s3://lab/labels.zarr --at 1200,800,950 --size 900"
)

Labels = Annotated[
    str,
    typer.Argument(
        metavar="LABELS", help="The supervoxels: a NIfTI file, or path or URL of a Zarr array or OME-Zarr image."
    ),
]
NotedImage = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE",
        help="The intensities on the same grid.",
        show_default="the source that the labels say they were made from",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an older file of dseeds; nothing else is ever replaced.", rich_help_panel=OUTPUT
    ),
]


def preview(
    labels: Labels,
    image: NotedImage = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the picture goes, a path or URL.",
            show_default="here, called as the labels are, with the ending .png",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Y,X",
            help="The voxel that the planes go through.",
            show_default="the middle",
            rich_help_panel=IMAGE,
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(metavar="N", help="Pixels of the volume's longest side.", rich_help_panel=OUTPUT)
    ] = 480,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|LEVEL,WIDTH|LOW:HIGH",
            help="Intensities that are black and white; for CT abdomen, lung, bone or brain.",
            show_default="what the labels were made with",
            rich_help_panel=IMAGE,
        ),
    ] = None,
    channel: Annotated[
        int, typer.Option(metavar="I", help="Which channel is shown, from 0.", rich_help_panel=IMAGE)
    ] = 0,
    volume: Volume = None,
    channel_axis: ChannelAxis = None,
    spacing: Spacing = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw three planes of supervoxels: contours over the image, and each painted with its mean intensity.

    Of a pyramid the level is read that the pixels can show, so that this takes seconds for any size.
    """
    from dseeds.storage.owned_file import check_own_file, write_own_file
    from dseeds.viz.drawing import png
    from dseeds.viz.preview import preview as draw

    target = output or f"{stem(labels)}.png"
    check_own_file(target, overwrite)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        picture = draw(
            labels,
            image,
            at=numbers("--at", at, int),
            size=size,
            window=window,
            channel=channel,
            volume=volume,
            channel_axis=channel_axis_of(channel_axis),
            spacing=numbers("--spacing", spacing, float),
        )
    write_own_file(target, png(picture))
    for warning in said if not quiet else ():
        if warning.category is UserWarning:
            errors.say(f"note: {warning.message}")
    if not quiet:
        print(target)


def stem(address: str) -> str:
    """Give the name of what lies at a path or URL, without its ending.

    >>> stem("s3://lab/labels.ome.zarr"), stem("data/labels.nii.gz"), stem("labels.zarr/")
    ('labels', 'labels', 'labels')
    """
    name = Path(address.rstrip("/")).name
    for ending in (".nii", ".nii.gz", ".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name
