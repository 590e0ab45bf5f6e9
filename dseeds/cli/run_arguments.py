"""The arguments and options that describe a run: those of `segment`, `plan` and `init`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import (
    OUTPUT,
    ChannelAxisOption,
    ImageOption,
    LevelOption,
    OverwriteOption,
    RegionOption,
    SpacingOption,
    VolumeOption,
    VoxelCounts,
    WeightsOption,
    WindowOption,
    cells_option,
    choose_images,
    complete_from,
    image_option,
    one_or_several,
    output_option,
    voxels_option,
    work_option,
)

if TYPE_CHECKING:
    from dseeds.engine.run import RunOptions


@dataclass(frozen=True)
class RunArguments:
    """The arguments and options that describe a run. None stands for an option that is not given."""

    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="The image: a NIfTI, TIFF, NRRD, MetaImage, NumPy or HDF5 file, a folder with a DICOM series or with "
            "one TIFF per plane, or the path or URL of a Zarr array or OME-Zarr image. Several images of one shape are "
            "taken as channels; with --into, each is a volume of its own.",
            show_default=False,
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="Where to write the labels: a new OME-Zarr group, or .nii or .nii.gz if the source is NIfTI. Omitted "
            "with --into and --into-image.",
            show_default=False,
        ),
    ] = None
    step: Annotated[
        str | None,
        cells_option(
            metavar="N|Z,Y,X|LENGTH",
            help="Size of a supervoxel: voxels along every axis, voxels along z,y,x, or a length such as 12mm or 8um.",
            show_default="16",
        ),
    ] = None
    n_segments: Annotated[
        int | None,
        cells_option(
            "--n-segments",
            metavar="N",
            help="Approximate number of supervoxels (with a --mask, inside it), instead of --step.",
        ),
    ] = None
    compactness: Annotated[
        float | None,
        cells_option(
            metavar="NUMBER",
            show_default="0",
            help="From 0, where supervoxels follow the image alone, to 30, where they are almost the cells of the "
            "lattice.",
        ),
    ] = None
    min_size: Annotated[
        int | None,
        cells_option(
            "--min-size",
            metavar="N",
            show_default="0; with --n-segments and a mask, a tenth of the mean size",
            help="Merge supervoxels of fewer voxels into their most similar neighbour, if they have one.",
        ),
    ] = None
    levels: Annotated[
        int | None,
        cells_option(
            metavar="N",
            help="Number of coarser levels of supervoxels to write as well. Each level doubles the step and merges "
            "whole supervoxels of the level below.",
        ),
    ] = None
    spacing: SpacingOption = None
    mask: Annotated[
        str | None,
        image_option(
            metavar="FILE|auto",
            help="Segment only voxels where this image is not 0. It covers the same field of view at the same "
            "resolution, or one coarser by whole factors. auto masks out the background, as far as the window "
            "distinguishes it.",
        ),
    ] = None
    boundaries: Annotated[
        str | None,
        cells_option(
            metavar="FILE|image|dark|gradient",
            help="Cut along boundaries such as membranes instead of differences in intensity: where this image, such "
            "as a stain or a network's probabilities, is high; or where the image itself is bright (image), dark or "
            "steep (gradient).",
        ),
    ] = None
    window: WindowOption = None
    percentiles: Annotated[
        str | None,
        image_option(
            metavar="LOW,HIGH", help="Percentiles of the intensities that limit the window.", show_default="0.5,99.5"
        ),
    ] = None
    bins: Annotated[
        str | None,
        image_option(
            metavar="auto|linear|equalised",
            help="Whether histogram bins have equal widths (linear) or hold equal numbers of voxels (equalised). auto: "
            "linear, unless a few voxels, such as hot pixels, leave hardly any bins to all others.",
            autocompletion=complete_from("auto", "linear", "equalised"),
            show_default="auto",
        ),
    ] = None
    image: ImageOption = None
    volume: VolumeOption = None
    level: LevelOption = None
    channel_axis: ChannelAxisOption = None
    weights: WeightsOption = None
    pyramid: Annotated[
        str | None,
        output_option(
            metavar="mode|nearest|none",
            help="How to downsample the labels: to the most frequent label of each block of voxels, to its first "
            "voxel, or not at all. The labels get as many resolution levels as the image has.",
            show_default="mode",
        ),
    ] = None
    features: Annotated[
        bool,
        output_option(
            "--features",
            help="Also measure the supervoxels and their contacts, see dseeds features. The tables are written next to "
            "the target, with the suffix .features.",
        ),
    ] = False
    chunks: Annotated[
        VoxelCounts | None,
        voxels_option(OUTPUT, "Chunk size of the labels in voxels.", "about 64"),
    ] = None
    shards: Annotated[
        VoxelCounts | None,
        voxels_option(
            OUTPUT, "Shard size of the labels in voxels, a multiple of the step. A shard is one file.", "a region"
        ),
    ] = None
    into_image: Annotated[
        bool,
        output_option(
            "--into-image",
            help="Write the labels into the OME-Zarr image itself, as one of its label images. Omit TARGET then.",
        ),
    ] = False
    label_name: Annotated[
        str | None,
        output_option(
            "--label-name",
            metavar="NAME",
            help="Name of the label image with --into-image.",
            show_default="supervoxels",
        ),
    ] = None
    overwrite: OverwriteOption = False
    region: RegionOption = None
    scratch: Annotated[
        str | None,
        work_option(
            metavar="DIR",
            help="Folder or URL for intermediate data, visible to all workers: 1 to 8 bytes per voxel.",
            show_default="next to the target",
        ),
    ] = None

    def run_options(self) -> RunOptions:
        """Return the options that the engine takes."""
        from dseeds.engine.run import RunOptions

        return RunOptions(
            step=self.step,
            n_segments=self.n_segments,
            spacing=self.spacing,
            window=self.window,
            percentiles=self.percentiles,
            bins=self.bins,
            compactness=self.compactness,
            volume=self.volume,
            channel_axis=self.channel_axis,
            weights=self.weights,
            mask=self.mask,
            boundaries=self.boundaries,
            min_size=self.min_size,
            levels=self.levels,
            level=self.level,
            pyramid=self.pyramid,
            # A flag that is not set leaves the choice to the run that is resumed.
            features=self.features or None,
            region=self.region,
            chunks=self.chunks,
            shards=self.shards,
            scratch=self.scratch,
        )

    def _addresses(self) -> list[str]:
        """Return the positional arguments, of which there must be one."""
        addresses = [*(self.source or []), *([] if self.target is None else [self.target])]
        if not addresses:
            raise typer.BadParameter("missing: name an image", param_hint="'SOURCE'")
        return addresses

    def sources(self) -> list[str]:
        """Return the volumes to cut each on its own, with patterns replaced by the files that match.

        Raises a BadParameter if there are none.
        """
        volumes: list[str] = []
        for address in self._addresses():
            path = Path(address).expanduser()
            matches = [address]
            if "://" not in address and any(sign in address for sign in "*?[") and not path.exists():
                matches = sorted(map(str, Path(path.anchor).glob(str(path.relative_to(path.anchor)))))
            if not matches:
                raise typer.BadParameter(f"no file matches {address}", param_hint="'SOURCE'")
            volumes += matches
        return choose_images(volumes, self.image)

    def source_and_target(self) -> tuple[str | list[str], str]:
        """Return the source, or the list of its channels, and the target; raise a BadParameter if one is missing.

        The last positional argument is the target, except for labels that go into their image.
        """
        addresses = self._addresses()
        if self.into_image:
            from dseeds.io.label_listing import DEFAULT_NAME, label_address

            sources = choose_images(addresses, self.image)
            return one_or_several(sources), label_address(sources[0], self.label_name or DEFAULT_NAME)
        if self.label_name is not None:
            raise typer.BadParameter("needs --into-image", param_hint="'--label-name'")
        *sources, target = addresses
        if not sources:
            raise typer.BadParameter("missing: name a path for the labels, or use --into-image", param_hint="'TARGET'")
        return one_or_several(choose_images(sources, self.image)), target
