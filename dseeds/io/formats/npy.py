"""NumPy's own files in and out, and raw arrays in others: mapped into memory for as long as a box is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dseeds.io.formats.file_source import ArrayIndex, FileSource
from dseeds.io.formats.file_writer import Content, NumberedSlabs
from dseeds.io.source import SourceQuery, describe_damage, require_volume, select_volume

_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class MappedVoxels:
    """An array that lies in a file as it lies in memory; see `dseeds.io.formats.file_source.Voxels`.

    Parameters
    ----------
    file : str
        The file.
    offset : int
        Where in it the array begins, in bytes.
    shape, dtype
        Of the array.
    order : {"C", "F"}
        Whether its last axis or its first is the fastest.
    """

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    order: str = "C"
    chunks: None = None
    at_random: bool = True

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`."""
        yield self._read

    def _read(self, index: ArrayIndex) -> np.ndarray:
        # Mapped anew each time: pages that have been seen count as this process's memory until they are unmapped.
        mapped = np.memmap(self.file, self.dtype, "r", self.offset, self.shape, "F" if self.order == "F" else "C")
        return np.array(mapped[index])


def require_length(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse a header that promises more than its file holds."""
    needed, size = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if needed > size:
        raise ValueError(
            f"{path} is incomplete: its header promises {needed} bytes, and the file has {size}, "
            f"so copy or export it again"
        )


def is_npy(path: Path) -> bool:
    """Tell whether a file is one of NumPy's, by its ending or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix.lower() == ".npy" or stream.read(len(_MAGIC)) == _MAGIC


def open_npy(path: Path, wanted: SourceQuery) -> FileSource:
    """Open a file of NumPy's; errors as `dseeds.io.open_source` words them. No pickle is ever loaded."""
    with describe_damage(str(path)), path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if version > (2, 0):
            raise ValueError(f"its version is {version[0]}.{version[1]}, and only 1.0 and 2.0 hold plain numbers")
        shape, fortran, dtype = read(stream)
        offset = stream.tell()
    require_volume(shape, dtype, str(path), wanted)
    require_length(path, offset, shape, dtype)
    voxels = MappedVoxels(str(path), offset, tuple(shape), dtype, "F" if fortran else "C")
    return FileSource.of(path, "numpy", voxels, select_volume(shape, wanted, str(path)))


def write_npy(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as a file of NumPy's, (z, y, x) or (c, z, y, x), slab by slab."""
    channels = () if content.channels is None else (content.channels,)
    dtype, shape = content.dtype, (*channels, *content.shape)
    with path.open("xb") as stream:
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, described)
        begin, depth = stream.tell(), 0
        plane = math.prod(shape[-2:]) * dtype.itemsize
        for slab in content.in_order(slabs):
            for channel, planes in enumerate(slab if channels else slab[None]):
                stream.seek(begin + (channel * content.shape[0] + depth) * plane)
                stream.write(planes.data)
            depth += slab.shape[-3]
