"""What `make docs` does besides turning the pages in docs/ into a site: see ``hooks`` in mkdocs.yml.

Pages that lie elsewhere in the repository are taken in, links to what is no page become plain names, and the reference
of the command line is made from the command line itself.
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
# Pages of the site, by where they lie in the repository.
ELSEWHERE = {"deploy/README.md": "how_to/deploy.md", "CHANGELOG.md": "changelog.md"}
COMMANDS = "commands.md"
# Where a section of the README is to stand.
SECTION = re.compile(r"<!-- README: (.+) -->")
# Where all that `dseeds` exports is to stand.
PUBLIC = "<!-- all that is public -->"
# What a browser would fetch from another server.
FOREIGN = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
# A link of Markdown, but not to an address on the web, into its own page, or a picture.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Take in what lies elsewhere, and the reference of the command line."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content="\n".join(reference())))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links, which are good in the repository, to pages of the site, or nowhere if there is none."""
    here = page.file.src_uri
    source = next((source for source, name in ELSEWHERE.items() if name == here), join("docs", here))

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        place = normpath(join(dirname(source), target))
        name = "index.md" if place == "README.md" else ELSEWHERE.get(place, place.removeprefix("docs/"))
        if files.get_file_from_path(name) is None:
            # What leads nowhere at all is left for MkDocs to complain about.
            plain = text if text.startswith("`") else f"`{text}`"
            return plain if (ROOT / place).exists() else link[0]
        return f"[{text}]({relpath(name, dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(lead, SECTION.sub(_section_of_readme, markdown)).replace(PUBLIC, "\n\n".join(_public()))


def _public() -> Iterator[str]:
    """Ask for the docstrings of all that is public: what one begins with, other functions, then what they give."""
    first = ("supervoxels", "segment")
    names = [name for name in dseeds.__all__ if name[0] != "_" and name not in first]
    for name in (*first, *sorted(names, key=lambda name: (name[0].isupper(), name))):
        yield f"::: dseeds.{name}"


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that asks another server for something."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output


def _section_of_readme(name: re.Match[str]) -> str:
    """Give a section of the README, whose links lead into docs/."""
    _, _, after = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {name[1]}\n")
    section, _, _ = after.partition("\n## ")
    return f"## {name[1]}\n{section.replace('](docs/', '](').replace('](notebooks/', '](../notebooks/')}"


def reference() -> Iterator[str]:
    """Describe all commands in Markdown."""
    yield "# Commands\n"
    yield "As `dseeds --help` and `dseeds COMMAND --help` say it."
    root = typer.main.get_command(app)
    for panel, commands in groupby(root.commands.items(), key=lambda item: item[1].rich_help_panel):
        yield f"\n## {panel}"
        for name, command in commands:
            yield f"\n### `dseeds {name}`\n\n{command.help}\n"
            yield from _parameters(command, typer.Context(command, info_name=name))
            yield f"\n```sh\n{_examples(command.epilog)}\n```"


def _parameters(command: Any, context: typer.Context) -> Iterator[str]:
    """List arguments and options as terms that are explained, by panel."""
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
    needed = " **Needed.**" if parameter.required and parameter.opts[0].startswith("-") else ""
    return f"{parameter.help}{needed}" + (f" Default: {shown}." if shown is not None else "")


def _examples(epilog: str) -> str:
    return "\n".join(line for line in epilog.split("\n\n") if not line.startswith("[bold]"))
