"""A body-like test volume of any size with its true segmentation, computed box by box from a formula.

No voxel depends on how the volume is cut, and a terabyte needs no more memory than a few shards. `anatomy` defines the
body; this module checks parameters, runs threads and writes files.
"""

from __future__ import annotations

import json
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.codecs import ZstdCodec

from dseeds.core.checks import check_threads, read_extents
from dseeds.core.geometry import AXES, Box, Tiling, Triple, check_spacing, triple
from dseeds.io import ome_image_attributes
from dseeds.parallel.executor import Executor
from dseeds.phantom.anatomy import TISSUES, Array, Body, Point, build_body, render_body
from dseeds.storage.ownership import check_overwrite

__all__ = ["phantom", "write_phantom"]

# Incremented whenever the same parameters give different voxels.
VERSION = 1
PHANTOM_MARKER = "dseeds-phantom.json"
PHANTOM_DTYPES = ("uint8", "uint16", "int16", "float32")
MAX_ORGANS = 1000
# The largest extent of a shard, in voxels.
PHANTOM_SHARD = 256
_LABEL_GROUP = "labels/organs"
# Each thread holds a shard: many cores must not need much memory.
_MAX_DEFAULT_THREADS = 8


@dataclass(frozen=True)
class _Recipe:
    """The checked parameters that the voxels depend on."""

    shape: Triple
    spacing: Point
    dtype: str
    noise: float
    organs: int
    seed: int

    @property
    def truth_dtype(self) -> DTypeLike:
        """The type of the labels."""
        return np.uint8 if len(TISSUES) + self.organs <= 256 else np.uint16

    def build(self) -> tuple[Body, list[str]]:
        """Return the body and the names of its labels."""
        return build_body(self.shape, self.spacing, noise=self.noise, organs=self.organs, seed=self.seed)


def phantom(
    shape: Sequence[int],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: DTypeLike = "uint16",
    noise: float = 40.0,
    organs: int = 40,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Make a body-like volume and its truth in memory.

    A body fills the volume: skin, fat and muscle around a cavity with organs, bones and vessels. The seed determines
    the anatomy, and shape and spacing only sample it: thick slices show the same body as thin ones. Organs keep their
    physical proportions in a flat or long volume.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels along (z, y, x), each at least 1.
    spacing : sequence of 3 float, optional
        Size of a voxel along (z, y, x) in mm. The voxels depend on its proportions only.
    dtype : {"uint16", "uint8", "int16", "float32"}, optional
        Type of the image. Intensities are whole numbers from 0 to 4095, as in CT with water near 1024; 1024 is
        subtracted for "int16", and "uint8" divides them by 16.
    noise : float, optional
        Standard deviation of the noise of a voxel, on the scale from 0 to 4095.
    organs : int, optional
        Number of organs, 0 to 1000: ten named ones, then small ones at random positions.
    seed : int, optional
        0 or more.
    threads : int, optional
        Number of threads. Default: one per core, at most 8.

    Returns
    -------
    image : ndarray of `dtype`, shape (z, y, x)
        The intensities.
    truth : ndarray of uint8, shape (z, y, x)
        The tissue of each voxel: 0 air, 1 skin, 2 fat, 3 muscle, 4 cavity, 5 bone, 6 marrow, 7 disc, 8 cord, 9 vessel,
        then the organs. The type is uint16 for more than 246 organs.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    Examples
    --------
    >>> image, truth = phantom((24, 48, 48), spacing=(2.0, 1.0, 1.0), noise=0)
    >>> image.shape, image.dtype, truth.dtype
    ((24, 48, 48), dtype('uint16'), dtype('uint8'))
    >>> int(image[truth == 0].max()) < int(image[truth == 5].min())  # air, bone
    True
    """
    recipe = _check_recipe(shape, spacing, dtype, noise, organs, seed)
    threads = _choose_threads(threads)
    body, _ = recipe.build()
    image = np.empty(recipe.shape, recipe.dtype)
    truth = np.empty(recipe.shape, recipe.truth_dtype)

    def fill(box: Box) -> None:
        image[box.slices], truth[box.slices] = _render(recipe, body, box)

    _run(fill, Tiling(recipe.shape, (64, 256, 256)), threads)
    return image, truth


def write_phantom(
    target: str | Path,
    *,
    shape: Sequence[int],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: DTypeLike = "uint16",
    noise: float = 40.0,
    organs: int = 40,
    seed: int = 0,
    chunk: int | Sequence[int] = 64,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a body-like volume of any size and its truth as an OME-Zarr image, in little memory.

    The voxels are those of `phantom`. The image is the array ``0``, the truth ``labels/organs/0`` (OME-NGFF 0.5, Zarr
    v3). The metadata is written last, and a call that fails or is interrupted removes what it wrote.

    Parameters
    ----------
    target : str or Path
        Local path of the new folder.
    shape : sequence of 3 int
        Voxels along (z, y, x), each at least 1.
    spacing, dtype, noise, organs, seed
        See `phantom`.
    chunk : int or sequence of 3 int, optional
        Voxels along (z, y, x) of a chunk. Shards contain whole chunks, up to 256 voxels along an axis or one chunk if
        that is longer, and every thread holds one shard.
    threads : int, optional
        Number of threads. Default: one per core, at most 8.
    overwrite : bool, optional
        Whether to replace `target` if it is a phantom, finished or not, and contains nothing else.
    progress : callable, optional
        Called as ``progress(done, total)`` at the beginning and after each shard.

    Raises
    ------
    ValueError
        If a parameter is out of range. Nothing is written or removed in this case.
    FileExistsError
        If `target` exists, and `overwrite` is false or `target` is not just a phantom.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_phantom(f"{folder}/body.zarr", shape=(24, 32, 32), spacing=(2.0, 1.5, 1.5))
    ...     zarr.open_group(f"{folder}/body.zarr", mode="r")["labels/organs/0"].shape
    (24, 32, 32)
    """
    recipe = _check_recipe(shape, spacing, dtype, noise, organs, seed)
    chunks = read_extents("chunk", chunk) or (64, 64, 64)
    threads = _choose_threads(threads)
    if "://" in str(target):
        raise ValueError(f"target must be a local path, not {target}.")
    target = Path(target)
    if target.exists() or target.is_symlink():
        check_overwrite(target, overwrite, is_ours=_is_phantom(target), kind="a phantom")
        shutil.rmtree(target)
    signature = {"phantom": {**asdict(recipe), "version": VERSION}}
    target.mkdir(parents=True)
    try:
        (target / PHANTOM_MARKER).write_text(json.dumps(signature))
        root, names = _write_arrays(target, recipe, chunks, threads, progress)
        _write_metadata(root, recipe.spacing, names, signature)
        (target / PHANTOM_MARKER).unlink()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _check_recipe(
    shape: Sequence[int], spacing: Sequence[float], dtype: DTypeLike, noise: float, organs: int, seed: int
) -> _Recipe:
    extents = read_extents("shape", shape) if isinstance(shape, Iterable) else None
    if extents is None:
        raise ValueError(f"shape must be three positive integers (z, y, x), not {shape}.")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in PHANTOM_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(PHANTOM_DTYPES)}, not {dtype}.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a standard deviation, 0 or more, not {noise}.")
    if not 0 <= organs <= MAX_ORGANS:
        raise ValueError(f"organs must be a number from 0 to {MAX_ORGANS}, not {organs}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}.")
    organs, seed = operator.index(organs), operator.index(seed)
    return _Recipe(extents, check_spacing(spacing), name, float(noise), organs, seed)


def _choose_threads(threads: int | None) -> int:
    return min(_MAX_DEFAULT_THREADS, os.cpu_count() or 1) if threads is None else check_threads(threads)


def _is_phantom(target: Path) -> bool:
    """Return whether a folder is a phantom, finished or not, to which nothing was added."""
    if target.is_symlink() or not target.is_dir():
        return False
    # Users may have added labels of their own beside ours.
    expected = {PHANTOM_MARKER, "zarr.json", "0", "labels", "labels/zarr.json", _LABEL_GROUP}
    names = {path.relative_to(target).as_posix() for path in (*target.glob("*"), *target.glob("labels/*"))}
    if not names <= expected:
        return False
    if PHANTOM_MARKER in names:
        return True
    try:
        metadata = json.loads((target / "zarr.json").read_text())
        return "phantom" in metadata["attributes"]["dseeds"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_arrays(
    target: Path,
    recipe: _Recipe,
    chunks: Triple,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[zarr.Group, list[str]]:
    """Write image and truth into groups without attributes; return the root and the labels' names."""
    body, names = recipe.build()
    chunks = triple(min(c, n) for c, n in zip(chunks, recipe.shape, strict=True))
    shards = triple(c * min(max(1, PHANTOM_SHARD // c), -(-n // c)) for c, n in zip(chunks, recipe.shape, strict=True))
    layout: dict[str, Any] = {
        "shape": recipe.shape,
        "chunks": chunks,
        "shards": shards,
        "compressors": ZstdCodec(level=1),
        "dimension_names": AXES,
    }
    root = zarr.create_group(target, zarr_format=3)
    image = root.create_array("0", dtype=recipe.dtype, **layout)
    truth = root.create_group(_LABEL_GROUP).create_array("0", dtype=recipe.truth_dtype, **layout)

    # Boxes consist of whole shards, so no two threads write to one file.
    def write(box: Box) -> None:
        image[box.slices], truth[box.slices] = _render(recipe, body, box)

    _run(write, Tiling(recipe.shape, shards), threads, progress)
    return root, names


def _write_metadata(root: zarr.Group, spacing: Point, names: list[str], signature: dict[str, Any]) -> None:
    """Write the attributes that make images of the groups, the root's last."""
    by_label = dict(enumerate(names))
    labels = ome_image_attributes(spacing=spacing, name="organs", labels=True, image="../../", names=by_label)
    root.require_group(_LABEL_GROUP).attrs["ome"] = labels
    root.require_group("labels").attrs["ome"] = {"version": "0.5", "labels": ["organs"]}
    root.update_attributes({"ome": ome_image_attributes(spacing=spacing, name="phantom"), "dseeds": signature})


def _run(
    task: Callable[[Box], None], tiling: Tiling, threads: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run a task for every box. When this returns or raises, no thread is running any more."""
    if progress is not None:
        progress(0, len(tiling))
    boxes = ((tiling.box(number),) for number in range(len(tiling)))
    results: Any = Executor(threads).map_unordered("phantom", task, boxes, len(tiling))
    with closing(results):
        for done, _ in enumerate(results, 1):
            if progress is not None:
                progress(done, len(tiling))


def _render(recipe: _Recipe, body: Body, box: Box) -> tuple[Array, Array]:
    image = np.empty(box.shape, np.uint16)
    truth = np.empty(box.shape, recipe.truth_dtype)
    render_body(image, truth, box.lo, recipe.shape, body)
    if recipe.dtype == "uint8":
        return (image >> 4).astype(np.uint8), truth
    if recipe.dtype == "int16":
        return image.astype(np.int16) - np.int16(1024), truth
    return image.astype(recipe.dtype, copy=False), truth
