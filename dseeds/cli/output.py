"""The results and the progress that commands print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dseeds.cli.options import output_option

if TYPE_CHECKING:
    from dseeds.parallel.terminal_progress import TerminalProgress

JsonOption = Annotated[bool, output_option("--json", help="Print JSON on standard output, and nothing else.")]
QuietOption = Annotated[bool, output_option("--quiet", "-q", help="Show no progress and no summary.")]


def folder_option(suffix: str) -> Any:
    """Return the option `--output` for a folder of tables, which is that of `choose_folder` if it is not given."""
    return output_option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="A new folder for the tables.",
        show_default=f"next to the labels, with the suffix {suffix}",
    )


def choose_folder(labels: str, folder: str | None, suffix: str) -> str:
    """Return the folder of tables that was given, or the address of one next to the labels."""
    from dseeds.engine.run import folder_beside
    from dseeds.storage.location import open_location

    address = open_location(labels).address
    if folder is None and ".zarr/" in address:
        raise typer.BadParameter(
            f"required, because the folder next to {labels} would lie inside another Zarr group",
            param_hint="'--output'",
        )
    return folder or folder_beside(address, suffix)


@dataclass(frozen=True)
class OutputOptions:
    """The options that say what a command prints."""

    as_json: JsonOption = False
    quiet: QuietOption = False

    def progress(self) -> AbstractContextManager[TerminalProgress]:
        """Return a context that shows progress on standard error."""
        return show_progress(self.quiet)

    def print_result(self, document: str, print_summary: Callable[[], object]) -> None:
        """Print a result as JSON or as a summary, or nothing if the command is quiet."""
        if self.as_json:
            print(document)
        elif not self.quiet:
            print_summary()


@contextmanager
def show_progress(quiet: bool) -> Iterator[TerminalProgress]:
    """Show progress on standard error while the context lasts, unless the command is quiet."""
    from dseeds.core.kernel_cache import compile_timer
    from dseeds.parallel.terminal_progress import TerminalProgress

    display = TerminalProgress(Console(stderr=True, quiet=quiet))
    # Once, even if several workers compile.
    compile_timer.on_start = cache(lambda: display.print("compiling kernels ..."))
    compile_timer.on_problem = display.print
    with display.bars:
        yield display
