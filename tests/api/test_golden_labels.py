"""Labels that never change: on all versions of Python, NumPy, Numba, Zarr and Dask, and on every processor.

The hashes stand in `golden_labels.json`. If labels are meant to change, `python -m tests.api.test_golden_labels` writes
them anew, and the changelog says why.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import dseeds
from dseeds.phantom import phantom
from tests.support.runs import labels_in

FILE = Path(__file__).with_name("golden_labels.json")
IMAGE, TRUTH = phantom((24, 28, 32))
CASES = {
    "step": {"step": 8},
    "steps": {"step": (4, 8, 16)},
    "n_segments": {"n_segments": 60, "spacing": (2.0, 1.0, 1.0)},
    "mask": {"step": 6, "mask": TRUTH > 0, "min_size": 20},
    "auto": {"step": 8, "mask": "auto", "bins": "equalised"},
    "compact": {"step": 8, "compactness": 0.5, "window": (300, 1500)},
    "knee": {"step": 8, "image": np.where(np.random.default_rng(0).random(IMAGE.shape) < 0.02, 65535, IMAGE)},
}


def digest(labels):
    """Return a hash of a volume of labels."""
    return hashlib.sha256(np.ascontiguousarray(labels, "<u4").tobytes()).hexdigest()[:32]


def golden(name):
    return json.loads(FILE.read_text())[name]


@pytest.mark.parametrize("name", CASES)
def test_labels_in_memory(name):
    assert digest(dseeds.supervoxels(**{"image": IMAGE, **CASES[name]})) == golden(name)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_dtypes(dtype):
    assert digest(dseeds.supervoxels(IMAGE.astype(dtype), step=8)) == golden("step")


def test_labels_out_of_core(tmp_path, client):
    dseeds.segment(IMAGE, tmp_path / "labels.zarr", step=8, region=16, client=client)
    assert digest(labels_in(tmp_path / "labels.zarr")) == golden("step")


def test_features():
    assert feature_digest() == golden("features")


def feature_digest():
    """Return a hash of a table of features, floats bit for bit."""
    table = dseeds.features(dseeds.supervoxels(IMAGE, step=8), IMAGE).table
    columns = {"label": "<i8", "num_pixels": "<i8", "intensity_mean": "<f8"}
    content = [table[name].to_numpy().astype(dtype).tobytes() for name, dtype in columns.items()]
    return hashlib.sha256(b"".join(content)).hexdigest()[:32]


if __name__ == "__main__":
    hashes = {name: digest(dseeds.supervoxels(**{"image": IMAGE, **options})) for name, options in CASES.items()}
    FILE.write_text(json.dumps({**hashes, "features": feature_digest()}, indent=2) + "\n")
