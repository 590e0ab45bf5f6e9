"""Which error becomes which sentence and exit code, and what happens when the process is told to stop."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
# As of the system's own programs: try again later.
NOT_YET = 75
# Set in the environment, it lets errors show their traceback.
DEBUG = "DSEEDS_DEBUG"
# typer takes click's exceptions from click or from a copy of its own, depending on its version.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


# How the notes begin that this package adds to errors.
NOTES = ("go on with: ", "try that region alone with: ", "the labels in ")
# Errors of this package that are to be expected; by name, for importing what raises them takes longer than help should.
EXPECTED = {"RegionFailed", "BeyondRepair", "LeaseLost", "NotYet", "Damage"}


@contextmanager
def good_manners() -> Iterator[None]:
    """Leave the word to the one sentence that an error gets, and clean up when told to stop."""
    if not debugging():
        logging.disable()
        # Workers that die leave semaphores behind, of which Python tells.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            if not debugging():
                warnings.simplefilter("ignore")
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
        say("interrupted: cleaning up")
    raise KeyboardInterrupt


def debugging() -> bool:
    """Tell whether errors are to show where they come from."""
    return bool(os.environ.get(DEBUG))


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def say_notes(error: BaseException) -> None:
    """Print what else there is to say of an error: how to go on."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(NOTES):
            say(note)


def sentence(error: Exception) -> str | None:
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
    expected = isinstance(error, OSError | ValueError | TypeError) or type(error).__name__ in EXPECTED
    return _line(str(error)) if expected else None


def exit_code(error: Exception) -> int:
    """Choose the exit code of an error."""
    if type(error).__name__ == "NotYet":
        return NOT_YET
    return MISUSED if isinstance(error, UsageError) else FAILED


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
