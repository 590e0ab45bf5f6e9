"""`dseeds benchmark`: compare supervoxels with those of other methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from dseeds.cli.errors import print_error
from dseeds.cli.options import OverwriteFileOption, output_option, parse_numbers, work_option
from dseeds.cli.output import QuietOption

if TYPE_CHECKING:
    from dseeds.benchmark.study import BenchmarkResult
    from dseeds.benchmark.summary import SummaryTable

EXAMPLES = (
    "dseeds benchmark cases.csv --json benchmark.json --figures plots",
    "dseeds benchmark cases.csv --methods 'dseeds,SLIC 0.1,watershed' --noise 0.05,0.1,0.2 --blur none",
)
PAGE, PLOTS = "benchmark.md", ("quality.svg", "robustness.svg")


def parse_strengths(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list, of which ``none`` has none.

    >>> parse_strengths("0.1,0.2"), parse_strengths("none")
    ((0.1, 0.2), ())
    """
    return () if text == "none" else parse_numbers(text)


def benchmark_command(
    cases: Annotated[
        Path,
        typer.Argument(
            metavar="CASES",
            help="CSV with a header, or JSON list of objects: name, kind, image, truth, steps such as '8 4x8x8', and "
            "optionally boundaries (a map, or image, dark or gradient) and window.",
        ),
    ],
    methods: Annotated[
        str | None,
        work_option(metavar="NAME,NAME,...", help="Methods to compare.", show_default="all that are installed"),
    ] = None,
    noise: Annotated[
        Sequence[float],
        work_option(
            metavar="S,S,...|none",
            parser=parse_strengths,
            help="Standard deviations of Gaussian noise under which to measure again, as shares of the window.",
        ),
    ] = "0.1",  # type: ignore[assignment]
    blur: Annotated[
        Sequence[float],
        work_option(
            metavar="S,S,...|none",
            parser=parse_strengths,
            help="Standard deviations of Gaussian blur under which to measure again, in voxels.",
        ),
    ] = "1",  # type: ignore[assignment]
    repeats: Annotated[int, work_option(metavar="N", min=1, help="Runs, of which the fastest counts as the time.")] = 3,
    document: Annotated[
        Path | None, output_option("--json", metavar="FILE", help="A file for all figures, as JSON.")
    ] = None,
    figures: Annotated[
        Path | None,
        output_option("--figures", metavar="FOLDER", help="A folder for the tables in Markdown and plots in SVG."),
    ] = None,
    overwrite: OverwriteFileOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare supervoxels with those of other methods at equal numbers, on any list of volumes.

    Quality, regularity, robustness to noise and blur, stability over the number of supervoxels, and the time in one
    thread. Peers are ETPS, and those that the extra named benchmark brings along: the SLIC and watershed of
    scikit-image, the SLIC of SimpleITK, the watershed of bioimage-cpp.
    """
    from dseeds.benchmark.study import run_benchmark
    from dseeds.core.optional import import_optional

    _check_outputs(document, figures, overwrite)
    if figures is not None:
        import_optional("matplotlib", "--figures", "dseeds[benchmark]")
    result = run_benchmark(
        cases,
        methods=None if methods is None else [name.strip() for name in methods.split(",")],
        noise=noise,
        blur=blur,
        repeats=repeats,
        observer=None if quiet else _print_row,
    )
    for peer, package in result.left_out.items():
        print_error(f"{package} is not installed; {peer} is left out.")
    if not quiet:
        for table in result.tables():
            _print_table(table)
    _write(result, document, figures)
    if result.failures:
        raise ValueError(f"{result.failures} of {len(result.rows)} results are missing: see the lines with 'failed'.")


def _check_outputs(document: Path | None, figures: Path | None, overwrite: bool) -> None:
    """Raise an error unless all files may be written."""
    from dseeds.storage.owned_file import check_own_file

    outputs = [] if document is None else [document]
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        outputs += [figures / name for name in (PAGE, *PLOTS)]
    for file in outputs:
        check_own_file(file, overwrite)


def _write(result: BenchmarkResult, document: Path | None, figures: Path | None) -> None:
    from dseeds.storage.owned_file import write_own_file

    # The figures of an hour are safe before anything is drawn.
    if document is not None:
        write_own_file(document, result.to_json().encode())
    if figures is not None:
        write_own_file(figures / PAGE, result.to_markdown().encode())
        for name, content in result.figures().items():
            write_own_file(figures / name, content)


def _print_row(row: dict[str, Any]) -> None:
    from dseeds.benchmark.criteria import CRITERIA, RANKING

    step = "x".join(map(str, row["step"]))
    figures = ", ".join(f"{CRITERIA[name].heading} {row[name]:.3f}" for name in RANKING if row["error"] is None)
    outcome = figures if row["error"] is None else f"failed: {row['error']}"
    print_error(", ".join(filter(None, (row["case"], step, row["disturbance"], row["method"]))) + f": {outcome}")


def _print_table(table: SummaryTable) -> None:
    first, *others = table.headings
    grid = Table(first, *(Column(heading, justify="right") for heading in others), title=table.title)
    for cells in table.lines:
        grid.add_row(*(cell.replace("**", "") for cell in cells), style="bold" if "**" in cells[0] else None)
    console = Console()
    console.print(grid)
    if table.note:
        console.print(table.note, markup=False)
