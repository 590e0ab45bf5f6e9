"""The console script, small images, and checks of its output."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import zarr
from nibabel.testing import data_path

from dseeds.engine.report import Report

EXAMPLE = Path(data_path) / "example4d.nii.gz"
SCRIPT = Path(sys.executable).with_name("dseeds")
REPORT = Report(
    "b.zarr", None, *[(1, 1, 1)] * 3, ((0.0, 1.0),), 1, (), 1, 0, 0, False, (1, 1, 1), 1, 1, 1.0, 1.0, {}, ()
)


def run(*arguments, **options):
    """Run the console script."""
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False, **options
    )


def listing(folder):
    """Return all paths in a folder with the contents of the files."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_one_sentence(stderr):
    """Assert that there is one error besides lines of progress, and no traceback."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("Dask dashboard: ", "import: ", "window: "))]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) > len("error: ") + 10


def image(shape=(20, 24, 28), dtype="int16"):
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def save(path, data):
    if path.suffix == ".zarr":
        array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=[max(1, n // 2) for n in data.shape])
        array[...] = data
    else:
        nibabel.save(nibabel.Nifti1Image(data.T, np.eye(4)), path)
    return path
