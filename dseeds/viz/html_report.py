"""`html_report`: a self-contained HTML page about a run and its supervoxels."""

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
from dseeds.convert.describe import as_mapping, describe
from dseeds.core.formatting import format_bytes, format_duration, format_shape, format_spacing
from dseeds.engine.planning import Plan
from dseeds.engine.report import Report
from dseeds.io import Image, ZarrSource, open_image
from dseeds.io.labels import label_attributes
from dseeds.quality.evaluation import evaluate
from dseeds.storage.location import is_remote, open_location
from dseeds.storage.owned_file import MARK, check_own_file, write_own_file
from dseeds.viz.drawing import Sheet, encode_png
from dseeds.viz.preview import draw_sheet, open_recorded_image, open_supervoxels, recorded_window

Document = TypeVar("Document", Plan, Report)

# Bins of the histogram of sizes, and pixels of a panel.
BINS, PANEL = 32, 400
# Titles of the figures of `evaluate` that the page shows.
QUALITY = {
    "achievable_dice": "achievable Dice, mean over structures",
    "achievable_segmentation_accuracy": "achievable segmentation accuracy",
    "undersegmentation_error": "undersegmentation error (Neubert, Protzel)",
    "undersegmentation_error_levinshtein": "undersegmentation error (Levinshtein)",
    "boundary_recall": "boundary recall",
    "explained_variation": "explained variation",
}
SIZES = {
    "size_min": "smallest",
    "size_median": "median",
    "size_mean": "mean",
    "size_max": "largest",
    "size_std": "standard deviation",
}
# Titles of parameters that say more than their keys.
# What stands between numbers, if they are not the extents of something.
BETWEEN = {
    "windows": " to ",
    "requested window": " to ",
    "requested percentiles": " to ",
    "knees": "; ",
    "weights": " : ",
}
PARAMETERS = {"shape": "shape (z, y, x)", "spacing": "spacing (z, y, x)", "dtype": "data type"}


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
    """Describe a run and its supervoxels on a self-contained HTML page.

    The page shows the parameters, the plan beside the actual figures, the times of the stages, the memory of the
    workers, the sizes of the supervoxels, their quality if there is a truth, and pictures.

    Parameters
    ----------
    target : path or URL
        The labels.
    output : path or URL, optional
        Where to write the page.
    image : source, optional
        The intensities, as for `segment`. Default: the source recorded in the labels.
    truth : source, optional
        The true segmentation on the same grid, to report the quality, see `evaluate`.
    plan : Plan, optional
        The plan of the run. Default: the one recorded in the labels, which has no time.
    report : Report, optional
        The report of the run. Default: the one recorded in the labels. NIfTI records none.
    sizes : bool, default True
        Count the sizes of the supervoxels, which reads all labels once.
    threads : int, optional
        Threads that count. Default: one per core.
    overwrite : bool, default False
        Whether to replace an older page of this program.

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
    opened = image if image is None or isinstance(image, Image) else open_image(image)
    page = _template().render(_gather(target, opened, truth, plan, report, sizes, threads))
    if output is not None:
        write_own_file(os.fspath(output), page.encode())
    return page


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["bytes"] = format_bytes
    environment.filters["per_cent"] = lambda part, whole: 100 * part / whole if whole else 0.0
    return environment.get_template("report.html.j2")


def _gather(
    target: Any,
    image: Image | None,
    truth: Any,
    plan: Plan | None,
    report: Report | None,
    sizes: bool,
    threads: int | None,
) -> dict[str, Any]:
    """Return the variables of the template."""
    description = describe(target)
    labels = open_supervoxels(target)
    record = label_attributes(labels)
    notes = []
    plan = plan or _restore(Plan, record.get("plan"))
    report = report or _restore(Report, record.get("report"))
    if report is None:
        notes.append("The labels hold no valid record of their run.")
    if description.get("edits"):
        notes.append("The labels were edited after their run, whose figures these are.")
    if image is None:
        try:
            image = open_recorded_image(labels)
        except ValueError as error:
            notes.append(f"The picture shows the labels alone, in arbitrary colours: {error}.")
    window = recorded_window(labels, 0)
    if window is None and report is not None and report.windows:
        window = report.windows[0]
    figures: dict[str, Any] = {}
    if sizes or truth is not None:
        # Only the comparison with a truth needs the whole image.
        whole = None if truth is None or image is None else _path_of(image)
        figures = evaluate(os.fspath(target), truth, image=whole, size_bins=BINS, threads=threads)
    supervoxels = report.supervoxels if report else figures.get("supervoxels") or description.get("supervoxels")
    return {
        "generator": f"{MARK} {__version__}",
        "name": labels.name,
        "target": os.fspath(target),
        "supervoxels": supervoxels,
        "plan": plan,
        "report": report,
        "tiles": [] if report is None else _tiles(report),
        "notes": notes,
        "pictures": _embed(draw_sheet(labels, image, size=PANEL, window=window)),
        "parameters": _parameters(description, record),
        "comparison": [] if report is None else _compare(target, plan, report),
        "planned_tasks": {} if plan is None else {stage.name: stage.tasks for stage in plan.stages},
        "peaks": [] if report is None else sorted(report.peak_memory.items(), key=lambda item: (-item[1], item[0])),
        "sizes": _titled(figures, SIZES),
        "histogram": _size_bins(figures.get("size_histogram")),
        "quality": _titled(figures, QUALITY),
        "structures": list(figures.get("achievable_dice_per_structure", {}).items()),
    }


def _restore(kind: type[Document], values: Any) -> Document | None:
    """Restore a plan or report recorded in labels; return None for a record that is missing or was edited."""
    try:
        return kind.from_dict(values)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _path_of(image: Image) -> str | None:
    """Return the path that opens exactly this image, if there is one."""
    [source, *others] = image.parts
    if others or source.channels is not None or source.path is None:
        return None
    if isinstance(source, ZarrSource):
        return source.path if all(isinstance(item, slice) for item in source.index) else None
    # A file may hold several volumes or data sets, of which this is one.
    with suppress(OSError, ValueError):
        return source.path if open_image(source.path).identity == source.identity else None
    return None


def _tiles(report: Report) -> list[tuple[str, str]]:
    tiles = [
        (f"{report.supervoxels:,}", "supervoxels"),
        (format_shape(report.shape), "voxels (z, y, x)"),
        (format_duration(report.seconds), "total time"),
        (f"{report.voxels_per_second / 1e6:.2f}", "million voxels per second"),
        (str(report.workers), "worker" if report.workers == 1 else "workers"),
    ]
    peak = max(report.peak_memory.values(), default=0)
    return [*tiles, (format_bytes(peak), "peak memory of a worker")] if peak else tiles


def _embed(sheet: Sheet) -> list[list[dict[str, Any]]]:
    """Return the panels of a sheet with their titles, as data URIs."""

    def picture(title: str, panel: Any) -> dict[str, Any]:
        uri = "data:image/png;base64," + b64encode(encode_png(panel)).decode()
        return {"title": title, "uri": uri, "width": panel.width, "height": panel.height}

    return [[picture(title, panel) for title, panel in row] for row in sheet.rows]


def _parameters(description: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return titles and values of the labels' properties and of the parameters that they were made with."""
    properties = {key: description.get(key) for key in ("format", "shape", "dtype", "spacing", "chunks", "shards")}
    properties["spacing"] = properties["spacing"] and format_spacing(properties["spacing"])
    parameters, source, versions = (as_mapping(record.get(key)) for key in ("parameters", "source", "versions"))
    channels = source.get("channels", [source]) if source else []
    derived = {key: value for key, value in parameters.items() if key != "asked"}
    rows = {
        "source": ", ".join(str(as_mapping(channel).get("path", "an array in memory")) for channel in channels),
        **properties,
        **derived,
        **{f"requested {key}": value for key, value in as_mapping(parameters.get("asked")).items()},
        "versions": versions,
    }
    return [
        (PARAMETERS.get(key, key.replace("_", " ")), _format_parameter(value, BETWEEN.get(key, " x ")))
        for key, value in rows.items()
        if value not in (None, "", {}) and not (isinstance(value, list) and set(map(str, value)) == {"None"})
    ]


def _format_parameter(value: Any, between: str = " x ") -> str:
    """Return a value as text, with something between numbers.

    >>> _format_parameter([8, 8, 8]), _format_parameter([[0.0, 255.0]], " to "), _format_parameter({"numpy": "2.1"})
    ('8 x 8 x 8', '0 to 255', 'numpy 2.1')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_parameter(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if all(isinstance(item, int | float) for item in value):
            return between.join(f"{item:g}" for item in value)
        return "; ".join(_format_parameter(item, between) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _compare(target: Any, plan: Plan | None, report: Report) -> list[tuple[str, str, str]]:
    """Return rows of a title, the planned value and the actual value."""
    planned = {} if plan is None else _planned_values(plan)
    return [(title, planned.get(title, ""), value) for title, value in _actual_values(target, report).items()]


def _actual_values(target: Any, report: Report) -> dict[str, str]:
    common = _common_values(report)
    peak = max(report.peak_memory.values(), default=0)
    return {
        **common,
        "tasks": f"{common['tasks']} and {report.skipped:,} skipped" if report.skipped else common["tasks"],
        "memory of a worker": format_bytes(peak) if peak else "unknown",
        "labels": format_bytes(_stored_bytes(target)),
        "time": format_duration(report.seconds),
    }


def _planned_values(plan: Plan) -> dict[str, str]:
    return {
        **_common_values(plan),
        "memory of a worker": f"{format_bytes(plan.worker_memory)}, up to {format_bytes(plan.worker_limit)} allowed",
        "labels": f"up to {format_bytes(plan.output_bytes)}",
        "time": "not estimated" if plan.seconds is None else f"about {format_duration(plan.seconds)}",
    }


def _common_values(document: Plan | Report) -> dict[str, str]:
    return {
        "supervoxels": f"{document.supervoxels:,}",
        "regions": f"{document.regions:,} of {format_shape(document.region_shape)}",
        "rounds": str(document.rounds),
        "tasks": f"{sum(stage.tasks for stage in document.stages):,}",
        "read": format_bytes(sum(stage.read for stage in document.stages)),
        "written": format_bytes(sum(stage.written for stage in document.stages)),
    }


def _stored_bytes(target: Any) -> int:
    location = open_location(target)
    if not is_remote(location.address) and Path(location.address).is_file():
        return Path(location.address).stat().st_size
    node = zarr.open(location.zarr(), mode="r")
    members = [node] if isinstance(node, zarr.Array) else [member for _, member in node.members(max_depth=None)]
    return sum(int(array.nbytes_stored()) for array in members if isinstance(array, zarr.Array))


def _size_bins(histogram: Mapping[str, Sequence[int]] | None) -> list[tuple[int, int, int]]:
    """Return the bins of a `size_histogram`: the first size, the last size and the number of supervoxels."""
    if histogram is None:
        return []
    # The last edge is the largest size, the others are the first of their bins.
    edges = histogram["edges"]
    lasts = [*(edge - 1 for edge in edges[1:-1]), edges[-1]]
    return list(zip(edges[:-1], lasts, histogram["counts"], strict=True))


def _titled(figures: Mapping[str, Any], titles: Mapping[str, str]) -> list[tuple[str, str]]:
    values = [(title, figures[key]) for key, title in titles.items() if figures.get(key) is not None]
    return [(title, f"{value:,.0f}" if value == int(value) else f"{value:,.4g}") for title, value in values]
