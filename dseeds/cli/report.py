"""`dseeds report`: write a report of a run as an HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dseeds.cli.options import OverwriteFileOption, ThreadsOption
from dseeds.cli.output import QuietOption
from dseeds.cli.preview import default_output, result_file_option

if TYPE_CHECKING:
    from dseeds.engine.planning import Plan

EXAMPLES = (
    "dseeds report labels.zarr",
    "dseeds report labels.zarr --truth organs.nii.gz --output run.html",
    "dseeds plan ct.zarr labels.zarr --json > plan.json; dseeds report labels.zarr --plan plan.json",
)


def report_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The labels of the run.")],
    output: Annotated[str | None, result_file_option("page", ".html")] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="TRUTH", help="The true segmentation on the same grid, to report the quality.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="The image on the same grid.",
            show_default="the source recorded in the labels",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The output of dseeds plan --json, to compare its estimated time with the actual one.",
            show_default="the plan recorded in the labels, which has no time",
        ),
    ] = None,
    sizes: Annotated[
        bool,
        typer.Option("--sizes/--no-sizes", help="Whether to report the sizes of supervoxels, which reads all labels."),
    ] = True,
    threads: ThreadsOption = None,
    overwrite: OverwriteFileOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a report of a run as a self-contained HTML page.

    It shows parameters, the plan and the actual figures, times of the stages, memory of the workers, sizes, quality and
    pictures. Labels in NIfTI record nothing about their run; use dseeds segment --html for them.
    """
    from dseeds.viz.html_report import html_report

    path = output or default_output(target, ".html")
    html_report(
        target,
        path,
        image=image,
        truth=truth,
        plan=None if plan is None else _read_plan(plan),
        sizes=sizes,
        threads=threads,
        overwrite=overwrite,
    )
    if not quiet:
        print(path)


def _read_plan(file: Path) -> Plan:
    from dseeds.engine.planning import Plan

    try:
        return Plan.from_dict(json.loads(file.read_bytes()))
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"{file} does not hold the output of dseeds plan --json.") from None
