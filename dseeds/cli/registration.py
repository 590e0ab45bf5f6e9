"""How commands are registered with Typer: groups of options, and the layout of the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

from dseeds.cli.options import PANELS

HELP_PANEL = "Help"


class Command(TyperCommand):
    """A command that lists `--help` in a panel of its own, below all others."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option `--help`."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = HELP_PANEL
        return option


def add_command(
    app: typer.Typer, name: str, command: Callable[..., None], *, panel: str, examples: tuple[str, ...]
) -> None:
    """Register a command, whose docstring is its help.

    The help of the application lists commands in the order of their registration, by panel. A parameter whose type is a
    dataclass is a group of options, see `expand_groups`. The examples are shown at the end of the command's help.
    """
    # The terminal breaks the lines of the help; line breaks of the docstring would come on top of them.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    heading = "[bold]Examples[/bold]" if len(examples) > 1 else "[bold]Example[/bold]"
    app.command(
        name,
        cls=Command,
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        epilog="\n\n".join((heading, *examples)),
        rich_help_panel=panel,
    )(expand_groups(command))


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of its option groups as separate parameters.

    A group is a dataclass whose fields are options. Typer reads the signature of a command and has no notion of groups,
    so each field becomes a parameter of its own; `command` receives the objects. The parameters are sorted by panel,
    because the help lists panels in the order of their first option.
    """
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}

    def parameters() -> Iterator[inspect.Parameter]:
        for name, parameter in signature.parameters.items():
            if name in groups:
                yield from _group_parameters(groups[name])
            else:
                yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])

    @wraps(command)
    def run(**values: Any) -> None:
        arguments = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**arguments, **values)

    run.__signature__ = signature.replace(parameters=sorted(parameters(), key=_panel_rank))  # type: ignore[attr-defined]
    return run


def _group_parameters(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )


def _panel_rank(parameter: inspect.Parameter) -> int:
    """Return the rank of an option's panel; arguments and panels of single commands come first."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel in PANELS else -1
