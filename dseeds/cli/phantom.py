"""`dseeds phantom`: make a test volume with its true segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dseeds.cli.options import (
    OverwriteOption,
    complete_from,
    image_option,
    output_option,
    parse_integers,
    parse_spacing,
    work_option,
)
from dseeds.cli.output import QuietOption, show_progress
from dseeds.core.formatting import format_shape

EXAMPLES = (
    "dseeds phantom body.zarr --shape 512,512,512",
    "dseeds phantom thick.zarr --shape 100,512,512 --spacing 5,1,1 --dtype int16 --noise 20",
)


def phantom_command(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The OME-Zarr image to write.")],
    shape: Annotated[
        Sequence[int], image_option(metavar="Z,Y,X", parser=parse_integers, help="Shape of the volume in voxels.")
    ],
    spacing: Annotated[
        Sequence[float] | None,
        image_option(metavar="Z,Y,X", parser=parse_spacing, help="Voxel size in millimetres.", show_default="1,1,1"),
    ] = None,
    dtype: Annotated[
        str,
        image_option(
            metavar="TYPE",
            help="uint8, uint16, int16 or float32.",
            autocompletion=complete_from("uint8", "uint16", "int16", "float32"),
        ),
    ] = "uint16",
    noise: Annotated[
        float, image_option(metavar="S", help="Standard deviation of the noise; intensities range from 0 to 4095.")
    ] = 40.0,
    organs: Annotated[int, image_option(metavar="N", help="Number of organs, 0 to 1000.")] = 40,
    seed: Annotated[int, image_option(metavar="N", help="Random seed: each seed makes another body.")] = 0,
    chunk: Annotated[int, output_option(metavar="N", help="Chunk size in voxels.")] = 64,
    threads: Annotated[
        int | None, work_option(metavar="N", help="Number of threads.", show_default="one per core, at most 8")
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a body-like test volume of any size with its true segmentation, in little memory.

    The image is the array 0, the truth labels/organs/0; `dseeds segment` and `dseeds evaluate` read both.
    """
    from dseeds.phantom import write_phantom

    with show_progress(quiet) as progress:
        write_phantom(
            target,
            shape=shape,
            spacing=spacing or (1.0, 1.0, 1.0),
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
        print(f"{format_shape(shape)} voxels (z, y, x): {target}")
