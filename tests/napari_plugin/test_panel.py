"""The panel in a real window of napari, on a display of its own; and what napari finds of the plugin."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

MISSING = [
    *(name for name in ("napari", "PyQt6", "napari_ome_zarr") if importlib.util.find_spec(name) is None),
    *(name for name in ("Xvfb",) if shutil.which(name) is None),
]


@contextmanager
def virtual_display():
    """Start an X server without a screen, on a free number, and yield its name."""
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1400x1000x24", "+extension", "GLX"]
    server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            yield f":{pipe.readline().strip()}"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(bool(MISSING), reason=f"THE PANEL IN NAPARI IS NOT TESTED: {', '.join(MISSING)} missing")
def test_the_panel_in_a_window(tmp_path):
    script = Path(__file__).with_name("window.py")
    with virtual_display() as display:
        environment = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
        environment |= {"DISPLAY": display, "PYTHONPATH": str(ROOT), "NAPARI_CONFIG": "", "LIBGL_ALWAYS_SOFTWARE": "1"}
        process = subprocess.run(
            [sys.executable, script, tmp_path],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1400,
            check=False,
        )
    assert process.returncode == 0, process.stdout + process.stderr
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "preview.png",
        "classes.png",
        "suggestion.png",
        "channels.png",
        "large.png",
    }


def test_the_manifest_names_what_exists():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, name = settings["project"]["entry-points"]["napari.manifest"]["dseeds"].partition(":")
    folder = ROOT / module.replace(".", "/")
    manifest = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    commands = {command["id"]: command["python_name"] for command in manifest["contributions"]["commands"]}
    for widget in manifest["contributions"]["widgets"]:
        module, _, name = commands[widget["command"]].partition(":")
        text = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"class {name}(" in text
