"""TIFF in and out with tifffile, page by page or tile by tile: stacks, BigTIFF, OME-TIFF, ImageJ, folders of planes."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from dseeds.core.geometry import AXES
from dseeds.core.lazy_module import LazyModule
from dseeds.core.optional import import_optional
from dseeds.io.axes import select_axes
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs
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

    @contextmanager
    @override
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        with _open_file(self.file, self.paged) as tiff, tiff.series[0].aszarr(level=0) as store:
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


def is_tiff(path: Path) -> bool:
    """Return whether a path is a TIFF, by its ending or its first bytes, or a folder that contains one."""
    return bool(_list_files(path))


def _list_files(path: Path) -> list[Path]:
    """List the TIFFs that are, or lie in, a path, in the order of the numbers in their names."""
    if path.is_file():
        return [path] if path.suffix.lower() in _ENDINGS or _has_magic(path) else []
    files = [file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")]
    return sorted((file for file in files if file.is_file()), key=lambda file: _natural_key(file.name))


def open_tiff(path: Path, query: SourceQuery) -> FileSource:
    """Open a TIFF, or a folder of TIFFs with a plane in each; raises as `dseeds.io.open_source`."""
    files = _list_files(path)
    if len(files) > 1:
        return _open_planes(path, files, query)
    [file] = files
    with describe_damage(str(path)), _open_file(str(file), False) as tiff:
        # Pages that were written one by one are series of their own.
        paged = len(tiff.series) > 1 and len(tiff.series[0].shape) < 3
        spacing = _read_spacing(tiff)
    with describe_damage(str(path)), _open_file(str(file), paged) as tiff:
        series = tiff.series[0]
        shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), str(series.axes)
        names = tuple(dict.fromkeys([str(file), *(page.parent.filehandle.path for page in series.pages if page)]))
        _require_whole(tiff)
    require_volume(shape, dtype, str(path), query, planes=True)
    with describe_damage(str(path)), _open_file(str(file), paged) as tiff, tiff.series[0].aszarr(level=0) as store:
        chunks = zarr.open_array(store, mode="r", zarr_format=2).chunks
    voxels = TiffVoxels(file=str(file), paged=paged, shape=shape, dtype=dtype, chunks=chunks)
    return _source(path, voxels, axes, query, spacing, names)


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
    shape = (len(files), *shape)
    require_volume(shape, dtype, str(path), query)
    names = tuple(str(file) for file in files)
    return _source(path, PlaneVoxels(files=names, shape=shape, dtype=dtype), f"z{axes}", query, None, names)


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
    path: Path, voxels: Voxels, axes: str, query: SourceQuery, spacing: Spacing | None, files: tuple[str, ...]
) -> FileSource:
    names = _name_axes(axes)
    if [name for name in names if name in AXES] not in (list(AXES), list(AXES[1:])):
        raise ValueError(
            f"{path} has the axes {', '.join(names)}: supervoxels need z, y and x, or y and x, in this order"
        )
    if "s" in axes.lower() and "c" in names and query.allows_channels and query.channel_axis is None:
        query = replace(query, channel_axis="c")
    selection = select_axes(names, voxels.shape, query, str(path))
    return FileSource.from_voxels(path, "tiff", voxels, selection, spacing=spacing, files=files)


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
        _require_whole(tiff)
        series = tiff.series[0]
        return tuple(series.shape), np.dtype(series.dtype), str(series.axes).lower()


def _require_whole(tiff: Any) -> None:
    """Raise an EOFError if a file is cut off: tifffile may read missing strips as black, and ignore missing pages."""
    for page in tiff.series[0].pages:
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


def _read_spacing(tiff: Any) -> Spacing | None:
    """Read the size of a voxel from the metadata of OME-TIFF or ImageJ; other TIFFs have no depth."""
    if tiff.is_ome and tiff.ome_metadata:
        image = _tifffile().xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "ZYX"]
        return convert_to_mm(sizes, [PER_MM.get(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "ZYX"])
    if tiff.is_imagej and tiff.imagej_metadata:
        metadata, tags = tiff.imagej_metadata, tiff.pages[0].tags
        unit = str(metadata.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}")
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
    return import_optional("tifffile", "TIFF", "dseeds[formats]")
