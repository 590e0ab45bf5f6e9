"""TIFF in and out with tifffile, page by page or tile by tile: stacks, BigTIFF, OME-TIFF, ImageJ, folders of planes."""

from __future__ import annotations

import itertools
import logging
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from dseeds.core.formatting import format_shape
from dseeds.core.geometry import AXES
from dseeds.core.lazy_module import LazyModule
from dseeds.core.optional import import_optional
from dseeds.io.axes import select_axes
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs
from dseeds.io.image_choice import choose_image
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import (
    SourceQuery,
    Spacing,
    convert_to_mm,
    describe_damage,
    require_volume,
)

if TYPE_CHECKING:
    import zarr
else:
    zarr = LazyModule("zarr")

_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
# Those of microscopes' files as well, which are known by their first bytes.
_ENDING = re.compile(r"\.(?:tiff|tif|btf|tf8|lsm|stk|svs|scn|ndpi|qptiff)(?=:)", re.IGNORECASE)
_SILENCE = logging.NullHandler()
# No metadata file is larger, in bytes.
_MAX_METADATA = 1 << 28
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
# The voxels that fit into a file with offsets of 32 bits, beside the headers of its pages.
_CLASSIC_BYTES = (1 << 32) - (1 << 26)


@dataclass(frozen=True, kw_only=True)
class TiffVoxels(Voxels):
    """A series of pages in a TIFF, or in several that an OME-TIFF names."""

    file: str
    # Whether all pages make up one stack, whatever their descriptions say.
    paged: bool
    # The number of the image, in files with several.
    number: int = 0

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        with _open_file(self.file, self.paged) as tiff, tiff.series[self.number].aszarr(level=0) as store:
            array = zarr.open_array(store, mode="r", zarr_format=2)
            self.check_unchanged(array)
            yield lambda index: np.asarray(array[index])


@dataclass(frozen=True, kw_only=True)
class PlaneVoxels(Voxels):
    """Planes in a file each, which can only be decoded whole."""

    files: tuple[str, ...]

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        yield lambda index: np.stack([self._plane(file)[index[1:]] for file in self.files[index[0]]])

    def _plane(self, file: str) -> np.ndarray:
        with describe_damage(file):
            plane: np.ndarray = _tifffile().imread(file)
        if (plane.shape, plane.dtype) != (self.shape[1:], self.dtype):
            raise ValueError(f"{Path(file).name} has changed since it was opened")
        return plane


def split_image(path: Path) -> tuple[Path, str | None]:
    """Split a path into the file and the number or the name of the image in it; None for a path without either.

    >>> split_image(Path("cells.ome.tif:1"))
    (PosixPath('cells.ome.tif'), '1')
    """
    match = None if path.exists() else _ENDING.search(str(path))
    return (Path(str(path)[: match.end()]), str(path)[match.end() + 1 :]) if match else (path, None)


def is_tiff(path: Path) -> bool:
    """Return whether a path is a TIFF, by its ending or its first bytes, or a folder that contains one."""
    file, chosen = split_image(path)
    return bool(_list_files(file)) and (chosen is None or file.is_file())


def _list_files(path: Path) -> list[Path]:
    """List the TIFFs that are, or lie in, a path, in the order of the numbers in their names."""
    if path.is_file():
        return [path] if path.suffix.lower() in _ENDINGS or _has_magic(path) else []
    files = [file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")]
    return sorted((file for file in files if file.is_file()), key=lambda file: _natural_key(file.name))


def open_tiff(path: Path, query: SourceQuery) -> FileSource:
    """Open a TIFF, or a folder of TIFFs with a plane in each; raises as `dseeds.io.open_source`."""
    path, chosen = split_image(path)
    files = _list_files(path)
    if len(files) > 1:
        return _open_planes(path, files, query)
    [file] = files
    with describe_damage(str(path)), _open_file(str(file), False) as tiff:
        # Pages that were written one by one are series of their own.
        paged = len(tiff.series) > 1 and len(tiff.series[0].shape) < 3 and not tiff.is_ome
    with describe_damage(str(path)), _open_file(str(file), paged) as tiff:
        images = [(str(series.name), tuple(series.shape)) for series in tiff.series]
    number = choose_image(str(path), [(name, format_shape(shape)) for name, shape in images], chosen)
    with describe_damage(str(path)), _open_file(str(file), paged) as tiff:
        series = tiff.series[number]
        shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), str(series.axes)
        names = tuple(dict.fromkeys([str(file), *(page.parent.filehandle.path for page in series.pages if page)]))
        _require_whole(tiff, number)
        codec = _missing_codec(series)
        companion = _find_companion(tiff, file)
        spacing = _read_spacing(tiff, number, companion)
    _require_codec(path, codec)
    _require_plain_order(path, companion)
    require_volume(shape, dtype, str(path), query, planes=True)
    with describe_damage(str(path)), _open_file(str(file), paged) as tiff, tiff.series[number].aszarr(level=0) as store:
        chunks = zarr.open_array(store, mode="r", zarr_format=2).chunks
    voxels = TiffVoxels(file=str(file), paged=paged, number=number, shape=shape, dtype=dtype, chunks=chunks)
    dataset = str(number) if len(images) > 1 else None
    return _source(path, voxels, axes, query, spacing, names, dataset)


def _missing_codec(series: Any) -> str | None:
    """Return the name of the compression of the first page, if nothing here decodes it."""
    page = series.keyframe
    names = _tifffile().TIFF
    for table, value in ((names.DECOMPRESSORS, page.compression), (names.UNPREDICTORS, page.predictor)):
        try:
            table[value]
        except KeyError:
            return str(getattr(value, "name", value))
    return None


def _require_codec(path: Path, codec: str | None) -> None:
    if codec is not None:
        import_optional("imagecodecs", f"{path}, compressed with {codec},", "dseeds[formats]")
        raise ValueError(f"{path} is compressed with {codec}, which is not read: save it with another compression")


def _open_planes(path: Path, files: Sequence[Path], query: SourceQuery) -> FileSource:
    planes = [_read_plane_header(file) for file in files]
    shape, dtype, axes = planes[0]
    for file, plane in zip(files, planes, strict=True):
        if plane != planes[0]:
            raise ValueError(
                f"{path} holds TIFFs of different sizes or types, {files[0].name} and {file.name}: "
                f"pass a folder with the planes of one volume"
            )
    if "z" in axes or len(shape) - axes.count("s") != 2:
        raise ValueError(f"{path} holds {len(files)} TIFFs that are stacks of their own: pass one of them")
    _require_consecutive(path, files)
    shape = (len(files), *shape)
    require_volume(shape, dtype, str(path), query)
    names = tuple(str(file) for file in files)
    return _source(path, PlaneVoxels(files=names, shape=shape, dtype=dtype), f"z{axes}", query, None, names)


def _require_consecutive(path: Path, files: Sequence[Path]) -> None:
    """Raise a ValueError unless the numbers in names order the planes, and none is missing among equal steps.

    Names without numbers are in the order of their letters.
    """
    numbers = [[int(part) for part in re.findall(r"\d+", file.name)] for file in files]
    pairs = list(itertools.pairwise(range(len(files))))
    unclear = next((pair for pair in pairs if len(numbers[pair[0]]) != len(numbers[pair[1]])), None)
    columns = list(zip(*numbers, strict=True)) if unclear is None else []
    # Other numbers, such as those of channels, would begin again.
    rising = [column for column in columns if all(column[a] < column[b] for a, b in pairs)]
    if columns and unclear is None:
        unclear = next((pair for pair in pairs if any(column[pair[0]] > column[pair[1]] for column in columns)), None)
        if not rising and unclear is None:
            alike = (pair for pair in pairs if not any(column[pair[0]] < column[pair[1]] for column in columns))
            unclear = next(alike, pairs[0])
    if unclear is not None:
        raise ValueError(
            f"{path} holds {files[unclear[0]].name} and {files[unclear[1]].name}, whose numbers do not say which plane "
            f"is next: pass a folder with the planes of one volume, numbered one after the other"
        )
    if len(rising) != 1 or any(len(set(column)) > 1 for column in columns if column not in rising):
        return
    steps = [rising[0][b] - rising[0][a] for a, b in pairs]
    for (before, after), step in zip(pairs, steps, strict=True):
        if step != min(steps):
            raise ValueError(
                f"{path} lacks a plane between {files[before].name} and {files[after].name}, for the other numbers are "
                f"{min(steps)} apart: add the missing planes, or number the files one after the other"
            )


def is_our_tiff(path: Path) -> bool:
    """Return whether this program wrote a TIFF."""
    with describe_damage(str(path)), _tifffile().TiffFile(path) as tiff:
        return str(tiff.pages[0].software) == OURS


def write_tiff(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as TIFF, slab by slab: a page for each plane and channel, BigTIFF beyond 4 GiB.

    The file is ImageJ's kind of TIFF if ImageJ knows the type; otherwise, or if the name ends in ``.ome.tif``, it is
    OME-TIFF. Labels are deflated.
    """
    multichannel, (z, y, x) = content.channels is not None, content.shape
    planes = (plane for slab in content.in_order(slabs) for plane in (_planes(slab) if multichannel else slab))
    large = math.prod(content.array_shape) * content.dtype.itemsize > _CLASSIC_BYTES
    # In files for ImageJ, tifffile leaves out a last axis of one pixel.
    imagej = not large and x > 1 and content.dtype.name in _IMAGEJ_TYPES and ".ome." not in content.name.lower()
    metadata: dict[str, Any] = {"axes": "ZCYX" if content.channels else "ZYX"}
    resolution = None
    if content.spacing is not None:
        sizes = dict(zip("ZYX", content.spacing, strict=True))
        if imagej:
            resolution = (1 / sizes["X"], 1 / sizes["Y"])
            metadata |= {"spacing": sizes["Z"], "unit": "mm"}
        else:
            metadata |= {f"PhysicalSize{axis}": size for axis, size in sizes.items()}
            metadata |= {f"PhysicalSize{axis}Unit": "mm" for axis in sizes}
    with _tifffile().TiffWriter(path, bigtiff=large, imagej=imagej, ome=not imagej) as writer:
        writer.write(
            planes,
            shape=(z, content.channels, y, x) if multichannel else (z, y, x),
            dtype=content.dtype,
            photometric="minisblack",
            resolution=resolution,
            compression="zlib" if content.labelled else None,
            software=OURS,
            metadata=metadata,
        )


def _planes(slab: np.ndarray) -> Iterator[np.ndarray]:
    return (plane for channels in np.moveaxis(slab, 0, 1) for plane in np.ascontiguousarray(channels))


def _source(
    path: Path,
    voxels: Voxels,
    axes: str,
    query: SourceQuery,
    spacing: Spacing | None,
    files: tuple[str, ...],
    dataset: str | None = None,
) -> FileSource:
    names = _name_axes(axes)
    if [name for name in names if name in AXES] not in (list(AXES), list(AXES[1:])):
        raise ValueError(
            f"{path} has the axes {', '.join(names)}: supervoxels need z, y and x, or y and x, in this order"
        )
    if "s" in axes.lower() and "c" in names and query.allows_channels and query.channel_axis is None:
        query = replace(query, channel_axis="c")
    selection = select_axes(names, voxels.shape, query, str(path))
    return FileSource.from_voxels(path, "tiff", voxels, selection, spacing=spacing, files=files, dataset=dataset)


def _name_axes(axes: str) -> list[str]:
    """Name axes as OME-Zarr does: planes in a series lie along z, the samples of a colour are channels.

    >>> _name_axes("QYX"), _name_axes("ZYXS"), _name_axes("TZCYX")
    (['z', 'y', 'x'], ['z', 'y', 'x', 'c'], ['t', 'z', 'c', 'y', 'x'])
    """
    names = list(axes.lower())
    # In thin volumes tifffile cannot guess which axis is which.
    if len(names) == 3 and not set(names) & set("tcs"):
        return list(AXES)
    others = [n for n, name in enumerate(names[: axes.lower().rfind("y")]) if name not in "ztcs"]
    for n in others:
        names[n] = f"{names[n]}{n}"
    if "z" not in names and others:
        names[others[-1]] = "z"
    if "c" not in names and "s" in names:
        names[names.index("s")] = "c"
    return names


def _read_plane_header(file: Path) -> tuple[tuple[int, ...], np.dtype, str]:
    with describe_damage(str(file)), _open_file(str(file), False) as tiff:
        _require_whole(tiff, 0)
        count, series = len(tiff.series), tiff.series[0]
        header = tuple(series.shape), np.dtype(series.dtype), str(series.axes).lower()
        codec = _missing_codec(series)
    if count > 1:
        raise ValueError(f"{file} holds {count} images, and in a folder every TIFF is one plane: pass {file}:0")
    _require_codec(file, codec)
    return header


def _require_whole(tiff: Any, number: int) -> None:
    """Raise an EOFError if a file is cut off: tifffile may read missing strips as black, and ignore missing pages."""
    for page in tiff.series[number].pages:
        if page is None:
            raise EOFError("a page is missing")
        ends = (begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:
            raise EOFError(f"page {page.index} lies beyond its end")
    # After its tags, a page has the offset of the next one, which is 0 for the last.
    form, stream, last = tiff.tiff, tiff.filehandle, tiff.pages[-1]
    stream.seek(last.offset)
    [tags] = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))
    stream.seek(last.offset + form.tagnosize + tags * form.tagsize)
    if any(stream.read(form.offsetsize)):
        raise EOFError("its last pages are missing")


def _find_companion(tiff: Any, file: Path) -> Mapping[str, Any] | None:
    """Return the metadata in another file that an OME-TIFF with binary data only names; {} if that is missing."""
    if not (tiff.is_ome and tiff.ome_metadata):
        return None
    ome = _tifffile().xml2dict(tiff.ome_metadata)["OME"]
    if "BinaryOnly" not in ome:
        return None
    companion = file.parent / Path(str(ome["BinaryOnly"].get("MetadataFile", ""))).name
    if not companion.is_file() or companion.stat().st_size > _MAX_METADATA:
        return {}
    text = companion.read_text(encoding="utf-8")
    described: Mapping[str, Any] = _tifffile().xml2dict(text)["OME"]
    return described


def _require_plain_order(path: Path, companion: Mapping[str, Any] | None) -> None:
    """Raise a ValueError if a companion describes anything but the planes of one volume."""
    if not companion:
        return
    pixels = _pixels(companion, 0)
    if isinstance(companion["Image"], list) or int(pixels["SizeC"]) * int(pixels["SizeT"]) != 1:
        raise ValueError(
            f"{path} has its metadata in another file, by which its planes belong to several volumes: convert the data "
            f"set to OME-Zarr, for example with bioformats2raw"
        )


def _pixels(ome: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """Return the description of the voxels of one image in OME's metadata."""
    image = ome["Image"]
    pixels: Mapping[str, Any] = (image[number] if isinstance(image, list) else image)["Pixels"]
    return pixels


def _read_spacing(tiff: Any, number: int, companion: Mapping[str, Any] | None) -> Spacing | None:
    """Read the size of a voxel from the metadata of OME-TIFF or ImageJ; other TIFFs have no depth."""
    if tiff.is_ome and tiff.ome_metadata:
        ome = _tifffile().xml2dict(tiff.ome_metadata)["OME"] if companion is None else companion
        if not ome:
            return None
        pixels = _pixels(ome, number)
        sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "ZYX"]
        return convert_to_mm(sizes, [PER_MM.get(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "ZYX"])
    if tiff.is_imagej and tiff.imagej_metadata:
        metadata, tags = tiff.imagej_metadata, tiff.pages[0].tags
        unit = str(metadata.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}").strip()
        pixel_sizes = [_pixel_size(tags.get(name)) for name in ("YResolution", "XResolution")]
        return convert_to_mm([float(metadata.get("spacing", 0)), *pixel_sizes], [PER_MM.get(unit)] * 3)
    return None


def _pixel_size(tag: Any) -> float:
    """Return the inverse of a resolution, which is a fraction; 0 if unknown."""
    pixels, units = (0, 0) if tag is None else tag.value
    return units / pixels if pixels else 0.0


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them.

    >>> sorted(["z10.tif", "z9.tif"], key=_natural_key)
    ['z9.tif', 'z10.tif']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _has_magic(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


@contextmanager
def _open_file(file: str, paged: bool) -> Iterator[Any]:
    with _tifffile().TiffFile(file, **({"is_shaped": False} if paged else {})) as tiff:
        if not tiff.series:
            raise ValueError("it has no pages")
        yield tiff


def _tifffile() -> Any:
    # It logs, to the screen if nobody listens, what it makes of damaged files.
    logging.getLogger("tifffile").addHandler(_SILENCE)
    return import_optional("tifffile", "TIFF", "dseeds[formats]")
