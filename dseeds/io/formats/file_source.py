"""Volumes in files that hold an array each; the formats differ in how that array is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from typing_extensions import override

from dseeds.io.axes import Selection, SpaceAxes
from dseeds.io.source import (
    IndexBox,
    IndexedSource,
    Kind,
    Spacing,
    describe_damage,
    hash_files,
    slab_ranges,
)

ArrayIndex: TypeAlias = tuple[int | slice, ...]


@dataclass(frozen=True, kw_only=True)
class Voxels(ABC):
    """An array in a file, of any number of axes; without chunks, in C order. It pickles."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None = None
    # Whether any box can be read at a reasonable cost, not only one plane after the other.
    at_random: bool = False

    @abstractmethod
    def opened(self) -> AbstractContextManager[Callable[[ArrayIndex], np.ndarray]]:
        """Open the file, and return a function that reads an index of slices and numbers for all axes."""

    def check_unchanged(self, array: Any) -> None:
        """Raise a ValueError if the array in the file no longer has the shape and the type that it had."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError("it has changed since it was opened")


@dataclass(frozen=True, eq=False)
class FileSource(IndexedSource):
    """A volume in one file, or in several that belong together.

    `open_source` opens it.

    Attributes
    ----------
    path : str
        The file, or the folder.
    kind, spacing, affine, labelled, shards
        See `Source`.
    voxels : Voxels
        The array.
    index : tuple of int or slice
        Selects the volume in the array: whole axes for z, y, x and channels, a number for every other axis.
    channel_axis : int or None
        The array's axis of channels.
    files : tuple of str
        All files that are read.
    state : str
        A digest of these files as they were when the source was opened.
    dataset : str or None
        The path of the array in the file, if the format has such paths.
    space : tuple of int or None
        The array's axes z, y and x; None if they are in this order.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from dseeds.io import open_source
    >>> with TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/ct.npy", np.zeros((3, 4, 5), "int16"))
    ...     source = open_source(f"{folder}/ct.npy")
    >>> source.name, source.kind, source.shape
    ('ct.npy', 'numpy', (3, 4, 5))
    """

    path: str
    kind: Kind
    voxels: Voxels
    index: ArrayIndex
    channel_axis: int | None
    spacing: Spacing | None
    affine: np.ndarray | None
    files: tuple[str, ...]
    state: str
    dataset: str | None = None
    space: SpaceAxes | None = None
    labelled: Literal[False] = False
    shards: None = None

    @classmethod
    def from_voxels(
        cls,
        path: Path,
        kind: Kind,
        voxels: Voxels,
        selection: Selection,
        *,
        spacing: Spacing | None = None,
        affine: np.ndarray | None = None,
        files: tuple[str, ...] = (),
        dataset: str | None = None,
    ) -> FileSource:
        """Open the selected volume; by default in one file."""
        files = files or (str(path),)
        return cls(
            str(path),
            kind,
            voxels,
            selection.index,
            selection.channel_axis,
            spacing,
            affine,
            files,
            hash_files(files),
            dataset,
            selection.space,
        )

    @property
    @override
    def name(self) -> str:
        return Path(self.path).name

    @property
    @override
    def stored(self) -> Voxels:
        return self.voxels

    @property
    @override
    def readable_by_workers(self) -> bool:
        return self.voxels.at_random

    @property
    @override
    def identity(self) -> dict[str, Any]:
        index = [
            taken if isinstance(taken, int) else "channels" if axis == self.channel_axis else None
            for axis, taken in enumerate(self.index)
        ]
        return {
            "kind": self.kind,
            "path": self.path,
            "dataset": self.dataset,
            "files": self.state,
            "index": index,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
        }

    @override
    def reopened(self) -> FileSource:
        return replace(self, state=hash_files(self.files))

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        with describe_damage(self.path), self.voxels.opened() as read:
            return self._to_czyx(read(self._index(box)))

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        # The file is opened once, and read forwards.
        with ExitStack() as stack:
            with describe_damage(self.path):
                read = stack.enter_context(self.voxels.opened())
            for z0, z1 in slab_ranges(self.shape[0], thickness):
                with describe_damage(self.path):
                    slab = self._to_czyx(read(self._index((slice(z0, z1), slice(None), slice(None)))))
                yield z0, slab

    def _index(self, box: IndexBox) -> ArrayIndex:
        index = list(self.index)
        for axis, side, size in zip(self._zyx, box, self.shape, strict=True):
            if axis is not None:
                index[axis] = slice(*side.indices(size)[:2])
        return tuple(index)
