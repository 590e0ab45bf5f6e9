"""Hooks of `make docs` (``hooks`` in mkdocs.yml).

They add pages from elsewhere in the repository, turn links to source files into plain names, and generate the reference
of the command line from the command line itself.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import dseeds
from dseeds.cli import app

ROOT = Path(__file__).parents[1]
# Pages of the site by their path in the repository.
ELSEWHERE = {
    "deploy/README.md": "how_to/deploy.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
COMMANDS = "commands.md"
# Replaced by the reference of all names that `dseeds` exports.
PUBLIC = "<!-- all that is public -->"
# Resources that a browser would fetch from another server.
FOREIGN = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
# A Markdown link to a file; links to the web, within the page and to pictures are excluded.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere and the reference of the command line."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content="\n".join(reference())))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that work in the repository to pages of the site; a link without a page becomes plain text."""
    here = page.file.src_uri
    source = next((source for source, name in ELSEWHERE.items() if name == here), join("docs", here))

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        place = normpath(join(dirname(source), target))
        name = "index.md" if place == "README.md" else ELSEWHERE.get(place, place.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            # MkDocs reports links that lead nowhere at all.
            plain = text if text.startswith("`") else f"`{text}`"
            return plain if (ROOT / place).exists() else link[0]
        return f"[{text}]({relpath(name, dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(lead, markdown).replace(PUBLIC, "\n\n".join(_public()))


def _public() -> Iterator[str]:
    """Request the docstrings of the public API: main functions first, then other functions, then classes."""
    first = ("supervoxels", "segment")
    names = [name for name in dseeds.__all__ if name[0] != "_" and name not in first]
    for name in (*first, *sorted(names, key=lambda name: (name[0].isupper(), name))):
        yield f"::: dseeds.{name}"


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Raise an error if a page loads anything from another server."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output


def reference() -> Iterator[str]:
    """Return the reference of all commands in Markdown, line by line."""
    yield "# Commands\n"
    yield "The same text as `dseeds --help` and `dseeds COMMAND --help`."
    root = typer.main.get_command(app)
    for panel, commands in groupby(root.commands.items(), key=lambda item: item[1].rich_help_panel):
        yield f"\n## {panel}"
        for name, command in commands:
            yield f"\n### `dseeds {name}`\n\n{command.help}\n"
            yield from _parameters(command, typer.Context(command, info_name=name))
            yield f"\n```sh\n{_examples(command.epilog)}\n```"


def _parameters(command: Any, context: typer.Context) -> Iterator[str]:
    """Return arguments and options as a definition list, by panel."""
    panel = None
    for parameter in command.get_params(context):
        if parameter.name == "help":
            continue
        options = [name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")]
        takes = [] if getattr(parameter, "is_flag", False) else [parameter.metavar or parameter.type.name]
        if options and parameter.rich_help_panel != panel:
            panel = parameter.rich_help_panel
            yield f"\n*{panel or 'Options'}*\n"
        yield f"`{' '.join([', '.join(options), *takes] if options else takes)}`\n:   {_words(parameter)}\n"


def _words(parameter: Any) -> str:
    shown, default = getattr(parameter, "show_default", None), parameter.default
    if not isinstance(shown, str):
        shown = None if callable(default) or default in (None, False, True, ()) else default
    needed = " **Required.**" if parameter.required and parameter.opts[0].startswith("-") else ""
    return f"{parameter.help}{needed}" + (f" Default: {shown}." if shown is not None else "")


def _examples(epilog: str) -> str:
    return "\n".join(line for line in epilog.split("\n\n") if not line.startswith("[bold]"))
