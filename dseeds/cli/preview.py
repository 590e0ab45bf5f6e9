"""`dseeds preview`: draw supervoxels as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dseeds.cli.errors import print_error
from dseeds.cli.options import (
    ChannelAxisOption,
    ImageOption,
    LabelsArgument,
    OverwriteFileOption,
    SpacingOption,
    VolumeOption,
    choose_images,
    image_option,
    output_option,
    parse_integers,
)
from dseeds.cli.output import QuietOption

EXAMPLES = (
    "dseeds preview labels.zarr",
    "dseeds preview labels.nii.gz ct.nii.gz --window abdomen --output slices.png",
    "dseeds preview s3://lab/labels.zarr --at 1200,800,950 --size 900",
)
ImageArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="IMAGE",
        help="The image on the same grid.",
        show_default="the source recorded in the labels",
    ),
]


def result_file_option(content: str, suffix: str) -> Any:
    """Return the option `--output`, which is `default_output` if it is not given."""
    default = f"the name of the labels with the suffix {suffix}, in the current folder"
    return output_option("--output", "-o", metavar="FILE", help=f"Path or URL of the {content}.", show_default=default)


def preview_command(
    labels: LabelsArgument,
    image: ImageArgument = None,
    output: Annotated[str | None, result_file_option("picture", ".png")] = None,
    at: Annotated[
        Sequence[int] | None,
        image_option(
            metavar="Z,Y,X",
            parser=parse_integers,
            help="The voxel where the planes intersect.",
            show_default="the middle",
        ),
    ] = None,
    size: Annotated[int, output_option(metavar="N", help="Pixels along the longest side of the volume.")] = 480,
    window: Annotated[
        str | None,
        image_option(
            metavar="NAME|LEVEL,WIDTH|LOW:HIGH",
            help="Intensities that are shown black and white; for CT, one of the presets abdomen, lung, bone and "
            "brain.",
            show_default="the window recorded in the labels",
        ),
    ] = None,
    channel: Annotated[int, image_option(metavar="I", help="Index of the channel to show, from 0.")] = 0,
    chosen_image: ImageOption = None,
    volume: VolumeOption = None,
    channel_axis: ChannelAxisOption = None,
    spacing: SpacingOption = None,
    overwrite: OverwriteFileOption = False,
    quiet: QuietOption = False,
) -> None:
    """Draw three planes of supervoxels: as contours over the image, and painted with their mean intensities.

    The resolution level that matches the size of the pixels is read, so this takes seconds for a volume of any size.
    """
    from dseeds.storage.owned_file import check_own_file, write_own_file
    from dseeds.viz.drawing import encode_png
    from dseeds.viz.preview import preview

    if image is not None:
        [image] = choose_images([image], chosen_image)
    path = output or default_output(labels, ".png")
    check_own_file(path, overwrite)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = preview(
            labels,
            image,
            at=at,
            size=size,
            window=window,
            channel=channel,
            volume=volume,
            channel_axis=channel_axis,
            spacing=spacing,
        )
    write_own_file(path, encode_png(picture))
    if quiet:
        return
    for warning in caught:
        if warning.category is UserWarning:
            print_error(f"note: {warning.message}")
    print(path)


def default_output(labels: str, suffix: str) -> str:
    """Return the name of a file in the current folder for a picture or report of labels.

    >>> default_output("s3://lab/labels.ome.zarr", ".png"), default_output("data/labels.nii.gz", ".html")
    ('labels.png', 'labels.html')
    """
    name = Path(labels.rstrip("/")).name
    for ending in (".nii", ".nii.gz", ".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name + suffix
