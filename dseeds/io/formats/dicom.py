"""Series of DICOM slices in, read by SimpleITK, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from typing_extensions import override

from dseeds.core.optional import import_optional
from dseeds.io.affine import from_lps
from dseeds.io.formats.itk import new_reader, summarise_itk_error, voxel_dtype
from dseeds.io.source import (
    IndexBox,
    Shape,
    SourceQuery,
    Spacing,
    UnchunkedSource,
    choose_volume,
    convert_to_mm,
    hash_files,
    require_volume,
    shorten,
    slab_ranges,
)

# How far a distance between slices may be from the median, as a fraction of it: positions are rounded.
_TOLERANCE = 0.1
# From this excess on, slices are missing.
_GAP = 0.5


@dataclass(frozen=True, eq=False)
class DicomSource(UnchunkedSource):
    """A volume in files of DICOM; `open_source` opens it.

    Attributes
    ----------
    path : str
        The folder, or the one file.
    files : tuple of str
        A file for each plane, from the first to the last, or the one file that holds all of them.
    name, shape, dtype, spacing, affine, channels, identity, kind, labelled
        See `Source`. Voxels are scaled by slope and intercept.

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
    files: tuple[str, ...]
    name: str
    shape: Shape
    dtype: np.dtype
    spacing: Spacing | None
    affine: np.ndarray | None
    channels: int | None
    identity: dict[str, Any]
    kind: Literal["dicom"] = "dicom"
    labelled: Literal[False] = False

    @override
    def reopened(self) -> DicomSource:
        return replace(self, identity={**self.identity, "files": hash_files(self.files)})

    @override
    def read(self, box: IndexBox) -> np.ndarray:
        # Files can only be decoded whole.
        if self._in_one_file:
            return self._decode(self.files[0])[..., *box]
        planes = [self._decode(file)[..., box[1], box[2]] for file in self.files[box[0]]]
        return np.concatenate(planes, axis=-3)

    @override
    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        # Each file is read once; the only one is held whole.
        volume = self._decode(self.files[0]) if self._in_one_file else None
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            if volume is None:
                yield z0, self.read((slice(z0, z1), slice(None), slice(None)))
            else:
                yield z0, volume[..., z0:z1, :, :]

    @property
    def _in_one_file(self) -> bool:
        return len(self.files) == 1

    def _decode(self, file: str) -> np.ndarray:
        try:
            image = _reader(Path(file)).Execute()
        except RuntimeError as error:
            raise _unreadable(Path(file), error) from error
        voxels: np.ndarray = _itk().GetArrayFromImage(image)
        if voxels.shape[:3] != (self.shape[0] if self._in_one_file else 1, *self.shape[1:]):
            raise ValueError(f"{file} has changed since it was opened: open it again")
        return (voxels if self.channels is None else np.moveaxis(voxels, -1, 0)).astype(self.dtype, copy=False)


class _Slice(NamedTuple):
    """The header of a file; vectors that it does not contain are empty."""

    file: Path
    shape: Shape
    dtype: np.dtype
    values: int
    series: str
    spacing: list[float]
    thickness: list[float]
    position: list[float]
    orientation: list[float]

    @property
    def normal(self) -> np.ndarray:
        """The direction of the slice's normal."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def is_dicom(path: Path) -> bool:
    """Return whether a path is a file of DICOM, or a folder that contains one."""
    return next(_list_files(path), None) is not None


def _list_files(path: Path) -> Iterator[Path]:
    """List the files of DICOM that are, or lie in, a path; four letters after a preamble identify them."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.name != "DICOMDIR" and file.is_file():
            with file.open("rb") as stream:
                stream.seek(128)
                if stream.read(4) == b"DICM":
                    yield file


def open_dicom(path: Path, query: SourceQuery) -> DicomSource:
    """Open the files of DICOM that make up one volume; raises as `dseeds.io.open_source`."""
    slices = [_read_header(file) for file in _list_files(path)]
    _require_one_series(path, slices)
    first = slices[0]
    if first.values > 1 and (first.values != 3 or not query.allows_channels):
        require_volume(first.shape, np.dtype([(str(n), first.dtype) for n in range(first.values)]), str(path), query)
    if query.channel_axis is not None:
        raise ValueError(f"{path} has no axis of channels: leave out channel_axis (--channel-axis)")
    choose_volume({}, query, str(path))
    slices, step = _in_order(path, slices)
    first = slices[0]
    shape = (first.shape[0] if len(slices) == 1 else len(slices), *first.shape[1:])
    # In PET each slice has a scale of its own, some of which may be whole numbers.
    dtype = np.result_type(*(one.dtype for one in slices))
    require_volume(shape, dtype, str(path), query)
    files = tuple(str(one.file) for one in slices)
    sizes = [*(first.thickness if step is None else [float(abs(step @ first.normal))]), *first.spacing]
    return DicomSource(
        path=str(path),
        files=files,
        name=path.name,
        shape=shape,
        dtype=dtype,
        spacing=convert_to_mm(sizes, [1.0] * len(sizes)),
        affine=_compute_affine(first, step),
        channels=first.values if first.values > 1 else None,
        identity={
            "kind": "dicom",
            "path": str(path),
            "files": hash_files(files),
            "shape": list(shape),
            "dtype": dtype.str,
        },
    )


def _read_header(file: Path) -> _Slice:
    reader = _reader(file)
    try:
        reader.ReadImageInformation()
        tags = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
        vectors = {
            key: [float(number) for number in tags.get(key, "").split("\\") if number]
            for key in ("0028|0030", "0018|0088", "0020|0032", "0020|0037")
        }
    except (RuntimeError, ValueError) as error:
        raise _unreadable(file, error) from error
    x, y, z = (*reader.GetSize(), 1)[:3]
    series = tags.get("0020|000e", "")
    description = shorten(tags.get("0008|103e", "") or series or "without a name")
    return _Slice(
        file=file,
        shape=(z, y, x),
        dtype=voxel_dtype(_itk(), reader),
        values=reader.GetNumberOfComponents(),
        series=f"{description} ({series})" if series not in ("", description) else description,
        spacing=vectors["0028|0030"],
        thickness=vectors["0018|0088"],
        position=vectors["0020|0032"],
        orientation=vectors["0020|0037"],
    )


def _require_one_series(path: Path, slices: Sequence[_Slice]) -> None:
    series = sorted({one.series for one in slices})
    if len(series) > 1:
        listed = ", ".join(f"{name}: {sum(one.series == name for one in slices)} files" for name in series)
        raise ValueError(f"{path} holds {len(series)} series ({shorten(listed, 1000)}): pass a folder with one of them")
    first = slices[0]
    if len(slices) > 1 and first.shape[0] > 1:
        raise ValueError(f"{path} holds {len(slices)} files that are volumes of their own: pass one of them")
    for one in slices:
        pair = f"{first.file.name} and {one.file.name}"
        if (one.shape, one.values) != (first.shape, first.values):
            raise ValueError(f"{path} holds slices of different sizes, {pair}: pass a folder with those of one volume")
        if len(slices) > 1 and (len(one.position), len(one.orientation)) != (3, 6):
            raise ValueError(
                f"{one.file} does not say where its slice lies (image position and orientation): "
                f"convert the series to NIfTI, in the right order"
            )
        if not np.allclose(one.orientation, first.orientation, rtol=0, atol=1e-3):
            raise ValueError(
                f"{path} holds slices that are not parallel, {pair}: pass a folder with those of one volume"
            )


def _in_order(path: Path, slices: Sequence[_Slice]) -> tuple[list[_Slice], np.ndarray | None]:
    """Sort slices as SimpleITK does; also return the step between them in millimetres, None for a single slice."""
    if len(slices) == 1:
        return list(slices), None
    depths = np.array([one.position for one in slices]) @ slices[0].normal
    order = np.argsort(depths, kind="stable")
    slices = [slices[n] for n in order]
    gaps = np.diff(depths[order])
    median = float(np.median(gaps))
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    if gaps[narrowest] <= _TOLERANCE * median:
        raise ValueError(
            f"{path} holds several slices of one place, such as {_pair(slices, narrowest)}: "
            f"pass a folder with those of one volume"
        )
    if gaps[widest] > (1 + _GAP) * median:
        raise ValueError(
            f"{path} lacks slices between {_pair(slices, widest)}, which are {gaps[widest]:.4g} mm apart, "
            f"and others {median:.4g} mm: copy or export the whole series again"
        )
    if np.abs(gaps - median).max() > _TOLERANCE * median:
        raise ValueError(
            f"{path} has slices that are unevenly spaced, from {gaps[narrowest]:.4g} to {gaps[widest]:.4g} mm: "
            f"resample the series to even ones"
        )
    return slices, (np.array(slices[-1].position) - slices[0].position) / len(gaps)


def _pair(slices: Sequence[_Slice], number: int) -> str:
    return f"{slices[number].file.name} and {slices[number + 1].file.name}"


def _compute_affine(first: _Slice, step: np.ndarray | None) -> np.ndarray | None:
    if step is None or len(first.spacing) != 2:
        return None
    direction = np.column_stack([first.orientation[:3], first.orientation[3:], step])
    along_y, along_x = first.spacing
    # The step is as long as the distance between slices.
    return from_lps(direction, (1.0, along_y, along_x), np.array(first.position))


def _reader(file: Path) -> Any:
    return new_reader(_itk(), file, "GDCMImageIO")


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read as DICOM ({summarise_itk_error(error)}): it is damaged or holds no image, "
        f"so copy it again"
    )


def _itk() -> Any:
    return import_optional("SimpleITK", "DICOM", "dseeds[dicom]")
