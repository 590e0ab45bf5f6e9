"""`dseeds agglomerate`: merge supervoxels into segments."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import OverwriteOption, WeightsOption, output_option
from dseeds.cli.output import OutputOptions
from dseeds.cli.tables import print_description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dseeds.measure.agglomeration import MergeTree

MERGING = "Merging"
EXAMPLES = (
    "dseeds agglomerate labels.features segments.parquet --n-segments 200",
    "dseeds agglomerate labels.features segments.parquet --threshold 0.3 --tree tree.parquet",
    "dseeds agglomerate tree.parquet coarser.parquet --threshold 0.5",
)


def agglomerate_command(
    features: Annotated[
        str, typer.Argument(metavar="FEATURES", help="The supervoxels' features folder, or a tree of their merges.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The Parquet file to write, with a segment for each label.")
    ],
    output: OutputOptions,
    n_segments: Annotated[
        int | None,
        typer.Option("--n-segments", metavar="N", help="Number of segments to make.", rich_help_panel=MERGING),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="Merge up to this distance of histograms, 0 to 1, instead of --n-segments.",
            rich_help_panel=MERGING,
        ),
    ] = None,
    weights: WeightsOption = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="How far the distance of a merged pair may exceed the smallest distance; 0 is slow.",
            show_default="1/1024",
            rich_help_panel=MERGING,
        ),
    ] = None,
    tree: Annotated[
        str | None,
        output_option(
            metavar="FILE",
            help="Also write the tree of all merges to this Parquet file, to be cut at other thresholds later.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Merge touching supervoxels into segments, those with the most similar histograms first.

    The table has one row per supervoxel, with the columns label and segment.
    """
    from dseeds.measure.agglomeration import check_cut, write_segments
    from dseeds.storage.ownership import check_apart
    from dseeds.storage.table_file import check_table_file

    check_cut(n_segments, threshold)
    if tree is not None and Path(tree).absolute() == Path(target).absolute():
        raise ValueError(f"{target} cannot be both the table and the tree: name another file with --tree.")
    for file in filter(None, (target, tree)):
        check_apart(file, features)
        check_table_file(file, overwrite)
    merges = _load_or_merge(features, weights, epsilon, output)
    segments = merges.cut(n_segments=n_segments, threshold=threshold)
    write_segments(target, merges, segments, overwrite=overwrite)
    if tree is not None:
        merges.save(tree, overwrite=overwrite)
    summary = {
        "supervoxels": len(segments),
        "components": merges.components,
        "segments": int(segments.max(initial=0)),
        "table": target,
    }
    output.print_result(json.dumps(summary, indent=2), partial(print_description, summary))


def _load_or_merge(
    features: str, weights: Sequence[float] | None, epsilon: float | None, output: OutputOptions
) -> MergeTree:
    """Load the tree in a file, or merge the supervoxels of a features folder."""
    from dseeds.measure.agglomeration import EPSILON, MergeTree, agglomerate

    if Path(features).is_file():
        if weights is not None or epsilon is not None:
            raise ValueError(f"--weights and --epsilon do not apply to {features}, which is a tree of merges already.")
        return MergeTree.load(features)
    with output.progress() as progress:
        return agglomerate(
            features,
            weights=weights,
            epsilon=EPSILON if epsilon is None else epsilon,
            progress=progress.stage_callback("merge"),
        )
