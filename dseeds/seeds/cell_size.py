"""Step 1: the size of a cell, from a step, a length in millimetres or a number of supervoxels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseeds.core.checks import is_whole_number
from dseeds.core.formatting import format_spacing
from dseeds.core.geometry import Lattice, Triple, check_spacing, triple
from dseeds.core.mask_blocks import MaskBlocks
from dseeds.seeds.kernels.mask_components import find_large_components
from dseeds.seeds.kernels.simd import NOTHING

DEFAULT_STEP = 16
# The units of lengths that users may write.
UNITS_PER_MM = {
    "cm": 0.1,
    "mm": 1.0,
    "um": 1e3,
    "\N{MICRO SIGN}m": 1e3,
    "\N{GREEK SMALL LETTER MU}m": 1e3,
    "nm": 1e6,
}
# Anisotropy (longest over shortest edge of a cell) and the tolerance of the count with it, tried in this order.
COMPROMISES = ((1.2, 0.02), (1.35, 0.02), (1.5, 0.02), (1.5, 0.04), (1.75, 0.04), (2.0, 0.04), (2.5, 0.04))
# Counts per axis to try on either side of the isotropic one.
NEARBY = 12
# How many times too many or too few cells there may be: beyond the first, any cells that come closer will do, and of
# these all up to the second are good.
MOST_RATIO, GOOD_RATIO = 1.5, 1.1
# Halvings of the interval in which the number of cells of a whole volume lies of which a given number is in a mask.
HALVINGS = 12
# How often the number of cells is corrected for those that a mask cuts into several large parts, and how many times too
# many these may be without: larger cells cost boundaries.
CORRECTIONS, FAIR_RATIO = 4, 1.25
# Edges of so many voxels are few enough to try all that are shorter or a little longer.
FEW_VOXELS = 8

Step = int | str | Sequence[int]


def choose_step(
    shape: Triple,
    *,
    step: Step | None = None,
    n_segments: int | None = None,
    spacing: Sequence[float] | None = None,
    known_spacing: Sequence[float] | None = None,
    mask: MaskBlocks | None = None,
) -> Triple:
    """Return the size of a cell along (z, y, x) in voxels, never longer than the volume.

    `step` and `n_segments` are those of `dseeds.supervoxels`, and also texts such as ``"4,16,16"``. With `spacing`, in
    millimetres, a single number is the edge of a cube of the same number of voxels, and the cells become isotropic in
    millimetres. `known_spacing`, from a file, serves `n_segments` and lengths, but does not change a step in voxels.
    With a `mask`, `n_segments` is the number of cells with voxels inside it, each of its large parts there counted.

    Raise a ValueError if both `step` and `n_segments` are given, one is invalid, or a length comes without a spacing.

    >>> choose_step((100, 100, 100), step=8)
    (8, 8, 8)
    >>> choose_step((40, 200, 200), step="12mm", spacing=(3, 0.75, 0.75))
    (4, 16, 16)
    >>> choose_step((64, 64, 64), n_segments=432)
    (7, 8, 10)
    """
    if step is not None and n_segments is not None:
        raise ValueError("give either step or n_segments, not both.")
    own_spacing = None if spacing is None else check_spacing(spacing)
    scale = own_spacing or (None if known_spacing is None else check_spacing(known_spacing))
    if n_segments is not None:
        target, scale = _check_count(n_segments, shape), scale or (1.0, 1.0, 1.0)
        return _for_count(shape, target, scale) if mask is None else _for_count_inside(mask, target, scale)
    if isinstance(step, str):
        length = millimetres(step)
        if length is not None:
            return _for_length(shape, step, length, scale)
        try:
            numbers = [int(part) for part in step.split(",")]
        except ValueError:
            raise ValueError(
                f"step must be voxels such as 16 or 4,16,16 (z,y,x), or a length such as 12mm or 8um, got {step!r}."
            ) from None
        step = numbers[0] if len(numbers) == 1 else numbers
    return _for_voxels(shape, DEFAULT_STEP if step is None else step, own_spacing)


def millimetres(text: str) -> float | None:
    """Read a length such as ``"12mm"``, ``"8um"`` or ``"300nm"``; None if the text is not a length.

    >>> millimetres("2.5 mm"), millimetres("8um"), millimetres("12")
    (2.5, 0.008, None)
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(\w+)\s*", text)
    # Divided, since 8 / 1000 is the float closest to 0.008.
    return float(match[1]) / UNITS_PER_MM[match[2]] if match and match[2] in UNITS_PER_MM else None


def _check_count(n_segments: int, shape: Triple) -> int:
    voxels = math.prod(shape)
    if n_segments is True or not is_whole_number(n_segments) or not 1 <= n_segments <= voxels:
        raise ValueError(
            f"n_segments must be a whole number from 1 to the number of voxels, {voxels}, got {n_segments!r}."
        )
    return int(n_segments)


def _for_voxels(shape: Triple, step: int | Sequence[int], spacing: tuple[float, float, float] | None) -> Triple:
    single = isinstance(step, Real)
    numbers: list[Any] = [step] * 3 if single or not isinstance(step, Iterable) else list(step)
    if len(numbers) != 3 or not all(map(is_whole_number, numbers)):
        raise ValueError(f"step must be a whole number of voxels, or three of them for (z, y, x), got {step!r}.")
    if any(s < min(2, n) for s, n in zip(numbers, shape, strict=True)):
        raise ValueError(f"step must be at least 2 voxels along every axis, got {step!r}.")
    if single and spacing is not None:
        return _cube(shape, numbers[0] * math.prod(spacing) ** (1 / 3), spacing)
    return _clip(shape, triple(numbers))


def _for_length(shape: Triple, step: str, length: float, spacing: tuple[float, float, float] | None) -> Triple:
    if spacing is None:
        raise ValueError(f"step {step!r} needs the voxels' size: give spacing=(z, y, x) in millimetres (--spacing).")
    if not math.isfinite(length) or all(length < 2 * s for s in spacing):
        raise ValueError(f"step {step!r} is less than two voxels, of {format_spacing(spacing)}, along every axis.")
    return _cube(shape, length, spacing)


def _cube(shape: Triple, edge: float, spacing: tuple[float, float, float]) -> Triple:
    return _clip(shape, triple([max(2, round(edge / s)) for s in spacing]))


def _clip(shape: Triple, step: Triple) -> Triple:
    return Lattice(shape, step).step


def _for_count(shape: Triple, target: int, spacing: tuple[float, float, float]) -> Triple:
    edge, free, short = _cube_edge(shape, target, spacing)

    def choose(candidates: Callable[[int, float], NDArray[np.int64]]) -> tuple[float, Triple]:
        """Return the relative miss of the target, and the best step."""
        steps = [
            candidates(n, edge / s) if axis in free else np.array([n if axis in short else 2])
            for axis, (n, s) in enumerate(zip(shape, spacing, strict=True))
        ]
        return _best_step(shape, target, spacing, free, np.array(list(itertools.product(*steps))))

    found = choose(_candidates)
    # Cells of few voxels leave few numbers of cells to choose from.
    if found[0] > COMPROMISES[-1][1] and edge <= FEW_VOXELS * max(spacing):
        found = min(found, choose(_small_candidates))
    step = found[1]
    return (
        step if _ratio(_cells(shape, np.array(step)), target) <= MOST_RATIO else _nearest_count(shape, target, spacing)
    )


def _for_count_inside(mask: MaskBlocks, target: int, spacing: tuple[float, float, float]) -> Triple:
    """Return a step with about `target` supervoxels inside a mask, of which it cuts some from one cell."""
    cells = target
    ratios: dict[Triple, float] = {}
    for _ in range(CORRECTIONS):
        step = _for_cells_inside(mask, cells, spacing)
        parts = _count_parts(mask, step, mask.least_voxels(target))
        ratios.setdefault(step, float(_ratio(np.array(parts), target)))
        if ratios[step] <= FAIR_RATIO:
            break
        cells = max(1, round(cells * target / parts))
    return min(ratios, key=lambda step: ratios[step])


def _count_parts(mask: MaskBlocks, step: Triple, least: int) -> int:
    """Return the number of parts of at least so many voxels into which a mask cuts cells; one for a cell without."""
    count = mask.count_cells(step)
    along = [mask.cells_along(axis, step) for axis in range(3)]
    if any(cells is None for cells in along):
        return count
    z, y, x = np.ix_(*(cells for cells in along if cells is not None))
    codes = np.where(mask.filled, (z & 3) << 4 | (y & 3) << 2 | x & 3, NOTHING).astype(np.uint8)
    first = np.unravel_index(find_large_components(codes, least * mask.filled.sum() / mask.inside), codes.shape)
    large = np.stack([cells[place] for cells, place in zip(along, first, strict=True) if cells is not None])
    return count + int(large.shape[1]) - int(np.unique(large, axis=1).shape[1])


def _for_cells_inside(mask: MaskBlocks, target: int, spacing: tuple[float, float, float]) -> Triple:
    """Return a step with about `target` cells inside a mask, which need more cells in the whole volume."""
    shape = mask.shape
    voxels = math.prod(shape)
    counts: dict[Triple, int] = {}

    def count(step: Triple) -> int:
        if step not in counts:
            counts[step] = mask.count_cells(step)
        return counts[step]

    # Cells at the border of the mask count as much as others, so that there are at least as many as by volume.
    low, high = 0.0, math.log(max(1, min(voxels, 2 * target * voxels / mask.inside)))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if count(_for_count(shape, max(1, round(math.exp(middle))), spacing)) < target:
            low = middle
        else:
            high = middle

    def rank(step: Triple) -> tuple[float, float]:
        edges = np.multiply(step, spacing)
        return float(_ratio(np.array(count(step)), target)), float(edges.max() / edges.min())

    for step in (_for_count(shape, max(1, round(math.exp(end))), spacing) for end in (low, high)):
        count(step)
    best = min(counts, key=rank)
    for change in itertools.product((-1, 0, 1), repeat=3):
        count(triple(min(n, max(2, s + c)) for s, c, n in zip(best, change, shape, strict=True)))
    return min(counts, key=rank)


def _cells(shape: Triple, steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of cells of steps (..., 3)."""
    cells: NDArray[np.int64] = ((2 * np.array(shape) + steps) // (2 * steps)).prod(axis=-1)
    return cells


def _ratio(cells: NDArray[np.int64], target: int) -> Any:
    """Return how many times too many or too few cells are."""
    return np.maximum(cells / target, target / cells)


def _nearest_count(shape: Triple, target: int, spacing: tuple[float, float, float]) -> Triple:
    """Return a step whose number of cells is about the target, however flat the cells are: the roundest of the best.

    This is for slices so thick, or volumes so flat, that cells cannot be cubes: all numbers of cells along two axes are
    tried, with the best one along the third, the longest.
    """
    steps = [_distinct_steps(n) for n in shape]
    last = int(np.argmax([len(axis) for axis in steps]))
    first, second = (axis for axis in range(3) if axis != last)
    pairs = np.array(list(itertools.product(steps[first], steps[second])))
    along = (2 * np.array([shape[first], shape[second]]) + pairs) // (2 * pairs)
    counts = (2 * shape[last] + steps[last]) // (2 * steps[last])
    # Steps ascend, so that counts descend.
    place = np.searchsorted(-counts, -target / along.prod(axis=1))
    candidates = np.zeros((2 * len(pairs), 3), np.int64)
    candidates[:, [first, second]] = np.concatenate([pairs, pairs])
    candidates[:, last] = steps[last][np.clip(np.concatenate([place, place - 1]), 0, len(counts) - 1)]
    ratios = _ratio(_cells(shape, candidates), target)
    edges = candidates * spacing
    anisotropy = edges.max(axis=1) / edges.min(axis=1)
    good = ratios <= max(GOOD_RATIO, float(ratios.min()))
    return triple(candidates[np.lexsort((ratios, np.where(good, anisotropy, np.inf)))[0]])


def _distinct_steps(length: int) -> NDArray[np.int64]:
    """Return the shortest step along an axis for each number of cells that there can be, in ascending order."""
    steps = np.arange(min(2, length), length + 1)
    return steps[np.unique((2 * length + steps) // (2 * steps), return_index=True)[1]][::-1]


def _best_step(
    shape: Triple, target: int, spacing: tuple[float, float, float], free: list[int], steps: NDArray[np.int64]
) -> tuple[float, Triple]:
    steps = np.minimum(steps, shape)
    miss = np.abs(_cells(shape, steps) / target - 1)
    edges = (steps * spacing)[:, free] if free else np.ones((len(steps), 1))
    anisotropy = edges.max(axis=1) / edges.min(axis=1)
    for bound, tolerance in COMPROMISES:
        allowed = np.where(anisotropy <= bound, miss, np.inf)
        if allowed.min() <= tolerance:
            break
    best = np.lexsort((anisotropy, np.where(np.isinf(allowed), miss + 10, allowed)))[0]
    return float(miss[best]), triple(steps[best])


def _cube_edge(shape: Triple, target: int, spacing: tuple[float, float, float]) -> tuple[float, list[int], list[int]]:
    """Return the edge in millimetres of `target` cubes, the axes neither too short nor too coarse, and the short ones.

    Cells are as long as the volume along short axes, and two voxels along coarse ones.
    """
    coarse: list[int] = []
    while True:
        free = [axis for axis in range(3) if axis not in coarse]
        count = target / math.prod(max(1, shape[axis] // 2) for axis in coarse)
        # Coarse axes leave fewer cells to the others, which may then be longer: which are too short is found anew.
        short: list[int] = []
        edge = _edge(shape, spacing, free, count)
        while found := [axis for axis in free if edge >= shape[axis] * spacing[axis]]:
            # One at a time, the worst first, because each changes the edge.
            short.append(min(found, key=lambda axis: shape[axis] * spacing[axis]))
            free.remove(short[-1])
            edge = _edge(shape, spacing, free, count)
        found = [axis for axis in free if edge < 2 * spacing[axis]]
        if not found:
            return edge, free, short
        coarse.append(max(found, key=lambda axis: spacing[axis]))


def _edge(shape: Triple, spacing: tuple[float, float, float], axes: list[int], count: float) -> float:
    """Return the edge of so many squares or cubes along some axes; 0 without axes."""
    if not axes:
        return 0.0
    return float((math.prod(shape[axis] * spacing[axis] for axis in axes) / max(1.0, count)) ** (1 / len(axes)))


def _candidates(length: int, ideal: float) -> NDArray[np.int64]:
    """Return steps along an axis that give about as many cells as the ideal step, in nearly equal sizes."""
    middle = max(1, round(length / ideal))
    counts = np.arange(max(1, middle - NEARBY), middle + NEARBY + 1)
    return np.unique(np.maximum(2, np.concatenate([length // counts, -(-length // counts)])))


def _small_candidates(length: int, ideal: float) -> NDArray[np.int64]:
    """Return all steps along an axis that are a few voxels away from the ideal one."""
    return np.arange(2, max(3, int(2.5 * ideal) + 2))
