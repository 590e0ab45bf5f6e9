"""The options that commands share, each declared once, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# The panels of the help.
CELLS, IMAGE, WORK, OUTPUT = "Supervoxels", "Image", "Computing", "Output"

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
Window = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Intensities between which to tell differences.",
        show_default="percentiles 0.5 and 99.5",
        rich_help_panel=IMAGE,
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
Region = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X",
        help="Voxels along the axes that one task works on; no label depends on it.",
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
    plain = {name: said[name] for name in ("step", "n_segments", "compactness", "volume", "scratch")}
    floats = {name: numbers(f"--{name}", said[name], float) for name in ("spacing", "window")}
    return {**plain, **floats, **{name: lengths(f"--{name}", said[name]) for name in ("region", "chunks", "shards")}}


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
