"""The notebooks run from top to bottom, without warnings, and are stored without outputs."""

import IPython.display
import nbformat
import pytest
from nbclient import NotebookClient

from dseeds.engine.report import Report, StageReport
from dseeds.parallel.notebook_progress import NotebookProgress, default_progress
from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_is_one():
    assert NOTEBOOKS


def test_outputs_are_not_stored(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    # For the kernel and the workers that it starts.
    monkeypatch.setenv("MPLBACKEND", "agg")
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    printed = [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    # Logs are allowed: Dask complains on a busy machine.
    assert "Warning:" not in "".join(printed)
    # The progress is removed at the end.
    assert "<progress" not in nbformat.writes(notebook)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shown(monkeypatch):
    """The successive displays of a cell, which a notebook shows in one place."""
    pictures = []

    class Handle:
        def update(self, picture):
            pictures.append(picture._repr_html_())

    monkeypatch.setattr(IPython.display, "display", lambda picture, display_id: Handle())
    return pictures


def test_progress_is_shown_while_it_lasts(shown):
    display = NotebookProgress()
    display.dashboard("http://127.0.0.1:1/status?a=<b>&c")
    assert 'href="http://127.0.0.1:1/status?a=&lt;b&gt;&amp;c"' in shown[-1]
    display.begin("sweep<script>", 3)
    for _ in range(2):
        display.advance("sweep<script>")
    display.begin("label", 1)
    assert "sweep&lt;script&gt;" in shown[-1]
    assert '<progress value="2" max="3">' in shown[-1]
    assert "2 of 3" in shown[-1]
    display.advance("sweep<script>")
    display.end("sweep<script>")
    assert "done in" in shown[-1]
    display.clear()
    assert shown[-1] == ""


def test_progress_is_shown_in_notebooks_alone(shown):
    with default_progress(None) as progress:
        assert progress is None
    assert not shown


def test_a_report_is_a_table_of_text():
    stage = StageReport("sweep<script>", tasks=4, seconds=1.5)
    counts = dict.fromkeys(("supervoxels", "regions", "skipped", "retried", "rounds", "workers"), 2)
    sizes = dict.fromkeys(("shape", "step", "cells", "region_shape"), (4, 5, 6))
    report = Report(
        target="<img src=x>.zarr",
        features=None,
        windows=((0.0, 1.0),),
        coarser=(),
        resumed=False,
        seconds=1.5,
        voxels_per_second=80.0,
        peak_memory={},
        stages=(stage,),
        **counts,
        **sizes,
    )
    text = report._repr_html_()
    assert "4 x 5 x 6" in text
    assert "sweep&lt;script&gt;" in text
    assert "<img" not in text
    assert "<script" not in text
