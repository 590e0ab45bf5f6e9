"""How the help is laid out: the order of commands and options, and their panels."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from typer.core import TyperCommand
from typer.models import CommandInfo

from dseeds.cli.options import CELLS, IMAGE, OUTPUT, WORK

# Commands in the order in which people need them. What is not listed comes last.
COMMANDS = {
    "Supervoxels": ("segment", "plan", "info"),
    "Pictures": ("preview", "view", "report"),
    "What comes after": ("features", "agglomerate", "map", "evaluate"),
    "Files": ("import", "export", "phantom"),
    "This machine": ("doctor", "compile"),
    "Batch jobs": ("init", "step", "status", "finalize", "debug-region"),
}
# Panels of options, where a command has them; those of its own come before these, --help after them.
PANELS = (CELLS, IMAGE, OUTPUT, WORK)
HELP = "Help"


class Manual(TyperCommand):
    """A command whose help has its options in the order that those of all commands have."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # A line's end in a docstring is none in a terminal, which may be narrower or wider.
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters, those of a panel in the order of their declaration."""
        return sorted(super().get_params(ctx), key=_rank)


def _rank(parameter: Any) -> int:
    if parameter.name == "help":
        parameter.rich_help_panel = HELP
        return len(PANELS)
    panel = getattr(parameter, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else -1


def lay_out(app: typer.Typer) -> None:
    """Put the commands of an application in order, and their options."""
    order = {name: (rank, panel) for panel, names in COMMANDS.items() for rank, name in enumerate(names)}
    panels = list(COMMANDS)

    def place(command: CommandInfo) -> tuple[int, int]:
        rank, panel = order.get(_name(command), (0, None))
        return (panels.index(panel) if panel else len(panels), rank)

    for command in app.registered_commands:
        command.cls = Manual
        if _name(command) in order:
            command.rich_help_panel = order[_name(command)][1]
    app.registered_commands.sort(key=place)


def _name(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))
