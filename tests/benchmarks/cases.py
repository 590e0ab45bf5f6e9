"""The real volumes, the peers and their settings that the benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

DATA = Path(os.environ.get("DSEEDS_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """A volume (z, y, x) cropped to whole cells, its truth and the intensity window, scaled to [0, 1]."""

    name: str
    step: int
    image: np.ndarray
    truth: np.ndarray
    window: tuple[float, float]

    @property
    def scaled(self) -> np.ndarray:
        lo, hi = self.window
        return np.clip((self.image - lo) / (hi - lo), 0, 1).astype(np.float32)

    @property
    def count(self) -> int:
        return int(np.prod([n // self.step for n in self.image.shape]))


def _read(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).T


def _case(name: str, step: int, image: Path, truth: Path, window: tuple[float, float] | None) -> Case:
    values, labels = _read(image), _read(truth).astype(np.int64)
    whole = tuple(slice(0, n // step * step) for n in values.shape)
    values, labels = np.ascontiguousarray(values[whole]), np.ascontiguousarray(labels[whole])
    if window is None:
        lo, hi = np.percentile(values, [0.5, 99.5])
        window = float(lo), float(hi)
    return Case(name, step, values, labels, window)


def cases() -> Iterator[Case]:
    """Yield every volume that has a truth, at several steps."""
    ct = DATA / "ct_3mm" / "ct.nii.gz", DATA / "ct_3mm" / "organs.nii.gz"
    mr = DATA / "mr_sarcoma" / "mr_t1.nii.gz", DATA / "mr_sarcoma" / "tumour.nii.gz"
    for step in (8, 16):
        yield _case("ct_3mm", step, *ct, (-150.0, 250.0))
    for step in (8, 16):
        yield _case("mr_sarcoma", step, *mr, None)
    for image in sorted((DATA / "hippocampus").glob("image_*.nii.gz")):
        truth = image.with_name(image.name.replace("image", "label"))
        for step in (4, 6):
            yield _case(f"hippocampus {image.name[6:9]}", step, image, truth, None)


Method = Callable[[Case], np.ndarray]


def dseeds_(case: Case) -> np.ndarray:
    import dseeds

    return dseeds.supervoxels(case.image, step=case.step, window=case.window)


def slic(compactness: float) -> Method:
    def run(case: Case) -> np.ndarray:
        from skimage.segmentation import slic as skimage_slic

        return skimage_slic(
            case.scaled, n_segments=case.count, compactness=compactness, channel_axis=None, start_label=1
        )

    return run


def simpleitk(weight: float) -> Method:
    def run(case: Case) -> np.ndarray:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        labels = sitk.SLIC(
            sitk.GetImageFromArray(case.scaled * 255),
            superGridSize=[case.step] * 3,
            spatialProximityWeight=weight,
            maximumNumberOfIterations=10,
        )
        return sitk.GetArrayFromImage(labels).astype(np.int64) + 1

    return run


def methods() -> dict[str, Method]:
    """List the methods that are installed, ours first."""
    found: dict[str, Method] = {"dseeds": dseeds_}
    try:
        import skimage  # noqa: F401

        found |= {f"SLIC {c}": slic(c) for c in (0.03, 0.1, 0.3)}
    except ImportError:
        print("scikit-image is not installed: its SLIC is left out.")
    try:
        import SimpleITK  # noqa: F401

        found |= {f"SimpleITK SLIC {w}": simpleitk(w) for w in (10, 30, 60, 100)}
    except ImportError:
        print("SimpleITK is not installed: its SLIC is left out.")
    return found
