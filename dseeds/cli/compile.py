"""`dseeds compile`: the kernels are compiled ahead of the runs."""

from __future__ import annotations

from rich.console import Console

EXAMPLES = "[bold]Example[/bold]\n\nexport DSEEDS_CACHE_DIR=~/.cache/dseeds\n\ndseeds compile"


def compile_() -> None:
    """Compile all there is to compile now, for runs that are to start at once.

    The code goes to the folder that the environment variable DSEEDS_CACHE_DIR names, and runs that have it set find
    it there. It has to be a folder of your own. Without the variable, every process compiles what it uses.
    """
    from dseeds.precompile import compile_kernels

    with Console(stderr=True).status("compiling"):
        path = compile_kernels()
    print(path)
