"""`dseeds compile`: compile the kernels ahead of the runs."""

from __future__ import annotations

from rich.console import Console

EXAMPLES = ("dseeds compile", "DSEEDS_CACHE_DIR=/shared/dseeds-kernels dseeds compile")


def compile_command() -> None:
    """Compile all kernels now, so that later runs start at once.

    Kernels are compiled when they are first used, and kept in your cache folder for later processes. This command
    compiles all of them ahead of time: for machines that share a home, before many jobs start. The environment variable
    DSEEDS_CACHE_DIR names another folder, which must be private to you, or is "off" to keep nothing.
    """
    from dseeds.precompile import compile_kernels

    with Console(stderr=True).status("compiling"):
        path = compile_kernels()
    print(path)
