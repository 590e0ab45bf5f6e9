"""Files out: they appear under their names when they are complete, and replace nothing that is not this program's."""

from __future__ import annotations

import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dseeds.io.source import Shape, Spacing
from dseeds.storage.ownership import check_overwrite, check_parent

# Where slabs begin, and the slabs: (dz, y, x), or (c, dz, y, x).
NumberedSlabs: TypeAlias = Iterable[tuple[int, np.ndarray]]

# By this the program knows its own files again.
OURS = "dseeds"


@dataclass(frozen=True)
class Content:
    """What is written to a file.

    Attributes
    ----------
    name : str
        Of the file, when it is complete.
    shape : tuple of int
        Voxels along z, y, x.
    channels : int or None
        How many channels there are, along a first axis of all slabs; None where there is no such axis.
    dtype : dtype
        Of the voxels as they are stored.
    spacing, affine
        See `dseeds.io.Source`.
    labelled : bool
        Whether the voxels are labels.
    """

    name: str
    shape: Shape
    channels: int | None
    dtype: np.dtype
    spacing: Spacing | None
    affine: np.ndarray | None
    labelled: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * (self.channels or 1) * self.dtype.itemsize

    def in_order(self, slabs: NumberedSlabs) -> Iterator[np.ndarray]:
        """Give slabs of the right type, in C order; `ValueError` if they do not make up the volume."""
        for slab in iterate_in_order(slabs, self.shape):
            yield np.ascontiguousarray(slab, self.dtype)


def check_file_target(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a file as a target that would lose something.

    Parameters
    ----------
    path : Path
        Of the file to write.
    overwrite : bool
        Whether to replace an older output of this program.
    is_ours : callable
        Tells whether a file that exists is one; a `ValueError` means no.

    Raises
    ------
    FileExistsError
        If the file exists and is not to be overwritten, or was not written by this program.
    FileNotFoundError
        If the folder that it is to lie in does not exist.
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
    """Lend the name of a file beside the target, which takes the target's name when it is complete.

    Parameters
    ----------
    target : Path
        Of the file to write.
    check : callable
        Is called before that, for something may have come to be there meanwhile; see `check_file_target`.
    """
    partial = partial_name(target)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        check()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def partial_name(target: Path) -> Path:
    """Give a new name beside a target."""
    return target.with_name(f".{target.name}-{uuid.uuid4().hex}.partial")


def remove_partial(target: Path) -> None:
    """Remove what is left of files and folders of this name when the process that writes them is killed."""
    partial = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{32}}\.partial")
    for found in target.parent.iterdir():
        if partial.fullmatch(found.name) and found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        elif partial.fullmatch(found.name):
            found.unlink(missing_ok=True)


def iterate_in_order(slabs: NumberedSlabs, shape: Shape) -> Iterator[np.ndarray]:
    """Give slabs (..., dz, y, x) without their numbers; `ValueError` if they do not make up a volume of a shape."""
    depth = 0
    for z0, slab in slabs:
        planes = slab.shape[-3]
        if z0 != depth or slab.shape[-2:] != tuple(shape[1:]) or depth + planes > shape[0]:
            raise ValueError(f"a slab of shape {slab.shape} at plane {z0} does not continue {shape} at plane {depth}")
        depth += planes
        yield slab
    if depth != shape[0]:
        raise ValueError(f"the slabs end after {depth} of {shape[0]} planes")
