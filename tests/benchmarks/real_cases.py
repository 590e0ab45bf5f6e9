"""The real volumes as cases for ``dseeds benchmark``: ``python tests/benchmarks/real_cases.py FOLDER``.

It writes ``cases.csv`` and the volumes, which it reads from the folder ``DSEEDS_DATA``. A plant ovule with stained
membranes is its own boundary map. For nuclei and hippocampi, maps are simulated from the truth. With ``--flips``, only
cases with maps are listed, flipped along the axes, because a flip alone changes figures of a small volume; each step is
then a kind of its own.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))

from pairs import DATA, SOFT_TISSUE

from dseeds.benchmark.cases import NEEDED, OPTIONAL

# Kind, the names of image and truth, steps, and whether there is a map: that of the case, or a simulated one.
VOLUMES = (
    ("CT", "ct_3mm/ct.nii.gz", "ct_3mm/organs.nii.gz", "8 16", None),
    ("MR, trunk", "mr_body/mr.nii.gz", "mr_body/organs.nii.gz", "4 8", None),
    ("MR, sarcoma", "mr_sarcoma/mr_t1.nii.gz", "mr_sarcoma/tumour.nii.gz", "8 16", None),
    ("MR, hippocampus", "hippocampus/image_*.nii.gz", "hippocampus/label_*.nii.gz", "4 6", None),
    ("nuclei", "microscopy/nuclei_*_raw.tif", "microscopy/nuclei_*_label.tif", "4 8", None),
    ("membranes", "microscopy/ovule_raw.tif", "microscopy/ovule_label.tif", "4 8", "image"),
    ("nuclei, simulated map", "microscopy/nuclei_*_raw.tif", "microscopy/nuclei_*_label.tif", "4 8", "simulated"),
    ("hippocampus, simulated map", "hippocampus/image_*.nii.gz", "hippocampus/label_*.nii.gz", "4 6", "simulated"),
)


def simulated_map(truth: np.ndarray, seed: int) -> np.ndarray:
    """Return a map like that of a network: blurred, with a third of the walls missing, false walls, and noise."""
    rng = np.random.default_rng(seed)
    walls = np.zeros(truth.shape, bool)
    for axis in range(3):
        differs = np.diff(truth.astype(int), axis=axis) != 0
        for side in (slice(1, None), slice(None, -1)):
            walls[tuple(side if a == axis else slice(None) for a in range(3))] |= differs
    smooth = gaussian_filter(rng.standard_normal(truth.shape), 3)
    values = walls * (smooth >= np.quantile(smooth, 0.3)).astype(float)
    surfaces, places = (gaussian_filter(rng.standard_normal(truth.shape), 4) for _ in range(2))
    is_false = (abs(surfaces) < 0.05 * surfaces.std()) & (places > np.quantile(places, 0.7))
    values = gaussian_filter(np.maximum(values, 0.7 * is_false), 1)
    values = values / np.quantile(values, 0.995) + 0.05 * rng.standard_normal(truth.shape)
    return (values.clip(0, 1) * 255).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(nibabel.load(path).dataobj).T


def middle(truth: np.ndarray, size: int | None) -> tuple[slice, ...]:
    """Return a box of at most this size along each axis, around the middle of the structures."""
    box = []
    for axis, n in enumerate(truth.shape):
        planes = np.flatnonzero(truth.any(axis=tuple({0, 1, 2} - {axis})))
        length = min(n, size or n)
        start = min(max(0, (planes[0] + planes[-1] + 1 - length) // 2), n - length)
        box.append(slice(start, start + length))
    return tuple(box)


def rows(folder: Path, size: int | None, limit: int | None, flips: bool) -> Iterator[dict[str, str]]:
    """Write the volumes of each case, and yield its row, or that of each flip at each step."""
    for kind, images, truths, steps, boundaries in VOLUMES:
        if flips and boundaries is None:
            continue
        pairs = zip(sorted(DATA.glob(images)), sorted(DATA.glob(truths)), strict=True)
        for number, (image_file, truth_file) in enumerate(list(pairs)[:limit], start=1):
            truth = read(truth_file)
            box = middle(truth, size)
            volumes = {"image": read(image_file)[box], "truth": truth[box]}
            if boundaries == "simulated":
                volumes["boundaries"] = simulated_map(truth, number)[box]
            for flip, step in flipped_steps(kind, steps) if flips else [((1, 1, 1), "")]:
                name = f"{kind} {number}" + "".join("-+"[sign > 0] for sign in flip) * flips
                for part, values in volumes.items():
                    np.save(folder / f"{name} {part}.npy", values[tuple(slice(None, None, sign) for sign in flip)])
                row = {"name": f"{name} {step}".strip(), "kind": f"{kind}, step {step}" if step else kind}
                window = "{:g}:{:g}".format(*SOFT_TISSUE) if kind == "CT" else ""
                files = {part: f"{name} {part}.npy" for part in volumes}
                yield {**row, "steps": step or steps, "boundaries": boundaries or "", "window": window, **files}


def flipped_steps(kind: str, steps: str) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the signs of the axes of each flip, all eight of the single ovule and else two, with each step."""
    signs = list(product((1, -1), repeat=3)) if kind == "membranes" else [(1, 1, 1), (-1, -1, -1)]
    yield from product(signs, steps.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder for cases.csv and the volumes")
    parser.add_argument("--crop", type=int, metavar="VOXELS", help="crop to so many voxels around the structures")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N volumes of each kind")
    parser.add_argument("--flips", action="store_true", help="flip the cases with maps along the axes")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the real volumes are not at {DATA}; set DSEEDS_DATA to their folder.")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with (arguments.folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*NEEDED, *OPTIONAL])
        writer.writeheader()
        writer.writerows(rows(arguments.folder, arguments.crop, arguments.limit, arguments.flips))


if __name__ == "__main__":
    main()
