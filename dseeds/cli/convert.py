"""`dseeds import` and `dseeds export`: convert images and labels to OME-Zarr, and to the formats of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from dseeds.cli.options import (
    OUTPUT,
    ChannelAxisOption,
    ImageOption,
    OverwriteOption,
    SpacingOption,
    ThreadsOption,
    VolumeOption,
    VoxelCounts,
    choose_images,
    image_option,
    one_or_several,
    output_option,
    voxels_option,
    work_option,
)
from dseeds.cli.output import OutputOptions

IMPORT_EXAMPLES = (
    "dseeds import ct.nii.gz ct.zarr",
    "dseeds import dicom/series7 s3://lab/ct.zarr --memory 2GiB",
    "dseeds import brain.h5:/volumes/raw brain.zarr --spacing 1um,0.5um,0.5um",
)
EXPORT_EXAMPLES = (
    "dseeds export labels.zarr labels.nii.gz",
    "dseeds export ct.zarr ct.tif --dtype uint16",
    "dseeds export labels.zarr labels.precomputed",
)


@dataclass(frozen=True)
class ConversionOptions:
    """The options that imports and exports share."""

    image: ImageOption = None
    volume: VolumeOption = None
    channel_axis: ChannelAxisOption = None
    spacing: SpacingOption = None
    labels: Annotated[
        bool | None,
        image_option(
            "--labels/--intensities",
            help="Whether the voxels are labels or intensities.",
            show_default="from the source",
        ),
    ] = None
    memory: Annotated[
        str | None,
        work_option(metavar="SIZE", help="Memory for the voxels held at once, such as 2GiB.", show_default="512MiB"),
    ] = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of both functions; the image is a part of the source's address."""
        return {name: value for name, value in vars(self).items() if name != "image"}


def import_command(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="NIfTI, a folder with a DICOM series, TIFF or a folder with one TIFF per plane, NRRD, MetaImage, "
            "NumPy, HDF5 as FILE.h5 or FILE.h5:/path/to/dataset, or Zarr. Several images of one shape are taken as "
            "channels.",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Path or URL of a new OME-Zarr group.")],
    conversion: ConversionOptions,
    output: OutputOptions,
    chunks: Annotated[VoxelCounts | None, voxels_option(OUTPUT, "Chunk size in voxels.", "64")] = None,
    shards: Annotated[
        VoxelCounts | None,
        voxels_option(
            OUTPUT, "Shard size in voxels. A shard is one file.", "256, or as many planes as the memory holds"
        ),
    ] = None,
    pyramid: Annotated[
        bool, output_option("--pyramid/--no-pyramid", help="Whether to write coarser resolutions.")
    ] = True,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert an image or labels of any format to OME-Zarr, in little memory, keeping their place in space."""
    from dseeds.convert.import_volume import import_volume

    with output.progress() as progress:
        summary = import_volume(
            one_or_several(choose_images(source, conversion.image)),
            target,
            **conversion.parameters(),
            chunks=chunks,
            shards=shards,
            pyramid=pyramid,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    output.print_result(summary.to_json(), partial(print, summary))


def export_command(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Labels or an image: OME-Zarr, or any format that dseeds import reads."),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A new file with the suffix .nii, .nii.gz, .tif, .ome.tif, .nrrd, .mha, .h5 or .npy, or a folder with "
            "the suffix .precomputed, for Neuroglancer.",
        ),
    ],
    conversion: ConversionOptions,
    output: OutputOptions,
    format: Annotated[
        str | None,
        output_option(
            metavar="NAME",
            help="nifti, tiff, nrrd, metaimage, hdf5, numpy or precomputed.",
            show_default="from the suffix",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        output_option(
            metavar="TYPE",
            help="Data type of the stored voxels, such as uint16 or float32.",
            show_default="the narrowest that holds all labels, or that of the image",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert labels or an image to a file for other programs, in little memory, keeping their place in space."""
    from dseeds.convert.export_volume import export_volume

    [source] = choose_images([source], conversion.image)
    with output.progress() as progress:
        summary = export_volume(
            source,
            target,
            **conversion.parameters(),
            format=format,
            dtype=dtype,
            overwrite=overwrite,
            progress=progress,
        )
    output.print_result(summary.to_json(), partial(print, summary))
