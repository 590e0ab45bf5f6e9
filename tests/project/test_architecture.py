"""The architecture of docs/architecture.md: layers, dependencies of the algorithm, unique names, paths that exist."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "dseeds"
MODULES = sorted(PACKAGE.rglob("*.py"))
ALGORITHM = sorted(path for layer in ("core", "seeds") for path in (PACKAGE / layer).rglob("*.py"))
ALLOWED = {"numpy", "numba", "llvmlite", *sys.stdlib_module_names}
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imported(tree):
    """Yield the modules that a source imports, also inside functions, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from (module for other in node.orelse for module in imported(ast.Module([other], [])))
        else:
            yield from imported(node)


def test_the_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 broken" in process.stdout


@pytest.mark.parametrize("path", ALGORITHM, ids=name_of)
def test_the_algorithm_imports_numpy_and_numba_only(path):
    modules = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    own = {module for module in modules if module.partition(".")[0] == "dseeds"}
    assert {module.partition(".")[0] for module in modules - own} <= ALLOWED
    assert {module.split(".")[1] for module in own} <= {"core", "seeds", "_version"}


def test_kernels_take_constants_only_from_what_names_their_compiled_code():
    """The cache of compiled code is named after `core`, `seeds` and the modules that have kernels."""
    trees = {path: path.read_text(encoding="utf-8") for path in MODULES}
    with_kernels = {path for path, text in trees.items() if "from dseeds.core.jit import " in text}
    assert len(with_kernels) > 15
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in with_kernels}
    for path in with_kernels:
        own = {module for module in imported(ast.parse(trees[path])) if module.partition(".")[0] == "dseeds"}
        assert {module for module in own if module.split(".")[1] not in ("core", "seeds", "_version")} <= names, (
            name_of(path)
        )


def test_of_the_plugin_only_the_modules_named_in_the_documentation_import_napari():
    """Outside of the panel everything runs, and is tested, where neither napari nor Qt is installed."""
    folder = PACKAGE / "napari_plugin"
    libraries = {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): {
            module.partition(".")[0] for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        }
        for path in folder.rglob("*.py")
    }
    assert {name for name, used in libraries.items() if used & {"napari", "magicgui", "qtpy"}} <= {
        name for name in libraries if name.startswith("napari_plugin/panel/")
    }
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| `napari_plugin` .*", text, re.M)
    named = set(re.findall(r"`(napari_plugin/panel/\w+)`", row))
    assert named == {name for name, used in libraries.items() if "napari" in used}


def test_no_class_or_function_shares_its_name():
    places = defaultdict(set)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(name_of(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_modules_lie_in_packages():
    flat = {path.stem for path in PACKAGE.glob("*.py")}
    assert flat == {"__init__", "__main__", "_version", "doctor", "precompile", "xarray"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_documentation_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = set(re.findall(r"(?<![\w/.-])(?:dseeds|tests(?!/data)|docs|deploy|notebooks)/[\w./-]*\w", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_modules_in_the_description_of_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    layers = "|".join(sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
    modules = set(re.findall(rf"`((?:{layers})/\w+(?:/\w+)*)`", text))
    assert len(modules) > 10
    assert {name for name in modules if not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())} == set()
