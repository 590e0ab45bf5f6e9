"""A release: the content of its archives, a wheel that works in an empty environment, and versions that agree."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import version

import pytest
import yaml

import dseeds
from tests.support.paths import ROOT

# Packages that the kernel cache depends on.
SAME = ("numpy", "numba", "llvmlite")
USER = """
import numpy as np

import dseeds

labels = dseeds.supervoxels(np.zeros((8, 8, 8), np.uint8), step=4)
reveal_type(labels)
_, parents = dseeds.supervoxels(np.zeros((8, 8, 8)), levels=1)
reveal_type(parents)
dseeds.supervoxels(labels, stepp=4)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel, the source archive that it is built from, and the repository's files."""
    folder = tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("this is no clone of the repository")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source, set(tracked.stdout.split())


def test_versions_agree():
    with (ROOT / "CITATION.cff").open(encoding="utf-8") as file:
        citation = yaml.safe_load(file)
    assert citation["version"] == dseeds.__version__
    newest = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == dseeds.__version__
    # The date, once released.
    assert str(citation.get("date-released", "unreleased")) == newest[2]
    assert [reference["year"] for reference in citation["references"]] == [2015, 2025]


def test_the_content_of_the_wheel(archives):
    wheel, _, tracked = archives
    assert wheel.name == f"dseeds-{dseeds.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        about = f"dseeds-{dseeds.__version__}.dist-info"
        assert b"dseeds = dseeds.cli:main" in file.read(f"{about}/entry_points.txt")
        assert b"\nClassifier: Typing :: Typed\n" in file.read(f"{about}/METADATA")
    assert {name for name in names if not name.startswith(about)} == {
        name for name in tracked if name.startswith("dseeds/")
    }
    assert {f"{about}/licenses/LICENSE", "dseeds/py.typed"} <= names


def test_the_content_of_the_source_archive(archives):
    _, source, tracked = archives
    with tarfile.open(source) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"PKG-INFO", "pyproject.toml", "CITATION.cff", "mkdocs.yml", "docs/pictures/stages.png"} <= names
    assert names <= tracked | {"PKG-INFO"}


@pytest.mark.slow
def test_it_works_where_nothing_else_is(archives, compiled, tmp_path):
    wheel, *_ = archives
    venv.create(tmp_path / "bare", with_pip=True)
    scripts = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin")
    constraints = tmp_path / "same.txt"
    constraints.write_text("".join(f"{name}=={version(name)}\n" for name in SAME))
    # Without a compiler or any other package.
    left_out = {"PYTHONPATH", "VIRTUAL_ENV", "CC", "CXX"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PATH": str(scripts), "DSEEDS_CACHE_DIR": compiled}

    def call(*command):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    install = ("install", "--quiet", "--only-binary", ":all:", "--no-compile", "--constraint", constraints, wheel)
    done = call(scripts / "python", "-m", "pip", *install)
    assert done.returncode == 0, done.stderr
    done = call(scripts / "dseeds", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {finding["name"]: finding["state"] for finding in json.loads(done.stdout)["findings"]}
    assert states["versions"] == states["self test"] == "ok"

    (tmp_path / "user.py").write_text(USER)
    checker = (sys.executable, "-m", "mypy", "--python-executable", scripts / "python", "--strict", "user.py")
    output = call(*checker).stdout
    assert re.findall(r'Revealed type is "(?:builtins\.)?(\w+)', output.replace("numpy.", "")) == ["ndarray", "list"], (
        output
    )
    assert 'Unexpected keyword argument "stepp"' in output
