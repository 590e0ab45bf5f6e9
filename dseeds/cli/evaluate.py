"""`dseeds evaluate`: measure the quality of supervoxels."""

from __future__ import annotations

import json
import shlex
from functools import partial
from typing import Annotated, Any

import typer

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import (
    CELLS,
    LabelsArgument,
    LevelOption,
    SpacingOption,
    TaskOptions,
    VolumeOption,
    VoxelCounts,
    cells_option,
    image_option,
    voxels_option,
    work_option,
)
from dseeds.cli.output import OutputOptions
from dseeds.cli.tables import print_figures

EXAMPLES = (
    "dseeds evaluate labels.zarr body.zarr/labels/organs --image body.zarr",
    "dseeds evaluate labels.nii.gz organs.nii.gz --tolerance 2mm --json",
    "dseeds evaluate others.zarr --chunks 128",
)


def evaluate_command(
    labels: LabelsArgument,
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    truth: Annotated[
        str | None, typer.Argument(metavar="TRUTH", help="The true segmentation on the same grid; 0 is background.")
    ] = None,
    image: Annotated[
        str | None, image_option(metavar="IMAGE", help="The image on the same grid, for the explained variation.")
    ] = None,
    tolerance: Annotated[
        str,
        cells_option(
            metavar="N|LENGTH",
            help="Distance up to which boundaries match for the boundary recall: voxels along every axis, or a length "
            "such as 3mm.",
        ),
    ] = "1",
    chunks: Annotated[
        VoxelCounts | None,
        voxels_option(
            CELLS,
            "Measure seams: whether and where there are more boundaries on planes of a grid of chunks of this size.",
        ),
    ] = None,
    step: Annotated[
        str | None,
        cells_option(
            metavar="N|Z,Y,X|LENGTH",
            help="Step of the lattice of the supervoxels: seams are compared with planes in the same place of a cell.",
            show_default="from the labels, if dseeds made them",
        ),
    ] = None,
    spacing: SpacingOption = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    scratch: Annotated[
        str | None,
        work_option(
            metavar="DIR",
            help="Folder or URL for intermediate data, visible to all workers: about 100 bytes per supervoxel.",
            show_default="the system's temporary folder",
        ),
    ] = None,
) -> None:
    """Measure supervoxels of any origin against a true segmentation or the image, and on their own, out of core.

    All sums are exact, so no figure depends on how the volume is divided into regions.
    """
    from dseeds.quality.evaluation import evaluate

    with cluster.connect() as client, output.progress() as progress:
        figures = evaluate(
            labels,
            truth,
            image=image,
            tolerance=tolerance,
            chunks=chunks,
            step=step,
            spacing=spacing,
            volume=volume,
            level=level,
            **vars(tasks),
            client=client,
            scratch=scratch,
            progress=progress,
        )
    output.print_result(json.dumps(figures, indent=2), partial(_print_all, figures, labels, image))


def _print_all(figures: dict[str, Any], labels: str, image: str | None) -> None:
    """Print the figures, and the worst seams with a command to look at each."""
    worst = figures.get("worst_seams", [])
    print_figures({name: value for name, value in figures.items() if name != "worst_seams"})
    for seam in worst:
        excess, there = (
            "unknown" if value is None else f"{value:.2f}" for value in (seam["excess"], seam["excess_there"])
        )
        words = ["dseeds", "preview", labels, *([image] if image else []), "--at", ",".join(map(str, seam["at"]))]
        print(f"seam at {seam['axis']} = {seam['plane']}, excess {excess}, at worst {there}: {shlex.join(words)}")
