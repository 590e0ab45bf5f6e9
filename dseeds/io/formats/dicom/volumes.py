"""Volumes: frames sorted by volume and place, or refused where that is not certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dseeds.io.affine import from_lps
from dseeds.io.formats.dicom.files import UnusableDicomError
from dseeds.io.formats.dicom.frames import DicomFrame
from dseeds.io.source import Shape, Spacing, convert_to_mm, shorten

Frames: TypeAlias = Sequence[DicomFrame]

# How far a distance between slices may be from the median, as a fraction of it: positions are rounded.
_TOLERANCE = 0.1
# How far places of one plane, and directions, may differ: in millimetres, and as a cosine.
_SAME_PLACE = 1e-2
_SAME_DIRECTION = 1e-3
# How far the sizes of voxels may differ, as a fraction.
_SAME_SIZE = 1e-3
# How far a place may be from that of even slices, as a fraction of their distance.
_DRIFT = 0.5
# What may not change within a volume of a file with functional groups.
_FIXED = ("temporal index", "echo time", "b-value", "component", "real-world slope")


@dataclass(frozen=True)
class DicomVolume:
    """The frames of a volume, from the first plane to the last.

    Attributes
    ----------
    frames : tuple of DicomFrame
        One for each plane.
    step : ndarray or None
        From one plane to the next in millimetres; None for a single one.
    """

    frames: tuple[DicomFrame, ...]
    step: np.ndarray | None

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""
        rows, columns, _ = self.frames[0].size
        return len(self.frames), rows, columns

    @property
    def dtype(self) -> np.dtype:
        """The type of all voxels, of which each plane may have a scale of its own."""
        return np.result_type(*{frame.dtype for frame in self.frames})

    @property
    def spacing(self) -> Spacing | None:
        """Size of a voxel along z, y, x in millimetres; None if unknown."""
        first = self.frames[0]
        thickness = first.thickness if self.step is None else float(abs(self.step @ first.normal))
        sizes = [*(() if thickness is None else (thickness,)), *first.spacing]
        return convert_to_mm(sizes, [1.0] * len(sizes))

    @property
    def affine(self) -> np.ndarray | None:
        """From a voxel (x, y, z) to its position, as in `Source`; None if unknown."""
        first, spacing = self.frames[0], self.spacing
        if spacing is None or (len(first.position), len(first.orientation)) != (3, 6):
            return None
        step = first.normal * spacing[0] if self.step is None else self.step
        direction = np.column_stack([first.orientation[:3], first.orientation[3:], step])
        # The step is as long as the distance between slices.
        return from_lps(direction, (1.0, *spacing[1:]), np.array(first.position))


def split_volumes(path: Path, frames: Frames) -> tuple[list[list[DicomFrame]], list[str]]:
    """Split frames into volumes, in order; also return names of what tells these apart.

    Raises a ValueError where the volumes are unclear. The places within each are left to `sort_planes`.
    """
    _require_one_series(path, frames)
    volumes, names = list[list[DicomFrame]](), list[str]()
    stacks = _split_stacks(frames)
    for stack in stacks:
        _require_one_grid(path, stack)
        parts, more = _split_stack(path, stack)
        volumes += parts
        names += [name for name in more if name not in names]
    return volumes, [*(["stack"] if len(stacks) > 1 else []), *names]


def sort_planes(path: Path, frames: Frames) -> DicomVolume:
    """Sort the planes of a volume as SimpleITK does; raise a ValueError unless they lie evenly on a line."""
    _require_constant(path, frames)
    if len(frames) == 1:
        return DicomVolume(tuple(frames), None)
    positions = np.array([frame.position for frame in frames])
    normal = frames[0].normal
    order = np.argsort(positions @ normal, kind="stable")
    planes = tuple(frames[n] for n in order)
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    step = (positions[-1] - positions[0]) / len(gaps)
    off = positions - positions[0] - np.arange(len(planes))[:, None] * step
    along = off @ normal
    across = np.linalg.norm(off - along[:, None] * normal, axis=1)
    _require_even_gaps(path, planes, gaps, drift=float(np.abs(along).max()))
    if across.max() > _TOLERANCE * max(float(np.median(gaps)), *planes[0].spacing, _SAME_PLACE):
        raise UnusableDicomError(
            f"{path} has slices that do not lie one behind the other (one is {across.max():.3g} mm off their line): "
            f"resample the series to a straight one"
        )
    return DicomVolume(planes, step)


def _require_one_series(path: Path, frames: Frames) -> None:
    spaces = {frame.space for frame in frames if frame.space}
    if len(spaces) > 1:
        raise UnusableDicomError(
            f"{path} holds slices in {len(spaces)} frames of reference, whose positions cannot be compared: "
            f"pass a folder with those of one volume"
        )
    # Programs that remove names may give one identifier to all objects.
    known: dict[Hashable, DicomFrame] = {}
    for frame in frames:
        other = known.setdefault((frame.uid, frame.number, frame.position), frame)
        if frame.uid and other is not frame:
            raise UnusableDicomError(f"{path} holds the same slice twice, {_pair(other, frame)}: remove one of them")
    files = len({frame.file for frame in frames})
    if any(frame.parts > files for frame in frames):
        raise UnusableDicomError(
            f"{path} holds {files} of the {max(frame.parts for frame in frames)} files of an object: "
            f"pass a folder with all of them"
        )
    several = [frame for frame in frames if not frame.grouped and frame.number > 0 and frame.across == 1]
    if several and any(frame.file != several[0].file for frame in frames):
        raise UnusableDicomError(f"{path} holds {files} files that are volumes of their own: pass one of them")
    if len(frames) > 1:
        for frame in frames:
            if (len(frame.position), len(frame.orientation)) != (3, 6):
                raise UnusableDicomError(
                    f"{frame.file} does not say where its slice lies (image position and orientation): "
                    f"convert the series to NIfTI, in the right order"
                )


def _split_stacks(frames: Frames) -> list[list[DicomFrame]]:
    """Split frames with functional groups by their stack and direction; other ones are one stack."""
    if not frames[0].grouped:
        return [list(frames)]
    by_name: dict[str, list[list[DicomFrame]]] = {}
    for frame in frames:
        stacks = by_name.setdefault(frame.stack, [])
        # Rounding may not split a direction that is written with few digits.
        stack = next((stack for stack in stacks if _is_parallel(stack[0], frame)), None)
        if stack is None:
            stacks.append([frame])
        else:
            stack.append(frame)
    all_stacks = [stack for stacks in by_name.values() for stack in stacks]
    # An identifier for each frame names no stack.
    if len(all_stacks) == len(frames) and all(_is_parallel(frames[0], frame) for frame in frames):
        return [list(frames)]
    return sorted(all_stacks, key=lambda stack: (_sort_key(stack[0].stack), stack[0].order))


def _is_parallel(one: DicomFrame, other: DicomFrame) -> bool:
    return all(abs(a - b) <= _SAME_DIRECTION for a, b in zip(one.orientation, other.orientation, strict=True))


def _is_same_spacing(one: DicomFrame, other: DicomFrame) -> bool:
    return len(one.spacing) == len(other.spacing) and all(
        abs(a - b) <= _SAME_SIZE * b for a, b in zip(one.spacing, other.spacing, strict=True)
    )


def _require_one_grid(path: Path, frames: Frames) -> None:
    first = frames[0]
    for frame in frames:
        if frame.size != first.size:
            raise UnusableDicomError(
                f"{path} holds slices of different sizes, {_pair(first, frame)}: pass a folder with those of one volume"
            )
        if not _is_parallel(first, frame):
            raise UnusableDicomError(
                f"{path} holds slices that are not parallel, {_pair(first, frame)}: "
                f"pass a folder with those of one volume"
            )
        if not _is_same_spacing(first, frame):
            raise UnusableDicomError(
                f"{path} holds slices whose voxels have different sizes, {_pair(first, frame)} "
                f"({_describe(first.spacing)} and {_describe(frame.spacing)} mm): resample them to one"
            )


def _split_stack(path: Path, frames: Frames) -> tuple[list[list[DicomFrame]], list[str]]:
    """Split parallel frames into volumes with one frame at each place; return the names of their keys too."""
    places = _number_places(frames)
    counts = Counter(places)
    if max(counts.values()) == 1:
        return [list(frames)], []
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        one, other = [frame for frame, place in zip(frames, places, strict=True) if place == many][:2]
        raise UnusableDicomError(
            f"{path} holds several slices of one place, such as {_pair(one, other)} ({counts[many]}, but {counts[few]} "
            f"of another place): pass a folder with those of one volume, or copy the whole series again"
        )
    volumes, names = _split_evenly(frames, places)
    if len(volumes) * len(counts) < len(frames) and len(counts) > 1:
        volumes, names = _split_by_order(frames, places) or volumes, ["the order of their files"]
    for volume in volumes:
        if len(volume) == len(counts):
            _require_constant(path, volume)
        else:
            by_place = sorted(volume, key=lambda frame: frame.normal @ frame.position)
            raise UnusableDicomError(
                f"{path} holds several slices of one place, such as {_pair(*by_place[:2])}, and nothing that tells "
                f"{len(frames) // len(counts)} volumes apart: pass a folder with those of one volume"
            )
    return volumes, names


def _number_places(frames: Frames) -> list[int]:
    """Return the number of each frame's place along their normal."""
    if len(frames) == 1:
        return [0]
    depths = np.array([frame.position for frame in frames]) @ frames[0].normal
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    wide = gaps[gaps > _SAME_PLACE]
    limit = max(_SAME_PLACE, _TOLERANCE * float(np.median(wide))) if len(wide) else _SAME_PLACE
    places = np.empty(len(frames), int)
    places[order] = [0, *np.cumsum(gaps > limit)]
    return [int(place) for place in places]


def _split_evenly(frames: Frames, places: Sequence[int]) -> tuple[list[list[DicomFrame]], list[str]]:
    """Split frames by the keys whose values all places have equally often, until each volume has one at each place."""
    depth = len(set(places))
    parts: list[tuple[Hashable, ...]] = [()] * len(frames)
    names = []
    for name in dict.fromkeys(name for frame in frames for name in frame.keys):
        if len(set(parts)) * depth == len(frames):
            break
        column = _ranks([frame.keys.get(name) for frame in frames], frames)
        finer = [(*part, rank) for part, rank in zip(parts, column, strict=True)]
        if len(set(finer)) > len(set(parts)) and _is_even(finer, places, depth):
            parts = finer
            names.append(name.partition(" of ")[0] if name.startswith(("b-value", "gradient")) else name)
    order = sorted(range(len(frames)), key=lambda n: parts[n])
    return [[frames[n] for n in group] for _, group in groupby(order, key=lambda n: parts[n])], names


def _is_even(parts: Sequence[Hashable], places: Sequence[int], depth: int) -> bool:
    """Return whether each part has all places, equally often."""
    counts = Counter(zip(parts, places, strict=True))
    by_part: dict[Hashable, set[int]] = {}
    for (part, _), count in counts.items():
        by_part.setdefault(part, set()).add(count)
    return len(counts) == len(by_part) * depth and all(len(sizes) == 1 for sizes in by_part.values())


def _ranks(values: Sequence[Hashable], frames: Frames) -> list[int]:
    """Return the rank of each value of a key: numbers by size, all others in the order in which they were sent."""
    first: dict[Hashable, tuple[int, int]] = {}
    for value, frame in zip(values, frames, strict=True):
        first[value] = min(first.get(value, frame.order), frame.order)
    numeric = all(isinstance(value, float) for value in first)
    ordered = sorted(first, key=(lambda value: value) if numeric else first.__getitem__)
    ranks = {value: rank for rank, value in enumerate(ordered)}
    return [ranks[value] for value in values]


def _split_by_order(frames: Frames, places: Sequence[int]) -> list[list[DicomFrame]] | None:
    """Split frames by the numbers of their files, if these run through volume after volume or place after place.

    The frames of one file have no such numbers: where nothing else tells them apart, they belong to one volume.
    """
    order = sorted(range(len(frames)), key=lambda n: frames[n].order)
    if len({frame.order for frame in frames}) < len(frames):
        return None
    sequence, depth = [places[n] for n in order], len(set(places))
    count = len(frames) // depth
    if sequence == sequence[:depth] * count and len(set(sequence[:depth])) == depth:
        volumes = [[frames[n] for n in order[k * depth : (k + 1) * depth]] for k in range(count)]
    elif sequence == [place for place in sequence[::count] for _ in range(count)]:
        volumes = [[frames[n] for n in order[k::count]] for k in range(count)]
    else:
        return None
    files = [{frame.file for frame in volume} for volume in volumes]
    return volumes if sum(map(len, files)) == len(set[str]().union(*files)) else None


def _require_constant(path: Path, frames: Frames) -> None:
    """Raise a ValueError if a file with functional groups has parts of several volumes in one stack."""
    for name in _FIXED:
        values = {frame.keys.get(name) for frame in frames if frame.grouped}
        if len(values) > 1:
            listed = shorten(", ".join(sorted(map(str, values))), 60)
            raise UnusableDicomError(
                f"{path} holds frames that differ in {name} ({listed}) and lie in different places: "
                f"store each volume on its own"
            )


def _require_even_gaps(path: Path, planes: Frames, gaps: np.ndarray, drift: float) -> None:
    median = float(np.median(gaps))
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    if np.abs(gaps - median).max() <= _TOLERANCE * median and drift <= _DRIFT * median:
        return
    wide = gaps > (1 + _TOLERANCE) * median
    multiples = gaps[wide] / median
    thicknesses = {plane.thickness for plane in planes}
    # One wide gap may be several that lack their slices; several in a row are slices that are farther apart.
    if (
        wide.any()
        and gaps[narrowest] >= (1 - _TOLERANCE) * median
        and not (wide[1:] & wide[:-1]).any()
        and np.abs(multiples - multiples.round()).max() <= _TOLERANCE
        and len(thicknesses) == 1
    ):
        raise UnusableDicomError(
            f"{path} lacks slices between {_pair(planes[widest], planes[widest + 1])}, which are {gaps[widest]:.4g} mm "
            f"apart, and others {median:.4g} mm: copy or export the whole series again"
        )
    raise UnusableDicomError(
        f"{path} has slices that are unevenly spaced, from {gaps[narrowest]:.4g} to {gaps[widest]:.4g} mm, such as "
        f"{_pair(planes[widest], planes[widest + 1])}: resample the series to even ones"
    )


def _pair(one: DicomFrame, other: DicomFrame) -> str:
    first, second = Path(one.file).name, Path(other.file).name
    return f"{first} and {second}" if first != second else f"frames {one.number + 1} and {other.number + 1}"


def _describe(spacing: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing) or "unknown"


def _sort_key(name: str) -> tuple[int, str]:
    """Sort numbers by size, before other names."""
    return (int(name), "") if name.isascii() and name.isdigit() else (1 << 64, name)
