"""The layout of the help, and completion, in a real shell if there is one."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.text import Text

from dseeds.cli import app, options, registration
from dseeds.seeds.intensity_windows import PRESETS

COMMANDS = typer.main.get_command(app).commands
LAYOUT = {
    "Supervoxels": ("segment", "plan", "info"),
    "Pictures": ("preview", "view", "report"),
    "What comes after": (
        *(
            "features",
            "vote",
            "pool",
            "textures",
            "tokens",
            "agglomerate",
            "propagate",
            "map",
            "edit",
            "evaluate",
            "benchmark",
        ),
    ),
    "Files": ("import", "export", "phantom"),
    "This machine": ("doctor", "compile"),
    "Batch jobs": ("init", "step", "status", "finalize", "debug-region"),
}
SCRIPT = Path(sys.executable).with_name("dseeds")


def test_every_command_has_its_panel_and_place():
    assert list(COMMANDS) == [name for names in LAYOUT.values() for name in names]
    for panel, names in LAYOUT.items():
        assert all(COMMANDS[name].rich_help_panel == panel for name in names)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_uniform(name):
    command = COMMANDS[name]
    first, *_ = command.help.split("\n\n")
    assert first.endswith(".")
    assert len(first) < 120
    context = typer.Context(command, info_name=name)
    panels = [getattr(parameter, "rich_help_panel", None) for parameter in command.get_params(context)]
    shared = [panel for panel in panels if panel in options.PANELS]
    assert shared == sorted(shared, key=options.PANELS.index)
    assert panels[-1] == registration.HELP_PANEL
    for parameter in command.params:
        assert getattr(parameter, "help", "").endswith(".")
    # Rich takes a word in square brackets for markup, and does not show it.
    texts = [command.help, *(getattr(parameter, "help", "") for parameter in command.params)]
    assert all(Text.from_markup(text).plain == text for text in texts)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid_command_lines(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in re.split(r"\n+|; | \| | > ", COMMANDS[name].epilog) if line.startswith("dseeds ")]
    assert any(line.split()[1] == name for line in lines)
    for line in lines:
        _, used, *arguments = shlex.split(line, comments=True)
        # Some options require existing files.
        for argument in arguments:
            if argument.endswith((".json", ".pem")):
                Path(argument).touch()
        # This parses the arguments only.
        COMMANDS[used].make_context(used, arguments)


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="bash is missing")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("segm", "segment"),
        ("segment image.zarr labels.zarr --compa", "--compactness"),
        ("segment image.zarr labels.zarr --bins ", "auto linear equalised"),
        ("segment image.zarr labels.zarr --window l", "lung"),
        # The shell completes file names itself.
        ("segment imag", ""),
    ],
)
def test_bash_completes(typed, offered):
    environment = {**os.environ, "PATH": f"{SCRIPT.parent}:{os.environ['PATH']}"}
    words = ["dseeds", *typed.split(" ")]
    lines = (
        'source <(_DSEEDS_COMPLETE=source_bash dseeds) && complete -p dseeds >&2 && COMP_WORDS=("$@")'
        ' && COMP_CWORD=$(($# - 1)) && _dseeds_completion dseeds && echo "${COMPREPLY[@]}"'
    )
    process = subprocess.run(
        ["/bin/bash", "-c", lines, "bash", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert process.stdout.split() == offered.split()
    assert "-o default" in process.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell):
    environment = {**os.environ, "_DSEEDS_COMPLETE": f"source_{shell}"}
    process = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert f"_DSEEDS_COMPLETE=complete_{shell}" in process.stdout


def test_all_presets_are_offered():
    parameter = next(option for option in COMMANDS["segment"].params if option.name == "window")
    assert {item.value for item in parameter.shell_complete(typer.Context(COMMANDS["segment"]), "")} == set(PRESETS)
    assert options.complete_from("a", "ab", "c")("a") == ["a", "ab"]
