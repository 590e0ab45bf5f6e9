"""The command line: `dseeds segment`, `info`, `phantom`, `evaluate` and `compile`.

Standard output carries results alone, progress and errors go to standard error. What computes is imported by the
commands that need it, so that help is there at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dseeds import __version__

if TYPE_CHECKING:
    import numpy as np
    from distributed import Client

    from dseeds.display import Display

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
# Set in the environment, it lets errors show their traceback.
DEBUG = "DSEEDS_DEBUG"
CONNECT_SECONDS = 15
# Planes that are read at once of a volume that is loaded whole.
SLAB = 64
# Structures in a table of figures.
SHOWN = 100
HEADINGS = {"shape": "shape (z, y, x)", "spacing": "spacing (mm)"}
# typer takes click's exceptions from click or from a copy of its own, depending on its version.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"Errors are one sentence and exit code {FAILED}; set {DEBUG}=1 to see where they come from.",
)

CELLS, IMAGE, WORK, OUTPUT = "Supervoxels", "Image", "Computing", "Output"

Step = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X|LENGTH",
        help="Size of a supervoxel: voxels along every axis, voxels along z,y,x, or a length such as 12mm.",
        show_default="16",
        rich_help_panel=CELLS,
    ),
]
Segments = Annotated[
    int | None,
    typer.Option(
        "--n-segments",
        metavar="N",
        help="How many supervoxels to come close to, instead of --step.",
        rich_help_panel=CELLS,
    ),
]
Spacing = Annotated[
    str | None,
    typer.Option(
        metavar="Z,Y,X",
        help="Size of a voxel in millimetres.",
        show_default="what the image says",
        rich_help_panel=IMAGE,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Intensities between which to tell differences.",
        show_default="percentiles 0.5 and 99.5",
        rich_help_panel=IMAGE,
    ),
]
Compactness = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        help="From 0, where supervoxels follow the image alone, to 30, where they are all but cells of the lattice.",
        rich_help_panel=CELLS,
    ),
]
Volume = Annotated[
    int | None, typer.Option(metavar="I", help="Which volume of a 4D image, from 0.", rich_help_panel=IMAGE)
]
Region = Annotated[
    str | None,
    typer.Option(
        metavar="N|Z,Y,X",
        help="Voxels along the axes that one task works on; no label depends on it.",
        show_default="what fits the memory",
        rich_help_panel=WORK,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Worker processes on this machine.", show_default="one per core", rich_help_panel=WORK
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What one worker may use, such as 2GiB.",
        show_default="its share of the machine, or its own limit",
        rich_help_panel=WORK,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Use the Dask cluster at this address, such as tcp://10.0.0.1:8786, and leave it running.",
        rich_help_panel=WORK,
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for intermediate data that all workers see; 1 to 6 bytes per voxel.",
        show_default="the target's",
        rich_help_panel=WORK,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an older output of dseeds; nothing else is ever replaced.", rich_help_panel=OUTPUT
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and nothing else.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.", rich_help_panel=OUTPUT)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those that the process was called with.

    Returns
    -------
    int
        The exit code: 0, 1 for an error, 2 for arguments that make no command, 130 after Ctrl-C.
    """
    with _good_manners():
        try:
            code = app(arguments, prog_name="dseeds", standalone_mode=False) or 0
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None or _debugging():
                raise
            _say(f"error: {sentence}")
            return MISUSED if isinstance(error, UsageError) else FAILED
    if code == INTERRUPTED:
        _say("interrupted; nothing was published")
    return int(code)


@contextmanager
def _good_manners() -> Iterator[None]:
    """Leave the word to the one sentence that an error gets, and clean up when told to stop."""
    if not _debugging():
        logging.disable()
        # Workers that die leave semaphores behind, of which Python tells.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)


def _interrupt(number: int, frame: object) -> None:
    # Only once: the next time would interrupt the cleaning up.
    signal.signal(number, signal.SIG_IGN)
    # Python refuses to print where it is printing that is interrupted.
    with suppress(RuntimeError):
        _say("interrupted: cleaning up")
    raise KeyboardInterrupt


def _debugging() -> bool:
    return bool(os.environ.get(DEBUG))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sentence(error: Exception) -> str | None:
    """Put an error that is to be expected into one line; None for others, which are bugs."""
    if isinstance(error, UsageError):
        return _of_usage(error)
    if _is_dask(error, "KilledWorker"):
        return (
            "one worker after the other died over the same task, most likely for want of memory: give each more "
            "(--memory), or take smaller regions (--region)"
        )
    if _is_dask(error, "FutureCancelledError"):
        return f"the cluster lost its work ({getattr(error, 'reason', error)}): see its scheduler's and workers' logs"
    if isinstance(error, MemoryError):
        return _line(f"out of memory: {error}" if str(error) else "out of memory")
    if isinstance(error, OSError) and error.strerror:
        return _line(_of_system(error))
    return _line(str(error)) if isinstance(error, OSError | ValueError | TypeError) else None


def _of_usage(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "dseeds"
    message = error.format_message()
    return f"{_line(message[:1].lower() + message[1:])} (see {command} --help)"


def _is_dask(error: Exception, name: str) -> bool:
    # By name, for importing distributed takes longer than help should.
    return type(error).__name__ == name and type(error).__module__.startswith("distributed.")


def _of_system(error: OSError) -> str:
    reason = str(error.strerror)
    where = f" ({error.filename})" if error.filename else ""
    advice = (
        ": free some, or write the target and --scratch elsewhere"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else ""
    )
    return f"{reason[:1].lower()}{reason[1:]}{where}{advice}"


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


@app.callback(invoke_without_command=True)
def _dseeds(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """3D SEEDS supervoxels for volumes of any size: one answer, however the volume is cut."""
    if version:
        print(f"dseeds {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dseeds segment ct.nii.gz labels.nii.gz --step 8mm --window -150,250\n\n"
    "dseeds segment brain.ome.zarr labels.zarr --n-segments 5000 --workers 4 --memory 2GiB\n\n"
    "dseeds segment embryo.zarr labels.zarr --step 4,16,16 --scheduler tcp://10.0.0.1:8786"
)
def segment(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A NIfTI file, or path or URL of a Zarr array or OME-Zarr image.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="Where the labels go: a new OME-Zarr group, or .nii or .nii.gz where the source is NIfTI.",
        ),
    ],
    step: Step = None,
    n_segments: Segments = None,
    spacing: Spacing = None,
    window: Window = None,
    compactness: Compactness = 0.0,
    volume: Volume = None,
    region: Region = None,
    workers: Workers = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    scratch: Scratch = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut a volume into supervoxels, out of core, on all cores or on a Dask cluster.

    The labels are the same, bit for bit, with any number of workers and any amount of memory.
    """
    voxels = _numbers("--region", region, int)
    options: dict[str, Any] = {
        "step": step,
        "n_segments": n_segments,
        "spacing": _numbers("--spacing", spacing, float),
        "window": _numbers("--window", window, float),
        "compactness": compactness,
        "volume": volume,
        "region": voxels[0] if voxels and len(voxels) == 1 else voxels,
        "memory": memory,
        "workers": workers,
        "scratch": scratch,
        "overwrite": overwrite,
    }
    if scheduler and workers is not None:
        raise typer.BadParameter("it is for this machine, and cannot go with --scheduler", param_hint="'--workers'")

    from dseeds.engine import segment as run

    with _client(scheduler) as client, _progress(quiet) as progress:
        report = run(source, target, client=client, progress=progress, **options)
    if as_json:
        print(report.to_json())
    elif not quiet:
        print(report)


@app.command(
    epilog="[bold]Examples[/bold]\n\ndseeds info labels.zarr\n\ndseeds info labels.zarr --json | jq .supervoxels"
)
def info(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Labels, a phantom, or any image that dseeds reads.")],
    volume: Volume = None,
    as_json: AsJson = False,
) -> None:
    """Say what an output or an image is: its shape, its spacing, and how labels came about."""
    from dseeds.info import describe

    description = describe(target, volume=volume)
    if as_json:
        print(json.dumps(description, indent=2))
    else:
        _print_description(description)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dseeds phantom body.zarr --shape 512,512,512\n\n"
    "dseeds phantom thick.zarr --shape 100,512,512 --spacing 5,1,1 --dtype int16 --noise 20"
)
def phantom(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The OME-Zarr image to make.")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="Voxels along the axes.", rich_help_panel=IMAGE)],
    spacing: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Size of a voxel in millimetres.", rich_help_panel=IMAGE)
    ] = "1,1,1",
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="uint8, uint16, int16 or float32.", rich_help_panel=IMAGE)
    ] = "uint16",
    noise: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Standard deviation of the noise; intensities go from 0 to 4095.",
            rich_help_panel=IMAGE,
        ),
    ] = 40.0,
    organs: Annotated[int, typer.Option(metavar="N", help="Number of organs, 0 to 1000.", rich_help_panel=IMAGE)] = 40,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Picks the body: each is another one.", rich_help_panel=IMAGE)
    ] = 0,
    chunk: Annotated[
        int, typer.Option(metavar="N", help="Voxels along the axes of a chunk.", rich_help_panel=OUTPUT)
    ] = 64,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads.", show_default="one per core, at most 8", rich_help_panel=WORK),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a body-like test volume of any size with its truth, in little memory.

    The image is the array 0, the truth labels/organs/0; `dseeds segment` and `dseeds evaluate` take both as they are.
    """
    sizes = _numbers("--shape", shape, int) or ()
    lengths = _numbers("--spacing", spacing, float) or ()

    from dseeds.phantom import write_phantom

    with _progress(quiet) as progress:
        write_phantom(
            target,
            shape=sizes,
            spacing=lengths,
            dtype=dtype,
            noise=noise,
            organs=organs,
            seed=seed,
            chunk=chunk,
            threads=threads,
            overwrite=overwrite,
            progress=progress.counting("phantom"),
        )
    if not quiet:
        print(f"{_by(sizes)} voxels (z, y, x): {target}")


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "dseeds evaluate labels.zarr body.zarr/labels/organs --image body.zarr\n\n"
    "dseeds evaluate labels.nii.gz organs.nii.gz --json"
)
def evaluate(
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="The supervoxels; 0 is masked out.")],
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="The true segmentation on the same grid; 0 is background.")
    ],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE", help="The intensities; with them comes the explained variation.", rich_help_panel=IMAGE
        ),
    ] = None,
    volume: Volume = None,
    as_json: AsJson = False,
) -> None:
    """Measure supervoxels against a true segmentation, in memory.

    Each is a NIfTI file, a Zarr array or an OME-Zarr image.
    """
    from dseeds.metrics import evaluate as measure

    with Console(stderr=True).status("reading"):
        volumes = _load(labels), _load(truth), None if image is None else _load(image, volume)
    with Console(stderr=True).status("measuring"):
        figures = measure(volumes[0], volumes[1], image=volumes[2])
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print_figures(figures)


@app.command(
    "compile",
    epilog="[bold]Example[/bold]\n\nexport DSEEDS_CACHE_DIR=~/.cache/dseeds\n\ndseeds compile",
)
def compile_() -> None:
    """Compile all there is to compile now, for runs that are to start at once.

    The code goes to the folder that the environment variable DSEEDS_CACHE_DIR names, and runs that have it set find
    it there. It has to be a folder of your own. Without the variable, every process compiles what it uses.
    """
    from dseeds.compilation import compile_kernels

    with Console(stderr=True).status("compiling"):
        path = compile_kernels()
    print(path)


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    """Read numbers with commas between them."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{text!r} is not {what} with commas between them", param_hint=f"'{option}'") from None


def _load(address: str, volume: int | None = None) -> np.ndarray:
    """Read a volume whole."""
    import numpy as np

    from dseeds.io import open_source

    source = open_source(address, volume=volume)
    whole = np.empty(source.shape, source.dtype)
    for begin, slab in source.slabs(SLAB):
        whole[begin : begin + len(slab)] = slab
    return whole


@contextmanager
def _client(address: str | None) -> Iterator[Client | None]:
    """Lend a client of the cluster at an address, or None."""
    if address is None:
        yield None
        return
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        yield client


# Progress


@contextmanager
def _progress(quiet: bool) -> Iterator[Display]:
    from dseeds.display import Display

    display = Display(Console(stderr=True, quiet=quiet))
    with display.bars:
        yield display


# Results for people


def _print_description(description: Mapping[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for key, value in description.items():
        table.add_row(Text(HEADINGS.get(key, key), style="bold"), Text(_words(key, value), overflow="fold"))
    Console().print(table)


def _words(key: str, value: Any) -> str:
    if value is None:
        return "none" if key == "shards" else "unknown"
    if key == "window":
        return " to ".join(f"{limit:g}" for limit in value)
    if key == "source":
        return str(value.get("path", value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(name, item)}" for name, item in value.items())
    return _by(value) if isinstance(value, list) else str(value)


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _print_figures(figures: Mapping[str, Any]) -> None:
    structures = figures["achievable_dice_per_structure"]
    table = Table("figure", "value")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        if value is not structures:
            table.add_row(name.replace("_", " "), f"{value:g}" if value == int(value) else f"{value:.4f}")
    table.add_section()
    for structure, dice in list(structures.items())[:SHOWN]:
        table.add_row(f"achievable dice of {structure}", f"{dice:.4f}")
    if len(structures) > SHOWN:
        table.add_row(f"{len(structures) - SHOWN} more, see --json", "")
    Console().print(table)
