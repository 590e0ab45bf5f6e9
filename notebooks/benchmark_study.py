"""Supervoxels against true segmentations, over a range of their number: dseeds, SLIC and the 3D SEEDS reference.

It repeats the comparison of Zhao, Jiang, Hollon, "Extending SEEDS to a Supervoxel Algorithm for Medical Image
Analysis", arXiv 2502.02409, on whatever images with a truth there are: ``python notebooks/benchmark_study.py --help``.
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

# Before NumPy reads them: all methods are timed in one thread.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from curves import QUALITY, Row, plot, summary, table
from pairs import DATA, Pair, at_hand, distinct, parse_pair, read_case, read_decathlon, read_pairs
from peers import REPEATS, Case, Method, Window, best, methods

import dseeds
from dseeds.seeds.cell_size import choose_step

__all__ = ["Pair", "at_hand", "plot", "read_decathlon", "read_pairs", "study", "summary", "table"]

COUNTS = 250, 500, 1000, 2000, 4000
NAME = "benchmark_study"
# What is compiled or imported first is left to a small piece of each image, in cells of this size.
WARM_UP_STEP = 16
PALETTE = 64
COLUMNS = (
    *("task", "case", "method", "peer", "setting", "asked", "made", "voxels", "channels"),
    *(*QUALITY, "seconds", "mvoxel_per_second", "error"),
)


def study(
    pairs: Iterable[Pair],
    *,
    counts: Sequence[int] = COUNTS,
    compared: Sequence[Method] | None = None,
    window: str | Window | None = None,
    crop: int | None = None,
    repeats: int = REPEATS,
) -> Iterator[Row]:
    """Cut every image with every method into each number of supervoxels, and measure them.

    One image is held at a time. What fails is a row with an ``error``, and the study goes on.

    Parameters
    ----------
    pairs : iterable of Pair
        The images and their truths.
    counts : sequence of int
        How many supervoxels to make. dseeds chooses cells that come close, and the peers are asked for the same cells.
    compared : sequence of Method, optional
        By default all that are installed.
    window : str or (float, float), optional
        For the pairs that have none of their own.
    crop : int, optional
        Cut images to the box around their structures and so many voxels more on every side.
    repeats : int
        The time is the best of so many runs.

    Yields
    ------
    dict
        With the keys `COLUMNS`; the time in seconds of the processor, of which all methods use one thread.

    Raises
    ------
    ValueError
        If two pairs of a task have the same name.
    """
    compared = methods() if compared is None else compared
    for pair in distinct(pairs):
        row = {**dict.fromkeys(COLUMNS), "task": pair.task, "case": pair.name}
        try:
            whole, spacing = read_case(pair, window, crop)
            cases = [replace(whole, step=choose_step(whole.shape, n_segments=n, known_spacing=spacing)) for n in counts]
        except Exception as error:
            yield row | {"error": _sentence(error)}
            continue
        row |= {"voxels": whole.truth.size, "channels": len(whole.windows)}
        able = [method for method in compared if method.takes_channels or whole.channel_axis is None]
        _warm_up(able, whole)
        for asked, case in zip(counts, cases, strict=True):
            for method in able:
                known = {"method": method.name, "peer": method.peer, "setting": method.setting, "asked": asked}
                try:
                    yield row | known | measure(method, case, repeats)
                except Exception as error:
                    yield row | known | {"error": _sentence(error)}


def _warm_up(compared: Sequence[Method], whole: Case) -> None:
    centre = tuple(slice(max(0, n // 2 - WARM_UP_STEP), n // 2 + WARM_UP_STEP) for n in whole.shape)
    piece = replace(whole, step=(WARM_UP_STEP,) * 3, image=np.ascontiguousarray(whole.image[..., *centre]), truth=None)
    for method in compared:
        # What fails here fails again where it is told.
        with suppress(Exception):
            method.cut(piece)


def measure(method: Method, case: Case, repeats: int = REPEATS) -> Row:
    """Cut a case, timed, and measure the supervoxels."""
    labels = None

    def cut() -> None:
        nonlocal labels
        labels = method.cut(case)

    # To clip and scale the image is no part of what is timed.
    channels = case.scaled.reshape(-1, *case.shape)
    # Of the processor, not of the clock on the wall: other work on the machine does not count, a second thread would.
    seconds = best(cut, repeats, time.process_time)
    figures = dseeds.evaluate(labels, case.truth)
    explained = [dseeds.evaluate(labels, image=channel)["explained_variation"] for channel in channels]
    figures["explained_variation"] = float(np.mean(explained))
    return {
        "made": figures["supervoxels"],
        **{name: figures[name] for name in QUALITY},
        "seconds": seconds,
        "mvoxel_per_second": case.truth.size / seconds / 1e6,
    }


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# The command.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    given = _parser().parse_args(arguments)
    try:
        pairs = _pairs(given)
        compared = _chosen(given.methods)
        if given.out is not None:
            _make_room(given.out)
    except (ValueError, OSError) as error:
        raise SystemExit(_sentence(error)) from None
    rows = []
    for row in study(
        pairs, counts=given.counts, compared=compared, window=given.window, crop=given.crop, repeats=given.repeats
    ):
        rows.append(row)
        print(_line(row), flush=True)
        if given.out is not None:
            # As it comes: a long study may be stopped.
            _append(given.out / f"{NAME}.csv", row)
    failed = [row for row in rows if row["error"]]
    if summary(rows):
        print(f"\n{table(rows)}\n\nBold: the setting with the highest achievable Dice; drawn bold, too.")
        if given.out is not None:
            _write(given, rows)
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} results are missing: see the lines with 'failed'.")


def _parser() -> argparse.ArgumentParser:
    def number(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
        return value

    def numbers(text: str) -> list[int]:
        return [number(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Without any pairs: the real volumes that the tests use."
    )
    add: Callable[..., Any] = parser.add_argument
    add("named", nargs="*", metavar="IMAGE:TRUTH", help="an image and its true segmentation; 4D is channels")
    add("--pairs", type=Path, metavar="FILE", help="CSV or JSON with image, truth and, if you like, name, task, window")
    add("--decathlon", type=Path, action="append", default=[], metavar="FOLDER", help="such as Task09_Spleen")
    add("--limit", type=number, metavar="N", help="take the first N cases of each task")
    add("--crop", type=number, metavar="VOXELS", help="cut to the structures' box and so many voxels around it")
    add("--counts", type=numbers, default=COUNTS, help="numbers of supervoxels, such as 250,1000,4000")
    add("--methods", help="such as 'dseeds,SLIC 0.1,SimpleITK SLIC'; default: all that are installed")
    add("--window", help="LOW:HIGH, 'LEVEL,WIDTH', abdomen, lung, bone, brain; default: percentiles 0.5 and 99.5")
    add("--repeats", type=number, default=REPEATS, metavar="N", help="the time is the best of so many runs")
    add("--out", type=Path, metavar="FOLDER", help="where rows and plots go; new or empty")
    return parser


def _pairs(given: argparse.Namespace) -> list[Pair]:
    pairs = [parse_pair(text) for text in given.named]
    pairs += read_pairs(given.pairs) if given.pairs else []
    for folder in given.decathlon:
        pairs += read_decathlon(folder)
    pairs = pairs or at_hand()
    if not pairs:
        raise ValueError(f"the real volumes are not at {DATA}; name pairs, or set DSEEDS_DATA to their folder.")
    tasks = defaultdict(list)
    for pair in distinct(pairs):
        tasks[pair.task].append(pair)
    return [pair for cases in tasks.values() for pair in cases[: given.limit]]


def _chosen(names: str | None) -> list[Method]:
    installed = methods()
    if names is None:
        return installed
    wanted = [name.strip() for name in names.split(",")]
    known = {word for method in installed for word in (method.peer, method.name)}
    for name in wanted:
        if name not in known:
            raise ValueError(f"there is no method {name!r}: choose from {', '.join(sorted(known))}.")
    return [method for method in installed if method.peer in wanted or method.name in wanted]


def _make_room(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another one with --out.")
    folder.mkdir(parents=True, exist_ok=True)


def _line(row: Row) -> str:
    start = f"{row['task']:<20}{row['case']:<18}{row['method'] or '':<20}{row['asked'] or '':>6}"
    if row["error"]:
        return f"{start} failed: {row['error']}"
    figures = "".join(f"{row[name]:>8.3f}" for name in QUALITY)
    return f"{start}{row['made']:>7}{figures}{row['seconds']:>10.3f} s{row['mvoxel_per_second']:>8.2f} Mvoxel/s"


def _append(file: Path, row: Row) -> None:
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _write(given: argparse.Namespace, rows: list[Row]) -> None:
    packages = {}
    for package in ("dseeds", "numpy", "numba", "scikit-image", "SimpleITK", "python_3d_seeds"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    known = {"options": options, "packages": packages, "machine": platform.platform(), "rows": rows}
    (given.out / f"{NAME}.json").write_text(json.dumps(known, indent=2, default=str))
    figure = plot(rows)
    figure.savefig(given.out / f"{NAME}.svg")
    _save_png(figure, given.out / f"{NAME}.png")


def _save_png(figure: Any, file: Path) -> None:
    """Save a figure in few colours, which makes it several times smaller."""
    from PIL import Image

    full = BytesIO()
    figure.savefig(full, dpi=110)
    Image.open(full).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    main()
