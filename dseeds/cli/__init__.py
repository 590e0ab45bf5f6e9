"""The command line `dseeds`; each module holds one command or a group of commands.

Results go to standard output, progress and errors to standard error. Commands import what they compute with when they
run, so that help appears at once.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from dseeds._version import __version__
from dseeds.cli import (
    agglomerate,
    batch,
    benchmark,
    compile,
    convert,
    doctor,
    edit,
    errors,
    evaluate,
    features,
    info,
    map,
    phantom,
    plan,
    pool,
    preview,
    propagate,
    report,
    segment,
    textures,
    tokens,
    view,
    vote,
)
from dseeds.cli.registration import add_command

EPILOG = (
    "[bold]First steps[/bold]\n\n"
    "dseeds doctor\n\n"
    "dseeds phantom body.zarr --shape 128,128,128\n\n"
    "dseeds segment body.zarr labels.zarr --step 12\n\n"
    "dseeds segment --help\n\n"
    "[bold]Environment[/bold]\n\n"
    "DSEEDS_CACHE_DIR: a private folder in which to keep compiled code, instead of your cache folder; or off.\n\n"
    "DSEEDS_STORE_PATIENCE: seconds during which a failing request to an object store is retried; 45 by default.\n\n"
    f"{errors.DEBUG}=1: errors show their traceback.\n\n"
    "[bold]Exit codes[/bold]\n\n"
    f"0 on success; {errors.FAILED} on an error, reported in one sentence; {errors.MISUSED} for invalid arguments; "
    f"{errors.NOT_YET} if other batch jobs must finish first; {errors.INTERRUPTED} after Ctrl-C."
)
# After so many new objects, cycles of garbage are searched for.
NEW_OBJECTS = 50_000
# The commands in the order of the help, by panel.
COMMANDS: dict[str, tuple[tuple[str, Callable[..., None], tuple[str, ...]], ...]] = {
    "Supervoxels": (
        ("segment", segment.segment_command, segment.EXAMPLES),
        ("plan", plan.plan_command, plan.EXAMPLES),
        ("info", info.info_command, info.EXAMPLES),
    ),
    "Pictures": (
        ("preview", preview.preview_command, preview.EXAMPLES),
        ("view", view.view_command, view.EXAMPLES),
        ("report", report.report_command, report.EXAMPLES),
    ),
    "What comes after": (
        ("features", features.features_command, features.EXAMPLES),
        ("vote", vote.vote_command, vote.EXAMPLES),
        ("pool", pool.pool_command, pool.EXAMPLES),
        ("textures", textures.textures_command, textures.EXAMPLES),
        ("tokens", tokens.tokens_command, tokens.EXAMPLES),
        ("agglomerate", agglomerate.agglomerate_command, agglomerate.EXAMPLES),
        ("propagate", propagate.propagate_command, propagate.EXAMPLES),
        ("map", map.map_command, map.EXAMPLES),
        ("edit", edit.edit_command, edit.EXAMPLES),
        ("evaluate", evaluate.evaluate_command, evaluate.EXAMPLES),
        ("benchmark", benchmark.benchmark_command, benchmark.EXAMPLES),
    ),
    "Files": (
        ("import", convert.import_command, convert.IMPORT_EXAMPLES),
        ("export", convert.export_command, convert.EXPORT_EXAMPLES),
        ("phantom", phantom.phantom_command, phantom.EXAMPLES),
    ),
    "This machine": (
        ("doctor", doctor.doctor_command, doctor.EXAMPLES),
        ("compile", compile.compile_command, compile.EXAMPLES),
    ),
    "Batch jobs": (
        ("init", batch.init_command, batch.INIT_EXAMPLES),
        ("step", batch.step_command, batch.STEP_EXAMPLES),
        ("status", batch.status_command, batch.STATUS_EXAMPLES),
        ("finalize", batch.finalize_command, batch.FINALIZE_EXAMPLES),
        ("debug-region", batch.debug_region_command, batch.DEBUG_REGION_EXAMPLES),
    ),
}
app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, or those of the process, and return the exit code, see `EPILOG`."""
    # Modules and compiled code are many objects in no cycle that could be collected: the search for one, again and
    # again while they are loaded and once more at the end, would take a quarter of the time of a small volume.
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)
    with errors.escaped_output(), errors.command_context():
        try:
            code = app(arguments, prog_name="dseeds", standalone_mode=False) or 0
        except (KeyboardInterrupt, typer.Abort):
            code = errors.INTERRUPTED
        except Exception as error:
            sentence = errors.describe_error(error)
            if sentence is None or errors.is_debugging():
                raise
            errors.print_error(f"error: {sentence}")
            errors.print_advice(error)
            return errors.exit_code(error)
        if code == errors.INTERRUPTED:
            errors.print_error("interrupted; nothing was published")
    return int(code)


@app.callback(invoke_without_command=True)
def _run_without_command(
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


for _panel, _commands in COMMANDS.items():
    for _name, _command, _examples in _commands:
        add_command(app, _name, _command, panel=_panel, examples=_examples)
