"""A series of DICOM slices in, read by SimpleITK, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dseeds.core.optional import import_optional
from dseeds.io.source import (
    IndexBox,
    Shape,
    SourceQuery,
    Spacing,
    choose_volume,
    convert_to_mm,
    hash_files,
    require_volume,
    shorten,
    slab_ranges,
)

# How far distances between slices may be from the usual one, as a part of it: rounded positions are no gaps.
_UNEVEN = 0.1
_MISSING = 0.5


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A volume in files of DICOM.

    Parameters
    ----------
    path : str
        The folder, or the one file.
    files : tuple of str
        A file for each plane, from the first to the last; or the one file that holds all of them.
    name, shape, dtype, spacing, affine, channels, identity
        See `Source`. Voxels are delivered as they are scaled, by slope and intercept.
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
    chunks: None = None
    shards: None = None
    readable_by_workers: bool = False

    def reopened(self) -> DicomSource:
        """See `Source.reopened`."""
        return replace(self, identity={**self.identity, "files": hash_files(self.files)})

    def read(self, box: IndexBox) -> np.ndarray:
        """See `Source.read`. Slices are decoded whole."""
        if self._in_one_file:
            return self._decoded(self.files[0])[..., *box]
        planes = [self._decoded(file)[..., box[1], box[2]] for file in self.files[box[0]]]
        return np.concatenate(planes, axis=-3)

    def slabs(self, thickness: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.slabs`. Each file is read once; one that holds several planes is held whole."""
        whole = self._decoded(self.files[0]) if self._in_one_file else None
        for z0, z1 in slab_ranges(self.shape[0], thickness):
            yield z0, self.read((slice(z0, z1), slice(None), slice(None))) if whole is None else whole[..., z0:z1, :, :]

    @property
    def _in_one_file(self) -> bool:
        return len(self.files) == 1

    def _decoded(self, file: str) -> np.ndarray:
        reader = _reader(Path(file))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise _unreadable(Path(file), error) from error
        voxels: np.ndarray = _itk().GetArrayFromImage(image)
        if voxels.shape[:3] != (self.shape[0] if self._in_one_file else 1, *self.shape[1:]):
            raise ValueError(f"{file} has changed since it was opened: begin anew")
        return (voxels if self.channels is None else np.moveaxis(voxels, -1, 0)).astype(self.dtype, copy=False)


class _Slice(NamedTuple):
    """What the header of a file says."""

    file: Path
    shape: Shape
    dtype: np.dtype
    values: int
    series: str
    spacing: list[float]
    thickness: list[float]
    position: list[float]
    orientation: list[float]


def dicom_files(path: Path) -> list[Path]:
    """List the files of DICOM that are, or lie in, a path; they are known by the letters after their preamble."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if file.name != "DICOMDIR" and _is_dicom(file)]


def _is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        stream.seek(128)
        return stream.read(4) == b"DICM"


def open_dicom(path: Path, files: Sequence[Path], wanted: SourceQuery) -> DicomSource:
    """Open files of DICOM that make up one volume; errors as `dseeds.io.open_source` words them."""
    slices = [_header(file) for file in files]
    _require_one_series(path, slices)
    first = slices[0]
    if first.values > 1 and (first.values != 3 or not wanted.channelled):
        require_volume(first.shape, np.dtype([(str(n), first.dtype) for n in range(first.values)]), str(path), wanted)
    if wanted.channel_axis is not None:
        raise ValueError(f"{path} has no axis of channels: leave out channel_axis (--channel-axis)")
    choose_volume({}, wanted, str(path))
    slices, step = _in_order(path, slices)
    first = slices[0]
    shape = (first.shape[0] if len(slices) == 1 else len(slices), *first.shape[1:])
    # PET has a scale of its own in every slice, some of which may be whole numbers.
    dtype = np.result_type(*(one.dtype for one in slices))
    require_volume(shape, dtype, str(path), wanted)
    names = tuple(str(one.file) for one in slices)
    between = first.thickness if step is None else [float(abs(step @ _normal(first)))]
    sizes = [*between, *first.spacing]
    identity = {
        "kind": "dicom",
        "path": str(path),
        "files": hash_files(names),
        "shape": list(shape),
        "dtype": dtype.str,
    }
    return DicomSource(
        str(path),
        names,
        path.name,
        shape,
        dtype,
        convert_to_mm(sizes, [1.0] * len(sizes)),
        _affine(first, step),
        first.values if first.values > 1 else None,
        identity,
    )


def _header(file: Path) -> _Slice:
    reader = _reader(file)
    try:
        reader.ReadImageInformation()
        known = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
        numbers = {
            key: [float(number) for number in known.get(key, "").split("\\") if number]
            for key in ("0028|0030", "0018|0088", "0020|0032", "0020|0037")
        }
    except (RuntimeError, ValueError) as error:
        raise _unreadable(file, error) from error
    x, y, z = (*reader.GetSize(), 1)[:3]
    # What an image of this type becomes as an array.
    one = _itk().Image([1, 1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    dtype = _itk().GetArrayViewFromImage(one).dtype
    series = known.get("0020|000e", "")
    described = shorten(known.get("0008|103e", "") or series or "without a name")
    return _Slice(
        file,
        (z, y, x),
        dtype,
        reader.GetNumberOfComponents(),
        f"{described} ({series})" if series not in ("", described) else described,
        numbers["0028|0030"],
        numbers["0018|0088"],
        numbers["0020|0032"],
        numbers["0020|0037"],
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
        if (one.shape, one.values) != (first.shape, first.values):
            raise ValueError(
                f"{path} holds slices of different sizes, {first.file.name} and {one.file.name}: "
                f"pass a folder with those of one volume"
            )
        if len(slices) > 1 and (len(one.position), len(one.orientation)) != (3, 6):
            raise ValueError(
                f"{one.file} does not say where its slice lies (image position and orientation): "
                f"convert the series to NIfTI, in the right order"
            )
        if not np.allclose(one.orientation, first.orientation, rtol=0, atol=1e-3):
            raise ValueError(
                f"{path} holds slices that are not parallel, {first.file.name} and {one.file.name}: "
                f"pass a folder with those of one volume"
            )


def _in_order(path: Path, slices: Sequence[_Slice]) -> tuple[list[_Slice], np.ndarray | None]:
    """Sort slices as SimpleITK does, and give the way from one to the next in millimetres, None if there is but one."""
    if len(slices) == 1:
        return list(slices), None
    along = np.array([one.position for one in slices]) @ _normal(slices[0])
    order = np.argsort(along, kind="stable")
    slices = [slices[n] for n in order]
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    if gaps[narrowest] <= _UNEVEN * usual:
        raise ValueError(
            f"{path} holds several slices of one place, such as {_pair(slices, narrowest)}: "
            f"pass a folder with those of one volume"
        )
    if gaps[widest] > (1 + _MISSING) * usual:
        raise ValueError(
            f"{path} lacks slices between {_pair(slices, widest)}, which are {gaps[widest]:.4g} mm apart, "
            f"and others {usual:.4g} mm: copy or export the whole series again"
        )
    if np.abs(gaps - usual).max() > _UNEVEN * usual:
        raise ValueError(
            f"{path} has slices that are unevenly spaced, from {gaps[narrowest]:.4g} to {gaps[widest]:.4g} mm: "
            f"resample the series to even ones"
        )
    return slices, (np.array(slices[-1].position) - slices[0].position) / len(gaps)


def _pair(slices: Sequence[_Slice], place: int) -> str:
    return f"{slices[place].file.name} and {slices[place + 1].file.name}"


def _normal(one: _Slice) -> np.ndarray:
    return np.cross(one.orientation[:3], one.orientation[3:])


def _affine(first: _Slice, step: np.ndarray | None) -> np.ndarray | None:
    if step is None or len(first.spacing) != 2:
        return None
    affine = np.eye(4)
    along_y, along_x = first.spacing
    affine[:3, 0] = np.multiply(first.orientation[:3], along_x)
    affine[:3, 1] = np.multiply(first.orientation[3:], along_y)
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    # DICOM's x and y point to the left and to the back, NIfTI's to the right and to the front.
    affine[:2] *= -1
    return affine


def _reader(file: Path) -> Any:
    reader = _itk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _unreadable(file: Path, error: Exception) -> ValueError:
    said = shorten(str(error).rpartition("): ")[2]).rstrip(".")
    return ValueError(f"{file} cannot be read as DICOM ({said}): it is damaged or holds no image, so copy it again")


def _itk() -> Any:
    return import_optional("SimpleITK", "DICOM", "dseeds[dicom]")
