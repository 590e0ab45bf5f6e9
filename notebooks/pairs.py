"""Pairs of an image and its true segmentation: lists of pairs, and reading them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dseeds.benchmark.cases import Case, Window, case_address, load_case, read_rows
from dseeds.io import Spacing

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
    pairs = [Pair(**row) for row in read_rows(file, ("image", "truth"), ("name", "task", "window"))]
    return [replace(pair, image=case_address(file, pair.image), truth=case_address(file, pair.truth)) for pair in pairs]


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
    """Read a pair as a case of one cell, and the voxel size along (z, y, x) in mm if the image has one."""
    return load_case(pair.name, pair.image, pair.truth, window=pair.window or window, margin=crop)
