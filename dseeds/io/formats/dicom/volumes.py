"""Volumes: frames sorted by volume and place, or refused where that is not certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
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


def sort_volumes(path: Path, frames: Frames) -> tuple[list[DicomVolume], list[str]]:
    """Sort frames into volumes; also return names of what tells these apart. Raise a ValueError where it is unclear."""
    _require_one_series(path, frames)
    volumes, names = [], list[str]()
    stacks = _split_stacks(frames)
    for stack in stacks:
        _require_one_grid(path, stack)
        for group, more in _split_volumes(path, stack):
            _require_constant(path, group)
            volumes.append(_sort_planes(path, group))
            names += [name for name in more if name not in names]
    return volumes, [*(["stack"] if len(stacks) > 1 else []), *names]


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
    several = [frame for frame in frames if not frame.grouped and frame.number > 0]
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
    stacks: dict[Hashable, list[DicomFrame]] = {}
    for frame in frames:
        # Rounding may not split a direction that is written with few digits.
        known = next((other for other in stacks if _is_same_stack(stacks[other][0], frame)), None)
        stacks.setdefault(len(stacks) if known is None else known, []).append(frame)
    lone = len(stacks) > 1 and all(len(stack) == 1 for stack in stacks.values())
    if lone and all(_is_parallel(frames[0], frame) for frame in frames):
        return [list(frames)]
    return sorted(stacks.values(), key=lambda stack: (_sort_key(_as_number(stack[0].stack)), stack[0].order))


def _is_same_stack(one: DicomFrame, other: DicomFrame) -> bool:
    return not one.grouped or (one.stack == other.stack and _is_parallel(one, other))


def _is_parallel(one: DicomFrame, other: DicomFrame) -> bool:
    return bool(np.allclose(one.orientation, other.orientation, rtol=0, atol=_SAME_DIRECTION))


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
        if len(frame.spacing) != len(first.spacing) or not np.allclose(frame.spacing, first.spacing, rtol=1e-3, atol=0):
            raise UnusableDicomError(
                f"{path} holds slices whose voxels have different sizes, {_pair(first, frame)} "
                f"({_describe(first.spacing)} and {_describe(frame.spacing)} mm): resample them to one"
            )


def _split_volumes(path: Path, frames: Frames) -> list[tuple[list[DicomFrame], list[str]]]:
    """Split parallel frames into volumes, which each have one frame at each place, with the names of their keys."""
    places = _number_places(frames)
    counts = Counter(places)
    if max(counts.values()) == 1:
        return [(list(frames), [])]
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        one, other = [frame for frame, place in zip(frames, places, strict=True) if place == many][:2]
        raise UnusableDicomError(
            f"{path} holds several slices of one place, such as {_pair(one, other)}, and {counts[few]} of another with "
            f"{counts[many]}: pass a folder with those of one volume, or copy the whole series again"
        )
    volumes, names = _split_evenly(frames, places)
    if len(volumes) * len(counts) < len(frames) and len(counts) > 1:
        volumes, names = _split_by_order(frames, places) or volumes, ["the order of their files"]
    for volume in volumes:
        if len(volume) > len(counts):
            by_place = sorted(volume, key=lambda frame: frame.normal @ frame.position)
            raise UnusableDicomError(
                f"{path} holds several slices of one place, such as {_pair(*by_place[:2])}, and nothing that tells "
                f"{len(frames) // len(counts)} volumes apart: pass a folder with those of one volume"
            )
    return [(volume, names) for volume in volumes]


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
    """Split frames by the numbers of their files, if these run through volume after volume or place after place."""
    order = sorted(range(len(frames)), key=lambda n: frames[n].order)
    if len({frame.order for frame in frames}) < len(frames):
        return None
    sequence, depth = [places[n] for n in order], len(set(places))
    count = len(frames) // depth
    if sequence == sequence[:depth] * count and len(set(sequence[:depth])) == depth:
        return [[frames[n] for n in order[k * depth : (k + 1) * depth]] for k in range(count)]
    if sequence == [place for place in sequence[::count] for _ in range(count)]:
        return [[frames[n] for n in order[k::count]] for k in range(count)]
    return None


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


def _sort_planes(path: Path, frames: Frames) -> DicomVolume:
    """Sort the planes of a volume as SimpleITK does."""
    if len(frames) == 1:
        return DicomVolume(tuple(frames), None)
    positions = np.array([frame.position for frame in frames])
    depths = positions @ frames[0].normal
    order = np.argsort(depths, kind="stable")
    planes = tuple(frames[n] for n in order)
    positions, gaps = positions[order], np.diff(depths[order])
    _require_even_gaps(path, planes, gaps)
    step = (positions[-1] - positions[0]) / len(gaps)
    line = positions[0] + np.arange(len(planes))[:, None] * step
    shift = np.linalg.norm(positions - line, axis=1)
    limit = _TOLERANCE * max(float(np.median(gaps)), *planes[0].spacing, _SAME_PLACE)
    if shift.max() > limit:
        raise UnusableDicomError(
            f"{path} has slices that do not lie one behind the other (one is {shift.max():.3g} mm off their line): "
            f"resample the series to a straight one"
        )
    return DicomVolume(planes, step)


def _require_even_gaps(path: Path, planes: Frames, gaps: np.ndarray) -> None:
    median = float(np.median(gaps))
    widest, narrowest = int(gaps.argmax()), int(gaps.argmin())
    if np.abs(gaps - median).max() <= _TOLERANCE * median:
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


def _as_number(text: str) -> Hashable:
    return float(text) if text.strip().isdigit() else text


def _sort_key(value: Hashable) -> tuple[bool, Mapping[str, str] | Hashable]:
    return isinstance(value, str), value
