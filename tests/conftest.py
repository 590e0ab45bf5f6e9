"""Settings and real volumes for all tests."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

# No deadline: the first example of a test waits for Numba.
settings.register_profile("dseeds", deadline=None)
settings.load_profile("dseeds")

DATA = Path(os.environ.get("DSEEDS_DATA") or Path(__file__).parents[1].parent / "shared" / "data").resolve()


def pytest_report_header():
    found = "" if DATA.is_dir() else " IS MISSING, so tests on them are skipped; set DSEEDS_DATA to their folder"
    return f"real volumes: {DATA}{found}"


def _load(*parts):
    """A NIfTI file's voxels as they are stored, axes (z, y, x)."""
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"the real volume {path} is missing; set DSEEDS_DATA to the folder with {parts[0]}/")
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


@pytest.fixture(scope="session")
def ct_3mm():
    """An abdominal CT in HU and its 61 organs, whole cells of 8 voxels: shape (112, 96, 120)."""
    crop = np.s_[:112, :96, :120]
    return _load("ct_3mm", "ct.nii.gz")[crop], _load("ct_3mm", "organs.nii.gz")[crop]


@pytest.fixture(scope="session")
def mr_sarcoma():
    """An MR of a thigh, float32 and anisotropic, and a tumour's contour."""
    return _load("mr_sarcoma", "mr_t1.nii.gz"), _load("mr_sarcoma", "tumour.nii.gz")


@pytest.fixture(scope="session")
def hippocampus():
    """A brain crop at 1 mm and its hippocampus, anterior and posterior."""
    return _load("hippocampus", "image_001.nii.gz"), _load("hippocampus", "label_001.nii.gz")
