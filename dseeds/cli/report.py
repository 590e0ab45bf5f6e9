"""`dseeds report`: a page about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import OUTPUT, Quiet, Threads
from dseeds.cli.preview import Overwrite, stem

if TYPE_CHECKING:
    from dseeds.engine.planning import Plan

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds report labels.zarr\n\n"
    "dseeds report labels.zarr --truth organs.nii.gz --output run.html\n\n"
    "dseeds plan ct.zarr labels.zarr --json > plan.json; dseeds report labels.zarr --plan plan.json"
)


def report(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The labels that a run has made.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the page goes, a path or URL.",
            show_default="here, called as the labels are, with the ending .html",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(metavar="TRUTH", help="The true segmentation on the same grid: with it comes the quality."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="The intensities.",
            show_default="the source that the labels say they were made from",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="What dseeds plan --json has printed, to set its time beside the actual one.",
            show_default="what the labels keep, without a time",
        ),
    ] = None,
    sizes: Annotated[
        bool, typer.Option("--sizes/--no-sizes", help="Count the sizes of the supervoxels, for which all are read.")
    ] = True,
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Describe a run on a page of HTML that needs nothing beside itself.

    Parameters, plan and actual, times of the stages, memory of the workers, sizes, quality and pictures. Labels in
    NIfTI keep nothing of their run: dseeds segment --html writes the page for them.
    """
    from dseeds.viz.html_report import html_report

    where = output or f"{stem(target)}.html"
    html_report(
        target,
        where,
        image=image,
        truth=truth,
        plan=None if plan is None else _plan(plan),
        sizes=sizes,
        threads=threads,
        overwrite=overwrite,
    )
    if not quiet:
        print(where)


def _plan(file: Path) -> Plan:
    from dseeds.engine.planning import Plan

    try:
        return Plan.from_dict(json.loads(file.read_bytes()))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"{file} is not what dseeds plan --json has printed.") from None
