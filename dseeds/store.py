"""Zarr scratch and output: which arrays there are, how they are cut, how an output is recognised and published.

Every array is cut so that a region is a whole number of shards: then no two tasks ever write to one file, which would
corrupt it silently. Within a shard, chunks are small enough for the reading of halos.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from dseeds import merge
from dseeds.lattice import Box, Grid, Regions, Triple, triple
from dseeds.rounds import Round, histogram_dtype, schedule

# Chunks per axis, in voxels, in blocks with their histograms and in cells: what a halo read wastes against what every
# chunk costs.
UNIT_CHUNK = 64
HISTOGRAM_CHUNK = 16
CELL_CHUNK = 8
# Scratch is read many times and soon gone: what is quick to decode is better than what is small.
QUICK = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")
QUICK_BITS = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")
MARKER = "dseeds-incomplete.json"
ATTRIBUTE = "dseeds"


def chunk_length(extent: int, wanted: int) -> int:
    """Find the divisor of a region's extent that comes closest to the wanted length of a chunk.

    Examples
    --------
    >>> chunk_length(256, 64), chunk_length(250, 64), chunk_length(67, 64)
    (64, 50, 67)
    """
    divisors = [d for d in range(1, extent + 1) if extent % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))


def region_units(regions: Regions, grid: Grid) -> Triple:
    """Give the extent of a full region in a grid's units."""
    return triple([k * p for k, p in zip(regions.cells, grid.parts, strict=True)])


def create_array(
    path: Path,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    shard: tuple[int, ...],
    wanted: int,
    codec: BloscCodec | ZstdCodec | None = None,
    **more: Any,
) -> zarr.Array:
    """Create an array in Zarr v3 whose first three axes are cut into shards and chunks, other axes into neither."""
    chunks = tuple(chunk_length(n, wanted) for n in shard[:3]) + shard[3:]
    wide = np.dtype(dtype).itemsize > 1
    return zarr.create_array(
        path,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shard if shard != chunks else None,
        compressors=codec or (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle") if wide else ZstdCodec(level=1)),
        fill_value=0,
        zarr_format=3,
        **more,
    )


@lru_cache(maxsize=64)
def _open(path: Path) -> zarr.Array:
    # A scratch path is never used twice, so what it holds does not change its shape.
    return zarr.open_array(path, mode="r+")


def write(array: zarr.Array, box: Box, values: NDArray[Any]) -> None:
    """Write a box of an array's first three axes, as one task's own.

    Raises
    ------
    RuntimeError
        If the box is not made up of whole shards.
    """
    cut = array.shards or array.chunks
    for begin, end, n, length in zip(box.lo, box.hi, array.shape, cut, strict=False):
        if begin % length or (end % length and end != n):
            raise RuntimeError(f"{box} is not made up of whole shards of {cut[:3]}.")
    array[box.slices] = values


def read(array: zarr.Array, box: Box) -> NDArray[Any]:
    """Read a box of an array's first three axes."""
    return np.asarray(array[box.slices])


@dataclass(frozen=True)
class Scratch:
    """The arrays that tasks hand to each other.

    Attributes
    ----------
    path : Path
        A directory of its own.
    regions : Regions
        The regions, which every array is cut by.
    """

    path: Path
    regions: Regions

    def create(self) -> None:
        """Create all arrays, empty."""
        lattice, rounds = self.regions.lattice, schedule(self.regions.lattice)
        voxels = lattice.grids[-1]
        create_array(
            self.path / "bins", lattice.shape, np.uint8, region_units(self.regions, voxels), UNIT_CHUNK, QUICK_BITS
        )
        for level, grid in enumerate(lattice.grids):
            shard = region_units(self.regions, grid)
            for parity in "01":
                create_array(self.path / f"codes-{level}-{parity}", grid.shape, np.uint8, shard, UNIT_CHUNK, QUICK)
            if level < len(lattice.grids) - 2:
                create_array(
                    self.path / f"histograms-{level}",
                    (*grid.shape, 32),
                    histogram_dtype(grid),
                    (*shard, 32),
                    HISTOGRAM_CHUNK,
                    QUICK,
                )
        shell = merge.shell_length(self.regions.cells)
        for bins in {round_.bins for round_ in rounds}:
            for parity in "01":
                for kind in ("core", "statistics"):
                    create_array(
                        self.path / f"{kind}-{bins}-{parity}",
                        (*lattice.cells, bins),
                        np.uint32,
                        (*self.regions.cells, bins),
                        CELL_CHUNK,
                    )
                create_array(
                    self.path / f"shell-{bins}-{parity}",
                    (*self.regions.counts, shell, bins),
                    np.uint32,
                    (1, 1, 1, shell, bins),
                    1,
                )

    def bins(self) -> zarr.Array:
        """Open the quantised volume, uint8, shape (z, y, x)."""
        return _open(self.path / "bins")

    def histograms(self, level: int) -> zarr.Array:
        """Open the block histograms of a level that is not the finest, shape (z, y, x, 32)."""
        return _open(self.path / f"histograms-{level}")

    def codes(self, number: int, round_: Round) -> zarr.Array:
        """Open the label codes that a round leaves, uint8, shape (z, y, x) in units."""
        return _open(self.path / f"codes-{round_.level}-{number % 2}")

    def statistics(self, number: int, round_: Round) -> zarr.Array:
        """Open the merged statistics that a round begins with, uint32, shape (z, y, x, bins) in cells."""
        return _open(self.path / f"statistics-{round_.bins}-{number % 2}")

    def core(self, number: int, round_: Round) -> zarr.Array:
        """Open the regions' own part of the statistics that a round will begin with."""
        return _open(self.path / f"core-{round_.bins}-{number % 2}")

    def shell(self, number: int, round_: Round) -> zarr.Array:
        """Open the regions' part in their neighbours' statistics, shape (z, y, x, shell, bins) in regions."""
        return _open(self.path / f"shell-{round_.bins}-{number % 2}")


def is_ours(target: Path) -> bool:
    """Tell whether a directory is a label group that this program wrote, finished or not."""
    if (target / MARKER).is_file():
        return True
    try:
        noted = json.loads((target / "zarr.json").read_text())["attributes"][ATTRIBUTE]
        return isinstance(noted["supervoxels"], int)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stranger(target: Path) -> Path | None:
    """Find something in a label group that this program does not write."""
    for entry in target.iterdir():
        if entry.name not in {"0", "zarr.json", MARKER} or entry.is_symlink():
            return entry
    for entry in (target / "0").rglob("*"):
        first, *rest = entry.relative_to(target / "0").parts
        ours = first == "zarr.json" or (first == "c" and all(part.isdecimal() for part in rest))
        if not ours or entry.is_symlink():
            return entry
    return None


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that would lose something.

    Raises
    ------
    FileExistsError
        If the target exists and is not to be overwritten, or is not this program's output.
    FileNotFoundError
        If the folder that it is to lie in does not exist.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} for the target does not exist.")
    if target.is_symlink():
        raise FileExistsError(f"{target} is a link; name the place that it leads to.")
    if not target.exists():
        return
    if not (target.is_dir() and is_ours(target)):
        raise FileExistsError(f"{target} exists and was not written by dseeds; it is not overwritten.")
    stranger = _stranger(target)
    if stranger:
        raise FileExistsError(f"{target} holds {stranger}, which dseeds did not write; it is not overwritten.")
    if not overwrite:
        raise FileExistsError(
            f"{target} exists; choose another target, or overwrite it with overwrite=True (--overwrite)."
        )


def begin_target(target: Path, overwrite: bool = False) -> None:
    """Remove an older output of ours, and mark the target as incomplete.

    Raises
    ------
    FileExistsError
        As `check_target`: something may have come to be there since the run began.
    """
    check_target(target, overwrite)
    if target.exists():
        remove_target(target)
    target.mkdir()
    try:
        _mark(target)
    except BaseException:
        remove_target(target)
        raise


def _mark(target: Path) -> None:
    (target / MARKER).write_text(json.dumps({"dseeds": "labels are being written here; this is no finished output"}))


def remove_target(target: Path) -> None:
    """Remove what this program wrote, and nothing else."""
    if not target.is_dir():
        return
    # What makes it an image goes first and the marker last: cut short, it is unfinished, but known as ours. A full disk
    # takes no marker, but can be emptied.
    with suppress(OSError):
        _mark(target)
    (target / "zarr.json").unlink(missing_ok=True)
    shutil.rmtree(target / "0", ignore_errors=True)
    (target / MARKER).unlink(missing_ok=True)
    if not any(target.iterdir()):
        target.rmdir()


def publish(target: Path, attributes: Mapping[str, Any]) -> None:
    """Make the target a group with these attributes: the last thing that is written."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    (target / "zarr.json").write_text(json.dumps(document, indent=2))
    (target / MARKER).unlink()
