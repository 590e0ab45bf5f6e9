"""Compilation of all kernels ahead of time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dseeds.core.kernel_cache import CACHE_FOLDER, OFF, cache_folder, open_code_folder

COMPILED_DTYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
# The file in the folder that says that all kernels are there.
COMPLETE = "complete"


def compile_kernels() -> Path:
    """Compile all kernels for the usual dtypes, unless this has been done, and return the folder of the code.

    It is valid for this version of dseeds, Python, NumPy and Numba and for this processor; with other versions or
    processors, kernels are compiled as usual. A PermissionError is raised if other users can write to the folder.
    """
    parent = cache_folder()
    if parent is None:
        raise ValueError(f"{CACHE_FOLDER} is {OFF}: unset it, or set it to a folder of your own.")
    folder = open_code_folder(parent)
    if not (folder / COMPLETE).exists():
        _call_all_kernels()
        (folder / COMPLETE).touch()
    return folder


def _call_all_kernels() -> None:
    """Call everything that uses kernels, on tiny volumes."""
    import numpy as np

    import dseeds
    from dseeds.io.pyramid_kernels import take_means, take_modes
    from dseeds.measure.kernels.painting import labels_of_runs
    from dseeds.parallel.local_cluster import worker_threads
    from dseeds.phantom import phantom

    image, truth = phantom((32, 32, 32))
    with tempfile.TemporaryDirectory() as folder, worker_threads(1) as client:
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
        dseeds.supervoxels(volume, step=8, boundaries="image")
    dseeds.evaluate(labels, truth, image=volume, region=16)
    for dtype in COMPILED_DTYPES:
        take_means(image.astype(dtype), (2, 2, 2), np.empty((16, 16, 16), dtype))
    for dtype in ("uint8", "float64"):
        dseeds.features(labels, image.astype(dtype))
    dseeds.vote(labels, truth)
    for dtype, factor in (("float32", 1), ("float64", 2)):
        dseeds.pool(labels, image[::factor, ::factor, ::factor].astype(dtype))
    dseeds.textures(labels, volume)
    histograms = {"histogram": np.ones((2, 64), np.int64)}
    graph = dseeds.AdjacencyGraph(np.array([1, 2]), np.array([[0, 1]]), histograms, {})
    dseeds.agglomerate(graph).cut(n_segments=1)
    for ids in (labels, labels.astype(np.int64) << 32):
        labels_of_runs(ids.reshape(-1))
        edits = dseeds.edit(np.array([[[1, 1, 2]]], ids.dtype))
        for values in (None, np.ones((1, 1, 3))):
            edits.merge([1, 2])
            edits.split(1, seeds=[(0, 0, 0), (0, 0, 2)], image=values)
            edits.undo()
            edits.undo()
        take_modes(ids.view(f"u{ids.itemsize}"), (2, 2, 2), np.empty((16, 16, 16), f"u{ids.itemsize}"))
        for dtype in ("uint8", "int16", "float32", "float64"):
            dseeds.paint(ids, {1: 1}, dtype=dtype).compute()
