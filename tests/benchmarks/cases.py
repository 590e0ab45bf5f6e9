"""The real volumes at several steps, for the benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))

from pairs import DATA, SOFT_TISSUE
from peers import REPEATS, Case, Method, Triple, Window, best, methods

__all__ = ["DATA", "REPEATS", "Case", "Method", "best", "cases", "methods"]


def cases(only: str = "") -> Iterator[Case]:
    """Yield every volume whose name begins with a prefix, at several steps."""
    for name, steps in _steps().items():
        if not name.startswith(only):
            continue
        if name == "ct_dicom" and not find_spec("SimpleITK"):
            print("SimpleITK, which reads ct_dicom, is not installed; ct_dicom is left out.")
            continue
        image, truth, window = _load(name)
        lo, hi = window or np.percentile(image, [0.5, 99.5])
        for step in steps:
            whole_cells = tuple(slice(0, n // s * s) for n, s in zip(image.shape, step, strict=True))
            values = np.ascontiguousarray(image[whole_cells])
            structures = None if truth is None else truth[whole_cells].astype(np.int64)
            yield Case(name, step, values, structures, ((float(lo), float(hi)),))


def _steps() -> dict[str, list[Triple]]:
    hippocampi = sorted(path.name[6:9] for path in (DATA / "hippocampus").glob("image_*.nii.gz"))
    return {
        "ct_3mm": [(8, 8, 8), (16, 16, 16)],
        "ct_dicom": [(4, 8, 8), (8, 16, 16)],
        "mr_sarcoma": [(8, 8, 8), (16, 16, 16)],
        **{f"hippocampus {number}": [(4, 4, 4), (6, 6, 6)] for number in hippocampi},
    }


def _load(name: str) -> tuple[np.ndarray, np.ndarray | None, Window | None]:
    """Read an image, and its truth and window if it has them."""
    folder, *number = name.split()
    if folder == "ct_dicom":
        import SimpleITK as sitk

        # GDCM sorts the slices by position.
        slices = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(DATA / folder))
        return sitk.GetArrayFromImage(sitk.ReadImage(slices)), None, SOFT_TISSUE
    if folder == "ct_3mm":
        return _read("ct_3mm/ct"), _read("ct_3mm/organs"), SOFT_TISSUE
    if folder == "mr_sarcoma":
        return _read("mr_sarcoma/mr_t1"), _read("mr_sarcoma/tumour"), None
    return _read(f"{folder}/image_{number[0]}"), _read(f"{folder}/label_{number[0]}"), None


def _read(name: str) -> np.ndarray:
    return np.asarray(nibabel.load(DATA / f"{name}.nii.gz").dataobj).T
