"""Images of Imaris (``.ims``), which are HDF5: the full resolution, with all channels and moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from dseeds.core.optional import import_optional
from dseeds.io.affine import frame_matrix
from dseeds.io.axes import select_axes
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.hdf5 import has_signature
from dseeds.io.ome_metadata import MILLIMETRES, PER_MM, Frame
from dseeds.io.source import SourceQuery, convert_to_mm, describe_damage, require_volume

_ENDING = ".ims"
_VOXELS = "DataSet/ResolutionLevel 0"
_SPACE = "DataSetInfo/Image"
_LONGEST_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class ImarisVoxels(Voxels):
    """The arrays of all moments and channels as one array, (t, c, z, y, x).

    They may be larger than the image, up to whole chunks; `stored_shape` is their shape, (z, y, x).
    """

    file: str
    stored_shape: tuple[int, ...]

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        with _h5py().File(self.file, "r") as file:
            yield lambda index: self._read(file, index)

    def _read(self, file: Any, index: ArrayIndex) -> np.ndarray:
        moments, channels = index[:2]
        if isinstance(moments, slice):
            return np.stack([self._read(file, (t, *index[1:])) for t in range(self.shape[0])[moments]])
        if isinstance(channels, slice):
            return np.stack([self._read(file, (moments, c, *index[2:])) for c in range(self.shape[1])[channels]])
        array = file[_array_path(moments, channels)]
        if (array.shape, array.dtype) != (self.stored_shape, self.dtype):
            raise ValueError("its channels or moments differ in size or type")
        box = (slice(*side.indices(n)) for side, n in zip(index[2:], self.shape[2:], strict=True))  # type: ignore[union-attr]
        return np.asarray(array[tuple(box)])


def is_imaris(path: Path) -> bool:
    """Return whether a path is a file of Imaris, by its ending and its first bytes."""
    return path.suffix.lower() == _ENDING and has_signature(path)


def open_imaris(path: Path, query: SourceQuery) -> FileSource:
    """Open a file of Imaris; raises as `dseeds.io.open_source`."""
    h5py = _h5py()
    with describe_damage(str(path)), h5py.File(path, "r") as file:
        array = file[_array_path(0, 0)]
        channel = array.parent
        sizes = [_number(channel.attrs, f"ImageSize{axis}") for axis in "ZYX"]
        size = tuple(stored if n is None else int(n) for n, stored in zip(sizes, array.shape, strict=True))
        if any(n > stored for n, stored in zip(size, array.shape, strict=True)):
            raise ValueError("its image is larger than its arrays")
        level = file[_VOXELS]
        voxels = ImarisVoxels(
            file=str(path),
            shape=(len(level), len(level["TimePoint 0"]), *size),
            dtype=array.dtype,
            chunks=(1, 1, *array.chunks) if array.chunks else None,
            at_random=not array.chunks or max(array.chunks) <= _LONGEST_CHUNK,
            stored_shape=array.shape,
        )
        frame = _read_frame(file[_SPACE].attrs, size) if _SPACE in file else None
    require_volume(voxels.shape, voxels.dtype, str(path), query)
    selection = select_axes("tczyx", voxels.shape, query, str(path))
    spacing, affine = (frame.spacing, frame_matrix(frame)) if frame else (None, None)
    return FileSource.from_voxels(path, "hdf5", voxels, selection, spacing=spacing, affine=affine)


def _read_frame(attributes: Any, size: tuple[int, ...]) -> Frame | None:
    """Return the size and position of voxels in millimetres, from the edges of the image; None if unknown."""
    edges = [(_number(attributes, f"ExtMin{n}"), _number(attributes, f"ExtMax{n}")) for n in (2, 1, 0)]
    per_mm = PER_MM.get(_text(attributes, "Unit") or "um")
    lows, highs = [low for low, _ in edges if low is not None], [high for _, high in edges if high is not None]
    if len(lows) < 3 or len(highs) < 3 or per_mm is None:
        return None
    sizes = [(high - low) / n for low, high, n in zip(lows, highs, size, strict=True)]
    spacing = convert_to_mm(sizes, [per_mm] * 3)
    if spacing is None:
        return None
    z, y, x = (low / per_mm + length / 2 for low, length in zip(lows, spacing, strict=True))
    return Frame(spacing, (z, y, x), MILLIMETRES)


def _number(attributes: Any, name: str) -> float | None:
    text = _text(attributes, name)
    return float(text) if text else None


def _text(attributes: Any, name: str) -> str | None:
    """Return an attribute, which Imaris writes as an array of letters; None for one of any other type."""
    if name not in attributes or attributes.get_id(name).dtype.kind != "S":
        return None
    letters = np.asarray(attributes[name])
    return b"".join(letters.ravel().tolist()).decode("latin-1").strip("\0 ")


def _array_path(moment: int, channel: int) -> str:
    return f"{_VOXELS}/TimePoint {moment}/Channel {channel}/Data"


def _h5py() -> Any:
    return import_optional("h5py", "HDF5", "dseeds[formats]")
