"""Options that several commands share, each declared once, and the parsers of their values.

An alias such as `SpacingOption` is the type of a command's parameter. What parses the text of an option belongs to the
alias, so that commands receive values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer
from typing_extensions import TypeAliasType

# The panels of the commands' help, in their order.
CELLS, IMAGE, OUTPUT, WORK = "Supervoxels", "Image", "Output", "Computing"
PANELS = (CELLS, IMAGE, OUTPUT, WORK)
cells_option, image_option, output_option, work_option = (
    partial(typer.Option, rich_help_panel=panel) for panel in PANELS
)
# Typer accepts no union of types, but it accepts these names for one, as the parsers below build the values.
VoxelCounts = TypeAliasType("VoxelCounts", int | tuple[int, ...])
ChannelAxis = TypeAliasType("ChannelAxis", int | str)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list.

    >>> parse_numbers("3,0.5,0.5")
    (3.0, 0.5, 0.5)
    """
    return _parse_list(text, float, "numbers")


def parse_spacing(text: str) -> tuple[float, ...]:
    """Return a comma-separated list of millimetres, or of lengths with units.

    >>> parse_spacing("3,0.5,0.5"), parse_spacing("2um,650nm,650nm")
    ((3.0, 0.5, 0.5), (0.002, 0.00065, 0.00065))
    """
    # Loads the compiler, which most commands need only later.
    from dseeds.seeds.cell_size import millimetres

    lengths = [millimetres(part) for part in text.split(",")]
    known = tuple(length for length in lengths if length is not None)
    return known if len(known) == len(lengths) else _parse_list(text, float, "millimetres, or of lengths such as 2um")


def parse_integers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated list."""
    return _parse_list(text, int, "whole numbers")


def parse_voxel_counts(text: str) -> int | tuple[int, ...]:
    """Return a number of voxels for every axis, or one per axis.

    >>> parse_voxel_counts("64"), parse_voxel_counts("64,128,128")
    (64, (64, 128, 128))
    """
    counts = parse_integers(text)
    return counts[0] if len(counts) == 1 else counts


def parse_channel_axis(text: str) -> int | str:
    """Return the index or the name of an axis.

    >>> parse_channel_axis("-1"), parse_channel_axis("c")
    (-1, 'c')
    """
    return int(text) if text.removeprefix("-").isdecimal() else text


def _parse_list(text: str, convert: type[int] | type[float], items: str) -> tuple[Any, ...]:
    try:
        return tuple(convert(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a comma-separated list of {items}") from None


def complete_from(*values: str) -> Callable[[str], list[str]]:
    """Return a completion function that offers the values that start with the text typed so far.

    >>> complete_from("linear", "equalised")("li")
    ['linear']
    """
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def voxels_option(panel: str, text: str, default: str | None = None) -> Any:
    """Return an option that takes a number of voxels for every axis, or one per axis."""
    return typer.Option(
        metavar="N|Z,Y,X", parser=parse_voxel_counts, help=text, show_default=default or True, rich_help_panel=panel
    )


def one_or_several(sources: list[str]) -> str | list[str]:
    """Return the only source, or the list of sources, each of which is a channel."""
    return sources[0] if len(sources) == 1 else sources


def choose_images(sources: Sequence[str], image: str | None) -> list[str]:
    """Return the addresses of an image in each of several files that hold several.

    >>> choose_images(["cells.ome.tif"], "1"), choose_images(["cells.tif"], None)
    (['cells.ome.tif:1'], ['cells.tif'])
    """
    return [source if image is None else f"{source}:{image}" for source in sources]


LabelsArgument = Annotated[
    str,
    typer.Argument(metavar="LABELS", help="The supervoxels, in any format that segment reads; 0 is outside the mask."),
]
SpacingOption = Annotated[
    Sequence[float] | None,
    image_option(
        metavar="Z,Y,X",
        parser=parse_spacing,
        help="Voxel size in millimetres, or with units such as 2um,650nm,650nm.",
        show_default="from the image",
    ),
]
WindowOption = Annotated[
    str | None,
    image_option(
        metavar="NAME|LEVEL,WIDTH|LOW:HIGH",
        help="Intensity window; for CT, one of the presets abdomen, lung, bone and brain. One window for all channels, "
        "or one per channel, separated by semicolons.",
        autocompletion=complete_from("abdomen", "lung", "bone", "brain"),
        show_default="from --percentiles",
    ),
]
PercentilesOption = Annotated[
    Sequence[float] | None,
    image_option(
        metavar="LOW,HIGH",
        parser=parse_numbers,
        help="Percentiles of the intensities that limit the window.",
        show_default="0.5,99.5",
    ),
]
ImageOption = Annotated[
    str | None,
    image_option(
        "--image",
        metavar="N|NAME",
        help="Index or name of the image in a TIFF or OME-Zarr with several, or path of the dataset in HDF5: SOURCE:N.",
    ),
]
VolumeOption = Annotated[int | None, image_option(metavar="I", help="Index of the volume in a 4D image, from 0.")]
LevelOption = Annotated[
    int | None,
    image_option(metavar="N", help="Resolution level of an OME-Zarr image.", show_default="0, the full resolution"),
]
ChannelAxisOption = Annotated[
    ChannelAxis | None,
    image_option(
        "--channel-axis",
        metavar="I|NAME",
        parser=parse_channel_axis,
        help="Axis of the channels: an index from 0, or from the end if negative. The volumes of 4D NIfTI lie along "
        "axis 0. OME-Zarr axes can also be given by name, such as c.",
    ),
]
WeightsOption = Annotated[
    Sequence[float] | None,
    image_option(metavar="W,W,...", parser=parse_numbers, help="Weights of the channels.", show_default="all equal"),
]
RegionOption = Annotated[
    VoxelCounts | None,
    voxels_option(WORK, "Size of a task's region in voxels. The result does not depend on it.", "as the memory allows"),
]
WorkersOption = Annotated[
    int | None, work_option(metavar="N", help="Worker processes on this machine.", show_default="one per core")
]
MemoryOption = Annotated[
    str | None,
    work_option(
        metavar="SIZE",
        help="Memory of one worker, such as 2GiB.",
        show_default="an equal share of the machine, or the limit of the cluster's workers",
    ),
]
ThreadsOption = Annotated[
    int | None, work_option(metavar="N", help="Threads that share the work.", show_default="one per core")
]
KeepScratchOption = Annotated[bool, work_option("--keep-scratch", help="Keep the intermediate data.")]
OverwriteOption = Annotated[
    bool,
    output_option(
        "--overwrite", help="Replace an older output of dseeds or an unfinished run; other files are never replaced."
    ),
]
# For commands that write one file and no run.
OverwriteFileOption = Annotated[
    bool, output_option("--overwrite", help="Replace an older file of dseeds; other files are never replaced.")
]


@dataclass(frozen=True)
class TaskOptions:
    """The options that cut the work of a command into tasks."""

    region: RegionOption = None
    memory: Annotated[
        str | None, work_option(metavar="SIZE", help="Memory of one task, such as 2GiB.", show_default="512MiB")
    ] = None
    threads: ThreadsOption = None
