"""Volumes of DICOM as sources: one of a series or of a file, or all of them as channels."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from dseeds.io.formats.dicom.files import JPEG, DicomHeader, list_dicom_files, read_header
from dseeds.io.formats.dicom.frames import DicomFrame, read_frames
from dseeds.io.formats.dicom.objects import is_image, refuse_other_object
from dseeds.io.formats.dicom.pixels import FrameDecoder, import_simpleitk
from dseeds.io.formats.dicom.volumes import DicomVolume, sort_planes, split_volumes
from dseeds.io.source import (
    IndexBox,
    Shape,
    SourceQuery,
    Spacing,
    UnchunkedSource,
    choose_volume,
    hash_files,
    require_channels,
    require_volume,
    shorten,
    slab_ranges,
)


@dataclass(frozen=True, eq=False)
class DicomSource(UnchunkedSource):
    """A volume in files of DICOM; `open_source` opens it.

    Attributes
    ----------
    path : str
        The folder, or the one file.
    planes : tuple of tuple of DicomFrame
        The frames from the first plane to the last, of the volume, or of each volume that is a channel.
    name, shape, dtype, spacing, affine, channels, identity, kind, labelled
        See `Source`. Voxels are scaled by the slope and intercept of their frame.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import SimpleITK
    >>> from dseeds.io import open_source
    >>> with TemporaryDirectory() as folder:
    ...     SimpleITK.WriteImage(SimpleITK.Image(5, 4, 3, SimpleITK.sitkUInt16), f"{folder}/ct.dcm")
    ...     source = open_source(f"{folder}/ct.dcm")
    >>> source.kind, source.shape
    ('dicom', (3, 4, 5))
    """

    path: str
    planes: tuple[tuple[DicomFrame, ...], ...]
    name: str
    shape: Shape
    dtype: np.dtype
    spacing: Spacing | None
    affine: np.ndarray | None
    channels: int | None
    identity: dict[str, Any]
    kind: Literal["dicom"] = "dicom"
    labelled: Literal[False] = False

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        return _list_files(self.planes)

    @override
    def reopened(self) -> DicomSource:
        return replace(self, identity={**self.identity, "files": hash_files(self.files)})

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        return self._read(box, FrameDecoder())

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        decoder = FrameDecoder()
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self._read((slice(z0, z1), slice(None), slice(None)), decoder)

    def _read(self, box: IndexBox, decoder: FrameDecoder) -> np.ndarray:
        if not self.planes[0][box[0]]:
            # Nothing is to be decoded: read a plane, and take none of it.
            return self._read((slice(0, 1), *box[1:]), decoder)[..., :0, :, :]
        volumes = [self._read_planes(frames[box[0]], box, decoder) for frames in self.planes]
        if len(volumes) > 1:
            return np.concatenate(volumes)
        return volumes[0] if self.channels is not None else volumes[0][0]

    def _read_planes(self, frames: Sequence[DicomFrame], box: IndexBox, decoder: FrameDecoder) -> np.ndarray:
        """Read planes of one volume, (c, z, y, x); those that follow each other in a file are decoded together."""
        planes = (
            np.moveaxis(np.atleast_3d(plane[box[1], box[2]]), -1, 0)
            for _, group in groupby(frames, key=lambda frame: frame.file)
            for plane in decoder.planes(list(group), self.dtype)
        )
        # The first plane shows whether the header told the truth, before memory is taken for all.
        first = next(planes)
        voxels = np.empty((len(first), len(frames), *first.shape[1:]), self.dtype)
        for z, plane in enumerate(chain([first], planes)):
            voxels[:, z] = plane
        return voxels


def open_dicom(path: Path, query: SourceQuery) -> DicomSource:
    """Open the files of DICOM that make up one volume; raises as `dseeds.io.open_source`."""
    headers = _require_images(path, [read_header(file) for file in list_dicom_files(path)])
    volumes, names = split_volumes(path, [frame for header in headers for frame in read_frames(header)])
    if any(header.syntax in JPEG for header in headers):
        import_simpleitk()
    frame = volumes[0][0]
    colours = frame.size[2]
    if colours > 1 and (colours != 3 or not query.allows_channels):
        records = np.dtype([(str(n), frame.dtype) for n in range(colours)])
        require_volume((len(volumes[0]), *frame.size[:2]), records, str(path), query)
    chosen, number = _choose(path, volumes, names, query)
    first = chosen[0]
    dtype = np.result_type(*(volume.dtype for volume in chosen))
    require_volume(first.shape, dtype, str(path), query)
    planes = tuple(volume.frames for volume in chosen)
    return DicomSource(
        path=str(path),
        planes=planes,
        name=path.name,
        shape=first.shape,
        dtype=dtype,
        spacing=first.spacing,
        affine=first.affine,
        channels=len(chosen) if number is None else colours if colours > 1 else None,
        identity={
            "kind": "dicom",
            "path": str(path),
            "volume": "all" if number is None else number,
            "files": hash_files(_list_files(planes)),
            "shape": list(first.shape),
            "dtype": dtype.str,
        },
    )


def _require_images(path: Path, headers: Sequence[DicomHeader]) -> list[DicomHeader]:
    """Return the headers of the images, which are of one series; reports and other objects beside them are ignored."""
    images = [header for header in headers if is_image(header)]
    if not images:
        refuse_other_object(headers[0])
    series: dict[str, list[DicomHeader]] = {}
    for header in images:
        series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    if len(series) > 1:
        listed = ", ".join(
            sorted(f"{_name_series(uid, files[0])}: {len(files)} files" for uid, files in series.items())
        )
        raise ValueError(f"{path} holds {len(series)} series ({shorten(listed, 1000)}): pass a folder with one of them")
    return images


def _name_series(uid: str, header: DicomHeader) -> str:
    description = shorten(header.text("SeriesDescription") or uid or "without a name")
    return f"{description} ({uid})" if uid not in ("", description) else description


def _choose(
    path: Path, volumes: Sequence[Sequence[DicomFrame]], names: Sequence[str], query: SourceQuery
) -> tuple[list[DicomVolume], int | None]:
    """Return the volume that the query chooses and its number, or all of them, as channels, and None."""
    where = f"{path}, whose volumes differ in {shorten(' and '.join(names))}," if names else str(path)
    if query.channel_axis is None:
        [number] = choose_volume({"volumes": len(volumes)}, query, where)
        return [sort_planes(path, volumes[number])], number
    if len(volumes) == 1 or isinstance(query.channel_axis, str) or operator.index(query.channel_axis) not in (0, -4):
        axis = "no axis of channels" if len(volumes) == 1 else "no axis of channels but 0, that of its volumes"
        raise ValueError(f"{path} has {axis}: leave out channel_axis (--channel-axis)")
    require_channels(len(volumes), str(path), query.most_channels)
    channels = [sort_planes(path, volume) for volume in volumes]
    if not all(_is_same_grid(channels[0], channel) for channel in channels):
        raise ValueError(
            f"{path} holds volumes in different places or in colours, which cannot be channels: "
            f"pass volume= (--volume), 0 to {len(volumes) - 1}"
        )
    return channels, None


def _is_same_grid(one: DicomVolume, other: DicomVolume) -> bool:
    """Return whether two volumes without colours have voxels in the same places."""
    if one.shape != other.shape or (one.frames[0].size[2], other.frames[0].size[2]) != (1, 1):
        return False
    if one.affine is None or other.affine is None:
        return one.affine is other.affine
    return bool(np.allclose(one.affine, other.affine, rtol=0, atol=1e-2))


def _list_files(planes: Sequence[Sequence[DicomFrame]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(frame.file for frames in planes for frame in frames))
