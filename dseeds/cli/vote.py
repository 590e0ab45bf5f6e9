"""`dseeds vote`: the classes of annotated voxels for each supervoxel."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import LabelsArgument, OverwriteOption, TaskOptions, cells_option, output_option
from dseeds.cli.output import OutputOptions, choose_folder, folder_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dseeds.measure.votes import Votes

EXAMPLES = (
    "dseeds vote labels.zarr scribbles.zarr",
    "dseeds vote labels.nii.gz organs.nii.gz -o labels.vote --ignore none",
    "dseeds map labels.zarr labels.vote classes.zarr --column majority --as-labels",
)


def parse_ignored(text: str) -> int:
    """Return a class, or -1 for none.

    >>> parse_ignored("255"), parse_ignored("none")
    (255, -1)
    """
    if text.isdecimal():
        return int(text)
    if text != "none":
        raise typer.BadParameter(f"{text!r} is neither a class, a whole number from 0, nor none")
    return -1


def vote_command(
    labels: LabelsArgument,
    annotation: Annotated[
        str,
        typer.Argument(metavar="ANNOTATION", help="The classes on the same grid, scribbles or a full segmentation."),
    ],
    cluster: ClusterOptions,
    output: OutputOptions,
    tasks: TaskOptions,
    ignore: Annotated[
        int,
        cells_option(
            metavar="CLASS|none",
            parser=parse_ignored,
            help="The class of voxels without annotation; none if every voxel is annotated.",
        ),
    ] = "0",  # type: ignore[assignment]
    folder: Annotated[str | None, folder_option(".vote")] = None,
    listed: Annotated[
        int, output_option("--conflicts", metavar="N", min=0, help="How many conflicts to list, the least pure first.")
    ] = 10,
    overwrite: OverwriteOption = False,
) -> None:
    """Assign each supervoxel the class of most of its annotated voxels, and list conflicts, out of core.

    The tables hold the votes for each class, the majority, its share of the votes (purity), and the share of the voxels
    that are annotated (coverage). Of classes with equally many votes, the smallest is taken.
    """
    from dseeds.measure.votes import vote

    address = choose_folder(labels, folder, ".vote")
    with cluster.connect() as client, output.progress() as progress:
        votes = vote(
            labels,
            annotation,
            address,
            ignore=None if ignore < 0 else ignore,
            **vars(tasks),
            client=client,
            overwrite=overwrite,
            progress=progress,
        )
    summary = _summarise(votes, listed)
    output.print_result(json.dumps(summary, indent=2), partial(_print_summary, summary))


def _summarise(votes: Votes, listed: int) -> dict[str, Any]:
    """Return the numbers of supervoxels, and the first conflicts with the votes for each class."""
    conflicts = votes.conflicts.slice(0, listed)
    counts = votes.counts_of(conflicts["label"].to_pylist())
    keys = ("label", "majority", "purity", "coverage")
    rows = [{**{key: row[key] for key in keys}, "votes": counts[row["label"]]} for row in conflicts.to_pylist()]
    return {
        "target": votes.address,
        "supervoxels": votes.supervoxels,
        "annotated": votes.annotated,
        "conflicts": votes.contested,
        "least_pure": rows,
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    rows = summary["least_pure"]
    if rows:
        table = Table(*(Column(name, justify="right") for name in rows[0]))
        for row in rows:
            votes = ", ".join(f"{name}: {count}" for name, count in row["votes"].items())
            table.add_row(
                *(f"{row[key]}" for key in ("label", "majority")),
                *(f"{row[key]:.3f}" for key in ("purity", "coverage")),
                votes,
            )
        Console().print(table)
    print(
        f"{summary['supervoxels']} supervoxels, {summary['annotated']} annotated, {summary['conflicts']} conflicts: "
        f"{summary['target']}"
    )
