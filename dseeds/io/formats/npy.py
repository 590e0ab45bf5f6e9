"""NumPy's own files in and out, and raw arrays in other files, mapped into memory while a box is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from typing_extensions import override

from dseeds.io.axes import select_axes
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.file_writer import Content, NumberedSlabs
from dseeds.io.source import SourceQuery, describe_damage, require_file_length, require_volume

_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True, kw_only=True)
class MappedVoxels(Voxels):
    """An array that is stored in a file, from the byte `offset` on, as it is in memory."""

    file: str
    offset: int
    order: Literal["C", "F"] = "C"
    at_random: bool = True

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        # Mapped anew each time: pages that were read count as memory of this process until they are unmapped.
        yield lambda index: np.array(np.memmap(self.file, self.dtype, "r", self.offset, self.shape, self.order)[index])


def is_npy(path: Path) -> bool:
    """Return whether a file is one of NumPy's, by its ending or its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix.lower() == ".npy" or stream.read(len(_MAGIC)) == _MAGIC


def open_npy(path: Path, query: SourceQuery) -> FileSource:
    """Open a file of NumPy's; raises as `dseeds.io.open_source`. Pickled objects are never loaded."""
    with describe_damage(str(path)), path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if version > (2, 0):
            raise ValueError(f"its version is {version[0]}.{version[1]}, and only 1.0 and 2.0 hold plain numbers")
        shape, is_fortran, dtype = read(stream)
        offset = stream.tell()
    require_volume(shape, dtype, str(path), query, planes=True)
    require_file_length(path, offset + math.prod(shape) * dtype.itemsize)
    voxels = MappedVoxels(
        file=str(path), offset=offset, shape=tuple(shape), dtype=dtype, order="F" if is_fortran else "C"
    )
    return FileSource.from_voxels(path, "numpy", voxels, select_axes(None, shape, query, str(path)))


def write_npy(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as a file of NumPy's, (z, y, x) or (c, z, y, x), slab by slab."""
    dtype, shape = content.dtype, content.array_shape
    with path.open("xb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(stream, header)
        begin, depth = stream.tell(), 0
        plane = math.prod(shape[-2:]) * dtype.itemsize
        for slab in content.in_order(slabs):
            for channel, planes in enumerate(slab.reshape(-1, *slab.shape[-3:])):
                stream.seek(begin + (channel * content.shape[0] + depth) * plane)
                stream.write(planes.data)
            depth += slab.shape[-3]
