"""The pages of the documentation: their Python runs, their commands exist, and repeated figures agree.

That all links lead somewhere is for `make docs` to find, whose warnings are errors.
"""

import re
import runpy
import sys
from importlib.util import find_spec

import matplotlib as mpl
import numpy as np
import pytest
import typer
from PIL import Image

import dseeds
from dseeds.cli import app
from tests.support.paths import DATA, ROOT

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
COMMANDS = typer.main.get_command(app).commands


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)


def test_the_tutorial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    names = {}
    parts = blocks("docs/tutorial.md", "python")
    assert len(parts) == 8
    for part in parts:
        exec(compile(part, "tutorial.md", "exec"), names)
    assert names["image"].shape == (24, 96, 128)
    np.testing.assert_allclose(names["spacing"], [2.2, 2, 2], atol=0.01)
    # Most of it is air, as the page says.
    assert 0 < (names["labels"] > 0).mean() < 0.5
    assert capsys.readouterr().out.endswith("60 segments\n")
    assert names["tree"].components == 31
    names["plt"].close("all")
    with Image.open("supervoxels.png") as picture:
        assert picture.size == (640, 480)
    np.testing.assert_array_equal(np.asarray(names["nibabel"].load("labels.nii.gz").dataobj).T, names["labels"])


def test_the_examples_for_people_of_other_packages():
    parts = blocks("docs/coming_from.md", "python")
    assert len(parts) == 3
    for part in parts:
        names = {}
        exec(compile(part, "coming_from.md", "exec"), names)
        assert names["labels"].dtype == np.uint32
        if "inside" in names:
            assert names["within"].max() > 250
            np.testing.assert_array_equal(names["hidden"] > 0, names["inside"])
            assert names["plane_table"].num_rows == names["plane"].max()
        if "classes" in names:
            np.testing.assert_array_equal(names["segmentation"][0], names["classes"][names["labels"]])


def test_the_analyses(tmp_path, monkeypatch, capsys):
    if not (DATA / "hippocampus").is_dir():
        pytest.skip("the hippocampus is missing")
    monkeypatch.chdir(tmp_path)
    for name, source in (("brain", "image"), ("hippocampus", "label")):
        (tmp_path / f"{name}.nii.gz").symlink_to(DATA / "hippocampus" / f"{source}_001.nii.gz")
    names = {}
    for part in blocks("docs/how_to/analyse.md", "python"):
        # SpatialData and PyTorch have many dependencies, and are not among those of the tests.
        if all(f"import {name}" not in part or find_spec(name) for name in ("spatialdata", "torch")):
            exec(compile(part, "analyse.md", "exec"), names)
    # As the page says.
    first, *more = capsys.readouterr().out.splitlines()
    assert first == "765 of 1053 have votes"
    assert more[:4] == ["0 conflicts remain", "0.812", "0.83", "['split', 'merge', 'undo']"]
    assert len(names["conflicts"]) == 34
    assert names["segments"].shape == names["truth"].shape
    result, better = names["result"], names["better"]
    assert (np.count_nonzero(result.annotated), np.count_nonzero(better.annotated)) == (765, 770)
    majority = dseeds.vote(names["labels"], names["truth"] + 1).table["majority"].to_numpy()
    right = [np.count_nonzero((spread.assigned == majority)[~result.annotated]) for spread in (result, better)]
    assert right == [281, 284]
    assert (names["forest"].assigned == majority)[~result.annotated].mean() > 0.9
    assert names["organs"].shape == names["sure"].shape == names["truth"].shape
    assert (names["seam"]["axis"], names["seam"]["plane"]) == ("x", names["middle"])
    assert names["seam"]["excess"] > 1
    assert names["vectors"].shape == (len(names["dataset"]["label"]), 2)
    # A single voxel has no pairs.
    assert names["textures"]["entropy"].dropna().between(0, np.log(64 * 64)).all()
    np.testing.assert_array_equal(names["clusters"] == 2, names["bright"][names["labels"] - 1])
    assert names["batch"].image.shape == (64, 1, 16, 16, 16)
    assert names["wide"].size == (40, 40, 40)
    assert names["matrix_of_tokens"].shape == (1053, 216)
    assert names["relevance"].shape == names["image"].shape


@pytest.mark.parametrize("page", PAGES)
def test_python_is_python(page):
    for part in blocks(page, "python"):
        compile(part, page, "exec")
        assert max(map(len, part.splitlines())) <= 80


@pytest.mark.parametrize("page", PAGES)
def test_commands(page):
    for block in blocks(page, "sh"):
        for line in re.findall(r"^dseeds (\w[^#|\n]*)", block.replace("\\\n", " "), re.MULTILINE):
            name, *arguments = line.split()
            assert name in COMMANDS
            options = {option for one in COMMANDS[name].params for option in (*one.opts, *one.secondary_opts)}
            assert {argument.split("=")[0] for argument in arguments if argument.startswith("-")} <= options


def test_all_commands_are_in_the_reference(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(DOCS)
    import hooks

    output = "\n".join(hooks.reference())
    for name, command in COMMANDS.items():
        assert f"### `dseeds {name}`" in output
        for parameter in command.params:
            assert parameter.help in output
    assert "`--step N|Z,Y,X|LENGTH`" in output
    del sys.modules["hooks"]


def test_figures_that_are_repeated_are_those_of_the_page_on_quality():
    rows = {}
    for row in re.findall(r"^\|(.+)\|$", text("docs/quality.md").replace("*", ""), re.MULTILINE):
        name, *cells = (cell.strip() for cell in row.split("|"))
        rows.setdefault(name, set()).update(cells)
    again = re.findall(
        r"^\| (dseeds|(?:SimpleITK )?SLIC .*?) \| (0\.\d.*) \|$", text("docs/coming_from.md"), re.MULTILINE
    )
    assert len(again) == 4
    for name, cells in again:
        assert set(cells.split(" | ")) <= rows[name]


def test_the_drawing_of_the_architecture_is_current():
    names = runpy.run_path(str(DOCS / "architecture_drawing.py"))
    assert names["OUTPUT"].read_text(encoding="utf-8") == names["draw"](), "run python docs/architecture_drawing.py"


def test_pictures_are_small():
    pictures = list(DOCS.rglob("pictures/*.png"))
    assert {path.name for path in pictures} == set(
        re.findall(r"pictures/(\w+\.png)\)", "".join(text(page) for page in PAGES))
    )
    for path in pictures:
        assert path.stat().st_size < 150_000
