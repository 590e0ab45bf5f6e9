"""`dseeds info`: what an output or an image is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dseeds.cli.options import AsJson, Level, Volume
from dseeds.cli.tables import print_description

EXAMPLES = "[bold]Examples[/bold]\n\ndseeds info labels.zarr\n\ndseeds info labels.zarr --json | jq .supervoxels"


def info(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Labels, a phantom, or any image that dseeds reads.")],
    volume: Volume = None,
    level: Level = None,
    as_json: AsJson = False,
) -> None:
    """Say what an output or an image is: its shape, its spacing, and how labels came about."""
    from dseeds.convert.describe import describe

    description = describe(target, volume=volume, level=level or 0)
    if as_json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
