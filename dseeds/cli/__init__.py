"""The command line: `dseeds` with its commands, one module for each.

Standard output carries results alone, progress and errors go to standard error. What computes is imported by the
commands that need it, so that help is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from dseeds._version import __version__
from dseeds.cli import (
    agglomerate,
    batch,
    compile,
    convert,
    doctor,
    errors,
    evaluate,
    features,
    info,
    manual,
    map,
    phantom,
    plan,
    preview,
    report,
    segment,
    view,
)

EPILOG = (
    "[bold]To begin[/bold]\n\n"
    "dseeds doctor\n\n"
    "dseeds phantom body.zarr --shape 128,128,128\n\n"
    "dseeds segment body.zarr labels.zarr --step 12\n\n"
    "dseeds segment --help\n\n"
    "[bold]Environment[/bold]\n\n"
    "DSEEDS_CACHE_DIR: a folder of your own for compiled code, see dseeds compile.\n\n"
    "DSEEDS_STORE_PATIENCE: for how many seconds an object store that errs is asked again; 45.\n\n"
    f"{errors.DEBUG}=1: errors show where they come from.\n\n"
    "[bold]Exit codes[/bold]\n\n"
    f"0 for done, {errors.FAILED} for an error, which is one sentence, {errors.MISUSED} for arguments that make no "
    f"command, {errors.NOT_YET} where other batch jobs have to come first, {errors.INTERRUPTED} after Ctrl-C."
)
app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those that the process was called with.

    Returns
    -------
    int
        The exit code: 0, 1 for an error, 2 for arguments that make no command, 75 where other batch jobs have to come
        first, 130 after Ctrl-C.
    """
    with errors.good_manners():
        try:
            code = app(arguments, prog_name="dseeds", standalone_mode=False) or 0
        except (KeyboardInterrupt, typer.Abort):
            code = errors.INTERRUPTED
        except Exception as error:
            sentence = errors.sentence(error)
            if sentence is None or errors.debugging():
                raise
            errors.say(f"error: {sentence}")
            errors.say_notes(error)
            return errors.exit_code(error)
    if code == errors.INTERRUPTED:
        errors.say("interrupted; nothing was published")
    return int(code)


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


app.command(epilog=segment.EXAMPLES)(segment.segment)
app.command(epilog=plan.EXAMPLES)(plan.plan)
app.command(epilog=info.EXAMPLES)(info.info)
app.command(epilog=phantom.EXAMPLES)(phantom.phantom)
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=features.EXAMPLES)(features.features)
app.command(epilog=agglomerate.EXAMPLES)(agglomerate.agglomerate)
app.command("map", epilog=map.EXAMPLES)(map.map_)
app.command("import", epilog=convert.IMPORT_EXAMPLES)(convert.import_)
app.command(epilog=convert.EXPORT_EXAMPLES)(convert.export)
app.command(epilog=preview.EXAMPLES)(preview.preview)
app.command(epilog=view.EXAMPLES)(view.view)
app.command(epilog=report.EXAMPLES)(report.report)
app.command("compile", epilog=compile.EXAMPLES)(compile.compile_)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=batch.INIT_EXAMPLES)(batch.init)
app.command(epilog=batch.STEP_EXAMPLES)(batch.step)
app.command(epilog=batch.STATUS_EXAMPLES)(batch.status)
app.command(epilog=batch.FINALIZE_EXAMPLES)(batch.finalize)
app.command("debug-region", epilog=batch.DEBUG_EXAMPLES)(batch.debug_region)
manual.lay_out(app)
