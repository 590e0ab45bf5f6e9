"""`dseeds compile`: compile the kernels ahead of the runs."""

from __future__ import annotations

from rich.console import Console

EXAMPLES = ("export DSEEDS_CACHE_DIR=~/.cache/dseeds", "dseeds compile")


def compile_command() -> None:
    """Compile all kernels now, so that later runs start at once.

    The code is stored in the folder named by the environment variable DSEEDS_CACHE_DIR; runs use it if the variable is
    set for them too. The folder must be private to you. Without the variable, every process compiles what it uses.
    """
    from dseeds.precompile import compile_kernels

    with Console(stderr=True).status("compiling"):
        path = compile_kernels()
    print(path)
