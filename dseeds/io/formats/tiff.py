"""TIFF in and out by tifffile, page by page or tile by tile: stacks, BigTIFF, OME-TIFF, ImageJ, folders of planes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dseeds.core.optional import import_optional
from dseeds.io.formats.file_source import ArrayIndex, FileSource, Voxels
from dseeds.io.formats.file_writer import OURS, Content, NumberedSlabs
from dseeds.io.ome_metadata import PER_MM
from dseeds.io.source import (
    SourceQuery,
    Spacing,
    choose_volume,
    convert_to_mm,
    describe_damage,
    require_channels,
    require_volume,
    resolve_channel_axis,
    with_all_channels,
)

_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
# What ImageJ knows, and what a file holds whose offsets have 32 bits, with room for its pages' headers.
_IMAGEJ = ("uint8", "uint16", "float32")
_CLASSIC = (1 << 32) - (1 << 26)
_SPACE = ("z", "y", "x")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class TiffVoxels:
    """A series of pages in a TIFF; see `dseeds.io.formats.file_source.Voxels`.

    Parameters
    ----------
    file : str
        The file. Others may belong to it, as OME-TIFF says.
    paged : bool
        Whether all pages make up one stack, whatever their descriptions say.
    shape, dtype, chunks
        Of the series.
    """

    file: str
    paged: bool
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    at_random: bool = False

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`."""
        with _opened(self.file, self.paged) as tiff, tiff.series[0].aszarr(level=0) as store:
            array = zarr.open_array(store, mode="r", zarr_format=2)
            if (array.shape, array.dtype) != (self.shape, self.dtype):
                raise ValueError("it has changed since it was opened")
            yield lambda index: np.asarray(array[index])


@dataclass(frozen=True)
class PlaneVoxels:
    """Planes in a file each; see `dseeds.io.formats.file_source.Voxels`."""

    files: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: None = None
    at_random: bool = False

    @contextmanager
    def opened(self) -> Iterator[Callable[[ArrayIndex], np.ndarray]]:
        """See `Voxels.opened`. Planes are decoded whole."""
        yield self._read

    def _read(self, index: ArrayIndex) -> np.ndarray:
        return np.stack([self._plane(file)[index[1:]] for file in self.files[index[0]]])

    def _plane(self, file: str) -> np.ndarray:
        with describe_damage(file):
            plane: np.ndarray = _tifffile().imread(file)
        if (plane.shape, plane.dtype) != (self.shape[1:], self.dtype):
            raise ValueError(f"{Path(file).name} has changed since it was opened")
        return plane


def tiff_files(path: Path) -> list[Path]:
    """List the TIFFs that are, or lie in, a path, in the order of the numbers in their names."""
    if path.is_file():
        return [path] if path.suffix.lower() in _ENDINGS or _has_magic(path) else []
    files = [file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")]
    return sorted((file for file in files if file.is_file()), key=lambda file: _natural(file.name))


def open_tiff(path: Path, files: Sequence[Path], wanted: SourceQuery) -> FileSource:
    """Open a TIFF, or several that are a plane each; errors as `dseeds.io.open_source` words them."""
    if len(files) > 1:
        return _open_planes(path, files, wanted)
    [file] = files
    with describe_damage(str(path)), _opened(str(file), False) as tiff:
        first = tiff.series[0]
        # Pages that were written one by one are series of their own.
        paged = len(tiff.series) > 1 and len(first.shape) < 3
        spacing = _spacing(tiff)
    with describe_damage(str(path)), _opened(str(file), paged) as tiff:
        series = tiff.series[0]
        shape, dtype, axes = tuple(series.shape), np.dtype(series.dtype), str(series.axes)
        names = tuple(dict.fromkeys([str(file), *(page.parent.filehandle.path for page in series.pages if page)]))
        _require_whole(tiff)
    require_volume(shape, dtype, str(path), wanted)
    with describe_damage(str(path)), _opened(str(file), paged) as tiff, tiff.series[0].aszarr(level=0) as store:
        chunks = zarr.open_array(store, mode="r", zarr_format=2).chunks
    voxels = TiffVoxels(str(file), paged, shape, dtype, chunks)
    return _source(path, voxels, axes, wanted, spacing, names)


def _open_planes(path: Path, files: Sequence[Path], wanted: SourceQuery) -> FileSource:
    found = [_plane_of(file) for file in files]
    shape, dtype, axes = found[0]
    for file, one in zip(files, found, strict=True):
        if one != found[0]:
            raise ValueError(
                f"{path} holds TIFFs of different sizes or types, {files[0].name} and {file.name}: "
                f"pass a folder with the planes of one volume"
            )
    if "z" in axes or len(shape) - axes.count("s") != 2:
        raise ValueError(f"{path} holds {len(files)} TIFFs that are stacks of their own: pass one of them")
    shape = (len(files), *shape)
    require_volume(shape, dtype, str(path), wanted)
    names = tuple(str(file) for file in files)
    return _source(path, PlaneVoxels(names, shape, dtype), f"z{axes}", wanted, None, names)


def is_our_tiff(path: Path) -> bool:
    """Tell whether a TIFF was written by this program."""
    with describe_damage(str(path)), _tifffile().TiffFile(path) as tiff:
        return str(tiff.pages[0].software) == OURS


def write_tiff(path: Path, slabs: NumberedSlabs, content: Content) -> None:
    """Write a volume as TIFF, slab by slab: a page for each plane and channel, BigTIFF where 4 GiB do not hold it.

    ImageJ's kind where it knows the type, else, or where the name ends in ``.ome.tif``, OME-TIFF. Labels are deflated.
    """
    deep, axes = content.channels is not None, "ZCYX" if content.channels else "ZYX"
    planes = (plane for slab in content.in_order(slabs) for plane in (_by_plane(slab) if deep else slab))
    z, y, x = content.shape
    shape = (z, content.channels, y, x) if deep else (z, y, x)
    large = content.nbytes > _CLASSIC
    # Of ImageJ's kind tifffile leaves out a last axis of one pixel.
    imagej = not large and x > 1 and content.dtype.name in _IMAGEJ and ".ome." not in content.name.lower()
    told: dict[str, Any] = {"axes": axes}
    resolution = None
    if content.spacing is not None:
        sizes = dict(zip("ZYX", content.spacing, strict=True))
        resolution = (1 / sizes["X"], 1 / sizes["Y"])
        if imagej:
            told |= {"spacing": sizes["Z"], "unit": "mm"}
        else:
            told |= {f"PhysicalSize{axis}": size for axis, size in sizes.items()}
            told |= {f"PhysicalSize{axis}Unit": "mm" for axis in sizes}
    with _tifffile().TiffWriter(path, bigtiff=large, imagej=imagej, ome=not imagej) as writer:
        writer.write(
            planes,
            shape=shape,
            dtype=content.dtype,
            photometric="minisblack",
            resolution=resolution if imagej else None,
            compression="zlib" if content.labelled else None,
            software=OURS,
            metadata=told,
        )


def _by_plane(slab: np.ndarray) -> Iterator[np.ndarray]:
    return (plane for channels in np.moveaxis(slab, 0, 1) for plane in np.ascontiguousarray(channels))


def _source(
    path: Path, voxels: Voxels, axes: str, wanted: SourceQuery, spacing: Spacing | None, files: tuple[str, ...]
) -> FileSource:
    names = _names(axes)
    coloured = "s" in axes.lower() and "c" in names and wanted.channelled and wanted.channel_axis is None
    if coloured:
        wanted = replace(wanted, channel_axis="c")
    chosen = _index(names, voxels.shape, wanted, str(path))
    return FileSource.of(path, "tiff", voxels, chosen, spacing=spacing, files=files)


def _index(names: list[str], shape: tuple[int, ...], wanted: SourceQuery, where: str) -> tuple[ArrayIndex, int | None]:
    """Find the volume in an array whose axes have names."""
    if [name for name in names if name in _SPACE] != list(_SPACE):
        raise ValueError(f"{where} has the axes {', '.join(names)}: supervoxels need z, y and x, in this order")
    space = {names.index(axis) for axis in _SPACE}
    wanted = with_all_channels(wanted, names, shape, space)
    if wanted.channel_axis in names:
        wanted = replace(wanted, channel_axis=names.index(str(wanted.channel_axis)))
    channels = resolve_channel_axis(shape, wanted, where)
    if channels in space:
        raise ValueError(
            f"{where} has {names[channels]} as its axis {channels}, which cannot be that of channels: "
            f"pass channel_axis= (--channel-axis) as another, or leave it out"
        )
    if channels is not None:
        require_channels(shape[channels], where)
    extra = {name: shape[n] for n, name in enumerate(names) if n not in space and n != channels}
    chosen = dict(zip(extra, choose_volume(extra, wanted, where), strict=True))
    return tuple(chosen.get(name, slice(None)) for name in names), channels


def _names(axes: str) -> list[str]:
    """Name axes as OME-Zarr does: planes that are only counted lie along z, the samples of a colour are channels.

    >>> _names("QYX"), _names("ZYXS"), _names("TZCYX")
    (['z', 'y', 'x'], ['z', 'y', 'x', 'c'], ['t', 'z', 'c', 'y', 'x'])
    """
    names = list(axes.lower())
    # Of thin volumes tifffile cannot guess which axis is which.
    if len(names) == 3 and not set(names) & set("tcs"):
        return list(_SPACE)
    counted = [n for n, name in enumerate(names[: axes.lower().rfind("y")]) if name not in "ztcs"]
    for n in counted:
        names[n] = f"{names[n]}{n}"
    if "z" not in names and counted:
        names[counted[-1]] = "z"
    if "c" not in names and "s" in names:
        names[names.index("s")] = "c"
    return names


def _plane_of(file: Path) -> tuple[tuple[int, ...], np.dtype, str]:
    with describe_damage(str(file)), _opened(str(file), False) as tiff:
        _require_whole(tiff)
        series = tiff.series[0]
        return tuple(series.shape), np.dtype(series.dtype), str(series.axes).lower()


def _require_whole(tiff: Any) -> None:
    """Refuse a file that is cut off: tifffile may take missing strips for black, and missing pages for none."""
    for page in tiff.series[0].pages:
        if page is None:
            raise EOFError("a page is missing")
        ends = (begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:
            raise EOFError(f"page {page.index} lies beyond its end")
    # A page says where the next one is: the last one, nowhere.
    form, stream, last = tiff.tiff, tiff.filehandle, tiff.pages[-1]
    stream.seek(last.offset)
    [tags] = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))
    stream.seek(last.offset + form.tagnosize + tags * form.tagsize)
    if any(stream.read(form.offsetsize)):
        raise EOFError("its last pages are missing")


def _spacing(tiff: Any) -> Spacing | None:
    """Find the size of a voxel where OME-TIFF or ImageJ say it; other TIFFs do not know that they have depth."""
    if tiff.is_ome and tiff.ome_metadata:
        image = _tifffile().xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        sizes = [float(pixels.get(f"PhysicalSize{axis}", 0)) for axis in "ZYX"]
        return convert_to_mm(sizes, [PER_MM.get(pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "ZYX"])
    if tiff.is_imagej and tiff.imagej_metadata:
        told, tags = tiff.imagej_metadata, tiff.pages[0].tags
        unit = str(told.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}")
        plane = [_per_pixel(tags.get(name)) for name in ("YResolution", "XResolution")]
        return convert_to_mm([float(told.get("spacing", 0)), *plane], [PER_MM.get(unit)] * 3)
    return None


def _per_pixel(tag: Any) -> float:
    """Turn pixels per unit, a fraction, round."""
    pixels, units = (0, 0) if tag is None else tag.value
    return units / pixels if pixels else 0.0


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort names by the numbers in them.

    >>> sorted(["z10.tif", "z9.tif"], key=_natural)
    ['z9.tif', 'z10.tif']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _has_magic(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


@contextmanager
def _opened(file: str, paged: bool) -> Iterator[Any]:
    with _tifffile().TiffFile(file, **({"is_shaped": False} if paged else {})) as tiff:
        if not tiff.series:
            raise ValueError("it has no pages")
        yield tiff


def _tifffile() -> Any:
    return import_optional("tifffile", "TIFF", "dseeds[formats]")
