"""A body-like test volume of any size, with its truth, made box by box from a formula.

No voxel depends on how the volume is cut, and a terabyte needs no more memory than a few shards. What the body looks
like is `anatomy`'s; here are the parameters, the threads and the files.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike
from zarr.codecs import ZstdCodec

from dseeds.core.geometry import AXES, Box, Triple, triple
from dseeds.phantom.anatomy import TISSUES, Array, Body, Point, build_body, render_body

__all__ = ["phantom", "write_phantom"]

# Raised whenever the same parameters give other numbers.
VERSION = 1
PHANTOM_MARKER = "dseeds-phantom.json"
PHANTOM_DTYPES = ("uint8", "uint16", "int16", "float32")
MAX_ORGANS = 1000
# Chunks are packed in shards of up to so many voxels along an axis.
PHANTOM_SHARD = 256


@dataclass(frozen=True)
class _Recipe:
    """The parameters that the voxels depend on, checked."""

    shape: Triple
    spacing: Point
    dtype: str
    noise: float
    organs: int
    seed: int


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

    A body fills the box: skin, fat and muscle around a cavity with organs, bones and vessels. The seed picks
    the anatomy, and shape and spacing only sample it: thick slices show the same body as thin ones. Organs
    keep their physical proportions in a box that is flat or long.

    Parameters
    ----------
    shape : sequence of 3 int
        Voxels along (z, y, x), each at least 1.
    spacing : sequence of 3 float, optional
        Size of a voxel along (z, y, x), in mm. Only its proportions matter to the voxels.
    dtype : {"uint16", "uint8", "int16", "float32"}, optional
        Type of the image. Intensities are whole numbers from 0 to 4095, as in CT with water near 1024;
        "int16" holds them less 1024, "uint8" divided by 16.
    noise : float, optional
        Standard deviation of the noise in every voxel, on the scale from 0 to 4095.
    organs : int, optional
        Number of organs, 0 to 1000: ten with a name, then small ones at random places.
    seed : int, optional
        0 or more.
    threads : int, optional
        Threads to use; by default one per processor, at most 8.

    Returns
    -------
    image : ndarray of `dtype`, shape (z, y, x)
        The intensities.
    truth : ndarray of uint8, shape (z, y, x)
        The tissue of each voxel: 0 air, 1 skin, 2 fat, 3 muscle, 4 cavity, 5 bone, 6 marrow, 7 disc, 8 cord,
        9 vessel, then the organs. It is uint16 where there are more than 246 organs.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> image, truth = phantom((24, 48, 48), spacing=(2.0, 1.0, 1.0), noise=0)
    >>> image.shape, image.dtype, truth.dtype
    ((24, 48, 48), dtype('uint16'), dtype('uint8'))
    >>> int(image[truth == 0].max()) < int(image[truth == 5].min())  # air, bone
    True
    """
    recipe = _recipe(shape, spacing, dtype, noise, organs, seed)
    threads = _threads(threads)
    body, _ = _lay_out(recipe)
    image = np.empty(recipe.shape, recipe.dtype)
    truth = np.empty(recipe.shape, _truth_dtype(recipe))

    def make(box: Box) -> None:
        image[box.slices], truth[box.slices] = _render(recipe, body, box)

    _run(make, _boxes(recipe.shape, (64, 256, 256)), threads)
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

    The numbers are those of `phantom`. The image is the array ``0``, the truth ``labels/organs/0`` (OME-NGFF
    0.5, Zarr v3). What makes the directory an image is written last, and an attempt that fails or is
    interrupted removes what it wrote.

    Parameters
    ----------
    target : str or Path
        Local path of the directory to make.
    shape : sequence of 3 int
        Voxels along (z, y, x), each at least 1.
    spacing, dtype, noise, organs, seed
        As in `phantom`.
    chunk : int or sequence of 3 int, optional
        Voxels along the axes of a chunk. Chunks are packed in shards of up to 256 voxels along an axis (one
        chunk where that is longer), and every thread holds one shard.
    threads : int, optional
        Threads to use; by default one per processor, at most 8.
    overwrite : bool, optional
        Replace `target` if it is a phantom, finished or not, and holds nothing else.
    progress : callable, optional
        Called as ``progress(done, total)`` at the beginning and after each shard.

    Raises
    ------
    ValueError
        If a parameter is out of its range. Nothing has been written or removed then.
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
    recipe = _recipe(shape, spacing, dtype, noise, organs, seed)
    chunks = _lengths("chunk", chunk if isinstance(chunk, Sequence) else (chunk,) * 3)
    threads = _threads(threads)
    if "://" in str(target):
        raise ValueError(f"target must be a local path, not {target}.")
    target = Path(target)
    _make_room(target, overwrite)
    signature = {"phantom": {**asdict(recipe), "version": VERSION}}
    target.mkdir(parents=True)
    try:
        (target / PHANTOM_MARKER).write_text(json.dumps(signature))
        root, names = _write_arrays(target, recipe, chunks, threads, progress)
        _describe(root, recipe.spacing, names, signature)
        (target / PHANTOM_MARKER).unlink()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _recipe(
    shape: Sequence[int], spacing: Sequence[float], dtype: DTypeLike, noise: float, organs: int, seed: int
) -> _Recipe:
    """Check the parameters that the voxels depend on."""
    try:
        z, y, x = (float(s) for s in spacing)
    except (TypeError, ValueError):
        z = y = x = 0.0
    if not all(0 < s < math.inf for s in (z, y, x)):
        raise ValueError(f"spacing must be three positive lengths in mm (z, y, x), not {spacing}.")
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
    return _Recipe(_lengths("shape", shape), (z, y, x), name, float(noise), organs, seed)


def _lengths(name: str, values: Sequence[int]) -> Triple:
    """Check three numbers of voxels; `triple` alone would cut off a fraction."""
    try:
        found = triple(operator.index(v) for v in values)
    except (TypeError, ValueError):
        found = (0, 0, 0)
    if min(found) < 1:
        raise ValueError(f"{name} must be three positive integers (z, y, x), not {values}.")
    return found


def _threads(threads: int | None) -> int:
    if threads is None:
        # Each holds a shard, and a large machine must not make the memory large.
        return min(8, os.cpu_count() or 1)
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}.")
    return threads


def _make_room(target: Path, overwrite: bool) -> None:
    """Remove a phantom that may be overwritten; refuse anything else that is in the way."""
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists: choose another path, or overwrite=True if it is a phantom.")
    if not _is_phantom(target):
        raise FileExistsError(f"{target} is not a phantom, or holds more than one: remove it yourself.")
    shutil.rmtree(target)


def _is_phantom(target: Path) -> bool:
    """Tell whether a directory is a phantom, finished or not, to which nobody has added anything."""
    if target.is_symlink() or not target.is_dir():
        return False
    # Somebody may have put labels of their own beside ours.
    ours = {PHANTOM_MARKER, "zarr.json", "0", "labels", "labels/zarr.json", "labels/organs"}
    found = {path.relative_to(target).as_posix() for path in (*target.glob("*"), *target.glob("labels/*"))}
    if not found <= ours:
        return False
    if PHANTOM_MARKER in found:
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
    body, names = _lay_out(recipe)
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
    organs = root.create_group("labels").create_group("organs")
    truth = organs.create_array("0", dtype=_truth_dtype(recipe), **layout)

    # Nobody else writes to the shards of a box.
    def write(box: Box) -> None:
        image[box.slices], truth[box.slices] = _render(recipe, body, box)

    total = math.prod(-(-n // s) for n, s in zip(recipe.shape, shards, strict=True))
    _run(write, _boxes(recipe.shape, shards), threads, total, progress)
    return root, names


def _describe(root: zarr.Group, spacing: Point, names: list[str], signature: dict[str, Any]) -> None:
    """Write the attributes that make images of the groups, the root's last."""

    def ome(name: str, **more: Any) -> dict[str, Any]:
        image = {
            "name": name,
            "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in AXES],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(spacing)}]}],
        }
        return {"version": "0.5", "multiscales": [image], **more}

    labels = {
        "version": "0.5",
        "source": {"image": "../../"},
        "properties": [{"label-value": label, "name": name} for label, name in enumerate(names)],
    }
    root.require_group("labels/organs").attrs["ome"] = ome("organs", **{"image-label": labels})
    root.require_group("labels").attrs["ome"] = {"version": "0.5", "labels": ["organs"]}
    root.update_attributes({"ome": ome("phantom"), "dseeds": signature})


def _boxes(shape: Triple, size: Triple) -> Iterator[Box]:
    """Cut a volume into boxes, lazily: a petabyte has many."""
    starts = (range(0, n, s) for n, s in zip(shape, size, strict=True))
    for corner in itertools.product(*starts):
        yield Box(triple(corner), triple(min(a + s, n) for a, s, n in zip(corner, size, shape, strict=True)))


def _run(
    task: Callable[[Box], None],
    boxes: Iterator[Box],
    threads: int,
    total: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Do a task for every box, few in flight at a time; return when no thread is at work any more."""
    done = 0
    if progress is not None:
        progress(done, total)
    pool = ThreadPoolExecutor(threads)
    try:
        pending = {pool.submit(task, box) for box in itertools.islice(boxes, 2 * threads)}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += 1
                if progress is not None:
                    progress(done, total)
            pending |= {pool.submit(task, box) for box in itertools.islice(boxes, len(finished))}
    finally:
        pool.shutdown(cancel_futures=True)


def _lay_out(recipe: _Recipe) -> tuple[Body, list[str]]:
    return build_body(recipe.shape, recipe.spacing, noise=recipe.noise, organs=recipe.organs, seed=recipe.seed)


def _truth_dtype(recipe: _Recipe) -> DTypeLike:
    return np.uint8 if len(TISSUES) + recipe.organs <= 256 else np.uint16


def _render(recipe: _Recipe, body: Body, box: Box) -> tuple[Array, Array]:
    """Compute image and truth of a box."""
    image = np.empty(box.shape, np.uint16)
    truth = np.empty(box.shape, _truth_dtype(recipe))
    render_body(image, truth, box.lo, recipe.shape, body)
    if recipe.dtype == "uint8":
        return (image >> 4).astype(np.uint8), truth
    if recipe.dtype == "int16":
        return image.astype(np.int16) - np.int16(1024), truth
    return image.astype(recipe.dtype, copy=False), truth
