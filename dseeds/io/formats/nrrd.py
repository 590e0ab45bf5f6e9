"""NRRD and MetaImage in: SimpleITK interprets the headers, and the voxels are read here, slab by slab.

SimpleITK cannot read parts of a NRRD, nor of any compressed file. Most files hold one run of bytes, plain or deflated,
which a few lines of the header locate; it is read here. All other files are read whole by SimpleITK.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from typing_extensions import override

from dseeds.core.optional import import_optional
from dseeds.io.affine import from_lps
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.itk import new_reader, summarise_itk_error, voxel_dtype
from dseeds.io.formats.npy import MappedVoxels
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import (
    Kind,
    SourceQuery,
    Spacing,
    convert_to_mm,
    describe_damage,
    require_file_length,
    require_volume,
    select_volume,
)

_ENDINGS: dict[str, Kind] = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"}
# No header is longer, though its comments may be long.
_MAX_HEADER = 1 << 20
_BLOCK = 1 << 18
# Accepts the header of gzip and that of zlib.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class _Run(NamedTuple):
    """The one run of bytes that holds all voxels."""

    file: Path
    offset: int
    deflated: bool
    big_endian: bool


@dataclass(frozen=True, kw_only=True)
class DeflatedVoxels(Voxels):
    """An array that gzip or zlib has deflated in one run, from the byte `offset` on."""

    file: str
    offset: int

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        # Reading forwards is fast, reading backwards starts again.
        with Path(self.file).open("rb") as stream:
            inflated = _InflatedStream(stream, self.offset)
            yield lambda index: self._read(inflated, index)

    def _read(self, inflated: _InflatedStream, index: ArrayIndex) -> np.ndarray:
        # Up to the first axis that is read in part, the voxels are one run.
        axis = next(n for n, taken in enumerate(index) if isinstance(taken, slice))
        row = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        first = 0
        for taken, size in zip(index[:axis], self.shape, strict=False):
            first = first * size + int(taken)  # type: ignore[arg-type]
        begin, end, _ = index[axis].indices(self.shape[axis])  # type: ignore[union-attr]
        data = inflated.read((first * self.shape[axis] + begin) * row, (end - begin) * row)
        if inflated.position == math.prod(self.shape) * self.dtype.itemsize:
            inflated.check_end()
        values = np.frombuffer(data, self.dtype).reshape(end - begin, *self.shape[axis + 1 :])
        return values[(slice(None), *index[axis + 1 :])]


class _InflatedStream:
    """The bytes of a deflated run, inflated as they are read."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self._stream, self._offset = stream, offset
        self._rewind()

    def _rewind(self) -> None:
        self._stream.seek(self._offset)
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self.position = 0

    def read(self, begin: int, count: int) -> bytearray:
        if begin < self.position:
            self._rewind()
        while self.position < begin:
            self._next(min(begin - self.position, _BLOCK))
        data = bytearray()
        while len(data) < count:
            data += self._next(count - len(data))
        return data

    def check_end(self) -> None:
        """Read the rest: the checksum, last in the run, is compared only when it is reached."""
        with suppress(EOFError):
            while not self._inflate.eof:
                self._next(_BLOCK)
        if not self._inflate.eof:
            raise EOFError("it ends early")

    def _next(self, limit: int) -> bytes:
        deflated = self._inflate.unconsumed_tail or self._stream.read(_BLOCK)
        data = b"" if self._inflate.eof else self._inflate.decompress(deflated, limit)
        if not data and (self._inflate.eof or not deflated):
            raise EOFError("it ends early")
        self.position += len(data)
        return data


@dataclass(frozen=True, kw_only=True)
class DecodedVoxels(Voxels):
    """An array that SimpleITK reads whole."""

    file: str

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        array: np.ndarray = _itk().GetArrayFromImage(_itk().ReadImage(self.file))
        self.check_unchanged(array)
        yield lambda index: array[index]


def is_nrrd(path: Path) -> bool:
    """Return whether a path is a file of NRRD or MetaImage, by its ending."""
    return path.suffix.lower() in _ENDINGS and path.is_file()


def open_nrrd(path: Path, query: SourceQuery) -> FileSource:
    """Open a file of NRRD or MetaImage; raises as `dseeds.io.open_source`."""
    kind = _ENDINGS[path.suffix.lower()]
    reader = new_reader(_itk(), path, "NrrdImageIO" if kind == "nrrd" else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be opened ({summarise_itk_error(error)}): it is damaged or not an image, so export it again"
        ) from error
    values, dtype = int(reader.GetNumberOfComponents()), voxel_dtype(_itk(), reader)
    shape = (*(int(size) for size in reader.GetSize()[::-1]), *((values,) if values > 1 else ()))
    require_volume(shape, dtype, str(path), query)
    header, end = _read_header(path, kind)
    if values == 3 and query.allows_channels and query.channel_axis is None:
        query = replace(query, channel_axis=-1)
    selection = select_volume(shape, query, str(path))
    run = (_find_nrrd_run if kind == "nrrd" else _find_meta_run)(path, header, end, values)
    files = tuple(dict.fromkeys([str(path), *([str(run.file)] if run else [])]))
    spacing, affine = _read_space(reader, header, kind)
    voxels = DecodedVoxels(file=str(path), shape=shape, dtype=dtype) if run is None else _voxels(run, shape, dtype)
    return FileSource.from_voxels(path, kind, voxels, selection, spacing=spacing, affine=affine, files=files)


def _voxels(run: _Run, shape: tuple[int, ...], dtype: np.dtype) -> Voxels:
    dtype = dtype.newbyteorder(">" if run.big_endian else "<")
    if run.deflated:
        return DeflatedVoxels(file=str(run.file), offset=run.offset, shape=shape, dtype=dtype)
    require_file_length(run.file, run.offset + math.prod(shape) * dtype.itemsize)
    return MappedVoxels(file=str(run.file), offset=run.offset, shape=shape, dtype=dtype)


def _read_header(path: Path, kind: Kind) -> tuple[dict[str, str], int]:
    """Read the fields of a header, by their names in lower case, and the position of its end."""
    fields: dict[str, str] = {}
    separator = ":" if kind == "nrrd" else "="
    with describe_damage(str(path)), path.open("rb") as stream:
        for line in iter(lambda: stream.readline(_MAX_HEADER), b""):
            text = line.decode("latin-1").strip()
            name, _, value = text.partition(separator)
            # NRRD's key/value pairs, written with :=, do not matter here.
            fields.setdefault(name.strip().lower(), value.strip())
            if (kind == "nrrd" and not text) or name.strip() == "ElementDataFile" or stream.tell() > _MAX_HEADER:
                break
        return fields, stream.tell()


def _find_nrrd_run(path: Path, header: dict[str, str], end: int, values: int) -> _Run | None:
    file = header.get("data file", header.get("datafile"))
    encoding = header.get("encoding", "").lower()
    skips = {header.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")}
    # The values of a voxel are stored together if they are the first axis.
    interleaved = values == 1 or header.get("sizes", "").split()[:1] == [str(values)]
    if skips != {"0"} or encoding not in ("raw", "gzip", "gz") or not interleaved:
        return None
    if file and not _is_single_file(path, file):
        return None
    big_endian = header.get("endian", "little").lower() == "big"
    return _Run(path.parent / file if file else path, 0 if file else end, encoding != "raw", big_endian)


def _find_meta_run(path: Path, header: dict[str, str], end: int, values: int) -> _Run | None:
    file = header.get("elementdatafile", "")
    local = file.upper() == "LOCAL"
    is_binary = header.get("headersize", "0") == "0" and header.get("binarydata", "").lower() == "true"
    if not is_binary or not (local or _is_single_file(path, file)):
        return None
    big_endian = header.get("elementbyteordermsb", header.get("binarydatabyteordermsb", "")).lower() == "true"
    deflated = header.get("compresseddata", "").lower() == "true"
    return _Run(path if local else path.parent / file, end if local else 0, deflated, big_endian)


def _is_single_file(path: Path, file: str) -> bool:
    """Return whether a header names one file of voxels, not a list or a pattern of several."""
    return bool(file) and (path.parent / file).is_file()


def _read_space(reader: Any, header: dict[str, str], kind: Kind) -> tuple[Spacing | None, np.ndarray | None]:
    """Return spacing and affine in millimetres if the header has them: SimpleITK makes up those that are missing."""
    fields = {"space directions", "spacings"} if kind == "nrrd" else {"elementspacing", "elementsize"}
    sizes = [float(size) for size in reader.GetSpacing()[:3]]
    if not fields & set(header) or len(sizes) != 3:
        return None, None
    units = header.get("space units", header.get("units", "")).replace('"', " ").split()
    per_mm = [PER_MM.get(unit) for unit in units[-3:]] if len(units) >= 3 else [1.0] * 3
    spacing = convert_to_mm(sizes[::-1], per_mm[::-1])
    if spacing is None or (kind == "nrrd" and "space" not in header):
        return spacing, None
    scale = sizes[0] / spacing[2]
    axes = len(reader.GetSize())
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    return spacing, from_lps(direction, spacing, np.divide(reader.GetOrigin()[:3], scale))


def _itk() -> Any:
    return import_optional("SimpleITK", "NRRD or MetaImage", "dseeds[formats]")
