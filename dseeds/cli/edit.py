"""`dseeds edit`: merge and split chosen supervoxels, with a log and undo."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from dseeds.cli.options import (
    ChannelAxisOption,
    LevelOption,
    ThreadsOption,
    VolumeOption,
    cells_option,
    complete_from,
    image_option,
    one_or_several,
)
from dseeds.cli.output import OutputOptions

if TYPE_CHECKING:
    from dseeds.api.edit import Edits
    from dseeds.storage.edit_log import EditRecord

EXAMPLES = (
    "dseeds edit labels.zarr merge 12 40 7",
    "dseeds edit labels.zarr split 17 --seed 30,41,52 --seed 36,40,60",
    "dseeds edit labels.zarr split 17 --seeds scribbles.zarr --by-contrast --image embryo.zarr",
    "dseeds edit labels.zarr split 17 --parts drawn.zarr",
    "dseeds edit labels.zarr merge 12 40 --features labels.features --image embryo.zarr",
    "dseeds edit labels.zarr update --features labels.features --image embryo.zarr",
    "dseeds edit labels.zarr undo",
    "dseeds edit labels.zarr log",
)
ACTIONS = ("merge", "split", "undo", "update", "log")

Points: TypeAlias = list[tuple[int, ...]]


def parse_points(text: str) -> Points:
    """Return the points of a part.

    >>> parse_points("3,4,5;3,4,6")
    [(3, 4, 5), (3, 4, 6)]
    """
    try:
        points = [tuple(int(place) for place in point.split(",")) for point in text.split(";")]
    except ValueError:
        points = []
    if not points or any(len(point) != 3 for point in points):
        raise typer.BadParameter(f"{text!r} is no point z,y,x, nor several of them separated by semicolons")
    return points


def edit_command(
    labels: Annotated[
        str, typer.Argument(metavar="LABELS", help="Labels that dseeds segment wrote as OME-Zarr, which are changed.")
    ],
    action: Annotated[
        str,
        typer.Argument(
            metavar="merge|split|undo|update|log",
            help="Merge supervoxels, split one, undo the last edit, bring features up to date, or list all edits.",
            autocompletion=complete_from(*ACTIONS),
        ),
    ],
    output: OutputOptions,
    chosen: Annotated[
        list[int] | None,
        typer.Argument(metavar="[LABEL]...", help="The supervoxels to merge, or the one to split."),
    ] = None,
    seed: Annotated[
        list[Any] | None,
        cells_option(
            metavar="Z,Y,X[;Z,Y,X...]",
            parser=parse_points,
            help="Split: points from which a part grows; once for each part, of which the first keeps the label.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        cells_option(metavar="SCRIBBLES", help="Split: classes on the same grid from which parts grow; 0 is none."),
    ] = None,
    parts: Annotated[
        str | None, cells_option(metavar="DRAWING", help="Split: the parts themselves, as values on the same grid.")
    ] = None,
    by_contrast: Annotated[
        bool, cells_option("--by-contrast", help="Split: let parts that grow meet where the --image changes.")
    ] = False,
    pieces: Annotated[
        bool, cells_option("--pieces", help="Split: make each piece of a part that is not connected a part of its own.")
    ] = False,
    apart: Annotated[bool, cells_option("--apart", help="Merge: allow supervoxels that do not touch.")] = False,
    features: Annotated[
        str | None,
        cells_option(
            metavar="FOLDER",
            help="The features of the labels, which tell where supervoxels lie and are brought up to date.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        image_option(
            metavar="IMAGE",
            help="The image that --by-contrast follows, and features were measured from; once for each channel.",
        ),
    ] = None,
    volume: VolumeOption = None,
    level: LevelOption = None,
    channel_axis: ChannelAxisOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Merge or split chosen supervoxels in place, and change no other voxel or id.

    Every edit is logged and can be undone; undo also takes back those of earlier days, one after the other. An edit
    that was interrupted is completed first, by any of the actions. A new part gets a label that was never used before.
    """
    _check_arguments(action, chosen or [], seed, seeds, parts)
    if action == "update" and features is None:
        raise typer.BadParameter("an update takes --features", param_hint="'update'")
    if by_contrast and not image:
        raise typer.BadParameter("it needs an --image", param_hint="'--by-contrast'")
    from dseeds.api.edit import edit

    edits = edit(labels, features=features, threads=threads)
    intensities = one_or_several(image) if image else None
    where: Any = {"volume": volume, "level": level, "channel_axis": channel_axis}
    split = {"seeds": list(seed) if seed else seeds, "parts": parts, "pieces": pieces}
    if by_contrast:
        split |= {"image": intensities, **where}
    if features is not None and action != "log":
        # First, so that nothing is edited that cannot be measured.
        edits.update_features(image=intensities, **where)
    record = _perform(edits, action, chosen or [], split, apart)
    if features is not None and record is not None:
        edits.update_features(image=intensities, **where)
    if action == "update":
        output.print_result(json.dumps({"features": features}), partial(print, f"features up to date: {features}"))
    elif record is None:
        log = edits.log
        document = json.dumps([_summarise(one) for one in log], indent=2)
        output.print_result(document, partial(_print_log, log))
    else:
        output.print_result(json.dumps(_summarise(record), indent=2), partial(print, _describe(record)))


def _check_arguments(
    action: str, chosen: Sequence[int], seed: Sequence[Points] | None, seeds: str | None, parts: str | None
) -> None:
    """Raise an error for arguments that do not belong together."""
    if action not in ACTIONS:
        raise typer.BadParameter(f"{action!r} is none of {', '.join(ACTIONS)}", param_hint="'ACTION'")
    ways = [way for way in (seed, seeds, parts) if way]
    if action == "split" and (len(ways) != 1 or len(chosen) != 1):
        raise typer.BadParameter("a split takes one label, and either --seed, --seeds or --parts", param_hint="'split'")
    if action != "split" and ways:
        raise typer.BadParameter("seeds and parts are for a split", param_hint=f"'{action}'")
    if action == "merge" and len(chosen) < 2:
        raise typer.BadParameter("a merge takes two or more labels", param_hint="'merge'")
    if action in ("undo", "update", "log") and chosen:
        raise typer.BadParameter(f"{action} takes no labels", param_hint=f"'{action}'")


def _perform(
    edits: Edits, action: str, chosen: Sequence[int], split: Mapping[str, Any], apart: bool
) -> EditRecord | None:
    if action == "merge":
        return edits.merge(chosen, apart=apart)
    if action == "split":
        return edits.split(chosen[0], **split)
    return edits.undo() if action == "undo" else None


def _summarise(record: EditRecord) -> dict[str, Any]:
    document = record.to_dict()
    del document["pieces"]
    return document


def _describe(record: EditRecord) -> str:
    """Return an edit in words."""
    before, after = (", ".join(map(str, labels)) for labels in (record.before, record.after))
    name = record.kind if record.undoes is None else f"undo of edit {record.undoes}"
    return f"edit {record.number}: {name}, {before} -> {after}, {record.voxels} voxels"


def _print_log(log: Sequence[EditRecord]) -> None:
    if not log:
        print("no edits")
        return
    table = Table("edit", "time", "kind", "before", "after", "voxels", "version")
    for record in log:
        kind = record.kind if record.undoes is None else f"undo of {record.undoes}"
        sides = (", ".join(map(str, labels)) for labels in (record.before, record.after))
        table.add_row(str(record.number), record.time, kind, *sides, str(record.voxels), record.version)
    Console().print(table)
