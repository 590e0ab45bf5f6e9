"""`dseeds phantom`: a test volume with its truth is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dseeds.cli.options import IMAGE, OUTPUT, WORK, Overwrite, Quiet, numbers, one_of
from dseeds.cli.progress import following
from dseeds.cli.tables import by

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds phantom body.zarr --shape 512,512,512\n\n"
    "dseeds phantom thick.zarr --shape 100,512,512 --spacing 5,1,1 --dtype int16 --noise 20"
)


def phantom(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The OME-Zarr image to make.")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="Voxels along the axes.", rich_help_panel=IMAGE)],
    spacing: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Size of a voxel in millimetres.", rich_help_panel=IMAGE)
    ] = "1,1,1",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="uint8, uint16, int16 or float32.",
            autocompletion=one_of("uint8", "uint16", "int16", "float32"),
            rich_help_panel=IMAGE,
        ),
    ] = "uint16",
    noise: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Standard deviation of the noise; intensities go from 0 to 4095.",
            rich_help_panel=IMAGE,
        ),
    ] = 40.0,
    organs: Annotated[int, typer.Option(metavar="N", help="Number of organs, 0 to 1000.", rich_help_panel=IMAGE)] = 40,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Picks the body: each is another one.", rich_help_panel=IMAGE)
    ] = 0,
    chunk: Annotated[
        int, typer.Option(metavar="N", help="Voxels along the axes of a chunk.", rich_help_panel=OUTPUT)
    ] = 64,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads.", show_default="one per core, at most 8", rich_help_panel=WORK),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a body-like test volume of any size with its truth, in little memory.

    The image is the array 0, the truth labels/organs/0; `dseeds segment` and `dseeds evaluate` take both as they are.
    """
    sizes = numbers("--shape", shape, int) or ()
    lengths = numbers("--spacing", spacing, float) or ()

    from dseeds.phantom import write_phantom

    with following(quiet) as progress:
        write_phantom(
            target,
            shape=sizes,
            spacing=lengths,
            dtype=dtype,
            noise=noise,
            organs=organs,
            seed=seed,
            chunk=chunk,
            threads=threads,
            overwrite=overwrite,
            progress=progress.stage_callback("phantom"),
        )
    if not quiet:
        print(f"{by(sizes)} voxels (z, y, x): {target}")
