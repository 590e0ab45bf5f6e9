"""The real volumes, and dseeds and its peers with their settings: what the benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import nibabel
import numpy as np

import dseeds

DATA = Path(os.environ.get("DSEEDS_DATA") or Path(__file__).parents[3] / "shared" / "data")
SOFT_TISSUE = -150.0, 250.0
Triple = tuple[int, int, int]
Window = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A volume (z, y, x) of whole cells, its truth if there is one, and the intensities that count."""

    name: str
    step: Triple
    image: np.ndarray
    truth: np.ndarray | None
    window: Window

    @cached_property
    def scaled(self) -> np.ndarray:
        """The image for the peers, from 0 to 1."""
        lo, hi = self.window
        return np.clip((self.image - lo) / (hi - lo), 0, 1).astype(np.float32)

    @property
    def count(self) -> int:
        return int(np.prod([n // s for n, s in zip(self.image.shape, self.step, strict=True)]))


def cases(only: str = "") -> Iterator[Case]:
    """Yield every volume whose name begins so, at several steps."""
    for name, steps in _steps().items():
        if not name.startswith(only):
            continue
        if name == "ct_dicom" and not find_spec("SimpleITK"):
            print("ct_dicom is left out, for SimpleITK, which reads it, is not installed.")
            continue
        image, truth, window = _load(name)
        lo, hi = window or np.percentile(image, [0.5, 99.5])
        for step in steps:
            whole = tuple(slice(0, n // s * s) for n, s in zip(image.shape, step, strict=True))
            values = np.ascontiguousarray(image[whole])
            structures = None if truth is None else truth[whole].astype(np.int64)
            yield Case(name, step, values, structures, (float(lo), float(hi)))


def _steps() -> dict[str, list[Triple]]:
    hippocampi = sorted(path.name[6:9] for path in (DATA / "hippocampus").glob("image_*.nii.gz"))
    return {
        "ct_3mm": [(8, 8, 8), (16, 16, 16)],
        "ct_dicom": [(4, 8, 8), (8, 16, 16)],
        "mr_sarcoma": [(8, 8, 8), (16, 16, 16)],
        **{f"hippocampus {number}": [(4, 4, 4), (6, 6, 6)] for number in hippocampi},
    }


def _load(name: str) -> tuple[np.ndarray, np.ndarray | None, Window | None]:
    """Read an image, its truth and its window, where they are known."""
    folder, *number = name.split()
    if folder == "ct_dicom":
        import SimpleITK as sitk

        # In the order of the slices' places, which is not that of their names.
        slices = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(DATA / folder))
        return sitk.GetArrayFromImage(sitk.ReadImage(slices)), None, SOFT_TISSUE
    if folder == "ct_3mm":
        return _read("ct_3mm/ct"), _read("ct_3mm/organs"), SOFT_TISSUE
    if folder == "mr_sarcoma":
        return _read("mr_sarcoma/mr_t1"), _read("mr_sarcoma/tumour"), None
    return _read(f"{folder}/image_{number[0]}"), _read(f"{folder}/label_{number[0]}"), None


def _read(name: str) -> np.ndarray:
    return np.asarray(nibabel.load(DATA / f"{name}.nii.gz").dataobj).T


@dataclass(frozen=True)
class Method:
    """A way to cut a case into labels from 1: dseeds, or a peer with a setting.

    The setting is SLIC's compactness, SimpleITK's spatial proximity weight, or voxels along the reference's smallest
    blocks and whether it visits blocks twice.
    """

    peer: str
    setting: str
    cut: Callable[[Case], np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.peer} {self.setting}".strip()


def methods() -> list[Method]:
    """List the methods that are installed, ours first."""
    found = [Method("dseeds", "", _dseeds)]
    if find_spec("skimage"):
        found += [Method("SLIC", f"{c}", _slic(c)) for c in (0.03, 0.1, 0.3)]
    else:
        print("The SLIC of scikit-image, which is not installed, is left out.")
    if find_spec("SimpleITK"):
        found += [Method("SimpleITK SLIC", f"{w}", _simpleitk(w)) for w in (10, 30, 60, 100)]
    else:
        print("The SLIC of SimpleITK, which is not installed, is left out.")
    if find_spec("python_3d_seeds"):
        found += [
            Method("3D SEEDS", f"{block}{' double' * double}", _reference(block, double))
            for block, double in product((1, 2), (False, True))
        ]
    else:
        print("The 3D SEEDS reference, python_3d_seeds, which is not installed, is left out.")
    return found


def _dseeds(case: Case) -> np.ndarray:
    return dseeds.supervoxels(case.image, step=case.step, window=case.window)


def _slic(compactness: float) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        from skimage.segmentation import slic

        return slic(
            case.scaled,
            n_segments=case.count,
            compactness=compactness,
            spacing=[max(case.step) / s for s in case.step],
            channel_axis=None,
            start_label=1,
        )

    return cut


def _simpleitk(weight: float) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        labels = sitk.SLIC(
            sitk.GetImageFromArray(case.scaled * 255),
            superGridSize=case.step[::-1],
            spatialProximityWeight=weight,
            maximumNumberOfIterations=10,
        )
        return sitk.GetArrayFromImage(labels).astype(np.int64) + 1

    return cut


def _reference(block: int, double: bool) -> Callable[[Case], np.ndarray]:
    def cut(case: Case) -> np.ndarray:
        levels = (min(case.step) // block).bit_length()
        seeds = _grid(case.image.shape, *_closest_grid(case.image.shape, case.count, levels), double)
        seeds.iterate(case.scaled, 12)
        return seeds.getLabels() + 1

    return cut


def _grid(shape: Triple, count: int, levels: int, double: bool = False) -> object:
    import python_3d_seeds

    z, y, x = shape
    return python_3d_seeds.createSupervoxelSEEDS(
        width=x, height=y, depth=z, channels=1, num_superpixels=count, num_levels=levels, double_step=double
    )


@cache
def _closest_grid(shape: Triple, count: int, levels: int) -> tuple[int, int]:
    """Find what to ask the reference for to get a count: it rounds down, and drops what its blocks do not divide."""
    best, off = (count, levels), count
    for asked in product(range(count, 2 * count, 1 + count // 20), range(levels, 1, -1)):
        found = abs(_grid(shape, *asked).getNumberOfSuperpixels() - count)
        if found < off:
            best, off = asked, found
        if off == 0:
            break
    return best
