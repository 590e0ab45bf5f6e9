"""`html_report`: a run and its supervoxels on a page that stands for itself."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import zarr

from dseeds._version import __version__
from dseeds.convert.describe import describe
from dseeds.core.formatting import format_bytes, format_duration
from dseeds.engine.planning import Plan
from dseeds.engine.report import Report
from dseeds.io import Image, ZarrSource, open_image
from dseeds.io.labels import label_attributes
from dseeds.quality.evaluation import evaluate
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.owned_file import MARK, check_own_file, write_own_file
from dseeds.viz.drawing import Sheet, png
from dseeds.viz.preview import noted_image, noted_window, open_supervoxels, sheet_of

T = TypeVar("T", Plan, Report)

# Bins of sizes, workers and structures that are shown, and pixels of a panel.
BINS, WORKERS, STRUCTURES, PANEL = 32, 32, 100, 400
# The figures of quality that compare with a truth, and what they are called.
QUALITY = {
    "achievable_dice": "achievable Dice, mean over structures",
    "achievable_segmentation_accuracy": "achievable segmentation accuracy",
    "undersegmentation_error": "undersegmentation error (Neubert, Protzel)",
    "undersegmentation_error_levinshtein": "undersegmentation error (Levinshtein)",
    "boundary_recall": "boundary recall",
    "explained_variation": "explained variation",
}
HEADINGS = {"shape": "shape (z, y, x)", "spacing": "spacing (mm)", "dtype": "data type"}
SIZES = {
    "size_min": "smallest",
    "size_median": "median",
    "size_mean": "mean",
    "size_max": "largest",
    "size_std": "standard deviation",
}


def html_report(
    target: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    image: Any = None,
    truth: Any = None,
    plan: Plan | None = None,
    report: Report | None = None,
    sizes: bool = True,
    threads: int | None = None,
    overwrite: bool = False,
) -> str:
    """Describe a run and its supervoxels on a page of HTML that needs nothing beside itself.

    What was asked, what was planned and what came of it, how long the stages took, the memory of the workers, the sizes
    of the supervoxels, their quality if there is a truth, and pictures.

    Parameters
    ----------
    target : path or URL
        The labels.
    output : path or URL, optional
        Where to write the page.
    image : source, optional
        The intensities, as for `segment`. Default: the source that the labels say they were made from.
    truth : source, optional
        The true segmentation on the same grid: with it comes the quality, see `evaluate`.
    plan : Plan, optional
        What the run was expected to take. Default: what the labels keep of it, which says nothing of the time.
    report : Report, optional
        What the run did. Default: what the labels keep of it. NIfTI keeps nothing.
    sizes : bool, default True
        Count the sizes of the supervoxels, for which all labels are read once.
    threads : int, optional
        Threads that count. Default: one per core.
    overwrite : bool, default False
        Whether to replace an older page that this program made.

    Returns
    -------
    str
        The page.

    Raises
    ------
    FileExistsError
        If `output` exists and is not to be, or must not be, overwritten.
    FileNotFoundError
        If the labels, the image or the folder for the page do not exist.
    ValueError
        If the labels are unfinished, or one of the volumes cannot be read or does not fit.

    Examples
    --------
    >>> import tempfile, zarr
    >>> import dseeds
    >>> from distributed import Client
    >>> folder = tempfile.TemporaryDirectory()
    >>> image = zarr.create_array(f"{folder.name}/image.zarr", shape=(32, 32, 32), dtype="uint16")
    >>> image[:, 10:20] = 1000
    >>> with Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0") as client:
    ...     report = dseeds.segment(image, f"{folder.name}/labels.zarr", step=8, client=client)
    >>> page = dseeds.html_report(f"{folder.name}/labels.zarr")
    >>> "64 supervoxels" in page
    True
    >>> folder.cleanup()
    """
    if output is not None:
        check_own_file(os.fspath(output), overwrite)
    given = image if image is None or isinstance(image, Image) else open_image(image)
    text = _template("report.html.j2").render(_content(target, given, truth, plan, report, sizes, threads))
    if output is not None:
        write_own_file(os.fspath(output), text.encode())
    return text


@cache
def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bytes"] = format_bytes
    environment.filters["seconds"] = format_duration
    return environment.get_template(name)


def _content(
    target: Any,
    image: Image | None,
    truth: Any,
    plan: Plan | None,
    report: Report | None,
    sizes: bool,
    threads: int | None,
) -> dict[str, Any]:
    """Gather all that the page shows."""
    description = describe(target)
    labels = open_supervoxels(target)
    kept, notes = label_attributes(labels), []
    plan = plan or _revived(Plan, kept.get("plan"))
    report = report or _revived(Report, kept.get("report"))
    if report is None:
        notes.append("The labels keep nothing of their run, or nothing that makes sense.")
    limits = noted_window(labels, 0)
    if image is None:
        try:
            image = noted_image(labels)
        except ValueError as error:
            notes.append(f"The picture shows labels alone, in colours of no meaning: {error}.")
    if limits is None and report is not None and report.windows:
        limits = report.windows[0]
    figures: dict[str, Any] = {}
    if sizes or truth is not None:
        # Without a truth, there is no need to read the image whole.
        against = None if truth is None or image is None else _alone(image)
        figures = evaluate(os.fspath(target), truth, image=against, size_bins=BINS, threads=threads)
    structures = list(figures.get("achievable_dice_per_structure", {}).items())
    supervoxels = report.supervoxels if report else figures.get("supervoxels") or description.get("supervoxels")
    return {
        "generator": f"{MARK} {__version__}",
        "name": labels.name,
        "target": os.fspath(target),
        "supervoxels": supervoxels,
        "tiles": [] if report is None else _tiles(report),
        "notes": notes,
        "pictures": _pictures(sheet_of(labels, image, size=PANEL, limits=limits)),
        "parameters": _parameters(description, kept),
        "comparison": _comparison(target, plan, report),
        "stages": _stages(plan, report),
        "workers": None if report is None else _workers(plan, report),
        "sizes": _named(figures, SIZES),
        "histogram": _histogram(figures.get("size_histogram")),
        "quality": _named(figures, QUALITY),
        "structures": structures[:STRUCTURES],
        "more": len(structures) - STRUCTURES,
    }


def _revived(kind: type[T], kept: Any) -> T | None:
    """Read what labels keep of their run, as far as it makes sense: anyone may have changed it."""
    try:
        return kind.from_dict(kept)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _alone(image: Image) -> str | None:
    """Give where an image lies that is alone there."""
    [part, *others] = image.parts
    if others or part.channels is not None or part.path is None:
        return None
    if isinstance(part, ZarrSource):
        return part.path if all(isinstance(taken, slice) for taken in part.index) else None
    # A file may hold several volumes or datasets, of which this is one.
    with suppress(OSError, ValueError):
        return part.path if open_image(part.path).identity == part.identity else None
    return None


def _title(report: Report) -> str:
    return f"{report.supervoxels} supervoxels at step {_by(report.step)} in {_by(report.shape)} voxels (z, y, x)"


def _tiles(report: Report) -> list[tuple[str, str]]:
    """Tell what matters most."""
    tiles = [
        (f"{report.supervoxels:,}", "supervoxels"),
        (_by(report.shape), "voxels (z, y, x)"),
        (format_duration(report.seconds), "from start to end"),
        (f"{report.voxels_per_second / 1e6:.2f}", "million voxels per second"),
        (str(report.workers), "worker" if report.workers == 1 else "workers"),
    ]
    peak = max(report.peak_memory.values(), default=0)
    return [*tiles, (format_bytes(peak), "peak memory of a worker")] if peak else tiles


def _pictures(sheet: Sheet) -> list[list[dict[str, Any]]]:
    return [
        [
            {
                "title": title,
                "uri": "data:image/png;base64," + b64encode(png(panel)).decode(),
                "width": panel.width,
                "height": panel.height,
            }
            for title, panel in row
        ]
        for row in sheet.rows
    ]


def _parameters(description: Mapping[str, Any], kept: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what the labels are, and what they were made with."""
    known = {key: description.get(key) for key in ("format", "shape", "dtype", "spacing", "chunks", "shards")}
    parameters, source, versions = (_mapping(kept.get(key)) for key in ("parameters", "source", "versions"))
    sources = source.get("channels", [source]) if source else []
    made = {key: value for key, value in parameters.items() if key != "asked"}
    asked = {f"asked: {key}": value for key, value in _mapping(parameters.get("asked")).items()}
    paths = {"source": ", ".join(str(_mapping(one).get("path", "an array in memory")) for one in sources)}
    rows = {**paths, **known, **made, **asked, "versions": versions}
    said = {HEADINGS.get(name, name.replace("_", " ")): value for name, value in rows.items()}
    return [(name, _said(value)) for name, value in said.items() if value not in (None, "", {})]


def _said(value: Any) -> str:
    """Write a value.

    >>> _said([8, 8, 8]), _said([[0.0, 255.0]]), _said({"numpy": "2.1"})
    ('8 x 8 x 8', '0 to 255', 'numpy 2.1')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if all(isinstance(part, int | float) for part in value):
            return (" to " if len(value) == 2 else " x ").join(f"{part:g}" for part in value)
        return "; ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comparison(target: Any, plan: Plan | None, report: Report | None) -> list[tuple[str, str, str]]:
    """Set what was expected beside what came of it."""
    if report is None:
        return []
    done = report.stages
    tasks = f"{sum(stage.tasks for stage in done):,}"
    if report.skipped:
        tasks += f" and {report.skipped:,} not needed"
    peak = max(report.peak_memory.values(), default=0)
    actual = {
        "supervoxels": f"{report.supervoxels:,}",
        "regions": f"{report.regions:,} of {_by(report.region_shape)}",
        "rounds": str(report.rounds),
        "tasks": tasks,
        "read": format_bytes(sum(stage.read for stage in done)),
        "written": format_bytes(sum(stage.written for stage in done)),
        "memory of a worker": format_bytes(peak) if peak else "not known",
        "labels": format_bytes(_stored(target)),
        "time": format_duration(report.seconds),
    }
    if plan is None:
        return [(name, "", value) for name, value in actual.items()]
    planned = {
        "supervoxels": f"{plan.supervoxels:,}",
        "regions": f"{plan.regions:,} of {_by(plan.region_shape)}",
        "rounds": str(plan.rounds),
        "tasks": f"{sum(stage.tasks for stage in plan.stages):,}",
        "read": format_bytes(sum(stage.read for stage in plan.stages)),
        "written": format_bytes(sum(stage.written for stage in plan.stages)),
        "memory of a worker": f"{format_bytes(plan.worker_memory)}, up to {format_bytes(plan.worker_limit)} allowed",
        "labels": f"up to {format_bytes(plan.output_bytes)}",
        "time": "not estimated" if plan.seconds is None else f"about {format_duration(plan.seconds)}",
    }
    return [(name, planned[name], value) for name, value in actual.items()]


def _stored(target: Any) -> int:
    """Count the bytes that labels take where they lie."""
    address = open_location(target).address
    if not is_remote(address) and Path(address).is_file():
        return Path(address).stat().st_size
    node = zarr.open(open_location(target).zarr(), mode="r")
    arrays = [node] if isinstance(node, zarr.Array) else [part for _, part in node.members(max_depth=None)]
    return sum(int(array.nbytes_stored()) for array in arrays if isinstance(array, zarr.Array))


def _stages(plan: Plan | None, report: Report | None) -> list[dict[str, Any]]:
    """Tell what became of each stage, and how long it took beside the longest."""
    if report is None:
        return []
    planned = {} if plan is None else {stage.name: stage.tasks for stage in plan.stages}
    longest = max((stage.seconds for stage in report.stages), default=0.0)
    return [
        {
            "name": stage.name,
            "planned": planned.get(stage.name),
            "tasks": stage.tasks,
            "skipped": stage.skipped,
            "retried": stage.retried,
            "seconds": float(stage.seconds),
            "share": _share(stage.seconds, longest),
            "read": stage.read,
            "written": stage.written,
            "peak": stage.peak_memory,
        }
        for stage in report.stages
    ]


def _workers(plan: Plan | None, report: Report) -> dict[str, Any]:
    """Tell how much memory each worker took, beside what it may use."""
    limit = max([*report.peak_memory.values(), plan.worker_limit if plan else 0], default=0)
    rows = sorted(report.peak_memory.items(), key=lambda row: (-row[1], row[0]))
    return {
        "needed": None if plan is None else plan.worker_memory,
        "limit": None if plan is None else plan.worker_limit,
        "mark": None if plan is None else _share(plan.worker_memory, limit),
        "rows": [{"name": name, "bytes": size, "share": _share(size, limit)} for name, size in rows[:WORKERS]],
        "more": len(rows) - WORKERS,
    }


def _histogram(found: Mapping[str, Sequence[int]] | None) -> dict[str, Any] | None:
    """Give the bars of the histogram of sizes, as parts of the highest."""
    if found is None:
        return None
    edges, counts = found["edges"], found["counts"]
    bars = [
        {"low": low, "high": high if last else high - 1, "count": count, "share": _share(count, max(counts))}
        for low, high, count, last in zip(
            edges[:-1], edges[1:], counts, [False] * (len(counts) - 1) + [True], strict=True
        )
    ]
    return {"bars": bars, "low": edges[0], "high": edges[-1], "most": max(counts)}


def _named(figures: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, str]]:
    found = [(name, figures[key]) for key, name in names.items() if figures.get(key) is not None]
    return [(name, f"{value:,.0f}" if value == int(value) else f"{value:,.4g}") for name, value in found]


def _share(part: float, whole: float) -> float:
    """Give a part in per cent."""
    return round(100 * part / whole, 1) if whole else 0.0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _by(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
