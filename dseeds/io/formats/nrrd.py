"""NRRD and MetaImage in: SimpleITK interprets the headers, and the voxels are read here, slab by slab.

SimpleITK cannot read parts of a NRRD, nor of any compressed file. Most files hold one run of bytes, plain or deflated,
which a few lines of the header locate; it is read here. All other files are read whole by SimpleITK.
"""

from __future__ import annotations

import bz2
import errno
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
from typing_extensions import override

from dseeds.core.optional import import_optional
from dseeds.io.affine import from_lps, is_affine
from dseeds.io.axes import select_axes
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
    missing_file,
    require_file_length,
    require_volume,
)

_Compression: TypeAlias = Literal["gzip", "bzip2"]
_ENDINGS: dict[str, Kind] = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"}
# No header is longer, though its comments may be long.
_MAX_HEADER = 1 << 20
_BLOCK = 1 << 18
_NRRD_TYPES = {
    name: np.dtype(dtype)
    for dtype, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
# The axes of spaces that point to the other side than those of NIfTI.
_REVERSED = {"right-anterior-superior": (), "ras": (), "left-anterior-superior": (0,), "las": (0,)}
# The kinds of axes in NRRD that hold the values of a voxel.
_VALUES = (
    *("list", "point", "vector", "covariant-vector", "normal", "stub", "scalar", "complex", "2-vector", "3-color"),
    *("rgb-color", "hsv-color", "xyz-color", "4-color", "rgba-color", "3-vector", "3-gradient", "3-normal", "4-vector"),
    *("quaternion", "2d-symmetric-matrix", "2d-masked-symmetric-matrix", "2d-matrix", "2d-masked-matrix"),
    *("3d-symmetric-matrix", "3d-masked-symmetric-matrix", "3d-matrix", "3d-masked-matrix"),
)
# The encodings of NRRD whose bytes are read here.
_COMPRESSIONS: dict[str, _Compression | None] = {
    **dict.fromkeys(("raw",), None),
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
}
# Accepts the header of gzip and that of zlib.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class _StoredArray(NamedTuple):
    """An array as a header describes it, its axes as they are stored, the slowest first.

    Among the names, `c` are the values of a voxel and `t` is time; `are_colours` says that the former are colours.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype
    are_colours: bool
    spacing: Spacing | None
    affine: np.ndarray | None


class _Run(NamedTuple):
    """The one run of bytes that holds all voxels, as they are or compressed."""

    file: Path
    offset: int
    compression: _Compression | None
    big_endian: bool


@dataclass(frozen=True, kw_only=True)
class DeflatedVoxels(Voxels):
    """An array that gzip, zlib or bzip2 has compressed in one run, from the byte `offset` on."""

    file: str
    offset: int
    compression: _Compression = "gzip"

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        # Reading forwards is fast, reading backwards starts again.
        with Path(self.file).open("rb") as stream:
            inflated = (_Bzip2Stream if self.compression == "bzip2" else _InflatedStream)(stream, self.offset)
            yield lambda index: self._read(inflated, index)

    def _read(self, inflated: _InflatedStream, index: ArrayIndex) -> np.ndarray:
        # Channels that are stored one after the other are read one after the other.
        if len(index) > 3 and isinstance(index[0], slice) and index[0] == slice(None):
            channels = range(self.shape[0])
            return np.stack([self._read(inflated, (channel, *index[1:])) for channel in channels])
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
        self._inflate: Any = self._decompressor()
        self.position = 0

    def _decompressor(self) -> Any:
        return zlib.decompressobj(_GZIP_OR_ZLIB)

    def _decompress(self, limit: int) -> tuple[bytes, bool]:
        """Return up to `limit` further bytes, and whether there was anything to decompress."""
        deflated = self._inflate.unconsumed_tail or self._stream.read(_BLOCK)
        return self._inflate.decompress(deflated, limit), bool(deflated)

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
                if self._next(_BLOCK):
                    raise ValueError("it holds more voxels than its header describes")
        if not self._inflate.eof:
            raise EOFError("it ends early")

    def _next(self, limit: int) -> bytes:
        data, has_input = (b"", False) if self._inflate.eof else self._decompress(limit)
        if not data and not has_input:
            raise EOFError("it ends early")
        self.position += len(data)
        return data


class _Bzip2Stream(_InflatedStream):
    """The same for bzip2, which keeps what it has not decompressed yet."""

    @override
    def _decompressor(self) -> Any:
        return bz2.BZ2Decompressor()

    @override
    def _decompress(self, limit: int) -> tuple[bytes, bool]:
        compressed = self._stream.read(_BLOCK) if self._inflate.needs_input else b""
        return self._inflate.decompress(compressed, limit), bool(compressed)


@dataclass(frozen=True, kw_only=True)
class DecodedVoxels(Voxels):
    """An array that SimpleITK reads whole."""

    file: str
    # The axis of the values of a voxel, which SimpleITK moves to the end.
    values_axis: int | None

    @classmethod
    def of(cls, path: Path, stored: _StoredArray) -> DecodedVoxels:
        """Describe an array in a file."""
        values_axis = stored.names.index("c") if "c" in stored.names else None
        return cls(file=str(path), shape=stored.sizes, dtype=stored.dtype, values_axis=values_axis)

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        array: np.ndarray = _itk().GetArrayFromImage(_itk().ReadImage(self.file))
        if self.values_axis is not None:
            array = array[..., None] if array.ndim < len(self.shape) else array
            array = np.moveaxis(array, -1, self.values_axis)
        self.check_unchanged(array)
        yield lambda index: array[index]


def is_nrrd(path: Path) -> bool:
    """Return whether a path is a file of NRRD or MetaImage, by its ending."""
    return path.suffix.lower() in _ENDINGS and path.is_file()


def open_nrrd(path: Path, query: SourceQuery) -> FileSource:
    """Open a file of NRRD or MetaImage; raises as `dseeds.io.open_source`."""
    kind = _ENDINGS[path.suffix.lower()]
    header, end = _read_header(path, kind)
    stored, run = (_describe_nrrd if kind == "nrrd" else _describe_meta)(path, header, end)
    require_volume(stored.sizes, stored.dtype, str(path), query, planes=True)
    if stored.are_colours and query.allows_channels and query.channel_axis is None and query.volume is None:
        query = replace(query, channel_axis="c")
    selection = select_axes(stored.names, stored.sizes, query, str(path))
    files = tuple(dict.fromkeys([str(path), *([str(run.file)] if run else [])]))
    voxels = _voxels(run, stored) if run else DecodedVoxels.of(path, stored)
    spacing, affine = stored.spacing, stored.affine
    return FileSource.from_voxels(path, kind, voxels, selection, spacing=spacing, affine=affine, files=files)


def _describe_nrrd(path: Path, header: dict[str, str], end: int) -> tuple[_StoredArray, _Run | None]:
    itk = _itk()
    _require_data_file(path, header.get("data file", header.get("datafile", "")))
    run = _find_nrrd_run(path, header, end)
    if run is None:
        if header.get("encoding", "").lower() in ("bzip2", "bz2"):
            raise ValueError(f"{path} has several parts of bzip2 data, which are not read: store it raw")
        _read_information(itk, path, "NrrdImageIO")
    if not header.get("nrrd", "").isdecimal():
        raise ValueError(
            f"{path} cannot be opened (it does not begin with NRRD): it is not an image, so export it again"
        )
    if header.get("type", "").lower() == "block":
        raise ValueError(f"{path} has voxels of type block, which are no numbers: export it again as numbers")
    with describe_damage(str(path)):
        dtype = _NRRD_TYPES[header["type"].lower()]
        if run and dtype.itemsize > 1 and header["endian"].lower() not in ("little", "big"):
            raise ValueError("its endian is neither little nor big")
        sizes = [int(size) for size in header["sizes"].split()]
        if len(sizes) != int(header["dimension"]) or min(sizes) < 1:
            raise ValueError("its sizes do not fit its dimension")
    _require_kinds(path, header)
    with describe_damage(str(path)):
        names, are_colours = _name_nrrd_axes(header, sizes)
        spacing, affine = _read_nrrd_space(header, names)
    return _StoredArray(tuple(names[::-1]), tuple(sizes[::-1]), dtype, are_colours, spacing, affine), run


def _describe_meta(path: Path, header: dict[str, str], end: int) -> tuple[_StoredArray, _Run | None]:
    itk = _itk()
    # MetaIO itself writes to the screen what is missing.
    missing = next((key for key in ("NDims", "DimSize", "ElementType") if key.lower() not in header), None)
    if missing is not None:
        raise ValueError(f"{path} cannot be opened (its header has no {missing}): it is damaged, so export it again")
    _require_data_file(path, header.get("elementdatafile", ""))
    reader = _read_information(itk, path, "MetaImageIO")
    sizes, values = [int(size) for size in reader.GetSize()[::-1]], int(reader.GetNumberOfComponents())
    names = ["more"] * (len(sizes) - 3) + list("zyx")[-len(sizes) :]
    if values > 1:
        names, sizes = [*names, "c"], [*sizes, values]
    spacing, affine = _read_meta_space(reader, header)
    stored = _StoredArray(tuple(names), tuple(sizes), voxel_dtype(itk, reader), values == 3, spacing, affine)
    return stored, _find_meta_run(path, header, end)


def _read_information(itk: Any, path: Path, image_io: str) -> Any:
    """Return SimpleITK's reader of a file once it has read the header."""
    reader = new_reader(itk, path, image_io)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be opened ({summarise_itk_error(error)}): it is damaged or not an image, so export it again"
        ) from error
    return reader


def _require_kinds(path: Path, header: dict[str, str]) -> None:
    """Raise a ValueError for an axis with neither a kind nor a spacing: of space, or not, it may be either."""
    kinds, spacings = header.get("kinds", "").split(), header.get("spacings", "").lower().split()
    if "space directions" not in header and any(
        spacing == "nan" and (kinds[n : n + 1] or ["???"])[0] in ("???", "none") for n, spacing in enumerate(spacings)
    ):
        raise ValueError(
            f"{path} has an axis with neither kind nor spacing, which may be one of space or hold a voxel's values: "
            f"add its kind to the header"
        )


def _name_nrrd_axes(header: dict[str, str], sizes: Sequence[int]) -> tuple[list[str], bool]:
    """Name the axes of NRRD, the fastest first: the header says which are of space, of time, or hold a voxel's values.

    Returns also whether the values are colours, or three of anything.

    >>> _name_nrrd_axes({"kinds": "vector domain domain"}, [4, 40, 30])
    (['c', 'x', 'y'], False)
    """
    kinds = header["kinds"].lower().split() if "kinds" in header else ["???"] * len(sizes)
    directions = _directions(header)
    if len(kinds) != len(sizes) or len(directions) not in (0, len(sizes)):
        raise ValueError("its sizes, kinds and space directions are of different numbers of axes")
    names, space = [], iter("xyz")
    for n, kind in enumerate(kinds):
        is_outside = bool(directions) and directions[n] is None
        if kind in _VALUES or (is_outside and kind not in ("domain", "space", "time")):
            names.append("c")
        elif kind == "time" or is_outside:
            names.append("t")
        else:
            names.append(next(space, "more"))
    values = [(kind, size) for name, kind, size in zip(names, kinds, sizes, strict=True) if name == "c"]
    return names, len(values) == 1 and (values[0][1] == 3 or values[0][0].endswith("color"))


def _directions(header: dict[str, str]) -> list[np.ndarray | None]:
    """Return the step along each axis, or its length if there is no space; None for an axis outside of space."""
    if "space directions" in header:
        listed = re.findall(r"none|\([^)]*\)", header["space directions"].lower())
        return [None if one == "none" else _vector(one) for one in listed]
    sizes = [float(size) for size in header.get("spacings", "").split()]
    return [None if math.isnan(size) else np.array([size]) for size in sizes]


def _vector(text: str) -> np.ndarray:
    return np.array([float(number) for number in text.strip("() ").split(",")])


def _read_nrrd_space(header: dict[str, str], names: Sequence[str]) -> tuple[Spacing | None, np.ndarray | None]:
    """Return spacing and affine in millimetres, as far as the header has them; of a plane only the spacing."""
    by_name = dict(zip(names, _directions(header), strict=False))
    steps: list[np.ndarray] = [step for axis in "xyz" if (step := by_name.get(axis)) is not None]
    if not 2 <= len(steps) <= 3:
        return None, None
    per_mm = _units_per_mm(header, names, len(steps))
    sizes = [float(np.linalg.norm(step)) for step in steps]
    if len(sizes) == 2:
        # A single plane is taken to be as thick as its pixels are wide.
        sizes, per_mm = [*sizes, min(sizes)], [*per_mm, per_mm[int(np.argmin(sizes))]]
    spacing = convert_to_mm(sizes[::-1], per_mm[::-1])
    is_placed = "space directions" in header and bool({"space", "space dimension"} & set(header))
    if spacing is None or len(steps) == 2 or not is_placed:
        return spacing, None
    matrix = np.stack([step[:3] for step in steps], axis=1)
    unit = per_mm[0]
    if (
        "space directions" not in header
        or matrix.shape != (3, 3)
        or unit is None
        or any(other != unit for other in per_mm)
    ):
        return spacing, None
    origin = _vector(header["space origin"])[:3] if "space origin" in header else np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix / unit, origin / unit
    # As in ITK, a space that is not of a patient, or has no name, counts as LPS.
    name = header.get("space", "").lower().removesuffix("-time").removesuffix("t")
    for axis in _REVERSED.get(name, (0, 1)):
        affine[axis] = 0 - affine[axis]
    return spacing, affine if is_affine(affine) else None


def _units_per_mm(header: dict[str, str], names: Sequence[str], count: int) -> list[float | None]:
    """Return the units in a millimetre along `count` axes of space; without units these are millimetres."""
    units = re.findall(r'"([^"]*)"', header.get("space units", header.get("units", "")))
    if "space units" not in header:
        units = [unit for unit, name in zip(units, names, strict=False) if name in "xyz"]
    return [PER_MM.get(unit) for unit in units[:count]] if len(units) >= count else [1.0] * count


def _voxels(run: _Run, stored: _StoredArray) -> Voxels:
    shape = stored.sizes
    dtype = stored.dtype.newbyteorder(">" if run.big_endian else "<")
    if run.compression:
        file = str(run.file)
        return DeflatedVoxels(file=file, offset=run.offset, shape=shape, dtype=dtype, compression=run.compression)
    needed = run.offset + math.prod(shape) * dtype.itemsize
    require_file_length(run.file, needed)
    # Less than a voxel, such as the end of a line, comes of no wrong size.
    if (surplus := run.file.stat().st_size - needed) >= dtype.itemsize:
        raise ValueError(
            f"{run.file} is {surplus} bytes longer than its header describes: its sizes or its type are wrong, so "
            f"correct the header or export it again"
        )
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
            if kind == "nrrd" and not fields:
                name, value = text[:4].lower(), text[4:]
            fields.setdefault(name.strip().lower(), value.strip())
            if (kind == "nrrd" and not text) or name.strip() == "ElementDataFile" or stream.tell() > _MAX_HEADER:
                break
        return fields, stream.tell()


def _find_nrrd_run(path: Path, header: dict[str, str], end: int) -> _Run | None:
    file = header.get("data file", header.get("datafile"))
    encoding = header.get("encoding", "").lower()
    skips = {header.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")}
    if skips != {"0"} or encoding not in _COMPRESSIONS:
        return None
    if file and not _is_single_file(path, file):
        return None
    big_endian = header.get("endian", "little").lower() == "big"
    return _Run(path.parent / file if file else path, 0 if file else end, _COMPRESSIONS[encoding], big_endian)


def _find_meta_run(path: Path, header: dict[str, str], end: int) -> _Run | None:
    file = header.get("elementdatafile", "")
    local = file.upper() == "LOCAL"
    is_binary = header.get("headersize", "0") == "0" and header.get("binarydata", "").lower() == "true"
    if not is_binary or not (local or _is_single_file(path, file)):
        return None
    big_endian = header.get("elementbyteordermsb", header.get("binarydatabyteordermsb", "")).lower() == "true"
    deflated = header.get("compresseddata", "").lower() == "true"
    return _Run(path if local else path.parent / file, end if local else 0, "gzip" if deflated else None, big_endian)


def _require_data_file(path: Path, file: str) -> None:
    """Raise a ValueError if the one file of voxels that a header names is missing; others name lists and patterns."""
    if (
        file
        and "%" not in file
        and not file.upper().startswith(("LIST", "LOCAL"))
        and not (path.parent / file).exists()
    ):
        raise missing_file(str(path), FileNotFoundError(errno.ENOENT, "", file))


def _is_single_file(path: Path, file: str) -> bool:
    """Return whether a header names one file of voxels, not a list or a pattern of several."""
    return bool(file) and (path.parent / file).is_file()


def _read_meta_space(reader: Any, header: dict[str, str]) -> tuple[Spacing | None, np.ndarray | None]:
    """Return spacing and affine if the header has them: SimpleITK makes up those that are missing."""
    sizes = [float(size) for size in reader.GetSpacing()[:3]]
    if not {"elementspacing", "elementsize"} & set(header) or len(sizes) < 2:
        return None, None
    if len(sizes) == 2:
        return convert_to_mm([min(sizes), *sizes[::-1]], [1.0] * 3), None
    spacing = convert_to_mm(sizes[::-1], [1.0] * 3)
    if spacing is None:
        return None, None
    axes = len(reader.GetSize())
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    return spacing, from_lps(direction, spacing, np.array(reader.GetOrigin()[:3]))


def _itk() -> Any:
    return import_optional("SimpleITK", "NRRD or MetaImage", "dseeds[formats]")
