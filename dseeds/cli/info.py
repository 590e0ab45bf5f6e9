"""`dseeds info`: describe labels, a phantom or an image."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dseeds.cli.options import ImageOption, LevelOption, VolumeOption, choose_images
from dseeds.cli.output import JsonOption
from dseeds.cli.tables import print_description

EXAMPLES = ("dseeds info labels.zarr", "dseeds info labels.zarr --json | jq .supervoxels")


def info_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Labels, a phantom, or any image that dseeds reads.")],
    image: ImageOption = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe an output or an image: its shape, its spacing, and how labels were made."""
    from dseeds.convert.describe import describe

    [target] = choose_images([target], image)
    description = describe(target, volume=volume, level=level or 0)
    if as_json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
