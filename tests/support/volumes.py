"""Real volumes, which are not part of the project."""

import nibabel
import numpy as np
import pytest

from tests.support.paths import DATA


def read_volume(*parts):
    """Return a NIfTI file's stored voxels with axes (z, y, x), or skip the test if the file is missing."""
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"the real volume {path} is missing; set DSEEDS_DATA to the folder with {parts[0]}/")
    return np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
