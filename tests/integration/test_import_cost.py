"""Importing the package is fast: modules for out-of-core runs are imported on first use."""

import json
import subprocess
import sys

import nibabel
import numpy as np

import dseeds

HEAVY = ["dask", "distributed", "zarr", "nibabel", "typer", "rich", "bokeh"]
MEASURE = """
import json, sys, time
start = time.perf_counter()
import numpy, numba
known = time.perf_counter()
{}
end = time.perf_counter()
print(json.dumps([end - known, known - start, sorted(sys.modules)]))
"""


def measure(code):
    """Return the seconds that code takes beyond NumPy and Numba, the seconds that these take, and all modules."""
    process = [sys.executable, "-c", MEASURE.format(code)]
    return json.loads(subprocess.run(process, check=True, text=True, capture_output=True, timeout=120).stdout)


def test_the_package_is_imported_alone():
    seconds, numba, modules = measure("import dseeds")
    assert not {*HEAVY, "dseeds.seeds.kernels"} & set(modules)
    assert seconds < numba


def test_in_memory_nothing_of_dask_is_imported():
    seconds, numba, modules = measure("from dseeds import supervoxels")
    assert not set(HEAVY) & set(modules)
    assert seconds < 2 * numba


def test_a_small_file_is_cut_without_the_modules_of_a_cluster(tmp_path):
    image = np.random.default_rng(0).integers(0, 99, (8, 8, 8), np.int16)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii.gz")
    arguments = ["segment", f"{tmp_path}/a.nii.gz", f"{tmp_path}/b.nii.gz", "--step", "4"]
    _, _, modules = measure(
        f"from dseeds.cli import main; import io; sys.stdout = io.StringIO(); code = main({arguments}); "
        "sys.stdout = sys.__stdout__; assert code == 0"
    )
    assert not {"dask", "distributed", "zarr", "pyarrow", "bokeh", "jinja2", "fsspec"} & set(modules)


def test_the_help_imports_neither_numpy_nor_numba():
    code = "from dseeds.cli import main; import sys, json; main(['--help']); print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True, timeout=120)
    assert not {*HEAVY, "numpy", "numba"} - {"typer", "rich"} & set(json.loads(process.stdout.splitlines()[-1]))


def test_names():
    assert set(dir(dseeds)) == set(dseeds.__all__)
    assert all(getattr(dseeds, name) is not None for name in dseeds.__all__)
