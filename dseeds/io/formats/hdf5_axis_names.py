"""Print the names of the axes of a dataset of HDF5 as JSON: ``python hdf5_axis_names.py FILE DATASET``.

A program of its own, since libhdf5 crashes, or never returns, where the address of a text of any length is damaged.
"""

import json
import sys
from typing import Any

import h5py

# The exit code of a file that cannot be read; Python's own for a program that cannot start is 1.
DAMAGED = 3


def read_axis_names(dataset: Any) -> dict[str, Any]:
    """Return the attribute ``axistags`` of ilastik and vigra, and labels and scales of the dimensions."""
    tags = dataset.attrs.get("axistags")
    return {
        "tags": tags.decode() if isinstance(tags, bytes) else None if tags is None else str(tags),
        "labels": [dimension.label or "" for dimension in dataset.dims],
        "scales": [next((str(key).rpartition("/")[2] for key in dimension), "") for dimension in dataset.dims],
    }


if __name__ == "__main__":
    try:
        with h5py.File(sys.argv[1], "r") as file:
            print(json.dumps(read_axis_names(file[sys.argv[2]])))
    except Exception:
        sys.exit(DAMAGED)
