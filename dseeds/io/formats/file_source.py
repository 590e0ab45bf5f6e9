"""Volumes in files that hold one array each, behind one interface; the formats differ in how that array is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from dseeds.io.source import (
    IndexBox,
    Kind,
    Shape,
    Spacing,
    describe_damage,
    hash_files,
    move_channels_first,
    slab_ranges,
)

ArrayIndex: TypeAlias = tuple[int | slice, ...]


class Voxels(Protocol):
    """An array in a file, of any number of axes. It pickles."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Along all axes."""

    @property
    def dtype(self) -> np.dtype:
        """Of either byte order."""

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """What is stored together; None where it lies in C order."""

    @property
    def at_random(self) -> bool:
        """Whether any box can be read at a fair price, not only planes one after the other."""

    def opened(self) -> AbstractContextManager[Callable[[ArrayIndex], np.ndarray]]:
        """Open the file for as long as it is read: with an index of slices and numbers for all axes."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """A volume in a file, or in files that belong together.

    Parameters
    ----------
    path : str
        The file, or the folder.
    kind, spacing, affine
        See `Source`.
    voxels : Voxels
        The array.
    index : tuple of int or slice
        Selects the volume in it: whole axes for z, y, x and channels, a number for every other.
    channel_axis : int or None
        Which axis of the array has the channels, if any.
    files : tuple of str
        What is read.
    state : str
        Tells these files from others, and from a later state of themselves.
    dataset : str, optional
        Which of several arrays in the file.
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
    labelled: Literal[False] = False
    shards: None = None

    @classmethod
    def of(
        cls,
        path: Path,
        kind: Kind,
        voxels: Voxels,
        chosen: tuple[ArrayIndex, int | None],
        *,
        spacing: Spacing | None = None,
        affine: np.ndarray | None = None,
        files: tuple[str, ...] = (),
        dataset: str | None = None,
    ) -> FileSource:
        """Describe what has been found in a file, which has been checked to be a volume."""
        files = files or (str(path),)
        return cls(str(path), kind, voxels, *chosen, spacing, affine, files, hash_files(files), dataset)

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return Path(self.path).name

    @property
    def shape(self) -> Shape:
        """See `Source.shape`."""
        return self._along_zyx(self.voxels.shape)

    @property
    def dtype(self) -> np.dtype:
        """See `Source.dtype`."""
        return self.voxels.dtype

    @property
    def channels(self) -> int | None:
        """See `Source.channels`."""
        return None if self.channel_axis is None else self.voxels.shape[self.channel_axis]

    @property
    def chunks(self) -> Shape | None:
        """See `Source.chunks`."""
        return None if self.voxels.chunks is None else self._along_zyx(self.voxels.chunks)

    @property
    def readable_by_workers(self) -> bool:
        """See `Source.readable_by_workers`."""
        return self.voxels.at_random

    @property
    def identity(self) -> dict[str, Any]:
        """See `Source.identity`. It follows the names, sizes and dates of files."""
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

    def reopened(self) -> FileSource:
        """See `Source.reopened`."""
        return replace(self, state=hash_files(self.files))

    def read(self, box: IndexBox) -> np.ndarray:
        """See `Source.read`."""
        with describe_damage(self.path), self.voxels.opened() as read:
            return self._channels_first(read(self._index(box)))

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`. The file is opened once and read forwards."""
        with ExitStack() as stack:
            with describe_damage(self.path):
                read = stack.enter_context(self.voxels.opened())
            for z0, z1 in slab_ranges(self.shape[0], thickness):
                with describe_damage(self.path):
                    slab = self._channels_first(read(self._index((slice(z0, z1), slice(None), slice(None)))))
                yield z0, slab

    def _index(self, box: IndexBox) -> ArrayIndex:
        index = list(self.index)
        for axis, side, size in zip(self._zyx, box, self.shape, strict=True):
            index[axis] = slice(*side.indices(size)[:2])
        return tuple(index)

    def _channels_first(self, values: np.ndarray) -> np.ndarray:
        return values if self.channel_axis is None else move_channels_first(values, self.index, self.channel_axis)

    def _along_zyx(self, sizes: tuple[int, ...]) -> Shape:
        z, y, x = (int(sizes[axis]) for axis in self._zyx)
        return z, y, x

    @property
    def _zyx(self) -> list[int]:
        """Which axes of the array are z, y and x."""
        return [axis for axis, taken in enumerate(self.index) if isinstance(taken, slice) and axis != self.channel_axis]
