"""`dseeds evaluate`: supervoxels are measured against a true segmentation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dseeds.cli.options import IMAGE, AsJson, Volume
from dseeds.cli.tables import print_figures

if TYPE_CHECKING:
    import numpy as np

# Planes that are read at once of a volume that is loaded whole.
SLAB = 64
EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds evaluate labels.zarr body.zarr/labels/organs --image body.zarr\n\n"
    "dseeds evaluate labels.nii.gz organs.nii.gz --json"
)


def evaluate(
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="The supervoxels; 0 is masked out.")],
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="The true segmentation on the same grid; 0 is background.")
    ],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="The intensities; with them comes the explained variation.", rich_help_panel=IMAGE
        ),
    ] = None,
    volume: Volume = None,
    as_json: AsJson = False,
) -> None:
    """Measure supervoxels against a true segmentation, in memory.

    Each is a NIfTI file, a Zarr array or an OME-Zarr image.
    """
    from dseeds.metrics import evaluate as measure

    with Console(stderr=True).status("reading"):
        volumes = _load(labels), _load(truth), None if image is None else _load(image, volume)
    with Console(stderr=True).status("measuring"):
        figures = measure(volumes[0], volumes[1], image=volumes[2])
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        print_figures(figures)


def _load(address: str, volume: int | None = None) -> np.ndarray:
    """Read a volume whole."""
    import numpy as np

    from dseeds.io import open_source

    source = open_source(address, volume=volume)
    whole = np.empty(source.shape, source.dtype)
    for begin, slab in source.slabs(SLAB):
        whole[begin : begin + len(slab)] = slab
    return whole
