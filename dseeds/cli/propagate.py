"""`dseeds propagate`: spread the classes of a few supervoxels to all."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from dseeds.cli.options import OverwriteFileOption, ThreadsOption, complete_from, output_option
from dseeds.cli.output import OutputOptions
from dseeds.cli.tables import print_description

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dseeds.measure.propagation import Propagated

SPREADING = "Spreading"
EXAMPLES = (
    "dseeds propagate labels.features labels.vote classes.parquet --suggest 10",
    "dseeds propagate labels.features clicks.csv classes.parquet --column organ --method random_forest",
    "dseeds map labels.zarr classes.parquet classes.zarr --column class --as-labels",
)


def propagate_command(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="The supervoxels' features folder.")],
    classes: Annotated[
        str,
        typer.Argument(
            metavar="CLASSES",
            help="The annotated supervoxels: a folder written by dseeds vote, or a table with the suffix .parquet, "
            ".csv or .tsv, with the columns label and --column; class 0 is not annotated.",
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The Parquet file to write, with a row for each label.")
    ],
    output: OutputOptions,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="The column of classes.", rich_help_panel=SPREADING)
    ] = "majority",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_from("random_walker", "random_forest", "gradient_boosting"),
            help="How to spread: random_walker on the graph, or a random_forest or gradient_boosting on the table.",
            rich_help_panel=SPREADING,
        ),
    ] = "random_walker",
    beta: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            min=0,
            help="How strongly a difference keeps the random walker from crossing a contact.",
            rich_help_panel=SPREADING,
        ),
    ] = 1.0,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,...",
            help="The columns to compare supervoxels by.",
            show_default="mean intensities; all but positions for a classifier",
            rich_help_panel=SPREADING,
        ),
    ] = None,
    suggest: Annotated[
        int, output_option(metavar="N", min=0, help="How many supervoxels to suggest for annotation next.")
    ] = 0,
    threads: ThreadsOption = None,
    overwrite: OverwriteFileOption = False,
) -> None:
    """Spread the classes of a few annotated supervoxels to all, with probabilities.

    The table has the columns label, class, probability, uncertainty and annotated, and a probability for each class.
    """
    from dseeds.measure.propagation import propagate
    from dseeds.storage.ownership import check_apart
    from dseeds.storage.table_file import check_table_file

    for source in (features, classes):
        check_apart(target, source)
    check_table_file(target, overwrite)
    names = None if columns is None else columns.split(",")
    options: dict[str, Any] = {"method": method, "beta": beta, "columns": names, "threads": threads}
    result = propagate(features, classes, column=column, **options)
    result.save(target, overwrite=overwrite)
    summary = _summarise(result, target)
    if suggest:
        summary["suggestions"] = _describe_suggestions(result, features, suggest)
    output.print_result(json.dumps(summary, indent=2), partial(_print_summary, summary))


def _summarise(result: Propagated, target: str) -> dict[str, Any]:
    """Return the numbers of supervoxels, in all and by class."""
    assigned = result.assigned
    sizes = {str(name): int((assigned == name).sum()) for name in result.classes.tolist()}
    return {
        "supervoxels": len(assigned),
        "annotated": int(result.annotated.sum()),
        "classes": sizes,
        "without class": int((assigned == 0).sum()),
        "table": target,
    }


def _describe_suggestions(result: Propagated, features: str, count: int) -> list[dict[str, Any]]:
    """Return the suggested supervoxels, with the voxels at their centroids."""
    import numpy as np

    from dseeds.measure.columns import CENTROID
    from dseeds.measure.region_graph import load_graph

    labels = result.suggest(count)
    places = np.searchsorted(result.labels, labels)
    positions = load_graph(features, columns=CENTROID, edge_columns=[]).matrix(CENTROID)[places]
    rows = zip(labels, result.assigned[places], result.uncertainty[places], positions, strict=True)
    return [
        {
            "label": int(label),
            "class": int(name),
            "uncertainty": round(float(uncertainty), 6),
            "at": np.rint(position).astype(int).tolist(),
        }
        for label, name, uncertainty, position in rows
    ]


def _print_summary(summary: Mapping[str, Any]) -> None:
    rows = summary.get("suggestions", ())
    print_description({key: value for key, value in summary.items() if key != "suggestions"})
    if rows:
        table = Table(*(Column(name, justify="right") for name in ("annotate", "class", "uncertainty", "at (z,y,x)")))
        for row in rows:
            at = ",".join(map(str, row["at"]))
            table.add_row(str(row["label"]), str(row["class"]), f"{row['uncertainty']:.3f}", at)
        Console().print(table)
