"""Files out: a file appears under its name once it is complete, and never replaces another program's."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from dseeds.io.source import NiftiForms, Shape, Spacing
from dseeds.storage.ownership import check_overwrite, check_parent

# Slabs (dz, y, x) or (c, dz, y, x), each with the number of its first plane.
NumberedSlabs: TypeAlias = Iterable[tuple[int, np.ndarray]]

# The mark by which this program recognises its own files.
OURS = "dseeds"


@dataclass(frozen=True)
class Content:
    """The volume that a complete file of this `name` holds; see `dseeds.io.Source`."""

    name: str
    shape: Shape
    channels: int | None
    dtype: np.dtype
    spacing: Spacing | None
    affine: np.ndarray | None
    labelled: bool
    forms: NiftiForms | None = None

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape (z, y, x), or (c, z, y, x) with channels."""
        return self.shape if self.channels is None else (self.channels, *self.shape)

    def in_order(self, slabs: NumberedSlabs) -> Iterator[np.ndarray]:
        """Yield slabs of the file's type in C order; raise a ValueError if they do not make up the volume."""
        for slab in iterate_in_order(slabs, self.shape):
            yield np.ascontiguousarray(slab, self.dtype)


def check_file_target(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raise unless a file may be written; see `dseeds.storage.ownership`.

    `is_ours` returns whether this program wrote the existing file; it may raise a ValueError if it is something else.
    """
    check_parent(path)
    if path.exists():
        try:
            ours = path.is_file() and is_ours(path)
        except ValueError:
            ours = False
        check_overwrite(path, overwrite, is_ours=ours)


@contextmanager
def partial_file(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Provide a new file beside the target, which replaces the target once it is complete and passes a last check."""
    partial = partial_name(target)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # Something may have appeared under the name in the meantime.
        check()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def compress(file: BinaryIO, level: int) -> gzip.GzipFile:
    """Return a compressed stream without a name and a date, so that equal volumes make equal files."""
    return gzip.GzipFile("", "wb", level, file, 0)


def partial_name(target: Path) -> Path:
    """Return a unique name beside a target for the time while it is written."""
    return target.with_name(f".{target.name}-{uuid.uuid4().hex}.partial")


def remove_partial(target: Path) -> None:
    """Remove the partial files and folders of a target that killed processes have left."""
    partial = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{32}}\.partial")
    for entry in target.parent.iterdir():
        if partial.fullmatch(entry.name) and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif partial.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def iterate_in_order(slabs: NumberedSlabs, shape: Shape) -> Iterator[np.ndarray]:
    """Yield slabs (..., dz, y, x) without their numbers; raise a ValueError if they do not make up the volume."""
    depth = 0
    for z0, slab in slabs:
        planes = slab.shape[-3]
        if z0 != depth or slab.shape[-2:] != tuple(shape[1:]) or depth + planes > shape[0]:
            raise ValueError(f"a slab of shape {slab.shape} at plane {z0} does not continue {shape} at plane {depth}")
        depth += planes
        yield slab
    if depth != shape[0]:
        raise ValueError(f"the slabs end after {depth} of {shape[0]} planes")
