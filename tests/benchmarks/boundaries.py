"""Supervoxels that stop at boundaries against the compact watershed: ``python tests/benchmarks/boundaries.py``.

A plant ovule with stained membranes is its own boundary map. For nuclei and hippocampi, maps are simulated from the
truth: blurred, with gaps, false walls and noise. The watershed floods the same map from one seed at each cell's centre.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import tifffile
from cases import DATA
from scipy.ndimage import gaussian_filter
from skimage.segmentation import watershed

from dseeds import evaluate, supervoxels
from dseeds.core.geometry import Lattice

COMPACTNESS = 0.3, 1, 3, 10
FIGURES = "achievable_dice", "undersegmentation_error", "explained_variation"


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


def cases() -> Iterator[tuple[str, int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield a name, a step, an image, its boundary map and its truth, cropped to whole cells."""
    volumes = []
    for name, seed in (("ovule", None), ("nuclei_1135", 1)):
        image, truth = (tifffile.imread(DATA / "microscopy" / f"{name}_{part}.tif") for part in ("raw", "label"))
        volumes.append((name, (4, 8), image, image if seed is None else simulated_map(truth, seed), truth))
    for number in ("001", "004", "008", "003", "011", "017"):
        paths = (DATA / "hippocampus" / f"{part}_{number}.nii.gz" for part in ("image", "label"))
        image, truth = (np.asarray(nibabel.load(path).dataobj).T for path in paths)
        volumes.append((f"hippocampus {number}", (4, 6), image, simulated_map(truth, int(number)), truth))
    for name, steps, *arrays in volumes:
        for step in steps:
            image, values, truth = (array[tuple(slice(n // step * step) for n in array.shape)] for array in arrays)
            yield name, step, image, values, truth.astype(np.int64)


def centres(lattice: Lattice) -> np.ndarray:
    """Return one marker at the centre of each cell."""
    markers = np.zeros(lattice.shape, np.int32)
    places = np.ix_(*(np.arange(n) * s + s // 2 for n, s in zip(lattice.cells, lattice.step, strict=True)))
    markers[places] = np.arange(1, lattice.size + 1).reshape(lattice.cells)
    return markers


def report(case: str, method: str, labels: np.ndarray, image: np.ndarray, truth: np.ndarray, seconds: float) -> None:
    figures: dict[str, Any] = evaluate(labels, truth, image=image)
    sizes = np.bincount(labels.reshape(-1))[1:]
    tiny = 100 * np.mean(sizes < labels.size / len(sizes) / 10)
    words = "".join(f"{figures[figure]:9.3f}" for figure in FIGURES)
    print(f"{case:<20}{method:<26}{words}{tiny:8.1f} %{1e9 * seconds / labels.size:10.0f}", flush=True)


def main() -> None:
    print(f"{'case':<20}{'method':<26}{'aDice':>9}{'UE':>9}{'EV':>9}{'tiny':>10}{'ns/voxel':>10}")
    for name, step, image, values, truth in cases():
        case, markers = f"{name}, {step}", centres(Lattice(image.shape, (step, step, step)))
        for method, options in (("dseeds, boundaries", {"boundaries": values}), ("dseeds", {})):
            start = time.process_time()
            labels = supervoxels(image, step=step, threads=1, **options)
            report(case, method, labels, image, truth, time.process_time() - start)
        for compactness in COMPACTNESS:
            start = time.process_time()
            labels = watershed(values.astype(np.int32), markers, compactness=compactness)
            report(case, f"watershed, compact {compactness}", labels, image, truth, time.process_time() - start)


if __name__ == "__main__":
    main()
