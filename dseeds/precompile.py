"""Compilation of all kernels ahead of time."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from numba.core.serialize import dumps

from dseeds.core.jit import CACHE_FOLDER, cache_file, kernel_key, registered_kernels, require_private

COMPILED_DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")


def compile_kernels() -> Path:
    """Compile all kernels for the usual dtypes, save the code unless it is saved already, and return its file.

    The folder is the one that the environment variable ``DSEEDS_CACHE_DIR`` names; it is created if necessary. A
    PermissionError is raised if other users can write to it. Processes with the same variable load the code when they
    start. It is valid for this version of dseeds, Python, NumPy and Numba and for this processor; with other versions
    or processors, kernels are compiled as usual.
    """
    if not os.environ.get(CACHE_FOLDER):
        raise ValueError(
            f"{CACHE_FOLDER} is not set: set it to a folder of your own, in which to save the compiled code."
        )
    path = cache_file()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    require_private(path.parent, path.parent.stat())
    if path.exists():
        return path
    _call_all_kernels()
    code = {
        kernel_key(kernel, types): dumps(result._reduce())
        for kernel in registered_kernels
        for types, result in kernel.overloads.items()
    }
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            pickle.dump(code, file)
            file.flush()
            # Otherwise a machine that goes down can keep the name and lose the content.
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def _call_all_kernels() -> None:
    """Call everything that uses kernels, on tiny volumes."""
    import numpy as np
    from distributed import Client

    import dseeds
    from dseeds.io.pyramid_kernels import take_means, take_modes
    from dseeds.measure.kernels.painting import labels_of_runs
    from dseeds.phantom import phantom

    image, truth = phantom((32, 32, 32))
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(processes=False, n_workers=1, dashboard_address="127.0.0.1:0", set_as_default=False) as client,
    ):
        for dtype in COMPILED_DTYPES:
            volume = (image % 100).astype(dtype)
            # One, two and three levels of blocks: their histograms differ in dtype.
            for step in (4, 8, 16):
                labels = dseeds.supervoxels(volume, step=step)
            masked: Any = {"step": 8, "mask": "auto", "bins": "equalised", "min_size": 9, "levels": 1}
            dseeds.supervoxels(volume, **masked)
            for name, options in (("plain", {"step": 16}), ("masked", masked)):
                dseeds.segment(volume, Path(folder, f"{dtype}-{name}"), client=client, **options)
        for step in (4, 8, 16):
            dseeds.supervoxels(np.stack([volume, volume]), step=step, channel_axis=0)
    dseeds.evaluate(labels, truth, image=volume, region=16)
    for dtype in COMPILED_DTYPES:
        take_means(image.astype(dtype), (2, 2, 2), np.empty((16, 16, 16), dtype))
    for dtype in ("uint8", "float64"):
        dseeds.features(labels, image.astype(dtype))
    histograms = {"histogram": np.ones((2, 64), np.int64)}
    graph = dseeds.AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), histograms, {})
    dseeds.agglomerate(graph).cut(n_segments=1)
    for ids in (labels, labels.astype(np.int64) << 32):
        labels_of_runs(ids.reshape(-1))
        take_modes(ids.view(f"u{ids.itemsize}"), (2, 2, 2), np.empty((16, 16, 16), f"u{ids.itemsize}"))
        for dtype in ("uint8", "int16", "float32", "float64"):
            dseeds.paint(ids, {1: 1}, dtype=dtype).compute()
