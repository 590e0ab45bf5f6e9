"""`dseeds import` and `dseeds export`: images and labels come in as OME-Zarr, and go out to formats of others."""

from __future__ import annotations

from typing import Annotated

import typer

from dseeds.cli.options import (
    IMAGE,
    OUTPUT,
    WORK,
    AsJson,
    ChannelAxis,
    Overwrite,
    Quiet,
    Spacing,
    Threads,
    Volume,
    channel_axis_of,
    lengths,
    numbers,
    one_or_several,
)
from dseeds.cli.progress import following

IMPORT_EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds import ct.nii.gz ct.zarr\n\n"
    "dseeds import dicom/series7 s3://lab/ct.zarr --memory 2GiB\n\n"
    "dseeds import brain.h5:/volumes/raw brain.zarr --spacing 0.001,0.0005,0.0005"
)
EXPORT_EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds export labels.zarr labels.nii.gz\n\n"
    "dseeds export ct.zarr ct.tif --dtype uint16\n\n"
    "dseeds export labels.zarr labels.precomputed"
)
Held = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="What may be held at once.", show_default="512MiB", rich_help_panel=WORK
    ),
]
AreLabels = Annotated[
    bool | None,
    typer.Option(
        "--labels/--image",
        help="Whether the voxels are labels or intensities.",
        show_default="as the source says",
        rich_help_panel=IMAGE,
    ),
]


def import_(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="NIfTI, a folder with a DICOM series, TIFF or a folder with a TIFF for each plane, NRRD, MetaImage, "
            "NumPy, HDF5 as FILE.h5 or FILE.h5:/path/to/dataset, or Zarr; or several of one shape, each a channel.",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new OME-Zarr group: a path or URL.")],
    volume: Volume = None,
    channel_axis: ChannelAxis = None,
    spacing: Spacing = None,
    labels: AreLabels = None,
    chunks: Annotated[
        str | None,
        typer.Option(
            metavar="N|Z,Y,X", help="Voxels along the axes of a chunk.", show_default="64", rich_help_panel=OUTPUT
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="N|Z,Y,X",
            help="Voxels along the axes of a shard, which is one file.",
            show_default="256, or as many planes as the memory holds",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    pyramid: Annotated[
        bool,
        typer.Option("--pyramid/--no-pyramid", help="Whether to write coarser resolutions.", rich_help_panel=OUTPUT),
    ] = True,
    memory: Held = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write an image or labels of any format as OME-Zarr, in little memory; it stays where it is in space."""
    from dseeds.convert.import_volume import import_volume

    with following(quiet) as progress:
        imported = import_volume(
            one_or_several(source),
            target,
            volume=volume,
            channel_axis=channel_axis_of(channel_axis),
            spacing=numbers("--spacing", spacing, float),
            labels=labels,
            chunks=lengths("--chunks", chunks),
            shards=lengths("--shards", shards),
            pyramid=pyramid,
            memory=memory,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print(imported.to_json())
    elif not quiet:
        print(imported)


def export(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Labels or an image: OME-Zarr, or whatever dseeds import takes.")
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A new file that ends in .nii, .nii.gz, .tif, .ome.tif, .nrrd, .mha, .h5 or .npy, or a folder that "
            "ends in .precomputed, for neuroglancer.",
        ),
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="nifti, tiff, nrrd, metaimage, hdf5, numpy or precomputed.",
            show_default="what the ending says",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="What voxels are stored as, such as uint16 or float32.",
            show_default="labels as narrow as they fit, images as they are",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    labels: AreLabels = None,
    volume: Volume = None,
    channel_axis: ChannelAxis = None,
    spacing: Spacing = None,
    memory: Held = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write labels or an image as a file for other programs, in little memory; it stays where it is in space."""
    from dseeds.convert.export_volume import export_volume

    with following(quiet) as progress:
        exported = export_volume(
            source,
            target,
            format=format,
            labels=labels,
            dtype=dtype,
            volume=volume,
            channel_axis=channel_axis_of(channel_axis),
            spacing=numbers("--spacing", spacing, float),
            memory=memory,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print(exported.to_json())
    elif not quiet:
        print(exported)
