"""`dseeds doctor`: check whether this machine can run dseeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dseeds.cli import errors
from dseeds.cli.cluster import ClusterOptions
from dseeds.cli.options import work_option
from dseeds.cli.output import JsonOption, show_progress

if TYPE_CHECKING:
    from dseeds.doctor import Finding

EXAMPLES = (
    "dseeds doctor",
    "dseeds doctor --store s3://lab/tmp --store /data/scratch",
    "dseeds doctor --scheduler tcp://10.0.0.1:8786 --store s3://lab --no-self-test",
)
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
NAME_WIDTH = 20


def doctor_command(
    cluster: ClusterOptions,
    store: Annotated[
        list[str] | None,
        work_option(
            metavar="DIR|URL",
            help="A folder or an address in an object store to test: a small object is written, read, listed and "
            "removed. Can be repeated. With --scheduler, workers must see it too.",
            show_default="the current folder",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        work_option(
            "--self-test/--no-self-test",
            help="Whether to segment a small phantom in memory and in a worker process, and compare the labels. The "
            "first time this compiles, for up to a minute.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check everything that a run needs, and say how to fix what fails.

    The checks cover versions, processors, memory, disk space, stores, a cluster, and a run on a small phantom. The exit
    code is 1 if a check fails.
    """
    from dseeds.doctor import examine

    findings = []
    with show_progress(quiet=True) as progress:
        for finding in examine(store or (), client=cluster.connect(), self_test=self_test, progress=progress):
            findings.append(finding)
            if not as_json:
                _print_finding(finding)
    has_failed = any(finding.state == "failed" for finding in findings)
    if as_json:
        print(json.dumps({"ok": not has_failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    if has_failed:
        raise typer.Exit(errors.FAILED)


def _print_finding(finding: Finding) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=len("warning"))
    table.add_column(width=NAME_WIDTH, overflow="fold")
    table.add_column(overflow="fold")
    text = Text(finding.found)
    if finding.advice:
        text.append(f"\n{finding.advice}", style="italic")
    table.add_row(Text(finding.state, style=STYLES[finding.state]), Text(finding.name), text)
    Console().print(table)
