"""Pairs of an image and its true segmentation: lists of pairs, and reading them."""

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
        Addresses, as for `dseeds.io.open_source`. The fourth axis of an image is channels. In the truth, 0 is
        background.
    name : str, optional
        By default the address of the image.
    task : str, optional
        The group of this case: figures are means over tasks of means over cases.
    window : str or (float, float), optional
        As for `dseeds.supervoxels`; by default from percentile 0.5 to 99.5.
    """

    image: str
    truth: str
    name: str = ""
    task: str = ""
    window: str | Window | None = None


def parse_pair(text: str) -> Pair:
    """Parse ``IMAGE:TRUTH``; the colon of ``s3://`` or ``C:\\`` does not separate."""
    parts = re.split(r":(?!//|\\)", text)
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a pair is IMAGE:TRUTH, not {text!r}; if a name contains a colon, list it with --pairs.")
    return Pair(*parts)


def read_pairs(file: Path) -> list[Pair]:
    """Read a CSV with a header, or a JSON list of objects: image, truth and optionally name, task, window.

    Paths are relative to the file's folder.
    """
    try:
        with file.open(newline="") as stream:
            rows = json.load(stream) if file.suffix == ".json" else list(csv.DictReader(stream))
        pairs = [Pair(**{key: value for key, value in row.items() if value}) for row in rows]
    except (TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{file} must be a CSV with a header, or a JSON list of objects, that name image and truth of every pair, "
            f"optionally name, task and window, and nothing else."
        ) from None
    if not pairs:
        raise ValueError(f"{file} names no pairs.")
    return [replace(pair, image=_resolve(file, pair.image), truth=_resolve(file, pair.truth)) for pair in pairs]


def _resolve(file: Path, address: str) -> str:
    return address if "://" in address else str(file.parent / address)


def read_decathlon(folder: Path) -> list[Pair]:
    """List the training cases of a task of the Medical Segmentation Decathlon, such as ``Task09_Spleen``."""
    file = folder / "dataset.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a task of the Medical Segmentation Decathlon: it has no dataset.json.")
    return [
        Pair(
            str(folder / case["image"]),
            str(folder / case["label"]),
            name=Path(case["image"]).name.removesuffix(".nii.gz"),
            task=folder.resolve().name,
        )
        for case in json.loads(file.read_text())["training"]
    ]


def name_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs with names; raise an error if two of a task have the same name."""
    result: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        name = pair.name or str(pair.image)
        if (pair.task, name) in result:
            raise ValueError(f"two pairs are called {name!r}: give each a name of its own (Pair, or --pairs).")
        result[pair.task, name] = replace(pair, name=name)
    return list(result.values())


def available_pairs(folder: Path = DATA) -> list[Pair]:
    """List those real volumes of the tests that exist on this machine."""
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
    """Read a pair as a case of one cell, and the voxel size along (z, y, x) in mm if the image has one.

    Raises
    ------
    ValueError
        If the shapes differ, the truth is not of whole numbers or has no structure, or the image is constant.
    """
    source = _open(pair.image)
    truth = np.concatenate([slab for _, slab in open_source(pair.truth).slabs(64)])
    image = np.concatenate([np.stack(slab) for _, slab in source.slabs(64)], axis=1)
    if truth.shape != source.shape:
        raise ValueError(f"the image has shape {source.shape} and the truth {truth.shape}: they must lie on one grid.")
    if truth.dtype.kind == "f":
        if not np.array_equal(truth, np.rint(truth)):
            raise ValueError("the truth must contain whole numbers, one for each structure.")
        truth = truth.astype(np.int32)
    if not truth.any():
        raise ValueError("the truth has no structure: it is 0 everywhere.")
    if crop is not None:
        box = tuple(_extent(truth, axis, crop) for axis in range(3))
        truth, image = np.ascontiguousarray(truth[box]), np.ascontiguousarray(image[:, *box])
    windows = find_windows(image, read_windows(pair.window or window, len(image)))
    if any(lo == hi for lo, hi in windows):
        raise ValueError("the image is constant: it shows no structure.")
    if image.dtype.kind == "f":
        # dseeds masks voxels that are not finite; the peers cannot.
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


def _extent(truth: np.ndarray, axis: int, margin: int) -> slice:
    """Return the range of the structures along an axis, with a margin."""
    planes = np.flatnonzero(truth.any(axis=tuple({0, 1, 2} - {axis})))
    return slice(max(0, planes[0] - margin), planes[-1] + 1 + margin)
