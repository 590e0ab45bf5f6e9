"""How a command ends: exit codes, one sentence for an error, and signals."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

import typer

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
# EX_TEMPFAIL of sysexits.h: try again later.
NOT_YET = 75
# If this environment variable is set, errors show their traceback.
DEBUG = "DSEEDS_DEBUG"
# Depending on its version, Typer raises the exceptions of Click or of its own copy.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# The first words of the notes that this package adds to errors.
NOTES = ("resume with: ", "try that region alone with: ", "the labels in ")
# Exceptions of this package that a user can meet. They are compared by name, because importing their modules would slow
# down the help.
EXPECTED = {"RegionFailed", "BeyondRepair", "LeaseLost", "NotYet", "ScratchCorrupted"}


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what the terminal or the locale cannot encode, such as names of files, while the context lasts.

    By default, printing it would be an error, after all work is done.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    handlers = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, handler in zip(streams, handlers, strict=True):
            stream.reconfigure(errors=handler)


@contextmanager
def command_context() -> Iterator[None]:
    """Silence warnings and logs, and turn SIGINT and SIGTERM into an orderly stop, while the context lasts."""
    if not is_debugging():
        logging.disable()
        # Python warns of the semaphores that killed workers leave behind.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            if not is_debugging():
                warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        logging.disable(logging.NOTSET)


def _interrupt(number: int, frame: object) -> None:
    # A second signal would interrupt the clean-up.
    signal.signal(number, signal.SIG_IGN)
    # Python refuses to print from a handler that interrupts a print.
    with suppress(RuntimeError):
        print_error("interrupted: cleaning up")
    raise KeyboardInterrupt


def is_debugging() -> bool:
    """Return whether errors show their traceback."""
    return bool(os.environ.get(DEBUG))


def print_error(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_advice(error: BaseException) -> None:
    """Print the notes of an error that say what to do next."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(NOTES):
            print_error(note)


def describe_error(error: Exception) -> str | None:
    """Return one line about an expected error, or None for a bug."""
    if isinstance(error, UsageError):
        return _describe_usage_error(error)
    if _is_dask_error(error, "KilledWorker"):
        return (
            "several workers died during the same task, most likely because they ran out of memory: give each worker "
            "more (--memory), or use smaller regions (--region)"
        )
    if _is_dask_error(error, "FutureCancelledError"):
        reason = getattr(error, "reason", error)
        return f"the cluster lost its work ({reason}): see the logs of its scheduler and workers"
    if isinstance(error, MemoryError):
        return _join_lines(f"out of memory: {error}" if str(error) else "out of memory")
    if isinstance(error, OSError) and error.strerror:
        return _join_lines(_describe_system_error(error))
    is_expected = isinstance(error, OSError | ValueError | TypeError) or type(error).__name__ in EXPECTED
    return _join_lines(str(error)) if is_expected else None


def exit_code(error: Exception) -> int:
    """Return the exit code for an error."""
    if type(error).__name__ == "NotYet":
        return NOT_YET
    return MISUSED if isinstance(error, UsageError) else FAILED


def _describe_usage_error(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "dseeds"
    message = error.format_message()
    return f"{_join_lines(message[:1].lower() + message[1:])} (see {command} --help)"


def _is_dask_error(error: Exception, name: str) -> bool:
    # Compared by name, because importing distributed would slow down the help.
    return type(error).__name__ == name and type(error).__module__.startswith("distributed.")


def _describe_system_error(error: OSError) -> str:
    reason = str(error.strerror)
    path = f" ({error.filename})" if error.filename else ""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = ": free some, or write the target and --scratch elsewhere" if is_full else ""
    return f"{reason[:1].lower()}{reason[1:]}{path}{advice}"


def _join_lines(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
