"""Cases: the file that lists them, and the volumes that they name."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dseeds.core.forks import cached_property
from dseeds.core.geometry import Lattice, Triple, triple
from dseeds.io import Image, Spacing, open_image, open_source
from dseeds.io.alignment import align
from dseeds.io.boundary_map import open_boundary_map
from dseeds.seeds.flood import DERIVED_KINDS
from dseeds.seeds.intensity_windows import read_windows
from dseeds.seeds.order_statistics import find_windows

Window: TypeAlias = tuple[float, float]

# The columns of a file of cases, those that every case needs first.
NEEDED = "name", "kind", "image", "truth", "steps"
OPTIONAL = "boundaries", "window"
_SLAB = 64


@dataclass(frozen=True)
class Case:
    """A volume to cut into supervoxels.

    Parameters
    ----------
    name : str
        Its name in tables.
    step : tuple of int
        The size of cells along (z, y, x), in voxels.
    image : ndarray, shape (z, y, x), or (c, z, y, x) with channels
        The intensities.
    truth : ndarray of integers, shape (z, y, x), or None
        The true structures; 0 is background.
    windows : tuple of (float, float)
        The intensity window of each channel.
    boundaries : ndarray, shape (z, y, x), or str, optional
        A map that is high on boundaries, or ``"image"``, ``"dark"`` or ``"gradient"``, as for `dseeds.supervoxels`.
    """

    name: str
    step: Triple
    image: NDArray[Any]
    truth: NDArray[Any] | None
    windows: tuple[Window, ...]
    boundaries: NDArray[Any] | str | None = None

    @property
    def shape(self) -> Triple:
        """Voxels along (z, y, x)."""
        return triple(self.image.shape[-3:])

    @property
    def lattice(self) -> Lattice:
        """The lattice of cells."""
        return Lattice(self.shape, self.step)

    @property
    def count(self) -> int:
        """The number of supervoxels that every method should make, one per cell."""
        return self.lattice.size

    @property
    def channel_axis(self) -> int | None:
        """The axis of channels, or None without channels."""
        return None if self.image.ndim == 3 else 0

    @cached_property
    def scaled(self) -> NDArray[np.float32]:
        """The image for the peers, clipped and scaled to [0, 1], in its own shape."""
        result = np.empty(self.image.shape, np.float32)
        pairs = zip(result.reshape(-1, *self.shape), self.image.reshape(-1, *self.shape), strict=True)
        for (scaled, channel), (lo, hi) in zip(pairs, self.windows, strict=True):
            scaled[:] = np.clip((channel - lo) / (hi - lo), 0, 1)
        return result

    @cached_property
    def relief(self) -> NDArray[np.float32]:
        """The map that watersheds flood, from 0 to 255: that of the boundaries, or else the gradient's magnitude."""
        channels = self.scaled.reshape(-1, *self.shape)
        if isinstance(self.boundaries, np.ndarray):
            values = self.boundaries.astype(np.float32)
        elif self.boundaries in ("image", "dark"):
            values = channels.mean(axis=0) if self.boundaries == "image" else 1 - channels.mean(axis=0)
        else:
            # All axes but those of one voxel, along which nothing changes.
            axes = [axis for axis, n in enumerate(self.shape, start=1) if n > 1]
            squares = sum((np.square(np.gradient(channels, axis=axis)) for axis in axes), np.zeros_like(channels))
            values = np.sqrt(squares.sum(axis=0))
        # The range that `dseeds.supervoxels` looks at.
        low, high = np.percentile(values, (0.5, 99.5))
        share = np.clip((values - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
        return np.asarray(255 * share, np.float32)

    @cached_property
    def markers(self) -> NDArray[np.int32]:
        """The seeds of watersheds, one at the centre of each cell; 0 elsewhere."""
        lattice, result = self.lattice, np.zeros(self.shape, np.int32)
        axes = zip(lattice.cells, lattice.step, self.shape, strict=True)
        places = np.ix_(*(np.minimum(np.arange(n) * s + s // 2, end - 1) for n, s, end in axes))
        result[places] = np.arange(1, lattice.size + 1).reshape(lattice.cells)
        return result

    def whole_cells(self, step: Triple) -> Case:
        """Return the case at a step, or one cell along an axis that is shorter than that, cropped to whole cells."""
        cell = triple(min(n, s) for n, s in zip(self.shape, step, strict=True))
        return replace(self.crop(tuple(slice(n // s * s) for n, s in zip(self.shape, cell, strict=True))), step=cell)

    def crop(self, box: tuple[slice, ...]) -> Case:
        """Return the part of the case in a box."""
        truth = None if self.truth is None else np.ascontiguousarray(self.truth[box])
        boundaries = self.boundaries
        if isinstance(boundaries, np.ndarray):
            boundaries = np.ascontiguousarray(boundaries[box])
        whole = (slice(None),) * (self.image.ndim - len(box))
        image = np.ascontiguousarray(self.image[whole + box])
        return replace(self, image=image, truth=truth, boundaries=boundaries)


@dataclass(frozen=True)
class ListedCase:
    """A row of a file of cases: addresses, as for `dseeds.segment`, and steps in voxels along (z, y, x)."""

    name: str
    kind: str
    image: str
    truth: str
    steps: tuple[Triple, ...]
    boundaries: str | None = None
    window: str | None = None


def read_cases(file: str | Path) -> list[ListedCase]:
    """Read a list of cases from a CSV with a header, or a JSON list of objects.

    Parameters
    ----------
    file : str or Path
        Each row has ``name``; ``kind``, the group in which the case counts; ``image`` and ``truth``, in any format that
        `dseeds.segment` reads, where 0 in the truth is background; ``steps``, such as ``8 16`` or ``4x8x8 8x16x16``
        voxels along (z, y, x), in JSON also a list of numbers; optionally ``boundaries``, a map of the same shape or
        ``image``, ``dark`` or ``gradient``, and ``window``, as for `dseeds.supervoxels`. Paths are relative to the
        file.

    Raises
    ------
    ValueError
        If the file is something else, two cases have one name, or steps are not from 2 voxels on.
    """
    path = Path(file)
    cases = [_read_case(path, row) for row in read_rows(path, NEEDED, OPTIONAL)]
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two cases of {path} are called {min(twice)!r}: give each a name of its own.")
    return cases


def read_rows(file: Path, needed: Sequence[str], optional: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of a CSV with a header, or of a JSON list of objects, without those values that are empty.

    Raise a ValueError unless there are rows, and all of them have what is needed, and nothing but what is optional.
    """
    try:
        with file.open(newline="") as stream:
            rows = json.load(stream) if file.suffix == ".json" else list(csv.DictReader(stream))
        result = [{key: value for key, value in row.items() if value} for row in rows]
        is_valid = all(set(needed) <= set(row) <= {*needed, *optional} for row in result)
    except (TypeError, AttributeError, ValueError):
        is_valid = False
    if not is_valid:
        raise ValueError(
            f"{file} must be a CSV with a header, or a JSON list of objects, that name {_listing(needed)} in every "
            f"row, optionally {_listing(optional)}, and nothing else."
        )
    if not result:
        raise ValueError(f"{file} has no rows: name at least one image.")
    return result


def case_address(file: Path, address: str) -> str:
    """Return an address, or a path that is relative to the folder of a file.

    >>> case_address(Path("/data/cases.csv"), "s3://lab/a.zarr")
    's3://lab/a.zarr'
    """
    return address if "://" in address else str(file.parent / address)


def _listing(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _read_case(file: Path, row: dict[str, Any]) -> ListedCase:
    boundaries = row.get("boundaries")
    texts = {key: str(row[key]) for key in ("name", "kind")}
    return ListedCase(
        **texts,
        image=case_address(file, str(row["image"])),
        truth=case_address(file, str(row["truth"])),
        steps=_read_steps(row["steps"], texts["name"]),
        boundaries=boundaries if boundaries in (None, *DERIVED_KINDS) else case_address(file, str(boundaries)),
        window=row.get("window"),
    )


def _read_steps(value: Any, name: str) -> tuple[Triple, ...]:
    """Return the steps of a row.

    >>> _read_steps("8 4x8x8", "ct"), _read_steps([8, [4, 8, 8]], "ct")
    (((8, 8, 8), (4, 8, 8)), ((8, 8, 8), (4, 8, 8)))
    """
    items: Any = value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        parts = [item.split("x") if isinstance(item, str) else item for item in items]
        sizes = [[int(number) for number in (part if isinstance(part, list) else [part])] for part in parts]
        steps = tuple(triple(size * 3 if len(size) == 1 else size) for size in sizes)
        if steps and all(len(step) == 3 and min(step) >= 2 for step in steps):
            return steps
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"the steps of {name} must be voxels from 2 on, for all axes or for each, such as 8 or 4x8x8, separated by "
        f"spaces, not {value!r}."
    )


def load_case(
    name: str,
    image: str,
    truth: str,
    *,
    window: Any = None,
    boundaries: str | None = None,
    margin: int | None = None,
) -> tuple[Case, Spacing | None]:
    """Read the volumes of a case of one cell, and the voxel size along (z, y, x) in mm if the image has one.

    The volumes of a 4D image are channels. With a `margin`, they are cropped to so many voxels around the structures.

    Raises
    ------
    ValueError
        If the shapes differ, the truth is not of whole numbers or has no structure, or the image is constant.
    """
    source = _open_channels(image)
    structures = open_source(truth)
    if structures.shape != source.shape:
        raise ValueError(
            f"the image has shape {source.shape} and the truth {structures.shape}: they must lie on one grid."
        )
    aligned = align(structures, f"the truth {truth}", source.grid)
    values = _check_truth(np.concatenate([slab for _, slab in aligned.slabs(_SLAB)]))
    channels = _read_image(source)
    relief: NDArray[Any] | str | None = boundaries
    if boundaries is not None and boundaries not in DERIVED_KINDS:
        relief = _read_image(open_boundary_map(boundaries, source))[0]
    shown = channels if len(channels) > 1 else channels[0]
    case = Case(name, values.shape, shown, values, (), relief)
    if margin is not None:
        case = case.crop(tuple(_extent(values, axis, margin) for axis in range(3)))
        case = replace(case, step=case.shape)
    return replace(case, windows=_settle(case, window)), source.spacing


def _settle(case: Case, window: Any) -> tuple[Window, ...]:
    """Return the windows of the image, and give the lowest intensity to voxels that are not finite."""
    channels = case.image.reshape(-1, *case.shape)
    windows = tuple(find_windows(list(channels), read_windows(window, len(channels))))
    if any(low == high for low, high in windows):
        raise ValueError("the image is constant: it shows no structure.")
    if channels.dtype.kind == "f":
        # dseeds masks voxels that are not finite; the peers cannot.
        for channel, (low, _) in zip(channels, windows, strict=True):
            channel[~np.isfinite(channel)] = low
    return windows


def _read_image(image: Image) -> NDArray[Any]:
    return np.concatenate([np.stack(slab) for _, slab in image.slabs(_SLAB)], axis=1)


def _check_truth(truth: NDArray[Any]) -> NDArray[Any]:
    """Return the truth as integers."""
    if truth.dtype.kind == "f":
        if not np.array_equal(truth, np.rint(truth)):
            raise ValueError("the truth must contain whole numbers, one for each structure.")
        truth = truth.astype(np.int32)
    if not truth.any():
        raise ValueError("the truth has no structure: it is 0 everywhere.")
    return truth


def _extent(truth: NDArray[Any], axis: int, margin: int) -> slice:
    """Return the range of the structures along an axis, with a margin."""
    planes = np.flatnonzero(truth.any(axis=tuple({0, 1, 2} - {axis})))
    return slice(max(0, int(planes[0]) - margin), int(planes[-1]) + 1 + margin)


def _open_channels(address: str) -> Image:
    try:
        return open_image(address)
    except ValueError as error:
        try:
            return open_image(address, channel_axis=0)
        except ValueError:
            raise error from None
