"""Images with true segmentations: lists of them, and how they are read."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from peers import Case, Window

from dseeds.io import Image, Spacing, open_image, open_source
from dseeds.seeds.intensity_windows import read_windows
from dseeds.seeds.order_statistics import find_windows

DATA = Path(os.environ.get("DSEEDS_DATA") or Path(__file__).parents[2] / "shared" / "data")
SOFT_TISSUE = -150.0, 250.0


@dataclass(frozen=True)
class Pair:
    """An image with its true segmentation.

    Parameters
    ----------
    image, truth : str
        What `dseeds.io.open_source` takes. The volumes of a 4D image are channels. In the truth, 0 is background.
    name : str, optional
        What the pair is called; by default as its image.
    task : str, optional
        What it is a case of: figures are means over tasks of means over cases.
    window : str or (float, float), optional
        As `dseeds.supervoxels` takes it; by default from the percentile 0.5 to 99.5.
    """

    image: str
    truth: str
    name: str = ""
    task: str = ""
    window: str | Window | None = None


def parse_pair(text: str) -> Pair:
    """Read ``IMAGE:TRUTH``; the colon of ``s3://`` or ``C:\\`` is none."""
    parts = re.split(r":(?!//|\\)", text)
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a pair is IMAGE:TRUTH, not {text!r}; where names hold colons, list them with --pairs.")
    return Pair(*parts)


def read_pairs(file: Path) -> list[Pair]:
    """Read a CSV with a header, or a JSON list of objects: image, truth and, if they are known, name, task, window.

    Paths are relative to the file's folder.
    """
    try:
        with file.open(newline="") as stream:
            rows = json.load(stream) if file.suffix == ".json" else list(csv.DictReader(stream))
        pairs = [Pair(**{key: value for key, value in row.items() if value}) for row in rows]
    except (TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{file} must be a CSV with a header, or a JSON list of objects, that name image and truth of every pair, "
            f"may give name, task and window, and nothing else."
        ) from None
    if not pairs:
        raise ValueError(f"{file} names no pairs.")
    return [replace(pair, image=_beside(file, pair.image), truth=_beside(file, pair.truth)) for pair in pairs]


def _beside(file: Path, address: str) -> str:
    return address if "://" in address else str(file.parent / address)


def read_decathlon(folder: Path) -> list[Pair]:
    """List the training cases of a task of the Medical Segmentation Decathlon, such as ``Task09_Spleen``."""
    file = folder / "dataset.json"
    if not file.is_file():
        raise ValueError(f"{folder} is no task of the Medical Segmentation Decathlon: it has no dataset.json.")
    return [
        Pair(
            str(folder / case["image"]),
            str(folder / case["label"]),
            name=Path(case["image"]).name.removesuffix(".nii.gz"),
            task=folder.resolve().name,
        )
        for case in json.loads(file.read_text())["training"]
    ]


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Give every pair a name, and refuse two of a task that have the same."""
    named = [replace(pair, name=pair.name or str(pair.image)) for pair in pairs]
    for place, pair in enumerate(named):
        if any((pair.task, pair.name) == (other.task, other.name) for other in named[:place]):
            raise ValueError(f"two pairs are called {pair.name!r}: give each a name of its own (Pair, or --pairs).")
    return named


def at_hand(folder: Path = DATA) -> list[Pair]:
    """List the real volumes that the tests use, as far as they are there."""
    ct, mr, hippocampi = folder / "ct_3mm", folder / "mr_sarcoma", folder / "hippocampus"
    pairs = [
        Pair(str(ct / "ct.nii.gz"), str(ct / "organs.nii.gz"), "ct_3mm", "CT, 61 structures", SOFT_TISSUE),
        Pair(str(mr / "mr_t1.nii.gz"), str(mr / "tumour.nii.gz"), "mr_sarcoma", "MR, sarcoma"),
    ]
    for image in sorted(hippocampi.glob("image_*.nii.gz")):
        truth = image.with_name(image.name.replace("image", "label"))
        pairs.append(Pair(str(image), str(truth), f"hippocampus {image.name[6:9]}", "MR, hippocampus"))
    return [pair for pair in pairs if Path(pair.image).is_file()]


def read_case(pair: Pair, window: str | Window | None = None, crop: int | None = None) -> tuple[Case, Spacing | None]:
    """Read a pair, all in one cell, and the size of its voxels along (z, y, x) in mm if the image says it.

    Raises
    ------
    ValueError
        If the shapes differ, the truth is not of whole numbers or has no structure, or the image is constant.
    """
    source, truth = _open(pair.image), _whole(slab for _, slab in open_source(pair.truth).slabs(64))
    image = _whole((np.stack(slab) for _, slab in source.slabs(64)), axis=1)
    if truth.shape != source.shape:
        raise ValueError(f"the image has shape {source.shape} and the truth {truth.shape}: they must lie on one grid.")
    if truth.dtype.kind == "f":
        if not np.array_equal(truth, np.rint(truth)):
            raise ValueError("the truth must hold whole numbers, one for each structure.")
        truth = truth.astype(np.int32)
    if not truth.any():
        raise ValueError("the truth holds no structure: it is 0 everywhere.")
    if crop is not None:
        box = tuple(_reach(truth, axis, crop) for axis in range(3))
        truth, image = np.ascontiguousarray(truth[box]), np.ascontiguousarray(image[:, *box])
    windows = find_windows(image, read_windows(pair.window or window, len(image)))
    if any(lo == hi for lo, hi in windows):
        raise ValueError("the image is constant, so that there is nothing to tell apart.")
    if image.dtype.kind == "f":
        # dseeds masks out what is not finite, but the peers cannot.
        for channel, (lo, _) in zip(image, windows, strict=True):
            channel[~np.isfinite(channel)] = lo
    return Case(pair.name, truth.shape, image if len(image) > 1 else image[0], truth, windows), source.spacing


def _open(address: str) -> Image:
    try:
        return open_image(address)
    except ValueError as error:
        try:
            return open_image(address, channel_axis=0)
        except ValueError:
            raise error from None


def _whole(slabs: Iterable[np.ndarray], axis: int = 0) -> np.ndarray:
    return np.concatenate(list(slabs), axis=axis)


def _reach(truth: np.ndarray, axis: int, margin: int) -> slice:
    """Find from where to where structures lie along an axis."""
    planes = np.flatnonzero(truth.any(axis=tuple({0, 1, 2} - {axis})))
    return slice(max(0, planes[0] - margin), planes[-1] + 1 + margin)
