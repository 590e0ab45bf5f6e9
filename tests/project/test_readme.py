"""The README is true: its Python runs, its commands and options exist, its links resolve."""

import re

import distributed
import pytest
import typer

from dseeds.cli import app
from tests.support.clusters import in_process, replace_local_clusters
from tests.support.paths import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "docs/algorithm.md", "deploy/README.md"]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page):
    """Yield the dseeds command lines of a page, without what precedes and follows them."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if result := re.match(r"\s*(?:docker run (?!.*--entrypoint).* )?dseeds ([a-z][^#|]*)", line):
                yield result[1].split()


@pytest.fixture
def one_process(monkeypatch, tmp_path):
    """Clusters within this process, which has compiled the kernels, and an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def client(address):
        assert address.startswith("tcp://")
        return in_process(1, 2)

    replace_local_clusters(monkeypatch)
    monkeypatch.setattr(distributed, "Client", client)


def test_python(one_process, capsys):
    names = {"__name__": "__main__"}
    parts = blocks("README.md", "python")
    assert len(parts) == 4
    for part in parts:
        exec(compile(part, "README.md", "exec"), names)
    # At step 4, and at step 8.
    assert names["labels"].max() == 16 * 24 * 24
    assert names["coarser"].max() < names["coarse"].max() < names["labels"].max() / 5
    assert 0 < names["figures"]["achievable_dice"] <= 1
    assert names["segments"].max() == 100
    assert names["volume"].shape == names["labels"].shape
    assert capsys.readouterr().out.startswith("384 supervoxels ")
    assert names["report"].supervoxels == pytest.approx(200, rel=0.05)


@pytest.mark.parametrize("page", PAGES)
def test_commands(page):
    known = typer.main.get_command(app).commands
    for name, *arguments in commands(page):
        options = {option for one in known[name].params for option in (*one.opts, *one.secondary_opts)}
        used = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
        assert used <= options


def test_all_commands_are_shown():
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in [*PAGES, *DOCS])
    assert set(typer.main.get_command(app).commands) <= set(re.findall(r"\bdseeds ([a-z-]+)", text))


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_targets_of_make():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    pages = ["README.md", "CONTRIBUTING.md", "docs/performance.md"]
    used = re.findall(r"[`\n]make ([a-z]+)", "".join((ROOT / page).read_text(encoding="utf-8") for page in pages))
    assert {"demo", "test", "check", "figures"} <= set(used) <= set(targets)


def test_the_readme_is_short_and_repeats_measured_figures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    measured = "".join((ROOT / page).read_text(encoding="utf-8") for page in ["docs/performance.md", "docs/quality.md"])
    rows = re.findall(r"^\| [^|]+ ((?:\| (?:[\d.*]+ )?){5})\|$", text, re.MULTILINE)
    assert len(rows) == 4
    figures = {figure for row in rows for figure in re.findall(r"\d+\.\d+", row)}
    assert len(figures) == 19
    assert figures <= set(re.findall(r"\d+\.\d+", measured))
