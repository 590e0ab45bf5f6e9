"""The HTML report: its content, that it is self-contained, and its layout in a browser."""

import copy
import html
import json
import re
import shutil

import numpy as np
import pytest
import zarr

import dseeds
from dseeds import cli
from dseeds.engine.planning import Plan
from dseeds.engine.report import Report
from dseeds.quality.metrics import size_histogram
from tests.support.clusters import in_process

# A valid name of a folder.
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2<&.zarr'
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDTHS = {"phone": 400, "desk": 1280}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on an image with a hostile name: the folder of its page, truth and labels, and its report."""
    folder = tmp_path_factory.mktemp("run")
    image = np.random.default_rng(2).normal(100, 5, (16, 24, 32)) + 60 * (np.indices((16, 24, 32))[2] > 13)
    for name, data in ((HOSTILE, image.astype("uint16")), ("truth.zarr", (image > 130).astype("uint8"))):
        array = zarr.create_array(folder / name, shape=data.shape, chunks=(16, 16, 16), dtype=data.dtype)
        array[...] = data
    with in_process() as client:
        report = dseeds.segment(
            folder / HOSTILE, folder / "labels.zarr", step=8, client=client, html=folder / "run.html"
        )
    return folder, report


@pytest.fixture(scope="module")
def page(run):
    folder, _ = run
    return dseeds.html_report(folder / "labels.zarr", folder / "page.html", truth=folder / "truth.zarr")


def text_of(page, part):
    """Return the text of a section, with a space for each tag."""
    [section] = re.findall(rf'<section id="{part}">(.*?)</section>', page, re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", section)).split())


def test_the_page_shows_the_run(run, page):
    folder, report = run
    stages = text_of(page, "stages")
    for stage in report.stages:
        # Skipped tasks were planned too.
        planned = stage.tasks + stage.skipped
        assert f"{stage.name} {stage.seconds:.2f} s {stage.tasks} {planned} {stage.skipped} 0" in stages
    compared = text_of(page, "comparison")
    assert f"supervoxels {report.supervoxels} {report.supervoxels}" in compared
    tasks = sum(stage.tasks for stage in report.stages)
    assert f"tasks {tasks + report.skipped} {tasks}" in compared
    for worker in report.peak_memory:
        assert worker in text_of(page, "workers")
    assert "step 8 x 8 x 8" in text_of(page, "parameters")
    assert f"windows {report.windows[0][0]:g} to {report.windows[0][1]:g}" in text_of(page, "parameters")
    assert str(folder / HOSTILE) in text_of(page, "parameters")


def test_sizes_and_quality_are_those_of_evaluate(run, page):
    folder, _ = run
    figures = dseeds.evaluate(folder / "labels.zarr", folder / "truth.zarr", image=folder / HOSTILE, size_bins=32)
    for name in ("achievable_dice", "boundary_recall", "explained_variation"):
        assert f"{figures[name]:,.4g}" in text_of(page, "quality")
    assert f"smallest {figures['size_min']}" in text_of(page, "sizes")
    edges, counts = figures["size_histogram"].values()
    bars = re.findall(r"<title>(\d+) to (\d+) voxels: (\d+)</title>", page)
    assert [(int(low), int(count)) for low, _, count in bars] == list(zip(edges, counts, strict=False))
    assert int(bars[-1][1]) == figures["size_max"]


def test_histogram_counts_all():
    sizes = np.random.default_rng(0).integers(1, 500, 1000)
    histogram = size_histogram(np.stack(np.unique(sizes, return_counts=True), axis=1), 7)
    expected, edges = np.histogram(sizes, [*histogram["edges"][:-1], sizes.max()])
    assert histogram["counts"] == expected.tolist()
    assert histogram["edges"] == edges.tolist()
    # There are no more bins than sizes.
    assert size_histogram(np.array([[5, 3], [6, 1]]), 9) == {"edges": [5, 6, 6], "counts": [3, 1]}


def test_segment_writes_the_page(run, page):
    folder, _ = run
    written = (folder / "run.html").read_text()
    assert (folder / "page.html").read_text() == page
    assert text_of(written, "parameters") == text_of(page, "parameters")
    assert text_of(written, "stages") == text_of(page, "stages")
    assert 'id="quality"' not in written
    # The page is written after the labels, so it knows their size.
    assert "labels" in text_of(written, "comparison")


def test_names_are_escaped(page):
    assert HOSTILE not in page
    assert html.escape(HOSTILE) in page.replace("&#34;", "&quot;")
    assert "<script" not in page


def test_report_and_plan_are_restored(run):
    folder, report = run
    assert Report.from_dict(json.loads(report.to_json())) == report
    kept = zarr.open_group(folder / "labels.zarr").attrs["dseeds"]
    plan = Plan.from_dict(kept["plan"])
    assert plan.supervoxels == report.supervoxels
    assert json.loads(plan.to_json()) == kept["plan"]
    before = Report.from_dict(kept["report"])
    # The run ends after the labels are published.
    assert 0 < before.seconds <= report.seconds
    assert before.stages == report.stages


@pytest.mark.parametrize("kept", [None, 7, {}, {"report": 5}, {"report": {"stages": [3]}}, "text"])
def test_labels_without_a_record_have_a_page(run, tmp_path, kept):
    shutil.copytree(run[0] / "labels.zarr", tmp_path / "labels.zarr")
    group = zarr.open_group(tmp_path / "labels.zarr")
    group.attrs["dseeds"] = kept
    page = dseeds.html_report(tmp_path / "labels.zarr", sizes=False)
    assert "The labels hold no valid record of their run." in page
    assert 'id="stages"' not in page


@pytest.mark.parametrize("change", [{"seconds": "<b>"}, {"shape": [1, 2]}, {"peak_memory": {"a": "b"}}, {"target": 3}])
def test_an_invalid_report_is_refused(run, change):
    values = copy.deepcopy(run[1].to_dict())
    assert Report.from_dict(values) == run[1]
    with pytest.raises((TypeError, ValueError)):
        Report.from_dict({**values, **change})


def test_notebooks_show_reports(run):
    shown = run[1]._repr_html_()
    assert f"{run[1].supervoxels} supervoxels at step" in shown
    assert shown.count("<tr>") == 1 + len(run[1].stages)


def test_command(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.chdir(tmp_path)
    labels, image = str(folder / "labels.zarr"), str(folder / HOSTILE)
    assert cli.main(["plan", image, str(tmp_path / "b.zarr"), "--step", "8", "--no-calibrate", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    (tmp_path / "plan.json").write_text(json.dumps({**planned, "seconds": 7200.0}))
    assert cli.main(["report", labels, "--no-sizes", "--plan", "plan.json"]) == 0
    assert capsys.readouterr().out == "labels.html\n"
    written = (tmp_path / "labels.html").read_text()
    assert "time about 2.0 h" in text_of(written, "comparison")
    assert 'id="sizes"' not in written
    assert cli.main(["report", labels, "--no-sizes"]) == 1
    (tmp_path / "mine.html").write_text("mine")
    assert cli.main(["report", labels, "-o", "mine.html", "--overwrite"]) == 1
    assert (tmp_path / "mine.html").read_text() == "mine"
    (tmp_path / "plan.json").write_text("[]")
    assert cli.main(["report", labels, "--plan", "plan.json", "-o", "c.html"]) == 1
    assert "plan.json does not hold the output of dseeds plan --json" in capsys.readouterr().err
    # This is checked before anything runs.
    assert cli.main(["segment", image, "new.zarr", "--html", "mine.html", "--overwrite"]) == 1
    assert not (tmp_path / "new.zarr").exists()


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip(
            "the page is not tested in a browser: this needs chromium and chromedriver (apt install chromium-driver)"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=WIDTHS)
def opened(request, browser, run, page):
    """The page at the width of a phone or a desk."""
    metrics = {
        "width": WIDTHS[request.param],
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": request.param == "phone",
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((run[0] / "page.html").as_uri())
    return browser


def test_it_loads_nothing_and_has_no_errors(opened):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Other requests are the browser's own.
    urls = [request["request"]["url"] for request in requests if request["documentURL"].endswith("/page.html")]
    assert any(url.startswith("file:") and url.endswith("/page.html") for url in urls)
    assert [url for url in urls if not url.startswith("data:") and not url.endswith("/page.html")] == []
    assert opened.title == "labels.zarr: supervoxels"
    assert opened.execute_script("return document.scripts.length") == 0


def test_pictures_are_shown(opened):
    shown = opened.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.clientWidth, i.clientHeight])"
    )
    assert len(shown) == 6
    for natural, width, height in shown:
        assert natural > 100
        assert width > 100
        assert height > 50


def test_nothing_overflows(opened):
    assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    # Only the table of stages may be wider than its card, which scrolls.
    overflowing = opened.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') && !e.closest('svg') &&"
        " e.getBoundingClientRect().right > e.closest('section, main').getBoundingClientRect().right + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert overflowing == []


def test_bars_are_proportional_to_the_times(opened, run):
    script = (
        "return [...document.querySelectorAll('.stages tbody tr')].map(r => [r.cells[0].innerText,"
        " r.querySelector('.bar').offsetWidth / r.querySelector('.track').offsetWidth])"
    )
    longest = max(stage.seconds for stage in run[1].stages)
    shares = dict(opened.execute_script(script))
    assert shares == pytest.approx({stage.name: stage.seconds / longest for stage in run[1].stages}, abs=0.02)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_schemes_have_contrast(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    ink, paper = (
        sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3 for colour in opened.execute_script(script)
    )
    assert (paper - ink if scheme == "light" else ink - paper) > 180
