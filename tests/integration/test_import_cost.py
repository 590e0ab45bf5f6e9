"""Importing the package is fast: modules for out-of-core runs are imported on first use."""

import json
import subprocess
import sys

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


def test_the_run_out_of_core_is_found():
    seconds, numba, modules = measure("import dseeds; dseeds.segment")
    assert {"distributed", "zarr"} <= set(modules)
    assert seconds < 10 * numba


def test_names():
    assert set(dir(dseeds)) == set(dseeds.__all__)
    assert all(getattr(dseeds, name) is not None for name in dseeds.__all__)
