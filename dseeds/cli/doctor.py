"""`dseeds doctor`: whether a run can work here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dseeds.cli import errors
from dseeds.cli.cluster import client_at
from dseeds.cli.options import WORK, AsJson, Scheduler, TlsCaFile, TlsCert, TlsKey
from dseeds.cli.progress import following

if TYPE_CHECKING:
    from dseeds.doctor import Finding

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "dseeds doctor\n\n"
    "dseeds doctor --store s3://lab/tmp --store /data/scratch\n\n"
    "dseeds doctor --scheduler tcp://10.0.0.1:8786 --store s3://lab --no-self-test"
)
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
NAME_WIDTH = 20


def doctor(
    store: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|URL",
            help="A folder or an address in an object store to try: a small object is written, read, listed and "
            "removed again. May be given several times. With --scheduler, workers have to see it too.",
            show_default="the current folder alone",
            rich_help_panel=WORK,
        ),
    ] = None,
    scheduler: Scheduler = None,
    tls_ca_file: TlsCaFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test",
            help="Whether to cut a small phantom in memory and by a worker process, and to compare; the first time "
            "this compiles, for up to a minute.",
            rich_help_panel=WORK,
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Look at all that a run needs, and say what to do where something is amiss.

    That is versions, processors, memory, room on the disk, stores, a cluster, and a run on a small phantom. The exit
    code is 1 if anything has failed.
    """
    from dseeds.doctor import examine

    failed, findings = False, []
    client = client_at(scheduler, tls_ca_file, tls_cert, tls_key)
    with following(quiet=True) as progress:
        for finding in examine(store or (), client=client, self_test=self_test, progress=progress):
            failed |= finding.state == "failed"
            findings.append(asdict(finding))
            if not as_json:
                _print(finding)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": findings}, indent=2))
    if failed:
        raise typer.Exit(errors.FAILED)


def _print(finding: Finding) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=len("warning"))
    table.add_column(width=NAME_WIDTH, overflow="fold")
    table.add_column(overflow="fold")
    says = Text(finding.found)
    if finding.advice:
        says.append(f"\n{finding.advice}", style="italic")
    table.add_row(Text(finding.state, style=STYLES[finding.state]), Text(finding.name), says)
    Console().print(table)
