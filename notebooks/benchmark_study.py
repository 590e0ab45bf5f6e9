"""Compare the supervoxels of dseeds, SLIC and the 3D SEEDS reference with true segmentations, at several numbers.

This repeats the comparison of Zhao, Jiang, Hollon, "Extending SEEDS to a Supervoxel Algorithm for Medical Image
Analysis", arXiv 2502.02409, on your own images: ``python notebooks/benchmark_study.py --help``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

# All methods are timed in one thread; NumPy reads these variables when it is imported.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from curves import QUALITY, STYLES, Row, plot, summary, table
from pairs import DATA, Pair, available_pairs, name_pairs, parse_pair, read_case, read_decathlon, read_pairs

import dseeds
from dseeds.benchmark.cases import Case, Window
from dseeds.benchmark.methods import Method, choose_methods
from dseeds.benchmark.timing import REPEATS, best_time
from dseeds.seeds.cell_size import choose_step

__all__ = ["Pair", "available_pairs", "plot", "read_decathlon", "read_pairs", "study", "summary", "table"]

COUNTS = 250, 500, 1000, 2000, 4000
NAME = "benchmark_study"
# Before the timing, each method cuts a small piece of the image into cells of this size, to compile and import.
WARM_UP_STEP = 16
PALETTE_COLOURS = 64
COLUMNS = (
    *("task", "case", "method", "peer", "setting", "asked", "made", "voxels", "channels"),
    *(*QUALITY, "seconds", "mvoxel_per_second", "error"),
)


def methods() -> list[Method]:
    """Return the installed methods of the study, dseeds first, and say which peers are left out."""
    installed, left_out = choose_methods(STYLES)
    for peer, package in left_out.items():
        print(f"{package} is not installed; {peer} is left out.")
    return installed


def study(
    pairs: Iterable[Pair],
    *,
    counts: Sequence[int] = COUNTS,
    compared: Sequence[Method] | None = None,
    window: str | Window | None = None,
    crop: int | None = None,
    repeats: int = REPEATS,
) -> Iterator[Row]:
    """Cut every image with every method into each number of supervoxels, and yield their figures.

    One image is in memory at a time. A failure becomes a row with an ``error``, and the study continues.

    Parameters
    ----------
    pairs : iterable of Pair
        The images and their true segmentations.
    counts : sequence of int
        Numbers of supervoxels. dseeds chooses cells that come close; the peers are given the same cells.
    compared : sequence of Method, optional
        All installed methods by default.
    window : str or (float, float), optional
        The intensity window of pairs that have none of their own.
    crop : int, optional
        Crop images to the bounding box of their structures, with a margin of this many voxels.
    repeats : int
        The time is that of the fastest of this many runs.

    Yields
    ------
    dict
        The keys are `COLUMNS`. ``seconds`` is CPU time; every method runs in one thread.

    Raises
    ------
    ValueError
        If two pairs of a task have the same name.
    """
    compared = methods() if compared is None else compared
    for pair in name_pairs(pairs):
        row = {**dict.fromkeys(COLUMNS), "task": pair.task, "case": pair.name}
        try:
            whole, spacing = read_case(pair, window, crop)
            cases = [replace(whole, step=choose_step(whole.shape, n_segments=n, known_spacing=spacing)) for n in counts]
        except Exception as error:
            yield row | {"error": _one_line(error)}
            continue
        row |= {"voxels": whole.truth.size, "channels": len(whole.windows)}
        applicable = [method for method in compared if method.takes_channels or whole.channel_axis is None]
        _warm_up(applicable, whole)
        for count, case in zip(counts, cases, strict=True):
            for method in applicable:
                keys = {"method": method.name, "peer": method.peer, "setting": method.setting, "asked": count}
                try:
                    yield row | keys | measure(method, case, repeats)
                except Exception as error:
                    yield row | keys | {"error": _one_line(error)}


def _warm_up(compared: Sequence[Method], whole: Case) -> None:
    centre = tuple(slice(max(0, n // 2 - WARM_UP_STEP), n // 2 + WARM_UP_STEP) for n in whole.shape)
    piece = replace(whole, step=(WARM_UP_STEP,) * 3, image=np.ascontiguousarray(whole.image[..., *centre]), truth=None)
    for method in compared:
        # A failure here occurs again, and is reported, in the measurement.
        with suppress(Exception):
            method.cut(piece)


def measure(method: Method, case: Case, repeats: int = REPEATS) -> Row:
    """Return the figures of a method's supervoxels and the time of the cut."""
    labels = None

    def cut() -> None:
        nonlocal labels
        labels = method.cut(case)

    # Clipping and scaling the image is not part of the timing.
    channels = case.scaled.reshape(-1, *case.shape)
    # CPU time excludes other work on the machine, and would include a second thread.
    seconds = best_time(cut, repeats, time.process_time)
    figures = dseeds.evaluate(labels, case.truth)
    variations = [dseeds.evaluate(labels, image=channel)["explained_variation"] for channel in channels]
    figures["explained_variation"] = float(np.mean(variations))
    return {
        "made": figures["supervoxels"],
        **{name: figures[name] for name in QUALITY},
        "seconds": seconds,
        "mvoxel_per_second": case.truth.size / seconds / 1e6,
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    options = _parser().parse_args(arguments)
    try:
        pairs = _select_pairs(options)
        compared = _select_methods(options.methods)
        if options.out is not None:
            _create_folder(options.out)
    except (ValueError, OSError) as error:
        raise SystemExit(_one_line(error)) from None
    rows = []
    for row in study(
        pairs,
        counts=options.counts,
        compared=compared,
        window=options.window,
        crop=options.crop,
        repeats=options.repeats,
    ):
        rows.append(row)
        print(_format_row(row), flush=True)
        if options.out is not None:
            # Row by row, because a long study may be stopped.
            _append_row(options.out / f"{NAME}.csv", row)
    if summary(rows):
        print(f"\n{table(rows)}\n\nBold, also in the plots: the setting with the highest achievable Dice.")
        if options.out is not None:
            _write_results(options, rows)
    if failures := sum(row["error"] is not None for row in rows):
        raise SystemExit(f"{failures} of {len(rows)} results are missing: see the lines with 'failed'.")


def _parser() -> argparse.ArgumentParser:
    def number(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
        return value

    def numbers(text: str) -> list[int]:
        return [number(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="The default pairs are the real volumes that the tests use."
    )
    add: Callable[..., Any] = parser.add_argument
    add("named", nargs="*", metavar="IMAGE:TRUTH", help="an image and its true segmentation; in 4D, with channels")
    add("--pairs", type=Path, metavar="FILE", help="CSV or JSON with image, truth, optionally name, task, window")
    add("--decathlon", type=Path, action="append", default=[], metavar="FOLDER", help="such as Task09_Spleen")
    add("--limit", type=number, metavar="N", help="use only the first N cases of each task")
    add("--crop", type=number, metavar="VOXELS", help="crop to the structures' bounding box and this margin")
    add("--counts", type=numbers, default=COUNTS, help="numbers of supervoxels, such as 250,1000,4000")
    add("--methods", help="such as 'dseeds,SLIC 0.1,SimpleITK SLIC'; default: all installed methods")
    add("--window", help="LOW:HIGH, 'LEVEL,WIDTH', abdomen, lung, bone, brain; default: percentiles 0.5 and 99.5")
    add("--repeats", type=number, default=REPEATS, metavar="N", help="the time is that of the fastest of N runs")
    add("--out", type=Path, metavar="FOLDER", help="the output folder for rows and plots; new or empty")
    return parser


def _select_pairs(options: argparse.Namespace) -> list[Pair]:
    pairs = [parse_pair(text) for text in options.named]
    pairs += read_pairs(options.pairs) if options.pairs else []
    for folder in options.decathlon:
        pairs += read_decathlon(folder)
    pairs = pairs or available_pairs()
    if not pairs:
        raise ValueError(f"the real volumes are not at {DATA}; name pairs, or set DSEEDS_DATA to their folder.")
    tasks = defaultdict(list)
    for pair in name_pairs(pairs):
        tasks[pair.task].append(pair)
    return [pair for cases in tasks.values() for pair in cases[: options.limit]]


def _select_methods(text: str | None) -> list[Method]:
    installed = methods()
    if text is None:
        return installed
    names = [name.strip() for name in text.split(",")]
    choices = {word for method in installed for word in (method.peer, method.name)}
    for name in names:
        if name not in choices:
            raise ValueError(f"there is no method {name!r}: choose from {', '.join(sorted(choices))}.")
    return [method for method in installed if method.peer in names or method.name in names]


def _create_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another one with --out.")
    folder.mkdir(parents=True, exist_ok=True)


def _format_row(row: Row) -> str:
    start = f"{row['task']:<20}{row['case']:<18}{row['method'] or '':<20}{row['asked'] or '':>6}"
    if row["error"]:
        return f"{start} failed: {row['error']}"
    figures = "".join(f"{row[name]:>8.3f}" for name in QUALITY)
    return f"{start}{row['made']:>7}{figures}{row['seconds']:>10.3f} s{row['mvoxel_per_second']:>8.2f} Mvoxel/s"


def _append_row(file: Path, row: Row) -> None:
    is_new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _write_results(options: argparse.Namespace, rows: list[Row]) -> None:
    packages = {}
    for package in ("dseeds", "numpy", "numba", "scikit-image", "SimpleITK", "python_3d_seeds"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    content = {"options": vars(options), "packages": packages, "machine": platform.platform(), "rows": rows}
    # `default` writes paths as text.
    (options.out / f"{NAME}.json").write_text(json.dumps(content, indent=2, default=str))
    figure = plot(rows)
    figure.savefig(options.out / f"{NAME}.svg")
    _save_png(figure, options.out / f"{NAME}.png")


def _save_png(figure: Any, file: Path) -> None:
    """Save a figure with a palette, which makes the file several times smaller."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("RGB").quantize(PALETTE_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
