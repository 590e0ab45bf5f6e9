"""The options that commands share, each declared once, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# The panels of the help.
CELLS, IMAGE, WORK, OUTPUT = "Supervoxels", "Image", "Computing", "Output"
# What is handed on as it is said.
PLAIN = (
    "step",
    "n_segments",
    "mask",
    "window",
    "percentiles",
    "bins",
    "compactness",
    "min_size",
    "levels",
    "pyramid",
    "volume",
    "level",
    "scratch",
)


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Complete a value of which these are the possible ones, or some of them.

    >>> one_of("linear", "equalised")("li")
    ['linear']
    """
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Step = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X|LENGTH",
        help="Size of a supervoxel: voxels along every axis, voxels along z,y,x, or a length such as 12mm.",
        show_default="16",
        rich_help_panel=CELLS,
    ),
]
Segments = Annotated[
    int | None,
    typer.Option(
        "--n-segments",
        metavar="N",
        help="How many supervoxels to come close to, instead of --step.",
        rich_help_panel=CELLS,
    ),
]
Spacing = Annotated[
    str | None,
    typer.Option(
        metavar="Z,Y,X",
        help="Size of a voxel in millimetres.",
        show_default="what the image says",
        rich_help_panel=IMAGE,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="A file of NIfTI, TIFF, NRRD, MetaImage, NumPy or HDF5, a folder with a DICOM series or a TIFF for each "
        "plane, or path or URL of a Zarr array or OME-Zarr image; or several of one shape, each a channel.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="Where the labels go: a new OME-Zarr group, or .nii or .nii.gz where the source is NIfTI. Left out with "
        "--into-image.",
        show_default=False,
    ),
]
IntoImage = Annotated[
    bool,
    typer.Option(
        "--into-image",
        help="Write the labels into the OME-Zarr image itself, as one of its labels; there is no TARGET then.",
        rich_help_panel=OUTPUT,
    ),
]
LabelName = Annotated[
    str | None,
    typer.Option(
        "--label-name",
        metavar="NAME",
        help="What labels that go into the image are called.",
        show_default="supervoxels",
        rich_help_panel=OUTPUT,
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|auto",
        help="Cut only voxels where this image, as fine or coarser and of the same field of view, is not 0; auto takes "
        "what is brighter than the background, as far as the window tells them apart.",
        rich_help_panel=IMAGE,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|LEVEL,WIDTH|LOW:HIGH",
        help="Intensities between which to tell differences; for CT abdomen, lung, bone or brain. One for all "
        "channels, or one for each, with ; between them.",
        autocompletion=one_of("abdomen", "lung", "bone", "brain"),
        show_default="from one percentile to the other",
        rich_help_panel=IMAGE,
    ),
]
Percentiles = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Percentiles of the intensities that a window goes from and to.",
        show_default="0.5,99.5",
        rich_help_panel=IMAGE,
    ),
]
Bins = Annotated[
    str | None,
    typer.Option(
        metavar="linear|equalised",
        help="Whether intensities are told apart by bins of equal width, or with equally many voxels.",
        autocompletion=one_of("linear", "equalised"),
        show_default="linear",
        rich_help_panel=IMAGE,
    ),
]
ChannelAxis = Annotated[
    str | None,
    typer.Option(
        "--channel-axis",
        metavar="I|NAME",
        help="Which axis channels lie along, counted from 0 or, from the end, from -1; 4D NIfTI has its volumes along "
        "0; of OME-Zarr the name will do, such as c.",
        rich_help_panel=IMAGE,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W,W,...",
        help="How much each channel counts.",
        show_default="all the same",
        rich_help_panel=IMAGE,
    ),
]
MinSize = Annotated[
    int | None,
    typer.Option(
        "--min-size",
        metavar="N",
        help="Join supervoxels of fewer voxels to the neighbour that is most like them, if they have one.",
        rich_help_panel=CELLS,
    ),
]
Levels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="How many coarser levels to write as well, each of twice the step of the one before, of whole supervoxels "
        "of that one.",
        rich_help_panel=CELLS,
    ),
]
Pyramid = Annotated[
    str | None,
    typer.Option(
        metavar="mode|nearest|none",
        help="What coarser levels of the label images hold of each block of voxels: the most frequent label, its first "
        "voxel, or that there are none. There are as many as the image has.",
        show_default="mode",
        rich_help_panel=OUTPUT,
    ),
]
Features = Annotated[
    bool,
    typer.Option(
        "--features",
        help="Measure the supervoxels and their contacts as well, see dseeds features; the tables lie beside the "
        "target, with the ending .features.",
        rich_help_panel=OUTPUT,
    ),
]
Compactness = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        show_default="0",
        help="From 0, where supervoxels follow the image alone, to 30, where they are all but cells of the lattice.",
        rich_help_panel=CELLS,
    ),
]
Volume = Annotated[
    int | None, typer.Option(metavar="I", help="Which volume of a 4D image, from 0.", rich_help_panel=IMAGE)
]
Level = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Which level of an OME-Zarr image.",
        show_default="0, the full resolution",
        rich_help_panel=IMAGE,
    ),
]
Region = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X",
        help="Voxels along the axes that one task works on; no result depends on it.",
        show_default="what fits the memory",
        rich_help_panel=WORK,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Worker processes on this machine.", show_default="one per core", rich_help_panel=WORK
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What one worker may use, such as 2GiB.",
        show_default="its share of the machine, or its own limit",
        rich_help_panel=WORK,
    ),
]
TaskMemory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="What a task may hold.", show_default="512MiB", rich_help_panel=WORK),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads of this process that share the work.",
        show_default="one per core",
        rich_help_panel=WORK,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Use the Dask cluster at this address, such as tcp://10.0.0.1:8786, and leave it running.",
        rich_help_panel=WORK,
    ),
]
TlsCaFile = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca-file",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Whom to trust at a tls:// address: certificates of authorities, PEM.",
        show_default="what Dask's configuration says",
        rich_help_panel=WORK,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Who we are at a tls:// address: our certificate, PEM.",
        show_default="what Dask's configuration says",
        rich_help_panel=WORK,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="The private key of --tls-cert, where that file does not hold it, PEM.",
        show_default="what Dask's configuration says",
        rich_help_panel=WORK,
    ),
]
Scratch = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder or URL for intermediate data that all workers see; 1 to 6 bytes per voxel.",
        show_default="beside the target",
        rich_help_panel=WORK,
    ),
]
KeepScratch = Annotated[
    bool,
    typer.Option("--keep-scratch", help="Leave the intermediate data where they are.", rich_help_panel=WORK),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the unfinished run of this target, if there is one; what is not said is taken from it.",
        rich_help_panel=WORK,
    ),
]
Chunks = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X",
        help="Voxels along the axes of a chunk of the labels.",
        show_default="about 64",
        rich_help_panel=OUTPUT,
    ),
]
Shards = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X",
        help="Voxels along the axes of a shard of the labels, which is one file; multiples of the step.",
        show_default="a region",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an older output of dseeds and an unfinished run; nothing else is ever replaced.",
        rich_help_panel=OUTPUT,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.", rich_help_panel=OUTPUT)]


def asked(context: typer.Context) -> dict[str, Any]:
    """Read what a run is to do from a command's options, which bear the names that `dseeds.segment` has for them."""
    said = context.params
    plain = {name: said[name] for name in PLAIN}
    floats = {name: numbers(f"--{name}", said[name], float) for name in ("spacing", "weights")}
    return {
        **plain,
        **floats,
        **{name: lengths(f"--{name}", said[name]) for name in ("region", "chunks", "shards")},
        "channel_axis": channel_axis_of(said["channel_axis"]),
        # What is not said is taken from the run that is gone on with.
        "features": said.get("features") or None,
    }


def channel_axis_of(text: str | None) -> int | str | None:
    """Read an axis, which is a number or has a name."""
    return int(text) if text is not None and text.removeprefix("-").isdecimal() else text


def places(
    sources: list[str] | None, target: str | None, into_image: bool, label_name: str | None
) -> tuple[str | list[str], str]:
    """Tell sources and target apart: labels that go into their image have no target of their own.

    Raises
    ------
    BadParameter
        If one of them is missing, or labels are given a name that have a target.
    """
    # What is said last is taken for the target.
    said = [*(sources or []), *([] if target is None else [target])]
    if not said:
        raise typer.BadParameter("there is none: name an image", param_hint="'SOURCE'")
    if into_image:
        from dseeds.io.label_listing import NAME, label_address

        return one_or_several(said), label_address(said[0], label_name or NAME)
    if label_name is not None:
        raise typer.BadParameter("it is for labels that go --into-image", param_hint="'--label-name'")
    if len(said) == 1:
        raise typer.BadParameter(
            "there is none: name the place for the labels, or say --into-image", param_hint="'TARGET'"
        )
    return one_or_several(said[:-1]), said[-1]


def one_or_several(sources: list[str]) -> str | list[str]:
    """Give the source, or a list where each is a channel."""
    return sources[0] if len(sources) == 1 else sources


def lengths(option: str, text: str | None) -> int | tuple[int, ...] | None:
    """Read a number of voxels, or several with commas between them."""
    found = numbers(option, text, int)
    return found[0] if found and len(found) == 1 else found


def numbers(option: str, text: str | None, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    """Read numbers with commas between them.

    >>> numbers("--spacing", "3,0.5,0.5", float)
    (3.0, 0.5, 0.5)
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r} is not {what} with commas between them", param_hint=f"'{option}'") from None
