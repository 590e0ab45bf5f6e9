"""NRRD and MetaImage in: what their headers say is SimpleITK's to tell, their voxels are read slab by slab.

SimpleITK cannot read parts of a NRRD, nor of any compressed file. Most files, though, hold one run of bytes, plain or
deflated, which is found by a few lines of the header, and read here; all others are read whole by SimpleITK.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dseeds.core.optional import import_optional
from dseeds.io.affine import from_lps
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.npy import MappedVoxels, require_length
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import (
    Kind,
    SourceQuery,
    Spacing,
    convert_to_mm,
    describe_damage,
    require_volume,
    select_volume,
    shorten,
)

_ENDINGS: dict[str, Kind] = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage"}
# What no header is longer than, though its comments may be long.
_HEADER = 1 << 20
_BLOCK = 1 << 18
# Takes what has either gzip's header or zlib's.
_EITHER = 32 + zlib.MAX_WBITS


class _Run(NamedTuple):
    """Where the voxels are: one run of bytes."""

    file: Path
    offset: int
    deflated: bool
    big: bool


@dataclass(frozen=True)
class DeflatedVoxels:
    """An array that is deflated in one run, as gzip and zlib do; see `dseeds.io.formats.file_source.Voxels`.

    Parameters
    ----------
    file : str
        The file.
    offset : int
        Where in it the run begins, in bytes.
    shape, dtype
        Of the array, in C order.
    """

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: None = None
    at_random: bool = False

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`. Reading forwards is quick, reading backwards begins anew."""
        with Path(self.file).open("rb") as stream:
            inflated = _Inflated(stream, self.offset)

            def read(index: ArrayIndex) -> np.ndarray:
                # Up to the first axis of which a part is wanted, all is one run.
                axis = next(n for n, taken in enumerate(index) if isinstance(taken, slice))
                each = math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize
                before = 0
                for taken, size in zip(index[:axis], self.shape, strict=False):
                    before = before * size + int(taken)  # type: ignore[arg-type]
                begin, end, _ = index[axis].indices(self.shape[axis])  # type: ignore[union-attr]
                whole = inflated.part((before * self.shape[axis] + begin) * each, (end - begin) * each)
                if inflated.position == math.prod(self.shape) * self.dtype.itemsize:
                    inflated.check_end()
                values = np.frombuffer(whole, self.dtype).reshape(end - begin, *self.shape[axis + 1 :])
                return values[(slice(None), *index[axis + 1 :])]

            yield read


class _Inflated:
    """Bytes as they come out of a deflated run."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self._stream, self._offset = stream, offset
        self._rewind()

    def _rewind(self) -> None:
        self._stream.seek(self._offset)
        self._inflate = zlib.decompressobj(_EITHER)
        self.position = 0

    def part(self, begin: int, count: int) -> bytearray:
        if begin < self.position:
            self._rewind()
        while self.position < begin:
            self._next(min(begin - self.position, _BLOCK))
        found = bytearray()
        while len(found) < count:
            found += self._next(count - len(found))
        return found

    def check_end(self) -> None:
        """Read what is left: the checksum, last in the run, is compared only when it is reached."""
        with suppress(EOFError):
            while not self._inflate.eof:
                self._next(_BLOCK)
        if not self._inflate.eof:
            raise EOFError("it ends early")

    def _next(self, most: int) -> bytes:
        fed = self._inflate.unconsumed_tail or self._stream.read(_BLOCK)
        found = b"" if self._inflate.eof else self._inflate.decompress(fed, most)
        if not found and (self._inflate.eof or not fed):
            raise EOFError("it ends early")
        self.position += len(found)
        return found


@dataclass(frozen=True)
class DecodedVoxels:
    """An array that SimpleITK reads whole; see `dseeds.io.formats.file_source.Voxels`."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: None = None
    at_random: bool = False

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`."""
        whole: np.ndarray = _itk().GetArrayFromImage(_itk().ReadImage(self.file))
        if whole.shape != self.shape:
            raise ValueError("it has changed since it was opened")
        yield lambda index: whole[index]


def is_nrrd(path: Path) -> bool:
    """Tell whether a path is that of a file of NRRD or MetaImage, by its ending."""
    return path.suffix.lower() in _ENDINGS and path.is_file()


def open_nrrd(path: Path, wanted: SourceQuery) -> FileSource:
    """Open a file of NRRD or MetaImage; errors as `dseeds.io.open_source` words them."""
    kind, itk = _ENDINGS[path.suffix.lower()], _itk()
    reader = itk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if kind == "nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        said = shorten(str(error).rpartition("): ")[2]).rstrip(".")
        raise ValueError(f"{path} cannot be opened ({said}): it is damaged or no image, so export it again") from error
    shape, dtype, values = _array(reader)
    require_volume(shape, dtype, str(path), wanted)
    header, end = _header(path, kind)
    if values == 3 and wanted.channelled and wanted.channel_axis is None:
        wanted = SourceQuery(wanted.volume, -1, wanted.purpose)
    chosen = select_volume(shape, wanted, str(path))
    run = (_nrrd_run if kind == "nrrd" else _meta_run)(path, header, end, values)
    voxels: Voxels = DecodedVoxels(str(path), shape, dtype)
    if run is not None:
        dtype = dtype.newbyteorder(">" if run.big else "<")
        voxels = (DeflatedVoxels if run.deflated else MappedVoxels)(str(run.file), run.offset, shape, dtype)
        if not run.deflated:
            require_length(run.file, run.offset, shape, dtype)
    files = tuple(dict.fromkeys([str(path), *([str(run.file)] if run else [])]))
    spacing, affine = _space(reader, header, kind)
    return FileSource.of(path, kind, voxels, chosen, spacing=spacing, affine=affine, files=files)


def _array(reader: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Tell the shape and type that the image has as an array, and how many values are in a voxel."""
    values = int(reader.GetNumberOfComponents())
    one = _itk().Image([1, 1, 1], reader.GetPixelID(), values)
    shape = tuple(int(size) for size in reader.GetSize()[::-1])
    return shape + ((values,) if values > 1 else ()), _itk().GetArrayViewFromImage(one).dtype, values


def _header(path: Path, kind: Kind) -> tuple[dict[str, str], int]:
    """Read a header's fields, names in small letters, and where it ends."""
    fields: dict[str, str] = {}
    sign = ":" if kind == "nrrd" else "="
    with describe_damage(str(path)), path.open("rb") as stream:
        for line in iter(lambda: stream.readline(_HEADER), b""):
            text = line.decode("latin-1").strip()
            name, _, value = text.partition(sign)
            # Of NRRD's pairs of name and value, which are written with :=, none matters here.
            fields.setdefault(name.strip().lower(), value.strip())
            if (kind == "nrrd" and not text) or name.strip() == "ElementDataFile" or stream.tell() > _HEADER:
                break
        return fields, stream.tell()


def _nrrd_run(path: Path, header: dict[str, str], end: int, values: int) -> _Run | None:
    file = header.get("data file", header.get("datafile"))
    encoding = header.get("encoding", "").lower()
    skips = {header.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")}
    # Values of a voxel lie next to each other if they come first.
    together = values == 1 or header.get("sizes", "").split()[:1] == [str(values)]
    if skips != {"0"} or encoding not in ("raw", "gzip", "gz") or not together or (file and not _is_one(path, file)):
        return None
    big = header.get("endian", "little").lower() == "big"
    return _Run(path.parent / file if file else path, 0 if file else end, encoding != "raw", big)


def _meta_run(path: Path, header: dict[str, str], end: int, values: int) -> _Run | None:
    file = header.get("elementdatafile", "")
    local = file.upper() == "LOCAL"
    plain = header.get("headersize", "0") == "0" and header.get("binarydata", "").lower() == "true"
    if not plain or not (local or _is_one(path, file)):
        return None
    big = header.get("elementbyteordermsb", header.get("binarydatabyteordermsb", "")).lower() == "true"
    deflated = header.get("compresseddata", "").lower() == "true"
    return _Run(path if local else path.parent / file, end if local else 0, deflated, big)


def _is_one(path: Path, file: str) -> bool:
    """Tell whether the name of a file of voxels is not a list or a pattern of several."""
    return bool(file) and (path.parent / file).is_file()


def _space(reader: Any, header: dict[str, str], kind: Kind) -> tuple[Spacing | None, np.ndarray | None]:
    """Give spacing and affine in millimetres, as far as the header says: what it does not, SimpleITK makes up."""
    said = {"space directions", "spacings"} if kind == "nrrd" else {"elementspacing", "elementsize"}
    sizes = [float(size) for size in reader.GetSpacing()[:3]]
    if not said & set(header) or len(sizes) != 3:
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
