"""`dseeds agglomerate`: supervoxels are merged into segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import OUTPUT, AsJson, Overwrite, Quiet, Weights, numbers
from dseeds.cli.progress import following
from dseeds.cli.tables import print_description

if TYPE_CHECKING:
    from dseeds.measure.agglomeration import MergeTree

# The panel of the help.
MERGING = "Merging"
EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds agglomerate labels.features segments.parquet --n-segments 200\n\n"
    "dseeds agglomerate labels.features segments.parquet --threshold 0.3 --tree tree.parquet\n\n"
    "dseeds agglomerate tree.parquet coarser.parquet --threshold 0.5"
)


def agglomerate(
    features: Annotated[
        str,
        typer.Argument(metavar="FEATURES", help="The supervoxels' folder of features, or a tree of their merges."),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The Parquet file to write: labels and segments.")],
    n_segments: Annotated[
        int | None,
        typer.Option("--n-segments", metavar="N", help="How many segments to make.", rich_help_panel=MERGING),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="Merge up to this distance of histograms, 0 to 1, instead of --n-segments.",
            rich_help_panel=MERGING,
        ),
    ] = None,
    weights: Weights = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="How much further apart than the most similar two those may be that are merged; 0 takes long.",
            show_default="1/1024",
            rich_help_panel=MERGING,
        ),
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write all merges to this Parquet file, to be cut elsewhere later.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Merge supervoxels that touch, the most similar histograms first, into segments.

    The table has a row for each supervoxel, with the columns label and segment.
    """
    from dseeds.measure.agglomeration import check_cut, write_segments
    from dseeds.storage.label_group import check_apart
    from dseeds.storage.table_file import check_table_file

    check_cut(n_segments, threshold)
    if tree is not None and Path(tree).absolute() == Path(target).absolute():
        raise ValueError(f"{target} cannot be both the table and the tree: name another file with --tree.")
    for file in filter(None, (target, tree)):
        check_apart(file, features)
        check_table_file(file, overwrite)
    merges = _merges(features, numbers("--weights", weights, float), epsilon, quiet)
    segments = merges.cut(n_segments=n_segments, threshold=threshold)
    write_segments(target, merges.labels, segments, overwrite=overwrite)
    if tree is not None:
        merges.save(tree, overwrite=overwrite)
    done = {
        "supervoxels": len(segments),
        "components": merges.components,
        "segments": int(segments.max(initial=0)),
        "table": target,
    }
    if as_json:
        print(json.dumps(done, indent=2))
    elif not quiet:
        print_description(done)


def _merges(features: str, weights: tuple[float, ...] | None, epsilon: float | None, quiet: bool) -> MergeTree:
    """Merge what is in a folder of features, or load what was merged."""
    from dseeds.measure.agglomeration import EPSILON, MergeTree, agglomerate

    if Path(features).is_file():
        if weights is not None or epsilon is not None:
            raise ValueError(f"{features} is a tree of merges, for which --weights and --epsilon come too late.")
        return MergeTree.load(features)
    with following(quiet) as progress:
        return agglomerate(
            features,
            weights=weights,
            epsilon=EPSILON if epsilon is None else epsilon,
            progress=progress.stage_callback("merge"),
        )
